//! Two guests and what is between them, from boot to end, and their turn.
//!
//! Called on the main thread. Keeps true: guests of all sides are started with the same command line but for what their NIC hangs on; a switch
//! whose turn it is not is frozen, its guests idle.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use guest_agent::protocol::{Reply, Request};
use vm_lab::agent::Agent;
use vm_lab::artefacts::Artefacts;
use vm_lab::guest::{Backend, Guest, GuestSpec, QemuEnd, VIRTIO_NIC};
use vm_lab::run_dir::RunDir;
use vm_lab::{process as lab_process, traffic};

use super::iperf::{Case, PID_FILE, PROGRAM};
use super::outcome::Turn;
use super::{Side, usage};
use crate::case::{Frames, Player, Rig, Ring};
use crate::error::{Doing, Error, Result};
use crate::machine::Machine;
use crate::network::Network;
use crate::process::{SOON, eventually, run};
use crate::switch::{self, Switch};

/// Two ports, and the offloads that the kernel's TAPs give guests, too.
const RIG: Rig = Rig {
    ring: Ring::Split,
    frames: Frames::Tso,
    ports: 2,
    idle: 0,
    // Of no concern to switches.
    player: Player::Testpmd,
    network: Network::Plain,
    reference: None,
};
/// Feature bits that every guest has to have, whatever its NIC hangs on (virtio 1.2, 5.1.3).
const OFFLOADS: [(usize, &str); 5] = [
    (0, "VIRTIO_NET_F_CSUM"),
    (1, "VIRTIO_NET_F_GUEST_CSUM"),
    (7, "VIRTIO_NET_F_GUEST_TSO4"),
    (11, "VIRTIO_NET_F_HOST_TSO4"),
    (15, "VIRTIO_NET_F_MRG_RXBUF"),
];
const INTERFACES: [&str; 2] = ["vm0", "vm1"];
/// What a turn may take beyond its seconds: emulated guests are slow to start programs.
const SLACK: Duration = Duration::from_secs(40);

/// Two running guests that reach each other.
pub struct Pair {
    side: Side,
    // Dropped first: they hang up.
    guests: [Guest; 2],
    middle: Middle,
}

enum Middle {
    Switch(Box<dyn Switch>),
    /// The process that holds the bridge's network namespace.
    Bridge {
        _holder: lab_process::Process,
    },
}

impl Pair {
    /// Boots two guests on one side, and leaves its switch frozen.
    ///
    /// # Errors
    /// Something does not come up: what it said. A switch that cannot be had here is [`Error::NotOffered`].
    pub fn start(
        side: Side,
        machine: &Machine,
        artefacts: &Artefacts,
        folder: &RunDir,
    ) -> Result<Self> {
        let mut launcher = vec![
            "taskset".to_owned(),
            "--cpu-list".into(),
            machine.guest_core.to_string(),
        ];
        let (middle, backends) = match side {
            Side::Ringswitch => with_switch(switch::Side::Ringswitch, machine, folder)?,
            Side::Ovs => with_switch(switch::Side::Ovs, machine, folder)?,
            Side::Bridge => {
                let (holder, namespace) = make_bridge(folder)?;
                launcher.splice(0..0, ["nsenter".to_owned(), namespace]);
                let backends = INTERFACES.map(|name| Backend::Tap(name.to_owned()));
                (Middle::Bridge { _holder: holder }, backends)
            }
        };
        let [one, two] = backends;
        let mut guests = [
            start_guest(side, artefacts, folder, (1, one), &launcher)?,
            start_guest(side, artefacts, folder, (2, two), &launcher)?,
        ];
        for guest in &mut guests {
            guest.wait_booted()?;
            guest.configure_network()?;
            check_offloads(side, guest)?;
        }
        let mut pair = Self {
            side,
            guests,
            middle,
        };
        pair.wait_reachable()?;
        pair.start_server()?;
        pair.freeze()?;
        Ok(pair)
    }

    /// Which.
    pub fn side(&self) -> Side {
        self.side
    }

    /// One case for some seconds, from frozen to frozen.
    ///
    /// # Errors
    /// A guest or switch ended, or iperf3 failed or took too long.
    pub fn turn(&mut self, case: Case, seconds: u32) -> Result<Turn> {
        if let Middle::Switch(switch) = &mut self.middle {
            switch.thaw()?;
        }
        let turn = self.measure(case, seconds);
        let ready = match &turn {
            Ok(_) => Ok(()),
            // A client that hung has left a busy server.
            Err(_) => self.start_server(),
        };
        let frozen = self.freeze();
        turn.and_then(|turn| ready.and(frozen).map(|()| turn))
    }

    fn measure(&mut self, case: Case, seconds: u32) -> Result<Turn> {
        self.wait_reachable()?;
        let [client, server] = &self.guests;
        let client = client.agent().clone();
        let server = server.spec().address().into();
        let before = self.usage()?;
        let report = exec(
            &client,
            case.command(server, seconds),
            Duration::from_secs(seconds.into()) + SLACK,
        )?;
        let after = self.usage()?;
        Ok(Turn {
            side: self.side,
            traffic: case.parse(&report)?,
            switch_cpu_s: after
                .0
                .zip(before.0)
                .map(|(after, before)| after.saturating_sub(before).as_secs_f64()),
            qemu_system_s: after.1.saturating_sub(before.1).as_secs_f64(),
        })
    }

    /// CPU time of the switch, and of the QEMUs in the kernel.
    fn usage(&mut self) -> Result<(Option<Duration>, Duration)> {
        let switch = match &mut self.middle {
            Middle::Switch(switch) => Some(usage::of_process(switch.process().id())?),
            Middle::Bridge { .. } => None,
        };
        let mut system = Duration::ZERO;
        for guest in &mut self.guests {
            system += usage::in_the_kernel(guest.process().id())?;
        }
        Ok((switch, system))
    }

    fn wait_reachable(&self) -> Result<()> {
        let [one, two] = &self.guests;
        Ok(traffic::wait_reachable(
            one.agent(),
            two.spec().address().into(),
        )?)
    }

    fn start_server(&self) -> Result<()> {
        let [client, server] = &self.guests;
        for guest in [client, server] {
            // Usually there is none: one that ends removes its file.
            let end = format!("[ ! -f {PID_FILE} ] || kill -9 $(cat {PID_FILE}); rm -f {PID_FILE}");
            let _status = guest.agent().exec(["/bin/sh", "-c", &end])?;
        }
        let agent = server.agent();
        agent.run(&format!("{PROGRAM} --server --daemon --pidfile {PID_FILE}"))?;
        eventually(SOON, "iperf3 to listen in a guest", || {
            let listening = agent.run("netstat -l -n -t")?;
            Ok(if listening.contains(":5201 ") {
                Ok(())
            } else {
                Err(listening)
            })
        })
    }

    fn freeze(&mut self) -> Result<()> {
        match &mut self.middle {
            Middle::Switch(switch) => switch.freeze(),
            Middle::Bridge { .. } => Ok(()),
        }
    }
}

fn with_switch(
    side: switch::Side,
    machine: &Machine,
    folder: &RunDir,
) -> Result<(Middle, [Backend; 2])> {
    let folder = folder.join(side.key());
    fs::create_dir(&folder).doing(|| format!("making {}", folder.display()))?;
    let switch = switch::start(side, machine, &folder, &RIG)?;
    let end = if switch.connects() {
        QemuEnd::Listens
    } else {
        QemuEnd::Connects
    };
    let backends = [0, 1].map(|port| Backend::VhostUser(end, switch.socket(port)));
    Ok((Middle::Switch(switch), backends))
}

/// A bridge with two TAPs in a network namespace of its own, which goes with the process that holds it and the guests in it.
fn make_bridge(folder: &RunDir) -> Result<(lab_process::Process, String)> {
    let mut command = Command::new("unshare");
    // The file is there, and in a folder by which the process is known when it has to be ended from outside.
    command.args(["--net", "--", "tail", "-f"]);
    command.arg(folder.join("pids"));
    let holder = lab_process::Process::spawn(folder, "bridge", &command)?;
    let namespace = PathBuf::from(format!("/proc/{}/ns/net", holder.id()));
    let ours = fs::read_link("/proc/self/ns/net")
        .doing(|| "looking at our network namespace".to_owned())?;
    eventually(SOON, "a network namespace of its own", || {
        // Before the process is itself there may be nothing to read.
        let theirs = fs::read_link(&namespace).unwrap_or_default();
        let made = theirs != ours && !theirs.as_os_str().is_empty();
        Ok(made.then_some(()).ok_or(String::new()))
    })?;
    let enter = format!("--net={}", namespace.display());
    let ip = |arguments: &str| {
        let mut command = Command::new("nsenter");
        command.arg(&enter).arg("ip").args(arguments.split(' '));
        run(&mut command, SOON).map(drop)
    };
    ip("link add br0 type bridge")?;
    ip("link set br0 up")?;
    for name in INTERFACES {
        ip(&format!("tuntap add {name} mode tap"))?;
        ip(&format!("link set {name} master br0 up"))?;
    }
    Ok((holder, enter))
}

fn start_guest(
    side: Side,
    artefacts: &Artefacts,
    folder: &RunDir,
    (number, backend): (u8, Backend),
    launcher: &[String],
) -> Result<Guest> {
    let spec = GuestSpec {
        name: format!("{}-vm{number}", side.key()),
        number,
        queue_pairs: 1,
        backend,
        nic_model: VIRTIO_NIC.to_owned(),
        nic_properties: Vec::new(),
        arguments: Vec::new(),
        launcher: launcher.to_vec(),
    };
    Ok(Guest::start(artefacts, folder, &spec)?)
}

fn check_offloads(side: Side, guest: &Guest) -> Result<()> {
    for (bit, name) in OFFLOADS {
        if !guest.negotiated(bit)? {
            return Err(Error::Invalid(format!(
                "a guest on {side} has no {name}, which the others have: no comparison"
            )));
        }
    }
    Ok(())
}

/// Runs a program in a guest, ended there when it takes too long; its output, whatever its status.
fn exec(agent: &Agent, command: Vec<String>, within: Duration) -> Result<String> {
    let mut argv: Vec<String> = ["timeout", "-s", "KILL"].map(str::to_owned).into();
    argv.push(within.as_secs().to_string());
    argv.extend(command);
    match agent.ask(Request::Exec { argv }, within + SOON)? {
        Reply::Exec { output, .. } => Ok(output),
        other => Err(Error::Invalid(format!(
            "{} answered {other:?}",
            agent.name()
        ))),
    }
}
