//! Whose frames they are: the addresses and ports that a guest writes into each frame it sends.
//!
//! For UDP over IPv4 without VLAN tags, and without UDP checksum (RFC 768: zero), so that frames stay valid. Called by `bounce` and `traffic`.
//! Keeps true: the IPv4 header's checksum fits what is written; nothing is allocated once it runs.

use std::net::Ipv4Addr;

use crate::error::Error;
use crate::frame::Frame;
use crate::frame::checksum;
use crate::memory::Slice;

/// Where the IPv4 header's checksum is in an untagged frame; the addresses and the ports follow.
const CHECKSUM_AT: usize = 24;
/// Where the addresses are.
const ADDRESSES_AT: usize = 26;
/// Where the ports are.
const PORTS_AT: usize = 34;
/// What a flow's frames have in common: checksum, addresses, ports.
const IMAGE_BYTES: usize = 14;
/// Bytes of a frame that must be there to write a flow.
pub(super) const FLOW_BYTES: usize = CHECKSUM_AT + IMAGE_BYTES;
/// Ports that connections are opened from and to, in turn: none of them is 0, which trackers refuse.
const OPENED_PORTS: u64 = 60_000;

/// One direction of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Who sends.
    pub source: Ipv4Addr,
    /// To whom.
    pub destination: Ipv4Addr,
    /// From which port.
    pub source_port: u16,
    /// To which port.
    pub destination_port: u16,
}

impl Flow {
    /// The other direction.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
        }
    }

    /// Makes a frame one of this flow's.
    ///
    /// # Errors
    /// It is too short to be UDP over IPv4.
    pub fn mark(&self, frame: &mut Frame) -> Result<(), Error> {
        let image = self.image(rest_of_header(frame)?);
        let place = frame
            .bytes
            .get_mut(CHECKSUM_AT..CHECKSUM_AT + IMAGE_BYTES)
            .ok_or(Error::Options(TOO_SHORT))?;
        place.copy_from_slice(&image);
        Ok(())
    }

    /// `rest`: the sum of the header's other words.
    fn image(&self, rest: u32) -> [u8; IMAGE_BYTES] {
        let (source, destination) = (self.source.octets(), self.destination.octets());
        let words = |address: [u8; 4]| {
            u32::from(u16::from_be_bytes([address[0], address[1]]))
                + u32::from(u16::from_be_bytes([address[2], address[3]]))
        };
        let sum = checksum::finish(rest + words(source) + words(destination));
        let mut image = [0; IMAGE_BYTES];
        image[..2].copy_from_slice(&sum.to_be_bytes());
        image[2..6].copy_from_slice(&source);
        image[6..10].copy_from_slice(&destination);
        image[10..12].copy_from_slice(&self.source_port.to_be_bytes());
        image[12..].copy_from_slice(&self.destination_port.to_be_bytes());
        image
    }
}

const TOO_SHORT: &str = "frames of flows must be UDP over IPv4";

/// The sum of the IPv4 header's words but for its checksum and addresses.
fn rest_of_header(frame: &Frame) -> Result<u32, Error> {
    let header = frame.bytes.get(14..CHECKSUM_AT);
    header
        .filter(|_| frame.bytes.len() >= CHECKSUM_AT + IMAGE_BYTES)
        .map(|header| u32::from(checksum::fold(checksum::sum(header, 0))))
        .ok_or(Error::Options(TOO_SHORT))
}

/// What is written into the frames, one after the other.
#[derive(Clone, Debug, Default)]
pub enum Flows {
    /// Nothing.
    #[default]
    Kept,
    /// Pairs of ports, so many in turn.
    Ports {
        /// How many.
        count: u32,
        /// Whose turn it is.
        next: u32,
    },
    /// Flows of a list, in turn.
    Listed {
        /// Their parts of frames.
        images: Vec<[u8; IMAGE_BYTES]>,
        /// Whose turn it is.
        next: usize,
    },
    /// Addresses and ports of a frame change places: it is answered.
    Answers,
    /// The same addresses and another pair of ports each time: a connection is opened.
    Opening {
        /// From and to whom, the destination port being the first of a range.
        first: Flow,
        /// Of the header's other words.
        rest: u32,
        /// Destination ports in the range.
        ports: u16,
        /// How many were opened.
        opened: u64,
    },
    /// Addresses and ports at random: an attack on flow caches.
    Random {
        /// Of the header's other words.
        rest: u32,
        /// Of the generator (xorshift64*), not zero.
        state: u64,
    },
}

impl Flows {
    /// These flows in turn; frames are as `template` but for addresses and ports.
    ///
    /// # Errors
    /// `template` is too short, or there are no flows.
    pub fn listed(template: &Frame, flows: &[Flow]) -> Result<Self, Error> {
        let rest = rest_of_header(template)?;
        if flows.is_empty() {
            return Err(Error::Options("a list of flows needs a flow"));
        }
        Ok(Self::Listed {
            images: flows.iter().map(|flow| flow.image(rest)).collect(),
            next: 0,
        })
    }

    /// A new connection with each frame: from 60,000 ports to `ports`, beginning with the flow's own destination port.
    ///
    /// # Errors
    /// `template` is too short.
    pub fn opening(template: &Frame, first: Flow, ports: u16) -> Result<Self, Error> {
        Ok(Self::Opening {
            first,
            rest: rest_of_header(template)?,
            ports: ports.max(1),
            opened: 0,
        })
    }

    /// Anything.
    ///
    /// # Errors
    /// `template` is too short.
    pub fn random(template: &Frame) -> Result<Self, Error> {
        Ok(Self::Random {
            rest: rest_of_header(template)?,
            state: 0x9e37_79b9_7f4a_7c15,
        })
    }

    /// Writes the next flow into a frame, whose first bytes are `frame`.
    ///
    /// # Errors
    /// The slice is too short.
    #[inline]
    pub(super) fn write(&mut self, frame: &Slice<'_>) -> Result<(), Error> {
        let part = |at, count| frame.subslice(at, count).map_err(|_| Error::RingFull);
        match self {
            Self::Kept => {}
            Self::Ports { count, next } => {
                // Low half into the source port, high half into the destination port.
                let (low, high) = (
                    (*next as u16).to_be_bytes(),
                    ((*next >> 16) as u16).to_be_bytes(),
                );
                part(PORTS_AT, 4)?.copy_from(&[low[0], low[1], high[0], high[1]]);
                *next = (*next + 1) % *count;
            }
            Self::Listed { images, next } => {
                if let Some(image) = images.get(*next) {
                    part(CHECKSUM_AT, IMAGE_BYTES)?.copy_from(image);
                }
                *next = if *next + 1 < images.len() {
                    *next + 1
                } else {
                    0
                };
            }
            Self::Answers => {
                let place = part(ADDRESSES_AT, 12)?;
                let mut was = [0u8; 12];
                place.copy_to(&mut was);
                let [a, b, c, d, e, f, g, h, i, j, k, l] = was;
                place.copy_from(&[e, f, g, h, a, b, c, d, k, l, i, j]);
            }
            Self::Opening {
                first,
                rest,
                ports,
                opened,
            } => {
                let number = *opened;
                *opened += 1;
                let offset = number / OPENED_PORTS % u64::from(*ports);
                let flow = Flow {
                    source_port: (number % OPENED_PORTS) as u16 + 1024,
                    destination_port: first.destination_port.wrapping_add(offset as u16),
                    ..*first
                };
                part(CHECKSUM_AT, IMAGE_BYTES)?.copy_from(&flow.image(*rest));
            }
            Self::Random { rest, state } => {
                let (one, two) = (random(state), random(state));
                let flow = Flow {
                    source: ((one >> 32) as u32).into(),
                    destination: (one as u32).into(),
                    source_port: (two >> 16) as u16,
                    destination_port: two as u16,
                };
                part(CHECKSUM_AT, IMAGE_BYTES)?.copy_from(&flow.image(*rest));
            }
        }
        Ok(())
    }
}

/// xorshift64* (Vigna 2016).
fn random(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FrameBuilder;
    use crate::memory::{GuestMemory, GuestMemoryLayout};
    use std::collections::HashSet;

    fn template() -> Frame {
        FrameBuilder::udp4(0).frame_bytes(64).build()
    }

    fn flow(number: u16) -> Flow {
        Flow {
            source: Ipv4Addr::new(10, 0, 0, 1),
            destination: Ipv4Addr::new(172, 16, 255, 254),
            source_port: 20_000 + number,
            destination_port: 7_000,
        }
    }

    /// What stands in a frame, after it was checked.
    fn read(bytes: &[u8]) -> Flow {
        let header = &bytes[14..34];
        assert_eq!(
            checksum::fold(checksum::sum(header, 0)),
            0xffff,
            "checksum of {header:02x?}"
        );
        let address = |at: usize| <[u8; 4]>::try_from(&bytes[at..at + 4]).unwrap().into();
        let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        Flow {
            source: address(26),
            destination: address(30),
            source_port: port(34),
            destination_port: port(36),
        }
    }

    /// The flows of the next `count` frames, each written over the one before.
    fn written(flows: &mut Flows, start: &Frame, count: usize) -> Vec<Flow> {
        let memory = GuestMemory::new(&GuestMemoryLayout::one_region(1 << 16)).unwrap();
        let block = memory.allocate(0, 256, 64).unwrap();
        let slice = block.slice(0, start.bytes.len()).unwrap();
        slice.copy_from(&start.bytes);
        let rest =
            |bytes: &[u8]| [&bytes[..CHECKSUM_AT], &bytes[CHECKSUM_AT + IMAGE_BYTES..]].concat();
        (0..count)
            .map(|_| {
                flows.write(&slice).unwrap();
                let mut bytes = vec![0; start.bytes.len()];
                slice.copy_to(&mut bytes);
                assert_eq!(rest(&bytes), rest(&start.bytes), "nothing else changed");
                read(&bytes)
            })
            .collect()
    }

    #[test]
    fn listed_flows_take_turns() {
        let list = [flow(0), flow(1), flow(2)];
        let mut flows = Flows::listed(&template(), &list).unwrap();
        let expected = [flow(0), flow(1), flow(2), flow(0)];
        assert_eq!(written(&mut flows, &template(), 4), expected);
        assert!(Flows::listed(&template(), &[]).is_err());
    }

    #[test]
    fn an_answer_is_the_other_direction_and_its_answer_is_the_frame() {
        let mut frame = template();
        flow(7).mark(&mut frame).unwrap();
        let seen = written(&mut Flows::Answers, &frame, 2);
        assert_eq!(seen, [flow(7).reversed(), flow(7)]);
    }

    #[test]
    fn every_frame_opens_another_connection_within_the_range() {
        let first = flow(0);
        let mut flows = Flows::opening(&template(), first, 2).unwrap();
        let opened = written(&mut flows, &template(), 120_000);
        assert!(opened.iter().all(|flow| {
            flow.source_port != 0
                && (7_000..7_002).contains(&flow.destination_port)
                && (flow.source, flow.destination) == (first.source, first.destination)
        }));
        let different: HashSet<Flow> = opened.into_iter().collect();
        assert_eq!(different.len(), 120_000);
    }

    #[test]
    fn an_attack_repeats_nothing() {
        let mut flows = Flows::random(&template()).unwrap();
        let seen: HashSet<Flow> = written(&mut flows, &template(), 10_000)
            .into_iter()
            .collect();
        assert_eq!(seen.len(), 10_000);
        let sources: HashSet<Ipv4Addr> = seen.iter().map(|flow| flow.source).collect();
        assert!(sources.len() > 9_990);
    }

    #[test]
    fn port_pairs_take_turns_and_kept_frames_are_kept() {
        let ports = |flow: &Flow| (flow.source_port, flow.destination_port);
        let mut flows = Flows::Ports { count: 3, next: 0 };
        let seen = written(&mut flows, &template(), 4);
        let seen: Vec<_> = seen.iter().map(ports).collect();
        assert_eq!(seen, [(0, 0), (1, 0), (2, 0), (0, 0)]);
        let kept = written(&mut Flows::Kept, &template(), 1);
        assert_eq!(kept, [read(&template().bytes)]);
    }

    #[test]
    fn frames_that_are_too_short_are_refused() {
        let mut short = template();
        short.bytes.truncate(30);
        assert!(Flows::random(&short).is_err());
        assert!(flow(0).mark(&mut short).is_err());
    }
}
