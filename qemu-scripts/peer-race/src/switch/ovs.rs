//! OVS-DPDK with one polling thread on the switch's core, forwarding by MAC address (`NORMAL`), behind OpenFlow rules where a case is about them.

use std::path::{Path, PathBuf};

use super::{Side, Spent, Switch};
use crate::case::{Frames, Rig};
use crate::error::{Error, Result};
use crate::machine::Machine;
use crate::network::openflow;
use crate::ovs::{Options, OvsDpdk, PortKind};
use crate::process::Process;

/// Its caches in front of the flow tables (ovs-vswitchd.conf.db(5)): which is best depends on the number of flows.
const CACHES: [(&str, [(&str, &str); 2]); 3] = [
    (
        "exact match",
        [("emc-insert-inv-prob", "100"), ("smc-enable", "false")],
    ),
    (
        "signature match",
        [("emc-insert-inv-prob", "0"), ("smc-enable", "true")],
    ),
    (
        "none",
        [("emc-insert-inv-prob", "0"), ("smc-enable", "false")],
    ),
];

/// A running OVS-DPDK.
pub struct Ovs {
    ovs: OvsDpdk,
    kind: PortKind,
}

impl Ovs {
    /// Starts it with the rig's ports.
    ///
    /// # Errors
    /// As [`OvsDpdk::start`] and [`OvsDpdk::add_ports`].
    pub fn start(machine: &Machine, folder: &Path, rig: &Rig) -> Result<Self> {
        let mut options = Options {
            pmd_core: machine.switch_core,
            other_core: machine.guest_core,
            file_prefix: "race-ovs".into(),
            ..Options::default()
        };
        if rig.frames == Frames::Tso {
            options
                .other_config
                .push(("userspace-tso-enable".into(), "true".into()));
        }
        let mtu = match rig.frames {
            Frames::Standard | Frames::Tso => None,
            Frames::Jumbo => Some(9000),
        };
        let mut ovs = OvsDpdk::start(folder, &options)?;
        let names: Vec<String> = (0..rig.ports + rig.idle_for(Side::Ovs)).map(name).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        // OVS 3.1 offers TSO only on ports of the other kind, which make a connection once a second.
        let kind = match rig.frames {
            Frames::Tso => PortKind::Client,
            Frames::Standard | Frames::Jumbo => PortKind::Server,
        };
        ovs.add_ports(&names, kind, mtu)?;
        if let Some(rules) = openflow::rules(rig.network) {
            ovs.replace_rules(&rules)?;
            let count = ovs.count_rules()?;
            if count != openflow::count(&rules) {
                let why = format!("OVS-DPDK has {count} of {} rules", openflow::count(&rules));
                return Err(Error::Invalid(why));
            }
        }
        Ok(Self { ovs, kind })
    }
}

fn name(port: usize) -> String {
    format!("vm{port}")
}

impl Switch for Ovs {
    fn side(&self) -> Side {
        Side::Ovs
    }

    fn socket(&self, port: usize) -> PathBuf {
        self.ovs.socket(&name(port))
    }

    fn connects(&self) -> bool {
        self.kind == PortKind::Client
    }

    fn process(&mut self) -> &mut Process {
        self.ovs.process()
    }

    fn settings(&self) -> usize {
        CACHES.len()
    }

    fn choose(&mut self, setting: usize) -> Result<()> {
        let Some((_, settings)) = CACHES.get(setting) else {
            return Ok(());
        };
        settings
            .iter()
            .try_for_each(|(key, value)| self.ovs.configure(key, value))
    }

    fn connections(&mut self, _most: usize) -> Result<Option<usize>> {
        self.ovs.count_connections().map(Some)
    }

    fn forget_connections(&mut self) -> Result<()> {
        self.ovs.appctl(&["dpctl/flush-conntrack"]).map(drop)
    }

    fn begin(&mut self) -> Result<()> {
        self.ovs.clear_stats()
    }

    fn end(&mut self) -> Result<Spent> {
        let stats = self.ovs.stats()?;
        Ok(Spent {
            cycles: stats.busy_cycles,
            frames: stats.frames,
            exact: true,
            dropped: None,
        })
    }

    fn stop(self: Box<Self>) -> Result<()> {
        self.ovs.stop()
    }
}
