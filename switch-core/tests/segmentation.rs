//! Software segmentation, checked with `etherparse`: the pieces put together give the original, and every checksum holds.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use etherparse::{
    IpNumber, Ipv4Header, Ipv6ExtensionSlice, Ipv6Header, Ipv6RawExtHeader, NetSlice, SlicedPacket,
    TcpHeader, TransportSlice, UdpHeader,
};
use proptest::prelude::*;
use switch_core::checksum::Sum;
use switch_core::parse::Headers;
use switch_core::segment::{Gso, MAX_HEADER_GROWTH_BYTES, MAX_SEGMENTS, SegmentPlan};
use switch_core::{DropReason, VlanEdit};

/// The bytes of a frame that the switch sees.
const COPY_BYTES: usize = 256;

#[derive(Clone, Debug)]
struct Recipe {
    tags: usize,
    ip: Ip,
    /// In units of four bytes for IPv4, whose options they become.
    option_words: usize,
    payload: Vec<u8>,
    piece_bytes: u16,
    tcp_flags: u8,
    sequence: u32,
    identification: u16,
}

#[derive(Clone, Debug, PartialEq)]
enum Ip {
    V4,
    /// With these extension headers.
    V6(Vec<u8>),
}

const V4_ADDRESSES: ([u8; 4], [u8; 4]) = ([10, 1, 2, 3], [10, 250, 6, 7]);
const V6_ADDRESSES: ([u8; 16], [u8; 16]) = ([0xfd; 16], [0xfe; 16]);

fn ethernet(tags: usize, ip: &Ip) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    bytes.extend([0x81, 0x00, 0x60, 10].repeat(tags));
    bytes.extend(if *ip == Ip::V4 {
        [0x08, 0x00]
    } else {
        [0x86, 0xdd]
    });
    bytes
}

impl Recipe {
    /// The frame whose IP payload this is, as a sender with offloads leaves it: lengths right, checksums not.
    fn frame(&self, protocol: u8, transport: &[u8]) -> Vec<u8> {
        let mut frame = ethernet(self.tags, &self.ip);
        match &self.ip {
            Ip::V4 => {
                let (source, destination) = V4_ADDRESSES;
                let mut header =
                    Ipv4Header::new(0, 64, IpNumber(protocol), source, destination).expect("valid");
                // One option that every fragment repeats (the copied flag), then such as only the first one has.
                let mut options = [1_u8; 40];
                options[..4].copy_from_slice(&[0x94, 4, 0, 0]);
                options[4..8].copy_from_slice(&[0x07, 4, 9, 9]);
                header.options = options[..self.option_words * 4]
                    .try_into()
                    .expect("at most ten words");
                header
                    .set_payload_len(transport.len())
                    .expect("at most 64 KiB");
                header.identification = self.identification;
                frame.extend(header.to_bytes());
                frame.extend(transport);
            }
            Ip::V6(extensions) => {
                let (source, destination) = V6_ADDRESSES;
                let (mut next, mut rest) = (protocol, Vec::new());
                for &number in extensions.iter().rev() {
                    let header = Ipv6RawExtHeader::new_raw(IpNumber(next), &[0, 0, 1, 2, 0, 0])
                        .expect("one unit");
                    rest = [header.to_bytes().to_vec(), rest].concat();
                    next = number;
                }
                let header = Ipv6Header {
                    payload_length: (rest.len() + transport.len()) as u16,
                    next_header: IpNumber(next),
                    hop_limit: 64,
                    source,
                    destination,
                    ..Ipv6Header::default()
                };
                frame.extend(header.to_bytes());
                frame.extend(rest);
                frame.extend(transport);
            }
        }
        frame
    }

    fn tcp_frame(&self) -> Vec<u8> {
        let mut header = TcpHeader::new(1234, 80, self.sequence, 1000);
        header
            .set_options_raw(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2])
            .expect("timestamps fit");
        header.checksum = 0xdead;
        let mut bytes = header.to_bytes().to_vec();
        bytes[13] = self.tcp_flags;
        bytes.extend(&self.payload);
        self.frame(6, &bytes)
    }

    fn udp_frame(&self) -> Vec<u8> {
        let header = UdpHeader {
            source_port: 53,
            destination_port: 99,
            length: 8 + self.payload.len() as u16,
            checksum: 0xdead,
        };
        self.frame(17, &[&header.to_bytes()[..], &self.payload].concat())
    }

    fn tcp_gso(&self) -> Gso {
        match self.ip {
            Ip::V4 => Gso::TcpV4 {
                segment_bytes: self.piece_bytes,
            },
            Ip::V6(_) => Gso::TcpV6 {
                segment_bytes: self.piece_bytes,
            },
        }
    }
}

fn plan_of(frame: &[u8], gso: Gso) -> Result<Vec<Vec<u8>>, DropReason> {
    let header = &frame[..frame.len().min(COPY_BYTES)];
    let headers = Headers::parse(header, frame.len())?;
    let plan = SegmentPlan::new(header, &headers, gso, frame.len())?;
    assert!((1..=MAX_SEGMENTS).contains(&plan.count()));
    let mut buffer = [0xee; COPY_BYTES + MAX_HEADER_GROWTH_BYTES];
    assert_eq!(plan.write(plan.count(), &mut buffer), None);
    Ok((0..plan.count())
        .map(|index| {
            let segment = plan
                .write(index, &mut buffer)
                .expect("the buffer is large enough");
            let mut piece = buffer[..segment.header_bytes].to_vec();
            if let Some(checksum) = segment.checksum {
                let finished = checksum.finish(Sum::of(&frame[checksum.covers.clone()]));
                piece[checksum.position..][..2].copy_from_slice(&finished.to_be_bytes());
            }
            piece.extend(&frame[segment.payload]);
            piece
        })
        .collect())
}

/// The pieces' common frame around the IP packet must be the original's.
fn assert_link_is_kept(frame: &[u8], piece: &[u8], tags: usize) {
    assert_eq!(piece[..14 + 4 * tags], frame[..14 + 4 * tags]);
}

fn assert_ipv4_header_holds(net: &NetSlice<'_>) {
    if let NetSlice::Ipv4(ip) = net {
        let header = ip.header().to_header();
        assert_eq!(header.header_checksum, header.calc_header_checksum());
    }
}

fn any_recipe(longest_payload: usize) -> impl Strategy<Value = Recipe> {
    let extensions = prop::sample::select(vec![
        vec![],
        vec![0],
        vec![60],
        vec![0, 60],
        vec![0, 60, 43],
        vec![43, 60],
    ]);
    let ip = prop_oneof![Just(Ip::V4), extensions.prop_map(Ip::V6)];
    let payload = (0..=longest_payload, any::<u8>()).prop_map(|(len, salt)| {
        (0..len)
            .map(|at| (at as u8).wrapping_mul(31).wrapping_add(salt))
            .collect()
    });
    let numbers = (any::<u8>(), any::<u32>(), any::<u16>());
    (
        0..=2_usize,
        ip,
        0..=10_usize,
        payload,
        64..=9_000_u16,
        numbers,
    )
        .prop_map(
            |(
                tags,
                ip,
                option_words,
                payload,
                piece_bytes,
                (tcp_flags, sequence, identification),
            )| Recipe {
                tags,
                ip,
                option_words,
                payload,
                piece_bytes,
                tcp_flags,
                sequence,
                identification,
            },
        )
}

/// One TCP segment, read by etherparse.
fn check_tcp_segment(recipe: &Recipe, index: usize, count: usize, piece: &[u8]) -> Vec<u8> {
    let sliced = SlicedPacket::from_ethernet(piece).expect("etherparse accepts every segment");
    let net = sliced.net.expect("an IP header");
    assert_ipv4_header_holds(&net);
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
        panic!("no TCP")
    };
    let header = tcp.to_header();
    match &net {
        NetSlice::Ipv4(ip) => {
            let ip = ip.header().to_header();
            assert_eq!(
                ip.identification,
                recipe.identification.wrapping_add(index as u16)
            );
            assert_eq!(
                Ok(header.checksum),
                header.calc_checksum_ipv4(&ip, tcp.payload())
            );
        }
        NetSlice::Ipv6(ip) => {
            assert_eq!(
                Ok(header.checksum),
                header.calc_checksum_ipv6(&ip.header().to_header(), tcp.payload())
            );
        }
        NetSlice::Arp(_) => panic!("no IP"),
    }
    assert_eq!(
        header.sequence_number,
        recipe
            .sequence
            .wrapping_add(index as u32 * u32::from(recipe.piece_bytes))
    );
    let (first, last) = (index == 0, index + 1 == count);
    let sent = |flag: u8| recipe.tcp_flags & flag != 0;
    assert_eq!(
        (header.fin, header.psh),
        (sent(0x01) && last, sent(0x08) && last)
    );
    assert_eq!(
        (header.cwr, header.ece, header.ack),
        (sent(0x80) && first, sent(0x40), sent(0x10))
    );
    assert!(last || tcp.payload().len() == usize::from(recipe.piece_bytes));
    tcp.payload().to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn tcp_segments_put_together_give_the_original(recipe in any_recipe(60_000)) {
        let frame = recipe.tcp_frame();
        let pieces = plan_of(&frame, recipe.tcp_gso()).expect("a valid frame");
        let mut payload = Vec::new();
        for (index, piece) in pieces.iter().enumerate() {
            assert_link_is_kept(&frame, piece, recipe.tags);
            payload.extend(check_tcp_segment(&recipe, index, pieces.len(), piece));
        }
        prop_assert_eq!(payload, recipe.payload);
    }

    #[test]
    fn udp_fragments_put_together_give_the_datagram(recipe in any_recipe(60_000)) {
        let frame = recipe.udp_frame();
        let gso = Gso::Udp { fragment_bytes: recipe.piece_bytes, identification: 77 };
        let pieces = plan_of(&frame, gso).expect("a valid frame");
        let mut datagram = Vec::new();
        for (index, piece) in pieces.iter().enumerate() {
            assert_link_is_kept(&frame, piece, recipe.tags);
            let last = index + 1 == pieces.len();
            datagram.extend(check_fragment(&recipe, piece, datagram.len(), last));
        }
        check_datagram(&recipe, &datagram);
    }

    #[test]
    fn hostile_frames_are_refused_or_cut_within_bounds(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        recipe in any_recipe(500),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        size: u16,
        beyond in 0..80_000_usize,
    ) {
        let udp = Gso::Udp { fragment_bytes: size, identification: 1 };
        for mut frame in [bytes, recipe.tcp_frame(), recipe.udp_frame()] {
            for (place, byte) in &damage {
                if !frame.is_empty() {
                    *place.get_mut(&mut frame) = *byte;
                }
            }
            frame.resize(frame.len() + beyond, 0);
            for gso in [Gso::TcpV4 { segment_bytes: size }, Gso::TcpV6 { segment_bytes: size }, udp] {
                if let Ok(pieces) = plan_of(&frame, gso) {
                    // No piece is larger than asked for, headers apart, nor all of them together larger than the frame.
                    prop_assert!(pieces.iter().all(|piece| piece.len() <= COPY_BYTES + 8 + usize::from(size)));
                    let headers = pieces.len() * (COPY_BYTES + MAX_HEADER_GROWTH_BYTES);
                    prop_assert!(pieces.iter().map(Vec::len).sum::<usize>() <= frame.len() + headers);
                }
            }
        }
    }
}

/// One fragment, read by etherparse; returns its part of the datagram, extension headers included.
fn check_fragment(recipe: &Recipe, piece: &[u8], place: usize, last: bool) -> Vec<u8> {
    let mut readable = piece.to_vec();
    if let (Ip::V6(extensions), true) = (&recipe.ip, place > 0) {
        // etherparse goes on to read extension headers where a later fragment has only their middle.
        let unfragmentable = unfragmentable_bytes(&recipe.ip);
        let next_header = &mut readable[14 + 4 * recipe.tags + 40 + unfragmentable];
        assert_eq!(
            *next_header,
            extensions.get(unfragmentable / 8).copied().unwrap_or(17)
        );
        *next_header = 17;
    }
    let sliced = SlicedPacket::from_ethernet(&readable).expect("etherparse accepts every fragment");
    let net = sliced.net.expect("an IP header");
    assert_ipv4_header_holds(&net);
    match net {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            let expected = if recipe.identification == 0 {
                77
            } else {
                recipe.identification
            };
            assert_eq!(header.identification(), expected);
            assert_eq!(usize::from(header.fragments_offset().byte_offset()), place);
            assert_eq!(
                (header.more_fragments(), header.dont_fragment()),
                (!last, false)
            );
            if place > 0 && recipe.option_words > 1 {
                assert_eq!(header.options()[..8], [0x94, 4, 0, 0, 1, 1, 1, 1]);
            }
            let start = 14 + 4 * recipe.tags + usize::from(header.ihl()) * 4;
            let part = piece[start..].to_vec();
            assert!(part.len() <= usize::from(recipe.piece_bytes));
            part
        }
        NetSlice::Ipv6(ip) => {
            let fragment =
                ip.extensions()
                    .clone()
                    .into_iter()
                    .find_map(|extension| match extension {
                        Ipv6ExtensionSlice::Fragment(fragment) => Some(fragment),
                        _ => None,
                    });
            let fragment = fragment.expect("a fragment header");
            assert_eq!(fragment.identification(), 77);
            assert_eq!(usize::from(fragment.fragment_offset().byte_offset()), place);
            assert_eq!(fragment.more_fragments(), !last);
            let start = 14 + 4 * recipe.tags + 40 + unfragmentable_bytes(&recipe.ip) + 8;
            assert_eq!(readable[start - 8..start], *fragment.slice());
            assert_eq!(
                usize::from(ip.header().payload_length()),
                piece.len() - 54 - 4 * recipe.tags
            );
            assert!(piece.len() - start <= usize::from(recipe.piece_bytes));
            piece[start..].to_vec()
        }
        NetSlice::Arp(_) => panic!("no IP"),
    }
}

/// RFC 8200 §4.5: up to the routing header, else the hop-by-hop header.
fn unfragmentable_bytes(ip: &Ip) -> usize {
    let Ip::V6(extensions) = ip else { return 0 };
    let last = extensions
        .iter()
        .rposition(|&number| number == 43)
        .or(extensions.iter().rposition(|&number| number == 0));
    last.map_or(0, |last| (last + 1) * 8)
}

fn check_datagram(recipe: &Recipe, datagram: &[u8]) {
    let extension_bytes = match &recipe.ip {
        Ip::V4 => 0,
        Ip::V6(extensions) => extensions.len() * 8 - unfragmentable_bytes(&recipe.ip),
    };
    let (header, payload) =
        UdpHeader::from_slice(&datagram[extension_bytes..]).expect("a UDP header");
    assert_eq!(payload, recipe.payload);
    assert_eq!(usize::from(header.length), 8 + payload.len());
    let expected = match recipe.ip {
        Ip::V4 => header.calc_checksum_ipv4_raw(V4_ADDRESSES.0, V4_ADDRESSES.1, payload),
        Ip::V6(_) => header.calc_checksum_ipv6_raw(V6_ADDRESSES.0, V6_ADDRESSES.1, payload),
    };
    assert_eq!(Ok(header.checksum), expected);
}

fn recipe(ip: Ip, payload_bytes: usize, piece_bytes: u16) -> Recipe {
    let payload = vec![7; payload_bytes];
    Recipe {
        tags: 0,
        ip,
        option_words: 0,
        payload,
        piece_bytes,
        tcp_flags: 0x18,
        sequence: 1,
        identification: 5,
    }
}

#[test]
fn a_frame_that_is_not_what_its_offload_says_is_refused_with_the_reason() {
    use DropReason::{
        BadVnetHeader, FrameTooLong, HeadersTooLong, OffloadUnsupported, TooManySegments,
    };
    let v6 = |extensions: &[u8]| Ip::V6(extensions.to_vec());
    let udp = |fragment_bytes| Gso::Udp {
        fragment_bytes,
        identification: 1,
    };
    let tcp_v4 = recipe(Ip::V4, 3_000, 1_000).tcp_frame();
    let udp_v6 = recipe(v6(&[]), 3_000, 1_000).udp_frame();
    let changed = |frame: &[u8], place: usize, byte: u8| {
        let mut frame = frame.to_vec();
        frame[place] = byte;
        frame
    };
    let routed = recipe(v6(&[43]), 3_000, 1_000).tcp_frame();
    let cases = [
        (
            "TCP over IPv4 as IPv6",
            tcp_v4.clone(),
            Gso::TcpV6 {
                segment_bytes: 1_000,
            },
            BadVnetHeader,
        ),
        ("TCP as UDP", tcp_v4.clone(), udp(1_000), BadVnetHeader),
        (
            "UDP as TCP",
            udp_v6.clone(),
            Gso::TcpV6 {
                segment_bytes: 1_000,
            },
            BadVnetHeader,
        ),
        (
            "no segment size",
            tcp_v4.clone(),
            Gso::TcpV4 { segment_bytes: 0 },
            BadVnetHeader,
        ),
        (
            "fragments below eight bytes",
            udp_v6.clone(),
            udp(7),
            BadVnetHeader,
        ),
        (
            "one byte a segment",
            tcp_v4.clone(),
            Gso::TcpV4 { segment_bytes: 1 },
            TooManySegments,
        ),
        (
            "a fragment of a datagram",
            changed(&tcp_v4, 20, 0x20),
            Gso::TcpV4 {
                segment_bytes: 1_000,
            },
            BadVnetHeader,
        ),
        (
            "a bad IP version",
            changed(&tcp_v4, 14, 0x65),
            Gso::TcpV4 {
                segment_bytes: 1_000,
            },
            BadVnetHeader,
        ),
        (
            "stops to come",
            changed(&routed, 57, 1),
            Gso::TcpV6 {
                segment_bytes: 1_000,
            },
            OffloadUnsupported,
        ),
        (
            "headers beyond the copy",
            recipe(v6(&[60; 8]), 3_000, 1_000).frame(60, &[17, 30, 0, 0]),
            udp(1_000),
            HeadersTooLong,
        ),
        (
            "extensions longer than a fragment",
            recipe(v6(&[60, 60]), 3_000, 1_000).udp_frame(),
            udp(16),
            BadVnetHeader,
        ),
    ];
    for (name, frame, gso, reason) in cases {
        assert_eq!(plan_of(&frame, gso).err(), Some(reason), "{name}");
    }
    let mut long = recipe(Ip::V4, 3_000, 1_000).udp_frame();
    long.resize(70_000, 0);
    assert_eq!(plan_of(&long, udp(9_000)).err(), Some(FrameTooLong));
}

#[test]
fn a_frame_without_payload_is_one_segment() {
    let empty = recipe(Ip::V4, 0, 1_000);
    let pieces = plan_of(&empty.tcp_frame(), empty.tcp_gso()).expect("a valid frame");
    assert_eq!(pieces.len(), 1);
    assert!(check_tcp_segment(&empty, 0, 1, &pieces[0]).is_empty());
}

#[test]
fn a_total_length_of_zero_reaches_to_the_frames_end() {
    let recipe = recipe(Ip::V4, 3_000, 1_000);
    let mut frame = recipe.tcp_frame();
    frame[16..18].fill(0);
    assert_eq!(
        plan_of(&frame, recipe.tcp_gso())
            .expect("a valid frame")
            .len(),
        3
    );
}

#[test]
fn cutting_and_editing_the_tag_give_the_same_in_either_order() {
    let recipe = Recipe {
        tags: 1,
        ..recipe(Ip::V4, 3_000, 1_000)
    };
    let frame = recipe.tcp_frame();
    let edited = |frame: &[u8]| {
        let rewrite = VlanEdit::Pop.rewrite(frame);
        [rewrite.prefix(), &frame[rewrite.skip()..]].concat()
    };
    let cut_first: Vec<_> = plan_of(&frame, recipe.tcp_gso())
        .expect("valid")
        .iter()
        .map(|piece| edited(piece))
        .collect();
    assert_eq!(
        cut_first,
        plan_of(&edited(&frame), recipe.tcp_gso()).expect("valid")
    );
}

#[test]
fn a_buffer_too_small_gets_no_segment() {
    let frame = recipe(Ip::V4, 3_000, 1_000).tcp_frame();
    let headers = Headers::parse(&frame, frame.len()).expect("valid");
    let plan = SegmentPlan::new(
        &frame,
        &headers,
        Gso::TcpV4 {
            segment_bytes: 1_000,
        },
        frame.len(),
    )
    .expect("valid");
    for len in 0..66 {
        assert_eq!(plan.write(0, &mut vec![0; len]), None, "{len}");
    }
    assert!(plan.write(0, &mut [0; 66]).is_some());
}
