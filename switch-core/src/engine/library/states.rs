//! The built-in parse graph.
//!
//! ```text
//! start > ethernet > vlan > vlan_inner > vlan_skipped > vlan_skipped_last
//!         > arp
//!         > mpls > mpls_inner
//!         > ipv4 [> ipv4_authentication] > tcp, udp, icmp, icmpv6
//!         > ipv6 [> ipv6_extension, ipv6_fragment, authentication]* > tcp, udp, icmp, icmpv6
//! vxlan, geneve, gre > inner_ethernet > inner_vlan > inner_ipv4, inner_ipv6 > inner_tcp, inner_udp, inner_icmp, inner_icmpv6
//! ```
//!
//! Where it differs from the fixed parser: ARP for other kinds of address is malformed here and no header there; extension headers
//! are followed as far as the number of visited states allows, not up to eight, but none longer than 248 bytes; a fifth tag is
//! malformed.
//!
//! Nothing leads to the last line until a program extends `udp` or `ipv4`. Where a packet's own length contradicts its header is
//! the evaluator's to find: a condition on a length would make every length a case of its own for the flow cache.

use crate::engine::literal::{Literal, Operand};
use crate::engine::model::{CaseValue, Condition, ParserCase, ParserState};
use crate::parse::{
    ETHER_TYPE_ARP, ETHER_TYPE_IPV4, ETHER_TYPE_IPV6, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP,
    PROTOCOL_UDP, TPID_CUSTOMER, TPID_LEGACY_STACKED, TPID_SERVICE,
};

const TPIDS: [u16; 3] = [TPID_CUSTOMER, TPID_SERVICE, TPID_LEGACY_STACKED];
/// MPLS unicast (RFC 3032 §5).
const ETHER_TYPE_MPLS: u16 = 0x8847;
/// An Ethernet frame in GRE or GENEVE (RFC 8926 §3.4).
const ETHER_TYPE_BRIDGING: u16 = 0x6558;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const TRANSPORTS: [(u8, &str); 4] = [
    (PROTOCOL_TCP, "tcp"),
    (PROTOCOL_UDP, "udp"),
    (PROTOCOL_ICMP, "icmp"),
    (PROTOCOL_ICMPV6, "icmpv6"),
];

pub(super) fn states() -> Vec<ParserState> {
    let mut states = link();
    states.extend(network());
    states.extend(transport());
    states.extend(tunnels());
    states.extend(inner());
    states
}

fn link() -> Vec<ParserState> {
    let mut start = state("start");
    start.extract = None;
    start.default = "ethernet".to_owned();
    vec![
        start,
        by_ether_type("ethernet", "ethernet", "vlan"),
        by_ether_type("vlan", "vlan", "vlan_inner"),
        by_ether_type("vlan_inner", "vlan_inner", "vlan_skipped"),
        by_ether_type("vlan_skipped", "vlan_skipped", "vlan_skipped_last"),
        // The fourth tag is the last that is followed.
        by_ether_type("vlan_skipped_last", "vlan_skipped", "reject"),
        ParserState {
            select: names(&["mpls.bottom"]),
            cases: vec![case(&[0], "mpls_inner")],
            ..state("mpls")
        },
        state("mpls_inner"),
    ]
}

/// A state that extracts `header`, whose `ether_type` decides; a further tag leads to `tagged`.
fn by_ether_type(name: &str, header: &str, tagged: &str) -> ParserState {
    let mut cases = TPIDS.map(|tpid| case(&[tpid.into()], tagged)).to_vec();
    cases.extend([
        case(&[ETHER_TYPE_ARP.into()], "arp"),
        case(&[ETHER_TYPE_IPV4.into()], "ipv4"),
        case(&[ETHER_TYPE_IPV6.into()], "ipv6"),
        case(&[ETHER_TYPE_MPLS.into()], "mpls"),
    ]);
    ParserState {
        name: name.to_owned(),
        select: vec![format!("{header}.ether_type")],
        cases,
        ..state(header)
    }
}

fn network() -> Vec<ParserState> {
    vec![
        ParserState {
            verify: vec![
                equal("arp.hardware_type", 1),
                equal("arp.protocol_type", ETHER_TYPE_IPV4.into()),
                equal("arp.hardware_bytes", 6),
                equal("arp.protocol_bytes", 4),
            ],
            ..state("arp")
        },
        ParserState {
            verify: vec![equal("ipv4.version", 4), at_least("ipv4.ihl", 5)],
            select: names(&["ipv4.fragment_offset", "ipv4.protocol"]),
            cases: [(AUTHENTICATION, "ipv4_authentication")]
                .into_iter()
                .chain(TRANSPORTS)
                .map(|(protocol, next)| case(&[0, protocol.into()], next))
                .collect(),
            ..state("ipv4")
        },
        ParserState {
            name: "ipv4_authentication".to_owned(),
            verify: vec![at_least("authentication.length", 1)],
            select: names(&["authentication.next_header"]),
            cases: TRANSPORTS
                .map(|(protocol, next)| case(&[protocol.into()], next))
                .to_vec(),
            ..state("authentication")
        },
        ParserState {
            verify: vec![equal("ipv6.version", 6)],
            ..by_next_header("ipv6", &[])
        },
        by_next_header("ipv6_extension", &[]),
        by_next_header("ipv6_fragment", &["ipv6_fragment.offset"]),
        ParserState {
            // RFC 4302 §2.2: the fixed part alone is a length of one.
            verify: vec![at_least("authentication.length", 1)],
            ..by_next_header("authentication", &[])
        },
    ]
}

/// A state that extracts `header`, whose `next_header` decides, where the fields of `zero` are 0.
fn by_next_header(header: &str, zero: &[&str]) -> ParserState {
    let mut select = names(zero);
    select.push(format!("{header}.next_header"));
    let mut values = vec![0; zero.len()];
    // RFC 8200 §4.1: the hop-by-hop header only comes first.
    let hop_by_hop = match header {
        "ipv6" => "ipv6_extension",
        _ => "reject",
    };
    let cases = [
        (HOP_BY_HOP, hop_by_hop),
        (ROUTING, "ipv6_extension"),
        (DESTINATION_OPTIONS, "ipv6_extension"),
        (FRAGMENT, "ipv6_fragment"),
        (AUTHENTICATION, "authentication"),
    ]
    .into_iter()
    .chain(TRANSPORTS)
    .map(|(protocol, next)| {
        values.truncate(zero.len());
        values.push(protocol.into());
        case(&values, next)
    })
    .collect();
    ParserState {
        select,
        cases,
        ..state(header)
    }
}

fn transport() -> Vec<ParserState> {
    vec![
        ParserState {
            verify: vec![at_least("tcp.data_offset", 5)],
            ..state("tcp")
        },
        // No case of its own: what a program extends.
        ParserState {
            select: names(&["udp.dst_port"]),
            ..state("udp")
        },
        state("icmp"),
        state("icmpv6"),
    ]
}

fn tunnels() -> Vec<ParserState> {
    let by_protocol = [
        (ETHER_TYPE_BRIDGING, "inner_ethernet"),
        (ETHER_TYPE_IPV4, "inner_ipv4"),
        (ETHER_TYPE_IPV6, "inner_ipv6"),
    ];
    vec![
        ParserState {
            // RFC 7348 §5: the I flag says that the VNI counts.
            verify: vec![Condition::Masked(
                field("vxlan.flags"),
                Literal::Number(0x08),
                Literal::Number(0x08),
            )],
            default: "inner_ethernet".to_owned(),
            ..state("vxlan")
        },
        ParserState {
            verify: vec![equal("geneve.version", 0)],
            select: names(&["geneve.protocol"]),
            cases: by_protocol
                .map(|(protocol, next)| case(&[protocol.into()], next))
                .to_vec(),
            ..state("geneve")
        },
        ParserState {
            verify: vec![equal("gre.version", 0)],
            // A flag announces words that the type does not have: what follows them is not parsed.
            select: names(&["gre.flags", "gre.protocol"]),
            cases: by_protocol
                .map(|(protocol, next)| case(&[0, protocol.into()], next))
                .to_vec(),
            ..state("gre")
        },
    ]
}

fn inner() -> Vec<ParserState> {
    let networks = [
        (ETHER_TYPE_IPV4, "inner_ipv4"),
        (ETHER_TYPE_IPV6, "inner_ipv6"),
    ];
    let transports = [
        (PROTOCOL_TCP, "inner_tcp"),
        (PROTOCOL_UDP, "inner_udp"),
        (PROTOCOL_ICMP, "inner_icmp"),
        (PROTOCOL_ICMPV6, "inner_icmpv6"),
    ];
    vec![
        ParserState {
            select: names(&["inner_ethernet.ether_type"]),
            cases: TPIDS
                .map(|tpid| (tpid, "inner_vlan"))
                .into_iter()
                .chain(networks)
                .map(|(ether_type, next)| case(&[ether_type.into()], next))
                .collect(),
            ..state("inner_ethernet")
        },
        ParserState {
            select: names(&["inner_vlan.ether_type"]),
            cases: networks
                .map(|(ether_type, next)| case(&[ether_type.into()], next))
                .to_vec(),
            ..state("inner_vlan")
        },
        ParserState {
            verify: vec![
                equal("inner_ipv4.version", 4),
                at_least("inner_ipv4.ihl", 5),
            ],
            select: names(&["inner_ipv4.fragment_offset", "inner_ipv4.protocol"]),
            cases: transports
                .map(|(protocol, next)| case(&[0, protocol.into()], next))
                .to_vec(),
            ..state("inner_ipv4")
        },
        ParserState {
            verify: vec![equal("inner_ipv6.version", 6)],
            select: names(&["inner_ipv6.next_header"]),
            cases: transports
                .map(|(protocol, next)| case(&[protocol.into()], next))
                .to_vec(),
            ..state("inner_ipv6")
        },
        ParserState {
            verify: vec![at_least("inner_tcp.data_offset", 5)],
            ..state("inner_tcp")
        },
        state("inner_udp"),
        state("inner_icmp"),
        state("inner_icmpv6"),
    ]
}

/// A state that extracts the header of its name and accepts.
fn state(name: &str) -> ParserState {
    ParserState {
        name: name.to_owned(),
        extract: Some(name.to_owned()),
        verify: Vec::new(),
        select: Vec::new(),
        cases: Vec::new(),
        default: "accept".to_owned(),
    }
}

fn case(values: &[u128], next: &str) -> ParserCase {
    ParserCase {
        values: values
            .iter()
            .map(|&value| CaseValue::Exact(Literal::Number(value)))
            .collect(),
        next: next.to_owned(),
    }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn field(name: &str) -> Operand {
    Operand::Field(name.to_owned())
}

fn equal(name: &str, value: u128) -> Condition {
    Condition::Eq(field(name), Operand::Constant(value))
}

fn at_least(name: &str, value: u128) -> Condition {
    Condition::Ge(field(name), Operand::Constant(value))
}
