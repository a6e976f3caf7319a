//! A flow as people write it, to its first frame.
//!
//! ```text
//! tcp  SOURCE:PORT > DESTINATION:PORT  [option ...]     IPv6 in brackets: [2001:db8::1]:80
//! udp  SOURCE:PORT > DESTINATION:PORT  [option ...]
//! icmp SOURCE > DESTINATION            [option ...]     an echo request; ICMPv6 between IPv6 addresses
//! arp  SOURCE > DESTINATION            [option ...]     who has DESTINATION?
//!
//! mac A > B      the Ethernet addresses
//! vlan N         a tag
//! ttl N          time to live or hop limit, 64 otherwise
//! flags SAFRPU   of TCP, S otherwise
//! bytes N        of payload, none otherwise
//! ```
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use switch_core::MacAddress;

/// A text that is no flow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}; write it as in \"tcp 10.0.0.5:1234 > 10.0.1.9:443\", options behind")]
pub struct FlowError(String);

const SOURCE: MacAddress = MacAddress([0x02, 0, 0, 0, 0, 1]);
const DESTINATION: MacAddress = MacAddress([0x02, 0, 0, 0, 0, 2]);
const BROADCAST: MacAddress = MacAddress([0xff; 6]);
/// Most payload: a frame of 9,216 bytes has room for it.
const MAX_PAYLOAD_BYTES: usize = 9_000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Tcp,
    Udp,
    Icmp,
    Arp,
}

struct Options {
    macs: Option<(MacAddress, MacAddress)>,
    vlan: Option<u16>,
    ttl: u8,
    flags: u8,
    payload_bytes: usize,
}

/// The frame, with checksums.
pub fn frame(text: &str) -> Result<Vec<u8>, FlowError> {
    let wrong = |reason: String| FlowError(reason);
    let words: Vec<&str> = text.split_whitespace().collect();
    let [protocol, source, ">", destination, options @ ..] = words.as_slice() else {
        return Err(wrong(
            "a flow is a protocol, a source, \">\" and a destination".to_owned(),
        ));
    };
    let protocol = match *protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "icmp" | "icmpv6" => Protocol::Icmp,
        "arp" => Protocol::Arp,
        other => {
            return Err(wrong(format!("`{other}` is none of tcp, udp, icmp, arp")));
        }
    };
    let (source, destination) = (end(protocol, source)?, end(protocol, destination)?);
    let options = parse_options(options)?;
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) if protocol == Protocol::Arp => {
            Ok(arp(from, to, &options))
        }
        _ if protocol == Protocol::Arp => Err(wrong("ARP is between IPv4 addresses".to_owned())),
        (IpAddr::V4(from), IpAddr::V4(to)) => Ok(over_ipv4(
            protocol,
            (from, source.port()),
            (to, destination.port()),
            &options,
        )),
        (IpAddr::V6(from), IpAddr::V6(to)) => Ok(over_ipv6(
            protocol,
            (from, source.port()),
            (to, destination.port()),
            &options,
        )),
        _ => Err(wrong("one address is IPv4, the other IPv6".to_owned())),
    }
}

fn end(protocol: Protocol, text: &str) -> Result<SocketAddr, FlowError> {
    let parsed = match protocol {
        Protocol::Tcp | Protocol::Udp => text.parse().ok(),
        Protocol::Icmp | Protocol::Arp => text
            .parse::<IpAddr>()
            .ok()
            .map(|address| SocketAddr::new(address, 0)),
    };
    parsed.ok_or_else(|| {
        FlowError(match protocol {
            Protocol::Tcp | Protocol::Udp => format!("`{text}` is no address with a port"),
            Protocol::Icmp | Protocol::Arp => format!("`{text}` is no address"),
        })
    })
}

fn parse_options(mut words: &[&str]) -> Result<Options, FlowError> {
    let mut options = Options {
        macs: None,
        vlan: None,
        ttl: 64,
        flags: 0x02,
        payload_bytes: 0,
    };
    let bad = |word: &str, value: &str| FlowError(format!("`{word} {value}` is out of bounds"));
    loop {
        words = match words {
            [] => return Ok(options),
            ["mac", from, ">", to, rest @ ..] => {
                let mac = |text: &str| text.parse().map_err(|_| bad("mac", text));
                options.macs = Some((mac(from)?, mac(to)?));
                rest
            }
            ["vlan", value, rest @ ..] => {
                let vlan = value.parse().ok().filter(|vlan| *vlan < 4096u16);
                options.vlan = Some(vlan.ok_or_else(|| bad("vlan", value))?);
                rest
            }
            ["ttl", value, rest @ ..] => {
                options.ttl = value.parse().map_err(|_| bad("ttl", value))?;
                rest
            }
            ["flags", value, rest @ ..] => {
                options.flags = 0;
                for letter in value.chars() {
                    let bit = "FSRPAU".find(letter.to_ascii_uppercase());
                    options.flags |= 1 << bit.ok_or_else(|| bad("flags", value))?;
                }
                rest
            }
            ["bytes", value, rest @ ..] => {
                let bytes = value.parse().ok().filter(|n| *n <= MAX_PAYLOAD_BYTES);
                options.payload_bytes = bytes.ok_or_else(|| bad("bytes", value))?;
                rest
            }
            [other, ..] => {
                return Err(FlowError(format!(
                    "`{other}` is none of mac A > B, vlan N, ttl N, flags SAFRPU, bytes N"
                )));
            }
        };
    }
}

fn ethernet(options: &Options, to: MacAddress, ether_type: u16) -> Vec<u8> {
    let (from, to) = options.macs.unwrap_or((SOURCE, to));
    let mut frame = [to.0, from.0].concat();
    if let Some(vlan) = options.vlan {
        frame.extend(0x8100u16.to_be_bytes());
        frame.extend(vlan.to_be_bytes());
    }
    frame.extend(ether_type.to_be_bytes());
    frame
}

/// RFC 826: a request.
fn arp(from: Ipv4Addr, to: Ipv4Addr, options: &Options) -> Vec<u8> {
    let mut frame = ethernet(options, BROADCAST, 0x0806);
    let (sender, _) = options.macs.unwrap_or((SOURCE, BROADCAST));
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(sender.0);
    frame.extend(from.octets());
    frame.extend([0; 6]);
    frame.extend(to.octets());
    frame
}

fn over_ipv4(
    protocol: Protocol,
    from: (Ipv4Addr, u16),
    to: (Ipv4Addr, u16),
    options: &Options,
) -> Vec<u8> {
    let number = match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Icmp | Protocol::Arp => 1,
    };
    let pseudo = [&from.0.octets()[..], &to.0.octets(), &[0, number]].concat();
    let packet = transport(number, (from.1, to.1), &pseudo, options);
    let total = u16::try_from(20 + packet.len()).unwrap_or(u16::MAX);
    let mut header = vec![0x45, 0];
    header.extend(total.to_be_bytes());
    header.extend([0, 0, 0x40, 0, options.ttl, number, 0, 0]);
    header.extend(from.0.octets());
    header.extend(to.0.octets());
    put_sum(&mut header, 10, 0);
    [ethernet(options, DESTINATION, 0x0800), header, packet].concat()
}

fn over_ipv6(
    protocol: Protocol,
    from: (Ipv6Addr, u16),
    to: (Ipv6Addr, u16),
    options: &Options,
) -> Vec<u8> {
    let number = match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Icmp | Protocol::Arp => 58,
    };
    let pseudo = [&from.0.octets()[..], &to.0.octets(), &[0, number]].concat();
    let packet = transport(number, (from.1, to.1), &pseudo, options);
    let length = u16::try_from(packet.len()).unwrap_or(u16::MAX);
    let mut header = vec![0x60, 0, 0, 0];
    header.extend(length.to_be_bytes());
    header.extend([number, options.ttl]);
    header.extend(from.0.octets());
    header.extend(to.0.octets());
    [ethernet(options, DESTINATION, 0x86dd), header, packet].concat()
}

/// Header and payload of the transport; `pseudo` is the pseudo-header without the length.
fn transport(number: u8, ports: (u16, u16), pseudo: &[u8], options: &Options) -> Vec<u8> {
    let payload = vec![0; options.payload_bytes];
    let mut packet = match number {
        1 => vec![8, 0, 0, 0, 0, 1, 0, 1],
        58 => vec![128, 0, 0, 0, 0, 1, 0, 1],
        _ => [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat(),
    };
    match number {
        6 => {
            packet.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, options.flags, 0xff, 0xff]);
            packet.extend([0; 4]);
        }
        17 => {
            let length = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX);
            packet.extend(length.to_be_bytes());
            packet.extend([0; 2]);
        }
        _ => {}
    }
    packet.extend(payload);
    let length = u32::try_from(packet.len()).unwrap_or(u32::MAX);
    let pseudo = sum(pseudo) + sum(&length.to_be_bytes());
    match number {
        1 => put_sum(&mut packet, 2, 0),
        58 => put_sum(&mut packet, 2, pseudo),
        6 => put_sum(&mut packet, 16, pseudo),
        _ => {
            put_sum(&mut packet, 6, pseudo);
            // RFC 768: a sum of zero is written as ones; zero would mean that there is none.
            if let Some(field @ [0, 0]) = packet.get_mut(6..8) {
                field.copy_from_slice(&[0xff; 2]);
            }
        }
    }
    packet
}

/// Sum of 16-bit words (RFC 1071), not folded.
fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
            [high] => u32::from(*high) << 8,
            _ => 0,
        })
        .sum()
}

/// Writes the checksum of `bytes` and of what `more` sums up, at an offset that holds zero.
fn put_sum(bytes: &mut [u8], at: usize, more: u32) {
    let mut total = sum(bytes) + more;
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    let checksum = !u16::try_from(total).unwrap_or(u16::MAX);
    if let Some(field) = bytes.get_mut(at..at + 2) {
        field.copy_from_slice(&checksum.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{LinkExtHeader, NetSlice, SlicedPacket, TransportSlice};

    fn check(text: &str) -> (Vec<u8>, String) {
        let bytes = frame(text).unwrap();
        let parsed = SlicedPacket::from_ethernet(&bytes).unwrap();
        let mut said = String::new();
        if let Some(LinkExtHeader::Vlan(tag)) = parsed.link_exts.first().map(|ext| ext.to_header())
        {
            said += &format!("vlan {} ", tag.vlan_id.value());
        }
        let (from, to, checksum_of): (IpAddr, IpAddr, Box<dyn Fn() -> u16>) = match &parsed.net {
            Some(NetSlice::Ipv4(ip)) => {
                let header = ip.header();
                assert_eq!(
                    header.header_checksum(),
                    header.to_header().calc_header_checksum()
                );
                said += &format!("ttl {} ", header.ttl());
                let (header, transport) = (header.to_header(), parsed.transport.clone());
                (
                    header.source.into(),
                    header.destination.into(),
                    Box::new(move || match &transport {
                        Some(TransportSlice::Tcp(tcp)) => tcp
                            .calc_checksum_ipv4(header.source, header.destination)
                            .unwrap(),
                        Some(TransportSlice::Udp(udp)) => udp
                            .to_header()
                            .calc_checksum_ipv4(&header, udp.payload())
                            .unwrap(),
                        Some(TransportSlice::Icmpv4(icmp)) => {
                            icmp.header().icmp_type.calc_checksum(icmp.payload())
                        }
                        other => panic!("{other:?}"),
                    }),
                )
            }
            Some(NetSlice::Ipv6(ip)) => {
                let header = ip.header().to_header();
                said += &format!("ttl {} ", header.hop_limit);
                let transport = parsed.transport.clone();
                (
                    header.source.into(),
                    header.destination.into(),
                    Box::new(move || match &transport {
                        Some(TransportSlice::Tcp(tcp)) => tcp
                            .calc_checksum_ipv6(header.source, header.destination)
                            .unwrap(),
                        Some(TransportSlice::Udp(udp)) => udp
                            .to_header()
                            .calc_checksum_ipv6(&header, udp.payload())
                            .unwrap(),
                        Some(TransportSlice::Icmpv6(icmp)) => icmp
                            .header()
                            .icmp_type
                            .calc_checksum(header.source, header.destination, icmp.payload())
                            .unwrap(),
                        other => panic!("{other:?}"),
                    }),
                )
            }
            other => panic!("{other:?}"),
        };
        let expected = checksum_of();
        match &parsed.transport {
            Some(TransportSlice::Tcp(tcp)) => {
                assert_eq!(tcp.checksum(), expected);
                said += &format!(
                    "tcp {from} {} > {to} {} syn {} ack {}",
                    tcp.source_port(),
                    tcp.destination_port(),
                    tcp.syn(),
                    tcp.ack()
                );
            }
            Some(TransportSlice::Udp(udp)) => {
                assert_eq!(udp.checksum(), expected);
                said += &format!(
                    "udp {from} {} > {to} {} bytes {}",
                    udp.source_port(),
                    udp.destination_port(),
                    udp.payload().len()
                );
            }
            Some(TransportSlice::Icmpv4(icmp)) => {
                assert_eq!(icmp.header().checksum, expected);
                said += &format!("icmp {from} > {to} type {}", icmp.type_u8());
            }
            Some(TransportSlice::Icmpv6(icmp)) => {
                assert_eq!(icmp.header().checksum, expected);
                said += &format!("icmp {from} > {to} type {}", icmp.type_u8());
            }
            other => panic!("{other:?}"),
        }
        drop(parsed);
        (bytes.clone(), said)
    }

    #[test]
    fn a_flow_is_the_frame_that_it_says() {
        for (text, said) in [
            (
                "tcp 10.0.0.5:1234 > 10.0.1.9:443",
                "ttl 64 tcp 10.0.0.5 1234 > 10.0.1.9 443 syn true ack false",
            ),
            (
                "tcp [2001:db8::1]:80 > [2001:db8::2]:81 flags A ttl 3",
                "ttl 3 tcp 2001:db8::1 80 > 2001:db8::2 81 syn false ack true",
            ),
            (
                "udp 10.0.0.5:53 > 10.0.1.9:54 vlan 7 bytes 99",
                "vlan 7 ttl 64 udp 10.0.0.5 53 > 10.0.1.9 54 bytes 99",
            ),
            ("udp [::1]:1 > [::2]:2", "ttl 64 udp ::1 1 > ::2 2 bytes 0"),
            (
                "icmp 10.0.0.5 > 10.0.1.9",
                "ttl 64 icmp 10.0.0.5 > 10.0.1.9 type 8",
            ),
            (
                "icmp fe80::1 > ff02::1 bytes 3",
                "ttl 64 icmp fe80::1 > ff02::1 type 128",
            ),
        ] {
            assert_eq!(check(text).1, said, "{text}");
        }
        let (bytes, _) = check("icmp 1.1.1.1 > 2.2.2.2 mac 52:54:00:00:00:01 > 52:54:00:00:00:02");
        assert_eq!(
            bytes[..12],
            [0x52, 0x54, 0, 0, 0, 2, 0x52, 0x54, 0, 0, 0, 1]
        );
    }

    #[test]
    fn arp_asks_everybody() {
        let bytes = frame("arp 10.0.0.5 > 10.0.0.1").unwrap();
        let parsed = SlicedPacket::from_ethernet(&bytes).unwrap();
        let Some(NetSlice::Arp(arp)) = parsed.net else {
            panic!("{parsed:?}")
        };
        assert_eq!(
            (arp.operation().0, arp.sender_protocol_addr()),
            (1, &[10, 0, 0, 5][..])
        );
        assert_eq!(
            (arp.target_protocol_addr(), &bytes[..6]),
            (&[10, 0, 0, 1][..], &[0xff; 6][..])
        );
    }

    #[test]
    fn what_is_no_flow_is_refused() {
        for text in [
            "",
            "tcp",
            "sctp 1.1.1.1:1 > 2.2.2.2:2",
            "tcp 1.1.1.1 > 2.2.2.2:2",
            "tcp 1.1.1.1:1 > [::1]:2",
            "tcp 1.1.1.1:65536 > 2.2.2.2:2",
            "arp ::1 > ::2",
            "icmp 1.1.1.1 > 2.2.2.2 vlan 4096",
            "icmp 1.1.1.1 > 2.2.2.2 bytes 9001",
            "icmp 1.1.1.1 > 2.2.2.2 flags X",
            "icmp 1.1.1.1 > 2.2.2.2 mac a > b",
            "icmp 1.1.1.1 > 2.2.2.2 colour red",
        ] {
            assert!(frame(text).is_err(), "{text:?}");
        }
    }
}
