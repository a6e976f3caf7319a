//! What the connection table answers.

use std::fmt;
use std::net::IpAddr;

use super::tuple::Direction;

/// A connection's place in the table. The generation is new each time the place is taken again, and whenever what a cached verdict
/// may depend on has changed (mark, data, translation), so an old id is never taken for another connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

impl ConnId {
    /// As one number: how a control interface shows it.
    pub const fn to_bits(self) -> u64 {
        (self.generation as u64) << 32 | self.index as u64
    }

    /// The id that [`ConnId::to_bits`] made this number of. Any number is an id, but perhaps of no connection.
    pub const fn from_bits(bits: u64) -> Self {
        Self {
            index: bits as u32,
            generation: (bits >> 32) as u32,
        }
    }
}

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.to_bits())
    }
}

/// What is known of a packet's connection, as bits that tables match on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct StateBits(pub u8);

impl StateBits {
    /// It would open a connection, or repeats a packet that did and was not answered so far.
    pub const NEW: Self = Self(0x01);
    /// Its connection has seen packets in both directions.
    pub const ESTABLISHED: Self = Self(0x02);
    /// It is an ICMP error about a packet of a known connection.
    pub const RELATED: Self = Self(0x04);
    /// It goes in the reply direction.
    pub const REPLY: Self = Self(0x08);
    /// It fits no connection and cannot open one.
    pub const INVALID: Self = Self(0x10);
    /// The connection table has seen it: set in every answer.
    pub const TRACKED: Self = Self(0x20);
    /// Its connection's source is translated.
    pub const SOURCE_NAT: Self = Self(0x40);
    /// Its connection's destination is translated.
    pub const DESTINATION_NAT: Self = Self(0x80);

    /// Whether all bits of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These and those.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Why a packet is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InvalidReason {
    /// A combination of TCP flags that no TCP sends.
    TcpFlags,
    /// TCP of no known connection, and not a SYN.
    TcpNoConnection,
    /// A TCP segment that has no place in the state its connection is in.
    TcpState,
    /// A TCP sequence or acknowledgement number outside the window.
    TcpWindow,
    /// A TCP reset that its receiver would not believe.
    TcpReset,
    /// An ICMP error about a packet of no known connection, or sent to someone else than that packet's sender.
    IcmpErrorUnrelated,
    /// An ICMP echo reply without a request, or ICMP of a type that is not followed.
    IcmpUnexpected,
    /// A fragment without ports, of no known connection.
    FragmentNoConnection,
    /// The transport information does not fit the tuple's protocol.
    Contradiction,
}

/// An address and a port (or echo identifier) to write into a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The address, of the packet's own family.
    pub address: IpAddr,
    /// The port. Written to an echo message's identifier, to nothing for protocols without ports and in fragments without them.
    pub port: u16,
}

/// How to rewrite one header. An echo message's identifier is the port of whichever is set; if both are, they agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Translation {
    /// The new source, or leave it.
    pub source: Option<Endpoint>,
    /// The new destination, or leave it.
    pub destination: Option<Endpoint>,
}

impl Translation {
    /// Leaves the packet as it is.
    pub const NONE: Self = Self {
        source: None,
        destination: None,
    };

    /// Whether there is nothing to rewrite.
    pub const fn is_none(&self) -> bool {
        self.source.is_none() && self.destination.is_none()
    }
}

/// What is known of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracked {
    /// The state, as bits.
    pub state: StateBits,
    /// Its connection. `None` when it is invalid or would open one.
    pub conn: Option<ConnId>,
    /// The direction it goes in.
    pub direction: Direction,
    /// How to rewrite it. Of an ICMP error: the outer header, addresses only.
    pub translation: Translation,
    /// How to rewrite the packet that an ICMP error quotes.
    pub embedded: Translation,
    /// The connection's mark.
    pub mark: u32,
    /// The connection's user data.
    pub data: [u32; 4],
    /// Whether packets like this one may be forwarded without asking again, as long as [`Conntrack::refresh`] says
    /// [`Refreshed::Valid`].
    ///
    /// [`Conntrack::refresh`]: super::Conntrack::refresh
    pub cacheable: bool,
    /// Why it is invalid, if it is.
    pub invalid: Option<InvalidReason>,
}

/// What a cached verdict is for: packets of one direction, as long as their connection has been answered or has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leg {
    /// From the end that opened the connection, while nobody has answered.
    Unanswered,
    /// From that end later.
    Original,
    /// From the other one.
    Reply,
}

impl Leg {
    /// The direction.
    #[inline]
    pub const fn direction(self) -> Direction {
        match self {
            Self::Unanswered | Self::Original => Direction::Original,
            Self::Reply => Direction::Reply,
        }
    }
}

/// Of a connection that has been answered.
impl From<Direction> for Leg {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Original => Self::Original,
            Direction::Reply => Self::Reply,
        }
    }
}

impl Tracked {
    /// What a verdict about this packet is for.
    pub fn leg(&self) -> Leg {
        match self.direction {
            Direction::Original if self.state.contains(StateBits::NEW) => Leg::Unanswered,
            direction => direction.into(),
        }
    }

    /// A packet without a connection.
    pub(crate) const fn unknown(state: StateBits, invalid: Option<InvalidReason>) -> Self {
        Self {
            state: state.union(StateBits::TRACKED),
            conn: None,
            direction: Direction::Original,
            translation: Translation::NONE,
            embedded: Translation::NONE,
            mark: 0,
            data: [0; 4],
            cacheable: false,
            invalid,
        }
    }

    pub(crate) const fn invalid(reason: InvalidReason) -> Self {
        Self::unknown(StateBits::INVALID, Some(reason))
    }
}

/// What the fast path says of a cached verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refreshed {
    /// It holds, and the packet has been taken into account.
    Valid,
    /// It may not: ask [`Conntrack::track`](super::Conntrack::track). Nothing was changed.
    Changed,
}
