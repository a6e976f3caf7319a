//! Memory that arrives page by page (vhost-user: postcopy): what QEMU says to the back-end then, and what it hears of it.
//!
//! Called by [`Session`](super::Session). The back-end gives a userfaultfd; from that come its faults, as addresses in a process of its own.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use vhost::VhostUserMemoryRegionInfo;

use super::session::poll_socket;
use crate::driver::wait::Patience;
use crate::error::{Doing, Error};
use crate::message::{NEED_REPLY, RawFrontend, Request, VERSION};

/// struct uffd_msg.
const EVENT_BYTES: usize = 32;
/// UFFD_EVENT_PAGEFAULT.
const PAGEFAULT: u8 = 0x12;

/// A page that the back-end waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where it waits, in its own addresses: what UFFDIO_WAKE wants.
    pub address: u64,
    /// The page's guest-physical address.
    pub guest_address: u64,
}

#[derive(Clone, Copy, Debug)]
struct FaultingRegion {
    guest_base: u64,
    size_bytes: u64,
    base: u64,
}

/// What a front-end knows of such memory.
#[derive(Debug)]
pub struct Arrival {
    faults: OwnedFd,
    regions: Vec<FaultingRegion>,
}

impl Arrival {
    /// POSTCOPY_ADVISE, and POSTCOPY_LISTEN.
    pub(super) fn begin(raw: &mut RawFrontend, within: Duration) -> Result<Self, Error> {
        raw.send(Request::POSTCOPY_ADVISE, &[], &[])?;
        let mut reply = raw.receive(within)?;
        reply.expect(Request::POSTCOPY_ADVISE, &[])?;
        let faults = reply.descriptors.pop();
        let faults = faults.ok_or(Error::Refused {
            request: "POSTCOPY_ADVISE",
        })?;
        // Otherwise it cannot be polled (userfaultfd(2)).
        rustix::io::ioctl_fionbio(&faults, true).doing("making a userfaultfd non-blocking")?;
        raw.send_with(Request::POSTCOPY_LISTEN, VERSION | NEED_REPLY, &[], &[])?;
        match raw.receive_u64(Request::POSTCOPY_LISTEN, within)? {
            0 => Ok(Self {
                faults,
                regions: Vec::new(),
            }),
            _ => Err(Error::Refused {
                request: "POSTCOPY_LISTEN",
            }),
        }
    }

    /// SET_MEM_TABLE, whose reply says where the faults of each region are.
    pub(super) fn tell_table(
        &mut self,
        raw: &mut RawFrontend,
        regions: &[VhostUserMemoryRegionInfo],
        within: Duration,
    ) -> Result<(), Error> {
        let head = (regions.len() as u64).to_ne_bytes();
        let body = [
            &head[..],
            &regions.iter().flat_map(words).collect::<Vec<_>>(),
        ]
        .concat();
        let descriptors = files(regions)?;
        let descriptors: Vec<_> = descriptors.iter().map(|file| file.as_fd()).collect();
        self.ask(raw, Request::SET_MEM_TABLE, (&body, &descriptors), within)
    }

    /// ADD_MEM_REG, in the same way.
    pub(super) fn tell_region(
        &mut self,
        raw: &mut RawFrontend,
        region: &VhostUserMemoryRegionInfo,
        within: Duration,
    ) -> Result<(), Error> {
        let body = [vec![0; 8], words(region)].concat();
        let regions = std::slice::from_ref(region);
        let descriptors = files(regions)?;
        let descriptors: Vec<_> = descriptors.iter().map(|file| file.as_fd()).collect();
        self.ask(raw, Request::ADD_MEM_REG, (&body, &descriptors), within)
    }

    fn ask(
        &mut self,
        raw: &mut RawFrontend,
        request: Request,
        (body, descriptors): (&[u8], &[BorrowedFd<'_>]),
        within: Duration,
    ) -> Result<(), Error> {
        raw.send(request, body, descriptors)?;
        let reply = raw.receive(within)?;
        let word = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().unwrap_or_default());
        let (mut expected, mut regions) = (body.to_vec(), Vec::new());
        if reply.body.len() == body.len() {
            // Only the addresses differ: the third word of each region.
            for at in (8..body.len()).step_by(32) {
                let base = at + 16..at + 24;
                expected[base.clone()].copy_from_slice(&reply.body[base.clone()]);
                regions.push(FaultingRegion {
                    guest_base: word(&body[at..at + 8]),
                    size_bytes: word(&body[at + 8..at + 16]),
                    base: word(&reply.body[base]),
                });
            }
        }
        reply.expect(request, &expected)?;
        self.regions.extend(regions);
        Ok(())
    }

    /// The ack of the regions told last.
    pub(super) fn acknowledge(&self, raw: &mut RawFrontend, last: Request) -> Result<(), Error> {
        raw.send(last, &[0; 8], &[])
    }

    /// The back-end's userfaultfd.
    pub fn faults(&self) -> BorrowedFd<'_> {
        self.faults.as_fd()
    }

    /// The next page that the back-end waits for; `None` when there is none within that time.
    ///
    /// # Errors
    /// When it is in no region, or the userfaultfd cannot be read.
    pub fn next_fault(&self, within: Duration) -> Result<Option<Fault>, Error> {
        if !poll_socket(&self.faults, Patience::of(within))? {
            return Ok(None);
        }
        let mut event = [0; EVENT_BYTES];
        let read = rustix::io::read(&self.faults, &mut event).doing("reading a userfaultfd")?;
        let [
            kind,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            address @ ..,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
        ] = event;
        let address = u64::from_ne_bytes(address);
        let region = self
            .regions
            .iter()
            .find(|region| address.wrapping_sub(region.base) < region.size_bytes);
        match region {
            Some(region) if read == EVENT_BYTES && kind == PAGEFAULT => Ok(Some(Fault {
                address,
                guest_address: region.guest_base + (address - region.base),
            })),
            _ => Err(Error::Refused {
                request: "a fault outside of every region",
            }),
        }
    }
}

/// vhost-user: Memory region description.
fn words(region: &VhostUserMemoryRegionInfo) -> Vec<u8> {
    let words = [
        region.guest_phys_addr,
        region.memory_size,
        region.userspace_addr,
        region.mmap_offset,
    ];
    words.into_iter().flat_map(u64::to_ne_bytes).collect()
}

/// The regions' files once more: all that is known of them is a number.
fn files(regions: &[VhostUserMemoryRegionInfo]) -> Result<Vec<File>, Error> {
    let open = |region: &VhostUserMemoryRegionInfo| {
        let path = format!("/proc/self/fd/{}", region.mmap_handle);
        let file = File::options().read(true).write(true).open(path);
        file.doing("opening a region's file once more")
    };
    regions.iter().map(open).collect()
}
