//! A worker: one thread that polls its guest-tx rings and TAPs, and runs each batch to completion.
//!
//! ```text
//!           kick, or a command                    silent for the poll window
//! asleep  ----------------------->  polling  ---------------------------------->  armed
//!   ^                                  ^  (looks once more: work came meanwhile) |   |
//!   |                                  +-------------------------------------------+   |
//!   +---- when no source is polled any more: epoll, without time-out  <----------------+
//! ```
//!
//! Each source is armed by itself, so a thousand silent ports cost nothing beside a busy one: only polled sources are looked
//! at, and while some are, epoll is asked now and then whether an armed one has something.
//!
//! Nothing a guest does ends this thread: a broken ring is stopped, its port told, and the loop goes on.

use super::Shared;
use super::batch::BatchRunner;
use super::counters::WorkerCounters;
use super::notify::PollWindow;
use super::ports::TapPort;
use super::queue::Queue;
use crate::ring::{EventSource, sigbus};
use event_manager::{
    EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberId, SubscriberOps,
};
use rustix::time::{ClockId, clock_gettime};
use std::cell::RefCell;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use switch_core::{Millis, PortId};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Rounds without a frame between two looks at the clock.
const ROUNDS_PER_CLOCK: u32 = 16;
/// While some source is polled, armed ones are asked about this often.
const EPOLL_INTERVAL_NS: u64 = 20_000;
/// How often a ring that has no kick eventfd is looked at when nothing else keeps the worker awake.
const KICKLESS_POLL_MS: i32 = 1;

/// What the control thread asks of a worker.
#[derive(Debug)]
pub enum Command {
    /// Serve this guest-tx ring: it was started, or has another kick eventfd.
    WatchQueue(Arc<Queue>),
    /// Forget it.
    ForgetQueue(Arc<Queue>),
    /// Serve this TAP.
    WatchTap(Arc<TapPort>),
    /// Forget it.
    ForgetTap(PortId),
    /// Answer: everything posted before has been done, and nothing of a port removed before is held any more.
    Settle(Sender<()>),
    /// Switch this frame as if `0` had sent it.
    Inject(PortId, Box<[u8]>),
    /// Finish the batch in hand and end.
    Stop,
}

impl Command {
    fn replaces(&self, earlier: &Self) -> bool {
        match (self, earlier) {
            (
                Self::WatchQueue(queue) | Self::ForgetQueue(queue),
                Self::WatchQueue(other) | Self::ForgetQueue(other),
            ) => Arc::ptr_eq(queue, other),
            (Self::Inject(port, _), Self::Inject(other, _)) => port == other,
            _ => false,
        }
    }
}

/// The control thread's end of a worker.
#[derive(Debug)]
pub struct Mailbox {
    commands: Mutex<Vec<Command>>,
    pending: AtomicBool,
    bell: EventFd,
}

impl Mailbox {
    /// An empty mailbox.
    pub fn new() -> std::io::Result<Self> {
        let bell = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
        Ok(Self {
            commands: Mutex::new(Vec::new()),
            pending: AtomicBool::new(false),
            bell,
        })
    }

    /// Leaves a command and wakes the worker. A command about a queue, or a frame of a port, takes the place of those that wait
    /// for the same: however often a front-end repeats itself, little waits here.
    pub fn post(&self, command: Command) {
        {
            let mut waiting = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.retain(|earlier| !command.replaces(earlier));
            waiting.push(command);
        }
        self.pending.store(true, Ordering::Release);
        // A full counter wakes as well.
        let _ = self.bell.write(1);
    }

    fn take(&self) -> Vec<Command> {
        if !self.pending.swap(false, Ordering::AcqRel) {
            return Vec::new();
        }
        std::mem::take(&mut self.commands.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Where frames come from.
#[derive(Debug)]
enum Origin {
    Ring(Arc<Queue>),
    Tap(Arc<TapPort>),
}

#[derive(Debug)]
struct Source {
    origin: Origin,
    /// Registered with epoll for as long as it is here.
    kick: Option<Arc<EventSource>>,
    polled: bool,
    /// When it last had a frame, as far as the clock was looked at.
    last_frame_ns: u64,
}

impl Source {
    fn watched_fd(&self) -> Option<RawFd> {
        match &self.origin {
            Origin::Ring(_) => self.kick.as_ref().map(|kick| kick.as_raw_fd()),
            Origin::Tap(port) => Some(port.tap.as_raw_fd()),
        }
    }

    /// A TAP cannot be asked to be quiet and costs a system call a look, so it waits in epoll as soon as it is empty; a ring
    /// without kick eventfd can only be polled.
    fn is_kickless(&self) -> bool {
        matches!(self.origin, Origin::Ring(_)) && self.kick.is_none()
    }
}

/// What epoll found: tokens of sources, by event data.
#[derive(Debug)]
struct Doorbells {
    bell: RawFd,
    rung: Rc<RefCell<Vec<u32>>>,
}

/// Event data of the mailbox; sources count from 0.
const MAILBOX_TOKEN: u32 = u32::MAX;

impl MutEventSubscriber for Doorbells {
    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        if events.data() != MAILBOX_TOKEN {
            self.rung.borrow_mut().push(events.data());
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let bell = Events::with_data_raw(
            self.bell,
            MAILBOX_TOKEN,
            EventSet::IN | EventSet::EDGE_TRIGGERED,
        );
        if let Err(error) = ops.add(bell) {
            log::error!("a worker cannot hear its commands: {error}");
        }
    }
}

/// The thread's own state.
pub struct Worker {
    shared: Arc<Shared>,
    mailbox: Arc<Mailbox>,
    counters: Arc<WorkerCounters>,
    events: EventManager<Doorbells>,
    doorbells: SubscriberId,
    rung: Rc<RefCell<Vec<u32>>>,
    /// By token.
    sources: Vec<Option<Source>>,
    /// Tokens of the sources that are polled.
    polled: Vec<u32>,
    runner: BatchRunner,
    window: PollWindow,
    losses: u64,
    stopping: bool,
}

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

impl Worker {
    /// A worker with nothing to do, for the thread that calls this.
    ///
    /// # Errors
    /// When its epoll instance cannot be made.
    pub fn new(
        shared: Arc<Shared>,
        mailbox: Arc<Mailbox>,
        counters: Arc<WorkerCounters>,
        poll_us: u32,
    ) -> Result<Self, event_manager::Error> {
        let mut events = EventManager::new()?;
        let rung = Rc::new(RefCell::new(Vec::new()));
        let doorbells = events.add_subscriber(Doorbells {
            bell: mailbox.bell.as_raw_fd(),
            rung: Rc::clone(&rung),
        });
        Ok(Self {
            runner: BatchRunner::new(Arc::clone(&shared), Arc::clone(&counters)),
            shared,
            mailbox,
            counters,
            events,
            doorbells,
            rung,
            sources: Vec::new(),
            polled: Vec::new(),
            window: PollWindow::new(poll_us),
            losses: sigbus::losses(),
            stopping: false,
        })
    }

    /// Works until [`Command::Stop`].
    pub fn run(&mut self) {
        let mut awake_since_ns = now_ns();
        let mut epoll_at_ns = awake_since_ns;
        let mut rounds = 0u32;
        loop {
            if self.mailbox.pending.load(Ordering::Acquire) {
                self.obey();
            }
            if self.stopping {
                return;
            }
            let frames = self.poll_sources();
            rounds = rounds.wrapping_add(1);
            if frames == 0 {
                std::hint::spin_loop();
            }
            if frames == 0 && !rounds.is_multiple_of(ROUNDS_PER_CLOCK) && !self.polled.is_empty() {
                continue;
            }
            let now = now_ns();
            self.runner.set_time(Millis(now / 1_000_000));
            self.notice_lost_memory();
            self.arm_silent(now);
            if self.polled.is_empty() {
                self.counters
                    .awake_ns
                    .add(now.saturating_sub(awake_since_ns));
                awake_since_ns = self.sleep();
                epoll_at_ns = awake_since_ns;
            } else if now.saturating_sub(epoll_at_ns) >= EPOLL_INTERVAL_NS {
                self.counters
                    .awake_ns
                    .add(now.saturating_sub(awake_since_ns));
                awake_since_ns = now;
                epoll_at_ns = now;
                self.wait(0, now);
            }
        }
    }

    /// One batch from each polled source; the number of frames.
    fn poll_sources(&mut self) -> usize {
        let mut frames = 0;
        let mut at = 0;
        while let Some(&token) = self.polled.get(at) {
            let Some(source) = self
                .sources
                .get_mut(token as usize)
                .and_then(Option::as_mut)
            else {
                self.polled.swap_remove(at);
                continue;
            };
            let taken = match &source.origin {
                Origin::Ring(queue) => self.runner.run_queue(queue),
                Origin::Tap(port) => self.runner.run_tap(port),
            };
            frames += taken;
            if taken > 0 {
                source.last_frame_ns = 0;
            } else if matches!(source.origin, Origin::Tap(_)) {
                source.polled = false;
                self.polled.swap_remove(at);
                continue;
            }
            at += 1;
        }
        frames
    }

    /// Arms each polled ring that was silent for the poll window.
    fn arm_silent(&mut self, now: u64) {
        let window = self.window.ns();
        let sources = &mut self.sources;
        self.polled.retain(|&token| {
            let Some(source) = sources.get_mut(token as usize).and_then(Option::as_mut) else {
                return false;
            };
            if source.last_frame_ns == 0 {
                source.last_frame_ns = now;
                return true;
            }
            let Origin::Ring(queue) = &source.origin else {
                return true;
            };
            if now.saturating_sub(source.last_frame_ns) < window {
                return true;
            }
            source.polled = BatchRunner::arm(queue);
            source.polled
        });
    }

    /// Sleeps until something rings; the time it woke.
    fn sleep(&mut self) -> u64 {
        self.counters.sleeps.add(1);
        let before = now_ns();
        let kickless = self.sources.iter().flatten().any(Source::is_kickless);
        self.wait(if kickless { KICKLESS_POLL_MS } else { -1 }, before);
        let now = now_ns();
        self.runner.set_time(Millis(now / 1_000_000));
        self.window.adapt(now.saturating_sub(before));
        if kickless {
            let tokens = (0u32..).zip(&self.sources);
            let silent =
                tokens.filter(|(_, s)| s.as_ref().is_some_and(|s| s.is_kickless() && !s.polled));
            let silent: Vec<u32> = silent.map(|(token, _)| token).collect();
            silent
                .into_iter()
                .for_each(|token| self.start_polling(token, now));
        }
        now
    }

    /// Asks epoll, for at most `timeout_ms` (-1: for ever), and polls what rang.
    fn wait(&mut self, timeout_ms: i32, now: u64) {
        if let Err(error) = self.events.run_with_timeout(timeout_ms) {
            log::error!("a worker's epoll failed: {error}");
        }
        let mut rung = std::mem::take(&mut *self.rung.borrow_mut());
        for token in rung.drain(..) {
            self.start_polling(token, now);
        }
        // Keeps its capacity: waking allocates nothing.
        *self.rung.borrow_mut() = rung;
    }

    fn start_polling(&mut self, token: u32, now: u64) {
        let Some(source) = self
            .sources
            .get_mut(token as usize)
            .and_then(Option::as_mut)
        else {
            return;
        };
        if !source.polled {
            source.polled = true;
            source.last_frame_ns = now;
            self.polled.push(token);
        }
    }

    fn obey(&mut self) {
        for command in self.mailbox.take() {
            match command {
                Command::WatchQueue(queue) => self.watch(Origin::Ring(queue)),
                Command::ForgetQueue(queue) => {
                    self.forget(|origin| matches!(origin, Origin::Ring(other) if Arc::ptr_eq(other, &queue)));
                }
                Command::WatchTap(port) => self.watch(Origin::Tap(port)),
                Command::ForgetTap(id) => {
                    self.forget(|origin| matches!(origin, Origin::Tap(port) if port.id == id))
                }
                Command::Inject(port, frame) => self.runner.run_injected(port, &frame),
                Command::Settle(done) => {
                    self.runner.forget_removed_ports();
                    // The asker may have given up waiting.
                    let _ = done.send(());
                }
                Command::Stop => self.stopping = true,
            }
        }
        self.counters.sources.store(
            self.sources.iter().flatten().count() as u64,
            Ordering::Relaxed,
        );
    }

    /// Serves a source, with the kick eventfd it has now, and polls it at least once.
    fn watch(&mut self, origin: Origin) {
        let kick = match &origin {
            Origin::Ring(queue) => {
                self.forget(
                    |other| matches!(other, Origin::Ring(other) if Arc::ptr_eq(other, queue)),
                );
                // A queue that is enabled before its ring runs is watched once the ring is started.
                let kick =
                    queue.control(|ring| ring.as_ref().map(|active| active.ring.kick().cloned()));
                let Some(kick) = kick else { return };
                kick
            }
            Origin::Tap(_) => None,
        };
        let source = Source {
            origin,
            kick,
            polled: false,
            last_frame_ns: 0,
        };
        let token = match self.sources.iter().position(Option::is_none) {
            Some(free) => free,
            None => {
                self.sources.push(None);
                self.sources.len() - 1
            }
        };
        if let (Some(fd), Ok(mut ops)) =
            (source.watched_fd(), self.events.event_ops(self.doorbells))
        {
            let event =
                Events::with_data_raw(fd, token as u32, EventSet::IN | EventSet::EDGE_TRIGGERED);
            if let Err(error) = ops.add(event) {
                log::error!("a worker cannot watch descriptor {fd}: {error}");
            }
        }
        if let Some(slot) = self.sources.get_mut(token) {
            *slot = Some(source);
        }
        self.start_polling(token as u32, now_ns());
    }

    fn forget(&mut self, is_it: impl Fn(&Origin) -> bool) {
        for slot in &mut self.sources {
            let Some(source) = slot.take_if(|source| is_it(&source.origin)) else {
                continue;
            };
            if let (Some(fd), Ok(mut ops)) =
                (source.watched_fd(), self.events.event_ops(self.doorbells))
            {
                let event = Events::with_data_raw(fd, 0, EventSet::IN);
                if let Err(error) = ops.remove(event) {
                    log::debug!("descriptor {fd} was no longer watched: {error}");
                }
            }
        }
        let sources = &self.sources;
        self.polled
            .retain(|&token| sources.get(token as usize).is_some_and(Option::is_some));
    }

    /// Tells which ports' memory was truncated since the last look.
    fn notice_lost_memory(&mut self) {
        let losses = sigbus::losses();
        if std::mem::replace(&mut self.losses, losses) != losses {
            self.shared.report_lost_memory();
        }
    }
}
