//! A running switch, guests on it, and frames between them that are verified where they arrive.

use std::fmt::Debug;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use guest_sim::bench::Daemon;
use guest_sim::bench::daemon::PortArgument;
use guest_sim::frame::{FrameBuilder, GsoType, MacAddr, Parsed, verify};
use guest_sim::nic::session::connect;
use guest_sim::{
    Features, Frame, GuestMemory, GuestMemoryLayout, Nic, NicOptions, Patience, Waiting,
};
use serde_json::Value;
use vmm_sys_util::tempdir::TempDir;

/// Longest wait for anything: far more than it takes, so that a slow machine does not matter.
pub const WITHIN: Duration = Duration::from_secs(20);
/// Ports without anything special, by name.
pub const VM: [&str; 8] = ["vm1", "vm2", "vm3", "vm4", "vm5", "vm6", "vm7", "vm8"];

/// The MAC address of the guest on port `vm<number>`.
pub const fn mac(number: u8) -> MacAddr {
    [0x52, 0x54, 0, 0, 0, number]
}

/// Whether modern guests have packed rings.
pub const PACKED: bool = !crate::FORMAT.is_empty();

/// A running `ringswitch run`.
pub struct Switch {
    pub daemon: Daemon,
    /// In memory, which the folder of its sockets need not be.
    #[allow(dead_code, reason = "split rings leave nothing there")]
    pub ring_state: TempDir,
}

impl Switch {
    pub fn new(ports: &[PortArgument<'_>], arguments: &[&str]) -> Self {
        let binary = Path::new(env!("CARGO_BIN_EXE_ringswitch"));
        let ring_state = TempDir::new_with_prefix("/dev/shm/ringswitch-test-").unwrap();
        let wanted: Vec<_> = ports.iter().map(|port| in_format(port.more)).collect();
        let ports: Vec<_> = ports
            .iter()
            .zip(&wanted)
            .map(|(port, more)| PortArgument { more, ..*port })
            .collect();
        let folder = ring_state.as_path().to_str().unwrap();
        // Unless the test has a folder of its own.
        let arguments = if arguments.contains(&"--ring-state") {
            arguments.to_vec()
        } else {
            [&["--ring-state", folder], arguments].concat()
        };
        let switch = Self {
            daemon: Daemon::start(binary, &ports, &arguments).unwrap(),
            ring_state,
        };
        switch.await_ready();
        switch
    }

    /// One worker, and these ports with one queue pair each.
    pub fn of(names: &[&str]) -> Self {
        let ports: Vec<_> = names.iter().map(|name| PortArgument::named(name)).collect();
        Self::new(&ports, &[])
    }

    /// Ports with `key=value` pairs of their own.
    pub fn with(ports: &[(&str, &str)]) -> Self {
        let ports: Vec<_> = ports
            .iter()
            .map(|(name, more)| PortArgument {
                more,
                ..PortArgument::named(name)
            })
            .collect();
        Self::new(&ports, &[])
    }

    /// It answers on its admin socket, which is the last that it opens.
    pub fn await_ready(&self) {
        until("the daemon to be ready", || {
            self.daemon.command(&["stats", "--json"]).ok()
        });
    }

    /// A guest on a port, with memory of its own; its rings run when this returns.
    pub fn guest(&self, port: &str, options: NicOptions) -> Nic {
        self.guest_in(&memory(), port, options)
    }

    pub fn guest_in(&self, memory: &GuestMemory, port: &str, options: NicOptions) -> Nic {
        let mut nic = self
            .try_guest_in(memory, port, options)
            .unwrap_or_else(|error| panic!("{port}: {error}"));
        settle(&mut nic);
        nic
    }

    pub fn try_guest_in(
        &self,
        memory: &GuestMemory,
        port: &str,
        options: NicOptions,
    ) -> Result<Nic, guest_sim::Error> {
        Nic::attach(memory, formatted(options), &self.daemon.socket(port))
    }

    /// A guest that is known to the switch but has not started its rings.
    pub fn introduced(&self, port: &str, options: NicOptions) -> Nic {
        let stream = connect(&self.daemon.socket(port), WITHIN).unwrap();
        introduce(options, stream)
    }

    pub fn command(&self, arguments: &[&str]) -> String {
        self.daemon
            .command(arguments)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.command(arguments)).unwrap()
    }

    /// `ringswitch upgrade`: another process serves everything when this returns. What the command said.
    pub fn upgrade(&mut self, arguments: &[&str]) -> Value {
        let report = self.json(&[&["upgrade", "--json"], arguments].concat());
        let pid = report["pid"].as_u64().unwrap();
        self.daemon.succeed_by(u32::try_from(pid).unwrap()).unwrap();
        report
    }

    /// `port show`.
    pub fn show(&self, port: &str) -> Value {
        self.json(&["port", "show", port, "--json"])
    }

    /// One port's counters.
    pub fn counters(&self, port: &str) -> Value {
        let stats = self.json(&["stats", "--json"]);
        let ports = stats["ports"].as_array().unwrap();
        let found = ports.iter().find(|entry| entry["name"] == port);
        found
            .unwrap_or_else(|| panic!("{port} is not in {stats}"))
            .clone()
    }

    /// How many frames were dropped at a port for a reason.
    pub fn drops(&self, port: &str, reason: &str) -> u64 {
        let counters = self.counters(port);
        let drops = counters["drops"].as_array().unwrap();
        let found = drops.iter().find(|entry| entry["reason"] == reason);
        found.map_or(0, |entry| entry["frames"].as_u64().unwrap())
    }

    /// Every drop at a port: reason and number.
    pub fn all_drops(&self, port: &str) -> Vec<(String, u64)> {
        let counters = self.counters(port);
        let drops = counters["drops"].as_array().unwrap().iter();
        drops
            .map(|entry| {
                let reason = entry["reason"].as_str().unwrap().to_owned();
                (reason, entry["frames"].as_u64().unwrap())
            })
            .collect()
    }

    /// The port behind which a MAC address was learned.
    pub fn learned(&self, address: MacAddr) -> Option<String> {
        let text = address.map(|byte| format!("{byte:02x}")).join(":");
        let fdb = self.json(&["fdb", "--json"]);
        let entries = fdb["entries"].as_array().unwrap();
        let found = entries.iter().find(|entry| entry["mac"] == text.as_str())?;
        Some(found["port"].as_str().unwrap().to_owned())
    }

    /// Ends it in an orderly way: it must have lived until now.
    pub fn finish(mut self) {
        assert!(self.daemon.is_running().unwrap(), "the daemon has died");
        let status = self.daemon.terminate(WITHIN).unwrap();
        assert_eq!(status.code(), Some(0), "{status}");
    }
}

/// A guest with memory of its own that is known to the switch but has not started its rings.
pub fn introduce(options: NicOptions, stream: UnixStream) -> Nic {
    introduce_in(&memory(), options, stream)
}

/// The same with this memory.
pub fn introduce_in(memory: &GuestMemory, options: NicOptions, stream: UnixStream) -> Nic {
    Nic::introduce(memory, formatted(options), stream).unwrap()
}

/// Modern guests with the rings that these tests are about.
fn formatted(options: NicOptions) -> NicOptions {
    if options.features.contains(Features::VERSION_1) {
        NicOptions {
            features: options.features | crate::FORMAT,
            ..options
        }
    } else {
        options
    }
}

/// The options of a port that such guests can be on.
pub fn in_format(more: &str) -> String {
    match (PACKED, more) {
        (false, more) => more.to_owned(),
        (true, "") => "packed=true".to_owned(),
        (true, more) => format!("{more},packed=true"),
    }
}

/// Memory of a small VM, in two regions of one memfd.
pub fn memory() -> GuestMemory {
    GuestMemory::new(&GuestMemoryLayout::around_pci_hole(64 << 20, 64 << 20)).unwrap()
}

/// Everything sent so far has been acted upon: the session answers in order.
pub fn settle(nic: &mut Nic) {
    nic.session().get_features().unwrap();
}

/// Asks again and again until there is an answer.
pub fn until<T>(what: &'static str, mut ask: impl FnMut() -> Option<T>) -> T {
    let patience = Patience::of(WITHIN);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(!patience.is_over(), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The next frame on pair 0, which must come.
pub fn arrival(nic: &mut Nic) -> Frame {
    nic.receive(WITHIN)
        .unwrap_or_else(|fault| panic!("{fault}"))
        .expect("a frame to arrive")
}

/// Sends one frame and verifies it where it arrives: as it was sent, or in as many pieces as a receiver without that offload needs.
pub fn one_way(frame: &Frame, from: &mut Nic, to: &mut Nic) {
    from.send(frame).unwrap_or_else(|fault| panic!("{fault}"));
    verify_arrival(frame, to);
}

/// Verifies what arrives of one frame on pair 0.
pub fn verify_arrival(frame: &Frame, to: &mut Nic) {
    let pieces = pieces(frame, to.acked());
    let arrived: Vec<Frame> = (0..pieces).map(|_| arrival(to)).collect();
    verify_pieces(frame, &arrived);
}

/// Verifies one frame, whole or in pieces.
pub fn verify_pieces(frame: &Frame, arrived: &[Frame]) {
    let outcome = match arrived {
        [whole] if whole.header.gso_type == frame.header.gso_type => verify::same(frame, whole),
        pieces => verify::segments(frame, pieces),
    };
    outcome.unwrap_or_else(|error| {
        panic!(
            "{error}: of {} bytes with {:?}",
            frame.bytes.len(),
            frame.header
        )
    });
}

/// How many frames a receiver with these features gets of one.
pub fn pieces(frame: &Frame, acked: Features) -> usize {
    let taken = match frame.header.gso().unwrap() {
        GsoType::None => return 1,
        GsoType::Tcp4 => Features::GUEST_TSO4,
        GsoType::Tcp6 => Features::GUEST_TSO6,
        GsoType::Udp => Features::GUEST_UFO,
    };
    if acked.contains(taken) && (!frame.header.has_ecn() || acked.contains(Features::GUEST_ECN)) {
        return 1;
    }
    let parsed = Parsed::new(&frame.bytes).unwrap();
    let step = usize::from(frame.header.gso_size);
    if frame.header.gso() == Some(GsoType::Udp) {
        // Fragments carry the UDP header as payload, in multiples of 8 bytes (RFC 791 §3.1).
        (parsed.end - parsed.transport_at).div_ceil(step / 8 * 8)
    } else {
        (parsed.end - parsed.payload_at).div_ceil(step)
    }
}

/// Nothing more has arrived, nothing was written where it must not, and every transmit buffer came back.
pub fn verify_quiet(nics: &mut [&mut Nic]) {
    for nic in &mut *nics {
        for pair in nic.pairs() {
            pair.guest_tx.drain(WITHIN).unwrap();
        }
    }
    for nic in nics {
        for pair in nic.pairs() {
            let more = pair.guest_rx.try_receive().unwrap();
            assert_eq!(more, None, "a frame that nobody sent");
            pair.guest_rx.verify_untouched().unwrap();
        }
    }
}

/// A frame that can be told from others by its number.
pub fn numbered(number: u16, from: u8, to: u8) -> Frame {
    FrameBuilder::udp4(64 + usize::from(number) % 900)
        .macs(mac(from), mac(to))
        .ports(number, 9)
        .build()
}

/// Frames of several sizes and kinds.
pub fn assortment(from: u8, to: u8, round: u16) -> Vec<Frame> {
    let builders = [
        FrameBuilder::udp4(18),
        FrameBuilder::udp6(1400).checksum_offload(),
        FrameBuilder::tcp4(1460),
        FrameBuilder::tcp4(900).checksum_offload(),
        FrameBuilder::tcp4(60_000).segment(1448),
        FrameBuilder::tcp6(20_000).segment(1428),
    ];
    builders
        .into_iter()
        .map(|builder| {
            builder
                .macs(mac(from), mac(to))
                .ports(1000 + round, u16::from(from))
                .build()
        })
        .collect()
}

/// Frames of all kinds both ways, each verified.
pub fn exchange(one: (u8, &mut Nic), other: (u8, &mut Nic)) {
    let ((number, one), (other_number, other)) = (one, other);
    for round in 0..2 {
        for frame in assortment(number, other_number, round) {
            one_way(&frame, one, other);
        }
        for frame in assortment(other_number, number, round) {
            one_way(&frame, other, one);
        }
    }
    verify_quiet(&mut [one, other]);
}

/// A driver that looks again and again instead of sleeping costs the machine's few cores; these sleep.
pub fn guest_options() -> NicOptions {
    NicOptions {
        waiting: Waiting::Calls,
        deadline: WITHIN,
        ..NicOptions::default()
    }
}

/// Two ports whose guests exchange verified traffic while something else goes on: they must lose nothing.
pub struct Bystanders {
    one: Nic,
    other: Nic,
    numbers: (u8, u8),
}

impl Bystanders {
    /// Guests on ports `vm7` and `vm8`.
    pub fn on(switch: &Switch) -> Self {
        Self {
            one: switch.guest("vm7", guest_options()),
            other: switch.guest("vm8", guest_options()),
            numbers: (7, 8),
        }
    }

    /// Runs `act` while they exchange frames; afterwards, too, they must still do so.
    pub fn during<T>(&mut self, act: impl FnOnce() -> T) -> T {
        let done = AtomicBool::new(false);
        // Each learned before the traffic: none of it is flooded to whoever misbehaves.
        self.both_ways(0);
        let outcome = std::thread::scope(|scope| {
            let traffic = scope.spawn(|| {
                let mut round = 1u16;
                while !done.load(Ordering::Acquire) {
                    self.both_ways(round);
                    round = round.wrapping_add(1);
                }
            });
            let finished = Finished(&done);
            let outcome = act();
            drop(finished);
            if let Err(panic) = traffic.join() {
                std::panic::resume_unwind(panic);
            }
            outcome
        });
        self.both_ways(0);
        outcome
    }

    fn both_ways(&mut self, round: u16) {
        let (one, other) = self.numbers;
        stream(round, (one, &mut self.one), (other, &mut self.other));
        stream(round, (other, &mut self.other), (one, &mut self.one));
    }
}

/// Ends the traffic also when what it accompanies panics.
pub struct Finished<'a>(pub &'a AtomicBool);

impl Drop for Finished<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// A burst that fits any ring, one way, in order. What others flood is passed over.
fn stream(round: u16, from: (u8, &mut Nic), to: (u8, &mut Nic)) {
    let mut frames: Vec<Frame> = (0..24)
        .map(|number| numbered(round.wrapping_mul(32).wrapping_add(number), from.0, to.0))
        .collect();
    frames.push(
        FrameBuilder::tcp4(30_000)
            .macs(mac(from.0), mac(to.0))
            .segment(1448)
            .build(),
    );
    from.1.pair(0).guest_tx.send_all(&frames, WITHIN).unwrap();
    for frame in &frames {
        let arrived = loop {
            let arrived = arrival(to.1);
            if arrived.bytes[6..12] == mac(from.0) {
                break arrived;
            }
        };
        verify::same(frame, &arrived).unwrap_or_else(|error| panic!("a bystander: {error}"));
    }
}

/// What a value is, for a test that names its case.
pub fn named<T: Debug, R>(case: &T, act: impl FnOnce() -> R) -> R {
    struct Name<'a, T: Debug>(&'a T);
    impl<T: Debug> Drop for Name<'_, T> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("the case was: {:?}", self.0);
            }
        }
    }
    let _name = Name(case);
    act()
}
