//! What the services did, counted.

use super::drop::ServiceDrop;

/// Counters since the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceStats {
    /// ARP requests answered.
    pub arp_replies: u64,
    /// Neighbour solicitations answered.
    pub neighbor_advertisements: u64,
    /// Pings answered; fragments count one by one.
    pub echo_replies: u64,
    /// ICMP errors sent.
    pub icmp_errors: u64,
    /// ARP requests and neighbour solicitations sent.
    pub neighbor_requests: u64,
    /// Neighbours learned, or learned anew with another MAC address.
    pub neighbors_learned: u64,
    /// Neighbours forgotten because they no longer answered.
    pub neighbors_forgotten: u64,
    /// Neighbours that never answered.
    pub neighbors_failed: u64,
    /// Frames queued for a next hop.
    pub frames_queued: u64,
    /// Queued frames given back to the program.
    pub frames_reinjected: u64,
    /// DHCPOFFERs sent.
    pub dhcp4_offers: u64,
    /// DHCPACKs sent.
    pub dhcp4_acks: u64,
    /// DHCPNAKs sent.
    pub dhcp4_naks: u64,
    /// DHCPv6 ADVERTISE messages sent.
    pub dhcp6_advertises: u64,
    /// DHCPv6 REPLY messages sent.
    pub dhcp6_replies: u64,
    /// Router advertisements sent, asked for or not.
    pub router_advertisements: u64,
    drops: [u64; ServiceDrop::COUNT],
}

impl Default for ServiceStats {
    fn default() -> Self {
        Self {
            arp_replies: 0,
            neighbor_advertisements: 0,
            echo_replies: 0,
            icmp_errors: 0,
            neighbor_requests: 0,
            neighbors_learned: 0,
            neighbors_forgotten: 0,
            neighbors_failed: 0,
            frames_queued: 0,
            frames_reinjected: 0,
            dhcp4_offers: 0,
            dhcp4_acks: 0,
            dhcp4_naks: 0,
            dhcp6_advertises: 0,
            dhcp6_replies: 0,
            router_advertisements: 0,
            drops: [0; ServiceDrop::COUNT],
        }
    }
}

impl ServiceStats {
    /// How many frames ended for this reason.
    pub fn drops(&self, reason: ServiceDrop) -> u64 {
        self.drops.get(reason.index()).copied().unwrap_or_default()
    }

    pub(super) fn count_drop(&mut self, reason: ServiceDrop) {
        if let Some(count) = self.drops.get_mut(reason.index()) {
            *count += 1;
        }
    }
}
