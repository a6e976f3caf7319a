//! TCP through the connection table: traces of segments, honest and hostile, and what is made of each.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod conntrack_packets;

use ConnState::*;
use Outcome::*;
use conntrack_packets::{commit, establish, packet, segment, table, tcp, tcp_tuple};
use switch_core::Millis;
use switch_core::conntrack::{
    ConnState, Conntrack, ConntrackConfig, Direction, InvalidReason, NatSpec, Refreshed, StateBits,
    Strictness, TcpInfo, TcpPickup, TcpWindows, TransportInfo,
};

/// From the opener.
const O: Direction = Direction::Original;
/// From the other end.
const R: Direction = Direction::Reply;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    New,
    /// Belongs to the connection.
    Known,
    Bad(InvalidReason),
}

/// Direction, flags, sequence, acknowledgement, payload; what it is, and the connection's state after it.
type Row = (Direction, &'static str, u32, u32, u32, Outcome, ConnState);

const HANDSHAKE: [Row; 3] = [
    (O, "S", 100, 0, 0, New, SynSent),
    (R, "SA", 500, 101, 0, Known, SynRecv),
    (O, "A", 101, 501, 0, Known, Established),
];

fn strict() -> Conntrack {
    table(ConntrackConfig::default())
}

/// Tracks a segment, and commits what is new.
fn send(table: &Conntrack, direction: Direction, segment: TcpInfo, now: Millis) -> Outcome {
    let tuple = match direction {
        O => tcp_tuple(1234),
        R => tcp_tuple(1234).inverse(),
    };
    let packet = tcp(tuple, segment);
    let before = table.list(None, 0, 10, now);
    let told = table.preview(&packet, now);
    assert_eq!(table.list(None, 0, 10, now), before);
    let tracked = table.track(&packet, now);
    assert_eq!((told.state, told.invalid), (tracked.state, tracked.invalid));
    if let Some(reason) = tracked.invalid {
        assert!(tracked.state.contains(StateBits::INVALID));
        return Bad(reason);
    }
    if tracked.state.contains(StateBits::NEW) {
        table
            .commit(&packet, &commit(1, NatSpec::NONE), now)
            .expect("room");
        return New;
    }
    assert_eq!(tracked.direction, direction);
    assert_eq!(tracked.state.contains(StateBits::REPLY), direction == R);
    Known
}

fn state(table: &Conntrack) -> ConnState {
    let page = table.list(None, 0, 10, Millis(0));
    assert_eq!(page.connections.len(), 1, "{page:?}");
    page.connections[0].1.state
}

/// Plays traces one after the other on one table.
fn play(table: &Conntrack, traces: &[&[Row]]) {
    for (number, row) in traces.iter().copied().flatten().enumerate() {
        let &(direction, letters, sequence, ack, payload, outcome, after) = row;
        let segment = segment(letters, sequence, ack, payload);
        assert_eq!(
            (send(table, direction, segment, Millis(0)), state(table)),
            (outcome, after),
            "row {number}: {row:?}"
        );
    }
}

#[test]
fn a_connection_opens_talks_closes_and_opens_again() {
    play(
        &strict(),
        &[
            &HANDSHAKE,
            &[
                (O, "PA", 101, 501, 10, Known, Established),
                (R, "A", 501, 111, 0, Known, Established),
                (R, "PA", 501, 111, 700, Known, Established),
                (O, "A", 111, 1201, 0, Known, Established),
                (O, "FA", 111, 1201, 0, Known, FinWait),
                (R, "A", 1201, 112, 0, Known, CloseWait),
                (R, "PA", 1201, 112, 50, Known, CloseWait),
                (O, "A", 112, 1251, 0, Known, CloseWait),
                (R, "FA", 1251, 112, 0, Known, LastAck),
                (O, "A", 112, 1252, 0, Known, TimeWait),
                // Late, or sent again.
                (O, "A", 112, 1252, 0, Known, TimeWait),
                (O, "S", 70_000, 0, 0, New, SynSent),
                (R, "SA", 9_000, 70_001, 0, Known, SynRecv),
                (O, "A", 70_001, 9_001, 0, Known, Established),
            ],
        ],
    );
}

#[test]
fn sequence_numbers_wrap_around() {
    let first = u32::MAX - 5;
    play(
        &strict(),
        &[&[
            (O, "S", first, 0, 0, New, SynSent),
            (R, "SA", u32::MAX, first + 1, 0, Known, SynRecv),
            (O, "A", first + 1, 0, 0, Known, Established),
            (O, "PA", first + 1, 0, 900, Known, Established),
            (R, "A", 0, 895, 0, Known, Established),
            (O, "PA", 895, 0, 1000, Known, Established),
            (
                O,
                "PA",
                2000,
                0,
                10,
                Bad(InvalidReason::TcpWindow),
                Established,
            ),
        ]],
    );
}

#[test]
fn both_ends_may_open_at_once() {
    play(
        &strict(),
        &[&[
            (O, "S", 100, 0, 0, New, SynSent),
            (R, "S", 500, 0, 0, Known, SynSentByBoth),
            (O, "SA", 100, 501, 0, Known, SynRecv),
            (R, "SA", 500, 101, 0, Known, SynRecv),
            (O, "A", 101, 501, 0, Known, Established),
            (R, "PA", 501, 101, 100, Known, Established),
        ]],
    );
}

#[test]
fn both_ends_may_close_at_once() {
    play(
        &strict(),
        &[
            &HANDSHAKE,
            &[
                (O, "FA", 101, 501, 0, Known, FinWait),
                (R, "FA", 501, 101, 0, Known, LastAck),
                (O, "A", 102, 502, 0, Known, TimeWait),
                (R, "A", 502, 102, 0, Known, TimeWait),
            ],
        ],
    );
}

#[test]
fn a_repeated_syn_is_new_until_it_is_answered_and_may_have_another_number() {
    let table = strict();
    play(
        &table,
        &[&[
            (O, "S", 100, 0, 0, New, SynSent),
            (O, "S", 100, 0, 0, New, SynSent),
            (O, "S", 7_000_000, 0, 0, New, SynSent),
            (R, "SA", 500, 7_000_001, 0, Known, SynRecv),
            (R, "SA", 500, 7_000_001, 0, Known, SynRecv),
            (O, "A", 7_000_001, 501, 0, Known, Established),
        ]],
    );
    assert_eq!(table.stats().opened, 1);
}

#[test]
fn data_may_come_with_the_syn() {
    for acknowledged in [101, 141] {
        play(
            &strict(),
            &[&[
                (O, "S", 100, 0, 40, New, SynSent),
                (R, "SA", 500, acknowledged, 0, Known, SynRecv),
                (O, "A", acknowledged, 501, 0, Known, Established),
            ]],
        );
    }
}

#[test]
fn an_answer_to_no_syn_or_to_another_is_invalid() {
    for (row, reason) in [
        ((R, "SA", 500, 100), InvalidReason::TcpWindow),
        ((R, "SA", 500, 102), InvalidReason::TcpWindow),
        ((R, "SA", 500, 0), InvalidReason::TcpWindow),
        ((O, "SA", 100, 500), InvalidReason::TcpState),
        ((O, "A", 101, 501), InvalidReason::TcpState),
        ((O, "FA", 101, 501), InvalidReason::TcpState),
        ((R, "FA", 501, 101), InvalidReason::TcpState),
        // A reset must acknowledge the SYN.
        ((R, "R", 0, 0), InvalidReason::TcpReset),
        ((R, "RA", 0, 100), InvalidReason::TcpReset),
        ((R, "RA", 0, 102), InvalidReason::TcpReset),
    ] {
        let (direction, letters, sequence, ack) = row;
        play(
            &strict(),
            &[&[
                (O, "S", 100, 0, 0, New, SynSent),
                (direction, letters, sequence, ack, 0, Bad(reason), SynSent),
                (R, "SA", 500, 101, 0, Known, SynRecv),
            ]],
        );
    }
}

#[test]
fn a_refused_connection_is_closed_and_can_be_tried_again() {
    play(
        &strict(),
        &[&[
            (O, "S", 100, 0, 0, New, SynSent),
            (R, "RA", 0, 101, 0, Known, Close),
            (O, "S", 300, 0, 0, New, SynSent),
        ]],
    );
}

#[test]
fn flags_that_no_tcp_sends_are_invalid_in_every_state() {
    for letters in [
        "", "F", "SF", "SR", "FR", "SFA", "SRA", "FRA", "P", "U", "FPU", "SAU", "RU", "SAFRPU",
    ] {
        let bad = Bad(InvalidReason::TcpFlags);
        let table = strict();
        for direction in [O, R] {
            let segment = segment(letters, 101, 501, 0);
            assert_eq!(
                send(&table, direction, segment, Millis(0)),
                bad,
                "{letters}"
            );
        }
        play(
            &table,
            &[
                &HANDSHAKE,
                &[
                    (O, letters, 101, 501, 0, bad, Established),
                    (R, letters, 501, 101, 0, bad, Established),
                ],
            ],
        );
    }
}

#[test]
fn without_a_connection_only_a_syn_opens_one() {
    for letters in ["A", "PA", "SA", "FA", "R", "RA"] {
        let table = strict();
        let segment = segment(letters, 100, 200, 0);
        let reason = InvalidReason::TcpNoConnection;
        assert_eq!(
            send(&table, O, segment, Millis(0)),
            Bad(reason),
            "{letters}"
        );
        let packet = tcp(tcp_tuple(1234), segment);
        table
            .commit(&packet, &commit(1, NatSpec::NONE), Millis(0))
            .expect_err("opens nothing");
    }
}

#[test]
fn segments_outside_the_window_are_invalid_and_change_nothing() {
    // Each end's window is 1000; 101 and 501 come next.
    let bad = Bad(InvalidReason::TcpWindow);
    for row in [
        // After the window, and before it.
        (O, "PA", 101 + 1001, 501, 1, bad, Established),
        (O, "PA", 101 + 1_000_000, 501, 1, bad, Established),
        (R, "PA", 501 + 1001, 101, 1, bad, Established),
        (O, "A", 101_u32.wrapping_sub(1001), 501, 0, bad, Established),
        (R, "A", 501_u32.wrapping_sub(1001), 101, 0, bad, Established),
        // Acknowledging what was not sent, or what is long past.
        (O, "A", 101, 502, 0, bad, Established),
        (R, "A", 501, 102, 0, bad, Established),
        (
            R,
            "A",
            501,
            101_u32.wrapping_sub(66_001),
            0,
            bad,
            Established,
        ),
        (
            R,
            "A",
            501,
            101_u32.wrapping_sub(1 << 31),
            0,
            bad,
            Established,
        ),
        // A FIN from nowhere does not close.
        (O, "FA", 101 + 5000, 501, 0, bad, Established),
        (R, "FA", 501, 5000, 0, bad, Established),
        // A SYN ACK that is not this connection's.
        (R, "SA", 9000, 101, 0, bad, Established),
    ] {
        play(
            &strict(),
            &[
                &HANDSHAKE,
                &[row],
                // The connection goes on.
                &[
                    (O, "PA", 101, 501, 1000, Known, Established),
                    (R, "PA", 501, 1101, 1000, Known, Established),
                ],
            ],
        );
    }
}

#[test]
fn a_reset_closes_only_if_its_receiver_would_believe_it() {
    let refused = Bad(InvalidReason::TcpReset);
    for (row, after) in [
        ((O, "R", 101, 0, 0, Known), Close),
        ((R, "RA", 501, 101, 0, Known), Close),
        // In the window, but not the next: its receiver asks back.
        ((O, "R", 102, 0, 0, Known), Established),
        ((R, "R", 1501, 0, 0, Known), Established),
        ((O, "R", 100, 0, 0, refused), Established),
        ((O, "R", 0, 0, 0, refused), Established),
        ((R, "R", 1502, 0, 0, refused), Established),
        ((R, "RA", 501 + (1 << 31), 101, 0, refused), Established),
    ] {
        let (direction, letters, sequence, ack, payload, outcome) = row;
        // What came last acknowledges nothing beyond the handshake.
        let row = (direction, letters, sequence, ack, payload, outcome, after);
        play(
            &strict(),
            &[
                &HANDSHAKE,
                &[(R, "A", 501, 101, 0, Known, Established), row],
            ],
        );
    }
}

#[test]
fn a_reset_after_data_that_was_not_acknowledged_closes() {
    play(
        &strict(),
        &[
            &HANDSHAKE,
            &[
                (O, "PA", 101, 501, 300, Known, Established),
                (O, "R", 401, 0, 0, Known, Close),
            ],
        ],
    );
}

#[test]
fn an_opener_that_forgot_its_connection_can_clear_it() {
    play(
        &strict(),
        &[
            &HANDSHAKE,
            &[
                // After a restart it tries again, the other end challenges, and its reset is the proof.
                (O, "S", 55_000, 0, 0, Known, Established),
                (R, "A", 501, 101, 0, Known, Established),
                (O, "R", 101, 0, 0, Known, Close),
                (O, "S", 56_000, 0, 0, New, SynSent),
            ],
        ],
    );
}

#[test]
fn an_end_that_lost_the_connection_answers_a_new_syn() {
    let lost: Row = (O, "S", 55_000, 0, 0, Known, Established);
    // It accepts, or it refuses; but not just anything is its answer.
    play(
        &strict(),
        &[
            &HANDSHAKE,
            &[
                lost,
                (
                    R,
                    "SA",
                    90_000,
                    55_000,
                    0,
                    Bad(InvalidReason::TcpWindow),
                    Established,
                ),
                (R, "SA", 90_000, 55_001, 0, Known, SynRecv),
                (O, "A", 55_001, 90_001, 0, Known, Established),
                (O, "PA", 55_001, 90_001, 1000, Known, Established),
                (R, "PA", 90_001, 56_001, 1000, Known, Established),
            ],
        ],
    );
    play(
        &strict(),
        &[
            &HANDSHAKE,
            &[
                lost,
                (
                    R,
                    "RA",
                    0,
                    55_000,
                    0,
                    Bad(InvalidReason::TcpReset),
                    Established,
                ),
                (R, "RA", 0, 55_001, 0, Known, Close),
            ],
        ],
    );
}

#[test]
fn a_syn_from_the_other_end_of_a_live_connection_is_invalid() {
    play(
        &strict(),
        &[
            &HANDSHAKE,
            &[(R, "S", 77, 0, 0, Bad(InvalidReason::TcpState), Established)],
        ],
    );
}

/// A handshake with these window scale options, windows of 1000.
fn scaled(scales: [Option<u8>; 2]) -> Conntrack {
    let table = strict();
    let [opener, other] = scales;
    for (direction, letters, sequence, ack, window_scale) in [
        (O, "S", 100, 0, opener),
        (R, "SA", 500, 101, other),
        (O, "A", 101, 501, None),
        (R, "A", 501, 101, None),
    ] {
        let segment = TcpInfo {
            window_scale,
            ..segment(letters, sequence, ack, 0)
        };
        assert!(!matches!(
            send(&table, direction, segment, Millis(0)),
            Bad(_)
        ));
    }
    table
}

#[test]
fn windows_are_scaled_if_both_ends_said_so() {
    for (scales, opener_may_send) in [
        ([Some(0), Some(7)], 1000 << 7),
        ([Some(7), Some(0)], 1000),
        ([Some(3), Some(14)], 1000 << 14),
        // 14 is the most there is.
        ([Some(3), Some(200)], 1000 << 14),
        ([None, Some(7)], 1000),
        ([Some(7), None], 1000),
        ([None, None], 1000),
    ] {
        let last = 101 + opener_may_send;
        let known = send(&scaled(scales), O, segment("PA", last, 501, 1), Millis(0));
        assert_eq!(known, Known, "{scales:?}");
        let beyond = segment("PA", last + 1, 501, 1);
        assert_eq!(
            send(&scaled(scales), O, beyond, Millis(0)),
            Bad(InvalidReason::TcpWindow),
            "{scales:?}"
        );
    }
}

#[test]
fn a_closed_window_may_be_probed_with_one_byte() {
    let table = scaled([None, None]);
    let closed = TcpInfo {
        window: 0,
        ..segment("A", 501, 1101, 0)
    };
    assert_eq!(
        send(&table, O, segment("PA", 101, 501, 1000), Millis(0)),
        Known
    );
    assert_eq!(send(&table, R, closed, Millis(0)), Known);
    assert_eq!(
        send(&table, O, segment("A", 1101, 501, 1), Millis(0)),
        Known
    );
    let two_further = segment("A", 1103, 501, 1);
    assert_eq!(
        send(&table, O, two_further, Millis(0)),
        Bad(InvalidReason::TcpWindow)
    );
}

#[test]
fn a_frame_to_be_segmented_counts_with_all_its_bytes() {
    let table = scaled([Some(7), Some(7)]);
    assert_eq!(
        send(&table, O, segment("PA", 101, 501, 65_000), Millis(0)),
        Known
    );
    assert_eq!(
        send(&table, R, segment("A", 501, 65_101, 0), Millis(0)),
        Known
    );
}

#[test]
fn a_liberal_table_checks_only_resets() {
    let table = table(ConntrackConfig {
        strictness: Strictness {
            windows: TcpWindows::Liberal,
            ..Default::default()
        },
        ..Default::default()
    });
    play(
        &table,
        &[
            &HANDSHAKE,
            &[
                (O, "PA", 5_000_000, 501, 1, Known, Established),
                (
                    R,
                    "RA",
                    9,
                    101,
                    0,
                    Bad(InvalidReason::TcpReset),
                    Established,
                ),
            ],
        ],
    );
}

#[test]
fn a_connection_from_before_is_picked_up_if_that_is_wanted() {
    let table = table(ConntrackConfig {
        strictness: Strictness {
            pickup: TcpPickup::Midstream,
            ..Default::default()
        },
        ..Default::default()
    });
    play(
        &table,
        &[&[
            (O, "PA", 4_000, 8_000, 100, New, Established),
            (R, "PA", 8_000, 4_100, 100, Known, Established),
            // Its windows may be scaled: nobody knows.
            (O, "PA", 60_000, 8_100, 100, Known, Established),
            (O, "FA", 60_100, 8_100, 0, Known, FinWait),
        ]],
    );
}

#[test]
fn fragments_without_the_header_pass_and_end_the_window_checks() {
    let table = strict();
    let tuple = tcp_tuple(1234);
    let fragment = packet(tuple, TransportInfo::LaterFragment);
    assert_eq!(
        table.track(&fragment, Millis(0)).invalid,
        Some(InvalidReason::FragmentNoConnection)
    );
    establish(&table, tuple, Millis(0));
    let tracked = table.track(&fragment, Millis(0));
    assert!(tracked.state.contains(StateBits::ESTABLISHED));
    assert!(!tracked.cacheable);
    let conn = tracked.conn.expect("established");
    let far = segment("PA", 5_101, 501, 10);
    let refreshed = table.refresh(conn, O, (Some(&far), 100), Millis(0));
    assert_eq!(refreshed, Refreshed::Valid);
    play(&table, &[&[(O, "PA", 9_101, 501, 10, Known, Established)]]);
}

#[test]
fn verdicts_are_cacheable_only_while_nothing_changes() {
    let table = strict();
    let tuple = tcp_tuple(1234);
    for (direction, letters, sequence, ack, payload, cacheable) in [
        (O, "S", 100, 0, 0, false),
        (R, "SA", 500, 101, 0, false),
        (O, "A", 101, 501, 0, false),
        (O, "PA", 101, 501, 10, true),
        (R, "A", 501, 111, 0, true),
        (O, "FA", 111, 501, 0, false),
        (R, "A", 501, 112, 0, false),
    ] {
        let packet = tcp(
            if direction == O {
                tuple
            } else {
                tuple.inverse()
            },
            segment(letters, sequence, ack, payload),
        );
        let tracked = table.track(&packet, Millis(0));
        assert_eq!(tracked.cacheable, cacheable, "{letters} {sequence}");
        if tracked.state.contains(StateBits::NEW) {
            conntrack_packets::open(&table, &packet, Millis(0));
        }
    }
}

#[test]
fn the_fast_path_takes_plain_segments_in_the_window_and_nothing_else() {
    let table = strict();
    let conn = establish(&table, tcp_tuple(1234), Millis(0))
        .conn
        .expect("established");
    let refresh = |direction, segment: &TcpInfo| {
        table.refresh(conn, direction, (Some(segment), 100), Millis(0))
    };
    for (direction, letters, sequence, ack, payload) in [
        (O, "S", 101, 0, 0),
        (O, "FA", 101, 501, 0),
        (O, "R", 101, 0, 0),
        (R, "RA", 501, 101, 0),
        (R, "SA", 500, 101, 0),
        (O, "", 101, 501, 0),
        (O, "PA", 101 + 1001, 501, 1),
        (O, "PA", 101, 501, 1001),
        (O, "A", 101, 502, 0),
        (R, "A", 501, 102, 0),
    ] {
        let segment = segment(letters, sequence, ack, payload);
        assert_eq!(
            refresh(direction, &segment),
            Refreshed::Changed,
            "{segment:?}"
        );
    }
    assert_eq!(
        table.refresh(conn, O, (None, 100), Millis(0)),
        Refreshed::Changed,
        "a fragment"
    );
    let before = table.export(conn, Millis(0)).expect("live");
    // It moves the windows on just as the slow path does.
    assert_eq!(refresh(O, &segment("PA", 101, 501, 1000)), Refreshed::Valid);
    assert_eq!(refresh(O, &segment("PA", 1102, 501, 1)), Refreshed::Changed);
    assert_eq!(refresh(R, &segment("A", 501, 1101, 0)), Refreshed::Valid);
    assert_eq!(
        refresh(O, &segment("PAE", 1101, 501, 1000)),
        Refreshed::Valid
    );
    let after = table.export(conn, Millis(0)).expect("live");
    assert_eq!(
        after.packets,
        [before.packets[0] + 2, before.packets[1] + 1]
    );
    assert_eq!(after.bytes, [before.bytes[0] + 200, before.bytes[1] + 100]);
    // Once a FIN has come nothing is fast any more.
    assert_eq!(
        send(&table, O, segment("FA", 2101, 501, 0), Millis(0)),
        Known
    );
    assert_eq!(refresh(R, &segment("A", 501, 2101, 0)), Refreshed::Changed);
}

#[test]
fn no_combination_of_flags_and_numbers_upsets_the_table() {
    let numbers = [0, 1, 99, 100, 101, 501, 1 << 31, (1 << 31) + 501, u32::MAX];
    for all in 0..=u8::MAX {
        let table = strict();
        establish(&table, tcp_tuple(1234), Millis(0));
        for sequence in numbers {
            for ack in numbers {
                let segment = TcpInfo {
                    flags: switch_core::conntrack::TcpFlags(all),
                    window: (sequence ^ ack) as u16,
                    payload_bytes: ack,
                    ..segment("", sequence, ack, 0)
                };
                for direction in [O, R] {
                    send(&table, direction, segment, Millis(0));
                }
            }
        }
        assert!(table.stats().connections <= 1);
    }
}
