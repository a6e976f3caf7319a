//! The daemon killed and started again under running guests.

use guest_sim::bench::daemon::PortArgument;
use guest_sim::nic::session::connect;
use guest_sim::{Frame, Listener, Nic, NicOptions, RingBase};

use crate::rig::{
    PACKED, Switch, WITHIN, arrival, exchange, guest_options, introduce, named, numbered, settle,
    verify_arrival, verify_quiet,
};

/// How guests and switch find each other.
pub enum Sockets {
    SwitchListens,
    GuestsListen([Listener; 2]),
}

impl Sockets {
    pub fn stream(&self, switch: &Switch, number: usize) -> std::os::unix::net::UnixStream {
        match self {
            Self::SwitchListens => {
                let port = ["vm1", "vm2"][number];
                connect(&switch.daemon.socket(port), WITHIN).unwrap()
            }
            Self::GuestsListen(listeners) => listeners[number].accept(WITHIN).unwrap(),
        }
    }

    pub fn listening_guests(switch: &Switch) -> Self {
        let listen = |port| Listener::bind(&switch.daemon.socket(port)).unwrap();
        Self::GuestsListen([listen("vm1"), listen("vm2")])
    }
}

/// Guests on ports `vm1` and `vm2`, running.
pub fn two_guests(switch: &Switch, sockets: &Sockets, options: &NicOptions) -> [Nic; 2] {
    [0, 1].map(|number| {
        let stream = sockets.stream(switch, number);
        let mut nic = introduce(options.clone(), stream);
        nic.start().unwrap();
        settle(&mut nic);
        nic
    })
}

/// Killed with frames in the transmit ring and with more put there while it is gone: each arrives once, in order, but for those whose
/// delivery the kill interrupted, which may arrive again.
fn killed_again_and_again(more: &str, sockets: impl Fn(&Switch) -> Sockets, options: &NicOptions) {
    let port = |name| PortArgument {
        more,
        ..PortArgument::named(name)
    };
    let mut switch = Switch::new(&[port("vm1"), port("vm2")], &[]);
    let sockets = sockets(&switch);
    let [mut from, mut to] = two_guests(&switch, &sockets, options);
    for round in 0..4u16 {
        exchange((1, &mut from), (2, &mut to));
        let frames: Vec<Frame> = (0..200).map(|n| numbered(1000 * round + n, 1, 2)).collect();
        for frame in &frames[..100] {
            from.pair(0).guest_tx.queue(frame).unwrap();
        }
        from.pair(0).guest_tx.publish().unwrap();
        switch.daemon.kill().unwrap();
        for frame in &frames[100..110] {
            from.pair(0).guest_tx.queue(frame).unwrap();
        }
        from.pair(0).guest_tx.publish().unwrap();
        switch.daemon.restart().unwrap();
        // The receiver first, so that what waits in the ring finds it.
        to.reconnect(sockets.stream(&switch, 1)).unwrap();
        settle(&mut to);
        from.reconnect(sockets.stream(&switch, 0)).unwrap();
        expect(&frames[..110], &mut to);
        from.pair(0).guest_tx.drain(WITHIN).unwrap();
    }
    exchange((1, &mut from), (2, &mut to));
    switch.finish();
}

/// All of them, in order, but that a stretch may be repeated.
fn expect(frames: &[Frame], to: &mut Nic) {
    let mut due = 0;
    while due < frames.len() {
        let arrived = arrival(to);
        let at = frames.iter().position(|frame| frame.bytes == arrived.bytes);
        let at = at.expect("a frame of this round");
        assert!(at <= due, "frame {due} is missing: {at} arrived");
        due = at + 1;
    }
    verify_quiet(&mut [to]);
}

#[test]
fn guests_reconnect_to_a_killed_switch_and_nothing_in_their_rings_is_lost() {
    for options in [guest_options(), cloud_hypervisor()] {
        named(&options.order, || {
            killed_again_and_again("", |_| Sockets::SwitchListens, &options);
        });
    }
}

#[test]
fn a_killed_switch_reconnects_to_its_guests_and_nothing_in_their_rings_is_lost() {
    for options in [guest_options(), cloud_hypervisor()] {
        named(&options.order, || {
            killed_again_and_again("mode=client", Sockets::listening_guests, &options);
        });
    }
}

pub fn cloud_hypervisor() -> NicOptions {
    NicOptions {
        deadline: WITHIN,
        ..NicOptions::cloud_hypervisor()
    }
}

#[test]
fn a_base_that_skips_posted_buffers_is_not_believed() {
    let switch = Switch::of(&["vm1", "vm2"]);
    let mut from = switch.guest("vm1", guest_options());
    let mut to = switch.guest("vm2", guest_options());
    exchange((1, &mut from), (2, &mut to));
    // Nothing in a packed ring's memory would tell that another value is wrong.
    let bases = [
        RingBase::AvailIndex,
        RingBase::Value(0),
        RingBase::Value(777),
    ];
    for &base in &bases[..if PACKED { 1 } else { 3 }] {
        to.session().raw().hang_up();
        let stream = connect(&switch.daemon.socket("vm2"), WITHIN).unwrap();
        to.reconnect_from(stream, base).unwrap();
        settle(&mut to);
        exchange((1, &mut from), (2, &mut to));
    }
    switch.finish();
}

#[test]
fn what_waited_while_the_connection_alone_was_lost_arrives() {
    let switch = Switch::of(&["vm1", "vm2"]);
    let mut from = switch.guest("vm1", guest_options());
    let mut to = switch.guest("vm2", guest_options());
    for round in 0..20 {
        from.session().raw().hang_up();
        let frames: Vec<_> = (0..50).map(|n| numbered(50 * round + n, 1, 2)).collect();
        from.pair(0).guest_tx.send_all(&frames, WITHIN).unwrap();
        let stream = connect(&switch.daemon.socket("vm1"), WITHIN).unwrap();
        from.reconnect(stream).unwrap();
        for frame in &frames {
            verify_arrival(frame, &mut to);
        }
    }
    verify_quiet(&mut [&mut from, &mut to]);
    switch.finish();
}

#[test]
fn sigterm_with_guests_and_traffic_removes_the_sockets_and_ends_the_sessions() {
    let mut switch = Switch::of(&["vm1", "vm2"]);
    let mut from = switch.guest("vm1", guest_options());
    let mut to = switch.guest("vm2", guest_options());
    exchange((1, &mut from), (2, &mut to));
    for number in 0..100 {
        from.pair(0)
            .guest_tx
            .queue(&numbered(number, 1, 2))
            .unwrap();
    }
    from.pair(0).guest_tx.publish().unwrap();
    let status = switch.daemon.terminate(WITHIN).unwrap();
    assert_eq!(status.code(), Some(0), "{status}");
    for name in ["vm1", "vm2", "admin"] {
        assert!(!switch.daemon.socket(name).exists(), "{name} is left");
    }
    assert!(to.session().get_features().is_err());
    // Every frame was delivered or is still in the ring: the next instance goes on.
    switch.daemon.restart().unwrap();
    switch.await_ready();
    to.reconnect(connect(&switch.daemon.socket("vm2"), WITHIN).unwrap())
        .unwrap();
    settle(&mut to);
    from.reconnect(connect(&switch.daemon.socket("vm1"), WITHIN).unwrap())
        .unwrap();
    for number in 0..100 {
        verify_arrival(&numbered(number, 1, 2), &mut to);
    }
    verify_quiet(&mut [&mut from, &mut to]);
    switch.finish();
}
