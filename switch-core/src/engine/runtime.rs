//! An engine: one program and all that operators put into it, shared by workers and the control thread.
//!
//! Changes come in batches. A batch is resolved and staged for the next epoch; when all of it fits, the epoch is published at once for
//! all tables, groups and defaults, so no frame sees half of it, and then the change counters tell the workers' caches what is
//! stale. Control operations exclude each other; workers wait for none of them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::compile::{CompileError, Compiled, Table as TableSpec};
use super::control::{
    EntryCounters, EntryName, GroupMember, ListedEntry, ListedTable, MeterRate, PortNames,
    TableEntry, Update, WriteError, WriteErrorKind,
};
use super::entry::{
    Fault, key_field, number, refused, resolve_key, resolve_params, written_key, written_params,
};
use super::known::Known;
use super::literal::Literal;
use super::model::{ActionCall, Format};
use super::params::{Params, Unpacked};
use super::state::{
    Backend, Counts, EXTRAS_COUNTER, EntryAction, Extras, Group, MeterSetting, Seen, Snapshot,
    State, Terms, fixed,
};
use super::validate::ValidProgram;
use crate::conntrack::{Conntrack, ConntrackConfig, FragmentTable};
use crate::mac_table::{Limits, MacMoves, MacStats, MacStore};
use crate::maglev::{Member, MemberId, TableSize, WeightedGroup};
use crate::meter::{Meter, MeterConfig};
use crate::port::PortId;
use crate::rate_limit::RateLimit;
use crate::switch::Switch;
use crate::table::{ChangeCounters, CounterRange, EntryHandle, EntryKey, Epoch, Table, TableShape};
use crate::time::Millis;

/// Change counters of all tables together.
const CHANGE_COUNTERS: u32 = 1 << 16;
/// Of one table at most.
const MOST_COUNTERS_PER_TABLE: u32 = 4096;
/// Epochs that stay readable behind the published one.
const EPOCHS_KEPT: u64 = 64;
/// Updates of a batch at most.
pub const MAX_UPDATES: usize = 100_000;

/// An engine's bounds.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Connections.
    pub conntrack: ConntrackConfig,
    /// Stations that are known at once.
    pub mac_table_capacity: usize,
    /// How many of them one port may have.
    pub mac_limit_per_port: usize,
    /// How long after its last frame a station is forgotten.
    pub mac_ageing: Millis,
    /// How fast a port may make a worker learn stations.
    pub learn_rate: RateLimit,
    /// Entries that each tenant may have; those without a tenant are not counted.
    pub tenant_quota: usize,
    /// Other quotas, by tenant.
    pub tenant_quotas: HashMap<String, usize>,
    /// A random number of this process, so that nobody knows what shares a place in a table.
    pub seed: u64,
}

impl Default for EngineConfig {
    fn default() -> Self {
        let switch = crate::switch::SwitchConfig::default();
        Self {
            conntrack: ConntrackConfig::default(),
            mac_table_capacity: switch.mac_table_capacity,
            mac_limit_per_port: switch.mac_limit_per_port,
            mac_ageing: switch.mac_ageing,
            learn_rate: switch.learn_rate,
            tenant_quota: 1_000_000,
            tenant_quotas: HashMap::new(),
            seed: std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0),
        }
    }
}

/// Why an engine could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The program.
    #[error(transparent)]
    Program(#[from] CompileError),
    /// A table of it.
    #[error("table {table}: {reason}")]
    Table {
        /// Its name.
        table: String,
        /// What is wrong.
        reason: String,
    },
}

/// An entry as its table has it.
pub(super) type Entry = crate::table::Entry<EntryAction>;

/// What only the control side knows.
#[derive(Default)]
struct Control {
    /// Those that have entries.
    tenants: HashMap<Arc<str>, Tenant>,
    /// Entries that go by themselves, by table and handle.
    timed: HashMap<(u16, u64), ()>,
}

/// A tenant that has entries.
struct Tenant {
    entries: usize,
    /// Of its entries that have no timeouts.
    terms: Arc<Terms>,
}

/// How a batch changes what a tenant has.
struct TenantChange {
    entries: isize,
    terms: Arc<Terms>,
}

/// Whether tenants may have more entries than their quotas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum QuotaRule {
    Enforced,
    /// For entries that were acknowledged before a quota was lowered.
    Lifted,
}

/// A match-action engine.
pub struct Engine {
    valid: ValidProgram,
    config: EngineConfig,
    pub(crate) state: State,
    snapshot: RwLock<Arc<Snapshot>>,
    /// Epochs before this one may have lost entries.
    collected: AtomicU64,
    control: Mutex<Control>,
}

/// What a batch has changed so far.
struct Staged {
    /// Whose entries they are.
    origin: Origin,
    at: Epoch,
    extras: Extras,
    extras_changed: bool,
    tables: Vec<bool>,
    quotas: QuotaRule,
    tenants: HashMap<Arc<str>, TenantChange>,
    timed: Vec<(u16, u64)>,
    gone: Vec<(u16, u64)>,
}

/// An entry that an update wants, in the form that tables hold.
pub(super) struct Wanted<'a> {
    number: usize,
    spec: &'a TableSpec,
    pub(super) table: &'a Table<EntryAction>,
    pub(super) key: EntryKey,
    pub(super) action: u16,
    pub(super) params: Params,
    entry: &'a TableEntry,
}

impl Engine {
    /// An engine for a program, with the program's own entries.
    ///
    /// # Errors
    /// When the program cannot be run.
    pub fn new(valid: ValidProgram, config: EngineConfig) -> Result<Self, EngineError> {
        let refresh = Millis(1000).min(Millis(config.mac_ageing.0 / 3));
        let macs = Arc::new(MacStore::new(Limits {
            capacity: config.mac_table_capacity,
            per_port: config.mac_limit_per_port,
            ageing: config.mac_ageing,
            refresh,
        }));
        Self::with_stations(valid, config, macs)
    }

    /// An engine that knows the stations which a switch knows: to explain what the compiled-in program does by the same program as
    /// data. It is for questions; frames and [`Self::expire`] are the switch's.
    ///
    /// # Errors
    /// When the program cannot be run.
    pub fn beside(
        valid: ValidProgram,
        config: EngineConfig,
        switch: &Switch,
    ) -> Result<Self, EngineError> {
        Self::with_stations(valid, config, Arc::clone(switch.macs()))
    }

    fn with_stations(
        valid: ValidProgram,
        config: EngineConfig,
        macs: Arc<MacStore>,
    ) -> Result<Self, EngineError> {
        let program = Compiled::new(valid.program())?;
        let changes = Arc::new(ChangeCounters::new(CHANGE_COUNTERS as usize));
        let share = (CHANGE_COUNTERS - 1) / (program.tables.len().max(1) as u32);
        let count = share.clamp(1, MOST_COUNTERS_PER_TABLE);
        let mut tables = Vec::new();
        for (number, spec) in program.tables.iter().enumerate() {
            let refused = |reason: String| EngineError::Table {
                table: spec.name.clone(),
                reason,
            };
            let key = (0..spec.key.len())
                .filter_map(|field| key_field(spec, field))
                .collect();
            let shape =
                TableShape::new(key, spec.size).map_err(|error| refused(error.to_string()))?;
            let range = CounterRange {
                first: EXTRAS_COUNTER + 1 + number as u32 * count,
                count,
            };
            let table = Table::new(shape, Arc::clone(&changes), range, config.seed)
                .map_err(|error| refused(error.to_string()))?;
            tables.push(table);
        }
        let state = State {
            known: Known::new(&program),
            tables,
            changes,
            published: AtomicU64::new(0),
            counts: program
                .counters
                .iter()
                .map(|(_, size)| Counts::new(*size))
                .collect(),
            conntrack: Conntrack::new(config.conntrack, config.seed),
            fragments: FragmentTable::new(FragmentTable::DEFAULT_TIMEOUT, config.seed),
            macs,
            selection: fixed(SELECTION_SEED),
            program,
        };
        let defaults = vec![None; state.tables.len()];
        let engine = Self {
            valid,
            config,
            state,
            snapshot: RwLock::new(Arc::new(Snapshot {
                epoch: Epoch(0),
                extras: Extras {
                    defaults: Arc::new(defaults),
                    ..Extras::default()
                },
            })),
            collected: AtomicU64::new(0),
            control: Mutex::new(Control::default()),
        };
        engine.install()?;
        Ok(engine)
    }

    /// Puts in what the program brings: constant entries and defaults.
    fn install(&self) -> Result<(), EngineError> {
        let control = self.lock();
        let mut staged = self.begin(&control, Origin::Program);
        let program = self.valid.program();
        for (number, table) in program.tables.iter().enumerate() {
            let refused = |fault: Fault| EngineError::Table {
                table: table.name.clone(),
                reason: format!("{}: {}; {}", fault.place, fault.reason, fault.remedy),
            };
            if let Some(call) = &table.default_action {
                let default = self
                    .default_action(number, Some(call), &NoPorts)
                    .map_err(refused)?;
                put_default(&mut staged.extras, number, default);
            }
            for entry in &table.const_entries {
                let entry = TableEntry {
                    table: table.name.clone(),
                    key: entry.key.clone(),
                    priority: entry.priority,
                    action: entry.action.clone(),
                    params: entry.params.clone(),
                    idle_timeout_ms: 0,
                    hard_timeout_ms: 0,
                    tenant: None,
                };
                let wanted = self.resolve(&entry, &NoPorts).map_err(refused)?;
                self.insert(wanted, &mut staged, &control, Millis(0))
                    .map_err(refused)?;
            }
        }
        staged.extras_changed = true;
        self.publish(control, staged);
        Ok(())
    }

    /// The program.
    pub fn program(&self) -> &ValidProgram {
        &self.valid
    }

    /// Its bounds.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// Connections.
    pub fn conntrack(&self) -> &Conntrack {
        &self.state.conntrack
    }

    /// The names of the reasons for which the program sends frames to the controller, by number.
    pub fn punt_reasons(&self) -> &[String] {
        &self.state.program.punt_reasons
    }

    /// A number that is another after every change of entries, groups and settings.
    pub fn version(&self) -> u64 {
        self.state.published.load(Ordering::Acquire)
    }

    /// Makes the changes, all or none.
    ///
    /// # Errors
    /// The first update that cannot be made, and why. Nothing has changed then.
    pub fn write(
        &self,
        updates: &[Update],
        names: &dyn PortNames,
        now: Millis,
    ) -> Result<(), WriteError> {
        let control = self.lock();
        let staged = self.stage(updates, &control, (names, now))?;
        self.publish(control, staged);
        Ok(())
    }

    /// Makes changes that follow from configuration, all or none: their entries belong to the program, so that operators see them
    /// but cannot change them.
    ///
    /// # Errors
    /// The first update that cannot be made, and why. Nothing has changed then.
    pub fn write_derived(
        &self,
        updates: &[Update],
        names: &dyn PortNames,
        now: Millis,
    ) -> Result<(), WriteError> {
        let control = self.lock();
        let staged = self.begin(&control, Origin::Program);
        let staged = self.stage_in(staged, updates, &control, (names, now))?;
        self.publish(control, staged);
        Ok(())
    }

    /// Makes changes that were acknowledged by an earlier process, all or none: a tenant whose quota was lowered since keeps what it
    /// has.
    ///
    /// # Errors
    /// As [`Self::write`], but for quotas.
    pub fn restore(
        &self,
        updates: &[Update],
        names: &dyn PortNames,
        now: Millis,
    ) -> Result<(), WriteError> {
        let control = self.lock();
        let mut staged = self.begin(&control, Origin::Operator);
        staged.quotas = QuotaRule::Lifted;
        let staged = self.stage_in(staged, updates, &control, (names, now))?;
        self.publish(control, staged);
        Ok(())
    }

    /// Whether the changes could be made now.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn check(
        &self,
        updates: &[Update],
        names: &dyn PortNames,
        now: Millis,
    ) -> Result<(), WriteError> {
        let control = self.lock();
        let staged = self.stage(updates, &control, (names, now))?;
        self.unstage(&staged);
        Ok(())
    }

    /// Stages changes, calls `look` with the state they would make, and takes them back.
    pub(crate) fn what_if<T>(
        &self,
        updates: &[Update],
        (names, now): (&dyn PortNames, Millis),
        look: impl FnOnce(&Snapshot) -> T,
    ) -> Result<T, WriteError> {
        let control = self.lock();
        let staged = self.stage(updates, &control, (names, now))?;
        let snapshot = Snapshot {
            epoch: staged.at,
            extras: staged.extras.clone(),
        };
        let answer = look(&snapshot);
        self.unstage(&staged);
        Ok(answer)
    }

    fn lock(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is published now.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        let snapshot = self.snapshot.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&snapshot)
    }

    /// Whether a snapshot is the one that is published now.
    pub(crate) fn is_published(&self, snapshot: &Snapshot) -> bool {
        self.state.published.load(Ordering::Acquire) == snapshot.epoch.0
    }

    /// Whether what was looked up at a snapshot's epoch was all there.
    pub(crate) fn is_readable(&self, snapshot: &Snapshot) -> bool {
        self.collected.load(Ordering::Acquire) <= snapshot.epoch.0
    }

    fn begin(&self, _: &MutexGuard<'_, Control>, origin: Origin) -> Staged {
        let snapshot = self.snapshot();
        Staged {
            origin,
            at: Epoch(snapshot.epoch.0 + 1),
            extras: snapshot.extras.clone(),
            extras_changed: false,
            tables: vec![false; self.state.tables.len()],
            quotas: QuotaRule::Enforced,
            tenants: HashMap::new(),
            timed: Vec::new(),
            gone: Vec::new(),
        }
    }

    fn stage(
        &self,
        updates: &[Update],
        control: &MutexGuard<'_, Control>,
        at: (&dyn PortNames, Millis),
    ) -> Result<Staged, WriteError> {
        let staged = self.begin(control, Origin::Operator);
        self.stage_in(staged, updates, control, at)
    }

    fn stage_in(
        &self,
        mut staged: Staged,
        updates: &[Update],
        control: &MutexGuard<'_, Control>,
        (names, now): (&dyn PortNames, Millis),
    ) -> Result<Staged, WriteError> {
        if updates.len() > MAX_UPDATES {
            return Err(Fault::invalid(
                "updates",
                format!("there are {}", updates.len()),
                format!("send at most {MAX_UPDATES} in a batch"),
            )
            .at(MAX_UPDATES));
        }
        for (index, update) in updates.iter().enumerate() {
            if let Err(fault) = self.stage_one(update, &mut staged, control, (names, now)) {
                self.unstage(&staged);
                return Err(fault.at(index));
            }
        }
        Ok(staged)
    }

    fn unstage(&self, staged: &Staged) {
        for (table, _) in self
            .state
            .tables
            .iter()
            .zip(&staged.tables)
            .filter(|(_, touched)| **touched)
        {
            table.unstage(staged.at);
        }
    }

    fn publish(&self, mut control: MutexGuard<'_, Control>, staged: Staged) {
        let at = staged.at;
        let next = Arc::new(Snapshot {
            epoch: at,
            extras: staged.extras,
        });
        {
            let mut snapshot = self
                .snapshot
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            *snapshot = next;
            self.state.published.store(at.0, Ordering::Release);
        }
        let oldest = Epoch(at.0.saturating_sub(EPOCHS_KEPT));
        if staged.extras_changed {
            self.state.changes.bump(EXTRAS_COUNTER);
        }
        for (table, _) in self
            .state
            .tables
            .iter()
            .zip(&staged.tables)
            .filter(|(_, touched)| **touched)
        {
            table.bump_staged(at);
        }
        self.collected.fetch_max(oldest.0, Ordering::AcqRel);
        for (table, _) in self
            .state
            .tables
            .iter()
            .zip(&staged.tables)
            .filter(|(_, touched)| **touched)
        {
            table.collect(oldest);
        }
        for (name, change) in staged.tenants {
            let before = control.tenants.get(&name).map_or(0, |had| had.entries);
            let entries = before.saturating_add_signed(change.entries);
            if entries == 0 {
                control.tenants.remove(&name);
            } else {
                let terms = change.terms;
                control.tenants.insert(name, Tenant { entries, terms });
            }
        }
        for timed in staged.timed {
            control.timed.insert(timed, ());
        }
        for gone in staged.gone {
            control.timed.remove(&gone);
        }
    }

    fn stage_one(
        &self,
        update: &Update,
        staged: &mut Staged,
        control: &Control,
        (names, now): (&dyn PortNames, Millis),
    ) -> Result<(), Fault> {
        match update {
            Update::Insert(entry) => {
                let wanted = self.resolve(entry, names)?;
                self.insert(wanted, staged, control, now)
            }
            Update::Modify(entry) => {
                let wanted = self.resolve(entry, names)?;
                let before = self.find(wanted.spec, (wanted.table, &wanted.key), staged.at)?;
                let before = changeable(before, staged.origin)?;
                self.modify(wanted, &before, (staged, control), now)
            }
            Update::Put(entry) => {
                let wanted = self.resolve(entry, names)?;
                match self.find(wanted.spec, (wanted.table, &wanted.key), staged.at)? {
                    Some(before) => {
                        let before = changeable(Some(before), staged.origin)?;
                        self.modify(wanted, &before, (staged, control), now)
                    }
                    None => self.insert(wanted, staged, control, now),
                }
            }
            Update::Delete(name) => self.delete(name, (staged, control), names),
            Update::Clear { table } => self.clear(table, staged, control),
            Update::SetDefault { table, default } => {
                let (number, _) = self.table(table)?;
                let declared = self.valid.program().tables.get(number);
                if declared.is_some_and(|table| table.const_default) {
                    return Err(Fault::new(
                        "default",
                        WriteErrorKind::Constant,
                        "the program fixes the default of this table",
                        "change the program",
                    ));
                }
                let call = default
                    .as_ref()
                    .or_else(|| declared.and_then(|table| table.default_action.as_ref()));
                let default = self.default_action(number, call, names)?;
                put_default(&mut staged.extras, number, default);
                staged.extras_changed = true;
                Ok(())
            }
            Update::SetMulticast { group, ports } => set_multicast(staged, (*group, ports), names),
            Update::SetGroup {
                selector,
                group,
                members,
            } => self.set_group(staged, (selector, *group, members), names),
            Update::SetMeter { meter, index, rate } => {
                self.set_meter(staged, (meter, *index), rate.as_ref())
            }
        }
    }

    pub(super) fn table(&self, name: &str) -> Result<(usize, &TableSpec), Fault> {
        let number = self.state.program.table(name);
        number
            .and_then(|number| Some((number, self.state.program.tables.get(number)?)))
            .ok_or_else(|| {
                Fault::new(
                    "table",
                    WriteErrorKind::NotFound,
                    format!("the program has no table `{name}`"),
                    "`ringswitch table list` shows its tables",
                )
            })
    }

    /// An entry's table, key, action and arguments.
    pub(super) fn resolve<'a>(
        &'a self,
        entry: &'a TableEntry,
        names: &dyn PortNames,
    ) -> Result<Wanted<'a>, Fault> {
        let (number, spec) = self.table(&entry.table)?;
        let table = self.contents(number)?;
        let key = resolve_key(spec, &entry.key, entry.priority, names)?;
        let (action, params) = self.call(spec, (&entry.action, &entry.params), None, names)?;
        if (entry.idle_timeout_ms != 0 || entry.hard_timeout_ms != 0) && !spec.timeouts {
            return Err(Fault::invalid(
                "idle_timeout_ms",
                format!("entries of table {} have no timeouts", spec.name),
                "leave timeouts out, or set `timeouts` in the program",
            ));
        }
        Ok(Wanted {
            number,
            spec,
            table,
            key,
            action,
            params,
            entry,
        })
    }

    fn contents(&self, number: usize) -> Result<&Table<EntryAction>, Fault> {
        let table = self.state.tables.get(number);
        table.ok_or_else(|| Fault::invalid("table", "it holds nothing", "name another"))
    }

    fn find(
        &self,
        spec: &TableSpec,
        (table, key): (&Table<EntryAction>, &EntryKey),
        at: Epoch,
    ) -> Result<Option<Entry>, Fault> {
        table.find(key, at).map_err(|error| refused(&error, spec))
    }

    /// Whether a tenant that the batch knows may have an entry more.
    fn check_quota(&self, name: &str, staged: &Staged, control: &Control) -> Result<(), Fault> {
        let quotas = &self.config.tenant_quotas;
        let quota = quotas.get(name).copied();
        let quota = quota.unwrap_or(self.config.tenant_quota);
        let before = control.tenants.get(name).map_or(0, |had| had.entries);
        let change = staged.tenants.get(name).map_or(0, |change| change.entries);
        let has = before.saturating_add_signed(change);
        if staged.quotas == QuotaRule::Lifted || has < quota {
            return Ok(());
        }
        Err(Fault::new(
            "tenant",
            WriteErrorKind::Full,
            format!("tenant {name} has {has} entries, and may have {quota}"),
            format!(
                "delete some of its entries, or raise max_entries in [tenant.{name}] of the configuration"
            ),
        ))
    }

    /// Resolves an action of the table, or the one that may be its default besides.
    fn call(
        &self,
        spec: &TableSpec,
        (action, given): (&str, &BTreeMap<String, Literal>),
        also: Option<&str>,
        names: &dyn PortNames,
    ) -> Result<(u16, Params), Fault> {
        let program = &self.state.program;
        let number = program
            .action(action)
            .map(|number| number as u16)
            .filter(|number| spec.actions.contains(number) || also == Some(action));
        let Some(number) = number else {
            let known: Vec<&str> = spec
                .actions
                .iter()
                .filter_map(|&action| program.actions.get(usize::from(action)))
                .map(|action| action.name.as_str())
                .chain(also)
                .collect();
            return Err(Fault::invalid(
                "action",
                format!("table {} has no action `{action}`", spec.name),
                format!("use {}", known.join(", ")),
            ));
        };
        let params = program
            .actions
            .get(usize::from(number))
            .map_or(&[][..], |action| &action.params);
        let values = resolve_params(params, given, names)?;
        Ok((number, Params::from(&*values)))
    }

    fn insert(
        &self,
        wanted: Wanted<'_>,
        staged: &mut Staged,
        control: &Control,
        now: Millis,
    ) -> Result<(), Fault> {
        let Wanted {
            number,
            spec,
            table,
            entry,
            ..
        } = wanted;
        if let Some(name) = &entry.tenant {
            know(name, staged, control);
            self.check_quota(name, staged, control)?;
        }
        let value = EntryAction {
            action: wanted.action,
            constant: staged.origin == Origin::Program,
            params: wanted.params,
            terms: terms(entry, staged),
            seen: (spec.counters || spec.timeouts).then(|| Arc::new(Seen::new(now))),
        };
        let is_timed = value.timeouts_ms() != (0, 0);
        touch(staged, number);
        let handle = table
            .stage_insert(&wanted.key, value, staged.at)
            .map_err(|error| refused(&error, spec))?;
        if let Some(tenant) = &entry.tenant {
            count(staged, tenant, 1);
        }
        if is_timed {
            staged.timed.push((number as u16, handle.get()));
        }
        Ok(())
    }

    fn modify(
        &self,
        wanted: Wanted<'_>,
        before: &EntryAction,
        (staged, control): (&mut Staged, &Control),
        now: Millis,
    ) -> Result<(), Fault> {
        let Wanted {
            number,
            spec,
            table,
            entry,
            ..
        } = wanted;
        let (old, new) = (before.tenant().map(|name| &**name), entry.tenant.as_deref());
        for name in [old, new].into_iter().flatten() {
            know(name, staged, control);
        }
        if let Some(new) = new.filter(|_| new != old) {
            self.check_quota(new, staged, control)?;
        }
        let value = EntryAction {
            action: wanted.action,
            constant: staged.origin == Origin::Program,
            params: wanted.params,
            terms: terms(entry, staged),
            seen: before
                .seen
                .clone()
                .or_else(|| (spec.counters || spec.timeouts).then(|| Arc::new(Seen::new(now)))),
        };
        let (was_timed, is_timed) = (
            before.timeouts_ms() != (0, 0),
            value.timeouts_ms() != (0, 0),
        );
        touch(staged, number);
        let key = &wanted.key;
        let handle = table
            .stage_replace(key, value, staged.at)
            .map_err(|error| refused(&error, spec))?;
        if new != old {
            for (name, change) in [(new, 1), (old, -1)] {
                if let Some(name) = name {
                    count(staged, name, change);
                }
            }
        }
        if is_timed {
            staged.timed.push((number as u16, handle.get()));
        } else if was_timed {
            staged.gone.push((number as u16, handle.get()));
        }
        Ok(())
    }

    fn delete(
        &self,
        name: &EntryName,
        (staged, control): (&mut Staged, &Control),
        names: &dyn PortNames,
    ) -> Result<(), Fault> {
        let (number, spec) = self.table(&name.table)?;
        let table = self.contents(number)?;
        let key = resolve_key(spec, &name.key, name.priority, names)?;
        let before = changeable(self.find(spec, (table, &key), staged.at)?, staged.origin)?;
        self.remove(number, spec, (&key, &before), (staged, control))
    }

    fn remove(
        &self,
        number: usize,
        spec: &TableSpec,
        (key, before): (&EntryKey, &EntryAction),
        (staged, control): (&mut Staged, &Control),
    ) -> Result<(), Fault> {
        touch(staged, number);
        let handle = self
            .contents(number)?
            .stage_remove(key, staged.at)
            .map_err(|error| refused(&error, spec))?;
        if let Some(tenant) = before.tenant() {
            know(tenant, staged, control);
            count(staged, tenant, -1);
        }
        if before.timeouts_ms() != (0, 0) {
            staged.gone.push((number as u16, handle.get()));
        }
        Ok(())
    }

    fn clear(&self, name: &str, staged: &mut Staged, control: &Control) -> Result<(), Fault> {
        let (number, spec) = self.table(name)?;
        let table = self.contents(number)?;
        let mut after = None;
        loop {
            let page = table.scan(after, 1024, staged.at);
            let Some(last) = page.last() else {
                return Ok(());
            };
            after = Some(last.handle);
            for entry in page.iter().filter(|entry| !entry.value.constant) {
                let place = (&entry.key, &*entry.value);
                self.remove(number, spec, place, (&mut *staged, control))?;
            }
        }
    }

    fn default_action(
        &self,
        number: usize,
        call: Option<&ActionCall>,
        names: &dyn PortNames,
    ) -> Result<Option<Arc<EntryAction>>, Fault> {
        let (Some(call), Some(spec)) = (call, self.state.program.tables.get(number)) else {
            return Ok(None);
        };
        // The default that the program declares need not be an action of the entries.
        let declared = self.valid.program().tables.get(number);
        let also = declared
            .and_then(|table| table.default_action.as_ref())
            .map(|call| call.action.as_str());
        let (action, params) = self.call(spec, (&call.action, &call.params), also, names)?;
        Ok(Some(Arc::new(EntryAction {
            action,
            constant: true,
            params,
            terms: None,
            seen: None,
        })))
    }

    fn set_group(
        &self,
        staged: &mut Staged,
        (selector, group, members): (&str, u32, &[GroupMember]),
        names: &dyn PortNames,
    ) -> Result<(), Fault> {
        let program = &self.state.program;
        let found = program
            .selectors
            .iter()
            .position(|spec| spec.name == selector);
        let Some((number, spec)) =
            found.and_then(|number| Some((number as u16, program.selectors.get(number)?)))
        else {
            return Err(Fault::new(
                "selector",
                WriteErrorKind::NotFound,
                format!("the program has no selector `{selector}`"),
                "use one that the program declares",
            ));
        };
        if members.len() > spec.max_members as usize {
            return Err(Fault::new(
                "members",
                WriteErrorKind::Full,
                format!("{} members", members.len()),
                format!("use at most {}", spec.max_members),
            ));
        }
        let mut groups = HashMap::clone(&staged.extras.groups);
        let before = groups.remove(&(number, group));
        if before.is_none() && !members.is_empty() {
            let count = groups.keys().filter(|(of, _)| *of == number).count();
            if count >= spec.max_groups as usize {
                return Err(Fault::new(
                    "group",
                    WriteErrorKind::Full,
                    format!("there are {count} groups"),
                    "empty one, or raise the selector's max_groups in the program",
                ));
            }
        }
        let mut backends: Vec<Backend> = Vec::new();
        for (at, member) in members.iter().enumerate() {
            let values =
                resolve_params(&spec.member, &member.values, names).map_err(|mut fault| {
                    fault.place = format!("members[{at}].{}", fault.place);
                    fault
                })?;
            // A member is the same as before when it is made of the same; so its flows stay with it.
            let mut id = MemberId(stable_hash(&values));
            while backends.iter().any(|other| other.id == id) {
                if backends.iter().any(|other| other.values == values) {
                    return Err(Fault::invalid(
                        format!("members[{at}]"),
                        "another member is made of the same",
                        "add up their weights",
                    ));
                }
                id.0 = id.0.wrapping_add(1);
            }
            backends.push(Backend {
                id,
                weight: member.weight,
                values,
            });
        }
        if !backends.is_empty() {
            let shares: Vec<Member> = backends
                .iter()
                .map(|backend| Member {
                    id: backend.id,
                    weight: backend.weight,
                })
                .collect();
            let size = if backends.len() <= 10 {
                TableSize::SMALL
            } else {
                TableSize::LARGE
            };
            let choice = match before {
                Some(before) => before.choice.changed(&shares, size),
                None => WeightedGroup::new(&shares, size),
            }
            .map_err(|error| Fault::invalid("members", error.to_string(), "correct the members"))?;
            groups.insert(
                (number, group),
                Arc::new(Group {
                    members: backends,
                    choice,
                }),
            );
        }
        staged.extras.groups = Arc::new(groups);
        staged.extras_changed = true;
        Ok(())
    }

    fn set_meter(
        &self,
        staged: &mut Staged,
        (name, index): (&str, u32),
        rate: Option<&MeterRate>,
    ) -> Result<(), Fault> {
        let program = &self.state.program;
        let found = program.meters.iter().position(|(meter, _)| meter == name);
        let Some((number, &(_, size))) =
            found.and_then(|number| Some((number as u16, program.meters.get(number)?)))
        else {
            return Err(Fault::new(
                "meter",
                WriteErrorKind::NotFound,
                format!("the program has no meter `{name}`"),
                "use one that the program declares",
            ));
        };
        if index == 0 || index >= size {
            return Err(Fault::invalid(
                "index",
                format!("{index} is out of bounds"),
                format!("use 1 to {}; 0 means no meter", size.saturating_sub(1)),
            ));
        }
        let mut meters = HashMap::clone(&staged.extras.meters);
        match rate {
            None => {
                meters.remove(&(number, index));
            }
            Some(rate) => {
                if rate.bytes_per_second.is_none() && rate.frames_per_second.is_none() {
                    return Err(Fault::invalid(
                        "rate",
                        "it limits nothing",
                        "give bytes_per_second or frames_per_second, or leave the rate out",
                    ));
                }
                let tenth = |rate: Option<u64>| rate.unwrap_or(0) / 10;
                let meter = Meter::new(&MeterConfig {
                    bytes_per_second: rate.bytes_per_second,
                    burst_bytes: rate
                        .burst_bytes
                        .unwrap_or_else(|| tenth(rate.bytes_per_second)),
                    frames_per_second: rate.frames_per_second,
                    burst_frames: rate
                        .burst_frames
                        .unwrap_or_else(|| tenth(rate.frames_per_second)),
                });
                meters.insert(
                    (number, index),
                    Arc::new(MeterSetting { rate: *rate, meter }),
                );
            }
        }
        staged.extras.meters = Arc::new(meters);
        staged.extras_changed = true;
        Ok(())
    }

    /// The tables, in the order of the program.
    pub fn tables(&self, names: &dyn PortNames) -> Vec<ListedTable> {
        let snapshot = self.snapshot();
        let program = &self.state.program;
        let declared = self.valid.program().tables.iter();
        let ids = self.valid.ids().tables();
        declared
            .zip(&program.tables)
            .zip(&self.state.tables)
            .enumerate()
            .map(|(number, ((declared, spec), table))| ListedTable {
                name: spec.name.clone(),
                id: ids.get(number).copied().unwrap_or(0),
                description: declared.description.clone(),
                key: spec
                    .key
                    .iter()
                    .map(|key| (key.name.clone(), key.kind))
                    .collect(),
                actions: declared.actions.clone(),
                entries: table.len(snapshot.epoch),
                size: spec.size,
                default_action: snapshot
                    .extras
                    .default_of(number as u16)
                    .map(|call| ActionCall {
                        action: self.action_name(call.action),
                        params: written_params(
                            program,
                            call.action,
                            call.params.values(&mut Unpacked::default()),
                            names,
                        ),
                    }),
            })
            .collect()
    }

    fn action_name(&self, action: u16) -> String {
        self.state
            .program
            .actions
            .get(usize::from(action))
            .map_or_else(String::new, |action| action.name.clone())
    }

    /// At most `limit` entries of a table, from the one behind handle `after` on.
    ///
    /// # Errors
    /// When there is no such table.
    pub fn entries(
        &self,
        table: &str,
        (after, limit): (Option<u64>, usize),
        names: &dyn PortNames,
    ) -> Result<Vec<ListedEntry>, WriteError> {
        let (number, spec) = self.table(table).map_err(|fault| fault.at(0))?;
        let snapshot = self.snapshot();
        let after = after.map(EntryHandle::from_number);
        let Some(table) = self.state.tables.get(number) else {
            return Ok(Vec::new());
        };
        Ok(table
            .scan(after, limit, snapshot.epoch)
            .iter()
            .map(|entry| ListedEntry {
                handle: entry.handle.get(),
                entry: self.written(spec, entry, names),
                constant: entry.value.constant,
                counters: entry
                    .value
                    .seen
                    .as_ref()
                    .filter(|_| spec.counters)
                    .map(|seen| seen.counters()),
            })
            .collect())
    }

    /// How many entries a table has.
    ///
    /// # Errors
    /// When there is no such table.
    pub fn count(&self, table: &str) -> Result<usize, WriteError> {
        let (number, _) = self.table(table).map_err(|fault| fault.at(0))?;
        let epoch = self.snapshot().epoch;
        Ok(self
            .state
            .tables
            .get(number)
            .map_or(0, |table| table.len(epoch)))
    }

    pub(super) fn written(
        &self,
        spec: &TableSpec,
        entry: &Entry,
        names: &dyn PortNames,
    ) -> TableEntry {
        let value = &entry.value;
        let mut unpacked = Unpacked::default();
        let params = value.params.values(&mut unpacked);
        let (idle_timeout_ms, hard_timeout_ms) = value.timeouts_ms();
        TableEntry {
            table: spec.name.clone(),
            key: written_key(spec, &entry.key, names),
            priority: spec.has_priorities().then_some(entry.key.priority),
            action: self.action_name(value.action),
            params: written_params(&self.state.program, value.action, params, names),
            idle_timeout_ms,
            hard_timeout_ms,
            tenant: value.tenant().map(|name| name.to_string()),
        }
    }

    /// Multicast groups and their ports.
    pub fn multicast_groups(&self) -> Vec<(u16, Vec<u16>)> {
        let snapshot = self.snapshot();
        let mut groups: Vec<_> = snapshot
            .extras
            .multicast
            .iter()
            .map(|(group, ports)| (*group, ports.to_vec()))
            .collect();
        groups.sort_unstable();
        groups
    }

    /// Weighted groups: selector, group, members.
    pub fn groups(&self, names: &dyn PortNames) -> Vec<(String, u32, Vec<GroupMember>)> {
        let snapshot = self.snapshot();
        let mut groups: Vec<_> = snapshot
            .extras
            .groups
            .iter()
            .filter_map(|(&(selector, number), group)| {
                let spec = self.state.program.selectors.get(usize::from(selector))?;
                let members = group
                    .members
                    .iter()
                    .map(|member| GroupMember {
                        weight: member.weight,
                        values: spec
                            .member
                            .iter()
                            .zip(&member.values)
                            .map(|(field, &value)| {
                                let written =
                                    super::entry::literal(value, field.bits, field.format, names);
                                (field.name.clone(), written)
                            })
                            .collect(),
                    })
                    .collect();
                Some((spec.name.clone(), number, members))
            })
            .collect();
        groups.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        groups
    }

    /// Meters that have a rate: array, index, rate.
    pub fn meters(&self) -> Vec<(String, u32, MeterRate)> {
        let snapshot = self.snapshot();
        let mut meters: Vec<_> = snapshot
            .extras
            .meters
            .iter()
            .filter_map(|(&(array, index), setting)| {
                let (name, _) = self.state.program.meters.get(usize::from(array))?;
                Some((name.clone(), index, setting.rate))
            })
            .collect();
        meters.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        meters
    }

    /// The counters of an array that are not zero, from index `from` on, at most `limit`; `None` when there is no such array.
    pub fn counters(
        &self,
        name: &str,
        from: u32,
        limit: usize,
    ) -> Option<Vec<(u32, EntryCounters)>> {
        let program = &self.state.program;
        let number = program
            .counters
            .iter()
            .position(|(counter, _)| counter == name)?;
        let counts = self.state.counts.get(number)?;
        Some(
            (from..counts.len())
                .filter_map(|index| Some((index, counts.get(index)?)))
                .filter(|(_, counters)| *counters != EntryCounters::default())
                .take(limit)
                .collect(),
        )
    }

    /// Removes entries whose time is over, and says which; forgets stations and connections. Call it every second or so.
    pub fn expire(&self, now: Millis, names: &dyn PortNames) -> Vec<EntryName> {
        self.state.macs.expire(now);
        let _ = self.state.conntrack.expire(now, CONNECTIONS_PER_EXPIRY);
        let control = self.lock();
        let mut staged = self.begin(&control, Origin::Program);
        let mut expired = Vec::new();
        for &(number, handle) in control.timed.keys() {
            let (Some(table), Some(spec)) = (
                self.state.tables.get(usize::from(number)),
                self.state.program.tables.get(usize::from(number)),
            ) else {
                continue;
            };
            let Some(entry) = table.entry(EntryHandle::from_number(handle), staged.at) else {
                staged.gone.push((number, handle));
                continue;
            };
            let Some(seen) = &entry.value.seen else {
                continue;
            };
            let over = |timeout_ms: u32, since: Millis| {
                timeout_ms != 0 && now.since(since).0 >= timeout_ms.into()
            };
            let (idle_ms, hard_ms) = entry.value.timeouts_ms();
            let is_over = over(hard_ms, seen.added()) || over(idle_ms, seen.last());
            let place = (&entry.key, &*entry.value);
            if is_over
                && self
                    .remove(usize::from(number), spec, place, (&mut staged, &control))
                    .is_ok()
            {
                let written = self.written(spec, &entry, names);
                expired.push(EntryName {
                    table: written.table,
                    key: written.key,
                    priority: written.priority,
                });
            }
        }
        // Also what earlier batches left to be freed.
        staged.tables.fill(true);
        self.publish(control, staged);
        expired
    }

    /// A port is part of the switch from now on.
    pub fn attach_port(&self, port: PortId) {
        self.state.macs.lock().attach(port);
    }

    /// A port is gone: forgets the stations behind it.
    pub fn detach_port(&self, port: PortId) {
        self.state.macs.lock().detach(port);
        self.state.macs.flush(port);
    }

    /// Forgets the stations behind a port.
    pub fn flush_port(&self, port: PortId) {
        self.state.macs.flush(port);
    }

    /// The stations known now.
    pub fn mac_entries(&self, now: Millis) -> Vec<crate::mac_table::MacEntry> {
        self.state.macs.entries(now)
    }

    /// The stations that have moved to another port since this was last asked.
    pub fn take_mac_moves(&self) -> MacMoves {
        self.state.macs.take_moves()
    }

    /// What the table of stations has done so far.
    pub fn mac_stats(&self) -> MacStats {
        self.state.macs.lock().stats()
    }
}

/// Slots of the connection table that are looked at in one call of [`Engine::expire`].
const CONNECTIONS_PER_EXPIRY: u32 = 65_536;
/// Flows are chosen alike on every switch and after every restart; who knows that gains the choice of his own back-end only.
const SELECTION_SEED: u64 = 0x5e1e_c7ed_f10e_5eed;

/// Whose entry it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Program,
    Operator,
}

/// Programs name no ports of their own.
struct NoPorts;

impl PortNames for NoPorts {
    fn id(&self, _: &str) -> Option<PortId> {
        None
    }

    fn name(&self, _: PortId) -> Option<String> {
        None
    }
}

/// The entry that an update names, if it is there and whoever asks may change it.
fn changeable(found: Option<Entry>, origin: Origin) -> Result<Arc<EntryAction>, Fault> {
    let Some(entry) = found else {
        return Err(Fault::new(
            "key",
            WriteErrorKind::NotFound,
            "no entry has this key and priority",
            "`ringswitch table entries` shows those there are",
        ));
    };
    if entry.value.constant && origin == Origin::Operator {
        return Err(Fault::new(
            "key",
            WriteErrorKind::Constant,
            "the entry belongs to the program",
            "change the program, or add an entry that goes before it",
        ));
    }
    Ok(entry.value)
}

/// Has the batch know a tenant whose entries it changes.
fn know(name: &str, staged: &mut Staged, control: &Control) {
    if staged.tenants.contains_key(name) {
        return;
    }
    let (name, terms) = match control.tenants.get_key_value(name) {
        Some((name, tenant)) => (Arc::clone(name), Arc::clone(&tenant.terms)),
        None => {
            let name: Arc<str> = Arc::from(name);
            let terms = Terms {
                tenant: Some(Arc::clone(&name)),
                ..Terms::default()
            };
            (name, Arc::new(terms))
        }
    };
    let change = TenantChange { entries: 0, terms };
    staged.tenants.insert(name, change);
}

/// A tenant that the batch knows has so many entries more.
fn count(staged: &mut Staged, tenant: &str, change: isize) {
    if let Some(tenant) = staged.tenants.get_mut(tenant) {
        tenant.entries += change;
    }
}

/// On what terms an entry is there, whose tenant the batch knows.
fn terms(entry: &TableEntry, staged: &Staged) -> Option<Arc<Terms>> {
    let tenant = entry.tenant.as_deref();
    let of_tenant = tenant.and_then(|name| staged.tenants.get(name));
    if entry.idle_timeout_ms == 0 && entry.hard_timeout_ms == 0 {
        return of_tenant.map(|change| Arc::clone(&change.terms));
    }
    Some(Arc::new(Terms {
        tenant: of_tenant.and_then(|change| change.terms.tenant.clone()),
        idle_timeout_ms: entry.idle_timeout_ms,
        hard_timeout_ms: entry.hard_timeout_ms,
    }))
}

fn touch(staged: &mut Staged, number: usize) {
    if let Some(touched) = staged.tables.get_mut(number) {
        *touched = true;
    }
}

fn put_default(extras: &mut Extras, number: usize, default: Option<Arc<EntryAction>>) {
    let mut defaults = Vec::clone(&extras.defaults);
    if let Some(slot) = defaults.get_mut(number) {
        *slot = default;
    }
    extras.defaults = Arc::new(defaults);
}

fn set_multicast(
    staged: &mut Staged,
    (group, ports): (u16, &[Literal]),
    names: &dyn PortNames,
) -> Result<(), Fault> {
    if group == 0 {
        return Err(Fault::invalid("group", "0 is no group", "use 1 to 65535"));
    }
    let mut members: Vec<u16> = Vec::with_capacity(ports.len());
    let mut named = HashSet::with_capacity(ports.len());
    for (at, port) in ports.iter().enumerate() {
        let place = || format!("ports[{at}]");
        let value = number(port, Format::Port, names)
            .map_err(|(reason, remedy)| Fault::invalid(place(), reason, remedy))?;
        let port = u16::try_from(value)
            .ok()
            .filter(|&port| PortId::new(port).is_some())
            .ok_or_else(|| Fault::invalid(place(), format!("{value} is no port"), "name a port"))?;
        if named.insert(port) {
            members.push(port);
        }
    }
    // Copied once for a batch, however many groups it sets.
    let groups = Arc::make_mut(&mut staged.extras.multicast);
    if members.is_empty() {
        groups.remove(&group);
    } else {
        groups.insert(group, members.into());
    }
    staged.extras_changed = true;
    Ok(())
}

/// The same for equal values in every process (FNV-1a).
fn stable_hash(values: &[u128]) -> u32 {
    let bytes = values.iter().flat_map(|value| value.to_be_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash ^ hash >> 32) as u32
}
