//! What a packet would be told, without its being one: for explanations.

use super::packet::{Packet, TransportInfo};
use super::table::{Conntrack, keys_of, load_tcp, view};
use super::tcp::Followed;
use super::tracked::{InvalidReason, StateBits, Tracked};
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
}
