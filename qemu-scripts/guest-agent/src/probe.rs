//! Numbered round trips at a steady pace: for how long an answer failed to come, and how many never did.
//!
//! The prober measures with its own clock alone, so it does not matter that the other end's stands still meanwhile.

use std::io::{self, ErrorKind};
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use crate::jobs::{Body, STOP_CHECK_INTERVAL, Watch};
use crate::pattern::mix;
use crate::protocol::Outcome;
use crate::tcp::is_timeout;
use crate::udp::any_address;

/// Number, then what [`mix`] makes of it: little endian, eight bytes each.
const PROBE_BYTES: usize = 16;

/// Opens the socket; the job then sends every datagram back to where it came from, until stopped.
///
/// # Errors
/// The port is taken.
pub fn echo(port: u16) -> io::Result<Body> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| UdpSocket::bind(("0.0.0.0", port)))?;
    socket.set_read_timeout(Some(STOP_CHECK_INTERVAL))?;
    Ok(Box::new(move |watch| {
        let mut buffer = [0; 2048];
        let mut outcome = Outcome::default();
        while !watch.stop_requested() {
            match socket.recv_from(&mut buffer) {
                Ok((length, from)) => {
                    // An answer that cannot be sent is as lost as any other.
                    let _ = socket.send_to(buffer.get(..length).unwrap_or_default(), from);
                    outcome.frames += 1;
                    outcome.bytes += length as u64;
                    watch.set_count(outcome.frames);
                }
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(outcome)
    }))
}

/// Sends a probe every `interval_us` and takes the answers, until stopped.
///
/// # Errors
/// `interval_us` is 0.
pub fn probe(to: SocketAddr, interval_us: u32) -> io::Result<Body> {
    if interval_us == 0 {
        return Err(io::Error::new(
            ErrorKind::InvalidInput,
            "probes need some time between them",
        ));
    }
    let interval = Duration::from_micros(interval_us.into());
    Ok(Box::new(move |watch| {
        let socket = UdpSocket::bind(any_address(to))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(STOP_CHECK_INTERVAL))?;
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
        let mut probe = [0; PROBE_BYTES];
        let words = [number, mix(number)];
        for (to, from) in probe
            .iter_mut()
            .zip(words.iter().flat_map(|word| word.to_le_bytes()))
        {
            *to = from;
        }
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
                answers.take(buffer.get(..length).unwrap_or_default(), Instant::now());
                watch.set_count(answers.outcome.frames);
            }
            Err(error) if is_timeout(&error) => {
                if watch.stop_requested() {
                    return Ok(answers.outcome);
                }
            }
            // An ICMP error about an earlier probe, reported once: that one is lost.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
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
    fn take(&mut self, answer: &[u8], now: Instant) {
        let Some(number) = parse(answer) else {
            self.outcome.corrupt += 1;
            return;
        };
        // An answer out of order counts as lost: none of these paths reorders, and no list of numbers is kept for it.
        if number < self.next {
            self.outcome.reordered += 1;
            return;
        }
        self.next = number + 1;
        if let Some(last) = self.last {
            let gap = now.saturating_duration_since(last).as_secs_f64();
            self.outcome.seconds += gap;
            self.outcome.longest_gap_seconds = self.outcome.longest_gap_seconds.max(gap);
        }
        self.last = Some(now);
        self.outcome.frames += 1;
        self.outcome.bytes += PROBE_BYTES as u64;
    }
}

fn parse(answer: &[u8]) -> Option<u64> {
    let (number, check) = answer.split_first_chunk::<8>()?;
    let number = u64::from_le_bytes(*number);
    (check == mix(number).to_le_bytes()).then_some(number)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::jobs::Jobs;
    use crate::protocol::Job;

    fn answer(number: u64) -> Vec<u8> {
        [number.to_le_bytes(), mix(number).to_le_bytes()].concat()
    }

    #[test]
    fn every_probe_over_loopback_is_answered() {
        let jobs = Jobs::default();
        let port = UdpSocket::bind(("127.0.0.1", 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let echo = jobs.start(Job::UdpEcho { port }).unwrap();
        let to = (Ipv4Addr::LOCALHOST, port).into();
        let probe = jobs
            .start(Job::UdpProbe {
                to,
                interval_us: 500,
            })
            .unwrap();
        while jobs.poll(probe).unwrap().count < 50 {
            std::thread::yield_now();
        }
        jobs.stop(probe).unwrap();
        let seen = jobs.wait(probe).unwrap();
        assert_eq!((seen.frames, seen.corrupt), (seen.sent, 0));
        assert!(seen.sent >= 50 && seen.longest_gap_seconds > 0.0);
        jobs.stop(echo).unwrap();
        assert_eq!(jobs.wait(echo).unwrap().frames, seen.sent);
    }

    #[test]
    fn the_longest_gap_and_damage_are_seen() {
        let start = Instant::now();
        let mut answers = Answers::default();
        for (number, ms) in [(0, 5), (1, 6), (2, 7), (90, 95), (91, 97), (3, 98)] {
            answers.take(&answer(number), start + Duration::from_millis(ms));
        }
        let mut damaged = answer(92);
        damaged[3] ^= 1;
        answers.take(&damaged, start + Duration::from_millis(99));
        let outcome = answers.outcome;
        assert_eq!(
            (outcome.frames, outcome.reordered, outcome.corrupt),
            (5, 1, 1)
        );
        assert!((outcome.longest_gap_seconds - 0.088).abs() < 1e-9);
    }
}
