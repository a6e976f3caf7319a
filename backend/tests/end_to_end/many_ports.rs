//! Several guests on one switch: flooding, learning, and that one guest's slowness stays its own.

use guest_sim::bench::MemoryUse;
use guest_sim::frame::FrameBuilder;
use guest_sim::frame::build::BROADCAST;
use guest_sim::{Features, Nic, NicOptions, Refill, Waiting};

use crate::rig::{
    Switch, VM, WITHIN, arrival, assortment, exchange, guest_options, mac, memory, numbered,
    one_way, verify_arrival, verify_quiet,
};

fn eight(switch: &Switch) -> Vec<Nic> {
    VM.iter()
        .map(|port| switch.guest(port, guest_options()))
        .collect()
}

/// Buffers only when the test says so.
fn without_buffers() -> NicOptions {
    NicOptions {
        refill: Refill::Manual,
        ..guest_options()
    }
}

fn quiet(nics: &mut [Nic]) {
    verify_quiet(&mut nics.iter_mut().collect::<Vec<_>>());
}

#[test]
fn a_broadcast_reaches_each_of_seven_others_once_and_not_its_sender() {
    let switch = Switch::of(&VM);
    let mut nics = eight(&switch);
    for sender in 0..nics.len() {
        for frame in assortment(sender as u8 + 1, 0, sender as u16) {
            let mut frame = frame;
            frame.bytes[..6].copy_from_slice(&BROADCAST);
            nics[sender].send(&frame).unwrap();
            for (at, nic) in nics.iter_mut().enumerate() {
                if at != sender {
                    verify_arrival(&frame, nic);
                }
            }
        }
    }
    quiet(&mut nics);
    switch.finish();
}

#[test]
fn multicast_is_flooded_also_when_everybody_is_known() {
    let switch = Switch::of(&["vm1", "vm2", "vm3"]);
    let mut nics = ["vm1", "vm2", "vm3"].map(|port| switch.guest(port, guest_options()));
    let group = [0x01, 0x00, 0x5e, 0, 0, 0xfb];
    for round in 0..3 {
        let frame = FrameBuilder::udp4(300)
            .ports(round, 5353)
            .macs(mac(1), group)
            .build();
        nics[0].send(&frame).unwrap();
        verify_arrival(&frame, &mut nics[1]);
        verify_arrival(&frame, &mut nics[2]);
    }
    quiet(&mut nics);
    switch.finish();
}

#[test]
fn an_unknown_station_is_flooded_and_a_known_one_is_not() {
    let switch = Switch::of(&VM);
    let mut nics = eight(&switch);
    let unknown = numbered(1, 1, 2);
    nics[0].send(&unknown).unwrap();
    for nic in &mut nics[1..] {
        verify_arrival(&unknown, nic);
    }
    let (first, others) = nics.split_at_mut(1);
    // The answer goes to its destination alone, which was learned from the question.
    one_way(&numbered(2, 2, 1), &mut others[0], &mut first[0]);
    for number in 3..100 {
        one_way(&numbered(number, 1, 2), &mut first[0], &mut others[0]);
    }
    quiet(&mut nics);
    assert_eq!(switch.learned(mac(1)).as_deref(), Some("vm1"));
    assert_eq!(switch.learned(mac(2)).as_deref(), Some("vm2"));
    assert_eq!(switch.learned(mac(3)), None);
    switch.finish();
}

#[test]
fn a_station_that_moves_is_found_at_its_new_port_from_its_first_frame_on() {
    let switch = Switch::of(&["vm1", "vm2", "vm3"]);
    let [mut one, mut two, mut three] =
        ["vm1", "vm2", "vm3"].map(|port| switch.guest(port, guest_options()));
    let hello = |number| numbered(number, 9, 1);
    // `vm1` is known, so that hellos are not flooded.
    one.send(&numbered(0, 1, 9)).unwrap();
    verify_arrival(&numbered(0, 1, 9), &mut two);
    verify_arrival(&numbered(0, 1, 9), &mut three);
    for round in 0..10 {
        let (here, there) = if round % 2 == 0 {
            (&mut two, &mut three)
        } else {
            (&mut three, &mut two)
        };
        one_way(&hello(round), here, &mut one);
        for number in 0..5 {
            one_way(&numbered(100 * round + number, 1, 9), &mut one, here);
        }
        verify_quiet(&mut [here, there]);
    }
    verify_quiet(&mut [&mut one, &mut two, &mut three]);
    switch.finish();
}

#[test]
fn a_frame_for_the_port_it_came_from_goes_nowhere() {
    let switch = Switch::of(&["vm1", "vm2"]);
    let [mut one, mut two] = ["vm1", "vm2"].map(|port| switch.guest(port, guest_options()));
    one_way(&numbered(1, 1, 2), &mut one, &mut two);
    one_way(&numbered(2, 3, 2), &mut one, &mut two);
    // Both 1 and 3 are behind `vm1`.
    one.send(&numbered(3, 1, 3)).unwrap();
    verify_quiet(&mut [&mut one, &mut two]);
    assert_eq!(switch.all_drops("vm1"), [("same_port".into(), 1)]);
    switch.finish();
}

#[test]
fn a_guest_that_posts_no_buffers_loses_its_own_frames_only() {
    let switch = Switch::of(&["vm1", "vm2", "vm3"]);
    let mut from = switch.guest("vm1", guest_options());
    let mut starved = switch.guest("vm2", without_buffers());
    let mut fed = switch.guest("vm3", guest_options());
    let frames: Vec<_> = (0..200).map(|number| numbered(number, 1, 0xff)).collect();
    for chunk in frames.chunks(50) {
        from.pair(0).guest_tx.send_all(chunk, WITHIN).unwrap();
        for frame in chunk {
            verify_arrival(frame, &mut fed);
        }
    }
    from.pair(0).guest_tx.drain(WITHIN).unwrap();
    assert_eq!(switch.all_drops("vm2"), [("rx_ring_full".into(), 200)]);
    assert_eq!(switch.all_drops("vm3"), []);
    // Once it posts some it gets as many, from then on.
    starved.pair(0).guest_rx.post(3).unwrap();
    for frame in &frames[..5] {
        from.send(frame).unwrap();
        verify_arrival(frame, &mut fed);
    }
    for frame in &frames[..3] {
        verify_arrival(frame, &mut starved);
    }
    verify_quiet(&mut [&mut from, &mut starved, &mut fed]);
    assert_eq!(switch.drops("vm2", "rx_ring_full"), 202);
    switch.finish();
}

#[test]
fn a_frame_that_needs_more_buffers_than_there_are_leaves_them_for_the_next() {
    let switch = Switch::of(&["vm1", "vm2"]);
    let mut from = switch.guest("vm1", guest_options());
    let mut to = switch.guest("vm2", without_buffers());
    to.pair(0).guest_rx.post(3).unwrap();
    // Three of 1,536 bytes: not enough for 9,000, enough for three of 500.
    let long = FrameBuilder::tcp4(9000)
        .macs(mac(1), mac(2))
        .segment(1448)
        .build();
    for round in 0..100 {
        from.send(&long).unwrap();
        for number in 0..3 {
            one_way(&numbered(500 + round + number, 1, 2), &mut from, &mut to);
        }
        to.pair(0).guest_rx.post(3).unwrap();
    }
    verify_quiet(&mut [&mut from, &mut to]);
    assert_eq!(switch.all_drops("vm2"), [("rx_ring_full".into(), 100)]);
    switch.finish();
}

#[test]
fn a_flood_at_a_full_receiver_does_not_hold_up_others() {
    let switch = Switch::of(&VM);
    let mut flooder = switch.guest("vm1", guest_options());
    let mut full = switch.guest("vm2", without_buffers());
    let mut one = switch.guest("vm3", guest_options());
    let mut other = switch.guest("vm4", guest_options());
    // It introduces itself and takes nothing from then on.
    let hello = numbered(0, 2, 1);
    full.send(&hello).unwrap();
    for nic in [&mut flooder, &mut one, &mut other] {
        verify_arrival(&hello, nic);
    }
    assert_eq!(switch.learned(mac(2)).as_deref(), Some("vm2"));
    one_way(&numbered(0, 3, 4), &mut one, &mut other);
    one_way(&numbered(0, 4, 3), &mut other, &mut one);
    let frames: Vec<_> = (0..64).map(|number| numbered(number, 1, 2)).collect();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Acquire) {
                flooder.pair(0).guest_tx.send_all(&frames, WITHIN).unwrap();
            }
        });
        for _ in 0..20 {
            exchange((3, &mut one), (4, &mut other));
        }
        done.store(true, std::sync::atomic::Ordering::Release);
    });
    flooder.pair(0).guest_tx.drain(WITHIN).unwrap();
    assert!(switch.drops("vm2", "rx_ring_full") > 0);
    assert_eq!(switch.all_drops("vm3"), []);
    assert_eq!(switch.all_drops("vm4"), []);
    switch.finish();
}

#[test]
fn a_port_nobody_is_attached_to_counts_what_it_misses() {
    let switch = Switch::of(&["vm1", "vm2", "vm3"]);
    let mut from = switch.guest("vm1", guest_options());
    let mut to = switch.guest("vm3", guest_options());
    for number in 0..10 {
        one_way(&numbered(number, 1, 3), &mut from, &mut to);
    }
    assert_eq!(switch.all_drops("vm2"), [("rx_ring_not_ready".into(), 10)]);
    switch.finish();
}

#[test]
fn counters_add_up_to_what_was_sent() {
    let switch = Switch::of(&["vm1", "vm2"]);
    let mut from = switch.guest("vm1", guest_options());
    let mut to = switch.guest(
        "vm2",
        NicOptions {
            features: Features::LINUX - Features::OFFLOADS,
            ..guest_options()
        },
    );
    let (mut sent, mut sent_bytes, mut received, mut received_bytes) = (0, 0, 0, 0);
    for frame in assortment(1, 2, 0) {
        from.send(&frame).unwrap();
        sent += 1;
        sent_bytes += frame.bytes.len();
        for _ in 0..crate::rig::pieces(&frame, to.acked()) {
            received += 1;
            received_bytes += arrival(&mut to).bytes.len();
        }
    }
    from.pair(0).guest_tx.drain(WITHIN).unwrap();
    let (one, two) = (switch.counters("vm1"), switch.counters("vm2"));
    assert_eq!(one["guest_tx_frames"], sent);
    assert_eq!(one["guest_tx_bytes"], sent_bytes);
    assert_eq!(two["guest_rx_frames"], received);
    assert_eq!(two["guest_rx_bytes"], received_bytes);
    switch.finish();
}

#[test]
fn two_workers_carry_crossing_traffic_of_eight_ports_without_loss() {
    let ports = VM.map(guest_sim::bench::daemon::PortArgument::named);
    let switch = Switch::new(&ports, &["--workers", "2"]);
    let mut nics = eight(&switch);
    // Everybody is known first, or floods would mix with what each pair exchanges.
    for number in 1..=8 {
        let hello = numbered(0, number, 0xee);
        nics[usize::from(number) - 1].send(&hello).unwrap();
        for (nic, other) in nics.iter_mut().zip(1..) {
            if other != number {
                verify_arrival(&hello, nic);
            }
        }
    }
    std::thread::scope(|scope| {
        for (pair, number) in nics.chunks_mut(2).zip((1u8..).step_by(2)) {
            scope.spawn(move || {
                let [one, other] = pair else {
                    panic!("ports come in pairs")
                };
                for _ in 0..20 {
                    exchange((number, one), (number + 1, other));
                }
            });
        }
    });
    switch.finish();
}

#[test]
fn a_guest_that_asks_for_no_calls_gets_none() {
    let switch = Switch::of(&["vm1", "vm2"]);
    for ring_features in [Features::NONE, Features::EVENT_IDX] {
        let options = NicOptions {
            features: Features::VERSION_1 | Features::MRG_RXBUF | ring_features,
            waiting: Waiting::BusyPoll,
            ..guest_options()
        };
        let mut from = switch.guest("vm1", options.clone());
        let mut to = switch.guest("vm2", options);
        // A call eventfd is signalled once when it is set.
        from.pair(0).guest_tx.ring_mut().take_call();
        to.pair(0).guest_rx.ring_mut().take_call();
        for number in 0..300 {
            one_way(&numbered(number, 1, 2), &mut from, &mut to);
        }
        verify_quiet(&mut [&mut from, &mut to]);
        assert!(!from.pair(0).guest_tx.ring_mut().take_call());
        assert!(!to.pair(0).guest_rx.ring_mut().take_call());
    }
    assert!(switch.counters("vm2")["notifications_saved"].as_u64() > Some(0));
    switch.finish();
}

#[test]
fn a_daemon_that_may_hold_no_more_descriptors_says_so_and_serves_the_guests_it_has() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let switch = Switch::of(&["vm1", "vm2", "vm3"]);
    let mut one = switch.guest("vm1", guest_options());
    let mut other = switch.guest("vm2", guest_options());
    let pid = switch.daemon.pid();
    let held = MemoryUse::of(pid).unwrap().descriptors;
    // Enough for the next connection and what it sends at first, and for a client of the admin socket.
    let most = Some(held + 4);
    let limit = Rlimit {
        current: most,
        maximum: most,
    };
    let pid = Pid::from_raw(pid.try_into().unwrap());
    prlimit(pid, Resource::Nofile, limit).unwrap();
    let refused = switch.try_guest_in(&memory(), "vm3", guest_options());
    assert!(refused.is_err());
    let shown = switch.show("vm3").to_string();
    assert!(shown.contains("raise its limit"), "{shown}");
    exchange((1, &mut one), (2, &mut other));
    switch.finish();
}
