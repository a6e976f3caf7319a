//! What a front-end must not be able to do: crash the daemon, hang it, leak descriptors into it, or disturb another port.

use crate::rig::*;
use ringswitch::datapath::QueueIndex;
use ringswitch::device::recording::Effect;
use rustix::fs::{MemfdFlags, memfd_create};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

const REPLY_ACK: u64 = 1 << 3;
const NEED_REPLY: u32 = 8;

/// Descriptors of this process that name `what`, as the kernel prints it.
fn open_descriptors(what: &str) -> usize {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap();
    entries
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|name| name.to_string_lossy().contains(what))
        .count()
}

/// A file that only one test uses, so that its open copies can be counted whatever other tests do.
fn marked_file(rig: &Rig, name: &str) -> OwnedFd {
    OwnedFd::from(std::fs::File::create(rig.folder.as_path().join(name)).unwrap())
}

#[test]
fn every_malformed_message_ends_its_own_connection_only() {
    let region = [1_u64, 0, MEMORY_BYTES, USER_BASE, 0]
        .map(u64::to_ne_bytes)
        .concat();
    let header = |request, flags, size| Raw::header(request, flags, size);
    let with = |mut bytes: Vec<u8>, body: &[u8]| {
        bytes.extend_from_slice(body);
        bytes
    };
    // (what, bytes, descriptors attached)
    let table: Vec<(&str, Vec<u8>, usize)> = vec![
        ("version 0", header(1, 0, 0), 0),
        ("version 2", header(1, 2, 0), 0),
        ("version 3", header(1, 3, 0), 0),
        ("a reserved flag", header(1, 0x11, 0), 0),
        ("the highest flag", header(1, 0x8000_0001, 0), 0),
        ("a reply instead of a request", header(1, 5, 0), 0),
        ("a body past the bound", header(2, 1, 4097), 0),
        ("a body of 4 GiB", header(2, 1, u32::MAX), 0),
        (
            "GET_FEATURES with a body",
            with(header(1, 1, 8), &[0; 8]),
            0,
        ),
        ("SET_FEATURES without a body", header(2, 1, 0), 0),
        (
            "SET_FEATURES one byte short",
            with(header(2, 1, 7), &[0; 7]),
            0,
        ),
        (
            "SET_FEATURES one byte long",
            with(header(2, 1, 9), &[0; 9]),
            0,
        ),
        ("SET_VRING_ADDR cut", with(header(9, 1, 32), &[0; 32]), 0),
        (
            "SET_VRING_NUM of 4 bytes",
            with(header(8, 1, 4), &[0; 4]),
            0,
        ),
        (
            "SET_MEM_TABLE without a count",
            with(header(5, 1, 4), &[0; 4]),
            0,
        ),
        (
            "SET_MEM_TABLE without descriptors",
            with(header(5, 1, 40), &region),
            0,
        ),
        (
            "SET_MEM_TABLE with one too many",
            with(header(5, 1, 40), &region),
            2,
        ),
        (
            "SET_MEM_TABLE of 4 Gi regions",
            with(header(5, 1, 8), &[0xff; 8]),
            1,
        ),
        (
            "SET_MEM_TABLE with a cut region",
            with(header(5, 1, 24), &region[..24]),
            1,
        ),
        (
            "ADD_MEM_REG without a descriptor",
            with(header(37, 1, 40), &[0; 40]),
            0,
        ),
        ("ADD_MEM_REG with two", with(header(37, 1, 40), &[0; 40]), 2),
        ("REM_MEM_REG with two", with(header(38, 1, 40), &[0; 40]), 2),
        (
            "SET_VRING_KICK without a descriptor",
            with(header(12, 1, 8), &[0; 8]),
            0,
        ),
        (
            "SET_VRING_KICK with two",
            with(header(12, 1, 8), &[0; 8]),
            2,
        ),
        (
            "SET_VRING_CALL with a descriptor and none",
            with(header(13, 1, 8), &0x100_u64.to_ne_bytes()),
            1,
        ),
        ("GET_FEATURES with descriptors", header(1, 1, 0), 3),
        ("33 descriptors", header(1, 1, 0), 33),
        ("as many descriptors as Linux sends", header(1, 1, 0), 253),
    ];
    let (rig, _attachment) = Rig::with_port(1);
    rig.add(OTHER_PORT, 1);
    let file = marked_file(&rig, "malformed");
    for (at, (what, bytes, descriptors)) in table.iter().enumerate() {
        let mut raw = rig.raw(PORT);
        raw.try_send_bytes(bytes, &vec![file.as_fd(); *descriptors])
            .unwrap();
        assert!(raw.is_hung_up(), "{what}");
        let reason = eventually("the session is counted as ended", || {
            let status = rig.status(PORT);
            (status.connections.disconnects == at as u64 + 1).then_some(status.last_disconnect?)
        });
        assert!(
            reason.starts_with("malformed message: "),
            "{what}: {reason}"
        );
        eventually(&format!("{what}: descriptors are closed"), || {
            (open_descriptors("/malformed") == 1).then_some(())
        });
        rig.assert_answers(OTHER_PORT);
    }
    rig.assert_answers(PORT);
}

#[test]
fn memory_that_is_not_shared_is_called_so() {
    let (rig, _attachment) = Rig::with_port(1);
    let mut raw = rig.raw(PORT);
    raw.send(
        5,
        0,
        &[1_u64, 0, MEMORY_BYTES, USER_BASE, 0]
            .map(u64::to_ne_bytes)
            .concat(),
    );
    assert!(raw.is_hung_up());
    let status = rig.status_when(PORT, "the session ends", |status| {
        status.connections.disconnects == 1
    });
    assert!(status.reason.unwrap().contains("share=on"));
}

#[test]
fn an_unknown_request_is_refused_if_a_reply_is_wanted_and_ignored_otherwise() {
    let (rig, _attachment) = Rig::with_port(1);
    let file = marked_file(&rig, "unknown");
    let mut raw = rig.raw(PORT);
    // Before REPLY_ACK nothing may be answered.
    raw.try_send(99, NEED_REPLY, &[1; 100], &[file.as_fd(), file.as_fd()])
        .unwrap();
    raw.send(16, NEED_REPLY, &REPLY_ACK.to_ne_bytes());
    assert_eq!(
        raw.reply(),
        Some((16, 0)),
        "it acks REPLY_ACK and asks at once"
    );
    // Unknown, from the future, and known but not offered: GET_CONFIG, SET_STATUS, SET_LOG_FD, GET_INFLIGHT_FD.
    for request in [0, 99, u32::MAX, 24, 39, 7, 31] {
        assert_eq!(
            raw.value_of(request, NEED_REPLY, &[0; 12]),
            1,
            "request {request}"
        );
        raw.send(request, 0, &[0; 12]);
    }
    assert_ne!(
        raw.value_of(1, NEED_REPLY, &[]),
        0,
        "and its own reply is its only one"
    );
    assert_ne!(raw.value_of(15, 0, &[]), 0);
    let status = rig.status(PORT);
    assert_eq!(status.requests.unsupported, 15);
    assert_eq!(status.requests.nacks, 7);
    eventually("the descriptors are closed", || {
        (open_descriptors("/unknown") == 1).then_some(())
    });
}

#[test]
fn a_message_may_come_byte_by_byte() {
    let (rig, _attachment) = Rig::with_port(1);
    let mut raw = rig.raw(PORT);
    let mut bytes = Raw::header(16, 1, 8);
    bytes.extend((1_u64 << 3).to_ne_bytes());
    bytes.extend(Raw::header(1, 9, 0));
    for byte in bytes {
        raw.0.write_all(&[byte]).unwrap();
    }
    assert_eq!(raw.reply().unwrap().0, 1);
    assert_eq!(rig.status(PORT).protocol_features_acked, ["REPLY_ACK"]);
}

#[test]
fn descriptors_belong_to_the_message_they_came_with() {
    let (rig, attachment) = Rig::with_port(1);
    let mut raw = rig.raw(PORT);
    // Three messages in one buffer of the socket, then the body of the fourth with its descriptor.
    let mut bytes = [Raw::header(3, 1, 0), Raw::header(1, 1, 0)].concat();
    bytes.extend(Raw::header(12, 1, 8));
    raw.0.write_all(&bytes).unwrap();
    let kick = new_eventfd();
    raw.try_send_bytes(&1_u64.to_ne_bytes(), &[kick.as_fd()])
        .unwrap();
    assert_eq!(raw.reply().unwrap().0, 1);
    eventually("the kick is taken", || {
        let kept = attachment.recording().descriptors.keys().next().copied();
        kept.map(|(kind, queue)| assert_eq!((kind, queue.0), ("kick", 1)))
    });
}

#[test]
fn a_cut_message_with_descriptors_leaves_nothing_open() {
    let (rig, _attachment) = Rig::with_port(1);
    // A file in memory: anything else is closed as soon as it arrives.
    let file = memfd_create("cut-message", MemfdFlags::CLOEXEC).unwrap();
    let mut raw = rig.raw(PORT);
    raw.try_send_bytes(&Raw::header(12, 1, 8), &[file.as_fd()])
        .unwrap();
    eventually("the descriptor arrives", || {
        (open_descriptors("memfd:cut-message") == 2).then_some(())
    });
    drop(raw);
    eventually("the descriptor is closed", || {
        (open_descriptors("memfd:cut-message") == 1).then_some(())
    });
    rig.assert_answers(PORT);
}

#[test]
fn a_kick_or_call_that_is_no_eventfd_is_refused_and_closed() {
    let (rig, attachment) = Rig::with_port(1);
    rig.add(OTHER_PORT, 1);
    let mut raw = rig.raw(PORT);
    raw.send(16, 0, &REPLY_ACK.to_ne_bytes());
    let file = marked_file(&rig, "no-eventfd");
    for request in [12, 13, 14] {
        for descriptor in [
            pipe().as_fd(),
            file.as_fd(),
            raw.0.try_clone().unwrap().as_fd(),
        ] {
            raw.try_send(request, NEED_REPLY, &0_u64.to_ne_bytes(), &[descriptor])
                .unwrap();
            assert_eq!(raw.reply(), Some((request, 1)));
        }
    }
    assert!(attachment.recording().descriptors.is_empty());
    eventually("the descriptors are closed", || {
        (open_descriptors("/no-eventfd") == 1).then_some(())
    });
    assert!(
        rig.status(PORT)
            .notes
            .iter()
            .any(|note| note.contains("eventfd"))
    );
    rig.assert_answers(OTHER_PORT);
}

#[test]
fn a_front_end_that_stops_reading_loses_its_connection() {
    let (rig, _attachment) = Rig::with_port(1);
    rig.add(OTHER_PORT, 1);
    let mut raw = rig.raw(PORT);
    let flood = Raw::header(1, 1, 0).repeat(1000);
    // Fails once the port has hung up; a port that kept every reply would take this for ever.
    let refused = (0..10_000).find(|_| raw.0.write_all(&flood).is_err());
    assert!(refused.is_some());
    let status = rig.status_when(PORT, "the session ends", |status| {
        status.connections.disconnects == 1
    });
    assert!(
        status
            .last_disconnect
            .unwrap()
            .contains("does not read its replies")
    );
    rig.assert_answers(OTHER_PORT);
    rig.assert_answers(PORT);
}

#[test]
fn a_front_end_that_reads_late_gets_every_reply() {
    let (rig, _attachment) = Rig::with_port(1);
    let mut raw = rig.raw(PORT);
    for _ in 0..500 {
        raw.send(1, 0, &[]);
    }
    for _ in 0..500 {
        assert_eq!(raw.reply().unwrap().0, 1);
    }
}

#[test]
fn a_flood_of_messages_does_not_keep_other_ports_from_their_answers() {
    let (rig, _attachment) = Rig::with_port(1);
    rig.add(OTHER_PORT, 1);
    let raw = rig.raw(PORT);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let flood = Raw::header(3, 1, 0).repeat(1000);
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                (&raw.0).write_all(&flood).unwrap();
            }
        });
        for _ in 0..50 {
            rig.assert_answers(OTHER_PORT);
            eventually("the session is over", || {
                (rig.status(OTHER_PORT).connected_ms.is_none()).then_some(())
            });
        }
        eventually("the flood to be read", || {
            (rig.status(PORT).requests.messages > 1000).then_some(())
        });
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn a_port_with_many_messages_waiting_gives_way_to_another_with_one() {
    let (rig, order) = Rig::with_port(1);
    let same = Box::new(order.clone());
    rig.thread
        .add_attached(same, rig.spec(OTHER_PORT, 1))
        .unwrap();
    let third = ringswitch::device::PortId::new(3).unwrap();
    let held = rig.add(third, 1);
    let [mut many, mut one, mut holder] = [PORT, OTHER_PORT, third].map(|id| rig.raw(id));
    for raw in [&mut many, &mut one, &mut holder] {
        raw.value_of(1, 0, &[]);
    }
    let enable = |ring: u32| [ring, 1].map(u32::to_ne_bytes).concat();
    // The third port's effect holds the thread while the others' messages arrive.
    let hold = held.recording();
    holder.send(18, 0, &enable(0));
    let mut bytes = Raw::header(18, 1, 8);
    bytes.extend(enable(0));
    many.0.write_all(&bytes.repeat(500)).unwrap();
    one.send(18, 0, &enable(1));
    drop(hold);
    let effects = eventually("all are done", || {
        let effects = order.recording().effects.clone();
        (effects.len() == 501).then_some(effects)
    });
    let one = effects
        .iter()
        .position(|effect| *effect == Effect::Enable(QueueIndex(1)));
    assert!(one.unwrap() <= 64, "one message waited for {one:?}");
}

#[test]
fn rings_past_the_port_are_refused_and_named() {
    let (rig, attachment) = Rig::with_port(1);
    let mut raw = rig.raw(PORT);
    raw.send(16, 0, &REPLY_ACK.to_ne_bytes());
    let state = |index: u32, num: u32| [index, num].map(u32::to_ne_bytes).concat();
    for index in [2, 3, 255, 256, 65_536, u32::MAX] {
        for request in [8, 10, 18] {
            assert_eq!(
                raw.value_of(request, NEED_REPLY, &state(index, 2)),
                1,
                "request {request} ring {index}"
            );
        }
        assert_eq!(
            raw.value_of(11, NEED_REPLY, &state(index, 0)),
            u64::from(index),
            "index 0 of a ring that never moved"
        );
    }
    let kick = new_eventfd();
    raw.try_send(12, NEED_REPLY, &2_u64.to_ne_bytes(), &[kick.as_fd()])
        .unwrap();
    assert_eq!(raw.reply(), Some((12, 1)));
    assert!(attachment.take_effects().is_empty());
    assert!(
        rig.status(PORT)
            .notes
            .iter()
            .any(|note| note.contains("queue_pairs"))
    );
}
