//! Migration, snapshot and restore of a VM on Cloud Hypervisor, replayed message by message against a running switch, under load.

use cloud_hypervisor_tests::{
    Failure, Outcome, VM1, VM2, WITHIN, arrival, exchange, frames, guest, memory, one_way,
    two_guests,
};
use guest_sim::bench::Daemon;
use guest_sim::bench::daemon::{PortArgument, binary};
use guest_sim::frame::{FrameBuilder, verify};
use guest_sim::migrate::{Dice, Load, Migration, Phase, Stage, TalkError, Talker, conversation};
use guest_sim::nic::session::connect;
use guest_sim::{
    Ack, Features, Frame, MemoryUpdate, Nic, NicOptions, RegionLayout, RingBase, RingState, Vmm,
};
use std::time::Duration;

/// Memory plugged in next to what [`memory`] has.
const PLUGGED: RegionLayout = RegionLayout {
    guest_base: 8 << 30,
    size_bytes: 16 << 20,
    memfd: 1,
    mmap_offset_bytes: 0,
};
/// Longest time between two rounds.
const BETWEEN_ROUNDS: Duration = Duration::from_millis(4);
/// What each stream has to carry to show that it goes on.
const GOES_ON: u32 = 30_000;

fn numbered(number: u16) -> Frame {
    FrameBuilder::udp4(64)
        .macs(VM1, VM2)
        .ports(7000 + number, 9)
        .build()
}

/// `vm1` talks with `vm2`, and nobody is on `vm3` yet.
struct Scene {
    vm1: Nic,
    vm2: Nic,
    talkers: (Talker, Talker),
    dice: Dice,
    daemon: Daemon,
}

impl Scene {
    fn new() -> Outcome<Self> {
        let ports = ["vm1", "vm2", "vm3"].map(PortArgument::named);
        let daemon = Daemon::start(&binary()?, &ports, &[])?;
        let mut dice = Dice::shaken();
        Ok(Self {
            vm1: guest(&daemon, "vm1", NicOptions::cloud_hypervisor())?,
            vm2: guest(&daemon, "vm2", NicOptions::cloud_hypervisor())?,
            talkers: conversation((VM1, 1), (VM2, 1), &Load::offloaded(), &mut dice),
            dice,
            daemon,
        })
    }

    /// Both talk while `act` sends messages for `vm1`, and until every stream has carried more.
    fn talk<T>(&mut self, act: impl FnOnce(&mut Vmm<'_>, &mut Dice) -> Outcome<T>) -> Outcome<T> {
        let stage = Stage::default();
        let progress = self.talkers.0.progress();
        let (mut vmm, pairs) = self.vm1.halves();
        let (one, other) = (&mut self.talkers.0, &mut self.talkers.1);
        let peer = self.vm2.pairs();
        std::thread::scope(|scope| {
            let threads = [
                scope.spawn(|| one.talk(pairs, &stage)),
                scope.spawn(|| other.talk(peer, &stage)),
            ];
            let outcome = act(&mut vmm, &mut self.dice);
            let goes_on = progress.advance(GOES_ON, WITHIN);
            stage.set(Phase::Stop);
            for thread in threads {
                match thread.join() {
                    Ok(talked) => talked.map_err(talk_failure)?,
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            match goes_on {
                true => outcome,
                false => Err(Failure("the guests' streams are stuck".into())),
            }
        })
    }

    fn begin(&mut self) -> Outcome<Migration> {
        self.talk(|vmm, _| Ok(Migration::begin(vmm)?))
    }

    fn rounds(&mut self, migration: &mut Migration, count: usize) -> Outcome {
        self.talk(|vmm, dice| {
            for _ in 0..count {
                dice.pause(BETWEEN_ROUNDS);
                migration.round(vmm)?;
            }
            Ok(())
        })
    }

    /// `vm1` is restored at a port from memory with the same bytes: rings are enabled before the VM goes on.
    fn arrive(&mut self, migration: &Migration, port: &str) -> Outcome {
        self.talkers.1.pardon();
        let stream = connect(&self.daemon.socket(port), WITHIN)?;
        self.vm1.arrive(migration.memory(), stream)?;
        self.talk(|_, _| Ok(()))
    }
}

fn talk_failure(error: TalkError) -> Failure {
    Failure(error.to_string())
}

#[test]
fn a_vm_migrates_under_load_with_a_new_log_each_round() -> Outcome {
    let mut scene = Scene::new()?;
    for port in ["vm3", "vm1", "vm3"] {
        let mut migration = scene.begin()?;
        scene.rounds(&mut migration, 30)?;
        migration.finish(&mut scene.vm1.vmm())?;
        scene.arrive(&migration, port)?;
    }
    Ok(())
}

#[test]
fn a_migration_that_failed_leaves_the_vm_running_unlogged_and_is_repeated() -> Outcome {
    let mut scene = Scene::new()?;
    for round in 0..4 {
        let mut migration = scene.begin()?;
        scene.rounds(&mut migration, 5)?;
        let mut vmm = scene.vm1.vmm();
        if round % 2 == 0 {
            // It failed when the VM was paused already: its peer's frames are lost meanwhile.
            migration.finish(&mut vmm)?;
            vmm.enable_all(RingState::Enabled)?;
            scene.talkers.1.pardon();
        }
        let log = scene.vm1.vmm().stop_logging()?;
        log.take()?;
        scene.talk(|_, _| Ok(()))?;
        let late = log.take()?;
        assert!(late.is_empty(), "marked after the end: {late:?}");
    }
    let mut migration = scene.begin()?;
    scene.rounds(&mut migration, 5)?;
    migration.finish(&mut scene.vm1.vmm())?;
    scene.arrive(&migration, "vm3")
}

#[test]
fn memory_plugged_in_while_the_vm_migrates_is_marked_too() -> Outcome {
    for how in [MemoryUpdate::WholeTable, MemoryUpdate::OneRegion] {
        let mut scene = Scene::new()?;
        let mut migration = scene.begin()?;
        scene.rounds(&mut migration, 5)?;
        let region = scene.talk(|vmm, _| Ok(migration.add_region(vmm, PLUGGED, how)?))?;
        // The log that reaches it comes with the next round.
        scene.rounds(&mut migration, 1)?;
        for pair in scene.vm1.pairs() {
            pair.guest_rx.use_regions(&[region]);
            pair.guest_tx.use_regions(&[region]);
        }
        scene.rounds(&mut migration, 10)?;
        migration.finish(&mut scene.vm1.vmm())?;
    }
    Ok(())
}

/// Cloud Hypervisor v53 activates a driver that was reset with SET_FEATURES without LOG_ALL, also while it migrates, and goes on sending
/// logs, which have to be taken.
#[test]
fn a_driver_that_resets_while_the_vm_migrates_gets_its_rings_back() -> Outcome {
    let (mut vm1, mut vm2, _daemon) = two_guests()?;
    vm1.start_logging()?;
    for _ in 0..3 {
        exchange(&mut vm1, &mut vm2)?;
        vm1.vmm().take_logged()?;
        vm1.reset()?;
        vm1.start()?;
        vm1.vmm().take_logged()?;
        exchange(&mut vm1, &mut vm2)?;
        vm1.vmm().take_logged()?;
    }
    vm1.vmm().stop_logging()?;
    exchange(&mut vm1, &mut vm2)
}

#[test]
fn a_vm_that_migrates_before_its_driver_is_ready_acks_logging_alone() -> Outcome {
    let (vm1, mut vm2, daemon) = two_guests()?;
    drop(vm1);
    let stream = connect(&daemon.socket("vm1"), WITHIN)?;
    let mut vm1 = Nic::introduce(&memory()?, NicOptions::cloud_hypervisor(), stream)?;
    let mut vmm = vm1.vmm();
    vmm.set_log_base()?;
    vmm.session().set_features(Features::LOG_ALL, Ack::Wanted)?;
    for _ in 0..3 {
        assert!(vmm.take_logged()?.is_empty());
    }
    // The migration failed, or the driver comes while it goes on.
    vmm.session().set_features(Features::NONE, Ack::Wanted)?;
    vm1.start()?;
    exchange(&mut vm1, &mut vm2)
}

#[test]
fn a_switch_killed_while_a_vm_migrates_is_reconnected_to_and_logged_to_again() -> Outcome {
    let (mut vm1, mut vm2, mut daemon) = two_guests()?;
    for _ in 0..2 {
        vm1.start_logging()?;
        exchange(&mut vm1, &mut vm2)?;
        vm1.vmm().take_logged()?;
        daemon.kill()?;
        daemon.restart()?;
        vm2.reconnect(connect(&daemon.socket("vm2"), WITHIN)?)?;
        vm1.reconnect(connect(&daemon.socket("vm1"), WITHIN)?)?;
        exchange(&mut vm1, &mut vm2)?;
    }
    let mut migration = Migration::begin(&mut vm1.vmm())?;
    exchange(&mut vm1, &mut vm2)?;
    migration.round(&mut vm1.vmm())?;
    exchange(&mut vm1, &mut vm2)?;
    Ok(migration.finish(&mut vm1.vmm())?)
}

#[test]
fn a_snapshot_is_restored_with_what_was_in_its_rings() -> Outcome {
    let (mut vm1, mut vm2, daemon) = two_guests()?;
    for round in 0..5 {
        exchange(&mut vm1, &mut vm2)?;
        // Received and not looked at, transmitted and perhaps not taken.
        for frame in frames(VM2, VM1, round) {
            vm2.send(&frame)?;
        }
        vm2.pair(0).guest_tx.drain(WITHIN)?;
        vm1.pause()?;
        for number in 0..10 {
            vm1.send(&numbered(number))?;
        }
        let saved = guest_sim::migrate::Shadow::new(vm1.memory())?;
        saved.copy_all()?;
        // The VM ends; a new one is made from the file, on the same port.
        vm1.session().raw().hang_up();
        let stream = connect(&daemon.socket("vm1"), WITHIN)?;
        vm1.arrive_from(saved.copy(), stream, RingBase::AvailIndex)?;
        for frame in frames(VM2, VM1, round) {
            verify::same(&frame, &arrival(&mut vm1)?)?;
        }
        for number in 0..10 {
            verify::same(&numbered(number), &arrival(&mut vm2)?)?;
        }
        one_way(&numbered(100), &mut vm1, &mut vm2)?;
    }
    exchange(&mut vm1, &mut vm2)
}

/// Local migration passes memory itself on, and logs nothing: the source only pauses and closes.
#[test]
fn a_local_migration_pauses_closes_and_starts_elsewhere() -> Outcome {
    let mut scene = Scene::new()?;
    for port in ["vm3", "vm1", "vm3", "vm1"] {
        scene.talk(|_, _| Ok(()))?;
        scene.vm1.pause()?;
        scene.talkers.1.pardon();
        scene.vm1.session().raw().hang_up();
        let stream = connect(&scene.daemon.socket(port), WITHIN)?;
        scene.vm1.reconnect_from(stream, RingBase::AvailIndex)?;
        scene.talk(|_, _| Ok(()))?;
    }
    Ok(())
}
