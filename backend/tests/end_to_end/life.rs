//! A port's life: front-ends that come and go, memory and descriptors that change under running rings, ports that come and go.

use guest_sim::bench::daemon::PortArgument;
use guest_sim::frame::verify;
use guest_sim::nic::session::connect;
use guest_sim::{
    Ack, Error, Features, Frame, GuestMemory, GuestMemoryLayout, Listener, MemoryUpdate,
    MessageOrder, Nic, NicOptions, ProtocolFeatures, QueuePair, Refill, RegionLayout, RingState,
    Session,
};
use vmm_sys_util::eventfd::EventFd;

use crate::rig::{
    Bystanders, Switch, WITHIN, arrival, assortment, exchange, guest_options, in_format, introduce,
    memory, numbered, one_way, settle, until, verify_arrival, verify_quiet,
};

/// Memory plugged in next to what [`memory`] has.
const PLUGGED: RegionLayout = RegionLayout {
    guest_base: 8 << 30,
    size_bytes: 16 << 20,
    memfd: 1,
    mmap_offset_bytes: 0,
};

fn cloud_hypervisor() -> NicOptions {
    NicOptions {
        deadline: WITHIN,
        ..NicOptions::cloud_hypervisor()
    }
}

fn manual(options: NicOptions) -> NicOptions {
    NicOptions {
        refill: Refill::Manual,
        ..options
    }
}

fn hang_up(switch: &Switch, port: &str, nic: Nic) {
    drop(nic);
    until("the port to listen again", || {
        (switch.show(port)["state"] == "listening").then_some(())
    });
}

#[test]
fn two_hundred_front_ends_come_and_go_each_with_traffic() {
    let switch = Switch::of(&["vm1", "vm2"]);
    let mut steady = switch.guest("vm1", guest_options());
    for cycle in 0..200 {
        let options = if cycle % 2 == 0 {
            guest_options()
        } else {
            cloud_hypervisor()
        };
        let mut guest = switch.guest("vm2", options);
        for frame in assortment(2, 1, cycle) {
            one_way(&frame, &mut guest, &mut steady);
        }
        for frame in assortment(1, 2, cycle) {
            one_way(&frame, &mut steady, &mut guest);
        }
        // Killed, or shut down in order.
        if cycle % 4 < 2 {
            guest.shut_down().unwrap();
        }
    }
    verify_quiet(&mut [&mut steady]);
    until("the last to be gone", || {
        (switch.show("vm2")["device"]["connections"]["disconnects"] == 200).then_some(())
    });
    switch.finish();
}

#[test]
fn in_client_mode_the_switch_connects_again_and_again() {
    let port = |name| PortArgument {
        more: "mode=client",
        ..PortArgument::named(name)
    };
    let switch = Switch::new(&[port("vm1"), PortArgument::named("vm2")], &[]);
    let mut other = switch.guest("vm2", guest_options());
    for round in 0..3 {
        // Each time the hypervisor is new: it makes its socket, and the switch finds it.
        let path = switch.daemon.socket("vm1");
        let listener = Listener::bind(&path).unwrap();
        for _ in 0..3 {
            let stream = listener.accept(WITHIN).unwrap();
            let options = if round % 2 == 0 {
                guest_options()
            } else {
                cloud_hypervisor()
            };
            let mut guest = introduce(options, stream);
            guest.start().unwrap();
            settle(&mut guest);
            exchange((1, &mut guest), (2, &mut other));
            guest.shut_down().unwrap();
        }
        drop(listener);
        std::fs::remove_file(&path).unwrap();
        until("the port to say that it tries", || {
            (switch.show("vm1")["state"] == "connecting").then_some(())
        });
    }
    switch.finish();
}

/// Frames one way on pair 0, never more on their way than any ring has buffers for.
fn traffic(frames: &[Frame], from: &mut QueuePair, to: &mut QueuePair) {
    for some in frames.chunks(32) {
        from.guest_tx.send_all(some, WITHIN).unwrap();
        let arrived = to.guest_rx.receive_count(some.len(), WITHIN).unwrap();
        for (sent, arrived) in some.iter().zip(arrived) {
            verify::same(sent, &arrived).unwrap();
        }
    }
}

/// Changes a guest again and again while it sends and receives in turn.
fn under_traffic(options: NicOptions, mut change: impl FnMut(&mut Session, &GuestMemory, u32)) {
    let switch = Switch::of(&["vm1", "vm2"]);
    let memory = memory();
    let mut changed = switch.guest_in(&memory, "vm1", options);
    let mut other = switch.guest("vm2", guest_options());
    let sent: Vec<_> = (0..1500).map(|number| numbered(number, 1, 2)).collect();
    let answers: Vec<_> = (0..1500).map(|number| numbered(number, 2, 1)).collect();
    let (session, pairs) = changed.split();
    let mut changes = 0;
    std::thread::scope(|scope| {
        let other = other.pair(0);
        let moving = scope.spawn(|| {
            for (sent, answers) in sent.chunks(100).zip(answers.chunks(100)) {
                traffic(sent, &mut pairs[0], other);
                traffic(answers, other, &mut pairs[0]);
            }
        });
        while changes < 2 || !moving.is_finished() {
            change(session, &memory, changes);
            changes += 1;
        }
        moving.join().unwrap();
    });
    verify_quiet(&mut [&mut changed, &mut other]);
    switch.finish();
}

#[test]
fn whole_memory_tables_that_grow_and_shrink_may_come_under_traffic() {
    for options in [guest_options(), cloud_hypervisor()] {
        let options = NicOptions {
            buffer_regions: vec![0, 1],
            ..options
        };
        let mut plugged = None;
        under_traffic(options, |session, memory, _| {
            match plugged.take() {
                None => plugged = Some(memory.add_region(PLUGGED).unwrap()),
                Some(region) => drop(memory.remove_region(region).unwrap()),
            }
            session.set_mem_table(memory, Ack::Wanted).unwrap();
        });
    }
}

#[test]
fn regions_may_be_added_and_removed_under_traffic() {
    for options in [guest_options(), cloud_hypervisor()] {
        let layout = GuestMemoryLayout {
            regions: vec![PLUGGED],
        };
        let spare = GuestMemory::new(&layout).unwrap();
        let region = spare.region(0).unwrap().message_region();
        under_traffic(options, |session, _, change| {
            if change % 2 == 0 {
                session.add_mem_reg(&region, Ack::Wanted).unwrap();
            } else {
                session.rem_mem_reg(&region, Ack::Wanted).unwrap();
            }
        });
    }
}

fn plug_and_unplug(options: NicOptions, how: MemoryUpdate) {
    let switch = Switch::of(&["vm1", "vm2"]);
    let mut changed = switch.guest("vm1", manual(options));
    let mut other = switch.guest("vm2", guest_options());
    // Exactly the buffers that will be used, so that none is left in memory that goes away.
    let both_ways = |changed: &mut Nic, other: &mut Nic| {
        for number in 0..20 {
            changed.pair(0).guest_rx.post(1).unwrap();
            one_way(&numbered(number, 2, 1), other, changed);
            one_way(&numbered(number, 1, 2), changed, other);
        }
        changed.pair(0).guest_tx.drain(WITHIN).unwrap();
    };
    both_ways(&mut changed, &mut other);
    let region = changed.add_region(PLUGGED, how).unwrap();
    both_ways(&mut changed, &mut other);
    changed.pair(0).guest_rx.use_regions(&[region]);
    changed.pair(0).guest_tx.use_regions(&[region]);
    both_ways(&mut changed, &mut other);
    changed.pair(0).guest_rx.use_regions(&[0, 1]);
    changed.pair(0).guest_tx.use_regions(&[0, 1]);
    changed.remove_region(region, how).unwrap();
    both_ways(&mut changed, &mut other);
    switch.finish();
}

#[test]
fn memory_is_plugged_and_unplugged_while_rings_run() {
    let without_slots = NicOptions {
        protocol: ProtocolFeatures::QEMU
            .without(vhost::vhost_user::VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS),
        ..guest_options()
    };
    plug_and_unplug(guest_options(), MemoryUpdate::OneRegion);
    plug_and_unplug(without_slots, MemoryUpdate::WholeTable);
    plug_and_unplug(cloud_hypervisor(), MemoryUpdate::OneRegion);
    plug_and_unplug(cloud_hypervisor(), MemoryUpdate::WholeTable);
}

#[test]
fn a_ring_whose_memory_is_taken_away_stops_and_the_port_says_so() {
    let switch = Switch::of(&["vm1", "vm2", "vm7", "vm8"]);
    let mut bystanders = Bystanders::on(&switch);
    let layout = GuestMemoryLayout::separate_memfds(&[16 << 20, 16 << 20]);
    let memory = GuestMemory::new(&layout).unwrap();
    let options = NicOptions {
        ring_region: 1,
        ..guest_options()
    };
    let mut nic = switch.guest_in(&memory, "vm1", options);
    bystanders.during(|| {
        let refused = nic.remove_region(1, MemoryUpdate::OneRegion);
        assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
        let show = switch.show("vm1");
        assert_eq!(show["state"], "faulted", "{show}");
        let reason = show["reason"].as_str().unwrap();
        assert!(reason.contains("not inside one memory region"), "{reason}");
    });
    switch.finish();
}

#[test]
fn a_call_eventfd_may_be_replaced_at_any_time() {
    let switch = Switch::of(&["vm1", "vm2"]);
    let mut from = switch.guest("vm1", guest_options());
    let mut to = switch.guest("vm2", guest_options());
    let masked = EventFd::new(0).unwrap();
    for round in 0..300 {
        let call = to
            .pair(0)
            .guest_rx
            .ring()
            .call_eventfd()
            .try_clone()
            .unwrap();
        // A masked vector: what arrives meanwhile is signalled elsewhere, and found once it is unmasked.
        to.session()
            .set_vring_call(0, &masked, Ack::NotWanted)
            .unwrap();
        let frame = numbered(round, 1, 2);
        from.send(&frame).unwrap();
        to.session()
            .set_vring_call(0, &call, Ack::NotWanted)
            .unwrap();
        // Sleeps on its call eventfd: a lost call is a frame that does not come.
        verify_arrival(&frame, &mut to);
    }
    verify_quiet(&mut [&mut from, &mut to]);
    switch.finish();
}

#[test]
fn a_new_kick_eventfd_on_a_running_ring_is_listened_to() {
    let switch = Switch::of(&["vm1", "vm2"]);
    let mut from = switch.guest("vm1", guest_options());
    let mut to = switch.guest("vm2", guest_options());
    for round in 0..50 {
        let kick = from
            .pair(0)
            .guest_tx
            .ring()
            .kick_eventfd()
            .try_clone()
            .unwrap();
        let unused = EventFd::new(0).unwrap();
        from.session()
            .set_vring_kick(1, &unused, Ack::Wanted)
            .unwrap();
        from.session()
            .set_vring_kick(1, &kick, Ack::Wanted)
            .unwrap();
        one_way(&numbered(round, 1, 2), &mut from, &mut to);
    }
    switch.finish();
}

#[test]
fn a_device_is_reset_and_started_again_on_one_connection() {
    for options in [guest_options(), cloud_hypervisor()] {
        let switch = Switch::of(&["vm1", "vm2"]);
        let mut guest = switch.guest("vm1", options);
        let mut other = switch.guest("vm2", guest_options());
        for _ in 0..20 {
            exchange((1, &mut guest), (2, &mut other));
            guest.reset().unwrap();
            guest.start().unwrap();
            settle(&mut guest);
        }
        exchange((1, &mut guest), (2, &mut other));
        switch.finish();
    }
}

#[test]
fn a_reset_device_accepts_fewer_features() {
    let switch = Switch::of(&["vm1", "vm2"]);
    let mut other = switch.guest("vm2", guest_options());
    for features in [
        Features::LINUX,
        Features::NONE,
        Features::VERSION_1,
        Features::LINUX | Features::IN_ORDER,
    ] {
        let options = NicOptions {
            features,
            guest_rx_buffer_bytes: Some(65_562),
            guest_rx_buffers: 200,
            ..guest_options()
        };
        let mut guest = switch.guest("vm1", options);
        for frame in assortment(2, 1, 0) {
            one_way(&frame, &mut other, &mut guest);
        }
        one_way(&numbered(1, 1, 2), &mut guest, &mut other);
        verify_quiet(&mut [&mut guest, &mut other]);
        guest.shut_down().unwrap();
    }
    switch.finish();
}

#[test]
fn a_stopped_ring_says_where_to_go_on_and_is_not_written_any_more() {
    let switch = Switch::of(&["vm1", "vm2", "vm3"]);
    let mut from = switch.guest("vm1", guest_options());
    let mut to = switch.guest("vm2", guest_options());
    let mut third = switch.guest("vm3", guest_options());
    // Known, so that what is for it is not flooded.
    to.send(&numbered(0, 2, 0xff)).unwrap();
    verify_arrival(&numbered(0, 2, 0xff), &mut from);
    verify_arrival(&numbered(0, 2, 0xff), &mut third);
    let frames: Vec<_> = (0..64).map(|number| numbered(number, 1, 2)).collect();
    for round in 0..20 {
        std::thread::scope(|scope| {
            let from = &mut from;
            let frames = &frames;
            let sending = scope.spawn(move || {
                from.pair(0).guest_tx.send_all(frames, WITHIN).unwrap();
                from.pair(0).guest_tx.drain(WITHIN).unwrap();
            });
            to.pause().unwrap();
            let used = to.ring(0).unwrap().used_base().unwrap();
            assert_eq!(to.stopped_at()[0], used, "round {round}");
            sending.join().unwrap();
            assert_eq!(to.ring(0).unwrap().used_base().unwrap(), used);
        });
        // What came before the stop is complete, what is posted is untouched.
        while to.pair(0).guest_rx.try_receive().unwrap().is_some() {}
        to.pair(0).guest_rx.verify_untouched().unwrap();
        to.resume().unwrap();
        settle(&mut to);
        one_way(&numbered(9999, 1, 2), &mut from, &mut to);
    }
    switch.finish();
}

#[test]
fn a_transmit_ring_stopped_under_load_goes_on_without_loss_or_repetition() {
    let switch = Switch::of(&["vm1", "vm2"]);
    let mut from = switch.guest("vm1", guest_options());
    let mut to = switch.guest("vm2", guest_options());
    let mut number = 0;
    for round in 0..50 {
        let frames: Vec<_> = (0..100).map(|n| numbered(number + n, 1, 2)).collect();
        number += 100;
        for frame in &frames {
            from.pair(0).guest_tx.queue(frame).unwrap();
        }
        from.pair(0).guest_tx.publish().unwrap();
        // Somewhere in the middle of them.
        from.pause().unwrap();
        let used = from.ring(1).unwrap().used_base().unwrap();
        assert_eq!(from.stopped_at()[1], used, "round {round}");
        from.resume().unwrap();
        for frame in &frames {
            verify_arrival(frame, &mut to);
        }
        from.pair(0).guest_tx.drain(WITHIN).unwrap();
    }
    verify_quiet(&mut [&mut from, &mut to]);
    switch.finish();
}

#[test]
fn a_paused_guest_on_cloud_hypervisor_keeps_what_it_transmits() {
    let switch = Switch::of(&["vm1", "vm2"]);
    let mut from = switch.guest("vm1", cloud_hypervisor());
    let mut to = switch.guest("vm2", cloud_hypervisor());
    for round in 0..20 {
        from.enable_all(RingState::Disabled).unwrap();
        from.send(&numbered(round, 1, 2)).unwrap();
        from.enable_all(RingState::Enabled).unwrap();
        verify_arrival(&numbered(round, 1, 2), &mut to);
    }
    switch.finish();
}

#[test]
fn features_stay_as_they_are_while_the_port_lives() {
    let switch = Switch::of(&["vm1", "vm2"]);
    let mut offers = Vec::new();
    for features in [Features::LINUX, Features::NONE, Features::VERSION_1] {
        let options = NicOptions {
            features,
            ..guest_options()
        };
        let mut guest = switch.guest("vm1", options);
        offers.push((guest.offered(), guest.session().protocol_offered()));
        // Also while rings run, and after what may be asked in between.
        offers.push((guest.session().get_features().unwrap(), offers[0].1));
        guest.reset().unwrap();
        offers.push((
            guest.session().get_features().unwrap(),
            guest.session().get_protocol_features().unwrap(),
        ));
    }
    offers.dedup();
    assert_eq!(offers.len(), 1, "{offers:?}");
    switch.finish();
}

#[test]
fn ports_come_and_go_under_load_and_the_others_lose_nothing() {
    let switch = Switch::of(&["vm4", "vm7", "vm8"]);
    let mut bystanders = Bystanders::on(&switch);
    // Takes what the guest that comes and goes sends; known, so that nothing of that is flooded.
    let mut sink = switch.guest("vm4", manual(guest_options()));
    sink.send(&numbered(0, 4, 0xff)).unwrap();
    bystanders.during(|| {
        for round in 0..30 {
            let socket = switch.daemon.socket("vm3");
            let more = in_format(&format!("socket={}", socket.display()));
            let port = format!("name=vm3,type=vhost-user,{more}");
            switch.command(&["port", "add", &port]);
            let mut guest = switch.guest("vm3", guest_options());
            // Removed with frames of its own under way.
            for number in 0..50 {
                guest
                    .pair(0)
                    .guest_tx
                    .queue(&numbered(number, 3, 4))
                    .unwrap();
            }
            guest.pair(0).guest_tx.publish().unwrap();
            switch.command(&["port", "remove", "vm3"]);
            assert!(!socket.exists(), "round {round}");
            assert!(
                guest.session().get_features().is_err(),
                "the session goes on"
            );
        }
    });
    assert_eq!(switch.all_drops("vm7"), []);
    assert_eq!(switch.all_drops("vm8"), []);
    switch.finish();
}

#[test]
fn an_old_front_end_without_protocol_features_is_served() {
    let switch = Switch::of(&["vm1", "vm2"]);
    let options = NicOptions {
        protocol: ProtocolFeatures::NONE,
        order: MessageOrder::Qemu,
        ..guest_options()
    };
    let mut old = switch.guest("vm1", options);
    let mut other = switch.guest("vm2", guest_options());
    exchange((1, &mut old), (2, &mut other));
    switch.finish();
}

#[test]
fn a_second_front_end_is_turned_away_and_the_first_goes_on() {
    let switch = Switch::of(&["vm1", "vm2"]);
    let mut one = switch.guest("vm1", guest_options());
    let mut other = switch.guest("vm2", guest_options());
    for _ in 0..20 {
        let stream = connect(&switch.daemon.socket("vm1"), WITHIN).unwrap();
        let mut second = guest_sim::RawFrontend::new(stream);
        assert!(second.is_closed(WITHIN).unwrap());
        exchange((1, &mut one), (2, &mut other));
    }
    switch.finish();
}

#[test]
fn a_guest_that_leaves_is_forgotten_and_its_frames_are_flooded_to_where_it_may_be() {
    let switch = Switch::of(&["vm1", "vm2", "vm3"]);
    let mut one = switch.guest("vm1", guest_options());
    let mut moving = switch.guest("vm2", guest_options());
    one_way(&numbered(1, 9, 1), &mut moving, &mut one);
    hang_up(&switch, "vm2", moving);
    let mut moved = switch.guest("vm3", guest_options());
    // It has not said a word from there yet.
    one_way(&numbered(2, 1, 9), &mut one, &mut moved);
    switch.finish();
}

#[test]
fn send_rarp_announces_the_guest_to_the_others() {
    let switch = Switch::of(&["vm1", "vm2"]);
    let mut migrated = switch.guest("vm1", guest_options());
    let mut other = switch.guest("vm2", guest_options());
    let address = crate::rig::mac(1);
    migrated.session().send_rarp(address, Ack::Wanted).unwrap();
    let frame = arrival(&mut other);
    assert_eq!(frame.bytes[..6], [0xff; 6]);
    assert_eq!(frame.bytes[6..12], address);
    assert_eq!(
        frame.bytes[12..14],
        [0x80, 0x35],
        "not a RARP frame (RFC 903)"
    );
    assert_eq!(switch.learned(address).as_deref(), Some("vm1"));
    switch.finish();
}

#[test]
fn an_mtu_is_offered_and_longer_frames_are_not_delivered() {
    let switch = Switch::with(&[("vm1", "mtu=1500"), ("vm2", "")]);
    let options = NicOptions {
        features: Features::LINUX | Features::MTU,
        mtu: Some(1500),
        ..guest_options()
    };
    let mut one = switch.guest("vm1", options);
    let mut other = switch.guest("vm2", guest_options());
    exchange((1, &mut one), (2, &mut other));
    let long = guest_sim::frame::FrameBuilder::udp4(2000)
        .macs(crate::rig::mac(2), crate::rig::mac(1))
        .build();
    other.send(&long).unwrap();
    verify_quiet(&mut [&mut one, &mut other]);
    assert_eq!(switch.all_drops("vm1"), [("mtu_exceeded".into(), 1)]);
    switch.finish();
}
