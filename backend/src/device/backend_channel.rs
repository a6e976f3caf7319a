//! The socket on which the back-end asks and the front-end answers (vhost-user: Back-end communication).
//!
//! One kind of question is asked: what an I/O address stands for (VHOST_USER_BACKEND_IOTLB_MSG). The attachment owns the channel and serves
//! it on the device thread when it is ready. Kept true: nothing here blocks; only so many questions are under way, so what a
//! front-end does not read is bounded.

use super::descriptors::BackendSocket;
use crate::handover::descriptors::{Incoming, Outgoing, Slot};
use crate::ring::{Access, Iotlb, Miss};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

/// Questions without an answer. What else is to be asked waits.
const MAX_UNDER_WAY: usize = 256;
/// Answers read per wake-up; other ports wait.
const ANSWERS_PER_WAKEUP: usize = 256;

/// VHOST_USER_BACKEND_IOTLB_MSG.
const IOTLB_MSG: u32 = 1;
/// Version 1, and an answer is wanted.
const QUESTION_FLAGS: u32 = 0x1 | 0x8;
/// Version 1, and this is one.
const ANSWER_FLAGS: u32 = 0x1 | 0x4;
/// vhost_iotlb_msg.type: a miss.
const MISS: u8 = 1;
/// Header and u64.
const ANSWER_BYTES: usize = 20;

/// Why a channel is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum ChannelEnd {
    /// An orderly close.
    #[error("the front-end closed its channel for requests of the back-end")]
    Closed,
    /// Not the answer to what was asked.
    #[error("the front-end answered something else than it was asked")]
    Malformed,
    /// A socket error.
    #[error("the channel for requests of the back-end failed: {0}")]
    Socket(#[from] io::Error),
}

/// A connected channel.
#[derive(Debug)]
pub struct BackendChannel {
    socket: BackendSocket,
    under_way: VecDeque<Miss>,
    unsent: Vec<u8>,
    answer: [u8; ANSWER_BYTES],
    filled: usize,
}

/// A channel on its way to another process.
#[derive(Debug, Serialize, Deserialize)]
pub struct HandedChannel {
    socket: Slot,
    /// Questions whose answers are still to come, and mean nothing any more.
    under_way: Vec<Miss>,
    unsent: Vec<u8>,
    /// What came of the next answer.
    answer: Vec<u8>,
}

impl BackendChannel {
    /// The channel as it is, and its descriptor once more.
    ///
    /// # Errors
    /// No descriptor can be had.
    pub fn hand_over(&self, descriptors: &mut Outgoing) -> io::Result<Option<HandedChannel>> {
        let Some(socket) = self.socket.get() else {
            return Ok(None);
        };
        Ok(Some(HandedChannel {
            socket: descriptors.add(socket.try_clone_to_owned()?),
            under_way: self.under_way.iter().copied().collect(),
            unsent: self.unsent.clone(),
            answer: self.answer.get(..self.filled).unwrap_or_default().to_vec(),
        }))
    }

    /// The channel that was handed over.
    ///
    /// # Errors
    /// Its descriptor did not come.
    pub fn adopt(handed: HandedChannel, descriptors: &mut Incoming) -> io::Result<Self> {
        let mut channel = Self::new(BackendSocket::new(descriptors.take(handed.socket)?));
        let under_way = handed.under_way.into_iter().map(Miss::forgotten);
        channel.under_way = under_way.take(MAX_UNDER_WAY).collect();
        channel.unsent = handed.unsent;
        if let Some(room) = channel.answer.get_mut(..handed.answer.len()) {
            room.copy_from_slice(&handed.answer);
            channel.filled = handed.answer.len();
        }
        Ok(channel)
    }

    /// Nothing asked yet.
    pub fn new(socket: BackendSocket) -> Self {
        Self {
            socket,
            under_way: VecDeque::new(),
            unsent: Vec::new(),
            answer: [0; ANSWER_BYTES],
            filled: 0,
        }
    }

    /// Sends what is to be asked, as far as the socket takes it and answers are not too many behind.
    ///
    /// # Errors
    /// The channel is of no use any more.
    pub fn ask(&mut self, iotlb: &Iotlb) -> Result<(), ChannelEnd> {
        while self.under_way.len() < MAX_UNDER_WAY
            && let Some(miss) = iotlb.next_miss()
        {
            self.unsent.extend(question(miss));
            self.under_way.push_back(miss);
        }
        if self.under_way.len() == MAX_UNDER_WAY {
            // The next answer is what the rest waits for.
            iotlb.silence();
        }
        let socket = self.socket.get().ok_or(ChannelEnd::Closed)?;
        while !self.unsent.is_empty() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match send(socket, &self.unsent, flags) {
                Ok(sent) => drop(self.unsent.drain(..sent.min(self.unsent.len()))),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(ChannelEnd::Closed),
                Err(error) => return Err(ChannelEnd::Socket(error.into())),
            }
        }
        Ok(())
    }

    /// Hands on the answers that came; how many.
    ///
    /// # Errors
    /// The channel is of no use any more.
    pub fn hear(&mut self, iotlb: &Iotlb) -> Result<usize, ChannelEnd> {
        for heard in 0..ANSWERS_PER_WAKEUP {
            if !self.read_answer()? {
                return Ok(heard);
            }
            let miss = self.under_way.pop_front().ok_or(ChannelEnd::Malformed)?;
            iotlb.answered(miss, self.answered_value()? == 0);
        }
        Ok(ANSWERS_PER_WAKEUP)
    }

    /// Whether a whole answer is there.
    fn read_answer(&mut self) -> Result<bool, ChannelEnd> {
        if self.filled == ANSWER_BYTES {
            self.filled = 0;
        }
        let socket = self.socket.get().ok_or(ChannelEnd::Closed)?;
        while let Some(room @ [_, ..]) = self.answer.get_mut(self.filled..) {
            match recv(socket, room, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Err(ChannelEnd::Closed),
                Ok((bytes, _)) => self.filled += bytes,
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Err(ChannelEnd::Closed),
                Err(error) => return Err(ChannelEnd::Socket(error.into())),
            }
        }
        Ok(true)
    }

    fn answered_value(&self) -> Result<u64, ChannelEnd> {
        let (head, body) = self.answer.split_at(12);
        let expected = [IOTLB_MSG, ANSWER_FLAGS, 8].map(u32::to_ne_bytes);
        if head != expected.as_flattened() {
            return Err(ChannelEnd::Malformed);
        }
        let body = body.try_into().map_err(|_| ChannelEnd::Malformed)?;
        Ok(u64::from_ne_bytes(body))
    }

    /// What is to be watched, and whether questions wait for room there.
    pub fn watched(&self) -> Option<(BorrowedFd<'_>, bool)> {
        Some((self.socket.get()?, !self.unsent.is_empty()))
    }
}

/// A whole message (vhost-user: IOTLB message; `struct vhost_iotlb_msg` is padded to 32 bytes).
fn question(miss: Miss) -> Vec<u8> {
    let permission: u8 = match miss.access {
        Access::Read => 1,
        Access::Write => 2,
    };
    let header = [IOTLB_MSG, QUESTION_FLAGS, 32].map(u32::to_ne_bytes);
    let last = u64::from_ne_bytes([permission, MISS, 0, 0, 0, 0, 0, 0]);
    let body = [miss.iova, 0, 0, last].map(u64::to_ne_bytes);
    [header.as_flattened(), body.as_flattened()].concat()
}
