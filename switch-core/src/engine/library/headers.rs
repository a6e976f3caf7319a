//! The built-in header types, each after the document that defines it, and the headers of them.

use crate::engine::model::{FieldDecl, Format, HeaderInstance, HeaderLength, HeaderType};

use Format::{Ipv4, Ipv6, Mac, Number};

type Fields = [(&'static str, u16, Format)];

/// Ethernet II.
const ETHERNET: &Fields = &[
    ("dst", 48, Mac),
    ("src", 48, Mac),
    ("ether_type", 16, Number),
];
/// IEEE 802.1Q-2018 §9.6, without the TPID: that is the EtherType of what stands before. `ether_type` is that of what follows.
const VLAN: &Fields = &[
    ("pcp", 3, Number),
    ("dei", 1, Number),
    ("vid", 12, Number),
    ("ether_type", 16, Number),
];
/// RFC 3032 §2.1.
const MPLS: &Fields = &[
    ("label", 20, Number),
    ("tc", 3, Number),
    ("bottom", 1, Number),
    ("ttl", 8, Number),
];
/// RFC 826, for IPv4 over Ethernet.
const ARP: &Fields = &[
    ("hardware_type", 16, Number),
    ("protocol_type", 16, Number),
    ("hardware_bytes", 8, Number),
    ("protocol_bytes", 8, Number),
    ("operation", 16, Number),
    ("sender_mac", 48, Mac),
    ("sender_ip", 32, Ipv4),
    ("target_mac", 48, Mac),
    ("target_ip", 32, Ipv4),
];
/// RFC 791 §3.1.
const IPV4: &Fields = &[
    ("version", 4, Number),
    ("ihl", 4, Number),
    ("dscp", 6, Number),
    ("ecn", 2, Number),
    ("total_bytes", 16, Number),
    ("identification", 16, Number),
    ("reserved", 1, Number),
    ("dont_fragment", 1, Number),
    ("more_fragments", 1, Number),
    ("fragment_offset", 13, Number),
    ("ttl", 8, Number),
    ("protocol", 8, Number),
    ("checksum", 16, Number),
    ("src", 32, Ipv4),
    ("dst", 32, Ipv4),
];
/// RFC 8200 §3.
const IPV6: &Fields = &[
    ("version", 4, Number),
    ("dscp", 6, Number),
    ("ecn", 2, Number),
    ("flow_label", 20, Number),
    ("payload_bytes", 16, Number),
    ("next_header", 8, Number),
    ("hop_limit", 8, Number),
    ("src", 128, Ipv6),
    ("dst", 128, Ipv6),
];
/// RFC 8200 §4.3, §4.4, §4.6: hop-by-hop options, routing, destination options.
const IPV6_EXTENSION: &Fields = &[("next_header", 8, Number), ("length", 8, Number)];
/// RFC 8200 §4.5.
const IPV6_FRAGMENT: &Fields = &[
    ("next_header", 8, Number),
    ("reserved", 8, Number),
    ("offset", 13, Number),
    ("reserved2", 2, Number),
    ("more_fragments", 1, Number),
    ("identification", 32, Number),
];
/// RFC 4302 §2.
const AUTHENTICATION: &Fields = &[
    ("next_header", 8, Number),
    ("length", 8, Number),
    ("reserved", 16, Number),
    ("spi", 32, Number),
    ("sequence", 32, Number),
];
/// RFC 9293 §3.1.
const TCP: &Fields = &[
    ("src_port", 16, Number),
    ("dst_port", 16, Number),
    ("seq", 32, Number),
    ("ack", 32, Number),
    ("data_offset", 4, Number),
    ("reserved", 4, Number),
    ("flags", 8, Number),
    ("window", 16, Number),
    ("checksum", 16, Number),
    ("urgent", 16, Number),
];
/// RFC 768.
const UDP: &Fields = &[
    ("src_port", 16, Number),
    ("dst_port", 16, Number),
    ("length", 16, Number),
    ("checksum", 16, Number),
];
/// RFC 792 and RFC 4443 §2.1, with the last four bytes as an echo has them.
const ICMP: &Fields = &[
    ("type", 8, Number),
    ("code", 8, Number),
    ("checksum", 16, Number),
    ("identifier", 16, Number),
    ("sequence", 16, Number),
];
/// RFC 7348 §5.
const VXLAN: &Fields = &[
    ("flags", 8, Number),
    ("reserved", 24, Number),
    ("vni", 24, Number),
    ("reserved2", 8, Number),
];
/// RFC 8926 §3.4.
const GENEVE: &Fields = &[
    ("version", 2, Number),
    ("option_words", 6, Number),
    ("oam", 1, Number),
    ("critical", 1, Number),
    ("reserved", 6, Number),
    ("protocol", 16, Number),
    ("vni", 24, Number),
    ("reserved2", 8, Number),
];
/// RFC 2784 §2, and RFC 2890 by its flags.
const GRE: &Fields = &[
    ("flags", 13, Number),
    ("version", 3, Number),
    ("protocol", 16, Number),
];

pub(super) fn types() -> Vec<HeaderType> {
    vec![
        fixed("ethernet", ETHERNET),
        fixed("vlan", VLAN),
        fixed("mpls", MPLS),
        fixed("arp", ARP),
        variable("ipv4", IPV4, length("ihl", 4, 0, 60)),
        fixed("ipv6", IPV6),
        // A length field of 8 bits counts up to 256 units; what is longer than 255 bytes is not carried.
        variable(
            "ipv6_extension",
            IPV6_EXTENSION,
            length("length", 8, 1, 248),
        ),
        fixed("ipv6_fragment", IPV6_FRAGMENT),
        variable(
            "authentication",
            AUTHENTICATION,
            length("length", 4, 2, 252),
        ),
        variable("tcp", TCP, length("data_offset", 4, 0, 60)),
        fixed("udp", UDP),
        fixed("icmp", ICMP),
        fixed("icmpv6", ICMP),
        fixed("vxlan", VXLAN),
        variable("geneve", GENEVE, length("option_words", 4, 2, 252)),
        fixed("gre", GRE),
    ]
}

/// Each header and its type. Those named `outer_` are for `encapsulate`; nothing parses them.
const INSTANCES: &[(&str, &str)] = &[
    ("ethernet", "ethernet"),
    ("vlan", "vlan"),
    ("vlan_inner", "vlan"),
    ("vlan_skipped", "vlan"),
    ("mpls", "mpls"),
    ("mpls_inner", "mpls"),
    ("arp", "arp"),
    ("ipv4", "ipv4"),
    ("ipv6", "ipv6"),
    ("ipv6_extension", "ipv6_extension"),
    ("ipv6_fragment", "ipv6_fragment"),
    ("authentication", "authentication"),
    ("tcp", "tcp"),
    ("udp", "udp"),
    ("icmp", "icmp"),
    ("icmpv6", "icmpv6"),
    ("vxlan", "vxlan"),
    ("geneve", "geneve"),
    ("gre", "gre"),
    ("inner_ethernet", "ethernet"),
    ("inner_vlan", "vlan"),
    ("inner_ipv4", "ipv4"),
    ("inner_ipv6", "ipv6"),
    ("inner_tcp", "tcp"),
    ("inner_udp", "udp"),
    ("inner_icmp", "icmp"),
    ("inner_icmpv6", "icmpv6"),
    ("outer_ethernet", "ethernet"),
    ("outer_vlan", "vlan"),
    ("outer_ipv4", "ipv4"),
    ("outer_ipv6", "ipv6"),
    ("outer_udp", "udp"),
];

pub(super) fn instances() -> Vec<HeaderInstance> {
    INSTANCES
        .iter()
        .map(|&(name, header_type)| HeaderInstance {
            name: name.to_owned(),
            header_type: header_type.to_owned(),
        })
        .collect()
}

fn fixed(name: &str, fields: &Fields) -> HeaderType {
    HeaderType {
        name: name.to_owned(),
        fields: fields
            .iter()
            .map(|&(name, bits, format)| FieldDecl {
                name: name.to_owned(),
                bits,
                format,
            })
            .collect(),
        length: None,
    }
}

fn variable(name: &str, fields: &Fields, length: HeaderLength) -> HeaderType {
    HeaderType {
        length: Some(length),
        ..fixed(name, fields)
    }
}

fn length(field: &str, unit_bytes: u8, plus: u8, max_bytes: u8) -> HeaderLength {
    HeaderLength {
        field: field.to_owned(),
        unit_bytes,
        plus,
        max_bytes,
    }
}
