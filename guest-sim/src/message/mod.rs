//! vhost-user messages without any opinion: any request code, any body, any descriptors.
//!
//! Used by [`Session`](crate::nic::Session) for what `vhost`'s `Frontend` refuses to send, and by tests that misbehave; on the test's
//! thread. Keeps true: what was asked for is what goes over the socket, byte for byte.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::driver::wait::Patience;
use crate::error::{Doing, Error};
use crate::nic::session::poll_socket;

/// Bytes of the header: request, flags, size.
pub const HEADER_BYTES: usize = 12;
/// Flags: version 1.
pub const VERSION: u32 = 1;
/// Flags: this is a reply.
pub const REPLY: u32 = 4;
/// Flags: a reply is wanted.
pub const NEED_REPLY: u32 = 8;
/// How long a message may wait for the back-end to read what came before.
const SEND_WITHIN: Duration = Duration::from_secs(20);
/// Longest body of a reply this reads.
const MAX_BODY_BYTES: usize = 4096;
/// The kernel passes at most this many descriptors in one message (SCM_MAX_FD).
pub const MAX_DESCRIPTORS: usize = 253;

/// A request of the front-end, by code and name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    code: u32,
    name: &'static str,
}

macro_rules! requests {
    ($($name:ident = $code:expr,)*) => {
        impl Request {
            $(#[doc = concat!("VHOST_USER_", stringify!($name), ".")]
            pub const $name: Self = Self { code: $code, name: stringify!($name) };)*

            /// Every request there is.
            pub const EVERY: &'static [Self] = &[$(Self::$name),*];
        }
    };
}

requests! {
    GET_FEATURES = 1,
    SET_FEATURES = 2,
    SET_OWNER = 3,
    RESET_OWNER = 4,
    SET_MEM_TABLE = 5,
    SET_LOG_BASE = 6,
    SET_LOG_FD = 7,
    SET_VRING_NUM = 8,
    SET_VRING_ADDR = 9,
    SET_VRING_BASE = 10,
    GET_VRING_BASE = 11,
    SET_VRING_KICK = 12,
    SET_VRING_CALL = 13,
    SET_VRING_ERR = 14,
    GET_PROTOCOL_FEATURES = 15,
    SET_PROTOCOL_FEATURES = 16,
    GET_QUEUE_NUM = 17,
    SET_VRING_ENABLE = 18,
    SEND_RARP = 19,
    NET_SET_MTU = 20,
    SET_BACKEND_REQ_FD = 21,
    IOTLB_MSG = 22,
    SET_VRING_ENDIAN = 23,
    GET_CONFIG = 24,
    SET_CONFIG = 25,
    CREATE_CRYPTO_SESSION = 26,
    CLOSE_CRYPTO_SESSION = 27,
    POSTCOPY_ADVISE = 28,
    POSTCOPY_LISTEN = 29,
    POSTCOPY_END = 30,
    GET_INFLIGHT_FD = 31,
    SET_INFLIGHT_FD = 32,
    GPU_SET_SOCKET = 33,
    RESET_DEVICE = 34,
    VRING_KICK = 35,
    GET_MAX_MEM_SLOTS = 36,
    ADD_MEM_REG = 37,
    REM_MEM_REG = 38,
    SET_STATUS = 39,
    GET_STATUS = 40,
    GET_SHARED_OBJECT = 41,
    SET_DEVICE_STATE_FD = 42,
    CHECK_DEVICE_STATE = 43,
}

impl Request {
    /// A request that does not exist, or whatever else.
    pub const fn other(code: u32) -> Self {
        Self {
            code,
            name: "(a made-up request)",
        }
    }

    /// Its number.
    pub const fn code(self) -> u32 {
        self.code
    }

    /// Its name without `VHOST_USER_`.
    pub const fn name(self) -> &'static str {
        self.name
    }
}

/// A message as it came.
#[derive(Debug)]
pub struct Message {
    /// Request code.
    pub request: u32,
    /// Header flags.
    pub flags: u32,
    /// Body.
    pub body: Vec<u8>,
    /// Descriptors.
    pub descriptors: Vec<OwnedFd>,
}

impl Message {
    fn is_reply_to(&self, request: Request) -> bool {
        self.request == request.code() && self.flags & 7 == VERSION | REPLY
    }

    /// That it is the reply to `request`, with this body.
    pub(crate) fn expect(&self, request: Request, body: &[u8]) -> Result<(), Error> {
        if self.is_reply_to(request) && self.body == body {
            return Ok(());
        }
        Err(self.unexpected(request))
    }

    fn unexpected(&self, request: Request) -> Error {
        let text = format!("{} answered by {self:?}", request.name());
        let source = io::Error::new(io::ErrorKind::InvalidData, text);
        Error::Io {
            doing: "reading a vhost-user reply",
            source,
        }
    }
}

/// The same error, of this request.
pub(crate) fn named(error: Error, request: Request) -> Error {
    let name = request.name();
    match error {
        Error::Disconnected { .. } => Error::Disconnected { request: name },
        Error::Timeout { within, .. } => Error::Timeout {
            waiting_for: name,
            within,
        },
        other => other,
    }
}

/// A front-end that sends whatever it is told to.
#[derive(Debug)]
pub struct RawFrontend {
    stream: UnixStream,
}

impl RawFrontend {
    /// Over a connected socket.
    pub fn new(stream: UnixStream) -> Self {
        // A back-end that reads no more must not hang the test. Fails for no valid socket and time.
        let _set = stream.set_write_timeout(Some(SEND_WITHIN));
        Self { stream }
    }

    /// The socket.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends a well-formed message that asks for no reply beyond the request's own.
    ///
    /// # Errors
    /// When the socket is closed.
    pub fn send(
        &mut self,
        request: Request,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), Error> {
        self.send_with(request, VERSION, body, descriptors)
    }

    /// Sends a well-formed message with NEED_REPLY.
    ///
    /// # Errors
    /// When the socket is closed.
    pub fn send_needing_reply(
        &mut self,
        request: Request,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), Error> {
        self.send_with(request, VERSION | NEED_REPLY, body, descriptors)
    }

    /// Sends a message with these header flags.
    ///
    /// # Errors
    /// When the socket is closed.
    pub fn send_with(
        &mut self,
        request: Request,
        flags: u32,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), Error> {
        let mut bytes = header(request, flags, body.len() as u32).to_vec();
        bytes.extend_from_slice(body);
        self.send_bytes(&bytes, descriptors)
            .map_err(|error| match error {
                Error::Disconnected { .. } => Error::Disconnected {
                    request: request.name(),
                },
                other => other,
            })
    }

    /// Sends these bytes as they are, with these descriptors beside the first of them.
    ///
    /// # Errors
    /// [`Error::Disconnected`] when the other end is gone.
    pub fn send_bytes(
        &mut self,
        bytes: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), Error> {
        let mut space =
            vec![MaybeUninit::uninit(); SendAncillaryMessage::ScmRights(descriptors).size() + 16];
        let mut rest = bytes;
        let mut first = true;
        while first || !rest.is_empty() {
            let mut control = SendAncillaryBuffer::new(&mut space);
            if first
                && !descriptors.is_empty()
                && !control.push(SendAncillaryMessage::ScmRights(descriptors))
            {
                return Err(Error::Options("no message carries that many descriptors"));
            }
            match sendmsg(
                &self.stream,
                &[IoSlice::new(rest)],
                &mut control,
                SendFlags::NOSIGNAL,
            ) {
                Ok(sent) => rest = &rest[sent..],
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::AGAIN) => {
                    let waiting_for = "the back-end to read its socket";
                    return Err(Error::Timeout {
                        waiting_for,
                        within: SEND_WITHIN,
                    });
                }
                Err(error) => return Err(disconnected(error, "(raw bytes)")),
            }
            first = false;
        }
        Ok(())
    }

    /// The next message.
    ///
    /// # Errors
    /// [`Error::Timeout`] when none comes, [`Error::Disconnected`] when the back-end hung up.
    pub fn receive(&mut self, within: Duration) -> Result<Message, Error> {
        let patience = Patience::of(within);
        let mut header = [0; HEADER_BYTES];
        let mut descriptors = Vec::new();
        self.receive_exactly(&mut header, &mut descriptors, patience)?;
        let word = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let (request, flags, size) = (word(0), word(4), word(8) as usize);
        if size > MAX_BODY_BYTES {
            let source = io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a body of {size} bytes announced"),
            );
            return Err(Error::Io {
                doing: "reading a vhost-user reply",
                source,
            });
        }
        let mut body = vec![0; size];
        self.receive_exactly(&mut body, &mut descriptors, patience)?;
        Ok(Message {
            request,
            flags,
            body,
            descriptors,
        })
    }

    /// The reply to `request`, a u64.
    ///
    /// # Errors
    /// As [`Self::receive`]; and when it is no reply to that, or no u64.
    pub fn receive_u64(&mut self, request: Request, within: Duration) -> Result<u64, Error> {
        let reply = self
            .receive(within)
            .map_err(|error| named(error, request))?;
        let value = <[u8; 8]>::try_from(reply.body.as_slice()).map(u64::from_le_bytes);
        match value {
            Ok(value) if reply.is_reply_to(request) => Ok(value),
            _ => Err(reply.unexpected(request)),
        }
    }

    /// Whether the back-end hangs up within `within`; whatever it sends before that is thrown away.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn is_closed(&mut self, within: Duration) -> Result<bool, Error> {
        let patience = Patience::of(within);
        loop {
            match self.receive_some(&mut [0; 1024], &mut Vec::new(), patience) {
                Ok(0) | Err(Error::Disconnected { .. }) => return Ok(true),
                Ok(_) => {}
                Err(Error::Timeout { .. }) => return Ok(false),
                Err(other) => return Err(other),
            }
        }
    }

    /// Closes both directions: a VMM that was killed.
    pub fn hang_up(&mut self) {
        // An error means that it is closed already.
        let _closed = self.stream.shutdown(Shutdown::Both);
    }

    fn receive_exactly(
        &mut self,
        bytes: &mut [u8],
        descriptors: &mut Vec<OwnedFd>,
        patience: Patience,
    ) -> Result<(), Error> {
        let mut done = 0;
        while done < bytes.len() {
            match self.receive_some(&mut bytes[done..], descriptors, patience)? {
                0 => return Err(Error::Disconnected { request: "(any)" }),
                some => done += some,
            }
        }
        Ok(())
    }

    fn receive_some(
        &mut self,
        bytes: &mut [u8],
        descriptors: &mut Vec<OwnedFd>,
        patience: Patience,
    ) -> Result<usize, Error> {
        if !poll_socket(&self.stream, patience)? {
            return Err(patience.timeout("a vhost-user message"));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let message = recvmsg(
            &self.stream,
            &mut [IoSliceMut::new(bytes)],
            &mut control,
            flags,
        )
        .map_err(|error| disconnected(error, "(any)"))?;
        for ancillary in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = ancillary {
                descriptors.extend(received);
            }
        }
        Ok(message.bytes)
    }
}

/// The 12 bytes of a header.
pub fn header(request: Request, flags: u32, size: u32) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..4].copy_from_slice(&request.code().to_le_bytes());
    bytes[4..8].copy_from_slice(&flags.to_le_bytes());
    bytes[8..].copy_from_slice(&size.to_le_bytes());
    bytes
}

fn disconnected(error: rustix::io::Errno, request: &'static str) -> Error {
    use rustix::io::Errno;
    match error {
        Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => Error::Disconnected { request },
        other => match Err::<(), _>(other).doing("using a vhost-user socket") {
            Err(error) => error,
            Ok(()) => Error::Disconnected { request },
        },
    }
}
