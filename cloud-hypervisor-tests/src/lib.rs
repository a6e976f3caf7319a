//! Cloud Hypervisor as the front-end of a running switch.
//!
//! The tests are in `tests/`: `replay` sends that program's messages by guest-sim, always; `real` runs the program itself where there is
//! one. This library is what they share: a switch with two guests on it, and frames between them that are checked on both sides.

use std::time::Duration;

use guest_sim::bench::Daemon;
use guest_sim::bench::daemon::{PortArgument, binary};
use guest_sim::frame::{FrameBuilder, FrameError, MacAddr, verify};
use guest_sim::{Error, Frame, GuestMemory, GuestMemoryLayout, Nic, NicOptions, QueuePair};

/// How long anything may take before the test gives up. Far more than it ever takes.
pub const WITHIN: Duration = Duration::from_secs(20);
/// MAC address of the guest on port `vm1`.
pub const VM1: MacAddr = [0x52, 0x54, 0, 0, 0, 0x11];
/// MAC address of the guest on port `vm2`.
pub const VM2: MacAddr = [0x52, 0x54, 0, 0, 0, 0x22];

/// Why a step of a scenario failed.
#[derive(Debug)]
pub struct Failure(pub String);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

impl From<FrameError> for Failure {
    fn from(error: FrameError) -> Self {
        Self(format!("a frame arrived wrong: {error}"))
    }
}

/// What a test or step answers.
pub type Outcome<T = ()> = Result<T, Failure>;

/// A switch with ports `vm1` and `vm2`, each with as many queue pairs.
///
/// # Errors
/// When the switch cannot be started.
pub fn switch(queue_pairs: u16) -> Outcome<Daemon> {
    let port = |name| PortArgument {
        queue_pairs,
        ..PortArgument::named(name)
    };
    Ok(Daemon::start(&binary()?, &[port("vm1"), port("vm2")], &[])?)
}

/// Memory of a small VM.
///
/// # Errors
/// When the system has none.
pub fn memory() -> Outcome<GuestMemory> {
    GuestMemory::new(&GuestMemoryLayout::around_pci_hole(32 << 20, 32 << 20))
        .map_err(|error| Error::from(error).into())
}

/// A guest on a port, with memory of its own.
///
/// # Errors
/// When the port does not come up.
pub fn guest(daemon: &Daemon, port: &str, options: NicOptions) -> Outcome<Nic> {
    Ok(Nic::attach(&memory()?, options, &daemon.socket(port))?)
}

/// A switch with two Cloud Hypervisor guests on it.
///
/// # Errors
/// When it does not come up.
pub fn two_guests() -> Outcome<(Nic, Nic, Daemon)> {
    let daemon = switch(1)?;
    let vm1 = guest(&daemon, "vm1", NicOptions::cloud_hypervisor())?;
    let vm2 = guest(&daemon, "vm2", NicOptions::cloud_hypervisor())?;
    // Dropped in this order: guests hang up before the switch ends.
    Ok((vm1, vm2, daemon))
}

/// Sends frames of several sizes and kinds both ways and checks each where it arrives.
///
/// # Errors
/// When one does not arrive, or arrives changed.
pub fn exchange(vm1: &mut Nic, vm2: &mut Nic) -> Outcome {
    for round in 0..3 {
        for frame in frames(VM1, VM2, round) {
            one_way(&frame, vm1, vm2)?;
        }
        for frame in frames(VM2, VM1, round) {
            one_way(&frame, vm2, vm1)?;
        }
    }
    for nic in [vm1, vm2] {
        nic.pair(0).guest_tx.drain(WITHIN)?;
        nic.pair(0).guest_rx.verify_untouched()?;
    }
    Ok(())
}

/// Sends one frame and checks it where it arrives, on whichever pair that is.
///
/// # Errors
/// When it does not arrive, or arrives changed.
pub fn one_way(frame: &Frame, from: &mut Nic, to: &mut Nic) -> Outcome {
    from.send(frame)?;
    let arrived = arrival(to)?;
    verify::same(frame, &arrived)?;
    Ok(())
}

/// Sends frames one way on pair 0 and checks each where it arrives, never with more on their way than any ring has buffers for.
///
/// # Errors
/// When one does not arrive, or arrives changed.
pub fn stream(frames: &[Frame], from: &mut QueuePair, to: &mut QueuePair) -> Outcome {
    for some in frames.chunks(32) {
        from.guest_tx.send_all(some, WITHIN)?;
        for (sent, arrived) in some
            .iter()
            .zip(to.guest_rx.receive_count(some.len(), WITHIN)?)
        {
            verify::same(sent, &arrived)?;
        }
    }
    Ok(())
}

/// The next frame on any pair.
///
/// # Errors
/// When none comes.
pub fn arrival(nic: &mut Nic) -> Outcome<Frame> {
    let nothing = || Failure("no frame arrived".into());
    if let [only] = nic.pairs() {
        return only.guest_rx.receive(WITHIN)?.ok_or_else(nothing);
    }
    let patience = guest_sim::Patience::of(WITHIN);
    while !patience.is_over() {
        for pair in nic.pairs() {
            if let Some(frame) = pair.guest_rx.try_receive()? {
                return Ok(frame);
            }
        }
        std::thread::yield_now();
    }
    Err(nothing())
}

/// Frames from one guest to the other: small, full-sized, with offloads; different in every round.
pub fn frames(source: MacAddr, destination: MacAddr, round: u16) -> Vec<Frame> {
    let ports = (1000 + round, u16::from(source[5]));
    let builders = [
        FrameBuilder::udp4(18),
        FrameBuilder::udp6(1400),
        FrameBuilder::tcp4(1460),
        FrameBuilder::tcp4(900).checksum_offload(),
        FrameBuilder::tcp4(60_000).segment(1448),
        FrameBuilder::tcp6(20_000).segment(1428),
    ];
    builders
        .into_iter()
        .map(|builder| {
            builder
                .macs(source, destination)
                .ports(ports.0, ports.1)
                .build()
        })
        .collect()
}
