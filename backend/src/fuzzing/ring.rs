//! A virtqueue in memory of the fuzzer's making.

use crate::ring::segment::{ChainWriter, Payload};
use crate::ring::{
    Direction, GuestMemory, RegionLayout, Ring, RingAddresses, RingConfig, SegmentArena, Taken,
};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// Two regions of this size, with a hole between them.
const REGION_BYTES: u64 = 0x4000;
const SECOND_REGION: u64 = 0x8000;
const USER_BASE: u64 = 0x7000_0000_0000;
/// More than any batch takes.
const MAX_TAKEN: usize = 200;

/// Puts `data` into a guest's memory as ring and buffers, takes every chain, reads or fills it, and gives it back.
///
/// Byte 0: size (as a power of two) and direction; byte 1: features; bytes 2 and 3: ring base; bytes 4 to 9: where the three parts
/// are, in units of 16 bytes; the rest: memory from address 0 on.
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
    let config = RingConfig {
        size: 1 << (shape & 0x0f),
        addresses: RingAddresses {
            descriptor_table,
            available_ring,
            used_ring,
            used_log: None,
        },
        base: u16::from_le_bytes([base0, base1]).into(),
        features: u64::from(features & 1) << VIRTIO_RING_F_EVENT_IDX
            | u64::from(features >> 1 & 1) << VIRTIO_RING_F_INDIRECT_DESC,
        kick: None,
        call: None,
        error: None,
    };
    let Ok(mut ring) = Ring::start(config, direction, &memory) else {
        return;
    };
    let mut arena = SegmentArena::default();
    for _ in 0..MAX_TAKEN {
        match ring.take(&mut arena) {
            Ok(Taken::Chain(chain)) => {
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
                    ChainWriter::new(segments).write(&[0xa5; 300]);
                }
                ring.push_used(chain.head, chain.len_bytes as u32);
            }
            Ok(Taken::ArenaFull) => arena.clear(),
            Ok(Taken::Empty) | Err(_) => break,
        }
        let _ = ring.publish_used();
    }
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
