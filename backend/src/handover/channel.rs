//! Messages between the old process and the new one: JSON, bytes that would be long as JSON, and descriptors.
//!
//! ```text
//!   8 bytes      8 bytes       4 bytes            JSON   bytes   one byte for every 200 descriptors, which come with it
//!   JSON length  bytes length  descriptors
//! ```

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Descriptors sent at once; the kernel takes 253 (unix(7): SCM_RIGHTS).
const DESCRIPTORS_AT_ONCE: usize = 200;
/// What a message may have at most: more is no message of ours.
const MAX_BYTES: u64 = 1 << 30;
/// Descriptors of a message at most: of every port its rings', memory's and sockets'.
const MAX_DESCRIPTORS: u32 = 1 << 20;

/// One end of the socket between both processes. Every call ends by the deadline.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    deadline: Instant,
}

/// A message as it came.
#[derive(Debug)]
pub struct Received<T> {
    /// What it says.
    pub message: T,
    /// Bytes beside it.
    pub bytes: Vec<u8>,
    /// Descriptors beside it.
    pub descriptors: Vec<OwnedFd>,
}

impl Channel {
    /// Two ends.
    ///
    /// # Errors
    /// As socketpair(2).
    pub fn pair(patience: Duration) -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok((Self::new(ours, patience), theirs.into()))
    }

    /// One end; calls end within `patience` from now.
    pub fn new(stream: UnixStream, patience: Duration) -> Self {
        Self {
            stream,
            deadline: Instant::now() + patience,
        }
    }

    /// Another deadline for the calls to come.
    pub fn set_patience(&mut self, patience: Duration) {
        self.deadline = Instant::now() + patience;
    }

    /// Sends a message alone.
    ///
    /// # Errors
    /// The other side is gone, or does not read in time.
    pub fn tell(&self, message: &impl Serialize) -> io::Result<()> {
        self.send(message, (&[], &[]))
    }

    /// Sends a message with what is beside it.
    ///
    /// # Errors
    /// As [`Self::tell`].
    pub fn send(
        &self,
        message: &impl Serialize,
        (bytes, descriptors): (&[u8], &[OwnedFd]),
    ) -> io::Result<()> {
        let json = serde_json::to_vec(message)?;
        let mut head = Vec::with_capacity(20 + json.len());
        head.extend((json.len() as u64).to_le_bytes());
        head.extend((bytes.len() as u64).to_le_bytes());
        head.extend((descriptors.len() as u32).to_le_bytes());
        head.extend(json);
        self.write(&head)?;
        self.write(bytes)?;
        for chunk in descriptors.chunks(DESCRIPTORS_AT_ONCE) {
            self.send_descriptors(chunk)?;
        }
        Ok(())
    }

    /// The next message. `None`: the other side is gone.
    ///
    /// # Errors
    /// It does not come in time, or is not one of ours.
    pub fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<Received<T>>> {
        let mut head = [0; 20];
        let (first, rest) = head.split_at_mut(1);
        if self.read(first)? == 0 {
            return Ok(None);
        }
        self.fill(rest)?;
        let [a @ .., _, _, _, _, _, _, _, _, _, _, _, _] = head;
        let [_, _, _, _, _, _, _, _, b @ .., _, _, _, _] = head;
        let [.., c0, c1, c2, c3] = head;
        let (json_bytes, more_bytes) = (u64::from_le_bytes(a), u64::from_le_bytes(b));
        let count = u32::from_le_bytes([c0, c1, c2, c3]);
        if json_bytes > MAX_BYTES || more_bytes > MAX_BYTES || count > MAX_DESCRIPTORS {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut json = vec![0; json_bytes as usize];
        self.fill(&mut json)?;
        let mut bytes = vec![0; more_bytes as usize];
        self.fill(&mut bytes)?;
        let mut descriptors = Vec::new();
        while descriptors.len() < count as usize {
            self.receive_descriptors(&mut descriptors)?;
        }
        Ok(Some(Received {
            message: serde_json::from_slice(&json)?,
            bytes,
            descriptors,
        }))
    }

    fn send_descriptors(&self, descriptors: &[OwnedFd]) -> io::Result<()> {
        let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_AT_ONCE))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        loop {
            self.arm()?;
            let flags = SendFlags::NOSIGNAL;
            match sendmsg(&self.stream, &[IoSlice::new(&[0])], &mut control, flags) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn receive_descriptors(&self, descriptors: &mut Vec<OwnedFd>) -> io::Result<()> {
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_AT_ONCE))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        self.arm()?;
        let received = recvmsg(
            &self.stream,
            &mut [IoSliceMut::new(&mut byte)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        );
        let received = match received {
            Err(Errno::INTR) => return Ok(()),
            other => other?,
        };
        let before = descriptors.len();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(came) = message {
                descriptors.extend(came);
            }
        }
        if received.bytes == 0
            || received.flags.contains(ReturnFlags::CTRUNC)
            || descriptors.len() == before
        {
            return Err(io::Error::other(
                "descriptors did not come: raise the limit of open descriptors (LimitNOFILE= of the service, or `ulimit -Hn`)",
            ));
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        // A call may take as long as is left; what it leaves undone is tried again with less.
        let mut left = bytes;
        while !left.is_empty() {
            self.arm()?;
            match (&self.stream).write(left) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => left = left.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn fill(&self, room: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while let Some(rest) = room.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.read(rest)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => filled += read,
            }
        }
        Ok(())
    }

    fn read(&self, room: &mut [u8]) -> io::Result<usize> {
        loop {
            self.arm()?;
            match (&self.stream).read(room) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    /// Lets the next call take as long as is left.
    fn arm(&self) -> io::Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.set_write_timeout(Some(left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_with_all_that_is_beside_them() {
        let (ours, theirs) = Channel::pair(Duration::from_secs(10)).unwrap();
        let theirs = Channel::new(theirs.into(), Duration::from_secs(10));
        let sender = std::thread::spawn(move || {
            for count in [0usize, 1, 199, 200, 201, 650] {
                let descriptors: Vec<OwnedFd> = (0..count)
                    .map(|_| rustix::pipe::pipe().unwrap().0)
                    .collect();
                let bytes = vec![count as u8; 3000 * count];
                ours.send(&count, (&bytes, &descriptors)).unwrap();
            }
        });
        for count in [0usize, 1, 199, 200, 201, 650] {
            let received = theirs.receive::<usize>().unwrap().unwrap();
            assert_eq!(received.message, count);
            assert_eq!(received.bytes, vec![count as u8; 3000 * count]);
            assert_eq!(received.descriptors.len(), count);
        }
        sender.join().unwrap();
        assert!(theirs.receive::<usize>().unwrap().is_none());
    }

    #[test]
    fn a_side_that_says_nothing_is_not_waited_for_longer_than_that() {
        let (ours, theirs) = Channel::pair(Duration::from_millis(30)).unwrap();
        let refused = ours.receive::<usize>().unwrap_err();
        let timed_out = [io::ErrorKind::TimedOut, io::ErrorKind::WouldBlock];
        assert!(timed_out.contains(&refused.kind()), "{refused}");
        drop(theirs);
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let (ours, theirs) = Channel::pair(Duration::from_secs(10)).unwrap();
        let mut theirs = UnixStream::from(theirs);
        theirs.write_all(&[0xff; 20]).unwrap();
        assert!(ours.receive::<usize>().is_err());
    }
}
