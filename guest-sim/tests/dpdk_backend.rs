//! guest-sim against DPDK's `net_vhost`, so that this driver's reading of packed rings and Ringswitch's do not share one misunderstanding:
//! `dpdk-testpmd` sends every frame back on the port it came from.
//!
//! DPDK is no dependency of this repository, so these tests are run by hand, where `dpdk-testpmd` is installed (Debian: `dpdk-dev`):
//! `cargo nextest run -p guest-sim --test dpdk_backend --run-ignored only`.

// What a test does outside its own function may end it just as well.
#![allow(clippy::unwrap_used, clippy::panic)]

mod exchange;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use exchange::{WITHIN, exchange};
use guest_sim::bench::Bounce;
use guest_sim::frame::{FrameBuilder, verify};
use guest_sim::{
    ChainLayout, DescriptorTable, Features, GuestMemory, GuestMemoryLayout, Nic, NicOptions,
    Patience, Refill, Waiting,
};
use vmm_sys_util::tempdir::TempDir;

/// What `net_vhost` offers without being told to offload. Never without MRG_RXBUF: then it leaves `num_buffers` as it finds it, which
/// VIRTIO 1.3 §5.1.6.4.1 forbids and this driver reports.
const PACKED: Features = Features::from_bits(
    Features::VERSION_1.bits() | Features::RING_PACKED.bits() | Features::MRG_RXBUF.bits(),
);

/// A running testpmd with one port that sends back what it receives.
struct TestPmd {
    folder: TempDir,
    process: Child,
}

impl TestPmd {
    fn start(queue_pairs: u16) -> Self {
        let folder = TempDir::new().unwrap();
        let socket = socket_in(folder.as_path());
        let queues = queue_pairs.to_string();
        let process = Command::new("dpdk-testpmd")
            // Memory of its own, and nothing left behind in a file system.
            .args(["--no-huge", "-m", "512", "--no-pci", "--no-shconf"])
            .args(["--no-telemetry", "-l", "0,1"])
            .arg(format!(
                "--vdev=net_vhost0,iface={},queues={queues}",
                socket.display()
            ))
            .args(["--", "--forward-mode=io", "--port-topology=loop"])
            .args(["--total-num-mbufs=16384", "--no-mlockall"])
            .args([format!("--rxq={queues}"), format!("--txq={queues}")])
            .env("XDG_RUNTIME_DIR", folder.as_path())
            // It forwards until its standard input ends.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("dpdk-testpmd: {error}"));
        Self { folder, process }
    }

    fn socket(&self) -> PathBuf {
        socket_in(self.folder.as_path())
    }
}

impl Drop for TestPmd {
    fn drop(&mut self) {
        // Either fails only if it has ended by itself.
        let _killed = self.process.kill();
        let _ended = self.process.wait();
    }
}

fn socket_in(folder: &Path) -> PathBuf {
    folder.join("vhost.sock")
}

fn memory() -> GuestMemory {
    GuestMemory::new(&GuestMemoryLayout::around_pci_hole(64 << 20, 64 << 20)).unwrap()
}

fn options(features: Features) -> NicOptions {
    NicOptions {
        features,
        ..NicOptions::default()
    }
}

fn run(name: &str, options: NicOptions) {
    let device = TestPmd::start(options.queue_pairs);
    let mut nic = Nic::attach(&memory(), options, &device.socket())
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    for pair in 0..nic.pairs().len() {
        exchange(name, &mut nic, pair);
    }
}

#[test]
#[ignore = "needs dpdk-testpmd"]
fn every_combination_of_ring_features_carries_frames() {
    let rings = [
        Features::INDIRECT_DESC,
        Features::EVENT_IDX,
        Features::IN_ORDER,
    ];
    for set in 0..1 << rings.len() {
        let mut features = PACKED;
        for (bit, feature) in rings.iter().enumerate() {
            if set >> bit & 1 == 1 {
                features = features | *feature;
            }
        }
        run(&features.to_string(), options(features));
    }
}

#[test]
#[ignore = "needs dpdk-testpmd"]
fn every_descriptor_layout_carries_frames() {
    let layouts = [
        ChainLayout::HeaderAlone,
        ChainLayout::Single,
        ChainLayout::Cut(vec![20, 1, 1]),
        ChainLayout::Every(301),
        ChainLayout::Pieces(5),
    ];
    for layout in layouts {
        for table in [DescriptorTable::Direct, DescriptorTable::IndirectWhenMany] {
            let options = NicOptions {
                guest_tx_layout: layout.clone(),
                guest_tx_table: table,
                guest_rx_layout: Some(layout.clone()),
                guest_rx_table: table,
                ..options(PACKED | Features::INDIRECT_DESC)
            };
            run(&format!("{layout:?} {table:?}"), options);
        }
    }
}

#[test]
#[ignore = "needs dpdk-testpmd"]
fn every_ring_size_goes_round_more_than_once() {
    for size in [32, 33, 100, 255, 256, 1000, 32768] {
        let device = TestPmd::start(1);
        let options = NicOptions {
            guest_rx_ring_size: size,
            guest_tx_ring_size: size,
            waiting: Waiting::BusyPoll,
            ..options(PACKED | Features::EVENT_IDX)
        };
        let mut nic = Nic::attach(&memory(), options, &device.socket()).unwrap();
        let rounds = 5 * usize::from(size).min(1000) / 16;
        for round in 0..rounds as u16 {
            let frames: Vec<_> = (0..16)
                .map(|n| {
                    FrameBuilder::udp4(usize::from(n) * 100)
                        .ports(1000 + round, 9 + n)
                        .build()
                })
                .collect();
            let pair = nic.pair(0);
            pair.guest_tx.send_all(&frames, WITHIN).unwrap();
            let arrived = pair.guest_rx.receive_count(frames.len(), WITHIN).unwrap();
            for (sent, arrived) in frames.iter().zip(&arrived) {
                verify::same(sent, arrived)
                    .unwrap_or_else(|error| panic!("{size} entries, round {round}: {error}"));
            }
        }
        nic.pair(0).guest_tx.drain(WITHIN).unwrap();
        nic.pair(0).guest_rx.verify_untouched().unwrap();
    }
}

#[test]
#[ignore = "needs dpdk-testpmd"]
fn frames_spread_over_merged_buffers() {
    let device = TestPmd::start(1);
    let options = NicOptions {
        guest_rx_buffer_bytes: Some(300),
        ..options(PACKED)
    };
    let mut nic = Nic::attach(&memory(), options, &device.socket()).unwrap();
    for bytes in [60, 287, 288, 289, 1514, 4000] {
        let frame = FrameBuilder::udp4(0).frame_bytes(bytes).build();
        nic.send(&frame).unwrap();
        let arrived = nic.receive(WITHIN).unwrap().unwrap();
        assert_eq!(
            usize::from(arrived.header.num_buffers),
            (bytes + 12).div_ceil(300)
        );
        verify::same(&frame, &arrived).unwrap();
    }
}

#[test]
#[ignore = "needs dpdk-testpmd"]
fn every_queue_pair_carries_its_own_frames() {
    run(
        "2 pairs",
        NicOptions {
            queue_pairs: 2,
            ..options(PACKED | Features::EVENT_IDX)
        },
    );
}

#[test]
#[ignore = "needs dpdk-testpmd"]
fn a_paused_vm_and_a_rebooted_one_go_on_in_the_right_turn() {
    let device = TestPmd::start(1);
    let options = NicOptions {
        guest_rx_ring_size: 100,
        guest_tx_ring_size: 33,
        ..options(PACKED)
    };
    let mut nic = Nic::attach(&memory(), options, &device.socket()).unwrap();
    for _ in 0..5 {
        exchange("running", &mut nic, 0);
        nic.pause().unwrap();
        let bases = [0, 1].map(|ring| nic.ring(ring).unwrap().used_base().unwrap());
        // It answers the low half only. Its guest-rx ring may have read on, and then goes back.
        assert_eq!(nic.stopped_at()[1], bases[1] & 0xffff);
        nic.resume().unwrap();
    }
    exchange("resumed", &mut nic, 0);
    nic.reset().unwrap();
    nic.start().unwrap();
    exchange("rebooted", &mut nic, 0);
}

#[test]
#[ignore = "needs dpdk-testpmd"]
fn a_bouncing_guest_keeps_its_frames_going() {
    for (in_order, bytes) in [(false, 64), (true, 64), (false, 1514)] {
        let device = TestPmd::start(1);
        let features = if in_order {
            PACKED | Features::IN_ORDER
        } else {
            PACKED
        };
        let options = NicOptions {
            features,
            refill: Refill::Manual,
            ..NicOptions::bench()
        };
        let memory = memory();
        let mut nic = Nic::attach(&memory, options, &device.socket()).unwrap();
        let mut bounce = Bounce::new(&memory, &mut nic, 2048, bytes, 64).unwrap();
        let frame = FrameBuilder::udp4(0).frame_bytes(bytes).build();
        bounce.inject(&mut nic, &frame, 64).unwrap();
        let patience = Patience::of(WITHIN);
        while bounce.counts().frames < 100_000 {
            bounce.turn(&mut nic).unwrap();
            assert!(!patience.is_over(), "{bytes}: {:?}", bounce.counts());
        }
        assert_eq!(bounce.counts().bytes, bounce.counts().frames * bytes as u64);
    }
}
