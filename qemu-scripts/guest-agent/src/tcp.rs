//! Bulk TCP: one connection carries the pattern, the receiver checks every byte of it.
//!
//! Both ends outlast a network that is away for minutes: no time-out but TCP's own ends a transfer.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::jobs::{Body, STOP_CHECK_INTERVAL, Watch};
use crate::pattern::Pattern;
use crate::protocol::Outcome;
use crate::rate::Pace;

const BLOCK_BYTES: usize = 64 * 1024;

/// Opens the listening socket; the job then accepts one connection and reads it to its end.
///
/// # Errors
/// The port is taken.
pub fn receive(port: u16, seed: u64) -> io::Result<Body> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| TcpListener::bind(("0.0.0.0", port)))?;
    Ok(Box::new(move |watch| {
        let Some(stream) = accept(&listener, watch)? else {
            return Ok(Outcome::default());
        };
        let peer = stream.peer_addr().ok();
        let outcome = receive_stream(stream, seed, watch)?;
        Ok(Outcome { peer, ..outcome })
    }))
}

/// One connection, or nothing when the job is stopped first.
fn accept(listener: &TcpListener, watch: &Watch) -> io::Result<Option<TcpStream>> {
    while !watch.stop_requested() {
        let mut ready = [PollFd::new(listener, PollFlags::IN)];
        if poll(&mut ready, Some(&stop_check_timespec()))? > 0 {
            return listener.accept().map(|(stream, _)| Some(stream));
        }
    }
    Ok(None)
}

fn receive_stream(mut stream: TcpStream, seed: u64, watch: &Watch) -> io::Result<Outcome> {
    stream.set_read_timeout(Some(STOP_CHECK_INTERVAL))?;
    let mut pattern = Pattern::new(seed);
    let mut buffer = vec![0; BLOCK_BYTES];
    let mut expected = Vec::with_capacity(BLOCK_BYTES);
    let mut timer = Timer::default();
    while !watch.stop_requested() {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => {
                let received = buffer.get(..read).unwrap_or_default();
                pattern.check(received, &mut expected).map_err(|offset| {
                    io::Error::new(
                        ErrorKind::InvalidData,
                        format!("byte {offset} of the stream is wrong"),
                    )
                })?;
                timer.tick();
                watch.set_count(pattern.offset_bytes());
            }
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Outcome {
        bytes: pattern.offset_bytes(),
        seconds: timer.seconds(),
        ..Outcome::default()
    })
}

/// Sends `bytes` of the pattern, or until stopped, and waits until the peer has it all.
#[must_use]
pub fn send(to: SocketAddr, seed: u64, bytes: Option<u64>, pace: Pace) -> Body {
    Box::new(move |watch| {
        let mut stream = TcpStream::connect(to)?;
        stream.set_write_timeout(Some(STOP_CHECK_INTERVAL))?;
        let mut pattern = Pattern::new(seed);
        let mut buffer = vec![0; BLOCK_BYTES];
        let mut timer = Timer::default();
        timer.tick();
        while !watch.stop_requested() {
            if !pace.allows(pattern.offset_bytes()) {
                continue;
            }
            let left = bytes.map_or(u64::MAX, |bytes| {
                bytes.saturating_sub(pattern.offset_bytes())
            });
            if left == 0 {
                break;
            }
            let block_bytes = usize::try_from(left).unwrap_or(usize::MAX).min(BLOCK_BYTES);
            let block = buffer.get_mut(..block_bytes).unwrap_or_default();
            pattern.fill(block);
            let written = match stream.write(block) {
                Ok(written) => written,
                Err(error) if is_timeout(&error) => 0,
                Err(error) => return Err(error),
            };
            pattern.rewind((block_bytes - written) as u64);
            watch.set_count(pattern.offset_bytes());
        }
        // The peer closes once it has read everything: only then has the transfer ended.
        stream.shutdown(Shutdown::Write)?;
        stream.set_read_timeout(None)?;
        let _ = stream.read(&mut [0])?;
        timer.tick();
        Ok(Outcome {
            bytes: pattern.offset_bytes(),
            seconds: timer.seconds(),
            ..Outcome::default()
        })
    })
}

/// From the first tick to the last.
#[derive(Debug, Default)]
pub struct Timer {
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Timer {
    /// Something was transferred now.
    pub fn tick(&mut self) {
        let now = Instant::now();
        self.first.get_or_insert(now);
        self.last = Some(now);
    }

    /// Seconds between the first tick and the last.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        match (self.first, self.last) {
            (Some(first), Some(last)) => (last - first).as_secs_f64(),
            _ => 0.0,
        }
    }
}

pub(crate) fn stop_check_timespec() -> Timespec {
    let interval: Duration = STOP_CHECK_INTERVAL;
    Timespec {
        tv_sec: 0,
        tv_nsec: i64::from(interval.subsec_nanos()),
    }
}

pub(crate) fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::jobs::Jobs;
    use crate::protocol::Job;

    fn free_port() -> u16 {
        TcpListener::bind(("127.0.0.1", 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port()
    }

    #[test]
    fn a_transfer_arrives_whole_and_checked() {
        let (jobs, port) = (Jobs::default(), free_port());
        let receiver = jobs.start(Job::TcpReceive { port, seed: 5 }).unwrap();
        let to = (Ipv4Addr::LOCALHOST, port).into();
        let sender = jobs
            .start(Job::TcpSend {
                to,
                seed: 5,
                bytes: Some(1_000_001),
                bytes_per_second: None,
            })
            .unwrap();
        let received = jobs.wait(receiver).unwrap();
        assert_eq!(received.bytes, 1_000_001);
        assert!(received.peer.is_some_and(|peer| peer.port() != port));
        assert_eq!(jobs.wait(sender).unwrap().bytes, 1_000_001);
    }

    #[test]
    fn a_wrong_byte_fails_the_receiver() {
        let (jobs, port) = (Jobs::default(), free_port());
        let receiver = jobs.start(Job::TcpReceive { port, seed: 5 }).unwrap();
        let mut bytes = vec![0; 100];
        Pattern::new(5).fill(&mut bytes);
        bytes[42] ^= 0x80;
        TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .unwrap()
            .write_all(&bytes)
            .unwrap();
        assert_eq!(
            jobs.wait(receiver).unwrap_err(),
            "byte 42 of the stream is wrong"
        );
    }

    #[test]
    fn a_sender_without_end_stops_when_told_and_loses_nothing() {
        let (jobs, port) = (Jobs::default(), free_port());
        let receiver = jobs.start(Job::TcpReceive { port, seed: 5 }).unwrap();
        let to = (Ipv4Addr::LOCALHOST, port).into();
        let sender = jobs
            .start(Job::TcpSend {
                to,
                seed: 5,
                bytes: None,
                bytes_per_second: None,
            })
            .unwrap();
        while jobs.poll(receiver).unwrap().count == 0 {
            std::thread::yield_now();
        }
        jobs.stop(sender).unwrap();
        assert_eq!(
            jobs.wait(sender).unwrap().bytes,
            jobs.wait(receiver).unwrap().bytes
        );
    }
}
