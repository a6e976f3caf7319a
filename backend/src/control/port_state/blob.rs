//! A port's state as bytes.
//!
//! ```text
//! "RSWPORT\n"  version u16  oldest reader u16  0 u32  length u64    all little-endian
//! part: name 8 bytes (ASCII, padded with zeroes)  flags u32  length u32  JSON
//! part ...
//! CRC-32C u32 of everything before it
//! ```
//! `length` is that of the whole. This frame is the same in every version, so damage is told from news. A writer says which version
//! a reader must at least know. A part may be there several times. One that a reader does not know is skipped, unless it is
//! flagged as needed.
use super::PortState;
use super::crc32c::crc32c;
use super::parts::Origin;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What this version writes.
pub const VERSION: u16 = 1;
/// What is written can be read from this version on.
const OLDEST_READER: u16 = 1;
/// Largest state that is written or read.
pub const MAX_BYTES: usize = 64 * 1024 * 1024;

const MAGIC: &[u8; 8] = b"RSWPORT\n";
const HEADER_BYTES: usize = 24;
const PART_HEADER_BYTES: usize = 16;
const CHECKSUM_BYTES: usize = 4;
/// Who does not know the part must not take the state.
const NEEDED: u32 = 1;
/// Things of which there may be many, in one part.
const PER_PART: usize = 1024;

const ORIGIN: &str = "origin";
const TOTALS: &str = "totals";
const STATIONS: &str = "stations";
const CONNECTIONS: &str = "conns";
const ENTRIES: &str = "entries";
const SETTINGS: &str = "settings";

/// Why bytes are no port's state. Nothing of them was used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlobError {
    /// Something else.
    #[error("this is not a port's state")]
    NotAState,
    /// Not all of it.
    #[error(
        "the state is cut short or has something behind it: it has {have} bytes and says {length}"
    )]
    Length {
        /// Bytes there are.
        have: u64,
        /// Bytes it says it has.
        length: u64,
    },
    /// Too much.
    #[error("the state is larger than {MAX_BYTES} bytes")]
    TooLarge,
    /// Bytes are not those that were written.
    #[error("the state is damaged: its checksum does not fit")]
    Damaged,
    /// Written by a newer switch, which says that this one cannot read it.
    #[error(
        "the state has format {version} and needs a switch that knows format {reader}; this one knows {VERSION}"
    )]
    Newer {
        /// Its version.
        version: u16,
        /// What a reader must know.
        reader: u16,
    },
    /// A part that this version does not know, and has to.
    #[error("the state has a part {0:?}, which this version would have to know")]
    UnknownPart(String),
    /// A part that does not read.
    #[error("part {part} of the state cannot be read: {reason}")]
    Part {
        /// Which.
        part: &'static str,
        /// Why.
        reason: String,
    },
}

impl BlobError {
    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NotAState => "give what `ringswitch port export` wrote",
            Self::Length { .. } | Self::Damaged => "transfer it again",
            Self::TooLarge => "have fewer entries name the port: a state has 64 MiB at most",
            Self::Newer { .. } | Self::UnknownPart(_) => "upgrade this switch first",
            Self::Part { .. } => {
                "export it again; if another version did, upgrade this switch first"
            }
        }
    }
}

/// Writes a state. Connections that it has no room for are left out, and counted.
///
/// # Errors
/// When even without connections it is too large.
pub fn write(state: &PortState) -> Result<Vec<u8>, BlobError> {
    write_within(state, MAX_BYTES)
}

/// The same, within fewer bytes.
///
/// # Errors
/// When even without connections it is too large.
pub fn write_within(state: &PortState, max_bytes: usize) -> Result<Vec<u8>, BlobError> {
    let mut connections = Vec::new();
    let mut others = Vec::new();
    let many = |bytes: &mut Vec<u8>| -> Result<(), BlobError> {
        part(bytes, TOTALS, &state.totals)?;
        part(bytes, SETTINGS, &state.settings)?;
        parts(bytes, STATIONS, &state.stations)?;
        parts(bytes, ENTRIES, &state.entries)
    };
    many(&mut others)?;
    // What the origin and the frame take is small.
    let room = max_bytes
        .min(MAX_BYTES)
        .saturating_sub(64 * 1024)
        .checked_sub(others.len())
        .ok_or(BlobError::TooLarge)?;
    let mut left_out = 0;
    for chunk in state.connections.chunks(PER_PART) {
        let before = connections.len();
        part(&mut connections, CONNECTIONS, &chunk)?;
        if connections.len() > room {
            connections.truncate(before);
            left_out += chunk.len() as u64;
        }
    }
    let origin = Origin {
        connections_left_out: left_out,
        ..state.origin.clone()
    };
    let mut first = Vec::new();
    part(&mut first, ORIGIN, &origin)?;
    Ok(framed(
        (VERSION, OLDEST_READER),
        &[&first, &others, &connections],
    ))
}

/// Reads a state that any version wrote which this one can read.
///
/// # Errors
/// When it is damaged, cut short, too new, or not a state at all.
pub fn read(bytes: &[u8]) -> Result<PortState, BlobError> {
    // A reader that knows several versions tells them apart by their parts, and makes of older ones what it has now.
    let mut rest = unframed(bytes)?;
    let mut state = PortState::default();
    let mut has_origin = false;
    while !rest.is_empty() {
        let (name, flags, json);
        (name, flags, json, rest) = next_part(rest).ok_or(BlobError::Damaged)?;
        match name {
            ORIGIN => {
                state.origin = parsed(ORIGIN, json)?;
                has_origin = true;
            }
            TOTALS => state.totals = parsed(TOTALS, json)?,
            STATIONS => state.stations.append(&mut parsed(STATIONS, json)?),
            CONNECTIONS => state.connections.append(&mut parsed(CONNECTIONS, json)?),
            ENTRIES => state.entries.append(&mut parsed(ENTRIES, json)?),
            SETTINGS => state.settings = parsed(SETTINGS, json)?,
            other if flags & NEEDED != 0 => {
                return Err(BlobError::UnknownPart(other.to_owned()));
            }
            _ => {}
        }
    }
    if !has_origin {
        return Err(BlobError::Part {
            part: ORIGIN,
            reason: "it is missing".to_owned(),
        });
    }
    Ok(state)
}

fn framed((version, reader): (u16, u16), parts: &[&[u8]]) -> Vec<u8> {
    let inner: usize = parts.iter().map(|part| part.len()).sum();
    let length = HEADER_BYTES + inner + CHECKSUM_BYTES;
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(MAGIC);
    bytes.extend(version.to_le_bytes());
    bytes.extend(reader.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend((length as u64).to_le_bytes());
    for part in parts {
        bytes.extend_from_slice(part);
    }
    bytes.extend(crc32c(&bytes).to_le_bytes());
    bytes
}

/// The parts.
fn unframed(bytes: &[u8]) -> Result<&[u8], BlobError> {
    let (magic, header) = bytes.split_first_chunk().ok_or(BlobError::NotAState)?;
    if magic != MAGIC {
        return Err(BlobError::NotAState);
    }
    let have = bytes.len() as u64;
    let short = BlobError::Length {
        have,
        length: (HEADER_BYTES + CHECKSUM_BYTES) as u64,
    };
    let header: &[u8; HEADER_BYTES - 8] = header.first_chunk().ok_or(short.clone())?;
    let [v0, v1, r0, r1, z0, z1, z2, z3, length @ ..] = *header;
    let length = u64::from_le_bytes(length);
    if length > MAX_BYTES as u64 {
        return Err(BlobError::TooLarge);
    }
    if length != have {
        return Err(BlobError::Length { have, length });
    }
    let (checked, checksum) = bytes.split_last_chunk().ok_or(short.clone())?;
    if crc32c(checked) != u32::from_le_bytes(*checksum) || [z0, z1, z2, z3] != [0; 4] {
        return Err(BlobError::Damaged);
    }
    let version = u16::from_le_bytes([v0, v1]);
    let reader = u16::from_le_bytes([r0, r1]);
    if reader > VERSION {
        return Err(BlobError::Newer { version, reader });
    }
    checked.get(HEADER_BYTES..).ok_or(short)
}

fn next_part(bytes: &[u8]) -> Option<(&str, u32, &[u8], &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<PART_HEADER_BYTES>()?;
    let (name, numbers) = header.split_first_chunk::<8>()?;
    let (flags, length) = numbers.split_first_chunk::<4>()?;
    let length = u32::from_le_bytes(length.try_into().ok()?);
    let name = str::from_utf8(name).ok()?.trim_end_matches('\0');
    let (json, rest) = rest.split_at_checked(length as usize)?;
    Some((name, u32::from_le_bytes(*flags), json, rest))
}

fn parts<T: Serialize>(
    bytes: &mut Vec<u8>,
    name: &'static str,
    all: &[T],
) -> Result<(), BlobError> {
    all.chunks(PER_PART)
        .try_for_each(|chunk| part(bytes, name, &chunk))
}

fn part(bytes: &mut Vec<u8>, name: &'static str, value: &impl Serialize) -> Result<(), BlobError> {
    let json = serde_json::to_vec(value).map_err(|error| fault(name, &error))?;
    let length = u32::try_from(json.len()).map_err(|_| BlobError::TooLarge)?;
    let mut padded = [0; 8];
    for (byte, letter) in padded.iter_mut().zip(name.bytes()) {
        *byte = letter;
    }
    bytes.extend(padded);
    bytes.extend(NEEDED.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend(json);
    if bytes.len() > 2 * MAX_BYTES {
        return Err(BlobError::TooLarge);
    }
    Ok(())
}

fn parsed<T: DeserializeOwned>(name: &'static str, json: &[u8]) -> Result<T, BlobError> {
    serde_json::from_slice(json).map_err(|error| fault(name, &error))
}

fn fault(part: &'static str, error: &serde_json::Error) -> BlobError {
    BlobError::Part {
        part,
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::PortTotals;

    fn state() -> PortState {
        let parse = |json| serde_json::from_str(json).unwrap();
        PortState {
            origin: parse(r#"{"port": "vm1", "program": "vpc", "version": "9", "connections_left_out": 0}"#),
            totals: PortTotals {
                guest_tx_frames: 7,
                drops: [("no_destination".to_owned(), 3)].into(),
                ..PortTotals::default()
            },
            stations: serde_json::from_str(r#"[{"domain": 5, "mac": "02:00:00:00:00:01", "age_ms": 9}]"#).unwrap(),
            connections: serde_json::from_str(
                r#"[{"z": 1, "p": 17, "a": ["10.0.0.1", 5, "10.0.0.2", 53], "s": "udp_stream", "e": 1, "f": 3, "n": [1, 2, 3, 4], "i": 64}]"#,
            )
            .unwrap(),
            entries: serde_json::from_str(
                r#"[{"entry": {"table": "t", "key": {"port": "vm1"}, "action": "a"}}]"#,
            )
            .unwrap(),
            settings: serde_json::from_str(r#"{"multicast": [1]}"#).unwrap(),
        }
    }

    /// A part of any name and flags.
    fn by_hand(name: &[u8; 8], flags: u32, json: &str) -> Vec<u8> {
        let mut bytes = name.to_vec();
        bytes.extend(flags.to_le_bytes());
        bytes.extend((json.len() as u32).to_le_bytes());
        bytes.extend(json.bytes());
        bytes
    }

    const BY_HAND: &str = r#"{"port": "vm1", "program": "l2"}"#;

    #[test]
    fn a_state_reads_as_what_was_written() {
        let bytes = write(&state()).unwrap();
        assert_eq!(read(&bytes).unwrap(), state());
        let many = PortState {
            connections: vec![state().connections[0].clone(); 3 * PER_PART + 1],
            ..state()
        };
        assert_eq!(read(&write(&many).unwrap()).unwrap(), many);
    }

    #[test]
    fn a_state_with_any_bit_turned_over_is_refused() {
        let bytes = write(&state()).unwrap();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                assert!(read(&damaged).is_err(), "byte {at}, bit {bit}");
            }
            let mut damaged = bytes.clone();
            damaged[at] = !damaged[at];
            assert!(read(&damaged).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_state_cut_short_or_drawn_out_is_refused() {
        let bytes = write(&state()).unwrap();
        for length in 0..bytes.len() {
            assert!(read(&bytes[..length]).is_err(), "{length} bytes");
        }
        let length = bytes.len() as u64;
        let longer = [&bytes[..], b"\n"].concat();
        let have = length + 1;
        assert_eq!(read(&longer), Err(BlobError::Length { have, length }));
        assert_eq!(read(b"{\"port\": \"vm1\"}"), Err(BlobError::NotAState));
    }

    #[test]
    fn an_older_state_has_less() {
        let origin = by_hand(b"origin\0\0", 1, BY_HAND);
        // The first version that a reader could meet, without what came later; fields that were not there are empty.
        let connection = by_hand(
            b"conns\0\0\0",
            1,
            r#"[{"z": 1, "p": 17, "a": ["10.0.0.1", 5, "10.0.0.2", 53], "s": "udp_stream", "e": 1}]"#,
        );
        let read = read(&framed((0, 0), &[&origin, &connection])).unwrap();
        assert_eq!(
            (read.origin.port.as_str(), &*read.origin.version),
            ("vm1", "")
        );
        assert_eq!((read.connections.len(), read.entries.len()), (1, 0));
        assert_eq!(read.totals, PortTotals::default());
    }

    #[test]
    fn a_newer_state_is_read_as_far_as_it_allows() {
        let origin = by_hand(
            b"origin\0\0",
            1,
            r#"{"port": "vm1", "program": "l2", "colour": "red"}"#,
        );
        let extra = by_hand(b"flavour\0", 0, r#"["sweet"]"#);
        let newer = framed((VERSION + 6, VERSION), &[&origin, &extra]);
        assert_eq!(read(&newer).unwrap().origin.port, "vm1");
        let needed = by_hand(b"flavour\0", NEEDED, r#"["sweet"]"#);
        let refused = read(&framed((VERSION + 6, VERSION), &[&origin, &needed]));
        assert_eq!(refused, Err(BlobError::UnknownPart("flavour".to_owned())));
        let (version, reader) = (VERSION + 6, VERSION + 1);
        let refused = read(&framed((version, reader), &[&origin]));
        assert_eq!(refused, Err(BlobError::Newer { version, reader }));
        assert!(refused.unwrap_err().remedy().contains("upgrade"));
    }

    #[test]
    fn parts_that_do_not_read_are_refused_though_their_checksum_fits() {
        let origin = by_hand(b"origin\0\0", 1, BY_HAND);
        for (name, json) in [
            (b"conns\0\0\0", r#"[{"z": 1}]"#),
            (b"totals\0\0", "7"),
            (b"stations", "7"),
            (b"entries\0", "{"),
            (b"settings", r#"{"multicast": [65536]}"#),
        ] {
            let part = by_hand(name, 1, json);
            let refused = read(&framed((1, 1), &[&origin, &part]));
            assert!(
                matches!(refused, Err(BlobError::Part { .. })),
                "{json}: {refused:?}"
            );
        }
        let mut long = by_hand(b"totals\0\0", 1, "{}");
        long[12] = 200;
        assert_eq!(
            read(&framed((1, 1), &[&origin, &long])),
            Err(BlobError::Damaged)
        );
        assert!(matches!(
            read(&framed((1, 1), &[])),
            Err(BlobError::Part { part: ORIGIN, .. })
        ));
    }

    #[test]
    fn connections_without_room_are_left_out_and_counted() {
        let mut state = state();
        let each = serde_json::to_vec(&state.connections[0]).unwrap().len();
        state.connections = vec![state.connections[0].clone(); MAX_BYTES / each + 2 * PER_PART];
        let bytes = write(&state).unwrap();
        assert!(bytes.len() <= MAX_BYTES);
        let again = read(&bytes).unwrap();
        let left_out = again.origin.connections_left_out as usize;
        assert!(left_out > 0);
        assert_eq!(again.connections.len() + left_out, state.connections.len());
    }
}
