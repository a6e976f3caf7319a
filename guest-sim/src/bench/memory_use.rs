//! What a process holds: its memory by kind, and its descriptors.
//!
//! Called by benches and tests about the daemon. Keeps true: guest memory that the daemon touched counts apart from its own.

use std::fs;

use crate::error::{Doing, Error};

/// Memory and descriptors of a process, as `/proc/PID/status` and `/proc/PID/fd` show them (proc_pid_status(5)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Resident memory of its own: heap and stacks.
    pub anonymous_bytes: u64,
    /// Resident pages of files: its program and libraries.
    pub file_bytes: u64,
    /// Resident pages of shared memory: its guests'.
    pub shared_bytes: u64,
    /// Page tables, which no resident-set figure contains.
    pub page_table_bytes: u64,
    /// Open descriptors.
    pub descriptors: u64,
}

impl MemoryUse {
    /// What a process holds now.
    ///
    /// # Errors
    /// When the process is gone or another user's.
    pub fn of(pid: u32) -> Result<Self, Error> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))
            .doing("reading a process's status")?;
        let bytes = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field))?;
            let kib: u64 = line
                .trim_start_matches(':')
                .split_whitespace()
                .next()?
                .parse()
                .ok()?;
            Some(kib * 1024)
        };
        let missing = || Error::Options("/proc/PID/status does not say how memory is used");
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))
            .doing("listing a process's descriptors")?
            .count() as u64;
        Ok(Self {
            anonymous_bytes: bytes("RssAnon").ok_or_else(missing)?,
            file_bytes: bytes("RssFile").ok_or_else(missing)?,
            shared_bytes: bytes("RssShmem").ok_or_else(missing)?,
            page_table_bytes: bytes("VmPTE").ok_or_else(missing)?,
            descriptors,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_was_written_is_counted() {
        const BYTES: u64 = 32 << 20;
        let before = MemoryUse::of(std::process::id()).unwrap();
        let written = std::hint::black_box(vec![1u8; BYTES as usize]);
        let after = MemoryUse::of(std::process::id()).unwrap();
        assert!(after.anonymous_bytes >= before.anonymous_bytes + BYTES / 2);
        assert!(before.file_bytes > 0 && before.page_table_bytes > 0 && before.descriptors > 2);
        drop(written);
    }
}
