//! Front-ends that lie about a migration's log, while two ports exchange verified traffic and must lose nothing.

use std::os::fd::{AsFd, OwnedFd};

use guest_sim::Features;
use guest_sim::message::Request;
use guest_sim::misbehave::PassedDescriptor;

use crate::rig::{Bystanders, Switch, WITHIN, exchange, guest_options, named, numbered, until};

/// SET_LOG_BASE with what no front-end would send: body and descriptors.
fn hostile_logs() -> Vec<(String, Vec<u8>, Vec<OwnedFd>)> {
    let body = |size: u64, offset: u64| [size.to_le_bytes(), offset.to_le_bytes()].concat();
    let memfd = |bytes| PassedDescriptor::Memfd(bytes).make().unwrap();
    let mut logs = Vec::new();
    let sizes = [0, 1, 7, 4097, 1 << 20, 1 << 40, 1 << 62, u64::MAX];
    let offsets = [0, 1, 4096, 1 << 17, 1 << 62, u64::MAX - 7, u64::MAX];
    for size in sizes {
        for offset in offsets {
            let name = format!("{size:#x} bytes at {offset:#x}");
            logs.push((name, body(size, offset), vec![memfd(1 << 17)]));
        }
    }
    for kind in PassedDescriptor::NOT_MEMORY {
        let name = format!("{kind:?}");
        logs.push((name, body(1 << 16, 0), vec![kind.make().unwrap()]));
    }
    let good = body(1 << 17, 0);
    logs.push(("no descriptor".into(), good.clone(), Vec::new()));
    let two = vec![memfd(1 << 17), memfd(1 << 17)];
    logs.push(("two descriptors".into(), good.clone(), two));
    for bytes in [0, 8, 15] {
        let short = good[..bytes].to_vec();
        logs.push((
            format!("a body of {bytes} bytes"),
            short,
            vec![memfd(1 << 17)],
        ));
    }
    let long = [good.as_slice(), &[0; 8]].concat();
    logs.push(("a body of 24 bytes".into(), long, vec![memfd(1 << 17)]));
    // Shorter than memory: there is no bit for most of what is written.
    logs.push(("a short log".into(), body(64, 0), vec![memfd(1 << 17)]));
    logs
}

#[test]
fn no_log_that_a_front_end_may_send_disturbs_others_or_the_port() {
    let switch = Switch::of(&["vm1", "vm2", "vm7", "vm8"]);
    let mut bystanders = Bystanders::on(&switch);
    bystanders.during(|| {
        for (number, (name, body, descriptors)) in hostile_logs().into_iter().enumerate() {
            named(&name, || {
                let mut guest = switch.guest("vm1", guest_options());
                // In place of a good log, or as the first.
                if number % 2 == 0 {
                    guest.start_logging().unwrap();
                }
                let borrowed: Vec<_> = descriptors.iter().map(|one| one.as_fd()).collect();
                let raw = guest.session().raw();
                let sent = raw.send(Request::SET_LOG_BASE, &body, &borrowed);
                sent.unwrap_or_else(|error| panic!("{error}"));
                let features = Features::LOG_ALL | guest.acked();
                let session = guest.session();
                for request in [Request::SET_FEATURES, Request::GET_FEATURES] {
                    // It may have been hung up on; if not, replies may wait.
                    let _sent = session
                        .raw()
                        .send(request, &features.bits().to_le_bytes(), &[]);
                }
                // The guest goes on using its rings, whatever became of them.
                guest.pair(0).guest_tx.queue(&numbered(1, 1, 2)).unwrap();
                guest.pair(0).guest_tx.publish().unwrap();
            });
        }
    });
    let mut one = switch.guest("vm1", guest_options());
    let mut other = switch.guest("vm2", guest_options());
    exchange((1, &mut one), (2, &mut other));
    switch.finish();
}

#[test]
fn a_log_cut_short_under_the_switch_costs_only_its_own_port() {
    let switch = Switch::of(&["vm1", "vm2", "vm7", "vm8"]);
    let mut bystanders = Bystanders::on(&switch);
    bystanders.during(|| {
        for bytes in [0, 4096] {
            let mut guest = switch.guest("vm1", guest_options());
            let mut peer = switch.guest("vm2", guest_options());
            exchange((1, &mut guest), (2, &mut peer));
            guest.start_logging().unwrap();
            guest.vmm().log().unwrap().truncate(bytes).unwrap();
            for number in 0..50 {
                // Its rings may have stopped already.
                let _sent = peer.pair(0).guest_tx.queue(&numbered(number, 2, 1));
                let _sent = guest.pair(0).guest_tx.queue(&numbered(number, 1, 2));
            }
            peer.pair(0).guest_tx.publish().unwrap();
            guest.pair(0).guest_tx.publish().unwrap();
            peer.pair(0).guest_tx.drain(WITHIN).unwrap();
            drop(guest);
            until("the port to listen again", || {
                (switch.show("vm1")["state"] == "listening").then_some(())
            });
        }
    });
    let mut one = switch.guest("vm1", guest_options());
    let mut other = switch.guest("vm2", guest_options());
    exchange((1, &mut one), (2, &mut other));
    switch.finish();
}
