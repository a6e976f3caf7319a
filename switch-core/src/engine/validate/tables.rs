//! Tables: keys, actions, defaults and constant entries.

use std::collections::BTreeMap;

use super::error::Place;
use super::operands::Scope;
use super::values::{KeyShape, anything};
use super::{Checker, limits};
use crate::engine::literal::is_name;
use crate::engine::model::{ActionCall, ConstEntry, KeyKind, TableDecl};

impl<'p> Checker<'p> {
    pub(super) fn tables(&mut self) {
        let tables: &'p [TableDecl] = &self.own.tables;
        let list = Place::root("tables");
        let count = self.at_most(list, tables.len(), limits::TABLES);
        self.unique(list, tables, |table| &table.name);
        for (index, table) in tables.iter().take(count).enumerate() {
            self.table(list.index(index), table);
            let restricted = std::mem::take(&mut self.restricted);
            self.restricted_tables.insert(&table.name, restricted);
        }
    }

    fn table(&mut self, place: Place<'_>, table: &TableDecl) {
        self.description(place.field("description"), &table.description);
        self.size(place.field("size"), table.size, limits::TABLE_ENTRIES);
        let shapes = self.key(place.field("key"), table);
        self.table_actions(place, table);
        if let Some(shapes) = shapes
            && table.actions.len() <= limits::TABLE_ACTIONS
        {
            self.const_entries(place.field("const_entries"), table, &shapes);
        }
    }

    /// The shape of each key field by its name in entries; `None` when the key is at fault.
    fn key<'t>(
        &mut self,
        place: Place<'_>,
        table: &'t TableDecl,
    ) -> Option<BTreeMap<&'t str, KeyShape>> {
        let faults = self.errors.len();
        let count = self.at_most(place, table.key.len(), limits::KEY_FIELDS);
        let mut shapes = BTreeMap::new();
        let mut total_bits = 0;
        let mut prefixes = 0;
        for (index, key) in table.key.iter().take(count).enumerate() {
            let place = place.index(index);
            if let Some(name) = &key.name
                && !name.split('.').all(is_name)
            {
                self.error(
                    place.field("name"),
                    format!("`{}` is no name", name.escape_debug()),
                    "use letters, digits, `_` and `.`",
                );
            }
            prefixes += u32::from(key.kind == KeyKind::Lpm);
            if key.kind == KeyKind::Lpm && prefixes == 2 {
                self.error(
                    place.field("match"),
                    "a second field that is matched by the longest prefix",
                    "match it exact or ternary",
                );
            }
            let Some(field) = self.read(place.field("field"), &key.field, Scope::Control) else {
                continue;
            };
            total_bits += u32::from(field.bits);
            let shape = KeyShape {
                kind: key.kind,
                bits: field.bits,
                format: field.format,
            };
            if shapes.insert(key.key_name(), shape).is_some() {
                self.error(
                    place,
                    format!("a second key field of the name `{}`", key.key_name()),
                    "give it a `name` of its own",
                );
            }
        }
        if total_bits > limits::KEY_BITS {
            self.error(
                place,
                format!("the key has {total_bits} bits"),
                format!("use at most {}", limits::KEY_BITS),
            );
        }
        (self.errors.len() == faults).then_some(shapes)
    }

    fn table_actions(&mut self, place: Place<'_>, table: &TableDecl) {
        let list = place.field("actions");
        let count = self.at_most(list, table.actions.len(), limits::TABLE_ACTIONS);
        for (index, name) in table.actions.iter().take(count).enumerate() {
            let place = list.index(index);
            self.action_name(place, name);
            if table.actions.iter().take(index).any(|other| other == name) {
                self.error(place, format!("`{name}` is listed twice"), "leave one out");
            }
        }
        if let Some(call) = &table.default_action {
            self.call(place.field("default_action"), call);
        } else if table.const_default {
            self.error(
                place.field("const_default"),
                "there is no default action to be constant",
                "add `default_action`, or leave `const_default` out",
            );
        }
    }

    fn action_name(&mut self, place: Place<'_>, name: &str) -> bool {
        let known = self.actions.contains_key(name);
        if !known {
            let remedy = self.suggest(name, self.actions.keys().copied());
            self.error(place, format!("there is no action `{name}`"), remedy);
        }
        known
    }

    fn call(&mut self, place: Place<'_>, call: &ActionCall) {
        if self.action_name(place.field("action"), &call.action) {
            self.arguments(place.field("params"), &call.action, &call.params);
        }
    }

    fn const_entries(
        &mut self,
        list: Place<'_>,
        table: &TableDecl,
        shapes: &BTreeMap<&str, KeyShape>,
    ) {
        let most = limits::CONST_ENTRIES.min(table.size as usize);
        let count = self.at_most(list, table.const_entries.len(), most);
        let mut seen = BTreeMap::new();
        for (index, entry) in table.const_entries.iter().take(count).enumerate() {
            let place = list.index(index);
            if !table.actions.contains(&entry.action) {
                self.error(
                    place.field("action"),
                    format!("the table has no action `{}`", entry.action),
                    self.suggest(&entry.action, table.actions.iter().map(String::as_str)),
                );
            } else {
                self.arguments(place.field("params"), &entry.action, &entry.params);
            }
            self.priority(place, entry, shapes);
            let Some(matched) = self.entry_key(place.field("key"), entry, shapes) else {
                continue;
            };
            if let Some(first) = seen.insert((matched, entry.priority), index) {
                self.error(
                    place,
                    format!("it matches the same as {}", list.index(first)),
                    "leave one out",
                );
            }
        }
    }

    fn priority(
        &mut self,
        place: Place<'_>,
        entry: &ConstEntry,
        shapes: &BTreeMap<&str, KeyShape>,
    ) {
        let prioritised = shapes.values().any(|shape| shape.kind.needs_priority());
        match entry.priority {
            Some(priority) if prioritised && priority >= 1 => {}
            None if !prioritised => {}
            Some(_) if prioritised => self.error(
                place.field("priority"),
                "the priority is less than 1",
                "use 1 or more; the largest wins",
            ),
            Some(_) => self.error(
                place.field("priority"),
                "a priority where no two entries can match",
                "leave it out",
            ),
            None => self.error(
                place,
                "there is no priority, and several entries could match",
                "add `priority`, 1 or more; the largest wins",
            ),
        }
    }

    fn entry_key(
        &mut self,
        place: Place<'_>,
        entry: &ConstEntry,
        shapes: &BTreeMap<&str, KeyShape>,
    ) -> Option<Vec<super::values::Matched>> {
        let faults = self.errors.len();
        for name in entry.key.keys() {
            if !shapes.contains_key(name.as_str()) {
                self.error(
                    place.field(name),
                    format!("the key has no field `{name}`"),
                    self.suggest(name, shapes.keys().copied()),
                );
            }
        }
        let mut matched = Vec::new();
        for (name, shape) in shapes {
            match entry.key.get(*name) {
                Some(wanted) => {
                    matched.extend(self.key_match(place.field(name), wanted, *shape));
                }
                None if matches!(shape.kind, KeyKind::Exact) => self.error(
                    place,
                    format!("there is no value for `{name}`, which is matched exact"),
                    format!("add `\"{name}\": ...`"),
                ),
                None => matched.push(anything(*shape)),
            }
        }
        (self.errors.len() == faults).then_some(matched)
    }
}
