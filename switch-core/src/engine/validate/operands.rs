//! Operands and conditions.

use super::control::Control;
use super::error::Place;
use super::fields::{Field, FieldSource};
use super::{Checker, limits};
use crate::engine::literal::{Literal, Operand};
use crate::engine::model::{Condition, FieldDecl};

/// Where an operand stands.
#[derive(Clone, Copy)]
pub(super) enum Scope<'a> {
    /// In the parser: only headers have values there.
    Parser,
    /// In a control.
    Control,
    /// In an action with these parameters.
    Action(&'a [FieldDecl]),
}

/// What an operand is worth.
#[derive(Clone, Copy)]
pub(super) enum Worth {
    Constant(u128),
    Param,
    Field(Field),
}

/// The largest value of `bits` bits.
pub(super) const fn largest(bits: u16) -> u128 {
    if bits >= 128 {
        u128::MAX
    } else {
        (1 << bits) - 1
    }
}

impl Checker<'_> {
    /// A field by its full name.
    pub(super) fn find_field(&mut self, place: Place<'_>, name: &str) -> Option<Field> {
        if let Some(field) = self.fields.get(name) {
            return Some(*field);
        }
        let instance = name.split('.').next().unwrap_or_default();
        let prefix = format!("{instance}.");
        let mut of_instance = self
            .fields
            .range(prefix.clone()..)
            .map(|(name, _)| name.as_str())
            .take_while(|name| name.starts_with(&prefix))
            .peekable();
        let (reason, remedy) = if !name.contains('.') {
            (
                format!("`{name}` is no field"),
                "write it as `instance.field`".to_owned(),
            )
        } else if of_instance.peek().is_some() || instance == "meta" {
            (
                format!("there is no field `{name}`"),
                self.suggest(name, of_instance),
            )
        } else {
            let known = self.headers.keys().copied();
            (
                format!("there is no header `{instance}`"),
                self.suggest(instance, known.chain(["std", "meta", "ct"])),
            )
        };
        self.error(place, reason, remedy);
        None
    }

    /// A field whose value is used.
    pub(super) fn read(&mut self, place: Place<'_>, name: &str, scope: Scope<'_>) -> Option<Field> {
        let field = self.find_field(place, name)?;
        if field.source == FieldSource::Length {
            self.error(
                place,
                format!("`{name}` is for comparisons only"),
                "compare it with a constant, a parameter or metadata in an `if`",
            );
            return None;
        }
        self.readable(place, name, field, scope).then_some(field)
    }

    fn readable(&mut self, place: Place<'_>, name: &str, field: Field, scope: Scope<'_>) -> bool {
        if let Scope::Parser = scope {
            let known = matches!(field.source, FieldSource::Header | FieldSource::Valid);
            if !known {
                self.error(
                    place,
                    format!("`{name}` has no value while a frame is parsed"),
                    "use a field of a header",
                );
            }
            return known;
        }
        if field.source == FieldSource::OutPort {
            self.only_in(place, Control::Egress, &format!("`{name}`"));
        }
        true
    }

    /// A field that is given a value.
    pub(super) fn written(&mut self, place: Place<'_>, name: &str) -> Option<Field> {
        let field = self.find_field(place, name)?;
        if !field.source.is_writable() {
            self.error(
                place,
                format!("`{name}` cannot be changed"),
                "use a field of a header or of the metadata",
            );
            return None;
        }
        Some(field)
    }

    /// An operand that is used as a number of at most `bits` bits.
    pub(super) fn operand(
        &mut self,
        place: Place<'_>,
        operand: &Operand,
        scope: Scope<'_>,
        bits: u16,
    ) {
        match operand {
            Operand::Constant(number) => self.fits(place, *number, bits),
            Operand::Field(name) => {
                self.read(place, name, scope);
            }
            Operand::Param(name) => {
                self.param(place, name, scope);
            }
        }
    }

    pub(super) fn fits(&mut self, place: Place<'_>, number: u128, bits: u16) {
        if number > largest(bits) {
            self.error(
                place,
                format!("{number} does not fit {bits} bits"),
                format!("use at most {}", largest(bits)),
            );
        }
    }

    fn param(&mut self, place: Place<'_>, name: &str, scope: Scope<'_>) -> Option<Worth> {
        let Scope::Action(params) = scope else {
            self.error(
                place,
                format!("`${name}` stands outside an action"),
                "use a constant or a field",
            );
            return None;
        };
        if params.iter().any(|param| param.name == name) {
            return Some(Worth::Param);
        }
        let known = params.iter().map(|param| param.name.as_str());
        self.error(
            place,
            format!("the action has no parameter `{name}`"),
            self.suggest(name, known),
        );
        None
    }

    /// A condition, `depth` conditions inside others.
    pub(super) fn condition(
        &mut self,
        place: Place<'_>,
        condition: &Condition,
        scope: Scope<'_>,
        depth: usize,
    ) {
        self.conditions += 1;
        if self.conditions == limits::CONDITIONS + 1 {
            self.error(
                place,
                "the program has too many conditions",
                format!("use at most {}", limits::CONDITIONS),
            );
        }
        if self.conditions > limits::CONDITIONS {
            return;
        }
        if depth == limits::CONDITION_DEPTH {
            self.error(
                place,
                "conditions stand too deep inside each other",
                format!("use at most {} levels", limits::CONDITION_DEPTH),
            );
            return;
        }
        match condition {
            Condition::Valid(header) => self.header(place.field("valid"), header),
            Condition::Eq(one, other) => self.comparison(place.field("eq"), one, other, scope),
            Condition::Ne(one, other) => self.comparison(place.field("ne"), one, other, scope),
            Condition::Lt(one, other) => self.comparison(place.field("lt"), one, other, scope),
            Condition::Le(one, other) => self.comparison(place.field("le"), one, other, scope),
            Condition::Gt(one, other) => self.comparison(place.field("gt"), one, other, scope),
            Condition::Ge(one, other) => self.comparison(place.field("ge"), one, other, scope),
            Condition::Masked(one, mask, value) => {
                self.masked(place.field("masked"), (one, mask, value), scope);
            }
            Condition::All(parts) => self.parts(place.field("all"), parts, scope, depth),
            Condition::Any(parts) => self.parts(place.field("any"), parts, scope, depth),
            Condition::Not(part) => self.condition(place.field("not"), part, scope, depth + 1),
        }
    }

    fn parts(&mut self, place: Place<'_>, parts: &[Condition], scope: Scope<'_>, depth: usize) {
        if parts.is_empty() {
            self.error(place, "a list of no conditions", "add one");
        }
        for (index, part) in parts.iter().enumerate() {
            if self.conditions > limits::CONDITIONS {
                return;
            }
            self.condition(place.index(index), part, scope, depth + 1);
        }
    }

    /// The name of a header.
    pub(super) fn header(&mut self, place: Place<'_>, name: &str) {
        if !self.headers.contains_key(name) {
            let remedy = self.suggest(name, self.headers.keys().copied());
            self.error(place, format!("there is no header `{name}`"), remedy);
        }
    }

    fn comparison(&mut self, place: Place<'_>, one: &Operand, other: &Operand, scope: Scope<'_>) {
        let first = self.worth(place.index(0), one, scope);
        let second = self.worth(place.index(1), other, scope);
        for (measured, with, at) in [(first, second, 1), (second, first, 0)] {
            let (Some(Worth::Field(field)), Some(with)) = (measured, with) else {
                continue;
            };
            if let Worth::Constant(number) = with
                && number > largest(field.bits)
            {
                self.error(
                    place.index(at),
                    format!(
                        "{number} does not fit the {} bits it is compared with",
                        field.bits
                    ),
                    format!("use at most {}", largest(field.bits)),
                );
            }
            if let Worth::Field(with) = with
                && field.source == FieldSource::Length
                && with.source != FieldSource::Metadata
            {
                self.error(
                    place.index(at),
                    "a length is compared with a field of the frame",
                    "compare it with a constant, a parameter or metadata",
                );
            }
        }
    }

    fn worth(&mut self, place: Place<'_>, operand: &Operand, scope: Scope<'_>) -> Option<Worth> {
        match operand {
            Operand::Constant(number) => Some(Worth::Constant(*number)),
            Operand::Param(name) => self.param(place, name, scope),
            Operand::Field(name) => {
                let field = self.find_field(place, name)?;
                self.readable(place, name, field, scope)
                    .then_some(Worth::Field(field))
            }
        }
    }

    fn masked(
        &mut self,
        place: Place<'_>,
        (one, mask, value): (&Operand, &Literal, &Literal),
        scope: Scope<'_>,
    ) {
        let bits = match one {
            Operand::Field(name) => self
                .read(place.index(0), name, scope)
                .map(|field| field.bits),
            other => {
                self.operand(place.index(0), other, scope, limits::FIELD_BITS);
                Some(limits::FIELD_BITS)
            }
        };
        if let Some(bits) = bits {
            self.masked_value((place.index(2), value), (place.index(1), mask), bits);
        }
    }

    /// A value and its mask, both numbers; the value has no bit that the mask has not.
    pub(super) fn masked_value(
        &mut self,
        (value_place, value): (Place<'_>, &Literal),
        (mask_place, mask): (Place<'_>, &Literal),
        bits: u16,
    ) -> Option<(u128, u128)> {
        let value = self.number(value_place, value, bits);
        let mask = self.number(mask_place, mask, bits);
        let (value, mask) = (value?, mask?);
        if value & !mask != 0 {
            self.error(
                value_place,
                format!("{value:#x} has bits that its mask {mask:#x} has not"),
                format!("use {:#x}", value & mask),
            );
            return None;
        }
        Some((value, mask))
    }

    /// A literal that must be a number of at most `bits` bits.
    pub(super) fn number(
        &mut self,
        place: Place<'_>,
        literal: &Literal,
        bits: u16,
    ) -> Option<u128> {
        match literal {
            Literal::Number(number) if *number <= largest(bits) => Some(*number),
            Literal::Number(number) => {
                self.fits(place, *number, bits);
                None
            }
            Literal::Text(text) => {
                self.error(
                    place,
                    format!("`{}` is no number", text.escape_debug()),
                    "use a number or an address",
                );
                None
            }
        }
    }
}
