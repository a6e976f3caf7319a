//! A guest that starts another kernel itself: no firmware and no reset stand between the driver that was and the one that comes.

use std::fs;
use std::path::Path;

use vm_lab::Result;
use vm_lab::artefacts::Artefacts;
use vm_lab::error::Doing;
use vm_lab::lab::{Lab, Station};
use vm_lab::pool::with_lab;

use crate::{MIB, exchange, expect_equal, flood, pair};

/// Where the guest finds what it is to start.
const KERNEL: &str = "next-kernel";
const INITRAMFS: &str = "next-initramfs";

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_guest_that_starts_another_kernel_under_load_has_its_network_again() {
    with_lab(&pair(), |lab| {
        let initramfs = lab.folder().join("initramfs");
        fs::write(&initramfs, initramfs_with_kernel()?)
            .doing(|| format!("writing {}", initramfs.display()))?;
        let third = Station::new("vm3").qemu(&format!("-initrd {}", initramfs.display()));
        let port = third.port(lab.folder());
        lab.switch()?.add_port(&port)?;
        let guest = lab.start_guest(&third)?;
        guest.wait_booted()?;
        guest.configure_network()?;
        start_another_kernel(lab, 3)?;
        lab.stop_last_guest();
        lab.switch()?.remove_port("vm3")?;
        fs::remove_file(&initramfs).doing(|| format!("removing {}", initramfs.display()))
    });
}

fn start_another_kernel(lab: &Lab, number: usize) -> Result<()> {
    let flood = flood(lab, (1, number))?;
    let agent = lab.host(number)?.0;
    let command_line = || agent.run("cat /proc/cmdline");
    // Tells it from one that the firmware started, after a panic say.
    let next = format!("{} kexeced", command_line()?.trim());
    let files = [KERNEL, INITRAMFS].map(|name| format!("/{name}"));
    let loading = ["kexec", &files[0], &files[1], &next];
    let (status, output) = agent.exec(loading)?;
    expect_equal(&output, status, 0)?;
    agent.kexec()?;
    expect_equal("command line", command_line()?.trim(), &next)?;
    lab.guest(number)?.configure_network()?;
    lab.wait_connected(number)?;
    flood.stop()?;
    exchange(lab, (1, number), MIB)
}

/// The guests' initramfs, with the kernel and itself added.
fn initramfs_with_kernel() -> Result<Vec<u8>> {
    let artefacts = Artefacts::find()?;
    let read = |path: &Path| fs::read(path).doing(|| format!("reading {}", path.display()));
    let (kernel, initramfs) = (read(&artefacts.kernel)?, read(&artefacts.initramfs)?);
    let files = [
        (KERNEL, kernel.as_slice()),
        (INITRAMFS, &initramfs),
        ("TRAILER!!!", &[]),
    ];
    let mut all = initramfs.clone();
    for (name, bytes) in files {
        append(&mut all, name, bytes);
    }
    Ok(all)
}

/// One file as `cpio --format newc` has it (Documentation/driver-api/early-userspace/buffer-format.rst).
fn append(archive: &mut Vec<u8>, name: &str, bytes: &[u8]) {
    const REGULAR_FILE: usize = 0o100_644;
    let named = name.len() + 1;
    // Number, mode, owner, group, links, time, size, four device numbers, length of the name, checksum.
    let fields = [
        0,
        REGULAR_FILE,
        0,
        0,
        1,
        0,
        bytes.len(),
        0,
        0,
        0,
        0,
        named,
        0,
    ];
    archive.extend_from_slice(b"070701");
    archive.extend(
        fields
            .iter()
            .flat_map(|field| format!("{field:08x}").into_bytes()),
    );
    for part in [format!("{name}\0").as_bytes(), bytes] {
        archive.extend_from_slice(part);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
}
