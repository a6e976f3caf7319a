//! Under overload, ports that share a worker are served equal bytes. No threads and no clock: guests fill their rings whenever a batch
//! was taken, so that every ring always has more than is served.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod rig;

use guest_sim::frame::FrameBuilder;
use guest_sim::{Frame, NicOptions, Refill};
use rig::Rig;
use ringswitch::datapath::schedule::Schedule;
use switch_core::PortId;

/// Within this share of the most served.
const EQUAL: f64 = 0.9;

fn mac(guest: usize) -> [u8; 6] {
    [2, 0, 0, 0, 0, guest as u8]
}

/// Senders of frames of these sizes to one receiver, and what that has room for.
struct Overload {
    rig: Rig,
    schedule: Schedule,
    frames: Vec<Frame>,
    /// Frames that a guest adds at a time.
    bursts: Vec<usize>,
    /// Bytes of each sender that arrived.
    arrived: Vec<u64>,
}

impl Overload {
    /// The receiver is the last guest.
    fn new(sizes: &[usize], bursts: &[usize], receiver: NicOptions) -> Self {
        let sender = NicOptions {
            guest_tx_ring_size: 256,
            guest_rx_ring_size: 64,
            ..NicOptions::bench()
        };
        let mut options = vec![sender; sizes.len()];
        options.push(receiver);
        let mut rig = Rig::new(&options);
        let to = sizes.len();
        let hello = FrameBuilder::udp4(22).macs(mac(to), [0xff; 6]).build();
        rig.guests[to].pair.guest_tx.queue(&hello).unwrap();
        rig.guests[to].pair.guest_tx.publish().unwrap();
        rig.run(to);
        let build = |(from, &size): (usize, &usize)| {
            let builder = if size > 9216 {
                FrameBuilder::tcp4(0).segment(1448)
            } else {
                FrameBuilder::udp4(0)
            };
            builder.frame_bytes(size).macs(mac(from), mac(to)).build()
        };
        let mut schedule = Schedule::default();
        for port in 0..to as u16 {
            schedule.add(PortId::new(port).unwrap(), port.into());
        }
        Self {
            frames: sizes.iter().enumerate().map(build).collect(),
            arrived: vec![0; to],
            bursts: bursts.to_vec(),
            rig,
            schedule,
        }
    }

    /// Adds bursts of frames while a whole one fits.
    fn fill(rig: &mut Rig, guest: usize, frame: &Frame, burst: usize) {
        let guest_tx = &mut rig.guests[guest].pair.guest_tx;
        guest_tx.reclaim().unwrap();
        while usize::from(guest_tx.ring().free_descriptors()) >= burst {
            for _ in 0..burst {
                guest_tx.queue(frame).unwrap();
            }
        }
        guest_tx.publish().unwrap();
    }

    /// Rounds in which `receive` decides after each batch what the receiver does.
    fn run(&mut self, rounds: u32, mut receive: impl FnMut(&mut Rig, &mut [u64])) {
        let Self {
            rig,
            schedule,
            frames,
            bursts,
            arrived,
        } = self;
        for (guest, frame) in frames.iter().enumerate() {
            Self::fill(rig, guest, frame, bursts[guest]);
        }
        for _ in 0..rounds {
            schedule.round(|token, limit_bytes| {
                let guest = token as usize;
                let served = rig.serve(guest, limit_bytes);
                Self::fill(rig, guest, &frames[guest], bursts[guest]);
                receive(rig, arrived);
                Some(served)
            });
        }
    }

    fn served(&self) -> Vec<u64> {
        let served = |guest| self.rig.counters(guest).guest_tx_bytes;
        (0..self.frames.len()).map(served).collect()
    }
}

fn assert_equal(bytes: &[u64]) {
    let (least, most) = (bytes.iter().min().unwrap(), bytes.iter().max().unwrap());
    assert!(*least as f64 >= EQUAL * *most as f64, "{bytes:?}");
}

/// Takes up to `most` frames, counts them by sender, and posts as many buffers.
fn take(rig: &mut Rig, arrived: &mut [u64], most: usize) {
    let receiver = rig.guests.last_mut().unwrap();
    for _ in 0..most {
        let Some(frame) = receiver.pair.guest_rx.try_receive().unwrap() else {
            break;
        };
        arrived[usize::from(frame.bytes[11])] += frame.bytes.len() as u64;
    }
    receiver.pair.guest_rx.refill().unwrap();
}

fn receiver() -> NicOptions {
    NicOptions {
        guest_rx_ring_size: 1024,
        guest_rx_buffers: 1024,
        refill: Refill::Manual,
        ..NicOptions::bench()
    }
}

#[test]
fn ports_are_served_equal_bytes_whatever_the_size_of_their_frames() {
    let sizes = [64, 128, 590, 1518, 9014, 64, 1518, 60_000];
    let mut overload = Overload::new(&sizes, &[64; 8], receiver());
    overload.run(20_000, |rig, arrived| take(rig, arrived, usize::MAX));
    assert_equal(&overload.served());
}

#[test]
fn ports_are_served_equal_bytes_whatever_bursts_they_send_in() {
    let mut overload = Overload::new(&[512; 4], &[1, 4, 32, 256], receiver());
    overload.run(2_000, |rig, arrived| take(rig, arrived, usize::MAX));
    assert_equal(&overload.served());
}

#[test]
fn a_receiver_that_cannot_keep_up_gets_equal_bytes_of_each_sender() {
    // It takes a few frames between two batches, however long these are.
    for sizes in [[1518; 4], [64, 64, 1518, 1518], [64, 256, 1024, 1518]] {
        let mut overload = Overload::new(&sizes, &[64; 4], receiver());
        overload.run(8_000, |rig, arrived| take(rig, arrived, 7));
        assert_equal(&overload.served());
        assert_equal(&overload.arrived);
    }
}

#[test]
fn a_slow_receiver_gets_equal_bytes_also_when_the_worker_keeps_up() {
    // As many frames of each sender come as of any other, and every ring is served to its end: who has long frames sends more
    // bytes, and finds room for its frames less often.
    for sizes in [&[64, 1518, 9014][..], &[256, 256, 60_000, 1518]] {
        let senders = sizes.len();
        let mut overload = Overload::new(sizes, &[64; 4], receiver());
        let Overload {
            rig,
            frames,
            arrived,
            ..
        } = &mut overload;
        for turn in 0..2_500 * senders {
            let guest = turn % senders;
            Overload::fill(rig, guest, &frames[guest], 64);
            while rig.run(guest) > 0 {}
            if guest == 0 {
                take(rig, arrived, 7);
            }
            // At first there is room for everybody.
            if turn == 500 * senders {
                arrived.fill(0);
            }
        }
        assert_equal(&overload.arrived);
    }
}

#[test]
fn a_receiver_in_step_with_the_rounds_gets_equal_bytes_of_each_sender() {
    // It always takes after the same number of batches: whoever comes first then finds all the buffers.
    let mut overload = Overload::new(&[1518; 4], &[64; 4], receiver());
    let mut batch = 0;
    overload.run(8_000, |rig, arrived| {
        batch += 1;
        if batch % 4 == 0 {
            take(rig, arrived, 20);
        }
    });
    assert_equal(&overload.arrived);
}
