//! What the receiving driver notices about a device that is played by hand.

use super::GuestRx;
use crate::error::{DeviceFault, Error};
use crate::features::Features;
use crate::frame::{FrameBuilder, VnetHeader};
use crate::memory::{GuestMemory, GuestMemoryLayout};
use crate::nic::options::NicOptions;
use crate::ring::RawRing;

const BUFFER: u32 = 256;

struct Played {
    guest_rx: GuestRx,
    raw: RawRing,
    memory: GuestMemory,
    acked: Features,
}

fn played(acked: Features) -> Played {
    let memory = GuestMemory::new(&GuestMemoryLayout::one_region(4 << 20)).unwrap();
    let options = NicOptions {
        guest_rx_ring_size: 8,
        guest_rx_buffer_bytes: Some(BUFFER),
        ..NicOptions::default()
    };
    let mut guest_rx = GuestRx::new(0, &memory, &options, acked).unwrap();
    guest_rx.refill().unwrap();
    let raw = guest_rx.ring().raw().unwrap();
    Played {
        guest_rx,
        raw,
        memory,
        acked,
    }
}

impl Played {
    fn address(&self, chain: u16) -> u64 {
        self.raw
            .descriptor(self.raw.avail_entry(chain).unwrap())
            .unwrap()
            .address
    }

    /// Writes into the chain that was made available as the `chain`th, and marks it used.
    fn write(&self, chain: u16, bytes: &[u8], claimed: u32) {
        self.memory.write(self.address(chain), bytes).unwrap();
        let index = self.raw.used_index().unwrap();
        self.raw
            .set_used_entry(index, self.raw.avail_entry(chain).unwrap().into(), claimed)
            .unwrap();
        self.raw.set_used_index(index.wrapping_add(1)).unwrap();
    }

    fn image(&self, header: VnetHeader, frame: &[u8]) -> Vec<u8> {
        let mut image = header.to_bytes()[..self.acked.vnet_header_bytes()].to_vec();
        image.extend_from_slice(frame);
        image
    }

    fn fault(&mut self) -> DeviceFault {
        match self.guest_rx.try_receive() {
            Err(Error::Device(fault)) => fault,
            other => panic!("no fault: {other:?}"),
        }
    }
}

fn header(num_buffers: u16) -> VnetHeader {
    VnetHeader {
        num_buffers,
        ..VnetHeader::default()
    }
}

#[test]
fn a_frame_over_three_buffers_is_put_together() {
    let mut played = played(Features::LINUX);
    let frame = FrameBuilder::udp4(600).build();
    let image = played.image(header(3), &frame.bytes);
    for (chain, piece) in (0..).zip(image.chunks(BUFFER as usize)) {
        played.write(chain, piece, piece.len() as u32);
    }
    let arrived = played.guest_rx.try_receive().unwrap().unwrap();
    assert_eq!(arrived.bytes, frame.bytes);
    assert_eq!(arrived.header.num_buffers, 3);
    played.guest_rx.verify_untouched().unwrap();
}

#[test]
fn each_broken_rule_of_num_buffers_is_found_out() {
    let frame = FrameBuilder::udp4(300).build();
    // (acked, num_buffers, bytes written into the first buffer, buffers used)
    let mergeable = Features::LINUX;
    let plain = Features::VERSION_1;
    let cases = [
        (mergeable, 0, 256, 1),
        (mergeable, 2, 256, 1),
        (mergeable, 2, 200, 2),
        (plain, 2, 256, 2),
    ];
    for (acked, num_buffers, first, used) in cases {
        let mut played = played(acked);
        let image = played.image(header(num_buffers), &frame.bytes);
        played.write(0, &image[..first], first as u32);
        if used == 2 {
            played.write(1, &image[first..], (image.len() - first) as u32);
        }
        let fault = played.fault();
        assert!(
            matches!(
                fault,
                DeviceFault::NumBuffers { .. } | DeviceFault::PartNotFull { .. }
            ),
            "{num_buffers} {first} {used}: {fault}"
        );
    }
}

#[test]
fn fewer_bytes_than_a_header_are_found_out() {
    let mut played = played(Features::LINUX);
    played.write(0, &[0; 11], 11);
    assert!(matches!(
        played.fault(),
        DeviceFault::ShorterThanHeader {
            written: 11,
            header: 12,
            ..
        }
    ));
}

#[test]
fn bytes_written_past_the_length_reported_are_found_out() {
    let mut played = played(Features::LINUX);
    let image = played.image(header(1), &FrameBuilder::udp4(100).build().bytes);
    played.write(0, &image, image.len() as u32 - 1);
    assert!(matches!(
        played.fault(),
        DeviceFault::MemoryOverwritten { .. }
    ));
}

#[test]
fn bytes_written_past_the_end_of_a_buffer_are_found_out() {
    let mut played = played(Features::LINUX);
    let mut image = played.image(
        header(1),
        &FrameBuilder::udp4(0).frame_bytes(244).build().bytes,
    );
    assert_eq!(image.len(), BUFFER as usize);
    image.push(0);
    played.write(0, &image, BUFFER);
    assert!(matches!(
        played.fault(),
        DeviceFault::MemoryOverwritten { .. }
    ));
}

#[test]
fn bytes_written_into_a_buffer_that_was_not_used_are_found_out() {
    let played = played(Features::LINUX);
    played.guest_rx.verify_untouched().unwrap();
    played.memory.write(played.address(5) + 100, &[0]).unwrap();
    assert!(matches!(
        played.guest_rx.verify_untouched(),
        Err(Error::Device(DeviceFault::MemoryOverwritten {
            found: 0,
            ..
        }))
    ));
}

#[test]
fn an_offload_that_was_not_acked_is_found_out() {
    let mut played = played(Features::VERSION_1);
    let frame = FrameBuilder::udp4(100).checksum_offload().build();
    let image = played.image(
        VnetHeader {
            num_buffers: 1,
            ..frame.header
        },
        &frame.bytes,
    );
    played.write(0, &image, image.len() as u32);
    assert!(matches!(played.fault(), DeviceFault::IllegalHeader { .. }));
}
