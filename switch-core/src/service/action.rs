//! What goes in and what comes out: a frame that the program sent to the controller, and what is to be done about it.

use std::net::IpAddr;

use super::drop::ServiceDrop;
use crate::mac::MacAddress;
use crate::port::PortId;

/// The length of a virtio-net header, carried along untouched (VIRTIO 1.3 §5.1.6).
pub const VNET_HEADER_BYTES: usize = 12;

/// What the `interface` fields hold when the program names no router interface.
pub const NO_INTERFACE: u32 = 0;

macro_rules! punt_reasons {
    ($($variant:ident $number:literal $name:literal $meaning:literal)*) => {
        /// Why the program sent a frame to the controller. The numbers are stable: programs and P4Info carry them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum PuntReason {
            $(#[doc = $meaning] $variant = $number,)*
        }

        impl PuntReason {
            /// Every reason, in the order of its number.
            pub const ALL: [Self; [$($number),*].len()] = [$(Self::$variant),*];

            /// The reason with this number.
            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }

            /// The reason with this name: programs number their reasons themselves, but call them by name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)* _ => None }
            }

            /// The reason's stable number.
            pub const fn number(self) -> u8 {
                self as u8
            }

            /// The reason's stable name, as programs and counters show it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
        }
    };
}

punt_reasons! {
    Arp 1 "arp"
        "An ARP packet that a router interface or a proxy entry may have to answer, or learn from."
    NeighborDiscovery 2 "neighbor_discovery"
        "An IPv6 neighbour solicitation or advertisement, likewise."
    NeighborObserved 3 "neighbor"
        "An ARP or neighbour discovery packet from which a router interface may learn a neighbour."
    NextHopUnresolved 4 "next_hop_unresolved"
        "A routed packet whose next hop's MAC address is not known: to be queued until it is."
    LocalInput 5 "local_input"
        "A packet for an address of a router interface."
    TtlExceeded 6 "ttl_exceeded"
        "A routed packet whose TTL or hop limit ended here."
    PacketTooBig 7 "packet_too_big"
        "A routed packet longer than the MTU of its way out."
    NoRoute 8 "no_route"
        "A packet to be routed for whose destination there is no route."
    AdminProhibited 9 "admin_prohibited"
        "A packet that a rule rejects, and whose sender is to be told."
    HostUnreachable 10 "host_unreachable"
        "A packet whose destination is known to be unreachable."
    PortUnreachable 11 "port_unreachable"
        "A packet to a transport port that nobody serves."
    Dhcp4 12 "dhcp4"
        "A DHCPv4 message from a client."
    Dhcp6 13 "dhcp6"
        "A DHCPv6 message from a client."
    RouterSolicitation 14 "router_solicitation"
        "An IPv6 router solicitation."
}

/// What the program says about a frame that it sends to the controller: P4's packet-in metadata.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketMetadata {
    /// The router interface that the frame came in by; [`NO_INTERFACE`] to find it by bridge domain and destination MAC address.
    pub interface: u32,
    /// The router interface that the packet was to leave by. For [`PuntReason::NextHopUnresolved`].
    pub egress_interface: u32,
    /// The bridge domain that the frame came in by.
    pub domain: u16,
    /// The next hop's address, an IPv4 address in the low 32 bits; 0 for the packet's own destination. For
    /// [`PuntReason::NextHopUnresolved`].
    pub next_hop: u128,
    /// The MTU of the way out, in bytes of IP packet. For [`PuntReason::PacketTooBig`]; 0 for the MTU of `egress_interface`.
    pub mtu_bytes: u16,
}

impl PacketMetadata {
    /// Reads the four numbers that a program sends along with a frame: the interface and the bridge domain that it came in by, the
    /// interface that it was to leave by, and what else the reason needs: the next hop, or the MTU. A number that is too large
    /// for its field counts as none.
    pub fn from_args(reason: PuntReason, args: [u128; 4]) -> Self {
        let [interface, domain, egress_interface, last] = args;
        let id = |number| u32::try_from(number).unwrap_or(NO_INTERFACE);
        let mut metadata = Self {
            interface: id(interface),
            egress_interface: id(egress_interface),
            domain: u16::try_from(domain).unwrap_or_default(),
            ..Self::default()
        };
        match reason {
            PuntReason::NextHopUnresolved => metadata.next_hop = last,
            PuntReason::PacketTooBig => {
                metadata.mtu_bytes = u16::try_from(last).unwrap_or_default()
            }
            _ => {}
        }
        metadata
    }
}

/// A frame that the program sent to the controller.
#[derive(Clone, Copy, Debug)]
pub struct PacketIn<'a> {
    /// The port that it came from.
    pub port: PortId,
    /// Why it is here.
    pub reason: PuntReason,
    /// What the program says about it.
    pub metadata: PacketMetadata,
    /// Its virtio-net header, in little-endian form (VIRTIO 1.3 §5.1.6).
    pub vnet_header: [u8; VNET_HEADER_BYTES],
    /// The whole frame, as it came from the port.
    pub frame: &'a [u8],
}

/// What is to be done.
///
/// The actions of one call are carried out in their order: a [`LearnNeighbor`](Self::LearnNeighbor) has to be in force before the
/// [`Reinject`](Self::Reinject) that follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceAction {
    /// Send this frame straight out of a port, with an all-zero virtio-net header: all checksums are whole.
    Send {
        /// The port.
        port: PortId,
        /// The frame, tagged as the request was.
        frame: Vec<u8>,
    },
    /// Run this frame through the program, as if it had just come from the port.
    Reinject {
        /// The port that it came from.
        port: PortId,
        /// Its virtio-net header.
        vnet_header: [u8; VNET_HEADER_BYTES],
        /// The frame.
        frame: Vec<u8>,
    },
    /// Send this frame out of every port of a bridge domain, tagged as each port wants it, with an all-zero virtio-net header.
    Flood {
        /// The bridge domain.
        domain: u16,
        /// A port that is left out.
        except: Option<PortId>,
        /// The frame, untagged.
        frame: Vec<u8>,
    },
    /// Put a neighbour into the neighbour table, in place of what the table holds for the address.
    LearnNeighbor {
        /// The router interface whose neighbour it is.
        interface: u32,
        /// The neighbour's address.
        address: IpAddr,
        /// The neighbour's MAC address.
        mac: MacAddress,
        /// The bridge domain of the interface.
        domain: u16,
        /// The port behind which the neighbour was heard.
        port: PortId,
    },
    /// Take a neighbour out of the neighbour table.
    ForgetNeighbor {
        /// The router interface whose neighbour it was.
        interface: u32,
        /// The neighbour's address.
        address: IpAddr,
    },
    /// A frame ended here, for this reason; to be counted on the port it came from.
    Drop {
        /// The port that it came from.
        port: PortId,
        /// Why.
        reason: ServiceDrop,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_of_a_program_become_metadata() {
        let args = [1, 10, 2, 0x0a00_0109];
        let metadata = PacketMetadata::from_args(PuntReason::NextHopUnresolved, args);
        let expected = PacketMetadata {
            interface: 1,
            egress_interface: 2,
            domain: 10,
            next_hop: 0x0a00_0109,
            mtu_bytes: 0,
        };
        assert_eq!(metadata, expected);
        let metadata = PacketMetadata::from_args(PuntReason::PacketTooBig, [1, 10, 2, 1400]);
        assert_eq!((metadata.mtu_bytes, metadata.next_hop), (1400, 0));
        let huge = PacketMetadata::from_args(PuntReason::PacketTooBig, [u128::MAX; 4]);
        assert_eq!(huge, PacketMetadata::default());
    }

    #[test]
    fn reasons_are_known_by_number_and_by_name() {
        for reason in PuntReason::ALL {
            assert_eq!(PuntReason::from_number(reason.number()), Some(reason));
            assert_eq!(PuntReason::from_name(reason.name()), Some(reason));
        }
        assert_eq!(PuntReason::from_name("Arp"), None);
    }
}
