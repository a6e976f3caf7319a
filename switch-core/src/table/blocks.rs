//! Short runs of numbers, each in one piece, that grow and shrink: what the nodes of a trie lead to.
//!
//! A run lies in a block of the next size up. Freed blocks are used again for runs of their size.

use super::buckets::NONE;

/// Numbers of a chunk. A block never lies in two.
const CHUNK: u32 = 1 << 14;

/// The sizes of blocks, in numbers. A node has at most 63 prefixes and 64 branches.
const SIZES: [u32; 9] = [8, 10, 12, 16, 24, 32, 48, 64, 128];

pub(super) struct Blocks {
    chunks: Vec<Box<[u32]>>,
    /// Of the last chunk.
    used: u32,
    /// By size, the last block freed, which begins with the one before.
    free: [u32; SIZES.len()],
}

impl Blocks {
    pub(super) const fn new() -> Self {
        Self {
            chunks: Vec::new(),
            used: CHUNK,
            free: [NONE; SIZES.len()],
        }
    }

    /// A number of a run; [`NONE`] for one that is not there.
    #[inline]
    pub(super) fn get(&self, block: u32, at: u32) -> u32 {
        let (chunk, start) = ((block / CHUNK) as usize, block % CHUNK);
        let chunk = self.chunks.get(chunk);
        let number = chunk.and_then(|chunk| chunk.get((start + at) as usize));
        number.copied().unwrap_or(NONE)
    }

    pub(super) fn set(&mut self, block: u32, at: u32, to: u32) {
        if let Some(number) = self.run_mut(block, at + 1).and_then(|run| run.last_mut()) {
            *number = to;
        }
    }

    /// A run of these numbers.
    pub(super) fn of(&mut self, numbers: &[u32]) -> u32 {
        let len = numbers.len() as u32;
        let block = self.take(size_of_run(len));
        if let Some(run) = self.run_mut(block, len) {
            run.copy_from_slice(numbers);
        }
        block
    }

    /// Puts a number into a run of `len` before the one at `at`; the run's block from then on.
    pub(super) fn insert(&mut self, block: u32, len: u32, at: u32, number: u32) -> u32 {
        let block = self.resize(block, len, len + 1);
        if let Some(run) = self.run_mut(block, len + 1) {
            let (at, len) = (at as usize, len as usize);
            if at < len {
                run.copy_within(at..len, at + 1);
            }
            if let Some(place) = run.get_mut(at) {
                *place = number;
            }
        }
        block
    }

    /// Takes a number out of a run of `len`, which has more than one; the run's block from then on.
    pub(super) fn remove(&mut self, block: u32, len: u32, at: u32) -> u32 {
        if let Some(run) = self.run_mut(block, len)
            && at + 1 < len
        {
            run.copy_within(at as usize + 1.., at as usize);
        }
        self.resize(block, len, len.saturating_sub(1).max(1))
    }

    /// Frees the block of a run of `len`.
    pub(super) fn free(&mut self, block: u32, len: u32) {
        let size = size_of_run(len);
        let before = self.free.get(size).copied().unwrap_or(NONE);
        self.set(block, 0, before);
        if let Some(last) = self.free.get_mut(size) {
            *last = block;
        }
    }

    fn resize(&mut self, block: u32, from: u32, to: u32) -> u32 {
        let size = size_of_run(to);
        if size == size_of_run(from) {
            return block;
        }
        let moved = self.take(size);
        for at in 0..from.min(to) {
            self.set(moved, at, self.get(block, at));
        }
        self.free(block, from);
        moved
    }

    /// A block of a size, by its place among the sizes.
    fn take(&mut self, size: usize) -> u32 {
        let freed = self.free.get(size).copied().unwrap_or(NONE);
        if freed != NONE {
            let before = self.get(freed, 0);
            if let Some(last) = self.free.get_mut(size) {
                *last = before;
            }
            return freed;
        }
        let numbers = SIZES.get(size).copied().unwrap_or(CHUNK);
        if self.used + numbers > CHUNK {
            self.chunks.push(vec![0; CHUNK as usize].into());
            self.used = 0;
        }
        let block = (self.chunks.len() as u32 - 1) * CHUNK + self.used;
        self.used += numbers;
        block
    }

    fn run_mut(&mut self, block: u32, len: u32) -> Option<&mut [u32]> {
        let (chunk, start) = ((block / CHUNK) as usize, (block % CHUNK) as usize);
        let chunk = self.chunks.get_mut(chunk)?;
        chunk.get_mut(start..start + len as usize)
    }
}

/// The place among the sizes of the block for a run.
fn size_of_run(len: u32) -> usize {
    SIZES.partition_point(|&size| size < len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_keep_what_they_hold_and_blocks_are_used_again() {
        let mut blocks = Blocks::new();
        let mut chunks = 0;
        for round in 0..3 {
            let mut runs: Vec<_> = (0..200).map(|run| (blocks.of(&[run]), vec![run])).collect();
            for step in 0..200 * 126 {
                let (block, run) = &mut runs[step % 200];
                let at = step * 7919 % (run.len() + 1);
                *block = blocks.insert(*block, run.len() as u32, at as u32, step as u32);
                run.insert(at, step as u32);
            }
            for _ in 0..126 {
                for (block, run) in &mut runs {
                    let read: Vec<_> = (0..run.len())
                        .map(|at| blocks.get(*block, at as u32))
                        .collect();
                    assert_eq!(read, *run);
                    let at = run[0] as usize % run.len();
                    *block = blocks.remove(*block, run.len() as u32, at as u32);
                    run.remove(at);
                }
            }
            for (block, run) in runs {
                assert_eq!(blocks.get(block, 0), run[0]);
                blocks.free(block, 1);
            }
            if round == 0 {
                chunks = blocks.chunks.len();
            }
        }
        assert_eq!(blocks.chunks.len(), chunks);
    }
}
