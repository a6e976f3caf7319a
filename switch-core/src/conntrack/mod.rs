//! Connection tracking: which packets belong together, what they may do next, and how their addresses are translated.
//!
//! In the order a packet meets them:
//!
//! * `packet`, `tuple`: what the caller says of a packet, and what names a connection;
//! * `fragments`: the ports of fragments that have none;
//! * `refresh`: the fast path of a packet whose verdict is cached;
//! * `table`: looking a connection up, moving its state, opening it; `tracked` is the answer;
//! * `tcp`: TCP's states and windows;
//! * `nat`: the choice of a translation;
//! * `limits`, `early_drop`: how many connections there may be, and which goes when there are too many;
//! * `index`, `slab`, `slot`: memory;
//! * `expire`, `control`: what the control thread does; `config`: its settings;
//! * `snapshot`: taking connections in again, many at a time.
//!
//! The table is shared by all workers and the control thread, and bounded in everything: memory, work per packet, connections by
//! port and zone. [`Conntrack::track`] and [`Conntrack::commit`] take a shard's lock and a connection's; [`Conntrack::refresh`]
//! takes none.

mod config;
mod control;
mod early_drop;
mod expire;
mod fragments;
mod index;
mod limits;
mod nat;
mod packet;
mod preview;
mod refresh;
mod slab;
mod slot;
mod snapshot;
mod table;
mod tcp;
mod tracked;
mod tuple;

pub use config::{ConntrackConfig, Strictness, TcpPickup, TcpWindows, Timeouts};
pub use control::{ConnPage, ConnRecord, ImportError, TcpRecord};
pub use expire::Swept;
pub use fragments::{FragmentKey, FragmentTable};
pub use nat::{DestinationNat, NAT_PROBES, NatSpec, PortRange, SourceNat, SourcePorts};
pub use packet::{Packet, TcpFlags, TcpInfo, TransportInfo};
pub use slot::ConnState;
pub use snapshot::ConnsRestored;
pub use table::{Commit, CommitError, Conntrack, ConntrackStats};
pub use tcp::{IgnoredSyn, Side};
pub use tracked::{
    ConnId, Endpoint, InvalidReason, Leg, Refreshed, StateBits, Tracked, Translation,
};
pub use tuple::{
    Addresses, Direction, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, Tuple, Zone,
};
