//! A worker: one thread that polls its guest-tx rings, TAPs and streams, and runs each batch to completion.
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
use super::cpu_time::now_ns;
use super::flow_list::{FlowQuestion, MAX_LISTINGS};
use super::frame::VNET_HEADER_BYTES;
use super::notify::PollWindow;
use super::placement::Source;
use super::schedule::Schedule;
use crate::port::stream::connection::Connection;
use crate::ring::{EventSource, sigbus};
use event_manager::{
    EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberId, SubscriberOps,
};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use switch_core::{Decide, Millis, PortId};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Looks at a source without a frame between two looks at the clock.
const ROUNDS_PER_CLOCK: u32 = 16;
/// What a batch counts for among those: some microseconds.
const ROUNDS_PER_BATCH: u32 = 4;
/// While some source is polled, armed ones are asked about this often.
const EPOLL_INTERVAL_NS: u64 = 40_000;
/// How often a silent ring that has no kick eventfd is looked at, whether the worker sleeps meanwhile or is busy with others.
const KICKLESS_POLL_MS: i32 = 1;

/// What the control thread asks of a worker.
#[derive(Debug)]
pub enum Command {
    /// Serve this source: it was started, has another kick eventfd, or comes from another worker.
    Watch(Source),
    /// Forget it.
    Forget(Source),
    /// Answer: everything posted before has been done, and nothing of a port removed before is held any more.
    Settle(Sender<()>),
    /// Switch this frame as if its port had sent it.
    Inject(ControlFrame),
    /// Send this frame straight out of its port.
    Send(ControlFrame),
    /// Say what the flow cache holds.
    ListFlows(FlowQuestion),
    /// Finish the batch in hand and end.
    Stop,
}

impl Command {
    fn replaces(&self, earlier: &Self) -> bool {
        match (self, earlier) {
            (
                Self::Watch(source) | Self::Forget(source),
                Self::Watch(other) | Self::Forget(other),
            ) => source.is(other),
            _ => false,
        }
    }
}

/// A frame of the control side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlFrame {
    /// The port it is from or for.
    pub port: PortId,
    /// Its virtio-net header: what is left to be done.
    pub vnet_header: [u8; VNET_HEADER_BYTES],
    /// The frame.
    pub bytes: Box<[u8]>,
}

/// Most frames that wait for a worker, and their bytes.
const WAITING_FRAMES: (usize, usize) = (1024, 4 << 20);

/// What waits for a worker.
#[derive(Debug, Default)]
struct Waiting {
    commands: Vec<Command>,
    /// Frames among them, and their bytes.
    frames: (usize, usize),
    /// The worker has ended.
    closed: bool,
}

/// The control thread's end of a worker. On cache lines of its own: the worker looks at it in every round.
#[derive(Debug)]
#[repr(align(128))]
pub struct Mailbox {
    waiting: Mutex<Waiting>,
    pending: AtomicBool,
    bell: EventFd,
}

impl Mailbox {
    /// An empty mailbox.
    pub fn new() -> std::io::Result<Self> {
        let bell = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
        Ok(Self {
            waiting: Mutex::default(),
            pending: AtomicBool::new(false),
            bell,
        })
    }

    /// Leaves a command and wakes the worker. A command about a queue takes the place of those that wait for the same, and only so
    /// many frames may wait: however often a front-end repeats itself, little waits here. `false` for a frame too many, and once the
    /// worker has ended: then nothing is left, and who waits for an answer sees it.
    pub fn post(&self, command: Command) -> bool {
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.closed {
                return false;
            }
            if let Command::Inject(frame) | Command::Send(frame) = &command {
                let (frames, bytes) = waiting.frames;
                let (most_frames, most_bytes) = WAITING_FRAMES;
                let sum_bytes = bytes + frame.bytes.len();
                if frames >= most_frames || sum_bytes > most_bytes {
                    return false;
                }
                waiting.frames = (frames + 1, sum_bytes);
            } else {
                waiting
                    .commands
                    .retain(|earlier| !command.replaces(earlier));
            }
            waiting.commands.push(command);
        }
        self.pending.store(true, Ordering::Release);
        // A full counter wakes as well.
        let _ = self.bell.write(1);
        true
    }

    /// The worker ends: drops what waits, and what comes.
    fn close(&self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        *waiting = Waiting {
            closed: true,
            ..Waiting::default()
        };
    }

    fn take(&self) -> Vec<Command> {
        if !self.pending.swap(false, Ordering::AcqRel) {
            return Vec::new();
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.frames = (0, 0);
        std::mem::take(&mut waiting.commands)
    }
}

/// A source that this worker serves.
#[derive(Debug)]
struct Watched {
    source: Source,
    /// Registered with epoll for as long as it is here.
    kick: Option<Arc<EventSource>>,
    /// The same of a stream, and whether room in it is watched for.
    stream: Option<(Arc<Connection>, bool)>,
    polled: bool,
    /// When it last had a frame, as far as the clock was looked at.
    last_frame_ns: u64,
}

impl Watched {
    /// What epoll is asked about, with what it is to look for.
    fn watched_fds(&self) -> impl Iterator<Item = (RawFd, EventSet)> {
        let (fd, bell) = match &self.source {
            Source::Ring(_) => (self.kick.as_ref().map(|kick| kick.as_raw_fd()), None),
            Source::Tap(port) => (Some(port.tap.as_raw_fd()), None),
            Source::Stream(port) => {
                let stream = self.stream.as_ref();
                (
                    stream.map(|(connection, _)| connection.as_raw_fd()),
                    Some(port.bell()),
                )
            }
        };
        let wants_room = self.stream.as_ref().is_some_and(|(_, wanted)| *wanted);
        let fd = fd.map(|fd| (fd, stream_events(wants_room)));
        let bell = bell.map(|fd| (fd, stream_events(false)));
        fd.into_iter().chain(bell)
    }

    /// Has epoll look for room in a stream's socket for as long as something waits for it.
    fn watch_for_room(&mut self, token: u32, ops: impl FnOnce(Events)) {
        let (Source::Stream(port), Some((connection, watched))) = (&self.source, &mut self.stream)
        else {
            return;
        };
        let wanted = port.wants_room();
        if std::mem::replace(watched, wanted) != wanted {
            let fd = connection.as_raw_fd();
            ops(Events::with_data_raw(fd, token, stream_events(wanted)));
        }
    }

    /// A TAP or a stream cannot be asked to be quiet and costs a system call a look, so it waits in epoll as soon as it is empty.
    fn is_file(&self) -> bool {
        !matches!(self.source, Source::Ring(_))
    }

    /// A ring without kick eventfd can only be polled.
    fn is_kickless(&self) -> bool {
        matches!(self.source, Source::Ring(_)) && self.kick.is_none()
    }
}

fn stream_events(wants_room: bool) -> EventSet {
    let mut events = EventSet::IN | EventSet::EDGE_TRIGGERED;
    events.set(EventSet::OUT, wants_room);
    events
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
pub struct Worker<D> {
    shared: Arc<Shared>,
    mailbox: Arc<Mailbox>,
    counters: Arc<WorkerCounters>,
    events: EventManager<Doorbells>,
    doorbells: SubscriberId,
    rung: Rc<RefCell<Vec<u32>>>,
    /// By token.
    sources: Vec<Option<Watched>>,
    /// Tokens of those without kick eventfd.
    kickless: Vec<u32>,
    /// When those were last looked at.
    kickless_at_ns: u64,
    /// Those that are polled.
    polled: Schedule,
    /// How many are polled, and how many there are.
    counts: (usize, usize),
    runner: BatchRunner<D>,
    /// What the control side wants to know of the flow cache, one after the other.
    questions: VecDeque<FlowQuestion>,
    window: PollWindow,
    losses: u64,
    stopping: bool,
}

impl<D: Decide> Worker<D> {
    /// A worker with nothing to do, for the thread that calls this.
    ///
    /// # Errors
    /// When its epoll instance cannot be made.
    pub fn new(
        shared: Arc<Shared>,
        mailbox: Arc<Mailbox>,
        counters: Arc<WorkerCounters>,
        (pipeline, poll_us): (D, u32),
    ) -> Result<Self, event_manager::Error> {
        let mut events = EventManager::new()?;
        let rung = Rc::new(RefCell::new(Vec::new()));
        let doorbells = events.add_subscriber(Doorbells {
            bell: mailbox.bell.as_raw_fd(),
            rung: Rc::clone(&rung),
        });
        Ok(Self {
            runner: BatchRunner::with_pipeline(
                Arc::clone(&shared),
                Arc::clone(&counters),
                pipeline,
            ),
            shared,
            mailbox,
            counters,
            events,
            doorbells,
            rung,
            sources: Vec::new(),
            kickless: Vec::new(),
            kickless_at_ns: 0,
            polled: Schedule::default(),
            counts: (0, 0),
            questions: VecDeque::with_capacity(MAX_LISTINGS),
            window: PollWindow::new(poll_us),
            losses: sigbus::losses(),
            stopping: false,
        })
    }

    /// Works until [`Command::Stop`].
    pub fn run(&mut self) {
        let mut awake_since_ns = now_ns();
        let mut epoll_at_ns = awake_since_ns;
        let (mut looks, mut empty_rounds) = (0u32, 0u64);
        loop {
            if self.mailbox.pending.load(Ordering::Acquire) {
                self.obey();
            }
            if self.stopping {
                self.mailbox.close();
                return;
            }
            let batches = self.poll_sources();
            if batches == 0 {
                std::hint::spin_loop();
                empty_rounds += 1;
                looks += 1;
            } else {
                looks += ROUNDS_PER_BATCH * batches;
            }
            if looks < ROUNDS_PER_CLOCK && !self.polled.is_empty() {
                continue;
            }
            looks = 0;
            let now = now_ns();
            self.runner.set_time(Millis(now / 1_000_000));
            self.polled.refill(Millis(now / 1_000_000));
            self.notice_lost_memory();
            self.arm_silent(now);
            self.counters
                .empty_rounds
                .add(std::mem::take(&mut empty_rounds));
            let has_nothing_to_do = self.polled.is_empty();
            if has_nothing_to_do && self.questions.is_empty() {
                self.counters
                    .awake_ns
                    .add(now.saturating_sub(awake_since_ns));
                self.runner.tell_cache_use();
                awake_since_ns = self.sleep();
                epoll_at_ns = awake_since_ns;
            } else if has_nothing_to_do || now.saturating_sub(epoll_at_ns) >= EPOLL_INTERVAL_NS {
                self.counters
                    .awake_ns
                    .add(now.saturating_sub(awake_since_ns));
                self.runner.tell_cache_use();
                self.list_flows();
                awake_since_ns = now;
                epoll_at_ns = now;
                let (polled, all) = self.counts;
                if polled < all {
                    self.wait(0, now);
                    // No sooner than all have fallen silent again: they would keep each other awake.
                    let pause_ns = (KICKLESS_POLL_MS as u64 * 1_000_000).max(2 * self.window.ns());
                    if now.saturating_sub(self.kickless_at_ns) >= pause_ns {
                        self.poll_kickless(now);
                    }
                }
            }
        }
    }

    /// Goes on with what the control side wants to know of the flow cache, by one step.
    fn list_flows(&mut self) {
        let Some(question) = self.questions.front_mut() else {
            return;
        };
        if self.runner.list_flows(question)
            && let Some(question) = self.questions.pop_front()
        {
            question.answer();
        }
    }

    /// One round over the polled sources; the number of batches that had frames.
    fn poll_sources(&mut self) -> u32 {
        let Self {
            polled,
            sources,
            runner,
            counts,
            events,
            doorbells,
            ..
        } = self;
        polled.round(|token, limit_bytes| {
            let watched = sources.get_mut(token as usize)?.as_mut()?;
            let served = match &watched.source {
                Source::Ring(queue) => runner.run_queue(queue, limit_bytes),
                Source::Tap(port) => runner.run_tap(port, limit_bytes),
                Source::Stream(port) => {
                    let served = runner.run_stream(port, limit_bytes);
                    watched.watch_for_room(token, |room| watch_anew(events, *doorbells, room));
                    served
                }
            };
            if served.frames > 0 {
                watched.last_frame_ns = 0;
            } else if served.is_pending || (watched.is_file() && !served.more) {
                watched.polled = false;
                counts.0 -= 1;
                return None;
            }
            Some(served)
        })
    }

    /// Arms each polled ring that was silent for the poll window.
    fn arm_silent(&mut self, now: u64) {
        let window = self.window.ns();
        let (sources, counts) = (&mut self.sources, &mut self.counts);
        self.polled.retain(|token| {
            let Some(watched) = sources.get_mut(token as usize).and_then(Option::as_mut) else {
                return false;
            };
            if watched.last_frame_ns == 0 {
                watched.last_frame_ns = now;
                return true;
            }
            let Source::Ring(queue) = &watched.source else {
                return true;
            };
            if now.saturating_sub(watched.last_frame_ns) < window {
                return true;
            }
            watched.polled = BatchRunner::<D>::arm(queue);
            // It has work and waits for its turn: asking its driver for kicks at each look would only cost both a cache line.
            watched.last_frame_ns = now;
            counts.0 -= usize::from(!watched.polled);
            watched.polled
        });
    }

    /// Sleeps until something rings; the time it woke.
    fn sleep(&mut self) -> u64 {
        self.counters.sleeps.add(1);
        let timeout_ms = match (self.runner.rest(), self.kickless.is_empty()) {
            (true, _) => 0,
            (false, false) => KICKLESS_POLL_MS,
            (false, true) => -1,
        };
        let before = now_ns();
        self.wait(timeout_ms, before);
        let now = now_ns();
        self.runner.set_time(Millis(now / 1_000_000));
        self.window.adapt(now.saturating_sub(before));
        self.poll_kickless(now);
        now
    }

    fn poll_kickless(&mut self, now: u64) {
        self.kickless_at_ns = now;
        for at in 0..self.kickless.len() {
            if let Some(&token) = self.kickless.get(at) {
                self.start_polling(token, now);
            }
        }
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
        let Some(watched) = self
            .sources
            .get_mut(token as usize)
            .and_then(Option::as_mut)
        else {
            return;
        };
        if !watched.polled {
            watched.polled = true;
            watched.last_frame_ns = now;
            self.counts.0 += 1;
            self.polled.add(watched.source.id().port, token);
        }
    }

    fn obey(&mut self) {
        for command in self.mailbox.take() {
            match command {
                Command::Watch(source) => self.watch(source),
                Command::Forget(source) => self.forget(&source),
                Command::Inject(frame) => self.runner.run_injected(&frame),
                Command::Send(frame) => self.runner.run_sent(&frame),
                Command::Settle(done) => {
                    self.runner.forget_removed_ports();
                    // The asker may have given up waiting.
                    let _ = done.send(());
                }
                Command::ListFlows(question) => self.questions.push_back(question),
                Command::Stop => self.stopping = true,
            }
        }
        let (_, sources) = self.counts;
        self.counters
            .sources
            .store(sources as u64, Ordering::Relaxed);
    }

    /// Serves a source, with the kick eventfd it has now, and polls it at least once.
    fn watch(&mut self, source: Source) {
        self.forget(&source);
        let kick = match &source {
            Source::Ring(queue) => {
                // A queue that is enabled before its ring runs is watched once the ring is started.
                let kick =
                    queue.control(|ring| ring.as_ref().map(|active| active.ring.kick().cloned()));
                let Some(kick) = kick else { return };
                kick
            }
            Source::Tap(_) | Source::Stream(_) => None,
        };
        let stream = match &source {
            Source::Stream(port) => {
                let Some(connection) = port.connection() else {
                    return;
                };
                Some((connection, port.wants_room()))
            }
            Source::Ring(_) | Source::Tap(_) => None,
        };
        let watched = Watched {
            source,
            kick,
            stream,
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
        if let Ok(mut ops) = self.events.event_ops(self.doorbells) {
            for (fd, set) in watched.watched_fds() {
                if let Err(error) = ops.add(Events::with_data_raw(fd, token as u32, set)) {
                    log::error!("a worker cannot watch descriptor {fd}: {error}");
                }
            }
        }
        if watched.is_kickless() {
            self.kickless.push(token as u32);
        }
        if let Some(slot) = self.sources.get_mut(token) {
            *slot = Some(watched);
            self.counts.1 += 1;
        }
        self.start_polling(token as u32, now_ns());
    }

    fn forget(&mut self, source: &Source) {
        let here = |slot: &Option<Watched>| slot.as_ref().is_some_and(|w| w.source.is(source));
        let Some(token) = self.sources.iter().position(here) else {
            return;
        };
        let Some(watched) = self.sources.get_mut(token).and_then(Option::take) else {
            return;
        };
        if let Ok(mut ops) = self.events.event_ops(self.doorbells) {
            for (fd, set) in watched.watched_fds() {
                if let Err(error) = ops.remove(Events::with_data_raw(fd, 0, set)) {
                    log::debug!("descriptor {fd} was no longer watched: {error}");
                }
            }
        }
        let token = token as u32;
        self.kickless.retain(|&other| other != token);
        self.polled.retain(|other| other != token);
        let (polled, sources) = &mut self.counts;
        *polled -= usize::from(watched.polled);
        *sources -= 1;
    }

    /// Tells which ports' memory was truncated since the last look.
    fn notice_lost_memory(&mut self) {
        let losses = sigbus::losses();
        if std::mem::replace(&mut self.losses, losses) != losses {
            self.shared.report_lost_memory();
        }
    }
}

/// Has epoll look for something else at a descriptor that it knows.
fn watch_anew(events: &mut EventManager<Doorbells>, doorbells: SubscriberId, what: Events) {
    let Ok(ops) = events.event_ops(doorbells) else {
        return;
    };
    if let Err(error) = ops.modify(what) {
        log::error!("a worker cannot watch descriptor {}: {error}", what.fd());
    }
}
