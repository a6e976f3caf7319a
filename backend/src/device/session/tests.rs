//! Replies over a real pair of sockets.

use super::*;
use crate::device::message::AnsweringDescriptor;
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

const VALUE: RequestCode = RequestCode(1);
const DESCRIPTOR: RequestCode = RequestCode(28);
const REPLY_BYTES: usize = HEADER_BYTES + 8;
/// Flags of a reply: version 1, and bit 2.
const VERSION_AND_REPLY: u32 = 1 | 4;

fn pair() -> (Session, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
    set_socket_send_buffer_size(&ours, 4096).unwrap();
    (Session::new(ours), theirs)
}

fn counter(value: u32) -> Reply {
    let counter = eventfd(value, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    Reply::Descriptor(AnsweringDescriptor(counter))
}

/// At most that many bytes, and what came with them.
fn receive(socket: &OwnedFd, bytes: usize) -> (Vec<u8>, Vec<OwnedFd>) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffer = vec![0; bytes];
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let received = recvmsg(socket, &mut slices, &mut control, flags).unwrap();
    assert!(!received.flags.contains(ReturnFlags::CTRUNC));
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptors = descriptors.flatten().collect();
    buffer.truncate(received.bytes);
    (buffer, descriptors)
}

fn count_of(descriptor: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    rustix::io::read(descriptor, &mut count).unwrap();
    u64::from_ne_bytes(count)
}

#[test]
fn a_descriptor_answers_without_a_body() {
    let (mut session, front_end) = pair();
    session.send(DESCRIPTOR, counter(7)).unwrap();
    assert!(!session.has_unsent());
    let (bytes, descriptors) = receive(&front_end, 100);
    let expected = [DESCRIPTOR.0, VERSION_AND_REPLY, 0].map(u32::to_ne_bytes);
    assert_eq!(bytes, expected.as_flattened());
    assert_eq!(descriptors.iter().map(count_of).collect::<Vec<_>>(), [7]);
}

#[test]
fn a_body_is_sent_as_it_is() {
    let (mut session, front_end) = pair();
    session.send(VALUE, Reply::Body(vec![1, 2, 3])).unwrap();
    let (bytes, _) = receive(&front_end, 100);
    assert_eq!(bytes.get(8..), Some([3, 0, 0, 0, 1, 2, 3].as_slice()));
}

#[test]
fn a_descriptor_comes_with_its_own_reply_behind_others_that_wait() {
    let (mut session, front_end) = pair();
    let mut before = 0;
    while !session.has_unsent() {
        session.send(VALUE, Reply::Value(before)).unwrap();
        before += 1;
    }
    // Some that wait as a whole.
    for _ in 0..100 {
        session.send(VALUE, Reply::Value(before)).unwrap();
        before += 1;
    }
    session.send(DESCRIPTOR, counter(9)).unwrap();
    session.send(VALUE, Reply::Value(u64::MAX)).unwrap();

    let mut next = |bytes: usize| {
        let (mut got, mut descriptors) = (Vec::new(), Vec::new());
        while got.len() < bytes {
            session.flush().unwrap();
            let (more, others) = receive(&front_end, bytes - got.len());
            got.extend(more);
            descriptors.extend(others);
        }
        (got, descriptors)
    };
    for value in 0..before {
        let (reply, descriptors) = next(REPLY_BYTES);
        assert!(descriptors.is_empty(), "with reply {value}");
        let (bytes, _) = Reply::Value(value).encode(VALUE);
        assert_eq!(reply, bytes);
    }
    // Already its first byte brings it.
    let (first, descriptors) = next(1);
    assert_eq!(first, [28]);
    assert_eq!(descriptors.iter().map(count_of).collect::<Vec<_>>(), [9]);
    next(HEADER_BYTES - 1);
    let (last, descriptors) = next(REPLY_BYTES);
    assert!(descriptors.is_empty());
    assert_eq!(last.get(HEADER_BYTES..), Some([0xff; 8].as_slice()));
    assert!(!session.has_unsent());
}

#[test]
fn one_descriptor_at_most_waits_for_a_front_end_that_does_not_read() {
    let (mut session, _front_end) = pair();
    while !session.has_unsent() {
        session.send(DESCRIPTOR, counter(0)).unwrap();
    }
    assert!(matches!(
        session.send(DESCRIPTOR, counter(0)),
        Err(SessionEnd::NotReading)
    ));
}

#[test]
fn a_session_with_a_descriptor_to_send_stays_where_it_is() {
    let (mut session, front_end) = pair();
    while !session.has_unsent() {
        session.send(DESCRIPTOR, counter(0)).unwrap();
    }
    let refused = session.hand_over(&mut Outgoing::default()).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ResourceBusy);
    while session.has_unsent() {
        receive(&front_end, HEADER_BYTES);
        session.flush().unwrap();
    }
    session.hand_over(&mut Outgoing::default()).unwrap();
}
