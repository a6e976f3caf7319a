//! What every program may use without declaring it: header types, headers and parser states, and how a program's own are put over
//! them.
//!
//! * [`headers`]: the types and the headers of them;
//! * `states`: the parse graph.
//!
//! For valid frames the graph finds the headers that [`Headers::parse`](crate::parse::Headers::parse) finds.

mod headers;
mod states;

use super::model::{HeaderInstance, HeaderType, Parser, ParserCase, ParserState, Program};

/// The built-in header types.
pub fn header_types() -> Vec<HeaderType> {
    headers::types()
}

/// The built-in headers.
pub fn headers() -> Vec<HeaderInstance> {
    headers::instances()
}

/// The built-in states of the parser.
pub fn parser_states() -> Vec<ParserState> {
    states::states()
}

/// The program with everything built-in made explicit.
///
/// A type, header or state of the program replaces the built-in one of its name. The program's own stand first, so what stands at
/// `tables[3]` or `parser.states[1]` of the program still does. The cases of `parser.extend` are put before those of their state, in
/// the order they are listed; `extend` is empty then. Nothing is checked: an extension of a state that does not exist is gone.
pub fn merge(program: &Program) -> Program {
    let mut merged = program.clone();
    let Parser { states, extend } = &mut merged.parser;
    add_missing(
        &mut merged.header_types,
        header_types(),
        |header_type: &HeaderType| &header_type.name,
    );
    add_missing(&mut merged.headers, headers(), |header: &HeaderInstance| {
        &header.name
    });
    add_missing(states, parser_states(), |state: &ParserState| &state.name);
    let extensions = std::mem::take(extend);
    for state in states {
        let mut cases: Vec<ParserCase> = extensions
            .iter()
            .filter(|extension| extension.state == state.name)
            .flat_map(|extension| extension.cases.iter().cloned())
            .collect();
        if !cases.is_empty() {
            cases.append(&mut state.cases);
            state.cases = cases;
        }
    }
    merged
}

/// Adds those of `built_in` whose name `own` does not have.
fn add_missing<T>(own: &mut Vec<T>, built_in: Vec<T>, name: impl Fn(&T) -> &String) {
    let missing: Vec<T> = built_in
        .into_iter()
        .filter(|item| !own.iter().any(|other| name(other) == name(item)))
        .collect();
    own.extend(missing);
}
