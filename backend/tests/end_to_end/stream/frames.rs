//! Frames between stream ports and virtio guests, of every kind and size.

use std::sync::atomic::{AtomicBool, Ordering};

use guest_sim::frame::{FrameBuilder, verify};
use guest_sim::{Frame, Nic};

use super::peer::{Peer, StreamSwitch};
use crate::rig::{
    Finished, WITHIN, arrival, assortment, guest_options, mac, numbered, until, verify_quiet,
};

/// Each station's frames find the other. What others flood meanwhile is passed over.
pub fn introduce(
    switch: &StreamSwitch,
    (number, peer): (u8, &mut Peer),
    (other, nic): (u8, &mut Nic),
) {
    let (there, back) = (numbered(0, number, other), numbered(0, other, number));
    peer.send(&there);
    verify::same(&there, &from(number, || arrival(nic))).unwrap();
    nic.send(&back).unwrap();
    verify::same(&back, &from(other, || peer.receive())).unwrap();
    for number in [number, other] {
        assert!(switch.switch.learned(mac(number)).is_some());
    }
}

/// The next frame of that station.
pub fn from(number: u8, mut next: impl FnMut() -> Frame) -> Frame {
    loop {
        let frame = next();
        if frame.bytes[6..12] == mac(number) {
            return frame;
        }
    }
}

/// A frame of that many bytes that its sender has finished.
fn sized(bytes: usize, from: u8, to: u8) -> Frame {
    // No IP packet is as long as the longest.
    FrameBuilder::raw(0x88b5, bytes - 14)
        .macs(mac(from), mac(to))
        .build()
}

/// Finished frames of several kinds, as a NIC without offloads sends them.
fn finished(from: u8, to: u8, round: u16) -> Vec<Frame> {
    let builders = [
        FrameBuilder::udp4(18),
        FrameBuilder::udp6(1400),
        FrameBuilder::tcp4(1460),
        FrameBuilder::raw(0x88b5, 46),
        FrameBuilder::udp4(8_900),
    ];
    builders
        .into_iter()
        .map(|builder| {
            builder
                .macs(mac(from), mac(to))
                .ports(2000 + round, u16::from(from))
                .build()
        })
        .collect()
}

#[test]
fn frames_pass_both_ways_and_what_a_guest_leaves_undone_arrives_cut_and_checksummed() {
    let all = StreamSwitch::new(&["vm1"], &[("s2", "")], &[]);
    let mut guest = all.switch.guest("vm1", guest_options());
    let mut peer = all.peer("s2");
    introduce(&all, (2, &mut peer), (1, &mut guest));
    let datagram = FrameBuilder::udp4(20_000)
        .macs(mac(1), mac(2))
        .ports(7, 8)
        .segment(1480)
        .build();
    for round in 0..20 {
        for frame in assortment(1, 2, round)
            .into_iter()
            .chain([datagram.clone()])
        {
            guest.send(&frame).unwrap();
            peer.verify_arrival(&frame);
        }
        for frame in finished(2, 1, round) {
            peer.send(&frame);
            verify::same(&frame, &arrival(&mut guest)).unwrap();
        }
    }
    verify_quiet(&mut [&mut guest]);
    peer.verify_quiet();
    assert_eq!(all.switch.all_drops("vm1"), []);
    assert_eq!(all.switch.all_drops("s2"), []);
    let counters = all.switch.counters("s2");
    assert_eq!(counters["guest_tx_frames"], 1 + 20 * 5, "{counters}");
    let sources: serde_json::Value =
        serde_json::from_str(&all.switch.command(&["worker", "list", "--json"])).unwrap();
    assert_eq!(sources["sources"].as_array().unwrap().len(), 2, "{sources}");
    all.switch.finish();
}

#[test]
fn frames_of_every_length_pass_between_stream_ports_in_bursts() {
    let all = StreamSwitch::new(&[], &[("s1", ""), ("s2", "")], &[]);
    let (mut one, mut other) = (all.peer("s1"), all.peer("s2"));
    let lengths = [
        60, 64, 1514, 1518, 4096, 9014, 16_384, 65_535, 65_536, 69_632,
    ];
    // Known to the switch, so that nothing is flooded.
    other.send(&sized(60, 2, 1));
    one.receive();
    let frames: Vec<Frame> = lengths.iter().map(|&bytes| sized(bytes, 1, 2)).collect();
    for _ in 0..20 {
        // All of them in one write, which arrives in whatever pieces. They fit what may wait for a peer that is slow.
        let burst: Vec<u8> = frames.iter().flat_map(Peer::framed).collect();
        one.write(&burst);
        for frame in &frames {
            let arrived = other.receive();
            assert!(arrived.bytes == frame.bytes, "{}", frame.bytes.len());
        }
    }
    other.verify_quiet();
    assert_eq!(all.switch.all_drops("s2"), []);
    all.switch.finish();
}

#[test]
fn frames_that_are_too_short_or_too_long_for_the_port_are_dropped_with_their_reasons() {
    let all = StreamSwitch::new(&["vm1"], &[("s2", "mtu=1500")], &[]);
    let mut guest = all.switch.guest("vm1", guest_options());
    let mut peer = all.peer("s2");
    introduce(&all, (2, &mut peer), (1, &mut guest));
    for bytes in 1..14 {
        peer.write(&(bytes as u32).to_be_bytes());
        peer.write(&vec![0; bytes]);
    }
    until("runts to be counted", || {
        (all.switch.drops("s2", "frame_too_short") == 13).then_some(())
    });
    guest.send(&sized(9014, 1, 2)).unwrap();
    // Cut, each piece is short enough; only those with a larger segment size are not.
    let cut = |segment| {
        let tcp = FrameBuilder::tcp4(30_000).macs(mac(1), mac(2)).ports(1, 2);
        tcp.segment(segment).build()
    };
    guest.send(&cut(4000)).unwrap();
    guest.send(&cut(1448)).unwrap();
    peer.verify_arrival(&cut(1448));
    assert_eq!(all.switch.drops("s2", "mtu_exceeded"), 2);
    let explained = all
        .switch
        .command(&["explain", "--port", "s2", "--last-drops"]);
    assert!(
        explained.contains("mtu_exceeded") || explained.contains("longer than"),
        "{explained}"
    );
    all.switch.finish();
}

#[test]
fn vlans_hold_for_stream_ports() {
    let streams = [
        ("s1", "vlan=10"),
        ("s2", "vlan=10"),
        ("s3", "vlan=11"),
        ("s4", "vlan=trunk:10+11"),
    ];
    let all = StreamSwitch::new(&[], &streams, &[]);
    let [mut one, mut two, mut three, mut trunk] = ["s1", "s2", "s3", "s4"].map(|s| all.peer(s));
    let broadcast = |from: u8, tag: Option<u16>| {
        let builder = FrameBuilder::udp4(100).macs(mac(from), [0xff; 6]);
        tag.map_or(builder.clone(), |id| builder.vlan(id)).build()
    };
    one.send(&broadcast(1, None));
    assert_eq!(two.receive().bytes, broadcast(1, None).bytes);
    assert_eq!(trunk.receive().bytes, broadcast(1, Some(10)).bytes);
    trunk.send(&broadcast(4, Some(11)));
    assert_eq!(three.receive().bytes, broadcast(4, None).bytes);
    for peer in [&mut one, &mut two, &mut three, &mut trunk] {
        peer.verify_quiet();
    }
    all.switch.finish();
}

#[test]
fn a_stream_that_is_moved_to_and_fro_under_traffic_loses_and_reorders_nothing() {
    let all = StreamSwitch::new(&["vm1"], &[("s2", "")], &["--workers", "2"]);
    let mut guest = all.switch.guest("vm1", guest_options());
    let mut peer = all.peer("s2");
    introduce(&all, (2, &mut peer), (1, &mut guest));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            let mut number = 0u16;
            while !done.load(Ordering::Acquire) {
                let burst = |from, to| -> Vec<Frame> {
                    let numbers = 0..1 + number % 60;
                    numbers
                        .map(|nth| numbered(number.wrapping_add(nth), from, to))
                        .collect()
                };
                let (there, back) = (burst(2, 1), burst(1, 2));
                peer.write(&there.iter().flat_map(Peer::framed).collect::<Vec<u8>>());
                for frame in &there {
                    verify::same(frame, &arrival(&mut guest)).unwrap();
                }
                guest.pair(0).guest_tx.send_all(&back, WITHIN).unwrap();
                for frame in &back {
                    peer.verify_arrival(frame);
                }
                number = number.wrapping_add(60);
            }
        });
        let finished = Finished(&done);
        for round in 0..100 {
            let worker = if round % 2 == 0 { "1" } else { "0" };
            all.switch.command(&["worker", "move", "s2", worker]);
        }
        drop(finished);
        traffic.join().unwrap();
    });
    assert_eq!(all.switch.all_drops("vm1"), []);
    assert_eq!(all.switch.all_drops("s2"), []);
    all.switch.finish();
}
