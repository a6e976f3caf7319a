//! The change a frame's outer VLAN tag undergoes between two ports.
//!
//! The data path applies it at delivery, on the worker that read the frame, without touching the private header copy: a frame
//! flooded to an access port and to a trunk needs both forms of the same header.

use crate::parse::{ETHERNET_HEADER_BYTES, TPID_CUSTOMER, VLAN_TAG_BYTES};
use crate::vlan::Tci;

/// What happens to a frame's outer VLAN tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum VlanEdit {
    /// Nothing.
    #[default]
    None,
    /// The outer tag goes.
    Pop,
    /// A customer tag is put before what is there.
    Push(Tci),
    /// The outer tag keeps its TPID and gets this control information.
    Retag(Tci),
}

/// The start of an edited frame: it consists of [`prefix`](Self::prefix), then the original from byte [`skip`](Self::skip) on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewrite {
    bytes: [u8; ETHERNET_HEADER_BYTES + VLAN_TAG_BYTES],
    len: u8,
    skip: u8,
}

impl Rewrite {
    const UNCHANGED: Self = Self {
        bytes: [0; 18],
        len: 0,
        skip: 0,
    };

    /// The bytes the edited frame starts with.
    #[inline]
    pub fn prefix(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// How many bytes of the original frame the prefix replaces.
    #[inline]
    pub const fn skip(&self) -> usize {
        self.skip as usize
    }
}

impl VlanEdit {
    /// How many bytes longer the edited frame is.
    #[inline]
    pub const fn length_delta(self) -> isize {
        match self {
            Self::None | Self::Retag(_) => 0,
            Self::Pop => -(VLAN_TAG_BYTES as isize),
            Self::Push(_) => VLAN_TAG_BYTES as isize,
        }
    }

    /// The start of the frame that leaves when one that starts with `header` is edited.
    ///
    /// A header too short for the edit, which no verdict asks for, stays as it is.
    #[inline]
    pub fn rewrite(self, header: &[u8]) -> Rewrite {
        let Some(addresses) = header.first_chunk::<12>() else {
            return Rewrite::UNCHANGED;
        };
        let mut rewrite = Rewrite::UNCHANGED;
        let [out @ .., tpid_high, tpid_low, tci_high, tci_low, _, _] = &mut rewrite.bytes;
        *out = *addresses;
        match self {
            Self::None => {}
            Self::Pop => {
                if header.len() >= 16 {
                    (rewrite.len, rewrite.skip) = (12, 16);
                }
            }
            Self::Push(tci) => {
                [*tpid_high, *tpid_low] = TPID_CUSTOMER.to_be_bytes();
                [*tci_high, *tci_low] = tci.0.to_be_bytes();
                (rewrite.len, rewrite.skip) = (16, 12);
            }
            Self::Retag(tci) => {
                if let Some(&[.., high, low, _, _]) = header.first_chunk::<16>() {
                    [*tpid_high, *tpid_low] = [high, low];
                    [*tci_high, *tci_low] = tci.0.to_be_bytes();
                    (rewrite.len, rewrite.skip) = (16, 16);
                }
            }
        }
        rewrite
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNTAGGED: &[u8] = &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0x08, 0x00, 0x45];
    const TAGGED: &[u8] = &[
        1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0x88, 0xa8, 0xa0, 10, 0x08, 0x00, 0x45,
    ];

    fn edited(edit: VlanEdit, frame: &[u8]) -> Vec<u8> {
        let rewrite = edit.rewrite(frame);
        let result = [rewrite.prefix(), &frame[rewrite.skip()..]].concat();
        assert_eq!(
            result.len() as isize,
            frame.len() as isize + edit.length_delta()
        );
        result
    }

    #[test]
    fn a_pushed_tag_stands_before_the_ether_type() {
        let expected = [&UNTAGGED[..12], &[0x81, 0x00, 0x60, 0x14], &UNTAGGED[12..]].concat();
        assert_eq!(edited(VlanEdit::Push(Tci(0x6014)), UNTAGGED), expected);
    }

    #[test]
    fn a_popped_tag_leaves_the_frame_as_it_was_before() {
        assert_eq!(edited(VlanEdit::Pop, TAGGED), UNTAGGED);
    }

    #[test]
    fn a_retagged_frame_keeps_its_tpid() {
        let mut expected = TAGGED.to_vec();
        expected[14..16].copy_from_slice(&[0xa0, 20]);
        assert_eq!(edited(VlanEdit::Retag(Tci(0xa014)), TAGGED), expected);
    }

    #[test]
    fn no_edit_changes_nothing() {
        assert_eq!(edited(VlanEdit::None, TAGGED), TAGGED);
    }

    #[test]
    fn a_header_too_short_for_its_edit_stays_as_it_is() {
        for edit in [
            VlanEdit::Pop,
            VlanEdit::Push(Tci(1)),
            VlanEdit::Retag(Tci(1)),
        ] {
            for len in 0..12 {
                assert_eq!(
                    edit.rewrite(&TAGGED[..len]),
                    Rewrite::UNCHANGED,
                    "{edit:?} on {len} bytes"
                );
            }
        }
    }
}
