//! What an operator does: list, count, delete, mark, and take connections out of one table into another.

use std::sync::atomic::Ordering::Relaxed;

use serde::{Deserialize, Serialize};

use super::slot::{Cold, ConnState, Slot, Status, Tick};
use super::table::{CommitError, Conntrack, Insertion, Key, NewConnection, load_tcp};
use super::tcp::{IgnoredSyn, NO_SCALE, Side, TcpConnection};
use super::tracked::ConnId;
use super::tuple::{Direction, PROTOCOL_TCP, PROTOCOL_UDP, Tuple, Zone};
use crate::port::PortId;
use crate::time::Millis;

/// Slots that one call of [`Conntrack::list`] looks at.
const SLOTS_PER_PAGE: u32 = 1 << 16;

/// A connection as plain data: what a listing shows, and what another table can be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnRecord {
    /// Its zone.
    pub zone: Zone,
    /// The port that opened it.
    pub port: u16,
    /// The port that its first answer came by, if one came and it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_by: Option<u16>,
    /// What a packet of the original direction carries when it comes in.
    pub original: Tuple,
    /// What an answer carries when it comes in. Not the inverse of `original` if the connection is translated.
    pub reply: Tuple,
    /// Its state.
    pub state: ConnState,
    /// Whether an answer was seen.
    pub seen_reply: bool,
    /// Whether it is kept when there is no room.
    pub assured: bool,
    /// The TCP windows, of TCP.
    pub tcp: Option<TcpRecord>,
    /// Its mark.
    pub mark: u32,
    /// Its user data.
    pub data: [u32; 4],
    /// Packets of each direction, the original one first.
    pub packets: [u64; 2],
    /// Bytes of each direction, the original one first.
    pub bytes: [u64; 2],
    /// How long ago its last packet came, in milliseconds, exact to 64.
    pub idle_ms: u64,
    /// How long it is still remembered if nothing comes, in milliseconds.
    pub expires_in_ms: u64,
}

impl ConnRecord {
    /// Whether one of its ends is behind `port`: it was opened from there, or first answered from there.
    pub fn is_bound_to(&self, port: PortId) -> bool {
        self.port == port.get() || self.answered_by == Some(port.get())
    }
}

/// What is known of a TCP connection's sequence numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TcpRecord {
    /// Of each end, the opener first.
    pub sides: [Side; 2],
    /// Window scale of each end; 15 when its SYN had none and the other end has not answered.
    pub scales: [u8; 2],
    /// Whether windows are not checked.
    pub liberal: bool,
    /// The latest SYN that was let pass without effect.
    pub ignored_syn: IgnoredSyn,
}

/// A part of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnPage {
    /// The connections.
    pub connections: Vec<(ConnId, ConnRecord)>,
    /// Where the next page begins; `None` after the last.
    pub next: Option<u32>,
}

/// Why a connection was not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// The record contradicts itself.
    #[error(
        "the connection record contradicts itself in its {0}: export it again from the table it came from"
    )]
    Inconsistent(&'static str),
    /// A connection with one of its tuples is there already.
    #[error(
        "a connection with these addresses and ports exists: delete it first if the imported one is to take its place"
    )]
    Exists,
    /// There is no room.
    #[error(transparent)]
    NoRoom(#[from] CommitError),
}

impl Conntrack {
    /// The live connections from slot `from` on (0 for the first page), of `zone` if given, at most `limit`. Others may come and go
    /// between two pages; one that stays is listed once.
    pub fn list(&self, zone: Option<Zone>, from: u32, limit: usize, now: Millis) -> ConnPage {
        let matches = |record: &ConnRecord| zone.is_none_or(|zone| record.zone == zone);
        self.list_matching(matches, (from, limit), now)
    }

    /// As [`Conntrack::list`], those that `matches`. No lock is held for longer than it takes to copy one connection.
    pub fn list_matching(
        &self,
        matches: impl Fn(&ConnRecord) -> bool,
        (from, limit): (u32, usize),
        now: Millis,
    ) -> ConnPage {
        let end = self.slab.used_end();
        let mut page = ConnPage {
            connections: Vec::new(),
            next: None,
        };
        for index in from..end {
            if page.connections.len() >= limit || index - from >= SLOTS_PER_PAGE {
                page.next = Some(index);
                break;
            }
            let found = self.record_at(index, now);
            if let Some((id, record)) = found
                && matches(&record)
            {
                page.connections.push((id, record));
            }
        }
        page
    }

    /// The connection of this id, as plain data. `None` when it is gone or has expired.
    pub fn export(&self, conn: ConnId, now: Millis) -> Option<ConnRecord> {
        let (id, record) = self.record_at(conn.index, now)?;
        (id == conn).then_some(record)
    }

    fn record_at(&self, index: u32, now: Millis) -> Option<(ConnId, ConnRecord)> {
        let slot = self.slab.get(index)?;
        if slot.status().is_free() {
            return None;
        }
        let cold = slot.lock();
        if !self.is_live(slot, now) {
            return None;
        }
        let generation = slot.status().generation();
        let record = self.record((slot, index), &cold, now)?;
        Some((ConnId { index, generation }, record))
    }

    fn record(&self, (slot, index): (&Slot, u32), cold: &Cold, now: Millis) -> Option<ConnRecord> {
        let status = slot.status();
        let idle = Tick::of(now).since(slot.last_seen());
        let left = self.timeout_ticks(status).saturating_sub(idle);
        let [original, reply] = cold.tuples;
        let tcp = load_tcp(slot, cold, status).map(|tcp| TcpRecord {
            sides: tcp.sides,
            scales: tcp.scales,
            liberal: tcp.liberal,
            ignored_syn: tcp.ignored_syn,
        });
        let [there, back] = &cold.carried;
        let (there, back) = (slot.counters[0].get(there), slot.counters[1].get(back));
        Some(ConnRecord {
            zone: cold.zone,
            port: cold.port,
            answered_by: self.slab.answered_by(index),
            original,
            reply,
            state: status.state()?,
            seen_reply: status.has(Status::SEEN_REPLY),
            assured: status.has(Status::ASSURED),
            tcp,
            mark: slot.mark.load(Relaxed),
            data: slot.load_data(),
            packets: [there.0, back.0],
            bytes: [there.1, back.1],
            idle_ms: Tick::to_millis(idle).0,
            expires_in_ms: Tick::to_millis(left).0,
        })
    }

    /// Takes in a connection that another table exported, with its state, translation and windows.
    ///
    /// # Errors
    ///
    /// When the record contradicts itself, a tuple of it is taken, or there is no room.
    pub fn import(&self, record: &ConnRecord, now: Millis) -> Result<ConnId, ImportError> {
        let new = new_of(record)?;
        let keys = [
            Key::of_direction(record.zone, &record.original, Direction::Original),
            Key::of_direction(record.zone, &record.reply, Direction::Reply),
        ];
        let [original, reply] = &keys;
        let hash = self.hash_of(original);
        let index = self.reserve(&new, hash, now)?;
        // One expired connection may be in the way of each tuple.
        for _ in 0..=keys.len() {
            match self.insert(&new, [original, reply], hash, (index, now)) {
                Insertion::Done(tracked) => {
                    let conn = tracked.conn.ok_or(ImportError::Exists)?;
                    if !record.assured {
                        self.recent.note(record.port, conn);
                    }
                    return Ok(conn);
                }
                Insertion::Over(id) => {
                    self.remove(id);
                }
                Insertion::Exists(_) | Insertion::ReplyTaken => break,
            }
        }
        self.unreserve(&new, index, hash);
        Err(ImportError::Exists)
    }

    /// Changes a connection's mark. Verdicts cached for it no longer hold when this returns. Its new id, or `None` when it is gone.
    pub fn set_mark(&self, conn: ConnId, mark: u32) -> Option<ConnId> {
        self.change(conn, |slot| slot.mark.store(mark, Relaxed))
    }

    /// Changes a connection's user data, as [`Conntrack::set_mark`] does the mark.
    pub fn set_data(&self, conn: ConnId, data: [u32; 4]) -> Option<ConnId> {
        self.change(conn, |slot| slot.store_data(data))
    }

    fn change(&self, conn: ConnId, change: impl FnOnce(&Slot)) -> Option<ConnId> {
        let slot = self.slab.get(conn.index)?;
        let _cold = slot.lock();
        let status = slot.status();
        if status.is_free() || status.generation() != conn.generation {
            return None;
        }
        change(slot);
        let status = status.next_generation();
        slot.set_status(status);
        Some(ConnId {
            index: conn.index,
            generation: status.generation(),
        })
    }

    /// Removes a connection; `false` when it is gone. Verdicts cached for it no longer hold when this returns.
    pub fn delete(&self, conn: ConnId) -> bool {
        self.remove(conn)
    }

    /// Removes the connections of a zone; says how many.
    pub fn delete_zone(&self, zone: Zone, now: Millis) -> u32 {
        self.delete_matching(|record| record.zone == zone, now)
    }

    /// Removes the connections that a port opened; says how many.
    pub fn delete_port(&self, port: PortId, now: Millis) -> u32 {
        self.delete_matching(|record| record.port == port.get(), now)
    }

    /// Removes the live connections that `matches`; says how many. Goes through the whole table, one slot locked at a time.
    pub fn delete_matching(&self, matches: impl Fn(&ConnRecord) -> bool, now: Millis) -> u32 {
        let mut deleted = 0;
        for index in 0..self.slab.used_end() {
            if let Some((id, record)) = self.record_at(index, now)
                && matches(&record)
                && self.remove(id)
            {
                deleted += 1;
            }
        }
        deleted
    }
}

/// Checks a record that came from outside.
fn new_of(record: &ConnRecord) -> Result<NewConnection, ImportError> {
    const fn check(holds: bool, what: &'static str) -> Result<(), ImportError> {
        if holds {
            Ok(())
        } else {
            Err(ImportError::Inconsistent(what))
        }
    }
    let (original, reply) = (&record.original, &record.reply);
    check(PortId::new(record.port).is_some(), "port")?;
    let answerer = record.answered_by.map(PortId::new);
    check(answerer != Some(None), "answering port")?;
    check(original.protocol == reply.protocol, "protocols")?;
    check(
        super::nat::same_family(&original.addresses, &reply.addresses),
        "address families",
    )?;
    let one_identifier = |tuple: &Tuple| tuple.source_port == tuple.destination_port;
    check(
        !original.is_echo() || one_identifier(original) && one_identifier(reply),
        "echo identifiers",
    )?;
    let fits = match record.state {
        state if state.is_tcp() => original.protocol == PROTOCOL_TCP && record.tcp.is_some(),
        ConnState::UdpSingle | ConnState::UdpStream => original.protocol == PROTOCOL_UDP,
        ConnState::Icmp => original.is_echo(),
        _ => {
            original.protocol != PROTOCOL_TCP
                && original.protocol != PROTOCOL_UDP
                && !original.is_echo()
        }
    };
    check(
        fits && (record.state.is_tcp() || record.tcp.is_none()),
        "state",
    )?;
    let tcp = record.tcp.map(|tcp| TcpConnection {
        state: record.state,
        sides: tcp.sides,
        scales: tcp.scales.map(|scale| scale.min(NO_SCALE)),
        liberal: tcp.liberal,
        ignored_syn: tcp.ignored_syn,
    });
    let mut status = Status(0).with_state(record.state);
    if record.seen_reply {
        status = status.with(Status::SEEN_REPLY);
    }
    if !record.state.is_tcp() || record.seen_reply && record.state == ConnState::Established {
        status = status.with(Status::FAST);
    }
    if record.assured {
        status = status.with(Status::ASSURED);
    }
    let mut new = NewConnection::imported(record.zone, record.port, status, tcp);
    new.answered_by = record.answered_by;
    new.mark = record.mark;
    new.data = record.data;
    let [packets, bytes] = [record.packets, record.bytes];
    new.counters = [(packets[0], bytes[0]), (packets[1], bytes[1])];
    new.idle = Millis(record.idle_ms);
    Ok(new)
}
