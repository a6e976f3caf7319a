//! The state machine without a socket, over the recording attachment.

use crate::rig::{MEMORY_BYTES, USER_BASE, memfd, new_eventfd};
use ringswitch::datapath::QueueIndex;
use ringswitch::device::attach::RingStart;
use ringswitch::device::features::PackedOffer;
use ringswitch::device::message::{Header, Reply, Request, RequestCode, VringAddresses};
use ringswitch::device::recording::{Effect, Recording, RecordingAttachment};
use ringswitch::device::ring_state::RingPhase;
use ringswitch::device::state::{Answer, DeviceState};
use ringswitch::ring::RegionLayout;
use std::sync::MutexGuard;

pub const PROTOCOL_FEATURES: u64 = 1 << 30;
/// VERSION_1 with VHOST_USER_F_PROTOCOL_FEATURES.
pub const MODERN: u64 = 1 << 32 | PROTOCOL_FEATURES;
/// VIRTIO_F_RING_PACKED.
pub const RING_PACKED: u64 = 1 << 34;
/// MQ, LOG_SHMFD, RARP, REPLY_ACK, NET_MTU, RESET_DEVICE, CONFIGURE_MEM_SLOTS: what QEMU acks.
pub const QEMU: u64 = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x2000 | 0x8000;

pub struct Machine {
    pub device: DeviceState,
    attachment: RecordingAttachment,
}

pub fn layout(slot: u64) -> RegionLayout {
    RegionLayout {
        guest_phys_addr: slot * MEMORY_BYTES,
        size_bytes: MEMORY_BYTES,
        user_addr: USER_BASE + slot * MEMORY_BYTES,
        mmap_offset: 0,
    }
}

pub fn addresses(index: u32) -> VringAddresses {
    let base = USER_BASE + 0x4000 * u64::from(index);
    VringAddresses {
        index,
        flags: 0,
        descriptor_table: base,
        available_ring: base + 0x1000,
        used_ring: base + 0x2000,
        log: 0,
    }
}

impl Machine {
    /// Nothing said yet.
    pub fn bare(queue_pairs: u16) -> Self {
        Self {
            device: DeviceState::new(queue_pairs, None, PackedOffer::NotWanted),
            attachment: RecordingAttachment::default(),
        }
    }

    /// Packed rings offered and acked, none set up.
    pub fn packed() -> Self {
        let mut machine = Self::new(1);
        machine.device = DeviceState::new(1, None, PackedOffer::Made);
        machine.tell(Request::SetProtocolFeatures(QEMU));
        machine.share_memory();
        machine.ok(Request::SetFeatures(MODERN | RING_PACKED));
        machine.effects();
        machine
    }

    /// Protocol features acked, as QEMU does.
    pub fn new(queue_pairs: u16) -> Self {
        let mut machine = Self::bare(queue_pairs);
        machine.tell(Request::SetProtocolFeatures(QEMU));
        machine.share_memory();
        machine.effects();
        machine
    }

    pub fn with_mtu_limit(limit: Option<u16>) -> Self {
        let mut machine = Self::new(1);
        machine.device = DeviceState::new(1, limit, PackedOffer::NotWanted);
        machine
    }

    /// All rings of the port run and are enabled.
    pub fn running(queue_pairs: u16) -> Self {
        let mut machine = Self::new(queue_pairs);
        machine.ok(Request::SetFeatures(MODERN));
        for index in 0..2 * u32::from(queue_pairs) {
            machine.set_up_ring(index);
            machine.ok(Request::SetVringEnable { index, enable: 1 });
            assert!(machine.kick(index).is_some());
        }
        machine.effects();
        machine
    }

    fn handle(&mut self, request: Request, need_reply: bool) -> Answer {
        let header = Header {
            request: RequestCode(0),
            need_reply,
            body_bytes: 0,
        };
        self.device.handle(&header, request, &mut self.attachment)
    }

    /// Without need_reply.
    pub fn tell(&mut self, request: Request) -> Answer {
        self.handle(request, false)
    }

    /// With need_reply.
    pub fn ask(&mut self, request: Request) -> Answer {
        self.handle(request, true)
    }

    pub fn ok(&mut self, request: Request) {
        let answer = self.ask(request);
        assert!(answer.refusal.is_none(), "{:?}", answer.refusal);
        assert_eq!(answer.reply, Some(Reply::Value(0)));
    }

    /// On a session without REPLY_ACK.
    pub fn ok_untold(&mut self, request: Request) {
        let answer = self.tell(request);
        assert!(answer.refusal.is_none(), "{:?}", answer.refusal);
    }

    pub fn refused(&mut self, request: Request) {
        let answer = self.ask(request);
        assert!(answer.refusal.is_some());
        assert_eq!(answer.reply, Some(Reply::Value(1)));
    }

    pub fn value(&mut self, request: Request) -> u64 {
        match self.tell(request).reply {
            Some(Reply::Value(value)) => value,
            other => panic!("no value: {other:?}"),
        }
    }

    /// GET_VRING_BASE.
    pub fn stop(&mut self, index: u32) -> u32 {
        match self.ask(Request::GetVringBase { index }).reply {
            Some(Reply::Vring {
                index: answered,
                base,
            }) => {
                assert_eq!(answered, index);
                base
            }
            other => panic!("no base: {other:?}"),
        }
    }

    pub fn share_memory(&mut self) {
        let file = memfd(MEMORY_BYTES).into();
        let answer = self.tell(Request::SetMemTable(vec![(layout(0), file)]));
        assert!(answer.refusal.is_none());
    }

    /// Size, base and addresses.
    pub fn set_up_ring(&mut self, index: u32) {
        self.ok(Request::SetVringNum { index, size: 256 });
        self.ok(Request::SetVringBase { index, base: 0 });
        self.ok(Request::SetVringAddr(addresses(index)));
    }

    /// SET_VRING_KICK with an eventfd; how the ring started, if it did.
    pub fn kick(&mut self, index: u32) -> Option<RingStart> {
        self.effects();
        self.ok(Request::SetVringKick(index, Some(new_eventfd())));
        self.start_of(index)
    }

    /// How the ring started since the effects were last taken.
    pub fn start_of(&mut self, index: u32) -> Option<RingStart> {
        self.effects().into_iter().find_map(|effect| match effect {
            Effect::Start(queue, start) if u32::from(queue.0) == index => Some(start),
            _ => None,
        })
    }

    pub fn end_session(&mut self) {
        self.device.end_session(&mut self.attachment);
    }

    pub fn effects(&self) -> Vec<Effect> {
        self.attachment.take_effects()
    }

    pub fn recorded(&self) -> MutexGuard<'_, Recording> {
        self.attachment.recording()
    }

    /// A worker gives the ring up and says so.
    pub fn break_ring(&mut self, queue: QueueIndex, reason: &str) {
        self.recorded().running.remove(&queue);
        let attachment = self.attachment.clone();
        self.device
            .ring_faulted(queue, reason.to_owned(), &attachment);
    }

    /// The news of a fault arrives, the ring being as it is.
    pub fn hear_of_fault(&mut self, queue: QueueIndex) {
        let attachment = self.attachment.clone();
        self.device
            .ring_faulted(queue, "a fault".to_owned(), &attachment);
    }

    pub fn phase(&self, index: usize) -> RingPhase {
        self.device.session().rings[index].phase
    }
}
