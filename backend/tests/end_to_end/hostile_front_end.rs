//! Front-ends that break the rules on the socket, while two ports exchange verified traffic and must lose nothing.

use std::os::fd::AsFd;
use std::time::Duration;

use guest_sim::message::Request;
use guest_sim::misbehave::{PassedDescriptor, flood_without_reading, messages};
use guest_sim::nic::session::connect;
use guest_sim::{Error, RawFrontend};

use crate::rig::{Bystanders, Switch, WITHIN, exchange, guest_options, named, numbered, until};

fn switch() -> Switch {
    Switch::of(&["vm1", "vm2", "vm7", "vm8"])
}

fn raw(switch: &Switch) -> RawFrontend {
    RawFrontend::new(connect(&switch.daemon.socket("vm1"), WITHIN).unwrap())
}

/// Hung up also where another test's child process holds the socket for a moment.
struct HangsUp(RawFrontend);

impl Drop for HangsUp {
    fn drop(&mut self) {
        self.0.hang_up();
    }
}

/// The port serves an honest guest afterwards.
fn still_serves(switch: &Switch) {
    let mut one = switch.guest("vm1", guest_options());
    let mut other = switch.guest("vm2", guest_options());
    exchange((1, &mut one), (2, &mut other));
}

#[test]
fn no_message_on_a_connection_of_its_own_disturbs_others_or_the_port() {
    let switch = switch();
    let mut bystanders = Bystanders::on(&switch);
    bystanders.during(|| {
        for message in messages() {
            named(&message.name, || {
                let mut front_end = HangsUp(raw(&switch));
                match message.send(&mut front_end.0) {
                    Ok(()) | Err(Error::Disconnected { .. }) => {}
                    Err(other) => panic!("{other}"),
                }
            });
        }
    });
    still_serves(&switch);
    switch.finish();
}

#[test]
fn no_message_to_a_port_with_running_rings_disturbs_others() {
    let switch = switch();
    let mut bystanders = Bystanders::on(&switch);
    bystanders.during(|| {
        for message in messages() {
            named(&message.name, || {
                let mut guest = switch.guest("vm1", guest_options());
                match message.send(guest.session().raw()) {
                    Ok(()) | Err(Error::Disconnected { .. }) => {}
                    Err(other) => panic!("{other}"),
                }
                // The guest goes on using its rings, whatever became of them.
                guest.pair(0).guest_tx.queue(&numbered(1, 1, 1)).unwrap();
                guest.pair(0).guest_tx.publish().unwrap();
            });
        }
    });
    still_serves(&switch);
    switch.finish();
}

#[test]
fn a_front_end_that_never_reads_is_not_waited_for() {
    let switch = switch();
    let mut bystanders = Bystanders::on(&switch);
    bystanders.during(|| {
        for _ in 0..3 {
            let mut front_end = HangsUp(raw(&switch));
            match flood_without_reading(&mut front_end.0, 200_000, Duration::from_secs(2)) {
                Ok(_) | Err(Error::Disconnected { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
    });
    still_serves(&switch);
    switch.finish();
}

#[test]
fn a_front_end_that_says_nothing_keeps_only_its_own_port() {
    let switch = switch();
    let mut bystanders = Bystanders::on(&switch);
    bystanders.during(|| {
        let silent = HangsUp(raw(&switch));
        let show = until("the connection to be seen", || {
            let show = switch.show("vm1");
            (show["state"] == "negotiating").then_some(show)
        });
        let reason = show["reason"].as_str().unwrap();
        assert!(reason.contains("has not sent a message"), "{reason}");
        drop(silent);
    });
    still_serves(&switch);
    switch.finish();
}

#[test]
fn a_message_in_single_bytes_is_understood_as_one() {
    let switch = switch();
    let mut front_end = HangsUp(raw(&switch));
    let header = guest_sim::message::header(Request::GET_FEATURES, guest_sim::message::VERSION, 0);
    for _ in 0..20 {
        for byte in header {
            front_end.0.send_bytes(&[byte], &[]).unwrap();
        }
        let offered = front_end.0.receive_u64(Request::GET_FEATURES, WITHIN);
        assert_ne!(offered.unwrap(), 0);
    }
    switch.finish();
}

#[test]
fn connections_by_the_thousand_disturb_nobody() {
    let switch = switch();
    let mut bystanders = Bystanders::on(&switch);
    bystanders.during(|| {
        for _ in 0..1000 {
            drop(HangsUp(raw(&switch)));
        }
        // Many at once: one is served, the others are turned away.
        let many: Vec<_> = (0..100).map(|_| HangsUp(raw(&switch))).collect();
        drop(many);
    });
    still_serves(&switch);
    switch.finish();
}

#[test]
fn descriptors_passed_again_and_again_are_closed() {
    let switch = switch();
    let open = || {
        let folder = format!("/proc/{}/fd", switch.daemon.pid());
        std::fs::read_dir(folder).unwrap().count()
    };
    let listening = || {
        until("the port to listen", || {
            (switch.show("vm1")["state"] == "listening").then_some(())
        });
    };
    listening();
    // The connection of this question's own answer may still be open, or not.
    let before = open();
    for round in 0..30 {
        let mut front_end = HangsUp(raw(&switch));
        for kind in PassedDescriptor::NOT_EVENTFDS {
            let descriptors: Vec<_> = (0..8).map(|_| kind.make().unwrap()).collect();
            let borrowed: Vec<_> = descriptors.iter().map(|fd| fd.as_fd()).collect();
            let request = Request::EVERY[round % Request::EVERY.len()];
            if front_end.0.send(request, &[0; 8], &borrowed).is_err() {
                break;
            }
        }
    }
    listening();
    until("descriptors to be closed", || {
        (open() <= before + 2).then_some(())
    });
    switch.finish();
}
