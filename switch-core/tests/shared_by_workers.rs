//! Several workers on one switch: what one was told is what the other answers, whatever a third is doing.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use switch_core::{
    HeaderEdit, MacAddress, Millis, Pipeline, PortId, RateLimit, Switch, SwitchConfig, Verdict,
    VlanPolicy,
};

const ROUNDS: u64 = 2_000;

fn port(index: u16) -> PortId {
    PortId::new(index).expect("a small index")
}

fn frame(destination: MacAddress, source: MacAddress) -> Vec<u8> {
    [&destination.0[..], &source.0, &[0x08, 0x00]].concat()
}

fn switch_with_ports(count: u16) -> Arc<Switch> {
    let config = SwitchConfig {
        mac_table_capacity: 4_096,
        learn_rate: RateLimit::UNLIMITED,
        flow_rate: RateLimit::UNLIMITED,
        ..SwitchConfig::default()
    };
    let switch = Arc::new(Switch::new(config));
    for index in 0..count {
        switch
            .add_port(port(index), VlanPolicy::Transparent)
            .expect("a new port");
    }
    switch
}

/// Learns addresses on port 0 until told to stop.
fn flood_addresses(switch: &Arc<Switch>, stop: &AtomicBool) {
    let mut pipeline = Pipeline::new(Arc::clone(switch));
    let mut number = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        pipeline.begin_batch(Millis(0));
        pipeline.classify(
            port(0),
            &frame(
                MacAddress::BROADCAST,
                MacAddress::from_u64(0x02_ff00_0000_0000 | number),
            ),
        );
    }
}

#[test]
fn a_change_that_one_worker_finished_is_never_answered_from_anothers_cache() {
    let switch = switch_with_ports(4);
    let (station, asker) = (
        MacAddress([2, 0, 0, 0, 0, 1]),
        MacAddress([2, 0, 0, 0, 0, 2]),
    );
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| flood_addresses(&switch, &stop));
        let (ask, asked) = mpsc::sync_channel::<()>(0);
        let (answer, answered) = mpsc::sync_channel(0);
        let worker_switch = Arc::clone(&switch);
        scope.spawn(move || {
            let mut pipeline = Pipeline::new(worker_switch);
            while asked.recv().is_ok() {
                pipeline.begin_batch(Millis(0));
                // Twice: the second answer comes from the cache.
                let verdicts = [(); 2].map(|()| pipeline.classify(port(1), &frame(station, asker)));
                if answer.send(verdicts).is_err() {
                    return;
                }
            }
        });
        let mut pipeline = Pipeline::new(Arc::clone(&switch));
        for round in 0..ROUNDS {
            let behind = port(2 + (round % 2) as u16);
            pipeline.begin_batch(Millis(0));
            pipeline.classify(behind, &frame(MacAddress::BROADCAST, station));
            ask.send(()).expect("the worker runs");
            let expected = Verdict::Output {
                port: behind,
                edit: HeaderEdit::NONE,
            };
            let verdicts = answered.recv().expect("the worker answers");
            if verdicts != [expected; 2] {
                stop.store(true, Ordering::Relaxed);
            }
            assert_eq!(verdicts, [expected; 2], "round {round}");
        }
        stop.store(true, Ordering::Relaxed);
        drop(ask);
    });
}

#[test]
fn a_removed_port_is_in_no_verdict_of_a_later_batch() {
    let switch = switch_with_ports(3);
    let (station, asker) = (
        MacAddress([2, 0, 0, 0, 0, 1]),
        MacAddress([2, 0, 0, 0, 0, 2]),
    );
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        // The station talks all the time, also while its port is being removed.
        scope.spawn(|| {
            let mut pipeline = Pipeline::new(Arc::clone(&switch));
            while !stop.load(Ordering::Relaxed) {
                pipeline.begin_batch(Millis(0));
                for _ in 0..64 {
                    pipeline.classify(port(2), &frame(MacAddress::BROADCAST, station));
                }
            }
        });
        let mut pipeline = Pipeline::new(Arc::clone(&switch));
        let mut stale = 0;
        for _ in 0..ROUNDS / 10 {
            switch.remove_port(port(2)).expect("it is there");
            pipeline.begin_batch(Millis(0));
            for _ in 0..8 {
                match pipeline.classify(port(1), &frame(station, asker)) {
                    Verdict::Flood(flood) => {
                        stale += pipeline
                            .flood_members(flood)
                            .filter(|(to, _)| *to == port(2))
                            .count()
                    }
                    verdict => stale += usize::from(matches!(verdict, Verdict::Output { .. })),
                }
            }
            stale += switch
                .mac_entries(Millis(0))
                .iter()
                .filter(|entry| entry.port == port(2))
                .count();
            switch
                .add_port(port(2), VlanPolicy::Transparent)
                .expect("it is gone");
        }
        stop.store(true, Ordering::Relaxed);
        assert_eq!(stale, 0);
    });
}
