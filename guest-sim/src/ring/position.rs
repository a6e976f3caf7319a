//! A place in a packed ring and the turn it is in.
//!
//! Used by the driver's bookkeeping, by ring bases in messages and by tests that play a device. Keeps true: the offset is below the ring's
//! size wherever it was made by [`Position::advance`].

use super::raw_packed::{AVAIL, USED};

/// Where in a packed ring, with the wrap counter that holds there (VIRTIO 1.3 §2.8.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Which descriptor.
    pub offset: u16,
    /// The wrap counter: true in the first turn, then changing with each.
    pub wrap: bool,
}

impl Position {
    /// Where both sides of an empty ring start: descriptor 0, wrap counter 1.
    pub const START: Self = Self {
        offset: 0,
        wrap: true,
    };

    /// This many descriptors further in a ring of `size` entries; at most one turn.
    #[must_use]
    #[inline]
    pub fn advance(self, by: u16, size: u16) -> Self {
        // Both are at most 32768: the sum fits only because u32 holds it.
        let sum = u32::from(self.offset) + u32::from(by);
        match sum.checked_sub(size.into()) {
            None => Self {
                offset: sum as u16,
                wrap: self.wrap,
            },
            Some(rest) => Self {
                offset: rest as u16,
                wrap: !self.wrap,
            },
        }
    }

    /// How many descriptors lie between here and `later`, counted forward: less than two turns.
    pub fn distance_to(self, later: Self, size: u16) -> u32 {
        let size = u32::from(size);
        let at = |position: Self| u32::from(position.offset) + if position.wrap { 0 } else { size };
        (at(later) + 2 * size - at(self)) % (2 * size)
    }

    /// Offset in bits 0 to 14, wrap counter in bit 15: as event suppression structures and ring bases have it.
    pub fn word(self) -> u16 {
        self.offset & 0x7fff | u16::from(self.wrap) << 15
    }

    /// The reverse of [`Self::word`].
    pub fn from_word(word: u16) -> Self {
        Self {
            offset: word & 0x7fff,
            wrap: word >> 15 == 1,
        }
    }

    /// AVAIL and USED of a descriptor that the driver makes available here.
    #[inline]
    pub fn available_flags(self) -> u16 {
        if self.wrap { AVAIL } else { USED }
    }

    /// AVAIL and USED of a descriptor that the device has used here.
    #[inline]
    pub fn used_flags(self) -> u16 {
        if self.wrap { AVAIL | USED } else { 0 }
    }
}

/// What SET_VRING_BASE and GET_VRING_BASE say of a packed ring: the next descriptor the device will read in the low half, the next it
/// will use in the high half (vhost-user, "Vring descriptor indices for packed virtqueues").
pub fn packed_base(avail: Position, used: Position) -> u32 {
    u32::from(avail.word()) | u32::from(used.word()) << 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wrap_counter_changes_where_the_ring_ends_whatever_its_size() {
        for size in [1u16, 2, 3, 5, 255, 256, 32768] {
            let mut at = Position::START;
            for step in 0..4 * u32::from(size) {
                let turn = step / u32::from(size);
                assert_eq!(u32::from(at.offset), step % u32::from(size));
                assert_eq!(at.wrap, turn % 2 == 0, "size {size} step {step}");
                assert_eq!(
                    Position::START.distance_to(at, size),
                    step % (2 * u32::from(size))
                );
                assert_eq!(Position::from_word(at.word()), at);
                at = at.advance(1, size);
            }
        }
        assert_eq!(
            Position::START.advance(32768, 32768),
            Position {
                offset: 0,
                wrap: false
            }
        );
    }

    #[test]
    fn an_empty_rings_base_has_both_wrap_counters() {
        assert_eq!(packed_base(Position::START, Position::START), 0x8000_8000);
    }
}
