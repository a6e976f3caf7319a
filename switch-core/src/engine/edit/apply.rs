//! Does what an edit list says, on bytes.
//!
//! Once for every delivered copy of an edited frame, so the short writes that make up most lists are copies of a length known when
//! this is compiled, and inserts that follow one another move what is behind them once.

use super::delta::add;
use super::{EDIT_RUN_BYTES, Edit, EditedFrame, PartialChecksum, Run, TransportChecksum};
use crate::drop_reason::DropReason;

/// Applies edits, in order. After an error some of them are done: the frame is to be dropped.
///
/// # Errors
/// [`DropReason::HeadersTooLong`]: the buffer ends before an edit does, or has no room for it. [`DropReason::FrameTooLong`]: a length
/// does not fit its field. [`DropReason::OffloadUnsupported`]: the start of what an unfinished checksum covers was removed, but not
/// the checksum.
#[inline]
pub fn apply(edits: &[Edit], frame: &mut EditedFrame<'_>) -> Result<(), DropReason> {
    let mut left = edits;
    while let [edit, after @ ..] = left {
        left = after;
        match edit {
            Edit::Write { at, bytes } => {
                put(frame.header(), *at, bytes).ok_or(DropReason::HeadersTooLong)?;
            }
            Edit::AdjustIpv4Checksum { at, delta } => {
                let field = frame.word(*at)?;
                *field = (!add(!u16::from_be_bytes(*field), *delta)).to_be_bytes();
            }
            Edit::AdjustTransportChecksum {
                at,
                pseudo_delta,
                data_delta,
                kind,
            } => {
                let is_partial = frame.partial_checksum.is_some_and(|c| c.at == *at);
                let field = frame.word(*at)?;
                let old = u16::from_be_bytes(*field);
                let new = if is_partial {
                    add(old, *pseudo_delta)
                } else {
                    adjusted(old, add(*pseudo_delta, *data_delta), *kind)
                };
                *field = new.to_be_bytes();
            }
            Edit::Insert { at, bytes } => {
                let first = (*at, bytes);
                left = insert(frame, first, after)?;
            }
            Edit::Remove { at, bytes } => remove(frame, *at, *bytes)?,
            Edit::WriteLength { at, from } => {
                let length = frame.frame_bytes.saturating_sub(usize::from(*from));
                let length = u16::try_from(length).map_err(|_| DropReason::FrameTooLong)?;
                *frame.word(*at)? = length.to_be_bytes();
            }
            Edit::FinishIpv4Checksum { at } => finish_ipv4(frame.header(), *at)?,
        }
    }
    Ok(())
}

impl EditedFrame<'_> {
    #[inline(always)]
    fn header(&mut self) -> &mut [u8] {
        self.buffer.get_mut(..self.header_bytes).unwrap_or_default()
    }

    #[inline(always)]
    fn word(&mut self, at: u16) -> Result<&mut [u8; 2], DropReason> {
        self.header()
            .get_mut(usize::from(at)..)
            .and_then(<[u8]>::first_chunk_mut)
            .ok_or(DropReason::HeadersTooLong)
    }
}

/// RFC 1624 eq. 3; for UDP, RFC 768's rule for 0.
#[inline(always)]
fn adjusted(checksum: u16, delta: u16, kind: TransportChecksum) -> u16 {
    let new = !add(!checksum, delta);
    match (kind, checksum, new) {
        (TransportChecksum::Plain, _, _) => new,
        (TransportChecksum::Udp, 0, _) => 0,
        (TransportChecksum::Udp, _, 0) => 0xffff,
        (TransportChecksum::Udp, _, _) => new,
    }
}

/// Writes a run at `at`.
#[inline(always)]
fn put(to: &mut [u8], at: u16, run: &Run) -> Option<()> {
    let to = to.get_mut(usize::from(at)..)?;
    match run.len {
        1 => copy::<1>(to, &run.bytes),
        2 => copy::<2>(to, &run.bytes),
        4 => copy::<4>(to, &run.bytes),
        6 => copy::<6>(to, &run.bytes),
        8 => copy::<8>(to, &run.bytes),
        12 => copy::<12>(to, &run.bytes),
        16 => copy::<16>(to, &run.bytes),
        20 => copy::<20>(to, &run.bytes),
        len => {
            let len = usize::from(len);
            to.get_mut(..len)?.copy_from_slice(run.bytes.get(..len)?);
            Some(())
        }
    }
}

#[inline(always)]
fn copy<const N: usize>(to: &mut [u8], from: &[u8; EDIT_RUN_BYTES]) -> Option<()> {
    *to.first_chunk_mut::<N>()? = *from.first_chunk::<N>()?;
    Some(())
}

/// Inserts `first` and those of `after` that come right behind it; what is left of `after`.
fn insert<'e>(
    frame: &mut EditedFrame<'_>,
    first: (u16, &Run),
    after: &'e [Edit],
) -> Result<&'e [Edit], DropReason> {
    let (start, first) = first;
    let mut end = u32::from(start) + u32::from(first.len);
    let mut count = 0;
    for edit in after {
        match edit {
            Edit::Insert { at, bytes } if u32::from(*at) == end => end += u32::from(bytes.len),
            _ => break,
        }
        count += 1;
    }
    let (together, left) = after.split_at_checked(count).unwrap_or((&[], after));
    let growth = end as usize - usize::from(start);
    let behind = frame.header_bytes.checked_sub(start.into());
    let room = frame
        .buffer
        .get_mut(usize::from(start)..frame.header_bytes + growth);
    let (Some(behind), Some(room)) = (behind, room) else {
        return Err(DropReason::HeadersTooLong);
    };
    // As long as `behind` and the growth together.
    room.copy_within(..behind, growth);
    frame.header_bytes += growth;
    frame.frame_bytes += growth;
    frame.partial_checksum = frame.partial_checksum.map(|c| {
        let moved = |at: u16| {
            if at < start {
                at
            } else {
                at.saturating_add(growth as u16)
            }
        };
        PartialChecksum {
            start: moved(c.start),
            at: moved(c.at),
        }
    });
    put(frame.header(), start, first).ok_or(DropReason::HeadersTooLong)?;
    for edit in together {
        if let Edit::Insert { at, bytes } = edit {
            put(frame.header(), *at, bytes).ok_or(DropReason::HeadersTooLong)?;
        }
    }
    Ok(left)
}

fn remove(frame: &mut EditedFrame<'_>, at: u16, bytes: u16) -> Result<(), DropReason> {
    let (from, len) = (usize::from(at), usize::from(bytes));
    let to = frame
        .buffer
        .get_mut(from..frame.header_bytes)
        .filter(|tail| tail.len() >= len)
        .ok_or(DropReason::HeadersTooLong)?;
    to.copy_within(len.., 0);
    frame.header_bytes -= len;
    frame.frame_bytes = frame.frame_bytes.saturating_sub(len);
    let moved = |place: u16| match place.checked_sub(at) {
        None => Some(place),
        Some(distance) if distance < bytes => None,
        Some(_) => Some(place - bytes),
    };
    if let Some(PartialChecksum { start, at }) = frame.partial_checksum {
        frame.partial_checksum = match (moved(start), moved(at)) {
            (Some(start), Some(at)) => Some(PartialChecksum { start, at }),
            (_, None) => None,
            (None, Some(_)) => return Err(DropReason::OffloadUnsupported),
        };
    }
    Ok(())
}

/// RFC 791 §3.1, for a header of 20 bytes.
///
/// Word by word: some of them were written a moment ago, and a load that spans several stores has to wait for all of them.
fn finish_ipv4(header: &mut [u8], at: u16) -> Result<(), DropReason> {
    let header = header
        .get_mut(usize::from(at)..)
        .and_then(<[u8]>::first_chunk_mut::<20>)
        .ok_or(DropReason::HeadersTooLong)?;
    let (words, _) = header.as_chunks_mut::<2>();
    let [a, b, c, d, e, checksum, f, g, h, i] = words else {
        return Err(DropReason::HeadersTooLong);
    };
    let word = |bytes: &[u8; 2]| u32::from(u16::from_be_bytes(*bytes));
    let sum = (word(a) + word(b))
        + (word(c) + word(d))
        + (word(e) + word(f))
        + (word(g) + word(h))
        + word(i);
    // Nine words: the first fold leaves at most eight in the upper half.
    let sum = (sum >> 16) + (sum & 0xffff);
    *checksum = (!add(sum as u16, (sum >> 16) as u16)).to_be_bytes();
    Ok(())
}
