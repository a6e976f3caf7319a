//! The default program's tables as a daemon shows them, and the same program from a file, with the daemon's ports in its tables.
use crate::command_line::{ringswitch, stderr, stdout};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Output, Stdio};
use vmm_sys_util::tempdir::TempDir;

const L2: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../switch-core/programs/l2.json"
);
const ACL: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../switch-core/programs/acl.json"
);
const VLANS: [&str; 3] = ["vlan=10", "vlan=trunk:10+11+12+20,native=1", "vlan=20"];

/// A daemon with ports vm0, vm1... of these VLANs; killed when dropped.
struct Daemon {
    folder: TempDir,
    process: Child,
}

impl Daemon {
    /// Starts it and waits until it is ready; what it said when it is not.
    fn start(program: &str, vlans: &[&str]) -> Result<Self, String> {
        let folder = TempDir::new_with_prefix(std::env::temp_dir().join("ringswitch-l2-")).unwrap();
        let mut command = ringswitch(&["run", "--program", program]);
        for (number, vlan) in vlans.iter().enumerate() {
            let socket = folder.as_path().join(format!("vm{number}.sock"));
            command.arg("--port").arg(format!(
                "name=vm{number},type=vhost-user,socket={},{vlan}",
                socket.display()
            ));
        }
        let mut process = command
            .arg("--admin")
            .arg(folder.as_path().join("admin.sock"))
            .env_remove("RUST_LOG")
            .env_remove("NOTIFY_SOCKET")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("ready: ") {
            if log.read_line(&mut said).unwrap() == 0 {
                process.wait().unwrap();
                return Err(said);
            }
        }
        // Somebody has to read it, or the daemon waits.
        std::thread::spawn(move || std::io::copy(&mut log.by_ref(), &mut std::io::sink()));
        Ok(Self { folder, process })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.as_path().join(name)
    }

    fn ask(&self, arguments: &[&str]) -> Output {
        ringswitch(arguments)
            .arg("--admin")
            .arg(self.path("admin.sock"))
            .output()
            .unwrap()
    }

    #[track_caller]
    fn prints(&self, arguments: &[&str]) -> String {
        let output = self.ask(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        stdout(&output).to_owned()
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        let arguments = [arguments, &["--json"]].concat();
        serde_json::from_str(&self.prints(&arguments)).unwrap()
    }

    /// What each entry of a table says, without its handle, by what it says.
    fn entries(&self, table: &str) -> Vec<String> {
        let page = self.json(&["table", "entries", table]);
        let mut entries: Vec<String> = page["entries"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| {
                assert_eq!(entry["constant"], true, "{entry}");
                format!("{} {} {}", entry["key"], entry["action"], entry["params"])
            })
            .collect();
        entries.sort();
        entries
    }

    /// Where a frame ends up: the drop reason, or each port with the changes.
    fn outcome(&self, port: &str, flow: &str) -> Vec<String> {
        let explained = self.json(&["explain", "--port", port, flow]);
        let outcome = &explained["traces"][0]["outcome"];
        if let Some(reason) = outcome["reason"].as_str() {
            return vec![reason.to_owned()];
        }
        let copies = outcome["copies"].as_array().unwrap().iter();
        copies
            .map(|copy| format!("{}: {}", copy["to"].as_str().unwrap(), copy["changes"]))
            .collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Whichever way the program runs, its ports mean the same.
fn ports_are_in_the_tables(daemon: &Daemon) {
    let list = daemon.prints(&["table", "list"]);
    for table in ["ingress_port", "vlan_admission", "vlan_members"] {
        assert!(list.contains(table), "{list}");
    }
    assert_eq!(daemon.entries("ingress_port").len(), 3);
    let members = daemon.entries("vlan_members");
    assert_eq!(members.len(), 5, "{members:#?}");
    assert!(members[0].contains("vm0"), "{members:#?}");

    let untagged = "udp 10.0.0.1:5 > 10.0.0.2:6 mac 52:54:00:00:00:01 > 52:54:00:00:00:02";
    let to_trunk = daemon.outcome("vm0", untagged);
    assert_eq!(to_trunk.len(), 1, "{to_trunk:?}");
    assert!(
        to_trunk[0].starts_with("vm1: ") && to_trunk[0].contains("vlan added"),
        "{to_trunk:?}"
    );
    let tagged = |vlan: u16| format!("{untagged} vlan {vlan}");
    assert_eq!(
        daemon.outcome("vm0", &tagged(10)),
        ["vlan_tag_on_access_port"]
    );
    assert_eq!(daemon.outcome("vm1", &tagged(30)), ["vlan_not_allowed"]);
    assert_eq!(daemon.outcome("vm1", &tagged(11)), ["no_destination"]);
    let to_access = daemon.outcome("vm1", &tagged(20));
    assert!(
        to_access[0].starts_with("vm2: ") && to_access[0].contains("vlan removed"),
        "{to_access:?}"
    );

    // A port that goes takes its entries along, and one that comes brings some.
    daemon.prints(&["port", "remove", "vm2"]);
    assert_eq!(daemon.entries("ingress_port").len(), 2);
    assert_eq!(daemon.outcome("vm1", &tagged(20)), ["no_destination"]);
    let socket = daemon.path("vm3.sock");
    let added = format!(
        "name=vm3,type=vhost-user,socket={},vlan=11",
        socket.display()
    );
    daemon.prints(&["port", "add", &added]);
    assert!(daemon.outcome("vm1", &tagged(11))[0].starts_with("vm3: "));
}

#[test]
fn the_default_program_is_shown_and_explained_and_refuses_changes() {
    let daemon = Daemon::start("l2", &VLANS).unwrap();
    ports_are_in_the_tables(&daemon);

    let info = daemon.prints(&["program", "info"]);
    assert!(
        info.contains("\"vlan_members\"") && info.contains("pkg_info"),
        "{info}"
    );
    let shown: Value = serde_json::from_str(&daemon.prints(&["program", "show"])).unwrap();
    assert_eq!(shown["name"], "l2");
    let local = daemon.prints(&["program", "show", "--program", "l2"]);
    assert_eq!(serde_json::from_str::<Value>(&local).unwrap(), shown);

    let why = daemon.prints(&[
        "explain",
        "--port",
        "vm0",
        "arp 10.0.0.1 > 10.0.0.2 mac 52:54:00:00:00:01 > ff:ff:ff:ff:ff:ff",
    ]);
    for part in ["ingress_port", "member_tagged", "vm1"] {
        assert!(why.contains(part), "{part}: {why}");
    }

    let refused = daemon.ask(&[
        "table",
        "put",
        "source_address",
        "source=52:54:00:00:00:01",
        "--priority",
        "5",
        "--action",
        "refuse_zero_source",
    ]);
    assert_eq!(refused.status.code(), Some(1));
    for part in ["follow from the ports' configuration", "--program"] {
        assert!(stderr(&refused).contains(part), "{}", stderr(&refused));
    }
    assert_eq!(daemon.entries("source_address").len(), 2);
}

#[test]
fn the_same_program_from_a_file_takes_the_ports_vlans_and_changes() {
    let daemon = Daemon::start(L2, &VLANS).unwrap();
    ports_are_in_the_tables(&daemon);
    daemon.prints(&[
        "table",
        "put",
        "source_address",
        "source=52:54:00:00:00:01",
        "--priority",
        "5",
        "--action",
        "refuse_zero_source",
    ]);
    let flow = "udp 10.0.0.1:5 > 10.0.0.2:6 mac 52:54:00:00:00:01 > 52:54:00:00:00:02";
    assert_eq!(daemon.outcome("vm0", flow), ["source_zero"]);
    let theirs = daemon.ask(&["table", "delete", "ingress_port", "port=vm0"]);
    assert_eq!(theirs.status.code(), Some(1), "{}", stderr(&theirs));
}

#[test]
fn a_program_without_tables_for_vlans_takes_no_port_with_one() {
    let Err(said) = Daemon::start(ACL, &["vlan=10"]) else {
        panic!("it runs");
    };
    for part in ["vlan", "vlan_members", "leave the port's VLANs out"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let daemon = Daemon::start(ACL, &["mtu=1500"]).unwrap();
    let socket = daemon.path("vm9.sock");
    let port = format!(
        "name=vm9,type=vhost-user,socket={},vlan=10",
        socket.display()
    );
    let refused = daemon.ask(&["port", "add", &port]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("vlan"), "{}", stderr(&refused));
}
