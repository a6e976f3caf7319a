//! The daemon replaced by another process under running guests, which notice nothing.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use guest_sim::Nic;
use guest_sim::bench::daemon::PortArgument;
use guest_sim::nic::session::connect;
use guest_sim::{Listener, NicOptions};
use rustix::process::{Pid, Signal, kill_process};
use vmm_sys_util::tempdir::TempDir;

use crate::rig::{
    Bystanders, Switch, WITHIN, exchange, guest_options, introduce, mac, numbered, settle, until,
    verify_arrival,
};

/// The next version of the program: another format, and it reads this one's.
fn next_version() -> PathBuf {
    let this = Path::new(env!("CARGO_BIN_EXE_ringswitch"));
    this.with_file_name("examples").join("next-version")
}

/// A program that is no Ringswitch.
fn script(folder: &TempDir, text: &str) -> String {
    let path = folder.as_path().join("script");
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

fn folder() -> TempDir {
    TempDir::new_with_prefix(std::env::temp_dir().join("ringswitch-upgrade-")).unwrap()
}

#[test]
fn guests_notice_nothing_of_upgrades_under_load() {
    let mut switch = Switch::of(&["vm7", "vm8"]);
    let mut guests = Bystanders::on(&switch);
    let before = guests.during(|| {
        let before = switch.counters("vm7");
        for _ in 0..10 {
            switch.upgrade(&[]);
        }
        before
    });
    for port in ["vm7", "vm8"] {
        let device = switch.show(port)["device"].clone();
        assert_eq!(device["connections"]["connects"], 1, "{device}");
        assert_eq!(device["connections"]["disconnects"], 0);
        assert!(device["last_disconnect"].is_null());
        assert_eq!(switch.all_drops(port), []);
    }
    let frames = |counters: &serde_json::Value| counters["guest_tx_frames"].as_u64().unwrap();
    assert!(frames(&switch.counters("vm7")) > frames(&before));
    assert_eq!(switch.learned(mac(7)).as_deref(), Some("vm7"));
    switch.finish();
}

#[test]
fn a_version_that_reads_the_state_takes_over_and_one_that_does_not_leaves_it_to_the_old() {
    let mut switch = Switch::of(&["vm7", "vm8"]);
    let mut guests = Bystanders::on(&switch);
    let next = next_version();
    let next = next.to_str().unwrap();
    let this = env!("CARGO_BIN_EXE_ringswitch");
    guests.during(|| {
        switch.upgrade(&["--binary", next]);
        let pid = switch.daemon.pid();
        let refused = switch.daemon.command(&["upgrade", "--binary", this]);
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("format 2"), "{refused}");
        assert_eq!(switch.daemon.pid(), pid);
        switch.upgrade(&["--binary", next]);
    });
    switch.finish();
}

#[test]
fn the_old_process_goes_on_when_the_new_one_fails() {
    let switch = Switch::of(&["vm7", "vm8"]);
    let mut guests = Bystanders::on(&switch);
    let folder = folder();
    let cases = [
        ("/no/such/program".to_owned(), "cannot be started"),
        (script(&folder, "exit 7"), "exit status: 7"),
    ];
    guests.during(|| {
        for (binary, why) in &cases {
            let refused = switch.daemon.command(&["upgrade", "--binary", binary]);
            let refused = refused.unwrap_err().to_string();
            assert!(refused.contains(why), "{refused}");
        }
        let silent = script(&folder, "exec sleep 100");
        let arguments = ["upgrade", "--binary", &silent, "--timeout", "200"];
        let refused = switch.daemon.command(&arguments).unwrap_err().to_string();
        assert!(refused.contains("not ready within 200 ms"), "{refused}");
    });
    for port in ["vm7", "vm8"] {
        assert_eq!(switch.show(port)["device"]["connections"]["disconnects"], 0);
    }
    switch.finish();
}

#[test]
fn ports_of_every_kind_pass_on_with_their_guests() {
    let many = PortArgument {
        queue_pairs: 4,
        ..PortArgument::named("vm1")
    };
    let vlan = PortArgument {
        more: "vlan=10",
        ..PortArgument::named("vm3")
    };
    let client = PortArgument {
        more: "mode=client",
        ..PortArgument::named("vm4")
    };
    let ports = [
        many,
        PortArgument::named("vm2"),
        vlan,
        client,
        PortArgument::named("vm5"),
    ];
    let mut switch = Switch::new(&ports, &["--workers", "2"]);
    let listener = Listener::bind(&switch.daemon.socket("vm4")).unwrap();
    let options = NicOptions {
        queue_pairs: 4,
        ..guest_options()
    };
    let mut vm1 = switch.guest("vm1", options);
    let mut vm2 = switch.guest("vm2", guest_options());
    let mut vm4 = introduce(guest_options(), listener.accept(WITHIN).unwrap());
    vm4.start().unwrap();
    settle(&mut vm4);
    // Known to the switch, its rings not started; and connected only.
    let mut vm3 = switch.introduced("vm3", guest_options());
    let silent = connect(&switch.daemon.socket("vm5"), WITHIN).unwrap();
    // So that vm2 is known, and nothing for it is flooded.
    exchange((2, &mut vm2), (4, &mut vm4));
    for _ in 0..3 {
        switch.upgrade(&[]);
        for pair in 0..4 {
            let frame = numbered(pair, 1, 2);
            let guest_tx = &mut vm1.pair(usize::from(pair)).guest_tx;
            guest_tx.send(&frame, WITHIN).unwrap();
            verify_arrival(&frame, &mut vm2);
        }
        exchange((2, &mut vm2), (4, &mut vm4));
    }
    vm3.start().unwrap();
    settle(&mut vm3);
    assert_eq!(switch.show("vm3")["device"]["state"], "up");
    assert_eq!(switch.show("vm5")["device"]["connections"]["connects"], 1);
    drop(silent);
    until("the silent front-end to be gone", || {
        let device = switch.show("vm5")["device"].clone();
        (device["connections"]["disconnects"] == 1).then_some(())
    });
    // New front-ends find the new process.
    let mut vm5 = switch.guest("vm5", guest_options());
    exchange((5, &mut vm5), (2, &mut vm2));
    switch.finish();
}

#[test]
fn frames_wait_in_the_rings_while_a_new_process_gets_ready() {
    let mut switch = Switch::of(&["vm1", "vm2"]);
    let mut vm1 = switch.guest("vm1", guest_options());
    let mut vm2 = switch.guest("vm2", guest_options());
    exchange((1, &mut vm1), (2, &mut vm2));
    // What a front-end says meanwhile waits, too: this one is in the middle of a message.
    let folder = folder();
    let binary = env!("CARGO_BIN_EXE_ringswitch");
    let late = script(&folder, &format!("sleep 0.3\nexec {binary} \"$@\""));
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| vm1.session().get_features().map(drop));
        switch.upgrade(&["--binary", &late]);
        asked.join().unwrap().unwrap();
    });
    exchange((1, &mut vm1), (2, &mut vm2));
    switch.finish();
}

/// The child that a process has started, once it has.
fn child_of(pid: u32) -> Option<Pid> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let children = tasks.flatten().filter_map(|task| {
        let children = std::fs::read_to_string(task.path().join("children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    });
    children.filter_map(Pid::from_raw).next()
}

/// Whoever is killed, and however far the upgrade is: one process serves the guests, at once or after they have reconnected.
#[test]
fn whoever_is_killed_during_an_upgrade_guests_are_served_again() {
    let mut switch = Switch::of(&["vm1", "vm2"]);
    let mut guests = ["vm1", "vm2"].map(|port| switch.guest(port, guest_options()));
    let (mut survived, mut restarted) = (0, 0);
    for round in 0..36u32 {
        let old = switch.daemon.pid();
        let mut upgrade = std::process::Command::new(env!("CARGO_BIN_EXE_ringswitch"))
            .arg("--admin")
            .arg(switch.daemon.socket("admin"))
            .arg("upgrade")
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let new = until("the new process", || child_of(old));
        // Every step of it: a few milliseconds altogether where nothing else is at work.
        spin(Duration::from_micros(u64::from(round / 3) * 700));
        let victims = match round % 3 {
            0 => vec![new],
            1 => Pid::from_raw(old as i32).into_iter().collect(),
            _ => [Pid::from_raw(old as i32), Some(new)]
                .into_iter()
                .flatten()
                .collect(),
        };
        for victim in &victims {
            let _gone = kill_process(*victim, Signal::KILL);
        }
        upgrade.wait().unwrap();
        let left = [old, new.as_raw_nonzero().get() as u32]
            .into_iter()
            .find(|pid| is_running(*pid));
        match left {
            Some(pid) if pid == switch.daemon.pid() => survived += 1,
            Some(pid) => {
                switch.daemon.succeed_by(pid).unwrap();
                survived += 1;
            }
            None => {
                switch.daemon.kill().unwrap();
                switch.daemon.restart().unwrap();
                restarted += 1;
            }
        }
        switch.await_ready();
        for (port, nic) in ["vm1", "vm2"].into_iter().zip(&mut guests) {
            attach_again(&switch, port, nic);
        }
        let [vm1, vm2] = &mut guests;
        exchange((1, vm1), (2, vm2));
    }
    assert!(survived > 0 && restarted > 0, "{survived} {restarted}");
    switch.finish();
}

fn spin(time: Duration) {
    let from = Instant::now();
    while from.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// Neither gone nor about to be: one that was killed, or leaves, is gone within moments.
fn is_running(pid: u32) -> bool {
    let state = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let state = status.rsplit(") ").next()?.chars().next()?;
        (state != 'Z').then_some(())
    };
    let patience = guest_sim::Patience::of(Duration::from_millis(300));
    while state().is_some() {
        if patience.is_over() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    false
}

fn attach_again(switch: &Switch, port: &str, nic: &mut Nic) {
    if nic.session().get_features().is_err() {
        let stream = connect(&switch.daemon.socket(port), WITHIN).unwrap();
        nic.reconnect(stream).unwrap();
        settle(nic);
    }
}
