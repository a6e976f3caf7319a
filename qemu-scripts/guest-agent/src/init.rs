//! What the first process of a guest does before it can serve: file systems, modules, the loopback interface.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::Command;

use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::system::finit_module;
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

const FILE_SYSTEMS: [(&str, &str); 5] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
];
const BUSYBOX: &str = "/bin/busybox";

/// Brings the guest to where programs run and interfaces exist.
///
/// # Errors
/// A file system or module of the initramfs is not usable in this kernel.
pub fn bring_up() -> io::Result<()> {
    for (kind, target) in FILE_SYSTEMS {
        match mount(kind, target, kind, MountFlags::empty(), None::<&CStr>) {
            Ok(()) | Err(Errno::BUSY) => {}
            Err(error) => return Err(io::Error::other(format!("mount {target}: {error}"))),
        }
    }
    load_modules(Path::new("/modules"))?;
    Command::new(BUSYBOX)
        .args(["--install", "-s", "/bin"])
        .status()?;
    Command::new(BUSYBOX)
        .args(["ip", "link", "set", "lo", "up"])
        .status()?;
    // Ping without the right to raw sockets, for root alone: it is not even that by default.
    let _ = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0");
    // Memory that is plugged in later is put to use at once. Kernels without hot-plug lack the file.
    let _ = fs::write("/sys/devices/system/memory/auto_online_blocks", "online");
    Ok(())
}

/// Loads what `order` lists, in that order; what is there already is fine.
fn load_modules(folder: &Path) -> io::Result<()> {
    for name in fs::read_to_string(folder.join("order"))?.lines() {
        match finit_module(File::open(folder.join(name))?, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(io::Error::other(format!("module {name}: {error}"))),
        }
    }
    Ok(())
}

/// A serial line that passes bytes through as they are, without echo.
///
/// # Errors
/// It is not a terminal.
pub fn make_raw(channel: impl AsFd) -> io::Result<()> {
    let mut settings = tcgetattr(&channel)?;
    settings.make_raw();
    tcsetattr(&channel, OptionalActions::Now, &settings)?;
    Ok(())
}
