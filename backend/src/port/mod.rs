//! Ports that are not vhost-user devices.
//!
//! * [`tap`]: the host's own network stack, through a TAP interface;
//! * [`stream`]: a VM's NIC that is not virtio, through QEMU's `-netdev stream`.

pub mod stream;
pub mod tap;
