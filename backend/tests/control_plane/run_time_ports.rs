//! Ports that are changed at run time: kept through kills, shown beside the configuration file, written into it.
use crate::durability::FailingDisk;
use crate::process::{Home, WITHIN};
use crate::recorder::TestSwitch;
use guest_sim::nic::session::connect;
use guest_sim::{Features, GuestMemory, GuestMemoryLayout, Nic, NicOptions};
use ringswitch::config::{Configuration, Overrides, load};
use ringswitch::control::DesiredPorts;
use ringswitch::control::tables::Store;
use ringswitch::control::tables::rows::{Row, RowKind};
use ringswitch::rest::Limits;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Every port as `name origin`, by name.
fn origins(home: &Home) -> Vec<String> {
    let list: Value = serde_json::from_str(&home.told(&["port", "list", "--json"])).unwrap();
    let mut ports: Vec<String> = list["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|port| format!("{} {}", port["name"], port["origin"]).replace('"', ""))
        .collect();
    ports.sort();
    ports
}

/// `config diff` with its exit code.
fn diff(home: &Home) -> (i32, String) {
    let output = home.ask(&["config", "diff"]);
    let text = String::from_utf8(output.stdout).unwrap();
    (output.status.code().unwrap(), text)
}

#[test]
fn ports_that_were_added_changed_and_removed_are_so_after_a_kill_under_any_program() {
    for program in ["l2", "vpc"] {
        let home = Home::new();
        home.write(&format!(
            "{}{}{}",
            home.section("vm1"),
            home.section("vm2"),
            home.section("vm3")
        ));
        let arguments = ["--program", program, "--port", &home.vm("vm4")];
        let mut daemon = home.start(&arguments);
        home.told(&["port", "add", &format!("{},queue_pairs=2", home.vm("vm5"))]);
        home.told(&["port", "remove", "vm2"]);
        home.told(&["port", "remove", "vm3"]);
        home.told(&["port", "add", &format!("{},mtu=9000", home.vm("vm3"))]);
        let expected = ["vm1 file", "vm3 runtime", "vm4 flag", "vm5 runtime"];
        assert_eq!(origins(&home), expected, "{program}");
        for _ in 0..2 {
            daemon.kill();
            daemon = home.start(&arguments);
            assert_eq!(origins(&home), expected, "{program}");
        }
        let show = home.told(&["port", "show", "vm5"]);
        assert!(show.contains("origin: runtime") && show.contains("queue pairs: 2"));
        assert!(home.told(&["port", "show", "vm3"]).contains("mtu: 9000"));
        // As it is in the file: no change any more.
        home.told(&["port", "remove", "vm3"]);
        home.told(&["port", "add", &home.vm("vm3")]);
        home.told(&["port", "add", &home.vm("vm2")]);
        home.told(&["port", "remove", "vm5"]);
        daemon.kill();
        let _daemon = home.start(&arguments);
        let expected = ["vm1 file", "vm2 file", "vm3 file", "vm4 flag"];
        assert_eq!(origins(&home), expected, "{program}");
    }
}

#[test]
fn without_a_state_folder_changes_end_with_the_daemon_and_diff_says_so() {
    let home = Home::forgetful();
    let mut daemon = home.start(&[]);
    home.told(&["port", "add", &home.vm("vm1")]);
    let (code, text) = diff(&home);
    assert_eq!(code, 4);
    assert!(text.contains("until the daemon ends"), "{text}");
    daemon.kill();
    let _daemon = home.start(&[]);
    assert_eq!(diff(&home), (0, String::new()));
    let output = home.ask(&["config", "save"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn where_the_file_was_edited_since_it_holds_and_the_change_is_shown() {
    let home = Home::new();
    let file = format!("{}{}", home.section("vm1"), home.section("vm2"));
    home.write(&file);
    let mut daemon = home.start(&[]);
    home.told(&["port", "remove", "vm1"]);
    home.told(&["port", "remove", "vm2"]);
    home.told(&["port", "add", &home.vm("vm3")]);
    daemon.kill();
    // The operator edits what was removed, leaves the other, and brings a vm3 of his own.
    let edited = format!(
        "{}mtu = 1400\n{}{}mtu = 1300\n",
        home.section("vm1"),
        home.section("vm2"),
        home.section("vm3")
    );
    home.write(&edited);
    let mut daemon = home.start(&[]);
    assert_eq!(origins(&home), ["vm1 file", "vm3 file"]);
    assert!(home.told(&["port", "show", "vm3"]).contains("mtu: 1300"));
    assert_eq!(home.log().matches("the configuration holds").count(), 2);
    let (code, text) = diff(&home);
    assert_eq!(code, 4);
    let expected = format!(
        "--- {}\n+++ what runs\n# vm2: removed at run time\n-{}\n# vm1: was removed at run time; the file was edited since and holds. `ringswitch config save` forgets this\n# vm3: was made {} at run time; the file was edited since and holds. `ringswitch config save` forgets this\n",
        home.text("switch.toml"),
        home.vm("vm2"),
        home.vm("vm3")
    );
    assert_eq!(text, expected);
    home.told(&["config", "save"]);
    assert_eq!(diff(&home), (0, String::new()));
    daemon.kill();
    let _daemon = home.start(&[]);
    assert_eq!(home.log().matches("the configuration holds").count(), 0);
    assert_eq!(origins(&home), ["vm1 file", "vm3 file"]);
}

#[test]
fn a_port_of_run_time_that_cannot_be_opened_waits_and_keeps_nobody_from_running() {
    let home = Home::new();
    home.write(&home.section("vm1"));
    let mut daemon = home.start(&[]);
    let folder = home.path("sockets");
    std::fs::create_dir(&folder).unwrap();
    let port = |name: &str| {
        let socket = home.text(&format!("sockets/{name}"));
        format!("name={name},type=vhost-user,socket={socket}")
    };
    home.told(&["port", "add", &port("vm2")]);
    home.told(&["port", "add", &port("vm3")]);
    daemon.kill();
    std::fs::remove_dir_all(&folder).unwrap();
    let mut daemon = home.start(&[]);
    assert_eq!(origins(&home), ["vm1 file", "vm2 runtime", "vm3 runtime"]);
    let show = home.told(&["port", "show", "vm2"]);
    assert!(
        show.contains("state: faulted") && show.contains("cannot be opened"),
        "{show}"
    );
    assert!(
        home.log()
            .contains("port vm2 was added at run time and cannot be opened")
    );
    assert!(diff(&home).1.contains("# vm2: cannot be opened: "));
    // Its name and socket stay its own; asked for again it is tried again.
    let other = home.ask(&["port", "add", &port("vm2").replace("name=vm2", "name=vm4")]);
    assert_eq!(other.status.code(), Some(1), "{other:?}");
    let again = home.ask(&["port", "add", &port("vm2")]);
    assert_eq!(again.status.code(), Some(1), "{again:?}");
    home.told(&["port", "remove", "vm3"]);
    daemon.kill();
    let _daemon = home.start(&[]);
    assert_eq!(origins(&home), ["vm1 file", "vm2 runtime"]);
    std::fs::create_dir(&folder).unwrap();
    let deadline = Instant::now() + WITHIN;
    while !home
        .told(&["port", "show", "vm2"])
        .contains("state: listening")
    {
        assert!(Instant::now() < deadline, "{}", home.log());
    }
    assert_eq!(diff(&home).1.matches("cannot be opened").count(), 0);
}

#[test]
fn a_refused_port_leaves_nothing_to_come_back() {
    let home = Home::new();
    let mut daemon = home.start(&[]);
    let missing = format!(
        "name=vm1,type=vhost-user,socket={}",
        home.text("missing/vm1.sock")
    );
    assert_eq!(home.ask(&["port", "add", &missing]).status.code(), Some(1));
    daemon.kill();
    let _daemon = home.start(&[]);
    assert!(origins(&home).is_empty());
}

#[test]
fn config_save_writes_what_runs_and_keeps_the_operators_text() {
    let home = Home::new();
    let (vm1, vm2) = (home.section("vm1"), home.section("vm2"));
    home.write(&format!("# Host 7\n\n[switch]\npoll_us = 60 # tried\n\n# mail\n{vm1}\n# web\n{vm2}mtu = 1400 # small\n"));
    // A link to a file of another mode.
    std::fs::rename(home.path("switch.toml"), home.path("real.toml")).unwrap();
    std::os::unix::fs::symlink("real.toml", home.path("switch.toml")).unwrap();
    std::fs::set_permissions(home.path("real.toml"), PermissionsExt::from_mode(0o640)).unwrap();
    let flag = home.vm("vm4");
    let mut daemon = home.start(&["--port", &flag]);
    home.told(&["port", "remove", "vm1"]);
    home.told(&["port", "remove", "vm2"]);
    home.told(&[
        "port",
        "add",
        &format!("{},mtu=1300,vlan=7", home.vm("vm2")),
    ]);
    home.told(&["port", "add", &home.vm("vm3")]);
    let (code, text) = diff(&home);
    assert_eq!(code, 4);
    let (one, two, three, four) = (home.vm("vm1"), home.vm("vm2"), home.vm("vm3"), &flag);
    assert_eq!(
        text,
        format!(
            "--- {}\n+++ what runs\n# vm1: removed at run time\n-{one}\n# vm2: changed at run time\n-{two},mtu=1400\n+{two},mtu=1300,vlan=7\n# vm3: added at run time\n+{three}\n# vm4: by a flag of the daemon\n+{four}\n",
            home.text("switch.toml")
        )
    );
    let json: Value =
        serde_json::from_slice(&home.ask(&["config", "diff", "--json"]).stdout).unwrap();
    assert_eq!(json["differences"][1]["file"]["mtu"], 1400);
    assert_eq!(json["differences"][1]["cause"], "runtime");
    // Elsewhere: the daemon's own file stays, and so do the differences.
    let before = home.read();
    home.told(&["config", "save", "--file", &home.text("copy.toml")]);
    assert_eq!((home.read(), diff(&home).0), (before, 4));
    // What the operator has added meanwhile stays, and holds from the next start on.
    home.write(&format!("{}\n{}", home.read(), home.section("vm9")));
    let saved = home.told(&["config", "save"]);
    assert!(
        saved.contains("# vm9: the file was written since"),
        "{saved}"
    );
    let expected = format!(
        "# Host 7\n\n[switch]\npoll_us = 60 # tried\n\n# web\n{vm2}mtu = 1300 # small\nvlan = {{ access = 7 }}\n\n{}\n{}\n{}",
        home.section("vm9"),
        home.section("vm3"),
        home.section("vm4")
    );
    assert_eq!(home.read(), expected);
    let link = std::fs::symlink_metadata(home.path("switch.toml")).unwrap();
    let mode = std::fs::metadata(home.path("real.toml"))
        .unwrap()
        .permissions()
        .mode();
    assert!(link.is_symlink() && mode & 0o777 == 0o640, "{mode:o}");
    daemon.kill();
    let mut daemon = home.start(&[]);
    assert_eq!(diff(&home), (0, String::new()));
    assert_eq!(
        origins(&home),
        ["vm2 file", "vm3 file", "vm4 file", "vm9 file"]
    );
    daemon.kill();
    // The copy stands alone.
    std::fs::rename(home.path("copy.toml"), home.path("real.toml")).unwrap();
    let _daemon = home.start(&[]);
    assert_eq!(origins(&home), ["vm2 file", "vm3 file", "vm4 file"]);
}

#[test]
fn a_file_that_cannot_be_edited_is_left_as_it_is() {
    let home = Home::new();
    let inline = format!(
        "port = [{{ name = \"vm1\", type = \"vhost-user\", socket = \"{}\" }}]\n",
        home.text("vm1.sock")
    );
    home.write(&inline);
    let _daemon = home.start(&[]);
    home.told(&["port", "add", &home.vm("vm2")]);
    let output = home.ask(&["config", "save"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("write it as [[port]]"));
    assert_eq!(home.read(), inline);
    std::fs::write(home.path("switch.toml"), "[[port").unwrap();
    assert_eq!(home.ask(&["config", "save"]).status.code(), Some(1));
    assert_eq!(home.request("POST", "/v1/config/saved", "").unwrap().0, 422);
    assert_eq!(diff(&home).0, 4);
}

fn offers(home: &Home) -> Vec<(String, Value)> {
    let store = Store::open(&home.path("state")).unwrap();
    let rows = store.rows(RowKind::Offer).unwrap().into_iter();
    rows.map(|(name, json)| (name, serde_json::from_slice(&json).unwrap()))
        .collect()
}

fn set_row(home: &Home, kind: RowKind, name: &str, value: Option<&[u8]>) {
    let row = Row {
        kind,
        name: name.to_owned(),
        value: value.map(<[u8]>::to_vec),
    };
    Store::open(&home.path("state"))
        .unwrap()
        .set_rows(&[row])
        .unwrap();
}

#[test]
fn a_port_offers_what_it_did_before_whatever_this_version_would() {
    let home = Home::new();
    home.write(&home.section("vm1"));
    let mut daemon = home.start(&[]);
    home.told(&["port", "add", &home.vm("vm2")]);
    let memory = GuestMemory::new(&GuestMemoryLayout::around_pci_hole(16 << 20, 16 << 20)).unwrap();
    daemon.kill();
    // As if an earlier version had made them: without one of today's features, and with fewer slots.
    for (name, mut record) in offers(&home) {
        let bits = record["offer"]["virtio"].as_u64().unwrap();
        record["offer"]["virtio"] = json!(bits & !Features::IN_ORDER.bits());
        record["offer"]["memory_slots"] = json!(77);
        set_row(
            &home,
            RowKind::Offer,
            &name,
            Some(record.to_string().as_bytes()),
        );
    }
    let mut daemon = home.start(&[]);
    let attach = |name: &str| {
        Nic::attach(
            &memory,
            NicOptions::default(),
            &home.path(&format!("{name}.sock")),
        )
    };
    for name in ["vm1", "vm2"] {
        let mut nic = attach(name).unwrap();
        assert!(!nic.offered().contains(Features::IN_ORDER), "{name}");
        assert_eq!(nic.session().get_max_mem_slots().unwrap(), 77);
        daemon.kill();
        daemon = home.start(&[]);
        nic.reconnect(connect(&home.path(&format!("{name}.sock")), WITHIN).unwrap())
            .unwrap();
        assert!(!nic.offered().contains(Features::IN_ORDER), "{name}");
        nic.shut_down().unwrap();
    }
    // With the port its offer ends, and so it does when the port is to be another device.
    home.told(&["port", "remove", "vm2"]);
    home.told(&["port", "add", &home.vm("vm2")]);
    assert!(
        attach("vm2")
            .unwrap()
            .offered()
            .contains(Features::IN_ORDER)
    );
    daemon.kill();
    home.write(&format!("{}queue_pairs = 2\n", home.section("vm1")));
    daemon = home.start(&[]);
    let offered = attach("vm1").unwrap().offered();
    assert!(offered.contains(Features::IN_ORDER) && offered.contains(Features::MQ));
    daemon.kill();
    // What a later version knew cannot be offered any more.
    let (_, mut record) = offers(&home).remove(0);
    let bits = record["offer"]["virtio"].as_u64().unwrap();
    record["offer"]["virtio"] = json!(bits | 1 << 40 | 1 << 62);
    set_row(
        &home,
        RowKind::Offer,
        "vm1",
        Some(record.to_string().as_bytes()),
    );
    let _daemon = home.start(&[]);
    assert!(home.log().contains("RING_RESET, bit 62"), "{}", home.log());
    assert_eq!(attach("vm1").unwrap().offered(), offered);
}

#[test]
fn what_ports_offer_is_forgotten_with_them() {
    let home = Home::new();
    home.write(&format!("{}{}", home.section("vm1"), home.section("vm2")));
    let mut daemon = home.start(&[]);
    home.told(&["port", "add", &home.vm("vm3")]);
    home.told(&["port", "remove", "vm2"]);
    daemon.kill();
    let names = |home: &Home| {
        offers(home)
            .into_iter()
            .map(|(name, _)| name)
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&home), ["vm1", "vm3"]);
    home.write("");
    let mut daemon = home.start(&[]);
    daemon.kill();
    assert_eq!(names(&home), ["vm3"]);
}

#[test]
fn a_store_of_an_earlier_version_opens_and_a_damaged_one_is_refused_clearly() {
    let home = Home::new();
    let state = home.path("state");
    // As the version before made it.
    drop(Store::open(&state).unwrap());
    assert_eq!(
        Store::open(&state)
            .unwrap()
            .rows(RowKind::PortChange)
            .unwrap(),
        []
    );
    let mut daemon = home.start(&[]);
    home.told(&["port", "add", &home.vm("vm1")]);
    daemon.kill();
    let refused = |what: &str| {
        let state = home.text("state");
        let output = home.ask(&["run", "--state-dir", &state]);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(
            error.contains(what) && error.contains("restore it from a copy"),
            "{error}"
        );
        assert!(!home.path("admin.sock").exists());
    };
    set_row(
        &home,
        RowKind::PortChange,
        "vm7",
        Some(b"{\"port\": {\"name\": \"vm7\"}}"),
    );
    refused("port vm7: `type`: it is missing");
    set_row(&home, RowKind::PortChange, "vm7", Some(b"{\"later\": 1}"));
    refused("port vm7: ");
    set_row(&home, RowKind::PortChange, "vm7", None);
    let file = state.join("tables.redb");
    let good = std::fs::read(&file).unwrap();
    std::fs::write(&file, &good[..good.len() / 3]).unwrap();
    refused("the store cannot be read");
    std::fs::write(&file, b"not a store at all").unwrap();
    refused("the store cannot be read");
    std::fs::write(&file, &good).unwrap();
    let _daemon = home.start(&[]);
    assert_eq!(origins(&home), ["vm1 runtime"]);
}

fn configuration() -> Configuration {
    let overrides = Overrides {
        admin: Some("/run/x.sock".to_owned()),
        ..Overrides::default()
    };
    load(None::<&Path>, overrides, &[0].into()).unwrap()
}

#[test]
fn what_cannot_be_made_durable_is_refused_and_not_done() {
    let fails = Arc::new(AtomicBool::new(false));
    let store = Arc::new(Store::over(FailingDisk::new(&fails)).unwrap());
    let desired = DesiredPorts::open(&configuration(), Some(store), None).unwrap();
    let switch = TestSwitch::with_ports(desired, (Limits::default(), None, None));
    let port = |name: &str| json!({"name": name, "type": "vhost-user", "socket": format!("/run/{name}.sock")});
    assert_eq!(switch.post(&port("vm1")).status, 201);
    let steps = switch.record.steps();
    fails.store(true, Ordering::Relaxed);
    let refused = switch.post(&port("vm2"));
    assert_eq!(refused.status, 503, "{refused:?}");
    refused.problem();
    assert_eq!(switch.request("DELETE", "/v1/ports/vm1", "").status, 503);
    assert_eq!(switch.record.steps(), steps);
    assert_eq!(
        switch.get("/v1/ports").json()["ports"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}
