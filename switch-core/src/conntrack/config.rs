//! How large the connection table may become, how long it remembers, and how strict it is.

use serde::{Deserialize, Serialize};

use crate::time::Millis;

/// Settings of a [`Conntrack`](super::Conntrack).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConntrackConfig {
    /// Connections that the table holds at most.
    pub capacity: u32,
    /// Connections that one port may have opened at most.
    pub per_port_limit: u32,
    /// Connections of one zone at most.
    pub per_zone_limit: u32,
    /// How long a quiet connection is remembered.
    pub timeouts: Timeouts,
    /// What TCP must look like.
    pub strictness: Strictness,
}

impl ConntrackConfig {
    /// The most connections any table can be configured to hold.
    pub const MAX_CAPACITY: u32 = 1 << 26;
}

impl Default for ConntrackConfig {
    /// A million connections, a quarter of them from one port at most, no limit on a zone.
    fn default() -> Self {
        Self {
            capacity: 1_000_000,
            per_port_limit: 250_000,
            per_zone_limit: u32::MAX,
            timeouts: Timeouts::default(),
            strictness: Strictness::default(),
        }
    }
}

/// How closely TCP is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TcpWindows {
    /// Segments outside the window are invalid.
    #[default]
    Checked,
    /// Only resets must be in the window, as Linux does with `nf_conntrack_tcp_be_liberal`.
    Liberal,
}

/// What a TCP segment without a connection may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TcpPickup {
    /// Only a SYN opens a connection. Linux also picks up the middle by default; between tenants that is a way around the rules.
    #[default]
    SynOnly,
    /// A plain ACK also does, as Linux does with `nf_conntrack_tcp_loose`; the windows of such a connection are not checked.
    Midstream,
}

/// What TCP must look like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Strictness {
    /// Window checks.
    pub windows: TcpWindows,
    /// Connections that were open before.
    pub pickup: TcpPickup,
}

/// How long a connection is remembered after its last packet, by state. A connection may live 64 ms longer, never shorter.
///
/// The defaults are those of Linux's `nf_conntrack`. All are cut to about a year.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP: a SYN was seen, or one from each side.
    pub tcp_syn_sent: Millis,
    /// TCP: a SYN was answered.
    pub tcp_syn_recv: Millis,
    /// TCP: the handshake was complete.
    pub tcp_established: Millis,
    /// TCP: one side closed.
    pub tcp_fin_wait: Millis,
    /// TCP: that was acknowledged.
    pub tcp_close_wait: Millis,
    /// TCP: the other side closed too.
    pub tcp_last_ack: Millis,
    /// TCP: all is closed and acknowledged.
    pub tcp_time_wait: Millis,
    /// TCP: the connection was reset.
    pub tcp_close: Millis,
    /// UDP: nothing came back so far.
    pub udp_single: Millis,
    /// UDP: both sides have sent.
    pub udp_stream: Millis,
    /// ICMP and ICMPv6 echo.
    pub icmp: Millis,
    /// Every other protocol.
    pub generic: Millis,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_syn_sent: Millis::from_secs(120),
            tcp_syn_recv: Millis::from_secs(60),
            tcp_established: Millis::from_secs(5 * 24 * 3600),
            tcp_fin_wait: Millis::from_secs(120),
            tcp_close_wait: Millis::from_secs(60),
            tcp_last_ack: Millis::from_secs(30),
            tcp_time_wait: Millis::from_secs(120),
            tcp_close: Millis::from_secs(10),
            udp_single: Millis::from_secs(30),
            udp_stream: Millis::from_secs(120),
            icmp: Millis::from_secs(30),
            generic: Millis::from_secs(600),
        }
    }
}
