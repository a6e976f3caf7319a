//! Finished edits as people read them: `set ipv4.dst to 10.0.0.5`, `push VLAN 10`.
//!
//! Edits say which bytes of a frame change; its headers say which fields those are. Lengths and checksums follow from the rest, and are not
//! mentioned.

use super::compile::{Compiled, Header, HeaderKind};
use super::control::PortNames;
use super::edit::Edit;
use super::layout::{Layout, Place, read_bits};
use super::text::value_text;
use crate::flow_list::tci_text;
use crate::parse::{TPID_CUSTOMER, is_vlan_tpid};
use crate::vlan::Tci;

/// What `edits` do to a frame with these headers.
pub(super) fn edit_texts(
    program: &Compiled,
    headers: &[(u16, Place)],
    edits: &[Edit],
    names: &dyn PortNames,
) -> Vec<String> {
    let mut teller = Teller {
        program,
        names,
        layout: Layout::default(),
        inserted: (0, Vec::new()),
        texts: Vec::new(),
    };
    for &(header, place) in headers {
        teller.layout.found(header, place);
    }
    edits.iter().for_each(|edit| teller.tell(edit));
    teller.tell_inserted();
    teller.texts
}

struct Teller<'a> {
    program: &'a Compiled,
    names: &'a dyn PortNames,
    /// Where the headers are by now; of those that were inserted only tags are known.
    layout: Layout,
    /// Bytes that were inserted side by side and not mentioned yet, and what they come before.
    inserted: (usize, Vec<u8>),
    texts: Vec<String>,
}

impl Teller<'_> {
    fn tell(&mut self, edit: &Edit) {
        if let Edit::Insert { at, bytes } = edit {
            let (first, before) = &self.inserted;
            if first + before.len() != usize::from(*at) {
                self.tell_inserted();
                self.inserted.0 = usize::from(*at);
            }
            self.inserted.1.extend_from_slice(bytes.bytes());
            return;
        }
        self.tell_inserted();
        match *edit {
            Edit::Write { at, ref bytes } => self.tell_written(at.into(), bytes.bytes()),
            Edit::Remove { at, bytes } => self.tell_removed(at.into(), bytes.into()),
            _ => {}
        }
    }

    fn header(&self, number: u16) -> Option<&Header> {
        self.program.headers.get(usize::from(number))
    }

    /// The fields that lie within, or else the bytes.
    fn tell_written(&mut self, at: usize, bytes: &[u8]) {
        let before = self.texts.len();
        let mut texts = Vec::new();
        for &number in self.layout.order() {
            let (place, Some(header)) = (self.layout.place(number), self.header(number)) else {
                continue;
            };
            for named in &header.fields {
                let field = named.field;
                let first = 8 * usize::from(place.at) + usize::from(field.bit);
                let Some(skipped) = first.checked_sub(8 * at) else {
                    continue;
                };
                let Ok(bit) = u16::try_from(skipped) else {
                    continue;
                };
                let ends_within = skipped + usize::from(field.bits) <= 8 * bytes.len();
                let value = read_bits(bytes, 0, bit, field.bits).filter(|_| ends_within);
                texts.extend(value.map(|value| {
                    let text = value_text(value, field.bits, named.format, self.names);
                    format!("set {}.{} to {text}", header.name, named.name)
                }));
            }
        }
        self.texts.append(&mut texts);
        if self.texts.len() == before {
            self.texts
                .push(format!("write {} at byte {at}", hex(bytes)));
        }
    }

    fn tell_removed(&mut self, at: usize, bytes: usize) {
        let removed = at..at + bytes;
        let gone = self.layout.order().iter().filter_map(|&number| {
            let starts_within = removed.contains(&self.layout.place(number).at.into());
            self.header(number).filter(|_| starts_within)
        });
        let gone: Vec<&Header> = gone.collect();
        let text = match &*gone {
            [] => format!("remove {bytes} bytes at byte {at}"),
            [tag] if tag.kind == HeaderKind::Vlan && bytes == 4 => "pop VLAN".to_owned(),
            headers => {
                let names: Vec<&str> = headers.iter().map(|header| header.name.as_str()).collect();
                format!("remove {}", names.join(", "))
            }
        };
        self.texts.push(text);
        self.layout.remove(&removed);
    }

    fn tell_inserted(&mut self) {
        let (at, bytes) = std::mem::take(&mut self.inserted);
        if bytes.is_empty() {
            return;
        }
        self.layout.shift(at, bytes.len());
        let text = match *bytes {
            [a, b, c, d]
                if self.is_place_of_tag(at) && is_vlan_tpid(u16::from_be_bytes([a, b])) =>
            {
                let tpid = u16::from_be_bytes([a, b]);
                let tag = tci_text(Tci(u16::from_be_bytes([c, d])));
                match tpid {
                    TPID_CUSTOMER => format!("push VLAN {tag}"),
                    tpid => format!("push VLAN {tag}, TPID {tpid:#06x}"),
                }
            }
            _ => format!("insert {} bytes at byte {at}: {}", bytes.len(), hex(&bytes)),
        };
        self.texts.push(text);
    }

    /// Whether this is behind the addresses of an Ethernet header.
    fn is_place_of_tag(&self, at: usize) -> bool {
        self.layout.order().iter().any(|&number| {
            let header = self.header(number);
            header.is_some_and(|header| header.kind == HeaderKind::Ethernet)
                && usize::from(self.layout.place(number).at) + 12 == at
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
