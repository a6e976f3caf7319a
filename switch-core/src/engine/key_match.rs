//! Reading what an entry wants of a key field. By hand: a derived reader of an untagged enum copies each value before it tries the
//! variants, which a file of a million entries is too long for.

use std::fmt;

use serde::de::{Error, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::literal::Literal;
use super::model::KeyMatch;

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Part {
    Value,
    PrefixBits,
    Mask,
    Low,
    High,
    #[serde(other)]
    Unknown,
}

struct KeyMatchVisitor;

impl<'de> Visitor<'de> for KeyMatchVisitor {
    type Value = KeyMatch;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a number, text such as \"10.0.0.0/8\", \"0x0800&0xff00\" or \"80..443\", or an object with \
             value and prefix_bits, value and mask, or low and high",
        )
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<KeyMatch, E> {
        Ok(KeyMatch::Text(Literal::Number(number.into())))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<KeyMatch, E> {
        match u64::try_from(number) {
            Ok(number) => self.visit_u64(number),
            Err(_) => Err(E::custom(format!("{number} is negative; use 0 or more"))),
        }
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<KeyMatch, E> {
        self.visit_u64(value.into())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<KeyMatch, E> {
        Ok(KeyMatch::Text(Literal::parse(text)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<KeyMatch, A::Error> {
        let [mut value, mut mask, mut low, mut high] = [const { None::<Literal> }; 4];
        let mut prefix_bits: Option<u16> = None;
        while let Some(part) = map.next_key()? {
            let twice = match part {
                Part::Value => value.replace(map.next_value()?).is_some(),
                Part::Mask => mask.replace(map.next_value()?).is_some(),
                Part::Low => low.replace(map.next_value()?).is_some(),
                Part::High => high.replace(map.next_value()?).is_some(),
                Part::PrefixBits => prefix_bits.replace(map.next_value()?).is_some(),
                Part::Unknown => {
                    let _: IgnoredAny = map.next_value()?;
                    true
                }
            };
            if twice {
                return Err(A::Error::invalid_value(serde::de::Unexpected::Map, &self));
            }
        }
        match (value, prefix_bits, mask, low, high) {
            (Some(value), Some(prefix_bits), None, None, None) => {
                Ok(KeyMatch::Prefix { value, prefix_bits })
            }
            (Some(value), None, Some(mask), None, None) => Ok(KeyMatch::Masked { value, mask }),
            (None, None, None, Some(low), Some(high)) => Ok(KeyMatch::Range { low, high }),
            _ => Err(A::Error::invalid_value(serde::de::Unexpected::Map, &self)),
        }
    }
}

impl<'de> Deserialize<'de> for KeyMatch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(KeyMatchVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_reads_as_it_was_written_and_others_are_refused() {
        let text = |text: &str| Literal::Text(text.to_owned());
        for (json, read) in [
            ("5", KeyMatch::Text(Literal::Number(5))),
            (
                r#""10.0.0.1""#,
                KeyMatch::Text(Literal::Number(0x0a00_0001)),
            ),
            (r#""10.0.0.0/8""#, KeyMatch::Text(text("10.0.0.0/8"))),
            (
                r#"{"prefix_bits": 8, "value": 1}"#,
                KeyMatch::Prefix {
                    value: Literal::Number(1),
                    prefix_bits: 8,
                },
            ),
            (
                r#"{"value": 1, "mask": 255}"#,
                KeyMatch::Masked {
                    value: Literal::Number(1),
                    mask: Literal::Number(255),
                },
            ),
            (
                r#"{"low": 1, "high": "0x10"}"#,
                KeyMatch::Range {
                    low: Literal::Number(1),
                    high: Literal::Number(16),
                },
            ),
        ] {
            let from_json: KeyMatch = serde_json::from_str(json).unwrap();
            assert_eq!(from_json, read);
            let again = serde_json::to_string(&read).unwrap();
            assert_eq!(serde_json::from_str::<KeyMatch>(&again).unwrap(), read);
        }
        for json in [
            "-1",
            "null",
            "{}",
            "[]",
            r#"{"value": 1}"#,
            r#"{"value": 1, "mask": 1, "low": 1}"#,
            r#"{"value": 1, "value": 1, "mask": 1}"#,
            r#"{"low": 1, "high": 2, "other": 3}"#,
            r#"{"value": 1, "prefix_bits": 70000}"#,
        ] {
            assert!(serde_json::from_str::<KeyMatch>(json).is_err(), "{json}");
        }
    }
}
