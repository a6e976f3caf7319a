//! The fast path: a packet of a connection whose verdict is cached.
//!
//! No lock, no hash: the slot's first 64 bytes say whether the verdict still holds, take note of the packet and count it. [`slot`](super::slot) says why workers that do this to one connection at once do no harm.

use std::sync::atomic::Ordering::Relaxed;

use super::packet::{TcpFlags, TcpInfo};
use super::slot::{Slot, Status, Tick};
use super::table::Conntrack;
use super::tcp::{after, allowed_end, in_window, scaled_window};
use super::tracked::{ConnId, Leg, Refreshed};
use super::tuple::Direction;
use crate::time::Millis;

/// Whether a segment is only data or an acknowledgement.
pub(super) const fn is_plain(flags: TcpFlags) -> bool {
    const DECISIVE: u8 = TcpFlags::SYN.0 | TcpFlags::FIN.0 | TcpFlags::RST.0 | TcpFlags::ACK.0;
    flags.0 & DECISIVE == TcpFlags::ACK.0
}

impl Conntrack {
    /// Reads of a connection what a packet of it needs first, for the processor to have it at hand when it comes. The number means
    /// nothing.
    #[inline]
    pub fn touch(&self, conn: ConnId) -> u64 {
        self.slab.get(conn.index).map_or(0, |slot| slot.status().0)
    }

    /// Whether a cached verdict about a connection still holds for packets that change no state.
    pub fn still_holds(&self, conn: ConnId, leg: Leg, now: Millis) -> bool {
        let slot = self.slab.get(conn.index);
        slot.is_some_and(|slot| self.is_as_it_was(slot, (conn, leg), slot.status(), Tick::of(now)))
    }

    /// Whether the connection is the same, was not changed nor answered since, and has not expired.
    #[inline(always)]
    fn is_as_it_was(
        &self,
        slot: &Slot,
        (conn, leg): (ConnId, Leg),
        status: Status,
        tick: Tick,
    ) -> bool {
        status.generation() == conn.generation
            && status.has(Status::FAST)
            && status.has(Status::SEEN_REPLY) != (leg == Leg::Unanswered)
            && !self.is_overdue(slot, status, tick)
    }

    /// Takes a packet of a cached verdict into account, if the verdict still holds: the connection is the same, was not changed
    /// ([`Conntrack::set_mark`]) nor answered since, has not expired, and the packet is one that changes no state. `tcp` is the segment of a TCP packet.
    ///
    /// Otherwise nothing is changed, and the packet is to be [tracked](Conntrack::track).
    #[inline]
    pub fn refresh(
        &self,
        conn: ConnId,
        leg: impl Into<Leg>,
        (tcp, bytes): (Option<&TcpInfo>, u32),
        now: Millis,
    ) -> Refreshed {
        let leg = leg.into();
        let direction = leg.direction();
        let Some(slot) = self.slab.get(conn.index) else {
            return Refreshed::Changed;
        };
        let status = slot.status();
        let tick = Tick::of(now);
        let counters = slot.counters(direction);
        if !self.is_as_it_was(slot, (conn, leg), status, tick) || counters.is_full() {
            return Refreshed::Changed;
        }
        if status.has(Status::TCP) {
            let Some(tcp) = tcp else {
                return Refreshed::Changed;
            };
            if !advance(slot, status, direction, tcp) {
                return Refreshed::Changed;
            }
        }
        slot.touch(tick);
        counters.add(bytes);
        Refreshed::Valid
    }
}

/// Notes a segment that is plain and in the window; says whether it is.
#[inline]
fn advance(slot: &Slot, status: Status, direction: Direction, tcp: &TcpInfo) -> bool {
    if !is_plain(tcp.flags) {
        return false;
    }
    let sender_side = slot.side(direction);
    let receiver_side = slot.side(direction.opposite());
    let (sender, receiver) = (sender_side.load(), receiver_side.load());
    let end = tcp.sequence.wrapping_add(tcp.payload_bytes);
    let ack = tcp.acknowledgement;
    let believed = in_window(&sender, &receiver, tcp.sequence, end, ack)
        // Beyond the window's end more changes than is changed here.
        && !after(end, sender.max_end);
    if !believed && !status.has(Status::LIBERAL) {
        return false;
    }
    let window = scaled_window(tcp.window, status.scale(direction));
    if after(end, sender.end) {
        sender_side.end.store(end, Relaxed);
    }
    if after(ack, sender.max_ack) {
        sender_side.max_ack.store(ack, Relaxed);
    }
    if window > sender.max_window {
        sender_side.max_window.store(window, Relaxed);
    }
    let allowed = allowed_end(ack, window);
    if after(allowed, receiver.max_end) {
        receiver_side.max_end.store(allowed, Relaxed);
    }
    true
}
