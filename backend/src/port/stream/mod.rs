//! A UNIX stream socket as a port: frames of QEMU's `-netdev stream`, so that VMs' NICs of any model are ports like others.
//!
//! In the order a frame meets them:
//!
//! * `life`: the port's socket life, on the device thread: one peer at a time, reconnects, limits; [`ports`]: what `control` calls;
//! * [`connection`]: the socket of one peer, never waited for;
//! * [`framing`]: bytes to frames;
//! * [`unsent`]: frames to bytes, and what the peer has not taken yet;
//! * [`handover`]: how it passes to another process while its peer stays connected;
//! * [`status`]: all of it in words, for `port show`.
//!
//! Workers read and write the connection ([`crate::datapath::stream_port`]); they tell the device thread when it has ended.

pub mod connection;
pub mod framing;
pub mod handover;
mod life;
pub mod ports;
pub mod status;
pub mod unsent;
