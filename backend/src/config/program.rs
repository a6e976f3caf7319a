//! Which program the switch runs: one that ships with it, or a file.
use super::value::{InvalidField, quoted};
use std::fmt;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use switch_core::engine::model::Program;
use switch_core::engine::validate::ValidProgram;
use switch_core::programs::builtin;

/// Programs that ship with the switch.
pub const SHIPPED: [&str; 2] = [COMPILED_IN, "vpc"];

/// The one that the switch has compiled in.
const COMPILED_IN: &str = "l2";

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
        Self::Shipped(COMPILED_IN)
    }
}

impl ProgramSource {
    /// `l2`, `vpc`, or the absolute path of a file.
    pub fn parse(text: &str) -> Result<Self, InvalidField> {
        if let Some(name) = shipped(text) {
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

impl ProgramSource {
    /// From the command line: as in the configuration, but a file's path may be relative.
    pub fn from_argument(text: &str) -> Self {
        match shipped(text) {
            Some(name) => Self::Shipped(name),
            None => Self::File(text.into()),
        }
    }

    /// Whether the switch does its work by itself, without an engine.
    pub fn is_compiled_in(&self) -> bool {
        *self == Self::Shipped(COMPILED_IN)
    }

    /// Reads and checks the program.
    pub fn load(&self) -> Result<ValidProgram, ProgramFault> {
        let text = match self {
            Self::Shipped(name) => builtin(name)
                .ok_or_else(|| ProgramFault {
                    faults: vec![format!(
                        "{name}: this version of Ringswitch does not have it; name a program's JSON file"
                    )],
                })?
                .to_owned(),
            Self::File(path) => read(path)?,
        };
        match Program::from_json(&text) {
            Ok(valid) => Ok(valid),
            Err(errors) => Err(ProgramFault {
                faults: errors
                    .0
                    .iter()
                    .map(|error| format!("{self}: {error}"))
                    .collect(),
            }),
        }
    }
}

fn shipped(name: &str) -> Option<&'static str> {
    SHIPPED.into_iter().find(|shipped| *shipped == name)
}

fn read(path: &Path) -> Result<String, ProgramFault> {
    let fault = |reason: String| ProgramFault {
        faults: vec![format!("{}: {reason}", path.display())],
    };
    let unreadable =
        |error: std::io::Error| fault(format!("cannot be read ({error}); name a readable file"));
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(MAX_FILE_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(fault("it is larger than 16 MiB; name a program".to_owned()));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_of_a_file_is_named_with_its_place() {
        let folder = vmm_sys_util::tempdir::TempDir::new_with_prefix(
            std::env::temp_dir().join("ringswitch-program-"),
        )
        .unwrap();
        let path = folder.as_path().join("p.json");
        let load = |text: &str| {
            std::fs::write(&path, text).unwrap();
            ProgramSource::File(path.clone()).load()
        };
        assert!(load(r#"{"name": "p", "ingress": []}"#).is_ok());
        let faults = |text: &str| load(text).unwrap_err().faults;
        let malformed = faults("{\n  \"name\": 7\n}");
        assert!(
            malformed[0].contains("p.json: line 2 column "),
            "{malformed:?}"
        );
        let several = faults(
            r#"{"name": "p", "ingress": [{"apply": {"table": "a"}}, {"apply": {"table": "b"}}]}"#,
        );
        assert_eq!(several.len(), 2, "{several:?}");
        assert!(several[1].contains("ingress[1]"), "{several:?}");
        for path in ["/nonexistent", "/", "/dev/zero"] {
            let fault = ProgramSource::File(path.into()).load().unwrap_err();
            assert!(fault.faults[0].starts_with(path), "{fault}");
        }
    }

    #[test]
    fn the_default_program_is_there_as_data_and_no_other_runs_in_the_place_of_one_that_is_not() {
        let default = ProgramSource::default();
        assert!(default.is_compiled_in());
        assert_eq!(default.load().unwrap().source().name, "l2");
        let vpc = ProgramSource::Shipped("vpc");
        assert!(!vpc.is_compiled_in());
        match vpc.load() {
            Ok(program) => assert_eq!(program.source().name, "vpc"),
            Err(fault) => assert!(fault.faults[0].starts_with("vpc: "), "{fault}"),
        }
    }

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
