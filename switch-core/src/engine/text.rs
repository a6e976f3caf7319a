//! Values, entries and actions as people read and write them.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::compile::{Compiled, Table};
use super::control::PortNames;
use super::model::Format;
use super::params::Unpacked;
use super::state::EntryAction;
use crate::mac::MacAddress;
use crate::port::PortId;
use crate::table::{EntryKey, Matcher};

/// A value in its format.
pub(crate) fn value_text(value: u128, bits: u16, format: Format, names: &dyn PortNames) -> String {
    match format {
        Format::Mac => MacAddress::from_u64(value as u64).to_string(),
        Format::Ipv4 => Ipv4Addr::from(value as u32).to_string(),
        // A field for addresses of both kinds has IPv4 ones as small numbers.
        Format::Ipv6 if bits == 128 && value >> 32 == 0 && value != 0 => {
            Ipv4Addr::from(value as u32).to_string()
        }
        Format::Ipv6 => Ipv6Addr::from(value).to_string(),
        Format::Port => PortId::new(value as u16)
            .and_then(|port| names.name(port))
            .unwrap_or_else(|| value.to_string()),
        Format::Number if bits > 32 => format!("{value:#x}"),
        Format::Number => value.to_string(),
    }
}

/// An action with its arguments.
pub(crate) fn action_text(program: &Compiled, call: &EntryAction, names: &dyn PortNames) -> String {
    let Some(action) = program.actions.get(usize::from(call.action)) else {
        return String::new();
    };
    let mut unpacked = Unpacked::default();
    let args: Vec<String> = action
        .params
        .iter()
        .zip(call.params.values(&mut unpacked))
        .map(|(param, &value)| {
            let text = value_text(value, param.bits, param.format, names);
            format!("{}={text}", param.name)
        })
        .collect();
    format!("{}({})", action.name, args.join(", "))
}

/// What an entry matches, and its priority where there are priorities.
pub(crate) fn key_text(table: &Table, key: &EntryKey, names: &dyn PortNames) -> String {
    let mut parts: Vec<String> = table
        .key
        .iter()
        .zip(&key.matchers)
        .filter_map(|(spec, matcher)| {
            let text = matcher_text(matcher, spec.field.bits(), spec.format, names)?;
            Some(format!("{}={text}", spec.name))
        })
        .collect();
    if table.has_priorities() {
        parts.push(format!("priority {}", key.priority));
    }
    parts.join(", ")
}

/// What a field must be; `None`: anything.
pub(crate) fn matcher_text(
    matcher: &Matcher,
    bits: u16,
    format: Format,
    names: &dyn PortNames,
) -> Option<String> {
    let text = |value| value_text(value, bits, format, names);
    Some(match *matcher {
        Matcher::Exact(value) => text(value),
        Matcher::Prefix {
            value,
            bits: prefix,
        } => format!("{}/{prefix}", text(value)),
        Matcher::Ternary { value, mask } => match prefix_of(mask, bits) {
            Some(prefix) if prefix == bits => text(value),
            Some(prefix) => format!("{}/{prefix}", text(value)),
            None => format!("{value:#x}&{mask:#x}"),
        },
        Matcher::Range { low, high } => format!("{}..{}", text(low), text(high)),
        Matcher::Any => return None,
    })
}

/// The length of the prefix that a mask of a field stands for, if it does.
fn prefix_of(mask: u128, bits: u16) -> Option<u16> {
    let ones = mask.count_ones() as u16;
    let shift = u32::from(bits.saturating_sub(ones));
    let prefix = if ones == 0 {
        0
    } else {
        (u128::MAX >> (128 - u32::from(ones))) << shift
    };
    (prefix == mask && ones > 0).then_some(ones)
}
