//! An entry as bytes, as the store keeps it: as it was written, names and all, so that it outlives a change of the program.
//!
//! A million entries are a million records, so they are not JSON: a quarter of its size, and read and written several times faster.
//! Records of the first format, which were JSON, still read.
use super::store::StoreError;
use std::collections::BTreeMap;
use switch_core::engine::control::TableEntry;
use switch_core::engine::literal::Literal;
use switch_core::engine::model::KeyMatch;

/// The first byte of a record. One of JSON begins with a brace.
const FORMAT: u8 = 2;

const HAS_PRIORITY: u8 = 1;
const HAS_IDLE_TIMEOUT: u8 = 2;
const HAS_HARD_TIMEOUT: u8 = 4;
const HAS_TENANT: u8 = 8;

/// In place of a number's count of bytes, 0 to 16.
const TEXT: u8 = 17;

/// Appends an entry's record.
pub fn write_record(bytes: &mut Vec<u8>, entry: &TableEntry) {
    let mut has = 0;
    for (flag, is_there) in [
        (HAS_PRIORITY, entry.priority.is_some()),
        (HAS_IDLE_TIMEOUT, entry.idle_timeout_ms != 0),
        (HAS_HARD_TIMEOUT, entry.hard_timeout_ms != 0),
        (HAS_TENANT, entry.tenant.is_some()),
    ] {
        has |= if is_there { flag } else { 0 };
    }
    bytes.extend([FORMAT, has]);
    write_bytes(bytes, entry.table.as_bytes());
    write_length(bytes, entry.key.len());
    for (name, matched) in &entry.key {
        write_bytes(bytes, name.as_bytes());
        write_match(bytes, matched);
    }
    write_bytes(bytes, entry.action.as_bytes());
    write_length(bytes, entry.params.len());
    for (name, literal) in &entry.params {
        write_bytes(bytes, name.as_bytes());
        write_literal(bytes, literal);
    }
    if let Some(priority) = entry.priority {
        bytes.extend(priority.to_le_bytes());
    }
    for timeout_ms in [entry.idle_timeout_ms, entry.hard_timeout_ms] {
        if timeout_ms != 0 {
            bytes.extend(timeout_ms.to_le_bytes());
        }
    }
    if let Some(tenant) = &entry.tenant {
        write_bytes(bytes, tenant.as_bytes());
    }
}

fn write_match(bytes: &mut Vec<u8>, matched: &KeyMatch) {
    match matched {
        KeyMatch::Text(literal) => {
            bytes.push(0);
            write_literal(bytes, literal);
        }
        KeyMatch::Prefix { value, prefix_bits } => {
            bytes.push(1);
            write_literal(bytes, value);
            bytes.extend(prefix_bits.to_le_bytes());
        }
        KeyMatch::Masked { value, mask } => {
            bytes.push(2);
            write_literal(bytes, value);
            write_literal(bytes, mask);
        }
        KeyMatch::Range { low, high } => {
            bytes.push(3);
            write_literal(bytes, low);
            write_literal(bytes, high);
        }
    }
}

fn write_literal(bytes: &mut Vec<u8>, literal: &Literal) {
    match literal {
        Literal::Number(number) => {
            let count = 16 - number.leading_zeros() / 8;
            bytes.push(count as u8);
            let all = number.to_le_bytes();
            bytes.extend(all.get(..count as usize).unwrap_or_default());
        }
        Literal::Text(text) => {
            bytes.push(TEXT);
            write_bytes(bytes, text.as_bytes());
        }
    }
}

/// Appends bytes behind their length.
pub(super) fn write_bytes(bytes: &mut Vec<u8>, appended: &[u8]) {
    write_length(bytes, appended.len());
    bytes.extend(appended);
}

/// Seven bits a byte, the lowest first; the topmost bit says that more follow.
fn write_length(bytes: &mut Vec<u8>, mut length: usize) {
    while length >= 128 {
        bytes.push(length as u8 | 128);
        length >>= 7;
    }
    bytes.push(length as u8);
}

/// The entry of a record.
pub fn read_record(bytes: &[u8]) -> Result<TableEntry, StoreError> {
    if bytes.first() == Some(&b'{') {
        return super::store::decode(bytes);
    }
    let mut reader = Reader(bytes);
    let entry = reader.entry().filter(|_| reader.0.is_empty());
    entry.ok_or_else(|| StoreError::Content("an entry is no record of this format".to_owned()))
}

/// What is left to read.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    fn entry(&mut self) -> Option<TableEntry> {
        let [format, has] = self.array()?;
        if format != FORMAT {
            return None;
        }
        let table = self.text()?;
        let mut key = BTreeMap::new();
        for _ in 0..self.length()? {
            key.insert(self.text()?, self.key_match()?);
        }
        let action = self.text()?;
        let mut params = BTreeMap::new();
        for _ in 0..self.length()? {
            params.insert(self.text()?, self.literal()?);
        }
        let priority = self.optional(has & HAS_PRIORITY, |reader| {
            reader.array().map(i32::from_le_bytes)
        })?;
        let timeout = |reader: &mut Self| reader.array().map(u32::from_le_bytes);
        let idle_timeout_ms = self.optional(has & HAS_IDLE_TIMEOUT, timeout)?;
        let hard_timeout_ms = self.optional(has & HAS_HARD_TIMEOUT, timeout)?;
        let tenant = self.optional(has & HAS_TENANT, Self::text)?;
        Some(TableEntry {
            table,
            key,
            priority,
            action,
            params,
            idle_timeout_ms: idle_timeout_ms.unwrap_or(0),
            hard_timeout_ms: hard_timeout_ms.unwrap_or(0),
            tenant,
        })
    }

    /// What is there when a flag is set; the outer `None`: it cannot be read.
    fn optional<T>(
        &mut self,
        flag: u8,
        read: impl FnOnce(&mut Self) -> Option<T>,
    ) -> Option<Option<T>> {
        if flag == 0 {
            return Some(None);
        }
        read(self).map(Some)
    }

    fn key_match(&mut self) -> Option<KeyMatch> {
        let [form] = self.array()?;
        let first = self.literal()?;
        Some(match form {
            0 => KeyMatch::Text(first),
            1 => KeyMatch::Prefix {
                value: first,
                prefix_bits: self.array().map(u16::from_le_bytes)?,
            },
            2 => KeyMatch::Masked {
                value: first,
                mask: self.literal()?,
            },
            3 => KeyMatch::Range {
                low: first,
                high: self.literal()?,
            },
            _ => return None,
        })
    }

    fn literal(&mut self) -> Option<Literal> {
        let [count] = self.array()?;
        if count == TEXT {
            return Some(Literal::Text(self.text()?));
        }
        let mut all = [0; 16];
        let number = self.take(count.into())?;
        all.get_mut(..usize::from(count))?.copy_from_slice(number);
        Some(Literal::Number(u128::from_le_bytes(all)))
    }

    fn text(&mut self) -> Option<String> {
        let text = str::from_utf8(self.bytes()?).ok()?;
        Some(text.to_owned())
    }

    /// Bytes behind their length.
    pub(super) fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.length()?;
        self.take(length)
    }

    fn length(&mut self) -> Option<usize> {
        let mut length = 0;
        for shift in [0, 7, 14, 21, 28] {
            let [byte] = self.array()?;
            length |= usize::from(byte & 127) << shift;
            if byte < 128 {
                return Some(length);
            }
        }
        None
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> Vec<TableEntry> {
        [
            r#"{"table": "t", "action": "a"}"#,
            r#"{"table": "routes", "key": {"dst": "10.0.0.0/8", "vrf": 0}, "action": "forward", "params": {"port": "vm1", "next": "2001:db8::1"}}"#,
            r#"{"table": "acl", "key": {"a": {"value": 1, "prefix_bits": 8}, "b": {"value": 65535, "mask": 256}, "c": {"low": 0, "high": "0xffffffffffffffffffffffffffffffff"}},
                "priority": -7, "action": "allow", "idle_timeout_ms": 5, "hard_timeout_ms": 4294967295, "tenant": "blue"}"#,
        ]
        .map(|json| serde_json::from_str(json).unwrap())
        .into()
    }

    #[test]
    fn a_record_reads_as_what_was_written_and_is_small() {
        for entry in entries() {
            let mut record = vec![];
            write_record(&mut record, &entry);
            let json = serde_json::to_vec(&entry).unwrap();
            assert!(record.len() * 2 < json.len() + 20);
            assert_eq!(read_record(&record).unwrap(), entry);
            assert_eq!(read_record(&json).unwrap(), entry);
        }
    }

    #[test]
    fn what_is_cut_short_or_altered_never_panics() {
        for entry in entries() {
            let mut record = vec![];
            write_record(&mut record, &entry);
            for cut in 0..record.len() {
                assert!(read_record(&record[..cut]).is_err());
            }
            for at in 0..record.len() {
                for bit in 0..8 {
                    let mut altered = record.clone();
                    altered[at] ^= 1 << bit;
                    let _ = read_record(&altered);
                }
            }
        }
    }
}
