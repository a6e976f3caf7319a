//! The session decoder and the state machine under arbitrary bytes, with simulated descriptors and a recording data path.

use crate::datapath::QueueIndex;
use crate::device::features::PackedOffer;
use crate::device::message::{Malformed, Message, Reply, Request};
use crate::device::recording::{Recording, RecordingAttachment};
use crate::device::ring_state::RingPhase;
use crate::device::session::MessageReader;
use crate::device::state::{Answer, DeviceState};
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::OwnedFd;

/// Queue pairs of the fuzzed device.
const QUEUE_PAIRS: u16 = 2;

/// One session of arbitrary bytes: `input` is chunks of `[descriptors][length][bytes...]`, each chunk one read of the socket.
/// Panics when the device breaks a promise: a reply to nothing, a ring that outlives its session, a clean session refused.
pub fn run(input: &[u8]) {
    let attachment = RecordingAttachment::default();
    let mut effects = attachment.clone();
    let mut device = fresh();
    let _ = replay(input, &mut device, &mut effects);
    check(&device, &attachment.recording());

    device.end_session(&mut effects);
    let recording = attachment.recording();
    assert!(recording.running.is_empty(), "no ring outlives its session");
    assert!(
        recording.descriptors.is_empty(),
        "no descriptor outlives its session"
    );
    assert!(recording.enabled.is_empty(), "no ring stays enabled");
    let fresh = fresh();
    assert_eq!(
        device.session(),
        fresh.session(),
        "the next session starts afresh"
    );
    assert_eq!(device.offer(), fresh.offer(), "features never change");
}

fn fresh() -> DeviceState {
    DeviceState::new(QUEUE_PAIRS, None, PackedOffer::Made).with_device_state()
}

fn replay(
    input: &[u8],
    device: &mut DeviceState,
    effects: &mut RecordingAttachment,
) -> Result<(), Malformed> {
    let mut reader = MessageReader::default();
    let mut rest = input;
    while let [descriptors, length, tail @ ..] = rest {
        let (mut chunk, tail) = tail.split_at(usize::from(*length).min(tail.len()));
        rest = tail;
        let mut attached = simulated_descriptors(*descriptors);
        // A read never reaches past the message in hand, so a long chunk takes several; the first brings the descriptors.
        while !chunk.is_empty() {
            let space = reader.space();
            let taken = space.len().min(chunk.len());
            let (now, later) = chunk.split_at(taken);
            for (to, from) in space.iter_mut().zip(now) {
                *to = *from;
            }
            chunk = later;
            if let Some(message) = reader.advance(taken, std::mem::take(&mut attached))? {
                handle(message, device, effects)?;
            }
        }
    }
    Ok(())
}

fn handle(
    message: Message,
    device: &mut DeviceState,
    effects: &mut RecordingAttachment,
) -> Result<(), Malformed> {
    let header = message.header;
    let request = message.decode()?;
    let has_own_reply = matches!(
        request,
        Request::SetLogBase(..)
            | Request::Iotlb(_)
            | Request::SetDeviceStateFd(..)
            | Request::CheckDeviceState
    );
    let Answer {
        reply,
        refusal,
        waits: _,
    } = device.handle(&header, request, effects);
    if let (Some(reply), Some(_), false) = (reply, refusal, has_own_reply) {
        assert!(header.need_reply, "a refusal is sent only to who asked");
        assert_eq!(reply, Reply::Value(1), "a refusal is a NACK");
    }
    check(device, &effects.recording());
    Ok(())
}

/// What the state machine believes and what it did must agree.
fn check(device: &DeviceState, recording: &Recording) {
    let session = device.session();
    for (queue, ring) in (0..).map(QueueIndex).zip(&session.rings) {
        let running = ring.phase == RingPhase::Running;
        assert_eq!(running, recording.running.contains_key(&queue), "{queue:?}");
        assert_eq!(
            ring.enabled,
            recording.enabled.contains(&queue),
            "{queue:?}"
        );
    }
    assert_eq!(
        session.memory, recording.memory,
        "the map in the state is the map that is mapped"
    );
}

/// The low nibble says how many, the high nibble of which kind.
fn simulated_descriptors(byte: u8) -> Vec<OwnedFd> {
    let make = || -> io::Result<OwnedFd> {
        if byte & 0x10 == 0 {
            Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
        } else {
            Ok(std::fs::File::open("/dev/null")?.into())
        }
    };
    (0..byte & 0xf).filter_map(|_| make().ok()).collect()
}
