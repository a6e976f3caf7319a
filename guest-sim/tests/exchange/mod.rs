//! What a guest sends to a peer that sends everything back, and what it expects.
//!
//! Called by the tests of one foreign back-end each, on the test's thread. Keeps true: every frame comes back as it was sent.

use std::time::Duration;

use guest_sim::frame::{FrameBuilder, verify};
use guest_sim::{Features, Frame, Nic};

/// How long anything may take.
pub const WITHIN: Duration = Duration::from_secs(20);

/// Frames of every kind that these features allow.
pub fn frames(acked: Features) -> Vec<Frame> {
    let mut frames = Vec::new();
    for bytes in [60, 61, 128, 1514] {
        frames.push(FrameBuilder::raw(0x88b5, 0).frame_bytes(bytes).build());
        frames.push(FrameBuilder::udp4(0).frame_bytes(bytes).build());
        frames.push(FrameBuilder::tcp6(0).frame_bytes(bytes).vlan(7).build());
    }
    if acked.contains(Features::GUEST_CSUM | Features::CSUM) {
        frames.push(FrameBuilder::tcp4(1000).checksum_offload().build());
    }
    if acked.contains(Features::OFFLOADS) {
        frames.push(FrameBuilder::tcp4(60_000).segment(1448).ecn().build());
        frames.push(FrameBuilder::tcp6(30_000).segment(1428).build());
        frames.push(FrameBuilder::udp4(20_000).segment(1472).build());
    }
    frames
}

/// Sends every frame several times round and expects each back unchanged.
pub fn exchange(name: &str, nic: &mut Nic, pair: usize) {
    let frames = frames(nic.acked());
    let pair = nic.pair(pair);
    for _ in 0..3 {
        for frame in &frames {
            pair.guest_tx
                .send(frame, WITHIN)
                .unwrap_or_else(|error| panic!("{name}: sending: {error}"));
            let arrived = pair
                .guest_rx
                .receive(WITHIN)
                .unwrap_or_else(|error| panic!("{name}: receiving: {error}"));
            let arrived = arrived.unwrap_or_else(|| {
                panic!("{name}: nothing of {} bytes came back", frame.bytes.len())
            });
            verify::same(frame, &arrived).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
    pair.guest_tx
        .drain(WITHIN)
        .unwrap_or_else(|error| panic!("{name}: draining: {error}"));
    pair.guest_rx
        .verify_untouched()
        .unwrap_or_else(|error| panic!("{name}: {error}"));
}
