//! Which two ways to write a key mean the same entry: a key as bytes that are equal exactly then.
//!
//! `80`, `"0x50"` and `{"low": 80, "high": 80}`; `"10.0.0.0/8"` and `{"value": "10.1.2.3", "prefix_bits": 8}`; a port by name and by
//! number. The store keeps entries under these bytes, the quota counts them. All entries of a table stand together.
use super::engine::KeyShape;
use std::collections::BTreeMap;
use switch_core::engine::control::{EntryName, PortNames, TableEntry};
use switch_core::engine::literal::{Literal, parse_number};
use switch_core::engine::model::{Format, KeyKind, KeyMatch};

/// Names an entry, whichever way its key was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity(Box<[u8]>);

/// A key that names no entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct NoIdentity {
    /// Which part: `key.NAME`.
    pub place: String,
    /// What is wrong with it.
    pub reason: String,
}

/// The part of an entry that names it.
#[derive(Clone, Copy, Debug)]
pub struct Named<'a> {
    /// The table.
    pub table: &'a str,
    /// The key.
    pub key: &'a BTreeMap<String, KeyMatch>,
    /// The priority.
    pub priority: Option<i32>,
}

impl<'a> From<&'a TableEntry> for Named<'a> {
    fn from(entry: &'a TableEntry) -> Self {
        Self {
            table: &entry.table,
            key: &entry.key,
            priority: entry.priority,
        }
    }
}

impl<'a> From<&'a EntryName> for Named<'a> {
    fn from(name: &'a EntryName) -> Self {
        Self {
            table: &name.table,
            key: &name.key,
            priority: name.priority,
        }
    }
}

impl Identity {
    /// The identity of an entry in a table with this key.
    pub fn of(
        entry: Named<'_>,
        shapes: &[KeyShape],
        ports: &dyn PortNames,
    ) -> Result<Self, NoIdentity> {
        let key_bytes: usize = shapes.iter().map(|shape| 2 * width_bytes(shape)).sum();
        let mut bytes = Vec::with_capacity(1 + entry.table.len() + key_bytes + 4);
        write_prefix(&mut bytes, entry.table);
        if let Some(stray) = entry
            .key
            .keys()
            .find(|name| shapes.iter().all(|shape| shape.name != **name))
        {
            return Err(NoIdentity {
                place: format!("key.{stray}"),
                reason: "the table has no such key".to_owned(),
            });
        }
        for shape in shapes {
            let matched = entry.key.get(&shape.name);
            write_field(&mut bytes, shape, matched, ports).map_err(|reason| NoIdentity {
                place: format!("key.{}", shape.name),
                reason,
            })?;
        }
        // Sign bit turned over, so that the bytes sort as the priorities do.
        let priority = entry.priority.unwrap_or(0).cast_unsigned() ^ (1 << 31);
        bytes.extend(priority.to_be_bytes());
        Ok(Self(bytes.into()))
    }

    /// As the store kept it.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// For the store.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What the identities of a table's entries, and of no other's, begin with.
pub fn prefix(table: &str) -> Vec<u8> {
    let mut bytes = vec![];
    write_prefix(&mut bytes, table);
    bytes
}

fn write_prefix(bytes: &mut Vec<u8>, table: &str) {
    bytes.push(u8::try_from(table.len()).unwrap_or(u8::MAX));
    bytes.extend(table.as_bytes());
}

fn width_bytes(shape: &KeyShape) -> usize {
    usize::from(shape.bits.div_ceil(8)).min(16)
}

fn write_field(
    bytes: &mut Vec<u8>,
    shape: &KeyShape,
    matched: Option<&KeyMatch>,
    ports: &dyn PortNames,
) -> Result<(), String> {
    let all = ones(shape.bits);
    let first = match matched {
        None => match shape.kind {
            KeyKind::Exact => return Err("it is missing".to_owned()),
            KeyKind::Lpm | KeyKind::Ternary => Bits {
                first: 0,
                second: 0,
            },
            KeyKind::Range => Bits {
                first: 0,
                second: all,
            },
            KeyKind::Optional => Bits {
                first: 0,
                second: 0,
            },
        },
        Some(matched) => bits_of(shape, matched, ports)?,
    };
    let width = width_bytes(shape);
    for number in [first.first, first.second] {
        bytes.extend(number.to_be_bytes().get(16 - width..).unwrap_or_default());
    }
    Ok(())
}

/// Value and mask; for a range, its ends.
struct Bits {
    first: u128,
    second: u128,
}

fn bits_of(shape: &KeyShape, matched: &KeyMatch, ports: &dyn PortNames) -> Result<Bits, String> {
    let all = ones(shape.bits);
    let value = |literal: &Literal| number(shape, literal, ports);
    let written = match matched {
        KeyMatch::Text(Literal::Text(text)) => split_text(text),
        KeyMatch::Text(number) => Written::Value(number.clone()),
        KeyMatch::Prefix { value, prefix_bits } => Written::Prefix(value.clone(), *prefix_bits),
        KeyMatch::Masked { value, mask } => Written::Masked(value.clone(), mask.clone()),
        KeyMatch::Range { low, high } => Written::Range(low.clone(), high.clone()),
    };
    match (shape.kind, written) {
        (KeyKind::Range, Written::Range(low, high)) => Ok(Bits {
            first: value(&low)?,
            second: value(&high)?,
        }),
        (KeyKind::Range, Written::Value(one)) => {
            let one = value(&one)?;
            Ok(Bits {
                first: one,
                second: one,
            })
        }
        (KeyKind::Lpm | KeyKind::Ternary, Written::Prefix(address, bits)) => {
            let mask = prefix_mask(shape.bits, bits)?;
            Ok(Bits {
                first: value(&address)? & mask,
                second: mask,
            })
        }
        (KeyKind::Ternary, Written::Masked(bits, mask)) => {
            let mask = value(&mask)?;
            Ok(Bits {
                first: value(&bits)? & mask,
                second: mask,
            })
        }
        (
            KeyKind::Exact | KeyKind::Lpm | KeyKind::Ternary | KeyKind::Optional,
            Written::Value(one),
        ) => Ok(Bits {
            first: value(&one)?,
            second: all,
        }),
        (KeyKind::Exact | KeyKind::Optional, _) => {
            Err("it is compared as a whole: write one value".to_owned())
        }
        (KeyKind::Lpm, _) => Err("write a prefix, such as 10.0.0.0/8".to_owned()),
        (KeyKind::Ternary, _) => Err("write a value, a prefix, or value&mask".to_owned()),
        (KeyKind::Range, _) => Err("write a value or a range, such as 80..443".to_owned()),
    }
}

enum Written {
    Value(Literal),
    Prefix(Literal, u16),
    Masked(Literal, Literal),
    Range(Literal, Literal),
}

/// `a/8`, `a&m`, `a..b`, or a value.
fn split_text(text: &str) -> Written {
    if let Some((low, high)) = text.split_once("..") {
        return Written::Range(Literal::parse(low.trim()), Literal::parse(high.trim()));
    }
    if let Some((value, mask)) = text.split_once('&') {
        return Written::Masked(Literal::parse(value.trim()), Literal::parse(mask.trim()));
    }
    if let Some((value, bits)) = text.rsplit_once('/')
        && let Ok(bits) = bits.trim().parse()
    {
        return Written::Prefix(Literal::parse(value.trim()), bits);
    }
    Written::Value(Literal::parse(text.trim()))
}

fn number(shape: &KeyShape, literal: &Literal, ports: &dyn PortNames) -> Result<u128, String> {
    let number = match literal {
        Literal::Number(number) => *number,
        Literal::Text(name) if shape.format == Format::Port => match ports.id(name) {
            Some(id) => id.get().into(),
            None => {
                return Err(format!(
                    "`{name}` is no port's name, and no number is left for it"
                ));
            }
        },
        Literal::Text(text) => {
            parse_number(text).ok_or_else(|| format!("`{text}` is no number or address"))?
        }
    };
    if number > ones(shape.bits) {
        return Err(format!("{number} does not fit {} bits", shape.bits));
    }
    Ok(number)
}

fn prefix_mask(width: u16, bits: u16) -> Result<u128, String> {
    if bits > width {
        return Err(format!(
            "a prefix of {bits} bits is longer than the field, which has {width}"
        ));
    }
    Ok(ones(width) & !ones(width - bits))
}

fn ones(bits: u16) -> u128 {
    match bits {
        128.. => u128::MAX,
        bits => (1 << bits) - 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::PortId;

    struct Ports;
    impl PortNames for Ports {
        fn id(&self, name: &str) -> Option<PortId> {
            (name == "vm1").then(|| PortId::new(7).unwrap())
        }
        fn name(&self, _: PortId) -> Option<String> {
            None
        }
    }

    fn shape(kind: KeyKind, bits: u16, format: Format) -> KeyShape {
        KeyShape {
            name: "k".to_owned(),
            kind,
            bits,
            format,
        }
    }

    fn identity(shape: &KeyShape, json: &str) -> Result<Identity, NoIdentity> {
        let key = BTreeMap::from([("k".to_owned(), serde_json::from_str(json).unwrap())]);
        let named = Named {
            table: "t",
            key: &key,
            priority: None,
        };
        Identity::of(named, std::slice::from_ref(shape), &Ports)
    }

    #[test]
    fn one_entry_written_in_two_ways_is_one() {
        let lpm = shape(KeyKind::Lpm, 32, Format::Ipv4);
        let ternary = shape(KeyKind::Ternary, 16, Format::Number);
        let range = shape(KeyKind::Range, 16, Format::Number);
        let port = shape(KeyKind::Exact, 16, Format::Port);
        for (shape, one, other) in [
            (
                &lpm,
                r#""10.0.0.0/8""#,
                r#"{"value": "10.9.9.9", "prefix_bits": 8}"#,
            ),
            (&lpm, r#""10.0.0.1""#, r#""10.0.0.1/32""#),
            (
                &ternary,
                r#""0x0800&0xff00""#,
                r#"{"value": 2049, "mask": 65280}"#,
            ),
            (&ternary, "5", r#""5&0xffff""#),
            (&range, "80", r#""80..80""#),
            (&range, r#""80..443""#, r#"{"low": 80, "high": "0x1bb"}"#),
            (&port, r#""vm1""#, "7"),
        ] {
            assert_eq!(
                identity(shape, one).unwrap(),
                identity(shape, other).unwrap()
            );
        }
        assert_ne!(
            identity(&lpm, r#""10.0.0.0/8""#).unwrap(),
            identity(&lpm, r#""10.0.0.0/9""#).unwrap()
        );
    }

    #[test]
    fn what_names_no_entry_is_refused_with_its_place() {
        let exact = shape(KeyKind::Exact, 16, Format::Port);
        let lpm = shape(KeyKind::Lpm, 32, Format::Ipv4);
        for (shape, json) in [
            (&exact, "65536"),
            (&exact, r#""nobody""#),
            (&exact, r#""1..2""#),
            (&lpm, r#""10.0.0.0/33""#),
            (&lpm, r#""1&1""#),
        ] {
            assert_eq!(identity(shape, json).unwrap_err().place, "key.k", "{json}");
        }
    }
}
