//! Which entries and rates are a port's: those that name it, in a key or an argument that is a port.
//!
//! A field that covers several ports under a mask names none of them. Defaults of tables and members of weighted groups are the
//! switch's, whichever ports they name.
use std::collections::BTreeSet;
use switch_core::engine::control::TableEntry;
use switch_core::engine::literal::Literal;
use switch_core::engine::model::{Format, KeyMatch, Program};
use switch_core::engine::validate::ValidProgram;

/// Where entries of a program name ports.
pub(super) struct PortFields {
    /// Table and key.
    keys: BTreeSet<(String, String)>,
    /// Action and parameter.
    params: BTreeSet<(String, String)>,
}

impl PortFields {
    pub(super) fn of(valid: &ValidProgram) -> Self {
        let program = valid.program();
        let keys = program.tables.iter().flat_map(|table| {
            let ports = table.key.iter().filter(|key| {
                let field = valid.field(&key.field);
                field.is_some_and(|field| field.format == Format::Port)
            });
            ports.map(|key| {
                let name = key.name.clone().unwrap_or_else(|| key.field.clone());
                (table.name.clone(), name)
            })
        });
        let params = program.actions.iter().flat_map(|action| {
            let ports = action
                .params
                .iter()
                .filter(|param| param.format == Format::Port);
            ports.map(|param| (action.name.clone(), param.name.clone()))
        });
        Self {
            keys: keys.collect(),
            params: params.collect(),
        }
    }

    /// Whether entries of this table, with any action, can name a port.
    pub(super) fn may_be_in(&self, table: &str, actions: &[String]) -> bool {
        self.keys.iter().any(|(of, _)| of == table)
            || self.params.iter().any(|(of, _)| actions.contains(of))
    }

    /// Whether an entry names this port.
    pub(super) fn names(&self, entry: &TableEntry, port: &str) -> bool {
        let is_it = |literal: &Literal| matches!(literal, Literal::Text(text) if text == port);
        let in_key = entry.key.iter().any(|(name, matched)| {
            matches!(matched, KeyMatch::Text(literal) if is_it(literal))
                && self.keys.contains(&(entry.table.clone(), name.clone()))
        });
        in_key
            || entry.params.iter().any(|(name, literal)| {
                is_it(literal) && self.params.contains(&(entry.action.clone(), name.clone()))
            })
    }

    /// The entry, with this port under another name.
    pub(super) fn renamed(&self, mut entry: TableEntry, from: &str, to: &str) -> TableEntry {
        let rename = |literal: &mut Literal| {
            if matches!(literal, Literal::Text(text) if text == from) {
                *literal = Literal::Text(to.to_owned());
            }
        };
        for (name, matched) in &mut entry.key {
            if let KeyMatch::Text(literal) = matched
                && self.keys.contains(&(entry.table.clone(), name.clone()))
            {
                rename(literal);
            }
        }
        for (name, literal) in &mut entry.params {
            if self.params.contains(&(entry.action.clone(), name.clone())) {
                rename(literal);
            }
        }
        entry
    }
}

/// The arrays of meters that a program asks by the number of a frame's port: a port's rates are in its place there.
pub(super) fn meters_by_port(program: &Program) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    if let Ok(json) = serde_json::to_value(program) {
        collect_meters(&json, &mut found);
    }
    found
}

/// Primitives are nested in actions, branches and tables alike; as JSON they look the same everywhere.
fn collect_meters(json: &serde_json::Value, found: &mut BTreeSet<String>) {
    match json {
        serde_json::Value::Object(fields) => {
            let by_port = fields
                .get("index")
                .and_then(serde_json::Value::as_str)
                .is_some_and(|index| matches!(index, "std.in_port" | "std.out_port"));
            if let Some(meter) = fields.get("meter").and_then(serde_json::Value::as_str)
                && by_port
            {
                found.insert(meter.to_owned());
            }
            fields
                .values()
                .for_each(|value| collect_meters(value, found));
        }
        serde_json::Value::Array(values) => {
            values.iter().for_each(|value| collect_meters(value, found));
        }
        _ => {}
    }
}
