//! TCP, UDP, ICMP and ICMPv6 headers.

use super::bytes::{array_at, u32_at};
use super::headers::{Layer, ParseEnd, Reach};

/// The protocol number of ICMP.
pub const PROTOCOL_ICMP: u8 = 1;
/// The protocol number of TCP.
pub const PROTOCOL_TCP: u8 = 6;
/// The protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;
/// The protocol number of ICMPv6.
pub const PROTOCOL_ICMPV6: u8 = 58;
/// The length of a UDP header (RFC 768).
pub const UDP_HEADER_BYTES: usize = 8;

/// A transport-layer header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp(Tcp),
    /// UDP.
    Udp(Udp),
    /// ICMP for IPv4.
    Icmp(Icmp),
    /// ICMP for IPv6.
    Icmpv6(Icmp),
}

/// A TCP header (RFC 9293 §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// The sender's port.
    pub source_port: u16,
    /// The receiver's port.
    pub destination_port: u16,
    /// The sequence number.
    pub sequence: u32,
    /// The acknowledgment number.
    pub acknowledgment: u32,
    /// Length of the header with its options.
    pub header_bytes: u8,
    /// The flags.
    pub flags: TcpFlags,
    /// The receive window, unscaled.
    pub window: u16,
    /// The checksum, unchecked.
    pub checksum: u16,
    /// The urgent pointer.
    pub urgent: u16,
}

/// TCP's flags: from bit 0 FIN, SYN, RST, PSH, ACK, URG, ECE, CWR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// Push the data to the application.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgment number counts.
    pub const ACK: Self = Self(0x10);
    /// Congestion window reduced (RFC 3168).
    pub const CWR: Self = Self(0x80);

    /// These flags without `others`.
    pub const fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    /// These flags and `others`.
    pub const fn with(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// Whether all of `others` are set.
    pub const fn contains(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }
}

/// A UDP header (RFC 768).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Udp {
    /// The sender's port.
    pub source_port: u16,
    /// The receiver's port.
    pub destination_port: u16,
    /// Length of header and payload by its own account.
    pub length_bytes: u16,
    /// The checksum, unchecked.
    pub checksum: u16,
}

/// An ICMP (RFC 792) or ICMPv6 (RFC 4443) header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Icmp {
    /// The message's type.
    pub kind: u8,
    /// Its code.
    pub code: u8,
    /// The checksum, unchecked.
    pub checksum: u16,
    /// What the type puts in the header's last four bytes: identifier and sequence number of an echo, the MTU of a
    /// packet-too-big.
    pub rest: u32,
}

/// Reads the transport header at `offset`. Returns it and its length; `None` for a protocol the core does not know.
#[inline]
pub(super) fn parse_transport(
    reach: Reach<'_>,
    offset: usize,
    protocol: u8,
) -> Result<Option<(Transport, usize)>, ParseEnd> {
    match protocol {
        PROTOCOL_TCP => parse_tcp(reach, offset).map(Some),
        PROTOCOL_UDP => {
            let fixed = fixed_part(reach, offset)?;
            let [s0, s1, d0, d1, l0, l1, c0, c1] = fixed;
            let udp = Udp {
                source_port: u16::from_be_bytes([s0, s1]),
                destination_port: u16::from_be_bytes([d0, d1]),
                length_bytes: u16::from_be_bytes([l0, l1]),
                checksum: u16::from_be_bytes([c0, c1]),
            };
            Ok(Some((Transport::Udp(udp), UDP_HEADER_BYTES)))
        }
        PROTOCOL_ICMP => Ok(Some((Transport::Icmp(parse_icmp(reach, offset)?), 8))),
        PROTOCOL_ICMPV6 => Ok(Some((Transport::Icmpv6(parse_icmp(reach, offset)?), 8))),
        _ => Ok(None),
    }
}

#[inline]
fn parse_tcp(reach: Reach<'_>, offset: usize) -> Result<(Transport, usize), ParseEnd> {
    let fixed: [u8; 20] = fixed_part(reach, offset)?;
    let [
        s0,
        s1,
        d0,
        d1,
        q0,
        q1,
        q2,
        q3,
        a0,
        a1,
        a2,
        a3,
        data_offset,
        flags,
        w0,
        w1,
        c0,
        c1,
        u0,
        u1,
    ] = fixed;
    let header_bytes = (data_offset >> 4) * 4;
    // RFC 9293 §3.1: the header has at least five words.
    if header_bytes < 20 {
        return Err(ParseEnd::Malformed(Layer::Transport));
    }
    let end = offset + usize::from(header_bytes);
    if end > reach.copy.len() {
        return Err(reach.end_at(end, Layer::Transport));
    }
    let tcp = Tcp {
        source_port: u16::from_be_bytes([s0, s1]),
        destination_port: u16::from_be_bytes([d0, d1]),
        sequence: u32::from_be_bytes([q0, q1, q2, q3]),
        acknowledgment: u32::from_be_bytes([a0, a1, a2, a3]),
        header_bytes,
        flags: TcpFlags(flags),
        window: u16::from_be_bytes([w0, w1]),
        checksum: u16::from_be_bytes([c0, c1]),
        urgent: u16::from_be_bytes([u0, u1]),
    };
    Ok((Transport::Tcp(tcp), usize::from(header_bytes)))
}

#[inline]
fn parse_icmp(reach: Reach<'_>, offset: usize) -> Result<Icmp, ParseEnd> {
    let [kind, code, c0, c1, ..] = fixed_part::<8>(reach, offset)?;
    let rest = u32_at(reach.copy, offset + 4).unwrap_or_default();
    Ok(Icmp {
        kind,
        code,
        checksum: u16::from_be_bytes([c0, c1]),
        rest,
    })
}

#[inline]
fn fixed_part<const N: usize>(reach: Reach<'_>, offset: usize) -> Result<[u8; N], ParseEnd> {
    array_at(reach.copy, offset).ok_or_else(|| reach.end_at(offset + N, Layer::Transport))
}
