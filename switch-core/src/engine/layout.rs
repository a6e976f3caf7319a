//! Where the headers of a frame are.

use std::ops::Range;

use super::compile::MAX_HEADERS;

/// Most headers in a frame at one time.
const MAX_ORDER: usize = 32;
/// The origin of a header that did not come with the frame.
pub(super) const MADE_HERE: u16 = u16::MAX;

/// Where a header is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// Its first byte.
    pub at: u16,
    /// Its length; 0: it is not part of the frame.
    pub bytes: u16,
    /// Its first byte in the frame as it came.
    pub origin: u16,
}

impl Place {
    pub(crate) fn is_valid(self) -> bool {
        self.bytes != 0
    }
}

/// The headers of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    places: [Place; MAX_HEADERS],
    order: [u16; MAX_ORDER],
    headers: usize,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            places: [Place::default(); MAX_HEADERS],
            order: [0; MAX_ORDER],
            headers: 0,
        }
    }
}

impl Layout {
    /// No headers.
    pub(crate) fn clear(&mut self) {
        for &header in self.order.iter().take(self.headers) {
            if let Some(place) = self.places.get_mut(usize::from(header)) {
                *place = Place::default();
            }
        }
        self.headers = 0;
    }

    /// Where a header is.
    #[inline]
    pub(crate) fn place(&self, header: u16) -> Place {
        self.places
            .get(usize::from(header))
            .copied()
            .unwrap_or_default()
    }

    /// The headers, in the order they stand.
    pub(crate) fn order(&self) -> &[u16] {
        self.order.get(..self.headers).unwrap_or_default()
    }

    /// The parser found a header behind the others. `false` when there is no room to note it.
    #[inline]
    pub(crate) fn found(&mut self, header: u16, place: Place) -> bool {
        self.insert(self.headers, header) && self.set(header, place)
    }

    /// A header was made at byte `at`, where there is room for it. `false` when there is no room to note it.
    pub(crate) fn put(&mut self, header: u16, at: usize, bytes: usize) -> bool {
        let before = self
            .order()
            .iter()
            .position(|&other| usize::from(self.place(other).at) > at)
            .unwrap_or(self.headers);
        let place = Place {
            at: at as u16,
            bytes: bytes as u16,
            origin: MADE_HERE,
        };
        self.insert(before, header) && self.set(header, place)
    }

    /// Makes room at byte `at`.
    pub(crate) fn shift(&mut self, at: usize, bytes: usize) {
        for place in &mut self.places {
            if place.is_valid() && usize::from(place.at) >= at {
                place.at += bytes as u16;
            }
        }
    }

    /// Removes bytes, and the headers that start in them.
    pub(crate) fn remove(&mut self, range: &Range<usize>) {
        let mut kept = 0;
        for at in 0..self.headers {
            let Some(&header) = self.order.get(at) else {
                break;
            };
            let Some(place) = self.places.get_mut(usize::from(header)) else {
                break;
            };
            if range.contains(&usize::from(place.at)) {
                *place = Place::default();
                continue;
            }
            if usize::from(place.at) >= range.end {
                place.at -= range.len() as u16;
            }
            if let Some(slot) = self.order.get_mut(kept) {
                *slot = header;
            }
            kept += 1;
        }
        self.headers = kept;
    }

    /// A header is no longer one.
    pub(crate) fn forget(&mut self, header: u16) {
        if let Some(at) = self.order().iter().position(|&other| other == header) {
            self.order.copy_within(at + 1..self.headers, at);
            self.headers -= 1;
            self.set(header, Place::default());
        }
    }

    /// A header goes by another name, that of none.
    pub(crate) fn rename(&mut self, from: u16, to: u16) {
        let place = self.place(from);
        let headers = self.headers;
        if let Some(slot) = self
            .order
            .iter_mut()
            .take(headers)
            .find(|slot| **slot == from)
        {
            *slot = to;
            self.set(from, Place::default());
            self.set(to, place);
        }
    }

    /// Asks for the origin of each header, by place and length.
    pub(crate) fn restore_origins(
        &mut self,
        mut origin: impl FnMut(usize, usize) -> Option<usize>,
    ) {
        for at in 0..self.headers {
            if let Some(&header) = self.order.get(at)
                && let Some(place) = self.places.get_mut(usize::from(header))
            {
                place.origin = origin(place.at.into(), place.bytes.into())
                    .and_then(|origin| u16::try_from(origin).ok())
                    .unwrap_or(MADE_HERE);
            }
        }
    }

    /// Puts a header that there is elsewhere.
    pub(crate) fn set(&mut self, header: u16, place: Place) -> bool {
        match self.places.get_mut(usize::from(header)) {
            Some(slot) => {
                *slot = place;
                true
            }
            None => false,
        }
    }

    fn insert(&mut self, mut before: usize, header: u16) -> bool {
        // A header that is found again, as extension headers are, counts where it was found last.
        if self.place(header).is_valid()
            && let Some(earlier) = self.order().iter().position(|&other| other == header)
        {
            self.order.copy_within(earlier + 1..self.headers, earlier);
            self.headers -= 1;
            before -= usize::from(earlier < before);
        }
        if self.headers >= MAX_ORDER {
            return false;
        }
        self.order.copy_within(before..self.headers, before + 1);
        if let Some(slot) = self.order.get_mut(before) {
            *slot = header;
        }
        self.headers += 1;
        true
    }
}

/// `bits` bits from bit `bit` on, counted from byte `at`, as a number. `None` when the bytes end before.
#[inline]
pub(crate) fn read_bits(bytes: &[u8], at: usize, bit: u16, bits: u16) -> Option<u128> {
    let first = at + usize::from(bit / 8);
    let head = bit % 8;
    // Nearly all fields.
    if head + bits <= 64
        && let Some(word) = bytes.get(first..).and_then(|rest| rest.first_chunk::<8>())
    {
        let word = u64::from_be_bytes(*word) << head;
        return Some(
            match bits {
                0 => 0,
                bits => word >> (64 - bits),
            }
            .into(),
        );
    }
    let last = at + usize::from((bit + bits).div_ceil(8));
    let mut value = 0u128;
    let mut left = bits;
    for (at, &byte) in bytes.get(first..last)?.iter().enumerate() {
        let skip = if at == 0 { head } else { 0 };
        let take = (8 - skip).min(left);
        let part = (byte << skip) >> (8 - take);
        value = value << take | u128::from(part);
        left -= take;
    }
    Some(value)
}

/// Up to 64 bits in the same way; 0 when the bytes end before.
#[inline]
pub(crate) fn read_word(bytes: &[u8], at: usize, bit: u16, bits: u16) -> u64 {
    let first = at + usize::from(bit / 8);
    let head = bit % 8;
    if head + bits <= 64
        && bits > 0
        && let Some(word) = bytes.get(first..).and_then(|rest| rest.first_chunk::<8>())
    {
        return u64::from_be_bytes(*word) << head >> (64 - bits);
    }
    read_bits(bytes, at, bit, bits).unwrap_or(0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_read_from_any_place() {
        let bytes: Vec<u8> = (1..=24).collect();
        let all = |from: usize, bits: u16| {
            (0..usize::from(bits)).fold(0u128, |value, bit| {
                let at = from + bit;
                value << 1 | u128::from(bytes[at / 8] >> (7 - at % 8) & 1)
            })
        };
        for from in 0..60 {
            for bits in 1..=128 {
                if from + usize::from(bits) <= bytes.len() * 8 {
                    assert_eq!(
                        read_bits(&bytes, from / 8, (from % 8) as u16, bits),
                        Some(all(from, bits)),
                        "{from} {bits}"
                    );
                }
            }
        }
        assert_eq!(read_bits(&bytes, 23, 0, 9), None);
    }
}
