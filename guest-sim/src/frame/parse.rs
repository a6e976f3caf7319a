//! What a frame says: addresses, tags, ports, payload.
//!
//! Called by `verify` and by tests. Keeps true: never reads past the frame; says what is wrong instead.

use super::build::{IPV4, IPV6, MacAddr, TCP, TPID_8021AD, TPID_8021Q, UDP};
use super::verify::FrameError;

/// The transport header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp {
        /// Source and destination port.
        ports: (u16, u16),
        /// Sequence number.
        sequence: u32,
        /// Flags.
        flags: u8,
    },
    /// UDP, whole or the first fragment.
    Udp {
        /// Source and destination port.
        ports: (u16, u16),
    },
    /// A later fragment: no transport header.
    Fragment,
    /// Anything else.
    Other,
}

/// The network header of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// 4 or 6.
    pub version: u8,
    /// Source address, 4 or 16 bytes.
    pub source: Vec<u8>,
    /// Destination address, 4 or 16 bytes.
    pub destination: Vec<u8>,
    /// Protocol of the payload, behind IPv6's fragment header if there is one.
    pub protocol: u8,
    /// Where the header starts.
    pub at: usize,
    /// IPv4's identification, or that of IPv6's fragment header.
    pub identification: u32,
    /// Offset of this fragment in its datagram, in bytes.
    pub fragment_offset: usize,
    /// Whether fragments follow.
    pub more_fragments: bool,
}

/// A frame taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// Destination MAC.
    pub destination: MacAddr,
    /// Source MAC.
    pub source: MacAddr,
    /// TPID and TCI of each tag, outermost first.
    pub tags: Vec<(u16, u16)>,
    /// The ethertype behind the tags.
    pub ethertype: u16,
    /// The network header, for IPv4 and IPv6.
    pub network: Option<Network>,
    /// The transport header.
    pub transport: Transport,
    /// Where the transport header starts (the payload, without one).
    pub transport_at: usize,
    /// Where the payload starts.
    pub payload_at: usize,
    /// Where it ends; what follows is Ethernet's padding.
    pub end: usize,
}

impl Parsed {
    /// Takes a frame apart.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] and [`FrameError::Length`].
    pub fn new(bytes: &[u8]) -> Result<Self, FrameError> {
        let (destination, source) = (array(bytes, 0)?, array(bytes, 6)?);
        let mut tags = Vec::new();
        let mut at = 12;
        let ethertype = loop {
            let ethertype = u16_at(bytes, at)?;
            at += 2;
            if ethertype != TPID_8021Q && ethertype != TPID_8021AD {
                break ethertype;
            }
            tags.push((ethertype, u16_at(bytes, at)?));
            at += 2;
        };
        let mut parsed = Self {
            destination,
            source,
            tags,
            ethertype,
            network: None,
            transport: Transport::Other,
            transport_at: at,
            payload_at: at,
            end: bytes.len(),
        };
        match ethertype {
            IPV4 => parsed.ipv4(bytes, at)?,
            IPV6 => parsed.ipv6(bytes, at)?,
            _ => return Ok(parsed),
        }
        if parsed.end > bytes.len() {
            return Err(FrameError::Length {
                says: parsed.end,
                has: bytes.len(),
            });
        }
        parsed.transport(bytes)?;
        Ok(parsed)
    }

    /// The VLAN id of the outermost tag.
    pub fn vlan(&self) -> Option<u16> {
        self.tags.first().map(|(_, tci)| tci & 0xfff)
    }

    /// The payload.
    pub fn payload<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        bytes.get(self.payload_at..self.end).unwrap_or(&[])
    }

    fn ipv4(&mut self, bytes: &[u8], at: usize) -> Result<(), FrameError> {
        let header = usize::from(byte_at(bytes, at)? & 15) * 4;
        if header < 20 {
            return Err(FrameError::Length {
                says: header,
                has: 20,
            });
        }
        let fragment = u16_at(bytes, at + 6)?;
        self.network = Some(Network {
            version: 4,
            source: array::<4>(bytes, at + 12)?.to_vec(),
            destination: array::<4>(bytes, at + 16)?.to_vec(),
            protocol: byte_at(bytes, at + 9)?,
            at,
            identification: u16_at(bytes, at + 4)?.into(),
            fragment_offset: usize::from(fragment & 0x1fff) * 8,
            more_fragments: fragment & 0x2000 != 0,
        });
        self.end = at + usize::from(u16_at(bytes, at + 2)?);
        (self.transport_at, self.payload_at) = (at + header, at + header);
        Ok(())
    }

    fn ipv6(&mut self, bytes: &[u8], at: usize) -> Result<(), FrameError> {
        let mut network = Network {
            version: 6,
            source: array::<16>(bytes, at + 8)?.to_vec(),
            destination: array::<16>(bytes, at + 24)?.to_vec(),
            protocol: byte_at(bytes, at + 6)?,
            at,
            identification: 0,
            fragment_offset: 0,
            more_fragments: false,
        };
        self.end = at + 40 + usize::from(u16_at(bytes, at + 4)?);
        let mut next = at + 40;
        // Only the fragment header (RFC 8200 §4.5): a device that fragments adds it.
        if network.protocol == 44 {
            let fragment = u16_at(bytes, next + 2)?;
            network.protocol = byte_at(bytes, next)?;
            network.fragment_offset = usize::from(fragment & !7);
            network.more_fragments = fragment & 1 != 0;
            network.identification = u32::from_be_bytes(array(bytes, next + 4)?);
            next += 8;
        }
        self.network = Some(network);
        (self.transport_at, self.payload_at) = (next, next);
        Ok(())
    }

    fn transport(&mut self, bytes: &[u8]) -> Result<(), FrameError> {
        let Some(network) = &self.network else {
            return Ok(());
        };
        let at = self.transport_at;
        if network.fragment_offset > 0 {
            self.transport = Transport::Fragment;
            return Ok(());
        }
        match network.protocol {
            TCP => {
                let ports = (u16_at(bytes, at)?, u16_at(bytes, at + 2)?);
                let sequence = u32::from_be_bytes(array(bytes, at + 4)?);
                self.payload_at = at + usize::from(byte_at(bytes, at + 12)? >> 4) * 4;
                self.transport = Transport::Tcp {
                    ports,
                    sequence,
                    flags: byte_at(bytes, at + 13)?,
                };
            }
            UDP => {
                self.transport = Transport::Udp {
                    ports: (u16_at(bytes, at)?, u16_at(bytes, at + 2)?),
                };
                let says = usize::from(u16_at(bytes, at + 4)?);
                let has = self.end.saturating_sub(at);
                if says != has && !network.more_fragments {
                    return Err(FrameError::Length { says, has });
                }
                self.payload_at = at + 8;
            }
            _ => {}
        }
        if self.payload_at > self.end {
            return Err(FrameError::Truncated {
                at: self.payload_at,
            });
        }
        Ok(())
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], FrameError> {
    let piece = bytes
        .get(at..at + N)
        .and_then(|piece| piece.try_into().ok());
    piece.ok_or(FrameError::Truncated { at })
}

fn byte_at(bytes: &[u8], at: usize) -> Result<u8, FrameError> {
    bytes.get(at).copied().ok_or(FrameError::Truncated { at })
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Result<u16, FrameError> {
    Ok(u16::from_be_bytes(array(bytes, at)?))
}
