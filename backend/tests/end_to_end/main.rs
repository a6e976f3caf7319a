//! The daemon as a process, between simulated guests: what the hypervisor and the guests see of it, and nothing of its insides.
//!
//! `rig` (a switch, its guests, frames that are verified) -> `matrix` (rings, layouts, sizes), `offload` (checksums and segmentation),
//! `capture`, `flows`, `metrics`, `ring_fill` and `page`, `vlan`, `many_ports`, `multiqueue`, `workers` -> `life` (of a port), `restart`, `crash` and `upgrade` (of the daemon), `migration` (of a
//! guest), `migration_log` and `device_state` -> `hostile_guest`, `malformed_frames`, `hostile_front_end`, `hostile_log` -> `stream` (ports of
//! NICs that are not virtio) -> `services` (of the switch itself) -> `systemd` -> `idle`. Every test has a daemon and a folder of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test that cannot go on fails.

mod capture;
mod crash;
mod device_state;
mod flows;
mod hostile_front_end;
mod hostile_guest;
mod hostile_log;
mod idle;
mod iommu;
mod life;
mod malformed_frames;
mod many_ports;
mod matrix;
mod metrics;
mod migration;
mod migration_log;
mod multiqueue;
mod offload;
mod page;
mod postcopy;
mod restart;
mod rig;
mod ring_fill;
mod services;
mod stream;
mod systemd;
mod upgrade;
mod vlan;
mod workers;

/// Which format modern guests ask for; `end_to_end_packed` has another.
const FORMAT: guest_sim::Features = guest_sim::Features::NONE;
