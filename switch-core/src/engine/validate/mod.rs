//! Whether a program is one: everything that can be wrong with it is said here, before anything runs it.
//!
//! [`validate`] walks the whole program and collects every fault with its place; what it lets through can be compiled without
//! further question. Nothing here recurses or loops further than the [limits] allow.
//!
//! * `error`: faults and places;
//! * `fields`: every field that can be named;
//! * `declarations`: names, headers, metadata, arrays;
//! * `parser`: the parse graph;
//! * `operands`: operands and conditions;
//! * `primitives`: what actions are made of;
//! * `values`: constants of entries and cases;
//! * `tables`: keys, actions, constant entries;
//! * `control`: `ingress` and `egress`.

mod control;
mod declarations;
mod error;
mod fields;
pub mod limits;
mod operands;
mod parser;
mod primitives;
mod tables;
mod values;

use std::collections::BTreeMap;

pub use error::{ProgramError, ProgramErrors};
pub use fields::{Field, FieldSource};

use super::ids::Ids;
use super::library;
use super::model::{ActionDecl, HeaderType, ParserState, Program, TableDecl};
use control::Control;
use error::Place;

/// A program that is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidProgram {
    source: Program,
    merged: Program,
    ids: Ids,
    fields: BTreeMap<String, Field>,
}

impl ValidProgram {
    /// The program with everything built-in made explicit. Its `parser.extend` is empty.
    pub fn program(&self) -> &Program {
        &self.merged
    }

    /// The program as it was given.
    pub fn source(&self) -> &Program {
        &self.source
    }

    /// Its numeric ids.
    pub fn ids(&self) -> &Ids {
        &self.ids
    }

    /// A field by its full name: `ipv4.dst`, `meta.x`, `std.in_port`, `vlan.valid`.
    pub fn field(&self, name: &str) -> Option<Field> {
        self.fields.get(name).copied()
    }

    /// Every field that can be named, by its full name.
    pub fn fields(&self) -> &BTreeMap<String, Field> {
        &self.fields
    }
}

impl Program {
    /// Reads and validates a program.
    ///
    /// # Errors
    /// What is wrong with the JSON, with line and column; else everything that is wrong with the program.
    pub fn from_json(text: &str) -> Result<ValidProgram, ProgramErrors> {
        if text.len() > limits::JSON_BYTES {
            return Err(ProgramErrors(vec![ProgramError {
                place: "the program".to_owned(),
                reason: format!("it has {} bytes", text.len()),
                remedy: format!("use at most {}", limits::JSON_BYTES),
            }]));
        }
        let program: Self = serde_json::from_str(text).map_err(|error| {
            let whole = error.to_string();
            let reason = whole.split(" at line ").next().unwrap_or(&whole);
            ProgramErrors(vec![ProgramError {
                place: format!("line {} column {}", error.line(), error.column()),
                reason: reason.to_owned(),
                remedy: "compare it with docs/program.schema.json".to_owned(),
            }])
        })?;
        validate(&program).map_err(ProgramErrors)
    }
}

/// Checks a whole program.
///
/// # Errors
/// Every fault that is found, up to [`limits::ERRORS`], each with its place and what to do. Where there are more headers, metadata or
/// arrays than may be, only the faults of these.
pub fn validate(program: &Program) -> Result<ValidProgram, Vec<ProgramError>> {
    // Extensions are checked where they stand, so the states are merged without them at first.
    let mut plain = program.clone();
    plain.parser.extend.clear();
    let merged = library::merge(&plain);
    let mut checker = Checker::new(program, &merged);
    checker.declarations();
    if checker.oversized {
        // What would be looked up in lists without bound is not looked at.
        return Err(checker.errors);
    }
    checker.parser();
    checker.actions();
    checker.tables();
    checker.controls();
    let ids = Ids::assign(program, |place, reason, remedy| {
        checker.fault(place, reason, remedy);
    });
    let errors = std::mem::take(&mut checker.errors);
    let fields = std::mem::take(&mut checker.fields);
    if errors.is_empty() {
        Ok(ValidProgram {
            source: program.clone(),
            merged: library::merge(program),
            ids,
            fields,
        })
    } else {
        Err(errors)
    }
}

/// What only one of the controls may do, found in an action.
struct Restricted {
    only: Control,
    what: String,
}

struct Checker<'p> {
    /// The program as it was given.
    own: &'p Program,
    /// With the built-in parts, without extensions of states.
    merged: &'p Program,
    fields: BTreeMap<String, Field>,
    header_types: BTreeMap<&'p str, &'p HeaderType>,
    headers: BTreeMap<&'p str, Option<&'p HeaderType>>,
    states: BTreeMap<&'p str, &'p ParserState>,
    actions: BTreeMap<&'p str, &'p ActionDecl>,
    tables: BTreeMap<&'p str, &'p TableDecl>,
    /// What the actions, and the keys of tables, do that only one control may.
    restricted_actions: BTreeMap<&'p str, Vec<Restricted>>,
    restricted_tables: BTreeMap<&'p str, Vec<Restricted>>,
    /// Of the action that is being checked.
    restricted: Vec<Restricted>,
    /// The control that is being checked.
    control: Option<Control>,
    statements: usize,
    conditions: usize,
    /// Whether a list was too long.
    oversized: bool,
    errors: Vec<ProgramError>,
}

impl<'p> Checker<'p> {
    fn new(own: &'p Program, merged: &'p Program) -> Self {
        let header_types: BTreeMap<_, _> = merged
            .header_types
            .iter()
            .map(|found| (found.name.as_str(), found))
            .collect();
        let headers = merged
            .headers
            .iter()
            .map(|header| {
                let found = header_types.get(header.header_type.as_str()).copied();
                (header.name.as_str(), found)
            })
            .collect();
        // A hostile number of fields is refused by the declarations; they are not spelled out for it.
        let too_many = own.headers.len() > limits::HEADERS
            || own.metadata.len() > limits::METADATA
            || own
                .header_types
                .iter()
                .any(|found| found.fields.len() > limits::HEADER_FIELDS);
        let fields = if too_many {
            fields::all(&library::merge(&Program {
                headers: Vec::new(),
                header_types: Vec::new(),
                metadata: Vec::new(),
                ..own.clone()
            }))
        } else {
            fields::all(merged)
        };
        Self {
            own,
            merged,
            fields,
            header_types,
            headers,
            states: by_name(&merged.parser.states, |state| &state.name),
            actions: by_name(&merged.actions, |action| &action.name),
            tables: by_name(&merged.tables, |table| &table.name),
            restricted_actions: BTreeMap::new(),
            restricted_tables: BTreeMap::new(),
            restricted: Vec::new(),
            control: None,
            statements: 0,
            conditions: 0,
            oversized: false,
            errors: Vec::new(),
        }
    }

    fn error(&mut self, place: Place<'_>, reason: impl Into<String>, remedy: impl Into<String>) {
        if self.errors.len() < limits::ERRORS {
            self.fault(place.to_string(), reason.into(), remedy.into());
        }
    }

    fn fault(&mut self, place: String, reason: String, remedy: String) {
        if self.errors.len() < limits::ERRORS {
            self.errors.push(ProgramError {
                place,
                reason,
                remedy,
            });
        }
    }

    /// What to write instead of a name that is not `known`.
    fn suggest<'a>(&self, name: &str, known: impl Iterator<Item = &'a str>) -> String {
        // The search costs most of what a fault does; after so many, it is not their spelling that is wrong.
        if self.errors.len() < limits::SUGGESTIONS {
            error::suggestion(name, known)
        } else {
            "declare it, or use a declared one".to_owned()
        }
    }

    /// Says when a list is too long, and how many of its items are looked at.
    fn at_most(&mut self, place: Place<'_>, count: usize, most: usize) -> usize {
        if count > most {
            self.oversized = true;
            self.error(
                place,
                format!("{count} are too many"),
                format!("use at most {most}"),
            );
        }
        count.min(most)
    }

    /// Notes something that only one control may do.
    fn only_in(&mut self, place: Place<'_>, only: Control, what: &str) {
        match self.control {
            // One of each kind tells enough.
            None if self.restricted.iter().any(|found| found.only == only) => {}
            None => self.restricted.push(Restricted {
                only,
                what: format!("{what} at {place}"),
            }),
            Some(control) if control == only => {}
            Some(control) => self.error(
                place,
                format!("{what} has no place in {control}"),
                format!("move it to {only}"),
            ),
        }
    }
}

fn by_name<T>(items: &[T], name: impl Fn(&T) -> &String) -> BTreeMap<&str, &T> {
    items
        .iter()
        .map(|item| (name(item).as_str(), item))
        .collect()
}
