//! Kicks and calls of one ring.
//!
//! Used by `virtqueue`, on the driver's thread. Keeps true: every notification is counted.

use rustix::event::EventfdFlags;
use vmm_sys_util::epoll::Epoll;
use vmm_sys_util::eventfd::EventFd;

use crate::driver::wait::watch;
use crate::error::{Doing, Error};

/// Notifications of one ring, both ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NotificationCounts {
    /// Times the driver published and the device had asked to be told.
    pub kicks: u64,
    /// Times the driver published and the device had asked not to be told.
    pub kicks_suppressed: u64,
    /// Times the call eventfd was found signalled.
    pub calls: u64,
}

/// The two eventfds of a ring.
#[derive(Debug)]
pub(super) struct Notifier {
    pub kick: EventFd,
    pub call: EventFd,
    pub call_epoll: Epoll,
    pub counts: NotificationCounts,
}

impl Notifier {
    pub fn new() -> Result<Self, Error> {
        let eventfd =
            || EventFd::new(EventfdFlags::NONBLOCK.bits() as i32).doing("creating an eventfd");
        let call = eventfd()?;
        Ok(Self {
            kick: eventfd()?,
            call_epoll: watch(&call)?,
            call,
            counts: NotificationCounts::default(),
        })
    }

    /// Kicks, if the device wanted it.
    pub fn kick(&mut self, wanted: bool) -> Result<(), Error> {
        if wanted {
            self.counts.kicks += 1;
            self.kick.write(1).doing("kicking")
        } else {
            self.counts.kicks_suppressed += 1;
            Ok(())
        }
    }

    /// Takes what the call eventfd holds; true if it was signalled.
    pub fn take_call(&mut self) -> bool {
        let signalled = self.call.read().is_ok();
        self.counts.calls += u64::from(signalled);
        signalled
    }

    /// Forgets what both eventfds hold.
    pub fn drain(&self) {
        for eventfd in [&self.kick, &self.call] {
            // An error means that it held nothing.
            let _held = eventfd.read();
        }
    }
}
