//! What the parser fuzz target does with an input, and what it holds to be true for any.
//!
//! Input: one byte that chooses the ports' VLAN policies, two bytes of segment size, two bytes by which the frame is longer than
//! its private copy, all big-endian, then the frame's first bytes.

use std::sync::Arc;

use switch_core::parse::{Headers, ParseEnd};
use switch_core::segment::{Gso, MAX_HEADER_GROWTH_BYTES, MAX_SEGMENTS, SegmentPlan};
use switch_core::{
    HeaderEdit, Millis, Pipeline, PortId, Switch, SwitchConfig, Verdict, VlanEdit, VlanId,
    VlanPolicy,
};

const COPY_BYTES: usize = 256;
const PORTS: u16 = 4;

/// Runs one input; panics where the core does not keep its word.
pub fn run(input: &[u8]) {
    let Some((&[policies, size_high, size_low, more_high, more_low], frame)) =
        input.split_first_chunk()
    else {
        return;
    };
    let copy = &frame[..frame.len().min(COPY_BYTES)];
    let frame_bytes = frame.len() + usize::from(u16::from_be_bytes([more_high, more_low]));
    switch_frame(policies, copy);
    cut_frame(u16::from_be_bytes([size_high, size_low]), copy, frame_bytes);
}

fn policy(choice: u8) -> VlanPolicy {
    let vlan = |number| VlanId::new(number).expect("a valid VLAN");
    match choice & 3 {
        0 => VlanPolicy::Transparent,
        1 => VlanPolicy::Access(vlan(10)),
        2 => VlanPolicy::Trunk {
            allowed: [vlan(10), vlan(20)].into_iter().collect(),
            native: None,
        },
        _ => VlanPolicy::Trunk {
            allowed: [vlan(20)].into_iter().collect(),
            native: Some(vlan(10)),
        },
    }
}

/// A cached verdict is the table's, and edits yield frames of the length they promise.
fn switch_frame(policies: u8, copy: &[u8]) {
    let switch = Arc::new(Switch::new(SwitchConfig {
        mac_table_capacity: 16,
        ..SwitchConfig::default()
    }));
    let port = |index: u16| PortId::new(index).expect("a small index");
    for index in 0..PORTS {
        switch
            .add_port(port(index), policy(policies >> (index * 2)))
            .expect("a new port");
    }
    let mut pipeline = Pipeline::new(Arc::clone(&switch));
    for in_port in (0..PORTS).map(port) {
        let first = pipeline.classify(in_port, copy);
        let again = pipeline.classify(in_port, copy);
        assert_eq!(first, again);
        assert_eq!(first, switch.explain(in_port, copy, Millis(0)).verdict);
        match first {
            Verdict::Drop(_) => {}
            Verdict::Output {
                port,
                edit: HeaderEdit::Vlan(edit),
            } => {
                assert_ne!(port, in_port);
                check_edit(edit, copy);
            }
            Verdict::Flood(flood) => {
                assert!(pipeline.flood_members(flood).count() > 0);
                for (port, edit) in pipeline.flood_members(flood) {
                    assert_ne!(port, in_port);
                    check_edit(edit, copy);
                }
            }
            Verdict::Output { .. } | Verdict::Copies(_) => {
                panic!("the built-in program does not do that")
            }
        }
    }
}

fn check_edit(edit: VlanEdit, copy: &[u8]) {
    let rewrite = edit.rewrite(copy);
    let edited = [rewrite.prefix(), &copy[rewrite.skip()..]].concat();
    assert_eq!(
        edited.len() as isize,
        copy.len() as isize + edit.length_delta()
    );
    assert_eq!(edited[..12], copy[..12]);
}

/// Every piece of a plan is written, is in bounds, and parses as what it was cut from.
fn cut_frame(size: u16, copy: &[u8], frame_bytes: usize) {
    let Ok(headers) = Headers::parse(copy, frame_bytes) else {
        return;
    };
    assert!(
        headers.network_offset <= headers.transport_offset
            && headers.transport_offset <= headers.payload_offset
    );
    assert!(usize::from(headers.payload_offset) <= copy.len());
    let kinds = [
        Gso::TcpV4 {
            segment_bytes: size,
        },
        Gso::TcpV6 {
            segment_bytes: size,
        },
        Gso::Udp {
            fragment_bytes: size,
            identification: 7,
        },
    ];
    for gso in kinds {
        let Ok(plan) = SegmentPlan::new(copy, &headers, gso, frame_bytes) else {
            continue;
        };
        assert!((1..=MAX_SEGMENTS).contains(&plan.count()));
        let mut next = usize::from(headers.payload_offset);
        let mut buffer = [0; COPY_BYTES + MAX_HEADER_GROWTH_BYTES];
        for index in 0..plan.count() {
            let piece = plan
                .write(index, &mut buffer)
                .expect("the buffer is large enough");
            assert_eq!(piece.payload.start, next, "pieces follow each other");
            assert!(piece.payload.end <= frame_bytes && piece.payload.len() <= usize::from(size));
            next = piece.payload.end;
            let header = &buffer[..piece.header_bytes];
            let parsed =
                Headers::parse(header, piece.header_bytes + piece.payload.len()).expect("headers");
            assert!(
                !matches!(parsed.end, ParseEnd::Malformed(_) | ParseEnd::Truncated(_)),
                "{parsed:?}"
            );
            if let Some(checksum) = piece.checksum {
                assert!(
                    checksum.position + 2 <= piece.header_bytes
                        && checksum.covers.end <= frame_bytes
                );
            }
        }
        assert_eq!(next, frame_bytes, "nothing is left over");
    }
}
