//! Several workers: who serves what, moves under traffic, and that load is shared without an operator.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use guest_sim::bench::Treadmill;
use guest_sim::bench::daemon::PortArgument;
use guest_sim::frame::{FrameBuilder, verify};
use guest_sim::{Frame, GuestMemory, GuestMemoryLayout, Nic, NicOptions};
use serde_json::Value;

use crate::rig::{
    Finished, Switch, VM, WITHIN, arrival, guest_options, mac, numbered, one_way, until,
    verify_quiet,
};

fn two_workers(names: &[&str]) -> Switch {
    let ports: Vec<_> = names.iter().map(|name| PortArgument::named(name)).collect();
    Switch::new(&ports, &["--workers", "2"])
}

fn workers(switch: &Switch) -> Value {
    serde_json::from_str(&switch.command(&["worker", "list", "--json"])).unwrap()
}

fn source(switch: &Switch, port: &str) -> Value {
    let list = workers(switch);
    let sources = list["sources"].as_array().unwrap().iter();
    let found = sources.clone().find(|source| source["port"] == port);
    found
        .unwrap_or_else(|| panic!("{port} is not in {list}"))
        .clone()
}

fn worker_of(switch: &Switch, port: &str) -> u64 {
    source(switch, port)["worker"].as_u64().unwrap()
}

fn move_to(switch: &Switch, port: &str, worker: &str) {
    switch.command(&["worker", "move", port, worker]);
}

/// Both stations are known, so that nothing is flooded.
fn introduce(one: (u8, &mut Nic), other: (u8, &mut Nic)) {
    let ((number, one), (other_number, other)) = (one, other);
    one_way(&numbered(0, number, other_number), one, other);
    one_way(&numbered(0, other_number, number), other, one);
}

#[test]
fn ports_begin_where_there_are_fewest_and_the_pairs_of_one_spread() {
    let port = |name, queue_pairs| PortArgument {
        queue_pairs,
        ..PortArgument::named(name)
    };
    let ports = [port("vm1", 1), port("vm2", 1), port("vm3", 4)];
    let switch = Switch::new(&ports, &["--workers", "2"]);
    let options = |queue_pairs| NicOptions {
        queue_pairs,
        ..guest_options()
    };
    let _nics = [1, 1, 4]
        .into_iter()
        .zip(VM)
        .map(|(pairs, port)| switch.guest(port, options(pairs)))
        .collect::<Vec<_>>();
    let list = workers(&switch);
    let on = |worker: u64| {
        let sources = list["sources"].as_array().unwrap().iter();
        sources.filter(|source| source["worker"] == worker).count()
    };
    assert_eq!((on(0), on(1)), (3, 3), "{list}");
    assert_ne!(worker_of(&switch, "vm1"), worker_of(&switch, "vm2"));
    switch.finish();
}

#[test]
fn a_ring_that_is_moved_to_and_fro_under_traffic_loses_and_reorders_nothing() {
    let switch = two_workers(&["vm1", "vm2"]);
    let mut from = switch.guest("vm1", guest_options());
    let mut to = switch.guest("vm2", guest_options());
    introduce((1, &mut from), (2, &mut to));
    let done = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            let mut number = 0u16;
            while !done.load(Ordering::Acquire) {
                // Bursts that end, so that moves meet a worker at work, one that polls, and one that sleeps.
                let burst: Vec<Frame> = (0..1 + number % 60)
                    .map(|nth| numbered(number.wrapping_add(nth), 1, 2))
                    .collect();
                from.pair(0).guest_tx.send_all(&burst, WITHIN).unwrap();
                for frame in &burst {
                    verify::same(frame, &arrival(&mut to)).unwrap();
                }
                number = number.wrapping_add(burst.len() as u16);
            }
            number
        });
        let finished = Finished(&done);
        for round in 0..150 {
            move_to(&switch, "vm1", if round % 2 == 0 { "1" } else { "0" });
        }
        drop(finished);
        traffic.join().unwrap()
    });
    assert!(sent > 0);
    verify_quiet(&mut [&mut from, &mut to]);
    assert_eq!(switch.all_drops("vm1"), []);
    assert_eq!(switch.all_drops("vm2"), []);
    switch.finish();
}

#[test]
fn a_moved_ring_wakes_its_new_worker_and_only_that() {
    let switch = two_workers(&["vm1", "vm2"]);
    let mut from = switch.guest("vm1", guest_options());
    let mut to = switch.guest("vm2", guest_options());
    introduce((1, &mut from), (2, &mut to));
    for round in 0..20u16 {
        let worker = usize::from(round % 2);
        move_to(&switch, "vm1", &worker.to_string());
        let frames = |worker: usize| workers(&switch)["workers"][worker]["frames"].as_u64();
        let before = (frames(worker), frames(1 - worker));
        one_way(&numbered(round, 1, 2), &mut from, &mut to);
        until("the frame to be counted", || {
            (frames(worker) == before.0.map(|frames| frames + 1)).then_some(())
        });
        assert_eq!(frames(1 - worker), before.1);
    }
    switch.finish();
}

#[test]
fn a_move_pins_until_it_is_taken_back_also_across_reconnects() {
    let switch = two_workers(&["vm1", "vm2"]);
    let nic = switch.guest("vm1", guest_options());
    let at = worker_of(&switch, "vm1");
    let other = (1 - at).to_string();
    assert_eq!(source(&switch, "vm1")["pinned"], false);
    drop(nic);
    move_to(&switch, "vm1/0", &other);
    for _ in 0..2 {
        let nic = switch.guest("vm1", guest_options());
        let now = source(&switch, "vm1");
        assert_eq!(
            (&now["worker"], &now["pinned"]),
            (&(1 - at).into(), &true.into())
        );
        drop(nic);
    }
    let _nic = switch.guest("vm1", guest_options());
    switch.command(&["worker", "move", "vm1", "--auto"]);
    let now = source(&switch, "vm1");
    assert_eq!(
        (&now["worker"], &now["pinned"]),
        (&(1 - at).into(), &false.into())
    );
    switch.finish();
}

#[test]
fn what_cannot_be_moved_is_said_clearly() {
    let switch = two_workers(&["vm1"]);
    for (arguments, expected) in [
        (
            ["vm1", "2"],
            "there is no worker 2: they are numbered from 0 to 1",
        ),
        (
            ["vm1/1", "0"],
            "the port has no queue pair 1: they are numbered from 0 to 0",
        ),
        (["vm9", "0"], "there is no port vm9"),
    ] {
        let all = [&["worker", "move"][..], &arguments].concat();
        let refused = switch.daemon.command(&all).unwrap_err();
        assert!(refused.to_string().contains(expected), "{refused}");
    }
    switch.finish();
}

#[test]
fn two_busy_ports_on_one_worker_separate_by_themselves_and_stay_apart() {
    let switch = two_workers(&["vm1", "vm2"]);
    let mut guests = [1, 2].map(|number: u8| {
        let frame = FrameBuilder::tcp4(0).segment(1448).frame_bytes(65_000);
        let frame = frame.macs(mac(number), mac(3 - number)).build();
        let memory = GuestMemory::new(&GuestMemoryLayout::one_region(64 << 20)).unwrap();
        let port = VM[usize::from(number) - 1];
        // Rings so long that a worker has enough to do also while the guests wait for a CPU.
        let nic = switch.guest_in(&memory, port, Treadmill::options(32_768));
        Treadmill::new(&memory, nic, &frame).unwrap()
    });
    // Both on the same worker, and free to go.
    for port in ["vm1", "vm2"] {
        move_to(&switch, port, "0");
        switch.command(&["worker", "move", port, "--auto"]);
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                let mut frames = 0;
                for guest in &mut guests {
                    frames += guest.send().unwrap() + guest.receive(usize::MAX).unwrap();
                }
                if frames < 1024 {
                    std::thread::yield_now();
                }
            }
        });
        let _finished = Finished(&done);
        until("the two to be on workers of their own", || {
            (worker_of(&switch, "vm1") != worker_of(&switch, "vm2")).then_some(())
        });
        // Time is what is tested: a policy that sends them to and fro would do so in a few windows of a second.
        std::thread::sleep(Duration::from_secs(4));
    });
    let log = switch.daemon.log();
    assert_eq!(log.matches("which has more time").count(), 1, "{log}");
    switch.finish();
}
