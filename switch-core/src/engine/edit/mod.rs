//! Finished edits: what a verdict does to the bytes of a frame, with every value a constant.
//!
//! The evaluator turns the primitives that a frame met into an [`EditList`]; a flow cache hit gets the same list, whose bytes are
//! right for every frame the cached verdict is right for. The data path applies it to a copy of the private header at delivery.
//! Positions count from the start of the frame as it is when that edit's turn comes.
//!
//! [`Delta`] makes the numbers that checksum edits need from old and new bytes; `apply` does what a list says.

mod apply;
mod delta;

pub use apply::apply;
pub use delta::Delta;

use crate::drop_reason::DropReason;

/// Longest run of bytes in one edit.
pub const EDIT_RUN_BYTES: usize = 20;
/// How much longer a list may make a header.
pub const MAX_GROWTH_BYTES: usize = 96;

/// Up to [`EDIT_RUN_BYTES`] bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    bytes: [u8; EDIT_RUN_BYTES],
    len: u8,
}

impl Run {
    /// These bytes; what is beyond [`EDIT_RUN_BYTES`] is left out.
    pub fn new(from: &[u8]) -> Self {
        let mut run = Self::default();
        let from = from.get(..EDIT_RUN_BYTES).unwrap_or(from);
        if let Some(bytes) = run.bytes.get_mut(..from.len()) {
            bytes.copy_from_slice(from);
            run.len = from.len() as u8;
        }
        run
    }

    /// The bytes.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

/// One edit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Bytes replace others.
    Write {
        /// The first.
        at: u16,
        /// The new ones.
        bytes: Run,
    },
    /// Bytes come between others.
    Insert {
        /// What they come before.
        at: u16,
        /// The new ones.
        bytes: Run,
    },
    /// Bytes go.
    Remove {
        /// The first.
        at: u16,
        /// How many.
        bytes: u16,
    },
    /// An IPv4 header checksum follows a change of the header (RFC 1624).
    AdjustIpv4Checksum {
        /// Where the checksum is.
        at: u16,
        /// The ones' complement sum of new minus old words.
        delta: u16,
    },
    /// A transport checksum follows a change. Where it is only the pseudo-header's sum yet (partial checksum), only the change of the
    /// pseudo-header counts, and in the other sense.
    AdjustTransportChecksum {
        /// Where the checksum is.
        at: u16,
        /// The change of addresses and protocol, as `AdjustIpv4Checksum::delta`.
        pseudo_delta: u16,
        /// The change of what follows the pseudo-header.
        data_delta: u16,
        /// Whose rule for zero holds.
        kind: TransportChecksum,
    },
    /// A 16-bit length: that of the frame from byte `from` on.
    WriteLength {
        /// Where it is.
        at: u16,
        /// What it counts from.
        from: u16,
    },
    /// The checksum of an IPv4 header without options, all of it.
    FinishIpv4Checksum {
        /// Where the header is.
        at: u16,
    },
}

/// Whose checksum it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportChecksum {
    /// TCP, ICMP, ICMPv6.
    Plain,
    /// UDP: 0 means none and stays; what comes out as 0 is sent as `0xffff`.
    Udp,
}

/// Edits that a list holds itself: as many as a routed and translated frame has.
const FEW_EDITS: usize = 8;

/// Edits in one piece with what holds them, unless they are many.
#[derive(Clone, Debug)]
enum Edits {
    Few([Edit; FEW_EDITS], usize),
    Many(Box<[Edit]>),
}

/// Edits, in order.
#[derive(Clone, Debug)]
pub struct EditList {
    edits: Edits,
    /// How many come before the first that moves bytes.
    in_place: usize,
    length_delta: isize,
}

impl PartialEq for EditList {
    fn eq(&self, other: &Self) -> bool {
        self.edits() == other.edits()
    }
}

impl Eq for EditList {}

impl EditList {
    /// These edits.
    pub fn new(edits: impl AsRef<[Edit]>) -> Self {
        let edits = edits.as_ref();
        let moved = |edit: &Edit| match edit {
            Edit::Insert { bytes, .. } => bytes.bytes().len() as isize,
            Edit::Remove { bytes, .. } => -(*bytes as isize),
            _ => 0,
        };
        Self {
            in_place: edits
                .iter()
                .take_while(|edit| !matches!(edit, Edit::Insert { .. } | Edit::Remove { .. }))
                .count(),
            length_delta: edits.iter().map(moved).sum(),
            edits: {
                let mut few = [Edit::Remove { at: 0, bytes: 0 }; FEW_EDITS];
                match few.get_mut(..edits.len()) {
                    Some(place) => {
                        place.copy_from_slice(edits);
                        Edits::Few(few, edits.len())
                    }
                    None => Edits::Many(edits.into()),
                }
            },
        }
    }

    /// The edits.
    #[inline]
    pub fn edits(&self) -> &[Edit] {
        match &self.edits {
            Edits::Few(edits, len) => edits.get(..*len).unwrap_or_default(),
            Edits::Many(edits) => edits,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.edits().is_empty()
    }

    /// How many bytes longer the edited frame is.
    pub const fn length_delta(&self) -> isize {
        self.length_delta
    }

    /// Whether every byte that is not written stays where it is.
    pub fn is_in_place(&self) -> bool {
        self.in_place == self.edits().len()
    }

    /// The edits before the first that moves bytes, and that one with those after it.
    ///
    /// What is put around a frame can only be put around each of the pieces that it is cut into, but a translation of addresses has
    /// to come before the cut: an IP fragment has no ports.
    pub fn split(&self) -> (&[Edit], &[Edit]) {
        self.edits()
            .split_at_checked(self.in_place)
            .unwrap_or_default()
    }

    /// Applies the edits. After an error some of them are done: the frame is to be dropped.
    ///
    /// # Errors
    /// See [`apply`].
    #[inline]
    pub fn apply(&self, frame: &mut EditedFrame<'_>) -> Result<(), DropReason> {
        apply(self.edits(), frame)
    }
}

/// A frame that is edited.
#[derive(Debug)]
pub struct EditedFrame<'a> {
    /// Its first bytes, and room for them to grow.
    pub buffer: &'a mut [u8],
    /// How many bytes of the buffer are the frame's.
    pub header_bytes: usize,
    /// The length of the whole frame.
    pub frame_bytes: usize,
    /// Where a checksum that its receiver is to finish starts and is, as `csum_start` and the sum of both; moves with the edits, and
    /// is none any more when its field was removed.
    pub partial_checksum: Option<PartialChecksum>,
}

/// A checksum that is only the pseudo-header's sum yet (VIRTIO 1.3 §5.1.6.2, `VIRTIO_NET_HDR_F_NEEDS_CSUM`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// Where what it covers starts.
    pub start: u16,
    /// Where it is.
    pub at: u16,
}
