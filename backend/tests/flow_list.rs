//! How workers are asked for the flows that they remember: how often, how many at a time, and what becomes of who gives up.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod rig;

use guest_sim::frame::FrameBuilder;
use guest_sim::{GuestMemory, GuestMemoryLayout, NicOptions, QueuePair};
use ringswitch::datapath::flow_list::MAX_LISTINGS;
use ringswitch::datapath::{
    Datapath, FlowListError, Flows, Program, QueueIndex, VhostPort, WorkerOptions,
};
use std::sync::Arc;
use std::time::{Duration, Instant};
use switch_core::engine::control::PortNames;
use switch_core::{PLACES_PER_STEP, PortId, RateLimit, Switch, SwitchConfig, VlanPolicy};

const GUEST_TX: QueueIndex = QueueIndex(1);
/// While a worker has something to poll it asks epoll this often, and no step comes in between.
const BETWEEN_STEPS: Duration = Duration::from_micros(40);
const ALL: (Option<PortId>, usize) = (None, 1 << 20);

struct NoNames;

impl PortNames for NoNames {
    fn id(&self, _: &str) -> Option<PortId> {
        None
    }

    fn name(&self, _: PortId) -> Option<String> {
        None
    }
}

fn datapath(workers: usize, poll_us: u32) -> Arc<Datapath> {
    let switch = Arc::new(Switch::new(SwitchConfig {
        flow_rate: RateLimit::UNLIMITED,
        ..SwitchConfig::default()
    }));
    for port in 0..2 {
        let port = PortId::new(port).unwrap();
        switch.add_port(port, VlanPolicy::Transparent).unwrap();
    }
    let options = WorkerOptions {
        workers,
        cpus: Vec::new(),
        poll_us,
    };
    Datapath::start(&options, (switch, Program::L2), Arc::new(|_| {})).unwrap()
}

/// A guest that sends.
struct Sender {
    pair: QueuePair,
    _memory: GuestMemory,
    _port: Arc<VhostPort>,
}

impl Sender {
    fn new(datapath: &Datapath) -> Self {
        let options = NicOptions::bench();
        let memory = GuestMemory::new(&GuestMemoryLayout::one_region(64 << 20)).unwrap();
        let pair = QueuePair::new(0, &memory, &options, options.features).unwrap();
        let port = datapath.add_vhost_port(PortId::new(0).unwrap(), 1, None);
        let config = rig::config(pair.guest_tx.ring(), options.features);
        port.start_ring(GUEST_TX, &rig::map(&memory), config)
            .unwrap();
        port.enable_ring(GUEST_TX);
        Self {
            pair,
            _memory: memory,
            _port: port,
        }
    }

    /// A frame to each of so many stations, which nobody knows.
    fn send_to(&mut self, stations: u32) {
        let frame = |station: u32| {
            let [_, a, b, c] = station.to_be_bytes();
            let builder = FrameBuilder::udp4(18);
            builder.macs([2, 0, 0, 0, 0, 1], [2, 0, 9, a, b, c]).build()
        };
        let frames: Vec<_> = (0..stations).map(frame).collect();
        let guest_tx = &mut self.pair.guest_tx;
        guest_tx.send_all(&frames, Duration::from_secs(10)).unwrap();
        guest_tx.drain(Duration::from_secs(10)).unwrap();
    }
}

fn list(datapath: &Datapath, asked: (Option<PortId>, usize)) -> Flows {
    let lister = datapath.flows();
    let listing = lister.begin().unwrap();
    lister.list(&listing, asked, &NoNames).unwrap()
}

#[test]
fn a_worker_with_work_makes_a_step_now_and_then() {
    // So long that it does not sleep before the test is over.
    let datapath = datapath(1, 10_000_000);
    let mut sender = Sender::new(&datapath);
    sender.send_to(40_000);
    let flows = list(&datapath, ALL).flows.len();
    // Each has a place, whatever becomes of it. None is another port's, so that nothing but the steps takes time.
    let steps = flows / PLACES_PER_STEP;
    assert!(steps > 20, "{flows} flows");
    let asked = Instant::now();
    let of_another = list(&datapath, (PortId::new(1), 1));
    let took = asked.elapsed();
    assert_eq!(of_another, Flows::default());
    assert!(
        took >= BETWEEN_STEPS * steps as u32,
        "{steps} steps in {took:?}"
    );
}

#[test]
fn workers_without_work_answer_and_sleep_again() {
    let datapath = datapath(3, 50);
    let mut sender = Sender::new(&datapath);
    sender.send_to(600);
    let one = |limit| list(&datapath, (PortId::new(0), limit));
    let flows = one(1000);
    assert!(!flows.has_more && !flows.flows.is_empty());
    assert_eq!(list(&datapath, (PortId::new(1), 1000)), Flows::default());
    let few = one(7);
    assert!(few.has_more, "{few:?}");
    assert_eq!(few.flows.len(), 7);
    let stats = || datapath.worker_stats();
    let until = Instant::now() + Duration::from_secs(10);
    // Who does not sleep is awake all of the time between two looks; a ring without kicks is looked at every millisecond.
    const LOOK: Duration = Duration::from_millis(50);
    let slept = |awake_ns: u64| u128::from(awake_ns) < LOOK.as_nanos() / 4;
    let awake = loop {
        let before: u64 = stats().iter().map(|worker| worker.awake_ns).sum();
        std::thread::sleep(LOOK);
        let awake = stats().iter().map(|worker| worker.awake_ns).sum::<u64>() - before;
        if slept(awake) || Instant::now() > until {
            break awake;
        }
    };
    assert!(slept(awake), "awake for {awake} ns of {LOOK:?}");
}

#[test]
fn so_many_list_at_a_time_and_who_gives_up_makes_room() {
    let datapath = datapath(2, 50);
    let lister = datapath.flows();
    let mut under_way: Vec<_> = (0..MAX_LISTINGS).map(|_| lister.begin().unwrap()).collect();
    assert_eq!(lister.begin().unwrap_err(), FlowListError::Busy);
    let listing = under_way.pop().unwrap();
    listing.give_up();
    let listed = lister.list(&listing, ALL, &NoNames);
    assert_eq!(listed, Ok(Flows::default()));
    drop(listing);
    // Workers have let go of it, or do so at once.
    let until = Instant::now() + Duration::from_secs(10);
    while lister.begin().is_err() {
        assert!(Instant::now() < until, "its place is still taken");
        std::thread::yield_now();
    }
}

#[test]
fn nobody_waits_for_workers_that_have_ended() {
    let datapath = datapath(2, 50);
    let lister = datapath.flows();
    let listing = lister.begin().unwrap();
    datapath.stop();
    let asked = Instant::now();
    let refused = lister.list(&listing, ALL, &NoNames);
    assert_eq!(refused, Err(FlowListError::Stopping));
    assert!(asked.elapsed() < Duration::from_secs(5));
}
