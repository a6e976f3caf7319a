//! Where packed rings go on: after a kill under load, with another VM, and where their positions cannot be kept.

use guest_sim::bench::daemon::PortArgument;
use guest_sim::frame::verify;
use guest_sim::nic::session::connect;
use guest_sim::{Canaries, Frame, Nic, NicOptions};

use crate::rig::{
    Switch, WITHIN, exchange, guest_options, in_format, numbered, one_way, settle, until,
    verify_quiet,
};

/// Both guests send without pause while the switch is killed; a frame arrives whole or not at all, none out of order, and nothing is left
/// behind in any ring.
#[test]
fn a_switch_killed_under_load_goes_on_where_each_ring_was() {
    let mut switch = Switch::of(&["vm1", "vm2"]);
    // A buffer whose filling a kill interrupted may be filled with less the next time: paint would be missed behind it.
    let mut guests = ["vm1", "vm2"].map(|port| {
        let options = NicOptions {
            canaries: Canaries::Off,
            ..guest_options()
        };
        switch.guest(port, options)
    });
    exchange_both(&mut guests);
    for round in 0..12u16 {
        let frames: [Vec<Frame>; 2] = [(1, 2), (2, 1)].map(|(from, to)| {
            (0..120)
                .map(|n| numbered(1000 * round + n, from, to))
                .collect()
        });
        for (guest, frames) in guests.iter_mut().zip(&frames) {
            for frame in frames {
                guest.pair(0).guest_tx.queue(frame).unwrap();
            }
            guest.pair(0).guest_tx.publish().unwrap();
        }
        // At another moment each time: after ever more of them have arrived.
        let mut seen = [Vec::new(), Vec::new()];
        while seen[1].len() < usize::from(round) * 8 {
            let arrived = guests[1].receive(WITHIN).unwrap();
            seen[1].extend(arrived);
        }
        switch.daemon.kill().unwrap();
        switch.daemon.restart().unwrap();
        for (number, guest) in guests.iter_mut().enumerate() {
            let socket = switch.daemon.socket(["vm1", "vm2"][number]);
            guest.reconnect(connect(&socket, WITHIN).unwrap()).unwrap();
            settle(guest);
        }
        let [one, other] = &mut guests;
        one.pair(0).guest_tx.drain(WITHIN).unwrap();
        other.pair(0).guest_tx.drain(WITHIN).unwrap();
        for (to, guest) in guests.iter_mut().enumerate() {
            while let Some(arrived) = guest.pair(0).guest_rx.try_receive().unwrap() {
                seen[to].push(arrived);
            }
            verify_sequence(&frames[1 - to], &seen[to]);
        }
    }
    exchange_both(&mut guests);
    let [one, other] = &mut guests;
    verify_quiet(&mut [one, other]);
    switch.finish();
}

fn exchange_both(guests: &mut [Nic; 2]) {
    let [one, other] = guests;
    exchange((1, one), (2, other));
}

/// In order, but that the batch whose delivery a kill interrupted may come again; each as it was sent. What was for a receiver that was
/// not back yet is lost, as on a wire.
fn verify_sequence(sent: &[Frame], arrived: &[Frame]) {
    let mut steps_back = 0;
    let mut last = None;
    for frame in arrived {
        let at = sent.iter().position(|one| verify::same(one, frame).is_ok());
        let at = at.expect("a frame of this round, unharmed");
        steps_back += usize::from(last.is_some_and(|last| at <= last));
        last = Some(at);
    }
    assert!(steps_back <= 1, "one kill repeats one batch at most");
}

#[test]
fn another_vm_on_the_same_port_begins_at_its_own_beginning() {
    let mut switch = Switch::of(&["vm1", "vm2"]);
    let mut peer = switch.guest("vm2", guest_options());
    for round in 0..4 {
        let mut guest = switch.guest("vm1", guest_options());
        for number in 0..50 * (round + 1) {
            one_way(&numbered(number, 1, 2), &mut guest, &mut peer);
        }
        // Killed with the VM: nobody was told where the rings stopped.
        if round % 2 == 0 {
            switch.daemon.kill().unwrap();
            drop(guest);
            switch.daemon.restart().unwrap();
            let stream = connect(&switch.daemon.socket("vm2"), WITHIN).unwrap();
            peer.reconnect(stream).unwrap();
            settle(&mut peer);
        }
    }
    let mut guest = switch.guest("vm1", guest_options());
    exchange((1, &mut guest), (2, &mut peer));
    switch.finish();
}

/// What `port show` has to say about a port whose rings cannot be packed, while split rings work on it.
fn withheld(ring_state: &str, expected: &str) {
    let split = Switch::new(
        &[PortArgument::named("vm1"), PortArgument::named("vm2")],
        &["--ring-state", ring_state],
    );
    let show = split.show("vm1");
    let notes = show["device"]["notes"].to_string();
    assert!(notes.contains("packed rings are not offered"), "{show}");
    assert!(notes.contains(expected), "{show}");
    let offered = show["device"]["features_offered"].to_string();
    assert!(!offered.contains("RING_PACKED"), "{show}");
    assert!(split.daemon.log().contains(expected));
    let legacy = || NicOptions {
        features: guest_options().features - guest_sim::Features::VERSION_1,
        ..guest_options()
    };
    let mut one = split.guest("vm1", legacy());
    let mut other = split.guest("vm2", legacy());
    one_way(&numbered(1, 1, 2), &mut one, &mut other);
    split.finish();
}

#[test]
fn without_a_place_in_memory_packed_rings_are_not_offered_and_the_port_says_why() {
    // The sources are on no memory file system.
    let on_disk = format!("{}/target-of-no-ring", env!("CARGO_TARGET_TMPDIR"));
    withheld(&on_disk, "is not in memory");
    withheld("/proc/no-such-folder", "/proc/no-such-folder");
}

#[test]
fn a_file_that_is_not_a_ring_file_is_neither_used_nor_touched() {
    let folder =
        vmm_sys_util::tempdir::TempDir::new_with_prefix("/dev/shm/ringswitch-test-").unwrap();
    let path = folder.as_path().join("vm1");
    for damaged in [
        b"somebody else's".to_vec(),
        vec![0; 4096],
        vec![0x72; 300_000],
    ] {
        std::fs::write(&path, &damaged).unwrap();
        withheld(
            folder.as_path().to_str().unwrap(),
            "is damaged or no ring file",
        );
        assert_eq!(std::fs::read(&path).unwrap(), damaged);
    }
}

#[test]
fn a_second_daemon_does_not_share_the_positions_of_the_first() {
    let first = Switch::of(&["vm1", "vm2"]);
    let folder = first.ring_state.as_path().to_str().unwrap().to_owned();
    withheld(&folder, "is in use by another process");
    let [mut one, mut other] = ["vm1", "vm2"].map(|port| first.guest(port, guest_options()));
    exchange((1, &mut one), (2, &mut other));
    first.finish();
}

#[test]
fn the_file_of_a_port_goes_with_it_unless_its_vm_may_come_back() {
    let switch = Switch::of(&["vm1", "vm2"]);
    let file = |port: &str| switch.ring_state.as_path().join(port);
    assert!(file("vm1").exists() && file("vm2").exists());
    let mut guest = switch.guest("vm1", guest_options());
    let mut peer = switch.guest("vm2", guest_options());
    one_way(&numbered(1, 1, 2), &mut guest, &mut peer);
    switch.command(&["port", "remove", "vm1"]);
    assert!(file("vm1").exists(), "the VM is still there");
    let socket = switch.daemon.socket("vm1");
    let more = in_format(&format!("socket={}", socket.display()));
    switch.command(&["port", "add", &format!("name=vm1,type=vhost-user,{more}")]);
    guest.reconnect(connect(&socket, WITHIN).unwrap()).unwrap();
    settle(&mut guest);
    exchange((1, &mut guest), (2, &mut peer));
    drop(guest);
    until("the front-end to be gone", || {
        (switch.show("vm1")["state"] == "listening").then_some(())
    });
    switch.command(&["port", "remove", "vm1"]);
    assert!(!file("vm1").exists());
    switch.finish();
}
