//! The parse graph.

use std::collections::{BTreeMap, BTreeSet};

use super::error::Place;
use super::operands::Scope;
use super::{Checker, limits};
use crate::engine::model::{CaseValue, ParserCase, ParserState};

/// Where a parse ends; no state has one of these names.
const ENDS: [&str; 2] = ["accept", "reject"];

impl Checker<'_> {
    pub(super) fn parser(&mut self) {
        let own = self.own;
        let merged = self.merged;
        let parser = Place::root("parser");
        let list = parser.field("states");
        self.at_most(list, own.parser.states.len(), limits::STATES);
        self.unique(list, &own.parser.states, |state| &state.name);
        for (index, state) in merged.parser.states.iter().enumerate() {
            let place = list.item(index, own.parser.states.len(), &state.name);
            self.state(place, state);
        }
        self.extensions(parser.field("extend"));
        if !self.oversized {
            self.cycles(list);
        }
    }

    fn state(&mut self, place: Place<'_>, state: &ParserState) {
        if ENDS.contains(&state.name.as_str()) {
            self.error(
                place.field("name"),
                format!("`{}` ends a parse", state.name),
                "give the state another name",
            );
        }
        if let Some(header) = &state.extract {
            self.header(place.field("extract"), header);
        }
        let verify = place.field("verify");
        let count = self.at_most(verify, state.verify.len(), limits::VERIFIED);
        for (index, condition) in state.verify.iter().take(count).enumerate() {
            self.condition(verify.index(index), condition, Scope::Parser, 0);
        }
        let select = place.field("select");
        let count = self.at_most(select, state.select.len(), limits::SELECTED_FIELDS);
        for (index, name) in state.select.iter().take(count).enumerate() {
            self.read(select.index(index), name, Scope::Parser);
        }
        self.cases(place.field("cases"), &state.cases, state);
        self.next(place.field("default"), &state.default);
    }

    fn cases(&mut self, list: Place<'_>, cases: &[ParserCase], state: &ParserState) {
        let widths: Vec<Option<u16>> = state
            .select
            .iter()
            .map(|name| self.fields.get(name).map(|field| field.bits))
            .collect();
        let count = self.at_most(list, cases.len(), limits::CASES);
        for (index, case) in cases.iter().take(count).enumerate() {
            let place = list.index(index);
            self.next(place.field("next"), &case.next);
            let values = place.field("values");
            if case.values.len() != widths.len() {
                self.error(
                    values,
                    format!(
                        "{} values where state `{}` selects on {} fields",
                        case.values.len(),
                        state.name,
                        widths.len()
                    ),
                    "give one for each field",
                );
                continue;
            }
            for (index, (value, bits)) in case.values.iter().zip(&widths).enumerate() {
                let place = values.index(index);
                let Some(bits) = *bits else {
                    continue;
                };
                match value {
                    CaseValue::Exact(value) => {
                        self.number(place, value, bits);
                    }
                    CaseValue::Masked { value, mask } => {
                        let value = (place.field("value"), value);
                        self.masked_value(value, (place.field("mask"), mask), bits);
                    }
                }
            }
        }
    }

    fn next(&mut self, place: Place<'_>, name: &str) {
        if !ENDS.contains(&name) && !self.states.contains_key(name) {
            let known = self.states.keys().copied().chain(ENDS);
            let remedy = self.suggest(name, known);
            self.error(place, format!("there is no state `{name}`"), remedy);
        }
    }

    fn extensions(&mut self, list: Place<'_>) {
        let extensions = &self.own.parser.extend;
        let count = self.at_most(list, extensions.len(), limits::EXTENSIONS);
        for (index, extension) in extensions.iter().take(count).enumerate() {
            let place = list.index(index);
            match self.states.get(extension.state.as_str()).copied() {
                Some(state) => self.cases(place.field("cases"), &extension.cases, state),
                None => {
                    let remedy = self.suggest(&extension.state, self.states.keys().copied());
                    self.error(
                        place.field("state"),
                        format!("there is no state `{}`", extension.state),
                        remedy,
                    );
                }
            }
        }
    }

    /// Every way round takes something from the frame.
    fn cycles(&mut self, list: Place<'_>) {
        let own = self.own;
        let mut next: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for state in &self.merged.parser.states {
            if state.extract.is_none() {
                let cases = state.cases.iter().map(|case| case.next.as_str());
                let targets = next.entry(&state.name).or_default();
                targets.extend(cases.chain([state.default.as_str()]));
            }
        }
        for extension in &own.parser.extend {
            if let Some(targets) = next.get_mut(extension.state.as_str()) {
                targets.extend(extension.cases.iter().map(|case| case.next.as_str()));
            }
        }
        // What nothing leads to, or what leads to nothing, is on no cycle; each turn takes such states away.
        loop {
            let entered: BTreeSet<&str> = next.values().flatten().copied().collect();
            let left: BTreeSet<&str> = next.keys().copied().collect();
            let before = next.len();
            next.retain(|state, targets| {
                targets.retain(|target| left.contains(target));
                entered.contains(state) && !targets.is_empty()
            });
            if next.len() == before {
                break;
            }
        }
        for (index, state) in self.merged.parser.states.iter().enumerate() {
            if next.contains_key(state.name.as_str()) {
                self.error(
                    list.item(index, own.parser.states.len(), &state.name),
                    format!(
                        "`{}` leads back to itself without extracting a header",
                        state.name
                    ),
                    "extract a header on the way, or lead elsewhere",
                );
            }
        }
    }
}
