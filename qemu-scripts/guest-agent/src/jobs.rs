//! Jobs: each runs on a thread of its own and can be polled, waited for and stopped from the channel's threads.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::protocol::{Job, Outcome, Progress};
use crate::rate::Pace;
use crate::{probe, rate, sniff, tcp, udp};

/// How often a job that waits for the network looks whether it should stop.
pub const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// What a running job shares with whoever watches it.
#[derive(Debug, Default)]
pub struct Watch {
    stop: AtomicBool,
    count: AtomicU64,
    longest_gap_us: AtomicU64,
    outcome: Mutex<Option<Result<Outcome, String>>>,
    ended: Condvar,
}

impl Watch {
    /// Should the job end?
    #[must_use]
    pub fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Publishes how far the job is.
    pub fn set_count(&self, count: u64) {
        self.count.store(count, Ordering::Release);
    }

    /// Publishes a time without an answer. Before the count that includes the answer that ended it.
    pub fn note_gap(&self, gap: Duration) {
        let gap_us = u64::try_from(gap.as_micros()).unwrap_or(u64::MAX);
        self.longest_gap_us.fetch_max(gap_us, Ordering::Relaxed);
    }
}

/// A job that can be reached, ready to run to its end.
pub type Body = Box<dyn FnOnce(&Watch) -> io::Result<Outcome> + Send>;

/// All jobs of this boot.
#[derive(Debug, Default)]
pub struct Jobs {
    by_id: Mutex<BTreeMap<u64, Arc<Watch>>>,
}

impl Jobs {
    /// Starts a job. When it returns, a receiver's socket is open: a sender may be started.
    ///
    /// # Errors
    /// The job's sockets could not be opened, or no thread could be had.
    pub fn start(&self, job: Job) -> io::Result<u64> {
        let body = prepare(job)?;
        let watch = Arc::new(Watch::default());
        let id = {
            let mut by_id = lock(&self.by_id);
            let id = by_id.last_key_value().map_or(1, |(last, _)| last + 1);
            by_id.insert(id, Arc::clone(&watch));
            id
        };
        std::thread::Builder::new()
            .name(format!("job-{id}"))
            .spawn(move || {
                let outcome = body(&watch).map_err(|error| error.to_string());
                *lock(&watch.outcome) = Some(outcome);
                watch.ended.notify_all();
            })?;
        Ok(id)
    }

    /// How far is it?
    ///
    /// # Errors
    /// There is no such job, or it failed.
    pub fn poll(&self, id: u64) -> Result<Progress, String> {
        let watch = self.watch(id)?;
        let ended = match &*lock(&watch.outcome) {
            None => false,
            Some(Ok(_)) => true,
            Some(Err(error)) => return Err(error.clone()),
        };
        // The gap is noted before its answer is counted: whoever sees that count sees it too.
        let count = watch.count.load(Ordering::Acquire);
        Ok(Progress {
            count,
            ended,
            longest_gap_us: watch.longest_gap_us.swap(0, Ordering::Relaxed),
        })
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// There is no such job, or it failed.
    pub fn wait(&self, id: u64) -> Result<Outcome, String> {
        let watch = self.watch(id)?;
        let mut outcome = lock(&watch.outcome);
        loop {
            match &*outcome {
                Some(outcome) => return outcome.clone(),
                None => {
                    outcome = watch
                        .ended
                        .wait(outcome)
                        .unwrap_or_else(PoisonError::into_inner)
                }
            }
        }
    }

    /// Asks it to end.
    ///
    /// # Errors
    /// There is no such job.
    pub fn stop(&self, id: u64) -> Result<(), String> {
        self.watch(id)?.stop.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn watch(&self, id: u64) -> Result<Arc<Watch>, String> {
        lock(&self.by_id)
            .get(&id)
            .cloned()
            .ok_or_else(|| format!("no job {id} since this boot"))
    }
}

fn prepare(job: Job) -> io::Result<Body> {
    match job {
        Job::TcpReceive { port, seed } => tcp::receive(port, seed),
        Job::TcpSend {
            to,
            seed,
            bytes,
            bytes_per_second,
        } => Ok(tcp::send(to, seed, bytes, Pace::of(bytes_per_second))),
        Job::UdpReceive { port, seed } => udp::receive(port, seed),
        Job::UdpSend {
            to,
            seed,
            datagrams,
            payload_bytes,
        } => udp::send(to, seed, datagrams, payload_bytes),
        Job::UdpPace {
            to,
            payload_bytes,
            bytes_per_second,
        } => Ok(rate::pace(to, payload_bytes, bytes_per_second)),
        Job::UdpMeasure {
            port,
            skip_bytes,
            bytes,
        } => rate::measure(port, skip_bytes, bytes),
        Job::Probe { to, interval_us } => probe::probe(to, interval_us),
        Job::Shout {
            to,
            text,
            datagrams,
        } => Ok(udp::shout(to, text, datagrams)),
        Job::Sniff { text } => sniff::count(text),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
