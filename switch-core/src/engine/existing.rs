//! What is there in place of an entry that somebody would like to have.

use super::control::{PortNames, TableEntry};
use super::runtime::Engine;

/// What a table has under an entry's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Nothing, or the entry fits no table: writing it will tell.
    None,
    /// An entry that is the same in all.
    Same,
    /// One that does something else, or goes at another time, or is another tenant's.
    Other,
    /// One of the program's own that is not the same.
    Constant,
}

impl Engine {
    /// What there is under the key of `entry`, whichever way that is written.
    pub fn existing(&self, entry: &TableEntry, names: &dyn PortNames) -> Existing {
        let Ok(wanted) = self.resolve(entry, names) else {
            return Existing::None;
        };
        let found = wanted.table.find(&wanted.key, self.snapshot().epoch);
        let Ok(Some(found)) = found else {
            return Existing::None;
        };
        let (is, value) = (&*found.value, &wanted.params);
        let timeouts = (entry.idle_timeout_ms, entry.hard_timeout_ms);
        let same = is.action == wanted.action
            && is.params == *value
            && is.timeouts_ms() == timeouts
            && is.tenant().map(|name| &**name) == entry.tenant.as_deref();
        match (same, is.constant) {
            (true, _) => Existing::Same,
            (false, true) => Existing::Constant,
            (false, false) => Existing::Other,
        }
    }
}
