//! Why a service answered nothing.
//!
//! The same three texts as a [`DropReason`](crate::DropReason) has, so that counters and documentation show both alike.

use std::fmt;

macro_rules! service_drops {
    ($($variant:ident $name:literal $meaning:literal $advice:literal)*) => {
        /// Why a frame that was sent to the controller ended there.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum ServiceDrop {
            $(#[doc = $meaning] $variant,)*
        }

        impl ServiceDrop {
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

service_drops! {
    Malformed "service_malformed"
        "A message to the router is truncated, or its lengths contradict each other."
        "Look for a broken or hostile sender on this port."
    BadChecksum "service_bad_checksum"
        "A message to the router has a wrong checksum."
        "Look for a broken sender on this port; turn its checksum offload off to see whether that is at fault."
    UnknownInterface "service_unknown_interface"
        "No router interface is configured where the frame came in."
        "Configure the router interface that the program's table entry names, or remove the entry."
    WrongDomain "service_wrong_domain"
        "The frame came from another bridge domain than the router interface's."
        "Correct the domain of the router interface, or the table entry that sent the frame to it."
    NotForRouter "service_not_for_router"
        "The message asks for an address that neither a router interface nor a proxy entry has."
        "Nothing to do if the program sends all such messages; otherwise configure the address."
    NotServed "service_not_served"
        "The router has the address, but serves no such protocol or message."
        "Nothing to do: routers answer ping, ARP, neighbour discovery and DHCP only."
    NotOnLink "service_not_on_link"
        "An address is outside the prefixes of the router interface."
        "Correct the sender's address, or give the interface an address in the sender's prefix."
    AddressConflict "service_address_conflict"
        "A station claims an address of the router interface."
        "Give that station another address."
    InvalidSource "service_invalid_source"
        "The sender's address is none that a station has, or contradicts the frame's own."
        "Look for a broken or hostile sender on this port."
    ErrorNotAllowed "service_error_not_allowed"
        "No ICMP error may be sent about this packet (RFC 1812 §4.3.2.7, RFC 4443 §2.4)."
        "Nothing to do: errors about errors, fragments and multicast would multiply."
    NoAddress "service_no_address"
        "The router interface has no address of the packet's family to answer from."
        "Give the interface an IPv4 or IPv6 address."
    RateLimited "service_rate_limited"
        "The port made the router answer more often than its limit allows."
        "Look at what the port sends; raise the limit if it is legitimate."
    NeighborQueueFull "neighbor_queue_full"
        "Too many frames already wait for this next hop, or from this port, or in all."
        "Look whether the next hop is up; senders will repeat what was lost."
    NeighborLimit "neighbor_limit"
        "The interface, the port or the router has as many neighbours as it may have."
        "Look for a scan of addresses from this port; raise the limit if it is legitimate."
    NeighborUnreachable "neighbor_unreachable"
        "The next hop answers neither ARP nor neighbour solicitations."
        "Look whether the next hop is up and in the interface's bridge domain."
    NeighborNotInstalled "neighbor_not_installed"
        "The next hop is known, but its frames keep missing the neighbour table."
        "Look whether the neighbour table is full, or its entry is in another place than the program looks."
    NotConfigured "service_not_configured"
        "The router interface does not offer this service."
        "Configure it on the interface, or correct the table entry that sent the frame."
    NoFreeAddress "dhcp_no_free_address"
        "There is no address left for this client."
        "Enlarge the pool, shorten the lease time, or raise the limit for each port."
    OtherServer "dhcp_other_server"
        "The client chose another DHCP server."
        "Find the other server in this bridge domain, if there should be none."
    Relayed "dhcp_relayed"
        "The message came through a DHCP relay."
        "Serve relayed clients from another server."
}

impl ServiceDrop {
    /// The reason's number, for arrays of [`Self::COUNT`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for ServiceDrop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
