//! The socket: stale and live ones, second front-ends, removal, and what `port show` says meanwhile.

use crate::rig::*;
use ringswitch::device::recording::RecordingAttachment;
use ringswitch::device::{DeviceError, DeviceThread};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

fn try_add(rig: &Rig) -> Result<(), DeviceError> {
    let attachment = Box::new(RecordingAttachment::default());
    rig.thread.add_attached(attachment, rig.spec(PORT, 1))
}

#[test]
fn the_socket_of_a_dead_instance_is_replaced() {
    let rig = Rig::new();
    drop(UnixListener::bind(rig.socket(PORT)).unwrap());
    assert!(rig.socket(PORT).exists());
    rig.add(PORT, 1);
    rig.assert_answers(PORT);
}

#[test]
fn the_socket_of_a_live_instance_is_left_alone() {
    let rig = Rig::new();
    let live = UnixListener::bind(rig.socket(PORT)).unwrap();
    assert!(matches!(try_add(&rig), Err(DeviceError::InUse { .. })));
    live.set_nonblocking(true).unwrap();
    let _client = UnixStream::connect(rig.socket(PORT)).expect("it still listens");
}

#[test]
fn a_live_datagram_socket_is_left_alone() {
    let rig = Rig::new();
    let _live = UnixDatagram::bind(rig.socket(PORT)).unwrap();
    assert!(matches!(try_add(&rig), Err(DeviceError::InUse { .. })));
}

#[test]
fn a_file_that_is_no_socket_is_never_removed() {
    let rig = Rig::new();
    std::fs::write(rig.socket(PORT), "precious").unwrap();
    assert!(matches!(try_add(&rig), Err(DeviceError::NotASocket { .. })));
    assert_eq!(std::fs::read(rig.socket(PORT)).unwrap(), b"precious");
}

#[test]
fn a_link_to_a_dead_socket_is_never_removed() {
    let rig = Rig::new();
    let target = rig.folder.as_path().join("target");
    drop(UnixListener::bind(&target).unwrap());
    std::os::unix::fs::symlink(&target, rig.socket(PORT)).unwrap();
    assert!(matches!(try_add(&rig), Err(DeviceError::NotASocket { .. })));
    assert!(target.exists());
}

#[test]
fn of_many_instances_that_start_at_once_one_gets_the_socket() {
    for _ in 0..10 {
        let rig = Rig::new();
        drop(UnixListener::bind(rig.socket(PORT)).unwrap());
        let threads: Vec<_> = (0..4).map(|_| DeviceThread::start().unwrap()).collect();
        let won: usize = std::thread::scope(|scope| {
            let starting: Vec<_> = threads
                .iter()
                .map(|thread| {
                    let spec = rig.spec(PORT, 1);
                    scope.spawn(move || {
                        thread
                            .add_attached(Box::new(RecordingAttachment::default()), spec)
                            .is_ok()
                    })
                })
                .collect();
            starting
                .into_iter()
                .map(|start| usize::from(start.join().unwrap()))
                .sum()
        });
        assert_eq!(won, 1);
        let mut raw = rig.raw(PORT);
        assert_ne!(raw.value_of(1, 0, &[]), 0);
    }
}

#[test]
fn paths_that_cannot_be_a_socket_are_refused_with_the_reason() {
    let rig = Rig::new();
    let refusal = |path: std::path::PathBuf| {
        let mut spec = rig.spec(PORT, 1);
        spec.socket = path;
        let attachment = Box::new(RecordingAttachment::default());
        rig.thread
            .add_attached(attachment, spec)
            .unwrap_err()
            .to_string()
    };
    assert!(refusal(rig.folder.as_path().join("x".repeat(120))).contains("at most 107"));
    assert!(refusal("".into()).contains("cannot name a socket"));
    assert!(refusal("/".into()).contains("cannot name a socket"));
    assert!(
        refusal(rig.folder.as_path().join("missing/vm.sock")).contains("missing cannot be used")
    );
    assert!(refusal(rig.folder.as_path().to_owned()).contains("is not a socket"));
}

#[test]
fn a_port_has_between_one_and_sixty_four_queue_pairs() {
    let rig = Rig::new();
    for (queue_pairs, fits) in [(0, false), (1, true), (64, true), (65, false)] {
        let id = ringswitch::device::PortId::new(queue_pairs).unwrap();
        let attachment = Box::new(RecordingAttachment::default());
        let added = rig
            .thread
            .add_attached(attachment, rig.spec(id, queue_pairs));
        assert_eq!(added.is_ok(), fits, "{queue_pairs}");
    }
}

#[test]
fn the_socket_is_for_owner_and_group_and_goes_with_the_port() {
    let (rig, _attachment) = Rig::with_port(1);
    let file = std::fs::symlink_metadata(rig.socket(PORT)).unwrap();
    assert!(file.file_type().is_socket());
    assert_eq!(file.permissions().mode() & 0o777, 0o660);
    rig.thread.remove_port(PORT).unwrap();
    assert!(!rig.socket(PORT).exists());
    assert!(rig.thread.status(PORT).is_none());
    assert!(matches!(
        rig.thread.remove_port(PORT),
        Err(DeviceError::NoSuchPort { .. })
    ));
    try_add(&rig).unwrap();
    rig.assert_answers(PORT);
}

#[test]
fn a_socket_that_someone_put_in_our_place_is_not_removed() {
    let (rig, _attachment) = Rig::with_port(1);
    std::fs::remove_file(rig.socket(PORT)).unwrap();
    let _other = UnixListener::bind(rig.socket(PORT)).unwrap();
    rig.thread.remove_port(PORT).unwrap();
    assert!(rig.socket(PORT).exists());
}

#[test]
fn removing_a_port_ends_its_session_and_no_other() {
    let (rig, attachment) = Rig::with_port(1);
    rig.add(OTHER_PORT, 1);
    let mut other = rig.raw(OTHER_PORT);
    let mut front_end = rig.front_end(PORT);
    negotiate(&mut front_end, cloud_hypervisor_features());
    activate(&mut front_end, &Guest::new(2));
    rig.thread.remove_port(PORT).unwrap();
    assert!(attachment.recording().running.is_empty());
    assert_eq!(rig.ups_and_downs(), ["up", "down"]);
    assert_ne!(other.value_of(1, 0, &[]), 0);
}

#[test]
fn stopping_the_thread_removes_every_socket_and_again_does_nothing() {
    let (rig, attachment) = Rig::with_port(1);
    rig.add(OTHER_PORT, 1);
    let mut front_end = rig.front_end(PORT);
    negotiate(&mut front_end, cloud_hypervisor_features());
    activate(&mut front_end, &Guest::new(2));
    rig.thread.stop();
    rig.thread.stop();
    assert!(!rig.socket(PORT).exists() && !rig.socket(OTHER_PORT).exists());
    assert!(attachment.recording().running.is_empty());
    assert!(matches!(try_add(&rig), Err(DeviceError::Thread(_))));
    assert!(!rig.socket(PORT).exists());
}

#[test]
fn a_second_front_end_is_turned_away_while_the_first_lives() {
    let (rig, _attachment) = Rig::with_port(1);
    let mut first = rig.raw(PORT);
    assert_ne!(first.value_of(1, 0, &[]), 0);
    assert!(rig.raw(PORT).is_hung_up());
    assert_ne!(first.value_of(1, 0, &[]), 0, "the first is served on");
    let status = rig.status(PORT);
    assert_eq!(
        (status.connections.connects, status.connections.rejected),
        (1, 1)
    );
    assert!(status.notes.iter().any(|note| note.contains("turned away")));
}

#[test]
fn a_front_end_that_closes_and_connects_at_once_is_never_turned_away() {
    let (rig, _attachment) = Rig::with_port(1);
    let mut old = rig.raw(PORT);
    for _ in 0..200 {
        // Unread bytes make the old connection look alive to a plain read.
        old.send(3, 0, &[]);
        drop(old);
        old = rig.raw(PORT);
        assert_ne!(old.value_of(1, 0, &[]), 0);
    }
    assert_eq!(rig.status(PORT).connections.rejected, 0);
}

#[test]
fn a_port_that_is_not_up_says_why_at_every_step() {
    let (rig, _attachment) = Rig::with_port(1);
    let expect = |state: &str, part: &str| {
        let status = rig.status_when(PORT, part, |status| {
            status.reason.as_deref().unwrap_or("up").contains(part)
        });
        assert_eq!(status.state, state, "{part}");
        status
    };
    expect("listening", "waiting for a front-end on /");
    let mut raw = rig.raw(PORT);
    expect("negotiating", "has not sent a message");
    raw.send(3, 0, &[]);
    let status = expect(
        "negotiating",
        "no SET_FEATURES yet); last message SET_OWNER",
    );
    assert_eq!(status.last_message.unwrap().name, "SET_OWNER");
    raw.send(2, 0, &VERSION_1.to_ne_bytes());
    expect("negotiating", "guest memory is not shared");
    let words = [1_u64, 0, MEMORY_BYTES, USER_BASE, 0]
        .map(u64::to_ne_bytes)
        .concat();
    let memory = memfd(MEMORY_BYTES);
    raw.try_send(5, 0, &words, &[std::os::fd::AsFd::as_fd(&memory)])
        .unwrap();
    expect("negotiating", "no SET_VRING_KICK yet");
    raw.send(12, 0, &0x100_u64.to_ne_bytes());
    expect(
        "negotiating",
        "ring 0 was kicked, but its SET_VRING_NUM has not come",
    );
    raw.send(8, 0, &[0_u32, 256].map(u32::to_ne_bytes).concat());
    expect(
        "negotiating",
        "ring 0 was kicked, but its SET_VRING_ADDR has not come",
    );
    let mut address = vec![0; 8];
    for word in [0x10_u64, 0x10, 0x10, 0] {
        address.extend(word.to_ne_bytes());
    }
    raw.send(9, 0, &address);
    expect(
        "negotiating",
        "ring 0 does not run: no guest memory is shared",
    );
    drop(raw);
    expect(
        "listening",
        "the last one left: the front-end closed the connection",
    );
    assert_eq!(
        rig.status(PORT).features_acked,
        None,
        "a new front-end starts afresh"
    );
}

#[test]
fn the_status_serialises() {
    let (rig, _attachment) = Rig::with_port(2);
    let json = serde_json::to_value(rig.status(PORT)).unwrap();
    assert_eq!(json["state"], "listening");
    assert_eq!(json["mode"], "server");
    assert_eq!(json["rings"][3]["direction"], "guest_tx");
    assert_eq!(json["front_end"], "unknown");
}
