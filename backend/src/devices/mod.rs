//! The virtual-device table: which NICs which VM shall have, and making it so.
//!
//! In the order a request flows:
//!
//! * [`device`]: an entry, from the fields an operator wrote to a typed value;
//! * [`handle`]: sends requests to the owner, and checks what only the switch's ports can tell;
//! * [`owner`]: the one task that owns the table; [`table`]: desired and actual state; [`rows`]: the desired state, durable;
//! * [`reconcile`]: one task for each hypervisor: looks, plans, executes, waits for something to happen;
//! * [`check`]: whether a VM can take a NIC, before anything is done; [`plan`]: what is to be done, a value; [`execute`]: doing it, and back
//!   again when a step fails;
//! * [`backend`]: a hypervisor of either kind, as the three above see it; [`status`]: how a device fares.
//!
//! All of it runs on one thread with a runtime of its own, so that neither a hypervisor that hangs nor a slow disk holds up the admin socket,
//! and nothing here ever waits on the thread that serves ports except for an answer with a deadline.
//!
//! What it keeps true: a request that was answered is durable (with a state folder); what exists is read from hypervisor and switch each time
//! and never remembered, so that a restart of either changes nothing; one hypervisor holds up nobody else's devices.
pub mod backend;
pub mod check;
pub mod device;
pub mod execute;
pub mod handle;
pub mod owner;
pub mod plan;
pub mod reconcile;
pub mod rows;
pub mod status;
pub mod table;

pub use device::{Device, DeviceFields, HypervisorKind, Model, VmAddress, VmFields};
pub use handle::{DeviceError, DevicesHandle};
pub use owner::{Devices, DevicesOptions};
pub use rows::DeviceRows;
pub use status::{DeviceState, DeviceView, Fault};

/// Most devices at one time: each owns a port.
pub const MAX_DEVICES: usize = crate::control::MAX_PORTS;
