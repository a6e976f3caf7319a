//! The end-to-end tests once more, with packed rings wherever a guest is modern enough: nothing but the format differs, and the sizes of
//! rings, which need not be powers of two.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test that cannot go on fails.

#[path = "../end_to_end/crash.rs"]
mod crash;
#[path = "../end_to_end/hostile_front_end.rs"]
mod hostile_front_end;
#[path = "../end_to_end/hostile_guest.rs"]
mod hostile_guest;
#[path = "../end_to_end/hostile_log.rs"]
mod hostile_log;
#[path = "../end_to_end/idle.rs"]
mod idle;
#[path = "../end_to_end/iommu.rs"]
mod iommu;
#[path = "../end_to_end/life.rs"]
mod life;
#[path = "../end_to_end/malformed_frames.rs"]
mod malformed_frames;
#[path = "../end_to_end/many_ports.rs"]
mod many_ports;
#[path = "../end_to_end/matrix.rs"]
mod matrix;
#[path = "../end_to_end/migration.rs"]
mod migration;
#[path = "../end_to_end/migration_log.rs"]
mod migration_log;
#[path = "../end_to_end/multiqueue.rs"]
mod multiqueue;
#[path = "../end_to_end/offload.rs"]
mod offload;
mod positions;
#[path = "../end_to_end/postcopy.rs"]
mod postcopy;
#[path = "../end_to_end/restart.rs"]
mod restart;
#[path = "../end_to_end/rig.rs"]
mod rig;
#[path = "../end_to_end/upgrade.rs"]
mod upgrade;
#[path = "../end_to_end/vlan.rs"]
mod vlan;

/// Which format modern guests ask for.
const FORMAT: guest_sim::Features = guest_sim::Features::RING_PACKED;
