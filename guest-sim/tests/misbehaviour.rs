//! Every guest and front-end that breaks the rules, against a running switch: it lives on, and two other guests never notice.

use std::time::Duration;

use guest_sim::bench::Daemon;
use guest_sim::bench::daemon::{PortArgument, binary};
use guest_sim::frame::{FrameBuilder, MacAddr, verify};
use guest_sim::misbehave::chains::Side;
use guest_sim::misbehave::{chains, flood_without_reading, kick_storm, messages};
use guest_sim::nic::session::connect;
use guest_sim::{
    ChainLayout, Error, Features, Frame, GuestMemory, GuestMemoryLayout, Nic, NicOptions, Patience,
    ProtocolFeatures, RawFrontend, Refill,
};

const WITHIN: Duration = Duration::from_secs(20);
const GOOD1: MacAddr = [0x52, 0x54, 0, 0, 0, 0x11];
const GOOD2: MacAddr = [0x52, 0x54, 0, 0, 0, 0x22];
const BAD: MacAddr = [0x52, 0x54, 0, 0, 0, 0x66];

type Outcome<T = ()> = Result<T, Error>;

/// A switch, two guests that behave, and a port for one that does not.
struct Stage {
    good1: Nic,
    good2: Nic,
    daemon: Daemon,
}

impl Stage {
    fn new() -> Outcome<Self> {
        let ports = ["good1", "good2", "bad"].map(PortArgument::named);
        let daemon = Daemon::start(&binary()?, &ports, &[])?;
        let good = |port| -> Outcome<Nic> {
            Nic::attach(
                &memory()?,
                NicOptions::cloud_hypervisor(),
                &daemon.socket(port),
            )
        };
        let (good1, good2) = (good("good1")?, good("good2")?);
        let mut stage = Self {
            good1,
            good2,
            daemon,
        };
        stage.check("before")?;
        Ok(stage)
    }

    fn bad(&self, features: Features) -> Outcome<Nic> {
        let options = NicOptions {
            features,
            refill: Refill::Manual,
            deadline: Duration::from_secs(5),
            ..NicOptions::default()
        };
        Nic::attach(&memory()?, options, &self.daemon.socket("bad"))
    }

    fn raw(&self) -> Outcome<RawFrontend> {
        Ok(RawFrontend::new(connect(
            &self.daemon.socket("bad"),
            WITHIN,
        )?))
    }

    /// Frames go both ways between the guests that behave, and nothing else reaches them but what the other one floods.
    fn check(&mut self, after: &str) -> Outcome {
        assert!(self.daemon.is_running()?, "the switch ended after: {after}");
        let frame = |from, to| FrameBuilder::tcp4(1000).macs(from, to).build();
        pass(
            after,
            &frame(GOOD1, GOOD2),
            &mut self.good1,
            &mut self.good2,
        )?;
        pass(
            after,
            &frame(GOOD2, GOOD1),
            &mut self.good2,
            &mut self.good1,
        )?;
        for nic in [&mut self.good1, &mut self.good2] {
            nic.pair(0).guest_tx.drain(WITHIN)?;
            nic.pair(0).guest_rx.verify_untouched()?;
        }
        Ok(())
    }
}

/// Sends a frame until it arrives: those that a guest floods the others with may leave no buffer for it at first, and come before it.
fn pass(after: &str, frame: &Frame, from: &mut Nic, to: &mut Nic) -> Outcome {
    let patience = Patience::of(WITHIN);
    while !patience.is_over() {
        from.send(frame)?;
        while let Some(arrived) = to.receive(Duration::from_millis(100))? {
            if arrived.bytes == frame.bytes {
                return Ok(());
            }
            if arrived.bytes.get(6..12) == frame.bytes.get(6..12) {
                assert_eq!(
                    verify::check(&arrived).err(),
                    None,
                    "a changed frame after: {after}"
                );
            }
        }
    }
    eprintln!("after: {after}");
    Err(patience.timeout("a frame between guests that behave"))
}

fn memory() -> Outcome<GuestMemory> {
    Ok(GuestMemory::new(&GuestMemoryLayout::one_region(32 << 20))?)
}

#[test]
fn no_chain_of_one_guest_disturbs_another() -> Outcome {
    let mut stage = Stage::new()?;
    for indirect in [Features::NONE, Features::INDIRECT_DESC] {
        for case in chains() {
            let features = (Features::LINUX - Features::INDIRECT_DESC) | indirect;
            let name = format!("{case:?} ({features})");
            let bad = stage.bad(features)?;
            let ring = bad.raw_ring(if case.side == Side::GuestRx { 0 } else { 1 })?;
            case.play(&ring, bad.memory())?;
            if case.side == Side::GuestRx {
                // Flooded frames are for the bad guest, too.
                let flood = FrameBuilder::udp4(1400).macs(GOOD1, BAD).build();
                stage.good1.send(&flood)?;
            }
            stage.check(&name)?;
            drop(bad);
        }
    }
    // The port of the guest that misbehaved serves the next one as if nothing had been.
    let mut next = stage.bad(Features::LINUX)?;
    next.refill()?;
    pass(
        "all chains",
        &FrameBuilder::udp4(100).macs(BAD, GOOD1).build(),
        &mut next,
        &mut stage.good1,
    )?;
    pass(
        "all chains",
        &FrameBuilder::udp4(100).macs(GOOD1, BAD).build(),
        &mut stage.good1,
        &mut next,
    )
}

#[test]
fn no_message_of_one_front_end_disturbs_another() -> Outcome {
    let mut stage = Stage::new()?;
    for case in messages() {
        let mut raw = stage.raw()?;
        // The switch may hang up before it has read everything.
        match case.send(&mut raw) {
            Ok(()) | Err(Error::Disconnected { .. }) => {}
            Err(error) => return Err(error),
        }
        drop(raw);
        stage.check(&case.name)?;
    }
    stage.bad(Features::LINUX).map(drop)
}

#[test]
fn no_message_to_a_running_device_disturbs_another() -> Outcome {
    let mut stage = Stage::new()?;
    for case in messages() {
        let mut bad = stage.bad(Features::LINUX)?;
        bad.refill()?;
        match case.send(bad.session().raw()) {
            Ok(()) | Err(Error::Disconnected { .. }) => {}
            Err(error) => return Err(error),
        }
        let flood = FrameBuilder::udp4(1400).macs(GOOD1, BAD).build();
        stage.good1.send(&flood)?;
        stage.check(&case.name)?;
    }
    Ok(())
}

#[test]
fn a_front_end_that_stops_reading_stops_nobody() -> Outcome {
    let mut stage = Stage::new()?;
    let mut raw = stage.raw()?;
    match flood_without_reading(&mut raw, 1_000_000, Duration::from_millis(300)) {
        Ok(_) | Err(Error::Disconnected { .. }) => {}
        Err(error) => return Err(error),
    }
    stage.check("a million requests without reading an answer")
}

#[test]
fn a_storm_of_kicks_stops_nobody() -> Outcome {
    let mut stage = Stage::new()?;
    let bad = stage.bad(Features::LINUX)?;
    let rings = [bad.raw_ring(0)?, bad.raw_ring(1)?];
    std::thread::scope(|scope| {
        let storm = scope.spawn(|| rings.iter().try_for_each(|ring| kick_storm(ring, 100_000)));
        while !storm.is_finished() {
            stage.check("a storm of kicks")?;
        }
        storm.join().unwrap_or(Ok(()))
    })
}

#[test]
fn memory_that_goes_away_takes_one_port_with_it() -> Outcome {
    for with_slots in [ProtocolFeatures::QEMU, ProtocolFeatures::from_bits(1 | 8)] {
        let mut stage = Stage::new()?;
        let memory = GuestMemory::new(&GuestMemoryLayout::separate_memfds(&[8 << 20, 8 << 20]))?;
        let options = NicOptions {
            buffer_regions: vec![1],
            protocol: with_slots,
            guest_tx_layout: ChainLayout::Single,
            canaries: guest_sim::Canaries::Off,
            ..NicOptions::default()
        };
        let mut bad = Nic::attach(&memory, options, &stage.daemon.socket("bad"))?;
        let frame = FrameBuilder::udp4(1000).macs(BAD, GOOD1).build();
        pass("before", &frame, &mut bad, &mut stage.good1)?;
        // Queued, but not shown to the switch before its bytes are gone.
        bad.pair(0).guest_tx.queue(&frame)?;
        memory.truncate_memfd(1, 0)?;
        bad.pair(0).guest_tx.publish()?;
        stage
            .good1
            .send(&FrameBuilder::udp4(1000).macs(GOOD1, BAD).build())?;
        stage.check("a memfd cut short")?;
        drop(bad);
        stage.bad(Features::LINUX).map(drop)?;
        stage.check("a memfd cut short, and the next guest")?;
    }
    Ok(())
}

#[test]
fn every_frame_of_a_guest_that_lies_about_offloads_leaves_checked_or_not_at_all() -> Outcome {
    let mut stage = Stage::new()?;
    let mut bad = stage.bad(Features::LINUX)?;
    for gso_size in [1, 7, 60, 536, 1448, 65_000] {
        let frame = FrameBuilder::tcp4(30_000)
            .segment(gso_size)
            .macs(BAD, GOOD1)
            .build();
        bad.send(&frame)?;
    }
    bad.pair(0).guest_tx.drain(WITHIN)?;
    while let Some(arrived) = stage.good1.receive(Duration::from_millis(200))? {
        assert!(verify::check(&arrived).is_ok(), "{arrived:?}");
    }
    stage.check("odd segment sizes")
}
