//! Guests that move between two QEMUs: `migrate-drill` in short. Times are not judged here, where the machine may be a slow one.

use vm_lab::Result;
use vm_lab::drill::load::Load;
use vm_lab::drill::report::HEADINGS;
use vm_lab::drill::site::{Nic, Site};
use vm_lab::drill::{Mode, drill, exercise};
use vm_lab::pool::without_lab;

use crate::expect_equal;

/// Boots, tests, and shows the logs when the test fails.
fn with_site(queue_pairs: u16, properties: &[&str], test: impl FnOnce(&mut Site) -> Result<()>) {
    without_lab(|| {
        let mut site = Site::start(Nic {
            queue_pairs,
            properties: properties.iter().map(ToString::to_string).collect(),
        })?;
        test(&mut site).inspect_err(|_| eprint!("{}", site.logs()))
    });
}

fn loses_nothing(site: &mut Site, mode: Mode, load: Load, runs: u32) -> Result<()> {
    eprintln!("  {HEADINGS}");
    let report = drill(site, (mode, load), runs, |run| {
        eprintln!("  {}", run.line());
    })?;
    expect_equal("damage", report.damage(), Vec::new())
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_guest_moves_to_another_port_and_to_another_switch_and_its_connections_go_on() {
    with_site(1, &[], |site| {
        loses_nothing(site, Mode::Precopy, Load::All, 2)?;
        match exercise::obstacle(site, Mode::Postcopy)? {
            None => loses_nothing(site, Mode::Postcopy, Load::All, 2),
            Some(reason) => {
                eprintln!("  postcopy skipped: {reason}");
                Ok(())
            }
        }
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_migration_that_is_cancelled_or_fails_leaves_the_guest_where_it_was_and_can_be_repeated() {
    with_site(2, &[], |site| {
        loses_nothing(site, Mode::Cancel, Load::Tcp, 1)
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_silent_guest_that_cannot_announce_itself_is_announced_by_qemu() {
    with_site(1, &["guest_announce=off"], move_silently);
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_silent_guest_announces_itself_where_it_arrives() {
    with_site(1, &[], move_silently);
}

/// With no frame from anyone but the announcement, to another port and then to the other switch.
fn move_silently(site: &mut Site) -> Result<()> {
    let [(peer, _), (guest, _)] = site.ends();
    // Nobody asks the guest for anything, and it has nobody to look after.
    peer.run("ip link set eth0 down")?;
    guest.run("sysctl -w net.ipv6.conf.eth0.disable_ipv6=1")?;
    guest.run("ip neigh flush dev eth0")?;
    for _ in 0..2 {
        let (_, learnt) = exercise::move_guest(site, Mode::Precopy)?;
        eprintln!("  known there after {:.1} ms", learnt.as_secs_f64() * 1e3);
    }
    Ok(())
}
