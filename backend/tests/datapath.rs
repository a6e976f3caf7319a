//! Workers and rings as the control side handles them, without a front-end.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod rig;

use guest_sim::frame::FrameBuilder;
use guest_sim::{Features, GuestMemory, GuestMemoryLayout, NicOptions, QueuePair};
use ringswitch::datapath::{Datapath, Program, QueueIndex, WorkerOptions};
use ringswitch::ring::{EventSink, RingConfig};
use rustix::event::{EventfdFlags, eventfd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use switch_core::{PortId, Switch, SwitchConfig, VlanPolicy};

const GUEST_TX: QueueIndex = QueueIndex(1);

fn datapath() -> Arc<Datapath> {
    let switch = Arc::new(Switch::new(SwitchConfig::default()));
    for port in 0..2 {
        switch
            .add_port(PortId::new(port).unwrap(), VlanPolicy::Transparent)
            .unwrap();
    }
    let options = WorkerOptions {
        workers: 1,
        cpus: Vec::new(),
        poll_us: 50,
    };
    Datapath::start(&options, (switch, Program::L2), Arc::new(|_| {})).unwrap()
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

#[test]
fn a_silent_ring_without_kicks_is_served_also_while_the_worker_is_kept_busy_by_another() {
    let datapath = datapath();
    let options = NicOptions::bench();
    let start = |port: u16| {
        let memory = GuestMemory::new(&GuestMemoryLayout::one_region(64 << 20)).unwrap();
        let pair = QueuePair::new(0, &memory, &options, options.features).unwrap();
        let port = datapath.add_vhost_port(PortId::new(port).unwrap(), 1, None);
        let config = rig::config(pair.guest_tx.ring(), options.features);
        port.start_ring(GUEST_TX, &rig::map(&memory), config)
            .unwrap();
        port.enable_ring(GUEST_TX);
        (pair, memory, port)
    };
    let frame = FrameBuilder::udp4(100).build();
    let (mut busy, _busy_memory, _busy_port) = start(0);
    let (mut silent, _memory, _port) = start(1);
    let done = AtomicBool::new(false);
    let sleeps = || datapath.worker_stats()[0].sleeps;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                busy.guest_tx.reclaim().unwrap();
                while busy.guest_tx.ring().free_descriptors() > 0 {
                    busy.guest_tx.queue(&frame).unwrap();
                }
                busy.guest_tx.publish().unwrap();
            }
        });
        // A machine that is busy itself may put the worker to sleep now and then, which is no proof: once more.
        let deadline = Instant::now() + Duration::from_secs(20);
        let served_awake = loop {
            // Time is what is tested: many times the poll window.
            std::thread::sleep(Duration::from_millis(5));
            let before = sleeps();
            silent.guest_tx.queue(&frame).unwrap();
            silent.guest_tx.publish().unwrap();
            let asked = Instant::now();
            let served = loop {
                if silent.guest_tx.reclaim().unwrap() > 0 {
                    break true;
                }
                if asked.elapsed() > Duration::from_secs(10) {
                    break false;
                }
                std::thread::yield_now();
            };
            if !served || sleeps() == before || Instant::now() > deadline {
                break served;
            }
        };
        done.store(true, Ordering::Relaxed);
        assert!(served_awake, "nobody looked at the silent ring");
    });
}
