//! docs/ringswitch.service under a systemd of its own, with guests on its ports: started, reloaded, killed, refused, stopped.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use guest_sim::{GuestMemory, GuestMemoryLayout, Nic, Patience};
use vmm_sys_util::tempdir::TempDir;

use crate::rig::{WITHIN, exchange, guest_options, settle, until};

const SYSTEMD: &str = "/lib/systemd/systemd";
const UNIT: &str = include_str!("../../../docs/ringswitch.service");
/// Targets that every service is ordered by.
const TARGETS: [&str; 6] = [
    "sysinit",
    "basic",
    "shutdown",
    "umount",
    "network-pre",
    "network",
];
const CONFIGURATION: &str = r#"
[switch]
state_dir = "/var/lib/ringswitch"

[[port]]
name = "vm1"
type = "vhost-user"
socket = "/run/ringswitch/vm1.sock"

[[port]]
name = "vm2"
type = "vhost-user"
socket = "/run/ringswitch/vm2.sock"

[[port]]
name = "host"
type = "tap"
interface = "rs-systemd0"
vlan = { access = 99 }
"#;

/// A control group of the test's own in each hierarchy that systemd makes groups in, so that they can be removed.
struct Cgroups(Vec<PathBuf>);

impl Cgroups {
    fn new() -> Self {
        let root = Path::new("/sys/fs/cgroup");
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let name = format!("rs-systemd-{}", std::process::id());
        // "number:controllers:path", without controllers in version 2 (cgroups(7)).
        let groups = own.lines().filter_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            let mount = match controllers {
                "" if root.join("cgroup.controllers").exists() => root.to_owned(),
                "" => root.join("unified"),
                // Nobody can join a new one, and systemd makes none.
                "cpuset" => return None,
                other => root.join(other.trim_start_matches("name=")),
            };
            let parent = mount.join(path.trim_start_matches('/'));
            (parent.join("cgroup.procs").exists()).then(|| parent.join(&name))
        });
        let groups: Vec<_> = groups.collect();
        for group in &groups {
            fs::create_dir(group).unwrap();
        }
        Self(groups)
    }

    fn remove(group: &Path) -> std::io::Result<()> {
        for entry in fs::read_dir(group)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                Self::remove(&entry.path())?;
            }
        }
        fs::remove_dir(group)
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        let patience = Patience::of(WITHIN);
        for group in &self.0 {
            // Busy for as long as a process in it has not ended.
            while Self::remove(group).is_err() && group.exists() && !patience.is_over() {
                std::thread::yield_now();
            }
        }
    }
}

/// A machine that runs this unit and nothing else, in namespaces.
struct Machine {
    folder: TempDir,
    unshare: Child,
    /// Gone behind the processes in them.
    _cgroups: Cgroups,
    /// Its first process, as it is called here.
    init: u32,
}

impl Machine {
    /// Boots it; `None` where there is no systemd.
    fn boot() -> Option<Self> {
        if !Path::new(SYSTEMD).exists() {
            eprintln!("skipped: {SYSTEMD} is not installed");
            return None;
        }
        let folder = TempDir::new_with_prefix(std::env::temp_dir().join("rs-systemd-")).unwrap();
        let path = |name: &str| folder.as_path().join(name);
        fs::create_dir(path("units")).unwrap();
        for target in TARGETS {
            let unit = format!("[Unit]\nDescription={target}\nDefaultDependencies=no\n");
            fs::write(path(&format!("units/{target}.target")), unit).unwrap();
        }
        let test = "[Unit]\nDescription=test\nDefaultDependencies=no\nWants=ringswitch.service\nAfter=ringswitch.service\n";
        fs::write(path("units/test.target"), test).unwrap();
        fs::write(path("units/ringswitch.service"), UNIT).unwrap();
        // There is no journal.
        fs::create_dir(path("units/ringswitch.service.d")).unwrap();
        let output = path("log").to_str().unwrap().to_owned();
        let output = format!("[Service]\nStandardOutput=append:{output}\nStandardError=inherit\n");
        fs::write(path("units/ringswitch.service.d/output.conf"), output).unwrap();
        fs::write(path("ringswitch.toml"), CONFIGURATION).unwrap();
        let booted = UnixDatagram::bind(path("notify")).unwrap();
        booted.set_read_timeout(Some(WITHIN)).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/end_to_end/systemd/boot");
        let mut log = fs::OpenOptions::new();
        let log = log.create(true).append(true).open(path("log")).unwrap();
        let cgroups = Cgroups::new();
        let unshare = Command::new(script)
            .arg(folder.as_path())
            .arg(env!("CARGO_BIN_EXE_ringswitch"))
            .args(&cgroups.0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut machine = Self {
            folder,
            unshare,
            _cgroups: cgroups,
            init: 0,
        };
        let mut told = [0; 256];
        loop {
            let length = booted.recv(&mut told);
            let length = length.unwrap_or_else(|error| panic!("{error}: {}", machine.log()));
            if told[..length].starts_with(b"READY=1") {
                break;
            }
        }
        let unshare = machine.unshare.id();
        let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"));
        machine.init = children.unwrap().trim().parse().unwrap();
        Some(machine)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.as_path().join(name)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn run(&self, command: &[&str]) -> Output {
        Command::new("nsenter")
            .args(["--all", "--wd=/", "--target", &self.init.to_string()])
            .args(command)
            .output()
            .unwrap()
    }

    /// Whether `systemctl` did it.
    fn systemctl(&self, verb: &str) -> bool {
        let output = self.run(&["systemctl", verb, "ringswitch.service"]);
        output.status.success()
    }

    fn property(&self, name: &str) -> String {
        let show = ["systemctl", "show", "--value", "--property", name];
        let output = self.run(&[&show[..], &["ringswitch.service"]].concat());
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// The main process, by the number that it has there.
    fn main(&self) -> u32 {
        self.property("MainPID").parse().unwrap()
    }

    fn expect(&self, state: &str, result: &str) {
        let found = ["ActiveState", "Result"].map(|name| self.property(name));
        assert_eq!(found, [state, result], "{}", self.log());
    }

    /// Those of the switch that there are.
    fn sockets_and_interfaces(&self) -> Vec<String> {
        // Of its own network, which /sys is not.
        let interfaces = self.run(&["ip", "-o", "link"]);
        let sockets = self.run(&["ls", "/run/ringswitch"]);
        assert!(interfaces.status.success() && sockets.status.success());
        let all = [interfaces.stdout, sockets.stdout].map(|text| String::from_utf8(text).unwrap());
        let words = all.iter().flat_map(|text| text.split_whitespace());
        let words = words.map(|word| word.trim_end_matches(':'));
        let mut found: Vec<_> = words
            .filter(|word| word.ends_with(".sock") || word.starts_with("rs-"))
            .map(str::to_owned)
            .collect();
        found.sort();
        found
    }

    fn guest(&self, number: u8) -> Nic {
        let memory = GuestMemory::new(&GuestMemoryLayout::one_region(16 << 20)).unwrap();
        let init = self.init;
        let socket = format!("/proc/{init}/root/run/ringswitch/vm{number}.sock");
        let mut nic = Nic::attach(&memory, guest_options(), Path::new(&socket)).unwrap();
        settle(&mut nic);
        nic
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Takes everything along that runs in its namespaces.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}

#[test]
fn the_unit_starts_reloads_restarts_and_stops_under_systemd() {
    let Some(machine) = Machine::boot() else {
        return;
    };
    machine.expect("active", "success");
    assert_eq!(
        machine.sockets_and_interfaces(),
        ["admin.sock", "rs-systemd0", "vm1.sock", "vm2.sock"]
    );
    let started = machine.main();
    let (mut one, mut other) = (machine.guest(1), machine.guest(2));
    exchange((1, &mut one), (2, &mut other));

    // Twice: the second process has to be as good a parent as the first.
    let mut before = started;
    for _ in 0..2 {
        assert!(machine.systemctl("reload"), "{}", machine.log());
        let main = machine.main();
        assert_ne!(main, before, "{}", machine.log());
        exchange((1, &mut one), (2, &mut other));
        before = main;
    }
    machine.expect("active", "success");

    // A configuration that is refused costs nothing but the command.
    let file = machine.path("ringswitch.toml");
    let mut appended = fs::OpenOptions::new().append(true).open(&file).unwrap();
    appended.write_all(b"nonsense = 1\n").unwrap();
    assert!(!machine.systemctl("reload"));
    assert_eq!(machine.main(), before);
    exchange((1, &mut one), (2, &mut other));
    // Until it is started with it: then it stays down, and says why.
    assert!(!machine.systemctl("restart"));
    machine.expect("failed", "exit-code");
    assert_eq!(machine.property("NRestarts"), "0");
    assert!(machine.log().contains("`nonsense`"), "{}", machine.log());
    fs::write(&file, CONFIGURATION).unwrap();
    assert!(machine.systemctl("start"), "{}", machine.log());

    drop((one, other));
    let (mut one, mut other) = (machine.guest(1), machine.guest(2));
    exchange((1, &mut one), (2, &mut other));
    let killed = machine.main();
    machine.run(&["kill", "-KILL", &killed.to_string()]);
    until("a restart", || {
        (machine.property("NRestarts") == "1" && machine.property("SubState") == "running")
            .then_some(())
    });
    let (mut one, mut other) = (machine.guest(1), machine.guest(2));
    exchange((1, &mut one), (2, &mut other));

    assert!(machine.systemctl("stop"));
    machine.expect("inactive", "success");
    assert_eq!(machine.sockets_and_interfaces(), [""; 0]);
}
