//! What is wrong with a program, and where.

use std::fmt;

/// A fault of a program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.line())]
pub struct ProgramError {
    /// Where, as a path through the JSON form: `tables[3].key[0].field`. For faults of the JSON itself: line and column.
    pub place: String,
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub remedy: String,
}

impl ProgramError {
    /// What it quotes of the program may have several lines.
    fn line(&self) -> String {
        let whole = format!("{}: {}; {}", self.place, self.reason, self.remedy);
        whole.replace(char::is_control, " ")
    }
}

/// Everything that is wrong with a program; one fault a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramErrors(pub Vec<ProgramError>);

impl fmt::Display for ProgramErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ProgramErrors {}

/// A place in a program, made up while it is walked; written out only for an error.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    parent: Option<&'a Place<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Field(&'a str),
    Index(usize),
    BuiltIn(&'a str),
}

impl<'a> Place<'a> {
    /// A field of the program.
    pub(super) fn root(field: &'a str) -> Self {
        Self {
            parent: None,
            step: Step::Field(field),
        }
    }

    /// A field of what is here.
    pub(super) fn field(&'a self, field: &'a str) -> Self {
        self.then(Step::Field(field))
    }

    /// An item of the list that is here.
    pub(super) fn index(&'a self, index: usize) -> Self {
        self.then(Step::Index(index))
    }

    /// An item of the program's list that is here if `index` is among its `own`, else the built-in one of this name.
    pub(super) fn item(&'a self, index: usize, own: usize, name: &'a str) -> Self {
        self.then(if index < own {
            Step::Index(index)
        } else {
            Step::BuiltIn(name)
        })
    }

    fn then(&'a self, step: Step<'a>) -> Self {
        Self {
            parent: Some(self),
            step,
        }
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Field(field) if self.parent.is_none() => f.write_str(field),
            Step::Field(field) => write!(f, ".{field}"),
            Step::Index(index) => write!(f, "[{index}]"),
            Step::BuiltIn(name) => write!(f, "[built-in {name}]"),
        }
    }
}

/// `; did you mean ...` for a name that is nearly one of `known`, else the whole list if it is short.
pub(super) fn suggestion<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let mut nearest: Option<(usize, &str)> = None;
    let mut all = Vec::new();
    for candidate in known {
        if all.len() <= LISTED {
            all.push(candidate);
        }
        if candidate.len().abs_diff(name.len()) > 3 || name.len() > 64 {
            continue;
        }
        let distance = edits(name, candidate);
        if distance <= 1 + name.len() / 4 && nearest.is_none_or(|(least, _)| distance < least) {
            nearest = Some((distance, candidate));
        }
    }
    match nearest {
        Some((_, candidate)) => format!("did you mean `{candidate}`?"),
        None if all.is_empty() => "there is none; declare it".to_owned(),
        None if all.len() <= LISTED => format!("use one of {}, or declare it", all.join(", ")),
        None => "declare it, or use a declared one".to_owned(),
    }
}

const LISTED: usize = 12;

/// How many letters must change, come or go to make one of the other (Levenshtein's distance).
fn edits(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (line, letter) in one.bytes().enumerate() {
        let mut diagonal = line;
        let mut left = line + 1;
        for (index, candidate) in other.bytes().enumerate() {
            let Some(above) = row.get(index + 1).copied() else {
                break;
            };
            let here = (diagonal + usize::from(letter != candidate))
                .min(left + 1)
                .min(above + 1);
            if let Some(cell) = row.get_mut(index) {
                *cell = left;
            }
            diagonal = above;
            left = here;
        }
        if let Some(cell) = row.last_mut() {
            *cell = left;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_suggested() {
        for (one, other, distance) in [
            ("", "", 0),
            ("abc", "abc", 0),
            ("abc", "", 3),
            ("", "abc", 3),
            ("kitten", "sitting", 3),
            ("dst", "dts", 2),
        ] {
            assert_eq!(edits(one, other), distance, "{one} {other}");
        }
        let known = ["src_port", "dst_port", "checksum"];
        assert_eq!(
            suggestion("dst_prt", known.into_iter()),
            "did you mean `dst_port`?"
        );
        assert_eq!(
            suggestion("banana", known.into_iter()),
            "use one of src_port, dst_port, checksum, or declare it"
        );
    }

    #[test]
    fn a_place_reads_as_a_path() {
        let tables = Place::root("tables");
        let table = tables.index(3);
        let key = table.field("key");
        let first = key.index(0);
        assert_eq!(first.field("field").to_string(), "tables[3].key[0].field");
    }
}
