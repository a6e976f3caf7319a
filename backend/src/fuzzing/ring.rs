//! A virtqueue in memory of the fuzzer's making.

use crate::ring::segment::{ChainWriter, Payload};
use crate::ring::{
    BurstEnd, BurstLimit, Direction, GuestMemory, RecordFile, RegionLayout, Ring, RingAddresses,
    RingConfig, SegmentArena, is_packed,
};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_bindings::virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// Two regions of this size, with a hole between them.
const REGION_BYTES: u64 = 0x4000;
const SECOND_REGION: u64 = 0x8000;
const USER_BASE: u64 = 0x7000_0000_0000;
/// So many are more than the largest of these rings has chains for.
const MAX_BURSTS: usize = 80;

/// Puts `data` into a guest's memory as ring and buffers, takes every chain, reads or fills it, and gives it back. A packed ring is then
/// served once more by a process that knows no more than the first one's record.
///
/// Byte 0: size and direction; byte 1: features; bytes 2 and 3: ring base; bytes 4 to 9: where the three parts are, in units of 16 bytes;
/// the rest: memory from address 0 on.
pub fn run(data: &[u8]) {
    let Some((setup, content)) = data.split_first_chunk::<10>() else {
        return;
    };
    let [shape, features, base0, base1, parts @ ..] = *setup;
    let Some(memory) = guest_memory(content) else {
        return;
    };
    let direction = if shape & 0x80 == 0 {
        Direction::Readable
    } else {
        Direction::Writable
    };
    let [descriptor_table, available_ring, used_ring] = [
        [parts[0], parts[1]],
        [parts[2], parts[3]],
        [parts[4], parts[5]],
    ]
    .map(|at| USER_BASE + 16 * u64::from(u16::from_le_bytes(at)));
    let addresses = RingAddresses {
        descriptor_table,
        available_ring,
        used_ring,
        used_log: None,
    };
    let base = u32::from(u16::from_le_bytes([base0, base1]));
    let acked = |bit: u32, feature: u32| u64::from(features >> bit & 1) << feature;
    let features = acked(0, VIRTIO_RING_F_EVENT_IDX)
        | acked(1, VIRTIO_RING_F_INDIRECT_DESC)
        | acked(2, VIRTIO_F_RING_PACKED)
        | acked(3, VIRTIO_F_IN_ORDER);
    let packed = is_packed(features);
    let (size, base) = if packed {
        (3 * u16::from(shape & 0x7f) + 1, base | base << 16)
    } else {
        (1 << (shape & 0x0f), base)
    };
    let Ok(records) = RecordFile::anonymous(1) else {
        return;
    };
    for _ in 0..if packed { 2 } else { 1 } {
        let config = RingConfig {
            size,
            addresses,
            base,
            origin: base,
            features,
            base_is_final: false,
            record: records.ring(0, size).ok(),
            kick: None,
            call: None,
            error: None,
        };
        if let Ok(ring) = Ring::start(config, direction, &memory) {
            serve(ring, direction);
        }
    }
}

fn serve(mut ring: Ring, direction: Direction) {
    let mut arena = SegmentArena::default();
    let mut chains = Vec::new();
    for turn in 0..MAX_BURSTS {
        arena.clear();
        let limit = BurstLimit {
            // Bursts of several lengths, some with an end in bytes.
            chains: 1 + turn % 5,
            bytes: if turn % 3 == 2 { 1 } else { u64::MAX },
        };
        let ended = ring.take_burst(&mut arena, &mut chains, limit);
        let nothing_more = chains.is_empty() && !matches!(ended, Ok(BurstEnd::ArenaFull));
        if turn % 7 == 6 {
            // As a run does that found more chains than it had frames for.
            ring.undo_take(chains.drain(..).map(|chain| chain.head.places).sum());
        }
        for chain in chains.drain(..) {
            let segments = arena.chain(chain.segments);
            if direction == Direction::Readable {
                let mut bytes = [0; 300];
                Payload::Guest {
                    chain: segments,
                    skip_bytes: 12,
                }
                .cursor()
                .read(&mut bytes);
            } else {
                ChainWriter::new(segments, ring.marks()).write(&[0xa5; 300]);
            }
            ring.push_used(chain.head, chain.len_bytes as u32);
        }
        if nothing_more || ended.is_err() {
            break;
        }
        ring.prefetch_next(limit.chains);
        // Batches of several lengths.
        if turn % 5 != 3 {
            let _ = ring.publish_used();
        }
    }
    let _ = ring.publish_used();
    let _ = ring.arm_notification();
    ring.stop();
}

fn guest_memory(content: &[u8]) -> Option<std::sync::Arc<GuestMemory>> {
    let file = memfd_create("fuzzed-guest", MemfdFlags::CLOEXEC).ok()?;
    ftruncate(&file, 2 * REGION_BYTES).ok()?;
    rustix::io::pwrite(
        &file,
        content.get(..2 * REGION_BYTES as usize).unwrap_or(content),
        0,
    )
    .ok()?;
    let region = |guest_phys_addr, mmap_offset| {
        let layout = RegionLayout {
            guest_phys_addr,
            size_bytes: REGION_BYTES,
            user_addr: USER_BASE + mmap_offset,
            mmap_offset,
        };
        Some((layout, file.try_clone().ok()?))
    };
    GuestMemory::map(vec![region(0, 0)?, region(SECOND_REGION, REGION_BYTES)?]).ok()
}
