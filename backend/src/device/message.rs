//! Bytes and descriptors of one vhost-user message to a typed request, and replies to bytes.
//!
//! `session` reads messages with [`Header::parse`] and [`Message::decode`] on the device thread; nothing here does I/O.
//! Kept true: a request that decodes has a body of exactly its size and exactly the descriptors it may carry. Everything else is
//! [`Malformed`], and descriptors that are not handed on are closed by being dropped.
//!
//! All numbers are in the host's byte order (vhost-user: Message specification). The request numbers are `vhost`'s; its header type
//! is private, so the header is decoded here.

use super::descriptors::BackendSocket;
use crate::ring::{LogLayout, RegionLayout, Translation};
use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};
use vhost::vhost_user::message::{
    FrontendReq, MAX_MSG_SIZE, VhostUserHeaderFlag, VhostUserVringAddrFlags,
};

/// Bytes of a message header: request, flags, body size.
pub const HEADER_BYTES: usize = 12;
/// The largest body accepted.
pub const MAX_BODY_BYTES: usize = MAX_MSG_SIZE;
/// The most descriptors taken with one message; the kernel closes the rest before this process sees them.
pub const MAX_DESCRIPTORS: usize = 32;

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 0x3;
const FLAG_REPLY: u32 = 0x4;
const FLAG_NEED_REPLY: u32 = 0x8;
/// Bit 8 of the payload of SET_VRING_KICK, CALL and ERR: no descriptor is attached.
const VRING_NOFD: u64 = 0x100;
const VRING_INDEX_MASK: u64 = 0xff;
const REGION_BYTES: usize = 32;
/// vhost_iotlb_msg.type of what a front-end says.
const IOTLB_UPDATE: u8 = 2;
const IOTLB_INVALIDATE: u8 = 3;

/// A request number, printed by its name in the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestCode(pub u32);

impl fmt::Display for RequestCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match FrontendReq::try_from(self.0) {
            Ok(request) => write!(f, "{request:?}"),
            Err(_) => write!(f, "unknown request {}", self.0),
        }
    }
}

/// Why a connection cannot go on: what came is not a message this protocol has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Flags bits 0..1.
    #[error("{request} says protocol version {version}; only version 1 exists")]
    Version {
        /// The request.
        request: RequestCode,
        /// What it said.
        version: u32,
    },
    /// Reserved flag bits set, or a reply where a request is due.
    #[error("{request} has flags {flags:#x}, which no request has")]
    Flags {
        /// The request.
        request: RequestCode,
        /// All flag bits.
        flags: u32,
    },
    /// The size field is past the bound.
    #[error("{request} announces a body of {body_bytes} bytes; the most is {MAX_BODY_BYTES}")]
    TooLarge {
        /// The request.
        request: RequestCode,
        /// What it announced.
        body_bytes: u32,
    },
    /// The body is not of the request's size.
    #[error("{request} came with a body of {body_bytes} bytes, which is not its size")]
    BodySize {
        /// The request.
        request: RequestCode,
        /// What came.
        body_bytes: usize,
    },
    /// More or fewer descriptors than the request carries.
    #[error("{request} came with {descriptors} file descriptors, which is not its number")]
    Descriptors {
        /// The request.
        request: RequestCode,
        /// What came.
        descriptors: usize,
    },
    /// More than [`MAX_DESCRIPTORS`] in one message.
    #[error("a message came with more than {MAX_DESCRIPTORS} file descriptors")]
    TooManyDescriptors,
    /// A memory table without the files to map.
    #[error(
        "guest memory is not shared: SET_MEM_TABLE came with {descriptors} file descriptors for {regions} regions; \
         give the VM memory-backend-memfd,share=on (QEMU) or --memory shared=on (Cloud Hypervisor)"
    )]
    MemoryNotShared {
        /// Regions in the table.
        regions: usize,
        /// Descriptors that came with it.
        descriptors: usize,
    },
}

/// A checked message header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What is asked.
    pub request: RequestCode,
    /// The sender waits for a reply even where the request has none of its own. Honoured once REPLY_ACK is acked.
    pub need_reply: bool,
    /// Bytes that follow, at most [`MAX_BODY_BYTES`].
    pub body_bytes: usize,
}

impl Header {
    /// Checks the three fields (vhost-user: Header).
    pub fn parse(bytes: [u8; HEADER_BYTES]) -> Result<Self, Malformed> {
        let [r0, r1, r2, r3, f0, f1, f2, f3, s0, s1, s2, s3] = bytes;
        let request = RequestCode(u32::from_ne_bytes([r0, r1, r2, r3]));
        let flags = u32::from_ne_bytes([f0, f1, f2, f3]);
        let body_bytes = u32::from_ne_bytes([s0, s1, s2, s3]);
        let version = flags & VERSION_MASK;
        if version != VERSION {
            return Err(Malformed::Version { request, version });
        }
        if flags & (VhostUserHeaderFlag::RESERVED_BITS.bits() | FLAG_REPLY) != 0 {
            return Err(Malformed::Flags { request, flags });
        }
        if body_bytes as usize > MAX_BODY_BYTES {
            return Err(Malformed::TooLarge {
                request,
                body_bytes,
            });
        }
        Ok(Self {
            request,
            need_reply: flags & FLAG_NEED_REPLY != 0,
            body_bytes: body_bytes as usize,
        })
    }
}

/// A whole message as it came.
#[derive(Debug)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// As many bytes as the header says.
    pub body: Vec<u8>,
    /// What came with the message's bytes, at most [`MAX_DESCRIPTORS`].
    pub descriptors: Vec<OwnedFd>,
}

/// SET_VRING_ADDR: addresses in the front-end's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringAddresses {
    /// Ring index as sent.
    pub index: u32,
    /// Bit 0: log writes to the used ring; others are reserved.
    pub flags: u32,
    /// Descriptor table.
    pub descriptor_table: u64,
    /// Used ring.
    pub used_ring: u64,
    /// Available ring.
    pub available_ring: u64,
    /// Guest-physical address of the used ring, for the log.
    pub log: u64,
}

/// A change of what I/O addresses stand for (vhost-user: IOTLB message).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IotlbChange {
    /// They stand for this.
    Update(Translation),
    /// They stand for nothing any more.
    Invalidate {
        /// The first.
        first: u64,
        /// The last.
        last: u64,
    },
    /// Of another type, or empty, or past the last address.
    Impossible,
}

/// What a front-end asks for, with the descriptors it handed over.
#[derive(Debug)]
pub enum Request {
    /// Virtio features offered.
    GetFeatures,
    /// Virtio features acked.
    SetFeatures(u64),
    /// Start of a session.
    SetOwner,
    /// Deprecated.
    ResetOwner,
    /// The whole memory map, with a file for each region.
    SetMemTable(Vec<(RegionLayout, OwnedFd)>),
    /// The migration log; none when it came without its one file.
    SetLogBase(LogLayout, Option<OwnedFd>),
    /// Ring size in descriptors.
    SetVringNum {
        /// Ring index as sent.
        index: u32,
        /// Descriptors.
        size: u32,
    },
    /// Where the ring is.
    SetVringAddr(VringAddresses),
    /// Next available index; 32 bits on the wire.
    SetVringBase {
        /// Ring index as sent.
        index: u32,
        /// The index, not yet checked.
        base: u32,
    },
    /// Stop the ring and tell its next available index.
    GetVringBase {
        /// Ring index as sent.
        index: u32,
    },
    /// Start the ring; without a descriptor, poll it.
    SetVringKick(u32, Option<OwnedFd>),
    /// The guest's interrupt; without a descriptor, the driver polls.
    SetVringCall(u32, Option<OwnedFd>),
    /// What to signal when a ring breaks.
    SetVringErr(u32, Option<OwnedFd>),
    /// Protocol features offered.
    GetProtocolFeatures,
    /// Protocol features acked.
    SetProtocolFeatures(u64),
    /// Queues the port has.
    GetQueueNum,
    /// Let frames through a ring, or not.
    SetVringEnable {
        /// Ring index as sent.
        index: u32,
        /// 0 or 1; not yet checked.
        enable: u32,
    },
    /// Announce the guest's address.
    SendRarp([u8; 6]),
    /// The MTU shown to the guest.
    NetSetMtu(u64),
    /// How many regions may be added.
    GetMaxMemSlots,
    /// One more region.
    AddMemReg(RegionLayout, OwnedFd),
    /// One region less.
    RemMemReg(RegionLayout),
    /// Back to the initial state, session kept.
    ResetDevice,
    /// Where to ask what only the front-end knows.
    SetBackendReqFd(BackendSocket),
    /// What I/O addresses stand for.
    Iotlb(IotlbChange),
    /// The VM may arrive page by page.
    PostcopyAdvise,
    /// It does.
    PostcopyListen,
    /// It has.
    PostcopyEnd,
    /// Faults in the regions shared last are understood (QEMU: the last request once more, with a word as its body).
    PostcopyAck,
    /// Carry the port's state through a pipe.
    SetDeviceStateFd(StateTransfer, BackendSocket),
    /// Whether it was carried well.
    CheckDeviceState,
    /// Anything this port did not offer.
    Unsupported,
}

/// SET_DEVICE_STATE_FD: what is to be carried; not yet checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateTransfer {
    /// 0 or 1: save or load.
    pub direction: u32,
    /// 0: all rings are stopped.
    pub phase: u32,
}

impl Message {
    /// The typed request. Descriptors it does not take over are closed.
    pub fn decode(self) -> Result<Request, Malformed> {
        use FrontendReq as R;
        let Ok(code) = R::try_from(self.header.request.0) else {
            return Ok(Request::Unsupported);
        };
        Ok(match code {
            R::GET_FEATURES => self.empty(Request::GetFeatures)?,
            R::SET_OWNER => self.empty(Request::SetOwner)?,
            R::RESET_OWNER => self.empty(Request::ResetOwner)?,
            R::GET_PROTOCOL_FEATURES => self.empty(Request::GetProtocolFeatures)?,
            R::GET_QUEUE_NUM => self.empty(Request::GetQueueNum)?,
            R::GET_MAX_MEM_SLOTS => self.empty(Request::GetMaxMemSlots)?,
            R::RESET_DEVICE => self.empty(Request::ResetDevice)?,
            R::SET_FEATURES => Request::SetFeatures(self.u64()?),
            R::SET_PROTOCOL_FEATURES => Request::SetProtocolFeatures(self.u64()?),
            R::NET_SET_MTU => Request::NetSetMtu(self.u64()?),
            R::SEND_RARP => {
                let [a, b, c, d, e, f, _, _] = self.u64()?.to_ne_bytes();
                Request::SendRarp([a, b, c, d, e, f])
            }
            R::SET_VRING_NUM => {
                let (index, size) = self.vring_state()?;
                Request::SetVringNum { index, size }
            }
            R::SET_VRING_BASE => {
                let (index, base) = self.vring_state()?;
                Request::SetVringBase { index, base }
            }
            R::GET_VRING_BASE => Request::GetVringBase {
                index: self.vring_state()?.0,
            },
            R::SET_VRING_ENABLE => {
                let (index, enable) = self.vring_state()?;
                Request::SetVringEnable { index, enable }
            }
            R::SET_VRING_ADDR => Request::SetVringAddr(self.vring_addresses()?),
            R::SET_VRING_KICK => {
                let (index, descriptor) = self.vring_descriptor()?;
                Request::SetVringKick(index, descriptor)
            }
            R::SET_VRING_CALL => {
                let (index, descriptor) = self.vring_descriptor()?;
                Request::SetVringCall(index, descriptor)
            }
            R::SET_VRING_ERR => {
                let (index, descriptor) = self.vring_descriptor()?;
                Request::SetVringErr(index, descriptor)
            }
            R::POSTCOPY_ADVISE => self.empty(Request::PostcopyAdvise)?,
            R::POSTCOPY_LISTEN => self.empty(Request::PostcopyListen)?,
            R::POSTCOPY_END => self.empty(Request::PostcopyEnd)?,
            // A table of no region is one, too: the device knows which is due.
            R::SET_MEM_TABLE | R::ADD_MEM_REG | R::REM_MEM_REG if self.body == [0; 8] => {
                self.expect_descriptors(0)?;
                Request::PostcopyAck
            }
            R::SET_MEM_TABLE => self.memory_table()?,
            R::ADD_MEM_REG => {
                let layout = self.single_region()?;
                self.expect_descriptors(1)?;
                let request = self.header.request;
                let descriptor = self.descriptors.into_iter().next();
                let descriptor = descriptor.ok_or(Malformed::Descriptors {
                    request,
                    descriptors: 0,
                })?;
                Request::AddMemReg(layout, descriptor)
            }
            // Some front-ends attach the region's file, which is closed (vhost-user: VHOST_USER_REM_MEM_REG).
            R::REM_MEM_REG => Request::RemMemReg(self.single_region()?),
            R::SET_LOG_BASE => self.log()?,
            R::SET_BACKEND_REQ_FD => self.backend_socket()?,
            R::IOTLB_MSG => self.iotlb()?,
            R::SET_DEVICE_STATE_FD => self.state_transfer()?,
            R::CHECK_DEVICE_STATE => self.empty(Request::CheckDeviceState)?,
            _ => Request::Unsupported,
        })
    }

    fn empty(&self, request: Request) -> Result<Request, Malformed> {
        self.expect_descriptors(0)?;
        let [] = self.words()?;
        Ok(request)
    }

    fn u64(&self) -> Result<u64, Malformed> {
        self.expect_descriptors(0)?;
        let [value] = self.words()?;
        Ok(value)
    }

    fn vring_state(&self) -> Result<(u32, u32), Malformed> {
        Ok(halves(self.u64()?))
    }

    fn vring_addresses(&self) -> Result<VringAddresses, Malformed> {
        self.expect_descriptors(0)?;
        let [head, descriptor_table, used_ring, available_ring, log] = self.words()?;
        let (index, flags) = halves(head);
        Ok(VringAddresses {
            index,
            flags,
            descriptor_table,
            used_ring,
            available_ring,
            log,
        })
    }

    fn vring_descriptor(self) -> Result<(u32, Option<OwnedFd>), Malformed> {
        let [value] = self.words()?;
        self.expect_descriptors(usize::from(value & VRING_NOFD == 0))?;
        Ok((
            (value & VRING_INDEX_MASK) as u32,
            self.descriptors.into_iter().next(),
        ))
    }

    fn backend_socket(mut self) -> Result<Request, Malformed> {
        let sockets = self.take_descriptors();
        let [] = self.words()?;
        Ok(Request::SetBackendReqFd(self.only(sockets)?))
    }

    /// vhost-user: Device state transfer parameters.
    fn state_transfer(mut self) -> Result<Request, Malformed> {
        let pipes = self.take_descriptors();
        let [word] = self.words()?;
        let (direction, phase) = halves(word);
        let asked = StateTransfer { direction, phase };
        Ok(Request::SetDeviceStateFd(asked, self.only(pipes)?))
    }

    /// Taken over first: whatever becomes of the message, they must not be closed here.
    fn take_descriptors(&mut self) -> Vec<BackendSocket> {
        let descriptors = std::mem::take(&mut self.descriptors);
        descriptors.into_iter().map(BackendSocket::new).collect()
    }

    fn only(&self, mut descriptors: Vec<BackendSocket>) -> Result<BackendSocket, Malformed> {
        match (descriptors.pop(), descriptors.len()) {
            (Some(descriptor), 0) => Ok(descriptor),
            (last, others) => Err(Malformed::Descriptors {
                request: self.header.request,
                descriptors: others + usize::from(last.is_some()),
            }),
        }
    }

    /// vhost-user: IOTLB message. Addresses, then permission and type in a byte each, and padding.
    fn iotlb(&self) -> Result<Request, Malformed> {
        self.expect_descriptors(0)?;
        let [iova, size_bytes, user_addr, last_word] = self.words()?;
        let [permission, kind, ..] = last_word.to_ne_bytes();
        let change = match kind {
            IOTLB_UPDATE => Translation {
                iova,
                size_bytes,
                user_addr,
                readable: permission & 1 != 0,
                writable: permission & 2 != 0,
            }
            .checked()
            .map_or(IotlbChange::Impossible, IotlbChange::Update),
            // QEMU says "everything" with a size of 2^64, which is 0 here.
            IOTLB_INVALIDATE => IotlbChange::Invalidate {
                first: iova,
                last: match size_bytes {
                    0 => u64::MAX,
                    size => iova.saturating_add(size - 1),
                },
            },
            _ => IotlbChange::Impossible,
        };
        Ok(Request::Iotlb(change))
    }

    /// vhost-user: Log description.
    fn log(self) -> Result<Request, Malformed> {
        let [size_bytes, mmap_offset] = self.words()?;
        let layout = LogLayout {
            size_bytes,
            mmap_offset,
        };
        if self.descriptors.len() > 1 {
            return Err(self.wrong_descriptors());
        }
        let file = self.descriptors.into_iter().next();
        Ok(Request::SetLogBase(layout, file))
    }

    /// vhost-user: Single memory region description. Eight bytes of padding come first.
    fn single_region(&self) -> Result<RegionLayout, Malformed> {
        let [
            _padding,
            guest_phys_addr,
            size_bytes,
            user_addr,
            mmap_offset,
        ] = self.words()?;
        if self.descriptors.len() > 1 {
            return Err(self.wrong_descriptors());
        }
        Ok(RegionLayout {
            guest_phys_addr,
            size_bytes,
            user_addr,
            mmap_offset,
        })
    }

    /// vhost-user: Memory regions description. Count, padding, then 32 bytes a region.
    fn memory_table(self) -> Result<Request, Malformed> {
        let Some((head, table)) = self.body.split_first_chunk::<8>() else {
            return Err(self.wrong_size());
        };
        let regions = halves(u64::from_ne_bytes(*head)).0 as usize;
        if regions.checked_mul(REGION_BYTES) != Some(table.len()) {
            return Err(self.wrong_size());
        }
        if regions != self.descriptors.len() {
            return Err(Malformed::MemoryNotShared {
                regions,
                descriptors: self.descriptors.len(),
            });
        }
        let layouts = table.chunks_exact(REGION_BYTES).map(|entry| {
            let [guest_phys_addr, size_bytes, user_addr, mmap_offset] = words(entry);
            RegionLayout {
                guest_phys_addr,
                size_bytes,
                user_addr,
                mmap_offset,
            }
        });
        Ok(Request::SetMemTable(
            layouts.zip(self.descriptors).collect(),
        ))
    }

    /// The body as exactly `N` 64-bit words.
    fn words<const N: usize>(&self) -> Result<[u64; N], Malformed> {
        if self.body.len() == N * 8 {
            Ok(words(&self.body))
        } else {
            Err(self.wrong_size())
        }
    }

    fn expect_descriptors(&self, count: usize) -> Result<(), Malformed> {
        if self.descriptors.len() == count {
            Ok(())
        } else {
            Err(self.wrong_descriptors())
        }
    }

    fn wrong_size(&self) -> Malformed {
        Malformed::BodySize {
            request: self.header.request,
            body_bytes: self.body.len(),
        }
    }

    fn wrong_descriptors(&self) -> Malformed {
        Malformed::Descriptors {
            request: self.header.request,
            descriptors: self.descriptors.len(),
        }
    }
}

/// The first `N` 64-bit words of `bytes`; the caller has checked that they are there.
fn words<const N: usize>(bytes: &[u8]) -> [u64; N] {
    let mut words = [0; N];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = chunk.try_into().map_or(0, u64::from_ne_bytes);
    }
    words
}

/// The two 32-bit fields of a vring state, in memory order.
fn halves(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_ne_bytes();
    (
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
    )
}

/// A memory table as a reply has it (vhost-user: Memory regions description).
pub fn memory_table_body(regions: &[RegionLayout]) -> Vec<u8> {
    let count = u64::from(u32::try_from(regions.len()).unwrap_or(u32::MAX));
    let words = regions.iter().flat_map(region_words);
    [count]
        .into_iter()
        .chain(words)
        .flat_map(u64::to_ne_bytes)
        .collect()
}

/// One region as a reply has it (vhost-user: Single memory region description).
pub fn single_region_body(region: &RegionLayout) -> Vec<u8> {
    let words = [0].into_iter().chain(region_words(region));
    words.flat_map(u64::to_ne_bytes).collect()
}

fn region_words(region: &RegionLayout) -> [u64; 4] {
    [
        region.guest_phys_addr,
        region.size_bytes,
        region.user_addr,
        region.mmap_offset,
    ]
}

/// Whether SET_VRING_ADDR's flags ask for the used ring to be logged; `None` when a reserved bit is set.
pub fn logs_used_ring(flags: u32) -> Option<bool> {
    let log = VhostUserVringAddrFlags::VHOST_VRING_F_LOG.bits();
    (flags & !log == 0).then_some(flags & log != 0)
}

/// A descriptor that is an answer. Equal only to itself.
#[derive(Debug)]
pub struct AnsweringDescriptor(pub OwnedFd);

impl PartialEq for AnsweringDescriptor {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_raw_fd() == other.0.as_raw_fd()
    }
}

impl Eq for AnsweringDescriptor {}

/// Body of a reply, or what comes beside it.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// A value, or the 0 / 1 of REPLY_ACK.
    Value(u64),
    /// A ring and a number: GET_VRING_BASE.
    Vring {
        /// Ring index as it was sent.
        index: u32,
        /// Next available index.
        base: u32,
    },
    /// SET_LOG_BASE's own body: QEMU takes any, Cloud Hypervisor waits for these 16 bytes.
    Log(LogLayout),
    /// A request's own body again, with what it asked for filled in: SET_MEM_TABLE and ADD_MEM_REG in postcopy.
    Body(Vec<u8>),
    /// No body; the answer is a descriptor: POSTCOPY_ADVISE.
    Descriptor(AnsweringDescriptor),
}

impl Reply {
    /// The whole message that answers `request`, and what goes with its first byte.
    pub fn encode(self, request: RequestCode) -> (Vec<u8>, Option<OwnedFd>) {
        let mut descriptor = None;
        let body: Vec<u8> = match self {
            Self::Body(body) => body,
            Self::Descriptor(answer) => {
                descriptor = Some(answer.0);
                Vec::new()
            }
            Self::Value(value) => value.to_ne_bytes().to_vec(),
            Self::Vring { index, base } => [index, base].map(u32::to_ne_bytes).concat(),
            Self::Log(log) => [log.size_bytes, log.mmap_offset]
                .map(u64::to_ne_bytes)
                .concat(),
        };
        let fields = [request.0, VERSION | FLAG_REPLY, body.len() as u32];
        let bytes = [fields.map(u32::to_ne_bytes).as_flattened(), &body].concat();
        (bytes, descriptor)
    }
}
