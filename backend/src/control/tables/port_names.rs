//! Which number each port name has, for good.
//!
//! Entries are compiled to port numbers, so a name keeps its number for as long as anything means it: a port that is there, or an
//! entry that will want it when it comes back. Numbers are kept in the store and survive restarts. When all are taken, those of
//! names that nothing means any more are given out again ([`PortRegistry::reclaim`]).
use super::super::{MAX_PORTS, PortId};
use crate::config::PortName;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use switch_core::engine::control::PortNames;

/// Every name with its number. Shared by the control thread, the thread that changes tables, and readers; locked briefly.
#[derive(Debug, Default)]
pub struct PortRegistry(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    ids: HashMap<PortName, Slot>,
    names: BTreeMap<PortId, PortName>,
    /// Goes up with every use of a name.
    clock: u64,
    /// Names given a number, or deprived of it, since they were last taken for the store.
    unsaved: BTreeSet<PortName>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    id: PortId,
    /// A port of this name is there.
    live: bool,
    /// When an entry last named it.
    used: u64,
}

/// A change for the store: the name, and its number, or that it has none any more.
pub type SavedName = (PortName, Option<PortId>);

impl PortRegistry {
    /// With the names that the store knows. What does not fit is left out: two names for one number, or a number out of bounds.
    pub fn with(saved: impl IntoIterator<Item = (PortName, PortId)>) -> Self {
        let mut inner = Inner::default();
        for (name, id) in saved {
            if id.index() < MAX_PORTS && !inner.names.contains_key(&id) {
                inner.give(&name, id);
            }
        }
        inner.unsaved.clear();
        Self(Mutex::new(inner))
    }

    /// The numbers of ports that come to be there. `None`: all are taken.
    pub fn reserve(&self, name: &PortName) -> Option<PortId> {
        let mut inner = self.lock();
        let id = inner.find_or_give(name)?;
        if let Some(slot) = inner.ids.get_mut(name) {
            slot.live = true;
        }
        Some(id)
    }

    /// The port of this name is gone; the name keeps its number.
    pub fn port_gone(&self, name: &PortName) {
        if let Some(slot) = self.lock().ids.get_mut(name) {
            slot.live = false;
        }
    }

    /// Every name and its number.
    pub fn all(&self) -> Vec<(PortName, PortId)> {
        let inner = self.lock();
        inner
            .names
            .iter()
            .map(|(id, name)| (name.clone(), *id))
            .collect()
    }

    /// How many numbers are left.
    pub fn free(&self) -> usize {
        MAX_PORTS.saturating_sub(self.lock().names.len())
    }

    /// What has changed since the last call, for the store.
    pub fn take_unsaved(&self) -> Vec<SavedName> {
        let mut inner = self.lock();
        let names = std::mem::take(&mut inner.unsaved);
        names
            .into_iter()
            .map(|name| {
                let id = inner.ids.get(&name).map(|slot| slot.id);
                (name, id)
            })
            .collect()
    }

    /// What could not be saved is to be saved again.
    pub fn not_saved(&self, names: Vec<SavedName>) {
        self.lock()
            .unsaved
            .extend(names.into_iter().map(|(name, _)| name));
    }

    /// A moment, to be passed to [`Self::reclaim`].
    pub fn now(&self) -> u64 {
        self.lock().clock
    }

    /// Takes the numbers of names that are no port's, are not in `meant`, and have not been used since `before`.
    pub fn reclaim(&self, meant: &BTreeSet<String>, before: u64) -> usize {
        let mut inner = self.lock();
        let unused: Vec<PortName> = inner
            .ids
            .iter()
            .filter(|(name, slot)| {
                !slot.live && slot.used <= before && !meant.contains(name.as_str())
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in &unused {
            inner.take(name);
        }
        unused.len()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn find_or_give(&mut self, name: &PortName) -> Option<PortId> {
        self.clock += 1;
        let clock = self.clock;
        if let Some(slot) = self.ids.get_mut(name) {
            slot.used = clock;
            return Some(slot.id);
        }
        // Number 0 comes last: as the index of a meter it means none, so that port's rate could not be limited.
        let free = (1..=u16::MAX)
            .map_while(PortId::new)
            .take(MAX_PORTS.saturating_sub(1))
            .chain(PortId::new(0))
            .find(|id| !self.names.contains_key(id))?;
        self.give(name, free);
        Some(free)
    }

    fn give(&mut self, name: &PortName, id: PortId) {
        let slot = Slot {
            id,
            live: false,
            used: self.clock,
        };
        self.ids.insert(name.clone(), slot);
        self.names.insert(id, name.clone());
        self.unsaved.insert(name.clone());
    }

    fn take(&mut self, name: &PortName) {
        if let Some(slot) = self.ids.remove(name) {
            self.names.remove(&slot.id);
            self.unsaved.insert(name.clone());
        }
    }
}

/// Reads names only: for listings and explanations.
impl PortNames for PortRegistry {
    fn id(&self, name: &str) -> Option<PortId> {
        let name = PortName::parse(name).ok()?;
        self.lock().ids.get(&name).map(|slot| slot.id)
    }

    fn name(&self, id: PortId) -> Option<String> {
        self.lock().names.get(&id).map(PortName::to_string)
    }
}

/// The names of a batch: one that is new gets a number, which is taken back when the batch is refused.
#[derive(Debug)]
pub struct NamesOfBatch<'a> {
    registry: &'a PortRegistry,
    given: Mutex<Given>,
}

#[derive(Debug, Default)]
struct Given {
    names: Vec<PortName>,
    exhausted: bool,
}

impl<'a> NamesOfBatch<'a> {
    /// For one batch.
    pub fn new(registry: &'a PortRegistry) -> Self {
        Self {
            registry,
            given: Mutex::default(),
        }
    }

    /// Whether a name was refused because no number is left.
    pub fn exhausted(&self) -> bool {
        self.given().exhausted
    }

    /// The batch was refused.
    pub fn take_back(self) {
        let given = self
            .given
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let mut inner = self.registry.lock();
        for name in given.names {
            // Unless a port of this name has come in the meantime.
            if inner.ids.get(&name).is_some_and(|slot| !slot.live) {
                inner.take(&name);
            }
        }
    }

    fn given(&self) -> MutexGuard<'_, Given> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PortNames for NamesOfBatch<'_> {
    fn id(&self, name: &str) -> Option<PortId> {
        let name = PortName::parse(name).ok()?;
        let mut inner = self.registry.lock();
        let known = inner.ids.contains_key(&name);
        let id = inner.find_or_give(&name);
        drop(inner);
        match id {
            Some(_) if !known => self.given().names.push(name),
            None => self.given().exhausted = true,
            Some(_) => {}
        }
        id
    }

    fn name(&self, id: PortId) -> Option<String> {
        self.registry.name(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> PortName {
        PortName::parse(text).unwrap()
    }

    #[test]
    fn a_name_keeps_its_number_when_its_port_goes() {
        let registry = PortRegistry::default();
        let first = registry.reserve(&name("vm1")).unwrap();
        registry.port_gone(&name("vm1"));
        assert_ne!(registry.reserve(&name("vm2")), Some(first));
        assert_eq!(registry.reserve(&name("vm1")), Some(first));
        let again = PortRegistry::with(registry.all());
        assert_eq!(again.reserve(&name("vm1")), Some(first));
        assert!(again.take_unsaved().is_empty());
    }

    #[test]
    fn the_number_that_no_meter_can_have_is_given_last() {
        let registry = PortRegistry::default();
        let ids: Vec<_> = (0..MAX_PORTS)
            .filter_map(|number| registry.reserve(&name(&format!("p{number}"))))
            .collect();
        assert_eq!(
            (ids.first(), ids.len()),
            (PortId::new(1).as_ref(), MAX_PORTS)
        );
        assert_eq!(ids.last(), PortId::new(0).as_ref());
    }

    #[test]
    fn a_refused_batch_takes_no_number() {
        let registry = PortRegistry::default();
        let batch = NamesOfBatch::new(&registry);
        assert!(batch.id("vm1").is_some() && batch.id("not a name").is_none());
        batch.take_back();
        assert_eq!((registry.free(), registry.id("vm1")), (MAX_PORTS, None));
    }

    #[test]
    fn when_all_numbers_are_taken_those_that_nothing_means_are_given_out_again() {
        let registry = PortRegistry::default();
        for number in 0..MAX_PORTS {
            registry.reserve(&name(&format!("p{number}"))).unwrap();
        }
        assert_eq!(registry.reserve(&name("new")), None);
        let p1 = registry.id("p1");
        for gone in ["p1", "p2", "p3"] {
            registry.port_gone(&name(gone));
        }
        let before = registry.now();
        let meant = BTreeSet::from(["p2".to_owned()]);
        // Used after the moment the scan began: it may be meant by an entry that the scan has not seen.
        NamesOfBatch::new(&registry).id("p3").unwrap();
        assert_eq!(registry.reclaim(&meant, before), 1);
        assert_eq!(registry.reserve(&name("new")), p1);
    }
}
