//! The life of a migration's log: it grows, is replaced, withheld, cancelled, lost with a connection; and the comparison of all memory, on
//! which `migration` rests, notices every kind of mark that is missing.

use std::time::Duration;

use guest_sim::migrate::{Migration, Shadow};
use guest_sim::nic::session::connect;
use guest_sim::ring::{Direction, Segment};
use guest_sim::{
    Ack, DescriptorTable, DeviceFault, DirtyLog, Error, GuestMemory, GuestMemoryLayout,
    MemoryUpdate, MessageOrder, Nic, NicOptions, Refill, RegionLayout, RingBase, RingState,
};

use crate::migration::{Case, Director, ORDERS, Scene, on, small_memory};
use crate::rig::{
    PACKED, Switch, WITHIN, arrival, exchange, guest_options, named, numbered, one_way, settle,
    until, verify_arrival,
};

const PAGE: u64 = 4096;

/// Memory that no log made before reaches.
const PLUGGED: RegionLayout = RegionLayout {
    guest_base: 8 << 30,
    size_bytes: 8 << 20,
    memfd: 1,
    mmap_offset_bytes: 0,
};

/// What a broken switch would leave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missing {
    Nothing,
    /// Used elements and the used index; the descriptors of a packed ring.
    Used,
    /// `avail_event`; the device event suppression structure of a packed ring.
    AvailEvent,
    /// One page of receive buffers in three.
    Buffers,
}

impl Missing {
    /// The pages of a NIC with rings of their own pages.
    fn pages(self, nic: &Nic) -> Vec<u64> {
        let block =
            |first: u64, bytes: u64| (first / PAGE..(first + bytes).div_ceil(PAGE)).collect();
        let used = |ring| nic.ring(ring).unwrap().memory().used();
        let size = u64::from(nic.ring(0).unwrap().size());
        match self {
            Self::Nothing => Vec::new(),
            Self::Used if PACKED => {
                let ring = nic.ring(0).unwrap().memory().descriptors();
                block(ring.guest_address(), ring.len() as u64)
            }
            // All but the page of `avail_event`, which begins where the elements end.
            Self::Used => block(used(0).guest_address(), 8 * size - PAGE),
            Self::AvailEvent if PACKED => vec![used(1).guest_address() / PAGE],
            Self::AvailEvent => vec![(used(1).guest_address() + 4 + 8 * size) / PAGE],
            Self::Buffers => {
                let rings = nic.ring(1).unwrap().memory().used();
                let first = (rings.guest_address() + rings.len() as u64).div_ceil(PAGE);
                let end = (16 << 20) / PAGE;
                (first..end).filter(|page| page % 3 == 0).collect()
            }
        }
    }
}

/// Exchanges frames while a reader leaves out those marks; what comes of it.
fn migrate_without(missing: Missing, order: MessageOrder) -> Result<(), Error> {
    let switch = Switch::of(&["vm1", "vm2"]);
    let options = NicOptions {
        guest_rx_ring_size: 1024,
        guest_tx_ring_size: 1024,
        ring_align: PAGE as usize,
        buffer_regions: vec![0],
        ..guest_options()
    };
    let mut nic = switch.guest_in(&small_memory(), "vm1", on(order, options));
    let mut peer = switch.guest("vm2", guest_options());
    exchange((1, &mut nic), (2, &mut peer));
    let pages = missing.pages(&nic);
    let ignored = pages.clone();
    let mut migration = Migration::begin(&mut nic.vmm()).unwrap();
    migration.ignore(move |page| ignored.contains(&page));
    for round in 0..3 {
        one_way(&numbered(round, 2, 1), &mut peer, &mut nic);
        one_way(&numbered(round, 1, 2), &mut nic, &mut peer);
        migration.round(&mut nic.vmm()).unwrap();
    }
    // The guest writes nothing more to the pages in question: its driver's own marks would hide what the switch's lack.
    for round in 0..90 {
        peer.send(&numbered(900 + round, 2, 1)).unwrap();
    }
    peer.pair(0).guest_tx.drain(WITHIN).unwrap();
    let event = |nic: &Nic| {
        let used = nic.ring(1).unwrap().memory().used();
        let at = if PACKED { 0 } else { 4 + 8 * 1024 };
        let mut word = [0; 4];
        let len = if PACKED { 4 } else { 2 };
        let address = used.guest_address() + at;
        nic.memory().read(address, &mut word[..len]).unwrap();
        word
    };
    let before = event(&nic);
    nic.send(&numbered(1, 1, 2)).unwrap();
    verify_arrival(&numbered(1, 1, 2), &mut peer);
    until("the switch to ask for a kick", || {
        (event(&nic) != before).then_some(())
    });
    let outcome = migration.finish(&mut nic.vmm());
    if let Err(Error::Device(DeviceFault::NotMarked { address, .. })) = outcome {
        let page = address / PAGE;
        assert!(pages.contains(&page), "{page:#x} is not what was left out");
    }
    switch.finish();
    outcome
}

#[test]
fn a_mark_that_is_missing_is_noticed_whatever_it_is_for() {
    for order in ORDERS {
        migrate_without(Missing::Nothing, order).unwrap();
        for missing in [Missing::Used, Missing::AvailEvent, Missing::Buffers] {
            let outcome = migrate_without(missing, order);
            assert!(
                matches!(outcome, Err(Error::Device(DeviceFault::NotMarked { .. }))),
                "without marks of {missing:?}: {outcome:?}"
            );
        }
    }
}

#[test]
fn a_buffer_that_crosses_pages_or_regions_is_marked_on_both_sides() {
    const BORDER: u64 = 8 << 20;
    let switch = Switch::of(&["vm1", "vm2"]);
    for order in ORDERS {
        let layout = GuestMemoryLayout::adjacent(&[BORDER, BORDER]);
        let memory = GuestMemory::new(&layout).unwrap();
        let options = NicOptions {
            refill: Refill::Manual,
            ..on(order, guest_options())
        };
        let mut nic = switch.guest_in(&memory, "vm1", options);
        let mut peer = switch.guest("vm2", guest_options());
        let mut migration = Migration::begin(&mut nic.vmm()).unwrap();
        let frame = numbered(800, 2, 1);
        let len = frame.bytes.len() as u32 + 12;
        let borders = [BORDER, BORDER - 16 * PAGE, BORDER + 20 * PAGE];
        for (border, before) in borders
            .into_iter()
            .flat_map(|border| [1, 11, 12, 13, 400, u64::from(len) - 1].map(|at| (border, at)))
        {
            let buffer = Segment {
                address: border - before,
                len,
                direction: Direction::DeviceWrites,
            };
            let ring = nic.pair(0).guest_rx.ring_mut();
            ring.add(&[buffer], DescriptorTable::Direct, 0).unwrap();
            ring.publish().unwrap();
            peer.send(&frame).unwrap();
            let ring = nic.pair(0).guest_rx.ring_mut();
            until("the frame", || ring.pop_used().unwrap());
            migration.round(&mut nic.vmm()).unwrap();
            for page in [(border - before) / PAGE, border / PAGE] {
                let mut pages = [[0; PAGE as usize]; 2];
                let there = migration.memory();
                there.read(page * PAGE, &mut pages[0]).unwrap();
                nic.memory().read(page * PAGE, &mut pages[1]).unwrap();
                assert!(pages[0] == pages[1], "{before} bytes before {border:#x}");
            }
        }
        migration.finish(&mut nic.vmm()).unwrap();
    }
    switch.finish();
}

#[test]
fn a_cancelled_migration_leaves_no_mark_behind_and_can_be_repeated() {
    for order in ORDERS {
        let mut scene = Scene::new(&Case::linux(order));
        for number in 0..4 {
            let at_the_end = order == MessageOrder::CloudHypervisor && number % 2 == 1;
            let log = scene.talk(|director| {
                let mut migration = Migration::begin(&mut director.vmm).unwrap();
                director.rounds(&mut migration, 4);
                if at_the_end {
                    director.pause_guest();
                    migration.finish(&mut director.vmm).unwrap();
                    director.vmm.enable_all(RingState::Enabled).unwrap();
                }
                let log = director.vmm.stop_logging().unwrap();
                director.vmm.session().get_features().unwrap();
                log.take().unwrap();
                if !at_the_end {
                    director.advance();
                }
                log
            });
            if at_the_end {
                scene.other.pardon();
                scene.talk(|director| director.advance());
            }
            let late = log.take().unwrap();
            assert!(late.is_empty(), "marked after the end: {late:?}");
        }
        let migration = migrate_away(&mut scene);
        scene.arrive(&migration);
        scene.talk(|director| director.advance());
        scene.finish();
    }
}

/// A whole migration under load.
fn migrate_away(scene: &mut Scene) -> Migration {
    scene.talk(|director| {
        let mut migration = Migration::begin(&mut director.vmm).unwrap();
        finish(director, &mut migration);
        migration
    })
}

fn finish(director: &mut Director<'_, '_>, migration: &mut Migration) {
    director.rounds(migration, 4);
    director.advance();
    director.rounds(migration, 1);
    director.pause_guest();
    migration.finish(&mut director.vmm).unwrap();
}

/// Talks between steps that need both guests' drivers to rest, and migrates away at the end.
fn interrupted(order: MessageOrder, mut step: impl FnMut(&mut Scene, &mut Migration)) {
    let mut scene = Scene::new(&Case::linux(order));
    let mut migration = scene.talk(|director| Migration::begin(&mut director.vmm).unwrap());
    for _ in 0..5 {
        scene.talk(|director| {
            director.rounds(&mut migration, 4);
            director.advance();
        });
        // What is sent to a ring that is stopped is lost.
        scene.other.pardon();
        step(&mut scene, &mut migration);
    }
    scene.talk(|director| finish(director, &mut migration));
    scene.arrive(&migration);
    scene.talk(|director| director.advance());
    scene.finish();
}

#[test]
fn a_guest_that_is_stopped_and_goes_on_while_it_migrates_misses_no_mark() {
    for order in ORDERS {
        interrupted(order, |scene, migration| {
            scene.nic.pause().unwrap();
            migration.round(&mut scene.nic.vmm()).unwrap();
            scene.nic.resume().unwrap();
        });
    }
}

#[test]
fn a_connection_lost_in_the_middle_of_a_migration_costs_no_mark() {
    interrupted(MessageOrder::Qemu, |scene, _| {
        scene.nic.session().raw().hang_up();
        until("the port to listen again", || {
            (scene.switch.show("vm1")["state"] == "listening").then_some(())
        });
        let stream = connect(&scene.switch.daemon.socket("vm1"), WITHIN).unwrap();
        scene.nic.reconnect(stream).unwrap();
    });
}

#[test]
fn a_switch_killed_in_the_middle_of_a_migration_goes_on_marking() {
    interrupted(MessageOrder::Qemu, |scene, _| {
        // Between writing and marking it may be killed too, but nobody could know then what was written.
        scene.settle();
        scene.switch.daemon.kill().unwrap();
        scene.switch.daemon.restart().unwrap();
        for (nic, port) in [(&mut scene.nic, "vm1"), (&mut scene.peer, "vm2")] {
            let stream = connect(&scene.switch.daemon.socket(port), WITHIN).unwrap();
            nic.reconnect(stream).unwrap();
            settle(nic);
        }
        scene.switch.await_ready();
    });
}

#[test]
fn memory_tables_and_plugged_memory_under_load_cost_no_mark() {
    for order in ORDERS {
        for how in [MemoryUpdate::WholeTable, MemoryUpdate::OneRegion] {
            named(&(order, how), || plug(order, how));
        }
    }
}

fn plug(order: MessageOrder, how: MemoryUpdate) {
    let mut scene = Scene::new(&Case::linux(order));
    let (mut migration, region) = scene.talk(|director| {
        let mut migration = Migration::begin(&mut director.vmm).unwrap();
        for _ in 0..6 {
            director.rounds(&mut migration, 1);
            let memory = director.vmm.memory().clone();
            let session = director.vmm.session();
            session.set_mem_table(&memory, Ack::Wanted).unwrap();
        }
        let log = director.vmm.log().unwrap().bytes();
        let region = migration.add_region(&mut director.vmm, PLUGGED, how);
        director.rounds(&mut migration, 2);
        assert!(director.vmm.log().unwrap().bytes() > log, "it did not grow");
        (migration, region.unwrap())
    });
    for pair in scene.nic.pairs() {
        pair.guest_rx.use_regions(&[region]);
        pair.guest_tx.use_regions(&[region]);
    }
    scene.talk(|director| {
        finish(director, &mut migration);
        migration
    });
    scene.switch.finish();
}

#[test]
fn a_driver_that_resets_while_it_migrates_misses_no_mark() {
    let switch = Switch::of(&["vm1", "vm2"]);
    let mut nic = switch.guest_in(&small_memory(), "vm1", guest_options());
    let mut peer = switch.guest("vm2", guest_options());
    let mut migration = Migration::begin(&mut nic.vmm()).unwrap();
    for _ in 0..5 {
        exchange((1, &mut nic), (2, &mut peer));
        migration.round(&mut nic.vmm()).unwrap();
        nic.reset().unwrap();
        nic.start().unwrap();
    }
    exchange((1, &mut nic), (2, &mut peer));
    migration.finish(&mut nic.vmm()).unwrap();
    switch.finish();
}

#[test]
fn rings_that_have_no_log_yet_write_nothing_until_they_have_it() {
    let switch = Switch::of(&["vm1", "vm2"]);
    let mut nic = switch.guest_in(&small_memory(), "vm1", guest_options());
    let mut peer = switch.guest("vm2", guest_options());
    exchange((1, &mut nic), (2, &mut peer));
    nic.start_logging().unwrap();
    for round in 0..10 {
        nic.pause().unwrap();
        for number in 0..20 {
            nic.pair(0).guest_tx.queue(&numbered(number, 1, 2)).unwrap();
        }
        nic.pair(0).guest_tx.publish().unwrap();
        nic.start_without_log(RingBase::Stopped).unwrap();
        settle(&mut nic);
        let held = Shadow::new(nic.memory()).unwrap();
        held.copy_all().unwrap();
        // The switch has dealt with these when it has given their buffers back.
        for number in 0..20 {
            peer.send(&numbered(number, 2, 1)).unwrap();
        }
        peer.pair(0).guest_tx.drain(WITHIN).unwrap();
        let nothing = peer.pair(0).guest_rx.receive(Duration::from_millis(5));
        assert_eq!(nothing.unwrap(), None, "round {round}");
        held.compare().unwrap();
        nic.vmm().set_log_base().unwrap();
        for number in 0..20 {
            verify_arrival(&numbered(number, 1, 2), &mut peer);
        }
        // A switch may keep what came meanwhile, or drop it.
        peer.send(&numbered(500, 2, 1)).unwrap();
        while arrival(&mut nic).bytes != numbered(500, 2, 1).bytes {}
        nic.pair(0).guest_tx.drain(WITHIN).unwrap();
        assert!(!nic.vmm().take_logged().unwrap().is_empty());
    }
    exchange((1, &mut nic), (2, &mut peer));
    switch.finish();
}

#[test]
fn a_log_replaced_again_and_again_under_load_loses_no_mark() {
    let mut scene = Scene::new(&Case::linux(MessageOrder::Qemu));
    let migration = scene.talk(|director| {
        let mut migration = Migration::begin(&mut director.vmm).unwrap();
        let least = director.vmm.log().unwrap().bytes();
        for round in 0..60u64 {
            director.dice.pause(Duration::from_millis(1));
            let log = DirtyLog::new(least + 8 * (round % 5)).unwrap();
            director.vmm.use_log(log).unwrap();
            if round % 4 == 0 {
                migration.round(&mut director.vmm).unwrap();
            }
        }
        finish(director, &mut migration);
        migration
    });
    scene.arrive(&migration);
    scene.talk(|director| director.advance());
    scene.finish();
}
