//! Where a port's connections come from, and when to look for the next.
//!
//! Part of a port on the device thread, vhost-user or stream; [`Endpoint::open`] runs on the control thread that adds the port.

use super::listener::{self, Listener};
use super::{DeviceError, SocketMode};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

/// Connections looked at per wake-up.
pub const ACCEPTS_PER_WAKEUP: usize = 8;
/// Client mode: first wait before connecting again.
pub const RETRY_FIRST: Duration = Duration::from_millis(100);
/// Client mode: longest wait before connecting again. Server mode: wait after a failed accept (out of descriptors, say).
pub const RETRY_LONGEST: Duration = Duration::from_secs(1);

/// Where the port's connections come from.
#[derive(Debug)]
pub enum Endpoint {
    /// It listens.
    Server(Listener),
    /// It connects; the wait before the next attempt.
    Client(Duration),
    /// Neither any more: the port is being removed.
    Closed,
}

impl Endpoint {
    /// Binds the socket in server mode; checks the path in client mode.
    ///
    /// # Errors
    /// The path cannot be had.
    pub fn open(mode: SocketMode, socket: &Path) -> Result<Self, DeviceError> {
        match mode {
            SocketMode::Server => Listener::bind(socket).map(Self::Server),
            SocketMode::Client => listener::address(socket).map(|_| Self::Client(RETRY_FIRST)),
        }
    }
}

/// Rings once, when it is told to.
#[derive(Debug)]
pub struct Timer(OwnedFd);

impl Timer {
    /// Silent.
    ///
    /// # Errors
    /// No descriptor can be had.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self(timerfd_create(TimerfdClockId::Monotonic, flags)?))
    }

    /// Has it ring then, and not earlier.
    ///
    /// # Errors
    /// The kernel does not set it.
    pub fn arm(&self, wait: Duration) -> io::Result<()> {
        let none = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let timer = Itimerspec {
            it_interval: none,
            it_value: Timespec {
                tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: wait.subsec_nanos().into(),
            },
        };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &timer)?;
        Ok(())
    }

    /// Silences it again: it has rung.
    pub fn hear(&self) {
        let mut expirations = [0; 8];
        // How often it rang does not matter.
        let _ = rustix::io::read(&self.0, &mut expirations);
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
