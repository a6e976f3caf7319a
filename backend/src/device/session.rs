//! One connection: bytes and descriptors in, replies out, never blocking.
//!
//! `port` calls it on the device thread when the socket is ready. Kept true: a descriptor belongs to the message whose bytes it
//! came with, because no read reaches past the message in hand; one that answers goes with the first byte of its reply; a front-end that
//! does not read its replies costs at most [`MAX_UNSENT_BYTES`] and one descriptor; whatever ends the session closes every descriptor that it brought.

#[cfg(test)]
mod tests;

use super::descriptors::{admit, admit_for, discard};
use super::listener;
use super::message::{
    HEADER_BYTES, Header, MAX_BODY_BYTES, MAX_DESCRIPTORS, Malformed, Message, Reply, RequestCode,
};
use crate::handover::descriptors::{Incoming, Outgoing, Slot};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// Replies kept for a front-end that is slow to read them.
pub const MAX_UNSENT_BYTES: usize = 64 * 1024;

/// Why a session is over, in words for `port show`.
#[derive(Debug, thiserror::Error)]
pub enum SessionEnd {
    /// An orderly or disorderly close by the other side.
    #[error("the front-end closed the connection")]
    Closed,
    /// It does not speak vhost-user as specified.
    #[error("malformed message: {0}")]
    Malformed(#[from] Malformed),
    /// It sends requests and leaves the replies.
    #[error(
        "the front-end does not read its replies: {MAX_UNSENT_BYTES} bytes of them, or two with a descriptor, are unsent"
    )]
    NotReading,
    /// A socket error.
    #[error("the connection failed: {0}")]
    Socket(#[from] io::Error),
    /// What it sent could not be taken in, and the kernel threw it away.
    #[error(
        "this process may hold no more open descriptors: raise its limit (LimitNOFILE= of the service, or `ulimit -n`)"
    )]
    OutOfDescriptors,
    /// Shared memory shrank under us.
    #[error("the front-end truncated the memory it shares")]
    MemoryLost,
    /// A newer connection took the place of one that was already dead.
    #[error("the front-end connected anew")]
    Replaced,
}

impl SessionEnd {
    /// Why a session did not even begin.
    pub fn from_accept(error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(Errno::MFILE) => Self::OutOfDescriptors,
            _ => error.into(),
        }
    }
}

/// Assembles messages from whatever pieces arrive.
#[derive(Debug)]
pub struct MessageReader {
    buffer: Box<[u8; HEADER_BYTES + MAX_BODY_BYTES]>,
    filled: usize,
    header: Option<Header>,
    descriptors: Vec<OwnedFd>,
}

impl Default for MessageReader {
    fn default() -> Self {
        Self {
            buffer: Box::new([0; HEADER_BYTES + MAX_BODY_BYTES]),
            filled: 0,
            header: None,
            descriptors: Vec::new(),
        }
    }
}

impl MessageReader {
    /// Where the next bytes of the message in hand go: the rest of its header or of its body, never empty, never more.
    pub fn space(&mut self) -> &mut [u8] {
        let end = HEADER_BYTES + self.header.map_or(0, |header| header.body_bytes);
        self.buffer.get_mut(self.filled..end).unwrap_or_default()
    }

    /// What came of the message in hand.
    fn received(&self) -> &[u8] {
        self.buffer.get(..self.filled).unwrap_or_default()
    }

    /// The opposite: as if these bytes had come.
    fn restore(&mut self, received: &[u8]) -> Result<(), Malformed> {
        if let Some(room) = self.buffer.get_mut(..received.len()) {
            room.copy_from_slice(received);
            self.filled = received.len();
        }
        if let Some(head) = self.received().first_chunk::<HEADER_BYTES>() {
            self.header = Some(Header::parse(*head)?);
        }
        Ok(())
    }

    /// Takes over bytes put into [`Self::space`] and the descriptors that came with them; a message once it is whole.
    pub fn advance(
        &mut self,
        bytes: usize,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Option<Message>, Malformed> {
        self.filled += bytes.min(self.space().len());
        self.descriptors.extend(descriptors);
        if self.descriptors.len() > MAX_DESCRIPTORS {
            return Err(Malformed::TooManyDescriptors);
        }
        let Some((head, rest)) = self.buffer.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        if self.filled < HEADER_BYTES {
            return Ok(None);
        }
        let header = match self.header {
            Some(header) => header,
            None => *self.header.insert(Header::parse(*head)?),
        };
        if self.filled < HEADER_BYTES + header.body_bytes {
            return Ok(None);
        }
        let body = rest.get(..header.body_bytes).unwrap_or_default().to_vec();
        self.filled = 0;
        self.header = None;
        let descriptors = std::mem::take(&mut self.descriptors).into_iter();
        let descriptors = descriptors.map(|descriptor| admit_for(header.request, descriptor));
        Ok(Some(Message {
            header,
            body,
            descriptors: descriptors.collect(),
        }))
    }
}

impl Drop for MessageReader {
    fn drop(&mut self) {
        self.descriptors.drain(..).for_each(discard);
    }
}

/// What one read brought.
#[derive(Debug)]
pub enum Received {
    /// A whole message.
    Message(Message),
    /// A piece of one.
    Piece,
    /// Nothing is left to read for now.
    Nothing,
}

/// A connection on its way to another process.
#[derive(Debug, Serialize, Deserialize)]
pub struct HandedStream {
    stream: Slot,
    /// What came of a message that is not whole yet.
    received: Vec<u8>,
    /// What came with it.
    descriptors: Vec<Slot>,
    unsent: Vec<u8>,
}

/// A connected socket.
#[derive(Debug)]
pub struct Session {
    stream: OwnedFd,
    reader: MessageReader,
    unsent: Vec<u8>,
    unsent_descriptor: Option<UnsentDescriptor>,
}

/// The answer to one request, which the socket has not taken yet.
#[derive(Debug)]
struct UnsentDescriptor {
    /// Unsent bytes before the reply that it goes with.
    behind_bytes: usize,
    descriptor: OwnedFd,
}

impl Session {
    /// Takes over a connected, non-blocking stream socket.
    pub fn new(stream: OwnedFd) -> Self {
        Self {
            stream,
            reader: MessageReader::default(),
            unsent: Vec::new(),
            unsent_descriptor: None,
        }
    }

    /// The connection as it is, in the middle of a message as it may be, and its descriptors once more.
    ///
    /// # Errors
    /// A descriptor cannot be had, or one that answers is not sent yet ([`io::ErrorKind::ResourceBusy`]).
    pub fn hand_over(&self, descriptors: &mut Outgoing) -> io::Result<HandedStream> {
        if self.unsent_descriptor.is_some() {
            let reason = "the front-end has not read a reply that comes with a descriptor";
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, reason));
        }
        let came = self.reader.descriptors.iter().map(|descriptor| {
            let descriptor = descriptor.try_clone()?;
            Ok::<_, io::Error>(descriptors.add(descriptor))
        });
        let came = came.collect::<io::Result<Vec<Slot>>>()?;
        Ok(HandedStream {
            stream: descriptors.add(self.stream.try_clone()?),
            received: self.reader.received().to_vec(),
            descriptors: came,
            unsent: self.unsent.clone(),
        })
    }

    /// The connection that was handed over.
    ///
    /// # Errors
    /// A descriptor did not come, or what was received is no message's beginning.
    pub fn adopt(handed: HandedStream, descriptors: &mut Incoming) -> io::Result<Self> {
        let came = handed.descriptors.into_iter();
        let came = came.map(|slot| descriptors.take(slot));
        let mut reader = MessageReader::default();
        reader.descriptors = came.collect::<io::Result<_>>()?;
        reader.restore(&handed.received).map_err(io::Error::other)?;
        Ok(Self {
            stream: descriptors.take(handed.stream)?,
            reader,
            unsent: handed.unsent,
            unsent_descriptor: None,
        })
    }

    /// One read of the socket.
    pub fn receive(&mut self) -> Result<Received, SessionEnd> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [IoSliceMut::new(self.reader.space())];
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = match recvmsg(&self.stream, &mut bytes, &mut control, flags) {
            Ok(received) => received,
            Err(Errno::AGAIN) => return Ok(Received::Nothing),
            Err(Errno::INTR) => return Ok(Received::Piece),
            Err(Errno::CONNRESET) => return Err(SessionEnd::Closed),
            Err(error) => return Err(SessionEnd::Socket(error.into())),
        };
        let descriptors: Vec<OwnedFd> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            })
            .flatten()
            .map(admit)
            .collect();
        if received.bytes == 0 {
            return Err(SessionEnd::Closed);
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(self.why_truncated());
        }
        let message = self.reader.advance(received.bytes, descriptors)?;
        Ok(message.map_or(Received::Piece, Received::Message))
    }

    /// Descriptors did not fit: into what a message may carry, or into this process.
    fn why_truncated(&self) -> SessionEnd {
        match rustix::io::fcntl_dupfd_cloexec(&self.stream, 0) {
            Err(Errno::MFILE) => SessionEnd::OutOfDescriptors,
            _ => Malformed::TooManyDescriptors.into(),
        }
    }

    /// Sends a reply, or keeps it until the socket takes more.
    pub fn send(&mut self, request: RequestCode, reply: Reply) -> Result<(), SessionEnd> {
        let (bytes, descriptor) = reply.encode(request);
        if let Some(descriptor) = descriptor {
            let behind_bytes = self.unsent.len();
            let unsent = UnsentDescriptor {
                behind_bytes,
                descriptor,
            };
            if self.unsent_descriptor.replace(unsent).is_some() {
                return Err(SessionEnd::NotReading);
            }
        }
        self.unsent.extend_from_slice(&bytes);
        self.flush()?;
        if self.unsent.len() > MAX_UNSENT_BYTES {
            return Err(SessionEnd::NotReading);
        }
        Ok(())
    }

    /// Sends what is kept, as far as the socket takes it.
    pub fn flush(&mut self) -> Result<(), SessionEnd> {
        while !self.unsent.is_empty() {
            match self.send_some() {
                Ok(sent) => self.was_sent(sent),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(SessionEnd::Closed),
                Err(error) => return Err(SessionEnd::Socket(error.into())),
            }
        }
        Ok(())
    }

    /// Bytes up to the reply with a descriptor, or that with all that comes after it (unix(7): ancillary data forms a barrier).
    fn send_some(&self) -> Result<usize, Errno> {
        let mut bytes = self.unsent.as_slice();
        let mut beside = None;
        if let Some(unsent) = &self.unsent_descriptor {
            match unsent.behind_bytes {
                0 => beside = Some([unsent.descriptor.as_fd()]),
                before => bytes = bytes.get(..before).unwrap_or(bytes),
            }
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if let Some(descriptor) = &beside {
            control.push(SendAncillaryMessage::ScmRights(descriptor));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, flags)
    }

    fn was_sent(&mut self, bytes: usize) {
        self.unsent.drain(..bytes.min(self.unsent.len()));
        self.unsent_descriptor = self.unsent_descriptor.take().and_then(|unsent| {
            let behind_bytes = unsent.behind_bytes.checked_sub(bytes)?;
            // One that was first in line went with the first byte.
            (unsent.behind_bytes > 0).then_some(UnsentDescriptor {
                behind_bytes,
                ..unsent
            })
        });
    }

    /// Whether replies wait for the socket.
    pub fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Whether the other side has closed, even if bytes of it are still unread.
    pub fn is_dead(&self) -> bool {
        listener::is_hung_up(&self.stream)
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl AsRawFd for Session {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}
