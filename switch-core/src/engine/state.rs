//! What an engine knows while it runs: tables, groups, meters, counters, connections, stations.
//!
//! Shared by all workers and the control thread. Tables, connections and stations guard themselves; groups, defaults and meters are
//! part of a [`Snapshot`], which is replaced as a whole together with the epoch at which tables are looked up.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use foldhash::SharedSeed;
use foldhash::fast::{FoldHasher, SeedableRandomState};

use super::compile::Compiled;
use super::control::EntryCounters;
use super::known::Known;
use super::params::Params;
use crate::conntrack::{Conntrack, FragmentTable};
use crate::mac_table::MacStore;
use crate::maglev::{MemberId, WeightedGroup};
use crate::meter::{Meter, MeterColor};
use crate::table::{ChangeCounters, Epoch, Table};
use crate::time::Millis;

/// The change counter of groups, defaults and meters.
pub(crate) const EXTRAS_COUNTER: u32 = 0;

/// What an entry does, and what it has seen.
#[derive(Debug)]
pub(crate) struct EntryAction {
    pub action: u16,
    /// Belongs to the program.
    pub constant: bool,
    pub params: Params,
    /// For entries that have any; shared by those that have the same and no timeouts.
    pub terms: Option<Arc<Terms>>,
    /// In tables that count or have timeouts; shared with what the entry was before it was modified.
    pub seen: Option<Arc<Seen>>,
}

impl EntryAction {
    /// Whose quota it counts against.
    pub(crate) fn tenant(&self) -> Option<&Arc<str>> {
        self.terms.as_ref()?.tenant.as_ref()
    }

    /// The idle and the hard timeout; 0: none.
    pub(crate) fn timeouts_ms(&self) -> (u32, u32) {
        let terms = self.terms.as_ref();
        terms.map_or((0, 0), |terms| {
            (terms.idle_timeout_ms, terms.hard_timeout_ms)
        })
    }
}

/// On what terms an entry is there.
#[derive(Debug, Default)]
pub(crate) struct Terms {
    pub tenant: Option<Arc<str>>,
    pub idle_timeout_ms: u32,
    pub hard_timeout_ms: u32,
}

/// What an entry has seen.
#[derive(Debug)]
pub(crate) struct Seen {
    frames: AtomicU64,
    bytes: AtomicU64,
    last_ms: AtomicU64,
    added_ms: AtomicU64,
}

impl Seen {
    pub(crate) fn new(now: Millis) -> Self {
        Self {
            frames: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            last_ms: AtomicU64::new(now.0),
            added_ms: AtomicU64::new(now.0),
        }
    }

    /// Goes on from what the entry had seen in another engine: since when it is there, and when its last frame came unless one came
    /// here meanwhile.
    pub(crate) fn restore(&self, counted: EntryCounters, added: Millis, last: Millis) {
        let here = self.last_ms.load(Ordering::Relaxed);
        if self.frames.load(Ordering::Relaxed) == 0 {
            // A frame in this moment wins.
            let _ =
                self.last_ms
                    .compare_exchange(here, last.0, Ordering::Relaxed, Ordering::Relaxed);
        }
        self.added_ms.fetch_min(added.0, Ordering::Relaxed);
        self.frames.fetch_add(counted.frames, Ordering::Relaxed);
        self.bytes.fetch_add(counted.bytes, Ordering::Relaxed);
    }

    pub(crate) fn added(&self) -> Millis {
        Millis(self.added_ms.load(Ordering::Relaxed))
    }

    /// Adds frames, the last of them at `last`.
    pub(crate) fn add(&self, frames: u64, bytes: u64, last: Millis) {
        if frames > 0 {
            self.frames.fetch_add(frames, Ordering::Relaxed);
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
            // Nearly always there is nothing to swap.
            if self.last_ms.load(Ordering::Relaxed) < last.0 {
                self.last_ms.fetch_max(last.0, Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn counters(&self) -> EntryCounters {
        EntryCounters {
            frames: self.frames.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn last(&self) -> Millis {
        Millis(self.last_ms.load(Ordering::Relaxed))
    }
}

/// An array of counters.
#[derive(Debug)]
pub(crate) struct Counts {
    cells: Box<[(AtomicU64, AtomicU64)]>,
}

impl Counts {
    pub(crate) fn new(size: u32) -> Self {
        Self {
            cells: (0..size).map(|_| Default::default()).collect(),
        }
    }

    pub(crate) fn add(&self, index: u32, frames: u64, bytes: u64) {
        if let Some((of_frames, of_bytes)) = self.cells.get(index as usize) {
            of_frames.fetch_add(frames, Ordering::Relaxed);
            of_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    pub(crate) fn get(&self, index: u32) -> Option<EntryCounters> {
        let (frames, bytes) = self.cells.get(index as usize)?;
        Some(EntryCounters {
            frames: frames.load(Ordering::Relaxed),
            bytes: bytes.load(Ordering::Relaxed),
        })
    }

    pub(crate) fn len(&self) -> u32 {
        self.cells.len() as u32
    }
}

/// A weighted group.
#[derive(Debug)]
pub(crate) struct Group {
    pub members: Vec<Backend>,
    pub choice: WeightedGroup,
}

/// A member of a weighted group.
#[derive(Debug)]
pub(crate) struct Backend {
    pub id: MemberId,
    pub weight: u16,
    pub values: Box<[u128]>,
}

/// What changes as a whole.
#[derive(Clone, Debug, Default)]
pub(crate) struct Extras {
    /// By table: the default that applies.
    pub defaults: Arc<Vec<Option<Arc<EntryAction>>>>,
    pub multicast: Arc<HashMap<u16, Arc<[u16]>>>,
    pub groups: Arc<HashMap<(u16, u32), Arc<Group>>>,
    pub meters: Arc<HashMap<(u16, u32), Arc<MeterSetting>>>,
}

/// A meter and the rate it was asked to have.
#[derive(Debug)]
pub(crate) struct MeterSetting {
    pub rate: super::control::MeterRate,
    pub meter: Meter,
}

impl MeterSetting {
    /// Whether a frame is within the rate.
    pub(crate) fn passes(&self, frame_bytes: u32, now: Millis) -> bool {
        self.meter
            .offer(frame_bytes, now.0.saturating_mul(1_000_000))
            == MeterColor::Green
    }
}

impl Extras {
    /// What happens in a table when no entry matches.
    pub(crate) fn default_of(&self, table: u16) -> Option<&Arc<EntryAction>> {
        self.defaults.get(usize::from(table))?.as_ref()
    }

    /// The ports of a multicast group.
    pub(crate) fn multicast(&self, group: u16) -> &[u16] {
        self.multicast.get(&group).map_or(&[], |ports| ports)
    }

    /// The member of a weighted group that a hash chooses.
    pub(crate) fn member(&self, selector: u16, group: u32, hash: u64) -> Option<&[u128]> {
        let group = self.groups.get(&(selector, group))?;
        let chosen = group.choice.select(hash)?;
        let member = group.members.iter().find(|member| member.id == chosen)?;
        Some(&member.values)
    }

    /// A meter, if it has a rate.
    pub(crate) fn meter(&self, array: u16, index: u32) -> Option<&Arc<MeterSetting>> {
        self.meters.get(&(array, index))
    }
}

/// One state of all that operators can change.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub epoch: Epoch,
    pub extras: Extras,
}

/// What an engine knows.
pub(crate) struct State {
    pub program: Compiled,
    pub known: Known,
    pub tables: Vec<Table<EntryAction>>,
    pub changes: Arc<ChangeCounters>,
    /// The epoch of the published snapshot.
    pub published: AtomicU64,
    pub counts: Vec<Counts>,
    pub conntrack: Conntrack,
    pub fragments: FragmentTable,
    pub macs: Arc<MacStore>,
    /// Chooses members of groups; the same for all workers.
    pub selection: SeedableRandomState,
}

impl State {
    /// Hashes what a member is chosen by.
    pub(crate) fn selection_hasher(&self) -> SelectionHasher {
        SelectionHasher(self.selection.build_hasher())
    }
}

/// Keyed hashing of field values.
pub(crate) struct SelectionHasher(FoldHasher<'static>);

impl SelectionHasher {
    pub(crate) fn write(&mut self, value: u128) {
        self.0.write_u128(value);
    }

    pub(crate) fn finish(self) -> u64 {
        self.0.finish()
    }
}

/// The same hash in every process.
pub(crate) fn fixed(seed: u64) -> SeedableRandomState {
    SeedableRandomState::with_seed(seed, SharedSeed::global_fixed())
}
