//! Which ring of several a flow goes to: the same one for all its frames, so that they keep their order.

use switch_core::parse::{Headers, Network, Transport};

/// Which of `rings` (at least 1) a frame of `len_bytes` that starts with `header` goes to: the same for all frames of a flow.
#[inline]
pub fn ring_of(header: &[u8], len_bytes: usize, rings: u32) -> u32 {
    // By the high bits, which depend on every bit of the flow; the remainder would favour some rings where ports ascend evenly.
    ((u64::from(flow_hash(header, len_bytes)) * u64::from(rings)) >> 32) as u32
}

/// A number that is the same for all frames of a flow, in one direction. Fragments, which lack ports, go by addresses alone, as
/// do their flow's other frames only if it is all fragments; what is not IP goes by its Ethernet addresses.
pub fn flow_hash(header: &[u8], len_bytes: usize) -> u32 {
    let Ok(headers) = Headers::parse(header, len_bytes) else {
        return 0;
    };
    let (source, destination) = match headers.network {
        Some(Network::Ipv4(ip)) => (
            u128::from(u32::from(ip.source)),
            u128::from(u32::from(ip.destination)),
        ),
        Some(Network::Ipv6(ip)) => (ip.source.into(), ip.destination.into()),
        _ => {
            let [addresses @ .., _, _, _, _] =
                header.first_chunk::<16>().copied().unwrap_or_default();
            let fold = |sum: u64, byte: u8| (sum << 5 ^ u64::from(byte)).wrapping_mul(MULTIPLIER);
            return (addresses.into_iter().fold(0, fold) >> 32) as u32;
        }
    };
    let ports = match headers.transport {
        Some(Transport::Tcp(tcp)) => (tcp.source_port, tcp.destination_port),
        Some(Transport::Udp(udp)) => (udp.source_port, udp.destination_port),
        _ => (0, 0),
    };
    let ports = u64::from(ports.0) << 16 | u64::from(ports.1);
    let words = [
        source as u64,
        (source >> 64) as u64,
        destination as u64,
        (destination >> 64) as u64,
        ports,
    ];
    let mixed = words.into_iter().fold(0u64, |sum, word| {
        (sum.rotate_left(23) ^ word).wrapping_mul(MULTIPLIER)
    });
    (mixed >> 32) as u32
}

/// 2^64 divided by the golden ratio, odd: spreads low bits upwards.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;

    fn udp(source_port: u16) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        frame.extend([
            0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ]);
        frame.extend(source_port.to_be_bytes());
        frame.extend([0, 53, 0, 12, 0, 0, 1, 2, 3, 4]);
        frame
    }

    #[test]
    fn a_flow_stays_on_its_ring_and_flows_spread() {
        assert_eq!(flow_hash(&udp(1000), 46), flow_hash(&udp(1000), 46));
        let mut rings = [0; 4];
        for port in 0..4000 {
            rings[ring_of(&udp(port), 46, 4) as usize] += 1;
        }
        assert!(rings.iter().all(|&flows| flows > 700), "{rings:?}");
    }

    #[test]
    fn few_flows_from_ascending_ports_reach_every_ring() {
        for count in 1..=8u32 {
            // Linux gives a client every second port.
            for step in [1, 2] {
                let flows = (0..8 * count as u16).map(|n| 40_000 + step * n);
                let mut rings: Vec<u32> =
                    flows.map(|port| ring_of(&udp(port), 46, count)).collect();
                rings.sort_unstable();
                rings.dedup();
                assert_eq!(rings, (0..count).collect::<Vec<_>>(), "ports {step} apart");
            }
        }
    }

    #[test]
    fn long_and_short_frames_of_a_flow_go_the_same_way() {
        let short = udp(1000);
        // What is copied of a frame of 1,500 bytes: its IP header tells a length far beyond the copy.
        let mut long = short.clone();
        long[16..18].copy_from_slice(&1486u16.to_be_bytes());
        long[38..40].copy_from_slice(&1466u16.to_be_bytes());
        long.resize(244, 0);
        assert_eq!(flow_hash(&short, short.len()), flow_hash(&long, 1500));
    }

    #[test]
    fn what_is_not_ip_has_a_hash_too() {
        for len in 0..60 {
            flow_hash(&vec![0xa5; len], len);
        }
    }
}
