//! The daemon killed again and again while both guests send and receive without pause: what each of them sees of it.
//!
//! A frame arrives whole or not at all, none out of order. One kill may repeat the batch it interrupted, which was delivered but not
//! given back yet. What is lost was on its way to a guest that came back later than its sender; the other direction loses nothing.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use guest_sim::bench::daemon::PortArgument;
use guest_sim::frame::verify;
use guest_sim::nic::session::{Session, connect};
use guest_sim::{Canaries, Error, Frame, Nic, NicOptions, QueuePair};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::restart::{Sockets, cloud_hypervisor, two_guests};
use crate::rig::{
    Finished, Switch, WITHIN, exchange, guest_options, numbered, settle, until, verify_quiet,
};

/// How often the daemon is killed in each test.
const KILLS: u32 = 50;
/// Frames that a guest has on their way at most. Those of before and after a kill together find room in the other's 256 buffers.
const WINDOW: u64 = 64;
/// After the reconnection.
const BACK_WITHIN: Duration = Duration::from_secs(1);
/// Chains that a worker takes at once: what may come again.
const BATCH: usize = 64;

/// One guest's end of the two streams.
struct Traffic {
    /// Its own number, and the other's.
    ends: (u8, u8),
    /// Frames sent so far, which are numbered from 0.
    sent: u64,
    /// The number that has not arrived yet.
    due: u64,
    /// The number that arrived last.
    last: Option<u64>,
    /// Numbers that arrived again, or before others that had to come first, in this round.
    repeated: HashSet<u64>,
    /// Times that the numbers went back in this round.
    steps_back: u32,
    /// Numbers that were passed over in this round.
    missing: u64,
    /// When the first frame of this round arrived.
    first_arrival: Option<Instant>,
}

impl Traffic {
    fn new(own: u8, other: u8) -> Self {
        Self {
            ends: (own, other),
            sent: 0,
            due: 0,
            last: None,
            repeated: HashSet::new(),
            steps_back: 0,
            missing: 0,
            first_arrival: None,
        }
    }

    fn begin_round(&mut self) {
        self.repeated.clear();
        (self.steps_back, self.missing, self.first_arrival) = (0, 0, None);
    }

    /// Sends and receives until `done`; `arrived` are the numbers up to which this guest and the other have received.
    fn run(&mut self, pair: &mut QueuePair, arrived: (&AtomicU64, &AtomicU64), done: &AtomicBool) {
        let (own, other) = arrived;
        // What a kill lost will never be acknowledged.
        let given_up = self.sent;
        while !done.load(Ordering::Acquire) {
            while self.sent - other.load(Ordering::Acquire).max(given_up) < WINDOW {
                match pair.guest_tx.queue(&self.outgoing(self.sent)) {
                    Ok(()) => self.sent += 1,
                    Err(Error::RingFull) => break,
                    Err(error) => panic!("{error}"),
                }
            }
            pair.guest_tx.publish().unwrap();
            pair.guest_tx.reclaim().unwrap();
            let mut next = pair.guest_rx.receive(Duration::from_millis(1)).unwrap();
            while let Some(frame) = next {
                self.take(&frame);
                next = pair.guest_rx.try_receive().unwrap();
            }
            own.store(self.due, Ordering::Release);
        }
    }

    fn outgoing(&self, number: u64) -> Frame {
        numbered(number as u16, self.ends.0, self.ends.1)
    }

    fn take(&mut self, frame: &Frame) {
        self.first_arrival.get_or_insert_with(Instant::now);
        // The UDP source port is the number's lower half; the window tells the rest.
        let low = u16::from_be_bytes([frame.bytes[34], frame.bytes[35]]);
        let number = self
            .due
            .wrapping_add_signed((low.wrapping_sub(self.due as u16) as i16).into());
        let sent = numbered(low, self.ends.1, self.ends.0);
        verify::same(&sent, frame).unwrap_or_else(|error| panic!("frame {number}: {error}"));
        self.steps_back += u32::from(self.last.is_some_and(|last| number <= last));
        self.last = Some(number);
        if number < self.due {
            assert!(
                self.repeated.insert(number),
                "frame {number} came a third time"
            );
        } else {
            self.missing += number - self.due;
            self.due = number + 1;
        }
    }

    /// What one kill may do to the stream that arrives here.
    fn verify_round(&self, missing_allowed: u64) {
        assert!(self.steps_back <= 1, "{} steps back", self.steps_back);
        assert!(self.repeated.len() <= BATCH, "{:?} repeated", self.repeated);
        assert!(
            self.missing <= missing_allowed,
            "{} frames are missing",
            self.missing
        );
    }
}

/// What all the kills of a test came to.
#[derive(Default)]
struct Account {
    /// Of the stream that was longer.
    arrived: u64,
    missing: u64,
    repeated: usize,
    back: Vec<Duration>,
}

impl Account {
    fn add(&mut self, traffic: &Traffic, since: Instant) {
        self.arrived = self.arrived.max(traffic.due);
        self.missing += traffic.missing;
        self.repeated += traffic.repeated.len();
        let back = traffic
            .first_arrival
            .map(|at| at.saturating_duration_since(since));
        self.back.push(back.expect("streams that flow"));
    }

    /// Traffic is back at once, on a machine that is not too busy: not when somebody tries again.
    fn conclude(&mut self, title: &str) {
        self.back.sort_unstable();
        let median = self.back[self.back.len() / 2];
        eprintln!(
            "{title}: {KILLS} kills, {} frames arrived, {} lost, {} repeated; traffic back after {:.1?} (median), {:.1?} (longest)",
            self.arrived,
            self.missing,
            self.repeated,
            median,
            self.back[self.back.len() - 1],
        );
        assert!(median < BACK_WITHIN, "traffic was back after {median:.1?}");
    }
}

fn killed_under_load(more: &str, sockets: impl Fn(&Switch) -> Sockets, options: &NicOptions) {
    let port = |name| PortArgument {
        more,
        ..PortArgument::named(name)
    };
    let mut switch = Switch::new(&[port("vm1"), port("vm2")], &[]);
    let sockets = sockets(&switch);
    let mut guests = two_guests(&switch, &sockets, options);
    let mut traffic = [Traffic::new(1, 2), Traffic::new(2, 1)];
    let mut account = Account::default();
    flow_until_killed(&mut guests, &mut traffic, 0, || {
        switch.daemon.kill().unwrap();
    });
    for kill in 1..=KILLS {
        take_rest(&mut guests, &mut traffic);
        traffic.iter_mut().for_each(Traffic::begin_round);
        switch.daemon.restart().unwrap();
        let late = (kill % 2) as usize;
        let mut since = Instant::now();
        for number in [1 - late, late] {
            let stream = sockets.stream(&switch, number);
            since = Instant::now();
            guests[number].reconnect(stream).unwrap();
            settle(&mut guests[number]);
        }
        flow_until_killed(&mut guests, &mut traffic, kill, || {
            if kill < KILLS {
                switch.daemon.kill().unwrap();
            }
        });
        for (guest, traffic) in traffic.iter().enumerate() {
            // Nothing is lost on the way to the guest that was back first.
            traffic.verify_round(if guest == late { WINDOW } else { 0 });
            account.add(traffic, since);
        }
    }
    for guest in &mut guests {
        guest.pair(0).guest_tx.drain(WITHIN).unwrap();
    }
    take_rest(&mut guests, &mut traffic);
    account.conclude(&format!("{:?} {more}", options.order));
    let [one, other] = &mut guests;
    exchange((1, one), (2, other));
    verify_quiet(&mut [one, other]);
    switch.finish();
}

/// Both guests send and receive, until the other's frames flow for sure and then some; the kill comes while they do.
fn flow_until_killed(
    guests: &mut [Nic; 2],
    traffic: &mut [Traffic; 2],
    kill: u32,
    act: impl FnOnce(),
) {
    let done = AtomicBool::new(false);
    let arrived = [0, 1].map(|guest| AtomicU64::new(traffic[guest].due));
    // Beyond what was on its way before; at another moment each time, and at whatever instruction the daemon is then.
    let more = 2 * WINDOW + u64::from(kill * 37 % 200);
    let wanted = [0, 1].map(|guest| traffic[guest].due + more);
    std::thread::scope(|scope| {
        for (own, (nic, traffic)) in guests.iter_mut().zip(traffic).enumerate() {
            let (arrived, done) = ((&arrived[own], &arrived[1 - own]), &done);
            scope.spawn(move || traffic.run(nic.pair(0), arrived, done));
        }
        let _finished = Finished(&done);
        until("both streams to flow", || {
            let flows = |guest: usize| arrived[guest].load(Ordering::Acquire) >= wanted[guest];
            (flows(0) && flows(1)).then_some(())
        });
        act();
    });
}

/// What had arrived without being seen when the threads ended.
fn take_rest(guests: &mut [Nic; 2], traffic: &mut [Traffic; 2]) {
    for (nic, traffic) in guests.iter_mut().zip(traffic) {
        while let Some(frame) = nic.pair(0).guest_rx.try_receive().unwrap() {
            traffic.take(&frame);
        }
    }
}

/// A buffer whose filling a kill interrupted may be filled with less the next time: paint would be missed behind it.
fn unpainted(options: NicOptions) -> NicOptions {
    NicOptions {
        canaries: Canaries::Off,
        ..options
    }
}

#[test]
fn fifty_kills_under_load_with_qemu_connecting() {
    killed_under_load("", |_| Sockets::SwitchListens, &unpainted(guest_options()));
}

#[test]
fn fifty_kills_under_load_with_qemu_listening() {
    killed_under_load(
        "mode=client",
        Sockets::listening_guests,
        &unpainted(guest_options()),
    );
}

#[test]
fn fifty_kills_under_load_with_cloud_hypervisor_connecting() {
    killed_under_load(
        "",
        |_| Sockets::SwitchListens,
        &unpainted(cloud_hypervisor()),
    );
}

#[test]
fn fifty_kills_under_load_with_cloud_hypervisor_listening() {
    killed_under_load(
        "mode=client",
        Sockets::listening_guests,
        &unpainted(cloud_hypervisor()),
    );
}

/// Cloud Hypervisor connects anew as soon as it hears that the connection has ended, and gives up for good if it finds somebody who then
/// does not answer.
#[test]
fn whoever_connects_anew_in_the_moment_of_a_kill_is_refused_and_tries_again() {
    let mut switch = Switch::new(&[PortArgument::named("vm1")], &[]);
    let socket = switch.daemon.socket("vm1");
    for _ in 0..40 {
        let connection = connect(&socket, WITHIN).unwrap();
        let mut session = Session::new(connection.try_clone().unwrap(), WITHIN).unwrap();
        session.get_features().unwrap();
        let again = std::thread::scope(|scope| {
            let again = scope.spawn(|| {
                let mut sockets = [PollFd::new(&connection, PollFlags::RDHUP)];
                while poll(&mut sockets, None) == Err(Errno::INTR) {}
                UnixStream::connect(&socket)
            });
            switch.daemon.kill().unwrap();
            again.join().unwrap()
        });
        let refused = again.map_err(|error| error.kind());
        assert_eq!(refused.err(), Some(ErrorKind::ConnectionRefused));
        switch.daemon.restart().unwrap();
    }
    settle(&mut switch.guest("vm1", guest_options()));
    switch.finish();
}
