//! Guests and front-ends that break the rules on purpose, as tables that a test can walk through.
//!
//! `chains` (what a guest can put into its rings: `shared_cases`, `split_cases`, `packed_cases`), `messages` (what a front-end can put on the socket), `descriptors` (what it can pass along
//! with them). Every case has a name; none expects anything but that the device and every other port live on. Singular attacks need no
//! table: [`GuestMemory::truncate_memfd`](crate::GuestMemory::truncate_memfd), [`RawFrontend::send_bytes`](crate::RawFrontend::send_bytes)
//! in pieces, [`kick_storm`], [`flood_without_reading`].

pub mod chains;
pub mod descriptors;
pub mod messages;
mod packed_cases;
mod shared_cases;
mod split_cases;

use std::os::fd::AsFd;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

pub use chains::{HostileChain, chains, packed_chains};
pub use descriptors::PassedDescriptor;
pub use messages::{HostileMessage, messages};

use crate::driver::wait::Patience;
use crate::error::{Doing, Error};
use crate::message::{RawFrontend, Request, VERSION, header};

/// Kicks `count` times as fast as it goes, with nothing new in the ring.
///
/// # Errors
/// When the eventfd's counter is full.
pub fn kick_storm(kick: &EventFd, count: usize) -> Result<(), Error> {
    (0..count).try_for_each(|_| kick.write(1).doing("kicking"))
}

/// Sends GET_FEATURES over and over and never reads an answer, until the socket takes no more for `patience`; the answer is how many went
/// out. A back-end must neither block on its full socket nor store answers without bound.
///
/// # Errors
/// [`Error::Disconnected`] when the back-end hangs up, which it may.
pub fn flood_without_reading(
    raw: &mut RawFrontend,
    limit: usize,
    patience: Duration,
) -> Result<usize, Error> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    let message = header(Request::GET_FEATURES, VERSION, 0);
    for sent in 0..limit {
        let patience = Patience::of(patience);
        let timeout = Timespec {
            tv_sec: patience.left().as_secs() as i64,
            tv_nsec: patience.left().subsec_nanos().into(),
        };
        let stream = raw.stream().as_fd();
        let ready = poll(
            &mut [PollFd::from_borrowed_fd(stream, PollFlags::OUT)],
            Some(&timeout),
        )
        .doing("polling a socket")?;
        if ready == 0 {
            return Ok(sent);
        }
        raw.send_bytes(&message, &[])?;
    }
    Ok(limit)
}
