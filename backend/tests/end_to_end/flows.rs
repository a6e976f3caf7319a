//! What workers remember of frames that guests sent, as an operator sees it: with the right ports and decisions, and gone when something changes.

use guest_sim::bench::daemon::PortArgument;
use guest_sim::frame::FrameBuilder;
use guest_sim::frame::build::BROADCAST;
use serde_json::{Value, json};
use vmm_sys_util::tempdir::TempDir;

use crate::rig::{Switch, WITHIN, guest_options, mac, numbered, one_way, until};

fn list(switch: &Switch, more: &[&str]) -> Value {
    let arguments = [&["flow", "list", "--json"], more].concat();
    serde_json::from_str(&switch.command(&arguments)).unwrap()
}

fn flows(switch: &Switch, more: &[&str]) -> Vec<Value> {
    let list = list(switch, more);
    assert_eq!(list["truncated"], false, "{list}");
    list["flows"].as_array().unwrap().clone()
}

fn text(number: u8) -> String {
    mac(number).map(|byte| format!("{byte:02x}")).join(":")
}

/// The flow of frames from one port, to the station of that number.
fn found(flows: &[Value], port: &str, to: u8) -> Option<Value> {
    let is_it =
        |flow: &&Value| flow["port"] == port && flow["match"]["ethernet.dst"] == text(to).as_str();
    flows.iter().find(is_it).cloned()
}

#[test]
fn stations_that_talk_are_listed_with_ports_tags_and_worker() {
    let ports = [
        ("vm1", "vlan=10"),
        ("vm2", "vlan=trunk:10"),
        ("vm3", "vlan=20"),
    ];
    let ports = ports.map(|(name, more)| PortArgument {
        more,
        ..PortArgument::named(name)
    });
    let switch = Switch::new(&ports, &["--workers", "2"]);
    assert_eq!(flows(&switch, &[]), Vec::<Value>::new());
    let mut one = switch.guest("vm1", guest_options());
    let mut other = switch.guest("vm2", guest_options());
    let tagged = FrameBuilder::udp4(100)
        .macs(mac(2), mac(1))
        .tag(0x8100, 10)
        .build();
    // They are remembered for a second at most.
    let (forth, back) = until("flows both ways", || {
        one.send(&numbered(0, 1, 2)).unwrap();
        other.send(&tagged).unwrap();
        let listed = flows(&switch, &[]);
        let deliver = |flow: &Value| flow["decision"]["outcome"] == "deliver";
        let forth = found(&listed, "vm1", 2).filter(deliver)?;
        Some((forth, found(&listed, "vm2", 1)?))
    });
    assert_eq!(
        forth["decision"]["copies"],
        json!([{"to": "vm2", "edits": ["push VLAN 10"]}])
    );
    assert_eq!(forth["headers"], json!(["ethernet"]));
    assert_eq!(forth["match"]["ethernet.src"], text(1).as_str());
    assert!((1..=1000).contains(&forth["valid_for_ms"].as_u64().unwrap()));
    assert_eq!(
        back["decision"]["copies"],
        json!([{"to": "vm1", "edits": ["pop VLAN"]}])
    );
    assert_eq!(back["match"]["vlan.vid"], "10");
    let workers: Value =
        serde_json::from_str(&switch.command(&["worker", "list", "--json"])).unwrap();
    for flow in [forth, back] {
        let mut sources = workers["sources"].as_array().unwrap().iter();
        let source = sources.find(|source| source["port"] == flow["port"]);
        assert_eq!(source.unwrap()["worker"], flow["worker"]);
    }
    // As text, of one port.
    until("a line of the flow", || {
        other.send(&tagged).unwrap();
        let text = switch.command(&["flow", "list", "--port", "vm2"]);
        text.lines()
            .any(|line| line.contains(" vm2 ") && line.contains("-> pop VLAN, vm1"))
            .then_some(())
    });
    one.send(&FrameBuilder::udp4(100).macs(mac(1), BROADCAST).build())
        .unwrap();
    switch.command(&["port", "remove", "vm3"]);
    assert_eq!(flows(&switch, &[]), Vec::<Value>::new());
    let refused = switch.daemon.command(&["flow", "list", "--port", "vm3"]);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("there is no port \"vm3\""), "{refused}");
    switch.finish();
}

/// Frames go where a table says, by destination; nothing of it ages.
const PROGRAM: &str = r#"{
    "name": "forward",
    "actions": [
        {"name": "send", "params": [{"name": "port", "bits": 16, "format": "port"}], "do": [{"output": {"port": "$port"}}]},
        {"name": "tag", "params": [{"name": "port", "bits": 16, "format": "port"}, {"name": "vid", "bits": 12}],
         "do": [{"push_vlan": {"vid": "$vid"}}, {"output": {"port": "$port"}}]}
    ],
    "tables": [{"name": "forward", "key": [{"field": "ethernet.dst", "match": "exact", "name": "to"}], "actions": ["send", "tag"], "size": 1024}],
    "ingress": [{"apply": {"table": "forward"}}]
}"#;

struct Forwarding {
    switch: Switch,
    _folder: TempDir,
}

impl Forwarding {
    fn new() -> Self {
        let folder = TempDir::new_with_prefix(std::env::temp_dir().join("ringswitch-flows-"));
        let folder = folder.unwrap();
        let program = folder.as_path().join("forward.json");
        std::fs::write(&program, PROGRAM).unwrap();
        let ports = ["vm1", "vm2"].map(PortArgument::named);
        let switch = Switch::new(&ports, &["--program", program.to_str().unwrap()]);
        for (port, number) in [("vm1", 1), ("vm2", 2)] {
            let to = format!("to={}", text(number));
            let port = format!("port={port}");
            switch.command(&["table", "add", "forward", &to, &port, "--action", "send"]);
        }
        Self {
            switch,
            _folder: folder,
        }
    }
}

#[test]
fn under_a_program_flows_stay_until_what_they_depend_on_changes() {
    let Forwarding { switch, _folder } = Forwarding::new();
    let mut one = switch.guest("vm1", guest_options());
    let mut other = switch.guest("vm2", guest_options());
    one_way(&numbered(0, 1, 2), &mut one, &mut other);
    one_way(&numbered(0, 2, 1), &mut other, &mut one);
    let listed = flows(&switch, &[]);
    let forth = found(&listed, "vm1", 2).unwrap();
    assert_eq!(forth["decision"]["copies"], json!([{"to": "vm2"}]));
    assert_eq!(forth["match"], json!({"ethernet.dst": text(2)}));
    assert_eq!(forth["headers"], json!(["ethernet", "ipv4", "udp"]));
    assert_eq!(forth["valid_for_ms"], Value::Null);
    assert!(found(&listed, "vm2", 1).is_some(), "{listed:?}");
    assert_eq!(flows(&switch, &["--port", "vm1"]), [forth]);
    let to = format!("to={}", text(2));
    let modified = [
        "table",
        "modify",
        "forward",
        &to,
        "port=vm2,vid=7",
        "--action",
        "tag",
    ];
    switch.command(&modified);
    let listed = flows(&switch, &[]);
    assert_eq!(found(&listed, "vm1", 2), None);
    assert!(
        found(&listed, "vm2", 1).is_some(),
        "it depends on another entry"
    );
    one.send(&numbered(1, 1, 2)).unwrap();
    other.receive(WITHIN).unwrap().unwrap();
    let forth = found(&flows(&switch, &[]), "vm1", 2).unwrap();
    let tagged = json!([{"to": "vm2", "edits": ["push VLAN 7"]}]);
    assert_eq!(forth["decision"]["copies"], tagged);
    // Flows of a port that is gone are nobody's.
    switch.command(&["port", "remove", "vm2"]);
    let listed = flows(&switch, &[]);
    assert!(
        listed.iter().all(|flow| flow["port"] == "vm1"),
        "{listed:?}"
    );
    switch.finish();
}

#[test]
fn of_many_flows_as_many_are_listed_as_were_asked_for() {
    const FLOWS: usize = 3000;
    let Forwarding { switch, _folder } = Forwarding::new();
    let mut one = switch.guest("vm1", guest_options());
    let frames: Vec<_> = (0..FLOWS as u16)
        .map(|number| {
            let [high, low] = number.to_be_bytes();
            let to = [2, 0, 0, 9, high, low];
            FrameBuilder::udp4(64).macs(mac(1), to).build()
        })
        .collect();
    one.pair(0).guest_tx.send_all(&frames, WITHIN).unwrap();
    one.pair(0).guest_tx.drain(WITHIN).unwrap();
    let all = flows(&switch, &["--limit", "10000"]);
    let mut stations: Vec<_> = all
        .iter()
        .map(|flow| flow["match"]["ethernet.dst"].as_str().unwrap().to_owned())
        .collect();
    stations.sort();
    stations.dedup();
    assert_eq!((all.len(), stations.len()), (FLOWS, FLOWS));
    for (limit, truncated) in [(FLOWS - 1, true), (FLOWS, false)] {
        let list = list(&switch, &["--limit", &limit.to_string()]);
        assert_eq!(list["truncated"], truncated);
        assert_eq!(list["flows"].as_array().unwrap().len(), limit);
    }
    let usual = list(&switch, &[]);
    assert_eq!(usual["flows"].as_array().unwrap().len(), 1000);
    let text = switch.command(&["flow", "list", "--limit", "3"]);
    assert_eq!(text.lines().count(), 5, "{text}");
    assert!(text.ends_with("there are more: use --port, or a larger --limit\n"));
    assert_eq!(flows(&switch, &["--port", "vm2"]), Vec::<Value>::new());
    switch.finish();
}
