//! The parser against `etherparse`: what it reads from valid frames, what it makes of bytes that are none, and what it says of
//! headers that go on beyond the private copy.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use etherparse::{
    EtherType, IpAuthHeader, IpFragOffset, IpNumber, Ipv4Header, Ipv4Options, Ipv6ExtensionSlice,
    Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, LinkExtSlice, LinkSlice, NetSlice,
    SlicedPacket, TcpHeader, TransportSlice, UdpHeader,
};
use proptest::prelude::*;
use switch_core::parse::{
    EthernetHeader, Headers, Layer, MAX_EXTENSION_HEADERS, MAX_VLAN_TAGS, Network, ParseEnd,
    Transport,
};

/// A network and transport header as bytes: the EtherType and what follows it.
fn any_packet() -> impl Strategy<Value = (u16, Vec<u8>)> {
    prop_oneof![
        any_ipv4(),
        any_ipv6(),
        any_arp(),
        (
            0x8847..0x8880_u16,
            prop::collection::vec(any::<u8>(), 0..60)
        )
    ]
}

/// A protocol number and the bytes of its header and payload.
fn any_transport() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let payload = || prop::collection::vec(any::<u8>(), 0..40);
    let tcp = (
        any::<[u16; 3]>(),
        any::<[u32; 2]>(),
        any::<u8>(),
        0..=10_usize,
        payload(),
    )
        .prop_map(
            |(
                [source, destination, window],
                [sequence, acknowledgment],
                flags,
                option_words,
                payload,
            )| {
                let mut header = TcpHeader::new(source, destination, sequence, window);
                header.acknowledgment_number = acknowledgment;
                (header.fin, header.syn, header.psh, header.cwr) = (
                    flags & 1 != 0,
                    flags & 2 != 0,
                    flags & 4 != 0,
                    flags & 8 != 0,
                );
                header.ack = flags & 16 != 0;
                header
                    .set_options_raw(&vec![1; option_words * 4])
                    .expect("at most ten words");
                (6, [header.to_bytes().to_vec(), payload].concat())
            },
        );
    let udp = (any::<[u16; 3]>(), payload()).prop_map(
        |([source_port, destination_port, checksum], payload)| {
            let header = UdpHeader {
                source_port,
                destination_port,
                length: 8 + payload.len() as u16,
                checksum,
            };
            (17, [header.to_bytes().to_vec(), payload].concat())
        },
    );
    let icmp = (
        prop::sample::select(vec![1_u8, 58]),
        any::<[u8; 8]>()
            // A timestamp, which has twelve bytes more, is refused without them (RFC 792).
            .prop_filter("no timestamp", |header| !matches!(header, [13 | 14, ..])),
        payload(),
    )
        .prop_map(|(protocol, header, payload)| (protocol, [header.to_vec(), payload].concat()));
    let other = (
        prop::sample::select(vec![41_u8, 47, 50, 59, 89, 132]),
        payload(),
    );
    prop_oneof![3 => tcp, 3 => udp, 2 => icmp, 1 => other]
}

fn any_ipv4() -> impl Strategy<Value = (u16, Vec<u8>)> {
    let addresses = any::<[[u8; 4]; 2]>();
    (
        any_transport(),
        addresses,
        0..=10_usize,
        any::<u16>(),
        any::<(bool, bool, u8)>(),
        0..4_u16,
    )
        .prop_map(
            |(
                (protocol, rest),
                [source, destination],
                option_words,
                identification,
                (df, mf, ttl),
                place,
            )| {
                let mut header = Ipv4Header::new(
                    rest.len() as u16,
                    ttl,
                    IpNumber(protocol),
                    source,
                    destination,
                )
                .expect("a short payload");
                header.options = Ipv4Options::try_from(&vec![1; option_words * 4][..])
                    .expect("at most ten words");
                header.set_payload_len(rest.len()).expect("a short payload");
                header.identification = identification;
                header.dont_fragment = df;
                header.more_fragments = mf && place > 1;
                header.fragment_offset =
                    IpFragOffset::try_new(place.saturating_sub(2)).expect("small");
                (0x0800, [header.to_bytes().to_vec(), rest].concat())
            },
        )
}

fn any_ipv6() -> impl Strategy<Value = (u16, Vec<u8>)> {
    // Each as the RFC orders them; the fragment header holds its place and flag.
    let extensions = (
        any::<[bool; 5]>(),
        prop::sample::select(vec![0_usize, 1, 3]),
        prop::sample::select(vec![
            None,
            Some((0_u16, false)),
            Some((0, true)),
            Some((5, true)),
            Some((9, false)),
        ]),
    );
    (
        any_transport(),
        any::<[[u8; 16]; 2]>(),
        any::<[u8; 2]>(),
        0..1_u32 << 20,
        extensions,
    )
        .prop_map(
            |(
                (protocol, rest),
                [source, destination],
                [traffic_class, hop_limit],
                label,
                (present, units, fragment),
            )| {
                let mut chain: Vec<(u8, Vec<u8>)> = Vec::new();
                let raw = |number: u8| (number, vec![0; 6 + units * 8]);
                for (wanted, number) in present.into_iter().zip([0_u8, 60, 43, 51]) {
                    if wanted {
                        chain.push(raw(number));
                    }
                }
                if let Some((place, more)) = fragment {
                    chain.push((44, (place << 3 | u16::from(more)).to_be_bytes().to_vec()));
                }
                let mut next = protocol;
                let mut bytes = rest;
                for (number, contents) in chain.iter().rev() {
                    let header = match number {
                        44 => {
                            let place = u16::from_be_bytes([contents[0], contents[1]]);
                            let offset = IpFragOffset::try_new(place >> 3).expect("small");
                            Ipv6FragmentHeader::new(IpNumber(next), offset, place & 1 != 0, 7)
                                .to_bytes()
                                .to_vec()
                        }
                        51 => IpAuthHeader::new(IpNumber(next), 1, 2, &contents[..units * 8])
                            .expect("whole words")
                            .to_bytes()
                            .to_vec(),
                        _ => Ipv6RawExtHeader::new_raw(IpNumber(next), contents)
                            .expect("whole units")
                            .to_bytes()
                            .to_vec(),
                    };
                    next = *number;
                    bytes = [header, bytes].concat();
                }
                let header = Ipv6Header {
                    traffic_class,
                    flow_label: label.try_into().expect("20 bits"),
                    payload_length: bytes.len() as u16,
                    next_header: IpNumber(next),
                    hop_limit,
                    source,
                    destination,
                };
                (0x86dd, [header.to_bytes().to_vec(), bytes].concat())
            },
        )
}

fn any_arp() -> impl Strategy<Value = (u16, Vec<u8>)> {
    (any::<[u8; 20]>(), 1..=2_u8).prop_map(|(addresses, operation)| {
        (
            0x0806,
            [&[0, 1, 8, 0, 6, 4, 0, operation][..], &addresses].concat(),
        )
    })
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let tag = (
        prop::sample::select(vec![0x8100_u16, 0x88a8, 0x9100]),
        any::<u16>(),
    );
    (
        any::<[u8; 12]>(),
        prop::collection::vec(tag, 0..=3),
        any_packet(),
    )
        .prop_map(|(addresses, tags, (ether_type, packet))| {
            let mut frame = addresses.to_vec();
            for (tpid, tci) in tags {
                frame.extend(tpid.to_be_bytes());
                frame.extend(tci.to_be_bytes());
            }
            frame.extend(ether_type.to_be_bytes());
            frame.extend(packet);
            frame
        })
}

/// Asserts that a frame that `etherparse` accepts reads the same here.
fn agree(frame: &[u8]) -> Result<(), TestCaseError> {
    let parsed = Headers::parse(frame, frame.len());
    // Beyond our bounds etherparse goes on, or we do.
    if let Ok(Headers {
        end: ParseEnd::TooManyExtensions | ParseEnd::TooManyTags,
        ..
    }) = parsed
    {
        return Ok(());
    }
    let Ok(sliced) = SlicedPacket::from_ethernet(frame) else {
        return Ok(());
    };
    let ours = parsed.map_err(|reason| TestCaseError::fail(format!("dropped: {reason}")))?;
    let Some(LinkSlice::Ethernet2(ethernet)) = &sliced.link else {
        return Err(TestCaseError::fail("no Ethernet"));
    };
    prop_assert_eq!(ours.ethernet.source.0, ethernet.source());
    prop_assert_eq!(ours.ethernet.destination.0, ethernet.destination());

    let vlans: Vec<_> = sliced
        .link_exts
        .iter()
        .filter_map(|ext| match ext {
            LinkExtSlice::Vlan(vlan) => Some(vlan),
            _ => None,
        })
        .collect();
    if vlans.len() != sliced.link_exts.len() {
        // MACsec, which the core treats as a protocol it does not know.
        return Ok(());
    }
    let tcis = [ours.ethernet.tag, ours.inner_tag]
        .into_iter()
        .flatten()
        .map(|tag| tag.tci);
    for (tci, vlan) in tcis.zip(&vlans) {
        prop_assert_eq!(tci.vid(), vlan.vlan_identifier().value());
        prop_assert_eq!(tci.priority(), vlan.priority_code_point().value());
    }
    if vlans.len() == SlicedPacket::LINK_EXTS_CAP && usize::from(ours.vlan_tags) > vlans.len() {
        return Ok(());
    }
    prop_assert_eq!(usize::from(ours.vlan_tags), vlans.len());
    let last_type = vlans
        .last()
        .map_or(ethernet.ether_type(), |vlan| vlan.ether_type());
    prop_assert_eq!(EtherType(ours.ether_type), last_type);
    agree_on_network(&ours, &sliced)?;
    agree_on_transport(&ours, &sliced)
}

fn agree_on_network(ours: &Headers, sliced: &SlicedPacket<'_>) -> Result<(), TestCaseError> {
    match (&sliced.net, &ours.network) {
        (Some(NetSlice::Ipv4(theirs)), Some(Network::Ipv4(ours))) => {
            let header = theirs.header();
            prop_assert_eq!(ours.header_bytes, header.ihl() * 4);
            prop_assert_eq!(ours.total_bytes, header.total_len());
            prop_assert_eq!(ours.identification, header.identification());
            prop_assert_eq!(ours.dont_fragment, header.dont_fragment());
            prop_assert_eq!(ours.more_fragments, header.more_fragments());
            prop_assert_eq!(
                ours.fragment_offset_bytes,
                header.fragments_offset().byte_offset()
            );
            prop_assert_eq!(
                (ours.ttl, ours.checksum),
                (header.ttl(), header.header_checksum())
            );
            prop_assert_eq!(ours.protocol, header.protocol().0);
            prop_assert_eq!(ours.source, header.source_addr());
            prop_assert_eq!(ours.destination, header.destination_addr());
            prop_assert_eq!(ours.is_fragment(), theirs.is_payload_fragmented());
        }
        (Some(NetSlice::Ipv6(theirs)), Some(Network::Ipv6(ours))) => {
            let header = theirs.header();
            prop_assert_eq!(ours.traffic_class, header.traffic_class());
            prop_assert_eq!(ours.flow_label, header.flow_label().value());
            prop_assert_eq!(ours.payload_bytes, header.payload_length());
            prop_assert_eq!(ours.next_header, header.next_header().0);
            prop_assert_eq!(ours.hop_limit, header.hop_limit());
            prop_assert_eq!(ours.source, header.source_addr());
            prop_assert_eq!(ours.destination, header.destination_addr());
            let (bytes, their_bytes) = (
                usize::from(ours.extensions.bytes),
                theirs.extensions().slice().len(),
            );
            // Theirs reads on behind the header of a later fragment, where RFC 8200 §4.5 has no headers.
            let is_later_fragment =
                (ours.extensions.fragment).is_some_and(|fragment| fragment.offset_bytes != 0);
            prop_assert!(
                bytes == their_bytes || is_later_fragment && bytes < their_bytes,
                "{} {}",
                bytes,
                their_bytes
            );
            let fragments = theirs
                .extensions()
                .clone()
                .into_iter()
                .filter_map(|extension| match extension {
                    Ipv6ExtensionSlice::Fragment(fragment) => Some(fragment),
                    _ => None,
                });
            if fragments.clone().count() > 1 {
                // Nobody sends that; of several, ours is the last, theirs any.
                return Ok(());
            }
            let fragment = ours.extensions.fragment;
            prop_assert_eq!(
                fragments.last().map(|of| (
                    of.fragment_offset().byte_offset(),
                    of.more_fragments(),
                    of.identification()
                )),
                fragment.map(|of| (of.offset_bytes, of.more_fragments, of.identification))
            );
            let is_fragment = ours
                .extensions
                .fragment
                .is_some_and(|fragment| fragment.is_fragment());
            prop_assert_eq!(is_fragment, theirs.is_payload_fragmented());
        }
        (Some(NetSlice::Arp(theirs)), Some(Network::Arp(ours))) => {
            prop_assert_eq!(ours.operation, theirs.operation().0);
            prop_assert_eq!(&ours.sender_mac.0[..], theirs.sender_hw_addr());
            prop_assert_eq!(&ours.sender_ip.octets()[..], theirs.sender_protocol_addr());
            prop_assert_eq!(&ours.target_mac.0[..], theirs.target_hw_addr());
            prop_assert_eq!(&ours.target_ip.octets()[..], theirs.target_protocol_addr());
        }
        (Some(NetSlice::Arp(theirs)), None) => {
            let kind = (
                theirs.hw_addr_type().0,
                theirs.proto_addr_type().0,
                theirs.hw_addr_size(),
            );
            prop_assert_ne!((kind, theirs.proto_addr_size()), ((1, 0x0800, 6), 4));
        }
        (None, None) => {}
        (theirs, ours) => return Err(TestCaseError::fail(format!("{theirs:?} read as {ours:?}"))),
    }
    Ok(())
}

fn agree_on_transport(ours: &Headers, sliced: &SlicedPacket<'_>) -> Result<(), TestCaseError> {
    let payload_offset =
        |headers: &Headers| usize::from(headers.payload_offset - headers.transport_offset);
    match (&sliced.transport, &ours.transport) {
        (Some(TransportSlice::Tcp(theirs)), Some(Transport::Tcp(tcp))) => {
            prop_assert_eq!(tcp.source_port, theirs.source_port());
            prop_assert_eq!(tcp.destination_port, theirs.destination_port());
            prop_assert_eq!(tcp.sequence, theirs.sequence_number());
            prop_assert_eq!(tcp.acknowledgment, theirs.acknowledgment_number());
            prop_assert_eq!(tcp.flags.0, theirs.header_slice()[13]);
            prop_assert_eq!(
                (tcp.window, tcp.checksum),
                (theirs.window_size(), theirs.checksum())
            );
            prop_assert_eq!(tcp.urgent, theirs.urgent_pointer());
            prop_assert_eq!(payload_offset(ours), theirs.header_len());
        }
        (Some(TransportSlice::Udp(theirs)), Some(Transport::Udp(udp))) => {
            prop_assert_eq!(udp.source_port, theirs.source_port());
            prop_assert_eq!(udp.destination_port, theirs.destination_port());
            prop_assert_eq!(
                (udp.length_bytes, udp.checksum),
                (theirs.length(), theirs.checksum())
            );
        }
        (Some(TransportSlice::Icmpv4(theirs)), Some(Transport::Icmp(icmp))) => {
            prop_assert_eq!((icmp.kind, icmp.code), (theirs.type_u8(), theirs.code_u8()));
            prop_assert_eq!(icmp.rest.to_be_bytes(), theirs.bytes5to8());
        }
        (Some(TransportSlice::Icmpv6(theirs)), Some(Transport::Icmpv6(icmp))) => {
            prop_assert_eq!((icmp.kind, icmp.code), (theirs.type_u8(), theirs.code_u8()));
        }
        // etherparse reads no transport header in any fragment; the first one has it.
        (None, Some(_)) => {
            let first_fragment = match ours.network {
                Some(Network::Ipv4(ip)) => ip.is_fragment() && ip.fragment_offset_bytes == 0,
                Some(Network::Ipv6(ip)) => ip
                    .extensions
                    .fragment
                    .is_some_and(|fragment| fragment.more_fragments),
                _ => false,
            };
            prop_assert!(first_fragment, "{:?}", ours);
        }
        // IGMP is none that the core knows.
        (None | Some(TransportSlice::Igmp(_)), None) => {}
        (theirs, ours) => return Err(TestCaseError::fail(format!("{theirs:?} read as {ours:?}"))),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn valid_frames_read_as_etherparse_reads_them(frame in any_frame()) {
        prop_assert!(SlicedPacket::from_ethernet(&frame).is_ok());
        agree(&frame)?;
    }

    #[test]
    fn damaged_frames_read_as_etherparse_reads_them_where_it_accepts_them(
        mut frame in any_frame(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        keep in any::<prop::sample::Index>(),
    ) {
        for (place, byte) in damage {
            *place.get_mut(&mut frame) = byte;
        }
        agree(&frame)?;
        agree(&frame[..keep.index(frame.len())])?;
    }

    #[test]
    fn random_bytes_are_parsed_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), beyond in 0..70_000_usize) {
        agree(&bytes)?;
        if let Ok(headers) = Headers::parse(&bytes, bytes.len() + beyond) {
            prop_assert!(usize::from(headers.payload_offset) <= bytes.len());
            prop_assert!(headers.network_offset <= headers.transport_offset);
            prop_assert!(headers.transport_offset <= headers.payload_offset);
        }
    }

    #[test]
    fn a_copy_that_ends_early_says_so_and_invents_nothing(frame in any_frame(), keep in any::<prop::sample::Index>()) {
        let keep = keep.index(frame.len());
        let Ok(whole) = Headers::parse(&frame, frame.len()) else { return Ok(()) };
        let Ok(part) = Headers::parse(&frame[..keep], frame.len()) else { return Ok(()) };
        if usize::from(whole.payload_offset) <= keep && whole.end == ParseEnd::Complete {
            // An ARP packet of another kind, or one cut short, may be told apart only by bytes beyond.
            prop_assert_eq!(part, whole);
        } else if part != whole {
            prop_assert!(matches!(part.end, ParseEnd::BeyondCopy(_)), "{:?}", part);
            prop_assert!(part.transport.is_none() && usize::from(part.payload_offset) <= keep);
        }
    }

    #[test]
    fn both_readers_of_the_ethernet_header_agree(frame in any_frame(), keep in any::<prop::sample::Index>()) {
        let frame = &frame[..keep.index(frame.len() + 1)];
        let headers = Headers::parse(frame, frame.len()).map(|headers| headers.ethernet);
        prop_assert_eq!(headers, EthernetHeader::parse(frame));
    }
}

/// An Ethernet and IPv6 header with this next header, and what follows.
fn ipv6(next_header: u8, rest: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 14 + 40];
    frame[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
    frame[18..20].copy_from_slice(&(rest.len() as u16).to_be_bytes());
    frame[20] = next_header;
    frame.extend(rest);
    frame
}

#[test]
fn hostile_headers_end_the_parse_where_they_lie() {
    let mut ipv4 = vec![0; 14 + 20 + 20];
    ipv4[12..15].copy_from_slice(&[0x08, 0x00, 0x45]);
    ipv4[17] = 40;
    ipv4[23] = 6;
    ipv4[46] = 0x50;
    let with = |changes: &[(usize, u8)]| {
        let mut frame = ipv4.clone();
        changes
            .iter()
            .for_each(|&(place, byte)| frame[place] = byte);
        frame
    };
    let hop_by_hop: Vec<u8> = [0_u8, 0, 1, 4, 0, 0, 0, 0].repeat(2);
    let options: Vec<u8> = [60_u8, 0, 1, 4, 0, 0, 0, 0].repeat(MAX_EXTENSION_HEADERS + 1);
    let tags = [
        &[0; 12][..],
        &[0x81, 0, 0, 1].repeat(MAX_VLAN_TAGS + 1),
        &[0x08, 0],
    ]
    .concat();
    let cases = [
        ("a good packet", with(&[]), ParseEnd::Complete),
        (
            "version 5",
            with(&[(14, 0x55)]),
            ParseEnd::Malformed(Layer::Network),
        ),
        (
            "a header of four words",
            with(&[(14, 0x44)]),
            ParseEnd::Malformed(Layer::Network),
        ),
        (
            "a total length below the header's",
            with(&[(17, 19)]),
            ParseEnd::Malformed(Layer::Network),
        ),
        (
            "a total length beyond the frame",
            with(&[(17, 41)]),
            ParseEnd::Truncated(Layer::Network),
        ),
        (
            "a total length that cuts TCP",
            with(&[(17, 39)]),
            ParseEnd::Truncated(Layer::Transport),
        ),
        (
            "options that reach into TCP",
            with(&[(14, 0x4a)]),
            ParseEnd::Truncated(Layer::Transport),
        ),
        (
            "a TCP header of four words",
            with(&[(46, 0x40)]),
            ParseEnd::Malformed(Layer::Transport),
        ),
        (
            "TCP options beyond the packet",
            with(&[(46, 0x60)]),
            ParseEnd::Truncated(Layer::Transport),
        ),
        (
            "IPv6 of version 4",
            with(&[(12, 0x86), (13, 0xdd)]),
            ParseEnd::Malformed(Layer::Network),
        ),
        (
            "hop-by-hop options twice",
            ipv6(0, &hop_by_hop),
            ParseEnd::Malformed(Layer::Network),
        ),
        (
            "an extension beyond the packet",
            ipv6(60, &[6, 9, 0, 0, 0, 0, 0, 0]),
            ParseEnd::Truncated(Layer::Network),
        ),
        (
            "an authentication header of no length",
            ipv6(51, &[6, 0, 0, 0, 0, 0, 0, 0]),
            ParseEnd::Malformed(Layer::Network),
        ),
        (
            "a fragment header cut short",
            ipv6(44, &[6, 0, 0]),
            ParseEnd::Truncated(Layer::Network),
        ),
        (
            "too many extension headers",
            ipv6(60, &options),
            ParseEnd::TooManyExtensions,
        ),
        ("too many VLAN tags", tags, ParseEnd::TooManyTags),
    ];
    for (name, frame, end) in cases {
        let headers = Headers::parse(&frame, frame.len()).expect("an Ethernet header");
        assert_eq!(headers.end, end, "{name}: {headers:?}");
    }
}
