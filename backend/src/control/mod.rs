//! The control side: what ports there shall be, and carrying that out.
//!
//! In the order a request flows:
//!
//! * [`command`]: typed requests with their replies, and the [`ControlHandle`] that sends them;
//! * [`thread`]: the one thread that receives them and owns everything below;
//! * [`desired_ports`]: the ports there shall be, configured and changed at run time, durable; [`frozen_offers`]: what they offer;
//! * `port_changes`: adding and removing ports, on that thread; [`batch`]: ports and table entries together;
//! * [`config_diff`]: what runs beside what the configuration file has;
//! * [`port_table`]: the ports there are;
//! * [`plan`]: from the ports there are to the ports there shall be, as a list of steps, a value;
//! * [`execute`]: carries a plan out through an [`Engine`], and back again when a step fails;
//! * [`engine`]: everything control can do to the outside world, as one trait;
//! * [`events`]: what happens, told to whoever listens; `watch`: what is looked for once a second;
//! * [`clock`]: what time it is;
//! * [`tables`]: what operators put into the program's tables, beside all this on a thread of its own;
//! * [`services`]: what answers the frames that a program sends to the controller, on another;
//! * [`frames`]: frames to be explained, from text and captures;
//! * [`port_state`]: what is known of a port, carried to another;
//! * [`live`]: that trait over the real data path, device thread, TAPs and switch.
//!
//! What it keeps true: a request either takes effect whole or leaves nothing behind, and no request disturbs a port it does not name.
pub mod batch;
pub mod clock;
pub mod command;
pub mod config_diff;
pub mod desired_ports;
pub mod engine;
pub mod events;
pub mod execute;
pub mod frames;
pub mod frozen_offers;
pub mod live;
pub mod plan;
mod port_changes;
pub mod port_state;
pub mod port_table;
pub mod services;
pub mod tables;
pub mod tags;
pub mod thread;
mod watch;

pub use command::{
    AddOutcome, CommandError, ControlHandle, DropView, FdbEntry, PortView, SourceView, WorkersView,
};
pub use desired_ports::{DesiredPorts, PortOrigin};
pub use engine::{Engine, StepError};
pub use switch_core::PortId;
pub use thread::{ControlThread, StartError};

/// Most ports at one time.
pub const MAX_PORTS: usize = 1024;
