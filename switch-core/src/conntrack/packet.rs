//! What the connection table is told of a packet.

use super::tuple::{Tuple, Zone};
use crate::port::PortId;

/// One packet, as the caller parsed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The port it came in by.
    pub port: PortId,
    /// The zone it is looked up in.
    pub zone: Zone,
    /// Its own tuple, before any translation. For an ICMP error only the addresses and the protocol count.
    pub tuple: Tuple,
    /// What of the transport layer matters here.
    pub transport: TransportInfo,
    /// The frame's length, for the connection's counters.
    pub bytes: u32,
}

/// The part of a packet that moves a connection's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportInfo {
    /// TCP, with its header.
    Tcp(TcpInfo),
    /// A UDP datagram, whole or its first fragment; or a packet of a protocol without ports.
    Datagram,
    /// ICMP or ICMPv6 echo request, the identifier in both ports.
    EchoRequest,
    /// ICMP or ICMPv6 echo reply, the identifier in both ports.
    EchoReply,
    /// An ICMP or ICMPv6 error message, with the tuple of the packet it quotes, as quoted.
    IcmpError(Tuple),
    /// ICMP or ICMPv6 of any other type. The table does not follow these: they are invalid here.
    OtherIcmp,
    /// A fragment without the transport header, whose ports [`FragmentTable`](super::FragmentTable) knew.
    LaterFragment,
}

/// The fields of a TCP header, in host byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpInfo {
    /// Flags.
    pub flags: TcpFlags,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number, meaningful with [`TcpFlags::ACK`].
    pub acknowledgement: u32,
    /// Window as in the header, not scaled.
    pub window: u16,
    /// Bytes of payload. Of a frame to be segmented (TSO), all of it.
    pub payload_bytes: u32,
    /// Shift count of the window scale option (RFC 7323 §2.2). Only looked at with [`TcpFlags::SYN`].
    pub window_scale: Option<u8>,
}

impl TcpInfo {
    /// The sequence number after the last that this segment takes: SYN and FIN take one each (RFC 9293 §3.4).
    #[inline]
    pub const fn sequence_end(&self) -> u32 {
        let syn = self.flags.contains(TcpFlags::SYN) as u32;
        let fin = self.flags.contains(TcpFlags::FIN) as u32;
        self.sequence
            .wrapping_add(self.payload_bytes)
            .wrapping_add(syn)
            .wrapping_add(fin)
    }
}

/// The flags octet of a TCP header (RFC 9293 §3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// Push.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgement number counts.
    pub const ACK: Self = Self(0x10);
    /// The urgent pointer counts.
    pub const URG: Self = Self(0x20);
    /// Explicit congestion notification echo.
    pub const ECE: Self = Self(0x40);
    /// Congestion window reduced.
    pub const CWR: Self = Self(0x80);

    /// Whether all flags of `other` are set.
    #[inline]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These and those.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}
