//! The built-in headers that the engine itself reads, by number, in a program that may lack some of them.

use std::collections::HashMap;

use super::compile::{Compiled, HeaderField, HeaderKind};

/// Headers and fields by what they are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    pub ethernet: Option<u16>,
    pub vlan: Option<u16>,
    pub vlan_inner: Option<u16>,
    pub vlan_skipped: Option<u16>,
    pub mpls: Option<u16>,
    pub mpls_inner: Option<u16>,
    pub ipv4: Option<u16>,
    pub ipv6: Option<u16>,
    pub ipv6_extension: Option<u16>,
    pub ipv6_fragment: Option<u16>,
    pub tcp: Option<u16>,
    pub udp: Option<u16>,
    pub icmp: Option<u16>,
    pub icmpv6: Option<u16>,
    pub fields: KnownFields,
}

macro_rules! known_fields {
    ($($field:ident $header:literal $name:literal)*) => {
        /// Fields by what they are.
        #[derive(Clone, Copy, Debug, Default)]
        pub(crate) struct KnownFields {
            $(pub $field: Option<HeaderField>,)*
        }

        impl KnownFields {
            fn new(program: &Compiled, names: &HashMap<String, u16>) -> Self {
                let find = |header: &str, field: &str| {
                    let number = names.get(header)?;
                    program.headers.get(usize::from(*number))?.field(field)
                };
                Self { $($field: find($header, $name),)* }
            }
        }
    };
}

known_fields! {
    ipv4_protocol "ipv4" "protocol"
    ipv4_src "ipv4" "src"
    ipv4_dst "ipv4" "dst"
    ipv4_fragment_offset "ipv4" "fragment_offset"
    ipv4_more_fragments "ipv4" "more_fragments"
    ipv4_identification "ipv4" "identification"
    ipv6_next_header "ipv6" "next_header"
    ipv6_src "ipv6" "src"
    ipv6_dst "ipv6" "dst"
    extension_next_header "ipv6_extension" "next_header"
    fragment_next_header "ipv6_fragment" "next_header"
    fragment_offset "ipv6_fragment" "offset"
    fragment_more "ipv6_fragment" "more_fragments"
    fragment_identification "ipv6_fragment" "identification"
    tcp_src_port "tcp" "src_port"
    tcp_dst_port "tcp" "dst_port"
    udp_src_port "udp" "src_port"
    udp_dst_port "udp" "dst_port"
    icmp_type "icmp" "type"
    icmp_identifier "icmp" "identifier"
    icmpv6_type "icmpv6" "type"
    icmpv6_identifier "icmpv6" "identifier"
}

impl Known {
    pub(crate) fn new(program: &Compiled) -> Self {
        let names: HashMap<String, u16> = program
            .headers
            .iter()
            .enumerate()
            .map(|(number, header)| (header.name.clone(), number as u16))
            .collect();
        let header = |name: &str| names.get(name).copied();
        // Those that are taken apart need to have the form that is known.
        let of_kind = |name: &str, kind: HeaderKind| {
            let number = header(name)?;
            let spec = program.headers.get(usize::from(number))?;
            (spec.kind == kind).then_some(number)
        };
        Self {
            ethernet: of_kind("ethernet", HeaderKind::Ethernet),
            vlan: of_kind("vlan", HeaderKind::Vlan),
            vlan_inner: of_kind("vlan_inner", HeaderKind::Vlan),
            vlan_skipped: of_kind("vlan_skipped", HeaderKind::Vlan),
            mpls: of_kind("mpls", HeaderKind::Mpls),
            mpls_inner: of_kind("mpls_inner", HeaderKind::Mpls),
            ipv4: header("ipv4"),
            ipv6: header("ipv6"),
            ipv6_extension: header("ipv6_extension"),
            ipv6_fragment: header("ipv6_fragment"),
            tcp: header("tcp"),
            udp: header("udp"),
            icmp: header("icmp"),
            icmpv6: header("icmpv6"),
            fields: KnownFields::new(program, &names),
        }
    }
}
