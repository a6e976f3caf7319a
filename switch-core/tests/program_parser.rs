//! The built-in parse graph finds what the fixed parser finds.
//!
//! A reader of parse graphs, as plain as it can be, follows the graph over frames of every kind that the fixed parser knows.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;

use proptest::prelude::*;
use switch_core::engine::literal::{Literal, Operand};
use switch_core::engine::model::{CaseValue, Condition, HeaderType, Program};
use switch_core::engine::validate::ValidProgram;
use switch_core::parse::{Headers, Network, ParseEnd, Transport};

#[derive(Debug, PartialEq)]
enum End {
    Accept,
    Reject,
    Short,
    TooDeep,
}

struct Walk<'a> {
    program: &'a Program,
    frame: &'a [u8],
    /// Where each header starts.
    found: BTreeMap<String, usize>,
}

impl Walk<'_> {
    fn header_type(&self, header: &str) -> &HeaderType {
        let header = self
            .program
            .headers
            .iter()
            .find(|found| found.name == header)
            .unwrap();
        let mut types = self.program.header_types.iter();
        types
            .find(|found| found.name == header.header_type)
            .unwrap()
    }

    fn field(&self, name: &str) -> u128 {
        let (header, name) = name.split_once('.').unwrap();
        let mut bit = self.found[header] * 8;
        for field in &self.header_type(header).fields {
            let end = bit + usize::from(field.bits);
            if field.name == name {
                return (bit..end).fold(0, |value, bit| {
                    value << 1 | u128::from(self.frame[bit / 8] >> (7 - bit % 8) & 1)
                });
            }
            bit = end;
        }
        panic!("no field {name}");
    }

    fn holds(&self, condition: &Condition) -> bool {
        let value = |operand: &Operand| match operand {
            Operand::Constant(number) => *number,
            Operand::Field(name) => self.field(name),
            Operand::Param(name) => panic!("{name}"),
        };
        match condition {
            Condition::Eq(one, other) => value(one) == value(other),
            Condition::Ge(one, other) => value(one) >= value(other),
            Condition::Masked(one, mask, wanted) => value(one) & number(mask) == number(wanted),
            other => panic!("{other:?}"),
        }
    }

    fn run(&mut self) -> End {
        let (mut state, mut at) = ("start", 0);
        for _ in 0..24 {
            match state {
                "accept" => return End::Accept,
                "reject" => return End::Reject,
                _ => {}
            }
            let program = self.program;
            let found = program
                .parser
                .states
                .iter()
                .find(|found| found.name == state)
                .unwrap();
            if let Some(header) = &found.extract {
                let header_type = self.header_type(header);
                let bits: usize = header_type
                    .fields
                    .iter()
                    .map(|field| usize::from(field.bits))
                    .sum();
                let length = header_type.length.clone();
                if at + bits / 8 > self.frame.len() {
                    return End::Short;
                }
                self.found.insert(header.clone(), at);
                let bytes = length.map_or(bits / 8, |length| {
                    let units = self.field(&format!("{header}.{}", length.field)) as usize;
                    (units + usize::from(length.plus)) * usize::from(length.unit_bytes)
                });
                if !found.verify.iter().all(|condition| self.holds(condition)) || bytes < bits / 8 {
                    return End::Reject;
                }
                at += bytes;
                if at > self.frame.len() {
                    return End::Short;
                }
            }
            let selected: Vec<u128> = found.select.iter().map(|name| self.field(name)).collect();
            let case = found.cases.iter().find(|case| {
                case.values
                    .iter()
                    .zip(&selected)
                    .all(|(value, selected)| match value {
                        CaseValue::Exact(value) => number(value) == *selected,
                        CaseValue::Masked { value, mask } => {
                            selected & number(mask) == number(value)
                        }
                    })
            });
            state = case.map_or(&found.default, |case| &case.next);
        }
        End::TooDeep
    }
}

fn number(literal: &Literal) -> u128 {
    literal.number().unwrap()
}

fn built_in() -> ValidProgram {
    Program::from_json(r#"{"name": "none", "ingress": []}"#).unwrap()
}

/// An IPv6 extension header, or the authentication header, by its protocol, and its length.
fn extension() -> impl Strategy<Value = (u8, u8)> {
    (prop::sample::select(vec![43_u8, 60, 44, 51]), 0_u8..3)
}

/// Any of them, behind a hop-by-hop header or none.
fn extensions() -> impl Strategy<Value = Vec<(u8, u8)>> {
    let first = prop::option::of((Just(0), 0_u8..3));
    (first, prop::collection::vec(extension(), 0..7))
        .prop_map(|(first, rest)| first.into_iter().chain(rest).collect())
}

#[derive(Clone, Debug)]
enum Layer3 {
    Arp,
    V4 {
        words: u8,
        fragment: u16,
        authentication: Option<u8>,
    },
    V6 {
        extensions: Vec<(u8, u8)>,
        offset: u16,
    },
    Other(u16),
}

fn layer3() -> impl Strategy<Value = Layer3> {
    let fragment = prop_oneof![3 => Just(0_u16), 1 => 1_u16..0x2000];
    prop_oneof![
        Just(Layer3::Arp),
        (5_u8..=15, fragment.clone(), prop::option::of(1_u8..4)).prop_map(
            |(words, fragment, authentication)| Layer3::V4 {
                words,
                fragment,
                authentication
            }
        ),
        (extensions(), fragment).prop_map(|(extensions, offset)| Layer3::V6 { extensions, offset }),
        prop::sample::select(vec![0x8847, 0x88cc, 0x1234, 0x0000]).prop_map(Layer3::Other),
    ]
}

fn transport(protocol: u8, words: u8) -> Vec<u8> {
    match protocol {
        6 => {
            let mut tcp = vec![0; usize::from(words) * 4];
            tcp[12] = words << 4;
            tcp
        }
        _ => vec![0x5a; 8],
    }
}

fn frame(tags: &[u16], layer3: &Layer3, protocol: u8, words: u8) -> Vec<u8> {
    let mut frame = vec![0x52, 0x54, 0, 0, 0, 1, 0x52, 0x54, 0, 0, 0, 2];
    for (number, tpid) in tags.iter().enumerate() {
        frame.extend(tpid.to_be_bytes());
        frame.extend([0, number as u8 + 1]);
    }
    let upper = transport(protocol, words);
    match layer3 {
        Layer3::Other(ether_type) => {
            frame.extend(ether_type.to_be_bytes());
            frame.extend([0xff; 40]);
        }
        Layer3::Arp => {
            frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
            frame.extend([7; 20]);
        }
        Layer3::V4 {
            words,
            fragment,
            authentication,
        } => {
            let mut packet = vec![0; usize::from(*words) * 4];
            packet[0] = 0x40 | words;
            packet[6..8].copy_from_slice(&fragment.to_be_bytes());
            packet[9] = protocol;
            if let Some(length) = authentication {
                packet[9] = 51;
                packet.extend([protocol, *length]);
                packet.resize(packet.len() - 2 + (usize::from(*length) + 2) * 4, 0);
            }
            packet.extend(upper);
            let total = packet.len() as u16;
            packet[2..4].copy_from_slice(&total.to_be_bytes());
            frame.extend([0x08, 0]);
            frame.extend(packet);
        }
        Layer3::V6 { extensions, offset } => {
            let mut packet = vec![0; 40];
            packet[0] = 0x60;
            let kinds: Vec<u8> = extensions
                .iter()
                .map(|(kind, _)| *kind)
                .chain([protocol])
                .collect();
            packet[6] = kinds[0];
            for ((kind, length), next) in extensions.iter().zip(&kinds[1..]) {
                let (length, bytes) = match kind {
                    44 => (0, 8),
                    51 => (length + 1, (usize::from(*length) + 3) * 4),
                    _ => (*length, (usize::from(*length) + 1) * 8),
                };
                let mut header = vec![0; bytes];
                header[0] = *next;
                if *kind == 44 {
                    header[2..4].copy_from_slice(&(offset << 3).to_be_bytes());
                } else {
                    header[1] = length;
                }
                packet.extend(header);
            }
            packet.extend(upper);
            let payload = (packet.len() - 40) as u16;
            packet[4..6].copy_from_slice(&payload.to_be_bytes());
            frame.extend([0x86, 0xdd]);
            frame.extend(packet);
        }
    }
    frame
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_graph_and_the_fixed_parser_agree(
        tags in prop::collection::vec(prop::sample::select(vec![0x8100_u16, 0x88a8, 0x9100]), 0..=4),
        layer3 in layer3(),
        protocol in prop::sample::select(vec![6_u8, 17, 1, 58, 47, 132]),
        words in 5_u8..=15,
    ) {
        let frame = frame(&tags, &layer3, protocol, words);
        let fixed = Headers::parse(&frame, frame.len()).unwrap();
        prop_assert_eq!(fixed.end, ParseEnd::Complete);
        let program = built_in();
        let mut walk = Walk { program: program.program(), frame: &frame, found: BTreeMap::new() };
        prop_assert_eq!(walk.run(), End::Accept);
        let at = |header: &str| walk.found.get(header).copied();

        prop_assert_eq!(at("ethernet"), Some(0));
        prop_assert_eq!(at("vlan").is_some(), fixed.ethernet.tag.is_some());
        prop_assert_eq!(at("vlan_inner").is_some(), fixed.inner_tag.is_some());
        if let Some(tag) = fixed.inner_tag {
            prop_assert_eq!(walk.field("vlan_inner.vid"), u128::from(tag.tci.0 & 0xfff));
        }
        let network = Some(usize::from(fixed.network_offset));
        let expected = match fixed.network {
            None => [None, None, None],
            Some(Network::Arp(_)) => [network, None, None],
            Some(Network::Ipv4(_)) => [None, network, None],
            Some(Network::Ipv6(_)) => [None, None, network],
        };
        prop_assert_eq!(["arp", "ipv4", "ipv6"].map(at), expected);
        if let Some(Network::Ipv6(ipv6)) = fixed.network {
            prop_assert_eq!(at("ipv6_fragment").is_some(), ipv6.extensions.fragment.is_some());
        }
        let upper = Some(usize::from(fixed.transport_offset));
        let expected = match fixed.transport {
            None => [None, None, None, None],
            Some(Transport::Tcp(_)) => [upper, None, None, None],
            Some(Transport::Udp(_)) => [None, upper, None, None],
            Some(Transport::Icmp(_)) => [None, None, upper, None],
            Some(Transport::Icmpv6(_)) => [None, None, None, upper],
        };
        prop_assert_eq!(["tcp", "udp", "icmp", "icmpv6"].map(at), expected);
    }

    /// What the fixed parser calls malformed, the graph rejects, but for a length that contradicts the header.
    #[test]
    fn what_is_malformed_is_rejected(first in any::<u8>(), words in 0_u8..=15) {
        let program = built_in();
        let mut packet = frame(&[], &Layer3::V4 { words: 15, fragment: 0, authentication: None }, 6, 15);
        packet[14] = first;
        packet[14 + 60 + 12] = words << 4;
        // No total length, so only the header speaks.
        packet[16..18].copy_from_slice(&[0, 0]);
        let fixed = Headers::parse(&packet, packet.len()).unwrap();
        let mut walk = Walk { program: program.program(), frame: &packet, found: BTreeMap::new() };
        let end = walk.run();
        match fixed.end {
            ParseEnd::Malformed(_) => prop_assert_eq!(end, End::Reject),
            ParseEnd::Truncated(_) => prop_assert_eq!(end, End::Short),
            _ => prop_assert_eq!(end, End::Accept),
        }
    }
}

#[test]
fn a_hop_by_hop_header_only_comes_first() {
    let program = built_in();
    let layer3 = Layer3::V6 {
        extensions: vec![(60, 0), (0, 0)],
        offset: 0,
    };
    let frame = frame(&[], &layer3, 6, 5);
    let fixed = Headers::parse(&frame, frame.len()).unwrap();
    assert!(matches!(fixed.end, ParseEnd::Malformed(_)));
    let mut walk = Walk {
        program: program.program(),
        frame: &frame,
        found: BTreeMap::new(),
    };
    assert_eq!(walk.run(), End::Reject);
}

#[test]
fn a_fifth_tag_ends_the_parse_of_both() {
    let program = built_in();
    let frame = frame(&[0x8100; 5], &Layer3::Arp, 6, 5);
    let fixed = Headers::parse(&frame, frame.len()).unwrap();
    assert_eq!(fixed.end, ParseEnd::TooManyTags);
    let mut walk = Walk {
        program: program.program(),
        frame: &frame,
        found: BTreeMap::new(),
    };
    assert_eq!(walk.run(), End::Reject);
}
