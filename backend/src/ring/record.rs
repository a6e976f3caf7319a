//! Where packed rings came to, in memory that outlives the process.
//!
//! A split ring's used index lies in guest memory; a packed ring has no such place, and QEMU answers a back-end that died with the
//! base it was started from. So each port with packed rings has a file in a memory file system: a page that says what it is, then
//! a place for each ring. [`PackedRing`](super::packed::PackedRing) maps its place and keeps it true at every instruction (docs/adr/0006).
//!
//! ```text
//!   0                64             128
//!   | magic, identity | state       | used elements of the batch in hand, 8 bytes each, as many as the ring has entries |
//! ```
//!
//! Only this process's threads write there, so what a kill leaves behind is what was stored, in program order. Guests cannot reach it.
//! Kept true: what is read back is checked against the ring before it is used; a file that is not ours is never written.

use super::sigbus::Watch;
use rustix::fs::{
    FallocateFlags, FlockOperation, MemfdFlags, Mode, OFlags, fallocate, flock, fstat, fstatfs,
    ftruncate, memfd_create, open,
};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use vm_memory::FileOffset;
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};

/// What the file's first page starts with. Its last byte is the version of the layout.
const FILE_MAGIC: [u8; 16] = *b"ringswitch-rngs\x01";
/// A place that holds a ring.
const PLACE_MAGIC: u64 = u64::from_le_bytes(*b"packedrg");
const PAGE_BYTES: u64 = 4096;
/// Where a place has its log of used elements.
const LOG_BYTES: u64 = 128;
/// A place: header and log of the largest ring, in whole pages.
const PLACE_BYTES: u64 =
    (LOG_BYTES + 8 * super::virtqueue::MAX_RING_SIZE as u64).next_multiple_of(PAGE_BYTES);
/// linux/magic.h: TMPFS_MAGIC, RAMFS_MAGIC.
const MEMORY_FILE_SYSTEMS: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// Why a port's rings have no place that outlives the process.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The folder or the file cannot be used.
    #[error("{}: {source}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A disk would hold up a worker while it writes back.
    #[error("{} is not in memory: set `ring_state` to a folder on tmpfs, such as one below /run or /dev/shm", .0.display())]
    NotMemory(PathBuf),
    /// Somebody else could write there.
    #[error("{} belongs to somebody else or others may write to it: remove it", .0.display())]
    NotOurs(PathBuf),
    /// It has bytes, but not those of a ring file.
    #[error("{} is damaged or no ring file of this version: remove it once no guest with packed rings runs on that port", .0.display())]
    Damaged(PathBuf),
    /// Another daemon has the port.
    #[error("{} is in use by another process: give each daemon its own `ring_state`", .0.display())]
    InUse(PathBuf),
}

/// A port's file, with a place for each of its rings. Locked for as long as it is open.
#[derive(Debug)]
pub struct RecordFile {
    file: Arc<File>,
    /// To remove it by; none for a file without a name.
    path: Option<PathBuf>,
}

impl RecordFile {
    /// Opens or makes the file of the port `name` in `folder`, which is made if need be. What the file holds of earlier lives is kept.
    ///
    /// # Errors
    /// The file cannot be had, is not in memory, or is not ours.
    pub fn open(folder: &Path, name: &str, rings: u16) -> Result<Self, RecordError> {
        let path = folder.join(name);
        let failed = |source: rustix::io::Errno| RecordError::File {
            path: path.clone(),
            source: source.into(),
        };
        make_folder(folder).map_err(|source| RecordError::File {
            path: folder.to_owned(),
            source,
        })?;
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
        let file = File::from(file);
        let system = fstatfs(&file).map_err(failed)?;
        let in_memory = MEMORY_FILE_SYSTEMS.contains(&(system.f_type as u64));
        let remove_new = |error| {
            // Nothing of ours is left where it is of no use.
            if fstat(&file).is_ok_and(|stat| stat.st_size == 0) {
                let _ = std::fs::remove_file(&path);
            }
            Err(error)
        };
        if !in_memory {
            return remove_new(RecordError::NotMemory(path.clone()));
        }
        let stat = fstat(&file).map_err(failed)?;
        let regular =
            rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile;
        if !regular
            || stat.st_uid != rustix::process::geteuid().as_raw()
            || stat.st_mode & 0o022 != 0
        {
            return Err(RecordError::NotOurs(path));
        }
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(RecordError::InUse(path)),
            Err(error) => return Err(failed(error)),
        }
        // Asked with the file locked: whoever had it until now may have made it longer.
        let bytes = fstat(&file).map_err(failed)?.st_size as u64;
        if bytes != 0 && !is_record(&file, bytes) {
            return Err(RecordError::Damaged(path));
        }
        prepare(&file, bytes, rings).map_err(failed)?;
        Ok(Self {
            file: Arc::new(file),
            path: Some(path),
        })
    }

    /// A file without a name: for rings that need no second life, in tests and benches.
    pub fn anonymous(rings: u16) -> io::Result<Self> {
        let file = memfd_create("ring-positions", MemfdFlags::CLOEXEC)?;
        prepare(&file, 0, rings)?;
        Ok(Self {
            file: Arc::new(file.into()),
            path: None,
        })
    }

    /// Takes over a file that another process opened, with its lock.
    pub fn adopt(file: OwnedFd, folder: &Path, name: &str) -> Self {
        Self {
            file: Arc::new(file.into()),
            path: Some(folder.join(name)),
        }
    }

    /// Another descriptor of the file, which shares its lock.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.file.try_clone().map(OwnedFd::from)
    }

    /// Maps the place of ring `index`, with room for `size` entries.
    pub fn ring(&self, index: u16, size: u16) -> io::Result<RingRecord> {
        let start = PAGE_BYTES + u64::from(index) * PLACE_BYTES;
        let bytes = LOG_BYTES + 8 * u64::from(size);
        // Taken now: a file system that is full would raise SIGBUS later.
        fallocate(self.file.as_fd(), FallocateFlags::KEEP_SIZE, start, bytes)?;
        if (fstat(self.file.as_fd())?.st_size as u64) < start + bytes {
            return Err(io::Error::other("the ring file was cut short"));
        }
        Ok(RingRecord {
            map: Map::new(&self.file, start, bytes as usize)?,
            size,
        })
    }

    /// The port is gone for good: removes the file's name.
    pub fn remove(&self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn make_folder(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
}

/// Whether a file of `bytes` bytes is one that [`prepare`] made, or began to make.
fn is_record(file: &impl AsFd, bytes: u64) -> bool {
    let mut magic = [0; FILE_MAGIC.len()];
    let places = bytes.checked_sub(PAGE_BYTES);
    let finished = places.is_some_and(|places| places.is_multiple_of(PLACE_BYTES));
    (finished || bytes == magic.len() as u64)
        && rustix::io::pread(file, &mut magic, 0).is_ok_and(|read| read == magic.len())
        && magic == FILE_MAGIC
}

/// Makes the file long enough for `rings` rings; it never gets shorter. The magic comes first: killed in between, the file has nothing
/// else, and is finished by the next one.
fn prepare(file: &impl AsFd, bytes: u64, rings: u16) -> rustix::io::Result<()> {
    let needed = PAGE_BYTES + u64::from(rings) * PLACE_BYTES;
    if bytes < needed {
        if bytes == 0 {
            rustix::io::pwrite(file, &FILE_MAGIC, 0)?;
        }
        ftruncate(file, needed)?;
    }
    Ok(())
}

/// Which ring a place is about: the file of the VM's memory that holds its descriptors, and where in it. Another VM has another file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingIdentity {
    /// st_dev of the memory file.
    pub device: u64,
    /// st_ino of the memory file.
    pub inode: u64,
    /// Offset of the descriptor ring in that file, in bytes.
    pub offset: u64,
}

/// An index of a packed ring with its wrap counter, as it stands in half a base (vhost-user: bits 0 to 14 and 15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position(pub(super) u16);

impl Position {
    pub(super) fn new(index: u16, wrap: bool) -> Self {
        Self(index | u16::from(wrap) << 15)
    }

    pub(super) fn index(self) -> u16 {
        self.0 & 0x7fff
    }

    pub(super) fn wrap(self) -> bool {
        self.0 & 0x8000 != 0
    }

    /// How many places further `later` is, in a ring of `size`: less than two laps, after which positions come again.
    pub(super) fn distance_to(self, later: Self, size: u16) -> u32 {
        let size = u32::from(size);
        let along = |at: Self| u32::from(at.index()) + if at.wrap() { 0 } else { size };
        (along(later) + 2 * size - along(self)) % (2 * size)
    }

    /// `places` places further in a ring of `size`; at most once around.
    pub(super) fn advanced(self, places: u16, size: u16) -> Self {
        let index = u32::from(self.index()) + u32::from(places);
        if index >= size.into() {
            Self::new((index - u32::from(size)) as u16, !self.wrap())
        } else {
            Self::new(index as u16, self.wrap())
        }
    }
}

/// One used element as it is handed back: 32 bits of length, 16 of buffer id, 16 of places in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UsedElement(pub(super) u64);

impl UsedElement {
    #[inline(always)]
    pub(super) fn new(id: u16, places: u16, len: u32) -> Self {
        Self(u64::from(len) | u64::from(id) << 32 | u64::from(places) << 48)
    }

    #[inline(always)]
    pub(super) fn id(self) -> u16 {
        (self.0 >> 32) as u16
    }

    #[inline(always)]
    pub(super) fn places(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// Length and id, where a descriptor has them.
    #[inline(always)]
    pub(super) fn without_places(self) -> u64 {
        self.0 & 0xffff_ffff_ffff
    }
}

/// Where a ring is: one word, so that it changes at one instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    /// Everything before was given back.
    pub(super) position: Position,
    /// Where the last used element was written, and the buffer id in it: what a ring that goes on still shows.
    pub(super) last_used: Position,
    pub(super) last_id: u16,
    /// Elements of the log that are being written into the ring.
    pub(super) writing: u16,
}

impl State {
    pub(super) fn at(position: Position) -> Self {
        Self {
            position,
            last_used: position,
            last_id: 0,
            writing: 0,
        }
    }

    /// After `element` was given back at the position.
    #[inline(always)]
    pub(super) fn past(self, element: UsedElement, size: u16) -> Self {
        Self {
            position: self.position.advanced(element.places(), size),
            last_used: self.position,
            last_id: element.id(),
            writing: 0,
        }
    }

    fn encode(self) -> u64 {
        u64::from(self.position.0)
            | u64::from(self.last_used.0) << 16
            | u64::from(self.last_id) << 32
            | u64::from(self.writing) << 48
    }

    fn decode(word: u64) -> Self {
        Self {
            position: Position(word as u16),
            last_used: Position((word >> 16) as u16),
            last_id: (word >> 32) as u16,
            writing: (word >> 48) as u16,
        }
    }
}

/// The place of one ring, mapped.
#[derive(Debug)]
pub struct RingRecord {
    map: Map,
    size: u16,
}

/// Words of a place's header.
const MAGIC: usize = 0;
const DEVICE: usize = 1;
const INODE: usize = 2;
const OFFSET: usize = 3;
const SIZE: usize = 4;
const ORIGIN: usize = 5;
const STATE: usize = 8;
const LOG: usize = LOG_BYTES as usize / 8;

impl RingRecord {
    /// Entries it has room for.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// What an earlier life left, if it is about the same ring; and where the front-end believed that to be started.
    pub(super) fn recall(&self, identity: RingIdentity) -> Option<(State, Position)> {
        let same = self.load(MAGIC) == PLACE_MAGIC
            && self.load(DEVICE) == identity.device
            && self.load(INODE) == identity.inode
            && self.load(OFFSET) == identity.offset
            && self.load(SIZE) == u64::from(self.size);
        if !same {
            return None;
        }
        let state = State::decode(self.load(STATE));
        let from = Position(self.load(ORIGIN) as u16);
        let in_ring = |position: Position| position.index() < self.size;
        let places = || (0..state.writing).map(|at| u32::from(self.element(at).places()));
        let plausible = in_ring(from)
            && in_ring(state.position)
            && in_ring(state.last_used)
            && state.writing <= self.size
            && places().all(|places| places > 0)
            && places().sum::<u32>() <= self.size.into();
        plausible.then_some((state, from))
    }

    /// Makes the place one for this ring, which is at `position`; its front-end believes that it was started at `origin`.
    pub(super) fn begin(&self, identity: RingIdentity, origin: Position, position: Position) {
        // Killed in between, the place holds nothing.
        self.store(MAGIC, 0);
        self.store(DEVICE, identity.device);
        self.store(INODE, identity.inode);
        self.store(OFFSET, identity.offset);
        self.store(SIZE, self.size.into());
        self.store(ORIGIN, origin.0.into());
        self.set_state(State::at(position));
        self.store(MAGIC, PLACE_MAGIC);
    }

    /// The front-end believes that the ring was started at `origin` now.
    pub(super) fn set_origin(&self, origin: Position) {
        self.store(ORIGIN, origin.0.into());
    }

    /// The same ring in a map of the memory that says otherwise where it is.
    pub(super) fn set_identity(&self, identity: RingIdentity) {
        let known = [DEVICE, INODE, OFFSET].map(|word| self.load(word));
        if known == [identity.device, identity.inode, identity.offset] {
            // Most changes of memory leave the ring where it is: no reason to lose its position to a kill right here.
            return;
        }
        self.store(MAGIC, 0);
        self.store(DEVICE, identity.device);
        self.store(INODE, identity.inode);
        self.store(OFFSET, identity.offset);
        self.store(MAGIC, PLACE_MAGIC);
    }

    #[inline(always)]
    pub(super) fn set_state(&self, state: State) {
        self.store(STATE, state.encode());
    }

    /// The log's element `at`; `at` is below the ring's size, or it is one of no places.
    #[inline(always)]
    pub(super) fn element(&self, at: u16) -> UsedElement {
        if at < self.size {
            UsedElement(self.load(LOG + usize::from(at)))
        } else {
            UsedElement(0)
        }
    }

    #[inline(always)]
    pub(super) fn set_element(&self, at: u16, element: UsedElement) {
        debug_assert!(at < self.size, "as many elements as places");
        if at < self.size {
            self.store(LOG + usize::from(at), element.0);
        }
    }

    /// Release keeps the stores in program order, which is all that a kill respects.
    #[inline(always)]
    fn store(&self, word: usize, value: u64) {
        #[cfg(test)]
        super::kill::point();
        self.word(word).store(value, Ordering::Release);
    }

    #[inline(always)]
    fn load(&self, word: usize) -> u64 {
        self.word(word).load(Ordering::Relaxed)
    }

    #[inline(always)]
    fn word(&self, word: usize) -> &AtomicU64 {
        // SAFETY: callers pass a word of the header or of the log below `size` (checked by `element` and `set_element`), and the
        // mapping has LOG_BYTES + 8 * size bytes (upheld by `RecordFile::ring`), page-aligned. Only this process writes it.
        unsafe { AtomicU64::from_ptr(self.map.region.as_ptr().cast::<u64>().add(word)) }
    }
}

/// A shared mapping, watched for a file that is cut short: then its pages are zero and the ring goes on without a second life.
#[derive(Debug)]
struct Map {
    /// Dropped before the mapping is undone, as in `guest_memory`.
    _watch: Watch,
    region: MmapRegion,
}

impl Map {
    fn new(file: &Arc<File>, offset: u64, bytes: usize) -> io::Result<Self> {
        let region = MmapRegionBuilder::new(bytes)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_POPULATE)
            .with_file_offset(FileOffset::from_arc(Arc::clone(file), offset))
            .build()
            .map_err(io::Error::other)?;
        let mapped_bytes = bytes.next_multiple_of(PAGE_BYTES as usize);
        Ok(Self {
            _watch: Watch::new(region.as_ptr() as usize, mapped_bytes)?,
            region,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_a_killed_process_began_is_finished_and_others_are_left_alone() {
        let folder =
            vmm_sys_util::tempdir::TempDir::new_with_prefix("/dev/shm/ringswitch-test-").unwrap();
        let path = folder.as_path().join("vm1");
        let whole = PAGE_BYTES + 2 * PLACE_BYTES;
        for begun in [0, FILE_MAGIC.len()] {
            std::fs::write(&path, FILE_MAGIC.get(..begun).unwrap()).unwrap();
            let records = RecordFile::open(folder.as_path(), "vm1", 2).unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().len(), whole);
            records.ring(1, 256).unwrap();
        }
        for foreign in [&FILE_MAGIC[..15], &[0x72; 16], &[0; 17]] {
            std::fs::write(&path, foreign).unwrap();
            let refused = RecordFile::open(folder.as_path(), "vm1", 2);
            assert!(
                matches!(refused, Err(RecordError::Damaged(_))),
                "{refused:?}"
            );
            assert_eq!(std::fs::read(&path).unwrap(), foreign);
        }
    }

    #[test]
    fn a_file_never_gets_shorter() {
        let folder =
            vmm_sys_util::tempdir::TempDir::new_with_prefix("/dev/shm/ringswitch-test-").unwrap();
        let bytes = || {
            std::fs::metadata(folder.as_path().join("vm1"))
                .unwrap()
                .len()
        };
        drop(RecordFile::open(folder.as_path(), "vm1", 4).unwrap());
        let long = bytes();
        drop(RecordFile::open(folder.as_path(), "vm1", 2).unwrap());
        assert_eq!(bytes(), long);
    }
}
