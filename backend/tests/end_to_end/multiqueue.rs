//! Several queue pairs: every ring works, a flow stays on one and in order, and pairs come and go while frames flow.

use std::collections::BTreeMap;

use guest_sim::bench::daemon::PortArgument;
use guest_sim::frame::{FrameBuilder, Parsed, Transport, verify};
use guest_sim::{Ack, Error, Frame, Nic, NicOptions, Patience, ProtocolFeatures, RingState};
use vhost::vhost_user::VhostUserProtocolFeatures as Bits;

use crate::rig::{
    Switch, WITHIN, exchange, guest_options, mac, memory, named, numbered, settle, until,
    verify_arrival, verify_quiet,
};

fn switch(queue_pairs: u16) -> Switch {
    let port = |name| PortArgument {
        queue_pairs,
        ..PortArgument::named(name)
    };
    Switch::new(&[port("vm1"), port("vm2")], &["--workers", "2"])
}

fn with_pairs(queue_pairs: u16) -> NicOptions {
    NicOptions {
        queue_pairs,
        ..guest_options()
    }
}

/// Frame `number` of a flow; its TCP sequence says which it is.
fn of_flow(flow: u16, number: u32) -> Frame {
    FrameBuilder::tcp4(100)
        .macs(mac(1), mac(2))
        .ports(20_000 + flow, 80)
        .sequence(100 * number)
        .build()
}

/// The next frame on any pair, and which pair that was.
fn next(nic: &mut Nic) -> (usize, Frame) {
    let patience = Patience::of(WITHIN);
    loop {
        for (pair, queues) in nic.pairs().iter_mut().enumerate() {
            if let Some(frame) = queues.guest_rx.try_receive().unwrap() {
                return (pair, frame);
            }
        }
        assert!(!patience.is_over(), "no frame arrived on any pair");
        std::thread::yield_now();
    }
}

/// Sends flows from all pairs in turn; each must arrive in order on one ring. The answer is the ring of each flow.
fn flows(from: &mut Nic, to: &mut Nic, count: u16) -> BTreeMap<u16, usize> {
    const FRAMES: u32 = 30;
    let mut seen: BTreeMap<u16, (usize, u32)> = BTreeMap::new();
    for burst in 0..FRAMES / 5 {
        for flow in 0..count {
            let pairs = from.pairs().len();
            let frames: Vec<Frame> = (0..5).map(|nth| of_flow(flow, 5 * burst + nth)).collect();
            let queues = from.pair(usize::from(flow) % pairs);
            queues.guest_tx.send_all(&frames, WITHIN).unwrap();
        }
        for _ in 0..5 * count {
            let (pair, frame) = next(to);
            verify::check(&frame).unwrap();
            let Transport::Tcp {
                ports, sequence, ..
            } = Parsed::new(&frame.bytes).unwrap().transport
            else {
                panic!("a frame nobody sent");
            };
            let (ring, due) = seen.entry(ports.0).or_insert((pair, 0));
            assert_eq!((pair, sequence), (*ring, 100 * *due), "flow {}", ports.0);
            *due += 1;
        }
    }
    assert!(seen.values().all(|&(_, arrived)| arrived == FRAMES));
    seen.into_iter()
        .map(|(flow, (ring, _))| (flow, ring))
        .collect()
}

fn rings_of(flows: &BTreeMap<u16, usize>) -> Vec<usize> {
    let mut rings: Vec<usize> = flows.values().copied().collect();
    rings.sort_unstable();
    rings.dedup();
    rings
}

#[test]
fn flows_keep_their_order_and_their_ring_and_spread_over_all_of_them() {
    for queue_pairs in [2, 4] {
        named(&queue_pairs, || {
            let switch = switch(queue_pairs);
            let mut from = switch.guest("vm1", with_pairs(queue_pairs));
            let mut to = switch.guest("vm2", with_pairs(queue_pairs));
            let rings = rings_of(&flows(&mut from, &mut to, 24));
            assert_eq!(rings, (0..usize::from(queue_pairs)).collect::<Vec<_>>());
            verify_quiet(&mut [&mut from, &mut to]);
            switch.finish();
        });
    }
}

#[test]
fn every_pair_transmits_to_a_guest_with_one() {
    let switch = switch(4);
    let mut from = switch.guest("vm1", with_pairs(4));
    let mut to = switch.guest("vm2", with_pairs(1));
    for number in 0..200 {
        let frame = numbered(number, 1, 2);
        let pair = from.pair(usize::from(number) % 4);
        pair.guest_tx.send(&frame, WITHIN).unwrap();
        verify_arrival(&frame, &mut to);
    }
    verify_quiet(&mut [&mut from, &mut to]);
    switch.finish();
}

#[test]
fn a_disabled_pair_gets_nothing_and_its_flows_go_on_over_the_others() {
    let switch = switch(4);
    let mut from = switch.guest("vm1", with_pairs(4));
    let mut to = switch.guest("vm2", with_pairs(4));
    let all = flows(&mut from, &mut to, 24);
    assert_eq!(rings_of(&all), [0, 1, 2, 3]);
    for remaining in [3, 2, 1] {
        to.enable_pair(remaining, RingState::Disabled).unwrap();
        let rings = rings_of(&flows(&mut from, &mut to, 24));
        assert_eq!(rings, (0..usize::from(remaining)).collect::<Vec<_>>());
    }
    for pair in 1..4 {
        to.enable_pair(pair, RingState::Enabled).unwrap();
    }
    assert_eq!(flows(&mut from, &mut to, 24), all);
    verify_quiet(&mut [&mut from, &mut to]);
    switch.finish();
}

#[test]
fn pairs_switched_off_and_on_under_traffic_lose_and_repeat_nothing() {
    let switch = switch(2);
    let mut from = switch.guest("vm1", with_pairs(2));
    let mut to = switch.guest("vm2", with_pairs(2));
    const FRAMES: u32 = 4000;
    let (session, pairs) = to.split();
    std::thread::scope(|scope| {
        let from = &mut from;
        let traffic = scope.spawn(move || {
            let mut seen = vec![false; FRAMES as usize];
            for first in (0..FRAMES).step_by(20) {
                let frames: Vec<_> = (first..first + 20)
                    .map(|number| of_flow((number % 16) as u16, number))
                    .collect();
                from.pair(0).guest_tx.send_all(&frames, WITHIN).unwrap();
                for _ in 0..20 {
                    let frame = until("a frame on either pair", || {
                        let mut pairs = pairs.iter_mut();
                        pairs.find_map(|pair| pair.guest_rx.try_receive().unwrap())
                    });
                    verify::check(&frame).unwrap();
                    let Transport::Tcp { sequence, .. } =
                        Parsed::new(&frame.bytes).unwrap().transport
                    else {
                        panic!("a frame nobody sent");
                    };
                    let number = sequence as usize / 100;
                    assert!(!seen[number], "frame {number} twice");
                    seen[number] = true;
                }
            }
        });
        let mut state = [RingState::Disabled, RingState::Enabled]
            .into_iter()
            .cycle();
        while !traffic.is_finished() {
            let state = state.next().unwrap();
            for ring in [2, 3] {
                session.set_vring_enable(ring, state, Ack::Wanted).unwrap();
            }
        }
        traffic.join().unwrap();
    });
    switch.finish();
}

#[test]
fn a_front_end_with_more_pairs_than_the_port_works_with_those_it_has() {
    let switch = switch(2);
    // It counts rings, and 4 rings are what the port answers: a front-end that takes them for pairs starts too many.
    let mut from = switch.guest("vm1", with_pairs(2));
    let options = NicOptions {
        queue_pairs: 4,
        ..NicOptions::cloud_hypervisor()
    };
    let refused = switch.try_guest_in(&memory(), "vm2", options);
    assert!(
        matches!(
            refused,
            Err(Error::TooFewQueues {
                wanted: 4,
                answered: 4
            })
        ),
        "{refused:?}"
    );
    // One that neither asks (no MQ) nor listens to refusals (no REPLY_ACK), and starts four.
    let protocol = ProtocolFeatures::QEMU.without(Bits::MQ | Bits::REPLY_ACK);
    let mut to = switch.introduced(
        "vm2",
        NicOptions {
            queue_pairs: 4,
            protocol,
            ..guest_options()
        },
    );
    to.start().unwrap();
    settle(&mut to);
    assert_eq!(rings_of(&flows(&mut from, &mut to, 24)), [0, 1]);
    let show = switch.show("vm2").to_string();
    assert!(show.contains("queue_pairs"), "{show}");
    switch.finish();
}

#[test]
fn sixty_four_pairs_all_work() {
    let switch = switch(64);
    let options = NicOptions {
        guest_rx_ring_size: 64,
        guest_tx_ring_size: 64,
        ..with_pairs(64)
    };
    let mut from = switch.guest("vm1", options.clone());
    let mut to = switch.guest("vm2", options);
    for number in 0..256 {
        let frame = numbered(number, 1, 2);
        let pair = from.pair(usize::from(number) % 64);
        pair.guest_tx.send(&frame, WITHIN).unwrap();
        verify::same(&frame, &next(&mut to).1).unwrap();
    }
    verify_quiet(&mut [&mut from, &mut to]);
    switch.finish();
}

#[test]
fn a_guest_reconnects_with_another_number_of_pairs() {
    let switch = switch(4);
    let mut one = switch.guest("vm1", with_pairs(1));
    for pairs in [1, 4, 2, 1, 3] {
        let mut other = switch.guest("vm2", with_pairs(pairs));
        if pairs == 1 {
            exchange((1, &mut one), (2, &mut other));
        } else {
            flows(&mut one, &mut other, 12);
        }
    }
    switch.finish();
}
