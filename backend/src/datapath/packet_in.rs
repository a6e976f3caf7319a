//! Frames for the control side: ARP for a router's address, a first frame that nobody knows a route for, an expired TTL.
//!
//! Workers put them in, one control thread takes them out. Bounded in frames, in bytes and in frames a second of each port: what a
//! guest sends there costs others nothing but their share of a worker's time. Workers that punt nothing never come here.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use switch_core::{DropReason, Millis, PortId, Punt, RateLimit, TokenBucket};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::frame::VNET_HEADER_BYTES;

/// How much waits for the control side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketInLimits {
    /// Most frames.
    pub frames: usize,
    /// Most bytes of frames.
    pub bytes: usize,
    /// What each port may send.
    pub port_rate: RateLimit,
}

impl Default for PacketInLimits {
    fn default() -> Self {
        Self {
            frames: 1024,
            bytes: 4 << 20,
            port_rate: RateLimit {
                per_second: 1000,
                burst: 256,
            },
        }
    }
}

/// A frame for the control side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketIn {
    /// The port it came from.
    pub in_port: PortId,
    /// Why it is here.
    pub punt: Punt,
    /// Its virtio-net header: what its sender left to be done.
    pub vnet_header: [u8; VNET_HEADER_BYTES],
    /// The frame as it came, all of it.
    pub frame: Box<[u8]>,
}

#[derive(Debug, Default)]
struct Waiting {
    frames: VecDeque<PacketIn>,
    bytes: usize,
    /// By port number, as far as ports ever sent something.
    buckets: Vec<Option<TokenBucket>>,
}

/// The queue to the control side.
#[derive(Debug)]
pub struct PacketInQueue {
    limits: PacketInLimits,
    waiting: Mutex<Waiting>,
    bell: EventFd,
}

impl PacketInQueue {
    /// An empty queue.
    ///
    /// # Errors
    /// When its eventfd cannot be made.
    pub fn new(limits: PacketInLimits) -> io::Result<Self> {
        Ok(Self {
            limits,
            waiting: Mutex::default(),
            bell: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
        })
    }

    /// Takes what waits, oldest first.
    pub fn receive(&self) -> Vec<PacketIn> {
        // Before the frames are taken: what comes after that rings again.
        let _ = self.bell.read();
        let mut waiting = self.lock();
        waiting.bytes = 0;
        waiting.frames.drain(..).collect()
    }

    /// Room for a frame of `len_bytes` from `in_port`, which `frame` makes if there is.
    ///
    /// # Errors
    /// [`DropReason::ControllerBusy`].
    pub fn put(
        &self,
        now: Millis,
        (in_port, len_bytes): (PortId, usize),
        frame: impl FnOnce() -> PacketIn,
    ) -> Result<(), DropReason> {
        let mut waiting = self.lock();
        let full = waiting.frames.len() >= self.limits.frames
            || waiting.bytes + len_bytes > self.limits.bytes;
        if full || !waiting.may_send(in_port, self.limits.port_rate, now) {
            return Err(DropReason::ControllerBusy);
        }
        waiting.bytes += len_bytes;
        waiting.frames.push_back(frame());
        let is_first = waiting.frames.len() == 1;
        drop(waiting);
        if is_first {
            // A full counter wakes as well.
            let _ = self.bell.write(1);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Readable from the first frame that waits until [`PacketInQueue::receive`].
impl AsRawFd for PacketInQueue {
    fn as_raw_fd(&self) -> RawFd {
        self.bell.as_raw_fd()
    }
}

impl Waiting {
    fn may_send(&mut self, port: PortId, rate: RateLimit, now: Millis) -> bool {
        if self.buckets.len() <= port.index() {
            self.buckets.resize(port.index() + 1, None);
        }
        self.buckets.get_mut(port.index()).is_some_and(|bucket| {
            bucket
                .get_or_insert_with(|| TokenBucket::full(rate, now))
                .take(now)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(queue: &PacketInQueue, now: u64, port: u16, len_bytes: usize) -> bool {
        let in_port = PortId::new(port).unwrap();
        let frame = || PacketIn {
            in_port,
            punt: Punt::default(),
            vnet_header: [0; VNET_HEADER_BYTES],
            frame: vec![port as u8; len_bytes].into(),
        };
        queue.put(Millis(now), (in_port, len_bytes), frame).is_ok()
    }

    fn queue() -> PacketInQueue {
        PacketInQueue::new(PacketInLimits::default()).unwrap()
    }

    fn taken(queue: &PacketInQueue, now: u64, port: u16, len_bytes: usize) -> usize {
        (0..5000)
            .take_while(|_| put(queue, now, port, len_bytes))
            .count()
    }

    #[test]
    fn a_port_has_its_own_rate() {
        let queue = queue();
        assert_eq!(taken(&queue, 1, 7, 60), 256);
        assert_eq!(taken(&queue, 1, 8, 60), 256, "another is not concerned");
        assert_eq!(taken(&queue, 11, 7, 60), 10, "1,000 a second");
        let frames = queue.receive();
        assert_eq!(frames.len(), 522);
        assert_eq!((frames[0].in_port.get(), frames[521].in_port.get()), (7, 7));
    }

    #[test]
    fn frames_and_bytes_are_bounded() {
        let queue = queue();
        let total: usize = (0..20).map(|port| taken(&queue, 1, port, 60)).sum();
        assert_eq!(total, 1024);
        assert_eq!(queue.receive().len(), 1024);
        let total: usize = (30..40).map(|port| taken(&queue, 1, port, 65_536)).sum();
        assert_eq!(total, 64, "4 MiB");
        assert_eq!(queue.receive().len(), 64);
        assert!(put(&queue, 1, 50, 60), "room again");
    }

    #[test]
    fn the_bell_rings_once_for_what_waits() {
        let queue = queue();
        assert!(queue.bell.read().is_err());
        assert!(put(&queue, 1, 1, 60) && put(&queue, 1, 1, 60));
        assert_eq!(queue.bell.read().ok(), Some(1));
        assert_eq!(queue.receive().len(), 2);
        assert!(put(&queue, 1, 1, 60));
        assert_eq!(queue.bell.read().ok(), Some(1));
    }
}
