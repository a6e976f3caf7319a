//! Bulk UDP: numbered datagrams, each filled with a pattern of its own number, so that loss, doubling, re-ordering and
//! damage are told apart.
//!
//! The receiver grants credit, so a sender never has more than [`WINDOW`] datagrams under way: what is lost was lost
//! by the network, not because one emulated CPU outran another.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use rustix::net::sockopt;

use crate::jobs::{Body, STOP_CHECK_INTERVAL, Watch};
use crate::pattern::{Pattern, mix};
use crate::protocol::Outcome;
use crate::tcp::{Timer, is_timeout};

/// Number, then a checksum over number, length and seed: little endian, eight bytes each.
pub const HEADER_BYTES: u16 = 16;
/// Datagrams under way at most.
pub const WINDOW: u64 = 32;
/// The receiver grants credit after so many.
const CREDIT_EVERY: u64 = 8;
/// Without credit for this long, what is under way is given up for lost and the next window is sent.
const CREDIT_PATIENCE: Duration = Duration::from_millis(500);
/// Numbers at or above this are taken for damage: 16 MiB of bitmap.
const DATAGRAMS_MAX: u64 = 1 << 27;

/// Opens the socket; the job then checks datagrams until it is stopped and nothing more comes.
///
/// # Errors
/// The port is taken.
pub fn receive(port: u16, seed: u64) -> io::Result<Body> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| UdpSocket::bind(("0.0.0.0", port)))?;
    // Room for the whole window whatever the datagrams' size. Only root may exceed the system's limit.
    let room_bytes = 4 << 20;
    sockopt::set_socket_recv_buffer_size_force(&socket, room_bytes)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, room_bytes))?;
    socket.set_read_timeout(Some(STOP_CHECK_INTERVAL))?;
    Ok(Box::new(move |watch| {
        Receiver::new(seed).run(&socket, watch)
    }))
}

struct Receiver {
    seed: u64,
    seen: Vec<u64>,
    highest: Option<u64>,
    outcome: Outcome,
    expected: Vec<u8>,
}

impl Receiver {
    fn new(seed: u64) -> Self {
        Self {
            seed,
            seen: Vec::new(),
            highest: None,
            outcome: Outcome::default(),
            expected: Vec::new(),
        }
    }

    fn run(mut self, socket: &UdpSocket, watch: &Watch) -> io::Result<Outcome> {
        let mut buffer = vec![0; 65_536];
        let mut timer = Timer::default();
        loop {
            match socket.recv_from(&mut buffer) {
                Ok((length, from)) => {
                    timer.tick();
                    self.take(buffer.get(..length).unwrap_or_default());
                    watch.set_count(self.outcome.bytes);
                    let arrived =
                        self.outcome.frames + self.outcome.corrupt + self.outcome.duplicates;
                    if arrived.is_multiple_of(CREDIT_EVERY) {
                        let next = self.highest.map_or(0, |highest| highest + 1);
                        // Lost credit is made up for by the next, or by the sender's patience.
                        let _ = socket.send_to(&next.to_le_bytes(), from);
                    }
                }
                Err(error) if is_timeout(&error) => {
                    if watch.stop_requested() {
                        self.outcome.seconds = timer.seconds();
                        return Ok(self.outcome);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn take(&mut self, datagram: &[u8]) {
        let Some(number) = parse(datagram, self.seed) else {
            self.outcome.corrupt += 1;
            return;
        };
        let payload = datagram
            .get(usize::from(HEADER_BYTES)..)
            .unwrap_or_default();
        if Pattern::new(self.seed ^ mix(number))
            .check(payload, &mut self.expected)
            .is_err()
        {
            self.outcome.corrupt += 1;
            return;
        }
        let (index, bit) = ((number / 64) as usize, 1_u64 << (number % 64));
        if self.seen.len() <= index {
            self.seen.resize(index + 1, 0);
        }
        if let Some(word) = self.seen.get_mut(index) {
            if *word & bit != 0 {
                self.outcome.duplicates += 1;
                return;
            }
            *word |= bit;
        }
        if self.highest.is_some_and(|highest| number < highest) {
            self.outcome.reordered += 1;
        }
        self.highest = self.highest.max(Some(number));
        self.outcome.frames += 1;
        self.outcome.bytes += datagram.len() as u64;
    }
}

/// The number, when the header is whole and right.
fn parse(datagram: &[u8], seed: u64) -> Option<u64> {
    let number = u64::from_le_bytes(datagram.get(..8)?.try_into().ok()?);
    let sum = u64::from_le_bytes(datagram.get(8..16)?.try_into().ok()?);
    (sum == header_sum(number, datagram.len(), seed) && number < DATAGRAMS_MAX).then_some(number)
}

fn header_sum(number: u64, datagram_bytes: usize, seed: u64) -> u64 {
    mix(mix(seed ^ number).wrapping_add(datagram_bytes as u64))
}

/// Sends `datagrams`, or until stopped.
///
/// # Errors
/// `payload_bytes` leaves no room for the header.
pub fn send(
    to: SocketAddr,
    seed: u64,
    datagrams: Option<u64>,
    payload_bytes: u16,
) -> io::Result<Body> {
    if payload_bytes < HEADER_BYTES {
        return Err(io::Error::new(
            ErrorKind::InvalidInput,
            format!("a datagram takes at least {HEADER_BYTES} bytes"),
        ));
    }
    Ok(Box::new(move |watch| {
        let socket = UdpSocket::bind(any_address(to))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(CREDIT_PATIENCE))?;
        let mut datagram = vec![0; usize::from(payload_bytes)];
        let mut credited = 0;
        let mut timer = Timer::default();
        let mut outcome = Outcome::default();
        while outcome.frames < datagrams.unwrap_or(u64::MAX) && !watch.stop_requested() {
            let number = outcome.frames;
            if number >= credited + WINDOW {
                credited = await_credit(&socket, credited).unwrap_or(number);
                continue;
            }
            compose(&mut datagram, number, seed);
            timer.tick();
            match socket.send(&datagram) {
                Ok(_) => {}
                // Nobody listens, no way there, no room: to the other end all of them are loss.
                Err(error) if error.kind() != ErrorKind::InvalidInput => {}
                Err(error) => return Err(error),
            }
            outcome.frames += 1;
            outcome.bytes += u64::from(payload_bytes);
            watch.set_count(outcome.bytes);
        }
        outcome.seconds = timer.seconds();
        Ok(outcome)
    }))
}

fn compose(datagram: &mut [u8], number: u64, seed: u64) {
    let sum = header_sum(number, datagram.len(), seed);
    let (header, payload) = datagram.split_at_mut(usize::from(HEADER_BYTES));
    for (to, from) in header
        .iter_mut()
        .zip(number.to_le_bytes().into_iter().chain(sum.to_le_bytes()))
    {
        *to = from;
    }
    Pattern::new(seed ^ mix(number)).fill(payload);
}

/// The number the receiver expects next; nothing when it stays silent.
fn await_credit(socket: &UdpSocket, credited: u64) -> Option<u64> {
    let mut credit = [0; 8];
    loop {
        match socket.recv(&mut credit) {
            Ok(8) => {
                let next = u64::from_le_bytes(credit);
                if next > credited {
                    return Some(next);
                }
            }
            Ok(_) => {}
            Err(error) if is_timeout(&error) => return None,
            Err(_) => {} // an ICMP error for an earlier datagram; reported once, then cleared
        }
    }
}

/// Sends the same text again and again, expecting nothing.
#[must_use]
pub fn shout(to: SocketAddr, text: String, datagrams: u32) -> Body {
    Box::new(move |_| {
        let socket = UdpSocket::bind(any_address(to))?;
        socket.set_broadcast(true)?;
        let mut outcome = Outcome::default();
        for _ in 0..datagrams {
            outcome.bytes += socket.send_to(text.as_bytes(), to)? as u64;
            outcome.frames += 1;
        }
        Ok(outcome)
    })
}

pub(crate) fn any_address(like: SocketAddr) -> SocketAddr {
    match like {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::Jobs;
    use crate::protocol::Job;

    fn datagram(number: u64, seed: u64) -> Vec<u8> {
        let mut datagram = vec![0; 100];
        compose(&mut datagram, number, seed);
        datagram
    }

    #[test]
    fn datagrams_over_loopback_all_arrive_in_order() {
        let jobs = Jobs::default();
        let port = UdpSocket::bind(("127.0.0.1", 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let receiver = jobs.start(Job::UdpReceive { port, seed: 9 }).unwrap();
        let to = (Ipv4Addr::LOCALHOST, port).into();
        let sender = jobs
            .start(Job::UdpSend {
                to,
                seed: 9,
                datagrams: Some(1000),
                payload_bytes: 1400,
            })
            .unwrap();
        assert_eq!(jobs.wait(sender).unwrap().frames, 1000);
        jobs.stop(receiver).unwrap();
        let received = jobs.wait(receiver).unwrap();
        assert_eq!(
            (
                received.frames,
                received.corrupt,
                received.reordered,
                received.duplicates
            ),
            (1000, 0, 0, 0)
        );
    }

    #[test]
    fn damage_doubling_and_reordering_are_told_apart() {
        let mut receiver = Receiver::new(4);
        for number in [0, 2, 1, 2, 5] {
            receiver.take(&datagram(number, 4));
        }
        let mut damaged = datagram(6, 4);
        damaged[50] ^= 1;
        receiver.take(&damaged);
        receiver.take(&datagram(7, 3));
        receiver.take(b"short");
        let outcome = receiver.outcome;
        assert_eq!(
            (
                outcome.frames,
                outcome.reordered,
                outcome.duplicates,
                outcome.corrupt
            ),
            (4, 1, 1, 3)
        );
    }
}
