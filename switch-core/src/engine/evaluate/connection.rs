//! Connection tracking and translation: from a frame's headers to a connection, and back into its headers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::super::compile::{CommitSpec, CtField, HeaderField};
use super::super::known::Known;
use super::super::layout::read_bits;
use super::super::packet::Packet;
use super::{Args, Effects, Evaluator, Flow, Observer};
use crate::conntrack::{
    self, Commit, CommitError, DestinationNat, Endpoint, FragmentKey, InvalidReason, NatSpec,
    PortRange, SourceNat, SourcePorts, StateBits, TcpFlags, TcpInfo, Tracked, Translation,
    TransportInfo, Tuple, Zone,
};
use crate::drop_reason::DropReason;

const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_ICMPV6: u8 = 58;

/// The value of a `ct.*` field; 0 before `track`.
pub(super) fn value_of(field: CtField, tracked: Option<&Tracked>) -> u128 {
    let Some(tracked) = tracked else { return 0 };
    let bit = |bit| u128::from(tracked.state.contains(bit));
    match field {
        CtField::Tracked => 1,
        CtField::New => bit(StateBits::NEW),
        CtField::Established => bit(StateBits::ESTABLISHED),
        CtField::Related => bit(StateBits::RELATED),
        CtField::Reply => bit(StateBits::REPLY),
        CtField::Invalid => bit(StateBits::INVALID),
        CtField::Snat => bit(StateBits::SOURCE_NAT),
        CtField::Dnat => bit(StateBits::DESTINATION_NAT),
        CtField::Mark => tracked.mark.into(),
        CtField::Data(index) => tracked
            .data
            .get(usize::from(index))
            .copied()
            .unwrap_or(0)
            .into(),
    }
}

/// Why the connection table is not asked.
enum NotTracked {
    NotIp,
    /// A later fragment whose first was not seen.
    UnknownFragment,
}

/// A fragment of a datagram.
#[derive(Clone, Copy)]
struct Fragment {
    /// In units of eight bytes.
    offset: u16,
    identification: u32,
}

/// Where the headers are that a TCP segment is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TcpPlace {
    /// The TCP header.
    pub tcp: u16,
    /// The IP header.
    pub ip: u16,
    /// Whether it is IPv4.
    pub is_v4: IpVersion,
}

/// Which IP it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IpVersion {
    V4,
    V6,
}

impl TcpPlace {
    /// Where they are in a parsed frame, if it is TCP.
    pub(crate) fn of(known: &Known, layout: &super::super::layout::Layout) -> Option<Self> {
        let place = |header: Option<u16>| {
            header
                .map(|header| layout.place(header))
                .filter(|place| place.is_valid())
                .map(|place| place.at)
        };
        let tcp = place(known.tcp)?;
        match (place(known.ipv4), place(known.ipv6)) {
            (Some(ip), _) => Some(Self {
                tcp,
                ip,
                is_v4: IpVersion::V4,
            }),
            (None, Some(ip)) => Some(Self {
                tcp,
                ip,
                is_v4: IpVersion::V6,
            }),
            (None, None) => None,
        }
    }

    /// Reads the segment. `frame_bytes` counts where IP does not say how long it is.
    #[inline]
    pub(crate) fn read(self, bytes: &[u8], frame_bytes: u32) -> Option<TcpInfo> {
        let header = bytes.get(usize::from(self.tcp)..)?.first_chunk::<20>()?;
        let &[
            _,
            _,
            _,
            _,
            s0,
            s1,
            s2,
            s3,
            a0,
            a1,
            a2,
            a3,
            offset,
            flags,
            w0,
            w1,
            ..,
        ] = header;
        let ip = bytes.get(usize::from(self.ip)..)?;
        let stated = match self.is_v4 {
            IpVersion::V4 => u32::from(u16_at(ip, 2)?),
            IpVersion::V6 => match u16_at(ip, 4)? {
                0 => 0,
                payload => u32::from(payload) + 40,
            },
        };
        let packet = match stated {
            0 => frame_bytes.saturating_sub(self.ip.into()),
            stated => stated,
        };
        let header_bytes = u32::from(offset >> 4) * 4;
        let before = u32::from(self.tcp) - u32::from(self.ip.min(self.tcp));
        let flags = TcpFlags(flags);
        Some(TcpInfo {
            flags,
            sequence: u32::from_be_bytes([s0, s1, s2, s3]),
            acknowledgement: u32::from_be_bytes([a0, a1, a2, a3]),
            window: u16::from_be_bytes([w0, w1]),
            payload_bytes: packet.saturating_sub(before + header_bytes),
            window_scale: flags
                .contains(TcpFlags::SYN)
                .then(|| {
                    let start = usize::from(self.tcp);
                    window_scale(bytes.get(start + 20..start + header_bytes as usize)?)
                })
                .flatten(),
        })
    }
}

/// The shift count of the window scale option (RFC 7323 §2.2).
fn window_scale(mut options: &[u8]) -> Option<u8> {
    loop {
        match options {
            [0, ..] | [] => return None,
            [1, rest @ ..] => options = rest,
            [3, 3, shift, ..] => return Some(*shift),
            [_, length, ..] => options = options.get(usize::from(*length).max(2)..)?,
            [_] => return None,
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .copied()
        .map(u16::from_be_bytes)
}

fn v4(bits: u128) -> Ipv4Addr {
    Ipv4Addr::from(bits as u32)
}

impl<O: Observer> Evaluator<'_, O> {
    fn get(&mut self, field: Option<HeaderField>) -> u128 {
        field.map_or(0, |field| self.packet.get(field))
    }

    fn is_valid(&self, header: Option<u16>) -> bool {
        header.is_some_and(|header| self.packet.place(header).is_valid())
    }

    /// What the connection table is told of the frame.
    fn connection_packet(&mut self, zone: u16) -> Result<conntrack::Packet, NotTracked> {
        let known = &self.state.known;
        let is_v4 = self.is_valid(known.ipv4);
        if !is_v4 && !self.is_valid(known.ipv6) {
            return Err(NotTracked::NotIp);
        }
        let fields = &known.fields;
        let protocol;
        let (source, destination) = if is_v4 {
            protocol = self.get(fields.ipv4_protocol) as u8;
            (self.get(fields.ipv4_src), self.get(fields.ipv4_dst))
        } else {
            protocol = if self.is_valid(known.tcp) {
                PROTOCOL_TCP
            } else if self.is_valid(known.udp) {
                PROTOCOL_UDP
            } else if self.is_valid(known.icmpv6) {
                PROTOCOL_ICMPV6
            } else if self.is_valid(known.ipv6_fragment) {
                self.get(fields.fragment_next_header) as u8
            } else if self.is_valid(known.ipv6_extension) {
                self.get(fields.extension_next_header) as u8
            } else {
                self.get(fields.ipv6_next_header) as u8
            };
            (self.get(fields.ipv6_src), self.get(fields.ipv6_dst))
        };
        let tuple = |ports: (u16, u16)| {
            if is_v4 {
                Tuple::v4(protocol, (v4(source), ports.0), (v4(destination), ports.1))
            } else {
                let (source, destination) = (Ipv6Addr::from(source), Ipv6Addr::from(destination));
                Tuple::v6(protocol, (source, ports.0), (destination, ports.1))
            }
        };
        let fragment = self.fragment(is_v4);
        let in_port = self.frame.in_port;
        let key = |fragment: Fragment| FragmentKey {
            port: in_port,
            zone: Zone(zone),
            addresses: tuple((0, 0)).addresses,
            identification: fragment.identification,
            protocol,
        };
        if fragment.is_some() {
            // Nothing is remembered of fragments: the next may be another's.
            self.remember = false;
        }
        let later = fragment.filter(|fragment| fragment.offset != 0);
        let mut ports = (0, 0);
        let transport = if let Some(fragment) = later {
            let offset_bytes = u32::from(fragment.offset) * 8;
            let found = self
                .state
                .fragments
                .later(&key(fragment), offset_bytes, self.frame.now);
            match found {
                Some(found) => ports = (found.source_port, found.destination_port),
                // A packet of nobody's.
                None => return Err(NotTracked::UnknownFragment),
            }
            TransportInfo::LaterFragment
        } else if self.is_valid(self.state.known.tcp) {
            ports = (
                self.get(fields.tcp_src_port) as u16,
                self.get(fields.tcp_dst_port) as u16,
            );
            let segment = TcpPlace::of(&self.state.known, &self.packet.layout)
                .and_then(|place| place.read(self.packet.bytes(), self.frame.frame_bytes));
            TransportInfo::Tcp(segment.ok_or(NotTracked::NotIp)?)
        } else if self.is_valid(self.state.known.udp) {
            ports = (
                self.get(fields.udp_src_port) as u16,
                self.get(fields.udp_dst_port) as u16,
            );
            TransportInfo::Datagram
        } else if self.is_valid(self.state.known.icmp) {
            let kind = self.get(fields.icmp_type);
            match kind {
                8 | 0 => {
                    let identifier = self.get(fields.icmp_identifier) as u16;
                    ports = (identifier, identifier);
                    if kind == 8 {
                        TransportInfo::EchoRequest
                    } else {
                        TransportInfo::EchoReply
                    }
                }
                3 | 4 | 5 | 11 | 12 => self.embedded(self.state.known.icmp),
                _ => TransportInfo::OtherIcmp,
            }
        } else if self.is_valid(self.state.known.icmpv6) {
            let kind = self.get(fields.icmpv6_type);
            match kind {
                128 | 129 => {
                    let identifier = self.get(fields.icmpv6_identifier) as u16;
                    ports = (identifier, identifier);
                    if kind == 128 {
                        TransportInfo::EchoRequest
                    } else {
                        TransportInfo::EchoReply
                    }
                }
                1..=4 => self.embedded(self.state.known.icmpv6),
                _ => TransportInfo::OtherIcmp,
            }
        } else {
            TransportInfo::Datagram
        };
        let tuple_ports = tuple(ports);
        if let (Some(fragment), None) = (fragment, later)
            && matches!(self.effects, Effects::Live(_))
        {
            // The first fragment tells the ports of the others.
            self.state
                .fragments
                .first(&key(fragment), &tuple_ports, self.frame.now);
        }
        Ok(conntrack::Packet {
            port: in_port,
            zone: Zone(zone),
            tuple: tuple_ports,
            transport,
            bytes: self.frame.frame_bytes,
        })
    }

    fn fragment(&mut self, is_v4: bool) -> Option<Fragment> {
        let known = &self.state.known;
        let fields = &known.fields;
        let (offset, more, id) = if is_v4 {
            (
                self.get(fields.ipv4_fragment_offset),
                self.get(fields.ipv4_more_fragments),
                fields.ipv4_identification,
            )
        } else if self.is_valid(known.ipv6_fragment) {
            (
                self.get(fields.fragment_offset),
                self.get(fields.fragment_more),
                fields.fragment_identification,
            )
        } else {
            return None;
        };
        (offset != 0 || more != 0).then(|| {
            let id = id.map_or(0, |field| self.packet.peek(field));
            Fragment {
                offset: offset as u16,
                identification: id as u32,
            }
        })
    }

    /// The tuple of the packet that an ICMP error quotes. Never remembered.
    fn embedded(&mut self, icmp: Option<u16>) -> TransportInfo {
        self.remember = false;
        let quoted = icmp
            .map(|icmp| usize::from(self.packet.place(icmp).at) + 8)
            .and_then(|at| Quoted::read(self.packet.bytes(), at));
        match quoted {
            Some(quoted) => TransportInfo::IcmpError(quoted.tuple),
            None => TransportInfo::OtherIcmp,
        }
    }

    pub(super) fn track(&mut self, zone: u16) {
        self.zone = zone;
        let packet = match self.connection_packet(zone) {
            Ok(packet) => packet,
            Err(NotTracked::NotIp) => {
                self.tracked = None;
                return;
            }
            Err(NotTracked::UnknownFragment) => {
                self.tracked = Some(Tracked::invalid(InvalidReason::FragmentNoConnection));
                return;
            }
        };
        let tracked = match self.effects {
            Effects::Live(_) => self.state.conntrack.track(&packet, self.frame.now),
            Effects::Preview => self.state.conntrack.preview(&packet, self.frame.now),
        };
        match tracked.conn {
            // Two connections cannot both be asked about each frame.
            Some(conn) if tracked.cacheable && self.out.conditions.connection.is_none() => {
                self.out.conditions.connection = Some((conn, tracked.leg()));
            }
            _ => self.remember = false,
        }
        if O::WATCHES {
            self.observer.tracked(zone, &packet.tuple, &tracked);
        }
        self.tracked = Some(tracked);
    }

    pub(super) fn commit(&mut self, spec: &CommitSpec, args: Args<'_>) -> Flow {
        let wanted = self.tracked.as_ref().is_some_and(|tracked| {
            tracked.conn.is_none() && tracked.state.contains(StateBits::NEW)
        });
        if !wanted {
            return Flow::On;
        }
        self.remember = false;
        let is_v4 = self.is_valid(self.state.known.ipv4);
        let mut data = [0; 4];
        for (slot, value) in data.iter_mut().zip(&spec.data) {
            *slot = self.value(*value, args) as u32;
        }
        let mark = spec.mark.map_or(0, |mark| self.value(mark, args) as u32);
        let mut nat = NatSpec::NONE;
        if let Some(source) = spec.source {
            let [low, high, low_port, high_port] = source.map(|value| self.value(value, args));
            if low != 0 {
                nat.source = Some(SourceNat {
                    first: address(is_v4, low),
                    last: address(is_v4, if high == 0 { low } else { high }),
                    ports: match (low_port as u16, high_port as u16) {
                        (0, 0) => SourcePorts::PreferOwn(PortRange {
                            first: 1024,
                            last: u16::MAX,
                        }),
                        (first, last) => SourcePorts::PreferOwn(PortRange { first, last }),
                    },
                });
            }
        }
        if let Some(destination) = spec.destination {
            let [to, port] = destination.map(|value| self.value(value, args));
            if to != 0 {
                nat.destination = Some(DestinationNat {
                    address: address(is_v4, to),
                    port: (port != 0).then_some(port as u16),
                });
            }
        }
        let Ok(packet) = self.connection_packet(self.zone) else {
            return Flow::On;
        };
        let commit = Commit {
            port: self.frame.in_port,
            mark,
            data,
            nat,
        };
        let conntrack = &self.state.conntrack;
        let committed = match self.effects {
            Effects::Live(_) => conntrack.commit(&packet, &commit, self.frame.now),
            Effects::Preview => conntrack.preview_commit(&packet, &commit, self.frame.now),
        };
        match committed {
            Ok(tracked) => {
                self.tracked = Some(tracked);
                Flow::On
            }
            Err(error) => self.end(refusal(&error)),
        }
    }

    pub(super) fn translate(&mut self) {
        let Some(tracked) = self.tracked else { return };
        self.rewrite(tracked.translation);
        if !tracked.embedded.is_none() {
            self.rewrite_quoted(tracked.embedded);
        }
    }

    fn rewrite(&mut self, translation: Translation) {
        let program = self.program;
        let known = &self.state.known;
        let fields = known.fields;
        let is_v4 = self.is_valid(known.ipv4);
        let (source, destination) = if is_v4 {
            (fields.ipv4_src, fields.ipv4_dst)
        } else {
            (fields.ipv6_src, fields.ipv6_dst)
        };
        let put = |packet: &mut Packet, field: Option<HeaderField>, value: u128| {
            if let Some(field) = field {
                packet.set(program, field, value);
            }
        };
        let ends = [
            (
                translation.source,
                source,
                fields.tcp_src_port,
                fields.udp_src_port,
            ),
            (
                translation.destination,
                destination,
                fields.tcp_dst_port,
                fields.udp_dst_port,
            ),
        ];
        for (endpoint, address, tcp_port, udp_port) in ends {
            let Some(Endpoint { address: to, port }) = endpoint else {
                continue;
            };
            put(self.packet, address, bits(to));
            // Without effect on headers that are not there.
            put(self.packet, tcp_port, port.into());
            put(self.packet, udp_port, port.into());
            if is_echo(self.packet, fields.icmp_type, [8, 0]) {
                put(self.packet, fields.icmp_identifier, port.into());
            }
            if is_echo(self.packet, fields.icmpv6_type, [128, 129]) {
                put(self.packet, fields.icmpv6_identifier, port.into());
            }
        }
    }

    /// Rewrites the packet that an ICMP error quotes.
    fn rewrite_quoted(&mut self, translation: Translation) {
        let known = &self.state.known;
        let Some(icmp) = [known.icmp, known.icmpv6]
            .into_iter()
            .flatten()
            .find(|&icmp| self.packet.place(icmp).is_valid())
        else {
            return;
        };
        let at = usize::from(self.packet.place(icmp).at) + 8;
        let Some(quoted) = Quoted::read(self.packet.bytes(), at) else {
            return;
        };
        let new = quoted.translated(self.packet.bytes(), translation);
        self.packet.replace(icmp, at, &new);
    }
}

fn is_echo(packet: &Packet, field: Option<HeaderField>, types: [u128; 2]) -> bool {
    field.is_some_and(|field| {
        packet.place(field.header).is_valid() && types.contains(&packet.peek(field))
    })
}

fn address(is_v4: bool, bits: u128) -> IpAddr {
    if is_v4 {
        IpAddr::V4(v4(bits))
    } else {
        IpAddr::V6(Ipv6Addr::from(bits))
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

fn refusal(error: &CommitError) -> DropReason {
    match error {
        CommitError::NotOpening(_) => DropReason::ConnectionInvalid,
        CommitError::TableFull => DropReason::ConnectionTableFull,
        CommitError::PortLimit | CommitError::ZoneLimit => DropReason::ConnectionLimit,
        _ => DropReason::NatPortsExhausted,
    }
}

/// A packet quoted in an ICMP error (RFC 792, RFC 4443 §2.4).
struct Quoted {
    at: usize,
    ip_bytes: usize,
    tuple: Tuple,
}

impl Quoted {
    fn read(bytes: &[u8], at: usize) -> Option<Self> {
        let number = |offset: usize, bits| read_bits(bytes, at + offset, 0, bits);
        let version = number(0, 8)? >> 4;
        let (ip_bytes, protocol, source, destination) = match version {
            4 => {
                let length = (number(0, 8)? & 15) as usize * 4;
                // A later fragment has no ports.
                if length < 20 || number(6, 16)? & 0x1fff != 0 {
                    return None;
                }
                (
                    length,
                    number(9, 8)? as u8,
                    number(12, 32)?,
                    number(16, 32)?,
                )
            }
            6 => (40, number(6, 8)? as u8, number(8, 128)?, number(24, 128)?),
            _ => return None,
        };
        let ports = match protocol {
            PROTOCOL_TCP | PROTOCOL_UDP => (
                number(ip_bytes, 16)? as u16,
                number(ip_bytes + 2, 16)? as u16,
            ),
            PROTOCOL_ICMP | PROTOCOL_ICMPV6 => {
                let identifier = number(ip_bytes + 4, 16)? as u16;
                (identifier, identifier)
            }
            _ => (0, 0),
        };
        let tuple = if version == 4 {
            Tuple::v4(protocol, (v4(source), ports.0), (v4(destination), ports.1))
        } else {
            Tuple::v6(
                protocol,
                (Ipv6Addr::from(source), ports.0),
                (Ipv6Addr::from(destination), ports.1),
            )
        };
        Some(Self {
            at,
            ip_bytes,
            tuple,
        })
    }

    /// Its bytes, as far as they are at hand, with other addresses and ports, and the checksums that cover them.
    fn translated(&self, bytes: &[u8], translation: Translation) -> Vec<u8> {
        let mut new = bytes.get(self.at..).unwrap_or_default().to_vec();
        let old = new.clone();
        let mut put = |at: usize, value: &[u8]| {
            if let Some(to) = new.get_mut(at..at + value.len()) {
                to.copy_from_slice(value);
            }
        };
        let is_echo = self.tuple.is_echo();
        let ends = [
            (translation.source, 12, 8, 0),
            (translation.destination, 16, 24, 2),
        ];
        for (endpoint, at_v4, at_v6, port_at) in ends {
            let Some(Endpoint { address, port }) = endpoint else {
                continue;
            };
            match address {
                IpAddr::V4(address) => put(at_v4, &address.octets()),
                IpAddr::V6(address) => put(at_v6, &address.octets()),
            }
            if is_echo {
                put(self.ip_bytes + 4, &port.to_be_bytes());
            } else if self.tuple.has_ports() {
                put(self.ip_bytes + port_at, &port.to_be_bytes());
            }
        }
        let delta = |range: std::ops::Range<usize>, new: &[u8]| {
            super::super::packet::delta(
                old.get(range.clone()).unwrap_or_default(),
                new.get(range).unwrap_or_default(),
                false,
            )
        };
        let is_v4 = self.ip_bytes != 40 || old.first().is_some_and(|first| first >> 4 == 4);
        let addresses = if is_v4 { 12..20 } else { 8..40 };
        let of_addresses = delta(addresses, &new);
        let of_ports = delta(self.ip_bytes..self.ip_bytes + 8, &new);
        if is_v4 {
            adjust(&mut new, 10, of_addresses);
        }
        let (checksum, covered) = match self.tuple.protocol {
            PROTOCOL_TCP => (16, add(of_addresses, of_ports)),
            PROTOCOL_UDP => (6, add(of_addresses, of_ports)),
            PROTOCOL_ICMP => (2, of_ports),
            PROTOCOL_ICMPV6 => (2, add(of_addresses, of_ports)),
            _ => return new,
        };
        let at = self.ip_bytes + checksum;
        // UDP without a checksum stays so.
        if self.tuple.protocol != PROTOCOL_UDP || u16_at(&new, at) != Some(0) {
            adjust(&mut new, at, covered);
        }
        new
    }
}

fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum.wrapping_add(carry.into())
}

/// Adjusts a checksum (RFC 1624 eq. 3).
fn adjust(bytes: &mut [u8], at: usize, delta: u16) {
    if let Some(place) = bytes.get_mut(at..at + 2)
        && let Some(old) = place.first_chunk().copied().map(u16::from_be_bytes)
        && delta != 0
    {
        place.copy_from_slice(&(!add(!old, delta)).to_be_bytes());
    }
}
