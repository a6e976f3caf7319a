//! The fast path and the slow one are one truth: a worker that refreshes where it may sees what one sees that always tracks.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod conntrack_packets;

use conntrack_packets::{flags, open, packet, segment, table, tcp_tuple, udp_tuple};
use proptest::prelude::*;
use switch_core::Millis;
use switch_core::conntrack::{
    ConnId, ConnRecord, Conntrack, ConntrackConfig, Direction, Refreshed, StateBits, TcpInfo,
    Tracked, TransportInfo, Tuple,
};

/// A worker with a cache of one connection's two directions.
struct Worker {
    table: Conntrack,
    /// By direction, what a cacheable answer said. `None`: nothing is ever cached.
    cached: Option<[Option<Tracked>; 2]>,
}

impl Worker {
    fn new(cached: Option<[Option<Tracked>; 2]>) -> Self {
        Self {
            table: table(ConntrackConfig::default()),
            cached,
        }
    }

    /// The verdict on a packet of `tuple`, or of its inverse in the reply direction.
    fn verdict(
        &mut self,
        tuple: Tuple,
        (direction, transport): (Direction, TransportInfo),
        now: Millis,
    ) -> Tracked {
        let tcp = match &transport {
            TransportInfo::Tcp(tcp) => Some(tcp),
            _ => None,
        };
        let place = |cached: &mut Option<[Option<Tracked>; 2]>, tracked| {
            if let Some(places) = cached {
                places[direction.index()] = tracked;
            }
        };
        let cached = self
            .cached
            .and_then(|places| places[direction.index()])
            .filter(|cached| {
                let conn = cached.conn.expect("cached with a connection");
                let refreshed = self.table.refresh(conn, cached.leg(), (tcp, 100), now);
                refreshed == Refreshed::Valid
            });
        if let Some(cached) = cached {
            return cached;
        }
        let tuple = match direction {
            Direction::Original => tuple,
            Direction::Reply => tuple.inverse(),
        };
        let packet = packet(tuple, transport);
        let mut tracked = self.table.track(&packet, now);
        if tracked.state.contains(StateBits::NEW) && tracked.conn.is_none() {
            tracked = open(&self.table, &packet, now);
        }
        place(&mut self.cached, tracked.cacheable.then_some(tracked));
        tracked
    }

    fn records(&self, now: Millis) -> Vec<ConnRecord> {
        let page = self.table.list(None, 0, 10, now);
        page.connections
            .into_iter()
            .map(|(_, record)| record)
            .collect()
    }
}

fn without_id(tracked: Tracked) -> Tracked {
    Tracked {
        conn: tracked.conn.map(|_| ConnId::from_bits(0)),
        ..tracked
    }
}

/// Segments of a live connection whose ends are at 101 and 501, a few windows around that, mostly plain.
fn live_segment() -> impl Strategy<Value = (Direction, TcpInfo)> {
    (
        any::<bool>(),
        prop::sample::select(vec![
            "A", "A", "A", "A", "A", "A", "PA", "PA", "PA", "PA", "PAE", "AU", "FA", "R", "S", "SA",
        ]),
        -4_i32..24,
        -4_i32..24,
        prop::sample::select(vec![0_u32, 0, 1, 250, 500, 1000, 1500]),
        prop::sample::select(vec![0_u16, 500, 1000, 1000, 1000, 3000]),
    )
        .prop_map(|(reply, letters, sequence, ack, payload_bytes, window)| {
            let (direction, from, to) = if reply {
                (Direction::Reply, 501_u32, 101_u32)
            } else {
                (Direction::Original, 101, 501)
            };
            let segment = TcpInfo {
                flags: flags(letters),
                window,
                ..segment(
                    "",
                    from.wrapping_add_signed(sequence * 250),
                    to.wrapping_add_signed(ack * 250),
                    payload_bytes,
                )
            };
            (direction, segment)
        })
}

const HANDSHAKE: [(Direction, &str, u32, u32); 5] = [
    (Direction::Original, "S", 100, 0),
    (Direction::Reply, "SA", 500, 101),
    (Direction::Original, "A", 101, 501),
    (Direction::Original, "A", 101, 501),
    (Direction::Reply, "A", 501, 101),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn tcp_is_judged_alike_on_both_paths(
        segments in prop::collection::vec((live_segment(), 0_u64..100_000), 1..80)
    ) {
        let handshake = HANDSHAKE.iter().map(|&(direction, letters, sequence, ack)| {
            ((direction, segment(letters, sequence, ack, 0)), 0)
        });
        let mut fast = Worker::new(Some([None; 2]));
        let mut slow = Worker::new(None);
        let mut now = Millis(10_000);
        for ((direction, segment), wait_ms) in handshake.chain(segments) {
            now = now.after(Millis(wait_ms));
            let transport = (direction, TransportInfo::Tcp(segment));
            let one = fast.verdict(tcp_tuple(1), transport, now);
            let other = slow.verdict(tcp_tuple(1), transport, now);
            prop_assert_eq!(without_id(one), without_id(other), "{:?}", segment);
            prop_assert_eq!(fast.records(now), slow.records(now), "{:?}", segment);
        }
    }

    #[test]
    fn datagrams_are_judged_alike_on_both_paths(
        packets in prop::collection::vec((any::<bool>(), 0_u64..100_000), 1..40)
    ) {
        let mut fast = Worker::new(Some([None; 2]));
        let mut slow = Worker::new(None);
        let mut now = Millis(10_000);
        for (reply, wait_ms) in packets {
            now = now.after(Millis(wait_ms));
            let direction = if reply { Direction::Reply } else { Direction::Original };
            let transport = (direction, TransportInfo::Datagram);
            let one = fast.verdict(udp_tuple(1), transport, now);
            let other = slow.verdict(udp_tuple(1), transport, now);
            prop_assert_eq!(without_id(one), without_id(other));
            prop_assert_eq!(fast.records(now), slow.records(now));
        }
    }
}
