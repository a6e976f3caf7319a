//! Every field that a program can name, with its width and what may be done with it.

use std::collections::BTreeMap;

use crate::engine::model::{FieldDecl, Format, HeaderType, Program};

/// A field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its width, 1 to 128.
    pub bits: u16,
    /// How people write it.
    pub format: Format,
    /// Where it is.
    pub source: FieldSource,
}

/// Where a field is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldSource {
    /// In a header.
    Header,
    /// In the program's metadata.
    Metadata,
    /// `instance.valid`.
    Valid,
    /// `std.out_port`: known in `egress` only.
    OutPort,
    /// `std.frame_bytes` and `std.wire_bytes`: for comparisons only.
    Length,
    /// The rest of `std`.
    Standard,
    /// `ct`.
    Connection,
}

impl FieldSource {
    /// Whether a program may change it.
    pub const fn is_writable(self) -> bool {
        matches!(self, Self::Header | Self::Metadata)
    }
}

/// Instances that are no headers.
pub(super) const RESERVED_INSTANCES: [&str; 3] = ["std", "meta", "ct"];

const STANDARD: &[(&str, u16, Format, FieldSource)] = &[
    ("std.in_port", 16, Format::Port, FieldSource::Standard),
    ("std.out_port", 16, Format::Port, FieldSource::OutPort),
    ("std.frame_bytes", 32, Format::Number, FieldSource::Length),
    ("std.wire_bytes", 32, Format::Number, FieldSource::Length),
    ("std.parse_error", 8, Format::Number, FieldSource::Standard),
    ("std.pass", 8, Format::Number, FieldSource::Standard),
    ("ct.tracked", 1, Format::Number, FieldSource::Connection),
    ("ct.new", 1, Format::Number, FieldSource::Connection),
    ("ct.established", 1, Format::Number, FieldSource::Connection),
    ("ct.related", 1, Format::Number, FieldSource::Connection),
    ("ct.reply", 1, Format::Number, FieldSource::Connection),
    ("ct.invalid", 1, Format::Number, FieldSource::Connection),
    ("ct.snat", 1, Format::Number, FieldSource::Connection),
    ("ct.dnat", 1, Format::Number, FieldSource::Connection),
    ("ct.mark", 32, Format::Number, FieldSource::Connection),
    ("ct.data0", 32, Format::Number, FieldSource::Connection),
    ("ct.data1", 32, Format::Number, FieldSource::Connection),
    ("ct.data2", 32, Format::Number, FieldSource::Connection),
    ("ct.data3", 32, Format::Number, FieldSource::Connection),
];

/// Every field of a merged program, by its full name.
pub(super) fn all(program: &Program) -> BTreeMap<String, Field> {
    let types: BTreeMap<&str, &HeaderType> = program
        .header_types
        .iter()
        .map(|header_type| (header_type.name.as_str(), header_type))
        .collect();
    let mut fields = BTreeMap::new();
    for &(name, bits, format, source) in STANDARD {
        fields.insert(
            name.to_owned(),
            Field {
                bits,
                format,
                source,
            },
        );
    }
    for header in &program.headers {
        let valid = Field {
            bits: 1,
            format: Format::Number,
            source: FieldSource::Valid,
        };
        fields.insert(format!("{}.valid", header.name), valid);
        let declared = types.get(header.header_type.as_str());
        for field in declared.into_iter().flat_map(|found| &found.fields) {
            let name = format!("{}.{}", header.name, field.name);
            fields.entry(name).or_insert(of(field, FieldSource::Header));
        }
    }
    for field in &program.metadata {
        fields.insert(
            format!("meta.{}", field.name),
            of(field, FieldSource::Metadata),
        );
    }
    fields
}

fn of(declared: &FieldDecl, source: FieldSource) -> Field {
    Field {
        bits: declared.bits,
        format: declared.format,
        source,
    }
}
