//! The system calls that take raw pointers and have no safe form elsewhere: vectored writes straight from guest memory,
//! and the ioctls of a TAP interface (linux/if_tun.h, netdevice(7)).

use super::segment::PayloadCursor;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Pieces one write can gather besides the private one.
const MAX_PIECES: usize = 63;

/// Writes one frame: the private bytes `start`, then `payload_bytes` bytes of payload from where they are.
///
/// # Errors
/// `E2BIG` when the payload lies in more than 63 pieces (copy it together first); otherwise what writev(2) says, and a
/// short write as an error: a frame goes whole or not at all.
pub fn write_frame(
    fd: BorrowedFd<'_>,
    start: &[u8],
    payload: PayloadCursor<'_>,
    payload_bytes: usize,
) -> io::Result<()> {
    let mut pieces = [libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: 0,
    }; MAX_PIECES + 1];
    pieces[0] = libc::iovec {
        iov_base: start.as_ptr().cast_mut().cast(),
        iov_len: start.len(),
    };
    let mut count = 1;
    let mut left = payload_bytes;
    for piece in payload.iovecs() {
        if left == 0 {
            break;
        }
        let slot = pieces
            .get_mut(count)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::E2BIG))?;
        *slot = libc::iovec {
            iov_len: piece.iov_len.min(left),
            ..piece
        };
        left -= slot.iov_len;
        count += 1;
    }
    let total = start.len() + payload_bytes - left;
    // SAFETY: the first entry borrows `start`, the others memory that the cursor's arena keeps mapped; writev only
    // reads from them.
    let written = unsafe { libc::writev(fd.as_raw_fd(), pieces.as_ptr(), count as libc::c_int) };
    match usize::try_from(written) {
        Err(_) => Err(io::Error::last_os_error()),
        Ok(written) if written < total => Err(io::ErrorKind::WriteZero.into()),
        Ok(_) => Ok(()),
    }
}

/// Attaches `tun` (an open /dev/net/tun) to the TAP interface `name`, creating it when there is none.
pub fn tap_attach(tun: BorrowedFd<'_>, name: &str, flags: libc::c_int) -> io::Result<()> {
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &mut request) })
}

/// Sets which offloads the kernel may leave in frames that we read (TUN_F_*).
pub fn tap_set_offloads(tun: BorrowedFd<'_>, offloads: u32) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe {
        libc::ioctl(
            tun.as_raw_fd(),
            libc::TUNSETOFFLOAD,
            libc::c_ulong::from(offloads),
        )
    })
}

/// Sets the length of the virtio-net header in front of each frame.
pub fn tap_set_header_bytes(tun: BorrowedFd<'_>, bytes: libc::c_int) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETVNETHDRSZ, &bytes) })
}

/// Brings the interface `name` up. `socket` is any socket.
pub fn interface_up(socket: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let mut request = interface_request(name)?;
    // SAFETY: SIOCGIFFLAGS fills the flags of one `ifreq`, SIOCSIFFLAGS reads them; reading the union's flags is right
    // after the first.
    unsafe {
        check(libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCGIFFLAGS,
            &mut request,
        ))?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        check(libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS,
            &request,
        ))
    }
}

/// Sets the MTU of the interface `name`. `socket` is any socket.
pub fn interface_set_mtu(socket: BorrowedFd<'_>, name: &str, mtu: u16) -> io::Result<()> {
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_mtu = mtu.into();
    // SAFETY: SIOCSIFMTU reads one `ifreq`.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFMTU, &request) })
}

fn interface_request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: zeros are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The kernel wants the terminating zero inside the array (netdevice(7)).
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "an interface name has 1 to 15 bytes",
        ));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
