//! One vhost-user connection, one message at a time.
//!
//! Called by `order` and, for sequences of their own, by tests; on the test's thread. Over `vhost`'s `Frontend` wherever that will send the
//! message, over [`RawFrontend`] on the same socket where it refuses to. Keeps true: no answer is awaited for longer than the deadline (a
//! watchdog shuts the socket down, since `Frontend` would wait for ever).

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{
    Error as ProtocolError, Frontend, VhostUserFrontend, VhostUserProtocolFeatures,
};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use super::arrival::Arrival;
use super::dirty_log::DirtyLog;
use super::iommu;
use super::watchdog::Watchdog;
use crate::driver::wait::Patience;
use crate::error::{Doing, Error};
use crate::features::Features;
use crate::memory::GuestMemory;
use crate::message::{RawFrontend, Request, named};

/// As many rings as `Frontend` may name; what the back-end has is asked with GET_QUEUE_NUM.
const MAX_RINGS: u64 = 1024;

/// Whether a message asks for a reply (VHOST_USER_PROTOCOL_F_REPLY_ACK).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// If REPLY_ACK was negotiated, ask, wait, and fail when the answer is not 0.
    Wanted,
    /// Do not ask.
    NotWanted,
}

/// Which messages ask for a reply that carry one anyway, or that [`Ack::NotWanted`] is said for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReplyHabit {
    /// None: QEMU.
    #[default]
    AsNeeded,
    /// All, once REPLY_ACK is negotiated, even GET_QUEUE_NUM and GET_VRING_BASE: Cloud Hypervisor. They get one reply, not two.
    Always,
}

/// A socket on which the VMM listens and the back-end connects (`mode = "client"` of the back-end).
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
}

impl Listener {
    /// Listens at `path`.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn bind(path: &Path) -> Result<Self, Error> {
        Ok(Self {
            listener: UnixListener::bind(path).doing("binding a vhost-user socket")?,
        })
    }

    /// The next back-end that connects.
    ///
    /// # Errors
    /// [`Error::Timeout`] when none does.
    pub fn accept(&self, within: Duration) -> Result<UnixStream, Error> {
        let patience = Patience::of(within);
        if !poll_socket(&self.listener, patience)? {
            return Err(patience.timeout("a back-end to connect"));
        }
        Ok(self.listener.accept().doing("accepting a back-end")?.0)
    }
}

/// Connects to a back-end that listens at `path`, trying again until it does.
///
/// # Errors
/// When nobody listens there within `within`.
pub fn connect(path: &Path, within: Duration) -> Result<UnixStream, Error> {
    let patience = Patience::of(within);
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return Ok(stream),
            Err(error) if patience.is_over() => {
                return Err(error).doing("connecting to the back-end's socket");
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

pub(crate) fn poll_socket(
    socket: &impl rustix::fd::AsFd,
    patience: Patience,
) -> Result<bool, Error> {
    loop {
        let left = patience.left();
        let timeout = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).doing("polling a socket"),
        }
    }
}

/// One connection to a back-end.
pub struct Session {
    frontend: Frontend,
    raw: RawFrontend,
    watchdog: Watchdog,
    deadline: Duration,
    habit: ReplyHabit,
    offered: Features,
    acked: Features,
    protocol_offered: u64,
    protocol_acked: u64,
    /// Guest addresses of the regions the back-end was told of on this connection.
    told_regions: Vec<u64>,
    /// Memory that it is told of arrives page by page.
    arrival: Option<Arrival>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("offered", &self.offered)
            .field("acked", &self.acked)
            .field(
                "protocol_offered",
                &format_args!("{:#x}", self.protocol_offered),
            )
            .field(
                "protocol_acked",
                &format_args!("{:#x}", self.protocol_acked),
            )
            .finish_non_exhaustive()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // A process that is being started elsewhere in the test may hold a copy of the socket for a moment: closing would not be seen yet.
        self.raw.hang_up();
    }
}

impl Session {
    /// A session over a connected socket. Nothing is sent yet.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new(stream: UnixStream, deadline: Duration) -> Result<Self, Error> {
        let copy = || stream.try_clone().doing("cloning a vhost-user socket");
        Ok(Self {
            frontend: Frontend::from_stream(copy()?, MAX_RINGS),
            raw: RawFrontend::new(copy()?),
            watchdog: Watchdog::new(copy()?, deadline),
            deadline,
            habit: ReplyHabit::default(),
            offered: Features::NONE,
            acked: Features::NONE,
            protocol_offered: 0,
            protocol_acked: 0,
            told_regions: Vec::new(),
            arrival: None,
        })
    }

    /// Whether to ask for replies that need not be asked for, from now on.
    pub fn set_reply_habit(&mut self, habit: ReplyHabit) {
        self.habit = habit;
    }

    fn asks_for_reply(&self, ack: Ack) -> bool {
        let wanted = ack == Ack::Wanted || self.habit == ReplyHabit::Always;
        wanted && self.has(VhostUserProtocolFeatures::REPLY_ACK)
    }

    /// What GET_FEATURES answered last.
    pub fn offered(&self) -> Features {
        self.offered
    }

    /// What SET_FEATURES said last.
    pub fn acked(&self) -> Features {
        self.acked
    }

    /// What GET_PROTOCOL_FEATURES answered last.
    pub fn protocol_offered(&self) -> u64 {
        self.protocol_offered
    }

    /// What SET_PROTOCOL_FEATURES said last.
    pub fn protocol_acked(&self) -> u64 {
        self.protocol_acked
    }

    /// Whether a protocol feature was negotiated.
    pub fn has(&self, feature: VhostUserProtocolFeatures) -> bool {
        self.protocol_acked & feature.bits() != 0
    }

    pub(crate) fn told_regions(&self) -> &[u64] {
        &self.told_regions
    }

    /// The same socket without `Frontend`'s opinions. Take care to read what you ask for.
    pub fn raw(&mut self) -> &mut RawFrontend {
        &mut self.raw
    }

    /// GET_FEATURES.
    ///
    /// # Errors
    /// When the back-end does not answer.
    pub fn get_features(&mut self) -> Result<Features, Error> {
        let bits = self.ask("GET_FEATURES", Ack::NotWanted, |frontend| {
            frontend.get_features()
        })?;
        self.offered = Features::from_bits(bits);
        Ok(self.offered)
    }

    /// SET_FEATURES.
    ///
    /// # Errors
    /// When the back-end refuses.
    pub fn set_features(&mut self, features: Features, ack: Ack) -> Result<(), Error> {
        self.ask("SET_FEATURES", ack, |frontend| {
            frontend.set_features(features.bits())
        })?;
        self.acked = features;
        Ok(())
    }

    /// SET_OWNER.
    ///
    /// # Errors
    /// When the back-end refuses.
    pub fn set_owner(&mut self, ack: Ack) -> Result<(), Error> {
        self.ask("SET_OWNER", ack, |frontend| frontend.set_owner())
    }

    /// GET_PROTOCOL_FEATURES.
    ///
    /// # Errors
    /// When the back-end does not answer.
    pub fn get_protocol_features(&mut self) -> Result<u64, Error> {
        // `Frontend` would drop the bits it does not know.
        let body = self.raw_ask(Request::GET_PROTOCOL_FEATURES, &[])?;
        self.protocol_offered = body;
        Ok(body)
    }

    /// SET_PROTOCOL_FEATURES.
    ///
    /// # Errors
    /// When the back-end refuses.
    pub fn set_protocol_features(&mut self, bits: u64, ack: Ack) -> Result<(), Error> {
        let features = VhostUserProtocolFeatures::from_bits_retain(bits);
        self.ask("SET_PROTOCOL_FEATURES", ack, |frontend| {
            frontend.set_protocol_features(features)
        })?;
        self.protocol_acked = bits;
        Ok(())
    }

    /// GET_QUEUE_NUM: pairs for QEMU, compared with rings by Cloud Hypervisor.
    ///
    /// # Errors
    /// When the back-end does not answer.
    pub fn get_queue_num(&mut self) -> Result<u64, Error> {
        // `Frontend` would take the answer for the number of rings and refuse to name those above it.
        self.raw_ask(Request::GET_QUEUE_NUM, &[])
    }

    /// GET_MAX_MEM_SLOTS.
    ///
    /// # Errors
    /// When the back-end does not answer.
    pub fn get_max_mem_slots(&mut self) -> Result<u64, Error> {
        self.ask("GET_MAX_MEM_SLOTS", Ack::NotWanted, |frontend| {
            frontend.get_max_mem_slots()
        })
    }

    /// SET_MEM_TABLE with every region of `memory`.
    ///
    /// # Errors
    /// When the back-end refuses.
    pub fn set_mem_table(&mut self, memory: &GuestMemory, ack: Ack) -> Result<(), Error> {
        let regions: Vec<_> = memory
            .regions()
            .iter()
            .map(|region| region.message_region())
            .collect();
        let told: Vec<_> = regions.iter().map(|region| self.told(region)).collect();
        if let Some(arrival) = &mut self.arrival {
            arrival.tell_table(&mut self.raw, &told, self.deadline)?;
            return arrival.acknowledge(&mut self.raw, Request::SET_MEM_TABLE);
        }
        self.ask("SET_MEM_TABLE", ack, |frontend| {
            frontend.set_mem_table(&told).map(drop)
        })?;
        self.told_regions = regions
            .iter()
            .map(|region| region.guest_phys_addr)
            .collect();
        Ok(())
    }

    /// ADD_MEM_REG.
    ///
    /// # Errors
    /// When the back-end refuses.
    pub fn add_mem_reg(
        &mut self,
        region: &VhostUserMemoryRegionInfo,
        ack: Ack,
    ) -> Result<(), Error> {
        let told = self.told(region);
        if let Some(arrival) = &mut self.arrival {
            arrival.tell_region(&mut self.raw, &told, self.deadline)?;
            self.told_regions.push(region.guest_phys_addr);
            return Ok(());
        }
        self.ask("ADD_MEM_REG", ack, |frontend| {
            frontend.add_mem_region(&told).map(drop)
        })?;
        self.told_regions.push(region.guest_phys_addr);
        Ok(())
    }

    /// After the last of several ADD_MEM_REGs, if memory arrives page by page: faults there are understood.
    ///
    /// # Errors
    /// When the socket is closed.
    pub fn acknowledge_regions(&mut self) -> Result<(), Error> {
        match &self.arrival {
            Some(arrival) => arrival.acknowledge(&mut self.raw, Request::ADD_MEM_REG),
            None => Ok(()),
        }
    }

    /// POSTCOPY_ADVISE and POSTCOPY_LISTEN: memory that the back-end is told of from now on arrives page by page. Until
    /// [`Self::postcopy_end`] only pages that are there may be touched here.
    ///
    /// # Errors
    /// When the back-end gives no userfaultfd, or what the socket says.
    pub fn postcopy_begin(&mut self) -> Result<(), Error> {
        self.arrival = Some(Arrival::begin(&mut self.raw, self.deadline)?);
        Ok(())
    }

    /// POSTCOPY_END: all memory is there.
    ///
    /// # Errors
    /// When the back-end refuses.
    pub fn postcopy_end(&mut self) -> Result<(), Error> {
        self.arrival = None;
        self.raw_tell(Request::POSTCOPY_END, &[], Ack::Wanted)
    }

    /// What is known of memory that arrives page by page.
    pub fn arrival(&self) -> Option<&Arrival> {
        self.arrival.as_ref()
    }

    /// REM_MEM_REG.
    ///
    /// # Errors
    /// When the back-end refuses.
    pub fn rem_mem_reg(
        &mut self,
        region: &VhostUserMemoryRegionInfo,
        ack: Ack,
    ) -> Result<(), Error> {
        let told = self.told(region);
        self.ask("REM_MEM_REG", ack, |frontend| {
            frontend.remove_mem_region(&told)
        })?;
        self.told_regions
            .retain(|&told| told != region.guest_phys_addr);
        Ok(())
    }

    /// SET_LOG_BASE with a log; the reply must repeat the request's 16 bytes, as Cloud Hypervisor expects it.
    ///
    /// # Errors
    /// When the back-end refuses, or answers anything else.
    pub fn set_log_base(&mut self, log: &DirtyLog) -> Result<(), Error> {
        // `Frontend` takes any answer, and none where it should wait.
        let request = Request::SET_LOG_BASE;
        let mut body = [0; 16];
        body[..8].copy_from_slice(&log.bytes().to_le_bytes());
        if self.asks_for_reply(Ack::NotWanted) {
            self.raw
                .send_needing_reply(request, &body, &[log.descriptor()])?;
        } else {
            self.raw.send(request, &body, &[log.descriptor()])?;
        }
        let reply = self
            .raw
            .receive(self.deadline)
            .map_err(|error| named(error, request))?;
        reply.expect(request, &body)
    }

    /// Whether a log may be passed as a descriptor.
    pub(crate) fn logs_are_shared(&self) -> bool {
        self.has(VhostUserProtocolFeatures::LOG_SHMFD)
    }

    /// SET_VRING_NUM.
    ///
    /// # Errors
    /// When the back-end refuses.
    pub fn set_vring_num(&mut self, ring: u16, size: u16, ack: Ack) -> Result<(), Error> {
        self.ask("SET_VRING_NUM", ack, |frontend| {
            frontend.set_vring_num(ring.into(), size)
        })
    }

    /// SET_VRING_BASE: of a packed ring, all 32 bits count.
    ///
    /// # Errors
    /// When the back-end refuses.
    pub fn set_vring_base(&mut self, ring: u16, base: u32, ack: Ack) -> Result<(), Error> {
        // `Frontend` would send 16 bits only.
        let mut body = [0; 8];
        body[..4].copy_from_slice(&u32::from(ring).to_le_bytes());
        body[4..].copy_from_slice(&base.to_le_bytes());
        self.raw_tell(Request::SET_VRING_BASE, &body, ack)
    }

    /// SET_VRING_ADDR.
    ///
    /// # Errors
    /// When the back-end refuses.
    pub fn set_vring_addr(
        &mut self,
        ring: u16,
        addresses: &VringConfigData,
        ack: Ack,
    ) -> Result<(), Error> {
        self.ask("SET_VRING_ADDR", ack, |frontend| {
            frontend.set_vring_addr(ring.into(), addresses)
        })
    }

    /// SET_VRING_KICK.
    ///
    /// # Errors
    /// When the back-end refuses.
    pub fn set_vring_kick(&mut self, ring: u16, kick: &EventFd, ack: Ack) -> Result<(), Error> {
        self.ask("SET_VRING_KICK", ack, |frontend| {
            frontend.set_vring_kick(ring.into(), kick)
        })
    }

    /// SET_VRING_CALL.
    ///
    /// # Errors
    /// When the back-end refuses.
    pub fn set_vring_call(&mut self, ring: u16, call: &EventFd, ack: Ack) -> Result<(), Error> {
        self.ask("SET_VRING_CALL", ack, |frontend| {
            frontend.set_vring_call(ring.into(), call)
        })
    }

    /// SET_VRING_ERR.
    ///
    /// # Errors
    /// When the back-end refuses.
    pub fn set_vring_err(&mut self, ring: u16, err: &EventFd, ack: Ack) -> Result<(), Error> {
        self.ask("SET_VRING_ERR", ack, |frontend| {
            frontend.set_vring_err(ring.into(), err)
        })
    }

    /// SET_VRING_ENABLE; `state` 0 or 1.
    ///
    /// # Errors
    /// When the back-end refuses.
    pub fn set_vring_enable(&mut self, ring: u16, state: RingState, ack: Ack) -> Result<(), Error> {
        // `Frontend` refuses to send it before SET_FEATURES, which is what QEMU does at machine reset.
        let mut body = [0; 8];
        body[..4].copy_from_slice(&u32::from(ring).to_le_bytes());
        body[4] = state as u8;
        self.raw_tell(Request::SET_VRING_ENABLE, &body, ack)
    }

    /// GET_VRING_BASE: stops the ring; the answer is the next available index the back-end would have read, or a packed ring's 32 bits.
    ///
    /// # Errors
    /// When the back-end does not answer.
    pub fn get_vring_base(&mut self, ring: u16) -> Result<u32, Error> {
        self.ask("GET_VRING_BASE", Ack::NotWanted, |frontend| {
            frontend.get_vring_base(ring.into())
        })
    }

    /// NET_SET_MTU.
    ///
    /// # Errors
    /// When the back-end refuses.
    pub fn net_set_mtu(&mut self, mtu: u16, ack: Ack) -> Result<(), Error> {
        self.raw_tell(Request::NET_SET_MTU, &u64::from(mtu).to_le_bytes(), ack)
    }

    /// SEND_RARP: the MAC in the low 48 bits, first byte lowest.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn send_rarp(&mut self, mac: [u8; 6], ack: Ack) -> Result<(), Error> {
        let mut body = [0; 8];
        body[..6].copy_from_slice(&mac);
        self.raw_tell(Request::SEND_RARP, &body, ack)
    }

    /// RESET_DEVICE.
    ///
    /// # Errors
    /// When the back-end refuses.
    pub fn reset_device(&mut self, ack: Ack) -> Result<(), Error> {
        self.ask("RESET_DEVICE", ack, |frontend| frontend.reset_device())
    }

    /// Behind an IOMMU the guest's own addresses are not those that its driver knows.
    fn told(&self, region: &VhostUserMemoryRegionInfo) -> VhostUserMemoryRegionInfo {
        let shift = if iommu::is_behind(self.acked) {
            iommu::GUEST_SHIFT
        } else {
            0
        };
        VhostUserMemoryRegionInfo {
            guest_phys_addr: region.guest_phys_addr + shift,
            ..*region
        }
    }

    /// How long an answer may take.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    fn ask<T>(
        &mut self,
        request: &'static str,
        ack: Ack,
        act: impl FnOnce(&mut Frontend) -> vhost::Result<T>,
    ) -> Result<T, Error> {
        let flags = if self.asks_for_reply(ack) {
            VhostUserHeaderFlag::NEED_REPLY
        } else {
            VhostUserHeaderFlag::empty()
        };
        self.frontend.set_hdr_flags(flags);
        self.watchdog.start();
        let outcome = act(&mut self.frontend);
        let bitten = self.watchdog.stop();
        outcome.map_err(|source| match source {
            _ if bitten => Error::Timeout {
                waiting_for: request,
                within: self.deadline,
            },
            vhost::Error::VhostUserProtocol(ProtocolError::BackendInternalError) => {
                Error::Refused { request }
            }
            vhost::Error::VhostUserProtocol(
                ProtocolError::Disconnected
                | ProtocolError::PartialMessage
                | ProtocolError::SocketBroken(_),
            ) => Error::Disconnected { request },
            source => Error::Vhost { request, source },
        })
    }

    /// Sends a request whose answer is a u64, and waits for it.
    fn raw_ask(&mut self, request: Request, body: &[u8]) -> Result<u64, Error> {
        if self.asks_for_reply(Ack::NotWanted) {
            self.raw.send_needing_reply(request, body, &[])?;
        } else {
            self.raw.send(request, body, &[])?;
        }
        self.raw.receive_u64(request, self.deadline)
    }

    fn raw_tell(&mut self, request: Request, body: &[u8], ack: Ack) -> Result<(), Error> {
        if self.asks_for_reply(ack) {
            self.raw.send_needing_reply(request, body, &[])?;
            match self.raw.receive_u64(request, self.deadline)? {
                0 => Ok(()),
                _ => Err(Error::Refused {
                    request: request.name(),
                }),
            }
        } else {
            self.raw.send(request, body, &[])
        }
    }
}

/// What SET_VRING_ENABLE says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingState {
    /// 0.
    Disabled = 0,
    /// 1.
    Enabled = 1,
}

#[cfg(test)]
mod tests {
    use vhost::vhost_user::message::FrontendReq;

    use super::*;

    #[test]
    fn a_back_end_that_never_answers_is_a_timeout_and_no_hang() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut session = Session::new(ours, Duration::from_millis(50)).unwrap();
        assert!(matches!(
            session.get_features(),
            Err(Error::Timeout {
                waiting_for: "GET_FEATURES",
                ..
            })
        ));
    }

    #[test]
    fn a_back_end_that_hangs_up_is_a_disconnection() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut session = Session::new(ours, Duration::from_secs(10)).unwrap();
        drop(theirs);
        assert!(matches!(
            session.get_features(),
            Err(Error::Disconnected { .. })
        ));
    }

    #[test]
    fn request_codes_agree_with_the_vhost_crate() {
        assert_eq!(
            Request::SET_VRING_ENABLE.code(),
            FrontendReq::SET_VRING_ENABLE as u32
        );
        assert_eq!(
            Request::GET_QUEUE_NUM.code(),
            FrontendReq::GET_QUEUE_NUM as u32
        );
        assert_eq!(Request::NET_SET_MTU.code(), FrontendReq::NET_SET_MTU as u32);
        assert_eq!(Request::SEND_RARP.code(), FrontendReq::SEND_RARP as u32);
    }
}
