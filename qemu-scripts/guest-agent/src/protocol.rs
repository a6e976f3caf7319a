//! What the harness may ask of a guest, and what it answers: one JSON object a line, either way.
//!
//! Answers carry the id of their question and come in any order: a long wait does not hold up a short question.

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// A line from the harness.
#[derive(Debug, Serialize, Deserialize)]
pub struct Question {
    /// Chosen by the harness, repeated in the answer.
    pub id: u64,
    /// What is asked.
    pub request: Request,
}

/// A line from the agent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// The first line after every boot.
    Hello {
        /// Tells one boot from the next: the kernel's boot id.
        boot_id: String,
    },
    /// To one question.
    Answer {
        /// The question's id.
        id: u64,
        /// What came of it.
        reply: Reply,
    },
}

/// A question.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Which boot is this? Answered by [`Reply::Hello`].
    Hello,
    /// Run a program to its end. Answered by [`Reply::Exec`].
    Exec {
        /// Program and arguments.
        argv: Vec<String>,
    },
    /// Start a job. Answered by [`Reply::Started`], for a receiver only once it can be reached.
    Start(Job),
    /// How far is it? Answered by [`Reply::Progress`].
    Poll {
        /// The job.
        job: u64,
    },
    /// Answer when it has ended, by [`Reply::Outcome`].
    Wait {
        /// The job.
        job: u64,
    },
    /// Ask it to end after what is under way; answered by [`Reply::Stopping`] at once.
    Stop {
        /// The job.
        job: u64,
    },
    /// Restart the guest as `reboot -f` would. Answered by [`Reply::Stopping`] before it happens.
    Reboot,
    /// Switch the guest off. Answered by [`Reply::Stopping`] before it happens.
    PowerOff,
    /// Start the kernel that was made ready: no firmware, and nothing is told to end. Answered by [`Reply::Stopping`] before it happens.
    Kexec,
}

/// What runs longer than a question.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Job {
    /// Accept one TCP connection and check every byte against the pattern until it is closed.
    TcpReceive {
        /// Port to listen on, all addresses.
        port: u16,
        /// The pattern.
        seed: u64,
    },
    /// Connect and send the pattern.
    TcpSend {
        /// Whom to.
        to: SocketAddr,
        /// The pattern.
        seed: u64,
        /// How much; until stopped when absent.
        bytes: Option<u64>,
        /// How fast at most; as it goes when absent.
        bytes_per_second: Option<u64>,
    },
    /// Check numbered datagrams, and grant their sender credit.
    UdpReceive {
        /// Port to bind, all addresses.
        port: u16,
        /// The pattern.
        seed: u64,
    },
    /// Send numbered datagrams as the receiver grants credit.
    UdpSend {
        /// Whom to.
        to: SocketAddr,
        /// The pattern.
        seed: u64,
        /// How many; until stopped when absent.
        datagrams: Option<u64>,
        /// UDP payload of each, at least [`crate::udp::HEADER_BYTES`].
        payload_bytes: u16,
    },
    /// Send datagrams of zeroes at a steady rate until stopped, whatever becomes of them.
    UdpPace {
        /// Whom to.
        to: SocketAddr,
        /// UDP payload of each.
        payload_bytes: u16,
        /// UDP payload a second.
        bytes_per_second: u64,
    },
    /// Receive datagrams, whatever is in them, and say how long a number of bytes took.
    UdpMeasure {
        /// Port to bind, all addresses.
        port: u16,
        /// UDP payload that comes before the measurement.
        skip_bytes: u64,
        /// UDP payload that is measured.
        bytes: u64,
    },
    /// Send numbered pings at a steady pace, and watch for how long no answer comes.
    Probe {
        /// Whom to.
        to: Ipv4Addr,
        /// Time between two pings; also the resolution of what is seen.
        interval_us: u32,
    },
    /// Send the same text as UDP datagrams, broadcast addresses included, and expect nothing back.
    Shout {
        /// Whom to.
        to: SocketAddr,
        /// The payload.
        text: String,
        /// How many.
        datagrams: u32,
    },
    /// Count frames that arrive at any interface and contain the text.
    Sniff {
        /// What to look for.
        text: String,
    },
}

/// What came of a question.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// See [`Request::Hello`].
    Hello {
        /// As in [`Line::Hello`].
        boot_id: String,
    },
    /// See [`Request::Exec`].
    Exec {
        /// Exit status; 128 + signal when a signal ended it.
        status: i32,
        /// Standard output, then standard error.
        output: String,
    },
    /// See [`Request::Start`].
    Started {
        /// The job.
        job: u64,
    },
    /// See [`Request::Poll`].
    Progress(Progress),
    /// See [`Request::Wait`].
    Outcome(Outcome),
    /// See [`Request::Stop`].
    Stopping,
    /// It did not work, and why.
    Failed(String),
}

/// How far a job is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Payload bytes sent, received and found right, or frames sniffed, or pings answered.
    pub count: u64,
    /// Has it ended?
    pub ended: bool,
    /// The longest time between two answers to pings of which the second has come since the last question how far it is.
    pub longest_gap_us: u64,
}

/// What a job did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Payload bytes sent, or received and checked.
    pub bytes: u64,
    /// Datagrams or frames sent, or received at least once.
    pub frames: u64,
    /// From the first byte to the last.
    pub seconds: f64,
    /// Datagrams whose bytes are not the pattern's. A TCP stream fails at its first such byte instead.
    pub corrupt: u64,
    /// Datagrams that came after one with a higher number.
    pub reordered: u64,
    /// Datagrams that came again.
    pub duplicates: u64,
    /// Pings sent, of which `frames` were answered.
    pub sent: u64,
    /// The longest time between two answers to pings.
    pub longest_gap_seconds: f64,
    /// A TCP receiver's peer, as the receiver sees it; nothing for other jobs, or when nobody came.
    pub peer: Option<SocketAddr>,
}

impl Outcome {
    /// Payload bits per second, in millions.
    #[must_use]
    pub fn mbps(&self) -> f64 {
        self.bytes as f64 * 8.0 / 1e6 / self.seconds.max(1e-9)
    }
}
