//! Why a frame was dropped: one list for the whole switch.
//!
//! Each dropped frame has exactly one reason. The core returns those that concern its decision; the data path adds those that
//! concern rings, headers and devices, and counts all of them per port in an array of [`DropReason::COUNT`].

use std::fmt;

macro_rules! drop_reasons {
    ($($variant:ident $name:literal $meaning:literal $advice:literal)*) => {
        /// Why a frame was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum DropReason {
            $(#[doc = $meaning] $variant,)*
        }

        impl DropReason {
            /// Every reason, in the order of its number.
            pub const ALL: [Self; Self::COUNT] = [$(Self::$variant),*];
            /// How many reasons there are.
            pub const COUNT: usize = [$($name),*].len();

            /// The reason's stable name, as counters and JSON show it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// What happened, in one sentence.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning),* }
            }

            /// What to do about it, in one sentence.
            pub const fn advice(self) -> &'static str {
                match self { $(Self::$variant => $advice),* }
            }
        }
    };
}

drop_reasons! {
    BadChain "bad_chain"
        "A descriptor chain broke the rules: a loop, an address or length outside memory, or a wrong direction."
        "Update the guest's virtio-net driver; if it is current, suspect the guest."
    BadVnetHeader "bad_vnet_header"
        "The frame's virtio-net header contradicts the frame or the negotiated features."
        "Update the guest's virtio-net driver, or turn the offload off in the guest with ethtool -K."
    FrameTooShort "frame_too_short"
        "The frame ends before its Ethernet header does."
        "Look for a broken sender on this port; no valid frame is this short."
    FrameTooLong "frame_too_long"
        "The frame is longer than the switch carries."
        "Lower the sender's MTU."
    HeadersTooLong "headers_too_long"
        "The headers go on beyond the bytes that the switch copies, so an offload could not be done in software."
        "Let the receiver accept the offload, or send fewer extension headers and options."
    VlanTagTruncated "vlan_tag_truncated"
        "The frame ends inside its VLAN tag."
        "Look for a broken sender on this port."
    VlanReserved "vlan_reserved"
        "The frame's VLAN identifier is 4095, which IEEE 802.1Q reserves."
        "Correct the sender's VLAN configuration."
    VlanTagOnAccessPort "vlan_tag_on_access_port"
        "A tagged frame came from an access port."
        "Send untagged, or make the port a trunk that allows the VLAN."
    VlanNotAllowed "vlan_not_allowed"
        "The frame's VLAN is not among those its trunk port allows."
        "Add the VLAN to the port's trunk list, or correct the sender's VLAN."
    NoNativeVlan "no_native_vlan"
        "An untagged frame came from a trunk port without a native VLAN."
        "Send tagged, or give the port a native VLAN."
    InnerTagExposed "inner_tag_exposed"
        "Removing the outer VLAN tag would have let the inner tag choose a VLAN (VLAN hopping)."
        "Give the trunk a native VLAN that carries no stacked tags, or stop the sender that stacks them."
    SourceMulticast "source_multicast"
        "The source address is a group address, which no station has."
        "Look for a broken or hostile sender on this port."
    SourceZero "source_zero"
        "The source address is all zero, which no station has."
        "Give the sending interface a MAC address."
    BridgeReserved "bridge_reserved"
        "The destination is one of the addresses that a bridge never relays (01:80:c2:00:00:00 to 0f)."
        "Nothing to do: protocols such as LLDP, STP and PAUSE end at the first switch."
    SamePort "same_port"
        "The destination is behind the port that the frame came from."
        "Nothing to do if several stations share the port; otherwise look for a loop or a duplicate MAC address."
    NoDestination "no_destination"
        "No other port can take the frame: the broadcast domain has no other member."
        "Attach another port to the VLAN, or correct the VLAN of one of the two."
    MtuExceeded "mtu_exceeded"
        "The frame is longer than the destination port takes."
        "Use one MTU on both sides, or raise the destination's."
    OffloadUnsupported "offload_unsupported"
        "The frame needs an offload that the destination lacks and the switch cannot do in software."
        "Turn that offload off in the sending guest with ethtool -K."
    TooManySegments "too_many_segments"
        "The frame asks to be cut into more pieces than one frame may become."
        "Raise the sender's segment size (MSS); pieces this small are no use to anyone."
    RxRingNotReady "rx_ring_not_ready"
        "The destination guest has not started its receive ring."
        "Boot the guest, or load and enable its virtio-net driver."
    RxRingFull "rx_ring_full"
        "The destination guest has no free receive buffer."
        "Give the destination guest more CPU or a larger receive ring."
    RxBufferTooSmall "rx_buffer_too_small"
        "The destination guest's receive buffers cannot hold the frame."
        "Lower the sender's MTU, or let the receiving guest negotiate mergeable buffers."
    PortGone "port_gone"
        "The frame's port is no longer part of the switch."
        "Nothing to do: the port was removed while the frame was under way."
    RingDiscarded "ring_discarded"
        "The frame waited in a packed ring behind which the VMM gave back frames unsent while no switch was connected."
        "Nothing to do: a switch that is killed under load may lose these; look for why it ended."
    UplinkError "uplink_error"
        "The host refused the frame that an uplink or TAP port was to send."
        "Look at the interface: it must exist, be up, and have an MTU large enough."
    PeerNotConnected "peer_not_connected"
        "Nobody is connected to the socket of the destination's stream port, or who was has gone before it read the frame."
        "Start the VM behind the port; `ringswitch port show` says why its last connection ended."
    PeerNotReading "peer_not_reading"
        "The VM behind the destination's stream port does not read as fast as frames come for it."
        "Give the destination guest more CPU, or a virtio NIC, which is many times as fast."
    ControllerBusy "controller_busy"
        "The frame was for the control side, which has as many frames waiting as it may, or had too many from this port of late."
        "Look for a port that sends many frames which only the control side can answer (ARP, neighbour discovery, expired TTLs)."
    TooManyCopies "too_many_copies"
        "The frame, or all frames of its batch together, would have become more copies than a batch may have."
        "Make the multicast groups and mirrors that the frame meets smaller."
    ParseError "parse_error"
        "The program could not parse the frame's headers."
        "Look at `ringswitch explain` for where the parser stopped; suspect the sender, or the program."
    DeniedByProgram "denied_by_program"
        "The program drops such frames."
        "Ask `ringswitch explain` which table and entry decided, and change it if that is not what you want."
    PortNotConfigured "port_not_configured"
        "The program has no entry for the port that the frame came from."
        "Add the port to the program's port table."
    SourceSpoofed "source_spoofed"
        "The frame's source MAC or IP address, or what its ARP or ND says, is not one that the port may use."
        "Correct the guest's address, or add the address to the port security table."
    AclDenied "acl_denied"
        "A security rule denies the frame, or none allows it."
        "Add a rule that allows it, if it is wanted; `ringswitch explain` names the rule."
    ConnectionInvalid "connection_invalid"
        "The frame fits no connection and cannot open one."
        "Nothing to do for stray segments of closed connections; otherwise look for asymmetric paths."
    ConnectionLimit "connection_limit"
        "The port or the zone has as many connections as it may."
        "Close connections in the guest, shorten timeouts, or raise the limit."
    ConnectionTableFull "connection_table_full"
        "The connection table is full, and none could be replaced."
        "Raise the table's capacity, or shorten timeouts."
    NatPortsExhausted "nat_ports_exhausted"
        "No address and port is free to translate the connection to."
        "Give the translation more addresses or a larger range of ports."
    NoRoute "no_route"
        "No route leads to the destination."
        "Add a route, or a default route, to the VRF."
    TtlExpired "ttl_expired"
        "The frame was routed as often as its TTL or hop limit allows."
        "Nothing to do for traceroute; otherwise look for a routing loop."
    PacketTooBig "packet_too_big"
        "The packet is longer than the next hop's MTU and must not be fragmented."
        "Let the sender receive the ICMP error that it was sent, or lower its MTU."
    NeighborUnresolved "neighbor_unresolved"
        "Nobody answers for the next hop's address."
        "Check that the next hop is up and has this address."
    NoBackend "no_backend"
        "The service has no back-end."
        "Add a back-end, or remove the service."
    RateExceeded "rate_exceeded"
        "The frame is beyond the rate that its meter allows."
        "Raise the rate, or let the sender send less."
    StormControl "storm_control"
        "The port sends more broadcast, multicast or unknown-destination frames than it may."
        "Look for a loop or a broken guest, or raise the limit."
    TooManyPasses "too_many_passes"
        "The program sent the frame through itself more often than it may."
        "Correct the program: a resubmitted frame has to end somewhere."
    ServiceRefused "service_refused"
        "A frame for one of the switch's own services was malformed, or the service does not answer it."
        "Look at what the guest sends; `ringswitch port show --last-drops` has the frame."
}

impl DropReason {
    /// The reason's number, for arrays of [`Self::COUNT`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The reason of this [`name`](Self::name).
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.name() == name)
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_reason_stands_at_its_number_under_a_name_of_its_own() {
        let names: HashSet<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), DropReason::COUNT);
        for (number, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), number);
            assert!(
                reason
                    .name()
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
            );
            assert!(
                reason.advice().ends_with('.') && reason.meaning().ends_with('.'),
                "{reason}"
            );
        }
    }
}
