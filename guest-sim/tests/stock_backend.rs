//! guest-sim against a stock `vhost-user-backend` daemon, so that this driver and Ringswitch's device do not share one misunderstanding.
//!
//! That daemon refuses SET_VRING_ENABLE before SET_FEATURES, so only Cloud Hypervisor's message order can be used.

// What a test does outside its own function may end it just as well.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

mod echo_device;
mod exchange;

use echo_device::EchoDaemon;
use exchange::{WITHIN, exchange};
use guest_sim::bench::{Bounce, Sink, Source};
use guest_sim::frame::{FrameBuilder, verify};
use guest_sim::migrate::{Dice, Load, Migration, Phase, Stage, Talker};
use guest_sim::nic::session::connect;
use guest_sim::{
    ChainLayout, DescriptorTable, Features, GuestMemory, GuestMemoryLayout, MessageOrder, Nic,
    NicOptions, Patience, ProtocolFeatures, Refill, RingBase, RingState, Waiting,
};

fn options(features: Features) -> NicOptions {
    NicOptions {
        features,
        ..NicOptions::cloud_hypervisor()
    }
}

fn run(name: &str, options: NicOptions) {
    let daemon = EchoDaemon::start(options.queue_pairs.into(), options.features | Features::MQ);
    let memory = GuestMemory::new(&GuestMemoryLayout::one_region(64 << 20)).unwrap();
    let mut nic = Nic::attach(&memory, options, &daemon.socket())
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    for pair in 0..nic.pairs().len() {
        exchange(name, &mut nic, pair);
    }
    drop(nic);
}

#[test]
fn every_combination_of_ring_features_carries_frames() {
    let rings = [
        Features::INDIRECT_DESC,
        Features::EVENT_IDX,
        Features::IN_ORDER,
        Features::MRG_RXBUF,
    ];
    for set in 0..1 << rings.len() {
        let mut features = Features::VERSION_1 | Features::OFFLOADS;
        for (bit, feature) in rings.iter().enumerate() {
            if set >> bit & 1 == 1 {
                features = features | *feature;
            }
        }
        run(&features.to_string(), options(features));
    }
}

#[test]
fn every_descriptor_layout_carries_frames() {
    let layouts = [
        ChainLayout::HeaderAlone,
        ChainLayout::Single,
        ChainLayout::Cut(vec![5, 7]),
        ChainLayout::Cut(vec![20, 1, 1]),
        ChainLayout::Every(301),
        ChainLayout::Pieces(5),
    ];
    for layout in layouts {
        for table in [
            DescriptorTable::Direct,
            DescriptorTable::Indirect,
            DescriptorTable::IndirectWhenMany,
        ] {
            let options = NicOptions {
                guest_tx_layout: layout.clone(),
                guest_tx_table: table,
                guest_rx_layout: Some(layout.clone()),
                guest_rx_table: table,
                ..options(Features::LINUX | Features::IN_ORDER)
            };
            run(&format!("{layout:?} {table:?}"), options);
        }
    }
}

#[test]
fn every_ring_size_carries_frames_around_its_end() {
    for size in [2, 4, 256, 32768] {
        let options = NicOptions {
            guest_rx_ring_size: size,
            guest_tx_ring_size: size,
            guest_rx_buffers: 64,
            guest_rx_buffer_bytes: Some(65_562),
            ..options(Features::LINUX)
        };
        run(&format!("size {size}"), options);
    }
}

#[test]
fn without_mergeable_buffers_large_ones_take_whole_frames() {
    for layout in [
        None,
        Some(ChainLayout::HeaderAlone),
        Some(ChainLayout::Every(4096)),
    ] {
        let features = Features::VERSION_1 | Features::OFFLOADS | Features::INDIRECT_DESC;
        let table = DescriptorTable::IndirectWhenMany;
        let options = NicOptions {
            guest_rx_layout: layout,
            guest_rx_table: table,
            ..options(features)
        };
        run("big buffers", options);
    }
}

#[test]
fn a_legacy_header_of_ten_bytes_works() {
    run("legacy", options(Features::OFFLOADS));
    run(
        "legacy with mergeable buffers",
        options(Features::OFFLOADS | Features::MRG_RXBUF),
    );
}

#[test]
fn every_queue_pair_carries_its_own_frames() {
    run(
        "4 pairs",
        NicOptions {
            queue_pairs: 4,
            ..options(Features::LINUX)
        },
    );
}

#[test]
fn a_polling_driver_needs_no_call() {
    let options = NicOptions {
        waiting: Waiting::BusyPoll,
        ..options(Features::LINUX)
    };
    let daemon = EchoDaemon::start(1, options.features);
    let memory = GuestMemory::new(&GuestMemoryLayout::one_region(64 << 20)).unwrap();
    let mut nic = Nic::attach(&memory, options, &daemon.socket()).unwrap();
    exchange("polling", &mut nic, 0);
    assert!(
        !nic.pair(0).guest_rx.ring_mut().take_call(),
        "the device called a driver that polls"
    );
}

#[test]
fn memory_of_several_regions_carries_frames() {
    let layouts = [
        GuestMemoryLayout::around_pci_hole(16 << 20, 16 << 20),
        GuestMemoryLayout::separate_memfds(&[16 << 20, 4 << 20, 8 << 20]),
        GuestMemoryLayout::adjacent(&[16 << 20, 4 << 20]),
    ];
    for layout in layouts {
        for protocol in [
            ProtocolFeatures::CLOUD_HYPERVISOR,
            ProtocolFeatures::from_bits(1),
        ] {
            let options = NicOptions {
                protocol,
                ..options(Features::LINUX)
            };
            let daemon = EchoDaemon::start(1, options.features);
            let memory = GuestMemory::new(&layout).unwrap();
            let mut nic = Nic::attach(&memory, options, &daemon.socket()).unwrap();
            exchange(&format!("{layout:?}"), &mut nic, 0);
        }
    }
}

#[test]
fn frames_sent_in_a_burst_larger_than_the_ring_all_come_back() {
    let daemon = EchoDaemon::start(1, Features::LINUX);
    let memory = GuestMemory::new(&GuestMemoryLayout::one_region(64 << 20)).unwrap();
    let options = NicOptions {
        guest_tx_ring_size: 16,
        ..options(Features::LINUX)
    };
    let mut nic = Nic::attach(&memory, options, &daemon.socket()).unwrap();
    let frames: Vec<_> = (0..500)
        .map(|n| FrameBuilder::udp4(100).ports(1000 + n, 9).build())
        .collect();
    let pair = nic.pair(0);
    std::thread::scope(|scope| {
        let (guest_tx, guest_rx) = (&mut pair.guest_tx, &mut pair.guest_rx);
        scope.spawn(|| guest_tx.send_all(&frames, WITHIN).unwrap());
        let arrived = guest_rx.receive_count(frames.len(), WITHIN).unwrap();
        for (sent, arrived) in frames.iter().zip(&arrived) {
            verify::same(sent, arrived).unwrap();
        }
    });
}

#[test]
fn a_paused_vm_gets_its_frames_after_resuming() {
    let daemon = EchoDaemon::start(1, Features::LINUX);
    let memory = GuestMemory::new(&GuestMemoryLayout::one_region(64 << 20)).unwrap();
    let mut nic = Nic::attach(&memory, options(Features::LINUX), &daemon.socket()).unwrap();
    exchange("before", &mut nic, 0);
    nic.pause().unwrap();
    nic.resume().unwrap();
    exchange("after", &mut nic, 0);
    nic.enable_pair(0, RingState::Enabled).unwrap();
}

#[test]
fn a_reset_driver_starts_again_with_empty_rings() {
    let daemon = EchoDaemon::start(1, Features::LINUX);
    let memory = GuestMemory::new(&GuestMemoryLayout::one_region(64 << 20)).unwrap();
    let mut nic = Nic::attach(&memory, options(Features::LINUX), &daemon.socket()).unwrap();
    exchange("before", &mut nic, 0);
    nic.reset().unwrap();
    assert!(
        nic.stopped_at().iter().all(|&base| base == 0),
        "a reset ring starts at 0"
    );
    nic.start_from(RingBase::Stopped).unwrap();
    exchange("after", &mut nic, 0);
}

#[test]
fn what_is_not_offered_is_said() {
    let daemon = EchoDaemon::start(1, Features::VERSION_1);
    let memory = GuestMemory::new(&GuestMemoryLayout::one_region(1 << 20)).unwrap();
    let refused = Nic::attach(&memory, options(Features::LINUX), &daemon.socket());
    assert!(
        matches!(refused, Err(guest_sim::Error::NotOffered { .. })),
        "{refused:?}"
    );
}

#[test]
fn a_bouncing_guest_keeps_its_frames_going() {
    for (bytes, buffer_bytes) in [(64, 2048), (9000, 2048), (60_000, 4096)] {
        let features = Features::LINUX;
        let daemon = EchoDaemon::start(1, features);
        let memory = GuestMemory::new(&GuestMemoryLayout::one_region(64 << 20)).unwrap();
        let options = NicOptions {
            refill: Refill::Manual,
            order: MessageOrder::CloudHypervisor,
            ..NicOptions::bench()
        };
        let mut nic = Nic::attach(&memory, options, &daemon.socket()).unwrap();
        let mut bounce = Bounce::new(&memory, &mut nic, buffer_bytes, bytes, 8).unwrap();
        let frame = FrameBuilder::tcp4(0)
            .segment(1448)
            .frame_bytes(bytes)
            .build();
        bounce.inject(&mut nic, &frame, 8).unwrap();
        let patience = Patience::of(WITHIN);
        while bounce.counts().frames < 1000 {
            bounce.turn(&mut nic).unwrap();
            assert!(!patience.is_over(), "{bytes}: {:?}", bounce.counts());
        }
        assert_eq!(bounce.counts().bytes, bounce.counts().frames * bytes as u64);
    }
}

#[test]
fn a_source_sends_its_frames_in_turn_and_a_sink_counts_them_by_sender() {
    let daemon = EchoDaemon::start(1, Features::LINUX);
    let memory = GuestMemory::new(&GuestMemoryLayout::one_region(64 << 20)).unwrap();
    let options = NicOptions {
        refill: Refill::Manual,
        waiting: Waiting::BusyPoll,
        canaries: guest_sim::Canaries::Off,
        ..options(Features::LINUX)
    };
    let mut nic = Nic::attach(&memory, options, &daemon.socket()).unwrap();
    let frame = |bytes, sender| {
        let source = [2, 0, 0, 0, 0, sender];
        let builder = FrameBuilder::udp4(0).frame_bytes(bytes);
        builder.macs(source, [2, 0, 0, 0, 0, 9]).build()
    };
    // The second takes several buffers.
    let frames = [frame(100, 1), frame(5000, 2)];
    let mut source = Source::new(&memory, &mut nic, &frames).unwrap();
    let mut sink = Sink::new(&memory, &mut nic, 2048).unwrap();
    // Far more than the rings hold: buffers come back and are used again.
    const FRAMES: u64 = 2000;
    let patience = Patience::of(WITHIN);
    let mut sent = 0;
    while sink.received().frames < FRAMES || source.served().frames < FRAMES {
        let left = (FRAMES - sent).min(16);
        sent += source.turn(&mut nic, left as usize).unwrap() as u64;
        sink.turn(&mut nic, 16).unwrap();
        assert!(!patience.is_over(), "{sent} sent, {:?}", sink.received());
        std::thread::yield_now();
    }
    assert_eq!(
        (sink.received().frames, source.served().frames),
        (FRAMES, FRAMES)
    );
    let half = FRAMES / 2;
    for (sender, bytes) in [(1, 100), (2, 5000)] {
        let counts = sink.received_from(sender);
        assert_eq!(
            (counts.frames, counts.bytes),
            (half, half * bytes),
            "{sender}"
        );
    }
    assert_eq!(source.served().bytes, half * 5100);
    nic.shut_down().unwrap();
}

/// Migrates a guest under load from one stock daemon to another, in so many rounds.
fn migrate(options: NicOptions, load: &Load, rounds: usize) {
    let mut dice = Dice::shaken();
    let offered = options.features | Features::MQ | Features::LOG_ALL;
    let [source, destination] =
        [1, 2].map(|_| EchoDaemon::start(options.queue_pairs.into(), offered));
    let layout = GuestMemoryLayout::around_pci_hole(16 << 20, 16 << 20);
    let memory = GuestMemory::new(&layout).unwrap();
    let pairs = usize::from(options.queue_pairs);
    let mut nic = Nic::attach(&memory, options, &source.socket()).unwrap();
    let mut talker = Talker::alone([0x52, 0x54, 0, 0, 0, 1], pairs, load, &mut dice);
    let progress = talker.progress();
    let talk = |nic: &mut Nic, talker: &mut Talker, act: &mut dyn FnMut(guest_sim::Vmm<'_>)| {
        let stage = Stage::default();
        let (vmm, pairs) = nic.halves();
        std::thread::scope(|scope| {
            let driver = scope.spawn(|| talker.talk(pairs, &stage));
            act(vmm);
            stage.set(Phase::Stop);
            driver.join().unwrap().unwrap();
        });
    };
    let mut migration = None;
    talk(&mut nic, &mut talker, &mut |mut vmm| {
        let under_way = migration.insert(Migration::begin(&mut vmm).unwrap());
        for _ in 0..rounds {
            dice.pause(Duration::from_millis(5));
            under_way.round(&mut vmm).unwrap();
        }
    });
    let mut migration = migration.unwrap();
    migration.finish(&mut nic.vmm()).unwrap();
    assert!(migration.rounds().iter().any(|round| round.device > 0));
    let stream = connect(&destination.socket(), WITHIN).unwrap();
    // Cloud Hypervisor's own base, the available index, is taken at its word by this daemon: it would never use what is posted.
    nic.arrive_from(migration.memory(), stream, RingBase::UsedIndex)
        .unwrap();
    talk(&mut nic, &mut talker, &mut |_| {
        assert!(
            progress.advance(50_000, WITHIN),
            "{:?}",
            progress.received()
        );
    });
    assert_eq!(talker.lost_frames(), 0);
    drop(nic);
}

#[test]
fn a_guest_migrates_under_load_with_every_page_marked() {
    migrate(
        options(Features::LINUX | Features::IN_ORDER),
        &Load::offloaded(),
        30,
    );
    let two = NicOptions {
        queue_pairs: 2,
        guest_tx_table: DescriptorTable::Indirect,
        ..options(Features::LINUX)
    };
    migrate(two, &Load::offloaded(), 30);
    let plain = Features::VERSION_1 | Features::EVENT_IDX;
    migrate(options(plain), &Load::plain(), 30);
}
