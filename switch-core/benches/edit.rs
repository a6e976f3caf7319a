//! What edits of a header cost. Run alone on a quiet core: `cargo bench -p switch-core --bench edit`.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a bench fails by panicking"
)]

mod measure;

use std::hint::black_box;

use criterion::{criterion_group, criterion_main};
use measure::bench;
use switch_core::engine::edit::{
    Edit, EditList, EditedFrame, MAX_GROWTH_BYTES, Run, TransportChecksum,
};

type Bench = criterion::Criterion<measure::TimeAndCycles>;

fn write(at: u16, bytes: &[u8]) -> Edit {
    Edit::Write {
        at,
        bytes: Run::new(bytes),
    }
}

fn edit(c: &mut Bench) {
    let route = vec![
        write(0, &[2; 12]),
        write(22, &[63]),
        Edit::AdjustIpv4Checksum {
            at: 24,
            delta: 0xfeff,
        },
    ];
    let mut nat = route.clone();
    nat.extend([
        write(26, &[10, 0, 0, 1]),
        write(34, &[4, 5]),
        Edit::AdjustTransportChecksum {
            at: 50,
            pseudo_delta: 77,
            data_delta: 88,
            kind: TransportChecksum::Plain,
        },
    ]);
    let insert = |at, bytes: &[u8]| Edit::Insert {
        at,
        bytes: Run::new(bytes),
    };
    let encapsulate = vec![
        insert(0, &[2; 20]),
        insert(20, &[3; 20]),
        insert(40, &[4; 10]),
    ];
    let mut tunnel = encapsulate.clone();
    tunnel.extend([
        Edit::WriteLength { at: 16, from: 14 },
        Edit::WriteLength { at: 38, from: 34 },
        Edit::FinishIpv4Checksum { at: 14 },
    ]);
    let mut group = c.benchmark_group("edit");
    for (name, edits) in [
        ("addresses, TTL and its checksum", route),
        ("NAT and TTL, both checksums", nat),
        ("50 bytes put before", encapsulate),
        ("VXLAN with lengths and checksum", tunnel),
    ] {
        let list = EditList::new(edits);
        for header_bytes in [64, 116] {
            let mut buffer = [0x5a; 244 + MAX_GROWTH_BYTES];
            bench(&mut group, &format!("{name}, {header_bytes} bytes"), || {
                let mut frame = EditedFrame {
                    buffer: black_box(&mut buffer),
                    header_bytes: black_box(header_bytes),
                    frame_bytes: 1500,
                    partial_checksum: None,
                };
                black_box(&list).apply(&mut frame)
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = measure::criterion();
    targets = edit
}
criterion_main!(benches);
