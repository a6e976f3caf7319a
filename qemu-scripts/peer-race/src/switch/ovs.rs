//! OVS-DPDK with one polling thread on the switch's core, forwarding by MAC address (`NORMAL`).

use std::path::{Path, PathBuf};

use super::{Side, Switch, Work};
use crate::case::{Frames, Rig};
use crate::error::{Error, Result};
use crate::machine::Machine;
use crate::ovs::{Options, OvsDpdk, PmdStats, PortKind};

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
            huge_dir: machine.huge_dir.clone(),
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
        ovs.add_ports(&names, PortKind::Server, mtu)?;
        Ok(Self { ovs })
    }
}

fn name(port: usize) -> String {
    format!("vm{port}")
}

fn work(stats: &PmdStats) -> Option<Work> {
    let all = stats.busy_cycles + stats.idle_cycles;
    (stats.frames > 0.0 && all > 0.0).then(|| Work {
        cycles_per_frame: stats.busy_cycles / stats.frames,
        busy: stats.busy_cycles / all,
        exact: true,
    })
}

impl Switch for Ovs {
    fn side(&self) -> Side {
        Side::Ovs
    }

    fn socket(&self, port: usize) -> PathBuf {
        self.ovs.socket(&name(port))
    }

    fn freeze(&mut self) -> Result<()> {
        self.ovs.process().freeze()
    }

    fn thaw(&mut self) -> Result<()> {
        self.ovs.process().thaw()
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

    fn begin(&mut self) -> Result<()> {
        self.ovs.clear_stats()
    }

    fn end(&mut self, _frames_per_s: f64) -> Result<Work> {
        let stats = self.ovs.stats()?;
        work(&stats).ok_or_else(|| Error::Invalid("OVS says that it switched no frame".into()))
    }

    fn stop(self: Box<Self>) -> Result<()> {
        self.ovs.stop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cycles_are_those_of_polls_that_found_frames() {
        let stats = PmdStats {
            frames: 10.0,
            idle_cycles: 1000.0,
            busy_cycles: 3000.0,
        };
        let expected = Work {
            cycles_per_frame: 300.0,
            busy: 0.75,
            exact: true,
        };
        assert_eq!(work(&stats), Some(expected));
        assert_eq!(work(&PmdStats::default()), None);
    }
}
