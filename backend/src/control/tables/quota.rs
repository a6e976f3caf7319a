//! How many entries each tenant has and may have.
use super::identity::{Identity, prefix};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// How many entries each tenant may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quotas {
    /// Tenants with a quota of their own.
    pub by_tenant: BTreeMap<String, u32>,
    /// Every other tenant's.
    pub default: u32,
}

impl Quotas {
    /// Default of the default: no less than one full table.
    pub const DEFAULT: u32 = 1_048_576;

    /// What a tenant may have.
    pub fn of(&self, tenant: &str) -> u32 {
        self.by_tenant.get(tenant).copied().unwrap_or(self.default)
    }
}

impl Default for Quotas {
    fn default() -> Self {
        Self {
            by_tenant: BTreeMap::new(),
            default: Self::DEFAULT,
        }
    }
}

/// Who has which entries. Only entries that name a tenant are here.
#[derive(Debug, Default)]
pub struct Holdings {
    owners: BTreeMap<Identity, Arc<str>>,
    counts: HashMap<Arc<str>, u32>,
}

/// A tenant that would have more than it may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverQuota {
    /// The tenant.
    pub tenant: String,
    /// What it may have.
    pub most: u32,
}

/// Undoes what a batch did, should the batch be refused: what each entry was before, in the order of the changes.
#[derive(Debug, Default)]
pub struct Undo(Vec<(Identity, Option<Arc<str>>)>);

impl Holdings {
    /// How many entries a tenant has.
    pub fn count(&self, tenant: &str) -> u32 {
        self.counts.get(tenant).copied().unwrap_or(0)
    }

    /// Gives an entry to a tenant, or to nobody.
    pub fn assign(
        &mut self,
        entry: Identity,
        tenant: Option<&str>,
        quotas: &Quotas,
        undo: &mut Undo,
    ) -> Result<(), OverQuota> {
        let old = self.owners.get(&entry).cloned();
        if old.as_deref() == tenant {
            return Ok(());
        }
        if let Some(tenant) = tenant {
            let most = quotas.of(tenant);
            if self.count(tenant) >= most {
                return Err(OverQuota {
                    tenant: tenant.to_owned(),
                    most,
                });
            }
        }
        self.set(&entry, tenant);
        undo.0.push((entry, old));
        Ok(())
    }

    /// An entry that the store has, whatever the quota: a quota that was lowered takes nothing away.
    pub fn adopt(&mut self, entry: &Identity, tenant: Option<&str>) {
        self.set(entry, tenant);
    }

    /// Every entry of a table is gone.
    pub fn clear(&mut self, table: &str, undo: &mut Undo) {
        let prefix = prefix(table);
        let held: Vec<Identity> = self
            .owners
            .range(Identity::from_bytes(&prefix)..)
            .map(|(entry, _)| entry)
            .take_while(|entry| entry.as_bytes().starts_with(&prefix))
            .cloned()
            .collect();
        for entry in held {
            let old = self.owners.get(&entry).cloned();
            self.set(&entry, None);
            undo.0.push((entry, old));
        }
    }

    /// Takes a batch back.
    pub fn take_back(&mut self, undo: Undo) {
        for (entry, old) in undo.0.into_iter().rev() {
            self.set(&entry, old.as_deref());
        }
    }

    fn set(&mut self, entry: &Identity, tenant: Option<&str>) {
        if let Some(old) = self.owners.remove(entry)
            && let Some(count) = self.counts.get_mut(&old)
        {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.counts.remove(&old);
            }
        }
        let Some(tenant) = tenant else { return };
        let tenant = match self.counts.get_key_value(tenant) {
            Some((name, _)) => Arc::clone(name),
            None => Arc::from(tenant),
        };
        *self.counts.entry(Arc::clone(&tenant)).or_default() += 1;
        self.owners.insert(entry.clone(), tenant);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(table: &str, number: u8) -> Identity {
        let mut bytes = prefix(table);
        bytes.push(number);
        Identity::from_bytes(&bytes)
    }

    #[test]
    fn a_tenant_has_no_more_than_its_quota_and_a_refused_batch_counts_nothing() {
        let quotas = Quotas {
            by_tenant: BTreeMap::from([("a".to_owned(), 2)]),
            default: 1,
        };
        let mut held = Holdings::default();
        let mut undo = Undo::default();
        held.assign(entry("t", 1), Some("a"), &quotas, &mut undo)
            .unwrap();
        held.assign(entry("t", 1), Some("a"), &quotas, &mut undo)
            .unwrap();
        held.assign(entry("t", 2), Some("a"), &quotas, &mut undo)
            .unwrap();
        let over = held.assign(entry("t", 3), Some("a"), &quotas, &mut undo);
        assert_eq!(over.unwrap_err().most, 2);
        held.assign(entry("t", 2), Some("b"), &quotas, &mut undo)
            .unwrap();
        assert_eq!((held.count("a"), held.count("b")), (1, 1));
        held.take_back(undo);
        assert_eq!((held.count("a"), held.count("b")), (0, 0));
    }

    #[test]
    fn clearing_a_table_frees_its_entries_and_no_others() {
        let mut held = Holdings::default();
        let (quotas, mut undo) = (Quotas::default(), Undo::default());
        for table in ["t", "tt", "s"] {
            held.assign(entry(table, 1), Some("a"), &quotas, &mut undo)
                .unwrap();
        }
        held.clear("t", &mut undo);
        assert_eq!(held.count("a"), 2);
        held.take_back(undo);
        assert_eq!(held.count("a"), 0);
    }
}
