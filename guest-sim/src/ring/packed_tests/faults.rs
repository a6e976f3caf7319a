//! What the driver notices about a device that breaks the rules of a packed ring.

use super::{Device, PLAIN, add, at, ring, segments, tokens};
use crate::error::{DeviceFault, Error};
use crate::features::Features;
use crate::ring::raw::WRITE;
use crate::ring::raw_packed::{AVAIL, USED};
use crate::ring::{
    DescriptorTable, Direction, PackedDescriptor, Position, RawPackedRing, Virtqueue,
};

fn fault(ring: &mut Virtqueue) -> DeviceFault {
    match ring.pop_used() {
        Err(Error::Device(fault)) => fault,
        other => panic!("no fault: {other:?}"),
    }
}

#[test]
fn a_used_descriptor_that_names_no_chain_with_the_device_is_found_out() {
    for features in [PLAIN, PLAIN | Features::IN_ORDER] {
        // An id past the ring, one never given out, one used twice, one not published yet.
        let (mut ring, raw, _memory) = ring(8, features);
        let mut device = Device::new(&ring);
        add(&mut ring, 1, 0);
        add(&mut ring, 1, 1);
        ring.publish().unwrap();
        let (first, _) = device.read().unwrap();
        let (second, _) = device.read().unwrap();
        add(&mut ring, 1, 2);
        let unpublished = ring_next_id(&mut ring, &raw, features);
        for id in [8, u16::MAX, unpublished] {
            raw.set_used(Position::START, id, 0).unwrap();
            let found = fault(&mut ring);
            assert!(
                matches!(found, DeviceFault::UnknownUsedId { slot: 0, .. }),
                "{found}"
            );
        }
        device.use_batch(first, 1, 0);
        assert_eq!(tokens(&mut ring), [0]);
        raw.set_used(at(1, true), first, 0).unwrap();
        assert!(matches!(
            fault(&mut ring),
            DeviceFault::UnknownUsedId { slot: 1, .. }
        ));
        raw.set_used(at(1, true), second, 0).unwrap();
        assert_eq!(tokens(&mut ring), [1]);
    }
}

#[test]
fn a_device_that_writes_more_than_one_descriptor_for_a_list_or_a_batch_is_found_out() {
    for features in [PLAIN, PLAIN | Features::IN_ORDER] {
        let (mut ring, raw, _memory) = ring(8, features);
        let mut device = Device::new(&ring);
        add(&mut ring, 3, 0);
        add(&mut ring, 1, 1);
        ring.publish().unwrap();
        let (id, _) = device.read().unwrap();
        device.use_batch(id, 3, 0);
        assert_eq!(tokens(&mut ring), [0]);
        ring.verify_untouched().unwrap();
        // As a device does that does not skip the list.
        raw.set_used(at(1, true), id, 0).unwrap();
        let found = ring.verify_untouched();
        assert!(
            matches!(
                found,
                Err(Error::Device(DeviceFault::DescriptorOverwritten {
                    slot: 1,
                    ..
                }))
            ),
            "{found:?}"
        );
    }
}

/// The id of the chain that was added last and not published, as it will stand in the ring.
fn ring_next_id(ring: &mut Virtqueue, raw: &RawPackedRing, features: Features) -> u16 {
    // Added behind an unpublished one, it is in the ring already, though nobody may look.
    add(ring, 1, 3);
    let id = raw.descriptor(3).unwrap().id;
    let before = if features.contains(Features::IN_ORDER) {
        id.wrapping_sub(1)
    } else {
        id + 1
    };
    assert!(before < 8);
    before
}

#[test]
fn a_used_descriptor_where_nothing_is_with_the_device_is_found_out() {
    let (mut ring, raw, _memory) = ring(4, PLAIN);
    assert!(!ring.has_used().unwrap());
    raw.set_used(Position::START, 0, 0).unwrap();
    assert!(ring.has_used().unwrap());
    assert!(matches!(
        fault(&mut ring),
        DeviceFault::UnknownUsedId { .. }
    ));
}

#[test]
fn more_bytes_than_a_chain_has_room_for_are_found_out() {
    let (mut ring, _raw, _memory) = ring(4, PLAIN);
    let mut device = Device::new(&ring);
    add(&mut ring, 2, 0);
    ring.publish().unwrap();
    let (id, _) = device.read().unwrap();
    device.use_batch(id, 2, 0x101);
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
fn the_write_flag_says_whether_the_length_counts() {
    let (mut ring, raw, _memory) = ring(4, PLAIN);
    add(&mut ring, 1, 0);
    ring.add(
        &segments(1, Direction::DeviceReads),
        DescriptorTable::Direct,
        1,
    )
    .unwrap();
    ring.publish().unwrap();
    let mut device = Device::new(&ring);
    let (first, _) = device.read().unwrap();
    let (second, _) = device.read().unwrap();
    // VIRTIO 1.3 §2.8.4: without WRITE the length is ignored, however wrong.
    let silent = PackedDescriptor {
        len: 0x5555,
        id: first,
        flags: AVAIL | USED,
        ..PackedDescriptor::default()
    };
    raw.set_descriptor(0, silent).unwrap();
    assert_eq!(ring.pop_used().unwrap().unwrap().written, 0);
    let lying = PackedDescriptor {
        id: second,
        flags: AVAIL | USED | WRITE,
        ..PackedDescriptor::default()
    };
    raw.set_descriptor(1, lying).unwrap();
    assert!(matches!(
        fault(&mut ring),
        DeviceFault::UsedFlags { slot: 1, .. }
    ));
}

#[test]
fn flags_of_another_turn_on_a_descriptor_with_the_device_are_found_out() {
    for flags in [0, USED] {
        let (mut ring, raw, _memory) = ring(4, PLAIN);
        add(&mut ring, 1, 0);
        ring.publish().unwrap();
        assert_eq!(ring.pop_used().unwrap(), None);
        let descriptor = PackedDescriptor {
            flags,
            ..PackedDescriptor::default()
        };
        raw.set_descriptor(0, descriptor).unwrap();
        assert!(ring.has_used().unwrap());
        assert!(matches!(fault(&mut ring), DeviceFault::UsedFlags { .. }));
    }
}
