//! Workers and rings as the control side handles them, without a front-end.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod rig;

use guest_sim::{Features, GuestMemory, GuestMemoryLayout, NicOptions, QueuePair};
use ringswitch::datapath::{Datapath, QueueIndex, WorkerOptions};
use ringswitch::ring::{EventSink, RingConfig};
use rustix::event::{EventfdFlags, eventfd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use switch_core::{PortId, Switch, SwitchConfig, VlanPolicy};

const GUEST_TX: QueueIndex = QueueIndex(1);

fn datapath() -> Arc<Datapath> {
    let switch = Arc::new(Switch::new(SwitchConfig::default()));
    switch
        .add_port(PortId::new(0).unwrap(), VlanPolicy::Transparent)
        .unwrap();
    let options = WorkerOptions {
        workers: 1,
        cpus: Vec::new(),
        poll_us: 50,
    };
    Datapath::start(&options, switch, Arc::new(|_| {})).unwrap()
}

#[test]
fn a_ring_that_is_started_notifies_its_driver_once() {
    for format in rig::FORMATS {
        notifies_once(format);
    }
}

fn notifies_once(format: Features) {
    let datapath = datapath();
    let port = datapath.add_vhost_port(PortId::new(0).unwrap(), 1, None);
    let options = NicOptions {
        features: NicOptions::bench().features | format,
        ..NicOptions::bench()
    };
    let memory = GuestMemory::new(&GuestMemoryLayout::one_region(64 << 20)).unwrap();
    let pair = QueuePair::new(0, &memory, &options, options.features).unwrap();
    let call = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
    let config = RingConfig {
        call: Some(Arc::new(EventSink::new(call.try_clone().unwrap()).unwrap())),
        ..rig::config(pair.guest_tx.ring(), options.features)
    };
    port.start_ring(GUEST_TX, &rig::map(&memory), config)
        .unwrap();
    let mut count = [0; 8];
    rustix::io::read(&call, &mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), 1);
}

#[test]
fn a_ring_that_is_enabled_before_it_runs_wakes_nobody() {
    let datapath = datapath();
    let port = datapath.add_vhost_port(PortId::new(0).unwrap(), 1, None);
    port.enable_ring(GUEST_TX);
    let sleeps = || datapath.worker_stats()[0].sleeps;
    // The worker has heard of it once it went to sleep again.
    let deadline = Instant::now() + Duration::from_secs(10);
    while sleeps() < 2 {
        assert!(Instant::now() < deadline, "the worker does not sleep");
        std::thread::yield_now();
    }
    let before = sleeps();
    // Time is what is tested: a worker that polled now and then would wake some hundred times meanwhile.
    std::thread::sleep(Duration::from_millis(300));
    assert!(sleeps() <= before + 1, "woke {} times", sleeps() - before);
}
