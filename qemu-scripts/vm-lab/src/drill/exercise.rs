//! One run: traffic, a migration in the midst of it, and what came of both.

use std::time::Duration;

use serde_json::Value;

use super::Mode;
use super::load::{Flows, Load, retransmits};
use super::report::{CalledOff, Run};
use super::site::Site;
use super::switches::Place;
use crate::await_::{SOON, eventually};
use crate::guest::Incoming;
use crate::migration::{Account, Limits, Manner, Migration};
use crate::traffic::Probes;
use crate::{Error, Result};

/// Time between two probes: the resolution of a blackout.
pub const PROBE_INTERVAL_US: u32 = 1000;
/// Answers to wait for before and after what is measured.
const PROBES_AROUND: u64 = 300;
/// Several rounds for a guest of this size, and it is over within seconds.
const BRISK: Limits = Limits {
    bytes_per_second: 256 << 20,
    downtime_ms: 100,
};
/// Never through before it is called off.
const SLOW: Limits = Limits {
    bytes_per_second: 32 << 20,
    downtime_ms: 1,
};

/// Runs a mode once.
///
/// # Errors
/// A migration ends otherwise than it should, or the lab does not work.
pub fn run(site: &mut Site, mode: Mode, load: Load, number: u32) -> Result<Run> {
    let mut flows = Flows::start(load, site.ends())?;
    let probes = probes(site)?;
    probes.wait_more(PROBES_AROUND)?;
    let usual_gap_ms = probes.stop()?.longest_gap_seconds * 1e3;
    let called_off = match mode {
        Mode::Cancel => Some(call_off(site, &mut flows, number)?),
        Mode::Precopy | Mode::Postcopy => None,
    };
    let place = site.switches().after(site.place());
    let is_across = place.is_across(site.place());
    let target = site.incoming(place)?;
    let retransmits_before = all_retransmits(site)?;
    let probes = self::probes(site)?;
    probes.wait_more(PROBES_AROUND)?;
    let (account, learnt) = move_to(site, target, place, mode)?;
    probes.wait_more(PROBES_AROUND)?;
    flows.wait_alive()?;
    let seen = probes.stop()?;
    let casualties = flows.stop()?;
    Ok(Run {
        number,
        is_across,
        account,
        blackout_ms: seen.longest_gap_seconds * 1e3,
        usual_gap_ms,
        frames_sent: seen.sent,
        frames_lost: seen.sent.saturating_sub(seen.frames),
        probes_corrupted: seen.corrupt,
        tcp_retransmits: all_retransmits(site)?.saturating_sub(retransmits_before),
        casualties,
        learnt_ms: learnt.as_secs_f64() * 1e3,
        called_off,
    })
}

/// The peer measures.
fn probes(site: &Site) -> Result<Probes> {
    let [(peer, _), _] = site.ends();
    Probes::start(peer, site.guest().spec().address(), PROBE_INTERVAL_US)
}

fn all_retransmits(site: &Site) -> Result<u64> {
    let [(peer, _), (guest, _)] = site.ends();
    Ok(retransmits(peer)? + retransmits(guest)?)
}

/// Starts a QEMU at the next place and moves the guest there. Also says how long after it ran there the switches had learnt so.
///
/// # Errors
/// The migration fails.
pub fn move_guest(site: &mut Site, mode: Mode) -> Result<(Account, Duration)> {
    let place = site.switches().after(site.place());
    let target = site.incoming(place)?;
    move_to(site, target, place, mode)
}

fn move_to(
    site: &mut Site,
    target: Incoming,
    place: Place,
    mode: Mode,
) -> Result<(Account, Duration)> {
    let manner = match mode {
        Mode::Precopy | Mode::Cancel => Manner::Precopy,
        Mode::Postcopy => Manner::Postcopy,
    };
    let socket = site.migration_socket();
    let mac = site.guest().spec().mac();
    let (guest, switches) = site.parts();
    let mut migration = Migration::start(guest, target, socket, manner, BRISK)?;
    if manner == Manner::Postcopy {
        migration.wait_round(1)?;
        migration.start_postcopy()?;
    }
    let resumed = migration.wait_resumed()?;
    let learnt = switches.wait_learnt(&mac, place, resumed)?;
    let (guest, account) = migration.finish()?;
    site.moved(guest, place);
    Ok((account, learnt))
}

/// Two migrations that come to nothing: one is cancelled, in another phase each run, of the other the target dies.
fn call_off(site: &mut Site, flows: &mut Flows, number: u32) -> Result<CalledOff> {
    let (limits, round) = match number % 3 {
        1 => (SLOW, 1),
        2 => (SLOW, 3),
        // As far as it goes: the guest is stopped, its rings have said where they are.
        _ => (BRISK, u64::MAX),
    };
    let probes = probes(site)?;
    probes.wait_more(PROBES_AROUND)?;
    let mut migration = start_unfinished(site, limits)?;
    migration.wait_round(round)?;
    migration.cancel()?;
    check_undisturbed(site, flows, &probes)?;
    let mut migration = start_unfinished(site, SLOW)?;
    migration.wait_round(1)?;
    migration.kill_target()?;
    check_undisturbed(site, flows, &probes)?;
    let seen = probes.stop()?;
    Ok(CalledOff {
        longest_gap_ms: seen.longest_gap_seconds * 1e3,
        frames_lost: seen.sent.saturating_sub(seen.frames),
    })
}

fn start_unfinished(site: &mut Site, limits: Limits) -> Result<Migration<'_>> {
    let target = site.incoming(site.switches().after(site.place()))?;
    let socket = site.migration_socket();
    Migration::start(site.parts().0, target, socket, Manner::Unfinished, limits)
}

/// The guest's traffic goes on, and nobody tracks what it writes any more.
fn check_undisturbed(site: &Site, flows: &mut Flows, probes: &Probes) -> Result<()> {
    eventually(SOON, "the port to stop logging", || {
        match site.switches().port(site.place()) {
            Ok(port) => match port.pointer("/device/logging") {
                Some(Value::Null) => Ok(Ok(())),
                logging => Err(format!("{logging:?}")),
            },
            Err(error) => Ok(Err(error)),
        }
    })??;
    probes.wait_more(PROBES_AROUND)?;
    flows.wait_alive()
}

/// Why a mode cannot be run here, if so.
///
/// # Errors
/// The switch does not answer.
pub fn obstacle(site: &Site, mode: Mode) -> Result<Option<String>> {
    if mode != Mode::Postcopy {
        return Ok(None);
    }
    let port = site.switches().port(site.place())?;
    let offered = port
        .pointer("/device/protocol_features_offered")
        .and_then(Value::as_array)
        .ok_or_else(|| Error::Unexpected(format!("what does this port offer? {port}")))?;
    let offers = offered.iter().any(|feature| feature == "PAGEFAULT");
    Ok((!offers).then(|| "the switch's ports do not offer PAGEFAULT".to_owned()))
}
