//! The traffic that goes on while the guest moves, in both directions between it and its peer.

use std::net::IpAddr;

use crate::agent::Agent;
use crate::traffic::{TcpFlow, UdpFlow};
use crate::{Error, Result};

/// What a flow must carry to count as going on.
const SIGN_OF_LIFE_BYTES: u64 = 128 << 10;
const UDP_PAYLOAD_BYTES: u16 = 1400;
/// Of each connection. An emulated CPU can do more, but one without a pause answers probes late, migration or not.
const TCP_BYTES_PER_SECOND: u64 = 2 << 20;

/// What is sent, beside the probes that measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// A TCP connection each way.
    Tcp,
    /// Datagrams each way, as fast as they are taken: some are in the guest's buffers, unread, whenever it is stopped.
    Udp,
    /// Nothing but the probes.
    Ping,
    /// TCP and UDP.
    All,
}

impl Load {
    /// As on the command line.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Ping => "ping",
            Self::All => "all",
        }
    }
}

/// The flows of a run.
#[derive(Default)]
pub struct Flows {
    tcp: Vec<TcpFlow>,
    udp: Vec<UdpFlow>,
    casualties: Casualties,
}

/// What became of them that should not have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Casualties {
    /// TCP connections that were reset, or carried nothing any more.
    pub connections_broken: u64,
    /// Bytes that were not what was sent, at least so many: a stream is given up at its first, a datagram counts as one, damaged or
    /// doubled.
    pub bytes_corrupted: u64,
    /// Datagrams that never came.
    pub datagrams_lost: u64,
}

/// Two agents and their addresses.
pub type Ends<'a> = [(&'a Agent, IpAddr); 2];

impl Flows {
    /// Starts them, and waits until each has got going.
    ///
    /// # Errors
    /// One does not.
    pub fn start(load: Load, [left, right]: Ends) -> Result<Self> {
        let mut flows = Self::default();
        for (from, to) in [(left, right), (right, left)] {
            let agents = (from.0, to.0);
            if matches!(load, Load::Tcp | Load::All) {
                flows
                    .tcp
                    .push(TcpFlow::start_paced(agents, to.1, TCP_BYTES_PER_SECOND)?);
            }
            if matches!(load, Load::Udp | Load::All) {
                flows
                    .udp
                    .push(UdpFlow::start(agents, to.1, None, UDP_PAYLOAD_BYTES)?);
            }
        }
        flows.wait_alive()?;
        Ok(flows)
    }

    /// Waits until each has carried something more. What does not any more is counted and given up.
    ///
    /// # Errors
    /// An agent does not answer.
    pub fn wait_alive(&mut self) -> Result<()> {
        for flow in std::mem::take(&mut self.tcp) {
            match flow.wait_more(SIGN_OF_LIFE_BYTES) {
                Ok(()) => self.tcp.push(flow),
                Err(error) => self.casualties.tcp(error)?,
            }
        }
        self.udp
            .iter()
            .try_for_each(|flow| flow.wait_more(SIGN_OF_LIFE_BYTES))
    }

    /// Ends them, and says what went wrong from start to end.
    ///
    /// # Errors
    /// An agent does not answer.
    pub fn stop(mut self) -> Result<Casualties> {
        for flow in self.tcp {
            if let Err(error) = flow.stop() {
                self.casualties.tcp(error)?;
            }
        }
        for flow in self.udp {
            let report = flow.stop()?;
            // Nothing on the way doubles a datagram: one that comes again was read from memory that the migration left as it was.
            self.casualties.bytes_corrupted += report.received.corrupt + report.received.duplicates;
            self.casualties.datagrams_lost += report.lost();
        }
        Ok(self.casualties)
    }
}

impl Casualties {
    /// Of whatever fails a TCP transfer, all but damage is a broken connection.
    fn tcp(&mut self, error: Error) -> Result<()> {
        match error {
            Error::Agent { reason, .. } if reason.ends_with("of the stream is wrong") => {
                self.bytes_corrupted += 1;
            }
            Error::Agent { .. } | Error::Deadline { .. } => self.connections_broken += 1,
            other => return Err(other),
        }
        Ok(())
    }
}

/// TCP segments that a host sent again since it booted.
///
/// # Errors
/// The kernel does not say.
pub fn retransmits(agent: &Agent) -> Result<u64> {
    let text = agent.run("cat /proc/net/snmp")?;
    parse_retransmits(&text)
        .ok_or_else(|| Error::Unexpected(format!("/proc/net/snmp says: {text}")))
}

/// Two lines begin with `Tcp:`, one of names and one of numbers.
fn parse_retransmits(snmp: &str) -> Option<u64> {
    let mut lines = snmp.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, numbers) = (lines.next()?, lines.next()?);
    names
        .split_whitespace()
        .zip(numbers.split_whitespace())
        .find(|(name, _)| *name == "RetransSegs")?
        .1
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retransmits_are_found_by_their_name() {
        let text = "Ip: Forwarding\nIp: 1\nTcp: RtoMin MaxConn RetransSegs InErrs\nTcp: 200 -1 17 0\nUdp: InDatagrams\nUdp: 5\n";
        assert_eq!(parse_retransmits(text), Some(17));
        assert_eq!(parse_retransmits("Ip: Forwarding\n"), None);
    }

    #[test]
    fn a_wrong_byte_and_a_broken_connection_are_told_apart() {
        let failed = |reason: &str| Error::Agent {
            agent: "vm".to_owned(),
            reason: reason.to_owned(),
        };
        let mut casualties = Casualties::default();
        casualties
            .tcp(failed("byte 70000 of the stream is wrong"))
            .unwrap();
        casualties
            .tcp(failed("Connection reset by peer (os error 104)"))
            .unwrap();
        casualties
            .tcp(Error::Unexpected("the guest is gone".to_owned()))
            .unwrap_err();
        assert_eq!(
            (casualties.connections_broken, casualties.bytes_corrupted),
            (1, 1)
        );
    }
}
