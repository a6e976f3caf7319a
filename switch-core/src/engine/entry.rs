//! Entries between the form that people write and the form that tables hold.

use std::collections::BTreeMap;

use super::compile::{Compiled, Param, Table};
use super::control::{PortNames, WriteError, WriteErrorKind};
use super::literal::{Literal, parse_number};
use super::model::{Format, KeyKind, KeyMatch};
use super::packet::within;
use super::text::value_text;
use crate::table::{EntryKey, KeyField, MatchKind, Matcher, TableError};

/// What is wrong with a part of an update.
#[derive(Debug)]
pub(crate) struct Fault {
    pub place: String,
    pub kind: WriteErrorKind,
    pub reason: String,
    pub remedy: String,
}

impl Fault {
    pub(crate) fn new(
        place: impl Into<String>,
        kind: WriteErrorKind,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            place: place.into(),
            kind,
            reason: reason.into(),
            remedy: remedy.into(),
        }
    }

    pub(crate) fn invalid(
        place: impl Into<String>,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(place, WriteErrorKind::Invalid, reason, remedy)
    }

    pub(crate) fn at(self, index: usize) -> WriteError {
        WriteError {
            index,
            place: self.place,
            kind: self.kind,
            reason: self.reason,
            remedy: self.remedy,
        }
    }
}

/// What a table says, with the name of the key field that it is about.
pub(crate) fn refused(error: &TableError, table: &Table) -> Fault {
    let kind = match error {
        TableError::AlreadyExists => WriteErrorKind::AlreadyExists,
        TableError::NotFound => WriteErrorKind::NotFound,
        TableError::Full { .. }
        | TableError::TooManyMasks { .. }
        | TableError::TooManyOverlaps { .. }
        | TableError::TooManyVersions { .. } => WriteErrorKind::Full,
        _ => WriteErrorKind::Invalid,
    };
    let field = match error {
        TableError::WrongMatcher { field, .. }
        | TableError::TooWide { field, .. }
        | TableError::NotCanonical { field, .. }
        | TableError::EmptyRange { field, .. } => table.key.get(*field),
        _ => None,
    };
    let place = match (field, error) {
        (Some(key), _) => format!("key.{}", key.name),
        (None, TableError::PriorityUnused(_)) => "priority".to_owned(),
        (None, _) => "key".to_owned(),
    };
    let text = error.to_string();
    let (reason, remedy) = text.split_once("; ").unwrap_or((&text, "correct it"));
    Fault::new(place, kind, reason, remedy)
}

/// The kind of a key field in its table: where priorities decide, the longest prefix does not.
pub(crate) fn key_field(table: &Table, number: usize) -> Option<KeyField> {
    let key = table.key.get(number)?;
    Some(KeyField {
        bits: key.field.bits(),
        kind: match key.kind {
            KeyKind::Exact => MatchKind::Exact,
            KeyKind::Lpm if table.has_priorities() => MatchKind::Ternary,
            KeyKind::Lpm => MatchKind::Lpm,
            KeyKind::Ternary => MatchKind::Ternary,
            KeyKind::Range => MatchKind::Range,
            KeyKind::Optional => MatchKind::Optional,
        },
    })
}

/// Resolves an entry's key.
pub(crate) fn resolve_key(
    table: &Table,
    key: &BTreeMap<String, KeyMatch>,
    priority: Option<i32>,
    names: &dyn PortNames,
) -> Result<EntryKey, Fault> {
    if let Some(unknown) = key
        .keys()
        .find(|name| !table.key.iter().any(|spec| &spec.name == *name))
    {
        let known: Vec<&str> = table.key.iter().map(|spec| spec.name.as_str()).collect();
        return Err(Fault::invalid(
            format!("key.{unknown}"),
            format!("table {} has no such key field", table.name),
            format!("use {}", known.join(", ")),
        ));
    }
    let mut matchers = Vec::with_capacity(table.key.len());
    for (number, spec) in table.key.iter().enumerate() {
        let place = || format!("key.{}", spec.name);
        let field = key_field(table, number)
            .ok_or_else(|| Fault::invalid(place(), "the field is not known", "leave it out"))?;
        let matcher = match key.get(&spec.name) {
            Some(wanted) => matcher(wanted, field, spec.format, names)
                .map_err(|(reason, remedy)| Fault::invalid(place(), reason, remedy))?,
            None if field.kind == MatchKind::Exact => {
                return Err(Fault::invalid(
                    place(),
                    "it is missing",
                    "an exact key field needs a value",
                ));
            }
            None => Matcher::Any,
        };
        matchers.push(matcher);
    }
    let priority = match (table.has_priorities(), priority) {
        (true, Some(priority)) if priority > 0 => priority,
        (true, _) => {
            return Err(Fault::invalid(
                "priority",
                "entries of this table need one",
                "give a priority from 1 on; the largest wins",
            ));
        }
        (false, None | Some(0)) => 0,
        (false, Some(_)) => {
            return Err(Fault::invalid(
                "priority",
                "entries of this table have none",
                "leave it out",
            ));
        }
    };
    Ok(EntryKey { matchers, priority })
}

type Said = (String, String);

fn matcher(
    wanted: &KeyMatch,
    field: KeyField,
    format: Format,
    names: &dyn PortNames,
) -> Result<Matcher, Said> {
    let number = |literal: &Literal| number(literal, format, names);
    match wanted {
        KeyMatch::Prefix { value, prefix_bits } => prefix(number(value)?, *prefix_bits, field),
        KeyMatch::Masked { value, mask } => Ok(Matcher::Ternary {
            value: number(value)?,
            mask: number(mask)?,
        }),
        KeyMatch::Range { low, high } => Ok(Matcher::Range {
            low: number(low)?,
            high: number(high)?,
        }),
        KeyMatch::Text(literal) => {
            let Literal::Text(text) = literal else {
                return whole(number(literal)?, field);
            };
            if text == "*" && field.kind != MatchKind::Exact {
                return Ok(Matcher::Any);
            }
            if let Some((value, bits)) = text.rsplit_once('/')
                && let Ok(bits) = bits.parse()
            {
                return prefix(number(&Literal::parse(value))?, bits, field);
            }
            if let Some((value, mask)) = text.split_once('&') {
                return Ok(Matcher::Ternary {
                    value: number(&Literal::parse(value.trim()))?,
                    mask: number(&Literal::parse(mask.trim()))?,
                });
            }
            if let Some((low, high)) = text.split_once("..") {
                return Ok(Matcher::Range {
                    low: number(&Literal::parse(low.trim()))?,
                    high: number(&Literal::parse(high.trim_start_matches('=').trim()))?,
                });
            }
            whole(number(literal)?, field)
        }
    }
}

/// A value without a mask.
fn whole(value: u128, field: KeyField) -> Result<Matcher, Said> {
    Ok(match field.kind {
        MatchKind::Exact | MatchKind::Optional => Matcher::Exact(value),
        MatchKind::Lpm => Matcher::Prefix {
            value,
            bits: field.bits,
        },
        MatchKind::Ternary => Matcher::Ternary {
            value,
            mask: within(field.bits, u128::MAX),
        },
        MatchKind::Range => Matcher::Range {
            low: value,
            high: value,
        },
    })
}

fn prefix(value: u128, bits: u16, field: KeyField) -> Result<Matcher, Said> {
    if bits > field.bits {
        return Err((
            format!("a prefix of {bits} bits in a field of {}", field.bits),
            format!("use at most {}", field.bits),
        ));
    }
    Ok(match (field.kind, bits) {
        (MatchKind::Lpm | MatchKind::Ternary, 0) => Matcher::Any,
        (MatchKind::Exact | MatchKind::Optional | MatchKind::Range, bits) if bits == field.bits => {
            return whole(value, field);
        }
        _ => Matcher::Prefix { value, bits },
    })
}

/// A literal as a number.
pub(crate) fn number(
    literal: &Literal,
    format: Format,
    names: &dyn PortNames,
) -> Result<u128, Said> {
    let text = match literal {
        Literal::Number(number) => return Ok(*number),
        Literal::Text(text) => text,
    };
    if format == Format::Port {
        return names.id(text).map(|port| port.get().into()).ok_or_else(|| {
            (
                format!("there is no port `{text}`"),
                "add the port first, or correct its name".to_owned(),
            )
        });
    }
    parse_number(text).ok_or_else(|| {
        let form = match format {
            Format::Mac => "a MAC address such as 52:54:00:12:34:56",
            Format::Ipv4 => "an address such as 10.0.0.1, or a prefix where the table takes one",
            Format::Ipv6 => "an address such as 2001:db8::1, or a prefix where the table takes one",
            Format::Number | Format::Port => "a number such as 80 or 0x0800",
        };
        (format!("`{text}` is no value"), format!("use {form}"))
    })
}

/// Resolves an action's arguments.
pub(crate) fn resolve_params(
    params: &[Param],
    given: &BTreeMap<String, Literal>,
    names: &dyn PortNames,
) -> Result<Box<[u128]>, Fault> {
    if let Some(unknown) = given
        .keys()
        .find(|name| !params.iter().any(|param| &param.name == *name))
    {
        let known: Vec<&str> = params.iter().map(|param| param.name.as_str()).collect();
        return Err(Fault::invalid(
            format!("params.{unknown}"),
            "the action has no such parameter",
            if known.is_empty() {
                "leave it out: the action has none".to_owned()
            } else {
                format!("use {}", known.join(", "))
            },
        ));
    }
    params
        .iter()
        .map(|param| {
            let place = || format!("params.{}", param.name);
            let literal = given.get(&param.name).ok_or_else(|| {
                Fault::invalid(place(), "it is missing", "give each parameter a value")
            })?;
            let value = number(literal, param.format, names)
                .map_err(|(reason, remedy)| Fault::invalid(place(), reason, remedy))?;
            if value != within(param.bits, value) {
                return Err(Fault::invalid(
                    place(),
                    format!("{literal} does not fit {} bits", param.bits),
                    "use a smaller value",
                ));
            }
            Ok(value)
        })
        .collect()
}

/// A value as a literal: the text that people would write.
pub(crate) fn literal(value: u128, bits: u16, format: Format, names: &dyn PortNames) -> Literal {
    match format {
        Format::Number => Literal::Number(value),
        _ => Literal::Text(value_text(value, bits, format, names)),
    }
}

/// The key of an entry as people write it.
pub(crate) fn written_key(
    table: &Table,
    key: &EntryKey,
    names: &dyn PortNames,
) -> BTreeMap<String, KeyMatch> {
    table
        .key
        .iter()
        .zip(&key.matchers)
        .filter_map(|(spec, matcher)| {
            let bits = spec.field.bits();
            let value = |value| literal(value, bits, spec.format, names);
            let wanted = match *matcher {
                Matcher::Any => return None,
                Matcher::Exact(exact) => KeyMatch::Text(value(exact)),
                Matcher::Range { low, high } if spec.format == Format::Number => {
                    KeyMatch::Text(Literal::Text(format!("{low}..{high}")))
                }
                Matcher::Range { low, high } => KeyMatch::Range {
                    low: value(low),
                    high: value(high),
                },
                _ => {
                    let text = super::text::matcher_text(matcher, bits, spec.format, names)?;
                    KeyMatch::Text(Literal::parse(&text))
                }
            };
            Some((spec.name.clone(), wanted))
        })
        .collect()
}

/// The arguments of an action as people write them.
pub(crate) fn written_params(
    program: &Compiled,
    action: u16,
    params: &[u128],
    names: &dyn PortNames,
) -> BTreeMap<String, Literal> {
    program
        .actions
        .get(usize::from(action))
        .map_or(&[][..], |action| &action.params)
        .iter()
        .zip(params)
        .map(|(param, &value)| {
            let value = literal(value, param.bits, param.format, names);
            (param.name.clone(), value)
        })
        .collect()
}
