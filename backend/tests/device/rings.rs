//! Rings: what makes one start, what stops it, and what it keeps.

use crate::machine::*;
use crate::rig::{MEMORY_BYTES, memfd, new_eventfd, starts_and_stops};
use ringswitch::datapath::QueueIndex;
use ringswitch::device::message::{Request, VringAddresses};
use ringswitch::device::recording::Effect;
use ringswitch::device::ring_state::RingPhase;

type Piece = (&'static str, fn() -> Request);

#[test]
fn a_ring_starts_when_its_last_piece_arrives_whatever_the_order() {
    let pieces: [Piece; 5] = [
        ("size", || Request::SetVringNum {
            index: 0,
            size: 256,
        }),
        ("addresses", || Request::SetVringAddr(addresses(0))),
        ("memory", || {
            Request::SetMemTable(vec![(layout(0), memfd(MEMORY_BYTES).into())])
        }),
        ("features", || Request::SetFeatures(MODERN)),
        ("kick", || Request::SetVringKick(0, Some(new_eventfd()))),
    ];
    for last in 0..pieces.len() {
        let mut machine = Machine::bare(1);
        for (at, (_, piece)) in pieces.iter().enumerate() {
            if at != last {
                machine.tell(piece());
            }
        }
        assert!(
            machine.start_of(0).is_none(),
            "without its {}",
            pieces[last].0
        );
        machine.tell(pieces[last].1());
        assert!(machine.start_of(0).is_some(), "with its {}", pieces[last].0);
        assert_eq!(machine.phase(0), RingPhase::Running);
    }
}

#[test]
fn enablement_before_features_is_sticky() {
    let mut machine = Machine::bare(1);
    machine.tell(Request::SetVringEnable {
        index: 0,
        enable: 1,
    });
    machine.share_memory();
    machine.tell(Request::SetFeatures(MODERN));
    machine.tell(Request::SetVringNum {
        index: 0,
        size: 256,
    });
    machine.tell(Request::SetVringAddr(addresses(0)));
    machine.tell(Request::SetVringKick(0, None));
    assert!(machine.device.session().rings[0].carries_frames());
    assert!(machine.recorded().enabled.contains(&QueueIndex(0)));
}

#[test]
fn rings_start_enabled_only_without_protocol_features() {
    for (features, enabled) in [(1 << 32, true), (MODERN, false)] {
        let mut machine = Machine::new(1);
        machine.ok(Request::SetFeatures(features));
        machine.set_up_ring(0);
        machine.kick(0);
        assert_eq!(machine.device.session().rings[0].enabled, enabled);
    }
}

#[test]
fn pause_and_resume_only_disable_and_enable() {
    let mut machine = Machine::running(1);
    machine.ok(Request::SetVringEnable {
        index: 1,
        enable: 0,
    });
    machine.ok(Request::SetVringEnable {
        index: 1,
        enable: 1,
    });
    let queue = QueueIndex(1);
    assert_eq!(
        machine.effects(),
        [Effect::Disable(queue), Effect::Enable(queue)]
    );
    machine.refused(Request::SetVringEnable {
        index: 1,
        enable: 2,
    });
}

#[test]
fn a_stray_enable_before_the_close_starts_nothing() {
    let mut machine = Machine::running(1);
    machine.stop(0);
    machine.effects();
    machine.ok(Request::SetVringEnable {
        index: 0,
        enable: 1,
    });
    assert_eq!(machine.effects(), [Effect::Enable(QueueIndex(0))]);
}

#[test]
fn a_ring_without_a_call_starts_all_the_same() {
    let mut machine = Machine::new(1);
    machine.ok(Request::SetFeatures(MODERN));
    machine.set_up_ring(0);
    assert!(machine.kick(0).is_some());
}

#[test]
fn a_ring_without_a_descriptor_to_kick_is_polled() {
    let mut machine = Machine::new(1);
    machine.ok(Request::SetFeatures(MODERN));
    machine.set_up_ring(0);
    machine.ok(Request::SetVringKick(0, None));
    assert!(machine.start_of(0).is_some());
}

#[test]
fn an_unused_ring_has_its_table_at_zero_and_never_starts() {
    let mut machine = Machine::new(1);
    machine.ok(Request::SetFeatures(MODERN));
    machine.set_up_ring(0);
    let unused = VringAddresses {
        descriptor_table: 0,
        available_ring: 0,
        used_ring: 0,
        ..addresses(0)
    };
    machine.ok(Request::SetVringAddr(unused));
    assert!(machine.kick(0).is_none());
}

#[test]
fn get_vring_base_of_a_ring_that_never_ran_answers_what_was_set() {
    let mut machine = Machine::new(1);
    assert_eq!(machine.stop(1), 0);
    machine.ok(Request::SetVringBase { index: 1, base: 77 });
    assert_eq!(machine.stop(1), 77);
    assert!(machine.effects().is_empty());
}

#[test]
fn a_stopped_ring_needs_a_new_kick_and_goes_on_where_it_stopped() {
    let mut machine = Machine::running(1);
    machine.recorded().stop_at.insert(QueueIndex(0), 300);
    assert_eq!(machine.stop(0), 300);
    machine.ok(Request::SetVringAddr(addresses(0)));
    assert_eq!(machine.phase(0), RingPhase::Stopped, "no kick, no start");
    assert_eq!(machine.kick(0).unwrap().base, 300);
}

#[test]
fn a_second_kick_on_a_live_ring_replaces_the_first_without_a_restart() {
    let mut machine = Machine::running(1);
    machine.ok(Request::SetVringKick(0, Some(new_eventfd())));
    assert_eq!(machine.effects(), [Effect::SetKick(QueueIndex(0), true)]);
}

#[test]
fn bases_past_16_bits_are_refused_rather_than_cut() {
    let mut machine = Machine::new(1);
    machine.ok(Request::SetVringBase {
        index: 0,
        base: 65_535,
    });
    machine.refused(Request::SetVringBase {
        index: 0,
        base: 65_536,
    });
    assert_eq!(machine.stop(0), 65_535);
}

#[test]
fn ring_sizes_are_powers_of_two_from_2_to_32768() {
    let mut machine = Machine::new(1);
    for size in [2, 256, 1024, 32_768] {
        machine.ok(Request::SetVringNum { index: 0, size });
    }
    for size in [0, 1, 3, 255, 65_536, 65_537, 0x8000_0000, u32::MAX] {
        machine.refused(Request::SetVringNum { index: 0, size });
    }
    assert_eq!(machine.device.session().rings[0].size, Some(32_768));
}

/// Index 0 and a wrap counter of 1, twice.
const PACKED_START: u32 = 0x8000_8000;

#[test]
fn packed_rings_have_any_size_and_bases_of_32_bits() {
    let mut machine = Machine::packed();
    for size in [1, 3, 255, 256, 1000, 32_768] {
        machine.ok(Request::SetVringNum { index: 0, size });
    }
    for size in [0, 32_769, 65_536, u32::MAX] {
        machine.refused(Request::SetVringNum { index: 0, size });
    }
    for base in [0, 0x8005_0007, u32::MAX] {
        machine.ok(Request::SetVringBase { index: 0, base });
        assert_eq!(machine.stop(0), base);
    }
}

#[test]
fn packed_rings_are_offered_only_where_they_were_asked_for() {
    let mut machine = Machine::new(1);
    assert_eq!(machine.value(Request::GetFeatures) & RING_PACKED, 0);
    machine.refused(Request::SetFeatures(MODERN | RING_PACKED));
    let mut machine = Machine::packed();
    assert_ne!(machine.value(Request::GetFeatures) & RING_PACKED, 0);
    // The driver may still want split ones, which have their own bounds.
    machine.ok(Request::SetFeatures(MODERN));
    machine.refused(Request::SetVringNum { index: 0, size: 3 });
    machine.refused(Request::SetVringBase {
        index: 0,
        base: PACKED_START,
    });
}

#[test]
fn a_packed_ring_starts_at_its_beginning_or_where_the_front_end_says() {
    let mut machine = Machine::packed();
    machine.ok(Request::SetVringNum { index: 0, size: 3 });
    machine.ok(Request::SetVringAddr(addresses(0)));
    let start = machine.kick(0).unwrap();
    assert_eq!(start.base, PACKED_START);
    assert!(
        !start.base_is_final,
        "a switch that died may have known better"
    );

    machine
        .recorded()
        .stop_at
        .insert(QueueIndex(0), 0x0002_0002);
    assert_eq!(machine.stop(0), 0x0002_0002);
    let start = machine.kick(0).unwrap();
    assert_eq!(start.base, 0x0002_0002);
    assert!(start.base_is_final, "the front-end was told");

    machine.ok(Request::ResetDevice);
    let start = machine.kick(0).unwrap();
    assert_eq!(start.base, PACKED_START);
    assert!(start.base_is_final, "the front-end reset it");
}

#[test]
fn what_a_front_end_was_told_counts_for_one_start_and_one_session() {
    let mut machine = Machine::packed();
    machine.ok(Request::SetVringNum { index: 0, size: 4 });
    machine.ok(Request::SetVringAddr(addresses(0)));
    machine.stop(0);
    assert!(machine.kick(0).unwrap().base_is_final);
    machine.end_session();
    machine.share_memory();
    machine.ok_untold(Request::SetFeatures(MODERN | RING_PACKED));
    machine.ok_untold(Request::SetVringNum { index: 0, size: 4 });
    machine.ok_untold(Request::SetVringAddr(addresses(0)));
    machine.ok_untold(Request::SetVringKick(0, Some(new_eventfd())));
    assert!(!machine.start_of(0).unwrap().base_is_final);
}

#[test]
fn misaligned_addresses_and_unknown_flags_are_refused() {
    let mut machine = Machine::new(1);
    let good = addresses(0);
    let table = [
        VringAddresses {
            descriptor_table: good.descriptor_table + 8,
            ..good
        },
        VringAddresses {
            available_ring: good.available_ring + 1,
            ..good
        },
        VringAddresses {
            used_ring: good.used_ring + 2,
            ..good
        },
        VringAddresses { flags: 2, ..good },
    ];
    for asked in table {
        machine.refused(Request::SetVringAddr(asked));
    }
    assert_eq!(machine.device.session().rings[0].addresses, None);
}

#[test]
fn size_and_base_of_a_running_ring_do_not_change() {
    let mut machine = Machine::running(1);
    machine.refused(Request::SetVringNum {
        index: 0,
        size: 512,
    });
    machine.refused(Request::SetVringBase { index: 0, base: 5 });
    machine.ok(Request::SetVringNum {
        index: 0,
        size: 256,
    });
    assert!(machine.effects().is_empty());
}

#[test]
fn logging_flags_on_live_rings_do_not_restart_them() {
    let mut machine = Machine::running(1);
    let logged = VringAddresses {
        flags: 1,
        log: 0x2000,
        ..addresses(0)
    };
    machine.ok(Request::SetVringAddr(logged));
    machine.ok(Request::SetVringAddr(addresses(0)));
    assert!(machine.effects().is_empty());
}

#[test]
fn a_live_ring_that_moves_goes_on_at_its_index() {
    let mut machine = Machine::running(1);
    machine.recorded().stop_at.insert(QueueIndex(0), 9);
    machine.ok(Request::SetVringAddr(VringAddresses {
        index: 0,
        ..addresses(5)
    }));
    assert_eq!(
        starts_and_stops(&machine.effects()),
        ["stop 0", "start 0 at 9"]
    );
}

#[test]
fn memory_is_replaced_under_live_rings() {
    let mut machine = Machine::running(1);
    machine.share_memory();
    assert!(starts_and_stops(&machine.effects()).is_empty());
}

#[test]
fn memory_that_cannot_be_mapped_is_refused_and_changes_nothing() {
    let mut machine = Machine::running(1);
    machine.recorded().refuse_next_map = true;
    machine.refused(Request::SetMemTable(vec![(
        layout(3),
        memfd(MEMORY_BYTES).into(),
    )]));
    machine.refused(Request::SetMemTable(Vec::new()));
    machine.recorded().refuse_next_map = true;
    machine.refused(Request::AddMemReg(layout(3), memfd(MEMORY_BYTES).into()));
    assert_eq!(machine.device.session().memory, [layout(0)]);
    assert!(machine.effects().is_empty());
    assert!(machine.device.any_ring_runs());
}

#[test]
fn rings_that_a_new_map_leaves_out_stop_and_the_others_go_on() {
    let mut machine = Machine::running(1);
    machine.recorded().lose_at_next_change = vec![QueueIndex(1)];
    machine.refused(Request::SetMemTable(vec![(
        layout(0),
        memfd(MEMORY_BYTES).into(),
    )]));
    assert_eq!(
        (machine.phase(0), machine.phase(1)),
        (RingPhase::Running, RingPhase::Faulted)
    );
    assert!(machine.device.session().rings[1].fault.is_some());
    machine.stop(1);
    machine.set_up_ring(1);
    assert!(machine.kick(1).is_some(), "after a stop it starts again");
}

#[test]
fn a_kick_before_the_memory_that_holds_its_ring_waits_for_it() {
    let mut machine = Machine::new(1);
    machine.ok(Request::SetFeatures(MODERN));
    machine.set_up_ring(0);
    let elsewhere = VringAddresses {
        descriptor_table: layout(1).user_addr,
        ..addresses(0)
    };
    machine.ok(Request::SetVringAddr(elsewhere));
    machine.refused(Request::SetVringKick(0, Some(new_eventfd())));
    assert_eq!(machine.phase(0), RingPhase::Waiting);
    machine.ok(Request::AddMemReg(layout(1), memfd(MEMORY_BYTES).into()));
    assert_eq!(machine.phase(0), RingPhase::Running);
    assert_eq!(machine.device.session().rings[0].fault, None);
}

#[test]
fn as_many_regions_fit_as_are_promised() {
    let mut machine = Machine::bare(1);
    assert_eq!(machine.value(Request::GetMaxMemSlots), 509);
    for slot in 0..509 {
        let answer = machine.tell(Request::AddMemReg(layout(slot), new_eventfd()));
        assert!(answer.refusal.is_none(), "slot {slot}");
    }
    assert!(
        machine
            .tell(Request::AddMemReg(layout(509), new_eventfd()))
            .refusal
            .is_some()
    );
    machine.tell(Request::RemMemReg(layout(77)));
    assert!(
        machine
            .tell(Request::AddMemReg(layout(509), new_eventfd()))
            .refusal
            .is_none()
    );
}

#[test]
fn a_region_is_removed_by_its_addresses_and_size() {
    let mut machine = Machine::new(1);
    let mut asked = layout(0);
    asked.size_bytes -= 1;
    machine.refused(Request::RemMemReg(asked));
    asked = layout(0);
    asked.mmap_offset = 0xffff;
    machine.ok(Request::RemMemReg(asked));
    assert!(machine.device.session().memory.is_empty());
}

#[test]
fn reset_device_stops_and_disables_rings_and_keeps_the_rest() {
    let mut machine = Machine::running(1);
    machine.ok(Request::SetVringCall(0, Some(new_eventfd())));
    machine.ok(Request::ResetDevice);
    let session = machine.device.session();
    assert!(
        session
            .rings
            .iter()
            .all(|ring| ring.phase == RingPhase::Stopped && !ring.enabled)
    );
    assert_eq!((session.memory.len(), session.features), (1, Some(MODERN)));
    assert_ne!(session.protocol_features, 0);
    assert!(
        machine
            .recorded()
            .descriptors
            .contains_key(&("call", QueueIndex(0)))
    );
    assert!(machine.recorded().enabled.is_empty());
}

#[test]
fn reset_owner_disables_rings_that_can_be_enabled_again() {
    let mut machine = Machine::running(1);
    machine.ok(Request::ResetOwner);
    assert!(machine.recorded().enabled.is_empty());
    let mut machine = Machine::new(1);
    machine.ok(Request::SetFeatures(1 << 32));
    machine.set_up_ring(0);
    machine.kick(0);
    machine.ok(Request::ResetOwner);
    assert!(machine.device.session().rings[0].carries_frames());
}

#[test]
fn a_faulted_ring_stays_down_until_it_is_stopped() {
    let mut machine = Machine::running(1);
    machine.break_ring(QueueIndex(1), "a descriptor loop");
    assert_eq!(
        machine.device.session().rings[1].fault.as_deref(),
        Some("a descriptor loop")
    );
    machine.share_memory();
    assert!(machine.kick(1).is_none());
    machine.stop(1);
    assert!(machine.kick(1).is_some());
    assert_eq!(machine.device.session().rings[1].fault, None);
}

#[test]
fn old_news_of_a_fault_does_not_stop_a_ring_that_runs_again() {
    let mut machine = Machine::running(1);
    machine.hear_of_fault(QueueIndex(1));
    assert_eq!(machine.phase(1), RingPhase::Running);
    machine.stop(1);
    machine.hear_of_fault(QueueIndex(1));
    assert_eq!(machine.phase(1), RingPhase::Stopped);
}

#[test]
fn the_end_of_a_session_takes_everything_back() {
    let mut machine = Machine::running(2);
    machine.effects();
    machine.end_session();
    let effects = machine.effects();
    assert_eq!(
        starts_and_stops(&effects),
        ["stop 0", "stop 1", "stop 2", "stop 3"]
    );
    assert_eq!(effects.last(), Some(&Effect::ForgetSession));
    assert!(machine.recorded().descriptors.is_empty() && machine.recorded().enabled.is_empty());
    let fresh =
        ringswitch::device::state::DeviceState::new(2, None, machine.device.packed().clone());
    assert_eq!(machine.device.session(), fresh.session());
}
