//! The JSON Schema of the JSON form.

use serde_json::Value;

/// The schema's text: `docs/program.schema.json`, JSON Schema 2020-12.
pub const JSON_SCHEMA: &str = include_str!("../../../docs/program.schema.json");

/// The schema.
///
/// # Errors
/// Never: the text is part of the crate, and tests read it.
pub fn json_schema() -> Result<Value, serde_json::Error> {
    serde_json::from_str(JSON_SCHEMA)
}
