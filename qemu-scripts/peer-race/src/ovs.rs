//! Open vSwitch on DPDK, private to this program: its own database, sockets, logs and DPDK files in one folder, nothing of the system's.
//!
//! Used by the race and by anything else that wants OVS-DPDK as a neighbour. Called on the main thread. Keeps true: the system's own OVS, its
//! services and its database are neither used nor changed; everything started here ends with the value, or with the program.
//!
//! ```no_run
//! use peer_race::ovs::{Options, OvsDpdk, PortKind};
//! # fn main() -> peer_race::error::Result<()> {
//! let folder = std::path::Path::new("/tmp/ovs");
//! let mut ovs = OvsDpdk::start(folder, &Options::default())?;
//! ovs.add_ports(&["vm1", "vm2"], PortKind::Server, None)?;
//! println!("connect a VM to {}", ovs.socket("vm1").display());
//! ovs.clear_stats()?;
//! println!("{:?}", ovs.stats()?);
//! ovs.stop()
//! # }
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::error::{Doing, Error, Result};
use crate::process::{Process, SOON, eventually, run};

/// Where distributions put the daemon that is linked with DPDK.
const DAEMONS: [&str; 3] = [
    "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk",
    "/usr/lib64/openvswitch/ovs-vswitchd-dpdk",
    "/usr/sbin/ovs-vswitchd",
];
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
const BRIDGE: &str = "br0";
/// OpenFlow rules take seconds to load on a machine that is busy otherwise.
const RULES_WITHIN: Duration = Duration::from_secs(60);
const LEAVE: Duration = Duration::from_secs(3);

/// How it is to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The core of its one polling thread.
    pub pmd_core: usize,
    /// The core of DPDK's main thread.
    pub other_core: usize,
    /// Hugepage memory it takes at start.
    pub socket_mem_mib: u32,
    /// Distinguishes DPDK processes that run at the same time.
    pub file_prefix: String,
    /// More of `other_config`, such as `("userspace-tso-enable", "true")`.
    pub other_config: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            pmd_core: 1,
            other_core: 0,
            socket_mem_mib: 512,
            file_prefix: "ovs".into(),
            other_config: Vec::new(),
        }
    }
}

/// Who listens on a vhost-user port's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// OVS does (`dpdkvhostuser`).
    Server,
    /// The VM does (`dpdkvhostuserclient`), and OVS connects, again and again.
    Client,
}

/// What the polling threads did since the statistics were last cleared.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PmdStats {
    /// Frames received.
    pub frames: f64,
    /// Cycles of polls that found nothing.
    pub idle_cycles: f64,
    /// Cycles of polls that found frames.
    pub busy_cycles: f64,
}

/// A running OVS-DPDK with one bridge, which forwards by MAC address (`NORMAL`).
#[derive(Debug)]
pub struct OvsDpdk {
    // Dropped first: the switch goes before its database.
    vswitchd: Process,
    ovsdb: Process,
    folder: PathBuf,
}

impl OvsDpdk {
    /// Where the daemon is, if OVS-DPDK is installed.
    pub fn daemon() -> Option<PathBuf> {
        if !Path::new(SCHEMA).exists() {
            return None;
        }
        DAEMONS.into_iter().map(PathBuf::from).find(|p| p.exists())
    }

    /// Starts a database and a switch in `folder`, which must be short enough for socket names, and waits until both serve.
    ///
    /// # Errors
    /// It is not installed, or does not start: what it said.
    pub fn start(folder: &Path, options: &Options) -> Result<Self> {
        let daemon = Self::daemon().ok_or_else(|| {
            Error::NotOffered("OVS-DPDK is not installed (Debian: openvswitch-switch-dpdk)".into())
        })?;
        fs::create_dir_all(folder).doing(|| format!("making {}", folder.display()))?;
        let database = folder.join("conf.db");
        run(
            Command::new("ovsdb-tool")
                .arg("create")
                .arg(&database)
                .arg(SCHEMA),
            SOON,
        )?;
        let ovsdb = Process::start(
            folder,
            "ovsdb-server",
            own_places(Command::new("ovsdb-server"), folder)
                .arg(&database)
                .arg(format!("--remote=punix:{}", socket(folder, "db")))
                .arg(format!("--unixctl={}", socket(folder, "ovsdb-ctl")))
                .arg("-vfile:off"),
        )?;
        wait_for_socket(folder, "db")?;
        let mut settings = vec![
            ("dpdk-init".to_owned(), "true".to_owned()),
            ("dpdk-socket-mem".into(), options.socket_mem_mib.to_string()),
            (
                "pmd-cpu-mask".into(),
                format!("{:#x}", 1u64 << options.pmd_core),
            ),
            (
                "dpdk-lcore-mask".into(),
                format!("{:#x}", 1u64 << options.other_core),
            ),
            (
                "dpdk-extra".into(),
                // In memory: nothing of it is left in a hugetlbfs, and none need be mounted.
                format!("--no-pci --in-memory --file-prefix={}", options.file_prefix),
            ),
        ];
        settings.extend(options.other_config.iter().cloned());
        let settings: Vec<String> = settings
            .iter()
            .map(|(key, value)| format!("other_config:{key}=\"{value}\""))
            .collect();
        let vsctl = |arguments: &[&str]| run(vsctl(folder).args(arguments), SOON).map(drop);
        vsctl(&["--no-wait", "init"])?;
        let mut set = vec!["--no-wait", "set", "Open_vSwitch", "."];
        set.extend(settings.iter().map(String::as_str));
        vsctl(&set)?;
        let mut vswitchd = Process::start(
            folder,
            "ovs-vswitchd",
            // With a network of its own: its bridge is a TAP there, which stays when the daemon is killed, and may have a namesake here.
            own_places(Command::new("unshare"), folder)
                .args(["--net", "--"])
                .arg(daemon)
                .arg(format!("unix:{}", socket(folder, "db")))
                .arg(format!("--unixctl={}", socket(folder, "ctl")))
                .arg("-vfile:off"),
        )?;
        let bridge = format!(
            "add-br {BRIDGE} -- set bridge {BRIDGE} datapath_type=netdev fail-mode=standalone"
        );
        let bridge: Vec<&str> = bridge.split(' ').collect();
        // Waits until the switch has done it, or fails when the switch does not come up.
        if let Err(error) = vsctl(&bridge) {
            vswitchd.check_running()?;
            return Err(error);
        }
        Ok(Self {
            vswitchd,
            ovsdb,
            folder: folder.to_owned(),
        })
    }

    /// Adds vhost-user ports, in one transaction, and waits until the switch has them. `mtu` is that of its mbufs: needed above 1,500.
    ///
    /// # Errors
    /// What `ovs-vsctl` says, or what the switch says of a port it could not make.
    pub fn add_ports(&mut self, names: &[&str], kind: PortKind, mtu: Option<u16>) -> Result<()> {
        let mut command = vsctl(&self.folder);
        for name in names {
            let of_kind = match kind {
                PortKind::Server => "type=dpdkvhostuser".to_owned(),
                PortKind::Client => format!(
                    "type=dpdkvhostuserclient options:vhost-server-path={}",
                    self.socket(name).display()
                ),
            };
            let mtu = mtu.map_or_else(String::new, |mtu| format!(" mtu_request={mtu}"));
            let text =
                format!("-- add-port {BRIDGE} {name} -- set Interface {name} {of_kind}{mtu}");
            command.args(text.split(' '));
        }
        // The polling thread starts anew for every port: 62 took 23 s.
        run(
            &mut command,
            SOON + names.len() as u32 * Duration::from_secs(1),
        )?;
        for name in names {
            let error = run(
                vsctl(&self.folder).args(["get", "Interface", name, "error"]),
                SOON,
            )?;
            if error.trim() != "[]" {
                return Err(Error::NotOffered(format!(
                    "OVS-DPDK could not make port {name}: {}",
                    error.trim()
                )));
            }
        }
        Ok(())
    }

    /// Sets `other_config` of the running switch, such as `("emc-insert-inv-prob", "0")`.
    ///
    /// # Errors
    /// What `ovs-vsctl` says.
    pub fn configure(&mut self, key: &str, value: &str) -> Result<()> {
        let setting = format!("other_config:{key}={value}");
        run(
            vsctl(&self.folder).args(["set", "Open_vSwitch", ".", &setting]),
            SOON,
        )
        .map(drop)
    }

    /// Has these OpenFlow rules, one a line as `ovs-ofctl` reads them, and no others.
    ///
    /// # Errors
    /// What `ovs-ofctl` says.
    pub fn replace_rules(&self, rules: &str) -> Result<()> {
        let file = self.folder.join("rules.txt");
        fs::write(&file, rules).doing(|| format!("writing {}", file.display()))?;
        let mut command = self.ofctl("replace-flows");
        run(command.arg(&file), RULES_WITHIN).map(drop)
    }

    /// How many OpenFlow rules it has.
    ///
    /// # Errors
    /// What `ovs-ofctl` says.
    pub fn count_rules(&self) -> Result<usize> {
        let text = run(&mut self.ofctl("dump-aggregate"), SOON)?;
        parse_count(&text).ok_or(Error::Unparsed {
            what: "the number of OpenFlow rules",
            text,
        })
    }

    fn ofctl(&self, what: &str) -> Command {
        let mut command = own_places(Command::new("ovs-ofctl"), &self.folder);
        // Rules of several tables need it.
        command.args(["-O", "OpenFlow14", what, BRIDGE]);
        command
    }

    /// Connections that are tracked.
    ///
    /// # Errors
    /// As [`Self::appctl`].
    pub fn count_connections(&self) -> Result<usize> {
        let text = self.appctl(&["dpctl/ct-get-nconns"])?;
        text.trim().parse().map_err(|_| Error::Unparsed {
            what: "the number of connections",
            text,
        })
    }

    /// The socket of a port.
    pub fn socket(&self, port: &str) -> PathBuf {
        self.folder.join(port)
    }

    /// Runs a command of `ovs-appctl`.
    ///
    /// # Errors
    /// What it says.
    pub fn appctl(&self, arguments: &[&str]) -> Result<String> {
        run(
            Command::new("ovs-appctl")
                .args(["-t", &socket(&self.folder, "ctl")])
                .args(arguments),
            SOON,
        )
    }

    /// Starts counting anew.
    ///
    /// # Errors
    /// As [`Self::appctl`].
    pub fn clear_stats(&self) -> Result<()> {
        self.appctl(&["dpif-netdev/pmd-stats-clear"]).map(drop)
    }

    /// What the polling threads did since [`Self::clear_stats`].
    ///
    /// # Errors
    /// As [`Self::appctl`].
    pub fn stats(&self) -> Result<PmdStats> {
        let text = self.appctl(&["dpif-netdev/pmd-stats-show"])?;
        parse_stats(&text).ok_or(Error::Unparsed {
            what: "the cycles of a pmd thread",
            text,
        })
    }

    /// The switch's process, to freeze and thaw, or to ask for its CPU time.
    pub fn process(&mut self) -> &mut Process {
        &mut self.vswitchd
    }

    /// Ends both processes. Dropping does so too, less gently.
    ///
    /// # Errors
    /// They cannot be signalled.
    pub fn stop(mut self) -> Result<()> {
        // Nothing is lost when it does not take its leave: its memory goes with it, its files are the caller's.
        self.vswitchd.end(LEAVE)?;
        self.ovsdb.end(LEAVE)
    }
}

fn socket(folder: &Path, name: &str) -> String {
    folder
        .join(name)
        .with_extension("sock")
        .to_string_lossy()
        .into_owned()
}

/// Everything that has a place of its own on a system is in the folder (ovs-vswitchd(8), ENVIRONMENT).
fn own_places(mut command: Command, folder: &Path) -> Command {
    for variable in [
        "OVS_RUNDIR",
        "OVS_LOGDIR",
        "OVS_DBDIR",
        "OVS_SYSCONFDIR",
        "RUNTIME_DIRECTORY",
    ] {
        command.env(variable, folder);
    }
    command
}

fn vsctl(folder: &Path) -> Command {
    let mut command = Command::new("ovs-vsctl");
    command.arg(format!("--db=unix:{}", socket(folder, "db")));
    command
}

fn wait_for_socket(folder: &Path, name: &str) -> Result<()> {
    let path = socket(folder, name);
    let what = format!("{path} to appear");
    eventually(SOON, &what, || {
        Ok(if Path::new(&path).exists() {
            Ok(())
        } else {
            Err(String::new())
        })
    })
}

/// Adds up all `pmd thread` sections of `dpif-netdev/pmd-stats-show`; the main thread's does not forward.
fn parse_stats(text: &str) -> Option<PmdStats> {
    let mut sum = None;
    let mut in_pmd = false;
    for line in text.lines() {
        if !line.starts_with(' ') {
            in_pmd = line.starts_with("pmd thread");
            continue;
        }
        if !in_pmd {
            continue;
        }
        let value = |key: &str| -> Option<f64> {
            let rest = line.trim_start().strip_prefix(key)?;
            rest.split_whitespace().next()?.parse().ok()
        };
        let sum: &mut PmdStats = sum.get_or_insert_default();
        if let Some(frames) = value("packets received:") {
            sum.frames += frames;
        } else if let Some(cycles) = value("idle cycles:") {
            sum.idle_cycles += cycles;
        } else if let Some(cycles) = value("processing cycles:") {
            sum.busy_cycles += cycles;
        }
    }
    sum
}

/// `OFPST_AGGREGATE reply (OF1.4) (xid=0x4): packet_count=0 byte_count=0 flow_count=1`.
fn parse_count(text: &str) -> Option<usize> {
    let (_, rest) = text.split_once("flow_count=")?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_counted() {
        let text = "OFPST_AGGREGATE reply (OF1.4) (xid=0x4): packet_count=7 byte_count=448 flow_count=10003\n";
        assert_eq!(parse_count(text), Some(10_003));
        assert_eq!(parse_count("nothing of the kind"), None);
    }

    const SHOWN: &str = "\
pmd thread numa_id 0 core_id 1:
  packets received: 12833984
  packet recirculations: 0
  emc hits: 12833984
  idle cycles: 60183864 (2.25%)
  processing cycles: 2609389380 (97.75%)
  avg cycles per packet: 208.01 (2669573244/12833984)
  avg processing cycles per packet: 203.32 (2609389380/12833984)
main thread:
  packets received: 5
  idle cycles: 1 (50%)
";

    #[test]
    fn only_polling_threads_count() {
        let expected = PmdStats {
            frames: 12_833_984.0,
            idle_cycles: 60_183_864.0,
            busy_cycles: 2_609_389_380.0,
        };
        assert_eq!(parse_stats(SHOWN), Some(expected));
    }

    #[test]
    fn several_polling_threads_add_up() {
        let twice = parse_stats(&format!("{SHOWN}{SHOWN}")).unwrap();
        assert_eq!(twice.frames, 2.0 * 12_833_984.0);
    }

    #[test]
    fn no_polling_thread_is_not_zero_frames() {
        assert_eq!(parse_stats("main thread:\n  packets received: 5\n"), None);
    }
}
