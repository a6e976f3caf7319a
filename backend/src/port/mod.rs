//! Ports that are not vhost-user devices.
//!
//! * [`tap`]: the host's own network stack, through a TAP interface.

pub mod tap;
