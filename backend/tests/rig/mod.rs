//! A switch without threads or sockets: guests whose rings are handed straight to a [`BatchRunner`] on the caller's thread.
//!
//! For tests that must see exactly what a batch does (allocations, one broken descriptor) and for benches that count its cycles.
#![allow(dead_code, reason = "each test and bench uses a part of the rig")]

use guest_sim::{Features, GuestMemory, GuestMemoryLayout, NicOptions, QueuePair, RawRing};
use ringswitch::datapath::batch::{BatchRunner, Served};
use ringswitch::datapath::counters::WorkerCounters;
use ringswitch::datapath::ports::{Port, PortTable, VhostQueues};
use ringswitch::datapath::queue::ActiveRing;
use ringswitch::datapath::schedule::BATCH_BYTES;
use ringswitch::datapath::vnet_header::NetFeatures;
use ringswitch::datapath::{DatapathEvent, DroppedFrame, PortCounters, Program, Shared};
use ringswitch::ring::{
    BurstLimit, Chain, Direction, GuestMemory as Mapped, RecordFile, RegionLayout, Ring,
    RingAddresses, RingConfig, RingError, SegmentArena,
};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use switch_core::{Decide, PortId, Switch, SwitchConfig, VlanPolicy};

/// What makes a ring split, packed, or packed with one used element for a batch.
pub const FORMATS: [Features; 3] = [
    Features::NONE,
    Features::RING_PACKED,
    Features::from_bits(Features::RING_PACKED.bits() | Features::IN_ORDER.bits()),
];

/// A guest on the rig.
pub struct Guest {
    /// Its driver.
    pub pair: QueuePair,
    /// Its memory.
    pub memory: GuestMemory,
    queues: Arc<VhostQueues>,
}

/// The switch and its guests.
pub struct Rig {
    /// By port id.
    pub guests: Vec<Guest>,
    /// Runs batches.
    pub runner: BatchRunner,
    shared: Arc<Shared>,
    events: Arc<Mutex<Vec<DatapathEvent>>>,
}

impl Rig {
    /// A switch with one port and guest for each of `options`.
    pub fn new(options: &[NicOptions]) -> Self {
        let events: Arc<Mutex<Vec<DatapathEvent>>> = Arc::default();
        let sink = Arc::clone(&events);
        let switch = Arc::new(Switch::new(SwitchConfig::default()));
        let events_sink = Arc::new(move |event| sink.lock().unwrap().push(event));
        let shared = Arc::new(Shared::new(switch, Program::L2, events_sink).unwrap());
        let mut table = PortTable::default();
        let mut guests = Vec::new();
        for (index, options) in (0..).zip(options) {
            let id = PortId::new(index).unwrap();
            let guest = Guest::new(id, options);
            shared.switch.add_port(id, VlanPolicy::Transparent).unwrap();
            table = table.with(id, Some(Port::Vhost(Arc::clone(&guest.queues))));
            guests.push(guest);
        }
        shared.ports.store(Arc::new(table));
        let runner = BatchRunner::new(Arc::clone(&shared), Arc::new(WorkerCounters::default()));
        Self {
            guests,
            runner,
            shared,
            events,
        }
    }

    /// Runs one batch of a guest's guest-tx ring; the frames it took.
    pub fn run(&mut self, guest: usize) -> usize {
        self.serve(guest, BATCH_BYTES).frames as usize
    }

    /// The same, bounded in bytes.
    pub fn serve(&mut self, guest: usize, limit_bytes: u32) -> Served {
        let queue = Arc::clone(&self.guests[guest].queues.queues[1]);
        self.runner.run_queue(&queue, limit_bytes)
    }

    /// Another worker's runner, for another thread.
    pub fn another_runner(&self) -> BatchRunner {
        BatchRunner::new(
            Arc::clone(&self.shared),
            Arc::new(WorkerCounters::default()),
        )
    }

    /// A runner whose frames something else decides on.
    pub fn runner_with<D: Decide>(&self, pipeline: D) -> BatchRunner<D> {
        let counters = Arc::new(WorkerCounters::default());
        BatchRunner::with_pipeline(Arc::clone(&self.shared), counters, pipeline)
    }

    /// What the workers and the control side share.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// A port's latest drops.
    pub fn last_drops(&self, guest: usize) -> Vec<DroppedFrame> {
        self.guests[guest].queues.drops.latest()
    }

    /// Lets a guest have frames of at most this length from now on.
    pub fn limit_frames(&mut self, guest: usize, max_frame_bytes: u32) {
        let old = &self.guests[guest].queues;
        let id = old.id;
        let queues = Arc::new(VhostQueues::new(id, 1, max_frame_bytes));
        for (old, new) in old.queues.iter().zip(&queues.queues) {
            let ring = old.control(Option::take);
            new.control(|slot| *slot = ring);
            new.enable();
            queues.update_active(new);
        }
        let table = self.shared.ports.load();
        let table = table.with(id, Some(Port::Vhost(Arc::clone(&queues))));
        self.shared.ports.store(Arc::new(table));
        self.guests[guest].queues = queues;
    }

    /// Takes a guest's ring out of service, to be looked at by itself.
    pub fn take_ring(&self, guest: usize, index: usize) -> ActiveRing {
        let queues = &self.guests[guest].queues.queues;
        queues[index].control(Option::take).unwrap()
    }

    /// What a worker does before it stops polling a guest's guest-tx ring.
    pub fn arm(&mut self, guest: usize) -> bool {
        <BatchRunner>::arm(&self.guests[guest].queues.queues[1])
    }

    /// A guest's counters.
    pub fn counters(&self, guest: usize) -> PortCounters {
        self.shared
            .ports
            .load()
            .get(self.guests[guest].queues.id)
            .unwrap()
            .counters()
    }

    /// What happened since the last call.
    pub fn events(&self) -> Vec<DatapathEvent> {
        std::mem::take(&mut *self.events.lock().unwrap())
    }
}

impl Guest {
    fn new(id: PortId, options: &NicOptions) -> Self {
        let memory =
            GuestMemory::new(&GuestMemoryLayout::around_pci_hole(64 << 20, 64 << 20)).unwrap();
        let acked = options.features;
        let mut pair = QueuePair::new(0, &memory, options, acked).unwrap();
        let queues = Arc::new(VhostQueues::new(id, 1, 69_632));
        for (index, ring) in [(0, pair.guest_rx.ring()), (1, pair.guest_tx.ring())] {
            let direction = if index == 0 {
                Direction::Writable
            } else {
                Direction::Readable
            };
            let ring = Ring::start(config(ring, acked), direction, &map(&memory)).unwrap();
            let features = NetFeatures::new(acked.bits());
            queues.queues[index].control(|slot| *slot = Some(ActiveRing::new(ring, features)));
            queues.queues[index].enable();
            queues.update_active(&queues.queues[index]);
        }
        pair.guest_rx.refill().unwrap();
        Self {
            pair,
            memory,
            queues,
        }
    }

    /// One batch of its guest-tx ring, on whichever thread.
    pub fn run_on<D: Decide>(&self, runner: &mut BatchRunner<D>) -> Served {
        runner.run_queue(&self.queues.queues[1], BATCH_BYTES)
    }

    /// Any word of its guest-tx ring.
    pub fn raw_guest_tx(&self) -> RawRing {
        self.pair.guest_tx.ring().raw().unwrap()
    }

    /// Any word of its guest-rx ring.
    pub fn raw_guest_rx(&self) -> RawRing {
        self.pair.guest_rx.ring().raw().unwrap()
    }

    /// Whether a ring is still in service.
    pub fn is_running(&self, index: usize) -> bool {
        self.queues.queues[index].control(|slot| slot.is_some())
    }
}

/// The device's own mapping of a guest's memory.
pub fn map(memory: &GuestMemory) -> Arc<Mapped> {
    let regions = memory.regions().into_iter().map(|region| {
        let info = region.message_region();
        let layout = RegionLayout {
            guest_phys_addr: info.guest_phys_addr,
            size_bytes: info.memory_size,
            user_addr: info.userspace_addr,
            mmap_offset: info.mmap_offset,
        };
        (layout, OwnedFd::from(region.memfd().try_clone().unwrap()))
    });
    Mapped::map(regions.collect()).unwrap()
}

/// What SET_VRING_* would say of a ring, without eventfds: nobody sleeps on the rig.
pub fn config(ring: &guest_sim::Virtqueue, acked: Features) -> RingConfig {
    let memory = ring.memory();
    let records = RecordFile::anonymous(1).unwrap();
    RingConfig {
        size: ring.size(),
        addresses: RingAddresses {
            descriptor_table: memory.descriptors().user_address(),
            available_ring: memory.avail().user_address(),
            used_ring: memory.used().user_address(),
            used_log: None,
        },
        base: ring.start_base(),
        origin: ring.start_base(),
        features: acked.bits(),
        base_is_final: true,
        record: Some(records.ring(0, ring.size()).unwrap()),
        kick: None,
        call: None,
        error: None,
    }
}

/// Takes up to `most` chains from a ring, as batches do.
///
/// # Errors
/// What is wrong with the chain after the last that was taken.
pub fn take(
    ring: &mut Ring,
    arena: &mut SegmentArena,
    most: usize,
) -> Result<Vec<Chain>, RingError> {
    let mut chains = Vec::new();
    let limit = BurstLimit {
        chains: most,
        bytes: u64::MAX,
    };
    ring.take_burst(arena, &mut chains, limit)?;
    Ok(chains)
}
