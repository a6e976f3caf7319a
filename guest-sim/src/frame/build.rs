//! Frames of any size and kind, with a payload that says of itself whether it is right.
//!
//! Called by tests and benches. Keeps true: byte `n` of a TCP stream or UDP datagram depends only on the two ports and on `n`, so a segment
//! or fragment can be verified without its siblings.

use super::Frame;
use super::checksum;
use super::vnet_header::{GsoType, NEEDS_CSUM, VnetHeader};

/// A MAC address.
pub type MacAddr = [u8; 6];

/// Where frames come from unless told otherwise.
pub const DEFAULT_SOURCE: MacAddr = [0x52, 0x54, 0, 0, 0, 1];
/// Where frames go to unless told otherwise.
pub const DEFAULT_DESTINATION: MacAddr = [0x52, 0x54, 0, 0, 0, 2];
/// Everybody.
pub const BROADCAST: MacAddr = [0xff; 6];

/// IP protocol numbers and ethertypes.
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const IPV4: u16 = 0x0800;
pub(crate) const IPV6: u16 = 0x86dd;
/// 802.1Q.
pub const TPID_8021Q: u16 = 0x8100;
/// 802.1ad, the outer tag of QinQ.
pub const TPID_8021AD: u16 = 0x88a8;
/// A frame whose ethertype is for experiments (IEEE 802, 0x88b5): not IP.
pub const EXPERIMENTAL: u16 = 0x88b5;

/// TCP flags.
pub const FIN: u8 = 0x01;
/// TCP flags.
pub const PSH: u8 = 0x08;
/// TCP flags.
pub const ACK: u8 = 0x10;
/// TCP flags: congestion window reduced.
pub const CWR: u8 = 0x80;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Raw(u16),
    Ip { v6: bool, protocol: u8 },
}

/// Byte `offset` of what travels between two ports.
pub fn pattern(source_port: u16, destination_port: u16, offset: u32) -> u8 {
    let offset = u64::from(offset);
    let seed = u64::from(source_port) << 16 | u64::from(destination_port);
    let mixed = (offset >> 3 ^ seed << 32)
        .wrapping_add(0x9e37_79b9_7f4a_7c15)
        .wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((mixed ^ mixed >> 29) >> (8 * (offset & 7))) as u8
}

/// A frame in the making.
#[derive(Clone, Debug)]
pub struct FrameBuilder {
    kind: Kind,
    source: MacAddr,
    destination: MacAddr,
    tags: Vec<(u16, u16)>,
    ports: (u16, u16),
    sequence: u32,
    tcp_flags: u8,
    tcp_options: Vec<u8>,
    identification: u16,
    payload_bytes: usize,
    needs_csum: bool,
    gso_size: Option<u16>,
    ecn: bool,
}

impl FrameBuilder {
    fn new(kind: Kind, payload_bytes: usize) -> Self {
        Self {
            kind,
            source: DEFAULT_SOURCE,
            destination: DEFAULT_DESTINATION,
            tags: Vec::new(),
            ports: (40_000, 5_001),
            sequence: 0,
            tcp_flags: ACK | PSH,
            tcp_options: Vec::new(),
            identification: 1,
            payload_bytes,
            needs_csum: false,
            gso_size: None,
            ecn: false,
        }
    }

    /// TCP over IPv4 with this much payload.
    pub fn tcp4(payload_bytes: usize) -> Self {
        Self::new(
            Kind::Ip {
                v6: false,
                protocol: TCP,
            },
            payload_bytes,
        )
    }

    /// TCP over IPv6 with this much payload.
    pub fn tcp6(payload_bytes: usize) -> Self {
        Self::new(
            Kind::Ip {
                v6: true,
                protocol: TCP,
            },
            payload_bytes,
        )
    }

    /// UDP over IPv4 with this much payload.
    pub fn udp4(payload_bytes: usize) -> Self {
        Self::new(
            Kind::Ip {
                v6: false,
                protocol: UDP,
            },
            payload_bytes,
        )
    }

    /// UDP over IPv6 with this much payload.
    pub fn udp6(payload_bytes: usize) -> Self {
        Self::new(
            Kind::Ip {
                v6: true,
                protocol: UDP,
            },
            payload_bytes,
        )
    }

    /// This ethertype with this much payload; [`EXPERIMENTAL`] is one that nothing interprets.
    pub fn raw(ethertype: u16, payload_bytes: usize) -> Self {
        Self::new(Kind::Raw(ethertype), payload_bytes)
    }

    /// Sets the MAC addresses.
    #[must_use]
    pub fn macs(mut self, source: MacAddr, destination: MacAddr) -> Self {
        (self.source, self.destination) = (source, destination);
        self
    }

    /// Adds an 802.1Q tag inside those there are.
    #[must_use]
    pub fn vlan(self, id: u16) -> Self {
        self.tag(TPID_8021Q, id)
    }

    /// Adds a tag with this TPID and TCI inside those there are.
    #[must_use]
    pub fn tag(mut self, tpid: u16, tci: u16) -> Self {
        self.tags.push((tpid, tci));
        self
    }

    /// Sets the ports, and with them the pattern of the payload.
    #[must_use]
    pub fn ports(mut self, source: u16, destination: u16) -> Self {
        self.ports = (source, destination);
        self
    }

    /// Sets TCP's sequence number, which is the offset of the payload in its stream.
    #[must_use]
    pub fn sequence(mut self, sequence: u32) -> Self {
        self.sequence = sequence;
        self
    }

    /// Sets TCP's flags.
    #[must_use]
    pub fn tcp_flags(mut self, flags: u8) -> Self {
        self.tcp_flags = flags;
        self
    }

    /// Adds TCP's timestamp option, as Linux does.
    #[must_use]
    pub fn timestamps(mut self) -> Self {
        self.tcp_options = vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
        self
    }

    /// Sets IPv4's identification.
    #[must_use]
    pub fn identification(mut self, identification: u16) -> Self {
        self.identification = identification;
        self
    }

    /// Leaves the checksum to the device: a partial one and NEEDS_CSUM.
    #[must_use]
    pub fn checksum_offload(mut self) -> Self {
        self.needs_csum = true;
        self
    }

    /// Leaves segmentation (TCP) or fragmentation (UDP) to the device, `gso_size` payload bytes each; implies the checksum's.
    #[must_use]
    pub fn segment(mut self, gso_size: u16) -> Self {
        self.needs_csum = true;
        self.gso_size = Some(gso_size);
        self
    }

    /// Sets TCP's CWR flag, and the header's ECN bit when segmentation is left to the device.
    #[must_use]
    pub fn ecn(mut self) -> Self {
        self.ecn = true;
        self.tcp_flags |= CWR;
        self
    }

    /// Sets the payload so that the whole frame has this many bytes, or as few as its headers need.
    #[must_use]
    pub fn frame_bytes(mut self, bytes: usize) -> Self {
        self.payload_bytes = bytes.saturating_sub(self.header_bytes());
        self
    }

    /// Bytes before the payload.
    pub fn header_bytes(&self) -> usize {
        let transport = match self.kind {
            Kind::Raw(_) => 0,
            Kind::Ip { v6, protocol } => {
                let network = if v6 { 40 } else { 20 };
                network
                    + if protocol == TCP {
                        20 + self.tcp_options.len()
                    } else {
                        8
                    }
            }
        };
        14 + 4 * self.tags.len() + transport
    }

    /// The frame. Frames below 60 bytes are left as they are: virtio has no minimum.
    pub fn build(&self) -> Frame {
        let mut bytes = Vec::with_capacity(self.header_bytes() + self.payload_bytes);
        bytes.extend_from_slice(&self.destination);
        bytes.extend_from_slice(&self.source);
        for (tpid, tci) in &self.tags {
            bytes.extend_from_slice(&tpid.to_be_bytes());
            bytes.extend_from_slice(&tci.to_be_bytes());
        }
        let header = match self.kind {
            Kind::Raw(ethertype) => {
                bytes.extend_from_slice(&ethertype.to_be_bytes());
                self.push_payload(&mut bytes);
                VnetHeader::default()
            }
            Kind::Ip { v6, protocol } => self.push_ip(&mut bytes, v6, protocol),
        };
        Frame { header, bytes }
    }

    fn push_payload(&self, bytes: &mut Vec<u8>) {
        let (source, destination) = self.ports;
        let start = match self.kind {
            Kind::Ip { protocol: TCP, .. } => self.sequence,
            _ => 0,
        };
        let offsets = (0..self.payload_bytes).map(|at| start.wrapping_add(at as u32));
        bytes.extend(offsets.map(|offset| pattern(source, destination, offset)));
    }

    fn push_ip(&self, bytes: &mut Vec<u8>, v6: bool, protocol: u8) -> VnetHeader {
        bytes.extend_from_slice(&if v6 { IPV6 } else { IPV4 }.to_be_bytes());
        let mut segment = Vec::new();
        let checksum_at = if protocol == TCP {
            self.push_tcp(&mut segment)
        } else {
            self.push_udp(&mut segment)
        };
        let headers = segment.len();
        self.push_payload(&mut segment);
        // Addresses follow from the MACs, so that answers to a frame are easy to address.
        let (source, destination) = (address(self.source, v6), address(self.destination, v6));
        if v6 {
            push_ipv6(bytes, protocol, segment.len(), (&source, &destination));
        } else {
            self.push_ipv4(bytes, protocol, segment.len(), (&source, &destination));
        }
        let pseudo = checksum::pseudo_header(&source, &destination, protocol, segment.len());
        let value = if self.needs_csum {
            checksum::fold(pseudo)
        } else {
            match checksum::finish(checksum::sum(&segment, pseudo)) {
                // RFC 768: a computed zero is sent as all ones.
                0 if protocol == UDP => 0xffff,
                value => value,
            }
        };
        segment[checksum_at..checksum_at + 2].copy_from_slice(&value.to_be_bytes());
        let start = bytes.len();
        bytes.extend_from_slice(&segment);
        self.vnet_header((v6, protocol), start, checksum_at, start + headers)
    }

    fn vnet_header(
        &self,
        ip: (bool, u8),
        start: usize,
        checksum_at: usize,
        headers: usize,
    ) -> VnetHeader {
        if !self.needs_csum {
            return VnetHeader::default();
        }
        let kind = match (self.gso_size, ip) {
            (None, _) => GsoType::None,
            (_, (false, TCP)) => GsoType::Tcp4,
            (_, (true, TCP)) => GsoType::Tcp6,
            (_, _) => GsoType::Udp,
        };
        let mut header = VnetHeader {
            flags: NEEDS_CSUM,
            gso_type: kind.code(),
            hdr_len: if kind == GsoType::None {
                0
            } else {
                headers as u16
            },
            gso_size: self.gso_size.unwrap_or(0),
            csum_start: start as u16,
            csum_offset: checksum_at as u16,
            num_buffers: 0,
        };
        if self.ecn && kind != GsoType::None {
            header.set_ecn();
        }
        header
    }

    fn push_tcp(&self, segment: &mut Vec<u8>) -> usize {
        segment.extend_from_slice(&self.ports.0.to_be_bytes());
        segment.extend_from_slice(&self.ports.1.to_be_bytes());
        segment.extend_from_slice(&self.sequence.to_be_bytes());
        segment.extend_from_slice(&1u32.to_be_bytes());
        let words = (20 + self.tcp_options.len()) / 4;
        segment.extend_from_slice(&[(words as u8) << 4, self.tcp_flags, 0x10, 0, 0, 0, 0, 0]);
        segment.extend_from_slice(&self.tcp_options);
        16
    }

    fn push_udp(&self, segment: &mut Vec<u8>) -> usize {
        segment.extend_from_slice(&self.ports.0.to_be_bytes());
        segment.extend_from_slice(&self.ports.1.to_be_bytes());
        segment.extend_from_slice(&((8 + self.payload_bytes) as u16).to_be_bytes());
        segment.extend_from_slice(&[0, 0]);
        6
    }

    fn push_ipv4(
        &self,
        bytes: &mut Vec<u8>,
        protocol: u8,
        payload: usize,
        addresses: (&[u8], &[u8]),
    ) {
        let mut header = vec![0x45, 0];
        header.extend_from_slice(&((20 + payload) as u16).to_be_bytes());
        header.extend_from_slice(&self.identification.to_be_bytes());
        // Datagrams that are to be fragmented must not say "don't fragment".
        let flags = if protocol == TCP { 0x40 } else { 0 };
        header.extend_from_slice(&[flags, 0, 64, protocol, 0, 0]);
        header.extend_from_slice(addresses.0);
        header.extend_from_slice(addresses.1);
        let value = checksum::finish(checksum::sum(&header, 0));
        header[10..12].copy_from_slice(&value.to_be_bytes());
        bytes.extend_from_slice(&header);
    }
}

fn push_ipv6(bytes: &mut Vec<u8>, protocol: u8, payload: usize, addresses: (&[u8], &[u8])) {
    bytes.extend_from_slice(&[0x60, 0, 0, 0]);
    bytes.extend_from_slice(&(payload as u16).to_be_bytes());
    bytes.extend_from_slice(&[protocol, 64]);
    bytes.extend_from_slice(addresses.0);
    bytes.extend_from_slice(addresses.1);
}

/// 10.x.y.z or fd00::…, from the last bytes of a MAC.
fn address(mac: MacAddr, v6: bool) -> Vec<u8> {
    if v6 {
        let mut address = vec![0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        address.extend_from_slice(&mac);
        address
    } else {
        vec![10, mac[3], mac[4], mac[5]]
    }
}
