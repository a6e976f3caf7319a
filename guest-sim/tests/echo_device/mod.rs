//! A net device on the stock `vhost-user-backend` daemon that sends every frame back to the guest it came from.
//!
//! Started in-process by each test, one daemon per NIC; its rings run on that crate's worker thread. It is the reference peer: nothing of it
//! knows how guest-sim works. Keeps true: frames come back in order and unchanged, on the pair they were sent on.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, RwLock};
use std::thread::JoinHandle;

use guest_sim::Features;
use vhost::vhost_user::VhostUserProtocolFeatures;
use vhost_user_backend::bitmap::BitmapMmapRegion;
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringRwLock, VringState, VringT};
use virtio_queue::{QueueT, Reader, Writer};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};
use vmm_sys_util::tempdir::TempDir;

/// Memory whose written pages can be logged.
type Mapped = GuestMemoryMmap<BitmapMmapRegion>;
type Memory = GuestMemoryAtomic<Mapped>;
type Vring = VringRwLock<Memory>;

struct Echo {
    queue_pairs: usize,
    offered: Features,
    acked: Features,
    memory: Memory,
    /// Frames, header first, that found no receive buffer yet; per pair.
    waiting: Vec<VecDeque<Vec<u8>>>,
}

impl VhostUserBackendMut for Echo {
    type Bitmap = BitmapMmapRegion;
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        2 * self.queue_pairs
    }

    fn max_queue_size(&self) -> usize {
        32768
    }

    fn features(&self) -> u64 {
        self.offered.bits()
    }

    fn acked_features(&mut self, features: u64) {
        self.acked = Features::from_bits(features);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::LOG_SHMFD
    }

    fn set_event_idx(&mut self, _enabled: bool) {}

    fn update_memory(&mut self, memory: Memory) -> std::io::Result<()> {
        self.memory = memory;
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    fn handle_event(
        &mut self,
        ring: u16,
        _events: EventSet,
        rings: &[Vring],
        _thread: usize,
    ) -> std::io::Result<()> {
        let pair = usize::from(ring / 2);
        let (Some(guest_rx), Some(guest_tx)) = (rings.get(2 * pair), rings.get(2 * pair + 1))
        else {
            return Ok(());
        };
        self.read_transmitted(pair, guest_tx);
        self.deliver(pair, guest_rx);
        Ok(())
    }
}

impl Echo {
    fn read_transmitted(&mut self, pair: usize, guest_tx: &Vring) {
        let memory = self.memory.memory();
        let mut ring = guest_tx.get_mut();
        loop {
            let old = ring.get_queue().next_used();
            ring.disable_notification().unwrap();
            while let Some(chain) = ring.get_queue_mut().pop_descriptor_chain(memory.clone()) {
                let head = chain.head_index();
                let mut frame = Vec::new();
                Reader::new(&*memory, chain)
                    .unwrap()
                    .read_to_end(&mut frame)
                    .unwrap();
                self.waiting[pair].push_back(frame);
                ring.add_used(head, 0).unwrap();
            }
            signal_if_wanted(&mut ring, &memory, old);
            if !ring.enable_notification().unwrap() {
                return;
            }
        }
    }

    fn deliver(&mut self, pair: usize, guest_rx: &Vring) {
        let memory = self.memory.memory();
        let mut ring = guest_rx.get_mut();
        let old = ring.get_queue().next_used();
        while let Some(frame) = self.waiting[pair].front() {
            if self.write(&mut ring, frame.clone()) {
                self.waiting[pair].pop_front();
            } else if !self.arm_for_more(&mut ring) {
                break;
            }
        }
        signal_if_wanted(&mut ring, &memory, old);
    }

    /// Asks for a kick when more buffers come than there are now. `enable_notification` alone would ask for one when the first unused
    /// buffer comes, which it has already. True if more came meanwhile.
    fn arm_for_more(&self, ring: &mut VringState<Memory>) -> bool {
        let memory = self.memory.memory();
        let queue = ring.get_queue_mut();
        let next = queue.next_avail();
        let seen = queue.avail_idx(&*memory, Ordering::Acquire).unwrap();
        queue.set_next_avail(seen.0);
        let more = queue.enable_notification(&*memory).unwrap();
        queue.set_next_avail(next);
        more
    }

    /// Writes one frame into as many buffers as it needs; false, and nothing used, when there are too few.
    fn write(&self, ring: &mut VringState<Memory>, mut frame: Vec<u8>) -> bool {
        let memory = self.memory.memory();
        let first_avail = ring.get_queue().next_avail();
        let mut used = Vec::new();
        let mut chains = Vec::new();
        let (mut left, mergeable) = (frame.len(), self.acked.contains(Features::MRG_RXBUF));
        while left > 0 {
            let chain = ring.get_queue_mut().pop_descriptor_chain(memory.clone());
            let Some(chain) = chain else {
                ring.get_queue_mut().set_next_avail(first_avail);
                return false;
            };
            let room = Writer::new(&*memory, chain.clone())
                .unwrap()
                .available_bytes();
            assert!(
                mergeable || room >= left,
                "a receive buffer of {room} bytes for a frame of {left}"
            );
            used.push((u32::from(chain.head_index()), room.min(left) as u32));
            left -= room.min(left);
            chains.push(chain);
        }
        if self.acked.vnet_header_bytes() == 12 {
            frame[10..12].copy_from_slice(&(chains.len() as u16).to_le_bytes());
        }
        let mut rest = frame.as_slice();
        for (chain, &(_, len)) in chains.into_iter().zip(&used) {
            let (piece, more) = rest.split_at(len as usize);
            Writer::new(&*memory, chain)
                .unwrap()
                .write_all(piece)
                .unwrap();
            rest = more;
        }
        publish_together(ring, &memory, &used);
        true
    }
}

/// `add_used` moves the index for each element, but the buffers of one frame must be used together (VIRTIO 1.3 §5.1.6.4.1): write the later
/// elements first, and the first one, with the index, through the queue.
fn publish_together(ring: &mut VringState<Memory>, memory: &Mapped, used: &[(u32, u32)]) {
    let queue = ring.get_queue_mut();
    let (size, next) = (queue.size(), queue.next_used());
    for (at, (id, len)) in (0u16..).zip(used) {
        let slot = u64::from(next.wrapping_add(at) % size);
        let element = GuestAddress(queue.used_ring() + 4 + 8 * slot);
        memory.write_obj([*id, *len], element).unwrap();
    }
    // The last element is written twice, to move the index past all of them at once.
    queue.set_next_used(next.wrapping_add(used.len() as u16 - 1));
    if let Some((id, len)) = used.last() {
        queue.add_used(memory, *id as u16, *len).unwrap();
    }
}

/// Calls the driver if it wants to know of what was used since the index was `old`. (The queue's own `needs_notification` counts calls of
/// `add_used`, not elements, and does not look at the flag of a driver without EVENT_IDX.)
fn signal_if_wanted(ring: &mut VringState<Memory>, memory: &Mapped, old: u16) {
    let queue = ring.get_queue();
    let (avail, new) = (queue.avail_ring(), queue.next_used());
    let word = |at: u64| -> u16 {
        memory
            .load(GuestAddress(avail + at), Ordering::SeqCst)
            .unwrap()
    };
    // VIRTIO 1.3 §2.7.7.2: the used index is visible before the driver's wish is read.
    fence(Ordering::SeqCst);
    let wanted = if queue.event_idx_enabled() {
        let used_event = word(4 + 2 * u64::from(queue.size()));
        new.wrapping_sub(used_event).wrapping_sub(1) < new.wrapping_sub(old)
    } else {
        new != old && word(0) & 1 == 0
    };
    if wanted {
        ring.signal_used_queue().unwrap();
    }
}

/// A running daemon; it serves one connection and ends with it.
pub struct EchoDaemon {
    folder: TempDir,
    thread: Option<JoinHandle<()>>,
}

impl EchoDaemon {
    /// Listens on a socket of its own.
    pub fn start(queue_pairs: usize, offered: Features) -> Self {
        let folder = TempDir::new().unwrap();
        let socket = socket_in(&folder);
        let offered = offered | Features::PROTOCOL_FEATURES;
        let thread = std::thread::spawn(move || {
            let memory = Memory::new(Mapped::new());
            let echo = Echo {
                queue_pairs,
                offered,
                acked: Features::NONE,
                memory: memory.clone(),
                waiting: vec![VecDeque::new(); queue_pairs],
            };
            let mut daemon =
                VhostUserDaemon::new("echo".into(), Arc::new(RwLock::new(echo)), memory).unwrap();
            daemon.serve(socket).unwrap();
        });
        Self {
            folder,
            thread: Some(thread),
        }
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        socket_in(&self.folder)
    }
}

impl Drop for EchoDaemon {
    fn drop(&mut self) {
        // It ends when the NIC hangs up, which was dropped before; a panic in it is the test's.
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(matches!(ended, Some(Ok(()))), "the echo daemon panicked");
        }
    }
}

fn socket_in(folder: &TempDir) -> PathBuf {
    Path::new(folder.as_path()).join("echo.sock")
}
