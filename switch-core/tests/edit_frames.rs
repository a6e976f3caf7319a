//! Edits on random frames, checked with `etherparse`: whatever is rewritten, put around or left unfinished, every checksum and length
//! of what leaves is right.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use etherparse::{
    EtherType, Ethernet2Header, IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type,
    IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, NetSlice, SlicedPacket, TcpHeader,
    TransportSlice, UdpHeader, UdpSlice,
};
use proptest::prelude::*;
use switch_core::DropReason;
use switch_core::checksum::{Sum, pseudo_header_v4, pseudo_header_v6};
use switch_core::engine::edit::{
    Delta, Edit, EditList, EditedFrame, MAX_GROWTH_BYTES, PartialChecksum, Run, TransportChecksum,
};
use switch_core::parse::Headers;
use switch_core::segment::{Gso, MAX_HEADER_GROWTH_BYTES, SegmentPlan};

/// The bytes of a frame that the switch sees.
const COPY_BYTES: usize = 116;
/// Ethernet, IPv4, UDP, VXLAN.
const TUNNEL_BYTES: usize = 50;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Protocol {
    Tcp,
    Udp,
    /// Without checksum; over IPv6 with one.
    UdpBare,
    Icmp,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Checksum {
    Full,
    Partial,
}

/// What addresses and ports a frame has.
#[derive(Clone, Debug)]
struct Names {
    macs: [u8; 12],
    source: [u8; 16],
    destination: [u8; 16],
    /// Source and destination; of ICMP, identifier and sequence number.
    ports: [u16; 2],
    ttl: u8,
}

#[derive(Clone, Debug)]
struct Frame {
    tags: usize,
    is_v6: bool,
    protocol: Protocol,
    names: Names,
    payload: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum TagChange {
    Keep,
    Push,
    Pop,
}

impl Frame {
    fn network(&self) -> usize {
        14 + 4 * self.tags
    }

    fn transport(&self) -> usize {
        self.network() + if self.is_v6 { 40 } else { 20 }
    }

    fn checksum_offset(&self) -> usize {
        match self.protocol {
            Protocol::Tcp => 16,
            Protocol::Udp | Protocol::UdpBare => 6,
            Protocol::Icmp => 2,
        }
    }

    fn v4(&self) -> ([u8; 4], [u8; 4]) {
        let short = |a: [u8; 16]| [a[0], a[1], a[2], a[3]];
        (short(self.names.source), short(self.names.destination))
    }

    fn number(&self) -> IpNumber {
        match self.protocol {
            Protocol::Tcp => IpNumber::TCP,
            Protocol::Udp | Protocol::UdpBare => IpNumber::UDP,
            Protocol::Icmp if self.is_v6 => IpNumber::IPV6_ICMP,
            Protocol::Icmp => IpNumber::ICMP,
        }
    }

    /// The frame, made by etherparse.
    fn build(&self) -> Vec<u8> {
        let Names {
            macs,
            source,
            destination,
            ports,
            ttl,
        } = &self.names;
        let mut bytes = macs.to_vec();
        bytes.extend([0x81, 0x00, 0x60, 10].repeat(self.tags));
        let link = Ethernet2Header {
            ether_type: if self.is_v6 {
                EtherType::IPV6
            } else {
                EtherType::IPV4
            },
            ..Default::default()
        };
        bytes.extend(&link.to_bytes()[12..]);
        let mut transport = self.transport_bytes();
        let len = transport.len() + self.payload.len();
        if self.is_v6 {
            let ip = Ipv6Header {
                traffic_class: 3,
                flow_label: Ipv6FlowLabel::ZERO,
                payload_length: len as u16,
                next_header: self.number(),
                hop_limit: *ttl,
                source: *source,
                destination: *destination,
            };
            bytes.extend(ip.to_bytes());
        } else {
            let (source, destination) = self.v4();
            let mut ip = Ipv4Header::new(len as u16, *ttl, self.number(), source, destination)
                .expect("a length that fits");
            ip.identification = ports[0];
            ip.header_checksum = ip.calc_header_checksum();
            bytes.extend(ip.to_bytes());
        }
        bytes.append(&mut transport);
        bytes.extend(&self.payload);
        bytes
    }

    fn transport_bytes(&self) -> Vec<u8> {
        let Names {
            source,
            destination,
            ports,
            ..
        } = &self.names;
        let (source4, destination4) = self.v4();
        match self.protocol {
            Protocol::Tcp => {
                let mut tcp = TcpHeader::new(ports[0], ports[1], 0x0102_0304, 0xffff);
                tcp.ack = true;
                tcp.checksum = if self.is_v6 {
                    tcp.calc_checksum_ipv6_raw(*source, *destination, &self.payload)
                } else {
                    tcp.calc_checksum_ipv4_raw(source4, destination4, &self.payload)
                }
                .expect("a length that fits");
                tcp.to_bytes().to_vec()
            }
            Protocol::UdpBare if !self.is_v6 => {
                UdpHeader::without_ipv4_checksum(ports[0], ports[1], self.payload.len())
                    .expect("a length that fits")
                    .to_bytes()
                    .to_vec()
            }
            Protocol::Udp | Protocol::UdpBare => {
                let mut udp = UdpHeader {
                    source_port: ports[0],
                    destination_port: ports[1],
                    length: (8 + self.payload.len()) as u16,
                    checksum: 0,
                };
                udp.checksum = if self.is_v6 {
                    udp.calc_checksum_ipv6_raw(*source, *destination, &self.payload)
                } else {
                    udp.calc_checksum_ipv4_raw(source4, destination4, &self.payload)
                }
                .expect("a length that fits");
                udp.to_bytes().to_vec()
            }
            Protocol::Icmp => {
                let echo = IcmpEchoHeader {
                    id: ports[0],
                    seq: ports[1],
                };
                if self.is_v6 {
                    Icmpv6Header::with_checksum(
                        Icmpv6Type::EchoRequest(echo),
                        *source,
                        *destination,
                        &self.payload,
                    )
                    .expect("a length that fits")
                    .to_bytes()
                    .to_vec()
                } else {
                    Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(echo), &self.payload)
                        .to_bytes()
                        .to_vec()
                }
            }
        }
    }

    /// Leaves the checksum as a sender with an offload does: the pseudo-header's sum.
    fn unfinish(&self, bytes: &mut [u8]) -> PartialChecksum {
        let len = bytes.len() - self.transport();
        let (source, destination) = self.v4();
        let sum = if self.is_v6 {
            pseudo_header_v6(
                self.names.source.into(),
                self.names.destination.into(),
                self.number().0,
                len as u32,
            )
        } else {
            pseudo_header_v4(
                source.into(),
                destination.into(),
                self.number().0,
                len as u16,
            )
        };
        let at = self.transport() + self.checksum_offset();
        bytes[at..at + 2].copy_from_slice(&sum.partial().to_be_bytes());
        PartialChecksum {
            start: self.transport() as u16,
            at: at as u16,
        }
    }

    /// What makes this frame that with other names and tags.
    fn edits(&self, new: &Names, tags: TagChange) -> Vec<Edit> {
        let mut edits = vec![Edit::Write {
            at: 0,
            bytes: Run::new(&new.macs),
        }];
        let mut network = self.network();
        match tags {
            TagChange::Push => {
                edits.push(Edit::Insert {
                    at: 12,
                    bytes: Run::new(&[0x81, 0, 0, 20]),
                });
                network += 4;
            }
            TagChange::Pop if self.tags > 0 => {
                edits.push(Edit::Remove { at: 12, bytes: 4 });
                network -= 4;
            }
            TagChange::Pop | TagChange::Keep => {}
        }
        let transport = network + self.transport() - self.network();
        let (ttl_at, addresses_at) = if self.is_v6 {
            (network + 7, network + 8)
        } else {
            (network + 8, network + 12)
        };
        let addresses = |names: &Names| {
            let frame = Self {
                names: names.clone(),
                ..self.clone()
            };
            if self.is_v6 {
                [names.source, names.destination].concat()
            } else {
                [frame.v4().0, frame.v4().1].concat()
            }
        };
        let ports = |names: &Names| names.ports.map(u16::to_be_bytes).concat();
        let (old_addresses, new_addresses) = (addresses(&self.names), addresses(new));
        let at = |at: usize, bytes: &[u8]| Edit::Write {
            at: at as u16,
            bytes: Run::new(bytes),
        };
        edits.push(at(ttl_at, &[new.ttl]));
        for (index, run) in new_addresses.chunks(16).enumerate() {
            edits.push(at(addresses_at + 16 * index, run));
        }
        let pseudo = Delta::of(&old_addresses, &new_addresses);
        if !self.is_v6 {
            edits.push(Edit::AdjustIpv4Checksum {
                at: (network + 10) as u16,
                delta: pseudo
                    .and(Delta::of(&[self.names.ttl, 0], &[new.ttl, 0]))
                    .get(),
            });
        }
        let ports_at = transport
            + if self.protocol == Protocol::Icmp {
                4
            } else {
                0
            };
        edits.push(at(ports_at, &ports(new)));
        edits.push(Edit::AdjustTransportChecksum {
            at: (transport + self.checksum_offset()) as u16,
            pseudo_delta: match (self.protocol, self.is_v6) {
                // ICMP for IPv4 has no pseudo-header.
                (Protocol::Icmp, false) => 0,
                _ => pseudo.get(),
            },
            data_delta: Delta::of(&ports(&self.names), &ports(new)).get(),
            kind: match self.protocol {
                Protocol::Udp | Protocol::UdpBare => TransportChecksum::Udp,
                _ => TransportChecksum::Plain,
            },
        });
        edits
    }

    /// What it must have become: made anew. The identification stays that of the old ports.
    fn with(&self, new: &Names, tags: TagChange) -> Vec<u8> {
        let after = Self {
            names: new.clone(),
            ..self.clone()
        };
        let mut bytes = after.build();
        if !self.is_v6 {
            let (mut ip, _) = Ipv4Header::from_slice(&bytes[self.network()..]).expect("IPv4");
            ip.identification = self.names.ports[0];
            ip.header_checksum = ip.calc_header_checksum();
            bytes[self.network()..self.transport()].copy_from_slice(&ip.to_bytes());
        }
        match tags {
            TagChange::Push => {
                bytes.splice(12..12, [0x81, 0, 0, 20]);
            }
            TagChange::Pop if self.tags > 0 => {
                bytes.drain(12..16);
            }
            TagChange::Pop | TagChange::Keep => {}
        }
        bytes
    }
}

/// What puts a tunnel around a frame: 50 bytes, with lengths and header checksum left to the edits.
fn tunnel() -> Vec<Edit> {
    let mut outer = vec![2, 9, 9, 9, 9, 1, 2, 9, 9, 9, 9, 2, 8, 0];
    outer.extend([0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0]);
    outer.extend([192, 0, 2, 1, 192, 0, 2, 2]);
    outer.extend([0xc0, 0x00, 0x12, 0xb5, 0, 0, 0, 0]);
    outer.extend([8, 0, 0, 0, 0, 0, 7, 0]);
    assert_eq!(outer.len(), TUNNEL_BYTES);
    let mut edits: Vec<_> = outer
        .chunks(20)
        .enumerate()
        .map(|(index, run)| Edit::Insert {
            at: 20 * index as u16,
            bytes: Run::new(run),
        })
        .collect();
    edits.extend([
        Edit::WriteLength { at: 16, from: 14 },
        Edit::WriteLength { at: 38, from: 34 },
        Edit::FinishIpv4Checksum { at: 14 },
    ]);
    edits
}

/// The frame that a list makes of another, of which the switch sees the start; its private start's length, and what is unfinished.
fn edited(
    list: &EditList,
    bytes: &[u8],
    partial: Option<PartialChecksum>,
) -> (Vec<u8>, usize, Option<PartialChecksum>) {
    let copied = bytes.len().min(COPY_BYTES);
    let mut buffer = [0xee; COPY_BYTES + MAX_GROWTH_BYTES];
    buffer[..copied].copy_from_slice(&bytes[..copied]);
    let mut frame = EditedFrame {
        buffer: &mut buffer,
        header_bytes: copied,
        frame_bytes: bytes.len(),
        partial_checksum: partial,
    };
    list.apply(&mut frame).expect("room for every edit");
    let (header_bytes, frame_bytes) = (frame.header_bytes, frame.frame_bytes);
    let partial = frame.partial_checksum;
    let result = [&buffer[..header_bytes], &bytes[copied..]].concat();
    assert_eq!(result.len(), frame_bytes);
    assert_eq!(
        result.len() as isize,
        bytes.len() as isize + list.length_delta()
    );
    (result, header_bytes, partial)
}

/// What the receiver does.
fn finish(bytes: &mut [u8], partial: PartialChecksum, protocol: Protocol) {
    let sum = Sum::of(&bytes[usize::from(partial.start)..]);
    let checksum = match protocol {
        Protocol::Udp | Protocol::UdpBare => sum.udp_checksum(),
        _ => sum.checksum(),
    };
    let at = usize::from(partial.at);
    bytes[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// Every checksum of a frame, by etherparse's own computation.
fn assert_checksums(bytes: &[u8]) {
    let sliced = SlicedPacket::from_ethernet(bytes).expect("etherparse accepts it");
    let transport = sliced.transport.expect("a transport header");
    match sliced.net.expect("an IP header") {
        NetSlice::Ipv4(ip) => {
            let ip = ip.header().to_header();
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            match transport {
                TransportSlice::Tcp(tcp) => assert_eq!(
                    Ok(tcp.checksum()),
                    tcp.to_header().calc_checksum_ipv4(&ip, tcp.payload())
                ),
                TransportSlice::Udp(udp) if udp.checksum() == 0 => {}
                TransportSlice::Udp(udp) => assert_eq!(
                    Ok(udp.checksum()),
                    udp.to_header().calc_checksum_ipv4(&ip, udp.payload())
                ),
                TransportSlice::Icmpv4(icmp) => {
                    let expected = icmp.header().icmp_type.calc_checksum(icmp.payload());
                    assert_eq!(icmp.checksum(), expected);
                }
                _ => panic!("no protocol of IPv4 that is made here"),
            }
        }
        NetSlice::Ipv6(ip) => {
            let ip = ip.header().to_header();
            match transport {
                TransportSlice::Tcp(tcp) => assert_eq!(
                    Ok(tcp.checksum()),
                    tcp.to_header().calc_checksum_ipv6(&ip, tcp.payload())
                ),
                TransportSlice::Udp(udp) => assert_eq!(
                    Ok(udp.checksum()),
                    udp.to_header().calc_checksum_ipv6(&ip, udp.payload())
                ),
                TransportSlice::Icmpv6(icmp) => {
                    assert!(icmp.is_checksum_valid(ip.source, ip.destination));
                }
                _ => panic!("no protocol of IPv6 that is made here"),
            }
        }
        NetSlice::Arp(_) => panic!("no IP"),
    }
}

/// The frame in a tunnel, whose own lengths and checksum must hold.
fn inside(bytes: &[u8]) -> &[u8] {
    let sliced = SlicedPacket::from_ethernet(bytes).expect("etherparse accepts the tunnel");
    let Some(NetSlice::Ipv4(ip)) = &sliced.net else {
        panic!("no outer IPv4")
    };
    let header = ip.header().to_header();
    assert_eq!(header.header_checksum, header.calc_header_checksum());
    assert_eq!(usize::from(header.total_len), bytes.len() - 14);
    let udp = UdpSlice::from_slice(&bytes[34..]).expect("outer UDP");
    assert_eq!(usize::from(udp.length()), bytes.len() - 34);
    &bytes[TUNNEL_BYTES..]
}

fn any_names() -> impl Strategy<Value = Names> {
    (
        any::<[u8; 12]>(),
        any::<[u8; 16]>(),
        any::<[u8; 16]>(),
        // Few values: sums that come out as 0 or 0xffff are met.
        prop_oneof![
            any::<[u16; 2]>(),
            prop::sample::select(vec![[0, 0], [0xffff, 0], [0xffff, 0xffff]])
        ],
        any::<u8>(),
    )
        .prop_map(|(macs, source, destination, ports, ttl)| Names {
            macs,
            source,
            destination,
            ports,
            ttl,
        })
}

fn any_frame(longest_payload: usize) -> impl Strategy<Value = Frame> {
    let protocols = vec![
        Protocol::Tcp,
        Protocol::Udp,
        Protocol::UdpBare,
        Protocol::Icmp,
    ];
    (
        0..=2_usize,
        any::<bool>(),
        prop::sample::select(protocols),
        any_names(),
        prop::collection::vec(any::<u8>(), 0..=longest_payload),
    )
        .prop_map(|(tags, is_v6, protocol, names, payload)| Frame {
            tags,
            is_v6,
            protocol,
            names,
            payload,
        })
}

fn any_tag_change() -> impl Strategy<Value = TagChange> {
    prop::sample::select(vec![TagChange::Keep, TagChange::Push, TagChange::Pop])
}

/// Whether the frame has a checksum that can be left unfinished, with a pseudo-header.
fn can_be_partial(frame: &Frame) -> bool {
    frame.protocol == Protocol::Tcp || frame.protocol == Protocol::Udp
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn an_edited_frame_is_the_one_made_with_the_new_names(
        frame in any_frame(200), new in any_names(), tags in any_tag_change(),
        checksum in prop::sample::select(vec![Checksum::Full, Checksum::Partial]),
    ) {
        prop_assume!(checksum == Checksum::Full || can_be_partial(&frame));
        let mut bytes = frame.build();
        let partial = (checksum == Checksum::Partial).then(|| frame.unfinish(&mut bytes));
        let list = EditList::new(frame.edits(&new, tags));
        let (mut result, _, partial) = edited(&list, &bytes, partial);
        if let Some(partial) = partial {
            finish(&mut result, partial, frame.protocol);
        }
        assert_checksums(&result);
        prop_assert_eq!(result, frame.with(&new, tags));
    }

    #[test]
    fn a_tunnel_is_put_around_an_edited_frame_and_removed_again(
        frame in any_frame(200), new in any_names(), checksum in prop::sample::select(vec![Checksum::Full, Checksum::Partial]),
    ) {
        prop_assume!(checksum == Checksum::Full || can_be_partial(&frame));
        let mut bytes = frame.build();
        let partial = (checksum == Checksum::Partial).then(|| frame.unfinish(&mut bytes));
        let mut edits = frame.edits(&new, TagChange::Keep);
        edits.extend(tunnel());
        let list = EditList::new(edits);
        prop_assert_eq!(list.split().0.len() + list.split().1.len(), list.edits().len());
        prop_assert_eq!(list.split().1.len(), tunnel().len());
        let (mut result, _, partial) = edited(&list, &bytes, partial);
        let decapsulate = EditList::new(vec![Edit::Remove { at: 0, bytes: TUNNEL_BYTES as u16 }]);
        let (mut back, _, partial_back) = edited(&decapsulate, &result, partial);
        if let (Some(partial), Some(partial_back)) = (partial, partial_back) {
            finish(&mut result, partial, frame.protocol);
            finish(&mut back, partial_back, frame.protocol);
        }
        prop_assert_eq!(partial.is_some(), partial_back.is_some());
        prop_assert_eq!(inside(&result), &frame.with(&new, TagChange::Keep));
        prop_assert_eq!(back, frame.with(&new, TagChange::Keep));
    }

    #[test]
    fn any_edits_on_any_bytes_stay_in_bounds(
        edits in prop::collection::vec(any_edit(), 0..8),
        len in 0..160_usize, room in 0..160_usize, partial in prop::option::of((0..200_u16, 0..200_u16)),
    ) {
        let mut buffer = vec![0xa5; len + room];
        let mut frame = EditedFrame {
            buffer: &mut buffer,
            header_bytes: len,
            frame_bytes: len + 1000,
            partial_checksum: partial.map(|(start, at)| PartialChecksum { start, at }),
        };
        let list = EditList::new(edits);
        if list.apply(&mut frame).is_ok() {
            prop_assert_eq!(frame.header_bytes as isize, len as isize + list.length_delta());
            prop_assert_eq!(frame.frame_bytes, frame.header_bytes + 1000);
        }
        let used = frame.header_bytes;
        prop_assert!(used <= len + room);
    }
}

fn any_edit() -> impl Strategy<Value = Edit> {
    let run = prop::collection::vec(any::<u8>(), 0..=20).prop_map(|bytes| Run::new(&bytes));
    let at = prop_oneof![0..200_u16, any::<u16>()];
    prop_oneof![
        (at.clone(), run.clone()).prop_map(|(at, bytes)| Edit::Write { at, bytes }),
        (at.clone(), run).prop_map(|(at, bytes)| Edit::Insert { at, bytes }),
        (at.clone(), prop_oneof![0..60_u16, any::<u16>()])
            .prop_map(|(at, bytes)| Edit::Remove { at, bytes }),
        (at.clone(), any::<u16>()).prop_map(|(at, delta)| Edit::AdjustIpv4Checksum { at, delta }),
        (at.clone(), any::<u16>(), any::<u16>()).prop_map(|(at, pseudo_delta, data_delta)| {
            Edit::AdjustTransportChecksum {
                at,
                pseudo_delta,
                data_delta,
                kind: TransportChecksum::Udp,
            }
        }),
        (at.clone(), at.clone()).prop_map(|(at, from)| Edit::WriteLength { at, from }),
        at.prop_map(|at| Edit::FinishIpv4Checksum { at }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_translated_frame_of_64_kib_is_cut_into_right_pieces(
        mut frame in any_frame(0), new in any_names(), tags in any_tag_change(),
        payload_bytes in 60_000..65_000_usize, segment_bytes in 500..9000_u16,
    ) {
        frame.protocol = Protocol::Tcp;
        frame.payload = (0..payload_bytes).map(|at| (at * 7 / 3) as u8).collect();
        let mut bytes = frame.build();
        let partial = frame.unfinish(&mut bytes);
        let list = EditList::new(frame.edits(&new, tags));
        let (result, header_bytes, partial) = edited(&list, &bytes, Some(partial));
        let header = &result[..header_bytes];
        let headers = Headers::parse(header, result.len()).expect("it parses");
        prop_assert_eq!(partial.map(|c| c.start), Some(headers.transport_offset));
        let gso = if frame.is_v6 { Gso::TcpV6 { segment_bytes } } else { Gso::TcpV4 { segment_bytes } };
        let plan = SegmentPlan::new(header, &headers, gso, result.len()).expect("it can be cut");
        let expected = frame.with(&new, tags);
        let network = usize::from(headers.network_offset);
        let mut payload: Vec<u8> = Vec::new();
        for index in 0..plan.count() {
            let mut piece = vec![0; header_bytes + MAX_HEADER_GROWTH_BYTES];
            let segment = plan.write(index, &mut piece).expect("a piece");
            piece.truncate(segment.header_bytes);
            piece.extend(&result[segment.payload.clone()]);
            let pending = segment.checksum.expect("a checksum");
            let checksum = pending.finish(Sum::of(&result[pending.covers.clone()]));
            piece[pending.position..pending.position + 2].copy_from_slice(&checksum.to_be_bytes());
            assert_checksums(&piece);
            prop_assert_eq!(&piece[..network], &expected[..network]);
            let addresses = if frame.is_v6 { network + 8..network + 40 } else { network + 12..network + 20 };
            prop_assert_eq!(&piece[addresses.clone()], &expected[addresses]);
            payload.extend(&piece[segment.header_bytes..]);
        }
        prop_assert_eq!(payload, frame.payload);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let apply = |edit: Edit, room: usize, frame_bytes: usize, partial_checksum| {
        let mut buffer = vec![0; room];
        let mut frame = EditedFrame {
            buffer: &mut buffer,
            header_bytes: 64,
            frame_bytes,
            partial_checksum,
        };
        EditList::new(vec![edit])
            .apply(&mut frame)
            .map(|()| frame.partial_checksum)
    };
    let bytes = Run::new(&[1; 20]);
    let (too_long, at) = (Err(DropReason::HeadersTooLong), 45);
    // Room behind the frame's bytes is not the frame's.
    assert_eq!(apply(Edit::Write { at, bytes }, 200, 64, None), too_long);
    assert_eq!(apply(Edit::Insert { at, bytes }, 83, 64, None), too_long);
    assert_eq!(apply(Edit::Insert { at, bytes }, 84, 64, None), Ok(None));
    let remove = |at, bytes| Edit::Remove { at, bytes };
    assert_eq!(apply(remove(45, 20), 200, 64, None), too_long);
    let length = Edit::WriteLength { at: 16, from: 14 };
    assert_eq!(
        apply(length, 200, 65_550, None),
        Err(DropReason::FrameTooLong)
    );
    assert_eq!(apply(length, 200, 65_549, None), Ok(None));
    let partial = Some(PartialChecksum { start: 34, at: 40 });
    assert_eq!(apply(remove(30, 20), 200, 64, partial), Ok(None), "gone");
    assert_eq!(
        apply(remove(30, 6), 200, 64, partial),
        Err(DropReason::OffloadUnsupported)
    );
}

#[test]
fn a_udp_checksum_that_becomes_zero_is_sent_as_all_ones() {
    for (checksum, data_delta, expected) in [(0, 7, 0), (5, 5, 0xffff), (5, 4, 1)] {
        let mut buffer = [0; 60];
        buffer[40..42].copy_from_slice(&u16::to_be_bytes(checksum));
        let mut frame = EditedFrame {
            buffer: &mut buffer,
            header_bytes: 60,
            frame_bytes: 60,
            partial_checksum: None,
        };
        let adjust = Edit::AdjustTransportChecksum {
            at: 40,
            pseudo_delta: 0,
            data_delta,
            kind: TransportChecksum::Udp,
        };
        EditList::new(vec![adjust]).apply(&mut frame).expect("room");
        assert_eq!(buffer[40..42], u16::to_be_bytes(expected), "{checksum}");
    }
}
