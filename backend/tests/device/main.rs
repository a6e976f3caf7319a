//! The vhost-user device through its socket and through its state machine, over a recording stand-in for the data path.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod attached;
mod hostile;
mod iommu;
mod lifecycle;
mod machine;
mod migration;
mod negotiation;
mod properties;
mod rig;
mod rings;
mod session;
mod state_transfer;
