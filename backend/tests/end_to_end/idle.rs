//! A switch without work costs nothing and little memory, and wakes for the next frame.

use std::time::Duration;

use guest_sim::bench::MemoryUse;
use guest_sim::bench::cores::threads_cpu_time;
use guest_sim::bench::daemon::PortArgument;
use guest_sim::{Canaries, Nic, NicOptions};

use crate::rig::{Switch, VM, exchange, guest_options, numbered, one_way, until};

/// CPU time of all of the daemon's threads so far.
fn cpu_time(switch: &Switch) -> Duration {
    let threads = threads_cpu_time(switch.daemon.pid()).unwrap();
    threads.iter().map(|(_, time)| *time).sum()
}

#[test]
fn eight_idle_ports_use_under_one_percent_of_a_core_and_the_next_frame_wakes_the_switch() {
    /// Long enough for 1 % of it to be far more than the clock's grain.
    const INTERVAL: Duration = Duration::from_secs(3);
    let switch = Switch::of(&VM);
    let mut nics = VM.map(|port| switch.guest(port, guest_options()));
    let [one, other, ..] = &mut nics;
    one.send(&numbered(0, 1, 2)).unwrap();
    other.send(&numbered(0, 2, 1)).unwrap();
    until("both to be known", || {
        switch
            .learned(crate::rig::mac(1))
            .and(switch.learned(crate::rig::mac(2)))
    });
    while one.receive(Duration::from_millis(100)).unwrap().is_some() {}
    while other.receive(Duration::from_millis(100)).unwrap().is_some() {}
    exchange((1, one), (2, other));
    let before = cpu_time(&switch);
    std::thread::sleep(INTERVAL);
    let used = cpu_time(&switch) - before;
    assert!(
        used < INTERVAL / 100,
        "{used:?} of CPU time in {INTERVAL:?}"
    );
    for number in 0..20 {
        one_way(&numbered(number, 1, 2), one, other);
        one_way(&numbered(number, 2, 1), other, one);
    }
    switch.finish();
}

#[test]
fn a_switch_without_ports_sleeps() {
    const INTERVAL: Duration = Duration::from_secs(2);
    let switch = Switch::of(&[]);
    let before = cpu_time(&switch);
    std::thread::sleep(INTERVAL);
    let used = cpu_time(&switch) - before;
    assert!(
        used < INTERVAL / 100,
        "{used:?} of CPU time in {INTERVAL:?}"
    );
    switch.finish();
}

#[test]
fn one_frame_at_a_time_is_never_missed_by_a_switch_that_goes_to_sleep_in_between() {
    let switch = Switch::of(&["vm1", "vm2"]);
    let mut one = switch.guest("vm1", guest_options());
    let mut other = switch.guest("vm2", guest_options());
    // Around the poll window of 50 us, and past it: each pause meets another moment of falling asleep.
    for number in 0..3000u16 {
        one_way(&numbered(number, 1, 2), &mut one, &mut other);
        std::thread::sleep(Duration::from_micros(u64::from(number) % 120));
    }
    switch.finish();
}

#[test]
fn idle_ports_take_little_memory_and_few_descriptors() {
    const PORTS: u64 = 200;
    /// Each port's share, page tables included.
    const PER_PORT_BYTES: u64 = 64 << 10;
    /// Its guest's: the connection, two memory regions, and three eventfds for each of two rings.
    const PER_GUEST_DESCRIPTORS: u64 = 9;
    /// The daemon with two ports, its program included.
    const IN_ALL_BYTES: u64 = 28 << 20;
    let names: Vec<String> = (1..=PORTS).map(|number| format!("vm{number}")).collect();
    let ports: Vec<_> = names.iter().map(|name| PortArgument::named(name)).collect();
    let switch = Switch::new(&ports, &[]);
    let attach = |name: &String| -> Nic {
        let options = NicOptions {
            canaries: Canaries::Off,
            ..guest_options()
        };
        switch.guest(name, options)
    };
    let held = || MemoryUse::of(switch.daemon.pid()).unwrap();
    let own = |held: MemoryUse| held.anonymous_bytes + held.page_table_bytes;

    let (two, others) = names.split_at(2);
    let mut nics: Vec<Nic> = two.iter().map(attach).collect();
    let before = held();
    let in_all = own(before) + before.file_bytes;
    assert!(in_all < IN_ALL_BYTES, "{in_all} bytes with two ports");
    nics.extend(others.iter().map(attach));
    let after = held();
    let each = (own(after) - own(before)) / others.len() as u64;
    assert!(each < PER_PORT_BYTES, "{each} bytes for an idle port");
    let descriptors = after.descriptors - before.descriptors;
    let most = PER_GUEST_DESCRIPTORS * others.len() as u64;
    assert!(
        descriptors <= most,
        "{descriptors} descriptors for {} guests",
        others.len()
    );

    // Gone, they leave nothing behind.
    drop(nics);
    until("every guest to be detached", || {
        (held().descriptors <= before.descriptors).then_some(())
    });
    switch.finish();
}
