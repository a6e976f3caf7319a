//! Which program the switch runs: one that ships with it, or a file.
use super::value::{InvalidField, quoted};
use std::fmt;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use switch_core::engine::model::Program;

/// Programs that ship with the switch.
pub const SHIPPED: [&str; 2] = ["l2", "vpc"];

/// Largest program file that is read: beyond any real one, so that a wrong path (`/dev/zero`) ends.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// Where a program comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProgramSource {
    /// With the switch, under this name.
    Shipped(&'static str),
    /// From a JSON file.
    File(PathBuf),
}

impl Default for ProgramSource {
    fn default() -> Self {
        Self::Shipped("l2")
    }
}

impl ProgramSource {
    /// `l2`, `vpc`, or the absolute path of a file.
    pub fn parse(text: &str) -> Result<Self, InvalidField> {
        if let Some(name) = SHIPPED.into_iter().find(|name| *name == text) {
            return Ok(Self::Shipped(name));
        }
        let path = Path::new(text);
        let plain = path.is_absolute()
            && !text.contains('\0')
            && path.components().all(|part| part != Component::ParentDir);
        if plain {
            return Ok(Self::File(path.to_owned()));
        }
        Err(InvalidField::new(
            "program",
            format!(
                "{} is neither l2 nor vpc nor the absolute path of a file",
                quoted(text)
            ),
            "write one of these, such as /etc/ringswitch/program.json",
        ))
    }
}

impl fmt::Display for ProgramSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shipped(name) => f.write_str(name),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// Why a program is refused: every fault, each with its place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .faults.join("\n"))]
pub struct ProgramFault {
    /// One line each, never none.
    pub faults: Vec<String>,
}

/// Reads a program's file. What it says is not looked at yet.
pub fn read(path: &Path) -> Result<Program, ProgramFault> {
    let fault = |reason: String| ProgramFault {
        faults: vec![format!("{}: {reason}", path.display())],
    };
    let unreadable =
        |error: std::io::Error| fault(format!("cannot be read ({error}); name a readable file"));
    let mut text = vec![];
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(unreadable)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(fault("it is larger than 16 MiB".to_owned()));
    }
    serde_json::from_slice(&text).map_err(|error| {
        fault(format!(
            "{error}; `ringswitch program schema` prints the form of a program"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_one_of_ours_or_an_absolute_path() {
        assert_eq!(
            ProgramSource::parse("vpc"),
            Ok(ProgramSource::Shipped("vpc"))
        );
        assert_eq!(
            ProgramSource::parse("/p.json"),
            Ok(ProgramSource::File("/p.json".into()))
        );
        for bad in ["", "l3", "p.json", "/a/../p.json"] {
            assert_eq!(
                ProgramSource::parse(bad).unwrap_err().field,
                "program",
                "{bad:?}"
            );
        }
    }
}
