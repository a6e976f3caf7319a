//! Numbered pings at a steady pace: for how long an answer failed to come, and how many never did.
//!
//! The prober measures with its own clock alone, so it does not matter that the other end's stands still meanwhile. It is the other
//! end's kernel that answers, as soon as it has the frame: no program has to be woken there.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType, ipproto};

use crate::jobs::{Body, STOP_CHECK_INTERVAL, Watch};
use crate::pattern::mix;
use crate::protocol::Outcome;
use crate::tcp::is_timeout;

/// An echo request (RFC 792); the kernel adds checksum and identifier, and hands out answers to these alone.
const HEADER: [u8; 8] = [8, 0, 0, 0, 0, 0, 0, 0];
/// Number, then what [`mix`] makes of it: little endian, eight bytes each.
const PAYLOAD_BYTES: usize = 16;

/// Opens the socket; the job then sends a ping every `interval_us` and takes the answers, until stopped.
///
/// # Errors
/// `interval_us` is 0, or `net.ipv4.ping_group_range` leaves us out.
pub fn probe(to: Ipv4Addr, interval_us: u32) -> io::Result<Body> {
    if interval_us == 0 {
        return Err(io::Error::new(
            ErrorKind::InvalidInput,
            "probes need some time between them",
        ));
    }
    let interval = Duration::from_micros(interval_us.into());
    // One that sends and receives as any datagram socket does.
    let socket = UdpSocket::from(rustix::net::socket(
        AddressFamily::INET,
        SocketType::DGRAM,
        Some(ipproto::ICMP),
    )?);
    socket.connect((to, 0))?;
    socket.set_read_timeout(Some(STOP_CHECK_INTERVAL))?;
    Ok(Box::new(move |watch| {
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| send(&socket, interval, watch));
            let mut outcome = receive(&socket, watch)?;
            outcome.sent = sender.join().unwrap_or_default();
            Ok(outcome)
        })
    }))
}

/// Sends until stopped, and says how many. Probes that fell due while this thread did not run are left out, not sent in a burst.
fn send(socket: &UdpSocket, interval: Duration, watch: &Watch) -> u64 {
    let mut number = 0_u64;
    let mut due = Instant::now();
    while !watch.stop_requested() {
        let probe = [HEADER, number.to_le_bytes(), mix(number).to_le_bytes()].concat();
        // No way there, no room: lost.
        let _ = socket.send(&probe);
        number += 1;
        due = (due + interval).max(Instant::now());
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    number
}

/// Takes answers until stopped and nothing more comes.
fn receive(socket: &UdpSocket, watch: &Watch) -> io::Result<Outcome> {
    let mut answers = Answers::default();
    let mut buffer = [0; 2048];
    loop {
        match socket.recv(&mut buffer) {
            Ok(length) => {
                let answer = buffer.get(..length).unwrap_or_default();
                if let Some(gap) = answers.take(answer, Instant::now()) {
                    watch.note_gap(gap);
                }
                watch.set_count(answers.outcome.frames);
            }
            Err(error) if is_timeout(&error) => {
                if watch.stop_requested() {
                    return Ok(answers.outcome);
                }
            }
            // Nobody answers at that address right now: those are lost.
            Err(error) if error.kind() == ErrorKind::HostUnreachable => {}
            Err(error) => return Err(error),
        }
    }
}

#[derive(Default)]
struct Answers {
    next: u64,
    last: Option<Instant>,
    outcome: Outcome,
}

impl Answers {
    /// The time since the answer before it, if it is one and there was one.
    fn take(&mut self, answer: &[u8], now: Instant) -> Option<Duration> {
        let Some(number) = parse(answer) else {
            self.outcome.corrupt += 1;
            return None;
        };
        // An answer out of order counts as lost: none of these paths reorders, and no list of numbers is kept for it.
        if number < self.next {
            self.outcome.reordered += 1;
            return None;
        }
        self.next = number + 1;
        let gap = self.last.map(|last| now.saturating_duration_since(last));
        if let Some(gap) = gap.map(|gap| gap.as_secs_f64()) {
            self.outcome.seconds += gap;
            self.outcome.longest_gap_seconds = self.outcome.longest_gap_seconds.max(gap);
        }
        self.last = Some(now);
        self.outcome.frames += 1;
        self.outcome.bytes += PAYLOAD_BYTES as u64;
        gap
    }
}

fn parse(answer: &[u8]) -> Option<u64> {
    let (number, check) = answer.get(HEADER.len()..)?.split_first_chunk::<8>()?;
    let number = u64::from_le_bytes(*number);
    (check == mix(number).to_le_bytes()).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::Jobs;
    use crate::protocol::Job;

    fn answer(number: u64) -> Vec<u8> {
        let header = [0, 0, 7, 7, 1, 2, 0, 0];
        [header, number.to_le_bytes(), mix(number).to_le_bytes()].concat()
    }

    #[test]
    fn every_ping_over_loopback_is_answered() {
        let jobs = Jobs::default();
        let to = Ipv4Addr::LOCALHOST;
        let interval_us = 500;
        let probe = match jobs.start(Job::Probe { to, interval_us }) {
            Ok(probe) => probe,
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                eprintln!("skipped: net.ipv4.ping_group_range leaves us out");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let mut longest_gap_us = 0;
        loop {
            let progress = jobs.poll(probe).unwrap();
            longest_gap_us = progress.longest_gap_us.max(longest_gap_us);
            if progress.count >= 50 {
                break;
            }
            std::thread::yield_now();
        }
        jobs.stop(probe).unwrap();
        let seen = jobs.wait(probe).unwrap();
        assert_eq!((seen.frames, seen.corrupt), (seen.sent, 0));
        assert!(seen.sent >= 50 && seen.longest_gap_seconds > 0.0);
        // At least what 50 answers to pings 500 us apart take on average.
        assert!(longest_gap_us >= 400);
    }

    #[test]
    fn the_longest_gap_and_damage_are_seen() {
        let start = Instant::now();
        let mut answers = Answers::default();
        for (number, ms) in [(0, 5), (1, 6), (2, 7), (90, 95), (91, 97), (3, 98)] {
            let gap = answers.take(&answer(number), start + Duration::from_millis(ms));
            assert_eq!(gap.is_some(), ![0, 3].contains(&number), "{number}");
        }
        let mut damaged = answer(92);
        damaged[11] ^= 1;
        answers.take(&damaged, start + Duration::from_millis(99));
        let outcome = answers.outcome;
        assert_eq!(
            (outcome.frames, outcome.reordered, outcome.corrupt),
            (5, 1, 1)
        );
        assert!((outcome.longest_gap_seconds - 0.088).abs() < 1e-9);
    }
}
