//! Names, headers, metadata and arrays.

use std::collections::BTreeMap;

use super::error::Place;
use super::fields::RESERVED_INSTANCES;
use super::{Checker, limits};
use crate::engine::literal::is_name;
use crate::engine::model::{ArrayDecl, FieldDecl, Format, HeaderType, SelectorDecl};

impl Checker<'_> {
    pub(super) fn declarations(&mut self) {
        let own = self.own;
        self.name(Place::root("name"), &own.name);
        self.description(Place::root("description"), &own.description);
        self.header_types();
        self.headers();
        self.fields(Place::root("metadata"), &own.metadata, limits::METADATA);
        self.arrays(Place::root("meters"), &own.meters);
        self.arrays(Place::root("counters"), &own.counters);
        self.selectors();
        let learning = Place::root("learning");
        self.at_most(learning, own.learning.len(), limits::LEARNING);
        self.unique(learning, &own.learning, |table| &table.name);
    }

    pub(super) fn name(&mut self, place: Place<'_>, name: &str) {
        if !is_name(name) {
            self.error(
                place,
                format!("`{}` is no name", name.escape_debug()),
                "use a letter or `_`, then letters, digits and `_`, at most 64 in all",
            );
        }
    }

    pub(super) fn description(&mut self, place: Place<'_>, text: &str) {
        if text.len() > limits::DESCRIPTION_BYTES {
            self.error(
                place,
                format!("it has {} bytes", text.len()),
                format!("use at most {}", limits::DESCRIPTION_BYTES),
            );
        }
    }

    /// Each has a name, and one of its own.
    pub(super) fn unique<T>(&mut self, list: Place<'_>, items: &[T], name: impl Fn(&T) -> &String) {
        let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
        for (index, item) in items.iter().enumerate() {
            let item_place = list.index(index);
            let place = item_place.field("name");
            let name = name(item);
            self.name(place, name);
            if let Some(first) = seen.get(name.as_str()) {
                self.error(
                    place,
                    format!("`{name}` is already the name of {}", list.index(*first)),
                    "give it another name",
                );
            } else {
                seen.insert(name, index);
            }
        }
    }

    /// Fields declared in a list: metadata, parameters, what a header or a member is made of.
    pub(super) fn fields(&mut self, list: Place<'_>, fields: &[FieldDecl], most: usize) {
        let count = self.at_most(list, fields.len(), most);
        self.unique(list, fields.get(..count).unwrap_or(fields), |field| {
            &field.name
        });
        for (index, field) in fields.iter().take(count).enumerate() {
            let place = list.index(index);
            if field.bits == 0 || field.bits > limits::FIELD_BITS {
                self.error(
                    place.field("bits"),
                    format!("a field of {} bits", field.bits),
                    format!("use 1 to {}", limits::FIELD_BITS),
                );
                continue;
            }
            let (fits, wanted) = match field.format {
                Format::Number => (true, ""),
                Format::Mac => (field.bits == 48, "a MAC address has 48"),
                Format::Ipv4 => (field.bits == 32, "an IPv4 address has 32"),
                Format::Ipv6 => (field.bits == 128, "an IPv6 address has 128"),
                Format::Port => (
                    (14..=32).contains(&field.bits),
                    "a port has 14 to 32, 16 as a rule",
                ),
            };
            if !fits {
                self.error(
                    place.field("format"),
                    format!("the field has {} bits; {wanted}", field.bits),
                    "change `bits`, or leave `format` out",
                );
            }
        }
    }

    fn header_types(&mut self) {
        let own = self.own;
        let list = Place::root("header_types");
        let count = self.at_most(list, own.header_types.len(), limits::HEADER_TYPES);
        self.unique(list, &own.header_types, |found| &found.name);
        for (index, header_type) in own.header_types.iter().take(count).enumerate() {
            self.header_type(list.index(index), header_type);
        }
    }

    fn header_type(&mut self, place: Place<'_>, header_type: &HeaderType) {
        let fields = place.field("fields");
        self.fields(fields, &header_type.fields, limits::HEADER_FIELDS);
        for (index, field) in header_type.fields.iter().enumerate() {
            if field.name == "valid" {
                self.error(
                    fields.index(index).field("name"),
                    "`valid` says whether a header is part of the frame",
                    "give the field another name",
                );
            }
        }
        let bits: usize = header_type
            .fields
            .iter()
            .map(|field| usize::from(field.bits))
            .sum();
        let bytes = bits / 8;
        if bits == 0 || !bits.is_multiple_of(8) {
            self.error(
                fields,
                format!("the fields have {bits} bits together"),
                "use whole bytes, one at least; add a reserved field",
            );
        } else if bytes > limits::HEADER_BYTES {
            self.error(
                fields,
                format!("the fields have {bytes} bytes together"),
                format!("use at most {}", limits::HEADER_BYTES),
            );
        }
        let Some(length) = &header_type.length else {
            return;
        };
        let place = place.field("length");
        if !header_type
            .fields
            .iter()
            .any(|field| field.name == length.field)
        {
            let known = header_type.fields.iter().map(|field| field.name.as_str());
            self.error(
                place.field("field"),
                format!("the header has no field `{}`", length.field),
                self.suggest(&length.field, known),
            );
        }
        if length.unit_bytes == 0 {
            self.error(
                place.field("unit_bytes"),
                "a unit of no bytes",
                "use 1 or more",
            );
        }
        if usize::from(length.max_bytes) < bytes {
            self.error(
                place.field("max_bytes"),
                format!(
                    "{} bytes do not hold the fields, which have {bytes}",
                    length.max_bytes
                ),
                format!("use {bytes} to {}", limits::HEADER_BYTES),
            );
        }
    }

    fn headers(&mut self) {
        let own = self.own;
        let merged = self.merged;
        let list = Place::root("headers");
        self.at_most(list, own.headers.len(), limits::HEADERS);
        self.unique(list, &own.headers, |header| &header.name);
        for (index, header) in merged.headers.iter().enumerate() {
            let place = list.item(index, own.headers.len(), &header.name);
            if RESERVED_INSTANCES.contains(&header.name.as_str()) {
                self.error(
                    place.field("name"),
                    format!(
                        "`{}` is no header's name: its fields are others",
                        header.name
                    ),
                    "give the header another name",
                );
            }
            if !self.header_types.contains_key(header.header_type.as_str()) {
                let remedy = self.suggest(&header.header_type, self.header_types.keys().copied());
                self.error(
                    place.field("type"),
                    format!("there is no header type `{}`", header.header_type),
                    remedy,
                );
            }
        }
    }

    fn arrays(&mut self, list: Place<'_>, arrays: &[ArrayDecl]) {
        self.at_most(list, arrays.len(), limits::ARRAYS);
        self.unique(list, arrays, |array| &array.name);
        for (index, array) in arrays.iter().enumerate() {
            let place = list.index(index);
            self.size(place.field("size"), array.size, limits::ARRAY_ITEMS);
        }
    }

    pub(super) fn size(&mut self, place: Place<'_>, size: u32, most: u32) {
        if size == 0 || size > most {
            self.error(
                place,
                format!("a size of {size}"),
                format!("use 1 to {most}"),
            );
        }
    }

    fn selectors(&mut self) {
        let selectors: &[SelectorDecl] = &self.own.selectors;
        let list = Place::root("selectors");
        let count = self.at_most(list, selectors.len(), limits::SELECTORS);
        self.unique(list, selectors, |selector| &selector.name);
        for (index, selector) in selectors.iter().take(count).enumerate() {
            let place = list.index(index);
            let member = place.field("member");
            if selector.member.is_empty() {
                self.error(member, "a member is made of nothing", "declare a field");
            }
            self.fields(member, &selector.member, limits::MEMBER_FIELDS);
            self.size(
                place.field("max_groups"),
                selector.max_groups,
                limits::GROUPS,
            );
            self.size(
                place.field("max_members"),
                selector.max_members,
                limits::GROUP_MEMBERS,
            );
        }
    }
}
