//! The events in the life of a VM on Cloud Hypervisor, replayed message by message against a running switch, with frames before and after.

use std::time::Duration;

use cloud_hypervisor_tests::{
    Failure, Outcome, VM1, VM2, WITHIN, arrival, exchange, frames, guest, memory, one_way, stream,
    switch, two_guests,
};
use guest_sim::bench::Daemon;
use guest_sim::bench::daemon::{PortArgument, binary};
use guest_sim::frame::{FrameBuilder, verify};
use guest_sim::nic::session::connect;
use guest_sim::{
    Ack, DescriptorTable, Features, Frame, Listener, MemoryUpdate, Nic, NicOptions, Refill,
    RegionLayout, RingBase, RingState, Waiting,
};

/// Memory plugged in next to what [`memory`] has.
const PLUGGED: RegionLayout = RegionLayout {
    guest_base: 8 << 30,
    size_bytes: 16 << 20,
    memfd: 1,
    mmap_offset_bytes: 0,
};

fn numbered(number: u16) -> Frame {
    FrameBuilder::udp4(64)
        .macs(VM1, VM2)
        .ports(7000 + number, 9)
        .build()
}

#[test]
fn a_booted_vm_exchanges_frames() -> Outcome {
    let (mut vm1, mut vm2, _daemon) = two_guests()?;
    exchange(&mut vm1, &mut vm2)
}

#[test]
fn a_guest_on_cloud_hypervisor_exchanges_frames_with_one_on_qemu() -> Outcome {
    let daemon = switch(1)?;
    let mut vm1 = guest(&daemon, "vm1", NicOptions::cloud_hypervisor())?;
    let mut vm2 = guest(&daemon, "vm2", NicOptions::default())?;
    exchange(&mut vm1, &mut vm2)
}

#[test]
fn num_queues_counted_in_rings_is_satisfied_by_get_queue_num() -> Outcome {
    for queue_pairs in [1, 2, 4] {
        let daemon = switch(queue_pairs)?;
        let options = NicOptions {
            queue_pairs,
            ..NicOptions::cloud_hypervisor()
        };
        let mut vm1 = guest(&daemon, "vm1", options.clone())?;
        let mut vm2 = guest(&daemon, "vm2", options)?;
        exchange(&mut vm1, &mut vm2)?;
        // What a guest sends on any of its pairs arrives.
        for pair in 0..usize::from(queue_pairs) {
            let frame = numbered(pair as u16);
            vm1.pair(pair).guest_tx.send(&frame, WITHIN)?;
            verify::same(&frame, &arrival(&mut vm2)?)?;
        }
    }
    Ok(())
}

#[test]
fn a_paused_vm_receives_nothing_and_goes_on_after_resume() -> Outcome {
    let (mut vm1, mut vm2, _daemon) = two_guests()?;
    exchange(&mut vm1, &mut vm2)?;
    vm2.pause()?;
    let before = vm2.raw_ring(0)?.used_index()?;
    for number in 0..10 {
        vm1.send(&numbered(number))?;
    }
    // The switch has dealt with them when it has given their buffers back.
    vm1.pair(0).guest_tx.drain(WITHIN)?;
    assert_eq!(
        vm2.raw_ring(0)?.used_index()?,
        before,
        "a disabled ring was written to"
    );
    vm2.resume()?;
    // A switch may hold or drop what came meanwhile; what comes later arrives behind it.
    let last = numbered(100);
    vm1.send(&last)?;
    for _ in 0..11 {
        let arrived = arrival(&mut vm2)?;
        if arrived.bytes == last.bytes {
            return exchange(&mut vm1, &mut vm2);
        }
    }
    Err(Failure("the frame sent after resume did not arrive".into()))
}

#[test]
fn what_a_vm_transmits_after_resume_arrives_behind_what_it_left_while_paused() -> Outcome {
    let (mut vm1, mut vm2, _daemon) = two_guests()?;
    exchange(&mut vm1, &mut vm2)?;
    vm1.pause()?;
    vm1.send(&numbered(1))?;
    vm1.resume()?;
    vm1.send(&numbered(2))?;
    // vhost-user: Ring states: what is transmitted on a disabled ring is discarded; a switch may also keep it.
    let mut arrived = arrival(&mut vm2)?;
    if arrived.bytes == numbered(1).bytes {
        arrived = arrival(&mut vm2)?;
    }
    verify::same(&numbered(2), &arrived)?;
    Ok(())
}

#[test]
fn a_driver_that_resets_activates_again_on_the_same_connection() -> Outcome {
    let (mut vm1, mut vm2, _daemon) = two_guests()?;
    for _ in 0..3 {
        exchange(&mut vm1, &mut vm2)?;
        vm1.reset()?;
        vm1.start()?;
    }
    exchange(&mut vm1, &mut vm2)
}

#[test]
fn a_reboot_sends_a_stray_enable_closes_and_comes_back() -> Outcome {
    let (mut vm1, mut vm2, daemon) = two_guests()?;
    for _ in 0..3 {
        exchange(&mut vm1, &mut vm2)?;
        vm1.shut_down()?;
        vm1 = guest(&daemon, "vm1", NicOptions::cloud_hypervisor())?;
    }
    exchange(&mut vm1, &mut vm2)
}

#[test]
fn a_stray_enable_before_activation_does_no_harm() -> Outcome {
    let daemon = switch(1)?;
    let mut vm2 = guest(&daemon, "vm2", NicOptions::cloud_hypervisor())?;
    let stream = connect(&daemon.socket("vm1"), WITHIN)?;
    let mut vm1 = Nic::introduce(&memory()?, NicOptions::cloud_hypervisor(), stream)?;
    vm1.enable_all(RingState::Enabled)?;
    vm1.enable_all(RingState::Disabled)?;
    vm1.start()?;
    exchange(&mut vm1, &mut vm2)
}

#[test]
fn an_unplugged_nic_leaves_its_port_ready_for_the_next() -> Outcome {
    let (mut vm1, mut vm2, daemon) = two_guests()?;
    exchange(&mut vm1, &mut vm2)?;
    vm1.reset()?;
    drop(vm1);
    let mut vm1 = guest(&daemon, "vm1", NicOptions::cloud_hypervisor())?;
    exchange(&mut vm1, &mut vm2)
}

fn plug_and_unplug(how: MemoryUpdate) -> Outcome {
    let daemon = switch(1)?;
    let options = NicOptions {
        refill: Refill::Manual,
        ..NicOptions::cloud_hypervisor()
    };
    let mut vm1 = guest(&daemon, "vm1", options)?;
    let mut vm2 = guest(&daemon, "vm2", NicOptions::cloud_hypervisor())?;
    let exchange_one_by_one = |vm1: &mut Nic, vm2: &mut Nic| -> Outcome {
        for frame in frames(VM2, VM1, 1)
            .into_iter()
            .filter(|frame| frame.bytes.len() < 1500)
        {
            // Exactly the buffers that will be used, so that none is left in memory that goes away.
            vm1.pair(0).guest_rx.post(1)?;
            one_way(&frame, vm2, vm1)?;
            one_way(&numbered(1), vm1, vm2)?;
        }
        vm1.pair(0).guest_tx.drain(WITHIN)?;
        Ok(())
    };
    exchange_one_by_one(&mut vm1, &mut vm2)?;
    let region = vm1.add_region(PLUGGED, how)?;
    // Buffers that are with the device keep working...
    exchange_one_by_one(&mut vm1, &mut vm2)?;
    // ...and so do buffers in the new memory.
    vm1.pair(0).guest_rx.use_regions(&[region]);
    vm1.pair(0).guest_tx.use_regions(&[region]);
    exchange_one_by_one(&mut vm1, &mut vm2)?;
    vm1.pair(0).guest_rx.use_regions(&[0, 1]);
    vm1.pair(0).guest_tx.use_regions(&[0, 1]);
    vm1.remove_region(region, how)?;
    exchange_one_by_one(&mut vm1, &mut vm2)
}

#[test]
fn memory_is_plugged_and_unplugged_with_a_new_table_while_rings_run() -> Outcome {
    plug_and_unplug(MemoryUpdate::WholeTable)
}

#[test]
fn memory_is_plugged_and_unplugged_region_by_region_while_rings_run() -> Outcome {
    plug_and_unplug(MemoryUpdate::OneRegion)
}

#[test]
fn memory_tables_may_come_while_frames_flow() -> Outcome {
    let (mut vm1, mut vm2, _daemon) = two_guests()?;
    let vm1_memory = vm1.memory().clone();
    let sent: Vec<_> = (0..2000).map(numbered).collect();
    let (session, pairs) = vm1.split();
    std::thread::scope(|scope| {
        let traffic = scope.spawn(|| stream(&sent, &mut pairs[0], vm2.pair(0)));
        while !traffic.is_finished() {
            session.set_mem_table(&vm1_memory, Ack::Wanted)?;
        }
        joined(traffic.join())
    })
}

fn joined(outcome: std::thread::Result<Outcome>) -> Outcome {
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Both guests come back to a switch that was killed and started again, `vm2` first so that it hears what `vm1` has to say.
fn reconnect_both(daemon: &Daemon, vm1: &mut Nic, vm2: &mut Nic) -> Outcome {
    vm2.reconnect(connect(&daemon.socket("vm2"), WITHIN)?)?;
    vm1.reconnect(connect(&daemon.socket("vm1"), WITHIN)?)?;
    Ok(())
}

#[test]
fn after_the_switch_was_killed_guests_reconnect_from_the_used_index() -> Outcome {
    let (mut vm1, mut vm2, mut daemon) = two_guests()?;
    for _ in 0..3 {
        exchange(&mut vm1, &mut vm2)?;
        daemon.kill()?;
        daemon.restart()?;
        reconnect_both(&daemon, &mut vm1, &mut vm2)?;
    }
    exchange(&mut vm1, &mut vm2)
}

#[test]
fn frames_queued_while_the_switch_was_gone_are_sent_once_it_is_back() -> Outcome {
    let (mut vm1, mut vm2, mut daemon) = two_guests()?;
    exchange(&mut vm1, &mut vm2)?;
    daemon.kill()?;
    for number in 0..20 {
        vm1.send(&numbered(number))?;
    }
    daemon.restart()?;
    reconnect_both(&daemon, &mut vm1, &mut vm2)?;
    for number in 0..20 {
        verify::same(&numbered(number), &arrival(&mut vm2)?)?;
    }
    exchange(&mut vm1, &mut vm2)
}

#[test]
fn a_lost_connection_alone_is_replaced_from_the_used_index() -> Outcome {
    let (mut vm1, mut vm2, daemon) = two_guests()?;
    for _ in 0..3 {
        exchange(&mut vm1, &mut vm2)?;
        vm1.session().raw().hang_up();
        vm1.reconnect(connect(&daemon.socket("vm1"), WITHIN)?)?;
    }
    exchange(&mut vm1, &mut vm2)
}

#[test]
fn a_restored_vm_starts_at_its_available_index_and_loses_no_buffer() -> Outcome {
    let (mut vm1, mut vm2, daemon) = two_guests()?;
    exchange(&mut vm1, &mut vm2)?;
    vm2.pause()?;
    vm2.session().raw().hang_up();
    // Its receive ring is full of buffers that were never used: the base it will send is past all of them.
    let stream = connect(&daemon.socket("vm2"), WITHIN)?;
    vm2.reconnect_from(stream, RingBase::AvailIndex)?;
    exchange(&mut vm1, &mut vm2)
}

#[test]
fn buffers_posted_before_the_driver_was_ready_are_used() -> Outcome {
    let daemon = switch(1)?;
    let stream = connect(&daemon.socket("vm1"), WITHIN)?;
    let mut vm1 = Nic::introduce(&memory()?, NicOptions::cloud_hypervisor(), stream)?;
    let stream = connect(&daemon.socket("vm2"), WITHIN)?;
    let options = NicOptions {
        refill: Refill::Manual,
        ..NicOptions::cloud_hypervisor()
    };
    let mut vm2 = Nic::introduce(&memory()?, options, stream)?;
    // Both rings of both kinds have an available index past what was never looked at.
    vm2.refill()?;
    vm1.send(&numbered(5))?;
    vm2.start()?;
    vm1.start()?;
    verify::same(&numbered(5), &arrival(&mut vm2)?)?;
    Ok(())
}

#[test]
fn a_ring_without_a_call_descriptor_runs_all_the_same() -> Outcome {
    let daemon = switch(1)?;
    let options = NicOptions {
        rings_without_call: vec![0, 1],
        waiting: Waiting::BusyPoll,
        ..NicOptions::cloud_hypervisor()
    };
    let mut vm1 = guest(&daemon, "vm1", options)?;
    let mut vm2 = guest(&daemon, "vm2", NicOptions::cloud_hypervisor())?;
    exchange(&mut vm1, &mut vm2)
}

#[test]
fn cloud_hypervisor_as_the_server_waits_for_the_switch_to_connect() -> Outcome {
    let port = |name| PortArgument {
        more: "mode=client",
        ..PortArgument::named(name)
    };
    let daemon = Daemon::start(&binary()?, &[port("vm1"), port("vm2")], &[])?;
    let listeners = [
        Listener::bind(&daemon.socket("vm1"))?,
        Listener::bind(&daemon.socket("vm2"))?,
    ];
    let attach = |listener: &Listener| -> Outcome<Nic> {
        let mut nic = Nic::introduce(
            &memory()?,
            NicOptions::cloud_hypervisor(),
            listener.accept(WITHIN)?,
        )?;
        nic.start()?;
        Ok(nic)
    };
    let (mut vm1, mut vm2) = (attach(&listeners[0])?, attach(&listeners[1])?);
    exchange(&mut vm1, &mut vm2)?;
    // A VM that ends and one that starts: the switch connects again.
    vm1.shut_down()?;
    let mut vm1 = attach(&listeners[0])?;
    exchange(&mut vm1, &mut vm2)
}

#[test]
fn every_subset_of_the_features_it_offers_to_its_guest_works() -> Outcome {
    let optional = [
        Features::IN_ORDER,
        Features::EVENT_IDX,
        Features::INDIRECT_DESC,
        Features::MRG_RXBUF,
    ];
    let daemon = switch(1)?;
    let mut vm2 = guest(&daemon, "vm2", NicOptions::cloud_hypervisor())?;
    for set in 0..1 << optional.len() {
        let chosen = (0..optional.len())
            .filter(|bit| set >> bit & 1 == 1)
            .map(|bit| optional[bit]);
        let features = chosen.fold(Features::VERSION_1 | Features::OFFLOADS, |all, one| {
            all | one
        });
        let indirect = features.contains(Features::INDIRECT_DESC);
        let options = NicOptions {
            features,
            guest_tx_table: if indirect {
                DescriptorTable::Indirect
            } else {
                DescriptorTable::Direct
            },
            guest_rx_ring_size: 128,
            guest_rx_buffers: 64,
            ..NicOptions::cloud_hypervisor()
        };
        let mut vm1 = guest(&daemon, "vm1", options)?;
        exchange(&mut vm1, &mut vm2)
            .map_err(|Failure(why)| Failure(format!("{features}: {why}")))?;
    }
    Ok(())
}

#[test]
fn one_vm_rebooting_again_and_again_does_not_disturb_the_others() -> Outcome {
    let daemon = Daemon::start(
        &binary()?,
        &["vm1", "vm2", "vm3"].map(PortArgument::named),
        &[],
    )?;
    let mut vm1 = guest(&daemon, "vm1", NicOptions::cloud_hypervisor())?;
    let mut vm2 = guest(&daemon, "vm2", NicOptions::cloud_hypervisor())?;
    exchange(&mut vm1, &mut vm2)?;
    let sent: Vec<_> = (0..3000).map(numbered).collect();
    std::thread::scope(|scope| {
        let traffic = scope.spawn(|| stream(&sent, vm1.pair(0), vm2.pair(0)));
        for _ in 0..20 {
            guest(&daemon, "vm3", NicOptions::cloud_hypervisor())?.shut_down()?;
        }
        joined(traffic.join())
    })
}

#[test]
fn a_port_that_was_never_activated_can_be_closed_at_any_message() -> Outcome {
    let (mut vm1, mut vm2, daemon) = two_guests()?;
    drop(vm1);
    for _ in 0..10 {
        let stream = connect(&daemon.socket("vm1"), WITHIN)?;
        drop(Nic::introduce(
            &memory()?,
            NicOptions::cloud_hypervisor(),
            stream,
        )?);
    }
    vm1 = guest(&daemon, "vm1", NicOptions::cloud_hypervisor())?;
    exchange(&mut vm1, &mut vm2)?;
    assert!(
        vm2.receive(Duration::ZERO)?.is_none(),
        "a frame nobody sent"
    );
    Ok(())
}
