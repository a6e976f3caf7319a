//! What the device knows of one ring: a plain value.
//!
//! `state` changes it, `status` prints it. Where a ring is (vhost-user: Ring states):
//!
//! ```text
//!   Stopped --KICK--> Waiting --size, addresses, memory, features--> Running
//!      ^                 |  ^______ a missing or better piece ______/   | guest's fault, or memory taken away
//!      |                 |                                              v
//!      +---- GET_VRING_BASE, RESET_DEVICE, end of the session ------ Faulted
//! ```
//!
//! Enablement is apart from it and sticky: SET_VRING_ENABLE comes before, during and after.

use crate::ring::RingAddresses;
use serde::{Deserialize, Serialize};

/// Where a ring is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RingPhase {
    /// No kick since it was last stopped.
    #[default]
    Stopped,
    /// Kicked, but a piece is missing or did not fit (then `fault` says which).
    Waiting,
    /// With a worker.
    Running,
    /// Taken from its worker for the reason in `fault`; starts again only after a stop.
    Faulted,
}

/// One ring of the port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RingState {
    /// SET_VRING_NUM.
    pub size: Option<u16>,
    /// SET_VRING_ADDR; none while the descriptor table is at 0, which is how a driver leaves a ring unused.
    pub addresses: Option<RingAddresses>,
    /// Where to go on: SET_VRING_BASE, or where the ring stopped; none: where every ring begins. Split: the next available index.
    /// Packed: both indices with their wrap counters (vhost-user: Vring descriptor indices for packed virtqueues).
    pub base: Option<u32>,
    /// Where the front-end believes that the ring was started, if it was taken back and started again behind its back: what it will say
    /// should this process die.
    pub origin: Option<u32>,
    /// The front-end was told where the ring stopped, or reset it, since it last ran.
    pub base_is_final: bool,
    /// SET_VRING_ENABLE, or implied at the start when VHOST_USER_F_PROTOCOL_FEATURES is not acked.
    pub enabled: bool,
    /// Where it is.
    pub phase: RingPhase,
    /// Why it does not run although it was kicked.
    pub fault: Option<String>,
}

impl RingState {
    /// Whether a worker has the ring or had it until it faulted, so that it has to be taken back.
    pub fn was_handed_over(&self) -> bool {
        matches!(self.phase, RingPhase::Running | RingPhase::Faulted)
    }

    /// With a worker and allowed to carry frames.
    pub fn carries_frames(&self) -> bool {
        self.phase == RingPhase::Running && self.enabled
    }
}
