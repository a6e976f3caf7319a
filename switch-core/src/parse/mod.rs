//! From bytes to fields, in the order they stand in a frame.
//!
//! * [`ethernet`](EthernetHeader): addresses and VLAN tags; all that a cached decision needs.
mod bytes;
mod ethernet;

pub use ethernet::{
    ETHERNET_HEADER_BYTES, EthernetHeader, TPID_CUSTOMER, TPID_LEGACY_STACKED, TPID_SERVICE,
    VLAN_TAG_BYTES, VlanTag, is_vlan_tpid,
};
