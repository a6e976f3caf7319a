//! The virtio-net driver: frames into guest-tx rings, frames out of guest-rx rings.
//!
//! `chain_layout` (how a frame is cut into descriptors) -> `arena` (where its bytes lie) -> `guest_tx` and `guest_rx`, and `wait` (for a
//! call, with a deadline).

pub mod arena;
pub mod chain_layout;
pub mod guest_rx;
#[cfg(test)]
mod guest_rx_tests;
pub mod guest_tx;
pub mod wait;

pub use chain_layout::ChainLayout;
pub use guest_rx::GuestRx;
pub use guest_tx::GuestTx;
pub use wait::{Patience, Waiting};
