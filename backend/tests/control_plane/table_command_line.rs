//! The commands of tables and explanations as a program: what they print, and their exit codes.
use crate::command_line::{ask, ringswitch, stderr, stdout, succeeded};
use crate::fake_engine::FakeEngine;
use crate::recorder::TestSwitch;
use ringswitch::control::tables::{Store, Tables, TablesOptions};
use ringswitch::rest::Limits;
use serde_json::json;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use vmm_sys_util::tempdir::TempDir;

fn switch() -> TestSwitch {
    TestSwitch::with_tables(Arc::new(FakeEngine::default()))
}

fn file(text: &str) -> (TempDir, PathBuf) {
    let folder = TempDir::new_with_prefix(std::env::temp_dir().join("ringswitch-file-")).unwrap();
    let path = folder.as_path().join("file");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

#[track_caller]
fn prints(switch: &TestSwitch, arguments: &[&str], expected: &str) {
    let output = ask(switch, arguments);
    succeeded(&output);
    assert_eq!(stdout(&output), expected, "{arguments:?}");
}

const OK: &str = "ok, not durable: the daemon has no state_dir\n";

#[test]
fn an_entry_is_written_as_people_write_it() {
    let switch = switch();
    let key = "port=vm1,protocol=6,dst=10.0.0.0/8,dst_port=80..443";
    let entry = |verb, params| {
        [
            "table",
            verb,
            "acl",
            key,
            "--priority",
            "10",
            "--action",
            "allow",
            params,
        ]
    };
    prints(&switch, &entry("add", "mark=5"), OK);
    let again = ask(&switch, &entry("add", "mark=5"));
    assert_eq!(again.status.code(), Some(1));
    assert!(
        stderr(&again).contains("`key`: the entry is there"),
        "{}",
        stderr(&again)
    );
    prints(&switch, &entry("modify", "mark=6"), OK);
    prints(&switch, &entry("put", "mark=0x7"), OK);
    let listed = "\
HANDLE  PRIORITY  KEY                                                  ACTION         FRAMES  BYTES  NOTES
     1        10  dst=10.0.0.0/8,dst_port=80..443,port=vm1,protocol=6  allow(mark=7)       -      -
";
    prints(&switch, &["table", "entries", "acl"], listed);
    prints(&switch, &["table", "count", "acl"], "1 of 1000\n");
    prints(
        &switch,
        &["table", "delete", "acl", key, "--priority", "10"],
        OK,
    );
    prints(&switch, &["table", "count", "acl"], "0 of 1000\n");
    let shown = "\
name: acl
id: 0x00000001
description: What may pass.
key: port:optional protocol:ternary dst:ternary dst_port:range
actions: allow
default: allow(mark=3)
entries: 0 of 1000
";
    prints(&switch, &["table", "default", "acl", "allow", "mark=3"], OK);
    prints(&switch, &["table", "show", "acl"], shown);
    prints(&switch, &["table", "default", "acl"], OK);
    prints(&switch, &["table", "clear", "acl"], OK);
    let list = "\
TABLE     ENTRIES     SIZE  KEY                                                     DEFAULT
acl             0     1000  port:optional protocol:ternary dst:ternary dst_port:range  -
";
    let output = ask(&switch, &["table", "list"]);
    assert_eq!(stdout(&output).lines().count(), 4, "{list}");
    prints(
        &switch,
        &["table", "aside"],
        "everything fits the program\n",
    );
}

#[test]
fn what_is_no_entry_is_wrong_usage() {
    let switch = switch();
    for arguments in [
        &["table", "add", "acl", "port", "--action", "allow"][..],
        &["table", "add", "a/b", "port=1", "--action", "allow"],
        &["table", "show", "../ports"],
        &["table", "batch", "/nonexistent"],
        &["group", "set", "s", "1", "--member", "weight=0,port=vm1"],
        &["explain", "--port", "a/b", "tcp"],
        &[
            "explain",
            "--port",
            "vm1",
            "--what-if",
            "/nonexistent",
            "tcp",
        ],
    ] {
        let output = ask(&switch, arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
    }
}

#[test]
fn groups_meters_counters_and_connections_are_listed_and_set() {
    let switch = switch();
    prints(
        &switch,
        &[
            "group",
            "set",
            "s",
            "7",
            "--member",
            "port=vm1",
            "--member",
            "weight=3,port=vm2",
        ],
        OK,
    );
    prints(
        &switch,
        &["group", "list"],
        "SELECTOR  GROUP  WEIGHT  MEMBER\ns             7       1  port=vm1\ns             7       3  port=vm2\n",
    );
    prints(&switch, &["multicast", "set", "5", "vm1", "3"], OK);
    prints(
        &switch,
        &["multicast", "list"],
        "GROUP  PORTS\n    5  vm1 3\n",
    );
    prints(
        &switch,
        &["meter", "set", "m", "3", "--bytes-per-second", "1000"],
        OK,
    );
    let meters = stdout(&ask(&switch, &["meter", "list"]))
        .lines()
        .nth(1)
        .unwrap()
        .to_owned();
    assert_eq!(
        meters.split_whitespace().collect::<Vec<_>>(),
        ["m", "3", "1000", "-", "-", "-"]
    );
    prints(&switch, &["meter", "set", "m", "3"], OK);
    assert_eq!(stdout(&ask(&switch, &["meter", "list"])).lines().count(), 1);
    prints(
        &switch,
        &["counter", "list", "c"],
        "COUNTER  INDEX  FRAMES  BYTES\nc            0       1     64\nc            1       1     64\nc            2       1     64\n",
    );
    let connections = ask(&switch, &["connection", "list"]);
    assert!(
        stdout(&connections).contains("tcp 10.0.0.5:1234 > 10.0.1.9:443  established"),
        "{}",
        stdout(&connections)
    );
}

#[test]
fn a_batch_is_carried_out_whole_or_not_at_all() {
    let switch = switch();
    let entry = |port| json!({"insert": {"table": "acl", "key": {"dst_port": port}, "priority": 1, "action": "allow"}});
    let (_folder, path) = file(&json!({"updates": [entry(1), entry(1)]}).to_string());
    let output = ask(&switch, &["table", "batch", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("update 1: `key`"),
        "{}",
        stderr(&output)
    );
    prints(&switch, &["table", "count", "acl"], "0 of 1000\n");
    let (_folder, path) = file(&json!({"updates": [entry(1), entry(2)]}).to_string());
    prints(&switch, &["table", "batch", path.to_str().unwrap()], OK);
    prints(&switch, &["table", "count", "acl"], "2 of 1000\n");
}

fn routes(count: u32) -> String {
    let mut lines = String::new();
    for number in 0..count {
        writeln!(
            lines,
            "{{\"table\":\"routes\",\"key\":{{\"dst\":\"10.{}.{}.{}/32\"}},\"action\":\"forward\",\"params\":{{\"port\":\"vm{}\"}}}}",
            number >> 16, number >> 8 & 255, number & 255, number % 100
        )
        .unwrap();
    }
    lines
}

#[test]
fn a_file_of_entries_is_loaded_and_a_fault_named_by_its_line() {
    let switch = switch();
    let (_folder, path) = file(&format!("\n{}\n", routes(2_500)));
    let output = ask(
        &switch,
        &["table", "load", path.to_str().unwrap(), "--batch", "300"],
    );
    succeeded(&output);
    assert!(
        stdout(&output).starts_with("2500 entries in "),
        "{output:?}"
    );
    assert_eq!(
        switch.get("/v1/tables/routes/count").json()["entries"],
        2_500
    );
    let bad = r#"{"table":"routes","key":{"dst":"10.0.0.0/40"},"action":"forward"}"#;
    for bad in [bad, "{", r#"{"table":"routes"}"#] {
        let (_folder, path) = file(&format!("{}{bad}\n", routes(3)));
        let output = ask(&switch, &["table", "load", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let named = stderr(&output).contains("line 4: ") || bad == "{";
        assert!(
            named && stderr(&output).contains("lines 1 to 4 are not loaded"),
            "{}",
            stderr(&output)
        );
    }
}

#[test]
fn an_explanation_reads_as_indented_steps() {
    let switch = switch();
    switch.post(&json!({"name": "vm1", "type": "vhost-user", "socket": "/run/vm1.sock"}));
    let expected = "\
frame ffffffffffff020000000001080600010800060400010200000000010a0000050000000000000a000001
parse start: ethernet, then accept
  frame=ffffffffffff020000000001080600010800060400010200000000010a0000050000000000000a000001
table acl: port=vm1
  no entry matches
  no action
if acl entries: does not hold
dropped: no_destination
  No other port can take the frame: the broadcast domain has no other member.
  Attach another port to the VLAN, or correct the VLAN of one of the two.
depends on ethernet.dst
";
    prints(
        &switch,
        &["explain", "--port", "vm1", "arp 10.0.0.5 > 10.0.0.1"],
        expected,
    );
    let what_if =
        json!({"updates": [{"insert": {"table": "acl", "priority": 1, "action": "allow"}}]});
    let (_folder, path) = file(&what_if.to_string());
    let output = ask(
        &switch,
        &[
            "explain",
            "--port",
            "vm1",
            "--frame",
            "00",
            "--what-if",
            path.to_str().unwrap(),
        ],
    );
    assert!(stdout(&output).contains("acl entries: holds"), "{output:?}");
    let drops = "\
1.5 s ago: no_destination, 60 bytes from vm1
  ffffffffffff
  No other port can take the frame: the broadcast domain has no other member. Attach another port to the VLAN, or correct the VLAN of one of the two.
";
    for arguments in [
        &["explain", "--port", "vm1", "--last-drops"][..],
        &["port", "show", "vm1", "--last-drops"],
    ] {
        let shown = ask(&switch, arguments);
        assert!(stdout(&shown).starts_with(drops), "{shown:?}");
        let older = "\n1.5 s ago: rx_ring_full, 1514 bytes from vm1\n";
        assert!(stdout(&shown).contains(older), "{shown:?}");
    }
}

#[test]
fn the_running_program_and_the_reasons_are_printed() {
    let switch = switch();
    prints(
        &switch,
        &["program", "info"],
        "pkg_info {\n  name: \"fake\"\n}\n",
    );
    let shown = ask(&switch, &["program", "show"]);
    assert!(stdout(&shown).contains("\"name\": \"fake\""), "{shown:?}");
    let reasons = ringswitch(&["drop-reasons"]).output().unwrap();
    succeeded(&reasons);
    assert!(stdout(&reasons).starts_with("bad_chain\n  "), "{reasons:?}");
}

/// Not a test: measures. `cargo test --release -p ringswitch --test control_plane measure -- --ignored --nocapture`
#[test]
#[ignore = "measures"]
fn measure_a_million_entries() {
    let folder =
        TempDir::new_with_prefix(std::env::temp_dir().join("ringswitch-measure-")).unwrap();
    let cpu_seconds = || {
        let usage = |who| rustix::time::clock_gettime(who);
        let spent = usage(rustix::time::ClockId::ProcessCPUTime);
        spent.tv_sec as f64 + spent.tv_nsec as f64 / 1e9
    };
    let open = || {
        let started = Instant::now();
        let store = Store::open(folder.as_path()).unwrap();
        let opened = started.elapsed();
        let options = TablesOptions {
            store: Some(Arc::new(store)),
            ..TablesOptions::default()
        };
        let tables = Tables::start(Arc::new(FakeEngine::default()), options).unwrap();
        println!(
            "start with {} entries: open {opened:?}, whole {:?}",
            tables.restored().entries,
            started.elapsed()
        );
        tables
    };
    let tables = open();
    let switch = TestSwitch::start_with(Limits::default(), Some(tables.clone()));
    let (_lines, path) = file(&routes(1_000_000));
    for round in ["new", "again"] {
        let before = cpu_seconds();
        let output = ask(&switch, &["table", "load", path.to_str().unwrap()]);
        println!(
            "{round}: {}{} ({:.1} s of CPU in the daemon)",
            stdout(&output),
            stderr(&output),
            cpu_seconds() - before
        );
    }
    for size in [1, 1_000] {
        let line = routes(size)
            .lines()
            .map(|line| format!("{{\"put\":{line}}}"))
            .collect::<Vec<_>>()
            .join(",");
        let body = format!("{{\"updates\":[{line}]}}");
        let (rounds, started) = (200, Instant::now());
        for _ in 0..rounds {
            assert_eq!(
                switch.request("POST", "/v1/tables/batch", &body).status,
                200
            );
        }
        println!(
            "batches of {size}, one after another: {:.0} updates/s",
            f64::from(rounds * size) / started.elapsed().as_secs_f64()
        );
    }
    drop(switch);
    tables.stop();
    drop(tables);
    let size = std::fs::metadata(folder.as_path().join("tables.redb"))
        .unwrap()
        .len();
    println!("{} MiB on disk", size >> 20);
    let tables = open();
    tables.stop();
}
