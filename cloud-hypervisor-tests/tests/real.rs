//! The real Cloud Hypervisor in front of a running switch, where there is one: `CLOUD_HYPERVISOR` names it, or it is on PATH. It also needs
//! a usable `/dev/kvm` and the guest kernel and initramfs that `qemu-scripts/setup` makes (or `CLOUD_HYPERVISOR_KERNEL` and
//! `CLOUD_HYPERVISOR_INITRAMFS`). Without any of these, one line says what was missing; `replay` plays its messages then.

use std::env;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cloud_hypervisor_tests::{Failure, Outcome, switch};
use guest_sim::Patience;
use guest_sim::bench::Daemon;
use guest_sim::nic::session::connect;

/// A guest boots, resets or reboots within this, on a slow machine too.
const BOOT_WITHIN: Duration = Duration::from_secs(120);

/// What the program needs.
struct Means {
    program: PathBuf,
    kernel: PathBuf,
    initramfs: PathBuf,
}

fn means() -> Result<Means, &'static str> {
    let program = named("CLOUD_HYPERVISOR")
        .or_else(on_path)
        .ok_or("no cloud-hypervisor named or on PATH")?;
    File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map_err(|_| "/dev/kvm cannot be opened")?;
    let prepared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/vm-lab");
    let artefact = |variable, name| {
        named(variable)
            .or_else(|| Some(prepared.join(name)).filter(|path| path.exists()))
            .ok_or("no guest kernel: run qemu-scripts/setup")
    };
    let kernel = artefact("CLOUD_HYPERVISOR_KERNEL", "kernel")?;
    let initramfs = artefact("CLOUD_HYPERVISOR_INITRAMFS", "initramfs")?;
    Ok(Means {
        program,
        kernel,
        initramfs,
    })
}

fn named(variable: &str) -> Option<PathBuf> {
    env::var_os(variable)
        .filter(|value| !value.is_empty())
        .map(Into::into)
}

fn on_path() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|folder| folder.join("cloud-hypervisor"))
        .find(|program| program.is_file())
}

/// A running VM with one NIC on port `vm1`. Dropping it kills it.
struct Vm {
    child: Child,
    api: PathBuf,
}

impl Vm {
    /// The program without a VM, waiting for what its API says.
    fn empty(means: &Means, daemon: &Daemon, name: &str) -> Outcome<Self> {
        let api = daemon.socket(name);
        let child = Command::new(&means.program)
            .args(["--api-socket", &format!("path={}", api.display())])
            .stdin(Stdio::null())
            .spawn()
            .map_err(|error| Failure(format!("starting cloud-hypervisor: {error}")))?;
        // It answers when it is ready.
        drop(connect(&api, BOOT_WITHIN)?);
        Ok(Self { child, api })
    }

    fn boot(means: &Means, daemon: &Daemon) -> Outcome<Self> {
        let api = daemon.socket("cloud-hypervisor-api");
        let net = format!(
            "vhost_user=true,socket={},num_queues=2,queue_size=256,mac=52:54:00:00:00:11",
            daemon.socket("vm1").display()
        );
        let child = Command::new(&means.program)
            .args(["--api-socket", &format!("path={}", api.display())])
            .arg("--kernel")
            .arg(&means.kernel)
            .arg("--initramfs")
            .arg(&means.initramfs)
            .args([
                "--cmdline",
                "console=ttyS0 quiet panic=1",
                "--cpus",
                "boot=1",
            ])
            .args(["--memory", "size=256M,shared=on,hotplug_size=256M"])
            .args(["--net", &net])
            .args(["--serial", "null", "--console", "off"])
            .stdin(Stdio::null())
            .spawn()
            .map_err(|error| Failure(format!("starting cloud-hypervisor: {error}")))?;
        Ok(Self { child, api })
    }

    /// `PUT /api/v1/{action}` without a body.
    fn put(&self, action: &str) -> Outcome {
        self.put_body(action, "")
    }

    /// `PUT /api/v1/{action}` with JSON.
    fn put_body(&self, action: &str, body: &str) -> Outcome {
        let failed = |error: std::io::Error| Failure(format!("{action}: {error}"));
        let mut stream = UnixStream::connect(&self.api).map_err(failed)?;
        stream.set_read_timeout(Some(BOOT_WITHIN)).map_err(failed)?;
        let request = format!(
            "PUT /api/v1/{action} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).map_err(failed)?;
        let mut status = [0; 12];
        stream.read_exact(&mut status).map_err(failed)?;
        if status.starts_with(b"HTTP/1.1 2") {
            return Ok(());
        }
        Err(Failure(format!(
            "{action}: {}",
            String::from_utf8_lossy(&status)
        )))
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // It may have ended already; there is nobody to tell.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
        // In the way of the next of that name.
        let _removed = std::fs::remove_file(&self.api);
    }
}

/// Waits until the port says that its guest's driver is running.
fn wait_up(daemon: &Daemon) -> Outcome {
    wait_told(daemon, &["port", "show", "vm1"], r#""state":"up""#)
}

/// Waits until the daemon, once it is there, has a part in its JSON.
fn wait_told(daemon: &Daemon, question: &[&str], part: &str) -> Outcome {
    let patience = Patience::of(BOOT_WITHIN);
    loop {
        let told = daemon.command(&[question, &["--json"]].concat());
        let told = told.unwrap_or_else(|error| error.to_string());
        if told.split_whitespace().collect::<String>().contains(part) {
            return Ok(());
        }
        if patience.is_over() {
            return Err(Failure(format!("no {part} in {told}")));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What the program needs, or `None` once it was said what is missing.
fn means_or_skip() -> Outcome<Option<Means>> {
    match means() {
        Ok(means) => Ok(Some(means)),
        Err(missing) => {
            // Past the capturing of the test harness: a skipped test must be seen.
            let mut stderr = std::io::stderr();
            writeln!(stderr, "cloud-hypervisor: skipped: {missing}")
                .map_err(|error| Failure(error.to_string()))?;
            Ok(None)
        }
    }
}

#[test]
fn a_real_vm_is_restored_from_a_snapshot() -> Outcome {
    let Some(means) = means_or_skip()? else {
        return Ok(());
    };
    let daemon = switch(1)?;
    let vm = Vm::boot(&means, &daemon)?;
    wait_up(&daemon)?;
    let folder = daemon.socket("snapshot");
    std::fs::create_dir(&folder).map_err(|error| Failure(format!("{folder:?}: {error}")))?;
    let url = format!("file://{}", folder.display());
    vm.put("vm.pause")?;
    vm.put_body("vm.snapshot", &format!(r#"{{"destination_url":"{url}"}}"#))?;
    drop(vm);
    let restored = Vm::empty(&means, &daemon, "cloud-hypervisor-restored")?;
    restored.put_body("vm.restore", &format!(r#"{{"source_url":"{url}"}}"#))?;
    restored.put("vm.resume")?;
    wait_up(&daemon)
}

#[test]
fn a_real_vm_migrates_locally() -> Outcome {
    let Some(means) = means_or_skip()? else {
        return Ok(());
    };
    let daemon = switch(1)?;
    for local in [true, false] {
        // A VM that arrived cannot leave again with Cloud Hypervisor 53: it forgets that its back-end can log.
        let source = Vm::boot(&means, &daemon)?;
        wait_up(&daemon)?;
        let name = format!("cloud-hypervisor-local-{local}");
        let destination = Vm::empty(&means, &daemon, &name)?;
        let passage = daemon.socket(&format!("passage-{local}"));
        let url = format!("unix:{}", passage.display());
        std::thread::scope(|scope| {
            let receiving = scope.spawn(|| {
                let body = format!(r#"{{"receiver_url":"{url}"}}"#);
                destination.put_body("vm.receive-migration", &body)
            });
            // It listens there before it takes anything.
            let patience = Patience::of(BOOT_WITHIN);
            while !passage.exists() && !patience.is_over() {
                std::thread::sleep(Duration::from_millis(10));
            }
            let body = format!(r#"{{"destination_url":"{url}","local":{local}}}"#);
            source.put_body("vm.send-migration", &body)?;
            receiving
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        wait_up(&daemon)?;
        destination.put("vm.shutdown")?;
    }
    Ok(())
}

#[test]
fn a_real_vm_boots_pauses_resumes_and_reboots() -> Outcome {
    let Some(means) = means_or_skip()? else {
        return Ok(());
    };
    let daemon = switch(1)?;
    let vm = Vm::boot(&means, &daemon)?;
    wait_up(&daemon)?;
    for action in ["vm.pause", "vm.resume", "vm.reboot"] {
        vm.put(action)?;
        if action != "vm.pause" {
            wait_up(&daemon)?;
        }
    }
    vm.put("vm.shutdown")?;
    drop(vm);
    // The port is ready for the next VM.
    let next = Vm::boot(&means, &daemon)?;
    wait_up(&daemon)?;
    drop(next);
    Ok(())
}

#[test]
fn a_real_vm_is_given_a_nic_by_the_device_table_and_loses_it_again() -> Outcome {
    let Some(means) = means_or_skip()? else {
        return Ok(());
    };
    let daemon = switch(1)?;
    let vm = Vm::boot(&means, &daemon)?;
    wait_up(&daemon)?;
    let at = format!("cloud-hypervisor:{}", vm.api.display());
    for _ in 0..3 {
        daemon.command(&["device", "add", "vm1-eth1", "--vm", &at, "--wait", "60"])?;
        wait_told(&daemon, &["port", "show", "vm1-eth1"], r#""state":"up""#)?;
        daemon.command(&["device", "remove", "vm1-eth1"])?;
        wait_told(&daemon, &["device", "list"], r#""devices":[]"#)?;
    }
    wait_up(&daemon)
}

#[test]
fn a_real_vm_reconnects_after_the_switch_was_killed() -> Outcome {
    let Some(means) = means_or_skip()? else {
        return Ok(());
    };
    let mut daemon = switch(1)?;
    let _vm = Vm::boot(&means, &daemon)?;
    wait_up(&daemon)?;
    for _ in 0..3 {
        daemon.kill()?;
        daemon.restart()?;
        wait_up(&daemon)?;
    }
    Ok(())
}

#[test]
fn a_real_vm_is_given_memory_while_it_runs() -> Outcome {
    let Some(means) = means_or_skip()? else {
        return Ok(());
    };
    let daemon = switch(1)?;
    let vm = Vm::boot(&means, &daemon)?;
    wait_up(&daemon)?;
    vm.put_body("vm.resize", r#"{"desired_ram":402653184}"#)?;
    wait_told(&daemon, &["port", "show", "vm1"], r#""memory_regions":2"#)?;
    wait_up(&daemon)
}
