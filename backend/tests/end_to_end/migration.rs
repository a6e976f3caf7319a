//! A guest migrates from one port to another while it and its peer talk as fast as they may: every page the switch wrote was marked, and
//! nothing of what was in the rings is lost, repeated or changed.
//!
//! `Scene` is also what `migration_log` is about: the life of the log itself.

use std::thread::ScopedJoinHandle;
use std::time::Duration;

use guest_sim::bench::daemon::PortArgument;
use guest_sim::migrate::{
    Dice, Load, Migration, Phase, Progress, Stage, TalkError, Talker, conversation,
};
use guest_sim::nic::session::connect;
use guest_sim::{
    ChainLayout, DescriptorTable, Features, GuestMemory, GuestMemoryLayout, MessageOrder, Nic,
    NicOptions, ProtocolFeatures, Vmm,
};

use crate::rig::{PACKED, Switch, WITHIN, guest_options, mac, named, settle, verify_quiet};

/// Longest time between two rounds.
const BETWEEN_ROUNDS: Duration = Duration::from_millis(4);
/// What each stream has to carry to show that it goes on.
const GOES_ON: u32 = 30_000;

/// What a guest that migrates is like.
#[derive(Clone, Debug)]
pub struct Case {
    pub options: NicOptions,
    pub load: Load,
}

impl Case {
    /// A present-day guest on either front-end.
    pub fn linux(order: MessageOrder) -> Self {
        Self {
            options: on(order, guest_options()),
            load: Load::offloaded(),
        }
    }
}

pub const ORDERS: [MessageOrder; 2] = [MessageOrder::Qemu, MessageOrder::CloudHypervisor];

/// The same guest with that front-end's messages.
pub fn on(order: MessageOrder, options: NicOptions) -> NicOptions {
    let protocol = match order {
        MessageOrder::Qemu => ProtocolFeatures::QEMU,
        MessageOrder::CloudHypervisor => ProtocolFeatures::CLOUD_HYPERVISOR,
    };
    NicOptions {
        order,
        protocol,
        ..options
    }
}

/// Little memory is soon compared.
pub fn small_memory() -> GuestMemory {
    let layout = GuestMemoryLayout::around_pci_hole(16 << 20, 8 << 20);
    GuestMemory::new(&layout).unwrap()
}

/// Two guests in conversation: one on `vm1`, which migrates, and its peer on `vm2`. Nobody is on `vm3`.
pub struct Scene {
    pub switch: Switch,
    pub nic: Nic,
    pub peer: Nic,
    pub talker: Talker,
    pub other: Talker,
    pub dice: Dice,
}

/// Messages for the guest that migrates, while both talk.
pub struct Director<'scope, 'scene> {
    pub vmm: Vmm<'scene>,
    pub dice: &'scope mut Dice,
    stage: &'scope Stage,
    driver: Option<ScopedJoinHandle<'scope, Result<(), TalkError>>>,
    progress: Progress,
}

impl Director<'_, '_> {
    /// The guest's processors stop; its peer goes on.
    pub fn pause_guest(&mut self) {
        self.stage.set(Phase::Stop);
        if let Some(driver) = self.driver.take() {
            joined(driver);
        }
    }

    /// Waits until every stream has carried some more.
    pub fn advance(&mut self) {
        let advanced = self.progress.advance(GOES_ON, WITHIN);
        if !advanced {
            // It may have ended with an error that says why.
            self.pause_guest();
        }
        assert!(advanced, "stuck: {:?}", self.progress.received());
    }

    /// Rounds at random times.
    pub fn rounds(&mut self, migration: &mut Migration, count: usize) {
        for _ in 0..count {
            self.dice.pause(BETWEEN_ROUNDS);
            migration.round(&mut self.vmm).unwrap();
        }
    }
}

fn joined(thread: ScopedJoinHandle<'_, Result<(), TalkError>>) {
    match thread.join() {
        Ok(outcome) => outcome.unwrap_or_else(|error| panic!("{error}")),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Ends talk also when what it accompanies panics.
struct Ends<'a>([&'a Stage; 2]);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        for stage in self.0 {
            stage.set(Phase::Stop);
        }
    }
}

impl Scene {
    pub fn new(case: &Case) -> Self {
        let port = |name| PortArgument {
            queue_pairs: case.options.queue_pairs,
            ..PortArgument::named(name)
        };
        let switch = Switch::new(&["vm1", "vm2", "vm3"].map(port), &["--workers", "2"]);
        let mut dice = Dice::shaken();
        let nic = switch.guest_in(&small_memory(), "vm1", case.options.clone());
        let options = NicOptions {
            queue_pairs: case.options.queue_pairs,
            guest_rx_ring_size: 256,
            ..guest_options()
        };
        let peer = switch.guest_in(&small_memory(), "vm2", options);
        let pairs = usize::from(case.options.queue_pairs);
        let ends = ((mac(1), pairs), (mac(2), pairs));
        let (talker, other) = conversation(ends.0, ends.1, &case.load, &mut dice);
        Self {
            switch,
            nic,
            peer,
            talker,
            other,
            dice,
        }
    }

    /// Both talk until `act` has returned.
    pub fn talk<T>(&mut self, act: impl FnOnce(&mut Director<'_, '_>) -> T) -> T {
        let (near, far) = (Stage::default(), Stage::default());
        let progress = self.talker.progress();
        let (vmm, pairs) = self.nic.halves();
        let (talker, other, dice) = (&mut self.talker, &mut self.other, &mut self.dice);
        let peer = self.peer.pairs();
        std::thread::scope(|scope| {
            let _ends = Ends([&near, &far]);
            let driver = scope.spawn(|| talker.talk(pairs, &near));
            let far_end = scope.spawn(|| other.talk(peer, &far));
            let mut director = Director {
                vmm,
                dice,
                stage: &near,
                driver: Some(driver),
                progress,
            };
            let outcome = act(&mut director);
            director.pause_guest();
            far.set(Phase::Stop);
            joined(far_end);
            outcome
        })
    }

    /// Both receive what is still on its way, and send no more.
    pub fn settle(&mut self) {
        let progress = self.talker.progress();
        let stage = Stage::default();
        stage.set(Phase::Listen);
        let (talker, other) = (&mut self.talker, &mut self.other);
        let (pairs, peer) = (self.nic.pairs(), self.peer.pairs());
        std::thread::scope(|scope| {
            let _ends = Ends([&stage; 2]);
            let threads = [
                scope.spawn(|| talker.talk(pairs, &stage)),
                scope.spawn(|| other.talk(peer, &stage)),
            ];
            assert!(progress.settle(WITHIN), "lost: {:?}", progress.received());
            stage.set(Phase::Stop);
            threads.into_iter().for_each(joined);
        });
    }

    /// The guest goes on at `vm3` with the memory that arrived there; its peer's frames may have been lost while it was nowhere.
    pub fn arrive(&mut self, migration: &Migration) {
        self.other.pardon();
        let stream = connect(&self.switch.daemon.socket("vm3"), WITHIN).unwrap();
        self.nic.arrive(migration.memory(), stream).unwrap();
        if self.nic.options().order == MessageOrder::Qemu {
            // Without GUEST_ANNOUNCE.
            let announced = self
                .nic
                .session()
                .send_rarp(mac(1), guest_sim::Ack::NotWanted);
            announced.unwrap();
        }
        settle(&mut self.nic);
        assert_eq!(self.switch.show("vm1")["state"], "listening");
    }

    /// Nothing is left over or was written where it must not be.
    pub fn finish(mut self) {
        self.settle();
        verify_quiet(&mut [&mut self.nic, &mut self.peer]);
        self.switch.finish();
    }
}

/// Migrates under load in so many rounds, and goes on at the destination.
fn migrate(case: &Case, rounds: usize) {
    let mut scene = Scene::new(case);
    let migration = scene.talk(|director| {
        let mut migration = Migration::begin(&mut director.vmm).unwrap();
        director.rounds(&mut migration, rounds);
        director.advance();
        director.rounds(&mut migration, 1);
        director.pause_guest();
        // Its peer does not know yet.
        director.dice.pause(BETWEEN_ROUNDS);
        migration.finish(&mut director.vmm).unwrap();
        migration
    });
    let marked: usize = migration.rounds().iter().map(|round| round.device).sum();
    assert!(marked > 0, "{:?}", migration.rounds());
    // Meanwhile its peer sent more: nothing may have come of that.
    migration.compare().unwrap();
    scene.arrive(&migration);
    scene.talk(|director| director.advance());
    scene.finish();
}

fn migrate_each(cases: impl IntoIterator<Item = (&'static str, Case)>, rounds: usize) {
    for (name, case) in cases {
        for order in ORDERS {
            let case = Case {
                options: on(order, case.options.clone()),
                ..case.clone()
            };
            named(&(name, order), || migrate(&case, rounds));
        }
    }
}

fn case(options: NicOptions, load: Load) -> Case {
    Case { options, load }
}

#[test]
fn a_present_day_guest_migrates_under_load() {
    let indirect = NicOptions {
        features: Features::LINUX | Features::IN_ORDER,
        guest_rx_ring_size: 1024,
        guest_tx_ring_size: 1024,
        guest_tx_table: DescriptorTable::Indirect,
        guest_rx_table: DescriptorTable::Indirect,
        guest_rx_layout: Some(ChainLayout::Cut(vec![12, 300])),
        ..guest_options()
    };
    let cases = [
        ("direct", case(guest_options(), Load::offloaded())),
        ("indirect, in order", case(indirect, Load::offloaded())),
    ];
    migrate_each(cases, 40);
}

#[test]
fn guests_with_fewer_features_migrate_under_load() {
    let with = |features| NicOptions {
        features,
        guest_rx_buffers: 40,
        ..guest_options()
    };
    let large = NicOptions {
        guest_rx_layout: Some(ChainLayout::Every(20_000)),
        ..with(Features::VERSION_1 | Features::OFFLOADS | Features::INDIRECT_DESC)
    };
    let plain = Load {
        payloads: vec![18, 1400, 1],
        ..Load::plain()
    };
    let bare = Features::VERSION_1 | Features::IN_ORDER;
    let cases = [
        ("one buffer a frame", case(large, Load::offloaded())),
        ("nothing", case(with(bare), plain.clone())),
        ("legacy", case(with(Features::NONE), plain)),
    ];
    migrate_each(cases, 25);
}

#[test]
fn guests_with_the_smallest_and_largest_rings_migrate_under_load() {
    let sized = |size, buffers| NicOptions {
        guest_rx_ring_size: size,
        guest_tx_ring_size: size,
        guest_rx_buffers: buffers,
        ..guest_options()
    };
    let smallest = if PACKED { 3 } else { 4 };
    let one_by_one = Load {
        window: 1,
        ..Load::plain()
    };
    let cases = [
        ("smallest", case(sized(smallest, u16::MAX), one_by_one)),
        ("largest", case(sized(32_768, 300), Load::offloaded())),
    ];
    migrate_each(cases, 25);
}

#[test]
fn buffers_across_pages_and_rings_in_high_memory_migrate_under_load() {
    let crossing = NicOptions {
        guest_rx_buffer_bytes: Some(6000),
        guest_rx_layout: Some(ChainLayout::Every(2500)),
        guest_rx_buffers: 80,
        ring_region: 1,
        ..guest_options()
    };
    migrate_each([("crossing", case(crossing, Load::offloaded()))], 25);
}

#[test]
fn guests_with_several_queue_pairs_migrate_under_load() {
    let pairs = NicOptions {
        queue_pairs: 4,
        ..guest_options()
    };
    // All four streams may go to one ring.
    let load = Load {
        window: 2,
        payloads: vec![18, 1460, 9000, 700],
        ..Load::offloaded()
    };
    migrate_each([("four pairs", case(pairs, load))], 25);
}

#[test]
fn a_guest_migrates_there_and_back_again() {
    let mut scene = Scene::new(&Case::linux(MessageOrder::Qemu));
    for number in 0..6 {
        let migration = scene.talk(|director| {
            let mut migration = Migration::begin(&mut director.vmm).unwrap();
            director.rounds(&mut migration, 5);
            director.pause_guest();
            migration.finish(&mut director.vmm).unwrap();
            migration
        });
        scene.other.pardon();
        let to = ["vm3", "vm1"][number % 2];
        let stream = connect(&scene.switch.daemon.socket(to), WITHIN).unwrap();
        scene.nic.arrive(migration.memory(), stream).unwrap();
        settle(&mut scene.nic);
        scene.talk(|director| director.advance());
    }
    scene.finish();
}
