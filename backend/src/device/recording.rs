//! An [`Attachment`] without a data path: it writes down what the state machine asks for.
//!
//! Stands in for the data path in device tests and under the fuzzer. Not part of the public surface. Kept true: it refuses what
//! the real one refuses, and panics where the state machine asks for what it must not.

use super::attach::{AttachError, Attachment, Exchanged, LostRing, RingStart};
use super::descriptors::BackendSocket;
use super::state::Handled;
use super::state_transfer::{Direction, StateCarrier, StateTransfers, TransferError, Transferred};
use crate::datapath::QueueIndex;
use crate::ring::{
    LogCounts, LogError, LogLayout, RegionLayout, RingError, Translation, is_packed,
};
use rustix::event::{EventfdFlags, epoll, eventfd};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One effect, as the state machine asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // Each is the `Attachment` method of its name.
pub enum Effect {
    SetMemory(Vec<RegionLayout>),
    AddRegion(RegionLayout),
    RemoveRegion(RegionLayout),
    SetLog(LogLayout),
    DropLog,
    SetKick(QueueIndex, bool),
    SetCall(QueueIndex, bool),
    SetError(QueueIndex, bool),
    Start(QueueIndex, RingStart),
    Stop(QueueIndex),
    Enable(QueueIndex),
    Disable(QueueIndex),
    SetFeatures(u64),
    Translate(bool),
    SetBackendChannel,
    MapIo(Translation),
    UnmapIo(u64, u64),
    Inject(Vec<u8>),
    ForgetSession,
}

/// What the double knows and is told to do.
#[derive(Debug, Default)]
#[allow(missing_docs)] // A test's script; each field is named for what it does.
pub struct Recording {
    pub effects: Vec<Effect>,
    pub running: BTreeMap<QueueIndex, RingStart>,
    pub enabled: BTreeSet<QueueIndex>,
    pub memory: Vec<RegionLayout>,
    pub log: Option<LogLayout>,
    /// Descriptors in hand: kicks, calls, errors, by kind and ring.
    pub descriptors: BTreeMap<(&'static str, QueueIndex), OwnedFd>,
    /// Final indices to answer `stop_ring` with.
    pub stop_at: BTreeMap<QueueIndex, u32>,
    pub memory_is_lost: bool,
    /// Rings that will not survive the next change of memory or features.
    pub lose_at_next_change: Vec<QueueIndex>,
    pub refuse_next_map: bool,
    /// Rings are at I/O addresses, and start when all of these are known.
    pub translating: bool,
    /// Translations in hand.
    pub translations: Vec<Translation>,
    /// The next exchange hands this out.
    pub late: Option<Handled>,
    pub transfers: Option<StateTransfers>,
}

/// An [`Attachment`] that writes down what it is asked for, and checks that it is asked only for what is allowed.
#[derive(Clone, Debug)]
pub struct RecordingAttachment {
    recording: Arc<Mutex<Recording>>,
    /// Readable when there is something to be exchanged.
    ready: Option<Arc<OwnedFd>>,
    /// Rung when there is something in the script.
    bell: Option<Arc<OwnedFd>>,
}

impl Default for RecordingAttachment {
    fn default() -> Self {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok();
        let ready = epoll::create(epoll::CreateFlags::CLOEXEC).ok();
        if let (Some(ready), Some(bell)) = (&ready, &bell) {
            let event = epoll::EventData::new_u64(0);
            let _ = epoll::add(ready, bell, event, epoll::EventFlags::IN);
        }
        Self {
            recording: Arc::default(),
            ready: ready.map(Arc::new),
            bell: bell.map(Arc::new),
        }
    }
}

impl RecordingAttachment {
    /// With real transfers of the port's state.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn with_carrier(self, carrier: Arc<dyn StateCarrier>) -> io::Result<Self> {
        let transfers = StateTransfers::new(carrier)?;
        if let Some(ready) = &self.ready {
            let event = epoll::EventData::new_u64(1);
            epoll::add(ready, transfers.bell(), event, epoll::EventFlags::IN)?;
        }
        self.recording().transfers = Some(transfers);
        Ok(self)
    }
}

impl RecordingAttachment {
    /// The script and the record; shared with every clone.
    pub fn recording(&self) -> MutexGuard<'_, Recording> {
        self.recording
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What came of the request that waits for its answer.
    pub fn answer_later(&self, handled: Handled) {
        self.recording().late = Some(handled);
        if let Some(bell) = &self.bell {
            let _ = rustix::io::write(bell, &1_u64.to_ne_bytes());
        }
    }

    /// Everything asked for since the last call.
    pub fn take_effects(&self) -> Vec<Effect> {
        std::mem::take(&mut self.recording().effects)
    }
}

impl Recording {
    fn note(&mut self, effect: Effect) {
        // A fuzzer's session is long; the record is for tests, which are short.
        if self.effects.len() < 4096 {
            self.effects.push(effect);
        }
    }

    fn keep(
        &mut self,
        kind: &'static str,
        queue: QueueIndex,
        descriptor: Option<OwnedFd>,
    ) -> Result<bool, AttachError> {
        let Some(descriptor) = descriptor else {
            self.descriptors.remove(&(kind, queue));
            return Ok(false);
        };
        if !is_eventfd(&descriptor) {
            return Err(AttachError::Eventfd(io::Error::from(
                io::ErrorKind::InvalidInput,
            )));
        }
        self.descriptors.insert((kind, queue), descriptor);
        Ok(true)
    }

    /// The double's memory map takes what a real one must refuse too: nothing empty, nothing that wraps, no overlap.
    fn check_map(&mut self, regions: &[RegionLayout]) -> Result<(), AttachError> {
        let refused = std::mem::take(&mut self.refuse_next_map);
        let valid = |region: &RegionLayout| {
            region.size_bytes != 0
                && region
                    .guest_phys_addr
                    .checked_add(region.size_bytes)
                    .is_some()
                && region.user_addr.checked_add(region.size_bytes).is_some()
        };
        let overlap = |a: &RegionLayout, b: &RegionLayout| {
            a.guest_phys_addr < b.guest_phys_addr.saturating_add(b.size_bytes)
                && b.guest_phys_addr < a.guest_phys_addr.saturating_add(a.size_bytes)
        };
        let overlaps = (1..=regions.len()).any(|rest| {
            let (before, after) = regions.split_at(rest);
            before
                .last()
                .is_some_and(|region| after.iter().any(|other| overlap(region, other)))
        });
        if refused || overlaps || !regions.iter().all(valid) {
            return Err(AttachError::NoMemory);
        }
        Ok(())
    }

    fn lose_rings(&mut self) -> Vec<LostRing> {
        let mut lost = std::mem::take(&mut self.lose_at_next_change);
        lost.retain(|queue| self.running.remove(queue).is_some());
        lost.into_iter()
            .map(|queue| LostRing {
                queue,
                reason: "its addresses are outside the memory".to_owned(),
            })
            .collect()
    }
}

/// As the kernel names it.
fn is_eventfd(descriptor: &OwnedFd) -> bool {
    std::fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))
        .is_ok_and(|name| name.as_os_str() == "anon_inode:[eventfd]")
}

impl Attachment for RecordingAttachment {
    fn set_memory(
        &mut self,
        regions: Vec<(RegionLayout, OwnedFd)>,
    ) -> Result<Vec<LostRing>, AttachError> {
        let layouts: Vec<_> = regions.iter().map(|(layout, _)| *layout).collect();
        let mut recording = self.recording();
        recording.check_map(&layouts)?;
        recording.note(Effect::SetMemory(layouts.clone()));
        recording.memory = layouts;
        Ok(recording.lose_rings())
    }

    fn add_region(
        &mut self,
        layout: RegionLayout,
        _file: OwnedFd,
    ) -> Result<Vec<LostRing>, AttachError> {
        let mut recording = self.recording();
        let mut layouts = recording.memory.clone();
        layouts.push(layout);
        recording.check_map(&layouts)?;
        recording.note(Effect::AddRegion(layout));
        recording.memory = layouts;
        Ok(recording.lose_rings())
    }

    fn remove_region(&mut self, layout: RegionLayout) -> Result<Vec<LostRing>, AttachError> {
        let mut recording = self.recording();
        assert!(
            recording.memory.contains(&layout),
            "a region is removed as it was added"
        );
        recording.note(Effect::RemoveRegion(layout));
        recording.memory.retain(|kept| *kept != layout);
        Ok(recording.lose_rings())
    }

    fn set_log(&mut self, layout: LogLayout, _file: OwnedFd) -> Result<(), AttachError> {
        let mut recording = self.recording();
        if layout.size_bytes == 0 {
            return Err(LogError::NotMemory.into());
        }
        recording.note(Effect::SetLog(layout));
        recording.log = Some(layout);
        Ok(())
    }

    fn drop_log(&mut self) {
        let mut recording = self.recording();
        assert!(recording.log.is_some(), "only a log that is there goes");
        recording.log = None;
        recording.note(Effect::DropLog);
    }

    fn log_counts(&self) -> Option<Arc<LogCounts>> {
        None
    }

    fn memory_lost(&self) -> bool {
        self.recording().memory_is_lost
    }

    fn set_kick(&mut self, queue: QueueIndex, kick: Option<OwnedFd>) -> Result<(), AttachError> {
        let mut recording = self.recording();
        let some = recording.keep("kick", queue, kick)?;
        recording.note(Effect::SetKick(queue, some));
        Ok(())
    }

    fn set_call(&mut self, queue: QueueIndex, call: Option<OwnedFd>) -> Result<(), AttachError> {
        let mut recording = self.recording();
        let some = recording.keep("call", queue, call)?;
        recording.note(Effect::SetCall(queue, some));
        Ok(())
    }

    fn set_error(&mut self, queue: QueueIndex, error: Option<OwnedFd>) -> Result<(), AttachError> {
        let mut recording = self.recording();
        let some = recording.keep("error", queue, error)?;
        recording.note(Effect::SetError(queue, some));
        Ok(())
    }

    fn start_ring(&mut self, queue: QueueIndex, start: &RingStart) -> Result<(), AttachError> {
        let mut recording = self.recording();
        assert!(
            !recording.running.contains_key(&queue),
            "a running ring is stopped before it starts again"
        );
        assert!(
            !recording.memory.is_empty(),
            "a ring starts only with memory"
        );
        assert!(
            is_packed(start.features) || start.size.is_power_of_two() && start.size >= 2,
            "a ring starts only with a valid size"
        );
        let table = start.addresses.descriptor_table;
        let known = |entry: &Translation| table.wrapping_sub(entry.iova) < entry.size_bytes;
        if recording.translating && !recording.translations.iter().any(known) {
            return Err(RingError::Pending { addr: table }.into());
        }
        let fits = |region: &RegionLayout| {
            table >= region.user_addr && table - region.user_addr < region.size_bytes
        };
        if !recording.translating && !recording.memory.iter().any(fits) {
            return Err(AttachError::NoMemory);
        }
        recording.note(Effect::Start(queue, *start));
        recording.running.insert(queue, *start);
        Ok(())
    }

    fn stop_ring(&mut self, queue: QueueIndex) -> Option<u32> {
        let mut recording = self.recording();
        recording.note(Effect::Stop(queue));
        let started = recording.running.remove(&queue)?;
        let stop_at = recording.stop_at.get(&queue).copied();
        Some(stop_at.unwrap_or(started.base))
    }

    fn is_running(&self, queue: QueueIndex) -> bool {
        self.recording().running.contains_key(&queue)
    }

    fn enable_ring(&mut self, queue: QueueIndex) {
        let mut recording = self.recording();
        recording.enabled.insert(queue);
        recording.note(Effect::Enable(queue));
    }

    fn disable_ring(&mut self, queue: QueueIndex) {
        let mut recording = self.recording();
        recording.enabled.remove(&queue);
        recording.note(Effect::Disable(queue));
    }

    fn set_features(&mut self, features: u64) -> Vec<LostRing> {
        let mut recording = self.recording();
        recording.note(Effect::SetFeatures(features));
        recording.lose_rings()
    }

    fn translate(&mut self, on: bool) -> Vec<LostRing> {
        let mut recording = self.recording();
        assert_ne!(recording.translating, on, "only a change is told");
        recording.translating = on;
        recording.note(Effect::Translate(on));
        recording.lose_rings()
    }

    fn set_backend_channel(&mut self, _socket: BackendSocket) -> Result<(), AttachError> {
        self.recording().note(Effect::SetBackendChannel);
        Ok(())
    }

    fn map_io(&mut self, translation: Translation) -> Result<Vec<QueueIndex>, AttachError> {
        let mut recording = self.recording();
        if translation.user_addr == 0 {
            return Err(AttachError::NoMemory);
        }
        recording.note(Effect::MapIo(translation));
        recording.translations.push(translation);
        Ok(Vec::new())
    }

    fn unmap_io(&mut self, first: u64, last: u64) -> Vec<QueueIndex> {
        let mut recording = self.recording();
        recording.note(Effect::UnmapIo(first, last));
        let within = |entry: &Translation| entry.iova >= first && entry.iova <= last;
        let (gone, left) = std::mem::take(&mut recording.translations)
            .into_iter()
            .partition::<Vec<_>, _>(within);
        recording.translations = left;
        let lost = |start: &RingStart| {
            let table = start.addresses.descriptor_table;
            gone.iter()
                .any(|entry| table.wrapping_sub(entry.iova) < entry.size_bytes)
        };
        let running = recording.running.iter();
        let lost = running
            .filter(|(_, start)| lost(start))
            .map(|(queue, _)| *queue);
        lost.collect()
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        self.ready.as_ref().map(|ready| ready.as_fd())
    }

    fn exchange(&mut self) -> Exchanged {
        if let Some(bell) = &self.bell {
            let _ = rustix::io::read(bell, &mut [0; 8]);
        }
        if let Some(transfers) = &self.recording().transfers {
            transfers.silence();
        }
        Exchanged {
            rings_may_start: false,
            late: self.recording().late.take(),
        }
    }

    fn begin_transfer(
        &mut self,
        direction: Direction,
        pipe: BackendSocket,
    ) -> Result<(), TransferError> {
        let mut recording = self.recording();
        assert!(recording.running.is_empty(), "rings are stopped meanwhile");
        let transfers = recording.transfers.as_mut();
        let transfers = transfers.ok_or(TransferError::NotOffered)?;
        transfers.begin(direction, pipe)
    }

    fn transferred(&mut self) -> Option<Transferred> {
        match &mut self.recording().transfers {
            Some(transfers) => transfers.outcome(),
            None => Some(Err(TransferError::NotBegun)),
        }
    }

    fn inject(&mut self, frame: &[u8]) {
        self.recording().note(Effect::Inject(frame.to_vec()));
    }

    fn forget_session(&mut self) {
        let mut recording = self.recording();
        assert!(
            recording.running.is_empty(),
            "every ring is stopped before its memory goes"
        );
        recording.memory.clear();
        recording.log = None;
        recording.translating = false;
        recording.translations.clear();
        recording.descriptors.clear();
        recording.late = None;
        if let Some(transfers) = &mut recording.transfers {
            transfers.forget();
        }
        recording.note(Effect::ForgetSession);
    }
}
