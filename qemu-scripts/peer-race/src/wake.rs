//! What it takes to wake a thread on the other core: the floor under a ping that finds a sleeping switch.
//!
//! Called between turns, when nothing else runs. Keeps true: the same pause before each wake as before each ping.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use guest_sim::bench::cores;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

use crate::case::Load;
use crate::error::{Doing, Error, Result};
use crate::guest::Delay;
use crate::machine::{Machine, on_a_thread};
use crate::process::SOON;

/// Wakes a thread that sleeps in epoll by an eventfd for a time, pausing before each as the load does.
///
/// # Errors
/// The system refuses, or the thread does not wake.
pub fn measure(machine: &Machine, load: &Load, time: Duration) -> Result<Delay> {
    let Load::Ping { idle, .. } = *load else {
        return Err(Error::Invalid("only pings have a wake to compare".into()));
    };
    let doing = || "making an eventfd to wake a thread with".to_owned();
    let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).doing(doing)?;
    let answered = AtomicU64::new(0);
    const LAST: u64 = u64::MAX;
    let sleeper = || -> Result<()> {
        cores::pin(machine.switch_core)?;
        let doing = || "waiting to be woken".to_owned();
        let waiting = epoll::create(epoll::CreateFlags::CLOEXEC).doing(doing)?;
        epoll::add(
            &waiting,
            &bell,
            epoll::EventData::new_u64(0),
            epoll::EventFlags::IN,
        )
        .doing(doing)?;
        let timeout = Timespec::try_from(SOON).unwrap_or_default();
        let mut woken = 0;
        while answered.load(Ordering::Acquire) != LAST {
            let mut events = Vec::with_capacity(1);
            let count = epoll::wait(
                &waiting,
                rustix::buffer::spare_capacity(&mut events),
                Some(&timeout),
            )
            .doing(doing)?;
            if count == 0 {
                return Ok(());
            }
            rustix::io::read(&bell, &mut [0; 8]).doing(doing)?;
            woken += 1;
            let _last = answered.fetch_max(woken, Ordering::AcqRel);
        }
        Ok(())
    };
    let waker = || -> Result<Delay> {
        cores::pin(machine.guest_core)?;
        let doing = || "waking a thread".to_owned();
        let start = Instant::now();
        let mut samples = Vec::new();
        while start.elapsed() < time {
            std::thread::sleep(idle);
            let sent = Instant::now();
            rustix::io::write(&bell, &1u64.to_ne_bytes()).doing(doing)?;
            let wanted = samples.len() as u64 + 1;
            while answered.load(Ordering::Acquire) < wanted {
                if sent.elapsed() > SOON {
                    return Err(Error::Invalid("a thread was not woken".into()));
                }
            }
            samples.push(u32::try_from(sent.elapsed().as_nanos()).unwrap_or(u32::MAX));
        }
        Delay::of(&mut samples, start.elapsed())
            .ok_or_else(|| Error::Invalid("nothing was woken".into()))
    };
    std::thread::scope(|scope| {
        let sleeper = scope.spawn(sleeper);
        let outcome = on_a_thread(waker);
        answered.store(LAST, Ordering::Release);
        let rung = rustix::io::write(&bell, &1u64.to_ne_bytes()).doing(doing);
        match sleeper.join() {
            Ok(slept) => rung.and(slept).and(outcome),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
