//! What can go wrong, and whose fault it was.
//!
//! [`DeviceFault`] is a rule the device under test broke: a test that sees one has found a bug in the device. Everything else in
//! [`Error`] is the session's or the caller's.

use std::io;
use std::time::Duration;

use crate::features::Features;
use crate::memory::MemoryError;

/// A rule of the VIRTIO specification that the device broke.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceFault {
    /// The used index moved past what was made available (VIRTIO 1.3 §2.7.8).
    #[error(
        "ring {ring}: used index {used} runs ahead: {outstanding} chains outstanding after {seen}"
    )]
    UsedIndexAhead {
        /// Which ring.
        ring: u16,
        /// The used index as read.
        used: u16,
        /// The last used index that was consumed.
        seen: u16,
        /// How many chains the driver had published and not got back.
        outstanding: u16,
    },
    /// A used element names no chain that is with the device.
    #[error("ring {ring}: used element {slot} names {id}, which is no chain with the device")]
    UnknownUsedId {
        /// Which ring.
        ring: u16,
        /// The slot in the used ring, or in the packed ring.
        slot: u16,
        /// The id in it: a descriptor, or in a packed ring a buffer id.
        id: u32,
    },
    /// With IN_ORDER, a used element jumps further than the used index does (VIRTIO 1.3 §2.7.9).
    #[error(
        "ring {ring}: IN_ORDER was acked, and used element {slot} names chain {id} out of order"
    )]
    OutOfOrder {
        /// Which ring.
        ring: u16,
        /// The slot in the used ring.
        slot: u16,
        /// The id in it.
        id: u32,
    },
    /// The flags of a packed ring's used descriptor make no sense (VIRTIO 1.3 §2.8.1, §2.8.3).
    #[error("ring {ring}: used descriptor {slot} has flags {flags:#06x}: {why}")]
    UsedFlags {
        /// Which ring.
        ring: u16,
        /// The place in the ring.
        slot: u16,
        /// The flags as read.
        flags: u16,
        /// The rule they break.
        why: &'static str,
    },
    /// A descriptor of a packed ring changed that the device has not used (VIRTIO 1.3 §2.8.2, §2.8.15).
    #[error(
        "ring {ring}: the device wrote descriptor {slot}, which it has not used: length, id and flags are {found:#018x} instead of {expected:#018x}"
    )]
    DescriptorOverwritten {
        /// Which ring.
        ring: u16,
        /// The place in the ring.
        slot: u16,
        /// Length, id and flags as they are, from the low bits up.
        found: u64,
        /// As the driver left them.
        expected: u64,
    },
    /// A packed ring's device event suppression structure makes no sense (VIRTIO 1.3 §2.8.10, §2.8.14).
    #[error(
        "ring {ring}: device event suppression has position {position:#06x} and flags {flags:#06x}: {why}"
    )]
    EventSuppression {
        /// Which ring.
        ring: u16,
        /// Offset and wrap counter as read.
        position: u16,
        /// The flags as read.
        flags: u16,
        /// The rule they break.
        why: &'static str,
    },
    /// More bytes reported as written than the chain has room for (VIRTIO 1.3 §2.7.8.2).
    #[error("ring {ring}: chain {id} reported {written} bytes written, room for {writable}")]
    WrittenTooLong {
        /// Which ring.
        ring: u16,
        /// Head of the chain, or its buffer id.
        id: u16,
        /// The length in the used element.
        written: u32,
        /// Device-writable bytes of the chain.
        writable: u32,
    },
    /// A received buffer is shorter than its header.
    #[error("ring {ring}: received {written} bytes, less than the header's {header}")]
    ShorterThanHeader {
        /// Which ring.
        ring: u16,
        /// The length in the used element.
        written: u32,
        /// Bytes the header has with these features.
        header: usize,
    },
    /// `num_buffers` is wrong (VIRTIO 1.3 §5.1.6.4.1).
    #[error("ring {ring}: num_buffers is {num_buffers}: {why}")]
    NumBuffers {
        /// Which ring.
        ring: u16,
        /// The value in the header.
        num_buffers: u16,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A buffer of a merged frame other than the last was not filled (VIRTIO 1.3 §5.1.6.4.1).
    #[error(
        "ring {ring}: buffer {part} of {num_buffers} holds {written} of {room} bytes, and is not the last"
    )]
    PartNotFull {
        /// Which ring.
        ring: u16,
        /// Which buffer of the frame, from 0.
        part: u16,
        /// How many the frame has.
        num_buffers: u16,
        /// Bytes written to it.
        written: u32,
        /// Bytes it has room for.
        room: u32,
    },
    /// The header says something the driver did not ack (VIRTIO 1.3 §5.1.6.4).
    #[error(
        "ring {ring}: illegal virtio_net_hdr: {why} (flags {flags:#x}, gso_type {gso_type:#x})"
    )]
    IllegalHeader {
        /// Which ring.
        ring: u16,
        /// The rule it breaks.
        why: &'static str,
        /// Header flags.
        flags: u8,
        /// Header GSO type.
        gso_type: u8,
    },
    /// A page was written and not marked in the migration log (vhost-user: Migration).
    #[error(
        "the byte at guest address {address:#x} is {source_byte:#04x}, and {copied_byte:#04x} at the destination of a migration: the device wrote {pages} pages without marking them"
    )]
    NotMarked {
        /// Guest-physical address of the first byte that differs.
        address: u64,
        /// What is there.
        source_byte: u8,
        /// What was copied.
        copied_byte: u8,
        /// Pages that differ.
        pages: usize,
    },
    /// Pages were marked when the rings had been stopped and the log read.
    #[error("{pages} pages were marked after the rings had stopped, the first is {page:#x}")]
    MarkedAfterStop {
        /// Number of the first page.
        page: u64,
        /// How many.
        pages: usize,
    },
    /// Bytes changed that the device had no business with.
    #[error(
        "ring {ring}: memory at guest address {address:#x} was {found:#04x} instead of {expected:#04x}: {what}"
    )]
    MemoryOverwritten {
        /// Which ring.
        ring: u16,
        /// Guest-physical address of the first bad byte.
        address: u64,
        /// What is there.
        found: u8,
        /// What should be there.
        expected: u8,
        /// What that memory is.
        what: &'static str,
    },
}

/// Why an operation of the simulated guest or its VMM failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device broke the specification.
    #[error(transparent)]
    Device(#[from] DeviceFault),
    /// Guest memory could not be made or has no room.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A system call failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The back-end closed the connection, or answered what makes no sense.
    #[error("vhost-user {request}: {source}")]
    Vhost {
        /// The request.
        request: &'static str,
        /// What `vhost` made of it.
        source: vhost::Error,
    },
    /// The back-end refused a request.
    #[error("vhost-user {request} was refused by the back-end")]
    Refused {
        /// The request.
        request: &'static str,
    },
    /// The back-end closed the connection.
    #[error("vhost-user {request}: the back-end closed the connection")]
    Disconnected {
        /// The request that met the end.
        request: &'static str,
    },
    /// Nothing came in time.
    #[error("{waiting_for}: nothing within {within:?}")]
    Timeout {
        /// What was awaited.
        waiting_for: &'static str,
        /// For how long.
        within: Duration,
    },
    /// A feature the options require is not offered.
    #[error("the back-end does not offer {missing}; it offers {offered}")]
    NotOffered {
        /// What is missing.
        missing: Features,
        /// What there is.
        offered: Features,
    },
    /// The back-end has fewer queues than asked for.
    #[error("{wanted} queue pairs asked for, the back-end answers {answered} to GET_QUEUE_NUM")]
    TooFewQueues {
        /// Pairs in the options.
        wanted: u16,
        /// The answer.
        answered: u64,
    },
    /// A frame needs more descriptors than the ring has at all.
    #[error(
        "a frame of {bytes} bytes needs {descriptors} descriptors, the ring has {ring_size}: choose another layout or INDIRECT_DESC"
    )]
    ChainTooLong {
        /// Frame with header.
        bytes: usize,
        /// Descriptors it needs.
        descriptors: usize,
        /// Ring size.
        ring_size: u16,
    },
    /// There is no room in the ring now.
    #[error("the ring is full: reclaim used chains first")]
    RingFull,
    /// The options contradict each other.
    #[error("options: {0}")]
    Options(&'static str),
}

/// Names what a system call was for, when it fails.
pub(crate) trait Doing<T> {
    fn doing(self, doing: &'static str) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, doing: &'static str) -> Result<T, Error> {
        self.map_err(|error| Error::Io {
            doing,
            source: error.into(),
        })
    }
}
