//! Values, entries and actions as people read and write them.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::compile::Compiled;
use super::control::PortNames;
use super::model::Format;
use super::state::EntryAction;
use crate::mac::MacAddress;
use crate::port::PortId;

/// A value in its format.
pub(crate) fn value_text(
    value: u128,
    bits: u16,
    format: Format,
    names: &dyn PortNames,
) -> String {
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
pub(crate) fn entry_text(
    program: &Compiled,
    call: &EntryAction,
    names: &dyn PortNames,
) -> String {
    let Some(action) = program.actions.get(usize::from(call.action)) else {
        return String::new();
    };
    let args: Vec<String> = action
        .params
        .iter()
        .zip(&call.params)
        .map(|(param, &value)| {
            let text = value_text(value, param.bits, param.format, names);
            format!("{}={text}", param.name)
        })
        .collect();
    format!("{}({})", action.name, args.join(", "))
}
