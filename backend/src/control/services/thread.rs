//! The thread: takes frames for the controller, asks the services, carries out what they say.
//!
//! ```text
//! sleep until: a frame | a changed configuration | a timer of the services | a worker may have room again
//! then:        what waits -> what changes said -> frames, one by one -> timers
//! ```
//! The services are locked for one frame at a time, and never while something is carried out: who looks at them waits for
//! microseconds, and a slow table delays frames but loses none of those that were taken.
use super::carry::Carrier;
use super::counts::count;
use super::handle::Inner;
use crate::control::clock::monotonic_now;
use crate::datapath::{Datapath, PacketIn};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use switch_core::engine::runtime::Engine;
use switch_core::service::{PacketIn as ServicePacket, PacketMetadata, PuntReason, ServiceAction};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// How long a busy worker is left alone.
const RETRY_MS: i32 = 1;

/// What the thread owns.
pub(super) struct Thread {
    inner: Arc<Inner>,
    datapath: Arc<Datapath>,
    /// What the program's reasons mean here, by number.
    reasons: Vec<Option<PuntReason>>,
    carrier: Carrier,
    epoll: Epoll,
}

impl Thread {
    /// What it takes to run. Fails when there is no epoll instance to be had.
    pub(super) fn new(
        inner: Arc<Inner>,
        datapath: Arc<Datapath>,
        engine: &Arc<Engine>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        for fd in [inner.bell.as_raw_fd(), datapath.packet_ins().as_raw_fd()] {
            let event = EpollEvent::new(EventSet::IN, 0);
            epoll.ctl(ControlOperation::Add, fd, event)?;
        }
        let reasons = engine
            .punt_reasons()
            .iter()
            .map(|name| PuntReason::from_name(name))
            .collect();
        let carrier = Carrier::new(Arc::clone(&datapath), engine);
        Ok(Self {
            inner,
            datapath,
            reasons,
            carrier,
            epoll,
        })
    }

    /// Whether the program has a table for neighbours, and says that next hops are not known.
    pub(super) fn lacks_neighbors(&self) -> bool {
        self.reasons.contains(&Some(PuntReason::NextHopUnresolved)) && !self.carrier.has_neighbors()
    }

    /// Serves until told to stop.
    pub(super) fn run(mut self) {
        let mut events = [EpollEvent::default(); 2];
        while !self.inner.stopping.load(Ordering::Acquire) {
            // Interrupted: as if nothing had come.
            let _ = self.epoll.wait(self.timeout_ms(), &mut events);
            // Before the work is looked for: what comes after that rings again.
            let _ = self.inner.bell.read();
            self.carrier.retry(&self.inner.counts);
            self.changes();
            for packet in self.datapath.packet_ins().receive() {
                self.serve(&packet);
                if self.inner.stopping.load(Ordering::Acquire) {
                    return;
                }
            }
            self.tick();
        }
    }

    /// Until there is something to do by itself; -1: never.
    fn timeout_ms(&self) -> i32 {
        if self.carrier.has_waiting() {
            return RETRY_MS;
        }
        let desk = self.inner.desk();
        if !desk.pending.is_empty() {
            return 0;
        }
        let Some(deadline) = desk.services.next_deadline() else {
            return -1;
        };
        let left_ms = deadline.0.saturating_sub(monotonic_now().0);
        i32::try_from(left_ms).unwrap_or(i32::MAX)
    }

    /// Carries out what changes of the configuration, and of ports, said.
    fn changes(&mut self) {
        let pending = std::mem::take(&mut self.inner.desk().pending);
        self.carrier.carry(pending, None, &self.inner.counts);
    }

    fn tick(&mut self) {
        let mut actions = Vec::new();
        self.inner.desk().ask(&mut actions, |services, actions| {
            services.tick(monotonic_now(), actions);
        });
        self.carrier.carry(actions, None, &self.inner.counts);
    }

    fn serve(&mut self, packet: &PacketIn) {
        let counts = &self.inner.counts;
        count(&counts.frames_received);
        let number = usize::from(packet.punt.reason.0);
        let Some(reason) = self.reasons.get(number).copied().flatten() else {
            count(&counts.unknown_reasons);
            self.carrier.refuse(packet.in_port, Some(packet));
            return;
        };
        let question = ServicePacket {
            port: packet.in_port,
            reason,
            metadata: PacketMetadata::from_args(reason, packet.punt.args),
            vnet_header: packet.vnet_header,
            frame: &packet.frame,
        };
        let mut actions = Vec::new();
        self.inner.desk().ask(&mut actions, |services, actions| {
            services.handle(question, monotonic_now(), actions);
        });
        if reason == PuntReason::NeighborObserved {
            // A copy: the frame itself went on, and is no loss of its port.
            actions.retain(|action| !matches!(action, ServiceAction::Drop { .. }));
        }
        self.carrier.carry(actions, Some(packet), counts);
    }
}
