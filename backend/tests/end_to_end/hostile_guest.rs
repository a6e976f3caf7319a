//! Guests that break the rules on their rings, while two others exchange verified traffic and must lose nothing.

use guest_sim::frame::FrameBuilder;
use guest_sim::frame::vnet_header::{GsoType, NEEDS_CSUM};
use guest_sim::misbehave::chains::Side;
use guest_sim::misbehave::{HostileChain, chains, kick_storm, packed_chains};
use guest_sim::ring::raw::NEXT;
use guest_sim::{
    ChainLayout, Descriptor, EventSuppression, Features, Frame, GuestMemory, GuestMemoryLayout,
    Nic, NicOptions, PackedDescriptor, RawPackedRing, RawRing, Refill, VnetHeader,
};

use crate::rig::{
    Bystanders, PACKED, Switch, WITHIN, exchange, guest_options, mac, named, numbered, one_way,
    settle, until, verify_arrival, verify_quiet,
};

fn switch() -> Switch {
    Switch::of(&["vm1", "vm2", "vm7", "vm8"])
}

fn hostile_options() -> NicOptions {
    NicOptions {
        refill: Refill::Manual,
        features: Features::LINUX,
        ..guest_options()
    }
}

fn small_memory() -> GuestMemory {
    GuestMemory::new(&GuestMemoryLayout::one_region(8 << 20)).unwrap()
}

/// A rule to break, for the format at hand.
#[derive(Debug)]
enum Case {
    Split(HostileChain),
    Packed(HostileChain<RawPackedRing>),
}

impl Case {
    fn all() -> Vec<Self> {
        if PACKED {
            packed_chains().into_iter().map(Self::Packed).collect()
        } else {
            chains().into_iter().map(Self::Split).collect()
        }
    }

    fn side(&self) -> Side {
        match self {
            Self::Split(case) => case.side,
            Self::Packed(case) => case.side,
        }
    }

    fn play(&self, guest: &Nic, ring: u16, memory: &GuestMemory) {
        match self {
            Self::Split(case) => case.play(&guest.raw_ring(ring).unwrap(), memory),
            Self::Packed(case) => case.play(&guest.raw_packed_ring(ring).unwrap(), memory),
        }
        .unwrap();
    }
}

#[test]
fn no_chain_a_guest_can_make_disturbs_others_or_its_own_next_life() {
    let switch = switch();
    let mut bystanders = Bystanders::on(&switch);
    let mut neighbour = switch.guest("vm2", guest_options());
    bystanders.during(|| {
        for ring_size in [256, 4] {
            for case in Case::all() {
                named(&(ring_size, &case), || {
                    let memory = small_memory();
                    let options = NicOptions {
                        guest_rx_ring_size: ring_size,
                        guest_tx_ring_size: ring_size,
                        ..hostile_options()
                    };
                    let mut guest = switch.guest_in(&memory, "vm1", options);
                    let ring = match case.side() {
                        Side::GuestRx => 0,
                        Side::GuestTx => 1,
                    };
                    case.play(&guest, ring, &memory);
                    // Frames for it, which a hostile guest-rx ring is to receive.
                    neighbour.send(&numbered(1, 2, 1)).unwrap();
                    neighbour.send(&numbered(2, 2, 1)).unwrap();
                    neighbour.pair(0).guest_tx.drain(WITHIN).unwrap();
                    settle(&mut guest);
                });
            }
        }
    });
    while neighbour.pair(0).guest_rx.try_receive().unwrap().is_some() {}
    let mut guest = switch.guest("vm1", guest_options());
    exchange((1, &mut guest), (2, &mut neighbour));
    switch.finish();
}

/// A split-mix generator: the same bytes on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// Words over a whole ring of either format.
fn scribble(guest: &Nic, ring: u16, random: &mut Random) {
    if PACKED {
        scribble_packed(&guest.raw_packed_ring(ring).unwrap(), random);
    } else {
        scribble_split(&guest.raw_ring(ring).unwrap(), random);
    }
}

/// At random, or likely enough to be taken for chains.
fn scribble_packed(ring: &RawPackedRing, random: &mut Random) {
    let plausible = random.below(2) == 0;
    for index in 0..ring.size() {
        let descriptor = if plausible {
            PackedDescriptor {
                address: random.below(9 << 20),
                len: random.below(3000) as u32,
                id: random.below(u64::from(ring.size()) + 2) as u16,
                flags: random.below(8) as u16 | [0x80, 0x8000][random.below(2) as usize],
            }
        } else {
            PackedDescriptor {
                address: random.next(),
                len: random.next() as u32,
                id: random.next() as u16,
                flags: random.next() as u16,
            }
        };
        ring.set_descriptor(index, descriptor).unwrap();
    }
    ring.set_driver_event(EventSuppression {
        position: random.next() as u16,
        flags: random.next() as u16,
    })
    .unwrap();
    ring.kick().unwrap();
}

/// At random, or likely enough to be taken for chains.
fn scribble_split(ring: &RawRing, random: &mut Random) {
    let plausible = random.below(2) == 0;
    for index in 0..ring.size() {
        let descriptor = if plausible {
            Descriptor {
                address: random.below(9 << 20),
                len: random.below(3000) as u32,
                flags: random.below(8) as u16,
                next: random.below(u64::from(ring.size()) + 2) as u16,
            }
        } else {
            Descriptor {
                address: random.next(),
                len: random.next() as u32,
                flags: random.next() as u16,
                next: random.next() as u16,
            }
        };
        ring.set_descriptor(index, descriptor).unwrap();
        let head = if plausible {
            random.below(u64::from(ring.size())) as u16
        } else {
            random.next() as u16
        };
        ring.set_avail_entry(index, head).unwrap();
    }
    ring.set_used_event(random.next() as u16).unwrap();
    ring.set_avail_flags(random.next() as u16).unwrap();
    let used = ring.used_index().unwrap();
    let step = random.below(u64::from(ring.size()) + 2) as u16;
    ring.set_avail_index(used.wrapping_add(step)).unwrap();
    ring.kick().unwrap();
}

#[test]
fn garbage_all_over_the_rings_for_many_rounds_harms_nobody_else() {
    let switch = switch();
    let mut bystanders = Bystanders::on(&switch);
    let mut neighbour = switch.guest("vm2", guest_options());
    bystanders.during(|| {
        for seed in 0..40 {
            named(&seed, || {
                let mut random = Random(seed);
                let memory = small_memory();
                let options = NicOptions {
                    guest_rx_ring_size: 64,
                    guest_tx_ring_size: 64,
                    ..hostile_options()
                };
                let mut guest = switch.guest_in(&memory, "vm1", options);
                let mut bytes = vec![0; 1 << 20];
                bytes.fill_with(|| random.next() as u8);
                memory.write(1 << 20, &bytes).unwrap();
                for _ in 0..10 {
                    (0..2).for_each(|ring| scribble(&guest, ring, &mut random));
                    neighbour.send(&numbered(3, 2, 1)).unwrap();
                    neighbour.pair(0).guest_tx.drain(WITHIN).unwrap();
                }
                settle(&mut guest);
            });
        }
    });
    let mut guest = switch.guest("vm1", guest_options());
    while neighbour.pair(0).guest_rx.try_receive().unwrap().is_some() {}
    neighbour.pair(0).guest_rx.refill().unwrap();
    exchange((1, &mut guest), (2, &mut neighbour));
    switch.finish();
}

#[test]
fn a_memory_file_cut_short_under_live_rings_loses_its_own_port_only_and_the_port_says_why() {
    let switch = switch();
    let mut bystanders = Bystanders::on(&switch);
    let mut neighbour = switch.guest("vm2", guest_options());
    bystanders.during(|| {
        for round in 0..10 {
            named(&round, || {
                let memory = small_memory();
                let mut guest = switch.guest_in(&memory, "vm1", hostile_options());
                neighbour.send(&numbered(round, 2, 1)).unwrap();
                // Nothing here may touch the memory from now on, the guest's driver included.
                memory.truncate_memfd(0, 0).unwrap();
                guest
                    .pair(0)
                    .guest_tx
                    .ring()
                    .kick_eventfd()
                    .write(1)
                    .unwrap();
                // Delivery to it touches the memory, if nothing else does.
                until("the port to be detached", || {
                    neighbour.send(&numbered(round, 2, 1)).unwrap();
                    (switch.show("vm1")["state"] == "listening").then_some(())
                });
                let show = switch.show("vm1");
                let reason = show["reason"].as_str().unwrap().to_owned();
                assert!(reason.contains("truncated"), "{show}");
                std::mem::forget(guest);
            });
        }
    });
    let mut guest = switch.guest("vm1", guest_options());
    while neighbour.pair(0).guest_rx.try_receive().unwrap().is_some() {}
    exchange((1, &mut guest), (2, &mut neighbour));
    switch.finish();
}

#[test]
fn buffers_whose_file_is_cut_short_while_the_rings_stay_lose_their_own_port_only() {
    let switch = switch();
    let mut bystanders = Bystanders::on(&switch);
    let mut neighbour = switch.guest("vm2", guest_options());
    bystanders.during(|| {
        for side in [Side::GuestTx, Side::GuestRx] {
            for round in 0..5 {
                named(&(side, round), || {
                    lose_buffers(&switch, &mut neighbour, side);
                });
            }
        }
    });
    let mut guest = switch.guest("vm1", guest_options());
    while neighbour.pair(0).guest_rx.try_receive().unwrap().is_some() {}
    exchange((1, &mut guest), (2, &mut neighbour));
    switch.finish();
}

/// Rings in one file, buffers in another that is cut short with frames in it, or before one is written to it.
fn lose_buffers(switch: &Switch, neighbour: &mut Nic, side: Side) {
    let layout = GuestMemoryLayout::separate_memfds(&[4 << 20, 16 << 20]);
    let memory = GuestMemory::new(&layout).unwrap();
    let options = NicOptions {
        ring_region: 0,
        buffer_regions: vec![1],
        ..hostile_options()
    };
    let mut guest = switch.guest_in(&memory, "vm1", options);
    guest.refill().unwrap();
    for number in 0..50 {
        let frame = FrameBuilder::udp4(9000)
            .macs(mac(1), mac(2))
            .ports(number, 9)
            .build();
        guest.pair(0).guest_tx.queue(&frame).unwrap();
    }
    memory.truncate_memfd(1, 0).unwrap();
    if side == Side::GuestTx {
        guest.pair(0).guest_tx.publish().unwrap();
    }
    until("the port to be detached", || {
        if side == Side::GuestRx {
            neighbour.send(&numbered(1, 2, 1)).unwrap();
        }
        (switch.show("vm1")["state"] == "listening").then_some(())
    });
    let show = switch.show("vm1");
    let reason = show["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("truncated"), "{show}");
}

#[test]
fn storms_of_kicks_without_chains_do_not_starve_others() {
    let switch = switch();
    let mut bystanders = Bystanders::on(&switch);
    let guest = switch.guest("vm1", guest_options());
    let rings = [0, 1].map(|ring| guest.ring(ring).unwrap());
    bystanders.during(|| {
        for _ in 0..20 {
            for ring in &rings {
                kick_storm(ring.kick_eventfd(), 10_000).unwrap();
            }
        }
    });
    switch.finish();
}

#[test]
fn one_byte_buffers_in_the_largest_ring_cost_only_their_owner() {
    let switch = switch();
    let mut bystanders = Bystanders::on(&switch);
    // The bystanders know each other before anybody could be flooded by them.
    bystanders.during(|| ());
    let mut neighbour = switch.guest("vm2", guest_options());
    let options = NicOptions {
        guest_rx_ring_size: 32_768,
        guest_rx_buffer_bytes: Some(1),
        guest_rx_layout: Some(ChainLayout::Single),
        ..hostile_options()
    };
    let mut guest = switch.guest("vm1", options);
    guest.refill().unwrap();
    // Known, or its frames would be flooded.
    guest.send(&numbered(0, 1, 2)).unwrap();
    verify_arrival(&numbered(0, 1, 2), &mut neighbour);
    let frames: Vec<Frame> = (0..64)
        .map(|number| {
            FrameBuilder::tcp4(60_000)
                .macs(mac(2), mac(1))
                .sequence(number)
                .segment(1448)
                .build()
        })
        .collect();
    bystanders.during(|| {
        for _ in 0..5 {
            neighbour
                .pair(0)
                .guest_tx
                .send_all(&frames, WITHIN)
                .unwrap();
            neighbour.pair(0).guest_tx.drain(WITHIN).unwrap();
        }
    });
    assert_eq!(switch.drops("vm1", "rx_buffer_too_small"), 320);
    switch.finish();
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

#[test]
fn a_broken_ring_says_so_and_the_other_ring_of_its_guest_goes_on() {
    let switch = switch();
    let mut guest = switch.guest("vm1", guest_options());
    let mut other = switch.guest("vm2", guest_options());
    exchange((1, &mut guest), (2, &mut other));
    break_guest_tx(&guest);
    let show = until("the ring to be stopped", || {
        let show = switch.show("vm1");
        let text = show["device"].to_string();
        text.contains(if PACKED { "does not end" } else { "jumped" })
            .then_some(show)
    });
    assert_eq!(show["device"]["rings"][1]["phase"], "faulted", "{show}");
    receive_only(&mut guest, &mut other);
    // A reset makes it whole.
    guest.reset().unwrap();
    guest.start().unwrap();
    settle(&mut guest);
    exchange((1, &mut guest), (2, &mut other));
    switch.finish();
}

fn break_guest_tx(guest: &Nic) {
    if PACKED {
        let tx = guest.raw_packed_ring(1).unwrap();
        let endless = PackedDescriptor {
            address: 0x1000,
            len: 1,
            id: 0,
            flags: NEXT,
        };
        tx.post(&vec![endless; tx.size().into()]).unwrap();
        tx.kick().unwrap();
    } else {
        let tx = guest.raw_ring(1).unwrap();
        let next = tx.avail_index().unwrap();
        tx.set_avail_index(next.wrapping_add(1000)).unwrap();
        tx.kick().unwrap();
    }
}

fn receive_only(guest: &mut Nic, other: &mut Nic) {
    for number in 0..20 {
        one_way(&numbered(number, 2, 1), other, guest);
    }
}

#[test]
fn a_guest_that_floods_with_new_addresses_does_not_push_out_the_others() {
    let switch = switch();
    let mut bystanders = Bystanders::on(&switch);
    let mut flooder = switch.guest("vm1", guest_options());
    // To a station behind its own port: learned, but delivered to nobody.
    flooder.send(&numbered(0, 1, 0xff)).unwrap();
    flooder.pair(0).guest_tx.drain(WITHIN).unwrap();
    bystanders.during(|| {
        for number in 0..40_000u32 {
            let [_, high, middle, low] = number.to_be_bytes();
            let source = [0x02, 0xba, 0xdd, high, middle, low];
            let frame = FrameBuilder::raw(0x88b5, 46).macs(source, mac(1)).build();
            flooder.send(&frame).unwrap();
        }
        flooder.pair(0).guest_tx.drain(WITHIN).unwrap();
    });
    assert_eq!(switch.all_drops("vm1"), [("same_port".into(), 40_000)]);
    assert_eq!(switch.learned(mac(7)).as_deref(), Some("vm7"));
    assert_eq!(switch.learned(mac(8)).as_deref(), Some("vm8"));
    assert_eq!(switch.all_drops("vm7"), []);
    switch.finish();
}
