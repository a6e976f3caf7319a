//! Features, protocol features, and the requests around them: one row of what front-ends do for each test.

use crate::machine::*;
use ringswitch::datapath::QueueIndex;
use ringswitch::device::message::{Reply, Request};
use ringswitch::device::recording::Effect;
use ringswitch::device::state::FrontEnd;

const REPLY_ACK: u64 = 1 << 3;
const RARP: u64 = 1 << 2;
const NET_MTU: u64 = 1 << 4;
const MQ: u64 = 1;
const MEM_SLOTS: u64 = 1 << 15;

#[test]
fn negotiation_may_be_repeated_for_each_pair() {
    let mut machine = Machine::new(2);
    for _ in 0..2 {
        let offered = machine.value(Request::GetFeatures);
        let protocol = machine.value(Request::GetProtocolFeatures);
        machine.ok(Request::SetProtocolFeatures(protocol));
        machine.ok(Request::SetOwner);
        machine.ok(Request::SetFeatures(offered));
    }
}

#[test]
fn nothing_is_answered_unasked_before_reply_ack() {
    let mut machine = Machine::bare(1);
    assert_eq!(machine.ask(Request::SetOwner).reply, None);
    assert_eq!(machine.ask(Request::Unsupported).reply, None);
    assert_eq!(
        machine.ask(Request::SetProtocolFeatures(REPLY_ACK)).reply,
        Some(Reply::Value(0))
    );
    assert_eq!(
        machine.tell(Request::SetOwner).reply,
        None,
        "nor after it without need_reply"
    );
}

#[test]
fn features_that_were_not_offered_are_refused_and_change_nothing() {
    let mut machine = Machine::new(1);
    machine.ok(Request::SetFeatures(MODERN));
    for bit in [34, 40, 57, 63] {
        machine.refused(Request::SetFeatures(MODERN | 1 << bit));
        assert_eq!(machine.device.session().features, Some(MODERN), "bit {bit}");
    }
    machine.refused(Request::SetProtocolFeatures(1 << 9));
    assert_ne!(machine.device.session().protocol_features, 1 << 9);
}

#[test]
fn legacy_guests_ack_no_version_1() {
    let mut machine = Machine::new(1);
    machine.ok(Request::SetFeatures(PROTOCOL_FEATURES));
    machine.set_up_ring(0);
    let start = machine.kick(0).expect("the ring starts");
    assert_eq!(start.features & 1 << 32, 0);
}

#[test]
fn get_queue_num_counts_what_the_front_end_counts() {
    // (acked protocol features, front-end, answer for three pairs)
    let table = [
        (
            MQ | RARP | REPLY_ACK | NET_MTU | MEM_SLOTS,
            FrontEnd::Qemu,
            3,
        ),
        (MQ | RARP, FrontEnd::Qemu, 3),
        (MQ | REPLY_ACK | MEM_SLOTS, FrontEnd::CloudHypervisor, 6),
        (MQ | REPLY_ACK, FrontEnd::Other, 6),
    ];
    for (acked, front_end, queues) in table {
        let mut machine = Machine::bare(3);
        assert_eq!(
            machine.value(Request::GetQueueNum),
            3,
            "before anybody is known"
        );
        machine.tell(Request::SetProtocolFeatures(acked));
        assert_eq!(machine.device.session().front_end, front_end);
        assert_eq!(machine.value(Request::GetQueueNum), queues, "{front_end:?}");
    }
}

#[test]
fn cloud_hypervisor_restores_without_asking_what_is_offered() {
    let mut machine = Machine::bare(1);
    machine.tell(Request::SetOwner);
    machine.value(Request::GetFeatures);
    assert!(
        machine
            .ask(Request::SetProtocolFeatures(MQ | REPLY_ACK | MEM_SLOTS))
            .refusal
            .is_none()
    );
    machine.ok(Request::SetFeatures(MODERN));
    machine.share_memory();
    machine.set_up_ring(0);
    assert!(machine.kick(0).is_some());
}

#[test]
fn set_features_on_live_rings_changes_neither_indices_nor_enablement() {
    let mut machine = Machine::running(2);
    machine.ok(Request::SetFeatures(MODERN | 1 << 29));
    assert_eq!(machine.effects(), [Effect::SetFeatures(MODERN | 1 << 29)]);
    assert_eq!(machine.recorded().enabled.len(), 4);
}

#[test]
fn a_ring_that_new_features_do_not_fit_is_named() {
    let mut machine = Machine::running(1);
    machine.recorded().lose_at_next_change = vec![QueueIndex(1)];
    machine.refused(Request::SetFeatures(MODERN | 1 << 29));
    assert!(machine.device.session().rings[1].fault.is_some());
    assert!(machine.device.any_ring_runs(), "ring 0 goes on");
}

#[test]
fn the_offer_is_the_same_for_every_front_end() {
    let mut machine = Machine::running(2);
    let before = machine.value(Request::GetFeatures);
    machine.end_session();
    assert_eq!(machine.value(Request::GetFeatures), before);
    assert_eq!(machine.device.session().features, None);
    assert_eq!(machine.device.session().front_end, FrontEnd::Unknown);
}

#[test]
fn an_mtu_is_kept_if_virtio_and_the_port_allow_it() {
    for (limit, mtu, fits) in [
        (None, 67, false),
        (None, 68, true),
        (None, 9216, true),
        (None, 65_535, true),
        (None, 65_536, false),
        (None, u64::MAX, false),
        (Some(1500), 1500, true),
        (Some(1500), 1501, false),
    ] {
        let mut machine = Machine::with_mtu_limit(limit);
        let refused = machine.ask(Request::NetSetMtu(mtu)).refusal.is_some();
        assert_eq!(!refused, fits, "{mtu} with {limit:?}");
        assert_eq!(machine.device.session().mtu.is_some(), fits);
    }
}

#[test]
fn a_rarp_goes_out_at_once_while_a_ring_runs() {
    let mut machine = Machine::running(1);
    machine.ok(Request::SendRarp([2, 0, 0, 0, 0, 1]));
    assert!(matches!(machine.effects().as_slice(), [Effect::Inject(frame)] if frame.len() == 60));
}

#[test]
fn a_rarp_for_an_impossible_address_is_refused() {
    let mut machine = Machine::running(1);
    machine.refused(Request::SendRarp([0; 6]));
    machine.refused(Request::SendRarp([0xff; 6]));
    machine.refused(Request::SendRarp([1, 0, 0x5e, 0, 0, 1]));
    assert!(machine.effects().is_empty());
}

#[test]
fn the_state_survives_serialisation() {
    let machine = Machine::running(2);
    let json = serde_json::to_string(&machine.device).unwrap();
    let back: ringswitch::device::state::DeviceState = serde_json::from_str(&json).unwrap();
    assert_eq!(back, machine.device);
}
