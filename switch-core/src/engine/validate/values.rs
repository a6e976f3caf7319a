//! Constants: what entries match, and the arguments of actions.

use std::collections::BTreeMap;

use super::Checker;
use super::error::Place;
use super::operands::largest;
use crate::engine::literal::Literal;
use crate::engine::model::{FieldDecl, Format, KeyKind, KeyMatch};

/// A key field of a table, and how it is matched.
#[derive(Clone, Copy)]
pub(super) struct KeyShape {
    pub kind: KeyKind,
    pub bits: u16,
    pub format: Format,
}

/// What an entry matches of a field, in one form for all that mean the same.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Matched {
    Bits {
        value: u128,
        mask: u128,
    },
    Range {
        low: u128,
        high: u128,
    },
    /// A port's name: which number that is, only the switch knows.
    Port(String),
}

impl Checker<'_> {
    /// The arguments of an action: each parameter once, nothing else, and values that fit.
    pub(super) fn arguments(
        &mut self,
        place: Place<'_>,
        action: &str,
        given: &BTreeMap<String, Literal>,
    ) {
        let Some(declared) = self
            .actions
            .get(action)
            .map(|found| found.params.as_slice())
        else {
            return;
        };
        for param in declared {
            match given.get(&param.name) {
                None => self.error(
                    place,
                    format!("action `{action}` needs a value for `{}`", param.name),
                    format!("add `\"{}\": ...`", param.name),
                ),
                Some(value) => self.argument(place.field(&param.name), value, param),
            }
        }
        for name in given.keys() {
            if !declared.iter().any(|param| param.name == *name) {
                let known = declared.iter().map(|param| param.name.as_str());
                self.error(
                    place.field(name),
                    format!("action `{action}` has no parameter `{name}`"),
                    self.suggest(name, known),
                );
            }
        }
    }

    fn argument(&mut self, place: Place<'_>, value: &Literal, param: &FieldDecl) {
        match value {
            Literal::Text(_) if param.format == Format::Port => {}
            value => {
                self.number(place, value, param.bits);
            }
        }
    }

    /// What an entry wants of a key field.
    pub(super) fn key_match(
        &mut self,
        place: Place<'_>,
        wanted: &KeyMatch,
        shape: KeyShape,
    ) -> Option<Matched> {
        match wanted {
            KeyMatch::Text(Literal::Text(text)) => self.key_text(place, text, shape),
            KeyMatch::Text(literal) => {
                let number = self.number(place, literal, shape.bits)?;
                Some(whole(number, shape))
            }
            KeyMatch::Prefix { value, prefix_bits } => {
                self.prefix(place, (place.field("value"), value), *prefix_bits, shape)
            }
            KeyMatch::Masked { value, mask } => {
                let value = (place.field("value"), value);
                self.mask(place, value, (place.field("mask"), mask), shape)
            }
            KeyMatch::Range { low, high } => {
                let low = (place.field("low"), low);
                self.range(place, low, (place.field("high"), high), shape)
            }
        }
    }

    /// `value/prefix`, `value&mask`, `low..high`, or a port's name.
    fn key_text(&mut self, place: Place<'_>, text: &str, shape: KeyShape) -> Option<Matched> {
        if let Some((value, bits)) = text.split_once('/') {
            let Ok(bits) = bits.trim().parse() else {
                self.error(
                    place,
                    format!("`{}` has no prefix length", text.escape_debug()),
                    "write it as `10.0.0.0/8`",
                );
                return None;
            };
            let value = Literal::parse(value.trim());
            return self.prefix(place, (place, &value), bits, shape);
        }
        if let Some((value, mask)) = text.split_once('&') {
            let (value, mask) = (Literal::parse(value.trim()), Literal::parse(mask.trim()));
            return self.mask(place, (place, &value), (place, &mask), shape);
        }
        if let Some((low, high)) = text.split_once("..") {
            let (low, high) = (Literal::parse(low.trim()), Literal::parse(high.trim()));
            return self.range(place, (place, &low), (place, &high), shape);
        }
        if shape.format == Format::Port && !matches!(shape.kind, KeyKind::Range) {
            return Some(Matched::Port(text.to_owned()));
        }
        self.error(
            place,
            format!("`{}` is nothing to match", text.escape_debug()),
            "use a number, an address, a prefix, a value and mask, or a range",
        );
        None
    }

    fn prefix(
        &mut self,
        place: Place<'_>,
        (value_place, value): (Place<'_>, &Literal),
        prefix_bits: u16,
        shape: KeyShape,
    ) -> Option<Matched> {
        self.kind_is(
            place,
            matches!(shape.kind, KeyKind::Lpm | KeyKind::Ternary),
            "a prefix",
            shape,
        )?;
        if prefix_bits > shape.bits {
            self.error(
                place,
                format!(
                    "a prefix of {prefix_bits} bits in a field of {}",
                    shape.bits
                ),
                format!("use at most {}", shape.bits),
            );
            return None;
        }
        let value = self.number(value_place, value, shape.bits)?;
        let mask = largest(shape.bits) & !largest(shape.bits - prefix_bits);
        if value & !mask != 0 {
            self.error(
                value_place,
                format!("the value has bits beyond its prefix of {prefix_bits}"),
                "clear them, or make the prefix longer",
            );
            return None;
        }
        Some(Matched::Bits { value, mask })
    }

    fn mask(
        &mut self,
        place: Place<'_>,
        value: (Place<'_>, &Literal),
        mask: (Place<'_>, &Literal),
        shape: KeyShape,
    ) -> Option<Matched> {
        self.kind_is(place, shape.kind == KeyKind::Ternary, "a mask", shape)?;
        let (value, mask) = self.masked_value(value, mask, shape.bits)?;
        Some(Matched::Bits { value, mask })
    }

    fn range(
        &mut self,
        place: Place<'_>,
        (low_place, low): (Place<'_>, &Literal),
        (high_place, high): (Place<'_>, &Literal),
        shape: KeyShape,
    ) -> Option<Matched> {
        self.kind_is(place, shape.kind == KeyKind::Range, "a range", shape)?;
        let low = self.number(low_place, low, shape.bits);
        let high = self.number(high_place, high, shape.bits);
        let (low, high) = (low?, high?);
        if low > high {
            self.error(
                place,
                format!("the range from {low} to {high} is empty"),
                "exchange the two",
            );
            return None;
        }
        Some(Matched::Range { low, high })
    }

    fn kind_is(
        &mut self,
        place: Place<'_>,
        allowed: bool,
        what: &str,
        shape: KeyShape,
    ) -> Option<()> {
        if !allowed {
            self.error(
                place,
                format!(
                    "{what} for a key field that is matched {}",
                    shape.kind.name()
                ),
                "use a plain value, or change how the field is matched",
            );
        }
        allowed.then_some(())
    }
}

/// A plain value, for each kind of key.
fn whole(number: u128, shape: KeyShape) -> Matched {
    match shape.kind {
        KeyKind::Range => Matched::Range {
            low: number,
            high: number,
        },
        _ => Matched::Bits {
            value: number,
            mask: largest(shape.bits),
        },
    }
}

/// What matches anything, for a field that an entry leaves out.
pub(super) fn anything(shape: KeyShape) -> Matched {
    match shape.kind {
        KeyKind::Range => Matched::Range {
            low: 0,
            high: largest(shape.bits),
        },
        _ => Matched::Bits { value: 0, mask: 0 },
    }
}
