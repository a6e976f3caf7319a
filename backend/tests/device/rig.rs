//! A device thread with ports over recording attachments, and two ways to be their front-end: `vhost`'s own, and raw bytes.

use ringswitch::device::recording::{Effect, RecordingAttachment};
use ringswitch::device::{
    DeviceStatus, DeviceThread, PortChange, PortEvent, PortId, SocketMode, VhostPortSpec,
};
use rustix::fs::MemfdFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::tempdir::TempDir;

pub const PORT: PortId = PortId::new(1).unwrap();
pub const OTHER_PORT: PortId = PortId::new(2).unwrap();
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
pub const VERSION_1: u64 = 1 << 32;
/// Where the rig's guest memory is in the front-end's address space.
pub const USER_BASE: u64 = 0x7f00_0000_0000;
pub const MEMORY_BYTES: u64 = 1 << 20;

/// Waits for what another thread is about to do.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A device thread, a folder for sockets, and what the ports were told to do.
pub struct Rig {
    pub thread: Arc<DeviceThread>,
    pub folder: TempDir,
    pub changes: Arc<Mutex<Vec<PortEvent>>>,
}

impl Rig {
    pub fn new() -> Self {
        let changes = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&changes);
        let sink = Arc::new(move |event| heard.lock().unwrap().push(event));
        Self {
            thread: DeviceThread::start_with(sink).unwrap(),
            folder: TempDir::new().unwrap(),
            changes,
        }
    }

    /// A rig with one server port of that many queue pairs.
    pub fn with_port(queue_pairs: u16) -> (Self, RecordingAttachment) {
        let rig = Self::new();
        let attachment = rig.add(PORT, queue_pairs);
        (rig, attachment)
    }

    pub fn socket(&self, id: PortId) -> PathBuf {
        self.folder.as_path().join(format!("{}.sock", id.get()))
    }

    pub fn spec(&self, id: PortId, queue_pairs: u16) -> VhostPortSpec {
        VhostPortSpec {
            id,
            name: format!("port{}", id.get()),
            socket: self.socket(id),
            mode: SocketMode::Server,
            queue_pairs,
            mtu: None,
            offer: None,
            packed: None,
            carrier: None,
        }
    }

    pub fn add(&self, id: PortId, queue_pairs: u16) -> RecordingAttachment {
        let attachment = RecordingAttachment::default();
        let boxed = Box::new(attachment.clone());
        self.thread
            .add_attached(boxed, self.spec(id, queue_pairs))
            .unwrap();
        attachment
    }

    pub fn status(&self, id: PortId) -> DeviceStatus {
        self.thread.status(id).unwrap()
    }

    pub fn status_when(
        &self,
        id: PortId,
        what: &str,
        is: impl Fn(&DeviceStatus) -> bool,
    ) -> DeviceStatus {
        eventually(what, || Some(self.status(id)).filter(&is))
    }

    /// `vhost`'s front-end, connected and with nothing said. It gives requests to `max_rings` rings.
    pub fn front_end(&self, id: PortId) -> Frontend {
        Frontend::from_stream(UnixStream::connect(self.socket(id)).unwrap(), 256)
    }

    pub fn raw(&self, id: PortId) -> Raw {
        Raw::new(UnixStream::connect(self.socket(id)).unwrap())
    }

    /// Another front-end's session at `id` gets its answers: what happened elsewhere did not hurt it.
    pub fn assert_answers(&self, id: PortId) {
        let features = self.raw(id).value_of(1, 0, &[]);
        assert_ne!(features & VERSION_1, 0);
    }

    pub fn ups_and_downs(&self) -> Vec<&'static str> {
        let changes = self.changes.lock().unwrap();
        changes
            .iter()
            .filter_map(|event| match event.change {
                PortChange::Up => Some("up"),
                PortChange::Down { .. } => Some("down"),
                PortChange::LoggingBegan => Some("logging"),
                PortChange::LoggingEnded { .. } => Some("not logging"),
                PortChange::Left => None,
            })
            .collect()
    }
}

pub fn memfd(bytes: u64) -> File {
    let file = File::from(rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(bytes).unwrap();
    file
}

pub fn region(file: &File) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: MEMORY_BYTES,
        userspace_addr: USER_BASE,
        mmap_offset: 0,
        mmap_handle: file.as_raw_fd(),
    }
}

pub fn addresses(ring: usize) -> VringConfigData {
    let base = USER_BASE + 0x4000 * ring as u64;
    VringConfigData {
        queue_max_size: 256,
        queue_size: 256,
        flags: 0,
        desc_table_addr: base,
        used_ring_addr: base + 0x2000,
        avail_ring_addr: base + 0x1000,
        log_addr: None,
    }
}

pub fn eventfd() -> EventFd {
    EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap()
}

/// Everything a driver's start needs from the front-end's side.
pub struct Guest {
    pub memory: File,
    pub kicks: Vec<EventFd>,
    pub calls: Vec<EventFd>,
}

impl Guest {
    pub fn new(rings: usize) -> Self {
        Self {
            memory: memfd(MEMORY_BYTES),
            kicks: (0..rings).map(|_| eventfd()).collect(),
            calls: (0..rings).map(|_| eventfd()).collect(),
        }
    }
}

/// The protocol features that QEMU acks of those this port offers: all.
pub fn qemu_features() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::RARP
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::MTU
        | VhostUserProtocolFeatures::RESET_DEVICE
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
}

/// Those that Cloud Hypervisor acks.
pub fn cloud_hypervisor_features() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
}

/// Owner and feature negotiation up to GET_QUEUE_NUM, with a reply asked for everything after REPLY_ACK.
pub fn negotiate(front_end: &mut Frontend, protocol: VhostUserProtocolFeatures) {
    front_end.set_owner().unwrap();
    front_end.get_features().unwrap();
    front_end.get_protocol_features().unwrap();
    front_end.set_protocol_features(protocol).unwrap();
    front_end.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
}

/// A driver's start, in Cloud Hypervisor's order, over the rings that `guest` has.
pub fn activate(front_end: &mut Frontend, guest: &Guest) {
    front_end
        .set_features(VERSION_1 | PROTOCOL_FEATURES)
        .unwrap();
    front_end.set_mem_table(&[region(&guest.memory)]).unwrap();
    for ring in 0..guest.kicks.len() {
        front_end.set_vring_num(ring, 256).unwrap();
    }
    for (ring, (kick, call)) in guest.kicks.iter().zip(&guest.calls).enumerate() {
        front_end.set_vring_addr(ring, &addresses(ring)).unwrap();
        front_end.set_vring_base(ring, 0).unwrap();
        front_end.set_vring_call(ring, call).unwrap();
        front_end.set_vring_kick(ring, kick).unwrap();
    }
    for ring in 0..guest.kicks.len() {
        front_end.set_vring_enable(ring, true).unwrap();
    }
}

/// A front-end that sends any bytes it likes.
pub struct Raw(pub UnixStream);

impl Raw {
    pub fn new(stream: UnixStream) -> Self {
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Self(stream)
    }

    pub fn header(request: u32, flags: u32, body_bytes: u32) -> Vec<u8> {
        [request, flags, body_bytes].map(u32::to_ne_bytes).concat()
    }

    /// One message with `flags` beside version 1. Fails only if the port has hung up.
    pub fn try_send(
        &mut self,
        request: u32,
        flags: u32,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> std::io::Result<()> {
        let mut bytes = Self::header(request, flags | 1, body.len() as u32);
        bytes.extend_from_slice(body);
        self.try_send_bytes(&bytes, descriptors)
    }

    pub fn try_send_bytes(
        &mut self,
        bytes: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> std::io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        let sent = sendmsg(
            &self.0,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        let mut rest = &self.0;
        rest.write_all(&bytes[sent..])
    }

    pub fn send(&mut self, request: u32, flags: u32, body: &[u8]) {
        self.try_send(request, flags, body, &[]).unwrap();
    }

    /// A whole reply: its request and its 8-byte body. `None` once the port has hung up.
    pub fn reply(&mut self) -> Option<(u32, u64)> {
        let mut bytes = [0; 20];
        self.0.read_exact(&mut bytes).ok()?;
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!((word(4), word(8)), (5, 8), "flags and size of a reply");
        Some((word(0), u64::from_ne_bytes(bytes[12..].try_into().unwrap())))
    }

    pub fn value_of(&mut self, request: u32, flags: u32, body: &[u8]) -> u64 {
        self.send(request, flags, body);
        let (answered, value) = self.reply().expect("an answer");
        assert_eq!(answered, request);
        value
    }

    /// The port closed this connection.
    pub fn is_hung_up(&mut self) -> bool {
        let mut byte = [0];
        loop {
            match self.0.read(&mut byte) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    }
}

/// Effects that concern rings only by starting and stopping them.
pub fn starts_and_stops(effects: &[Effect]) -> Vec<String> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Start(queue, start) => Some(format!("start {} at {}", queue.0, start.base)),
            Effect::Stop(queue) => Some(format!("stop {}", queue.0)),
            _ => None,
        })
        .collect()
}

/// One that raw messages carry; `vhost`'s front-end wants [`eventfd`].
pub fn new_eventfd() -> OwnedFd {
    use rustix::event::EventfdFlags;
    rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

pub fn pipe() -> OwnedFd {
    rustix::pipe::pipe().unwrap().0
}
