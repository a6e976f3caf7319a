//! A daemon that is killed again and again while its ports and tables are changed and a front-end is connected.
use crate::process::{Home, WITHIN};
use guest_sim::nic::session::connect;
use guest_sim::{GuestMemory, GuestMemoryLayout, Nic, NicOptions};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

const KILLS: usize = 100;
/// Of so many kills, one hits the start.
const START_EVERY: usize = 6;
const SLOTS: u32 = 40;

/// A small generator, so that a seed repeats a run's choices (not its timing).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

type Ports = BTreeMap<String, Value>;

/// What the daemon has acknowledged, and what it may have done besides: the one request that the kill left without an answer.
#[derive(Clone, Default)]
struct Told {
    ports: Ports,
    /// The port, and as it would be.
    pending_port: Option<(String, Option<Value>)>,
    /// The last batch.
    batch: u32,
    changes: usize,
}

/// Adds and removes ports, also those of the file, until nobody answers.
fn change_ports(home: &Home, random: &mut Random, told: &mut Told, acknowledged: &Sender<()>) {
    loop {
        let name = ["p0", "p1", "p2", "p3", "p4", "p5", "f0", "f1"][random.below(8) as usize];
        let wanted = (!told.ports.contains_key(name)).then(|| {
            let mut port = json!({"name": name, "type": "vhost-user",
                "socket": home.text(&format!("{name}-{}.sock", random.below(3)))});
            if random.below(2) == 0 {
                port["queue_pairs"] = json!(2 + random.below(3));
            }
            if random.below(2) == 0 {
                port["mtu"] = json!(1500 + random.below(1000));
            }
            port
        });
        let answer = match &wanted {
            Some(port) => home.request("POST", "/v1/ports", &port.to_string()),
            None => home.request("DELETE", &format!("/v1/ports/{name}"), ""),
        };
        let Some((status, body)) = answer else {
            told.pending_port = Some((name.to_owned(), wanted));
            return;
        };
        assert!([201, 204].contains(&status), "{name}: {status} {body}");
        match wanted {
            Some(port) => drop(told.ports.insert(name.to_owned(), port)),
            None => drop(told.ports.remove(name)),
        }
        told.changes += 1;
        let _ = acknowledged.send(());
    }
}

/// The number of no port there can be, so that it is listed as a number.
fn port_of(batch: u32) -> u32 {
    2000 + batch % 1000
}

/// Batch `number` writes its slot in two tables, and takes the opposite slot out of both.
fn batch(number: u32) -> Value {
    let slot = |slot: u32| json!({"domain": 1, "mac": format!("52:54:00:00:00:{slot:02x}")});
    let put = slot(number % SLOTS);
    let mut updates = vec![
        json!({"put": {"table": "router_macs", "key": put, "action": "enter", "params": {"interface": number}}}),
        json!({"put": {"table": "stations", "key": put, "action": "station", "params": {"port": port_of(number)}}}),
    ];
    if number > SLOTS / 2 {
        let gone = slot((number + SLOTS / 2) % SLOTS);
        updates.push(json!({"delete": {"table": "router_macs", "key": gone}}));
        updates.push(json!({"delete": {"table": "stations", "key": gone}}));
    }
    json!({"updates": updates})
}

fn change_tables(home: &Home, told: &mut Told, acknowledged: &Sender<()>) {
    while let Some((status, body)) = home.request(
        "POST",
        "/v1/tables/batch",
        &batch(told.batch + 1).to_string(),
    ) {
        assert_eq!(status, 200, "{body}");
        assert!(body.contains("\"durable\":true"), "{body}");
        told.batch += 1;
        told.changes += 1;
        let _ = acknowledged.send(());
    }
}

fn numbers(home: &Home, table: &str, param: &str) -> Vec<u32> {
    let listed = home.get(&format!("/v1/tables/{table}/entries"));
    let entries = listed["entries"].as_array().unwrap().iter();
    let mut numbers: Vec<u32> = entries
        .map(|entry| entry["params"][param].to_string())
        .map(|number| number.trim_matches('"').parse().unwrap())
        .collect();
    numbers.sort_unstable();
    numbers
}

/// Checks that all that was acknowledged is there, and what was not, whole or not at all. What is there is known from now on.
fn verify(home: &Home, told: &mut Told, round: usize) {
    let config = home.get("/v1/config");
    let found: Ports = config["ports"]
        .as_array()
        .unwrap()
        .iter()
        .inspect(|port| assert!(port.get("fault").is_none(), "round {round}: {port}"))
        .map(|port| {
            let port = &port["port"];
            (port["name"].as_str().unwrap().to_owned(), port.clone())
        })
        .collect();
    let mut may_be = told.ports.clone();
    if let Some((name, wanted)) = told.pending_port.take() {
        match wanted {
            Some(port) => drop(may_be.insert(name, port)),
            None => drop(may_be.remove(&name)),
        }
    }
    assert!(
        found == told.ports || found == may_be,
        "round {round}:\nthere is {found:#?}\nacknowledged is {:#?}\nunderway was {may_be:#?}",
        told.ports
    );
    told.ports = found;
    let there = numbers(home, "router_macs", "interface");
    let last = there.last().copied().unwrap_or(0);
    assert!(
        last == told.batch || last == told.batch + 1,
        "round {round}: batch {} was acknowledged, {last} is there",
        told.batch
    );
    let first = last.saturating_sub(SLOTS / 2 - 1).max(1);
    let expected: Vec<u32> = (first..=last).collect();
    assert_eq!(there, expected, "round {round}");
    let mut halves: Vec<u32> = expected.into_iter().map(port_of).collect();
    halves.sort_unstable();
    assert_eq!(numbers(home, "stations", "port"), halves, "round {round}");
    told.batch = last;
}

/// Changes everything at once and kills the daemon somewhere in it.
fn round(home: &Home, random: &mut Random, told: &mut Told, daemon: &mut crate::process::Daemon) {
    let (wanted, pause_us) = (random.below(9), random.below(4_000));
    let (sender, acknowledged): (Sender<()>, Receiver<()>) = channel();
    let (mut of_ports, mut of_tables) = (told.clone(), told.clone());
    std::thread::scope(|scope| {
        let (for_ports, for_tables) = (sender.clone(), sender);
        let (told_ports, told_tables) = (&mut of_ports, &mut of_tables);
        let ports = scope.spawn(move || change_ports(home, random, told_ports, &for_ports));
        let tables = scope.spawn(move || change_tables(home, told_tables, &for_tables));
        for _ in 0..wanted {
            acknowledged.recv_timeout(WITHIN).unwrap();
        }
        let end = Instant::now() + Duration::from_micros(pause_us);
        while Instant::now() < end {
            std::thread::yield_now();
        }
        daemon.kill();
        ports.join().unwrap();
        tables.join().unwrap();
    });
    let before = told.changes;
    *told = of_ports;
    told.batch = of_tables.batch;
    told.changes += of_tables.changes - before;
}

#[test]
fn killed_a_hundred_times_it_loses_nothing_acknowledged_and_leaves_no_half() {
    let seed = std::env::var("RINGSWITCH_TEST_SEED").map_or(7, |seed| seed.parse().unwrap());
    let mut random = Random(seed);
    let home = Home::new();
    home.write(&format!("{}\n{}", home.section("f0"), home.section("f1")));
    let arguments = ["--program", "vpc"];
    let mut told = Told::default();
    let mut daemon = home.start(&arguments);
    home.told(&["port", "add", &home.vm("nic")]);
    for name in ["f0", "f1", "nic"] {
        let port = json!({"name": name, "type": "vhost-user", "socket": home.text(&format!("{name}.sock"))});
        told.ports.insert(name.to_owned(), port);
    }
    let memory = GuestMemory::new(&GuestMemoryLayout::around_pci_hole(16 << 20, 16 << 20)).unwrap();
    let mut nic = Nic::attach(&memory, NicOptions::default(), &home.path("nic.sock")).unwrap();
    let (offered, protocol) = (nic.offered(), nic.session().protocol_offered());
    let began = Instant::now();
    for number in 0..KILLS {
        if number % START_EVERY == 1 {
            daemon.kill();
            let mut starting = home.launch(&arguments);
            std::thread::sleep(Duration::from_micros(random.below(60_000)));
            starting.kill();
        } else {
            round(&home, &mut random, &mut told, &mut daemon);
        }
        daemon = home.start(&arguments);
        verify(&home, &mut told, number);
        let stream = connect(&home.path("nic.sock"), WITHIN).unwrap();
        nic.reconnect(stream).unwrap();
        assert_eq!(
            (nic.offered(), nic.session().protocol_offered()),
            (offered, protocol),
            "round {number}"
        );
    }
    eprintln!(
        "{KILLS} kills, {} changes acknowledged, {:?}",
        told.changes,
        began.elapsed()
    );
    assert!(told.changes > 2 * KILLS, "{} changes only", told.changes);
    // The file has not been touched by any of this.
    assert_eq!(
        home.read(),
        format!("{}\n{}", home.section("f0"), home.section("f1"))
    );
}
