//! A TAP interface as a port: the host reaches its guests through it.
//!
//! Opened by the control thread, then read by one worker and written by any. Frames carry the 12-byte virtio-net header both
//! ways, so checksums and segmentation are left undone between host and guests as they are between guests
//! (linux Documentation/networking/tuntap.rst; TUNSETOFFLOAD).

use crate::ring::segment::PayloadCursor;
use crate::ring::syscalls;
use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

/// Why an interface could not become a port.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No /dev/net/tun.
    #[error("cannot open /dev/net/tun: {0}; load the tun module and run with access to the device")]
    Device(#[source] io::Error),
    /// TUNSETIFF was refused.
    #[error("cannot attach to TAP interface {interface:?}: {reason}{source}")]
    Attach {
        /// The interface's name.
        interface: String,
        /// A remedy where one is known.
        reason: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// It exists but could not be set up.
    #[error("cannot set up TAP interface {interface:?}: {source}")]
    SetUp {
        /// The interface's name.
        interface: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// An open TAP interface.
#[derive(Debug)]
pub struct Tap {
    file: OwnedFd,
    interface: String,
}

impl Tap {
    /// Attaches to `interface`, creating it when there is none (such a one vanishes with this process), with virtio-net
    /// header and all offloads, and brings it up.
    pub fn open(interface: &str) -> Result<Self, TapError> {
        let file = rustix::fs::open(
            "/dev/net/tun",
            OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|e| TapError::Device(e.into()))?;
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        // An interface made with multi_queue wants that said again, and any other wants it not said.
        syscalls::tap_attach(file.as_fd(), interface, flags)
            .or_else(|first| {
                syscalls::tap_attach(file.as_fd(), interface, flags | libc::IFF_MULTI_QUEUE)
                    .map_err(|_| first)
            })
            .map_err(|source| TapError::Attach {
                interface: interface.into(),
                reason: attach_hint(&source),
                source,
            })?;
        let tap = Self {
            file,
            interface: interface.into(),
        };
        tap.set_up().map_err(|source| TapError::SetUp {
            interface: interface.into(),
            source,
        })?;
        Ok(tap)
    }

    /// Takes over an interface that another process opened and set up.
    pub fn adopt(file: OwnedFd, interface: &str) -> Self {
        Self {
            file,
            interface: interface.into(),
        }
    }

    /// Another descriptor of the open interface.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.file.try_clone()
    }

    fn set_up(&self) -> io::Result<()> {
        syscalls::tap_set_header_bytes(self.file.as_fd(), 12)?;
        let offloads = libc::TUN_F_CSUM
            | libc::TUN_F_TSO4
            | libc::TUN_F_TSO6
            | libc::TUN_F_TSO_ECN
            | libc::TUN_F_UFO;
        syscalls::tap_set_offloads(self.file.as_fd(), offloads)?;
        syscalls::interface_up(any_socket()?.as_fd(), &self.interface)
    }

    /// Sets the interface's MTU, in bytes.
    pub fn set_mtu(&self, mtu: u16) -> Result<(), TapError> {
        any_socket()
            .and_then(|socket| syscalls::interface_set_mtu(socket.as_fd(), &self.interface, mtu))
            .map_err(|source| TapError::SetUp {
                interface: self.interface.clone(),
                source,
            })
    }

    /// The interface's name.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Reads one frame with its virtio-net header; `None` when there is none now.
    ///
    /// # Errors
    /// What read(2) says: the interface is gone (`EBADFD`) or down (`EIO`).
    pub fn read(&self, room: &mut [u8]) -> io::Result<Option<usize>> {
        match rustix::io::read(&self.file, room) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends one frame to the host: `start` is its virtio-net header and first bytes, `payload` the rest.
    ///
    /// # Errors
    /// What writev(2) says; `E2BIG` when the payload is in too many pieces for one call.
    pub fn write(
        &self,
        start: &[u8],
        payload: PayloadCursor<'_>,
        payload_bytes: usize,
    ) -> io::Result<()> {
        syscalls::write_frame(self.file.as_fd(), start, payload, payload_bytes)
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn any_socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?)
}

fn attach_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => {
            "CAP_NET_ADMIN is needed (run as root, or create it first with: ip tuntap add mode tap user …): "
        }
        Some(libc::EBUSY) => "another process has it open: ",
        Some(libc::EINVAL) => "an interface of that name exists that is not a TAP: ",
        _ => "",
    }
}
