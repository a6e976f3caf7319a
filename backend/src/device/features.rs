//! What a port offers to its front-end, and the names people know the bits by.
//!
//! The device state answers GET_FEATURES and GET_PROTOCOL_FEATURES from an [`Offer`]; `port show` prints the names.
//! Kept true: an offer is computed once, when the port is made, and never changes while the port lives, through restarts and other
//! versions where there is a state folder (`control::frozen_offers`). A front-end that reconnects and misses a feature it had before
//! gives up for good (QEMU: "vhost lacks feature mask").

use serde::{Deserialize, Serialize};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::virtio_config::*;
use virtio_bindings::virtio_net::*;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// Memory regions a front-end may add one by one. QEMU's limit for x86 memory slots is 509; fewer after a restart would end the VM's NIC.
pub const MAX_MEMORY_SLOTS: usize = 509;

/// VHOST_F_LOG_ALL: the front-end wants written pages marked in the migration log (vhost-user: Migration).
pub const LOG_ALL: u64 = VhostUserVirtioFeatures::LOG_ALL.bits();
/// VIRTIO_F_ACCESS_PLATFORM: the device's addresses are those that the platform gives it, by way of an IOMMU perhaps.
pub const ACCESS_PLATFORM: u64 = 1 << VIRTIO_F_ACCESS_PLATFORM;
/// VHOST_USER_F_PROTOCOL_FEATURES: without it, rings start enabled (vhost-user: Ring states).
pub const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// VIRTIO_F_RING_PACKED.
pub const RING_PACKED: u64 = 1 << VIRTIO_F_RING_PACKED;

/// Virtio features whose meaning the data path implements or that front-ends serve themselves once the back-end lets them.
///
/// * CTRL_VQ: Cloud Hypervisor serves the control queue itself but shows it to the guest only if the back-end offers it, and
///   MQ depends on it (VIRTIO 1.3 §5.1.3.1). QEMU decides alone.
/// * GUEST_ANNOUNCE: the front-end asks the guest to announce itself; without it QEMU sends SEND_RARP instead.
/// * MTU: shown to a guest only if the front-end was given an MTU.
/// * ANY_LAYOUT: legacy guests may then share one descriptor between header and data; modern ones always may.
///
/// RING_PACKED is offered where it is wanted and the rings' positions can be kept. LOG_ALL goes to the front-end alone: with LOG_SHMFD it
/// lets the VM migrate. Not offered: RING_RESET (QEMU does not forward a ring's reset, so freed
/// rings would be used); HASH_REPORT, NOTIFICATION_DATA, NOTIFY_ON_EMPTY.
const OFFERED_BITS: &[u32] = &[
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_UFO,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_UFO,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_ANNOUNCE,
    VIRTIO_F_ANY_LAYOUT,
    VIRTIO_RING_F_INDIRECT_DESC,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_F_VERSION_1,
    VIRTIO_F_ACCESS_PLATFORM,
    VIRTIO_F_IN_ORDER,
];

/// Whether a port offers packed rings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PackedOffer {
    /// Nobody asked for them.
    #[default]
    NotWanted,
    /// Asked for, and their positions can be kept.
    Made,
    /// Asked for, but their positions cannot be kept, for this reason.
    Withheld(String),
}

/// Features of a port, frozen for its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Virtio feature bits, with VHOST_USER_F_PROTOCOL_FEATURES.
    pub virtio: u64,
    /// VHOST_USER_PROTOCOL_F_* bits.
    pub protocol: u64,
    /// Memory regions that may be added one by one.
    #[serde(default = "memory_slots")]
    pub memory_slots: u64,
}

impl Offer {
    /// The offer of a port with that many queue pairs, with or without packed rings. MQ appears only where there is more than one pair.
    pub fn new(queue_pairs: u16, packed: &PackedOffer) -> Self {
        let mut virtio = OFFERED_BITS
            .iter()
            .fold(PROTOCOL_FEATURES | LOG_ALL, |bits, bit| bits | 1 << bit);
        if queue_pairs > 1 {
            virtio |= 1 << VIRTIO_NET_F_MQ;
        }
        if *packed == PackedOffer::Made {
            virtio |= RING_PACKED;
        }
        let mut protocol = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::RARP
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::MTU
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        // QEMU 10.0 takes the pairs' userfaultfds for each other and does not get through a postcopy migration with more than one.
        if queue_pairs == 1 {
            protocol |= VhostUserProtocolFeatures::PAGEFAULT;
        }
        Self {
            virtio,
            protocol: protocol.bits(),
            memory_slots: memory_slots(),
        }
    }

    /// With the port's state in the switch, which migrates with its VM.
    #[must_use]
    pub fn with_device_state(self) -> Self {
        let protocol = self.protocol | VhostUserProtocolFeatures::DEVICE_STATE.bits();
        Self { protocol, ..self }
    }

    /// What of an offer made earlier, maybe by another version, this one does not have, in words; nothing: it can be made again.
    pub fn lacks_of(&self, earlier: &Self) -> Vec<String> {
        let mut lacking = virtio_names(earlier.virtio & !self.virtio);
        lacking.extend(protocol_names(earlier.protocol & !self.protocol));
        if earlier.memory_slots > self.memory_slots {
            lacking.push(format!("{} memory slots", earlier.memory_slots));
        }
        lacking
    }
}

/// Those of every version so far.
fn memory_slots() -> u64 {
    MAX_MEMORY_SLOTS as u64
}

/// Names of virtio feature bits, lowest bit first; a bit without a name is shown as `bit N`.
pub fn virtio_names(features: u64) -> Vec<String> {
    names(features, |bit| {
        Some(match bit {
            VIRTIO_NET_F_CSUM => "CSUM",
            VIRTIO_NET_F_GUEST_CSUM => "GUEST_CSUM",
            VIRTIO_NET_F_CTRL_GUEST_OFFLOADS => "CTRL_GUEST_OFFLOADS",
            VIRTIO_NET_F_MTU => "MTU",
            VIRTIO_NET_F_MAC => "MAC",
            VIRTIO_NET_F_GSO => "GSO",
            VIRTIO_NET_F_GUEST_TSO4 => "GUEST_TSO4",
            VIRTIO_NET_F_GUEST_TSO6 => "GUEST_TSO6",
            VIRTIO_NET_F_GUEST_ECN => "GUEST_ECN",
            VIRTIO_NET_F_GUEST_UFO => "GUEST_UFO",
            VIRTIO_NET_F_HOST_TSO4 => "HOST_TSO4",
            VIRTIO_NET_F_HOST_TSO6 => "HOST_TSO6",
            VIRTIO_NET_F_HOST_ECN => "HOST_ECN",
            VIRTIO_NET_F_HOST_UFO => "HOST_UFO",
            VIRTIO_NET_F_MRG_RXBUF => "MRG_RXBUF",
            VIRTIO_NET_F_STATUS => "STATUS",
            VIRTIO_NET_F_CTRL_VQ => "CTRL_VQ",
            VIRTIO_NET_F_CTRL_RX => "CTRL_RX",
            VIRTIO_NET_F_CTRL_VLAN => "CTRL_VLAN",
            VIRTIO_NET_F_CTRL_RX_EXTRA => "CTRL_RX_EXTRA",
            VIRTIO_NET_F_GUEST_ANNOUNCE => "GUEST_ANNOUNCE",
            VIRTIO_NET_F_MQ => "MQ",
            VIRTIO_NET_F_CTRL_MAC_ADDR => "CTRL_MAC_ADDR",
            VIRTIO_F_NOTIFY_ON_EMPTY => "NOTIFY_ON_EMPTY",
            26 => "LOG_ALL",
            VIRTIO_F_ANY_LAYOUT => "ANY_LAYOUT",
            VIRTIO_RING_F_INDIRECT_DESC => "INDIRECT_DESC",
            VIRTIO_RING_F_EVENT_IDX => "EVENT_IDX",
            30 => "PROTOCOL_FEATURES",
            VIRTIO_F_VERSION_1 => "VERSION_1",
            VIRTIO_F_ACCESS_PLATFORM => "ACCESS_PLATFORM",
            VIRTIO_F_RING_PACKED => "RING_PACKED",
            VIRTIO_F_IN_ORDER => "IN_ORDER",
            VIRTIO_F_ORDER_PLATFORM => "ORDER_PLATFORM",
            VIRTIO_F_NOTIFICATION_DATA => "NOTIFICATION_DATA",
            VIRTIO_F_RING_RESET => "RING_RESET",
            VIRTIO_NET_F_HASH_REPORT => "HASH_REPORT",
            VIRTIO_NET_F_RSS => "RSS",
            _ => return None,
        })
    })
}

/// Names of vhost-user protocol feature bits, lowest bit first.
pub fn protocol_names(features: u64) -> Vec<String> {
    const NAMES: &[&str] = &[
        "MQ",
        "LOG_SHMFD",
        "RARP",
        "REPLY_ACK",
        "NET_MTU",
        "BACKEND_REQ",
        "CROSS_ENDIAN",
        "CRYPTO_SESSION",
        "PAGEFAULT",
        "CONFIG",
        "BACKEND_SEND_FD",
        "HOST_NOTIFIER",
        "INFLIGHT_SHMFD",
        "RESET_DEVICE",
        "INBAND_NOTIFICATIONS",
        "CONFIGURE_MEM_SLOTS",
        "STATUS",
        "XEN_MMAP",
        "SHARED_OBJECT",
        "DEVICE_STATE",
    ];
    names(features, |bit| NAMES.get(bit as usize).copied())
}

fn names(features: u64, name: impl Fn(u32) -> Option<&'static str>) -> Vec<String> {
    (0..u64::BITS)
        .filter(|bit| features & (1 << bit) != 0)
        .map(|bit| name(bit).map_or_else(|| format!("bit {bit}"), str::to_owned))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_implemented_is_not_offered() {
        let offer = Offer::new(4, &PackedOffer::Withheld(String::new()));
        for bit in [
            VIRTIO_F_RING_PACKED,
            VIRTIO_F_RING_RESET,
            VIRTIO_NET_F_HASH_REPORT,
            VIRTIO_F_NOTIFICATION_DATA,
            VIRTIO_NET_F_STATUS,
        ] {
            assert_eq!(offer.virtio & (1 << bit), 0, "bit {bit}");
        }
        assert_eq!(
            protocol_names(offer.protocol),
            [
                "MQ",
                "LOG_SHMFD",
                "RARP",
                "REPLY_ACK",
                "NET_MTU",
                "BACKEND_REQ",
                "RESET_DEVICE",
                "CONFIGURE_MEM_SLOTS"
            ]
        );
    }

    #[test]
    fn multiqueue_is_offered_only_by_ports_that_have_it() {
        assert_eq!(
            Offer::new(1, &PackedOffer::NotWanted).virtio & (1 << VIRTIO_NET_F_MQ),
            0
        );
        assert_ne!(
            Offer::new(2, &PackedOffer::Made).virtio & (1 << VIRTIO_NET_F_MQ),
            0
        );
    }

    #[test]
    fn postcopy_is_offered_only_where_qemu_survives_it() {
        let pagefault = VhostUserProtocolFeatures::PAGEFAULT.bits();
        let offered = |pairs| Offer::new(pairs, &PackedOffer::NotWanted).protocol & pagefault;
        assert_eq!((offered(1), offered(2)), (pagefault, 0));
    }

    #[test]
    fn an_earlier_offer_can_be_made_again_unless_it_had_more() {
        let now = Offer::new(1, &PackedOffer::NotWanted);
        let fewer = Offer {
            virtio: now.virtio & !(1 << VIRTIO_NET_F_CSUM),
            protocol: 0,
            memory_slots: 8,
        };
        assert!(now.lacks_of(&now).is_empty() && now.lacks_of(&fewer).is_empty());
        let more = Offer {
            virtio: now.virtio | 1 << VIRTIO_F_RING_RESET,
            protocol: now.protocol | 1 << 16,
            memory_slots: 510,
        };
        assert_eq!(
            now.lacks_of(&more),
            ["RING_RESET", "STATUS", "510 memory slots"]
        );
    }

    #[test]
    fn every_offered_bit_has_a_name() {
        assert!(
            virtio_names(Offer::new(2, &PackedOffer::Made).virtio)
                .iter()
                .all(|name| !name.starts_with("bit "))
        );
    }
}
