//! A learning switch as a plain map, driven with the same random events as the real one: ports that come and go, frames, time.
//!
//! What is compared is what a wire would show: which bytes leave by which ports, or why none do. Two pipelines share the switch,
//! so that each sees what the other learned, and every verdict is held against the uncached evaluation.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use proptest::prelude::*;
use switch_core::{
    DropReason, FieldSet, HeaderEdit, MacAddress, Millis, Pipeline, PortId, RateLimit, Switch,
    SwitchConfig, Verdict, VlanId, VlanPolicy,
};

const AGEING_MS: u64 = 9_000;
const REFRESH_MS: u64 = 1_000;

#[derive(Clone, Debug)]
struct Frame {
    destination: MacAddress,
    source: MacAddress,
    tags: Vec<(u16, u16)>,
}

impl Frame {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = [self.destination.0, self.source.0].concat();
        for (tpid, tci) in &self.tags {
            bytes.extend(tpid.to_be_bytes());
            bytes.extend(tci.to_be_bytes());
        }
        bytes.extend([0x08, 0x00, b'p', b'a', b'y']);
        bytes
    }

    fn with_tags(&self, tags: Vec<(u16, u16)>) -> Vec<u8> {
        Self {
            tags,
            ..self.clone()
        }
        .bytes()
    }
}

/// What leaves by which port.
type Sent = BTreeMap<u16, Vec<u8>>;

#[derive(Default)]
struct Model {
    ports: BTreeMap<u16, VlanPolicy>,
    /// VLAN (0: none) and address to port and time last noted.
    stations: HashMap<(u16, MacAddress), (u16, u64)>,
    now: u64,
}

impl Model {
    fn classify(&mut self, in_port: u16, frame: &Frame) -> Result<Sent, DropReason> {
        let policy = self.ports.get(&in_port).ok_or(DropReason::PortGone)?;
        if frame.destination.0[..5] == [0x01, 0x80, 0xc2, 0, 0] && frame.destination.0[5] < 16 {
            return Err(DropReason::BridgeReserved);
        }
        if frame.source.0[0] % 2 == 1 {
            return Err(DropReason::SourceMulticast);
        }
        if frame.source.0 == [0; 6] {
            return Err(DropReason::SourceZero);
        }
        let vlan = admit(policy, &frame.tags)?;
        self.learn(vlan, frame.source, in_port);

        let now = self.now;
        let known = self
            .stations
            .get(&(vlan, frame.destination))
            .filter(|(_, seen)| now - seen < AGEING_MS);
        match known {
            Some((port, _)) if *port == in_port => Err(DropReason::SamePort),
            Some((port, _)) => {
                let tags = leave(&self.ports[port], vlan, &frame.tags)
                    .ok_or(DropReason::InnerTagExposed)?;
                Ok([(*port, frame.with_tags(tags))].into())
            }
            None => {
                let members = self
                    .ports
                    .iter()
                    .filter(|&(port, policy)| *port != in_port && carries(policy, vlan));
                let sent: Sent = members
                    .filter_map(|(port, policy)| {
                        Some((*port, frame.with_tags(leave(policy, vlan, &frame.tags)?)))
                    })
                    .collect();
                if sent.is_empty() {
                    Err(DropReason::NoDestination)
                } else {
                    Ok(sent)
                }
            }
        }
    }

    fn learn(&mut self, vlan: u16, source: MacAddress, port: u16) {
        let now = self.now;
        let station = self.stations.entry((vlan, source)).or_insert((port, now));
        if station.0 != port || now - station.1 >= REFRESH_MS {
            *station = (port, now);
        }
    }

    fn forget(&mut self, port: u16) {
        self.stations.retain(|_, (behind, _)| *behind != port);
    }
}

fn admit(policy: &VlanPolicy, tags: &[(u16, u16)]) -> Result<u16, DropReason> {
    let vid = tags.first().map(|(_, tci)| tci & 0xfff);
    match policy {
        VlanPolicy::Transparent => Ok(0),
        _ if vid == Some(0) && tags.len() > 1 => Err(DropReason::InnerTagExposed),
        _ if vid == Some(4095) => Err(DropReason::VlanReserved),
        VlanPolicy::Access(vlan) if vid.unwrap_or(0) == 0 => Ok(vlan.get()),
        VlanPolicy::Access(_) => Err(DropReason::VlanTagOnAccessPort),
        VlanPolicy::Trunk { native, .. } if vid.unwrap_or(0) == 0 => {
            native.map(VlanId::get).ok_or(DropReason::NoNativeVlan)
        }
        VlanPolicy::Trunk { .. } => {
            let vid = vid.unwrap_or(0);
            if carries(policy, vid) {
                Ok(vid)
            } else {
                Err(DropReason::VlanNotAllowed)
            }
        }
    }
}

fn carries(policy: &VlanPolicy, vlan: u16) -> bool {
    match policy {
        VlanPolicy::Transparent => vlan == 0,
        VlanPolicy::Access(own) => own.get() == vlan,
        VlanPolicy::Trunk { allowed, native } => {
            allowed.iter().chain(*native).any(|of| of.get() == vlan)
        }
    }
}

/// The tags a frame leaves with; `None` where it may not.
fn leave(policy: &VlanPolicy, vlan: u16, tags: &[(u16, u16)]) -> Option<Vec<(u16, u16)>> {
    let mut tags = tags.to_vec();
    match policy {
        VlanPolicy::Transparent => {}
        VlanPolicy::Access(_) => drop(tags.drain(..tags.len().min(1))),
        VlanPolicy::Trunk { native, .. } if native.map(VlanId::get) == Some(vlan) => {
            if tags.len() > 1 {
                return None;
            }
            tags.clear();
        }
        VlanPolicy::Trunk { .. } => match tags.first_mut() {
            Some((_, tci)) => *tci = *tci & 0xf000 | vlan,
            None => tags.push((0x8100, vlan)),
        },
    }
    Some(tags)
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
        frame: Frame,
    },
}

fn vlan(number: u16) -> VlanId {
    VlanId::new(number).expect("a valid VLAN")
}

fn any_policy() -> impl Strategy<Value = VlanPolicy> {
    let numbers = prop::sample::subsequence(vec![10_u16, 20, 30], 0..=3);
    prop_oneof![
        Just(VlanPolicy::Transparent),
        prop::sample::select(vec![10, 20]).prop_map(|number| VlanPolicy::Access(vlan(number))),
        (numbers, prop::sample::select(vec![None, Some(1), Some(10)])).prop_map(
            |(allowed, native)| {
                VlanPolicy::Trunk {
                    allowed: allowed.into_iter().map(vlan).collect(),
                    native: native.map(vlan),
                }
            }
        ),
    ]
}

fn any_mac() -> impl Strategy<Value = MacAddress> {
    prop_oneof![
        8 => (0..5_u8).prop_map(|last| MacAddress([2, 0, 0, 0, 0, last])),
        1 => prop::sample::select(vec![
            MacAddress::BROADCAST,
            MacAddress([0x01, 0, 0x5e, 0, 0, 1]),
            MacAddress([0x01, 0x80, 0xc2, 0, 0, 0]),
            MacAddress([0; 6]),
        ]),
    ]
}

fn any_tag() -> impl Strategy<Value = (u16, u16)> {
    let vid = prop::sample::select(vec![0_u16, 1, 10, 20, 30, 4095]);
    (
        prop::sample::select(vec![0x8100, 0x8100, 0x88a8, 0x9100]),
        vid,
        prop::sample::select(vec![0, 0xa000, 0x3000]),
    )
        .prop_map(|(tpid, vid, priority)| (tpid, vid | priority))
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let tags = prop_oneof![2 => Just(0..1), 2 => Just(1..2), 1 => Just(2..4)]
        .prop_flat_map(|count| prop::collection::vec(any_tag(), count));
    (any_mac(), any_mac(), tags).prop_map(|(destination, source, tags)| Frame {
        destination,
        source,
        tags,
    })
}

fn any_event() -> impl Strategy<Value = Event> {
    let port = 0..5_u16;
    prop_oneof![
        3 => (port.clone(), any_policy()).prop_map(|(port, policy)| Event::AddPort(port, policy)),
        1 => port.clone().prop_map(Event::RemovePort),
        1 => port.clone().prop_map(Event::FlushPort),
        2 => prop_oneof![0..2_000_u64, 0..12_000_u64].prop_map(Event::Wait),
        1 => Just(Event::Expire),
        24 => (0..2_usize, port, any_frame())
            .prop_map(|(worker, in_port, frame)| Event::Frame { worker, in_port, frame }),
    ]
}

fn port(index: u16) -> PortId {
    PortId::new(index).expect("a small index")
}

fn sent(pipeline: &Pipeline, verdict: Verdict, frame: &[u8]) -> Result<Sent, DropReason> {
    let edited = |edit: switch_core::VlanEdit| {
        let rewrite = edit.rewrite(frame);
        [rewrite.prefix(), &frame[rewrite.skip()..]].concat()
    };
    match verdict {
        Verdict::Drop(reason) => Err(reason),
        Verdict::Output {
            port,
            edit: HeaderEdit::Vlan(edit),
        } => Ok([(port.get(), edited(edit))].into()),
        Verdict::Flood(flood) => Ok(pipeline
            .flood_members(flood)
            .map(|(port, edit)| (port.get(), edited(edit)))
            .collect()),
        Verdict::Output { .. } | Verdict::Copies(_) => {
            panic!("the built-in program does not do that")
        }
    }
}

fn switch() -> Arc<Switch> {
    Arc::new(Switch::new(SwitchConfig {
        mac_ageing: Millis(AGEING_MS),
        learn_rate: RateLimit::UNLIMITED,
        flow_rate: RateLimit::UNLIMITED,
        ..SwitchConfig::default()
    }))
}

/// The stations that the switch lists, as the model holds them.
fn listed(switch: &Switch, now: u64) -> BTreeMap<(u16, MacAddress), (u16, u64)> {
    let entries = switch.mac_entries(Millis(now)).into_iter();
    entries
        .map(|entry| {
            (
                (entry.vlan.map_or(0, VlanId::get), entry.mac),
                (entry.port.get(), now - entry.age.0),
            )
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_switch_sends_what_the_model_sends(events in prop::collection::vec(any_event(), 1..200)) {
        let switch = switch();
        let mut workers = [Pipeline::new(Arc::clone(&switch)), Pipeline::new(Arc::clone(&switch))];
        let mut model = Model { now: 1, ..Model::default() };
        for event in events {
            match event {
                Event::AddPort(id, policy) => {
                    let added = switch.add_port(port(id), policy.clone()).is_ok();
                    prop_assert_eq!(added, !model.ports.contains_key(&id));
                    model.ports.entry(id).or_insert(policy);
                }
                Event::RemovePort(id) => {
                    let removed = switch.remove_port(port(id)).is_ok();
                    prop_assert_eq!(removed, model.ports.remove(&id).is_some());
                    model.forget(id);
                }
                Event::FlushPort(id) => {
                    switch.flush_port(port(id));
                    model.forget(id);
                }
                Event::Wait(ms) => model.now += ms,
                Event::Expire => switch.expire(Millis(model.now)),
                Event::Frame { worker, in_port, frame } => {
                    let (bytes, now) = (frame.bytes(), Millis(model.now));
                    let pipeline = &mut workers[worker];
                    pipeline.begin_batch(now);
                    let verdict = pipeline.classify(port(in_port), &bytes);
                    let expected = model.classify(in_port, &frame);
                    prop_assert_eq!(sent(pipeline, verdict, &bytes), expected, "{:?} from {}", frame, in_port);
                    prop_assert_eq!(switch.explain(port(in_port), &bytes, now).verdict, verdict);
                }
            }
        }
        let now = model.now;
        let live = model.stations.into_iter().filter(|(_, (_, seen))| now - seen < AGEING_MS);
        prop_assert_eq!(listed(&switch, now), live.collect::<BTreeMap<_, _>>());
    }

    #[test]
    fn a_verdict_depends_on_nothing_it_did_not_look_at(
        policies in prop::collection::vec(any_policy(), 2..5),
        seen in prop::collection::vec((0..5_u16, any_frame()), 0..10),
        frame in any_frame(),
        other in any_frame(),
    ) {
        let switch = switch();
        for (id, policy) in policies.into_iter().enumerate() {
            switch.add_port(port(id as u16), policy).expect("a new port");
        }
        let mut pipeline = Pipeline::new(Arc::clone(&switch));
        for (in_port, frame) in seen {
            pipeline.classify(port(in_port), &frame.bytes());
        }
        let explanation = switch.explain(port(0), &frame.bytes(), Millis(0));
        let mut changed = frame;
        if !explanation.looked_at.contains(FieldSet::DESTINATION) {
            changed.destination = other.destination;
        }
        if !explanation.looked_at.contains(FieldSet::SOURCE) {
            changed.source = other.source;
        }
        if !explanation.looked_at.contains(FieldSet::TAG) && !explanation.looked_at.contains(FieldSet::STACKING) {
            changed.tags = other.tags;
        }
        prop_assert_eq!(switch.explain(port(0), &changed.bytes(), Millis(0)), explanation);
    }
}
