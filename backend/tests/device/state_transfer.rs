//! A port's state through a pipe: saved, loaded and checked, by front-ends that keep to the order and by those that do not.

use crate::rig::*;
use ringswitch::device::recording::RecordingAttachment;
use ringswitch::device::state_transfer::{MAX_STATE_BYTES, StateCarrier};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

const REPLY_ACK: u64 = 1 << 3;
const DEVICE_STATE: u64 = 1 << 19;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_DEVICE_STATE_FD: u32 = 42;
const CHECK_DEVICE_STATE: u32 = 43;
const SAVE: u32 = 0;
const LOAD: u32 = 1;
const BEGUN: u64 = 0x100;
const NOT_BEGUN: u64 = 0x101;

/// A carrier whose state is bytes.
#[derive(Debug, Default)]
struct Bytes {
    saved: Vec<u8>,
    loaded: Mutex<Vec<Vec<u8>>>,
    refuses: Option<&'static str>,
}

impl StateCarrier for Bytes {
    fn save(&self) -> Result<(Vec<u8>, String), String> {
        match self.refuses {
            Some(reason) => Err(reason.to_owned()),
            None => Ok((self.saved.clone(), "it was saved".to_owned())),
        }
    }

    fn load(&self, bytes: &[u8]) -> Result<String, String> {
        if let Some(reason) = self.refuses {
            return Err(reason.to_owned());
        }
        self.loaded.lock().unwrap().push(bytes.to_vec());
        Ok("it was loaded".to_owned())
    }
}

fn add(rig: &Rig, id: ringswitch::device::PortId, carrier: &Arc<Bytes>) -> RecordingAttachment {
    let carrier = Arc::clone(carrier) as Arc<dyn StateCarrier>;
    let attachment = RecordingAttachment::default();
    let attachment = attachment.with_carrier(Arc::clone(&carrier)).unwrap();
    let spec = ringswitch::device::VhostPortSpec {
        carrier: Some(carrier),
        ..rig.spec(id, 1)
    };
    rig.thread
        .add_attached(Box::new(attachment.clone()), spec)
        .unwrap();
    attachment
}

/// A port with that carrier, and another beside it.
fn rig(carrier: Bytes) -> (Rig, Arc<Bytes>, Raw) {
    let rig = Rig::new();
    let carrier = Arc::new(carrier);
    add(&rig, PORT, &carrier);
    rig.add(OTHER_PORT, 1);
    let front_end = negotiated(&rig, PORT);
    (rig, carrier, front_end)
}

fn negotiated(rig: &Rig, id: ringswitch::device::PortId) -> Raw {
    let mut front_end = rig.raw(id);
    let features = (REPLY_ACK | DEVICE_STATE).to_ne_bytes();
    assert_eq!(front_end.value_of(SET_PROTOCOL_FEATURES, 8, &features), 0);
    front_end
}

fn begin(front_end: &mut Raw, (direction, phase): (u32, u32), pipe: impl AsFd) -> u64 {
    let body = [direction, phase].map(u32::to_ne_bytes).concat();
    front_end
        .try_send(SET_DEVICE_STATE_FD, 0, &body, &[pipe.as_fd()])
        .unwrap();
    let (answered, value) = front_end.reply().unwrap();
    assert_eq!(answered, SET_DEVICE_STATE_FD);
    value
}

fn check(front_end: &mut Raw) -> u64 {
    front_end.value_of(CHECK_DEVICE_STATE, 0, &[])
}

/// The end that is kept, of a pipe whose other end the port has.
fn saving(front_end: &mut Raw) -> File {
    let (ours, theirs) = rustix::pipe::pipe().unwrap();
    assert_eq!(begin(front_end, (SAVE, 0), theirs), BEGUN);
    ours.into()
}

fn loading(front_end: &mut Raw) -> File {
    let (theirs, ours) = rustix::pipe::pipe().unwrap();
    assert_eq!(begin(front_end, (LOAD, 0), theirs), BEGUN);
    ours.into()
}

fn notes(rig: &Rig) -> String {
    rig.status(PORT).notes.join("\n")
}

/// More than a pipe holds.
fn many_bytes() -> Vec<u8> {
    (0..1_000_003_u32).map(|at| (at % 251) as u8).collect()
}

/// A transfer can be begun on the port again, and comes to an end.
fn assert_usable(rig: &Rig, carrier: &Bytes) {
    // Whoever was connected may still be leaving.
    rig.status_when(PORT, "the port is free", |status| {
        status.state == "listening"
    });
    let mut front_end = negotiated(rig, PORT);
    let mut pipe = eventually("the last transfer has ended", || {
        let (theirs, ours) = rustix::pipe::pipe().unwrap();
        (begin(&mut front_end, (LOAD, 0), theirs) == BEGUN).then(|| File::from(ours))
    });
    pipe.write_all(b"again").unwrap();
    drop(pipe);
    assert_eq!(check(&mut front_end), 0);
    assert_eq!(carrier.loaded.lock().unwrap().last().unwrap(), b"again");
}

#[test]
fn a_state_is_saved_to_the_end_of_the_pipe_and_checked() {
    let saved = many_bytes();
    let (rig, _, mut front_end) = rig(Bytes {
        saved: saved.clone(),
        ..Bytes::default()
    });
    let mut pipe = saving(&mut front_end);
    let mut bytes = Vec::new();
    pipe.read_to_end(&mut bytes).unwrap();
    assert!(bytes == saved);
    assert_eq!(check(&mut front_end), 0);
    assert!(notes(&rig).contains("it was saved"));
}

#[test]
fn a_state_is_loaded_once_it_came_whole_and_the_check_waits_for_that() {
    let (rig, carrier, mut front_end) = rig(Bytes::default());
    let mut pipe = loading(&mut front_end);
    let bytes = many_bytes();
    pipe.write_all(&bytes).unwrap();
    front_end.send(CHECK_DEVICE_STATE, 0, &[]);
    // Others are served while it waits; nothing is loaded, and nothing behind the check is answered.
    front_end.send(1, 0, &[]);
    rig.assert_answers(OTHER_PORT);
    assert!(carrier.loaded.lock().unwrap().is_empty());
    drop(pipe);
    assert_eq!(front_end.reply(), Some((CHECK_DEVICE_STATE, 0)));
    assert_eq!(front_end.reply().unwrap().0, 1);
    assert!(*carrier.loaded.lock().unwrap() == [bytes]);
    assert!(notes(&rig).contains("it was loaded"));
    // Told once.
    assert_eq!(check(&mut front_end), 1);
}

#[test]
fn a_state_that_is_refused_is_told_with_the_reason() {
    let (rig, carrier, mut front_end) = rig(Bytes {
        refuses: Some("it is forged"),
        ..Bytes::default()
    });
    let mut pipe = loading(&mut front_end);
    pipe.write_all(b"anything").unwrap();
    drop(pipe);
    assert_eq!(check(&mut front_end), 1);
    assert!(
        notes(&rig).contains("CHECK_DEVICE_STATE: the port's state in the switch: it is forged")
    );
    let mut empty = Vec::new();
    saving(&mut front_end).read_to_end(&mut empty).unwrap();
    assert!(empty.is_empty());
    assert_eq!(check(&mut front_end), 1);
    assert!(carrier.loaded.lock().unwrap().is_empty());
}

#[test]
fn a_state_without_end_is_not_read_to_its_end() {
    let (rig, carrier, mut front_end) = rig(Bytes::default());
    let mut pipe = loading(&mut front_end);
    let chunk = vec![7; 1 << 16];
    let mut written = 0;
    let refused = loop {
        match pipe.write(&chunk) {
            Ok(bytes) => written += bytes,
            Err(error) => break error,
        }
        assert!(written < 2 * MAX_STATE_BYTES, "somebody reads on");
    };
    assert_eq!(refused.kind(), std::io::ErrorKind::BrokenPipe);
    assert_eq!(check(&mut front_end), 1);
    assert!(notes(&rig).contains("more than 4194304 bytes"));
    assert!(carrier.loaded.lock().unwrap().is_empty());

    let mut pipe = loading(&mut front_end);
    pipe.write_all(&vec![7; MAX_STATE_BYTES]).unwrap();
    drop(pipe);
    assert_eq!(check(&mut front_end), 0, "as much as there may be");
}

#[test]
fn what_is_too_large_to_be_saved_is_not_begun_to_be_sent() {
    let (rig, _, mut front_end) = rig(Bytes {
        saved: vec![0; MAX_STATE_BYTES + 1],
        ..Bytes::default()
    });
    let mut bytes = Vec::new();
    saving(&mut front_end).read_to_end(&mut bytes).unwrap();
    assert!(bytes.is_empty());
    assert_eq!(check(&mut front_end), 1);
    assert!(notes(&rig).contains("more than 4194304 bytes"));
}

#[test]
fn a_front_end_that_stops_reading_holds_nobody_up_and_its_end_ends_the_transfer() {
    let (rig, carrier, mut front_end) = rig(Bytes {
        saved: many_bytes(),
        ..Bytes::default()
    });
    let mut pipe = saving(&mut front_end);
    let mut some = [0; 1000];
    pipe.read_exact(&mut some).unwrap();
    front_end.send(CHECK_DEVICE_STATE, 0, &[]);
    rig.assert_answers(OTHER_PORT);
    drop(front_end);
    // The pipe stays open, and nobody reads it.
    assert_usable(&rig, &carrier);
    drop(pipe);
}

#[test]
fn a_front_end_that_closes_the_pipe_before_it_has_read_all_is_told_so() {
    let (rig, _, mut front_end) = rig(Bytes {
        saved: many_bytes(),
        ..Bytes::default()
    });
    drop(saving(&mut front_end));
    assert_eq!(check(&mut front_end), 1);
    assert!(notes(&rig).contains("closed the pipe"));
}

#[test]
fn a_front_end_that_stops_writing_holds_nobody_up_and_loads_nothing() {
    let (rig, carrier, mut front_end) = rig(Bytes::default());
    let mut pipe = loading(&mut front_end);
    pipe.write_all(b"half of it").unwrap();
    front_end.send(CHECK_DEVICE_STATE, 0, &[]);
    rig.assert_answers(OTHER_PORT);
    drop(front_end);
    assert_usable(&rig, &carrier);
    // Its end comes too late, and another front-end's state was loaded since.
    drop(pipe);
    rig.assert_answers(OTHER_PORT);
    assert_eq!(carrier.loaded.lock().unwrap().len(), 1);
}

#[test]
fn a_session_that_ends_without_a_check_ends_the_transfer_as_well() {
    let (rig, carrier, mut front_end) = rig(Bytes::default());
    let pipe = loading(&mut front_end);
    drop(front_end);
    let mut ends = [PollFd::new(&pipe, PollFlags::ERR)];
    let patience = Timespec {
        tv_sec: 20,
        tv_nsec: 0,
    };
    assert_eq!(
        poll(&mut ends, Some(&patience)).unwrap(),
        1,
        "its end is closed"
    );
    assert_usable(&rig, &carrier);
}

#[test]
fn a_front_end_that_takes_away_what_it_wrote_holds_nobody_up() {
    let (rig, carrier, mut front_end) = rig(Bytes::default());
    let (theirs, ours) = rustix::pipe::pipe().unwrap();
    assert_eq!(begin(&mut front_end, (LOAD, 0), &theirs), BEGUN);
    // Whoever shares the pipe reads it in turn, which a blocking read would not come back from.
    let (mut into, mut from) = (File::from(ours), File::from(theirs));
    let thief = std::thread::spawn(move || {
        let flags = rustix::fs::fcntl_getfl(&from).unwrap();
        rustix::fs::fcntl_setfl(&from, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
        for _ in 0..10_000 {
            into.write_all(b"x").unwrap();
            let _ = from.read(&mut [0; 16]);
        }
        (into, from)
    });
    let pipe = thief.join().unwrap();
    rig.assert_answers(OTHER_PORT);
    drop(front_end);
    assert_usable(&rig, &carrier);
    drop(pipe);
}

#[test]
fn there_is_one_transfer_at_a_time() {
    let (_rig, carrier, mut front_end) = rig(Bytes::default());
    let mut first = loading(&mut front_end);
    let (theirs, _ours) = rustix::pipe::pipe().unwrap();
    assert_eq!(begin(&mut front_end, (LOAD, 0), theirs), NOT_BEGUN);
    first.write_all(b"first").unwrap();
    drop(first);
    assert_eq!(check(&mut front_end), 0);
    assert_eq!(*carrier.loaded.lock().unwrap(), [b"first".to_vec()]);
    assert_eq!(check(&mut front_end), 1, "nothing was begun since");
}

#[test]
fn a_transfer_that_was_never_checked_is_forgotten_with_the_next() {
    let (_rig, carrier, mut front_end) = rig(Bytes::default());
    drop(loading(&mut front_end));
    let mut next = eventually("the first has ended", || {
        let (theirs, ours) = rustix::pipe::pipe().unwrap();
        (begin(&mut front_end, (LOAD, 0), theirs) == BEGUN).then(|| File::from(ours))
    });
    next.write_all(b"next").unwrap();
    drop(next);
    assert_eq!(check(&mut front_end), 0);
    assert_eq!(carrier.loaded.lock().unwrap().len(), 2);
}

#[test]
fn only_the_right_end_of_a_pipe_is_used() {
    let (rig, _, mut front_end) = rig(Bytes::default());
    let (reads, writes) = rustix::pipe::pipe().unwrap();
    assert_eq!(begin(&mut front_end, (SAVE, 0), &reads), NOT_BEGUN);
    assert_eq!(begin(&mut front_end, (LOAD, 0), &writes), NOT_BEGUN);
    let named = rig.folder.as_path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &named,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
    let named = rustix::fs::open(&named, flags, rustix::fs::Mode::empty()).unwrap();
    let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let others: [OwnedFd; 5] = [
        named,
        socket.into(),
        new_eventfd(),
        memfd(4096).into(),
        File::open("/dev/zero").unwrap().into(),
    ];
    for (at, other) in others.iter().enumerate() {
        assert_eq!(begin(&mut front_end, (LOAD, 0), other), NOT_BEGUN, "{at}");
        assert_eq!(check(&mut front_end), 1);
    }
    assert_eq!(begin(&mut front_end, (2, 0), &reads), NOT_BEGUN);
    assert_eq!(begin(&mut front_end, (LOAD, 1), &reads), NOT_BEGUN);
    assert!(notes(&rig).contains("direction 1, phase 1"));
    // None, or two, is no message.
    let body = [LOAD, 0].map(u32::to_ne_bytes).concat();
    let sent = [reads.as_fd(), reads.as_fd()];
    for descriptors in [&sent[..0], &sent[..]] {
        rig.status_when(PORT, "free", |status| {
            status.state == "listening" || descriptors.is_empty()
        });
        let mut front_end = match descriptors {
            [] => std::mem::replace(
                &mut front_end,
                Raw::new(std::os::unix::net::UnixStream::pair().unwrap().0),
            ),
            _ => negotiated(&rig, PORT),
        };
        let sent = front_end.try_send(SET_DEVICE_STATE_FD, 0, &body, descriptors);
        sent.unwrap();
        assert!(front_end.is_hung_up());
    }
}

#[test]
fn nothing_is_carried_while_rings_run() {
    let rig = Rig::new();
    let carrier = Arc::new(Bytes::default());
    add(&rig, PORT, &carrier);
    let mut front_end = rig.front_end(PORT);
    let features = cloud_hypervisor_features()
        | vhost::vhost_user::message::VhostUserProtocolFeatures::DEVICE_STATE;
    negotiate(&mut front_end, features);
    let guest = Guest::new(2);
    activate(&mut front_end, &guest);
    use vhost::VhostBackend;
    use vhost::vhost_user::VhostUserFrontend;
    use vhost::vhost_user::message::{VhostTransferStateDirection, VhostTransferStatePhase};
    let save = || {
        let (ours, theirs) = rustix::pipe::pipe().unwrap();
        let begun = front_end.set_device_state_fd(
            VhostTransferStateDirection::SAVE,
            VhostTransferStatePhase::STOPPED,
            theirs,
        );
        (
            begun.is_ok(),
            ours,
            front_end.get_vring_base(0),
            front_end.get_vring_base(1),
        )
    };
    assert!(!save().0);
    // Both were stopped by the way; and a front-end that is not of this project can do it.
    let (begun, ours, ..) = save();
    assert!(begun);
    File::from(ours).read_to_end(&mut Vec::new()).unwrap();
    front_end.check_device_state().unwrap();
}

#[test]
fn a_port_that_does_not_offer_it_knows_nothing_of_it() {
    let (rig, _) = Rig::with_port(1);
    let mut front_end = rig.raw(PORT);
    assert_eq!(front_end.value_of(15, 0, &[]) & DEVICE_STATE, 0);
    let all = (REPLY_ACK | DEVICE_STATE).to_ne_bytes();
    front_end.send(SET_PROTOCOL_FEATURES, 0, &all);
    front_end.send(SET_PROTOCOL_FEATURES, 0, &REPLY_ACK.to_ne_bytes());
    assert_eq!(front_end.value_of(CHECK_DEVICE_STATE, 8, &[]), 1);
    let body = [LOAD, 0].map(u32::to_ne_bytes).concat();
    front_end
        .try_send(SET_DEVICE_STATE_FD, 8, &body, &[pipe().as_fd()])
        .unwrap();
    assert_eq!(front_end.reply(), Some((SET_DEVICE_STATE_FD, 1)));
}

#[test]
fn all_ports_together_have_so_many_transfers_at_a_time() {
    let rig = Rig::new();
    let carrier = Arc::new(Bytes::default());
    let ports: Vec<_> = (1..=17)
        .map(|id| ringswitch::device::PortId::new(id).unwrap())
        .collect();
    let mut begun: Vec<_> = ports
        .iter()
        .map(|id| {
            add(&rig, *id, &carrier);
            let mut front_end = negotiated(&rig, *id);
            let (theirs, ours) = rustix::pipe::pipe().unwrap();
            let answer = begin(&mut front_end, (LOAD, 0), theirs);
            (answer, front_end, ours)
        })
        .collect();
    let (last, mut waiting, _) = begun.pop().unwrap();
    assert_eq!(last, NOT_BEGUN);
    let why = rig.status(ports[16]).notes.join("\n");
    assert!(why.contains("16 transfers of ports' states"), "{why}");
    assert!(begun.iter().all(|(answer, ..)| *answer == BEGUN));
    let (_, mut first, pipe) = begun.remove(0);
    drop(pipe);
    assert_eq!(check(&mut first), 0);
    let _pipe = loading(&mut waiting);
}
