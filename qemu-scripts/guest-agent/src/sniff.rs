//! Counts the frames that arrive with a given text in them: what must not arrive, does not.

use std::io;
use std::num::NonZeroU32;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with};

use crate::jobs::Body;
use crate::protocol::Outcome;
use crate::tcp::stop_check_timespec;

/// `ETH_P_ALL` in network byte order, as packet(7) wants it.
const EVERY_PROTOCOL: u16 = 0x0003_u16.to_be();

/// Opens a packet socket for all interfaces; the job then counts until it is stopped and nothing more is queued.
///
/// A frame that passes through a VLAN interface is counted there again: the count tells "none" from "some".
///
/// # Errors
/// Not root, or no packet sockets in this kernel.
pub fn count(text: String) -> io::Result<Body> {
    let protocol = NonZeroU32::new(u32::from(EVERY_PROTOCOL)).map(Protocol::from_raw);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, protocol)?;
    Ok(Box::new(move |watch| {
        let mut outcome = Outcome::default();
        let mut frame = vec![0; 65_536];
        loop {
            match recv(&socket, frame.as_mut_slice(), RecvFlags::empty()) {
                Ok((length, _)) => {
                    if contains(frame.get(..length).unwrap_or_default(), text.as_bytes()) {
                        outcome.frames += 1;
                        outcome.bytes += length as u64;
                        watch.set_count(outcome.frames);
                    }
                }
                Err(Errno::AGAIN) if watch.stop_requested() => return Ok(outcome),
                Err(Errno::AGAIN) => {
                    poll(
                        &mut [PollFd::new(&socket, PollFlags::IN)],
                        Some(&stop_check_timespec()),
                    )?;
                }
                // An interface went down: packet sockets say so once.
                Err(Errno::NETDOWN | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }))
}

fn contains(frame: &[u8], text: &[u8]) -> bool {
    !text.is_empty() && frame.windows(text.len()).any(|window| window == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_found_anywhere_in_a_frame() {
        assert!(contains(b"header|marker", b"marker"));
        assert!(contains(b"marker|trailer", b"marker"));
        assert!(!contains(b"header|marke", b"marker"));
        assert!(!contains(b"", b"marker"));
    }
}
