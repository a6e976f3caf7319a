//! What a packet would be told, without its being one: for explanations.

use super::nat::Candidates;
use super::packet::{Packet, TransportInfo};
use super::table::{Commit, CommitError, Conntrack, Key, difference, keys_of, load_tcp, view};
use super::tcp::Followed;
use super::tracked::{InvalidReason, StateBits, Tracked};
use super::tuple::Direction;
use crate::time::Millis;

impl Conntrack {
    /// As [`Conntrack::track`], but changes nothing. Whether a TCP segment lies in its connection's windows is judged as if it came now.
    pub fn preview(&self, packet: &Packet, now: Millis) -> Tracked {
        if let TransportInfo::IcmpError(_) = packet.transport {
            // Moves no state either.
            return self.track(packet, now);
        }
        let keys = match keys_of(packet) {
            Ok(keys) => keys,
            Err(reason) => return Tracked::invalid(reason),
        };
        for key in keys.into_iter().flatten() {
            if let Some(found) = self.find(&key, key.hash(&self.hasher), now) {
                let TransportInfo::Tcp(tcp) = packet.transport else {
                    return view(&found);
                };
                let Some(mut copy) = load_tcp(found.slot, &found.cold, found.slot.status()) else {
                    return Tracked::invalid(InvalidReason::Contradiction);
                };
                match copy.follow(found.direction, &tcp, self.config.strictness.windows) {
                    Followed::Accepted => return view(&found),
                    Followed::Invalid(reason) => return Tracked::invalid(reason),
                    // This one is over for it.
                    Followed::Reopens => {}
                }
            }
        }
        match self.opens(packet) {
            Ok(()) => Tracked::unknown(StateBits::NEW, None),
            Err(reason) => Tracked::invalid(reason),
        }
    }

    /// As [`Conntrack::commit`], but opens nothing: how the connection's packets would be translated. A source port that has to be
    /// another than the packet's own is drawn anew when the connection is opened. Limits are not asked.
    ///
    /// # Errors
    /// When the translation is impossible, or everything that it allows is taken.
    pub fn preview_commit(
        &self,
        packet: &Packet,
        commit: &Commit,
        now: Millis,
    ) -> Result<Tracked, CommitError> {
        let not_opening = CommitError::NotOpening;
        let [key, _] = keys_of(packet).map_err(not_opening)?;
        let key = key.ok_or(not_opening(InvalidReason::Contradiction))?;
        if let Some(found) = self.find(&key, key.hash(&self.hasher), now) {
            return Ok(view(&found));
        }
        self.opens(packet).map_err(not_opening)?;
        let nat = &commit.nat;
        let candidates = Candidates::new(&self.hasher, packet.zone, &packet.tuple, nat, 0)
            .ok_or(CommitError::BadTranslation)?;
        let mut number = 0;
        while let Some(candidate) = candidates.get(number) {
            let reply = Key::of_direction(key.zone, &candidate.inverse(), Direction::Reply);
            if reply != key && self.find(&reply, reply.hash(&self.hasher), now).is_none() {
                let mut told = Tracked::unknown(StateBits::NEW, None);
                told.translation = difference(&packet.tuple, &candidate);
                told.mark = commit.mark;
                told.data = commit.data;
                return Ok(told);
            }
            number += 1;
        }
        Err(if number > 1 || nat.source.is_some() {
            CommitError::PortsExhausted
        } else {
            CommitError::TupleInUse
        })
    }
}
