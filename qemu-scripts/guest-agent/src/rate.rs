//! The rate that a network lets through: one side offers more than that, the other counts what comes and how long it takes.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use crate::jobs::{Body, STOP_CHECK_INTERVAL};
use crate::protocol::Outcome;
use crate::tcp::{Timer, is_timeout};
use crate::udp::any_address;

/// How often what is due is sent.
const PACE_INTERVAL: Duration = Duration::from_millis(2);

/// A sender's speed limit, on average over its life.
#[derive(Debug)]
pub struct Pace {
    start: Instant,
    bytes_per_second: Option<u64>,
}

impl Pace {
    /// From now on, if there is a limit.
    #[must_use]
    pub fn of(bytes_per_second: Option<u64>) -> Self {
        Self {
            start: Instant::now(),
            bytes_per_second,
        }
    }

    /// Should `bytes` be under way by now? If not, waits a moment.
    #[must_use]
    pub fn allows(&self, bytes: u64) -> bool {
        let Some(limit) = self.bytes_per_second else {
            return true;
        };
        let allowed = bytes as f64 <= self.start.elapsed().as_secs_f64() * limit as f64;
        if !allowed {
            std::thread::sleep(PACE_INTERVAL);
        }
        allowed
    }
}

/// Sends datagrams of `payload_bytes` zeroes, `bytes_per_second` of them on average, until stopped. What could not be sent in time,
/// because nobody let this thread run, is sent later.
#[must_use]
pub fn pace(to: SocketAddr, payload_bytes: u16, bytes_per_second: u64) -> Body {
    Box::new(move |watch| {
        let socket = UdpSocket::bind(any_address(to))?;
        let datagram = vec![0; usize::from(payload_bytes)];
        let mut outcome = Outcome::default();
        let start = Instant::now();
        while !watch.stop_requested() {
            let due_bytes = start.elapsed().as_secs_f64() * bytes_per_second as f64;
            while (outcome.bytes as f64) < due_bytes && !watch.stop_requested() {
                // Refused, or no room: as lost as any other.
                let _ = socket.send_to(&datagram, to);
                outcome.frames += 1;
                outcome.bytes += u64::from(payload_bytes);
            }
            watch.set_count(outcome.bytes);
            std::thread::sleep(PACE_INTERVAL);
        }
        outcome.seconds = start.elapsed().as_secs_f64();
        Ok(outcome)
    })
}

/// Opens the socket; the job then lets `skip_bytes` go by, and says how many bytes came after these, `bytes` or a little more, and
/// how long they took: from the last datagram that was skipped to the last that was counted.
///
/// # Errors
/// The port is taken.
pub fn measure(port: u16, skip_bytes: u64, bytes: u64) -> io::Result<Body> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| UdpSocket::bind(("0.0.0.0", port)))?;
    socket.set_read_timeout(Some(STOP_CHECK_INTERVAL))?;
    Ok(Box::new(move |watch| {
        let mut buffer = vec![0; 65_536];
        let mut skipped_bytes = 0;
        let mut timer = Timer::default();
        let mut outcome = Outcome::default();
        while outcome.bytes < bytes && !watch.stop_requested() {
            let length = match socket.recv_from(&mut buffer) {
                Ok((length, _)) => length as u64,
                Err(error) if is_timeout(&error) => continue,
                Err(error) => return Err(error),
            };
            if skipped_bytes < skip_bytes {
                skipped_bytes += length;
                if skipped_bytes < skip_bytes {
                    continue;
                }
            } else {
                outcome.bytes += length;
                outcome.frames += 1;
            }
            timer.tick();
            watch.set_count(outcome.bytes);
        }
        outcome.seconds = timer.seconds();
        Ok(outcome)
    }))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::jobs::Jobs;
    use crate::protocol::Job;

    #[test]
    fn what_is_paced_is_measured_without_what_came_first() {
        let jobs = Jobs::default();
        let port = UdpSocket::bind(("127.0.0.1", 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let receiver = jobs
            .start(Job::UdpMeasure {
                port,
                skip_bytes: 10_000,
                bytes: 20_000,
            })
            .unwrap();
        let sender = jobs
            .start(Job::UdpPace {
                to: (Ipv4Addr::LOCALHOST, port).into(),
                payload_bytes: 1000,
                bytes_per_second: 1_000_000,
            })
            .unwrap();
        let received = jobs.wait(receiver).unwrap();
        jobs.stop(sender).unwrap();
        let sent = jobs.wait(sender).unwrap();
        assert_eq!((received.bytes, received.frames), (20_000, 20));
        assert!(received.seconds > 0.0 && sent.bytes >= 30_000);
    }
}
