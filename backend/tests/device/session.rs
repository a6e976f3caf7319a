//! Whole sessions with `vhost`'s front-end, in the orders of QEMU and of Cloud Hypervisor.

use crate::rig::*;
use ringswitch::datapath::QueueIndex;
use ringswitch::device::recording::Effect;
use ringswitch::device::state::FrontEnd;
use std::os::fd::AsFd;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

#[test]
fn a_cloud_hypervisor_session_brings_the_port_up() {
    let (rig, attachment) = Rig::with_port(1);
    let mut front_end = rig.front_end(PORT);
    negotiate(&mut front_end, cloud_hypervisor_features());
    assert_eq!(front_end.get_queue_num().unwrap(), 2, "counted in rings");
    let guest = Guest::new(2);
    activate(&mut front_end, &guest);

    let status = rig.status(PORT);
    assert_eq!((status.state.as_str(), status.reason), ("up", None));
    assert_eq!(status.front_end, FrontEnd::CloudHypervisor);
    assert_eq!(
        (status.memory_regions, status.memory_bytes),
        (1, MEMORY_BYTES)
    );
    assert_eq!(attachment.recording().running.len(), 2);
    assert_eq!(rig.ups_and_downs(), ["up"]);
}

#[test]
fn a_qemu_session_counts_pairs_and_survives_its_order_of_messages() {
    let (rig, attachment) = Rig::with_port(2);
    let mut front_end = rig.front_end(PORT);
    negotiate(&mut front_end, qemu_features());
    // `vhost`'s front-end takes the answer for rings, so the session ends here.
    assert_eq!(front_end.get_queue_num().unwrap(), 2, "counted in pairs");
    assert_eq!(rig.status(PORT).front_end, FrontEnd::Qemu);
    drop(front_end);
    eventually("the session ends", || {
        attachment
            .take_effects()
            .contains(&Effect::ForgetSession)
            .then_some(())
    });

    let mut qemu = rig.raw(PORT);
    qemu_connects(&mut qemu);
    qemu_starts(&mut qemu);
    let status = rig.status(PORT);
    assert_eq!((status.state.as_str(), &status.reason), ("up", &None));
    let expected = [
        "start 0 at 0",
        "start 1 at 0",
        "start 2 at 0",
        "start 3 at 0",
    ];
    assert_eq!(starts_and_stops(&attachment.take_effects()), expected);
    assert_eq!(
        attachment.recording().enabled.len(),
        4,
        "enabled before SET_FEATURES, and still"
    );
}

fn vring(index: u32, num: u32) -> Vec<u8> {
    [index, num].map(u32::to_ne_bytes).concat()
}

/// Owner, features for each pair, CALLs, and SET_VRING_ENABLE at machine reset: all before SET_FEATURES.
fn qemu_connects(qemu: &mut Raw) {
    for pair in 0..2_u32 {
        let features = qemu.value_of(1, 0, &[]);
        assert_ne!(features & PROTOCOL_FEATURES, 0);
        let protocol = qemu.value_of(15, 0, &[]);
        qemu.send(16, 0, &protocol.to_ne_bytes());
        if pair == 0 {
            assert_eq!(qemu.value_of(17, 0, &[]), 2);
            assert_eq!(qemu.value_of(36, 0, &[]), 509);
        }
        qemu.send(3, 0, &[]);
        for ring in 2 * pair..2 * pair + 2 {
            qemu_event(qemu, 13, ring);
        }
    }
    for ring in 0..4 {
        assert_eq!(
            qemu.value_of(18, 8, &vring(ring, 1)),
            0,
            "enable is accepted before SET_FEATURES"
        );
    }
}

fn qemu_event(qemu: &mut Raw, request: u32, ring: u32) {
    let event = new_eventfd();
    let body = u64::from(ring).to_ne_bytes();
    qemu.try_send(request, 0, &body, &[event.as_fd()]).unwrap();
}

fn qemu_starts(qemu: &mut Raw) {
    for pair in 0..2_u32 {
        // The second comes while rings 0 and 1 are live.
        qemu.send(2, 0, &(VERSION_1 | PROTOCOL_FEATURES).to_ne_bytes());
        if pair == 0 {
            let words = [1_u64, 0, MEMORY_BYTES, USER_BASE, 0];
            let body = words.map(u64::to_ne_bytes).concat();
            let memory = memfd(MEMORY_BYTES);
            qemu.try_send(5, 8, &body, &[memory.as_fd()]).unwrap();
            assert_eq!(qemu.reply(), Some((5, 0)));
        }
        for ring in 2 * pair..2 * pair + 2 {
            let at = addresses(ring as usize);
            qemu.send(8, 0, &vring(ring, 256));
            qemu.send(10, 0, &vring(ring, 0));
            let mut body = vring(ring, 0);
            for word in [at.desc_table_addr, at.used_ring_addr, at.avail_ring_addr, 0] {
                body.extend(word.to_ne_bytes());
            }
            assert_eq!(qemu.value_of(9, 8, &body), 0);
            qemu_event(qemu, 12, ring);
            qemu_event(qemu, 13, ring);
        }
    }
    assert_ne!(qemu.value_of(1, 0, &[]), 0, "everything before is done");
}

#[test]
fn the_call_of_a_live_ring_is_replaced_without_stopping_it() {
    let (rig, attachment) = Rig::with_port(1);
    let mut front_end = rig.front_end(PORT);
    negotiate(&mut front_end, cloud_hypervisor_features());
    activate(&mut front_end, &Guest::new(2));
    attachment.take_effects();
    front_end.set_vring_call(0, &eventfd()).unwrap();
    assert_eq!(
        attachment.take_effects(),
        [Effect::SetCall(QueueIndex(0), true)]
    );
}

#[test]
fn get_vring_base_answers_the_final_index() {
    let (rig, attachment) = Rig::with_port(1);
    let mut front_end = rig.front_end(PORT);
    negotiate(&mut front_end, cloud_hypervisor_features());
    activate(&mut front_end, &Guest::new(2));
    attachment.recording().stop_at.insert(QueueIndex(1), 4711);
    attachment.take_effects();
    assert_eq!(front_end.get_vring_base(1).unwrap(), 4711);
    assert_eq!(starts_and_stops(&attachment.take_effects()), ["stop 1"]);
    assert_eq!(
        front_end.get_vring_base(1).unwrap(),
        4711,
        "also of a ring that is stopped"
    );
}

#[test]
fn regions_come_and_go_on_live_rings() {
    let (rig, attachment) = Rig::with_port(1);
    let mut front_end = rig.front_end(PORT);
    negotiate(&mut front_end, cloud_hypervisor_features());
    activate(&mut front_end, &Guest::new(2));
    assert_eq!(front_end.get_max_mem_slots().unwrap(), 509);
    attachment.take_effects();

    let file = memfd(MEMORY_BYTES);
    let mut more = region(&file);
    more.guest_phys_addr = 0x1000_0000;
    more.userspace_addr = USER_BASE + 0x1000_0000;
    front_end.add_mem_region(&more).unwrap();
    assert_eq!(rig.status(PORT).memory_regions, 2);
    front_end.remove_mem_region(&more).unwrap();
    assert_eq!(rig.status(PORT).memory_regions, 1);
    assert!(front_end.remove_mem_region(&more).is_err(), "it is gone");
    assert!(
        starts_and_stops(&attachment.take_effects()).is_empty(),
        "rings run on"
    );
}

#[test]
fn a_guest_reboots_on_the_same_connection() {
    let (rig, attachment) = Rig::with_port(1);
    let mut front_end = rig.front_end(PORT);
    negotiate(&mut front_end, qemu_features());
    let guest = Guest::new(2);
    activate(&mut front_end, &guest);
    for ring in 0..2 {
        front_end.set_vring_enable(ring, false).unwrap();
        front_end.get_vring_base(ring).unwrap();
    }
    front_end.reset_device().unwrap();
    assert_eq!(
        rig.status(PORT).memory_regions,
        1,
        "memory is not sent again"
    );
    assert_eq!(rig.ups_and_downs(), ["up", "down"]);
    attachment.take_effects();
    front_end
        .set_features(VERSION_1 | PROTOCOL_FEATURES)
        .unwrap();
    for ring in 0..2 {
        front_end.set_vring_kick(ring, &guest.kicks[ring]).unwrap();
        front_end.set_vring_enable(ring, true).unwrap();
    }
    let restarted = starts_and_stops(&attachment.take_effects());
    assert_eq!(restarted, ["start 0 at 0", "start 1 at 0"]);
    assert_eq!(rig.ups_and_downs(), ["up", "down", "up"]);
}

#[test]
fn sessions_follow_each_other_any_number_of_times() {
    let (rig, attachment) = Rig::with_port(1);
    for round in 1..=30 {
        let mut front_end = rig.front_end(PORT);
        negotiate(&mut front_end, cloud_hypervisor_features());
        activate(&mut front_end, &Guest::new(2));
        assert_eq!(rig.status(PORT).connections.connects, round);
        drop(front_end);
        rig.status_when(PORT, "the session ends", |status| {
            status.state == "listening"
        });
        let recording = attachment.recording();
        assert!(
            recording.running.is_empty()
                && recording.descriptors.is_empty()
                && recording.memory.is_empty()
        );
    }
    let offered = rig.status(PORT).features_offered;
    assert!(offered.contains(&"IN_ORDER".to_owned()));
}

#[test]
fn a_rarp_before_the_rings_is_sent_when_they_run() {
    let (rig, attachment) = Rig::with_port(1);
    let mut raw = rig.raw(PORT);
    let mac = [0x52, 0x54, 0, 1, 2, 3, 0, 0];
    raw.send(19, 0, &mac);
    assert_ne!(raw.value_of(1, 0, &[]), 0);
    assert!(attachment.take_effects().is_empty());
    let mut front_end = vhost::vhost_user::Frontend::from_stream(raw.0, 2);
    negotiate(&mut front_end, qemu_features());
    activate(&mut front_end, &Guest::new(2));
    let injected = attachment
        .take_effects()
        .into_iter()
        .find_map(|effect| match effect {
            Effect::Inject(frame) => Some(frame),
            _ => None,
        });
    let frame = injected.expect("the announcement");
    assert_eq!(
        (&frame[..6], &frame[6..12], &frame[12..14]),
        (&[0xff; 6][..], &mac[..6], &[0x80, 0x35][..])
    );
    assert_eq!(rig.status(PORT).requests.rarps, 1);
}

#[test]
fn a_client_port_connects_as_soon_as_a_front_end_listens_and_again_after_it_left() {
    use ringswitch::device::SocketMode;
    use std::os::unix::net::UnixListener;
    let rig = Rig::new();
    let mut spec = rig.spec(PORT, 1);
    spec.mode = SocketMode::Client;
    let attachment = ringswitch::device::recording::RecordingAttachment::default();
    rig.thread.add_attached(Box::new(attachment), spec).unwrap();
    let status = rig.status(PORT);
    assert_eq!(status.state, "connecting");
    assert!(status.reason.unwrap().contains("no front-end listens"));

    let listener = UnixListener::bind(rig.socket(PORT)).unwrap();
    for _ in 0..2 {
        let (stream, _) = listener.accept().unwrap();
        let mut front_end = vhost::vhost_user::Frontend::from_stream(stream, 2);
        negotiate(&mut front_end, qemu_features());
        activate(&mut front_end, &Guest::new(2));
        assert_eq!(rig.status(PORT).state, "up");
    }
}
