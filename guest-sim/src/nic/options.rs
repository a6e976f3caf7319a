//! What a NIC is to be: rings, features, layouts, and how its driver behaves.
//!
//! Filled in by a test, read when the NIC is made. Keeps true: the defaults are a present-day Linux guest on QEMU.

use std::time::Duration;

use vhost::vhost_user::VhostUserProtocolFeatures as Bits;

use super::order::MessageOrder;
use crate::driver::chain_layout::ChainLayout;
use crate::driver::wait::Waiting;
use crate::error::Error;
use crate::features::Features;
use crate::ring::{DescriptorTable, Place};

/// Whether buffers are painted, to find what the device wrote where it must not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Canaries {
    /// Every buffer is painted and checked: for tests.
    #[default]
    On,
    /// Nothing is: for benches.
    Off,
}

/// When receive buffers are posted again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Refill {
    /// At start, and as frames are received.
    #[default]
    Automatic,
    /// When the test says so.
    Manual,
}

/// Whether starting waits for the back-end. QEMU's last messages ask for no reply, so that nothing tells when the rings run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Settle {
    /// One GET_FEATURES more, which the back-end answers when it has dealt with everything before: tests can rely on running rings.
    #[default]
    RoundTrip,
    /// Not a message more than the front-end sends.
    Never,
}

/// The vhost-user protocol features a front-end takes when they are offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProtocolFeatures(u64);

impl ProtocolFeatures {
    /// VHOST_USER_F_PROTOCOL_FEATURES is not acked at all: an old front-end, whose rings start enabled.
    pub const NONE: Self = Self(0);
    /// What QEMU 10.0 takes for virtio-net.
    pub const QEMU: Self = Self(
        Bits::MQ.bits()
            | Bits::LOG_SHMFD.bits()
            | Bits::RARP.bits()
            | Bits::REPLY_ACK.bits()
            | Bits::MTU.bits()
            | Bits::PAGEFAULT.bits()
            | Bits::RESET_DEVICE.bits()
            | Bits::CONFIGURE_MEM_SLOTS.bits(),
    );
    /// What Cloud Hypervisor v53 takes for virtio-net.
    pub const CLOUD_HYPERVISOR: Self = Self(
        Bits::MQ.bits()
            | Bits::CONFIGURE_MEM_SLOTS.bits()
            | Bits::REPLY_ACK.bits()
            | Bits::LOG_SHMFD.bits(),
    );

    /// Exactly these bits.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The bits as the message carries them.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Without these.
    #[must_use]
    pub const fn without(self, others: Bits) -> Self {
        Self(self.0 & !others.bits())
    }

    /// With these as well.
    #[must_use]
    pub const fn with(self, others: Bits) -> Self {
        Self(self.0 | others.bits())
    }
}

/// What a NIC is to be. Start from `NicOptions::default()` or [`NicOptions::cloud_hypervisor`] and change what matters.
#[derive(Clone, Debug)]
pub struct NicOptions {
    /// Queue pairs the driver uses. More than one needs [`Features::MQ`].
    pub queue_pairs: u16,
    /// Entries of each guest-rx ring, from 1 to 32768; a power of two unless RING_PACKED is among the features.
    pub guest_rx_ring_size: u16,
    /// Entries of each guest-tx ring, likewise.
    pub guest_tx_ring_size: u16,
    /// Features to ack; [`Error::NotOffered`] when one is not offered. [`Features::RING_PACKED`] makes the rings packed.
    pub features: Features,
    /// Features to ack if they are offered.
    pub optional_features: Features,
    /// Protocol features to ack if they are offered.
    pub protocol: ProtocolFeatures,
    /// Whose messages, in whose order.
    pub order: MessageOrder,
    /// How transmitted frames are cut into descriptors.
    pub guest_tx_layout: ChainLayout,
    /// Where the descriptors of transmitted frames are.
    pub guest_tx_table: DescriptorTable,
    /// How receive buffers are cut into descriptors; `None`: header alone for legacy without ANY_LAYOUT, else one descriptor.
    pub guest_rx_layout: Option<ChainLayout>,
    /// Where the descriptors of receive buffers are.
    pub guest_rx_table: DescriptorTable,
    /// Bytes of each receive buffer, header included; `None`: 1,536 with MRG_RXBUF, else room for 64 KiB frames if one of GUEST_TSO4,
    /// GUEST_TSO6, GUEST_UFO is acked, else for 1,518 bytes.
    pub guest_rx_buffer_bytes: Option<u32>,
    /// At most this many receive buffers are posted at once.
    pub guest_rx_buffers: u16,
    /// When receive buffers are posted.
    pub refill: Refill,
    /// Whether starting waits until the back-end has dealt with it.
    pub settle: Settle,
    /// How the driver learns of used chains.
    pub waiting: Waiting,
    /// Whether buffers are painted and checked.
    pub canaries: Canaries,
    /// The region rings are put into.
    pub ring_region: usize,
    /// Multiple of which the driver's and the device's part of a ring start, a power of two of at least 64; 4096 gives each pages of its own.
    pub ring_align: usize,
    /// The regions frame buffers are put into, in turn; none named: all.
    pub buffer_regions: Vec<usize>,
    /// Rings for which no SET_VRING_CALL is sent when they start, as Cloud Hypervisor does for a queue without an MSI-X vector.
    pub rings_without_call: Vec<u16>,
    /// The MTU the VMM was configured with: sent with NET_SET_MTU where that is negotiated.
    pub mtu: Option<u16>,
    /// How long to wait for any answer of the back-end.
    pub deadline: Duration,
}

impl Default for NicOptions {
    fn default() -> Self {
        Self {
            queue_pairs: 1,
            guest_rx_ring_size: 256,
            guest_tx_ring_size: 256,
            features: Features::LINUX,
            optional_features: Features::NONE,
            protocol: ProtocolFeatures::QEMU,
            order: MessageOrder::Qemu,
            guest_tx_layout: ChainLayout::HeaderAlone,
            guest_tx_table: DescriptorTable::Direct,
            guest_rx_layout: None,
            guest_rx_table: DescriptorTable::Direct,
            guest_rx_buffer_bytes: None,
            guest_rx_buffers: u16::MAX,
            refill: Refill::Automatic,
            settle: Settle::RoundTrip,
            waiting: Waiting::Calls,
            canaries: Canaries::On,
            ring_region: 0,
            ring_align: 64,
            buffer_regions: Vec::new(),
            rings_without_call: Vec::new(),
            mtu: None,
            deadline: Duration::from_secs(20),
        }
    }
}

impl NicOptions {
    /// A Linux guest on Cloud Hypervisor: the same, with that front-end's messages and IN_ORDER.
    pub fn cloud_hypervisor() -> Self {
        Self {
            features: Features::LINUX | Features::IN_ORDER,
            protocol: ProtocolFeatures::CLOUD_HYPERVISOR,
            order: MessageOrder::CloudHypervisor,
            ..Self::default()
        }
    }

    /// A NIC for benches: no canaries, no calls, rings of 1,024, header and data in one descriptor.
    pub fn bench() -> Self {
        Self {
            guest_rx_ring_size: 1024,
            guest_tx_ring_size: 1024,
            guest_tx_layout: ChainLayout::Single,
            waiting: Waiting::BusyPoll,
            canaries: Canaries::Off,
            ..Self::default()
        }
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let packed = self.features.contains(Features::RING_PACKED);
        for size in [self.guest_rx_ring_size, self.guest_tx_ring_size] {
            // VIRTIO 1.3 §2.7, §2.8: at most 32768; a power of two where split rings may result.
            if size == 0 || size > 1 << 15 {
                return Err(Error::Options("rings have 1 to 32768 entries"));
            }
            if !packed && !size.is_power_of_two() {
                return Err(Error::Options("sizes of split rings are powers of two"));
            }
        }
        if packed && !self.features.contains(Features::VERSION_1) {
            return Err(Error::Options("packed rings need VERSION_1"));
        }
        if !self.ring_align.is_power_of_two() || self.ring_align < 64 {
            return Err(Error::Options("rings are aligned to powers of two from 64"));
        }
        if self.queue_pairs == 0 {
            return Err(Error::Options("a NIC has at least one queue pair"));
        }
        let indirect = [self.guest_rx_table, self.guest_tx_table]
            .iter()
            .any(|&t| t != DescriptorTable::Direct);
        if indirect && !(self.features | self.optional_features).contains(Features::INDIRECT_DESC) {
            return Err(Error::Options("indirect tables need INDIRECT_DESC"));
        }
        Ok(())
    }

    pub(crate) fn ring_place(&self) -> Place {
        Place {
            region: self.ring_region,
            align: self.ring_align,
        }
    }

    pub(crate) fn guest_rx_layout(&self, acked: Features) -> ChainLayout {
        let legacy =
            (acked & (Features::VERSION_1 | Features::ANY_LAYOUT | Features::MRG_RXBUF)).is_empty();
        match &self.guest_rx_layout {
            Some(layout) => layout.clone(),
            None if legacy => ChainLayout::HeaderAlone,
            None => ChainLayout::Single,
        }
    }

    pub(crate) fn guest_rx_buffer_bytes(&self, acked: Features) -> u32 {
        let large = Features::GUEST_TSO4 | Features::GUEST_TSO6 | Features::GUEST_UFO;
        // VIRTIO 1.3 §5.1.6.3.1: at least 65562 with any of these, else 1526, each with the header.
        match self.guest_rx_buffer_bytes {
            Some(bytes) => bytes,
            None if acked.contains(Features::MRG_RXBUF) => 1536,
            None if !(acked & large).is_empty() => 65562,
            None => 1518 + 12,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(size: u16, features: Features) -> Result<(), Error> {
        NicOptions {
            guest_tx_ring_size: size,
            features,
            ..NicOptions::default()
        }
        .check()
    }

    #[test]
    fn split_rings_are_powers_of_two_and_packed_rings_of_any_size() {
        let packed = Features::LINUX | Features::RING_PACKED;
        for (size, split) in [(0, false), (100, false), (256, true), (32768, true)] {
            assert_eq!(outcome(size, Features::LINUX).is_ok(), split, "{size}");
            assert_eq!(outcome(size, packed).is_ok(), size > 0, "{size}");
        }
        assert!(outcome(32769, packed).is_err());
        assert!(outcome(256, packed - Features::VERSION_1).is_err());
    }
}
