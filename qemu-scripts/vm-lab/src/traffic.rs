//! Traffic between two agents, verified where it arrives.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use guest_agent::protocol::{Job, Outcome};

use crate::agent::{Agent, RunningJob};
use crate::await_::{PATIENCE, eventually};
use crate::{Error, Result};

/// What a series of pings showed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PingReport {
    /// Echo requests sent.
    pub sent: u32,
    /// Echo replies that came.
    pub received: u32,
    /// Mean round trip, in microseconds.
    pub average_us: f64,
}

impl PingReport {
    /// Share of requests without reply, in percent.
    #[must_use]
    pub fn loss_percent(&self) -> f64 {
        percent(
            u64::from(self.sent - self.received.min(self.sent)),
            u64::from(self.sent),
        )
    }
}

/// What a series of datagrams showed.
#[derive(Debug, Clone, PartialEq)]
pub struct UdpReport {
    /// The sender's account.
    pub sent: Outcome,
    /// The receiver's.
    pub received: Outcome,
}

impl UdpReport {
    /// Datagrams that never came.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.sent.frames.saturating_sub(self.received.frames)
    }

    /// Share of datagrams that never came, in percent.
    #[must_use]
    pub fn loss_percent(&self) -> f64 {
        percent(self.lost(), self.sent.frames)
    }
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        100.0
    } else {
        part as f64 * 100.0 / whole as f64
    }
}

/// Pings `count` times with `payload_bytes` of data each, fragmenting never: a frame too long for the path is lost.
///
/// # Errors
/// Ping itself does not run. Loss is no error: see the report.
pub fn ping(from: &Agent, to: IpAddr, count: u32, payload_bytes: u32) -> Result<PingReport> {
    let busybox = from.busybox();
    let command_line = format!("{busybox} ping -c {count} -i 0.02 -W 5 -s {payload_bytes} {to}");
    let (_, output) = from.exec(command_line.split_whitespace())?;
    parse_ping(&output)
        .ok_or_else(|| Error::Unexpected(format!("{}: ping says: {output}", from.name())))
}

/// Whether a ping to there is not answered, within a second.
///
/// # Errors
/// Ping itself does not run.
pub fn is_silent(from: &Agent, to: IpAddr) -> Result<bool> {
    Ok(!is_answered(from, to)?.0)
}

/// A single ping, and what it says.
fn is_answered(from: &Agent, to: IpAddr) -> Result<(bool, String)> {
    let (busybox, to) = (from.busybox(), to.to_string());
    let ping = [busybox.as_str(), "ping", "-c", "1", "-W", "1", &to];
    let (status, output) = from.exec(ping)?;
    Ok((status == 0, output))
}

/// Waits until a ping is answered: the path is there, both ways.
///
/// # Errors
/// It never is.
pub fn wait_reachable(from: &Agent, to: IpAddr) -> Result<()> {
    let what = format!("{} to reach {to}", from.name());
    eventually(PATIENCE, &what, || match is_answered(from, to) {
        Ok((true, _)) => Ok(Ok(())),
        Ok((false, output)) => Err(output),
        Err(error) => Ok(Err(error)),
    })?
}

/// "10 packets transmitted, 9 packets received, …" and "round-trip min/avg/max = 0.3/0.5/0.9 ms", as busybox has it.
fn parse_ping(output: &str) -> Option<PingReport> {
    let counts = output
        .lines()
        .find(|line| line.contains("packets transmitted"))?;
    let mut numbers = counts.split(", ").map(|part| {
        part.split_whitespace()
            .next()
            .unwrap_or_default()
            .parse()
            .ok()
    });
    let (sent, received) = (numbers.next()??, numbers.next()??);
    let average_ms = output
        .lines()
        .find_map(|line| line.strip_prefix("round-trip min/avg/max = "))
        .and_then(|times| times.split('/').nth(1))
        .map_or(Some(0.0), |average| average.parse::<f64>().ok())?;
    Some(PingReport {
        sent,
        received,
        average_us: average_ms * 1000.0,
    })
}

/// A TCP transfer under way.
pub struct TcpFlow {
    sender: RunningJob,
    receiver: RunningJob,
}

impl TcpFlow {
    /// Starts one of `bytes`, or without end, as fast as it goes.
    ///
    /// # Errors
    /// An agent cannot open its socket.
    pub fn start(ends: (&Agent, &Agent), address: IpAddr, bytes: Option<u64>) -> Result<Self> {
        Self::begin(ends, address, (bytes, None))
    }

    /// Starts one without end that is not faster than that.
    ///
    /// # Errors
    /// An agent cannot open its socket.
    pub fn start_paced(
        ends: (&Agent, &Agent),
        address: IpAddr,
        bytes_per_second: u64,
    ) -> Result<Self> {
        Self::begin(ends, address, (None, Some(bytes_per_second)))
    }

    fn begin(
        (from, to): (&Agent, &Agent),
        address: IpAddr,
        (bytes, bytes_per_second): (Option<u64>, Option<u64>),
    ) -> Result<Self> {
        let (port, seed) = fresh_port_and_seed();
        let receiver = to.start(Job::TcpReceive { port, seed })?;
        let sender = from.start(Job::TcpSend {
            to: SocketAddr::new(address, port),
            seed,
            bytes,
            bytes_per_second,
        })?;
        Ok(Self { sender, receiver })
    }

    /// Waits until so many more bytes have arrived and were right.
    ///
    /// # Errors
    /// A wrong byte, or the flow stalls.
    pub fn wait_more(&self, bytes: u64) -> Result<()> {
        let so_far = self.receiver.poll()?.count;
        self.receiver.wait_count(so_far + bytes)
    }

    /// Waits until so many bytes have arrived and were right.
    ///
    /// # Errors
    /// A wrong byte, or the flow stalls.
    pub fn wait_arrived(&self, bytes: u64) -> Result<()> {
        self.receiver.wait_count(bytes)
    }

    /// Bytes that have arrived and were right.
    ///
    /// # Errors
    /// A wrong byte.
    pub fn arrived(&self) -> Result<u64> {
        Ok(self.receiver.poll()?.count)
    }

    /// Waits for the end of a flow that has one.
    ///
    /// # Errors
    /// A wrong byte, a missing one, or the flow stalls.
    pub fn finish(self) -> Result<Outcome> {
        let sent = self.sender.wait()?;
        let received = self.receiver.wait()?;
        if sent.bytes == received.bytes {
            return Ok(received);
        }
        Err(Error::Unexpected(format!(
            "{} bytes were sent, {} received",
            sent.bytes, received.bytes
        )))
    }

    /// Ends a flow without end: what was sent has to arrive.
    ///
    /// # Errors
    /// As [`TcpFlow::finish`].
    pub fn stop(self) -> Result<Outcome> {
        self.sender.stop()?;
        self.finish()
    }
}

/// Sends numbered datagrams and has each byte of them checked.
///
/// # Errors
/// An agent cannot open its socket. Loss and damage are no errors: see the report.
pub fn udp(
    (from, to): (&Agent, &Agent),
    address: IpAddr,
    datagrams: u64,
    payload_bytes: u16,
) -> Result<UdpReport> {
    UdpFlow::start((from, to), address, Some(datagrams), payload_bytes)?.finish()
}

/// Numbered datagrams under way, each byte of them checked.
pub struct UdpFlow {
    sender: RunningJob,
    receiver: RunningJob,
}

impl UdpFlow {
    /// Starts `datagrams` of them, or without end, as fast as they are taken.
    ///
    /// # Errors
    /// An agent cannot open its socket.
    pub fn start(
        (from, to): (&Agent, &Agent),
        address: IpAddr,
        datagrams: Option<u64>,
        payload_bytes: u16,
    ) -> Result<Self> {
        let (port, seed) = fresh_port_and_seed();
        let receiver = to.start(Job::UdpReceive { port, seed })?;
        let sender = from.start(Job::UdpSend {
            to: SocketAddr::new(address, port),
            seed,
            datagrams,
            payload_bytes,
        })?;
        Ok(Self { sender, receiver })
    }

    /// Waits until so many more bytes have arrived and were right.
    ///
    /// # Errors
    /// The flow stalls.
    pub fn wait_more(&self, bytes: u64) -> Result<()> {
        let so_far = self.receiver.poll()?.count;
        self.receiver.wait_count(so_far + bytes)
    }

    /// Waits for the end of a flow that has one, and for what is still under way.
    ///
    /// # Errors
    /// It does not end.
    pub fn finish(self) -> Result<UdpReport> {
        let sent = self.sender.wait()?;
        let received = self.receiver.stop()?;
        Ok(UdpReport { sent, received })
    }

    /// Ends a flow without end.
    ///
    /// # Errors
    /// As [`UdpFlow::finish`].
    pub fn stop(self) -> Result<UdpReport> {
        self.sender.stop()?;
        self.finish()
    }
}

/// Pings under way, at a steady pace.
pub struct Probes(RunningJob);

impl Probes {
    /// Starts one every `interval_us`.
    ///
    /// # Errors
    /// The agent cannot open its socket.
    pub fn start(from: &Agent, to: Ipv4Addr, interval_us: u32) -> Result<Self> {
        from.start(Job::Probe { to, interval_us }).map(Self)
    }

    /// Waits until so many more were answered.
    ///
    /// # Errors
    /// They are not.
    pub fn wait_more(&self, answers: u64) -> Result<()> {
        let so_far = self.0.poll()?.count;
        self.0.wait_count(so_far + answers)
    }

    /// Waits until so many more were answered, and says what the longest time between two answers was since the last look.
    ///
    /// # Errors
    /// They are not.
    pub fn longest_gap(&self, answers: u64) -> Result<Duration> {
        let first = self.0.poll()?;
        let (enough, mut longest_us) = (first.count + answers, first.longest_gap_us);
        eventually(PATIENCE, "pings to be answered", || match self.0.poll() {
            Ok(progress) => {
                longest_us = longest_us.max(progress.longest_gap_us);
                if progress.count >= enough {
                    Ok(Ok(()))
                } else {
                    Err(format!("{} of {enough}", progress.count))
                }
            }
            Err(error) => Ok(Err(error)),
        })??;
        Ok(Duration::from_micros(longest_us))
    }

    /// Ends them.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn stop(self) -> Result<Outcome> {
        self.0.stop()
    }
}

/// A port that no earlier flow of this process used, and a pattern that tells its bytes from theirs.
fn fresh_port_and_seed() -> (u16, u64) {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed) % 10_000;
    (20_000 + number, u64::from(number) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busyboxs_words_are_understood_with_and_without_replies() {
        let all = "PING x\n\n--- x ping statistics ---\n5 packets transmitted, 5 packets received, 0% packet loss\n\
                   round-trip min/avg/max = 0.402/0.551/0.9 ms\n";
        assert_eq!(
            parse_ping(all),
            Some(PingReport {
                sent: 5,
                received: 5,
                average_us: 551.0
            })
        );
        let none = "--- x ping statistics ---\n5 packets transmitted, 0 packets received, 100% packet loss\n";
        assert_eq!(parse_ping(none).unwrap().loss_percent(), 100.0);
        assert_eq!(parse_ping("ping: bad address"), None);
    }
}
