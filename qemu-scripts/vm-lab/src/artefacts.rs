//! What `qemu-scripts/setup` and cargo prepared: guest kernel, initramfs, agent, busybox, QEMU, the daemon.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::Doing;
use crate::{Error, Result};

/// Where everything is. Found once per lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artefacts {
    /// The guests' kernel.
    pub kernel: PathBuf,
    /// The guests' root, with the agent as `/init`.
    pub initramfs: PathBuf,
    /// The agent, for the host's end of a transfer.
    pub guest_agent: PathBuf,
    /// Static busybox, for the host's own ping.
    pub busybox: PathBuf,
    /// What `-accel` gets. TCG: runs anywhere, the same everywhere. `VM_LAB_ACCEL=kvm` overrides.
    pub accelerator: String,
    /// QEMU's version, major and minor.
    pub qemu_version: (u32, u32),
}

impl Artefacts {
    /// Finds everything but the daemon.
    ///
    /// # Errors
    /// Set-up has not been run, or QEMU does not start.
    pub fn find() -> Result<Self> {
        let folder = match env::var_os("VM_LAB_ARTEFACTS") {
            Some(folder) => folder.into(),
            None => repository().join("target/vm-lab"),
        };
        let present = |name: &str| {
            let path = folder.join(name);
            if path.exists() {
                Ok(path)
            } else {
                Err(Error::NotSetUp(path))
            }
        };
        Ok(Self {
            kernel: present("kernel")?,
            initramfs: present("initramfs")?,
            guest_agent: present("guest-agent")?,
            busybox: present("busybox")?,
            accelerator: env::var("VM_LAB_ACCEL").unwrap_or_else(|_| "tcg,thread=multi".to_owned()),
            qemu_version: qemu_version()?,
        })
    }

    /// How a client-mode chardev or stream netdev is told to come back: often, so that a test of what happens then does not wait for it.
    #[must_use]
    pub fn reconnect_option(&self) -> &'static str {
        // `reconnect-ms` came with QEMU 9.2; whole seconds were all there was before.
        if self.qemu_version >= (9, 2) {
            "reconnect-ms=20"
        } else {
            "reconnect=1"
        }
    }
}

/// The top of the work tree this was built from.
#[must_use]
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .map(Path::to_path_buf)
        .unwrap_or_default()
}

/// The daemon: `RINGSWITCH_BIN`, or the release build beside this program's own.
///
/// # Errors
/// It was not built.
pub fn ringswitch() -> Result<PathBuf> {
    if let Some(named) = env::var_os("RINGSWITCH_BIN") {
        return Ok(named.into());
    }
    let own = env::current_exe().doing(|| "finding this program".to_owned())?;
    own.ancestors()
        .skip(1)
        .take(4)
        .flat_map(|folder| [folder.join("release/ringswitch"), folder.join("ringswitch")])
        .find(|candidate| candidate.is_file())
        .ok_or(Error::NoSwitch(own))
}

fn qemu_version() -> Result<(u32, u32)> {
    let output = Command::new(QEMU)
        .arg("--version")
        .output()
        .doing(|| format!("starting {QEMU}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    // "QEMU emulator version 10.0.2 (Debian …)"
    let mut numbers = text
        .split_whitespace()
        .nth(3)
        .unwrap_or_default()
        .split('.')
        .map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => Err(Error::Unexpected(format!("{QEMU} --version says {text:?}"))),
    }
}

/// The program every guest is.
pub const QEMU: &str = "qemu-system-x86_64";
