//! A captured frame in one line.
use super::blocks::SeenFrame;
use crate::cli::table::printable;
use std::net::SocketAddr;
use switch_core::parse::{Headers, Network, TcpFlags, Transport};

/// `08:15:42.000001 in  52:54:00:00:00:01 > 52:54:00:00:00:02 10.0.0.1:5 > 10.0.0.2:80 tcp S, 74 bytes, to vm2`
pub fn of(frame: &SeenFrame) -> String {
    let headers = Headers::parse(&frame.bytes, frame.frame_bytes as usize);
    let what = match &headers {
        Ok(headers) => {
            let ethernet = &headers.ethernet;
            let ends = format!("{} > {}", ethernet.source, ethernet.destination);
            format!("{ends}{}{}", vlans(headers), network(headers))
        }
        Err(_) => "no frame".to_owned(),
    };
    let fate = printable(&frame.comment);
    format!(
        "{} {:<3} {what}, {} bytes, {fate}",
        time_of_day(frame.at_ns),
        frame.direction,
        frame.frame_bytes
    )
}

/// UTC, as it does not depend on where it is read.
fn time_of_day(at_ns: u64) -> String {
    let (s, us) = (at_ns / 1_000_000_000, at_ns / 1000 % 1_000_000);
    let (hours, minutes, seconds) = (s / 3600 % 24, s / 60 % 60, s % 60);
    format!("{hours:02}:{minutes:02}:{seconds:02}.{us:06}")
}

fn vlans(headers: &Headers) -> String {
    let tags = [headers.ethernet.tag, headers.inner_tag];
    let tags = tags.iter().flatten();
    tags.map(|tag| format!(" vlan {}", tag.tci.0 & 0xfff))
        .collect()
}

fn network(headers: &Headers) -> String {
    let (from, to) = match &headers.network {
        Some(Network::Arp(arp)) => {
            let (sender, target) = (arp.sender_ip, arp.target_ip);
            return match arp.operation {
                1 => format!(" arp who has {target}, says {sender}"),
                2 => format!(" arp {sender} is at {}", arp.sender_mac),
                other => format!(" arp operation {other}"),
            };
        }
        Some(Network::Ipv4(ip)) => (ip.source.into(), ip.destination.into()),
        Some(Network::Ipv6(ip)) => (ip.source.into(), ip.destination.into()),
        None => return format!(" type 0x{:04x}", headers.ether_type),
    };
    let with_ports = |ports: (u16, u16), protocol: &str| {
        let (from, to) = (SocketAddr::new(from, ports.0), SocketAddr::new(to, ports.1));
        format!(" {from} > {to} {protocol}")
    };
    match &headers.transport {
        Some(Transport::Tcp(tcp)) => {
            let ports = (tcp.source_port, tcp.destination_port);
            with_ports(ports, &format!("tcp {}", flags(tcp.flags)))
        }
        Some(Transport::Udp(udp)) => with_ports((udp.source_port, udp.destination_port), "udp"),
        Some(Transport::Icmp(icmp)) => {
            format!(" {from} > {to} icmp type {} code {}", icmp.kind, icmp.code)
        }
        Some(Transport::Icmpv6(icmp)) => {
            format!(" {from} > {to} icmp6 type {} code {}", icmp.kind, icmp.code)
        }
        None => match headers.protocol {
            Some(protocol) => format!(" {from} > {to} protocol {protocol}"),
            None => format!(" {from} > {to}"),
        },
    }
}

/// `S`, `F.`, `.` as tcpdump has them.
fn flags(flags: TcpFlags) -> String {
    let letters = [
        (TcpFlags::FIN, 'F'),
        (TcpFlags::SYN, 'S'),
        (TcpFlags::RST, 'R'),
        (TcpFlags::PSH, 'P'),
        (TcpFlags::ACK, '.'),
    ];
    let set = letters.iter().filter(|(flag, _)| flags.contains(*flag));
    let text: String = set.map(|(_, letter)| letter).collect();
    if text.is_empty() {
        "none".to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::frames::flow;

    fn line(flow: &str) -> String {
        let bytes = flow::frame(flow).unwrap();
        let frame = SeenFrame {
            at_ns: (3600 * 25 + 61) * 1_000_000_000 + 5_000,
            direction: "in",
            comment: "dropped: no_destination\u{1b}".into(),
            frame_bytes: bytes.len() as u32,
            bytes,
            missed_so_far: 0,
        };
        of(&frame)
    }

    #[test]
    fn a_frame_is_told_in_a_line() {
        for (flow, expected) in [
            (
                "tcp 10.0.0.1:5 > 10.0.0.2:80 mac 52:54:00:00:00:01 > 52:54:00:00:00:02 flags SA vlan 7",
                "01:01:01.000005 in  52:54:00:00:00:01 > 52:54:00:00:00:02 vlan 7 10.0.0.1:5 > 10.0.0.2:80 tcp S., 58 bytes, dropped: no_destination?",
            ),
            (
                "udp [fd00::1]:5 > [fd00::2]:53 mac 52:54:00:00:00:01 > 52:54:00:00:00:02",
                "01:01:01.000005 in  52:54:00:00:00:01 > 52:54:00:00:00:02 [fd00::1]:5 > [fd00::2]:53 udp, 62 bytes, dropped: no_destination?",
            ),
            (
                "arp 10.0.0.1 > 10.0.0.2 mac 52:54:00:00:00:01 > ff:ff:ff:ff:ff:ff",
                "01:01:01.000005 in  52:54:00:00:00:01 > ff:ff:ff:ff:ff:ff arp who has 10.0.0.2, says 10.0.0.1, 42 bytes, dropped: no_destination?",
            ),
        ] {
            assert_eq!(line(flow), expected);
        }
    }

    #[test]
    fn what_is_no_frame_is_told_too() {
        assert!(of(&SeenFrame::default()).contains("no frame, 0 bytes"));
    }
}
