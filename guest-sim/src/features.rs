//! Virtio feature bits, as a set.
//!
//! Called by everything that negotiates or depends on a feature. Keeps true: every bit used in this crate has one name, taken from
//! `virtio-bindings`.

use std::fmt;
use std::ops::{BitAnd, BitOr, Sub};

use virtio_bindings::{virtio_config as config, virtio_net as net, virtio_ring as ring};

/// A set of virtio feature bits (VIRTIO 1.3 §2.2, §5.1.3, §6) and of the two that vhost-user puts among them.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Features(u64);

const fn bit(number: u32) -> Features {
    Features(1 << number)
}

impl Features {
    /// No feature at all: a legacy device with a 10-byte header.
    pub const NONE: Self = Self(0);
    /// Every bit: what to pass as `optional_features` to take all that is offered.
    pub const ALL: Self = Self(u64::MAX);

    /// The device accepts frames with partial checksums.
    pub const CSUM: Self = bit(net::VIRTIO_NET_F_CSUM);
    /// The driver accepts frames with partial checksums.
    pub const GUEST_CSUM: Self = bit(net::VIRTIO_NET_F_GUEST_CSUM);
    /// The device states its MTU.
    pub const MTU: Self = bit(net::VIRTIO_NET_F_MTU);
    /// The device has a MAC address in its configuration.
    pub const MAC: Self = bit(net::VIRTIO_NET_F_MAC);
    /// The driver accepts TCP segments over IPv4 that are to be segmented.
    pub const GUEST_TSO4: Self = bit(net::VIRTIO_NET_F_GUEST_TSO4);
    /// The driver accepts TCP segments over IPv6 that are to be segmented.
    pub const GUEST_TSO6: Self = bit(net::VIRTIO_NET_F_GUEST_TSO6);
    /// The driver accepts TSO frames with ECN's CWR bit.
    pub const GUEST_ECN: Self = bit(net::VIRTIO_NET_F_GUEST_ECN);
    /// The driver accepts UDP datagrams that are to be fragmented.
    pub const GUEST_UFO: Self = bit(net::VIRTIO_NET_F_GUEST_UFO);
    /// The device accepts TCP segments over IPv4 that are to be segmented.
    pub const HOST_TSO4: Self = bit(net::VIRTIO_NET_F_HOST_TSO4);
    /// The device accepts TCP segments over IPv6 that are to be segmented.
    pub const HOST_TSO6: Self = bit(net::VIRTIO_NET_F_HOST_TSO6);
    /// The device accepts TSO frames with ECN's CWR bit.
    pub const HOST_ECN: Self = bit(net::VIRTIO_NET_F_HOST_ECN);
    /// The device accepts UDP datagrams that are to be fragmented.
    pub const HOST_UFO: Self = bit(net::VIRTIO_NET_F_HOST_UFO);
    /// A received frame may be spread over several buffers.
    pub const MRG_RXBUF: Self = bit(net::VIRTIO_NET_F_MRG_RXBUF);
    /// The device has a status field.
    pub const STATUS: Self = bit(net::VIRTIO_NET_F_STATUS);
    /// There is a control queue (the VMM's own, never the back-end's).
    pub const CTRL_VQ: Self = bit(net::VIRTIO_NET_F_CTRL_VQ);
    /// The driver can announce itself after a migration.
    pub const GUEST_ANNOUNCE: Self = bit(net::VIRTIO_NET_F_GUEST_ANNOUNCE);
    /// There can be several queue pairs.
    pub const MQ: Self = bit(net::VIRTIO_NET_F_MQ);
    /// vhost-user: dirty pages are logged.
    pub const LOG_ALL: Self = bit(26);
    /// Legacy: descriptors may be laid out in any way.
    pub const ANY_LAYOUT: Self = bit(config::VIRTIO_F_ANY_LAYOUT);
    /// Chains may live in indirect tables.
    pub const INDIRECT_DESC: Self = bit(ring::VIRTIO_RING_F_INDIRECT_DESC);
    /// Notifications are asked for by index.
    pub const EVENT_IDX: Self = bit(ring::VIRTIO_RING_F_EVENT_IDX);
    /// vhost-user: the protocol features can be negotiated.
    pub const PROTOCOL_FEATURES: Self = bit(30);
    /// Virtio 1.0 and later.
    pub const VERSION_1: Self = bit(config::VIRTIO_F_VERSION_1);
    /// Addresses go through an IOMMU.
    pub const ACCESS_PLATFORM: Self = bit(config::VIRTIO_F_ACCESS_PLATFORM);
    /// Packed rings.
    pub const RING_PACKED: Self = bit(config::VIRTIO_F_RING_PACKED);
    /// Buffers are used in the order they were made available.
    pub const IN_ORDER: Self = bit(config::VIRTIO_F_IN_ORDER);
    /// A single queue can be reset.
    pub const RING_RESET: Self = bit(config::VIRTIO_F_RING_RESET);

    /// Every checksum and segmentation offload of both directions.
    pub const OFFLOADS: Self = Self(
        Self::CSUM.0
            | Self::GUEST_CSUM.0
            | Self::HOST_TSO4.0
            | Self::HOST_TSO6.0
            | Self::HOST_ECN.0
            | Self::HOST_UFO.0
            | Self::GUEST_TSO4.0
            | Self::GUEST_TSO6.0
            | Self::GUEST_ECN.0
            | Self::GUEST_UFO.0,
    );

    /// What a present-day Linux guest acks on one queue pair.
    pub const LINUX: Self = Self(
        Self::VERSION_1.0
            | Self::MRG_RXBUF.0
            | Self::INDIRECT_DESC.0
            | Self::EVENT_IDX.0
            | Self::OFFLOADS.0,
    );

    /// The set with exactly these bits.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The bits as the message carries them.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether every bit of `other` is in this set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether the set has no bit.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Bytes of the `virtio_net_hdr` before each frame: 12 with VERSION_1 or MRG_RXBUF, else 10 (VIRTIO 1.3 §5.1.6.1).
    pub const fn vnet_header_bytes(self) -> usize {
        if self.0 & (Self::VERSION_1.0 | Self::MRG_RXBUF.0) != 0 {
            12
        } else {
            10
        }
    }
}

impl BitOr for Features {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for Features {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl Sub for Features {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

const NAMES: &[(Features, &str)] = &[
    (Features::CSUM, "CSUM"),
    (Features::GUEST_CSUM, "GUEST_CSUM"),
    (Features::MTU, "MTU"),
    (Features::MAC, "MAC"),
    (Features::GUEST_TSO4, "GUEST_TSO4"),
    (Features::GUEST_TSO6, "GUEST_TSO6"),
    (Features::GUEST_ECN, "GUEST_ECN"),
    (Features::GUEST_UFO, "GUEST_UFO"),
    (Features::HOST_TSO4, "HOST_TSO4"),
    (Features::HOST_TSO6, "HOST_TSO6"),
    (Features::HOST_ECN, "HOST_ECN"),
    (Features::HOST_UFO, "HOST_UFO"),
    (Features::MRG_RXBUF, "MRG_RXBUF"),
    (Features::STATUS, "STATUS"),
    (Features::CTRL_VQ, "CTRL_VQ"),
    (Features::GUEST_ANNOUNCE, "GUEST_ANNOUNCE"),
    (Features::MQ, "MQ"),
    (Features::LOG_ALL, "LOG_ALL"),
    (Features::ANY_LAYOUT, "ANY_LAYOUT"),
    (Features::INDIRECT_DESC, "INDIRECT_DESC"),
    (Features::EVENT_IDX, "EVENT_IDX"),
    (Features::PROTOCOL_FEATURES, "PROTOCOL_FEATURES"),
    (Features::VERSION_1, "VERSION_1"),
    (Features::ACCESS_PLATFORM, "ACCESS_PLATFORM"),
    (Features::RING_PACKED, "RING_PACKED"),
    (Features::IN_ORDER, "IN_ORDER"),
    (Features::RING_RESET, "RING_RESET"),
];

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = *self;
        let mut separator = "";
        for (feature, name) in NAMES {
            if self.contains(*feature) {
                write!(f, "{separator}{name}")?;
                separator = "|";
                rest = rest - *feature;
            }
        }
        if !rest.is_empty() || self.is_empty() {
            write!(f, "{separator}{:#x}", rest.0)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Features({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_ten_bytes_only_for_legacy_without_mergeable_buffers() {
        assert_eq!(Features::NONE.vnet_header_bytes(), 10);
        assert_eq!(Features::MRG_RXBUF.vnet_header_bytes(), 12);
        assert_eq!(Features::VERSION_1.vnet_header_bytes(), 12);
    }

    #[test]
    fn a_set_prints_the_names_of_its_bits_and_the_rest_in_hexadecimal() {
        let set = Features::CSUM | Features::IN_ORDER | Features::from_bits(1 << 60);
        assert_eq!(set.to_string(), "CSUM|IN_ORDER|0x1000000000000000");
        assert_eq!(Features::NONE.to_string(), "0x0");
    }
}
