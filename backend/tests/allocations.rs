//! In the steady state a frame costs no allocation.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod rig;

use guest_sim::frame::FrameBuilder;
use guest_sim::{Features, NicOptions};
use rig::Rig;

const MACS: [[u8; 6]; 3] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], [0xff; 6]];

/// Bounces frames of every kind once, to warm up, and then counts.
fn allocations(format: Features, receiver: NicOptions) -> u64 {
    let with_format = |options: NicOptions| NicOptions {
        features: options.features | format,
        ..options
    };
    let mut rig = Rig::new(&[with_format(NicOptions::bench()), with_format(receiver)]);
    let frames: Vec<_> = [
        FrameBuilder::udp4(22),
        FrameBuilder::tcp4(1448).checksum_offload(),
        FrameBuilder::tcp4(60_000).checksum_offload().segment(1448),
        FrameBuilder::udp6(9_000),
    ]
    .into_iter()
    .flat_map(|builder| {
        MACS[1..]
            .iter()
            .map(move |&to| builder.clone().macs(MACS[0], to).build())
    })
    .collect();
    // The receiver's station is learned before it is sent to.
    let hello = FrameBuilder::udp4(22).macs(MACS[1], MACS[2]).build();
    rig.guests[1].pair.guest_tx.queue(&hello).unwrap();
    rig.guests[1].pair.guest_tx.publish().unwrap();
    assert_eq!(rig.run(1), 1);

    let mut counted = 0;
    for round in 0..20 {
        for frame in &frames {
            rig.guests[0].pair.guest_tx.queue(frame).unwrap();
        }
        rig.guests[0].pair.guest_tx.publish().unwrap();
        let mut taken = 0;
        let measured = allocation_counter::measure(|| taken = rig.run(0));
        assert_eq!(taken, frames.len());
        if round >= 2 {
            counted += measured.count_total;
        }
        rig.guests[0].pair.guest_tx.reclaim().unwrap();
        while rig.guests[1].pair.guest_rx.try_receive().unwrap().is_some() {}
    }
    let delivered = rig.counters(1);
    assert_eq!(delivered.drops, vec![], "everything arrived");
    assert!(delivered.guest_rx_frames >= 20 * frames.len() as u64);
    counted
}

#[test]
fn frames_that_pass_as_they_are_allocate_nothing() {
    for format in rig::FORMATS {
        assert_eq!(allocations(format, NicOptions::bench()), 0, "{format}");
    }
}

#[test]
fn frames_finished_and_cut_in_software_allocate_nothing() {
    let plain = Features::VERSION_1 | Features::MRG_RXBUF;
    for format in rig::FORMATS {
        let receiver = NicOptions {
            features: plain,
            ..NicOptions::bench()
        };
        assert_eq!(allocations(format, receiver), 0, "{format}");
    }
}
