//! What is acknowledged is kept: through restarts, kills at any moment, failing disks and other programs.
use crate::fake_engine::FakeEngine;
use proptest::prelude::*;
use redb::StorageBackend;
use redb::backends::InMemoryBackend;
use ringswitch::config::PortName;
use ringswitch::control::tables::{Quotas, Refusal, Store, Tables, TablesOptions};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use switch_core::engine::control::{Update, WriteErrorKind};
use switch_core::engine::literal::Literal;
use vmm_sys_util::tempdir::TempDir;

fn folder() -> TempDir {
    TempDir::new_with_prefix(std::env::temp_dir().join("ringswitch-state-")).unwrap()
}

fn open(folder: &Path, engine: &Arc<FakeEngine>) -> Tables {
    let options = TablesOptions {
        store: Some(Arc::new(Store::open(folder).unwrap())),
        quotas: Quotas {
            by_tenant: BTreeMap::from([("small".to_owned(), 2)]),
            ..Quotas::default()
        },
        ..TablesOptions::default()
    };
    Tables::start(Arc::clone(engine) as _, options).unwrap()
}

fn update(json: serde_json::Value) -> Update {
    serde_json::from_value(json).unwrap()
}

fn route(number: u32, port: &str) -> Update {
    update(
        json!({"put": {"table": "routes", "key": {"dst": format!("10.{}.{}.{}/32", number >> 16, number >> 8 & 255, number & 255)},
        "action": "forward", "params": {"port": port}}}),
    )
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}

fn write(tables: &Tables, updates: Vec<Update>) -> Result<bool, Refusal> {
    block_on(tables.write(updates)).map(|written| written.durable)
}

#[track_caller]
fn refused(tables: &Tables, updates: Vec<Update>) -> (usize, String, WriteErrorKind) {
    match write(tables, updates) {
        Err(Refusal::Write(error)) => (error.index, error.place, error.kind),
        other => panic!("{other:?}"),
    }
}

/// Everything that can be listed, as it is written.
fn contents(tables: &Tables) -> Vec<String> {
    let mut all: Vec<String> = ["acl", "routes", "stations"]
        .iter()
        .flat_map(|table| tables.entries(table, None, usize::MAX).unwrap())
        .map(|listed| serde_json::to_string(&listed.entry).unwrap())
        .collect();
    all.extend(tables.groups().iter().map(|group| format!("{group:?}")));
    all.extend(tables.multicast().iter().map(|group| format!("{group:?}")));
    all.extend(tables.meters().iter().map(|meter| format!("{meter:?}")));
    all.extend(
        tables
            .tables()
            .iter()
            .map(|table| format!("{:?}", table.default_action)),
    );
    all.sort();
    all
}

#[test]
fn everything_that_was_acknowledged_is_there_after_a_restart() {
    let folder = folder();
    let engine = Arc::new(FakeEngine::default());
    let tables = open(folder.as_path(), &engine);
    let batch = vec![
        route(1, "vm1"),
        route(2, "vm2"),
        update(
            json!({"insert": {"table": "acl", "key": {"port": "vm1", "dst_port": "80..443"}, "priority": 7, "action": "allow", "params": {"mark": 5}, "idle_timeout_ms": 500}}),
        ),
        update(
            json!({"set_default": {"table": "acl", "default": {"action": "allow", "params": {"mark": 1}}}}),
        ),
        update(json!({"set_multicast": {"group": 5, "ports": ["vm1", 3]}})),
        update(
            json!({"set_group": {"selector": "s", "group": 1, "members": [{"weight": 2, "values": {"port": "vm1"}}]}}),
        ),
        update(
            json!({"set_meter": {"meter": "m", "index": 3, "rate": {"bytes_per_second": 1000}}}),
        ),
    ];
    assert_eq!(write(&tables, batch), Ok(true));
    write(
        &tables,
        vec![update(
            json!({"delete": {"table": "routes", "key": {"dst": "10.0.0.2"}}}),
        )],
    )
    .unwrap();
    let before = contents(&tables);
    assert_eq!(before.len(), 2 + 3 + 3);
    tables.stop();
    drop(tables);
    let again = open(folder.as_path(), &Arc::new(FakeEngine::default()));
    assert_eq!(contents(&again), before);
    assert_eq!(
        (
            again.restored().entries,
            again.restored().settings,
            again.restored().aside
        ),
        (2, 4, 0)
    );
    // What a restart found can be taken away for good.
    write(
        &again,
        vec![
            update(json!({"clear": {"table": "acl"}})),
            update(json!({"set_default": {"table": "acl"}})),
            update(json!({"set_multicast": {"group": 5, "ports": []}})),
            update(json!({"set_group": {"selector": "s", "group": 1, "members": []}})),
            update(json!({"set_meter": {"meter": "m", "index": 3}})),
        ],
    )
    .unwrap();
    again.stop();
    drop(again);
    let last = open(folder.as_path(), &Arc::new(FakeEngine::default()));
    assert_eq!((last.restored().entries, last.restored().settings), (1, 0));
    last.stop();
}

#[test]
fn the_state_folder_is_for_the_daemons_user_alone_and_for_one_daemon() {
    use std::os::unix::fs::PermissionsExt;
    let parent = folder();
    let state = parent.as_path().join("a/b");
    let store = Store::open(&state).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode(&state), mode(&state.join("tables.redb"))),
        (0o700, 0o600)
    );
    let second = Store::open(&state).unwrap_err().to_string();
    assert!(second.contains("in use"), "{second}");
    drop(store);
    Store::open(&state).unwrap();
}

#[test]
fn a_refused_batch_leaves_nothing_in_the_store_nor_a_port_number() {
    let folder = folder();
    let tables = open(folder.as_path(), &Arc::new(FakeEngine::default()));
    let bad =
        update(json!({"insert": {"table": "routes", "key": {"dst": "10.0.0.9"}, "action": "fly"}}));
    assert_eq!(
        refused(&tables, vec![route(1, "new"), bad]),
        (1, "action".into(), WriteErrorKind::Invalid)
    );
    assert_eq!(tables.port_id(&PortName::parse("new").unwrap()), None);
    tables.stop();
    drop(tables);
    assert_eq!(
        open(folder.as_path(), &Arc::new(FakeEngine::default()))
            .restored()
            .entries,
        0
    );
}

#[test]
fn what_does_not_fit_the_program_is_kept_aside_and_comes_back_with_the_program() {
    let folder = folder();
    let tables = open(folder.as_path(), &Arc::new(FakeEngine::default()));
    let station = |last: u8| {
        update(
            json!({"put": {"table": "stations", "key": {"mac": format!("52:54:00:00:00:{last:02x}")}, "action": "forward", "params": {"port": "vm1"}}}),
        )
    };
    let default = update(
        json!({"set_default": {"table": "stations", "default": {"action": "forward", "params": {"port": "vm1"}}}}),
    );
    write(
        &tables,
        (0..20)
            .map(station)
            .chain((0..20).map(|number| route(number, "vm1")))
            .chain([default])
            .collect(),
    )
    .unwrap();
    let before = contents(&tables);
    tables.stop();
    drop(tables);
    let other = open(
        folder.as_path(),
        &Arc::new(FakeEngine::without(&["stations"])),
    );
    assert_eq!((other.restored().entries, other.restored().aside), (20, 21));
    assert_eq!(other.aside().unwrap().len(), 21);
    other.stop();
    drop(other);
    let back = open(folder.as_path(), &Arc::new(FakeEngine::default()));
    assert_eq!((back.restored().entries, back.restored().aside), (40, 0));
    assert_eq!(contents(&back), before);
    back.stop();
    drop(back);
    let other = open(
        folder.as_path(),
        &Arc::new(FakeEngine::without(&["stations"])),
    );
    assert_eq!(block_on(other.discard_aside()), Ok(21));
    assert!(other.aside().unwrap().is_empty());
}

#[test]
fn a_port_name_keeps_its_number_while_an_entry_means_it() {
    let folder = folder();
    let name = |text: &str| PortName::parse(text).unwrap();
    let tables = open(folder.as_path(), &Arc::new(FakeEngine::default()));
    write(&tables, vec![route(1, "absent")]).unwrap();
    let absent = tables.port_id(&name("absent")).unwrap();
    let present = tables.reserve_ports(&[name("vm1"), name("vm2")]).unwrap();
    tables.stop();
    drop(tables);
    let tables = open(folder.as_path(), &Arc::new(FakeEngine::default()));
    assert_eq!(
        tables
            .reserve_ports(&[name("vm2"), name("absent"), name("vm1")])
            .unwrap(),
        [present[1], Some(absent), present[0]]
    );
    for port in ["vm1", "vm2", "absent"] {
        tables.port_gone(&name(port));
    }
    // All numbers are wanted: those that nothing means are given out again, the entry's is not.
    let many: Vec<PortName> = (0..1023)
        .map(|number| name(&format!("p{number}")))
        .collect();
    assert!(
        tables
            .reserve_ports(&many)
            .unwrap()
            .iter()
            .all(Option::is_some)
    );
    assert_eq!(tables.port_id(&name("absent")), Some(absent));
    assert_eq!(tables.reserve_ports(&[name("one-more")]).unwrap(), [None]);
    assert_eq!(
        refused(
            &tables,
            vec![update(
                json!({"put": {"table": "acl", "key": {"port": "one-more"}, "action": "allow"}})
            )]
        )
        .1,
        "key.port"
    );
}

#[test]
fn a_tenant_has_no_more_entries_than_its_quota_also_after_a_restart() {
    let folder = folder();
    let of = |number: u32, tenant: &str| {
        let Update::Put(mut entry) = route(number, "vm1") else {
            unreachable!()
        };
        entry.tenant = Some(tenant.to_owned());
        Update::Put(entry)
    };
    let tables = open(folder.as_path(), &Arc::new(FakeEngine::default()));
    write(
        &tables,
        vec![
            of(1, "small"),
            of(2, "small"),
            of(2, "small"),
            of(3, "other"),
        ],
    )
    .unwrap();
    assert_eq!(
        refused(&tables, vec![of(4, "other"), of(5, "small")]),
        (1, "tenant".into(), WriteErrorKind::Full)
    );
    tables.stop();
    drop(tables);
    let engine = Arc::new(FakeEngine::default());
    let tables = open(folder.as_path(), &engine);
    refused(&tables, vec![of(5, "small")]);
    // Given to another tenant, expired, deleted: each leaves room.
    write(&tables, vec![of(1, "other"), of(5, "small")]).unwrap();
    let Update::Put(entry) = of(5, "small") else {
        unreachable!()
    };
    engine.let_expire(switch_core::engine::control::EntryName {
        table: entry.table,
        key: entry.key,
        priority: None,
    });
    let deadline = Instant::now() + Duration::from_secs(20);
    while write(&tables, vec![of(6, "small")]).is_err() {
        assert!(Instant::now() < deadline, "an expired entry still counts");
        std::thread::yield_now();
    }
    refused(&tables, vec![of(7, "small")]);
    write(
        &tables,
        vec![
            update(json!({"delete": {"table": "routes", "key": {"dst": "10.0.0.6"}}})),
            of(7, "small"),
        ],
    )
    .unwrap();
    tables.stop();
    drop(tables);
    assert_eq!(
        open(folder.as_path(), &Arc::new(FakeEngine::default()))
            .restored()
            .entries,
        4
    );
}

/// Refuses to reach the disk when told.
#[derive(Debug)]
pub struct FailingDisk {
    memory: InMemoryBackend,
    fails: Arc<AtomicBool>,
}

impl FailingDisk {
    pub fn new(fails: &Arc<AtomicBool>) -> Self {
        Self {
            memory: InMemoryBackend::new(),
            fails: Arc::clone(fails),
        }
    }
}

impl StorageBackend for FailingDisk {
    fn len(&self) -> io::Result<u64> {
        self.memory.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.memory.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.memory.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        match self.fails.load(Ordering::Relaxed) {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => self.memory.sync_data(),
        }
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.memory.write(offset, data)
    }
}

#[test]
fn a_batch_that_cannot_be_stored_is_taken_back_and_later_ones_are_refused() {
    let fails = Arc::new(AtomicBool::new(false));
    let disk = FailingDisk::new(&fails);
    let options = TablesOptions {
        store: Some(Arc::new(Store::over(disk).unwrap())),
        ..TablesOptions::default()
    };
    let tables = Tables::start(Arc::new(FakeEngine::default()), options).unwrap();
    let acl = |priority: i32| {
        update(json!({"put": {"table": "acl", "priority": priority, "action": "allow"}}))
    };
    let meter = |rate: u64| {
        update(json!({"set_meter": {"meter": "m", "index": 1, "rate": {"bytes_per_second": rate}}}))
    };
    write(
        &tables,
        vec![route(1, "vm1"), route(2, "vm1"), acl(1), acl(2), meter(5)],
    )
    .unwrap();
    let before = contents(&tables);
    fails.store(true, Ordering::Relaxed);
    let batch = vec![
        route(1, "vm9"),
        route(3, "vm9"),
        update(json!({"delete": {"table": "routes", "key": {"dst": "10.0.0.2"}}})),
        update(json!({"clear": {"table": "acl"}})),
        acl(3),
        meter(6),
        update(json!({"set_multicast": {"group": 1, "ports": [1]}})),
    ];
    assert!(matches!(write(&tables, batch), Err(Refusal::Store(_))));
    assert_eq!(contents(&tables), before);
    fails.store(false, Ordering::Relaxed);
    assert!(matches!(
        write(&tables, vec![route(4, "vm1")]),
        Err(Refusal::Store(_))
    ));
    assert_eq!(contents(&tables), before);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn the_store_has_what_the_engine_has_after_any_batches(
        batches in prop::collection::vec(prop::collection::vec((0u8..8, 0u32..12, 0u8..3), 0..12), 1..10)
    ) {
        let folder = folder();
        let tables = open(folder.as_path(), &Arc::new(FakeEngine::default()));
        for batch in batches {
            let updates = batch.into_iter().map(|(kind, number, port)| {
                let key = json!({"dst": format!("10.0.0.{number}")});
                let tenant = ["small", "a", "b"][usize::from(port)];
                let entry = json!({"table": "routes", "key": key, "action": "forward", "params": {"port": format!("vm{port}")},
                    "tenant": tenant});
                update(match kind {
                    0 => json!({"insert": entry}),
                    1 => json!({"modify": entry}),
                    2..=4 => json!({"put": entry}),
                    5 => json!({"delete": {"table": "routes", "key": key}}),
                    6 => json!({"clear": {"table": "routes"}}),
                    _ => json!({"set_meter": {"meter": "m", "index": number, "rate": (port > 0).then(|| json!({"frames_per_second": port}))}}),
                })
            });
            let _ = write(&tables, updates.collect());
        }
        let before = contents(&tables);
        tables.stop();
        drop(tables);
        let again = open(folder.as_path(), &Arc::new(FakeEngine::default()));
        prop_assert_eq!(contents(&again), before);
        prop_assert_eq!(again.restored().aside, 0);
        again.stop();
    }
}

const CHILD: &str = "RINGSWITCH_TEST_STATE";
const SLOTS: u32 = 40;

/// Batch `number`: writes its slot in two tables, and takes the opposite slot out of both. The first of all is 1.
fn slot_batch(number: u32) -> Vec<Update> {
    let entry = |table: &str, key: &str, slot: u32| {
        let value = match table {
            "routes" => format!("10.0.0.{slot}"),
            _ => format!("52:54:00:00:00:{slot:02x}"),
        };
        json!({"table": table, "key": {key: value}})
    };
    let mut updates = vec![];
    for (table, key) in [("routes", "dst"), ("stations", "mac")] {
        let mut put = entry(table, key, number % SLOTS);
        put["action"] = json!("forward");
        put["params"] = json!({"port": number});
        updates.push(json!({"put": put}));
        if number > SLOTS / 2 {
            let gone = (number + SLOTS / 2) % SLOTS;
            updates.push(json!({"delete": entry(table, key, gone)}));
        }
    }
    updates.into_iter().map(update).collect()
}

/// What the tables hold after batch `number`: the last half of the slots, in both tables.
fn slots_after(number: u32) -> Vec<u32> {
    (number.saturating_sub(SLOTS / 2 - 1).max(1)..=number).collect()
}

fn numbers(tables: &Tables, table: &str) -> Vec<u32> {
    let mut numbers: Vec<u32> = tables
        .entries(table, None, usize::MAX)
        .unwrap()
        .iter()
        .map(|listed| match listed.entry.params["port"] {
            Literal::Number(number) => u32::try_from(number).unwrap(),
            ref other => panic!("{other}"),
        })
        .collect();
    numbers.sort_unstable();
    numbers
}

/// Not a test by itself: the process that the next one kills. Writes batches, several at once, and says which are acknowledged.
#[test]
fn the_process_that_is_killed() {
    let Some(folder) = std::env::var_os(CHILD) else {
        return;
    };
    let tables = open(Path::new(&folder), &Arc::new(FakeEngine::default()));
    let mut next = numbers(&tables, "routes").last().copied().unwrap_or(0) + 1;
    block_on(async {
        loop {
            let first = next;
            next += 4;
            let answers = [0, 1, 2, 3].map(|offset| tables.write(slot_batch(first + offset)));
            let [a, b, c, d] = answers;
            let (a, b, c, d) = tokio::join!(a, b, c, d);
            for (number, answer) in (first..).zip([a, b, c, d]) {
                answer.unwrap();
                // In one write, which no kill tears.
                io::stderr()
                    .write_all(format!("acknowledged {number}\n").as_bytes())
                    .unwrap();
            }
        }
    });
}

#[test]
fn killed_at_any_moment_nothing_acknowledged_is_lost_and_no_half_is_left() {
    let folder = folder();
    let mut acknowledged = 0;
    let mut seed = u64::from(std::process::id());
    let mut rounds_with_batches = 0;
    for round in 0..40 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "durability::the_process_that_is_killed",
                "--nocapture",
            ])
            .env(CHILD, folder.as_path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = io::BufReader::new(child.stderr.take().unwrap()).lines();
        // Some rounds end before the first batch: in the middle of opening the store.
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let mut wanted = (seed >> 33) % 30;
        let before = acknowledged;
        let note = |line: &str, acknowledged: &mut u32| {
            if let Some(number) = line.strip_prefix("acknowledged ") {
                *acknowledged = number.parse().unwrap();
            }
        };
        while wanted > 0 {
            note(
                &lines.next().expect("the child ended by itself").unwrap(),
                &mut acknowledged,
            );
            wanted -= 1;
        }
        let pause = Duration::from_micros((seed >> 20) % 20_000);
        let end = Instant::now() + pause;
        while Instant::now() < end {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        lines
            .map_while(Result::ok)
            .for_each(|line| note(&line, &mut acknowledged));
        rounds_with_batches += u32::from(acknowledged > before);
        let tables = open(folder.as_path(), &Arc::new(FakeEngine::default()));
        let found = numbers(&tables, "routes");
        let last = found.last().copied().unwrap_or(0);
        assert!(
            last >= acknowledged,
            "round {round}: {acknowledged} was acknowledged, {last} is there"
        );
        assert_eq!(
            found,
            if last == 0 { vec![] } else { slots_after(last) },
            "round {round}"
        );
        assert_eq!(
            numbers(&tables, "stations"),
            found,
            "round {round}: half a batch"
        );
        // The child goes on from there.
        acknowledged = last;
        tables.stop();
    }
    assert!(
        rounds_with_batches >= 30,
        "{rounds_with_batches} rounds only"
    );
}
