//! `ingress` and `egress`.

use std::fmt;

use super::error::Place;
use super::operands::Scope;
use super::{Checker, limits};
use crate::engine::model::{Apply, Find, Statement};

/// A control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Control {
    Ingress,
    Egress,
}

impl fmt::Display for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "`ingress`",
            Self::Egress => "`egress`",
        })
    }
}

impl Checker<'_> {
    pub(super) fn controls(&mut self) {
        let own = self.own;
        self.control = Some(Control::Ingress);
        self.statements(Place::root("ingress"), &own.ingress, 1);
        self.control = Some(Control::Egress);
        self.statements(Place::root("egress"), &own.egress, 1);
        self.control = None;
    }

    /// A list of statements, `depth` levels deep.
    fn statements(&mut self, list: Place<'_>, statements: &[Statement], depth: usize) {
        if depth > limits::STATEMENT_DEPTH && !statements.is_empty() {
            self.error(
                list,
                "statements stand too deep inside each other",
                format!(
                    "use at most {} levels; a table can carry a decision on in metadata",
                    limits::STATEMENT_DEPTH
                ),
            );
            return;
        }
        for (index, statement) in statements.iter().enumerate() {
            let place = list.index(index);
            self.statements += 1;
            if self.statements == limits::STATEMENTS + 1 {
                self.error(
                    place,
                    "the program has too many statements",
                    format!("use at most {}", limits::STATEMENTS),
                );
            }
            if self.statements > limits::STATEMENTS {
                return;
            }
            match statement {
                Statement::Apply(apply) => self.apply(place.field("apply"), apply, depth),
                Statement::If(branch) => {
                    let place = place.field("if");
                    self.condition(place.field("if"), &branch.condition, Scope::Control, 0);
                    self.statements(place.field("then"), &branch.then, depth + 1);
                    self.statements(place.field("else"), &branch.otherwise, depth + 1);
                }
                Statement::Do(primitives) => {
                    self.primitives(place.field("do"), primitives, Scope::Control);
                }
                Statement::Find(find) => self.find(place.field("find"), find, depth),
                Statement::Exit => {}
            }
        }
    }

    fn apply(&mut self, place: Place<'_>, apply: &Apply, depth: usize) {
        let table_place = place.field("table");
        let table = self.tables.get(apply.table.as_str()).copied();
        if table.is_none() {
            let remedy = self.suggest(&apply.table, self.tables.keys().copied());
            self.error(
                table_place,
                format!("there is no table `{}`", apply.table),
                remedy,
            );
        }
        if let (Some(table), Some(control)) = (table, self.control) {
            let default = table.default_action.iter().map(|call| &call.action);
            let misplaced: Vec<String> = table
                .actions
                .iter()
                .take(limits::TABLE_ACTIONS)
                .chain(default)
                .filter_map(|action| self.restricted_actions.get(action.as_str()))
                .chain(self.restricted_tables.get(table.name.as_str()))
                .flatten()
                .filter(|restricted| restricted.only != control)
                .map(|restricted| restricted.what.clone())
                .collect();
            for what in misplaced {
                self.error(
                    table_place,
                    format!(
                        "{what} has no place in {control}, where table `{}` is applied",
                        table.name
                    ),
                    "apply another table here",
                );
            }
        }
        let actions = place.field("actions");
        for (action, statements) in &apply.actions {
            let place = actions.field(action);
            let known = table.is_none_or(|table| {
                let mut listed = table.actions.iter().take(limits::TABLE_ACTIONS);
                listed.any(|listed| listed == action)
                    || table
                        .default_action
                        .as_ref()
                        .is_some_and(|call| call.action == *action)
            });
            if !known {
                let known = table.into_iter().flat_map(|table| &table.actions);
                self.error(
                    place,
                    format!("table `{}` has no action `{action}`", apply.table),
                    self.suggest(action, known.map(String::as_str)),
                );
            }
            self.statements(place, statements, depth + 1);
        }
        self.statements(place.field("hit"), &apply.hit, depth + 1);
        self.statements(place.field("miss"), &apply.miss, depth + 1);
    }

    fn find(&mut self, place: Place<'_>, find: &Find, depth: usize) {
        self.learning_table(place.field("table"), &find.table);
        let bits = limits::FIELD_BITS;
        self.operand(place.field("domain"), &find.domain, Scope::Control, bits);
        self.operand(place.field("address"), &find.address, Scope::Control, bits);
        let port = place.field("port");
        if let Some(field) = self.written(port, &find.port)
            && field.bits < 14
        {
            self.error(
                port,
                format!("`{}` has {} bits; a port needs 14", find.port, field.bits),
                "use a field of 16",
            );
        }
        self.statements(place.field("hit"), &find.hit, depth + 1);
        self.statements(place.field("miss"), &find.miss, depth + 1);
    }
}
