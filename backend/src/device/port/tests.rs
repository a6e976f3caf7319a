//! A request that is answered later, over a real socket.

use crate::device::message::{Reply, RequestCode};
use crate::device::recording::{Effect, RecordingAttachment};
use crate::device::state::{Asked, Handled, Outcome, Refusal};
use crate::device::{DeviceThread, PortId, SocketMode, VhostPortSpec};
use crate::handover::descriptors::Outgoing;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmm_sys_util::tempdir::TempDir;

const PORT: PortId = PortId::new(1).unwrap();
const GET_FEATURES: u32 = 1;
const GET_QUEUE_NUM: u32 = 17;
const WAITING: RequestCode = RequestCode(43);

struct Rig {
    thread: Arc<DeviceThread>,
    attachment: RecordingAttachment,
    front_end: UnixStream,
    _folder: TempDir,
}

fn request(code: u32) -> Vec<u8> {
    [code, 1, 0].map(u32::to_ne_bytes).concat()
}

impl Rig {
    /// A front-end that was answered once, and whose next request is not answered yet.
    fn waiting(wants_ack: bool) -> Self {
        let folder = TempDir::new().unwrap();
        let socket = folder.as_path().join("socket");
        let thread = DeviceThread::start().unwrap();
        let attachment = RecordingAttachment::default();
        let spec = VhostPortSpec {
            id: PORT,
            name: "port".to_owned(),
            socket: socket.clone(),
            mode: SocketMode::Server,
            queue_pairs: 1,
            mtu: None,
            packed: None,
            carrier: None,
            offer: None,
        };
        thread
            .add_attached(Box::new(attachment.clone()), spec)
            .unwrap();
        let mut front_end = UnixStream::connect(socket).unwrap();
        let patience = Some(Duration::from_secs(20));
        front_end.set_read_timeout(patience).unwrap();
        front_end.write_all(&request(GET_FEATURES)).unwrap();
        assert_eq!(answer(&mut front_end), GET_FEATURES);
        thread.locked(PORT, |port| {
            let connected = port.connected.as_mut().unwrap();
            let request = WAITING;
            connected.waits = Some(Asked { request, wants_ack });
        });
        Self {
            thread,
            attachment,
            front_end,
            _folder: folder,
        }
    }

    /// What is answered first once `late` is there: the one that waits, or the one behind it.
    fn answered_first(&mut self, late: Handled) -> u32 {
        self.front_end.write_all(&request(GET_QUEUE_NUM)).unwrap();
        self.went_by();
        self.attachment.answer_later(late);
        answer(&mut self.front_end)
    }

    /// The device thread has seen the request that came, and let it lie.
    fn went_by(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let disarmed = |port: &mut super::Port| {
            let watches = port.connected.as_ref().unwrap().watches;
            !watches.contains(vmm_sys_util::epoll::EventSet::IN)
        };
        while !self.thread.locked(PORT, disarmed) {
            assert!(Instant::now() < deadline, "it never stops to read");
            std::thread::yield_now();
        }
    }
}

/// The request that the next reply answers.
fn answer(front_end: &mut UnixStream) -> u32 {
    let mut head = [0; 12];
    front_end.read_exact(&mut head).unwrap();
    let [code, flags, size] = [0, 4, 8].map(|at| {
        let bytes = head.get(at..at + 4).unwrap();
        u32::from_ne_bytes(bytes.try_into().unwrap())
    });
    assert_eq!(flags, 5);
    let mut body = vec![0; size as usize];
    front_end.read_exact(&mut body).unwrap();
    code
}

#[test]
fn nothing_is_read_before_the_late_answer_and_everything_after_it() {
    let mut rig = Rig::waiting(false);
    let late = Ok(Outcome::Reply(Reply::Value(0)));
    assert_eq!(rig.answered_first(late), WAITING.0);
    assert_eq!(answer(&mut rig.front_end), GET_QUEUE_NUM);
    rig.front_end.write_all(&request(GET_FEATURES)).unwrap();
    assert_eq!(answer(&mut rig.front_end), GET_FEATURES);
}

#[test]
fn what_has_no_reply_of_its_own_is_acked_late_only_if_that_was_asked_for() {
    assert_eq!(
        Rig::waiting(true).answered_first(Ok(Outcome::Done)),
        WAITING.0
    );
    assert_eq!(
        Rig::waiting(false).answered_first(Ok(Outcome::Done)),
        GET_QUEUE_NUM
    );
}

#[test]
fn a_late_refusal_is_counted_and_told() {
    let mut rig = Rig::waiting(false);
    let late = Ok(Outcome::Refused(Reply::Value(1), Refusal::Unsupported));
    assert_eq!(rig.answered_first(late), WAITING.0);
    let (refused, why) = rig.thread.locked(PORT, |port| {
        let device = &port.device;
        (
            device.counters().refused,
            device.session().last_refusal.clone(),
        )
    });
    assert_eq!(refused, 1);
    assert!(why.unwrap().contains("was not offered"));
}

#[test]
fn still_under_way_leaves_it_waiting() {
    let mut rig = Rig::waiting(false);
    rig.front_end.write_all(&request(GET_QUEUE_NUM)).unwrap();
    rig.went_by();
    rig.attachment.answer_later(Ok(Outcome::Later));
    let deadline = Instant::now() + Duration::from_secs(20);
    while rig.attachment.recording().late.is_some() {
        assert!(Instant::now() < deadline, "nobody asks");
        std::thread::yield_now();
    }
    let late = Ok(Outcome::Reply(Reply::Value(0)));
    rig.attachment.answer_later(late);
    assert_eq!(answer(&mut rig.front_end), WAITING.0);
}

#[test]
fn a_front_end_that_goes_away_ends_the_session_whose_answer_is_dropped() {
    let rig = Rig::waiting(true);
    let Rig {
        thread,
        attachment,
        front_end,
        _folder,
    } = rig;
    // With a request unread, and only its own direction closed.
    (&front_end).write_all(&request(GET_QUEUE_NUM)).unwrap();
    front_end.shutdown(std::net::Shutdown::Write).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while thread.status(PORT).unwrap().connections.disconnects == 0 {
        assert!(Instant::now() < deadline, "the session never ends");
        std::thread::yield_now();
    }
    let effects = attachment.take_effects();
    assert!(effects.contains(&Effect::ForgetSession));
    // An answer that comes nevertheless hurts nobody.
    attachment.answer_later(Ok(Outcome::Done));
    let mut next = UnixStream::connect(_folder.as_path().join("socket")).unwrap();
    next.write_all(&request(GET_FEATURES)).unwrap();
    assert_eq!(answer(&mut next), GET_FEATURES);
}

#[test]
fn a_port_that_owes_an_answer_stays_in_its_process() {
    let rig = Rig::waiting(false);
    let refused = rig.thread.frozen(|frozen| {
        let handed = frozen.hand_over(&mut Outgoing::default());
        handed.err().map(|error| (error.kind(), error.to_string()))
    });
    let (kind, reason) = refused.unwrap();
    assert_eq!(kind, ErrorKind::ResourceBusy);
    assert!(reason.contains("port has not answered"), "{reason}");
}
