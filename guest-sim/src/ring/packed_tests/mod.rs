//! The packed driver's bookkeeping against a device that is played by hand, descriptor by descriptor.

use super::raw::{INDIRECT, NEXT, WRITE};
use super::raw_packed::{AVAIL, USED};
use super::{
    DescriptorTable, Direction, PackedDescriptor, Place, Position, RawPackedRing, Segment,
    Virtqueue, packed_base,
};
use crate::error::Error;
use crate::features::Features;
use crate::memory::{GuestMemory, GuestMemoryLayout};

mod faults;
mod notifications;

const PLAIN: Features =
    Features::from_bits(Features::VERSION_1.bits() | Features::RING_PACKED.bits());

fn ring(size: u16, features: Features) -> (Virtqueue, RawPackedRing, GuestMemory) {
    let memory = GuestMemory::new(&GuestMemoryLayout::one_region(4 << 20)).unwrap();
    let ring = Virtqueue::new(3, &memory, Place::region(0), size, features).unwrap();
    let raw = ring.raw_packed().unwrap();
    (ring, raw, memory)
}

fn segments(count: u64, direction: Direction) -> Vec<Segment> {
    (0..count)
        .map(|at| Segment {
            address: 0x10_000 + 0x100 * at,
            len: 0x80,
            direction,
        })
        .collect()
}

fn add(ring: &mut Virtqueue, descriptors: u64, token: u32) {
    ring.add(
        &segments(descriptors, Direction::DeviceWrites),
        DescriptorTable::Direct,
        token,
    )
    .unwrap();
}

fn at(offset: u16, wrap: bool) -> Position {
    Position { offset, wrap }
}

/// A device that reads chains in order and uses them in any.
struct Device {
    raw: RawPackedRing,
    avail: Position,
    used: Position,
}

/// A chain that the device has read: its id, and how many descriptors it takes.
type Read = (u16, u16);

impl Device {
    fn new(raw: &Virtqueue) -> Self {
        Self {
            raw: raw.raw_packed().unwrap(),
            avail: Position::START,
            used: Position::START,
        }
    }

    fn read(&mut self) -> Option<Read> {
        let chain = self.raw.chain(self.avail).unwrap()?;
        let count = chain.len() as u16;
        self.avail = self.avail.advance(count, self.raw.size());
        Some((chain.last()?.id, count))
    }

    /// Writes one used descriptor for a batch that ends with `end` and has `descriptors` in all.
    fn use_batch(&mut self, end: u16, descriptors: u16, written: u32) {
        self.raw.set_used(self.used, end, written).unwrap();
        self.used = self.used.advance(descriptors, self.raw.size());
    }
}

fn tokens(ring: &mut Virtqueue) -> Vec<u32> {
    std::iter::from_fn(|| ring.pop_used().unwrap())
        .map(|completion| completion.token)
        .collect()
}

#[test]
fn a_chain_is_linked_and_marked_as_asked_and_only_its_last_descriptor_has_the_id() {
    let (mut ring, raw, _memory) = ring(8, PLAIN);
    let mut chain = segments(2, Direction::DeviceReads);
    chain.extend(segments(1, Direction::DeviceWrites));
    ring.add(&chain, DescriptorTable::Direct, 0).unwrap();
    ring.publish().unwrap();
    let read = [0, 1, 2].map(|offset| raw.descriptor(offset).unwrap());
    assert_eq!(
        read.map(|descriptor| descriptor.flags),
        [NEXT | AVAIL, NEXT | AVAIL, WRITE | AVAIL]
    );
    assert_eq!((read[0].address, read[1].len), (0x10_000, 0x80));
    assert!(read[2].id < 8, "{read:?}");
    assert!(read[0].id >= 8 && read[1].id >= 8, "{read:?}");
    assert_eq!(raw.chain(Position::START).unwrap().unwrap(), read);
}

#[test]
fn the_flags_turn_over_where_the_ring_ends_inside_a_chain_too() {
    // Not a power of two.
    let (mut ring, raw, _memory) = ring(5, PLAIN);
    let mut device = Device::new(&ring);
    add(&mut ring, 3, 1);
    ring.publish().unwrap();
    let (id, count) = device.read().unwrap();
    device.use_batch(id, count, 0x80);
    assert_eq!(tokens(&mut ring), [1]);
    add(&mut ring, 4, 2);
    ring.publish().unwrap();
    let flags = [3, 4, 0, 1].map(|offset| raw.descriptor(offset).unwrap().flags);
    assert_eq!(
        flags,
        [
            NEXT | WRITE | AVAIL,
            NEXT | WRITE | AVAIL,
            NEXT | WRITE | USED,
            WRITE | USED
        ]
    );
    let (id, count) = device.read().unwrap();
    assert_eq!((count, device.avail), (4, at(2, false)));
    device.use_batch(id, count, 1);
    assert_eq!(tokens(&mut ring), [2]);
    assert_eq!(ring.free_descriptors(), 5);
}

#[test]
fn an_indirect_chain_takes_one_descriptor_and_a_table_without_links() {
    let (mut ring, raw, memory) = ring(8, PLAIN | Features::INDIRECT_DESC);
    let mut chain = segments(4, Direction::DeviceReads);
    chain.extend(segments(1, Direction::DeviceWrites));
    ring.add(&chain, DescriptorTable::Indirect, 0).unwrap();
    ring.publish().unwrap();
    let head = raw.descriptor(0).unwrap();
    assert_eq!(
        (head.flags, head.len, ring.free_descriptors()),
        (INDIRECT | AVAIL, 5 * 16, 7)
    );
    let mut table = [0; 5 * 16];
    memory.read(head.address, &mut table).unwrap();
    let flags: Vec<_> = table
        .chunks(16)
        .map(|entry| u16::from_le_bytes([entry[14], entry[15]]))
        .collect();
    // VIRTIO 1.3 §2.8.19: no flag but WRITE.
    assert_eq!(flags, [0, 0, 0, 0, WRITE]);
}

#[test]
fn nothing_is_visible_before_it_is_published_and_then_all_of_it() {
    let (mut ring, raw, _memory) = ring(8, PLAIN);
    let mut device = Device::new(&ring);
    for token in 0..3 {
        add(&mut ring, 2, token);
    }
    assert_eq!(device.read(), None);
    assert_eq!(raw.descriptor(0).unwrap().flags, 0);
    assert!(ring.kick_eventfd().read().is_err());
    assert_eq!(ring.outstanding(), 0);
    ring.publish().unwrap();
    let read: Vec<_> = std::iter::from_fn(|| device.read()).collect();
    assert_eq!(read.len(), 3);
    assert_eq!(ring.outstanding(), 3);
    assert_eq!(ring.kick_eventfd().read().unwrap(), 1);
    ring.publish().unwrap();
    assert!(
        ring.kick_eventfd().read().is_err(),
        "a kick for nothing new"
    );
}

#[test]
fn a_full_ring_says_so_and_a_chain_longer_than_the_ring_never_fits() {
    let (mut ring, _raw, _memory) = ring(5, PLAIN);
    add(&mut ring, 4, 0);
    let two = segments(2, Direction::DeviceWrites);
    assert!(matches!(
        ring.add(&two, DescriptorTable::Direct, 0),
        Err(Error::RingFull)
    ));
    let six = segments(6, Direction::DeviceWrites);
    for table in [DescriptorTable::Direct, DescriptorTable::Indirect] {
        assert!(matches!(
            ring.add(&six, table, 0),
            Err(Error::ChainTooLong { .. })
        ));
    }
}

#[test]
fn chains_used_out_of_order_come_back_in_the_order_of_use() {
    let (mut ring, _raw, _memory) = ring(8, PLAIN);
    let mut device = Device::new(&ring);
    for (descriptors, token) in [(2, 10), (1, 11), (3, 12)] {
        add(&mut ring, descriptors, token);
    }
    ring.publish().unwrap();
    let read: Vec<_> = std::iter::from_fn(|| device.read()).collect();
    for which in [2, 0, 1] {
        let (id, count) = read[which];
        device.use_batch(id, count, 0x80);
    }
    assert_eq!(tokens(&mut ring), [12, 10, 11]);
    assert_eq!((ring.free_descriptors(), ring.outstanding()), (8, 0));
}

/// A random walk of both sides; the driver's answers are compared with a list of what was put in.
fn walk(size: u16, features: Features, seed: u64) {
    let (mut ring, _raw, _memory) = ring(size, features);
    let mut device = Device::new(&ring);
    let in_order = features.contains(Features::IN_ORDER);
    let mut state = seed | 1;
    let mut random = |below: u64| {
        state = state
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 33) % below
    };
    let mut token = 0;
    // What the device was shown, by token; what it holds; what it used and the driver has not taken.
    let (mut added, mut held, mut expected) = (Vec::new(), Vec::new(), Vec::new());
    for step in 0..20 * u32::from(size).clamp(50, 2000) {
        match random(4) {
            0 | 1 => {
                let count = 1 + random(u64::from(size).min(4));
                let table = if random(3) == 0 {
                    DescriptorTable::Indirect
                } else {
                    DescriptorTable::Direct
                };
                match ring.add(&segments(count, Direction::DeviceWrites), table, token) {
                    Ok(()) => added.push(token),
                    Err(Error::RingFull) => {}
                    Err(other) => panic!("{other}"),
                }
                token += 1;
                if random(2) == 0 {
                    ring.publish().unwrap();
                    for token in added.drain(..) {
                        let read = device
                            .read()
                            .unwrap_or_else(|| panic!("size {size} step {step}"));
                        held.push((token, read));
                    }
                    assert_eq!(device.read(), None, "size {size} step {step}");
                }
            }
            2 if !held.is_empty() && in_order => {
                let batch: Vec<_> = held
                    .drain(..1 + random(held.len() as u64) as usize)
                    .collect();
                let descriptors = batch.iter().map(|&(_, (_, count))| count).sum();
                let (_, (end, _)) = *batch.last().unwrap();
                device.use_batch(end, descriptors, 1);
                expected.extend(batch.iter().map(|&(token, _)| token));
            }
            2 if !held.is_empty() => {
                let (token, (id, count)) = held.remove(random(held.len() as u64) as usize);
                device.use_batch(id, count, 1);
                expected.push(token);
            }
            _ => {
                let used = ring.used_base().unwrap() >> 16;
                assert_eq!(used, u32::from(device.used.word()), "size {size}");
                let take = random(3) as usize;
                for token in expected.drain(..take.min(expected.len())) {
                    let came = ring.pop_used().unwrap().map(|completion| completion.token);
                    assert_eq!(came, Some(token), "size {size} step {step}");
                }
                if expected.is_empty() {
                    ring.verify_untouched().unwrap();
                    assert!(!ring.has_used().unwrap());
                    assert_eq!(ring.pop_used().unwrap(), None);
                }
            }
        }
        assert_eq!(usize::from(ring.outstanding()), held.len() + expected.len());
    }
    assert!(token > 50);
}

#[test]
fn any_walk_of_both_sides_keeps_them_in_step_at_any_size() {
    for size in [1, 2, 3, 4, 5, 7, 8, 100, 255, 256, 1000] {
        for features in [PLAIN, PLAIN | Features::IN_ORDER] {
            walk(size, features, u64::from(size) * 7919);
        }
    }
}

#[test]
fn the_largest_ring_goes_round_and_round() {
    for features in [PLAIN, PLAIN | Features::IN_ORDER] {
        let (mut ring, _raw, _memory) = ring(32768, features);
        let mut device = Device::new(&ring);
        for turn in 0..3 {
            for token in 0..32768 {
                add(&mut ring, 1, token);
            }
            assert_eq!(ring.free_descriptors(), 0);
            ring.publish().unwrap();
            assert_eq!(ring.outstanding(), 32768);
            for _ in 0..32768 {
                let (id, count) = device.read().unwrap();
                device.use_batch(id, count, 1);
            }
            assert_eq!(tokens(&mut ring), (0..32768).collect::<Vec<_>>(), "{turn}");
        }
    }
}

#[test]
fn with_in_order_one_used_descriptor_stands_for_a_batch() {
    let (mut ring, _raw, _memory) = ring(8, PLAIN | Features::IN_ORDER);
    let mut device = Device::new(&ring);
    for (descriptors, token) in [(2, 10), (1, 11), (3, 12), (1, 13)] {
        add(&mut ring, descriptors, token);
    }
    ring.publish().unwrap();
    let read: Vec<_> = std::iter::from_fn(|| device.read()).collect();
    device.use_batch(read[2].0, 6, 5);
    let first = ring.pop_used().unwrap().unwrap();
    assert_eq!((first.token, first.written), (10, 0x100));
    // The base counts the whole batch, taken back or not.
    assert_eq!(
        ring.avail_base().unwrap(),
        packed_base(at(7, true), at(6, true))
    );
    assert!(ring.has_used().unwrap());
    let second = ring.pop_used().unwrap().unwrap();
    assert_eq!((second.token, second.written), (11, 0x80));
    let third = ring.pop_used().unwrap().unwrap();
    assert_eq!((third.token, third.written), (12, 5));
    assert_eq!(ring.pop_used().unwrap(), None);
    device.use_batch(read[3].0, 1, 0);
    assert_eq!(tokens(&mut ring), [13]);
}

#[test]
fn bases_say_what_was_shown_and_what_was_used() {
    let (mut ring, _raw, _memory) = ring(3, PLAIN);
    let mut device = Device::new(&ring);
    assert_eq!(ring.start_base(), 0x8000_8000);
    assert_eq!(ring.avail_base().unwrap(), ring.start_base());
    add(&mut ring, 2, 0);
    assert_eq!(ring.avail_base().unwrap(), 0x8000_8000);
    ring.publish().unwrap();
    assert_eq!(ring.avail_base().unwrap(), 0x8000_8002);
    assert_eq!(ring.used_base().unwrap(), 0x8000_8000);
    let (id, count) = device.read().unwrap();
    device.use_batch(id, count, 0);
    assert_eq!(ring.used_base().unwrap(), 0x8002_8002, "not taken back yet");
    ring.pop_used().unwrap().unwrap();
    assert_eq!(ring.used_base().unwrap(), 0x8002_8002);
    add(&mut ring, 2, 0);
    ring.publish().unwrap();
    assert_eq!(ring.avail_base().unwrap(), 0x8002_0001);
}

#[test]
fn a_reset_ring_is_as_new() {
    let (mut ring, raw, _memory) = ring(3, PLAIN);
    let mut device = Device::new(&ring);
    add(&mut ring, 2, 0);
    ring.publish().unwrap();
    add(&mut ring, 1, 0);
    let (id, count) = device.read().unwrap();
    device.use_batch(id, count, 0);
    ring.reset(PLAIN);
    assert_eq!((ring.free_descriptors(), ring.outstanding()), (3, 0));
    assert_eq!(raw.descriptor(0).unwrap(), PackedDescriptor::default());
    assert!(ring.kick_eventfd().read().is_err());
    assert_eq!(ring.pop_used().unwrap(), None);
    ring.publish().unwrap();
    let mut device = Device::new(&ring);
    assert_eq!(device.read(), None, "what was not published is forgotten");
    add(&mut ring, 1, 7);
    ring.publish().unwrap();
    let (id, count) = device.read().unwrap();
    device.use_batch(id, count, 0);
    assert_eq!(tokens(&mut ring), [7]);
}

#[test]
fn raw_access_is_to_rings_of_its_own_format() {
    let (packed, _raw, memory) = ring(4, PLAIN);
    assert!(packed.raw().is_err());
    let split = Virtqueue::new(0, &memory, Place::region(0), 4, Features::VERSION_1).unwrap();
    assert!(split.raw_packed().is_err());
}
