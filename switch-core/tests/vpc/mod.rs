//! A rig for the tests of the `vpc` program: a network of two tenants, frames, and what becomes of them.
#![allow(dead_code, reason = "each test file uses a part of this")]

pub mod frames;

use std::sync::Arc;

use switch_core::engine::control::{PortNames, Update};
use switch_core::engine::edit::{EditedFrame, PartialChecksum};
use switch_core::engine::model::Program;
use switch_core::engine::pipeline::{EnginePipeline, EngineStats};
use switch_core::engine::runtime::{Engine, EngineConfig};
use switch_core::{Decide, DropReason, FrameInfo, HeaderEdit, Millis, PortId, Target, Verdict};

/// Ports are called `vm1` and so on; `uplink` is the ninth.
pub struct Names;

impl PortNames for Names {
    fn id(&self, name: &str) -> Option<PortId> {
        match name {
            "uplink" => PortId::new(9),
            _ => PortId::new(name.strip_prefix("vm")?.parse().ok()?),
        }
    }

    fn name(&self, id: PortId) -> Option<String> {
        Some(format!("vm{id}"))
    }
}

/// One thing that became of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Copy {
    /// It left by a port.
    Port(u16, Vec<u8>),
    /// The control side was told.
    Controller(String, [u128; 4]),
    /// It was dropped.
    Drop(DropReason),
}

/// A network under test.
pub struct Lab {
    pub engine: Arc<Engine>,
    pub warm: EnginePipeline,
    cold: EnginePipeline,
    pub now: Millis,
}

impl Lab {
    /// The program with nothing in it.
    pub fn empty() -> Self {
        let json = switch_core::programs::builtin("vpc").unwrap();
        let valid = Program::from_json(json).unwrap_or_else(|errors| panic!("{errors}"));
        let engine = Arc::new(Engine::new(valid, EngineConfig::default()).unwrap());
        Self {
            warm: EnginePipeline::new(Arc::clone(&engine)),
            cold: EnginePipeline::new(Arc::clone(&engine)),
            engine,
            now: Millis(1_000),
        }
    }

    /// With these entries.
    pub fn with(json: &str) -> Self {
        let lab = Self::empty();
        lab.write(json);
        lab
    }

    pub fn write(&self, json: &str) {
        let updates: Vec<Update> = serde_json::from_str(json).unwrap();
        self.engine
            .write(&updates, &Names, self.now)
            .unwrap_or_else(|error| panic!("{error}"));
    }

    pub fn insert(&self, table: &str, key: &str, action: &str, params: &str) {
        self.write(&format!(
            r#"[{{"insert": {{"table": "{table}", "key": {{{key}}}, "action": "{action}", "params": {{{params}}}}}}}]"#
        ));
    }

    pub fn rule(&self, table: &str, priority: u32, key: &str, action: &str) {
        self.write(&format!(
            r#"[{{"insert": {{"table": "{table}", "key": {{{key}}}, "priority": {priority}, "action": "{action}"}}}}]"#
        ));
    }

    pub fn remove_rule(&self, table: &str, priority: u32, key: &str) {
        self.write(&format!(
            r#"[{{"delete": {{"table": "{table}", "key": {{{key}}}, "priority": {priority}}}}}]"#
        ));
    }

    pub fn remove(&self, table: &str, key: &str) {
        self.write(&format!(
            r#"[{{"delete": {{"table": "{table}", "key": {{{key}}}}}}}]"#
        ));
    }

    pub fn wait(&mut self, ms: u64) {
        self.now = Millis(self.now.0 + ms);
    }

    /// What becomes of a frame, once.
    pub fn once(&mut self, port: u16, frame: &[u8]) -> Vec<Copy> {
        outcome(&mut self.warm, (port, frame, frame.len(), None), self.now)
    }

    /// The same for a part of a frame: its length counts, its checksum may be partial.
    pub fn large(&mut self, port: u16, frame: &[u8], partial: PartialChecksum) -> Vec<Copy> {
        outcome(&mut self.warm, (port, frame, 1514, Some(partial)), self.now)
    }

    /// What becomes of a frame, from the cache, without it, and once more: always the same.
    pub fn send(&mut self, port: u16, frame: &[u8]) -> Vec<Copy> {
        let first = self.once(port, frame);
        self.cold.forget();
        let given = (port, frame, frame.len(), None);
        let uncached = outcome(&mut self.cold, given, self.now);
        assert_eq!(first, uncached, "without a cache it is another");
        assert_eq!(
            first,
            self.once(port, frame),
            "from the cache it is another"
        );
        first
    }

    /// Where a frame leaves, as it does, for a frame that leaves by one port.
    #[track_caller]
    pub fn passes(&mut self, from: u16, frame: &[u8]) -> (u16, Vec<u8>) {
        self.passed(from, frame, true)
    }

    #[track_caller]
    pub fn passes_once(&mut self, from: u16, frame: &[u8]) -> (u16, Vec<u8>) {
        self.passed(from, frame, false)
    }

    #[track_caller]
    fn passed(&mut self, from: u16, frame: &[u8], often: bool) -> (u16, Vec<u8>) {
        let copies = if often {
            self.send(from, frame)
        } else {
            self.once(from, frame)
        };
        match copies.as_slice() {
            [Copy::Port(port, bytes)] => {
                frames::verify(bytes);
                (*port, bytes.clone())
            }
            other => panic!("{other:?}\n{}", self.explain(from, frame)),
        }
    }

    /// That a frame is dropped, and why.
    #[track_caller]
    pub fn drops(&mut self, from: u16, frame: &[u8], reason: DropReason) {
        let copies = self.send(from, frame);
        assert_eq!(
            copies,
            [Copy::Drop(reason)],
            "\n{}",
            self.explain(from, frame)
        );
    }

    /// That the control side gets a frame and nobody else does.
    #[track_caller]
    pub fn punts(&mut self, from: u16, frame: &[u8], reason: &str) -> [u128; 4] {
        match self.send(from, frame).as_slice() {
            [Copy::Controller(name, args)] if name == reason => *args,
            other => panic!("{other:?}\n{}", self.explain(from, frame)),
        }
    }

    /// That a frame is decided from the cache.
    #[track_caller]
    pub fn is_cached(&mut self, from: u16, frame: &[u8]) {
        for _ in 0..2 {
            self.once(from, frame);
        }
        let before = self.stats();
        for _ in 0..3 {
            self.once(from, frame);
        }
        assert_eq!(before.misses, self.stats().misses);
    }

    pub fn stats(&self) -> EngineStats {
        self.warm.stats()
    }

    pub fn explain(&self, from: u16, frame: &[u8]) -> String {
        let port = PortId::new(from).unwrap();
        let trace = self.engine.explain((port, frame), &[], &Names, self.now);
        format!("{:#?}", trace.unwrap().steps)
    }
}

fn outcome(
    pipeline: &mut EnginePipeline,
    (port, frame, wire_bytes, partial): (u16, &[u8], usize, Option<PartialChecksum>),
    now: Millis,
) -> Vec<Copy> {
    pipeline.begin_batch(now);
    let info = FrameInfo {
        header: frame.get(..256).unwrap_or(frame),
        frame_bytes: frame.len() as u32,
        wire_bytes: wire_bytes as u32,
        partial_checksum: None,
    };
    let verdict = pipeline.decide(PortId::new(port).unwrap(), &info);
    let outcomes = pipeline.outcomes();
    let edited = |edit: HeaderEdit| match edit {
        HeaderEdit::List(list) => {
            let mut buffer = frame.to_vec();
            buffer.resize(frame.len() + 128, 0);
            let mut edited = EditedFrame {
                buffer: &mut buffer,
                header_bytes: frame.len(),
                frame_bytes: frame.len(),
                partial_checksum: partial,
            };
            outcomes
                .edit_list(list)
                .unwrap()
                .apply(&mut edited)
                .unwrap();
            let bytes = edited.frame_bytes;
            buffer.truncate(bytes);
            buffer
        }
        other => {
            assert_eq!(other, HeaderEdit::NONE);
            frame.to_vec()
        }
    };
    let mut copies = match verdict {
        Verdict::Drop(reason) => vec![Copy::Drop(reason)],
        Verdict::Output { port, edit } => vec![Copy::Port(port.get(), edited(edit))],
        Verdict::Copies(id) => outcomes
            .copies(id)
            .iter()
            .map(|copy| match copy.target {
                Target::Port(port) => Copy::Port(port.get(), edited(copy.edit)),
                Target::Drop(reason) => Copy::Drop(reason),
                Target::Controller(punt) => {
                    let punt = outcomes.punt(punt).unwrap();
                    let names = pipeline.engine().punt_reasons();
                    Copy::Controller(names[usize::from(punt.reason.0)].clone(), punt.args)
                }
            })
            .collect(),
        Verdict::Flood(_) => panic!("an engine names its copies"),
    };
    copies.sort_by_key(|copy| match copy {
        Copy::Port(port, _) => (0, *port),
        Copy::Controller(..) => (1, 0),
        Copy::Drop(_) => (2, 0),
    });
    copies
}

/// The ports that copies leave by.
pub fn ports(copies: &[Copy]) -> Vec<u16> {
    copies
        .iter()
        .filter_map(|copy| match copy {
            Copy::Port(port, _) => Some(*port),
            _ => None,
        })
        .collect()
}

/// Two tenants, red (domain 10 and 11, VRF 1) and blue (domain 20, VRF 2), with the same addresses. Red has vm1 (10.0.0.1, fd00::1)
/// and vm2 (10.0.0.2, fd00::2) in domain 10 and vm3 (10.0.1.3, fd00:1::3) in domain 11; blue has vm4 (10.0.0.1) and vm5 (10.0.0.2).
/// vm9 is the uplink, in domain 99 and VRF 9, with the gateway 198.51.100.254 behind it. MAC addresses end in the port's number.
/// Router interfaces 1 (10.0.0.254, domain 10), 2 (10.0.1.254, domain 11), 3 (domain 20), 9 (198.51.100.1, domain 99) have MACs that
/// end in f1, f2, f3, f9. Guests have policy 1 in red, 2 in blue, which allows nothing yet.
pub fn two_tenants() -> Lab {
    let lab = Lab::empty();
    let mut updates = Vec::new();
    let mut put = |table: &str, key: &str, action: &str, params: &str| {
        updates.push(format!(
            r#"{{"insert": {{"table": "{table}", "key": {{{key}}}, "action": "{action}", "params": {{{params}}}}}}}"#
        ));
    };
    for (domain, vrf, options) in [(10, 1, 30), (11, 1, 30), (20, 2, 30), (99, 9, 22)] {
        let zone = vrf;
        put(
            "domains",
            &format!(r#""domain": {domain}"#),
            "describe",
            &format!(r#""vrf": {vrf}, "zone": {zone}, "flood": {domain}, "options": {options}"#),
        );
    }
    for (vm, domain, policy, v4, v6) in [
        (1, 10, 1, "10.0.0.1", "fd00::1"),
        (2, 10, 1, "10.0.0.2", "fd00::2"),
        (3, 11, 1, "10.0.1.3", "fd00:1::3"),
        (4, 20, 2, "10.0.0.1", "fd00::1"),
        (5, 20, 2, "10.0.0.2", "fd00::2"),
    ] {
        put(
            "ports",
            &format!(r#""port": "vm{vm}""#),
            "guest",
            &format!(r#""domain": {domain}, "policy": {policy}"#),
        );
        let mac = format!("02:00:00:00:00:{vm:02x}");
        put(
            "stations",
            &format!(r#""domain": {domain}, "mac": "{mac}""#),
            "station",
            &format!(r#""port": "vm{vm}""#),
        );
        for address in ["0", v4, v6, &format!("fe80::{vm}")] {
            put(
                "port_security",
                &format!(r#""port": "vm{vm}", "mac": "{mac}", "address": "{address}""#),
                "permit",
                "",
            );
        }
        let interface = match domain {
            10 => 1,
            11 => 2,
            _ => 3,
        };
        for address in [v4, v6] {
            put(
                "neighbors",
                &format!(r#""interface": {interface}, "address": "{address}""#),
                "neighbor",
                &format!(r#""mac": "{mac}", "port": "vm{vm}""#),
            );
        }
    }
    put("ports", r#""port": "vm9""#, "attach", r#""domain": 99"#);
    put(
        "neighbors",
        r#""interface": 9, "address": "198.51.100.254""#,
        "neighbor",
        r#""mac": "02:00:00:00:00:09", "port": "vm9""#,
    );
    for (interface, domain, vrf, mac, v4, v6, network4, network6) in [
        (
            1,
            10,
            1,
            "f1",
            "10.0.0.254",
            "fd00::fe",
            "10.0.0.0/24",
            "fd00::/64",
        ),
        (
            2,
            11,
            1,
            "f2",
            "10.0.1.254",
            "fd00:1::fe",
            "10.0.1.0/24",
            "fd00:1::/64",
        ),
        (
            3,
            20,
            2,
            "f3",
            "10.0.0.254",
            "fd00::fe",
            "10.0.0.0/24",
            "fd00::/64",
        ),
        (
            9,
            99,
            9,
            "f9",
            "198.51.100.1",
            "2001:db8::1",
            "198.51.100.0/24",
            "2001:db8::/64",
        ),
    ] {
        let mac = format!("02:00:00:00:00:{mac}");
        let translates = u8::from(interface == 9);
        put(
            "interfaces",
            &format!(r#""interface": {interface}"#),
            "interface",
            &format!(
                r#""domain": {domain}, "mac": "{mac}", "mtu": 1500, "translates": {translates}"#
            ),
        );
        put(
            "router_macs",
            &format!(r#""domain": {domain}, "mac": "{mac}""#),
            "enter",
            &format!(r#""interface": {interface}"#),
        );
        for (routes, address, network, bits) in [
            ("routes4", v4, network4, 32),
            ("routes6", v6, network6, 128),
        ] {
            put(
                routes,
                &format!(r#""vrf": {vrf}, "destination": "{address}/{bits}""#),
                "local",
                "",
            );
            put(
                routes,
                &format!(r#""vrf": {vrf}, "destination": "{network}""#),
                "direct",
                &format!(r#""interface": {interface}"#),
            );
            put(
                "answered",
                &format!(r#""domain": {domain}, "address": "{address}""#),
                "answer",
                &format!(r#""interface": {interface}"#),
            );
        }
        if interface != 9 {
            for (protocol, port, action) in [
                (17, 67, "dhcp4"),
                (17, 547, "dhcp6"),
                (58, 133, "router_solicitation"),
            ] {
                put(
                    "services",
                    &format!(
                        r#""domain": {domain}, "protocol": {protocol}, "destination_port": {port}"#
                    ),
                    action,
                    &format!(r#""interface": {interface}"#),
                );
            }
        }
    }
    for vrf in [1, 2] {
        put(
            "routes4",
            &format!(r#""vrf": {vrf}, "destination": "0.0.0.0/0""#),
            "via",
            r#""interface": 9, "gateway": "198.51.100.254""#,
        );
    }
    put(
        "routes4",
        r#""vrf": 9, "destination": "0.0.0.0/0""#,
        "via",
        r#""interface": 9, "gateway": "198.51.100.254""#,
    );
    for (domain, members) in [(10, "1, 2"), (11, "3"), (20, "4, 5"), (99, "9")] {
        updates.push(format!(
            r#"{{"set_multicast": {{"group": {domain}, "ports": [{members}]}}}}"#
        ));
    }
    lab.write(&format!("[{}]", updates.join(",")));
    lab
}

/// The same with rules that allow every connection.
pub fn open() -> Lab {
    let lab = two_tenants();
    for policy in [1, 2] {
        for table in ["egress_rules", "ingress_rules"] {
            lab.rule(table, 1, &format!(r#""policy": {policy}"#), "allow");
        }
    }
    lab
}
