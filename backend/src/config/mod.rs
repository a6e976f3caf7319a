//! Configuration: from the operator's text to typed values, once, at the edge.
//!
//! Called by the command line before the daemon changes anything; everything here is pure except the reading of the file and of the list of
//! online CPUs. In the order data flows:
//!
//! * [`mod@file`]: the TOML file, each value with the line it stands on;
//! * [`flags`]: the `key=value,...` text of `--port` and `port add`;
//! * [`port`]: the fields of one port, from whichever source (file, flag, REST), to a [`PortConfig`];
//! * [`value`]: the single values: names, socket paths, VLAN ids, and the bounds of each;
//! * [`connections`]: bounds and timeouts of connection tracking;
//! * [`remote`]: the admin interface over TCP;
//! * [`program`]: which program the switch runs, and the reading of its file;
//! * [`mod@load`]: file and flags together to one [`Configuration`], checked as a whole;
//! * [`edit`]: the way back: ports put into the text of a file and taken out of it, comments kept.
//!
//! What it keeps true: a [`Configuration`] that exists can be carried out as far as its text can tell. Names, sockets and interfaces are
//! unique, every number is within its bound, every CPU is online.
pub mod connections;
pub mod edit;
pub mod file;
pub mod flags;
pub mod load;
pub mod port;
pub mod program;
pub mod remote;
pub mod value;

pub use load::{
    ConfigError, ConfigFile, Configuration, NO_STATE_KEY, Origin, Overrides, STATE_KEY_REMEDY,
    SourcedPort, SwitchConfig, load,
};
pub use port::{PortConfig, PortFields, PortKind, VlanFields};
pub use program::{ProgramFault, ProgramSource};
pub use remote::{RemoteConfig, RemoteFlags, TlsFiles};
pub use value::{InterfaceName, InvalidField, Mtu, PortName, QueuePairs, SocketPath};

/// Where the admin socket is when nobody says otherwise.
pub const DEFAULT_ADMIN_SOCKET: &str = "/run/ringswitch/admin.sock";
/// Where the positions of packed rings are kept when nobody says otherwise: beside the admin socket.
pub const DEFAULT_RING_STATE: &str = "rings";
