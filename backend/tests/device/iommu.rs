//! A guest behind an IOMMU, in the state machine: when addresses are translated, when rings wait, what front-ends may say.

use crate::machine::*;
use crate::rig::new_eventfd;
use ringswitch::datapath::QueueIndex;
use ringswitch::device::descriptors::BackendSocket;
use ringswitch::device::message::{
    HEADER_BYTES, Header, IotlbChange, Message, Reply, Request, RequestCode,
};
use ringswitch::device::recording::Effect;
use ringswitch::device::ring_state::RingPhase;
use ringswitch::ring::Translation;
use std::os::unix::net::UnixStream;

const ACCESS_PLATFORM: u64 = 1 << 33;
const BACKEND_REQ: u64 = 0x20;
/// Where the rings are for the device.
const IOVA: u64 = 0x1_0000_0000;

fn translation(index: u32) -> Translation {
    Translation {
        iova: IOVA + 0x4000 * u64::from(index),
        size_bytes: 0x4000,
        user_addr: addresses(index).descriptor_table,
        readable: true,
        writable: true,
    }
}

fn update(index: u32) -> Request {
    Request::Iotlb(IotlbChange::Update(translation(index)))
}

fn invalidate(index: u32) -> Request {
    let Translation {
        iova, size_bytes, ..
    } = translation(index);
    Request::Iotlb(IotlbChange::Invalidate {
        first: iova,
        last: iova + size_bytes - 1,
    })
}

fn socket() -> BackendSocket {
    BackendSocket::new(UnixStream::pair().unwrap().0.into())
}

/// QEMU, up to the kick of both rings, with nothing translated.
fn machine() -> Machine {
    let mut machine = Machine::new(1);
    machine.ok(Request::SetProtocolFeatures(QEMU | BACKEND_REQ));
    machine.ok(Request::SetBackendReqFd(socket()));
    machine.ok(Request::SetFeatures(MODERN | ACCESS_PLATFORM));
    for index in 0..2 {
        machine.ok(Request::SetVringNum { index, size: 256 });
        machine.ok(Request::SetVringBase { index, base: 0 });
        let shift =
            |address: u64| address - addresses(index).descriptor_table + translation(index).iova;
        let told = addresses(index);
        machine.ok(Request::SetVringAddr(
            ringswitch::device::message::VringAddresses {
                descriptor_table: shift(told.descriptor_table),
                available_ring: shift(told.available_ring),
                used_ring: shift(told.used_ring),
                ..told
            },
        ));
        machine.ok(Request::SetVringKick(index, Some(new_eventfd())));
    }
    machine
}

#[test]
fn rings_wait_until_their_parts_are_known_and_again_when_they_are_taken_away() {
    let mut machine = machine();
    assert_eq!(
        [0, 1].map(|index| machine.phase(index)),
        [RingPhase::Waiting; 2]
    );
    let fault = machine.device.session().rings[0].fault.clone();
    assert!(fault.is_some_and(|fault| fault.contains("0x100000000")));
    machine.effects();
    machine.ok(update(1));
    assert_eq!(machine.start_of(1).map(|start| start.base), Some(0));
    machine.ok(update(0));
    assert_eq!(machine.phase(0), RingPhase::Running);
    assert_eq!(machine.device.session().rings[0].fault, None);
    // Taken away under the running ring: it is stopped before the answer, and goes on from where it was.
    machine.recorded().stop_at.insert(QueueIndex(0), 77);
    machine.effects();
    machine.ok(invalidate(0));
    assert!(machine.effects().contains(&Effect::Stop(QueueIndex(0))));
    assert_eq!(
        [0, 1].map(|index| machine.phase(index)),
        [RingPhase::Waiting, RingPhase::Running]
    );
    machine.ok(update(0));
    assert_eq!(machine.start_of(0).map(|start| start.base), Some(77));
    machine.ok(invalidate(0));
    assert_eq!(
        machine.stop(0),
        77,
        "a ring that waits is stopped like any other"
    );
    machine.ok(update(0));
    assert_eq!(machine.phase(0), RingPhase::Stopped);
}

#[test]
fn what_was_known_before_a_driver_stopped_its_device_counts_no_more() {
    let mut machine = machine();
    machine.ok(update(0));
    machine.ok(update(1));
    machine.effects();
    machine.stop(0);
    let all_gone = Effect::UnmapIo(0, u64::MAX);
    assert!(!machine.effects().contains(&all_gone), "ring 1 runs");
    machine.stop(1);
    assert!(machine.effects().contains(&all_gone));
    machine.ok(Request::SetFeatures(MODERN | ACCESS_PLATFORM));
    machine.ok(Request::SetVringKick(0, Some(new_eventfd())));
    assert_eq!(machine.phase(0), RingPhase::Waiting);
}

#[test]
fn addresses_are_the_guests_own_unless_somebody_can_be_asked() {
    // DPDK's virtio_user acks ACCESS_PLATFORM and knows nothing of an IOTLB.
    let mut machine = Machine::new(1);
    machine.ok(Request::SetFeatures(MODERN | ACCESS_PLATFORM));
    for index in 0..2 {
        machine.set_up_ring(index);
        assert!(machine.kick(index).is_some());
    }
    machine.refused(Request::SetBackendReqFd(socket()));
    machine.refused(update(0));
    machine.ok(invalidate(0));
    assert!(!machine.effects().contains(&Effect::Translate(true)));
}

#[test]
fn translating_begins_and_ends_with_the_feature() {
    let mut machine = machine();
    machine.ok(update(0));
    machine.effects();
    machine.ok(Request::SetFeatures(MODERN | ACCESS_PLATFORM));
    assert!(
        !machine.effects().contains(&Effect::Translate(true)),
        "no change"
    );
    machine.tell(Request::SetFeatures(MODERN));
    assert!(machine.effects().contains(&Effect::Translate(false)));
    machine.end_session();
    assert!(!machine.device.is_translating());
}

#[test]
fn every_iotlb_message_is_answered() {
    let mut machine = machine();
    // Nobody asked for a reply.
    let answer = machine.tell(update(0));
    assert_eq!(answer.reply, Some(Reply::Value(0)));
    assert_eq!(machine.tell(invalidate(7)).reply, Some(Reply::Value(0)));
    let elsewhere = Translation {
        user_addr: 0,
        ..translation(0)
    };
    for hostile in [IotlbChange::Update(elsewhere), IotlbChange::Impossible] {
        let answer = machine.tell(Request::Iotlb(hostile));
        assert_eq!(answer.reply, Some(Reply::Value(1)), "{hostile:?}");
        assert!(answer.refusal.is_some());
    }
    assert_eq!(machine.phase(0), RingPhase::Running);
}

#[test]
fn what_cannot_be_a_translation_is_none() {
    let decode = |[iova, size, user, last]: [u64; 4]| {
        let body = [iova, size, user, last].map(u64::to_ne_bytes).concat();
        let message = Message {
            header: Header {
                request: RequestCode(22),
                need_reply: true,
                body_bytes: body.len(),
            },
            body,
            descriptors: Vec::new(),
        };
        match message.decode() {
            Ok(Request::Iotlb(change)) => change,
            other => panic!("{other:?}"),
        }
    };
    let last = |permission: u8, kind: u8| u64::from_ne_bytes([permission, kind, 0, 0, 0, 0, 0, 0]);
    assert_eq!(HEADER_BYTES, 12);
    for (name, words) in [
        ("empty", [0x1000, 0, 0x1000, last(3, 2)]),
        ("wraps", [u64::MAX - 0xffe, 0x1000, 0x1000, last(3, 2)]),
        (
            "the front-end's wraps",
            [0x1000, 0x1000, u64::MAX - 0xffe, last(3, 2)],
        ),
        ("no permission", [0x1000, 0x1000, 0x1000, last(0, 2)]),
        ("a miss", [0x1000, 0x1000, 0x1000, last(3, 1)]),
        ("a fault", [0x1000, 0x1000, 0x1000, last(3, 4)]),
        ("unknown", [0x1000, 0x1000, 0x1000, last(3, 200)]),
    ] {
        assert_eq!(decode(words), IotlbChange::Impossible, "{name}");
    }
    let whole = [0x1000, 0x1000, 0x7000, last(1, 2)];
    assert!(matches!(decode(whole), IotlbChange::Update(t) if t.readable && !t.writable));
    let (first, last_iova) = (0x5000, u64::MAX);
    let everything = IotlbChange::Invalidate {
        first,
        last: last_iova,
    };
    assert_eq!(decode([first, 0, 0, last(0, 3)]), everything);
    assert_eq!(decode([first, u64::MAX, 0, last(0, 3)]), everything);
}
