//! The parts of a port's state, as they are written. A field that a later version adds is passed over by this one, and one that it
//! needs to be understood raises the version that a reader must have ([`super::blob`]).
use crate::control::PortId;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use switch_core::conntrack::{
    ConnRecord, ConnState, Direction, IgnoredSyn, Side, TcpRecord, Tuple, Zone,
};
use switch_core::engine::control::{EntryCounters, MeterRate, TableEntry};
use switch_core::{MacAddress, MacRecord};

/// Where a state comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// What the port was called. Entries name it so.
    pub port: String,
    /// The program that decided on its frames.
    pub program: String,
    /// The version of the switch.
    #[serde(default)]
    pub version: String,
    /// Connections that found no room in what was written.
    #[serde(default)]
    pub connections_left_out: u64,
}

/// A station behind the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Station {
    /// The number of its broadcast domain.
    #[serde(default)]
    pub domain: u16,
    /// Its address.
    pub mac: MacAddress,
    /// How long ago it was last seen.
    pub age_ms: u64,
}

impl Station {
    pub(super) fn of(record: &MacRecord) -> Self {
        Self {
            domain: record.domain,
            mac: record.mac,
            age_ms: record.age_ms,
        }
    }

    pub(super) fn at(&self, port: PortId) -> MacRecord {
        MacRecord {
            domain: self.domain,
            mac: self.mac,
            port: port.get(),
            age_ms: self.age_ms,
        }
    }
}

/// An entry that names the port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundEntry {
    /// The entry.
    pub entry: TableEntry,
    /// What it had seen, in tables that count or have timeouts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<Seen>,
}

/// What an entry had seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Frames and bytes.
    pub counted: EntryCounters,
    /// How long ago it was made.
    pub age_ms: u64,
    /// How long ago its last frame came.
    pub idle_ms: u64,
}

/// What the port has part in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Multicast groups that it is a member of.
    pub multicast: Vec<u16>,
    /// Rates that it has in arrays of meters which the program indexes by port.
    pub meters: Vec<(String, MeterRate)>,
}

/// A connection with an end behind the port. There may be many, so names are short and what is zero is left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// Zone.
    z: u16,
    /// Protocol.
    p: u8,
    /// What a packet of the original direction carries: source, port, destination, port.
    a: Ends,
    /// What an answer carries, if it is not simply turned round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    b: Option<Ends>,
    s: ConnState,
    /// Which of its ends are behind the port: 1 the one that opened it, 2 the one that answered.
    e: u8,
    /// 1: an answer was seen; 2: it is kept when there is no room.
    #[serde(default, skip_serializing_if = "is_default")]
    f: u8,
    /// Mark.
    #[serde(default, skip_serializing_if = "is_default")]
    m: u32,
    /// User data.
    #[serde(default, skip_serializing_if = "is_default")]
    d: [u32; 4],
    /// Packets there and back, bytes there and back.
    #[serde(default, skip_serializing_if = "is_default")]
    n: [u64; 4],
    /// Idle, in milliseconds.
    #[serde(default, skip_serializing_if = "is_default")]
    i: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    t: Option<Tcp>,
}

type Ends = (IpAddr, u16, IpAddr, u16);

/// Of TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Tcp {
    /// Of each end, the opener first: sent up to, may send up to, largest window, latest acknowledgement.
    w: [[u32; 4]; 2],
    /// Window scales.
    s: [u8; 2],
    /// Windows are not checked.
    #[serde(default, skip_serializing_if = "is_default")]
    l: bool,
    /// A SYN that was let pass: the number after it, its window, its scale, its direction (0, 1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    y: Option<(u32, u16, u8, u8)>,
}

const OPENED_HERE: u8 = 1;
const ANSWERED_HERE: u8 = 2;
const SEEN_REPLY: u8 = 1;
const ASSURED: u8 = 2;

impl Connection {
    /// As it is seen from a port.
    pub(super) fn of(record: &ConnRecord, port: PortId) -> Self {
        let flag = |holds: bool, flag: u8| if holds { flag } else { 0 };
        let [packets, bytes] = [record.packets, record.bytes];
        Self {
            z: record.zone.0,
            p: record.original.protocol,
            a: ends(&record.original),
            b: (record.reply != record.original.inverse()).then(|| ends(&record.reply)),
            s: record.state,
            e: flag(record.port == port.get(), OPENED_HERE)
                | flag(record.answered_by == Some(port.get()), ANSWERED_HERE),
            f: flag(record.seen_reply, SEEN_REPLY) | flag(record.assured, ASSURED),
            m: record.mark,
            d: record.data,
            n: [packets[0], packets[1], bytes[0], bytes[1]],
            i: record.idle_ms,
            t: record.tcp.as_ref().map(Tcp::of),
        }
    }

    /// As the connection of a port. An end elsewhere is not known here: one that was opened from there is on this port's account.
    pub(super) fn at(&self, port: PortId) -> Result<ConnRecord, &'static str> {
        let [there, back, bytes_there, bytes_back] = self.n;
        let original = tuple(self.p, self.a).ok_or("addresses of two families")?;
        let reply = match self.b {
            Some(ends) => tuple(self.p, ends).ok_or("addresses of two families")?,
            None => original.inverse(),
        };
        Ok(ConnRecord {
            zone: Zone(self.z),
            port: port.get(),
            answered_by: (self.e & ANSWERED_HERE != 0).then(|| port.get()),
            original,
            reply,
            state: self.s,
            seen_reply: self.f & SEEN_REPLY != 0,
            assured: self.f & ASSURED != 0,
            tcp: self.t.map(|tcp| tcp.record()),
            mark: self.m,
            data: self.d,
            packets: [there, back],
            bytes: [bytes_there, bytes_back],
            idle_ms: self.i,
            expires_in_ms: 0,
        })
    }
}

impl Tcp {
    fn of(record: &TcpRecord) -> Self {
        let syn = record.ignored_syn;
        Self {
            w: record
                .sides
                .map(|side| [side.end, side.max_end, side.max_window, side.max_ack]),
            s: record.scales,
            l: record.liberal,
            y: syn
                .direction
                .map(|direction| (syn.end, syn.window, syn.scale, direction as u8)),
        }
    }

    fn record(self) -> TcpRecord {
        TcpRecord {
            sides: self.w.map(|[end, max_end, max_window, max_ack]| Side {
                end,
                max_end,
                max_window,
                max_ack,
            }),
            scales: self.s,
            liberal: self.l,
            ignored_syn: self.y.map_or_else(
                IgnoredSyn::default,
                |(end, window, scale, direction)| IgnoredSyn {
                    end,
                    window,
                    scale,
                    direction: Some(match direction {
                        0 => Direction::Original,
                        _ => Direction::Reply,
                    }),
                },
            ),
        }
    }
}

fn ends(tuple: &Tuple) -> Ends {
    (
        tuple.addresses.source(),
        tuple.source_port,
        tuple.addresses.destination(),
        tuple.destination_port,
    )
}

fn tuple(protocol: u8, (source, port, destination, to_port): Ends) -> Option<Tuple> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            Some(Tuple::v4(protocol, (source, port), (destination, to_port)))
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            Some(Tuple::v6(protocol, (source, port), (destination, to_port)))
        }
        _ => None,
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
