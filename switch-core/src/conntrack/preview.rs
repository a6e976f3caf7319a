//! What a packet would be told, without its being one: for explanations.

use super::packet::{Packet, TransportInfo};
use super::table::{Conntrack, keys_of, view};
use super::tracked::{StateBits, Tracked};
use crate::time::Millis;

impl Conntrack {
    /// As [`Conntrack::track`], but changes nothing. Where a TCP segment lies in its connection's windows is not judged: that
    /// depends on what comes before it.
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
                return view(&found);
            }
        }
        match self.opens(packet) {
            Ok(()) => Tracked::unknown(StateBits::NEW, None),
            Err(reason) => Tracked::invalid(reason),
        }
    }
}
