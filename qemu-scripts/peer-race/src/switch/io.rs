//! testpmd forwarding between two `net_vhost` ports: it looks at nothing and decides nothing, so it is what copying twice costs.

use std::path::{Path, PathBuf};

use super::{Side, Spent, Switch};
use crate::case::{Frames, Rig};
use crate::error::{Error, Result};
use crate::machine::Machine;
use crate::process::Process;
use crate::testpmd::Testpmd;

/// A running I/O forwarder.
pub struct Io {
    testpmd: Testpmd,
    folder: PathBuf,
}

impl Io {
    /// Starts it with the rig's two ports.
    ///
    /// # Errors
    /// It does not start, or the rig wants a switch.
    pub fn start(machine: &Machine, folder: &Path, rig: &Rig) -> Result<Self> {
        if rig.ports != 2 || rig.idle > 0 {
            return Err(Error::NotOffered(
                "I/O forwarding joins two ports and switches nothing".into(),
            ));
        }
        let core = machine.switch_core;
        let mut environment: Vec<String> = ["--no-pci", "--in-memory", "--file-prefix=race-io"]
            .map(str::to_owned)
            .into();
        environment.push(format!("--lcores=0@{core},1@{core}"));
        environment.push("--socket-mem=320".into());
        let tso = if rig.frames == Frames::Tso {
            ",tso=1"
        } else {
            ""
        };
        for port in 0..2 {
            let socket = socket(folder, port);
            environment.push(format!(
                "--vdev=net_vhost{port},iface={},queues=1{tso}",
                socket.display()
            ));
        }
        let mut own: Vec<String> = ["--nb-cores=1", "--forward-mode=io", "--no-mlockall"]
            .map(str::to_owned)
            .into();
        own.extend(match rig.frames {
            Frames::Standard => vec!["--total-num-mbufs=65536".to_owned()],
            // One mbuf a frame, which is its best.
            Frames::Jumbo => vec![
                "--total-num-mbufs=8192".into(),
                "--mbuf-size=9600".into(),
                "--max-pkt-len=9100".into(),
            ],
            Frames::Tso => vec![
                "--total-num-mbufs=65536".into(),
                "--tx-offloads=0x8000".into(),
            ],
        });
        let mut testpmd = Testpmd::start(folder, "io", &environment, &own)?;
        testpmd.command("set record-core-cycles on")?;
        testpmd.command("start")?;
        Ok(Self {
            testpmd,
            folder: folder.to_owned(),
        })
    }
}

fn socket(folder: &Path, port: usize) -> PathBuf {
    folder.join(format!("vh{port}"))
}

impl Switch for Io {
    fn side(&self) -> Side {
        Side::Io
    }

    fn socket(&self, port: usize) -> PathBuf {
        socket(&self.folder, port)
    }

    fn process(&mut self) -> &mut Process {
        self.testpmd.process()
    }

    fn begin(&mut self) -> Result<()> {
        self.testpmd.command("clear fwd stats all").map(drop)
    }

    fn end(&mut self) -> Result<Spent> {
        let cycles = self.testpmd.cycles()?;
        Ok(Spent {
            cycles: cycles.busy_cycles,
            frames: cycles.frames,
            exact: true,
            dropped: None,
        })
    }

    fn stop(self: Box<Self>) -> Result<()> {
        self.testpmd.quit()
    }
}
