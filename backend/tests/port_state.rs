//! What a switch knows of a port goes from one switch to another, whole or not at all.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test that cannot go on fails.
use ringswitch::config::{PortName, ProgramSource};
use ringswitch::control::port_state::{
    Conflicts, ImportError, Imported, NamedPort, PortState, PortStates, blob,
};
use ringswitch::control::tables::{Store, Tables, TablesOptions};
use ringswitch::datapath::{Datapath, PortTotals, Program, WorkerOptions};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use switch_core::conntrack::{
    Commit, ConnRecord, NatSpec, Packet, TcpFlags, TcpInfo, TransportInfo, Tuple, Zone,
};
use switch_core::engine::control::Update;
use switch_core::engine::runtime::{Engine, EngineConfig};
use switch_core::{MacRecord, Millis, Switch, SwitchConfig, VlanPolicy};
use vmm_sys_util::tempdir::TempDir;

/// A switch without a front-end.
struct Host {
    datapath: Arc<Datapath>,
    switch: Arc<Switch>,
    engine: Option<Arc<Engine>>,
    tables: Option<Tables>,
}

impl Host {
    /// Runs the program vpc, and keeps entries in a folder.
    fn new(folder: Option<&Path>) -> Self {
        let program = ProgramSource::parse("vpc").unwrap().load().unwrap();
        let engine = Arc::new(Engine::new(program, EngineConfig::default()).unwrap());
        let options = TablesOptions {
            store: folder.map(|folder| Arc::new(Store::open(folder).unwrap())),
            ..TablesOptions::default()
        };
        let tables = Tables::start(engine.clone(), options).unwrap();
        Self::with(Some(engine), Some(tables))
    }

    fn with(engine: Option<Arc<Engine>>, tables: Option<Tables>) -> Self {
        let workers = WorkerOptions {
            workers: 1,
            cpus: vec![],
            poll_us: 0,
        };
        let switch = Arc::new(Switch::new(SwitchConfig::default()));
        let program = engine.clone().map_or(Program::L2, Program::Engine);
        let datapath =
            Datapath::start(&workers, (Arc::clone(&switch), program), Arc::new(|_| {})).unwrap();
        Self {
            datapath,
            switch,
            engine,
            tables,
        }
    }

    fn port(&self, name: &str, otherwise: u16) -> NamedPort {
        let name = PortName::parse(name).unwrap();
        let reserved = self
            .tables
            .as_ref()
            .map(|tables| tables.reserve_ports(std::slice::from_ref(&name)).unwrap()[0].unwrap());
        let id = reserved.unwrap_or_else(|| switch_core::PortId::new(otherwise).unwrap());
        self.switch.add_port(id, VlanPolicy::Transparent).unwrap();
        if let Some(engine) = &self.engine {
            engine.attach_port(id);
        }
        self.datapath.add_vhost_port(id, 1, None);
        NamedPort { id, name }
    }

    fn states(&self) -> PortStates {
        let (datapath, switch) = (Arc::clone(&self.datapath), Arc::clone(&self.switch));
        PortStates::new(datapath, switch, self.engine.clone())
    }

    fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    fn tables(&self) -> &Tables {
        self.tables.as_ref().unwrap()
    }

    fn write(&self, json: &str) {
        let updates: Vec<Update> = serde_json::from_str(json).unwrap();
        self.tables().write_waiting(updates).unwrap();
    }

    fn export(&self, port: &NamedPort) -> Vec<u8> {
        let state = self.states().export(port, self.tables.as_ref());
        blob::write(&state).unwrap()
    }

    fn import(
        &self,
        port: &NamedPort,
        bytes: &[u8],
        conflicts: Conflicts,
    ) -> Result<Imported, ImportError> {
        let state = blob::read(bytes)?;
        let tables = (self.tables.as_ref(), conflicts);
        self.states().import(port, &state, tables)
    }

    /// The entries of a table, as people read them.
    fn entries(&self, table: &str) -> Vec<String> {
        let entries = self.tables().entries(table, None, 100).unwrap();
        let entries = entries.iter().filter(|entry| !entry.constant);
        entries
            .map(|listed| serde_json::to_string(&(&listed.entry, listed.counters)).unwrap())
            .collect()
    }

    /// All that an import changes, for a port.
    fn all(&self, port: &NamedPort) -> PortState {
        let mut state = self.states().export(port, self.tables.as_ref());
        for entry in &mut state.entries {
            entry.seen = None;
        }
        state
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.datapath.stop();
        if let Some(tables) = &self.tables {
            tables.stop();
        }
    }
}

fn folder() -> TempDir {
    TempDir::new_with_prefix(std::env::temp_dir().join("ringswitch-port-state-")).unwrap()
}

const ENTRIES: &str = r#"[
    {"insert": {"table": "ports", "key": {"port": "vm1"}, "action": "attach", "params": {"domain": 7}}},
    {"insert": {"table": "ports", "key": {"port": "vm2"}, "action": "attach", "params": {"domain": 7}}},
    {"insert": {"table": "acl_in", "key": {"port": "vm1", "source": "10.0.0.0/8"}, "priority": 9, "action": "allow", "hard_timeout_ms": 600000, "tenant": "blue"}},
    {"insert": {"table": "acl_in", "key": {"port": "vm2", "source": "10.0.0.0/8"}, "priority": 9, "action": "allow_mirrored", "params": {"port": "vm1"}}},
    {"insert": {"table": "acl_in", "key": {"port": "vm2", "source": "10.1.0.0/16"}, "priority": 8, "action": "allow"}},
    {"set_multicast": {"group": 7, "ports": ["vm2", "vm1"]}},
    {"set_multicast": {"group": 8, "ports": ["vm2"]}},
    {"set_meter": {"meter": "rules", "index": 1, "rate": {"frames_per_second": 5}}}
]"#;

fn rate(host: &Host, port: &NamedPort, frames: u32) {
    let index = port.id;
    host.write(&format!(
        r#"[{{"set_meter": {{"meter": "port_in", "index": {index}, "rate": {{"frames_per_second": {frames}}}}}}}]"#
    ));
}

fn packet(port: &NamedPort, flags: TcpFlags, tuple: Tuple) -> Packet {
    Packet {
        port: port.id,
        zone: Zone(3),
        tuple,
        transport: TransportInfo::Tcp(TcpInfo {
            flags,
            window: 1000,
            ..TcpInfo::default()
        }),
        bytes: 60,
    }
}

fn tuple() -> Tuple {
    let host = |last| Ipv4Addr::new(10, 0, 0, last);
    Tuple::v4(6, (host(1), 1000), (host(2), 80))
}

/// A connection from one port that another answers.
fn connect(host: &Host, from: &NamedPort, to: &NamedPort, now: Millis) {
    let conntrack = host.engine().conntrack();
    let commit = Commit {
        port: from.id,
        mark: 77,
        data: [0, 1, 2, 3],
        nat: NatSpec::NONE,
    };
    conntrack
        .commit(&packet(from, TcpFlags::SYN, tuple()), &commit, now)
        .unwrap();
    let flags = TcpFlags::SYN.union(TcpFlags::ACK);
    let mut answer = packet(to, flags, tuple().inverse());
    if let TransportInfo::Tcp(tcp) = &mut answer.transport {
        tcp.acknowledgement = 1;
    }
    assert!(conntrack.track(&answer, now).invalid.is_none());
}

fn connections(host: &Host) -> Vec<ConnRecord> {
    let page =
        host.engine()
            .conntrack()
            .list(None, 0, 100, ringswitch::control::clock::monotonic_now());
    page.connections
        .into_iter()
        .map(|(_, record)| record)
        .collect()
}

/// A switch with two ports, the first of which has one of everything.
fn source(folder: Option<&Path>) -> (Host, NamedPort, NamedPort) {
    let host = Host::new(folder);
    let (vm1, vm2) = (host.port("vm1", 0), host.port("vm2", 1));
    host.write(ENTRIES);
    rate(&host, &vm1, 1000);
    rate(&host, &vm2, 2000);
    let now = ringswitch::control::clock::monotonic_now();
    let station = |last, port: &NamedPort| MacRecord {
        domain: 7,
        mac: switch_core::MacAddress([2, 0, 0, 0, 0, last]),
        port: port.id.get(),
        age_ms: 3_000,
    };
    let stations = [station(1, &vm1), station(2, &vm2)];
    assert_eq!(host.engine().restore_macs(&stations, now).taken, 2);
    connect(&host, &vm2, &vm1, now);
    let totals = PortTotals {
        guest_tx_frames: 100,
        guest_tx_bytes: 6_000,
        drops: [
            ("no_destination".to_owned(), 4),
            ("of_a_later_version".to_owned(), 5),
        ]
        .into(),
        ..PortTotals::default()
    };
    assert!(host.datapath.add_totals(vm1.id, &totals));
    (host, vm1, vm2)
}

#[test]
fn a_port_goes_on_in_another_switch_under_another_name() {
    let (here, vm1, _) = source(None);
    let bytes = here.export(&vm1);
    let there_folder = folder();
    let there = Host::new(Some(there_folder.as_path()));
    for name in ["other", "uplink"] {
        there.port(name, 0);
    }
    let guest = there.port("guest", 2);
    assert_ne!(guest.id, vm1.id);
    let imported = there.import(&guest, &bytes, Conflicts::Refuse).unwrap();
    assert_eq!((imported.from.as_str(), imported.durable), ("vm1", true));
    assert_eq!((imported.written, imported.unchanged), (5, 0));
    assert_eq!(
        (imported.stations.taken, imported.connections.taken),
        (1, 1)
    );

    let entries = there.entries("ports");
    assert_eq!(entries.len(), 1);
    assert!(entries[0].contains(r#""port":"guest""#), "{entries:?}");
    let entries = there.entries("acl_in").join("\n");
    for part in [
        r#""port":"guest","source":"10.0.0.0/8""#,
        r#""hard_timeout_ms":600000,"tenant":"blue""#,
        r#""params":{"port":"guest"}"#,
        r#""key":{"port":"vm2""#,
    ] {
        assert!(entries.contains(part), "{part} is not in {entries}");
    }
    assert!(
        !entries.contains("vm1") && !entries.contains("10.1.0.0"),
        "{entries}"
    );
    let groups = serde_json::to_string(&there.tables().multicast()).unwrap();
    assert_eq!(groups, r#"[{"group":7,"ports":["guest"]}]"#);
    let meters = serde_json::to_value(there.tables().meters()).unwrap();
    assert_eq!(meters.as_array().unwrap().len(), 1, "{meters}");
    assert_eq!(meters[0]["index"], guest.id.get());

    // The connection that was opened from elsewhere is this port's here; its answers go on.
    let [connection] = connections(&there)[..] else {
        panic!("one connection");
    };
    assert_eq!(
        (connection.port, connection.answered_by),
        (guest.id.get(), Some(guest.id.get()))
    );
    assert_eq!(
        (connection.mark, connection.data, connection.zone),
        (77, [0, 1, 2, 3], Zone(3))
    );
    assert_eq!(connection.packets, [1, 1]);
    let ack = packet(&guest, TcpFlags::ACK, tuple());
    let now = ringswitch::control::clock::monotonic_now();
    let TransportInfo::Tcp(mut tcp) = ack.transport else {
        panic!()
    };
    (tcp.sequence, tcp.acknowledgement) = (1, 1);
    let ack = Packet {
        transport: TransportInfo::Tcp(tcp),
        ..ack
    };
    assert_eq!(there.engine().conntrack().track(&ack, now).invalid, None);

    let stations = there.engine().mac_page(None, 0, now).stations;
    assert_eq!((stations.len(), stations[0].port), (1, guest.id.get()));
    assert!(stations[0].age_ms >= 3_000);
    let counters = there.datapath.counters(guest.id).unwrap();
    assert_eq!(
        (counters.guest_tx_frames, counters.guest_tx_bytes),
        (100, 6_000)
    );
    assert_eq!(counters.drops, [("no_destination", 4)]);

    // What it would export now is what it was given.
    let again = there.all(&guest);
    let bytes = there.export(&guest);
    assert_eq!((again.entries.len(), again.connections.len()), (3, 1));
    // And it is all there after a restart.
    drop(there);
    let there = Host::new(Some(there_folder.as_path()));
    assert_eq!(there.tables().restored().entries, 3);
    assert_eq!(there.tables().restored().settings, 2);
    // Back home, on the switch that it left, nothing is there twice.
    let imported = here.import(&vm1, &bytes, Conflicts::Refuse).unwrap();
    assert_eq!((imported.written, imported.unchanged), (0, 5));
    assert_eq!(
        (imported.connections.taken, imported.connections.known),
        (0, 1)
    );
}

#[test]
fn entries_count_and_time_out_where_they_left_off() {
    let (here, vm1, _) = source(None);
    let bytes = here.export(&vm1);
    let mut state = blob::read(&bytes).unwrap();
    for entry in &mut state.entries {
        if let Some(seen) = &mut entry.seen {
            seen.counted.frames = 41;
            // The hard timeout is ten minutes.
            seen.age_ms = 599_999;
        }
    }
    let there = Host::new(None);
    let guest = there.port("guest", 0);
    let tables = (there.tables.as_ref(), Conflicts::Refuse);
    let before = there.entries("acl_in").len();
    there.states().import(&guest, &state, tables).unwrap();
    assert_eq!(before, 0);
    // Of the two entries one is over within the second; the other has no timeout and goes on counting.
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while there.entries("acl_in").len() > 1 {
        assert!(std::time::Instant::now() < deadline, "it does not time out");
        std::thread::sleep(Duration::from_millis(20));
    }
    let left = there.entries("acl_in").join("\n");
    assert!(
        left.contains("allow_mirrored") && left.contains(r#""frames":41"#),
        "{left}"
    );
}

#[test]
fn entries_that_say_something_else_are_refused_replaced_or_kept() {
    let (here, vm1, _) = source(None);
    let bytes = here.export(&vm1);
    let there = Host::new(None);
    let guest = there.port("guest", 0);
    there.write(
        r#"[{"insert": {"table": "ports", "key": {"port": "guest"}, "action": "attach", "params": {"domain": 99}}},
            {"insert": {"table": "acl_in", "key": {"port": "guest", "source": "10.0.0.0/8"}, "priority": 9, "action": "allow", "hard_timeout_ms": 600000, "tenant": "blue"}}]"#,
    );
    rate(&there, &guest, 3);
    let before = there.all(&guest);
    let refused = there.import(&guest, &bytes, Conflicts::Refuse).unwrap_err();
    assert!(
        matches!(refused, ImportError::Conflict { count: 2, .. }),
        "{refused}"
    );
    assert!(refused.to_string().contains("table ports"), "{refused}");
    assert_eq!(there.all(&guest), before, "nothing of it was imported");
    assert_eq!(connections(&there), []);

    let kept = there.import(&guest, &bytes, Conflicts::Keep).unwrap();
    assert_eq!((kept.written, kept.unchanged), (2, 3));
    assert!(there.entries("ports")[0].contains("99"));
    let replaced = there.import(&guest, &bytes, Conflicts::Replace).unwrap();
    assert_eq!((replaced.written, replaced.unchanged), (2, 3));
    assert!(there.entries("ports")[0].contains(r#""domain":7"#));
    assert_eq!(there.all(&guest).settings, here.all(&vm1).settings);
}

#[test]
fn a_state_that_cannot_be_imported_changes_nothing() {
    let (here, vm1, _) = source(None);
    let bytes = here.export(&vm1);
    let there = Host::new(None);
    let guest = there.port("guest", 0);
    let before = there.all(&guest);
    for at in (0..bytes.len()).step_by(7) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x20;
        let refused = there
            .import(&guest, &damaged, Conflicts::Replace)
            .unwrap_err();
        assert!(
            matches!(refused, ImportError::Blob(_)),
            "byte {at}: {refused}"
        );
    }
    // Well formed, but one entry fits no table: the others are not written either.
    let mut state = blob::read(&bytes).unwrap();
    let last = state.entries.last_mut().unwrap();
    last.entry.action = "dance".to_owned();
    let refused = there.import(&guest, &blob::write(&state).unwrap(), Conflicts::Replace);
    assert!(
        matches!(refused, Err(ImportError::Refused(_))),
        "{refused:?}"
    );
    let mut state = blob::read(&bytes).unwrap();
    state.origin.program = "l2".to_owned();
    let refused = there.import(&guest, &blob::write(&state).unwrap(), Conflicts::Replace);
    assert!(
        matches!(refused, Err(ImportError::Program { .. })),
        "{refused:?}"
    );
    assert_eq!(there.all(&guest), before);
    assert_eq!(connections(&there), []);
}

#[test]
fn under_the_default_program_a_port_takes_its_stations_and_counters_along() {
    let (here, there) = (Host::with(None, None), Host::with(None, None));
    let (vm1, guest) = (here.port("vm1", 3), there.port("guest", 5));
    let station = MacRecord {
        domain: 0,
        mac: switch_core::MacAddress([2, 0, 0, 0, 0, 1]),
        port: 3,
        age_ms: 1_000,
    };
    let now = ringswitch::control::clock::monotonic_now();
    assert_eq!(here.switch.restore_macs(&[station], now).taken, 1);
    let bytes = here.export(&vm1);
    let imported = there.import(&guest, &bytes, Conflicts::Refuse).unwrap();
    assert_eq!((imported.written, imported.stations.taken), (0, 1));
    let stations = there.switch.mac_page(Some(guest.id), 0, now).stations;
    assert_eq!((stations.len(), stations[0].mac), (1, station.mac));
}
