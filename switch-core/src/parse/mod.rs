//! From bytes to fields, in the order they stand in a frame.
//!
//! * [`EthernetHeader`]: addresses and the outer VLAN tag; all that the switching decision needs;
//! * [`Network`]: ARP, IPv4, IPv6 with extension headers;
//! * [`Transport`]: TCP, UDP, ICMP, ICMPv6;
//! * [`Headers`]: all of them, and where and why a parse ended.

mod bytes;
mod ethernet;
mod headers;
mod network;
mod transport;

pub use ethernet::{
    ETHERNET_HEADER_BYTES, EthernetHeader, TPID_CUSTOMER, TPID_LEGACY_STACKED, TPID_SERVICE,
    VLAN_TAG_BYTES, VlanTag, is_vlan_tpid,
};
pub use headers::{Headers, Layer, MAX_VLAN_TAGS, ParseEnd};
pub use network::{
    Arp, ETHER_TYPE_ARP, ETHER_TYPE_IPV4, ETHER_TYPE_IPV6, Extensions, IPV6_HEADER_BYTES, Ipv4,
    Ipv6, Ipv6Fragment, MAX_EXTENSION_HEADERS, Network,
};
pub use transport::{
    Icmp, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, Tcp, TcpFlags, Transport,
    UDP_HEADER_BYTES, Udp,
};
