//! Ring options x offloads x frame sizes, through a running switch, every payload byte verified.
//!
//! A frame arrives as its sender made it where the receiver acked that offload, and checksummed, segmented or fragmented where it did not.

use std::time::Duration;

use guest_sim::bench::Daemon;
use guest_sim::bench::daemon::{PortArgument, binary};
use guest_sim::frame::{FrameBuilder, FrameError, GsoType, MacAddr, Parsed, verify};
use guest_sim::{
    ChainLayout, DescriptorTable, Error, Features, Frame, GuestMemory, GuestMemoryLayout, Nic,
    NicOptions, Waiting,
};

const WITHIN: Duration = Duration::from_secs(20);
const SENDER: MacAddr = [0x52, 0x54, 0, 0, 0, 0x11];
const RECEIVER: MacAddr = [0x52, 0x54, 0, 0, 0, 0x22];

/// Why a cell of the matrix failed; the text names the cell.
#[derive(Debug)]
#[expect(
    dead_code,
    reason = "read by the test harness when it prints a failure"
)]
struct Failure(String);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

type Outcome<T = ()> = Result<T, Failure>;

const RINGS: [Features; 4] = [
    Features::INDIRECT_DESC,
    Features::EVENT_IDX,
    Features::IN_ORDER,
    Features::MRG_RXBUF,
];

fn every_subset(of: &[Features]) -> Vec<Features> {
    let subset = |set: usize| {
        let chosen = of.iter().enumerate().filter(|(bit, _)| set >> bit & 1 == 1);
        chosen.fold(Features::NONE, |all, (_, one)| all | *one)
    };
    (0..1 << of.len()).map(subset).collect()
}

fn switch() -> Outcome<Daemon> {
    Ok(Daemon::start(
        &binary()?,
        &["sender", "receiver"].map(PortArgument::named),
        &[],
    )?)
}

fn attach(daemon: &Daemon, port: &str, options: NicOptions) -> Outcome<Nic> {
    let memory = GuestMemory::new(&GuestMemoryLayout::around_pci_hole(48 << 20, 16 << 20))
        .map_err(Error::from)?;
    Ok(Nic::attach(&memory, options, &daemon.socket(port))?)
}

fn options(features: Features) -> NicOptions {
    let table = match features.contains(Features::INDIRECT_DESC) {
        true => DescriptorTable::IndirectWhenMany,
        false => DescriptorTable::Direct,
    };
    NicOptions {
        features,
        guest_tx_table: table,
        guest_rx_table: table,
        // Enough for a segmented 64 KiB frame, not more: large buffers take memory.
        guest_rx_buffers: 128,
        ..NicOptions::default()
    }
}

/// Frames a sender with these features may send.
fn frames(acked: Features) -> Vec<Frame> {
    let mut builders = Vec::new();
    for bytes in [
        60, 61, 64, 127, 128, 255, 256, 257, 511, 512, 1023, 1500, 1513, 1514,
    ] {
        builders.push(FrameBuilder::udp4(0).frame_bytes(bytes));
        builders.push(FrameBuilder::tcp6(0).timestamps().frame_bytes(bytes));
    }
    if acked.contains(Features::CSUM) {
        for bytes in [0, 1, 100, 1400] {
            builders.push(FrameBuilder::tcp4(bytes).checksum_offload());
            builders.push(FrameBuilder::udp6(bytes).checksum_offload());
        }
    }
    if acked.contains(Features::OFFLOADS) {
        for bytes in [100, 1448, 1449, 9000, 32_000, 65_000] {
            builders.push(FrameBuilder::tcp4(bytes).segment(1448));
            builders.push(FrameBuilder::tcp6(bytes).timestamps().segment(1428));
            builders.push(FrameBuilder::tcp4(bytes).ecn().segment(1448));
            builders.push(FrameBuilder::udp4(bytes).segment(1480));
        }
        builders.push(FrameBuilder::tcp4(0).segment(1448).frame_bytes(65_549));
    }
    builders
        .into_iter()
        .map(|builder| builder.macs(SENDER, RECEIVER).build())
        .collect()
}

/// Whether a receiver with these features takes the frame in one piece.
fn takes_whole(acked: Features, frame: &Frame) -> bool {
    let ecn = if frame.header.has_ecn() {
        Features::GUEST_ECN
    } else {
        Features::NONE
    };
    let needed = match frame.header.gso() {
        Some(GsoType::Tcp4) => Features::GUEST_CSUM | Features::GUEST_TSO4 | ecn,
        Some(GsoType::Tcp6) => Features::GUEST_CSUM | Features::GUEST_TSO6 | ecn,
        Some(GsoType::Udp) => Features::GUEST_CSUM | Features::GUEST_UFO,
        _ => Features::NONE,
    };
    acked.contains(needed)
}

/// How many pieces a segmented frame comes in.
fn pieces(frame: &Frame) -> Result<usize, FrameError> {
    let parsed = Parsed::new(&frame.bytes)?;
    let gso_size = usize::from(frame.header.gso_size);
    Ok(match frame.header.gso() {
        // The UDP header is part of what is fragmented, and offsets count eights of bytes.
        Some(GsoType::Udp) => (parsed.end - parsed.transport_at).div_ceil(gso_size & !7),
        _ => (parsed.end - parsed.payload_at).div_ceil(gso_size).max(1),
    })
}

fn deliver(cell: &str, frames: &[Frame], sender: &mut Nic, receiver: &mut Nic) -> Outcome {
    let acked = receiver.acked();
    for frame in frames {
        let (bytes, gso) = (frame.bytes.len(), frame.header.gso());
        let fail = |why: &dyn std::fmt::Display| {
            Failure(format!("{cell}: frame of {bytes} bytes, {gso:?}: {why}"))
        };
        sender.send(frame).map_err(|error| fail(&error))?;
        let guest_rx = &mut receiver.pair(0).guest_rx;
        if takes_whole(acked, frame) {
            let arrived = guest_rx
                .receive_count(1, WITHIN)
                .map_err(|error| fail(&error))?;
            verify::same(frame, &arrived[0]).map_err(|error| fail(&error))?;
        } else {
            let count = pieces(frame).map_err(|error| fail(&error))?;
            let arrived = guest_rx
                .receive_count(count, WITHIN)
                .map_err(|error| fail(&error))?;
            verify::segments(frame, &arrived).map_err(|error| fail(&error))?;
        }
    }
    let finished = sender
        .pair(0)
        .guest_tx
        .drain(WITHIN)
        .and_then(|()| receiver.pair(0).guest_rx.verify_untouched());
    finished.map_err(|error| Failure(format!("{cell}: {error}")))
}

#[test]
fn every_pair_of_ring_options_carries_every_frame() -> Outcome {
    let daemon = switch()?;
    let base = Features::VERSION_1 | Features::OFFLOADS;
    for to in every_subset(&RINGS) {
        let mut receiver = attach(&daemon, "receiver", options(base | to))?;
        for from in every_subset(&RINGS[..3]) {
            let mut sender = attach(&daemon, "sender", options(base | from))?;
            let frames = frames(sender.acked());
            deliver(
                &format!("{from} -> {to}"),
                &frames,
                &mut sender,
                &mut receiver,
            )?;
        }
    }
    Ok(())
}

#[test]
fn every_subset_of_the_receivers_offloads_gets_what_it_acked() -> Outcome {
    let daemon = switch()?;
    let mut sender = attach(&daemon, "sender", options(Features::LINUX))?;
    let tso = [
        Features::GUEST_TSO4,
        Features::GUEST_TSO6,
        Features::GUEST_ECN,
        Features::GUEST_UFO,
    ];
    for mergeable in [Features::NONE, Features::MRG_RXBUF] {
        let mut cells = vec![Features::NONE];
        cells.extend(
            every_subset(&tso)
                .into_iter()
                .map(|some| some | Features::GUEST_CSUM),
        );
        for offloads in cells {
            let features = Features::VERSION_1 | mergeable | offloads;
            let mut receiver = attach(&daemon, "receiver", options(features))?;
            deliver(
                &features.to_string(),
                &frames(Features::LINUX),
                &mut sender,
                &mut receiver,
            )?;
        }
    }
    Ok(())
}

#[test]
fn legacy_and_modern_guests_understand_each_other() -> Outcome {
    let daemon = switch()?;
    let kinds = [
        Features::NONE,
        Features::MRG_RXBUF,
        Features::VERSION_1,
        Features::LINUX,
        Features::OFFLOADS,
    ];
    for from in kinds {
        for to in kinds {
            let mut receiver = attach(&daemon, "receiver", options(to))?;
            let mut sender = attach(&daemon, "sender", options(from))?;
            let frames = frames(sender.acked());
            deliver(
                &format!("{from} -> {to}"),
                &frames,
                &mut sender,
                &mut receiver,
            )?;
        }
    }
    Ok(())
}

#[test]
fn every_layout_of_transmitted_and_received_chains_carries_every_frame() -> Outcome {
    let daemon = switch()?;
    let layouts = [
        ChainLayout::HeaderAlone,
        ChainLayout::Single,
        ChainLayout::Cut(vec![5, 7, 1, 13]),
        ChainLayout::Cut(vec![0, 12, 0, 14, 0]),
        ChainLayout::Cut(vec![1; 40]),
        ChainLayout::Every(400),
        ChainLayout::Pieces(7),
    ];
    let tables = [
        DescriptorTable::Direct,
        DescriptorTable::Indirect,
        DescriptorTable::IndirectWhenMany,
    ];
    for table in tables {
        for layout in &layouts {
            let sender = NicOptions {
                guest_tx_layout: layout.clone(),
                guest_tx_table: table,
                guest_tx_ring_size: 512,
                ..options(Features::LINUX)
            };
            let receiver = NicOptions {
                guest_rx_layout: Some(layout.clone()),
                guest_rx_table: table,
                guest_rx_ring_size: 8192,
                ..options(Features::LINUX)
            };
            let mut receiver = attach(&daemon, "receiver", receiver)?;
            let mut sender = attach(&daemon, "sender", sender)?;
            deliver(
                &format!("{layout:?} {table:?}"),
                &frames(Features::LINUX),
                &mut sender,
                &mut receiver,
            )?;
        }
    }
    Ok(())
}

#[test]
fn a_frame_of_descriptors_of_one_byte_arrives() -> Outcome {
    let daemon = switch()?;
    let bytewise = NicOptions {
        guest_tx_layout: ChainLayout::Every(1),
        guest_tx_ring_size: 1024,
        ..options(Features::LINUX)
    };
    let mut sender = attach(&daemon, "sender", bytewise)?;
    let mut receiver = attach(&daemon, "receiver", options(Features::LINUX))?;
    let frames: Vec<_> = frames(Features::NONE)
        .into_iter()
        .filter(|frame| frame.bytes.len() < 1000)
        .collect();
    deliver("one byte each", &frames, &mut sender, &mut receiver)
}

#[test]
fn every_ring_size_carries_every_frame_around_its_end() -> Outcome {
    let daemon = switch()?;
    for size in [2, 4, 8, 64, 1024, 32768] {
        let options = NicOptions {
            guest_rx_ring_size: size,
            guest_tx_ring_size: size,
            guest_rx_buffer_bytes: Some(65_562 + 12),
            guest_rx_buffers: 64,
            ..options(Features::LINUX)
        };
        let mut receiver = attach(&daemon, "receiver", options.clone())?;
        let mut sender = attach(&daemon, "sender", options)?;
        for _ in 0..3 {
            deliver(
                &format!("rings of {size}"),
                &frames(Features::LINUX),
                &mut sender,
                &mut receiver,
            )?;
        }
    }
    Ok(())
}

#[test]
fn a_polling_guest_is_not_called_and_one_that_sleeps_is() -> Outcome {
    let daemon = switch()?;
    for event_idx in [Features::NONE, Features::EVENT_IDX] {
        let features = (Features::LINUX - Features::EVENT_IDX) | event_idx;
        let polling = NicOptions {
            waiting: Waiting::BusyPoll,
            ..options(features)
        };
        let mut receiver = attach(&daemon, "receiver", polling)?;
        let mut sender = attach(&daemon, "sender", options(features))?;
        // What the back-end says once when it gets the descriptor is no call for a buffer.
        receiver.pair(0).guest_rx.ring_mut().take_call();
        deliver(
            "polling",
            &frames(Features::LINUX),
            &mut sender,
            &mut receiver,
        )?;
        assert!(
            !receiver.pair(0).guest_rx.ring_mut().take_call(),
            "a polling guest was called ({features})"
        );
        drop(receiver);
        let mut receiver = attach(&daemon, "receiver", options(features))?;
        deliver(
            "sleeping",
            &frames(Features::LINUX),
            &mut sender,
            &mut receiver,
        )?;
    }
    Ok(())
}

#[test]
fn a_jumbo_frame_arrives_in_one_piece() -> Outcome {
    let ports = ["sender", "receiver"].map(|name| PortArgument {
        more: "mtu=9216",
        ..PortArgument::named(name)
    });
    let daemon = Daemon::start(&binary()?, &ports, &[])?;
    let mut receiver = attach(&daemon, "receiver", options(Features::LINUX))?;
    let mut sender = attach(&daemon, "sender", options(Features::LINUX))?;
    let frames: Vec<_> = [2000, 4096, 9000, 9014, 9216 + 14]
        .map(|bytes| {
            FrameBuilder::udp4(0)
                .frame_bytes(bytes)
                .macs(SENDER, RECEIVER)
                .build()
        })
        .to_vec();
    deliver("jumbo", &frames, &mut sender, &mut receiver)
}
