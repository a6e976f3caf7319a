//! The device on the real data path: memory is mapped, rings run on a worker, and come back.

use crate::rig::*;
use ringswitch::datapath::{Datapath, Program, WorkerOptions};
use std::os::fd::AsFd;
use std::sync::Arc;
use switch_core::{Switch, SwitchConfig, VlanPolicy};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

fn real() -> (Rig, Arc<Datapath>) {
    let rig = Rig::new();
    let switch = Arc::new(Switch::new(SwitchConfig::default()));
    for id in [PORT, OTHER_PORT] {
        switch.add_port(id, VlanPolicy::Transparent).unwrap();
    }
    let options = WorkerOptions {
        workers: 1,
        cpus: Vec::new(),
        poll_us: 50,
    };
    let datapath = Datapath::start(
        &options,
        (switch, Program::L2),
        rig.thread.datapath_events(),
    )
    .unwrap();
    for id in [PORT, OTHER_PORT] {
        rig.thread.add_port(&datapath, rig.spec(id, 1)).unwrap();
    }
    (rig, datapath)
}

fn stop(rig: &Rig, datapath: &Datapath) {
    rig.thread.stop();
    datapath.stop();
}

#[test]
fn rings_start_on_a_worker_and_come_back_with_their_index() {
    let (rig, datapath) = real();
    let mut front_end = rig.front_end(PORT);
    negotiate(&mut front_end, qemu_features());
    activate(&mut front_end, &Guest::new(2));
    assert_eq!(rig.status(PORT).state, "up");
    assert_eq!(front_end.get_vring_base(0).unwrap(), 0);
    assert_eq!(front_end.get_vring_base(1).unwrap(), 0);
    assert_eq!(rig.status(PORT).state, "negotiating");
    stop(&rig, &datapath);
}

#[test]
fn a_broken_ring_is_named_and_the_other_goes_on() {
    let (rig, datapath) = real();
    let mut front_end = rig.front_end(PORT);
    negotiate(&mut front_end, cloud_hypervisor_features());
    let guest = Guest::new(2);
    activate(&mut front_end, &guest);
    // Ring 1's available ring is at 0x5000; an index past the ring's size cannot be.
    std::os::unix::fs::FileExt::write_at(&guest.memory, &40_000_u16.to_ne_bytes(), 0x5002).unwrap();
    guest.kicks[1].write(1).unwrap();
    let status = rig.status_when(PORT, "the fault is told", |status| {
        status.rings[1].fault.is_some()
    });
    assert_eq!(status.state, "up", "ring 0 runs on");
    assert!(status.notes.iter().any(|note| note.starts_with("ring 1: ")));
    stop(&rig, &datapath);
}

#[test]
fn truncated_memory_costs_its_own_port_only() {
    let (rig, datapath) = real();
    let mut other = rig.front_end(OTHER_PORT);
    negotiate(&mut other, cloud_hypervisor_features());
    activate(&mut other, &Guest::new(2));
    let mut front_end = rig.front_end(PORT);
    negotiate(&mut front_end, cloud_hypervisor_features());
    let guest = Guest::new(2);
    activate(&mut front_end, &guest);
    guest.memory.set_len(0).unwrap();
    let status = eventually("the session is dropped", || {
        guest.kicks[1].write(1).unwrap();
        Some(rig.status(PORT)).filter(|status| status.connections.disconnects == 1)
    });
    assert!(status.last_disconnect.unwrap().contains("truncated"));
    assert_eq!(rig.status(OTHER_PORT).state, "up");
    stop(&rig, &datapath);
}

#[test]
fn memory_and_descriptors_that_cannot_serve_are_refused() {
    let (rig, datapath) = real();
    let mut front_end = rig.front_end(PORT);
    negotiate(&mut front_end, cloud_hypervisor_features());
    let guest = Guest::new(2);
    activate(&mut front_end, &guest);
    let mut past_the_file = region(&guest.memory);
    past_the_file.memory_size *= 2;
    assert!(front_end.set_mem_table(&[past_the_file]).is_err());
    assert!(
        front_end.add_mem_region(&region(&guest.memory)).is_err(),
        "it overlaps"
    );
    assert_eq!(
        (
            rig.status(PORT).state.as_str(),
            rig.status(PORT).memory_regions
        ),
        ("up", 1)
    );
    let elsewhere = vhost::VhostUserMemoryRegionInfo {
        userspace_addr: USER_BASE + MEMORY_BYTES,
        ..region(&guest.memory)
    };
    assert!(
        front_end.set_mem_table(&[elsewhere]).is_err(),
        "the rings are not in it"
    );
    assert_eq!(rig.status(PORT).state, "faulted");
    drop(front_end);

    rig.status_when(PORT, "the session ends", |status| {
        status.state == "listening"
    });
    let mut raw = rig.raw(PORT);
    raw.send(16, 0, &8_u64.to_ne_bytes());
    raw.try_send(12, 8, &0_u64.to_ne_bytes(), &[pipe().as_fd()])
        .unwrap();
    assert_eq!(raw.reply(), Some((12, 1)));
    stop(&rig, &datapath);
}

#[test]
fn a_truncated_region_that_was_replaced_before_anyone_noticed_leaves_no_dead_rings() {
    let (rig, datapath) = real();
    let mut front_end = rig.front_end(PORT);
    negotiate(&mut front_end, cloud_hypervisor_features());
    let guest = Guest::new(2);
    activate(&mut front_end, &guest);
    guest.memory.set_len(0).unwrap();
    guest.kicks[1].write(1).unwrap();
    let fresh = memfd(MEMORY_BYTES);
    // Either the new map came first and the rings run in it, or the session is dropped: never a ring that is said to run and does not.
    let replaced = front_end.set_mem_table(&[region(&fresh)]).is_ok();
    eventually("both sides agree", || {
        let status = rig.status(PORT);
        let ended = status.connections.disconnects == 1;
        (ended || (replaced && status.state == "up")).then_some(())
    });
    stop(&rig, &datapath);
}
