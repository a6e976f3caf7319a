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
    #[error("this is not a port's state: give what `ringswitch port export` wrote")]
    NotAState,
    /// Not all of it.
    #[error(
        "the state is cut short or has something behind it: {have} bytes of {length}; transfer it again"
    )]
    Length {
        /// Bytes there are.
        have: u64,
        /// Bytes it says it has.
        length: u64,
    },
    /// Too much.
    #[error("the state is larger than {MAX_BYTES} bytes, which no switch writes; export it again")]
    TooLarge,
    /// Bytes are not those that were written.
    #[error("the state is damaged: its checksum does not fit; transfer it again")]
    Damaged,
    /// Written by a newer switch, which says that this one cannot read it.
    #[error(
        "the state has format {version} and needs a switch that knows format {reader} (this one knows {VERSION}): upgrade this switch first"
    )]
    Newer {
        /// Its version.
        version: u16,
        /// What a reader must know.
        reader: u16,
    },
    /// A part that this version does not know, and has to.
    #[error(
        "the state has a part {0:?} that this version has to know and does not: upgrade this switch first"
    )]
    UnknownPart(String),
    /// A part that does not read.
    #[error(
        "part {part} of the state cannot be read: {reason}; export it again, with the version of this switch if another wrote it"
    )]
    Part {
        /// Which.
        part: &'static str,
        /// Why.
        reason: String,
    },
}

/// Writes a state. Connections that it has no room for are left out, and counted.
///
/// # Errors
/// When even without connections it is too large.
pub fn write(state: &PortState) -> Result<Vec<u8>, BlobError> {
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
    let room = (MAX_BYTES - 64 * 1024)
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
