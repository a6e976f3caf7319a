//! The migration log in the state machine: when rings are held, when the log is taken up and let go.

use crate::machine::*;
use crate::rig::{memfd, new_eventfd};
use ringswitch::device::message::{Reply, Request};
use ringswitch::device::recording::Effect;
use ringswitch::device::ring_state::RingPhase;
use ringswitch::ring::LogLayout;

const LOG_ALL: u64 = 1 << 26;
/// Bytes of the logs that these tests share.
const LOG_BYTES: u64 = 4096;

fn log(size_bytes: u64) -> LogLayout {
    LogLayout {
        size_bytes,
        mmap_offset: 0,
    }
}

fn set_log(size_bytes: u64) -> Request {
    Request::SetLogBase(log(size_bytes), Some(memfd(LOG_BYTES).into()))
}

/// What QEMU sends at the start of a migration, on running rings.
fn start_logging(machine: &mut Machine) {
    let answer = machine.ask(set_log(LOG_BYTES));
    assert_eq!(answer.reply, Some(Reply::Log(log(LOG_BYTES))));
    assert!(answer.refusal.is_none());
    machine.ok(Request::SetFeatures(MODERN | LOG_ALL));
    machine.ok(Request::SetVringAddr(logged_addresses(0)));
    machine.ok(Request::SetVringAddr(logged_addresses(1)));
    assert!(machine.device.is_logging());
}

fn logged_addresses(index: u32) -> ringswitch::device::message::VringAddresses {
    let addresses = addresses(index);
    ringswitch::device::message::VringAddresses {
        flags: 1,
        log: addresses.used_ring,
        ..addresses
    }
}

fn stops_or_starts(effects: &[Effect]) -> bool {
    let moved = |effect: &Effect| matches!(effect, Effect::Stop(_) | Effect::Start(..));
    effects.iter().any(moved)
}

#[test]
fn logging_begins_and_is_cancelled_on_rings_that_never_notice() {
    let mut machine = Machine::running(1);
    start_logging(&mut machine);
    let begun = machine.effects();
    assert!(begun.contains(&Effect::SetLog(log(LOG_BYTES))));
    // Cancelled: without asking for replies.
    machine.tell(Request::SetFeatures(MODERN));
    machine.tell(Request::SetVringAddr(addresses(0)));
    machine.tell(Request::SetVringAddr(addresses(1)));
    let cancelled = machine.effects();
    assert!(cancelled.contains(&Effect::DropLog));
    assert!(!stops_or_starts(&begun) && !stops_or_starts(&cancelled));
    assert!(!machine.device.is_logging() && !machine.device.is_held());
    start_logging(&mut machine);
}

#[test]
fn a_log_of_every_round_replaces_the_one_before() {
    let mut machine = Machine::running(1);
    start_logging(&mut machine);
    machine.effects();
    for round in 1..4 {
        assert!(
            machine
                .ask(set_log(LOG_BYTES / 2 * round))
                .refusal
                .is_none()
        );
        let expected = [Effect::SetLog(log(LOG_BYTES / 2 * round))];
        assert_eq!(machine.effects(), expected);
    }
}

#[test]
fn rings_are_held_from_log_all_to_the_log() {
    // As QEMU has it on `cont` and on reconnect in the middle of a migration.
    let mut machine = Machine::new(1);
    machine.ok(Request::SetFeatures(MODERN | LOG_ALL));
    for index in 0..2 {
        machine.set_up_ring(index);
        assert!(machine.kick(index).is_none());
        assert_eq!(machine.phase(index as usize), RingPhase::Waiting);
    }
    assert!(machine.device.is_held());
    machine.ask(set_log(LOG_BYTES));
    assert_eq!(machine.recorded().running.len(), 2);
}

#[test]
fn rings_that_run_are_held_as_well() {
    let mut machine = Machine::running(1);
    machine.recorded().stop_at = [(ringswitch::datapath::QueueIndex(0), 77)].into();
    machine.ok(Request::SetFeatures(MODERN | LOG_ALL));
    assert!(machine.recorded().running.is_empty());
    machine.ask(set_log(LOG_BYTES));
    let start = machine.start_of(0).unwrap();
    assert_eq!((start.base, start.features), (77, MODERN | LOG_ALL));
    // Should the switch be killed, the front-end says where it started the ring: the record is known by that.
    assert_eq!(start.origin, 0);
    machine.stop(0);
    machine.ok(Request::SetVringKick(0, Some(new_eventfd())));
    machine.ask(set_log(LOG_BYTES));
    assert_eq!(machine.start_of(0).unwrap().origin, 77);
    // Without the log the migration is off, and so is the hold.
    let mut machine = Machine::running(1);
    machine.ok(Request::SetFeatures(MODERN | LOG_ALL));
    machine.tell(Request::SetFeatures(MODERN));
    assert_eq!(machine.recorded().running.len(), 2);
}

#[test]
fn after_the_last_ring_stopped_the_next_log_is_waited_for() {
    let mut machine = Machine::running(1);
    start_logging(&mut machine);
    machine.stop(0);
    assert!(machine.device.is_logging(), "one ring runs");
    machine.stop(1);
    assert!(machine.device.is_held());
    assert!(machine.effects().contains(&Effect::DropLog));
    for index in 0..2 {
        machine.ok(Request::SetVringKick(index, Some(new_eventfd())));
    }
    assert!(machine.recorded().running.is_empty());
    machine.ask(set_log(LOG_BYTES));
    assert_eq!(machine.recorded().running.len(), 2);
}

#[test]
fn a_log_that_cannot_be_used_holds_the_rings_and_is_answered_all_the_same() {
    let unusable: [fn() -> Request; 2] =
        [|| set_log(0), || Request::SetLogBase(log(LOG_BYTES), None)];
    for unusable in unusable {
        let mut machine = Machine::running(1);
        start_logging(&mut machine);
        let answer = machine.tell(unusable());
        assert!(matches!(answer.reply, Some(Reply::Log(_))));
        assert!(answer.refusal.is_some());
        assert!(machine.device.is_held());
        assert!(machine.recorded().running.is_empty());
        machine.ask(set_log(LOG_BYTES));
        assert_eq!(machine.recorded().running.len(), 2);
    }
}

#[test]
fn changed_memory_keeps_the_log_and_a_new_session_has_none() {
    let mut machine = Machine::running(1);
    start_logging(&mut machine);
    machine.share_memory();
    assert!(machine.device.is_logging() && machine.recorded().log.is_some());
    machine.end_session();
    assert!(!machine.device.is_logging() && machine.recorded().log.is_none());
}

#[test]
fn without_log_shmfd_there_is_no_log() {
    let mut machine = Machine::bare(1);
    machine.tell(Request::SetProtocolFeatures(0x8));
    machine.refused(set_log(LOG_BYTES));
}
