//! Packed rings against guest-sim's driver: killed at every store, and given to another driver. Killed while pages are logged: both kinds.

use super::kill;
use super::record::RecordFile;
use super::segment::{ChainWriter, SegmentArena};
use super::{
    BurstLimit, ChainHead, Direction, DirtyLog, GuestMemory, LogLayout, RegionLayout, Ring,
    RingAddresses, RingConfig, RingFill,
};
use guest_sim::migrate::Dice;
use guest_sim::ring::{DescriptorTable, Direction as Use, Segment, Virtqueue};
use guest_sim::{
    Features, GuestMemory as VmMemory, GuestMemoryLayout, NicOptions, PackedDescriptor, Position,
    QueuePair,
};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;

const START: u32 = 0x8000_8000;
const IN_ORDER: Features =
    Features::from_bits(Features::RING_PACKED.bits() | Features::IN_ORDER.bits());

/// A driver, and what a process that serves it finds again.
struct Bench {
    memory: VmMemory,
    pair: QueuePair,
    direction: Direction,
    features: Features,
    records: RecordFile,
    next_token: u32,
    /// Posted and not come back, in order.
    due: VecDeque<u32>,
    /// The front-end's base is the one that a process answered.
    base_is_final: bool,
}

impl Bench {
    fn new(features: Features, direction: Direction, size: u16) -> Self {
        let memory = VmMemory::new(&GuestMemoryLayout::one_region(1 << 20)).unwrap();
        let features = features | Features::VERSION_1;
        let options = NicOptions {
            features,
            guest_rx_ring_size: size,
            guest_tx_ring_size: size,
            guest_rx_buffer_bytes: Some(64),
            ..NicOptions::bench()
        };
        Self {
            pair: QueuePair::new(0, &memory, &options, features).unwrap(),
            memory,
            direction,
            features,
            records: RecordFile::anonymous(1).unwrap(),
            next_token: 0,
            due: VecDeque::new(),
            base_is_final: false,
        }
    }

    fn queue(&mut self) -> &mut Virtqueue {
        match self.direction {
            Direction::Readable => self.pair.guest_tx.ring_mut(),
            Direction::Writable => self.pair.guest_rx.ring_mut(),
        }
    }

    /// A process begins to serve the ring, told the base that its front-end last knew.
    fn serve(&mut self) -> Ring {
        self.serve_from(START)
    }

    /// A process that finds no record, told this base.
    fn arrive(&mut self, base: u32) -> Ring {
        self.records = RecordFile::anonymous(1).unwrap();
        self.serve_from(base)
    }

    fn serve_from(&mut self, base: u32) -> Ring {
        self.serve_logged(base, None)
    }

    /// The same, with pages marked in that log.
    fn serve_logged(&mut self, base: u32, log: Option<Arc<DirtyLog>>) -> Ring {
        let queue = match self.direction {
            Direction::Readable => self.pair.guest_tx.ring(),
            Direction::Writable => self.pair.guest_rx.ring(),
        };
        let place = queue.memory();
        let config = RingConfig {
            size: place.size(),
            addresses: RingAddresses {
                descriptor_table: place.descriptors().user_address(),
                available_ring: place.avail().user_address(),
                used_ring: place.used().user_address(),
                used_log: None,
            },
            base,
            origin: base,
            base_is_final: std::mem::take(&mut self.base_is_final),
            record: Some(self.records.ring(0, place.size()).unwrap()),
            features: self.features.bits(),
            kick: None,
            call: None,
            error: None,
        };
        let regions = self.memory.regions().into_iter().map(|region| {
            let info = region.message_region();
            let layout = RegionLayout {
                guest_phys_addr: info.guest_phys_addr,
                size_bytes: info.memory_size,
                user_addr: info.userspace_addr,
                mmap_offset: info.mmap_offset,
            };
            (layout, OwnedFd::from(region.memfd().try_clone().unwrap()))
        });
        let memory: Arc<GuestMemory> = GuestMemory::map(regions.collect()).unwrap();
        let memory = memory.with_log(log);
        Ring::start(config, self.direction, &memory).unwrap()
    }

    /// Posts chains of these lengths as far as there is room.
    fn post(&mut self, lengths: &[usize]) {
        let segment = Segment {
            address: 0x8000,
            len: 16,
            direction: match self.direction {
                Direction::Readable => Use::DeviceReads,
                Direction::Writable => Use::DeviceWrites,
            },
        };
        for &length in lengths {
            let token = self.next_token;
            if usize::from(self.queue().free_descriptors()) < length {
                break;
            }
            self.queue()
                .add(&vec![segment; length], DescriptorTable::Direct, token)
                .unwrap();
            self.next_token += 1;
            self.due.push_back(token);
        }
        self.queue().publish().unwrap();
    }

    /// What QEMU's virtio-net does while nobody serves a guest-tx ring and the driver kicks: gives back unread whatever is on offer from
    /// `believed` on, where it takes the device to be (virtqueue_packed_drop_all); where it believes the device to be then.
    fn discard(&mut self, believed: Position) -> Position {
        let size = self.queue().memory().size();
        let raw = self.queue().raw_packed().unwrap();
        let mut at = believed;
        while let Some(chain) = raw.chain(at).unwrap() {
            let used = PackedDescriptor {
                len: 0,
                flags: at.used_flags(),
                address: chain[0].address,
                ..chain[chain.len() - 1]
            };
            raw.set_descriptor(at.offset, used).unwrap();
            at = at.advance(chain.len() as u16, size);
        }
        at
    }

    /// What came back, which must be what was posted first: guest-sim checks ids, lengths and places.
    fn reclaim(&mut self) {
        while let Some(completion) = self.queue().pop_used().unwrap() {
            assert_eq!(Some(completion.token), self.due.pop_front());
            if self.direction == Direction::Writable {
                assert_eq!(completion.written, 16);
            }
        }
    }
}

fn take(ring: &mut Ring, most: usize) -> Vec<ChainHead> {
    let mut chains = Vec::new();
    let limit = BurstLimit {
        chains: most,
        bytes: u64::MAX,
    };
    ring.take_burst(&mut SegmentArena::default(), &mut chains, limit)
        .unwrap();
    chains.iter().map(|chain| chain.head).collect()
}

fn take_all(ring: &mut Ring) -> Vec<ChainHead> {
    take(ring, usize::MAX)
}

fn give_back(ring: &mut Ring, heads: &[ChainHead], direction: Direction) {
    let written = match direction {
        Direction::Readable => 0,
        Direction::Writable => 16,
    };
    heads.iter().for_each(|head| ring.push_used(*head, written));
    let _ = ring.publish_used();
}

/// What the driver does while nobody serves the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meanwhile {
    Nothing,
    Reposts,
}

/// Rounds of a batch that is interrupted after ever more stores, and of a next process, interrupted as well, that finishes it.
fn killed_everywhere(features: Features, direction: Direction, size: u16, meanwhile: Meanwhile) {
    const SHAPES: [&[usize]; 5] = [&[1], &[1, 1, 1], &[2, 1], &[1, 2, 1], &[3]];
    let mut bench = Bench::new(features, direction, size);
    let mut survived = 0;
    for round in 0..700 {
        let (stores, stores_at_start) = (round as u32 % 9, round as u32 / 9 % 14);
        bench.post(SHAPES[round % SHAPES.len()]);
        let mut ring = bench.serve();
        let heads = take_all(&mut ring);
        let finished = kill::after(stores, || give_back(&mut ring, &heads, direction));
        survived += usize::from(finished.is_some());
        drop(ring);
        if meanwhile == Meanwhile::Reposts {
            bench.reclaim();
            bench.post(SHAPES[(round + 1) % SHAPES.len()]);
        }
        if let Some(ring) = kill::after(stores_at_start, || bench.serve()) {
            drop(ring);
        }
        let mut ring = bench.serve();
        let heads = take_all(&mut ring);
        give_back(&mut ring, &heads, direction);
        drop(ring);
        bench.reclaim();
        assert!(
            bench.due.is_empty(),
            "round {round}: {:?} are lost",
            bench.due
        );
    }
    assert!((50..650).contains(&survived), "{survived}");
}

#[test]
fn a_ring_killed_at_any_store_goes_on_without_loss_or_repetition() {
    for features in [Features::RING_PACKED, IN_ORDER] {
        for direction in [Direction::Readable, Direction::Writable] {
            for size in [3, 4, 7, 64] {
                for meanwhile in [Meanwhile::Nothing, Meanwhile::Reposts] {
                    eprintln!("{features}, {direction:?}, {size} entries, {meanwhile:?}");
                    killed_everywhere(features, direction, size, meanwhile);
                }
            }
        }
    }
}

fn base(at: Position) -> u32 {
    u32::from(at.word()) << 16 | u32::from(at.word())
}

/// Rounds of a driver that posts, of a process that takes some of it and is killed, and of a front-end that then gives back chains by itself,
/// where it last knew the ring to be.
fn discarded_meanwhile(features: Features, direction: Direction, size: u16, seed: u64) {
    const SHAPES: [&[usize]; 6] = [&[1], &[1, 1, 1], &[2, 1], &[1, 2, 1], &[3], &[1, 1]];
    let mut bench = Bench::new(features, direction, size);
    let mut dice = Dice::new(seed);
    let mut believed = Position::START;
    let mut discarded = 0;
    for round in 0..400 {
        for _ in 0..dice.below(4) {
            bench.post(SHAPES[dice.below(SHAPES.len() as u64) as usize]);
        }
        let mut ring = bench.serve_from(base(believed));
        let heads = take(&mut ring, dice.below(8) as usize);
        let stores = dice.below(16) as u32;
        let finished = kill::after(stores, || give_back(&mut ring, &heads, direction)).is_some();
        let before = believed;
        if finished && dice.one_in(6) {
            believed = Position::from_word(ring.base() as u16);
            ring.stop();
            bench.base_is_final = true;
        } else {
            drop(ring);
        }
        // That a ring was stopped is lost with its process. Discarded up to just where it was started before, it looks as if it was not.
        let stopped = bench.base_is_final;
        let is_ambiguous = |believed| stopped && believed == before;
        let mut places = 0;
        for _ in 0..dice.below(4) {
            if dice.one_in(2) {
                bench.reclaim();
            }
            bench.post(SHAPES[dice.below(SHAPES.len() as u64) as usize]);
            // Where it was not stopped, two laps would look as if nothing had been discarded.
            if (stopped || places < u32::from(size)) && dice.one_in(2) {
                let now = bench.discard(believed);
                places += believed.distance_to(now, size);
                believed = now;
            }
            if dice.one_in(2) {
                bench.base_is_final |= is_ambiguous(believed);
                let stores = dice.below(30) as u32;
                let _ = kill::after(stores, || drop(bench.serve_from(base(believed))));
                bench.base_is_final = false;
            }
        }
        bench.base_is_final |= is_ambiguous(believed);
        discarded += u32::from(places > 0);
        let mut ring = bench.serve_from(base(believed));
        let heads = take_all(&mut ring);
        give_back(&mut ring, &heads, direction);
        drop(ring);
        bench.reclaim();
        assert!(
            bench.due.is_empty(),
            "seed {seed}, round {round}: {:?} are lost",
            bench.due
        );
    }
    assert!(discarded > 20, "{discarded}");
}

#[test]
fn a_ring_goes_on_past_what_its_front_end_gave_back_while_nobody_served_it() {
    for features in [Features::RING_PACKED, IN_ORDER] {
        for size in [3, 4, 7, 64] {
            for seed in 0..12 {
                eprintln!("{features}, {size} entries, seed {seed}");
                discarded_meanwhile(features, Direction::Readable, size, seed);
            }
        }
    }
}

#[test]
fn a_driver_that_begins_anew_unseen_is_not_taken_for_the_one_before() {
    const SIZE: u16 = 6;
    for posted_anew in [0, 1, 3, SIZE] {
        for served in 0..4 * SIZE {
            let mut bench = Bench::new(Features::RING_PACKED, Direction::Readable, SIZE);
            let mut ring = bench.serve();
            for _ in 0..served {
                bench.post(&[1]);
                let heads = take_all(&mut ring);
                give_back(&mut ring, &heads, Direction::Readable);
                bench.reclaim();
            }
            drop(ring);
            // What a reset of the VM leaves: the same place, cleared, and a driver at its start.
            bench.queue().memory().clear();
            let raw = bench.queue().raw_packed().unwrap();
            let buffer = PackedDescriptor {
                address: 0x8000,
                len: 16,
                id: 5,
                flags: 0,
            };
            raw.post_at(Position::START, &vec![buffer; posted_anew.into()])
                .unwrap();
            let mut ring = bench.serve();
            assert_eq!(ring.base(), START, "{posted_anew} posted, {served} served");
            assert_eq!(take_all(&mut ring).len(), usize::from(posted_anew));
        }
    }
}

#[test]
fn a_ring_goes_on_where_it_was_left_at_every_position() {
    const SIZE: u16 = 6;
    for reposted in 0..=SIZE {
        let mut bench = Bench::new(Features::RING_PACKED, Direction::Readable, SIZE);
        let mut expected = Position::START;
        for served in 0..4 * SIZE {
            bench.post(&vec![1; reposted.into()]);
            let mut ring = bench.serve();
            let half = u32::from(expected.offset) | u32::from(expected.wrap) << 15;
            assert_eq!(
                ring.base(),
                half | half << 16,
                "{reposted} reposted, {served} served"
            );
            if reposted == 0 {
                bench.post(&[1]);
            }
            let head = take(&mut ring, 1);
            assert_eq!(head.len(), 1, "nothing to take");
            give_back(&mut ring, &head, Direction::Readable);
            expected = expected.advance(1, SIZE);
            bench.reclaim();
        }
    }
}

#[test]
fn another_vms_memory_is_another_ring() {
    let mut bench = Bench::new(Features::RING_PACKED, Direction::Readable, 8);
    bench.post(&[1, 1]);
    let mut ring = bench.serve();
    let heads = take_all(&mut ring);
    give_back(&mut ring, &heads, Direction::Readable);
    let left = ring.base();
    drop(ring);
    assert_eq!(bench.serve().base(), left);
    let mut other = Bench::new(Features::RING_PACKED, Direction::Readable, 8);
    std::mem::swap(&mut bench.records, &mut other.records);
    assert_eq!(other.serve().base(), START);
}

/// Another back-end stopped with `posted` chains on offer, some of them taken and not given back; of a front-end that forwards the lower
/// half alone, with all that was taken given back.
#[test]
fn a_ring_goes_on_where_its_base_says_in_any_lap() {
    for size in [1_u16, 2, 3, 8] {
        for posted in 0..=size {
            for served in 0..5 * u32::from(size) {
                for direction in [Direction::Readable, Direction::Writable] {
                    let mut bench = Bench::new(Features::RING_PACKED, direction, size);
                    let mut ring = bench.serve();
                    for _ in 0..served {
                        bench.post(&[1]);
                        let heads = take_all(&mut ring);
                        give_back(&mut ring, &heads, direction);
                        bench.reclaim();
                    }
                    let position = ring.base();
                    drop(ring);
                    bench.post(&vec![1; posted.into()]);
                    let case = format!("{size} places, {posted} posted, {served} served");
                    let both_halves = bench.queue().avail_base().unwrap();
                    assert_eq!(bench.arrive(both_halves).base(), position, "{case}");
                    let mut ring = bench.arrive(position);
                    assert_eq!(take_all(&mut ring).len(), usize::from(posted), "{case}");
                }
            }
        }
    }
}

/// The lower half says where the device is: what lies before it was given back, and perhaps offered anew.
#[test]
fn a_base_without_upper_half_is_where_the_device_is() {
    for size in [2_u16, 3, 8] {
        for served in 0..5 * u32::from(size) {
            for posted_anew in [false, true] {
                let mut bench = Bench::new(Features::RING_PACKED, Direction::Writable, size);
                let mut ring = bench.serve();
                for _ in 0..served {
                    bench.post(&[1]);
                    let heads = take_all(&mut ring);
                    give_back(&mut ring, &heads, Direction::Writable);
                    bench.reclaim();
                }
                let position = ring.base();
                drop(ring);
                if posted_anew {
                    bench.post(&vec![1; size.into()]);
                }
                let case = format!("{size} places, {served} served, anew: {posted_anew}");
                assert_eq!(bench.arrive(position & 0xffff).base(), position, "{case}");
            }
        }
    }
}

const PAGE: usize = 4096;
/// Pages that neither ring has anything in.
const BUFFERS: u64 = 0xe_0000;

/// Everything in the guest's memory.
fn contents(memory: &VmMemory) -> Vec<u8> {
    let file = memory.regions()[0].memfd().clone();
    let mut bytes = vec![0; 1 << 20];
    std::os::unix::fs::FileExt::read_exact_at(&*file, &mut bytes, 0).unwrap();
    bytes
}

/// Takes everything that waits, writes to each chain, and gives it back.
fn fill(ring: &mut Ring) {
    let (mut arena, mut chains) = (SegmentArena::default(), Vec::new());
    let limit = BurstLimit {
        chains: 64,
        bytes: u64::MAX,
    };
    ring.take_burst(&mut arena, &mut chains, limit).unwrap();
    for chain in chains {
        let segments = arena.chain(chain.segments);
        ChainWriter::new(segments, ring.marks()).write(&[7; 16]);
        ring.push_used(chain.head, 16);
    }
    let _ = ring.publish_used();
}

/// Whoever serves the ring after a kill marks what the one before may not have.
#[test]
fn a_kill_at_any_store_leaves_no_page_unmarked() {
    for features in [Features::NONE, Features::RING_PACKED, IN_ORDER] {
        let mut stores = 0;
        loop {
            let mut bench = Bench::new(features, Direction::Writable, 8);
            for page in 0..6 {
                let segment = Segment {
                    address: BUFFERS + page * PAGE as u64,
                    len: 16,
                    direction: Use::DeviceWrites,
                };
                let table = DescriptorTable::Direct;
                bench.queue().add(&[segment], table, page as u32).unwrap();
            }
            bench.queue().publish().unwrap();
            let before = contents(&bench.memory);
            let bits = rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            rustix::fs::ftruncate(&bits, PAGE as u64).unwrap();
            let layout = LogLayout {
                size_bytes: PAGE as u64,
                mmap_offset: 0,
            };
            let log = || {
                let file = bits.try_clone().unwrap();
                Some(DirtyLog::map(layout, file, Arc::default()).unwrap())
            };
            let mut ring = bench.serve_logged(START, log());
            let start = ring.base();
            let done = kill::after(stores, || fill(&mut ring)).is_some();
            // What a killed process has not told stays untold.
            std::mem::forget(ring);
            let next = bench.serve_logged(START, log());
            let mut marked = [0; 32];
            rustix::io::pread(&bits, &mut marked, 0).unwrap();
            let after = contents(&bench.memory);
            for page in 0..before.len() / PAGE {
                let bytes = page * PAGE..(page + 1) * PAGE;
                let changed = before[bytes.clone()] != after[bytes];
                let is_marked = marked[page / 8] & 1 << (page % 8) != 0;
                // A chain that was not given back is filled again.
                let is_kept = page >= BUFFERS as usize / PAGE && !done;
                assert!(
                    !changed || is_marked || is_kept && next.base() == start,
                    "{features:?} killed before store {stores}: page {page}"
                );
            }
            if done {
                break;
            }
            stores += 1;
        }
        assert!(stores >= 2, "{features:?}: {stores} stores");
    }
}

/// Chains of a split ring and places of a packed one, wherever in it, whatever was taken.
#[test]
fn a_ring_says_how_full_it_is() {
    const SHAPES: [&[usize]; 5] = [
        &[1],
        &[1, 1, 1, 1, 1, 1, 1, 1],
        &[2, 1],
        &[1, 2, 1],
        &[3, 3],
    ];
    for (features, size) in [
        (Features::NONE, 8),
        (Features::RING_PACKED, 8),
        (Features::RING_PACKED, 7),
        (IN_ORDER, 5),
    ] {
        let is_packed = features.contains(Features::RING_PACKED);
        let base = if is_packed { START } else { 0 };
        let mut bench = Bench::new(features, Direction::Readable, size);
        let mut ring = bench.arrive(base);
        let mut offered = VecDeque::new();
        let mut was_full = false;
        for round in 0..200 {
            let shape = SHAPES[round % SHAPES.len()];
            let before = bench.due.len();
            bench.post(shape);
            let posted = bench.due.len() - before;
            offered.extend(shape[..posted].iter().map(|&places| match is_packed {
                true => places as u16,
                false => 1,
            }));
            let expected = |offered: &VecDeque<u16>| RingFill {
                size,
                offered: offered.iter().sum(),
            };
            assert_eq!(ring.fill(), expected(&offered), "{features:?} {round}");
            was_full |= expected(&offered).offered == size;
            let heads = take(&mut ring, round % 4);
            offered.drain(..heads.len());
            assert_eq!(ring.fill(), expected(&offered), "{features:?} {round}");
            give_back(&mut ring, &heads, Direction::Readable);
            assert_eq!(ring.fill(), expected(&offered), "{features:?} {round}");
            bench.reclaim();
        }
        assert!(was_full, "{features:?}");
    }
}

#[test]
fn a_ring_whose_index_cannot_be_is_full_and_stays_to_be_refused() {
    let mut bench = Bench::new(Features::NONE, Direction::Readable, 8);
    let mut ring = bench.arrive(0);
    let raw = bench.queue().raw().unwrap();
    raw.set_avail_index(5000).unwrap();
    let full = RingFill {
        size: 8,
        offered: 8,
    };
    assert_eq!(ring.fill(), full);
    assert!(ring.refresh().is_err());
}
