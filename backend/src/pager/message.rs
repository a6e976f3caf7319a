//! Messages between the daemon and a pager: four words, and a descriptor with some.

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const BYTES: usize = 32;

/// What one says to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Pager: here is the userfaultfd, which comes with it.
    Ready,
    /// Daemon: map this piece of the file that comes with it.
    Map {
        /// Where, in the pager.
        start: u64,
        /// How much.
        bytes: u64,
        /// From where in the file.
        offset: u64,
    },
    /// Pager: the piece that starts there is mapped.
    Mapped(u64),
    /// Daemon: fetch the page at this address of the pager.
    Fetch(u64),
    /// Pager: it is there.
    Here(u64),
    /// Pager: that does not work, for this error number; the pager ends.
    Failed(i32),
}

impl Message {
    fn encode(self) -> [u8; BYTES] {
        let words = match self {
            Self::Ready => [1, 0, 0, 0],
            Self::Map {
                start,
                bytes,
                offset,
            } => [2, start, bytes, offset],
            Self::Mapped(start) => [3, start, 0, 0],
            Self::Fetch(page) => [4, page, 0, 0],
            Self::Here(page) => [5, page, 0, 0],
            Self::Failed(error) => [6, error as u64, 0, 0],
        };
        let mut bytes = [0; BYTES];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&u64::to_ne_bytes(word));
        }
        bytes
    }

    fn decode(bytes: &[u8; BYTES]) -> Option<Self> {
        let mut words = [0; BYTES / 8];
        for (word, place) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = place.try_into().map_or(0, u64::from_ne_bytes);
        }
        Some(match words {
            [1, ..] => Self::Ready,
            [2, start, bytes, offset] => Self::Map {
                start,
                bytes,
                offset,
            },
            [3, start, ..] => Self::Mapped(start),
            [4, page, ..] => Self::Fetch(page),
            [5, page, ..] => Self::Here(page),
            [6, error, ..] => Self::Failed(error as i32),
            _ => return None,
        })
    }
}

/// Sends a message, and a descriptor beside it. With `DONTWAIT` among the flags it may find no room.
///
/// # Errors
/// As sendmsg(2).
pub fn send(
    socket: impl AsFd,
    message: Message,
    descriptor: Option<BorrowedFd<'_>>,
    flags: SendFlags,
) -> io::Result<()> {
    let bytes = message.encode();
    let descriptors: &[BorrowedFd<'_>] = descriptor.as_slice();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    loop {
        let sent = sendmsg(
            &socket,
            &[IoSlice::new(&bytes)],
            &mut control,
            flags | SendFlags::NOSIGNAL,
        );
        match sent {
            Err(Errno::INTR) => {}
            other => return Ok(other.map(drop)?),
        }
    }
}

/// The next message, with the descriptor beside it; `None` when the other side is gone.
///
/// # Errors
/// As recvmsg(2), or what came is no message.
pub fn receive(
    socket: impl AsFd,
    flags: RecvFlags,
) -> io::Result<Option<(Message, Option<OwnedFd>)>> {
    let mut bytes = [0; BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let (received, descriptor) = loop {
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let flags = flags | RecvFlags::CMSG_CLOEXEC;
        match recvmsg(&socket, &mut slices, &mut control, flags) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(received) => {
                let mut rights = control.drain().filter_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                    _ => None,
                });
                break (received.bytes, rights.next().and_then(|mut all| all.next()));
            }
        }
    };
    match received {
        0 => Ok(None),
        BYTES => {
            let message = Message::decode(&bytes).ok_or(io::ErrorKind::InvalidData)?;
            Ok(Some((message, descriptor)))
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_they_were_written() {
        for message in [
            Message::Ready,
            Message::Map {
                start: 1,
                bytes: 2,
                offset: u64::MAX,
            },
            Message::Mapped(3),
            Message::Fetch(4),
            Message::Here(5),
            Message::Failed(-6),
        ] {
            assert_eq!(Message::decode(&message.encode()), Some(message));
        }
        assert_eq!(Message::decode(&[0; BYTES]), None);
        assert_eq!(Message::decode(&[255; BYTES]), None);
    }
}
