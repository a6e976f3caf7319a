//! What a switch knows of a port goes along with the VM that migrates to another switch: in QEMU's stream, of which these tests are the
//! part that QEMU plays.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;

use guest_sim::bench::daemon::PortArgument;
use guest_sim::message::Request;
use guest_sim::{Nic, NicOptions, ProtocolFeatures};
use serde_json::{Value, json};
use vhost::vhost_user::message::VhostUserProtocolFeatures as Bits;
use vmm_sys_util::tempdir::TempDir;

use crate::rig::{Switch, WITHIN, guest_options, mac, numbered, one_way};

const SAVE: u32 = 0;
const LOAD: u32 = 1;
const BEGUN: u64 = 0x100;
/// The address of the one that stays.
const VM2: &str = "52:54:00:00:00:02";

/// Hosts with switches of their own, and the keys that they have.
struct Hosts {
    folder: TempDir,
}

impl Hosts {
    fn new() -> Self {
        let folder = std::env::temp_dir().join("ringswitch-device-state-");
        let hosts = Self {
            folder: TempDir::new_with_prefix(folder).unwrap(),
        };
        hosts.key("shared", 7);
        hosts.key("other", 8);
        hosts
    }

    fn key(&self, name: &str, byte: u8) {
        let mut options = File::options();
        let file = options.write(true).create_new(true).mode(0o600);
        let mut file = file.open(self.path(name)).unwrap();
        file.write_all(&[byte; 32]).unwrap();
    }

    fn path(&self, name: &str) -> String {
        let path = self.folder.as_path().join(name);
        path.to_str().unwrap().to_owned()
    }

    /// A switch with the ports `vm1`, whose state migrates, and `vm2`. It knows nothing of `vm1`, and floods nothing.
    fn switch(&self, key: &str) -> Switch {
        let port = |name, more| PortArgument {
            more,
            ..PortArgument::named(name)
        };
        let ports = [port("vm1", "device_state=true"), port("vm2", "")];
        let key = self.path(key);
        let arguments = ["--program", "vpc", "--device-state-key-file", &key];
        let switch = Switch::new(&ports, &arguments);
        let station = json!({"domain": 10, "mac": VM2});
        let known = [
            ("ports", json!({"port": "vm2"}), "custom", learning()),
            ("domains", json!({"domain": 10}), "describe", domain()),
            ("stations", station, "station", json!({"port": "vm2"})),
        ];
        self.insert(&switch, &known);
        switch.command(&["multicast", "set", "10", "vm2"]);
        switch
    }

    fn insert(&self, switch: &Switch, entries: &[(&str, Value, &str, Value)]) {
        let updates: Vec<Value> = entries
            .iter()
            .map(|(table, key, action, params)| {
                json!({"insert": {"table": table, "key": key, "action": action, "params": params}})
            })
            .collect();
        let file = self.path("batch.json");
        std::fs::write(&file, json!({"updates": updates}).to_string()).unwrap();
        switch.command(&["table", "batch", &file]);
    }

    /// The switch that the VM comes from, and the VM, which is known there and has talked.
    fn source(&self) -> (Switch, Nic, Nic) {
        let switch = self.switch("shared");
        let vm1 = json!({"port": "vm1"});
        self.insert(&switch, &[("ports", vm1, "custom", learning())]);
        switch.command(&["multicast", "set", "10", "vm1", "vm2"]);
        let mut vm1 = switch.guest("vm1", options());
        let mut vm2 = switch.guest("vm2", guest_options());
        one_way(&numbered(1, 1, 2), &mut vm1, &mut vm2);
        assert_eq!(switch.learned(mac(1)).as_deref(), Some("vm1"));
        (switch, vm1, vm2)
    }
}

/// Of a domain where learned stations are looked for, and frames to unknown ones go nowhere.
fn domain() -> Value {
    json!({"vrf": 1, "zone": 0, "flood": 10, "options": 2})
}

/// Of a port whose stations are learned.
fn learning() -> Value {
    json!({"domain": 10, "policy": 0, "features": 8})
}

/// As QEMU has it, which takes what it is offered.
fn options() -> NicOptions {
    NicOptions {
        protocol: ProtocolFeatures::QEMU.with(Bits::DEVICE_STATE),
        ..guest_options()
    }
}

fn begin(nic: &mut Nic, direction: u32, pipe: impl AsFd) -> u64 {
    let request = Request::SET_DEVICE_STATE_FD;
    let body = [direction, 0].map(u32::to_le_bytes).concat();
    let session = nic.session().raw();
    session.send(request, &body, &[pipe.as_fd()]).unwrap();
    session.receive_u64(request, WITHIN).unwrap()
}

fn check(nic: &mut Nic) -> u64 {
    let request = Request::CHECK_DEVICE_STATE;
    let session = nic.session().raw();
    session.send(request, &[], &[]).unwrap();
    session.receive_u64(request, WITHIN).unwrap()
}

fn save(nic: &mut Nic) -> Vec<u8> {
    let (ours, theirs) = rustix::pipe::pipe().unwrap();
    assert_eq!(begin(nic, SAVE, &theirs), BEGUN);
    drop(theirs);
    let mut state = Vec::new();
    File::from(ours).read_to_end(&mut state).unwrap();
    assert_eq!(check(nic), 0);
    state
}

fn load(nic: &mut Nic, state: &[u8]) -> u64 {
    let (theirs, ours) = rustix::pipe::pipe().unwrap();
    assert_eq!(begin(nic, LOAD, &theirs), BEGUN);
    drop(theirs);
    File::from(ours).write_all(state).unwrap();
    check(nic)
}

fn notes(switch: &Switch) -> String {
    switch.show("vm1")["device"]["notes"].to_string()
}

fn entries(switch: &Switch) -> String {
    switch.command(&["table", "entries", "ports"])
}

#[test]
fn entries_groups_and_stations_arrive_with_the_vm() {
    let hosts = Hosts::new();
    let (here, mut vm1, vm2) = hosts.source();
    vm1.pause().unwrap();
    assert_eq!(here.learned(mac(1)), None, "its rings are stopped");
    let state = save(&mut vm1);
    assert!(
        notes(&here).contains("1 entries, 1 stations"),
        "{}",
        notes(&here)
    );

    let there = hosts.switch("shared");
    let mut peer = there.guest("vm2", guest_options());
    let mut arrived = there.introduced("vm1", options());
    assert_eq!(load(&mut arrived, &state), 0);
    let told = notes(&there);
    assert!(told.contains("2 entries and settings"), "{told}");
    assert!(told.contains("1 stations"), "{told}");
    assert_eq!(there.learned(mac(1)).as_deref(), Some("vm1"));
    arrived.start().unwrap();
    // To a station that has not said a word here, and from it through what its entry says.
    one_way(&numbered(2, 2, 1), &mut peer, &mut arrived);
    one_way(&numbered(3, 1, 2), &mut arrived, &mut peer);
    assert_eq!(
        there.counters("vm1")["guest_tx_frames"],
        2,
        "one of them there"
    );
    drop((vm1, vm2));
    here.finish();
    there.finish();
}

#[test]
fn a_migration_that_fails_leaves_the_vm_where_it_was_and_another_may_follow() {
    let hosts = Hosts::new();
    let (here, mut vm1, mut vm2) = hosts.source();
    vm1.pause().unwrap();
    let first = save(&mut vm1);
    let there = hosts.switch("shared");
    let mut arrived = there.introduced("vm1", options());
    assert_eq!(load(&mut arrived, &first), 0);
    drop(arrived);
    vm1.resume().unwrap();
    one_way(&numbered(2, 1, 2), &mut vm1, &mut vm2);
    assert_eq!(here.learned(mac(1)).as_deref(), Some("vm1"));
    vm1.pause().unwrap();
    let second = save(&mut vm1);
    let mut arrived = there.introduced("vm1", options());
    assert_eq!(load(&mut arrived, &second), 0);
    assert!(notes(&there).contains("(2 were here)"), "{}", notes(&there));
    drop((vm1, vm2));
    here.finish();
    there.finish();
}

#[test]
fn a_state_that_a_front_end_made_up_changes_nothing() {
    let hosts = Hosts::new();
    let (here, mut vm1, vm2) = hosts.source();
    vm1.pause().unwrap();
    let state = save(&mut vm1);
    let there = hosts.switch("shared");
    let before = entries(&there);
    let mut arrived = there.introduced("vm1", options());
    let mut damaged = state.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    // What the admin socket hands out has no signature.
    let exported = hosts.path("exported");
    here.command(&["port", "export", "vm1", "--output", &exported]);
    let exported = std::fs::read(exported).unwrap();
    let cut = &state[..state.len() - 1];
    for bad in [&damaged[..], &exported, cut, b"", b"x"] {
        assert_eq!(load(&mut arrived, bad), 1);
        assert!(notes(&there).contains("last request refused: CHECK_DEVICE_STATE"));
    }
    drop(arrived);
    let stranger = hosts.switch("other");
    let mut arrived = stranger.introduced("vm1", options());
    assert_eq!(load(&mut arrived, &state), 1);
    let why = notes(&stranger);
    assert!(why.contains("device_state_key_file"), "{why}");
    for switch in [&there, &stranger] {
        assert_eq!(entries(switch), before);
        assert_eq!(switch.learned(mac(1)), None);
        assert_eq!(switch.counters("vm1")["guest_tx_frames"], 0);
    }
    drop((vm1, vm2, arrived));
    here.finish();
    there.finish();
    stranger.finish();
}

#[test]
fn a_state_goes_back_to_its_own_switch_without_effect() {
    let hosts = Hosts::new();
    let (mut here, mut vm1, vm2) = hosts.source();
    vm1.pause().unwrap();
    let state = save(&mut vm1);
    here.command(&["table", "delete", "ports", "port=vm1"]);
    assert_eq!(load(&mut vm1, &state), 0, "a snapshot may be loaded");
    assert!(
        notes(&here).contains("of this very switch"),
        "{}",
        notes(&here)
    );
    assert!(!entries(&here).contains("vm1"));
    // Neither after an upgrade, which makes it another process, but no other switch.
    here.upgrade(&[]);
    assert_eq!(load(&mut vm1, &state), 0);
    assert!(
        notes(&here).contains("of this very switch"),
        "{}",
        notes(&here)
    );
    assert!(!entries(&here).contains("vm1"));
    drop((vm1, vm2));
    here.finish();
}

#[test]
fn an_upgrade_waits_for_a_state_that_is_on_its_way() {
    let hosts = Hosts::new();
    let mut switch = hosts.switch("shared");
    let mut vm1 = switch.introduced("vm1", options());
    let (theirs, ours) = rustix::pipe::pipe().unwrap();
    assert_eq!(begin(&mut vm1, LOAD, &theirs), BEGUN);
    let pid = switch.daemon.pid();
    let refused = switch.daemon.command(&["upgrade"]).unwrap_err().to_string();
    assert!(refused.contains("vm1"), "{refused}");
    assert!(refused.contains("try again"), "{refused}");
    assert_eq!(switch.daemon.pid(), pid);
    drop(ours);
    assert_eq!(check(&mut vm1), 1, "it was empty");
    switch.upgrade(&[]);
    assert_eq!(check(&mut vm1), 1, "nothing was begun with this process");
    drop(vm1);
    switch.finish();
}

#[test]
fn a_port_wants_a_key_for_it() {
    let switch = Switch::of(&["vm1"]);
    let socket = switch.daemon.socket("vm9");
    let port = format!(
        "name=vm9,type=vhost-user,socket={},device_state=true",
        socket.display()
    );
    let refused = switch.daemon.command(&["port", "add", &port]);
    let refused = refused.unwrap_err().to_string();
    for part in [
        "device_state",
        "device_state_key_file",
        "head -c 32 /dev/urandom",
    ] {
        assert!(refused.contains(part), "{refused}");
    }
    // One that others may read is none.
    let hosts = Hosts::new();
    let key = hosts.path("shared");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&key, open).unwrap();
    let check = ["check", "--device-state-key-file", &key];
    let refused = switch.daemon.command(&check).unwrap_err().to_string();
    assert!(refused.contains("chmod 600"), "{refused}");
    let mut guest = switch.introduced("vm1", options());
    assert!(!guest.session().has(Bits::DEVICE_STATE));
    drop(guest);
    switch.finish();
}
