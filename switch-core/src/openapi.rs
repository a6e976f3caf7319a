//! OpenAPI schemas of the values that people write as text. Only with the feature `openapi`; every other type derives its own.

use std::borrow::Cow;

use utoipa::openapi::schema::{
    AdditionalProperties, AnyOfBuilder, KnownFormat, Object, ObjectBuilder, Schema, SchemaFormat,
    Type,
};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{PartialSchema, ToSchema};

use crate::engine::literal::Literal;
use crate::engine::model::KeyMatch;
use crate::mac::MacAddress;
use crate::service::IpPrefix;

/// An IPv4 address as text.
pub struct Ipv4Text;

/// An IPv6 address as text.
pub struct Ipv6Text;

/// An IPv4 or IPv6 address as text.
pub struct IpText;

fn text(description: &str) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some(description))
}

fn number(description: &str) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .minimum(Some(0_u64))
        .description(Some(description))
}

fn truth() -> Object {
    ObjectBuilder::new()
        .schema_type(Type::Boolean)
        .description(Some("`true` is 1, `false` is 0."))
        .build()
}

impl PartialSchema for MacAddress {
    fn schema() -> RefOr<Schema> {
        text("A MAC address: `52:54:00:12:34:56`.")
            .pattern(Some("^([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}$"))
            .into()
    }
}

impl PartialSchema for IpPrefix {
    fn schema() -> RefOr<Schema> {
        text("An address with the length of a prefix: `10.0.0.1/24`, `fd00:1::/64`.").into()
    }
}

impl PartialSchema for Ipv4Text {
    fn schema() -> RefOr<Schema> {
        text("An IPv4 address.")
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Ipv4)))
            .into()
    }
}

impl PartialSchema for Ipv6Text {
    fn schema() -> RefOr<Schema> {
        text("An IPv6 address.")
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Ipv6)))
            .into()
    }
}

impl PartialSchema for IpText {
    fn schema() -> RefOr<Schema> {
        text("An IPv4 or IPv6 address.").into()
    }
}

impl PartialSchema for Literal {
    fn schema() -> RefOr<Schema> {
        let written = "Text that stands for a number (`0x0800`, `10.0.0.1`, `fe80::1`, `52:54:00:12:34:56`), or that its place gives a \
             meaning (a port's name).";
        AnyOfBuilder::new()
            .item(number("A number."))
            .item(text(written))
            .item(truth())
            .description(Some("A constant."))
            .into()
    }
}

impl PartialSchema for KeyMatch {
    fn schema() -> RefOr<Schema> {
        let part = |parts: [(&str, RefOr<Schema>); 2]| {
            parts.into_iter().fold(
                ObjectBuilder::new()
                    .schema_type(Type::Object)
                    .additional_properties(Some(AdditionalProperties::FreeForm(false))),
                |object, (name, schema)| object.property(name, schema).required(name),
            )
        };
        let literal = || RefOr::Ref(Ref::from_schema_name(Literal::name()));
        let bits = number("How many of its first bits count.")
            .maximum(Some(u64::from(u16::MAX)))
            .into();
        AnyOfBuilder::new()
            .item(number("A number."))
            .item(text(
                "A literal, a prefix (`10.0.0.0/8`), a value and mask (`0x0800&0xff00`), or a range (`80..443`).",
            ))
            .item(truth())
            .item(part([("value", literal()), ("prefix_bits", bits)]))
            .item(part([("value", literal()), ("mask", literal())]))
            .item(part([("low", literal()), ("high", literal())]))
            .description(Some("What an entry wants of a key field."))
            .into()
    }
}

/// Each under its own name, as a component.
macro_rules! components {
    ($($type:ty => $name:literal),* $(,)?) => {
        $(impl ToSchema for $type {
            fn name() -> Cow<'static, str> {
                Cow::Borrowed($name)
            }

            fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
                // What a component refers to has to be one, too.
                schemas.push((Literal::name().into_owned(), Literal::schema()));
            }
        })*
    };
}

components! {
    MacAddress => "MacAddress",
    IpPrefix => "IpPrefix",
    Ipv4Text => "Ipv4Address",
    Ipv6Text => "Ipv6Address",
    IpText => "IpAddress",
    Literal => "Literal",
    KeyMatch => "KeyMatch",
}
