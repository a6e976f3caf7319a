//! Where packed rings go on: with another VM, and where their positions cannot be kept. After kills under load: `crash`.

use guest_sim::NicOptions;
use guest_sim::bench::daemon::PortArgument;
use guest_sim::nic::session::connect;

use crate::rig::{
    Switch, WITHIN, exchange, guest_options, in_format, numbered, one_way, settle, until,
};

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
