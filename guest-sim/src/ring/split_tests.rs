//! The driver's bookkeeping against a device that is played by hand, word by word.

use super::raw::{INDIRECT, NEXT, RawRing, WRITE};
use super::{DescriptorTable, Direction, Place, Segment, Virtqueue};
use crate::error::{DeviceFault, Error};
use crate::features::Features;
use crate::memory::{GuestMemory, GuestMemoryLayout};

const PLAIN: Features = Features::VERSION_1;

fn ring(size: u16, features: Features) -> (Virtqueue, RawRing, GuestMemory) {
    let memory = GuestMemory::new(&GuestMemoryLayout::one_region(4 << 20)).unwrap();
    let ring = Virtqueue::new(3, &memory, Place::region(0), size, features).unwrap();
    let raw = ring.raw().unwrap();
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

/// Plays the device: writes one used element and moves the used index by `by`.
fn use_one(raw: &RawRing, id: u16, len: u32, by: u16) {
    let index = raw.used_index().unwrap();
    raw.set_used_entry(index, id.into(), len).unwrap();
    raw.set_used_index(index.wrapping_add(by)).unwrap();
}

fn fault(ring: &mut Virtqueue) -> DeviceFault {
    match ring.pop_used() {
        Err(Error::Device(fault)) => fault,
        other => panic!("no fault: {other:?}"),
    }
}

#[test]
fn a_chain_is_linked_and_marked_as_asked() {
    let (mut ring, raw, _memory) = ring(8, PLAIN);
    let mut chain = segments(2, Direction::DeviceReads);
    chain.extend(segments(1, Direction::DeviceWrites));
    ring.add(&chain, DescriptorTable::Direct, 0).unwrap();
    ring.publish().unwrap();
    let head = raw.avail_entry(0).unwrap();
    let first = raw.descriptor(head).unwrap();
    let second = raw.descriptor(first.next).unwrap();
    let third = raw.descriptor(second.next).unwrap();
    assert_eq!(
        [first.flags, second.flags, third.flags],
        [NEXT, NEXT, WRITE]
    );
    assert_eq!((first.address, second.len), (0x10_000, 0x80));
    assert_eq!(raw.avail_index().unwrap(), 1);
}

#[test]
fn an_indirect_chain_takes_one_descriptor_and_a_table() {
    let (mut ring, raw, memory) = ring(8, PLAIN | Features::INDIRECT_DESC);
    ring.add(
        &segments(5, Direction::DeviceReads),
        DescriptorTable::Indirect,
        0,
    )
    .unwrap();
    let head = raw.descriptor(0).unwrap();
    assert_eq!(
        (head.flags, head.len, ring.free_descriptors()),
        (INDIRECT, 5 * 16, 7)
    );
    let mut last = [0; 16];
    memory.read(head.address + 4 * 16, &mut last).unwrap();
    assert_eq!(last[12..14], [0, 0], "the last entry has no flags");
}

#[test]
fn nothing_is_visible_before_it_is_published() {
    let (mut ring, raw, _memory) = ring(8, PLAIN);
    add(&mut ring, 1, 0);
    assert_eq!(raw.avail_index().unwrap(), 0);
    assert!(ring.kick_eventfd().read().is_err());
    ring.publish().unwrap();
    assert_eq!(raw.avail_index().unwrap(), 1);
    assert_eq!(ring.kick_eventfd().read().unwrap(), 1);
}

#[test]
fn a_full_ring_says_so_and_a_chain_longer_than_the_ring_never_fits() {
    let (mut ring, _raw, _memory) = ring(4, PLAIN);
    add(&mut ring, 3, 0);
    let two = segments(2, Direction::DeviceWrites);
    assert!(matches!(
        ring.add(&two, DescriptorTable::Direct, 0),
        Err(Error::RingFull)
    ));
    let five = segments(5, Direction::DeviceWrites);
    for table in [DescriptorTable::Direct, DescriptorTable::Indirect] {
        assert!(matches!(
            ring.add(&five, table, 0),
            Err(Error::ChainTooLong { .. })
        ));
    }
}

#[test]
fn chains_used_out_of_order_give_their_descriptors_back() {
    let (mut ring, raw, _memory) = ring(8, PLAIN);
    for round in 0..1000 {
        for token in 0..4 {
            add(&mut ring, 2, token);
        }
        ring.publish().unwrap();
        let heads: Vec<_> = (0..4)
            .map(|at| raw.avail_entry(4u16.wrapping_mul(round) + at).unwrap())
            .collect();
        for token in [2, 0, 3, 1] {
            use_one(&raw, heads[token], 1, 1);
            assert_eq!(ring.pop_used().unwrap().unwrap().token, token as u32);
        }
        assert_eq!(ring.free_descriptors(), 8);
    }
}

#[test]
fn with_in_order_descriptors_are_taken_in_the_order_of_the_table() {
    let (mut ring, raw, _memory) = ring(8, PLAIN | Features::IN_ORDER);
    for (heads, round) in [([0, 3], 0), ([6, 1], 1), ([4, 7], 2)] {
        add(&mut ring, 3, 0);
        add(&mut ring, 3, 1);
        ring.publish().unwrap();
        assert_eq!(
            [
                raw.avail_entry(2 * round).unwrap(),
                raw.avail_entry(2 * round + 1).unwrap()
            ],
            heads
        );
        // VIRTIO 1.3 §2.7.9: next is x + 1, and 0 after the last.
        assert_eq!(raw.descriptor(heads[0]).unwrap().next, (heads[0] + 1) % 8);
        use_one(&raw, heads[0], 1, 1);
        use_one(&raw, heads[1], 1, 1);
        ring.pop_used().unwrap().unwrap();
        ring.pop_used().unwrap().unwrap();
    }
}

#[test]
fn one_in_order_element_stands_for_a_batch() {
    let (mut ring, raw, _memory) = ring(8, PLAIN | Features::IN_ORDER);
    for token in 0..5 {
        add(&mut ring, 1, 10 + token);
    }
    ring.publish().unwrap();
    // Chains 0 to 2 in one element, then 3 to 4 in the next, which stands in the slot behind the batch.
    use_one(&raw, 2, 7, 3);
    use_one(&raw, 4, 9, 2);
    let mut back = Vec::new();
    while let Some(completion) = ring.pop_used().unwrap() {
        back.push((completion.token, completion.written));
    }
    // Skipped chains were filled.
    assert_eq!(back, [(10, 0x80), (11, 0x80), (12, 7), (13, 0x80), (14, 9)]);
    assert_eq!(ring.free_descriptors(), 8);
}

#[test]
fn an_in_order_device_that_swaps_two_chains_is_found_out() {
    let (mut ring, raw, _memory) = ring(8, PLAIN | Features::IN_ORDER);
    add(&mut ring, 1, 0);
    add(&mut ring, 1, 1);
    ring.publish().unwrap();
    use_one(&raw, 1, 0, 1);
    assert!(matches!(
        fault(&mut ring),
        DeviceFault::OutOfOrder {
            ring: 3,
            slot: 0,
            id: 1
        }
    ));
}

#[test]
fn a_used_index_ahead_of_what_was_published_is_found_out() {
    let (mut ring, raw, _memory) = ring(8, PLAIN);
    add(&mut ring, 1, 0);
    raw.set_used_index(1).unwrap();
    assert!(matches!(
        fault(&mut ring),
        DeviceFault::UsedIndexAhead {
            used: 1,
            outstanding: 0,
            ..
        }
    ));
}

#[test]
fn a_used_id_that_heads_no_chain_is_found_out() {
    for id in [1, 5, 8, 0xffff_ffff, 0x1_0000] {
        let (mut ring, raw, _memory) = ring(8, PLAIN);
        add(&mut ring, 2, 0);
        ring.publish().unwrap();
        raw.set_used_entry(0, id, 0).unwrap();
        raw.set_used_index(1).unwrap();
        assert!(
            matches!(fault(&mut ring), DeviceFault::UnknownUsedId { slot: 0, .. }),
            "{id}"
        );
    }
}

#[test]
fn a_chain_used_twice_is_found_out() {
    let (mut ring, raw, _memory) = ring(8, PLAIN);
    add(&mut ring, 1, 0);
    add(&mut ring, 1, 1);
    ring.publish().unwrap();
    use_one(&raw, 0, 0, 1);
    use_one(&raw, 0, 0, 1);
    ring.pop_used().unwrap().unwrap();
    assert!(matches!(
        fault(&mut ring),
        DeviceFault::UnknownUsedId { id: 0, .. }
    ));
}

#[test]
fn more_written_than_there_is_room_for_is_found_out() {
    let (mut ring, raw, _memory) = ring(8, PLAIN);
    add(&mut ring, 2, 0);
    ring.publish().unwrap();
    use_one(&raw, 0, 0x101, 1);
    assert!(matches!(
        fault(&mut ring),
        DeviceFault::WrittenTooLong {
            written: 0x101,
            writable: 0x100,
            ..
        }
    ));
}

#[test]
fn a_device_that_wants_no_kick_gets_none() {
    let (mut ring, raw, memory) = ring(8, PLAIN);
    let used = raw.memory().used().guest_address();
    memory.write(used, &1u16.to_le_bytes()).unwrap();
    add(&mut ring, 1, 0);
    ring.publish().unwrap();
    assert!(ring.kick_eventfd().read().is_err());
    assert_eq!(ring.notification_counts().kicks_suppressed, 1);
}

#[test]
fn with_event_idx_a_kick_comes_when_the_index_passes_the_one_asked_for() {
    let (mut ring, raw, memory) = ring(8, PLAIN | Features::EVENT_IDX);
    let avail_event = raw.memory().used().guest_address() + 4 + 8 * 8;
    memory.write(avail_event, &2u16.to_le_bytes()).unwrap();
    let mut kicked = Vec::new();
    for _ in 0..4 {
        add(&mut ring, 1, 0);
        ring.publish().unwrap();
        kicked.push(ring.kick_eventfd().read().is_ok());
    }
    assert_eq!(kicked, [false, false, true, false]);
}

#[test]
fn calls_are_asked_for_by_flag_or_by_index() {
    let (mut flags, raw_flags, _one) = ring(8, PLAIN);
    flags.disarm_call().unwrap();
    let avail_flags = |raw: &RawRing| {
        let mut word = [0; 2];
        let avail = raw.memory().avail();
        avail.slice(0, 2).unwrap().copy_to(&mut word);
        u16::from_le_bytes(word)
    };
    assert_eq!(avail_flags(&raw_flags), 1);
    assert!(!flags.arm_call().unwrap());
    assert_eq!(avail_flags(&raw_flags), 0);

    let (mut index, raw_index, _other) = ring(8, PLAIN | Features::EVENT_IDX);
    index.disarm_call().unwrap();
    // VIRTIO 1.3 §2.7.7.1: the flag stays 0 with EVENT_IDX.
    assert_eq!(avail_flags(&raw_index), 0);
    add(&mut index, 1, 0);
    index.publish().unwrap();
    use_one(&raw_index, 0, 0, 1);
    assert!(
        index.arm_call().unwrap(),
        "what came before arming must be seen"
    );
}

#[test]
fn a_driver_that_declined_calls_is_never_called_however_long_it_runs() {
    let (mut ring, raw, memory) = ring(8, PLAIN | Features::EVENT_IDX);
    ring.disarm_call().unwrap();
    let used_event = raw.memory().avail().guest_address() + 4 + 2 * 8;
    for _ in 0..200_000u32 {
        add(&mut ring, 1, 0);
        ring.publish().unwrap();
        let old = raw.used_index().unwrap();
        let mut event = [0; 2];
        memory.read(used_event, &mut event).unwrap();
        let head = raw.avail_entry(old).unwrap();
        use_one(&raw, head, 0, 1);
        // What a device asks itself (VIRTIO 1.3 §2.7.7.2).
        assert_ne!(u16::from_le_bytes(event), old, "the device would call");
        ring.pop_used().unwrap().unwrap();
    }
}
