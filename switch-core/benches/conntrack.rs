//! What connection tracking, its translation and a meter cost. Run alone on a quiet core: `cargo bench -p switch-core --bench conntrack`.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a bench fails by panicking"
)]

mod measure;

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use criterion::{Throughput, criterion_group, criterion_main};
use measure::{Group, bench};
use switch_core::conntrack::{
    Commit, ConnId, Conntrack, ConntrackConfig, Direction, NatSpec, PROTOCOL_TCP, PROTOCOL_UDP,
    Packet, PortRange, Refreshed, StateBits, TcpFlags, TcpInfo, TransportInfo, Tuple, Zone,
};
use switch_core::maglev::{Maglev, Member, MemberId, TableSize};
use switch_core::meter::{Meter, MeterConfig};
use switch_core::{Millis, PortId};

type Bench = criterion::Criterion<measure::TimeAndCycles>;

/// Packets of a batch.
const BATCH: u32 = 32;
const SEED: u64 = 0x1234_5678_9abc_def0;

fn table() -> Conntrack {
    let config = ConntrackConfig {
        per_port_limit: u32::MAX,
        ..Default::default()
    };
    Conntrack::new(config, SEED)
}

fn commit(nat: NatSpec) -> Commit {
    Commit {
        port: PortId::new(1).expect("small"),
        mark: 0,
        data: [0; 4],
        nat,
    }
}

fn tuple(protocol: u8, flow: u32) -> Tuple {
    Tuple::v4(
        protocol,
        (
            Ipv4Addr::from_bits(0x0a00_0000 | flow >> 12),
            20_000 + (flow & 0xfff) as u16,
        ),
        (Ipv4Addr::new(10, 200, 0, 1), 443),
    )
}

fn segment(flags: TcpFlags, sequence: u32, acknowledgement: u32) -> TransportInfo {
    TransportInfo::Tcp(TcpInfo {
        flags,
        sequence,
        acknowledgement,
        window: 64_000,
        payload_bytes: 0,
        window_scale: None,
    })
}

fn packet(tuple: Tuple, transport: TransportInfo) -> Packet {
    Packet {
        port: PortId::new(1).expect("below the limit"),
        zone: Zone(1),
        tuple,
        transport,
        bytes: 64,
    }
}

const ACK: TcpFlags = TcpFlags::ACK;
const NOW: Millis = Millis(1_000_000);

/// Opens a TCP connection with its handshake.
fn establish(table: &Conntrack, flow: u32) -> ConnId {
    let tuple = tuple(PROTOCOL_TCP, flow);
    let syn = packet(tuple, segment(TcpFlags::SYN, 100, 0));
    assert!(table.track(&syn, NOW).state.contains(StateBits::NEW));
    table
        .commit(&syn, &commit(NatSpec::NONE), NOW)
        .expect("room");
    let syn_ack = segment(TcpFlags::SYN.union(ACK), 500, 101);
    table.track(&packet(tuple.inverse(), syn_ack), NOW);
    let tracked = table.track(&packet(tuple, segment(ACK, 101, 501)), NOW);
    let tracked_again = table.track(&packet(tuple, segment(ACK, 101, 501)), NOW);
    assert!(tracked_again.cacheable);
    tracked.conn.expect("established")
}

fn established(c: &mut Bench) {
    let mut group = c.benchmark_group("established");
    group.throughput(Throughput::Elements(u64::from(BATCH)));
    for connections in [1_000, 100_000] {
        let table = table();
        let mut ids: Vec<_> = (0..connections)
            .map(|flow| establish(&table, flow))
            .collect();
        // Not in the order of memory: packets don't come so either.
        let mut order: Vec<u32> = (0..connections).collect();
        let mut state = SEED;
        for at in (1..order.len()).rev() {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let other = (state >> 33) as usize % (at + 1);
            order.swap(at, other);
            ids.swap(at, other);
        }
        let TransportInfo::Tcp(tcp) = segment(ACK, 101, 501) else {
            return;
        };
        let mut next = 0;
        let mut batch = |group: &mut Group<'_>, name: &str, per_packet: &dyn Fn(usize)| {
            bench(group, &format!("{name}, {connections} connections"), || {
                for _ in 0..BATCH {
                    per_packet(next);
                    next = if next + 1 == connections as usize {
                        0
                    } else {
                        next + 1
                    };
                }
            });
        };
        batch(&mut group, "refresh", &|at| {
            let refreshed = table.refresh(
                black_box(ids[at]),
                Direction::Original,
                (Some(black_box(&tcp)), 64),
                NOW,
            );
            assert_eq!(refreshed, Refreshed::Valid);
        });
        batch(&mut group, "track", &|at| {
            let packet = packet(tuple(PROTOCOL_TCP, order[at]), segment(ACK, 101, 501));
            black_box(table.track(black_box(&packet), NOW));
        });
        println!(
            "{:24}memory of a connection: {} bytes",
            "",
            table.stats().memory_bytes / u64::from(connections)
        );
    }
    group.finish();
}

/// New connections, which are removed in time: the table holds some 100,000.
fn new(c: &mut Bench) {
    let mut group = c.benchmark_group("new");
    group.throughput(Throughput::Elements(u64::from(BATCH)));
    let address = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    let all = PortRange {
        first: 1024,
        last: 65535,
    };
    for (name, protocol, nat) in [
        ("UDP", PROTOCOL_UDP, NatSpec::NONE),
        ("TCP SYN", PROTOCOL_TCP, NatSpec::NONE),
        (
            "UDP, source NAT, own port",
            PROTOCOL_UDP,
            NatSpec::masquerade(address, all),
        ),
        (
            "UDP, source NAT, random port",
            PROTOCOL_UDP,
            NatSpec {
                source: Some(switch_core::conntrack::SourceNat {
                    first: address,
                    last: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 16)),
                    ports: switch_core::conntrack::SourcePorts::Random(all),
                }),
                destination: None,
            },
        ),
    ] {
        const KEPT: usize = 20_000;
        let table = table();
        let mut ids = std::collections::VecDeque::with_capacity(KEPT + 1);
        let mut flow = 0_u32;
        let commit = commit(nat);
        let mut open = |flow: &mut u32| {
            *flow += 1;
            let transport = if protocol == PROTOCOL_TCP {
                segment(TcpFlags::SYN, 100, 0)
            } else {
                TransportInfo::Datagram
            };
            let packet = packet(tuple(protocol, *flow), transport);
            assert!(table.track(black_box(&packet), NOW).conn.is_none());
            let tracked = table.commit(&packet, &commit, NOW).expect("room");
            ids.push_back(tracked.conn.expect("just made"));
            if ids.len() > KEPT
                && let Some(id) = ids.pop_front()
            {
                assert!(table.delete(id));
            }
        };
        for _ in 0..KEPT {
            open(&mut flow);
        }
        bench(
            &mut group,
            &format!("track, commit and delete, {name}"),
            || {
                for _ in 0..BATCH {
                    open(&mut flow);
                }
            },
        );
    }
    {
        let table = table();
        let commit = commit(NatSpec::NONE);
        let mut flow = 0_u32;
        let mut left = 0;
        bench(
            &mut group,
            "track and commit, UDP, growing to 500,000",
            || {
                if left < BATCH {
                    left = 500_000;
                    flow = 0;
                    // Everything is expired at once, in a sweep that the slots' reuse spreads over the next connections.
                    table.delete_zone(Zone(1), NOW);
                }
                left -= BATCH;
                for _ in 0..BATCH {
                    flow += 1;
                    let packet = packet(tuple(PROTOCOL_UDP, flow), TransportInfo::Datagram);
                    assert!(table.track(black_box(&packet), NOW).conn.is_none());
                    black_box(table.commit(&packet, &commit, NOW).expect("room"));
                }
            },
        );
    }
    group.finish();
}

fn meters(c: &mut Bench) {
    let mut group = c.benchmark_group("meter");
    let config = MeterConfig {
        bytes_per_second: Some(1_250_000_000),
        burst_bytes: 1_000_000,
        ..Default::default()
    };
    let both = MeterConfig {
        frames_per_second: Some(10_000_000),
        burst_frames: 1000,
        ..config
    };
    for (name, config) in [("bytes", config), ("bytes and frames", both)] {
        let meter = Meter::new(&config);
        let mut now_ns = 1_000_000_000;
        bench(&mut group, &format!("offer, {name}, green"), || {
            now_ns += 1000;
            meter.offer(black_box(64), now_ns)
        });
        bench(&mut group, &format!("offer, {name}, red"), || {
            while meter.offer(65_536, now_ns) == switch_core::meter::MeterColor::Green {}
            meter.offer(black_box(65_536), now_ns)
        });
    }
    group.finish();
}

fn select(c: &mut Bench) {
    let mut group = c.benchmark_group("maglev");
    let members: Vec<_> = (0..100)
        .map(|id| Member {
            id: MemberId(id),
            weight: 1 + (id % 5) as u16,
        })
        .collect();
    let maglev = Maglev::build(&members, TableSize::LARGE).expect("valid");
    let mut hash = 0_u64;
    bench(&mut group, "select, 65537 entries", || {
        hash = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
        maglev.select(black_box(hash))
    });
    bench(&mut group, "build, 100 members, 65537 entries", || {
        Maglev::build(black_box(&members), TableSize::LARGE)
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = measure::criterion();
    targets = established, new, meters, select
}
criterion_main!(benches);
