//! What a switch knows of a port, on its way through a VMM that may be anybody's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test that cannot go on fails.
use ringswitch::config::{PortName, ProgramSource};
use ringswitch::control::port_state::signed::{StateKey, SwitchMark};
use ringswitch::control::port_state::{
    Carriers, NamedPort, PortCarrier, PortState, PortStates, StoppedStations, blob,
};
use ringswitch::control::tables::{Tables, TablesOptions};
use ringswitch::datapath::{Datapath, Program, WorkerOptions};
use ringswitch::device::state_transfer::{MAX_STATE_BYTES, StateCarrier};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use switch_core::engine::control::Update;
use switch_core::engine::runtime::{Engine, EngineConfig};
use switch_core::{MacAddress, MacRecord, Millis, Switch, SwitchConfig, VlanPolicy};
use vmm_sys_util::tempdir::TempDir;

const HOUR_MS: u64 = 3_600_000;
const HERE: SwitchMark = [1; 16];
const THERE: SwitchMark = [2; 16];

fn key(byte: u8) -> StateKey {
    let folder = TempDir::new_with_prefix(std::env::temp_dir().join("ringswitch-key-")).unwrap();
    let path = folder.as_path().join("key");
    let mut options = std::fs::File::options();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .unwrap();
    std::io::Write::write_all(&mut file, &[byte; 32]).unwrap();
    StateKey::read(&path).unwrap()
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

fn monotonic() -> Millis {
    ringswitch::control::clock::monotonic_now()
}

/// A switch with the program vpc and a port `vm1`, without a front-end.
struct Host {
    datapath: Arc<Datapath>,
    engine: Arc<Engine>,
    tables: Tables,
    carrier: PortCarrier,
}

impl Host {
    fn new(here: SwitchMark) -> Self {
        let program = ProgramSource::parse("vpc").unwrap().load().unwrap();
        let engine = Arc::new(Engine::new(program, EngineConfig::default()).unwrap());
        let tables = Tables::start(engine.clone(), TablesOptions::default()).unwrap();
        let workers = WorkerOptions {
            workers: 1,
            cpus: vec![],
            poll_us: 0,
        };
        let switch = Arc::new(Switch::new(SwitchConfig::default()));
        let program = Program::Engine(engine.clone());
        let datapath =
            Datapath::start(&workers, (Arc::clone(&switch), program), Arc::new(|_| {})).unwrap();
        let name = PortName::parse("vm1").unwrap();
        let id = tables.reserve_ports(std::slice::from_ref(&name)).unwrap()[0].unwrap();
        switch.add_port(id, VlanPolicy::Transparent).unwrap();
        engine.attach_port(id);
        datapath.add_vhost_port(id, 1, None);
        let stopped = Arc::new(StoppedStations::default());
        stopped.keep(id);
        let shared = Carriers {
            key: key(7),
            here,
            max_age: Duration::from_millis(HOUR_MS),
            tables: OnceLock::from(Some(tables.clone())),
        };
        let carrier = PortCarrier {
            port: NamedPort { id, name },
            states: PortStates::new(Arc::clone(&datapath), switch, Some(engine.clone())),
            stopped,
            shared: Arc::new(shared),
        };
        Self {
            datapath,
            engine,
            tables,
            carrier,
        }
    }

    /// With an entry and a station.
    fn source() -> Self {
        let host = Self::new(HERE);
        host.attach(7);
        let station = MacRecord {
            domain: 7,
            mac: MacAddress([2, 0, 0, 0, 0, 1]),
            port: host.carrier.port.id.get(),
            age_ms: 3_000,
        };
        assert_eq!(host.engine.restore_macs(&[station], monotonic()).taken, 1);
        host
    }

    fn attach(&self, domain: u16) {
        let json = format!(
            r#"[{{"insert": {{"table": "ports", "key": {{"port": "vm1"}}, "action": "attach", "params": {{"domain": {domain}}}}}}}]"#
        );
        let updates: Vec<Update> = serde_json::from_str(&json).unwrap();
        self.tables.write_waiting(updates).unwrap();
    }

    fn save(&self) -> Vec<u8> {
        self.carrier.save().unwrap().0
    }

    fn state(&self) -> PortState {
        self.carrier
            .states
            .export(&self.carrier.port, Some(&self.tables))
    }

    /// The same as [`Self::save`], but of another time, switch or content.
    fn signed(&self, ms: u64, change: impl FnOnce(&mut PortState)) -> Vec<u8> {
        let mut state = self.state();
        change(&mut state);
        let state = blob::write(&state).unwrap();
        self.carrier.shared.key.sign(&state, ms, &HERE)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.datapath.stop();
        self.tables.stop();
    }
}

#[test]
fn a_state_arrives_at_the_port_of_the_same_name() {
    let (here, there) = (Host::source(), Host::new(THERE));
    let told = there.carrier.load(&here.save()).unwrap();
    assert!(told.contains("1 entries and settings"), "{told}");
    let state = there.state();
    assert_eq!((state.entries.len(), state.stations.len()), (1, 1));
    assert!(state.stations[0].age_ms >= 3_000);
    assert_eq!(state.entries[0].entry, here.state().entries[0].entry);
}

#[test]
fn stations_of_a_port_whose_rings_were_stopped_go_along_once_and_age() {
    let here = Host::source();
    let port = here.carrier.port.id;
    let forgotten = here.engine.take_port(port, monotonic());
    assert_eq!(forgotten.len(), 1);
    assert!(here.state().stations.is_empty());
    let earlier = Millis(monotonic().0 - 10_000);
    here.carrier.stopped.set(port, forgotten.clone(), earlier);
    let of = |bytes: &[u8]| {
        let opened = here.carrier.shared.key.open(bytes).unwrap();
        blob::read(opened.state).unwrap().stations
    };
    let stations = of(&here.save());
    assert_eq!(stations.len(), 1);
    assert!((13_000..60_000).contains(&stations[0].age_ms));
    // Known again meanwhile: as it is known now.
    assert_eq!(here.engine.restore_macs(&forgotten, monotonic()).taken, 1);
    let stations = of(&here.save());
    assert_eq!(stations.len(), 1);
    assert!((3_000..13_000).contains(&stations[0].age_ms));
    // Its rings run again, or another VM is there.
    here.engine.flush_port(port);
    here.carrier.stopped.set(port, Vec::new(), monotonic());
    assert!(of(&here.save()).is_empty());
}

#[test]
fn what_is_here_already_stays() {
    let (here, there) = (Host::source(), Host::new(THERE));
    there.attach(9);
    let before = there.state().entries;
    let told = there.carrier.load(&here.save()).unwrap();
    assert!(
        told.contains("0 entries and settings (1 were here)"),
        "{told}"
    );
    assert_eq!(there.state().entries, before);
}

#[test]
fn whatever_is_not_signed_by_a_switch_with_the_key_changes_nothing() {
    let (here, there) = (Host::source(), Host::new(THERE));
    let empty = there.state();
    let good = here.save();
    let mut bad = vec![
        Vec::new(),
        blob::write(&here.state()).unwrap(),
        key(8).sign(&blob::write(&here.state()).unwrap(), now_ms(), &HERE),
        [&good[..], b"x"].concat(),
        [b"x", &good[..]].concat(),
    ];
    bad.extend((0..good.len()).step_by(7).map(|at| good[..at].to_vec()));
    bad.extend((0..good.len()).step_by(5).map(|at| {
        let mut damaged = good.clone();
        damaged[at] ^= 0x10;
        damaged
    }));
    for bytes in bad {
        there.carrier.load(&bytes).unwrap_err();
    }
    assert_eq!(there.state(), empty);
    there.carrier.load(&good).unwrap();
}

#[test]
fn a_signed_state_that_does_not_fit_is_refused_whole() {
    let (here, there) = (Host::source(), Host::new(THERE));
    let empty = there.state();
    let now = now_ms();
    let other_port = here.signed(now, |state| state.origin.port = "vm2".to_owned());
    let why = there.carrier.load(&other_port).unwrap_err();
    assert!(why.contains("same name"), "{why}");
    let other_program = here.signed(now, |state| state.origin.program = "l2".to_owned());
    there.carrier.load(&other_program).unwrap_err();
    let bad_entry = here.signed(now, |state| {
        state.entries[0].entry.action = "no_such_action".to_owned();
    });
    there.carrier.load(&bad_entry).unwrap_err();
    let no_state = here.carrier.shared.key.sign(b"nonsense", now, &HERE);
    there.carrier.load(&no_state).unwrap_err();
    assert_eq!(there.state(), empty);
}

#[test]
fn a_state_that_is_old_or_this_switchs_own_is_passed_over() {
    let (here, there) = (Host::source(), Host::new(THERE));
    let empty = there.state();
    let now = now_ms();
    for (ms, why) in [
        (now - HOUR_MS - 1_000, "old"),
        (0, "old"),
        (now + HOUR_MS, "clocks"),
        (u64::MAX, "clocks"),
    ] {
        let told = there.carrier.load(&here.signed(ms, |_| ())).unwrap();
        assert!(
            told.contains("not taken in") && told.contains(why),
            "{told}"
        );
    }
    assert_eq!(there.state(), empty);
    let told = there.carrier.load(&there.save()).unwrap();
    assert!(told.contains("this very switch"), "{told}");
    let fresh = here.signed(now - HOUR_MS + 60_000, |_| ());
    there.carrier.load(&fresh).unwrap();
    assert_eq!(there.state().entries.len(), 1);
}

#[test]
fn a_state_is_never_larger_than_a_migration_carries() {
    let here = Host::source();
    let one = serde_json::from_str(
        r#"{"z": 1, "p": 17, "a": ["10.0.0.1", 5, "10.0.0.2", 53], "s": "udp_stream", "e": 1, "n": [1, 2, 3, 4], "i": 64}"#,
    )
    .unwrap();
    let state = PortState {
        connections: vec![one; 100_000],
        ..here.state()
    };
    assert!(blob::write(&state).unwrap().len() > MAX_STATE_BYTES);
    let bytes = blob::write_within(&state, MAX_STATE_BYTES).unwrap();
    assert!(bytes.len() <= MAX_STATE_BYTES && bytes.len() > MAX_STATE_BYTES * 3 / 4);
    let read = blob::read(&bytes).unwrap();
    assert_eq!(read.entries.len(), 1);
    let left_out = read.origin.connections_left_out as usize;
    assert_eq!(read.connections.len() + left_out, 100_000);
}
