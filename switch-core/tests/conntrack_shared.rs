//! The connection table used by several workers and the control thread at once.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod conntrack_packets;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use conntrack_packets::{
    ZONE, commit, establish, host, ip, segment, table, tcp, tcp_tuple, udp, udp_tuple,
};
use switch_core::Millis;
use switch_core::conntrack::{
    CommitError, Conntrack, ConntrackConfig, Direction, NatSpec, PROTOCOL_UDP, PortRange,
    Refreshed, TcpInfo, Tuple,
};

const NOW: Millis = Millis(1000);
const WORKERS: u16 = 8;

/// Runs `work` on each of so many threads, and gathers what they return.
fn in_parallel<T: Send>(work: impl Fn(u16) -> T + Sync) -> Vec<T> {
    let barrier = std::sync::Barrier::new(usize::from(WORKERS));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..WORKERS)
            .map(|worker| {
                let (work, barrier) = (&work, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    work(worker)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .collect()
    })
}

#[test]
fn of_workers_that_commit_one_tuple_one_wins_and_all_get_its_connection() {
    let table = table(ConntrackConfig::default());
    let nat = NatSpec {
        source: Some(switch_core::conntrack::SourceNat {
            first: ip(host(200)),
            last: ip(host(200)),
            ports: switch_core::conntrack::SourcePorts::Random(PortRange {
                first: 1024,
                last: 65535,
            }),
        }),
        destination: None,
    };
    let all = in_parallel(|worker| {
        (0..2000)
            .map(|source_port| {
                let packet = udp(udp_tuple(source_port));
                let tracked = table
                    .commit(&packet, &commit(worker, nat), NOW)
                    .expect("room");
                (tracked.conn, tracked.translation)
            })
            .collect::<Vec<_>>()
    });
    for other in &all[1..] {
        assert_eq!(*other, all[0]);
    }
    assert_eq!(table.stats().connections, 2000);
    assert_eq!(table.stats().opened, 2000);
    assert_eq!(table.zone_connections(ZONE), 2000);
    assert_eq!(table.list(None, 0, 10_000, NOW).connections.len(), 2000);
}

#[test]
fn workers_that_commit_different_tuples_get_different_translations() {
    let table = table(ConntrackConfig::default());
    let nat = NatSpec::masquerade(
        ip(host(200)),
        PortRange {
            first: 10_000,
            last: 30_000,
        },
    );
    let went: Vec<_> = in_parallel(|worker| {
        (0..2000)
            .map(|port| {
                let tuple = Tuple::v4(
                    PROTOCOL_UDP,
                    (host(worker as u8), 10_000 + port),
                    (host(100), 53),
                );
                let tracked = table
                    .commit(&udp(tuple), &commit(worker, nat), NOW)
                    .expect("a free port");
                tracked.translation.source.expect("translated").port
            })
            .collect::<Vec<_>>()
    })
    .into_iter()
    .flatten()
    .collect();
    assert_eq!(went.len(), 16_000);
    assert_eq!(went.iter().collect::<HashSet<_>>().len(), 16_000);
}

#[test]
fn limits_hold_however_many_commit_at_once() {
    let table = table(ConntrackConfig {
        capacity: 1000,
        per_port_limit: 300,
        ..Default::default()
    });
    // Answered at once, so that none is given up for another.
    let opened = AtomicU64::new(0);
    let above = AtomicBool::new(false);
    in_parallel(|worker| {
        for number in 0..1000_u16 {
            let tuple = Tuple::v4(PROTOCOL_UDP, (host(worker as u8), number), (host(100), 53));
            match table.commit(&udp(tuple), &commit(worker, NatSpec::NONE), NOW) {
                Ok(_) => {
                    table.track(&udp(tuple.inverse()), NOW);
                    opened.fetch_add(1, Relaxed);
                }
                Err(error) => assert!(matches!(
                    error,
                    CommitError::TableFull | CommitError::PortLimit
                )),
            }
            let listed = table.stats().connections;
            // Counts are raised before they are checked: what is over a limit is taken back at once, and was never opened.
            if listed > 1000 + u64::from(WORKERS) {
                above.store(true, Relaxed);
            }
        }
    });
    assert!(!above.load(Relaxed));
    assert_eq!(table.list(None, 0, 10_000, NOW).connections.len(), 1000);
    assert_eq!(table.stats().connections, 1000);
    assert_eq!(opened.load(Relaxed), 1000 + table.stats().early_dropped);
    for worker in 0..WORKERS {
        assert!(table.port_connections(conntrack_packets::port(worker)) <= 300);
    }
}

#[test]
fn connections_come_and_go_under_every_kind_of_call() {
    let table = table(ConntrackConfig {
        capacity: 200,
        ..Default::default()
    });
    in_parallel(|worker| {
        for round in 0..4000_u32 {
            let source_port = ((round * 7 + u32::from(worker)) % 97) as u16;
            let tuple = udp_tuple(source_port);
            let now = NOW.after(Millis(u64::from(round) * 50));
            match (worker + round as u16) % 8 {
                0 => {
                    table.expire(now, 64);
                }
                1 => {
                    let page = table.list(Some(ZONE), 0, 5, now);
                    for (id, _) in page.connections {
                        table.delete(id);
                    }
                }
                2 => {
                    if let Some(id) = table.track(&udp(tuple), now).conn {
                        table.set_mark(id, round);
                    }
                }
                3 => {
                    let tracked = table.track(&udp(tuple.inverse()), now);
                    if let Some(id) = tracked.conn {
                        table.refresh(id, tracked.direction, (None, 64), now);
                    }
                }
                _ => {
                    let _ = table.commit(&udp(tuple), &commit(worker, NatSpec::NONE), now);
                }
            }
        }
    });
    let later = NOW.after(Millis::from_secs(100_000));
    let listed = table.list(None, 0, 10_000, NOW).connections.len();
    assert!(listed <= 97);
    // The first may begin in the middle.
    for _ in 0..2 {
        while !table.expire(later, 1000).finished {}
    }
    assert_eq!(table.stats().connections, 0);
    assert_eq!(table.zone_connections(ZONE), 0);
}

/// Two workers, one for each direction, pass data and acknowledgements to each other as a switch would; a third deletes nothing but
/// looks. No segment may be taken for invalid.
#[test]
fn two_directions_on_two_workers_stay_in_their_windows() {
    let table = table(ConntrackConfig::default());
    let conn = establish(&table, tcp_tuple(1), NOW).conn.expect("open");
    let sent_to = AtomicU64::new(101);
    let acknowledged_to = AtomicU64::new(101);
    let give = |direction, segment: &TcpInfo| {
        let refreshed = table.refresh(conn, direction, (Some(segment), 64), NOW);
        if refreshed == Refreshed::Changed {
            let tuple = match direction {
                Direction::Original => tcp_tuple(1),
                Direction::Reply => tcp_tuple(1).inverse(),
            };
            let tracked = table.track(&tcp(tuple, *segment), NOW);
            assert_eq!(tracked.invalid, None, "{segment:?}");
        }
    };
    const END: u64 = 101 + 40_000_000;
    use std::sync::atomic::Ordering::{Acquire, Release};
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut next = 101;
            while next < END {
                // A window of 1000.
                if next + 500 <= acknowledged_to.load(Acquire) + 1000 {
                    give(Direction::Original, &segment("PA", next as u32, 501, 500));
                    next += 500;
                    sent_to.store(next, Release);
                } else {
                    std::thread::yield_now();
                }
            }
        });
        scope.spawn(|| {
            let mut seen = 101;
            while seen < END {
                let sent = sent_to.load(Acquire);
                if sent == seen {
                    std::thread::yield_now();
                    continue;
                }
                seen = sent;
                give(Direction::Reply, &segment("A", 501, seen as u32, 0));
                acknowledged_to.store(seen, Release);
            }
        });
        scope.spawn(|| {
            while acknowledged_to.load(Acquire) < END {
                assert!(table.export(conn, NOW).is_some());
                std::thread::yield_now();
            }
        });
    });
}

#[test]
fn a_deleted_connection_is_never_refreshed_after_its_deletion_returned() {
    let table: Conntrack = table(ConntrackConfig::default());
    let ack = segment("A", 101, 501, 0);
    for round in 0..300 {
        let conn = establish(&table, tcp_tuple(round), NOW).conn.expect("open");
        let gone = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    loop {
                        let was_gone = gone.load(std::sync::atomic::Ordering::Acquire);
                        let refreshed =
                            table.refresh(conn, Direction::Original, (Some(&ack), 64), NOW);
                        if was_gone {
                            assert_eq!(refreshed, Refreshed::Changed);
                            break;
                        }
                    }
                });
            }
            assert!(table.delete(conn));
            gone.store(true, std::sync::atomic::Ordering::Release);
        });
    }
}
