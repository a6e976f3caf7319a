//! Every combination of ring options on either side, against ring sizes, layouts of the transmit chain and frame sizes.

use std::collections::BTreeSet;

use guest_sim::frame::FrameBuilder;
use guest_sim::frame::build::EXPERIMENTAL;
use guest_sim::{
    ChainLayout, DescriptorTable, Features, Frame, GuestMemory, GuestMemoryLayout, Nic, NicOptions,
};

use crate::rig::{
    PACKED, Switch, WITHIN, arrival, guest_options, mac, named, one_way, verify_arrival,
    verify_quiet,
};

/// Header included, the longest frame of the matrix just fits one receive buffer of VIRTIO 1.3 §5.1.6.3.1.
const BIG_BUFFER_BYTES: u32 = 65_562;
/// Longest chain that the switch takes (docs/adr/0003-bounded-chains.md).
const LONGEST_CHAIN: usize = 1024;
/// Of packed rings any number will do.
const RING_SIZES: [u16; 5] = if PACKED {
    [3, 5, 257, 1000, 32_768]
} else {
    [2, 4, 256, 1024, 32_768]
};

/// The ring options of one guest.
#[derive(Clone, Copy, Debug)]
struct RingOptions {
    modern: bool,
    mergeable: bool,
    indirect: bool,
    event_idx: bool,
    in_order: bool,
}

impl RingOptions {
    /// How many combinations there are.
    const COUNT: usize = 32;

    fn nth(number: usize) -> Self {
        let bit = |bit: usize| number >> bit & 1 == 1;
        Self {
            modern: bit(0),
            mergeable: bit(1),
            indirect: bit(2),
            event_idx: bit(3),
            in_order: bit(4),
        }
    }

    fn features(self) -> Features {
        let choices = [
            (self.modern, Features::VERSION_1),
            (self.mergeable, Features::MRG_RXBUF),
            (self.indirect, Features::INDIRECT_DESC),
            (self.event_idx, Features::EVENT_IDX),
            (self.in_order, Features::IN_ORDER),
        ];
        let chosen = choices.into_iter().filter(|(wanted, _)| *wanted);
        chosen.fold(Features::OFFLOADS, |all, (_, feature)| all | feature)
    }

    /// A ring of that size, or the next that an old guest can have.
    fn ring_size(self, size: u16) -> u16 {
        if self.modern {
            size
        } else {
            size.next_power_of_two()
        }
    }

    fn table(self) -> DescriptorTable {
        if self.indirect {
            DescriptorTable::Indirect
        } else {
            DescriptorTable::Direct
        }
    }
}

/// How a transmit chain is cut, by name: some layouts depend on the frame and the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cut {
    HeaderAlone,
    HeaderWithData,
    SevenPieces,
    HeaderInPieces,
    EmptyInBetween,
    AsManyAsAllowed,
}

impl Cut {
    const ALL: [Self; 6] = [
        Self::HeaderAlone,
        Self::HeaderWithData,
        Self::SevenPieces,
        Self::HeaderInPieces,
        Self::EmptyInBetween,
        Self::AsManyAsAllowed,
    ];

    fn layout(self, image_bytes: usize, ring_size: u16) -> ChainLayout {
        match self {
            Self::HeaderAlone => ChainLayout::HeaderAlone,
            Self::HeaderWithData => ChainLayout::Single,
            Self::SevenPieces => ChainLayout::Pieces(7),
            Self::HeaderInPieces => ChainLayout::Cut(vec![1, 4, 5, 3, 200]),
            Self::EmptyInBetween => ChainLayout::Cut(vec![0, 12, 0, 0, 14, 0, 30]),
            // Of 1 byte each up to a frame of about 1,000.
            Self::AsManyAsAllowed => {
                let most = LONGEST_CHAIN.min(usize::from(ring_size));
                ChainLayout::Every(image_bytes.div_ceil(most) as u32)
            }
        }
    }

    fn fits(self, ring_size: u16) -> bool {
        match self {
            Self::HeaderAlone | Self::HeaderWithData | Self::AsManyAsAllowed => true,
            Self::SevenPieces | Self::HeaderInPieces | Self::EmptyInBetween => ring_size >= 8,
        }
    }
}

/// Around every boundary: the shortest, the private copy of the first 256 bytes (with either header), buffers, jumbo, 64 KiB.
fn frame_sizes() -> Vec<usize> {
    let mut sizes = vec![14, 60, 64, 65, 128];
    sizes.extend(243..=258);
    sizes.extend([
        1514, 1518, 1519, 1524, 1525, 1526, 9014, 9230, 65_549, 65_550,
    ]);
    sizes
}

/// A frame of exactly that size, of another kind at every turn.
fn frame(bytes: usize, turn: usize) -> Frame {
    let raw = FrameBuilder::raw(EXPERIMENTAL, 0);
    let mut kinds = vec![raw];
    if bytes >= 100 {
        kinds.push(FrameBuilder::tcp6(0).checksum_offload());
    }
    if bytes > 1600 {
        kinds.push(FrameBuilder::tcp6(0).segment(1428));
    }
    // An IPv4 packet ends at 65,535 bytes.
    if (100..65_550).contains(&bytes) {
        kinds.push(FrameBuilder::udp4(0));
        kinds.push(FrameBuilder::tcp4(0).timestamps().checksum_offload());
        if bytes > 1600 {
            kinds.push(FrameBuilder::tcp4(0).segment(1448));
        }
    }
    let kind = kinds.swap_remove(turn % kinds.len());
    let frame = kind
        .macs(mac(1), mac(2))
        .ports(turn as u16, bytes as u16)
        .frame_bytes(bytes)
        .build();
    assert_eq!(frame.bytes.len(), bytes);
    frame
}

fn sender(options: RingOptions, ring_size: u16, any_layout: bool) -> NicOptions {
    let mut features = options.features();
    if any_layout && !options.modern {
        features = features | Features::ANY_LAYOUT;
    }
    NicOptions {
        features,
        guest_tx_ring_size: ring_size,
        guest_tx_table: options.table(),
        guest_rx_buffers: 4,
        ..guest_options()
    }
}

fn receiver(options: RingOptions, ring_size: u16) -> NicOptions {
    let several = ring_size >= 256;
    // A small ring still has room for the longest frame.
    let buffer_bytes = match ring_size {
        _ if !options.mergeable => BIG_BUFFER_BYTES,
        2 | 3 => 32_784,
        4 | 5 => 16_400,
        8 => 8_208,
        _ => 1536,
    };
    NicOptions {
        features: options.features(),
        guest_rx_ring_size: ring_size,
        guest_rx_table: options.table(),
        guest_rx_buffer_bytes: Some(buffer_bytes),
        guest_rx_buffers: if options.mergeable { u16::MAX } else { 64 },
        guest_rx_layout: match (several && options.modern, options.event_idx) {
            (true, true) => Some(ChainLayout::Pieces(3)),
            (true, false) => Some(ChainLayout::Cut(vec![5, 7, 1, 100])),
            (false, _) if options.modern || options.mergeable => Some(ChainLayout::Single),
            (false, _) => None,
        },
        guest_tx_ring_size: 2,
        ..guest_options()
    }
}

/// One pairing of options for each of the sender's: every size, with every layout that fits the ring.
fn sweep(pairing: usize, any_layout: bool) {
    let switch = Switch::of(&["vm1", "vm2"]);
    let mut met = BTreeSet::new();
    let mut met_sizes = BTreeSet::new();
    for number in 0..RingOptions::COUNT {
        let sending = RingOptions::nth(number);
        let receiving = RingOptions::nth((number * 5 + 11 * pairing + 3) % RingOptions::COUNT);
        let tx_size = sending.ring_size(RING_SIZES[(number + pairing) % RING_SIZES.len()]);
        let rx_size = receiving.ring_size(RING_SIZES[(2 * number + pairing) % RING_SIZES.len()]);
        named(&(sending, receiving, tx_size, rx_size), || {
            let mut from = switch.guest("vm1", sender(sending, tx_size, any_layout));
            let mut to = switch.guest("vm2", receiver(receiving, rx_size));
            let cuts: &[Cut] = if sending.modern || any_layout {
                &Cut::ALL
            } else {
                &Cut::ALL[..1]
            };
            for &cut in cuts.iter().filter(|cut| cut.fits(tx_size)) {
                for bytes in frame_sizes() {
                    send_cut(
                        (bytes, number + cut as usize),
                        (cut, sending),
                        &mut from,
                        &mut to,
                    );
                    met.insert((cut, bytes));
                    met_sizes.insert((tx_size, rx_size, bytes));
                }
            }
            verify_quiet(&mut [&mut from, &mut to]);
        });
    }
    assert_eq!(met.len(), Cut::ALL.len() * frame_sizes().len());
    assert_eq!(met_sizes.len() % frame_sizes().len(), 0);
    switch.finish();
}

fn send_cut(frame_is: (usize, usize), how: (Cut, RingOptions), from: &mut Nic, to: &mut Nic) {
    let (bytes, turn) = frame_is;
    named(&(bytes, turn, how.0), || {
        let frame = frame(bytes, turn);
        let ring_size = from.options().guest_tx_ring_size;
        let image_bytes = from.acked().vnet_header_bytes() + bytes;
        let layout = how.0.layout(image_bytes, ring_size);
        from.pair(0).guest_tx.set_layout(layout, how.1.table());
        one_way(&frame, from, to);
    });
}

#[test]
fn every_combination_of_ring_options_carries_every_frame_size_in_every_layout() {
    sweep(0, true);
}

#[test]
fn every_combination_works_in_another_pairing_with_legacy_headers_alone() {
    sweep(1, false);
}

#[test]
fn every_combination_works_in_a_third_pairing() {
    sweep(2, true);
}

#[test]
fn rings_of_every_size_go_round_more_than_once() {
    let switch = Switch::of(&["vm1", "vm2"]);
    for size in RING_SIZES {
        for in_order in [Features::NONE, Features::IN_ORDER] {
            named(&(size, in_order), || {
                let options = NicOptions {
                    features: Features::LINUX | in_order,
                    guest_tx_ring_size: size,
                    guest_rx_ring_size: size,
                    guest_tx_layout: ChainLayout::Single,
                    guest_rx_buffer_bytes: Some(256),
                    ..guest_options()
                };
                let mut from = switch.guest("vm1", options.clone());
                let mut to = switch.guest("vm2", options);
                let total = (2 * usize::from(size) + 3).min(70_000);
                let mut sent = 0;
                while sent < total {
                    // Never more than the receiver has buffers for.
                    let burst = usize::from(size).min(total - sent).min(4096);
                    let frames: Vec<_> = (sent..sent + burst).map(|n| frame(60, n)).collect();
                    from.pair(0).guest_tx.send_all(&frames, WITHIN).unwrap();
                    for frame in &frames {
                        verify_arrival(frame, &mut to);
                    }
                    sent += burst;
                }
                verify_quiet(&mut [&mut from, &mut to]);
            });
        }
    }
    switch.finish();
}

#[test]
fn a_full_ring_of_32768_is_delivered_in_one_go() {
    let switch = Switch::of(&["vm1", "vm2"]);
    let options = NicOptions {
        guest_tx_ring_size: 32_768,
        guest_rx_ring_size: 32_768,
        guest_tx_layout: ChainLayout::Single,
        guest_rx_buffer_bytes: Some(128),
        ..guest_options()
    };
    let mut from = switch.guest("vm1", options.clone());
    let mut to = switch.guest("vm2", options);
    assert_eq!(to.pair(0).guest_rx.posted(), 32_768);
    for number in 0..32_768 {
        from.pair(0).guest_tx.queue(&frame(60, number)).unwrap();
    }
    from.pair(0).guest_tx.publish().unwrap();
    for number in 0..32_768 {
        let arrived = arrival(&mut to);
        assert_eq!(arrived.bytes, frame(60, number).bytes, "frame {number}");
    }
    verify_quiet(&mut [&mut from, &mut to]);
    switch.finish();
}

#[test]
fn merged_buffers_of_any_size_hold_a_frame_of_64_kib() {
    let switch = Switch::of(&["vm1", "vm2"]);
    let mut from = switch.guest("vm1", guest_options());
    for buffer_bytes in [33, 61, 64, 255, 256, 257, 1024, 4096, 65_561] {
        named(&buffer_bytes, || {
            let options = NicOptions {
                guest_rx_ring_size: 4096,
                guest_rx_buffer_bytes: Some(buffer_bytes),
                guest_rx_buffers: if buffer_bytes > 4096 { 64 } else { u16::MAX },
                ..guest_options()
            };
            let mut to = switch.guest("vm2", options);
            for (turn, bytes) in [60, 244, 245, 1514, 9014, 65_549, 65_550]
                .into_iter()
                .enumerate()
            {
                one_way(&frame(bytes, turn), &mut from, &mut to);
            }
            verify_quiet(&mut [&mut from, &mut to]);
        });
    }
    switch.finish();
}

#[test]
fn buffers_may_cross_from_one_region_into_the_next() {
    const REGION_BYTES: u64 = 16 << 20;
    let adjacent =
        || GuestMemory::new(&GuestMemoryLayout::adjacent(&[REGION_BYTES, REGION_BYTES])).unwrap();
    let switch = Switch::of(&["vm1", "vm2"]);
    let (tx_memory, rx_memory) = (adjacent(), adjacent());
    let options = NicOptions {
        refill: guest_sim::Refill::Manual,
        ..guest_options()
    };
    let mut from = switch.guest_in(&tx_memory, "vm1", options.clone());
    let mut to = switch.guest_in(&rx_memory, "vm2", options);
    for (turn, bytes) in [60, 244, 245, 300, 1514, 9014, 65_549]
        .into_iter()
        .enumerate()
    {
        let frame = frame(bytes, turn);
        let mut image = frame.header.to_bytes().to_vec();
        image.extend_from_slice(&frame.bytes);
        // At the first byte, within the header, at its end, within the frame, at the last byte.
        for before in [1, 7, 12, 13, 26, 60, image.len() as u64 - 1] {
            named(&(bytes, before), || {
                cross(&image, before, REGION_BYTES, &mut from, &mut to);
            });
        }
    }
    switch.finish();
}

/// Puts `before` bytes of transmit and receive buffer before the border and the rest behind it.
fn cross(image: &[u8], before: u64, border: u64, from: &mut Nic, to: &mut Nic) {
    use guest_sim::ring::{Direction, Segment};
    let (start, len) = (border - before, image.len() as u32);
    let (head, tail) = image.split_at(before as usize);
    from.memory().write(start, head).unwrap();
    from.memory().write(border, tail).unwrap();
    let guard = [0x5a; 32];
    to.memory()
        .write(start, &vec![0xee; before as usize])
        .unwrap();
    to.memory().write(border, &vec![0xee; tail.len()]).unwrap();
    to.memory()
        .write(border + tail.len() as u64, &guard)
        .unwrap();
    let receive = Segment {
        address: start,
        len,
        direction: Direction::DeviceWrites,
    };
    let send = Segment {
        direction: Direction::DeviceReads,
        ..receive
    };
    let rx = to.pair(0).guest_rx.ring_mut();
    rx.add(&[receive], DescriptorTable::Direct, 0).unwrap();
    rx.publish().unwrap();
    let tx = from.pair(0).guest_tx.ring_mut();
    tx.add(&[send], DescriptorTable::Direct, 0).unwrap();
    tx.publish().unwrap();
    let written = crate::rig::until("the frame", || {
        to.pair(0).guest_rx.ring_mut().pop_used().unwrap()
    });
    assert_eq!(written.written, len);
    crate::rig::until("the transmit buffer", || {
        from.pair(0).guest_tx.ring_mut().pop_used().unwrap()
    });
    let mut arrived = vec![0; image.len()];
    to.memory()
        .read(start, &mut arrived[..before as usize])
        .unwrap();
    to.memory()
        .read(border, &mut arrived[before as usize..])
        .unwrap();
    let mut expected = image.to_vec();
    // num_buffers is the receiver's; hdr_len is a hint.
    expected[10..12].copy_from_slice(&1u16.to_le_bytes());
    assert_eq!(arrived[..2], expected[..2]);
    assert_eq!(arrived[4..], expected[4..]);
    let mut behind = [0; 32];
    to.memory()
        .read(border + tail.len() as u64, &mut behind)
        .unwrap();
    assert_eq!(behind, guard, "the switch wrote past the buffer");
}
