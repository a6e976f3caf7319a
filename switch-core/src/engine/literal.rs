//! Numbers and names as people write them in programs and entries.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::mac::MacAddress;

/// A constant: a number, or text that stands for one (`"0x0800"`, `"10.0.0.1"`, `"fe80::1"`, `"52:54:00:12:34:56"`), or text that
/// only its place gives a meaning (a port's name, a prefix, a range).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Literal {
    /// A number.
    Number(u128),
    /// Text that is no number by itself.
    Text(String),
}

impl Literal {
    /// Text that is a number becomes one.
    pub fn parse(text: &str) -> Self {
        match parse_number(text) {
            Some(number) => Self::Number(number),
            None => Self::Text(text.to_owned()),
        }
    }

    /// The number, if it is one.
    pub fn number(&self) -> Option<u128> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Text(_) => None,
        }
    }
}

impl From<u128> for Literal {
    fn from(number: u128) -> Self {
        Self::Number(number)
    }
}

impl fmt::Display for Literal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// A decimal or `0x` number, a MAC, IPv4 or IPv6 address as the number that its bytes are, most significant first.
pub fn parse_number(text: &str) -> Option<u128> {
    if let Some(digits) = text.strip_prefix("0x") {
        return u128::from_str_radix(digits, 16).ok();
    }
    if text.starts_with(|first: char| first.is_ascii_digit()) {
        if let Ok(number) = text.parse() {
            return Some(number);
        }
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Some(u32::from(address).into());
        }
    }
    if let Ok(MacAddress([a, b, c, d, e, f])) = text.parse::<MacAddress>() {
        return Some(u64::from_be_bytes([0, 0, a, b, c, d, e, f]).into());
    }
    text.parse::<Ipv6Addr>().ok().map(u128::from)
}

impl Serialize for Literal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Number(number) => match u64::try_from(*number) {
                Ok(small) => serializer.serialize_u64(small),
                Err(_) => serializer.collect_str(&format_args!("{number:#x}")),
            },
            Self::Text(text) => serializer.serialize_str(text),
        }
    }
}

struct LiteralVisitor;

impl Visitor<'_> for LiteralVisitor {
    type Value = Literal;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, or text such as \"0x0800\", \"10.0.0.1\", \"52:54:00:12:34:56\"")
    }

    fn visit_u64<E>(self, number: u64) -> Result<Literal, E> {
        Ok(Literal::Number(number.into()))
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Literal, E> {
        u64::try_from(number)
            .map(|number| Literal::Number(number.into()))
            .map_err(|_| E::custom(format!("{number} is negative; use 0 or more")))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Literal, E> {
        Ok(Literal::Number(value.into()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Literal, E> {
        Ok(Literal::parse(text))
    }
}

impl<'de> Deserialize<'de> for Literal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LiteralVisitor)
    }
}

/// What a primitive or a condition works with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    /// A constant.
    Constant(u128),
    /// A field, as `instance.field`.
    Field(String),
    /// A parameter of the action, written `$name`.
    Param(String),
}

impl Default for Operand {
    fn default() -> Self {
        Self::Constant(0)
    }
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constant(number) => write!(f, "{number}"),
            Self::Field(name) => f.write_str(name),
            Self::Param(name) => write!(f, "${name}"),
        }
    }
}

impl Serialize for Operand {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Constant(number) => Literal::Number(*number).serialize(serializer),
            other => serializer.collect_str(other),
        }
    }
}

impl<'de> Deserialize<'de> for Operand {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Literal::deserialize(deserializer)? {
            Literal::Number(number) => Ok(Self::Constant(number)),
            Literal::Text(text) => match text.strip_prefix('$') {
                Some(param) if is_name(param) => Ok(Self::Param(param.to_owned())),
                None if text.split('.').count() == 2 && text.split('.').all(is_name) => {
                    Ok(Self::Field(text))
                }
                _ => Err(D::Error::custom(format!(
                    "`{text}` is no operand; use a number, a field as `instance.field`, or a parameter as `$name`"
                ))),
            },
        }
    }
}

/// A name: a letter or `_`, then letters, digits, `_`; at most 64 characters.
pub fn is_name(text: &str) -> bool {
    text.len() <= 64
        && text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_stands_for_a_number_is_one() {
        for (text, number) in [
            ("17", 17),
            ("0x0800", 0x0800),
            ("10.0.0.1", 0x0a00_0001),
            ("52:54:00:12:34:56", 0x5254_0012_3456),
            ("::1", 1),
        ] {
            assert_eq!(Literal::parse(text), Literal::Number(number), "{text}");
        }
        assert_eq!(Literal::parse("vm1"), Literal::Text("vm1".to_owned()));
        assert_eq!(
            Literal::parse("10.0.0.0/8"),
            Literal::Text("10.0.0.0/8".to_owned())
        );
    }
}
