//! The JSON of how full rings are.
use crate::datapath::QueueView;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One running ring of a vhost-user port, as its driver has it at this moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RingRow {
    /// The queue pair.
    pub pair: u16,
    /// `guest_tx` or `guest_rx`.
    pub direction: String,
    /// Its entries.
    pub size: u16,
    /// What the driver offers and nobody has taken: of a guest-tx ring frames that wait, of a guest-rx ring free buffers. Of a packed ring
    /// descriptors are counted.
    pub offered: u16,
    /// Frames taken from it, or delivered to it, since this process serves it.
    pub frames: u64,
    /// Batches of which a guest-rx ring had no room for a part.
    pub full: u64,
}

impl RingRow {
    /// Whether its guest sends here.
    pub fn is_guest_tx(&self) -> bool {
        self.direction == "guest_tx"
    }

    /// How much of it is offered, 0 to 1.
    pub fn share(&self) -> f64 {
        f64::from(self.offered) / f64::from(self.size.max(1))
    }

    /// The rings that run, of a port's queues.
    pub fn of(queues: &[QueueView]) -> Vec<Self> {
        let row = |queue: &QueueView| {
            let fill = queue.fill?;
            Some(Self {
                pair: queue.pair,
                direction: direction(queue.is_guest_tx).to_owned(),
                size: fill.size,
                offered: fill.offered,
                frames: queue.frames,
                full: queue.ring_full,
            })
        };
        queues.iter().filter_map(row).collect()
    }
}

/// A direction, from the guest's viewpoint.
pub fn direction(is_guest_tx: bool) -> &'static str {
    match is_guest_tx {
        true => "guest_tx",
        false => "guest_rx",
    }
}
