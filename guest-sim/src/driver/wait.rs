//! Waiting for the device: by its call eventfd, or by polling; always with a deadline.
//!
//! Called on the driver's thread. Keeps true: no wait outlives its deadline, and none misses a completion that came before it began.

use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::error::{Doing, Error};
use crate::ring::Virtqueue;

/// How a driver learns of used chains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Waiting {
    /// It asks for a call and sleeps.
    #[default]
    Calls,
    /// It asks for no calls and looks again and again.
    BusyPoll,
}

/// How long to wait for something: a deadline.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    end: Instant,
    within: Duration,
}

impl Patience {
    /// From now on.
    pub fn of(within: Duration) -> Self {
        Self {
            end: Instant::now() + within,
            within,
        }
    }

    /// What is left; zero when it has run out.
    pub fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    /// Whether nothing is left.
    pub fn is_over(&self) -> bool {
        self.left().is_zero()
    }

    /// The error of having waited in vain.
    pub fn timeout(&self, waiting_for: &'static str) -> Error {
        Error::Timeout {
            waiting_for,
            within: self.within,
        }
    }
}

/// Waits until `ring` has used chains; false when the patience ended first.
pub(crate) fn wait_for_used(
    ring: &mut Virtqueue,
    waiting: Waiting,
    patience: Patience,
) -> Result<bool, Error> {
    match waiting {
        Waiting::BusyPoll => loop {
            if ring.has_used()? {
                return Ok(true);
            }
            if patience.is_over() {
                return Ok(false);
            }
            // Machines of two cores run the device on one and this on the other, and more besides.
            std::thread::yield_now();
        },
        Waiting::Calls => loop {
            if ring.arm_call()? {
                ring.disarm_call()?;
                return Ok(true);
            }
            if !wait_on(ring.call_epoll(), patience)? {
                return Ok(false);
            }
            ring.take_call();
        },
    }
}

/// Waits until an eventfd is readable; false when the patience ended first.
///
/// # Errors
/// When the system refuses.
pub fn wait_readable(eventfd: &EventFd, patience: Patience) -> Result<bool, Error> {
    wait_on(&watch(eventfd)?, patience)
}

/// An epoll instance that watches one eventfd. (`EventFd` lends no `BorrowedFd`, so `poll` cannot take it.)
pub(crate) fn watch(eventfd: &EventFd) -> Result<Epoll, Error> {
    let epoll = Epoll::new().doing("creating an epoll instance")?;
    let event = EpollEvent::new(EventSet::IN, 0);
    epoll
        .ctl(ControlOperation::Add, eventfd.as_raw_fd(), event)
        .doing("watching a call eventfd")?;
    Ok(epoll)
}

pub(crate) fn wait_on(epoll: &Epoll, patience: Patience) -> Result<bool, Error> {
    loop {
        let left_ms = i32::try_from(patience.left().as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        match epoll.wait(left_ms, &mut [EpollEvent::default()]) {
            Ok(0) if !patience.is_over() => {}
            Ok(ready) => return Ok(ready > 0),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).doing("waiting for a call"),
        }
    }
}
