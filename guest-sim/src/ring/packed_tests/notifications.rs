//! Kicks and calls of a packed ring.

use super::{Device, PLAIN, add, at, ring, tokens};
use crate::error::{DeviceFault, Error};
use crate::features::Features;
use crate::ring::{EventSuppression, Position, Virtqueue};

/// Adds `count` single descriptors, publishes them, and says whether that kicked.
fn kicks(ring: &mut Virtqueue, count: u32) -> Result<bool, Error> {
    (0..count).for_each(|_| add(ring, 1, 0));
    ring.publish()?;
    Ok(ring.kick_eventfd().read().is_ok())
}

fn event(position: Position, flags: u16) -> EventSuppression {
    EventSuppression {
        position: position.word(),
        flags,
    }
}

#[test]
fn a_kick_comes_when_the_device_wants_it() {
    let (mut ring, raw, _memory) = ring(8, PLAIN);
    assert!(kicks(&mut ring, 1).unwrap());
    raw.set_device_event(event(Position::START, EventSuppression::DISABLE))
        .unwrap();
    assert!(!kicks(&mut ring, 1).unwrap());
    let counts = ring.notification_counts();
    assert_eq!((counts.kicks, counts.kicks_suppressed), (1, 1));
}

#[test]
fn with_event_idx_a_kick_comes_when_the_place_asked_for_is_passed_in_its_turn() {
    let (mut ring, raw, _memory) = ring(5, PLAIN | Features::EVENT_IDX);
    let mut device = Device::new(&ring);
    let want = |position| {
        raw.set_device_event(event(position, EventSuppression::DESC))
            .unwrap();
    };
    want(at(2, true));
    assert!(!kicks(&mut ring, 2).unwrap(), "places 0 and 1");
    assert!(kicks(&mut ring, 1).unwrap(), "place 2");
    assert!(!kicks(&mut ring, 1).unwrap(), "place 3");
    while let Some((id, count)) = device.read() {
        device.use_batch(id, count, 0);
    }
    assert_eq!(tokens(&mut ring).len(), 4);
    // Place 1 of the turn before, and of the next.
    want(at(1, true));
    assert!(!kicks(&mut ring, 3).unwrap(), "places 4, 0 and 1");
    want(at(3, false));
    assert!(kicks(&mut ring, 2).unwrap(), "places 2 and 3");
    while let Some((id, count)) = device.read() {
        device.use_batch(id, count, 0);
    }
    assert_eq!(tokens(&mut ring).len(), 5);
    // A whole ring at once passes every place of the turn.
    want(at(3, true));
    assert!(kicks(&mut ring, 5).unwrap(), "places 4, 0, 1, 2 and 3");
}

#[test]
fn a_wish_for_kicks_that_makes_no_sense_is_found_out() {
    let cases = [
        (PLAIN, at(0, true), EventSuppression::DESC),
        (PLAIN | Features::EVENT_IDX, at(8, true), 2),
        (PLAIN | Features::EVENT_IDX, at(0, true), 3),
        (PLAIN | Features::EVENT_IDX, at(0, true), 4),
        (PLAIN, at(0, true), 0x8000),
    ];
    for (features, position, flags) in cases {
        let (mut ring, raw, _memory) = ring(8, features);
        raw.set_device_event(event(position, flags)).unwrap();
        assert!(
            matches!(
                kicks(&mut ring, 1),
                Err(Error::Device(DeviceFault::EventSuppression { .. }))
            ),
            "{flags:#x}"
        );
    }
}

#[test]
fn calls_are_asked_for_by_flag_or_by_place() {
    let (mut flags, raw_flags, _one) = ring(8, PLAIN);
    flags.disarm_call().unwrap();
    assert_eq!(raw_flags.driver_event().unwrap().flags, 1);
    assert!(!flags.arm_call().unwrap());
    assert_eq!(raw_flags.driver_event().unwrap().flags, 0);

    let (mut place, raw_place, _other) = ring(3, PLAIN | Features::EVENT_IDX);
    let mut device = Device::new(&place);
    place.disarm_call().unwrap();
    assert_eq!(raw_place.driver_event().unwrap().flags, 1);
    for used in [at(0, true), at(2, true)] {
        add(&mut place, 2, 0);
        place.publish().unwrap();
        let (id, count) = device.read().unwrap();
        assert!(!place.arm_call().unwrap());
        assert_eq!(
            raw_place.driver_event().unwrap(),
            event(used, EventSuppression::DESC)
        );
        device.use_batch(id, count, 0);
        assert!(
            place.arm_call().unwrap(),
            "what came before arming must be seen"
        );
        place.pop_used().unwrap().unwrap();
    }
    place.arm_call().unwrap();
    assert_eq!(
        raw_place.driver_event().unwrap(),
        event(at(1, false), EventSuppression::DESC)
    );
}
