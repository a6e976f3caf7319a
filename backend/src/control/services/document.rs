//! The configuration of the services as text: a request's body, a file, or what the store has.
use crate::control::tables::{Store, StoreError};
use serde_json::{Map, Value, json};
use std::io::Read;
use std::path::{Path, PathBuf};
use switch_core::service::{RouterInterface, ServiceConfigError, ServicesConfig};

/// Largest document: 4096 interfaces with some reservations each.
pub const MAX_DOCUMENT_BYTES: usize = 8 * 1024 * 1024;
/// Under which name the store keeps it.
const NAME: &str = "services";

/// What is wrong with a document, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentFault {
    /// It is not JSON.
    #[error("{0}")]
    Syntax(String),
    /// It is JSON of another form.
    #[error("{}{reason}", .place.as_ref().map(|place| format!("{place}: ")).unwrap_or_default())]
    Form {
        /// The place, as far as it can be told: `interfaces[2].mac`.
        place: Option<String>,
        /// What is wrong there.
        reason: String,
    },
    /// It cannot be used.
    #[error(transparent)]
    Config(#[from] ServiceConfigError),
}

/// What is wrong with the file that `services` names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", .path.display())]
pub struct ServicesFileFault {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// Reads a document and checks it whole.
///
/// # Errors
/// See [`DocumentFault`].
pub fn parse(text: &[u8]) -> Result<ServicesConfig, DocumentFault> {
    let config: ServicesConfig = serde_json::from_slice(text).map_err(|error| {
        if error.classify() != serde_json::error::Category::Data {
            return DocumentFault::Syntax(error.to_string());
        }
        let place = place_of_fault(text);
        DocumentFault::Form {
            reason: error.to_string(),
            place,
        }
    })?;
    config.check()?;
    Ok(config)
}

/// The first part of a document that does not read by itself.
fn place_of_fault(text: &[u8]) -> Option<String> {
    let document: Map<String, Value> = serde_json::from_slice(text).ok()?;
    for (name, value) in document {
        let alone = Value::Object(Map::from_iter([(name.clone(), value.clone())]));
        if serde_json::from_value::<ServicesConfig>(alone).is_ok() {
            continue;
        }
        let interfaces = value.as_array().filter(|_| name == "interfaces");
        let at_fault = interfaces.and_then(|interfaces| {
            interfaces
                .iter()
                .enumerate()
                .find_map(|(index, interface)| {
                    serde_json::from_value::<RouterInterface>(interface.clone()).err()?;
                    let field = interface_fault(interface)
                        .map(|field| format!(".{field}"))
                        .unwrap_or_default();
                    Some(format!("interfaces[{index}]{field}"))
                })
        });
        return Some(at_fault.unwrap_or(name));
    }
    None
}

/// The field of a router interface that does not read; `None`: one is missing.
fn interface_fault(interface: &Value) -> Option<String> {
    let sound = json!({"id": 1, "domain": 1, "mac": "02:00:00:00:00:01", "addresses": []});
    interface.as_object()?.iter().find_map(|(name, value)| {
        let mut probe = sound.clone();
        probe.as_object_mut()?.insert(name.clone(), value.clone());
        serde_json::from_value::<RouterInterface>(probe).err()?;
        Some(name.clone())
    })
}

/// Reads the file that the switch's configuration names.
///
/// # Errors
/// When it cannot be read or used.
pub fn read(path: &Path) -> Result<ServicesConfig, ServicesFileFault> {
    let fault = |reason: String| ServicesFileFault {
        path: path.to_owned(),
        reason,
    };
    let unreadable =
        |error: std::io::Error| fault(format!("cannot be read ({error}); name a readable file"));
    let mut text = vec![];
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(MAX_DOCUMENT_BYTES as u64 + 1)
        .read_to_end(&mut text)
        .map_err(unreadable)?;
    if text.len() > MAX_DOCUMENT_BYTES {
        return Err(fault(
            "it is larger than 8 MiB; name a configuration of services".to_owned(),
        ));
    }
    parse(&text).map_err(|error| fault(error.to_string()))
}

/// What the store has.
///
/// # Errors
/// When the store cannot be read, or has what this version cannot use.
pub fn stored(store: &Store) -> Result<Option<ServicesConfig>, StoreError> {
    let Some(text) = store.document(NAME)? else {
        return Ok(None);
    };
    parse(&text)
        .map(Some)
        .map_err(|error| StoreError::Content(format!("services: {error}")))
}

/// Makes a configuration durable.
///
/// # Errors
/// When the store cannot be written.
pub fn store(store: &Store, config: &ServicesConfig) -> Result<(), StoreError> {
    let text =
        serde_json::to_vec(config).map_err(|error| StoreError::Content(error.to_string()))?;
    store.set_document(NAME, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> String {
        parse(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn a_fault_names_its_place() {
        assert!(parse(b"{}").is_ok());
        assert!(fault("{").contains("line 1"));
        let interface = |more: &str| {
            format!(
                r#"{{"interfaces": [{{"id": 1, "domain": 1, "mac": "02:00:00:00:00:01", "addresses": ["10.0.0.1/24"]}}, {{"id": 2, "domain": 2{more}}}]}}"#
            )
        };
        let addresses = r#", "addresses": ["10.0.1.1/24"]"#;
        for (text, place) in [
            (r#"{"interface": []}"#.to_owned(), "interface: "),
            (r#"{"limits": {"neighbors": "x"}}"#.to_owned(), "limits: "),
            (interface(addresses), "interfaces[1]: "),
            (
                interface(&format!(r#"{addresses}, "mac": 7"#)),
                "interfaces[1].mac: ",
            ),
            (
                interface(&format!(
                    r#"{addresses}, "mac": "02:00:00:00:00:02", "mut": 7"#
                )),
                "interfaces[1].mut: ",
            ),
            (
                interface(&format!(
                    r#"{addresses}, "mac": "02:00:00:00:00:02", "mtu": 7"#
                )),
                "interfaces[1].mtu: ",
            ),
        ] {
            assert!(fault(&text).starts_with(place), "{text}: {}", fault(&text));
        }
    }
}
