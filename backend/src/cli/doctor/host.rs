//! Of the daemon and the machine it runs on. What cannot be seen from here is passed over: the daemon may be another user's.
use super::{Finding, Findings};
use crate::rest::wire::{ConfigReport, Health, StatsReport, Worker};
use rustix::fs::statfs;
use rustix::net::sockopt::socket_peercred;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// statfs(2).
const TMPFS_MAGIC: u64 = 0x0102_1994;
const RAMFS_MAGIC: u64 = 0x8584_58f6;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The admin socket as a file, what is beside it, and who listens on it.
pub fn socket(path: &Path) -> Vec<Finding> {
    let mut host = Findings::about("host");
    let shown = path.display();
    match std::fs::symlink_metadata(path) {
        Err(error) => host.problem(
            "admin_socket",
            format!("{shown}: {error}"),
            "start the daemon with `ringswitch run`, or name its socket with --admin",
        ),
        Ok(file) if !file.file_type().is_socket() => host.problem(
            "admin_socket",
            format!("{shown} is not a socket"),
            "name the daemon's socket with --admin",
        ),
        Ok(file) if file.mode() & 0o007 != 0 => host.problem(
            "admin_socket",
            format!(
                "{shown} may be used by everybody (mode {:o})",
                file.mode() & 0o777
            ),
            "whoever can open it controls the switch: chmod o= it",
        ),
        Ok(file) => host.ok(
            "admin_socket",
            format!(
                "{shown} (mode {:o}, user {})",
                file.mode() & 0o777,
                file.uid()
            ),
        ),
    }
    ring_state(&mut host, path);
    descriptors(&mut host, path);
    host.list
}

/// The folder of packed rings' positions, where it is by default.
fn ring_state(host: &mut Findings, socket: &Path) {
    let folder = socket.with_file_name("rings");
    let Ok(kind) = statfs(&folder).map(|folder| folder.f_type as u64) else {
        return;
    };
    let shown = folder.display();
    if matches!(kind, TMPFS_MAGIC | RAMFS_MAGIC) {
        host.ok("ring_state", format!("{shown} is in memory"));
    } else {
        host.warn(
            "ring_state",
            format!("{shown} is not in memory: each batch of a packed ring is written to it"),
            "set ring_state to a folder on tmpfs, such as /run/ringswitch/rings",
        );
    }
}

/// How many descriptors the daemon has open, and how many it may have (proc(5)).
fn descriptors(host: &mut Findings, socket: &Path) {
    let peer = UnixStream::connect(socket)
        .ok()
        .and_then(|stream| socket_peercred(&stream).ok());
    let Some(pid) = peer.map(|peer| peer.pid.as_raw_nonzero().get()) else {
        return;
    };
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).map(Iterator::count);
    if let (Some(most), Ok(open)) = (open_files(&limits), open) {
        host.list.extend(of_descriptors(open as u64, most));
    }
}

fn of_descriptors(open: u64, most: u64) -> Vec<Finding> {
    let mut host = Findings::about("host");
    let finding = format!("{open} of {most} descriptors are open");
    // Of each ring it has some, so a few ports more are enough.
    if open.saturating_mul(5) > most.saturating_mul(4) {
        host.warn(
            "descriptors",
            finding,
            "raise the limit (LimitNOFILE= of the service, or `ulimit -Hn`) before ports are added",
        );
    } else {
        host.ok("descriptors", finding);
    }
    host.list
}

/// The soft limit.
fn open_files(limits: &str) -> Option<u64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    let soft = line.split_whitespace().next()?;
    match soft {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

/// Which version runs.
pub fn daemon(health: &Health) -> Vec<Finding> {
    let mut host = Findings::about("host");
    if health.version == VERSION {
        host.ok("daemon", format!("version {VERSION} answers"));
    } else {
        host.warn(
            "daemon",
            format!("version {} runs, and this is {VERSION}", health.version),
            "`ringswitch upgrade` replaces the running daemon by what is on disk, and guests notice nothing",
        );
    }
    host.list
}

/// What workers had to do between two looks.
pub fn workers(before: &StatsReport, now: &StatsReport) -> Vec<Finding> {
    let mut host = Findings::about("host");
    let Some(elapsed_us) = now.uptime_us.checked_sub(before.uptime_us) else {
        host.warn(
            "workers",
            "the daemon was started anew meanwhile",
            "look at its log for why",
        );
        return host.list;
    };
    for worker in &now.workers {
        let old = before
            .workers
            .iter()
            .find(|old| old.worker == worker.worker);
        if let Some(old) = old {
            of_worker(
                &mut host,
                (old, worker),
                elapsed_us.max(1),
                now.workers.len(),
            );
        }
    }
    host.list
}

fn of_worker(host: &mut Findings, (old, new): (&Worker, &Worker), elapsed_us: u64, count: usize) {
    let percent = |old: u64, new: u64| new.saturating_sub(old) / elapsed_us.saturating_mul(10);
    let number = new.worker;
    let busy = percent(old.busy_ns, new.busy_ns);
    let awake = percent(old.awake_ns, new.awake_ns);
    let ran = old
        .cpu_ns
        .zip(new.cpu_ns)
        .map(|(old, new)| percent(old, new));
    if busy > 90 {
        let advice = if count == 1 {
            "give the switch more workers (`workers`), with a CPU for each"
        } else {
            "`ringswitch worker list` shows what it serves; give the switch more workers, or put ports elsewhere with `ringswitch worker move`"
        };
        host.warn(
            "workers",
            format!("worker {number} is busy {busy} % of the time: frames wait"),
            advice,
        );
    } else if ran.is_some_and(|ran| awake > 20 && ran * 5 < awake * 4) {
        let ran = ran.unwrap_or_default();
        host.warn(
            "workers",
            format!("worker {number} wanted {awake} % of a CPU and got {ran} %"),
            "pin workers to CPUs that nothing else uses (`cpus`), and keep VMs off these",
        );
    } else if busy > 50 && new.cpu.is_none() {
        host.warn(
            "workers",
            format!("worker {number} is busy {busy} % of the time and not pinned"),
            "pin workers (`cpus`), so that the scheduler does not move them",
        );
    } else {
        host.ok(
            "workers",
            format!("worker {number} is busy {busy} % of the time"),
        );
    }
}

/// What outlives the process, and what cannot be opened.
pub fn configuration(config: &ConfigReport) -> Vec<Finding> {
    let mut host = Findings::about("host");
    let has_changes = config
        .ports
        .iter()
        .any(|port| port.origin == crate::control::PortOrigin::Runtime);
    match (config.durable, has_changes) {
        (true, _) => host.ok("state", "what is changed at run time is durable"),
        (false, true) => host.warn(
            "state",
            "ports were added or changed at run time, and that does not outlive the daemon",
            "set state_dir, or write them into the configuration file with `ringswitch config save`",
        ),
        (false, false) => host.ok("state", "nothing was changed at run time, and there is no state_dir"),
    }
    for port in &config.ports {
        if let (Some(fault), Some(name)) = (&port.fault, &port.port.name) {
            host.problem(
                "ports",
                format!("port {name} cannot be opened: {fault}"),
                "it is tried again every few seconds",
            );
        }
    }
    host.list
}

/// Of the machine alone.
pub fn machine() -> Vec<Finding> {
    let mut host = Findings::about("host");
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let number = |key: &str| {
        let line = memory.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim_start_matches(':')
            .split_whitespace()
            .next()?
            .parse::<u64>()
            .ok()
    };
    match (number("HugePages_Total"), number("HugePages_Free")) {
        (Some(0), _) => host.ok(
            "hugepages",
            "none are reserved; guests run without them, with more TLB misses",
        ),
        (Some(total), Some(free)) => host.ok("hugepages", format!("{free} of {total} are free")),
        _ => {}
    }
    if Path::new("/proc/sys/vm/unprivileged_userfaultfd").exists() {
        host.ok(
            "kernel",
            format!(
                "{}, with userfaultfd for VMs that arrive by postcopy",
                release()
            ),
        );
    } else {
        host.warn(
            "kernel",
            format!(
                "{} has no userfaultfd: no VM can arrive by postcopy",
                release()
            ),
            "migrate VMs to this host without postcopy, or use a kernel with CONFIG_USERFAULTFD",
        );
    }
    host.list
}

fn release() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("Linux {}", release.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Level;
    use serde_json::json;

    fn stats(uptime_us: u64, worker: serde_json::Value) -> StatsReport {
        let mut row = json!({"worker": 0, "frames": 0, "batches": 0, "sleeps": 0, "awake_ns": 0, "sources": 1});
        row.as_object_mut()
            .unwrap()
            .extend(worker.as_object().unwrap().clone());
        serde_json::from_value(json!({"uptime_us": uptime_us, "ports": [], "workers": [row]}))
            .unwrap()
    }

    #[test]
    fn a_worker_is_judged_by_what_it_did_in_between() {
        let before = stats(
            1_000_000,
            json!({"busy_ns": 5_000_000_000u64, "awake_ns": 0, "cpu_ns": 0}),
        );
        for (after, level, part) in [
            (
                json!({"busy_ns": 5_950_000_000u64, "awake_ns": 1_000_000_000, "cpu_ns": 990_000_000}),
                Level::Warning,
                "busy 95 %",
            ),
            (
                json!({"busy_ns": 5_600_000_000u64, "awake_ns": 1_000_000_000, "cpu_ns": 990_000_000}),
                Level::Warning,
                "not pinned",
            ),
            (
                json!({"busy_ns": 5_600_000_000u64, "awake_ns": 1_000_000_000, "cpu_ns": 990_000_000, "cpu": 1}),
                Level::Ok,
                "busy 60 %",
            ),
            (
                json!({"busy_ns": 5_100_000_000u64, "awake_ns": 1_000_000_000, "cpu_ns": 500_000_000}),
                Level::Warning,
                "got 50 %",
            ),
            (json!({"busy_ns": 5_000_000_000u64}), Level::Ok, "busy 0 %"),
        ] {
            let found = workers(&before, &stats(2_000_000, after));
            assert_eq!(found[0].level, level, "{found:?}");
            assert!(found[0].finding.contains(part), "{found:?}");
        }
        assert_eq!(
            workers(&before, &stats(10, json!({})))[0].level,
            Level::Warning
        );
    }

    #[test]
    fn descriptors_run_out_before_they_have_run_out() {
        assert_eq!(of_descriptors(80, 100)[0].level, Level::Ok);
        assert_eq!(of_descriptors(81, 100)[0].level, Level::Warning);
        assert_eq!(of_descriptors(81, u64::MAX)[0].level, Level::Ok);
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024                 4096                 files\n";
        assert_eq!(open_files(limits), Some(1024));
    }

    #[test]
    fn changes_that_are_not_durable_are_told() {
        let config = |durable, origin| -> ConfigReport {
            let port = json!({"name": "vm1", "type": "tap", "interface": "t0"});
            serde_json::from_value(
                json!({"durable": durable, "ports": [{"origin": origin, "port": port}]}),
            )
            .unwrap()
        };
        assert_eq!(
            configuration(&config(false, "runtime"))[0].level,
            Level::Warning
        );
        assert_eq!(configuration(&config(true, "runtime"))[0].level, Level::Ok);
        assert_eq!(configuration(&config(false, "file"))[0].level, Level::Ok);
    }

    #[test]
    fn a_version_that_differs_is_told() {
        let health = |version: &str| Health {
            status: "ok".into(),
            version: version.into(),
        };
        assert_eq!(daemon(&health(VERSION))[0].level, Level::Ok);
        assert!(
            daemon(&health("0.0.9"))[0]
                .advice
                .as_ref()
                .unwrap()
                .contains("upgrade")
        );
    }

    #[test]
    fn what_is_no_admin_socket_is_a_problem() {
        let found = socket(Path::new("/proc/self/status"));
        assert_eq!(
            (found[0].level, found[0].check),
            (Level::Problem, "admin_socket")
        );
        let found = socket(Path::new("/nonexistent/admin.sock"));
        assert!(found[0].advice.as_ref().unwrap().contains("ringswitch run"));
    }
}
