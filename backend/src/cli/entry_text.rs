//! Keys and arguments as people write them: `port=vm1,protocol=6,dst=10.0.0.0/8,dst_port=80..443`.
//!
//! A comma within a value is doubled, as in `--port`. What a value means is the daemon's to say; here it only has to have a name.
use crate::config::InvalidField;
use std::collections::BTreeMap;
use switch_core::engine::literal::{Literal, is_name};
use switch_core::engine::model::KeyMatch;

/// A key; the empty text is one without fields.
pub fn parse_key(text: &str) -> Result<BTreeMap<String, KeyMatch>, InvalidField> {
    let pairs = pairs("key", text)?;
    Ok(pairs
        .into_iter()
        .map(|(name, value)| (name, KeyMatch::Text(value)))
        .collect())
}

/// Arguments of an action; the empty text is none.
pub fn parse_params(text: &str) -> Result<BTreeMap<String, Literal>, InvalidField> {
    pairs("params", text)
}

fn pairs(field: &'static str, text: &str) -> Result<BTreeMap<String, Literal>, InvalidField> {
    let refuse = |reason: String| {
        InvalidField::new(
            field,
            reason,
            "write name=value pairs separated by commas, such as dst=10.0.0.0/8,dst_port=80..443",
        )
    };
    let mut pairs = BTreeMap::new();
    if text.is_empty() {
        return Ok(pairs);
    }
    for item in crate::config::flags::split_items(text) {
        let (name, value) = item
            .split_once('=')
            .ok_or_else(|| refuse(format!("`{item}` is not name=value")))?;
        // Key names may be fields: `ipv4.dst`.
        if !name.split('.').all(is_name) || value.is_empty() {
            return Err(refuse(format!("`{item}` is not name=value")));
        }
        if pairs
            .insert(name.to_owned(), Literal::parse(value))
            .is_some()
        {
            return Err(refuse(format!("`{name}` is given twice")));
        }
    }
    Ok(pairs)
}

/// A key as [`parse_key`] reads it.
pub fn key_text(key: &BTreeMap<String, KeyMatch>) -> String {
    let one = |(name, matched): (&String, &KeyMatch)| {
        let value = match matched {
            KeyMatch::Text(literal) => literal.to_string(),
            KeyMatch::Prefix { value, prefix_bits } => format!("{value}/{prefix_bits}"),
            KeyMatch::Masked { value, mask } => format!("{value}&{mask}"),
            KeyMatch::Range { low, high } => format!("{low}..{high}"),
        };
        format!("{name}={}", value.replace(',', ",,"))
    };
    key.iter().map(one).collect::<Vec<_>>().join(",")
}

/// Arguments as [`parse_params`] reads them.
pub fn params_text(params: &BTreeMap<String, Literal>) -> String {
    let one = |(name, value): (&String, &Literal)| {
        format!("{name}={}", value.to_string().replace(',', ",,"))
    };
    params.iter().map(one).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_written_as_it_is_read() {
        let text = "dst=10.0.0.0/8,dst_port=80..443,flags=2&18,port=vm1";
        let key = parse_key(text).unwrap();
        assert_eq!(key["port"], KeyMatch::Text(Literal::Text("vm1".to_owned())));
        assert_eq!(key_text(&key), text);
        assert_eq!(
            parse_params("a=0x10,b=x,,y").unwrap(),
            BTreeMap::from([
                ("a".to_owned(), Literal::Number(16)),
                ("b".to_owned(), Literal::Text("x,y".to_owned()))
            ])
        );
        assert!(parse_key("").unwrap().is_empty());
    }

    #[test]
    fn what_is_no_pair_is_refused() {
        for text in ["a", "a=", "=1", "a=1,", "a=1,a=2", "a b=1"] {
            assert_eq!(parse_key(text).unwrap_err().field, "key", "{text:?}");
        }
    }
}
