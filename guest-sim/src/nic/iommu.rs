//! A virtual IOMMU between a NIC and its memory, as QEMU has it: it answers what the back-end asks on a channel of its own.
//!
//! Called by tests on a thread that has the [`Session`], while other threads move frames. With [`Features::ACCESS_PLATFORM`] acked, the
//! addresses that a driver knows are I/O addresses: the session tells rings by them, and memory [`GUEST_SHIFT`] further up. Keeps
//! true: a page is told as it is mapped now; when [`Iommu::unmap`] returns, the back-end has said that it does not use it any more.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::session::Session;
use crate::driver::wait::Patience;
use crate::error::{Doing, Error};
use crate::features::Features;
use crate::memory::GuestMemory;
use crate::message::Request;

/// How far above its I/O address memory is for the guest: nobody may take one for the other.
pub const GUEST_SHIFT: u64 = 1 << 40;
/// What the IOMMU maps at a time.
pub const PAGE_BYTES: u64 = 4096;

/// VHOST_USER_BACKEND_IOTLB_MSG, and the types of `struct vhost_iotlb_msg`.
const BACKEND_IOTLB_MSG: u32 = 1;
const UPDATE: u8 = 2;
const INVALIDATE: u8 = 3;
const HEADER_BYTES: usize = 12;
const BODY_BYTES: usize = 32;
/// Flags of an answer: version 1, and that it is one.
const ANSWER: u32 = 5;

/// What a device may do with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Read it.
    Read = 1,
    /// Write it.
    Write = 2,
    /// Both.
    Both = 3,
}

/// What the back-end asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The address.
    pub iova: u64,
    /// 1 to read there, 2 to write.
    pub permission: u8,
}

/// One NIC's IOMMU.
#[derive(Debug)]
pub struct Iommu {
    channel: UnixStream,
    memory: GuestMemory,
    pages: BTreeMap<u64, Permission>,
    /// How many questions it was asked.
    asked: u64,
}

impl Iommu {
    /// Gives the back-end its channel, as QEMU does when it connects. Nothing is mapped.
    ///
    /// # Errors
    /// When the back-end refuses.
    pub fn connect(session: &mut Session, memory: &GuestMemory) -> Result<Self, Error> {
        let (channel, theirs) = UnixStream::pair().doing("making a channel for the back-end")?;
        let request = Request::SET_BACKEND_REQ_FD;
        let descriptors = [theirs.as_fd()];
        session
            .raw()
            .send_needing_reply(request, &[], &descriptors)?;
        expect_done(session, request)?;
        Ok(Self {
            channel,
            memory: memory.clone(),
            pages: BTreeMap::new(),
            asked: 0,
        })
    }

    /// Maps all memory there is; the back-end hears of it when it asks.
    pub fn map_all(&mut self) {
        for region in self.memory.regions() {
            let layout = region.layout();
            self.map(layout.guest_base, layout.size_bytes, Permission::Both);
        }
    }

    /// Maps the pages that `bytes` bytes at an I/O address are in.
    pub fn map(&mut self, iova: u64, bytes: u64, permission: Permission) {
        for page in pages(iova, bytes) {
            self.pages.insert(page, permission);
        }
    }

    /// Takes pages away; when this returns, the back-end does not use them any more.
    ///
    /// # Errors
    /// When the back-end refuses.
    pub fn unmap(&mut self, session: &mut Session, iova: u64, bytes: u64) -> Result<(), Error> {
        let first = iova & !(PAGE_BYTES - 1);
        for page in pages(iova, bytes) {
            self.pages.remove(&page);
        }
        let size = (iova + bytes).next_multiple_of(PAGE_BYTES) - first;
        tell(session, [first, size, 0], (0, INVALIDATE))
    }

    /// The next question, if one comes within that time.
    ///
    /// # Errors
    /// When the back-end closed the channel, or asks what it may not.
    pub fn question(&mut self, within: Duration) -> Result<Option<Question>, Error> {
        use std::io::{ErrorKind, Read};
        let mut message = [0; HEADER_BYTES + BODY_BYTES];
        let patience = Patience::of(within);
        if !super::session::poll_socket(&self.channel, patience)? {
            return Ok(None);
        }
        let read = self.channel.read_exact(&mut message);
        match read {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                let request = "a question of the back-end";
                return Err(Error::Disconnected { request });
            }
            Err(error) => return Err(error).doing("reading a question of the back-end"),
        }
        let word =
            |at: usize| u32::from_ne_bytes(message[at..at + 4].try_into().unwrap_or_default());
        let expected = [BACKEND_IOTLB_MSG, 0x9, BODY_BYTES as u32];
        let [permission, kind] = [message[HEADER_BYTES + 24], message[HEADER_BYTES + 25]];
        if [word(0), word(4), word(8)] != expected || kind != 1 {
            return Err(Error::Options(
                "the back-end asked for something else than a translation",
            ));
        }
        let iova = message[HEADER_BYTES..HEADER_BYTES + 8].try_into();
        self.asked += 1;
        Ok(Some(Question {
            iova: u64::from_ne_bytes(iova.unwrap_or_default()),
            permission,
        }))
    }

    /// Answers a question by what is mapped now: tells the page first, if it is.
    ///
    /// # Errors
    /// When the back-end refuses or hangs up.
    pub fn answer(&mut self, session: &mut Session, question: Question) -> Result<(), Error> {
        let page = question.iova & !(PAGE_BYTES - 1);
        let mapped = self.pages.get(&page).copied();
        let permitted = mapped.filter(|mapped| *mapped as u8 & question.permission != 0);
        if let Some(permission) = permitted {
            let user = self.user_address(page)?;
            tell(
                session,
                [page, PAGE_BYTES, user],
                (permission as u8, UPDATE),
            )?;
        }
        self.reply(u64::from(permitted.is_none()))
    }

    /// Answers on the channel alone.
    ///
    /// # Errors
    /// When the back-end hung up.
    pub fn reply(&mut self, value: u64) -> Result<(), Error> {
        use std::io::Write;
        let header = [BACKEND_IOTLB_MSG, ANSWER, 8].map(u32::to_ne_bytes);
        let message = [header.as_flattened(), &value.to_ne_bytes()].concat();
        self.channel
            .write_all(&message)
            .doing("answering the back-end")
    }

    /// Answers what is asked until nothing was for that long.
    ///
    /// # Errors
    /// As [`Self::question`] and [`Self::answer`].
    pub fn serve(&mut self, session: &mut Session, quiet: Duration) -> Result<(), Error> {
        while let Some(question) = self.question(quiet)? {
            self.answer(session, question)?;
        }
        Ok(())
    }

    /// How many questions were asked.
    pub fn asked(&self) -> u64 {
        self.asked
    }

    fn user_address(&self, iova: u64) -> Result<u64, Error> {
        let holds = |base: u64, size: u64| iova.wrapping_sub(base) < size;
        let regions = self.memory.regions();
        let region = regions
            .iter()
            .find(|region| holds(region.layout().guest_base, region.layout().size_bytes));
        let region = region.ok_or(Error::Options("a page outside memory is mapped"))?;
        Ok(region.user_base() + (iova - region.layout().guest_base))
    }
}

/// Whether the driver's addresses are I/O addresses.
pub(crate) fn is_behind(acked: Features) -> bool {
    acked.contains(Features::ACCESS_PLATFORM)
}

/// Sends an IOTLB message and waits until the back-end has acted upon it.
///
/// # Errors
/// When it refuses.
pub fn tell(
    session: &mut Session,
    [iova, size, user]: [u64; 3],
    (permission, kind): (u8, u8),
) -> Result<(), Error> {
    let last = u64::from_ne_bytes([permission, kind, 0, 0, 0, 0, 0, 0]);
    let body = [iova, size, user, last].map(u64::to_ne_bytes);
    let request = Request::IOTLB_MSG;
    session
        .raw()
        .send_needing_reply(request, body.as_flattened(), &[])?;
    expect_done(session, request)
}

fn expect_done(session: &mut Session, request: Request) -> Result<(), Error> {
    let deadline = session.deadline();
    match session.raw().receive_u64(request, deadline)? {
        0 => Ok(()),
        _ => Err(Error::Refused {
            request: request.name(),
        }),
    }
}

fn pages(iova: u64, bytes: u64) -> impl Iterator<Item = u64> {
    let first = iova & !(PAGE_BYTES - 1);
    (first..iova + bytes).step_by(PAGE_BYTES as usize)
}
