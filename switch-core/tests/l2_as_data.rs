//! The default program twice: compiled in, and as data (`programs/l2.json`) on the engine. Both are driven with the same random
//! ports, frames and times; what leaves, or why nothing does, must be the same, so the two cannot drift apart.
//!
//! A third one explains: an engine that shares the compiled-in switch's stations, as the admin socket has it under the default program.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use switch_core::engine::control::{Outcome, PortNames, Update, WriteErrorKind};
use switch_core::engine::edit::{EditedFrame, MAX_GROWTH_BYTES};
use switch_core::engine::model::Program;
use switch_core::engine::pipeline::EnginePipeline;
use switch_core::engine::runtime::{Engine, EngineConfig};
use switch_core::l2_entries::{Policies, changes, has_tables};
use switch_core::programs::builtin;
use switch_core::{
    Decide, DropReason, FrameInfo, HeaderEdit, MacAddress, Millis, Outcomes, Pipeline, PortId,
    RateLimit, Switch, SwitchConfig, Target, Verdict, VlanEdit, VlanId, VlanPolicy,
};

const AGEING_MS: u64 = 9_000;

/// What leaves by which port, or why nothing does.
type Sent = Result<BTreeMap<u16, Vec<u8>>, DropReason>;

struct Numbers;

impl PortNames for Numbers {
    fn id(&self, name: &str) -> Option<PortId> {
        PortId::new(name.parse().ok()?)
    }

    fn name(&self, id: PortId) -> Option<String> {
        Some(id.get().to_string())
    }
}

#[derive(Clone, Debug)]
enum Event {
    AddPort(u16, VlanPolicy),
    RemovePort(u16),
    FlushPort(u16),
    Wait(u64),
    Expire,
    Frame {
        worker: usize,
        in_port: u16,
        frame: Vec<u8>,
    },
}

fn vlan(number: u16) -> VlanId {
    VlanId::new(number).expect("a valid VLAN")
}

fn port(index: u16) -> PortId {
    PortId::new(index).expect("a small index")
}

fn any_policy() -> impl Strategy<Value = VlanPolicy> {
    let numbers = prop::sample::subsequence(vec![1_u16, 9, 10, 11, 20, 4094], 0..=6);
    let native = prop::sample::select(vec![None, Some(1), Some(10), Some(30)]);
    prop_oneof![
        2 => Just(VlanPolicy::Transparent),
        2 => prop::sample::select(vec![10, 20]).prop_map(|number| VlanPolicy::Access(vlan(number))),
        3 => (numbers, native).prop_map(|(allowed, native)| VlanPolicy::Trunk {
            allowed: allowed.into_iter().map(vlan).collect(),
            native: native.map(vlan),
        }),
    ]
}

fn any_mac() -> impl Strategy<Value = MacAddress> {
    prop_oneof![
        8 => (0..5_u8).prop_map(|last| MacAddress([2, 0, 0, 0, 0, last])),
        1 => prop::sample::select(vec![
            MacAddress::BROADCAST,
            MacAddress([0x01, 0, 0x5e, 0, 0, 1]),
            MacAddress([0x01, 0x80, 0xc2, 0, 0, 0x0f]),
            MacAddress([0x01, 0x80, 0xc2, 0, 0, 0x10]),
            MacAddress([0; 6]),
        ]),
    ]
}

fn any_tag() -> impl Strategy<Value = (u16, u16)> {
    (
        prop::sample::select(vec![0x8100, 0x8100, 0x88a8, 0x9100]),
        prop::sample::select(vec![0_u16, 1, 9, 10, 20, 30, 4095]),
        prop::sample::select(vec![0, 0xa000, 0x3000]),
    )
        .prop_map(|(tpid, vid, priority)| (tpid, vid | priority))
}

/// A frame with up to five tags; now and then one that ends too early.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let tags = prop_oneof![3 => 0..1_usize, 3 => 1..2_usize, 2 => 2..6_usize]
        .prop_flat_map(|count| prop::collection::vec(any_tag(), count));
    let ether_type = prop::sample::select(vec![0x0800_u16, 0x0806, 0x86dd, 0x88cc, 0x0040]);
    let bytes = prop_oneof![9 => Just(usize::MAX), 1 => 0..30_usize];
    (any_mac(), any_mac(), tags, ether_type, bytes).prop_map(
        |(destination, source, tags, ether_type, bytes)| {
            let mut frame = [destination.0, source.0].concat();
            for (tpid, tci) in tags {
                frame.extend(tpid.to_be_bytes());
                frame.extend(tci.to_be_bytes());
            }
            frame.extend(ether_type.to_be_bytes());
            frame.extend((0..40).map(|byte: u8| byte.wrapping_mul(7)));
            frame.truncate(bytes);
            frame
        },
    )
}

fn any_event() -> impl Strategy<Value = Event> {
    let port = 0..5_u16;
    prop_oneof![
        4 => (port.clone(), any_policy()).prop_map(|(port, policy)| Event::AddPort(port, policy)),
        1 => port.clone().prop_map(Event::RemovePort),
        1 => port.clone().prop_map(Event::FlushPort),
        2 => prop_oneof![0..2_000_u64, 0..12_000_u64].prop_map(Event::Wait),
        1 => Just(Event::Expire),
        24 => (0..2_usize, port, any_frame())
            .prop_map(|(worker, in_port, frame)| Event::Frame { worker, in_port, frame }),
    ]
}

fn retagged(edit: VlanEdit, frame: &[u8]) -> Vec<u8> {
    let rewrite = edit.rewrite(frame);
    [rewrite.prefix(), &frame[rewrite.skip()..]].concat()
}

fn edited(outcomes: &Outcomes, edit: HeaderEdit, frame: &[u8]) -> Vec<u8> {
    let list = match edit {
        HeaderEdit::Vlan(edit) => return retagged(edit, frame),
        HeaderEdit::List(list) => outcomes.edit_list(list).expect("a list of this batch"),
    };
    let mut buffer = frame.to_vec();
    buffer.resize(frame.len() + MAX_GROWTH_BYTES, 0);
    let mut result = EditedFrame {
        buffer: &mut buffer,
        header_bytes: frame.len(),
        frame_bytes: frame.len(),
        partial_checksum: None,
    };
    list.apply(&mut result).expect("edits that fit");
    let bytes = result.header_bytes;
    buffer.truncate(bytes);
    buffer
}

fn sent(pipeline: &impl Decide, verdict: Verdict, frame: &[u8]) -> Sent {
    let outcomes = pipeline.outcomes();
    match verdict {
        Verdict::Drop(reason) => Err(reason),
        Verdict::Output { port, edit } => Ok([(port.get(), edited(outcomes, edit, frame))].into()),
        Verdict::Flood(flood) => Ok(pipeline
            .flood_members(flood)
            .map(|(port, edit)| (port.get(), retagged(edit, frame)))
            .collect()),
        Verdict::Copies(copies) => Ok(outcomes
            .copies(copies)
            .iter()
            .map(|copy| match copy.target {
                Target::Port(port) => (port.get(), edited(outcomes, copy.edit, frame)),
                other => panic!("{other:?}"),
            })
            .collect()),
    }
}

fn explained(engine: &Engine, in_port: u16, frame: &[u8], now: Millis) -> Sent {
    let trace = engine
        .explain((port(in_port), frame), &[], &Numbers, now)
        .expect("nothing to try first");
    match trace.outcome {
        Outcome::Drop { reason, .. } => Err(reason),
        Outcome::Deliver { copies } => Ok(copies
            .into_iter()
            .map(|copy| {
                let bytes = (0..copy.header.len())
                    .step_by(2)
                    .map(|at| u8::from_str_radix(&copy.header[at..at + 2], 16).expect("hex"))
                    .collect();
                (copy.to.parse().expect("a port's number"), bytes)
            })
            .collect()),
    }
}

fn program() -> switch_core::engine::validate::ValidProgram {
    Program::from_json(builtin("l2").expect("it ships")).unwrap_or_else(|errors| panic!("{errors}"))
}

fn engine_config() -> EngineConfig {
    EngineConfig {
        mac_ageing: Millis(AGEING_MS),
        learn_rate: RateLimit::UNLIMITED,
        mac_table_capacity: 64,
        conntrack: switch_core::conntrack::ConntrackConfig {
            capacity: 64,
            ..Default::default()
        },
        ..EngineConfig::default()
    }
}

struct Both {
    switch: Arc<Switch>,
    engine: Arc<Engine>,
    explaining: Engine,
    policies: Policies,
}

impl Both {
    fn new() -> Self {
        let switch = Arc::new(Switch::new(SwitchConfig {
            mac_ageing: Millis(AGEING_MS),
            mac_table_capacity: 64,
            learn_rate: RateLimit::UNLIMITED,
            flow_rate: RateLimit::UNLIMITED,
            ..SwitchConfig::default()
        }));
        Self {
            explaining: Engine::beside(program(), engine_config(), &switch).expect("it runs"),
            engine: Arc::new(Engine::new(program(), engine_config()).expect("it runs")),
            policies: Policies::new(),
            switch,
        }
    }

    fn set(&mut self, id: u16, policy: Option<VlanPolicy>) {
        let before = self.policies.clone();
        let id = port(id);
        match policy {
            Some(policy) if !before.contains_key(&id) => {
                self.switch.add_port(id, policy.clone()).expect("it is new");
                self.engine.attach_port(id);
                self.policies.insert(id, policy);
            }
            None if self.policies.remove(&id).is_some() => {
                self.switch.remove_port(id).expect("it is there");
                self.engine.detach_port(id);
            }
            _ => return,
        }
        let updates = changes(&before, &self.policies);
        for engine in [&*self.engine, &self.explaining] {
            engine
                .write_derived(&updates, &Numbers, Millis(0))
                .expect("entries that fit");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_default_program_and_its_data_send_the_same(events in prop::collection::vec(any_event(), 1..150)) {
        let mut both = Both::new();
        let mut compiled = [0, 1].map(|_| Pipeline::new(Arc::clone(&both.switch)));
        let mut as_data = [0, 1].map(|_| EnginePipeline::new(Arc::clone(&both.engine)));
        let mut now = 1;
        for event in events {
            match event {
                Event::AddPort(id, policy) => both.set(id, Some(policy)),
                Event::RemovePort(id) => both.set(id, None),
                Event::FlushPort(id) => {
                    both.switch.flush_port(port(id));
                    both.engine.flush_port(port(id));
                }
                Event::Wait(ms) => now += ms,
                Event::Expire => {
                    both.switch.expire(Millis(now));
                    both.engine.expire(Millis(now), &Numbers);
                }
                Event::Frame { worker, in_port, frame } => {
                    let at = Millis(now);
                    let (compiled, as_data) = (&mut compiled[worker], &mut as_data[worker]);
                    compiled.begin_batch(at);
                    Decide::begin_batch(as_data, at);
                    let preview = both.switch.explain(port(in_port), &frame, at).verdict;
                    prop_assert_eq!(
                        explained(&both.explaining, in_port, &frame, at),
                        sent(compiled, preview, &frame),
                        "explained: {:02x?} from {}", frame, in_port
                    );
                    let info = FrameInfo {
                        header: &frame,
                        frame_bytes: frame.len() as u32,
                        wire_bytes: frame.len() as u32,
                        partial_checksum: None,
                    };
                    let wanted = compiled.decide(port(in_port), &info);
                    let found = as_data.decide(port(in_port), &info);
                    prop_assert_eq!(
                        sent(as_data, found, &frame),
                        sent(compiled, wanted, &frame),
                        "{:02x?} from {}", frame, in_port
                    );
                }
            }
        }
    }
}

#[test]
fn entries_that_follow_from_ports_are_listed_and_not_for_operators_to_change() {
    let mut both = Both::new();
    assert!(has_tables(both.engine.program().program()));
    let allowed = (100..=200).map(vlan).collect();
    both.set(
        3,
        Some(VlanPolicy::Trunk {
            allowed,
            native: None,
        }),
    );
    let listed = both
        .engine
        .entries("vlan_members", (None, 10), &Numbers)
        .expect("a table");
    assert_eq!(listed.len(), 1, "a range is one entry: {listed:?}");
    assert!(listed[0].constant);
    let deleted = both.engine.write(
        &[Update::Delete(switch_core::engine::control::EntryName {
            table: "vlan_members".to_owned(),
            key: listed[0].entry.key.clone(),
            priority: listed[0].entry.priority,
        })],
        &Numbers,
        Millis(0),
    );
    assert_eq!(
        deleted.map_err(|error| error.kind),
        Err(WriteErrorKind::Constant)
    );
    both.set(3, None);
    for table in ["ingress_port", "vlan_members"] {
        assert_eq!(both.engine.count(table).ok(), Some(0), "{table}");
    }
    assert!(both.engine.multicast_groups().is_empty());
}

#[test]
fn a_trunk_of_all_vlans_is_a_few_entries() {
    let mut both = Both::new();
    let native = Some(vlan(1));
    let allowed = switch_core::VlanSet::all();
    both.set(0, Some(VlanPolicy::Trunk { allowed, native }));
    assert_eq!(both.engine.count("vlan_members").ok(), Some(2));
    assert_eq!(both.engine.multicast_groups().len(), 4094);
}
