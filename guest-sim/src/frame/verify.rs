//! Whether what arrived is what was sent.
//!
//! Called by tests. Keeps true: a frame that passes has right lengths, right checksums (finished, or partial with a header that says so) and
//! the payload its ports and sequence number promise.

use super::build::{CWR, FIN, PSH, TCP, UDP, pattern};
use super::checksum;
use super::parse::{Network, Parsed, Transport, u16_at};
use super::vnet_header::{DATA_VALID, NEEDS_CSUM};
use super::{Frame, GsoType};

/// What is wrong with a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// It ends inside a header.
    #[error("the frame ends inside a header, at byte {at}")]
    Truncated {
        /// Where more was expected.
        at: usize,
    },
    /// A length field is wrong.
    #[error("a header says {says} bytes, there are {has}")]
    Length {
        /// The field, as an end or a length.
        says: usize,
        /// What there is.
        has: usize,
    },
    /// A checksum is wrong.
    #[error("the {what} is wrong: {found:#06x} instead of {expected:#06x}")]
    Checksum {
        /// Which one.
        what: &'static str,
        /// What is there.
        found: u16,
        /// What should be there.
        expected: u16,
    },
    /// NEEDS_CSUM, and `csum_start` or `csum_offset` do not point at the transport's checksum.
    #[error("csum_start {start} and csum_offset {offset} do not point at the transport's checksum")]
    ChecksumPlace {
        /// `csum_start`.
        start: u16,
        /// `csum_offset`.
        offset: u16,
    },
    /// A payload byte is wrong.
    #[error("payload byte {at} is {found:#04x} instead of {expected:#04x}")]
    Payload {
        /// Offset in the payload.
        at: usize,
        /// What is there.
        found: u8,
        /// What should be there.
        expected: u8,
    },
    /// It differs from what was sent where it must not.
    #[error("{0}")]
    Differs(&'static str),
    /// The pieces do not add up to what was sent.
    #[error("the pieces of a segmented frame leave off or overlap at byte {at} of {bytes}")]
    Gap {
        /// Where.
        at: usize,
        /// Bytes of the original payload.
        bytes: usize,
    },
}

/// Checks lengths, checksums and payload of one frame, and takes it apart.
///
/// # Errors
/// What is wrong first.
pub fn check(frame: &Frame) -> Result<Parsed, FrameError> {
    let parsed = Parsed::new(&frame.bytes)?;
    if let Some(network) = &parsed.network {
        check_network_checksum(&frame.bytes, network, parsed.transport_at)?;
        check_transport_checksum(frame, &parsed, network)?;
    }
    check_payload(frame, &parsed)?;
    Ok(parsed)
}

/// Checks that `arrived` is `sent`, whose checksum may have been finished on the way, and nothing else.
///
/// # Errors
/// What is wrong first.
pub fn same(sent: &Frame, arrived: &Frame) -> Result<(), FrameError> {
    check(arrived)?;
    let mut expected = sent.bytes.clone();
    if sent.header.flags & NEEDS_CSUM != 0 {
        let at = usize::from(sent.header.csum_start) + usize::from(sent.header.csum_offset);
        // Already checked: partial or finished, it is right.
        if let (Some(to), Some(from)) =
            (expected.get_mut(at..at + 2), arrived.bytes.get(at..at + 2))
        {
            to.copy_from_slice(from);
        }
    }
    if expected != arrived.bytes {
        return Err(FrameError::Differs(
            "the frame that arrived is not the frame that was sent",
        ));
    }
    let segmentation = |frame: &Frame| (frame.header.gso_type, frame.header.gso_size);
    if segmentation(sent) != segmentation(arrived) {
        return Err(FrameError::Differs(
            "the segmentation asked for has changed on the way",
        ));
    }
    Ok(())
}

/// Checks that `arrived` are the segments (TCP) or fragments (UDP) of `sent`, in order: complete, none larger than `gso_size` allows, with
/// the flags that segments have.
///
/// # Errors
/// What is wrong first.
pub fn segments(sent: &Frame, arrived: &[Frame]) -> Result<(), FrameError> {
    let original = Parsed::new(&sent.bytes)?;
    let payload = original.payload(&sent.bytes);
    let udp = sent.header.gso() == Some(GsoType::Udp);
    // Fragments carry the UDP header as if it were payload.
    let whole = if udp {
        payload.len() + 8
    } else {
        payload.len()
    };
    let mut at = 0;
    for (number, frame) in arrived.iter().enumerate() {
        if frame.header.gso() != Some(GsoType::None) {
            return Err(FrameError::Differs("a segment that asks for segmentation"));
        }
        let parsed = check(frame)?;
        if parsed.tags != original.tags
            || (parsed.source, parsed.destination) != (original.source, original.destination)
        {
            return Err(FrameError::Differs(
                "a segment's Ethernet header is not the original's",
            ));
        }
        let last = number + 1 == arrived.len();
        let step = if udp {
            check_fragment(&parsed, at, last)?;
            parsed.end - parsed.transport_at
        } else {
            check_segment(&original, &parsed, at, last)?;
            parsed.end - parsed.payload_at
        };
        if step > usize::from(sent.header.gso_size) || (step == 0 && whole > 0) {
            return Err(FrameError::Length {
                says: usize::from(sent.header.gso_size),
                has: step,
            });
        }
        at += step;
    }
    if at != whole {
        return Err(FrameError::Gap { at, bytes: whole });
    }
    if udp {
        check_reassembled(&original, sent, arrived)
    } else {
        Ok(())
    }
}

fn check_segment(
    original: &Parsed,
    parsed: &Parsed,
    at: usize,
    last: bool,
) -> Result<(), FrameError> {
    let (
        Transport::Tcp {
            ports: from,
            sequence: start,
            flags: sent,
        },
        Transport::Tcp {
            ports,
            sequence,
            flags,
        },
    ) = (original.transport, parsed.transport)
    else {
        return Err(FrameError::Differs("a segment that is not TCP"));
    };
    if ports != from || sequence != start.wrapping_add(at as u32) {
        return Err(FrameError::Gap {
            at,
            bytes: original.end - original.payload_at,
        });
    }
    // FIN and PSH belong to the last segment, CWR to the first.
    let mut expected = sent;
    if !last {
        expected &= !(FIN | PSH);
    }
    if at > 0 {
        expected &= !CWR;
    }
    if flags != expected {
        return Err(FrameError::Differs(
            "a segment's TCP flags are not those of its place",
        ));
    }
    Ok(())
}

fn check_fragment(parsed: &Parsed, at: usize, last: bool) -> Result<(), FrameError> {
    match &parsed.network {
        Some(network) if network.fragment_offset == at && network.more_fragments != last => Ok(()),
        Some(_) => Err(FrameError::Differs(
            "a fragment's offset or its more-fragments flag is wrong",
        )),
        None => Err(FrameError::Differs("a fragment that is not IP")),
    }
}

/// The datagram that the fragments make has a right checksum and the original's payload.
fn check_reassembled(original: &Parsed, sent: &Frame, arrived: &[Frame]) -> Result<(), FrameError> {
    let mut datagram = Vec::new();
    let mut identifications = Vec::new();
    for frame in arrived {
        let parsed = Parsed::new(&frame.bytes)?;
        datagram.extend_from_slice(
            frame
                .bytes
                .get(parsed.transport_at..parsed.end)
                .unwrap_or(&[]),
        );
        identifications.extend(parsed.network.map(|network| network.identification));
    }
    if identifications.windows(2).any(|pair| pair[0] != pair[1]) {
        return Err(FrameError::Differs(
            "fragments of one datagram with different identifications",
        ));
    }
    if datagram.get(8..) != Some(original.payload(&sent.bytes)) {
        return Err(FrameError::Differs(
            "the reassembled datagram is not the one that was sent",
        ));
    }
    match &original.network {
        Some(network) => check_sum(
            &datagram,
            network,
            UDP,
            "UDP checksum of the reassembled datagram",
        ),
        None => Ok(()),
    }
}

fn check_network_checksum(bytes: &[u8], network: &Network, end: usize) -> Result<(), FrameError> {
    if network.version != 4 {
        return Ok(());
    }
    let header = bytes
        .get(network.at..end)
        .ok_or(FrameError::Truncated { at: end })?;
    let total = checksum::fold(checksum::sum(header, 0));
    let found = u16_at(bytes, network.at + 10)?;
    if total == 0xffff {
        return Ok(());
    }
    let mut blank = header.to_vec();
    blank[10..12].fill(0);
    let expected = checksum::finish(checksum::sum(&blank, 0));
    Err(FrameError::Checksum {
        what: "IPv4 header checksum",
        found,
        expected,
    })
}

fn check_transport_checksum(
    frame: &Frame,
    parsed: &Parsed,
    network: &Network,
) -> Result<(), FrameError> {
    let field = match parsed.transport {
        Transport::Tcp { .. } => 16,
        Transport::Udp { .. } if !network.more_fragments => 6,
        _ => return Ok(()),
    };
    let segment = frame
        .bytes
        .get(parsed.transport_at..parsed.end)
        .ok_or(FrameError::Truncated { at: parsed.end })?;
    if frame.header.flags & NEEDS_CSUM == 0 {
        return check_sum(segment, network, network.protocol, "transport checksum");
    }
    let (start, offset) = (frame.header.csum_start, frame.header.csum_offset);
    if usize::from(start) != parsed.transport_at || usize::from(offset) != field {
        return Err(FrameError::ChecksumPlace { start, offset });
    }
    let pseudo = checksum::pseudo_header(
        &network.source,
        &network.destination,
        network.protocol,
        segment.len(),
    );
    let (found, expected) = (u16_at(segment, field)?, checksum::fold(pseudo));
    if found == expected {
        return Ok(());
    }
    Err(FrameError::Checksum {
        what: "partial transport checksum",
        found,
        expected,
    })
}

fn check_sum(
    segment: &[u8],
    network: &Network,
    protocol: u8,
    what: &'static str,
) -> Result<(), FrameError> {
    let field = if protocol == TCP { 16 } else { 6 };
    let found = u16_at(segment, field)?;
    // RFC 768: over IPv4, zero means that there is none.
    if protocol == UDP && network.version == 4 && found == 0 {
        return Ok(());
    }
    let pseudo = checksum::pseudo_header(
        &network.source,
        &network.destination,
        protocol,
        segment.len(),
    );
    let mut blank = segment.to_vec();
    blank[field..field + 2].fill(0);
    let expected = match checksum::finish(checksum::sum(&blank, pseudo)) {
        0 if protocol == UDP => 0xffff,
        value => value,
    };
    if found == expected {
        Ok(())
    } else {
        Err(FrameError::Checksum {
            what,
            found,
            expected,
        })
    }
}

fn check_payload(frame: &Frame, parsed: &Parsed) -> Result<(), FrameError> {
    let (ports, start) = match parsed.transport {
        Transport::Tcp {
            ports, sequence, ..
        } => (ports, sequence),
        Transport::Udp { ports } => (ports, 0),
        Transport::Fragment | Transport::Other => return Ok(()),
    };
    for (at, &found) in parsed.payload(&frame.bytes).iter().enumerate() {
        let expected = pattern(ports.0, ports.1, start.wrapping_add(at as u32));
        if found != expected {
            return Err(FrameError::Payload {
                at,
                found,
                expected,
            });
        }
    }
    Ok(())
}

/// Whether the device vouches for the checksum, or leaves it to the guest.
pub fn is_checksum_vouched_for(frame: &Frame) -> bool {
    frame.header.flags & (NEEDS_CSUM | DATA_VALID) != 0
}

#[cfg(test)]
mod tests {
    use super::super::FrameBuilder;
    use super::*;

    fn builders() -> Vec<FrameBuilder> {
        let mut all = Vec::new();
        for bytes in [0, 1, 6, 7, 1400, 65_000] {
            let kinds = [
                FrameBuilder::tcp4(bytes),
                FrameBuilder::tcp6(bytes),
                FrameBuilder::udp4(bytes),
                FrameBuilder::udp6(bytes),
            ];
            for kind in kinds {
                all.push(kind.clone());
                all.push(kind.clone().vlan(10));
                all.push(kind.clone().checksum_offload());
                all.push(kind.timestamps().ports(7, 65_535).sequence(u32::MAX - 3));
            }
        }
        all
    }

    #[test]
    fn what_is_built_verifies() {
        for builder in builders() {
            let frame = builder.build();
            check(&frame).unwrap_or_else(|error| panic!("{builder:?}: {error}"));
            same(&frame, &frame).unwrap();
        }
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        let frame = FrameBuilder::tcp4(40).build();
        for bit in 0..8 * frame.bytes.len() {
            let mut bad = frame.clone();
            bad.bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(same(&frame, &bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_finished_checksum_counts_as_the_same_frame() {
        let partial = FrameBuilder::udp6(100).checksum_offload().build();
        let finished = FrameBuilder::udp6(100).build();
        same(&partial, &finished).unwrap();
    }

    #[test]
    fn segments_must_be_complete_in_order_and_small_enough() {
        let sent = FrameBuilder::tcp4(3000).segment(1000).ecn().build();
        let piece = |at: u32, bytes: usize, flags: u8| {
            FrameBuilder::tcp4(bytes)
                .sequence(at)
                .tcp_flags(flags)
                .build()
        };
        let (ack, last) = (super::super::build::ACK, super::super::build::ACK | PSH);
        let good = [
            piece(0, 1000, ack | CWR),
            piece(1000, 1000, ack),
            piece(2000, 1000, last),
        ];
        segments(&sent, &good).unwrap();
        assert!(segments(&sent, &good[..2]).is_err(), "incomplete");
        assert!(
            segments(&sent, &[good[1].clone(), good[0].clone(), good[2].clone()]).is_err(),
            "out of order"
        );
        assert!(
            segments(&sent, &[piece(0, 1500, ack | CWR), piece(1500, 1500, last)]).is_err(),
            "too large"
        );
        assert!(
            segments(
                &sent,
                &[
                    good[0].clone(),
                    piece(1000, 1000, ack | CWR),
                    good[2].clone()
                ]
            )
            .is_err(),
            "CWR"
        );
    }
}
