//! Frames that a guest must not send, on rings that keep every rule: dropped and counted, and what comes behind them arrives.

use guest_sim::frame::FrameBuilder;
use guest_sim::frame::vnet_header::{GsoType, NEEDS_CSUM};
use guest_sim::{ChainLayout, Features, Frame, NicOptions, VnetHeader};

use crate::rig::{Switch, WITHIN, guest_options, mac, named, numbered, one_way, verify_quiet};

fn switch() -> Switch {
    Switch::of(&["vm1", "vm2"])
}

fn partial() -> VnetHeader {
    VnetHeader {
        flags: NEEDS_CSUM,
        csum_start: 34,
        csum_offset: 16,
        ..VnetHeader::default()
    }
}

fn tso() -> VnetHeader {
    VnetHeader {
        gso_type: GsoType::Tcp4.code(),
        hdr_len: 54,
        gso_size: 1448,
        ..partial()
    }
}

/// Each field wrong in each way, of a frame of TCP over IPv4 with 2,000 bytes of payload.
fn bad_headers() -> Vec<VnetHeader> {
    let partials = [
        VnetHeader {
            csum_start: 0,
            ..partial()
        },
        VnetHeader {
            csum_start: 13,
            ..partial()
        },
        VnetHeader {
            csum_start: 2053,
            ..partial()
        },
        VnetHeader {
            csum_start: u16::MAX,
            ..partial()
        },
        VnetHeader {
            csum_offset: 2020,
            ..partial()
        },
        VnetHeader {
            csum_offset: u16::MAX,
            ..partial()
        },
        VnetHeader {
            csum_start: u16::MAX,
            csum_offset: u16::MAX,
            ..partial()
        },
    ];
    let segmented = [
        VnetHeader { flags: 0, ..tso() },
        VnetHeader { flags: 2, ..tso() },
        VnetHeader {
            gso_size: 0,
            ..tso()
        },
        VnetHeader {
            gso_type: 2,
            ..tso()
        },
        VnetHeader {
            gso_type: 0x7f,
            ..tso()
        },
        VnetHeader {
            gso_type: 0xff,
            ..tso()
        },
        VnetHeader {
            gso_type: 0x80,
            ..tso()
        },
        // UDP segmentation (5) is not offered.
        VnetHeader {
            gso_type: 5,
            ..tso()
        },
        VnetHeader {
            gso_type: GsoType::Tcp6.code(),
            ..tso()
        },
        VnetHeader {
            gso_type: GsoType::Udp.code(),
            ..tso()
        },
        VnetHeader {
            gso_type: GsoType::Udp.code() | 0x80,
            ..tso()
        },
        VnetHeader {
            csum_start: 33,
            ..tso()
        },
        VnetHeader {
            csum_start: 35,
            ..tso()
        },
        VnetHeader {
            csum_offset: 6,
            ..tso()
        },
        VnetHeader {
            csum_start: 14,
            ..tso()
        },
    ];
    partials.into_iter().chain(segmented).collect()
}

#[test]
fn every_malformed_vnet_header_is_dropped_and_counted_as_such() {
    let switch = switch();
    let mut from = switch.guest("vm1", guest_options());
    let mut to = switch.guest("vm2", guest_options());
    let bytes = FrameBuilder::tcp4(2000).macs(mac(1), mac(2)).build().bytes;
    let mut dropped = 0;
    for header in bad_headers() {
        named(&header, || {
            from.send(&Frame {
                header,
                bytes: bytes.clone(),
            })
            .unwrap();
            dropped += 1;
            one_way(&numbered(dropped as u16, 1, 2), &mut from, &mut to);
            assert_eq!(switch.drops("vm1", "bad_vnet_header"), dropped);
        });
    }
    verify_quiet(&mut [&mut from, &mut to]);
    assert_eq!(
        switch.all_drops("vm1"),
        [("bad_vnet_header".into(), dropped)]
    );
    switch.finish();
}

#[test]
fn frames_with_odd_segment_sizes_arrive_well_formed_or_not_at_all() {
    let switch = switch();
    let mut from = switch.guest("vm1", guest_options());
    for features in [Features::LINUX, Features::VERSION_1 | Features::MRG_RXBUF] {
        let options = NicOptions {
            features,
            ..guest_options()
        };
        let mut to = switch.guest("vm2", options);
        for segment_bytes in [1, 7, 60, 536, 1448, 65_000] {
            let builder = FrameBuilder::tcp4(30_000).segment(segment_bytes);
            from.send(&builder.macs(mac(1), mac(2)).build()).unwrap();
            // A frame is delivered before its sender gets it back.
            let guest_tx = &mut from.pair(0).guest_tx;
            guest_tx.drain(WITHIN).unwrap();
            while let Some(arrived) = to.pair(0).guest_rx.try_receive().unwrap() {
                guest_sim::frame::verify::check(&arrived)
                    .unwrap_or_else(|error| panic!("segments of {segment_bytes}: {error}"));
            }
        }
        one_way(&numbered(1, 1, 2), &mut from, &mut to);
    }
    switch.finish();
}

#[test]
fn offloads_that_were_not_acked_are_dropped() {
    let switch = switch();
    let mut to = switch.guest("vm2", guest_options());
    let mut dropped = 0;
    for missing in [
        Features::CSUM,
        Features::HOST_TSO4,
        Features::HOST_TSO6,
        Features::HOST_ECN,
        Features::HOST_UFO,
    ] {
        named(&missing, || {
            let options = NicOptions {
                features: Features::LINUX - missing,
                ..guest_options()
            };
            let mut from = switch.guest("vm1", options);
            let builder = match missing {
                Features::CSUM => FrameBuilder::tcp4(500).checksum_offload(),
                Features::HOST_TSO4 => FrameBuilder::tcp4(5000).segment(1448),
                Features::HOST_TSO6 => FrameBuilder::tcp6(5000).segment(1428),
                Features::HOST_ECN => FrameBuilder::tcp4(5000).segment(1448).ecn(),
                _ => FrameBuilder::udp4(5000).segment(1400),
            };
            from.send(&builder.macs(mac(1), mac(2)).build()).unwrap();
            dropped += 1;
            one_way(&numbered(dropped as u16, 1, 2), &mut from, &mut to);
        });
    }
    verify_quiet(&mut [&mut to]);
    assert_eq!(
        switch.all_drops("vm1"),
        [("bad_vnet_header".into(), dropped)]
    );
    switch.finish();
}

#[test]
fn frames_too_long_and_too_short_are_dropped_and_counted_as_such() {
    let switch = switch();
    let options = NicOptions {
        guest_tx_ring_size: 1024,
        ..guest_options()
    };
    let mut from = switch.guest("vm1", options);
    let mut to = switch.guest("vm2", guest_options());
    let header = [0; 12];
    let image = |bytes: usize| [&header[..], &vec![0x52; bytes]].concat();
    let longest = 69_632;
    let cases: Vec<(usize, &str)> = vec![
        (0, "frame_too_short"),
        (1, "frame_too_short"),
        (13, "frame_too_short"),
        (longest + 1, "frame_too_long"),
        (100_000, "frame_too_long"),
        (1 << 20, "frame_too_long"),
    ];
    let mut counted = [("frame_too_short", 0), ("frame_too_long", 0)];
    for layout in [ChainLayout::Single, ChainLayout::Pieces(600)] {
        for &(bytes, reason) in &cases {
            named(&(bytes, &layout), || {
                let tx = &mut from.pair(0).guest_tx;
                tx.set_layout(layout.clone(), Default::default());
                tx.queue_image(&image(bytes)).unwrap();
                tx.publish().unwrap();
                tx.drain(WITHIN).unwrap();
                let entry = counted
                    .iter_mut()
                    .find(|(name, _)| *name == reason)
                    .unwrap();
                entry.1 += 1;
                assert_eq!(switch.drops("vm1", reason), entry.1);
            });
        }
    }
    from.pair(0)
        .guest_tx
        .set_layout(ChainLayout::Single, Default::default());
    for bytes in [65_536, 65_550, longest] {
        let frame = FrameBuilder::raw(0x88b5, 0)
            .macs(mac(1), mac(2))
            .frame_bytes(bytes)
            .build();
        one_way(&frame, &mut from, &mut to);
    }
    verify_quiet(&mut [&mut from, &mut to]);
    assert_eq!(
        switch.all_drops("vm1").len(),
        2,
        "{:?}",
        switch.all_drops("vm1")
    );
    switch.finish();
}
