//! A frame under evaluation: its bytes, where its headers are, its metadata, what was looked at, and what was done to it.
//!
//! Kept true: every value that was read depends on nothing but the bits of the frame as it came that are marked in `looked_at`, the
//! path that the parser took, the port it came from, and the lengths within `lengths`. So whatever is decided here may be decided
//! again for any frame that agrees in those, and every edit has constants for values.

use super::compile::{Compiled, HeaderField, HeaderKind};
use super::edit::{Edit, EditList, EditedFrame, Run, TransportChecksum, apply};
use super::layout::{Layout, MADE_HERE, Place, read_bits};
use super::parse::{Input, Origin, ParseError, Watch, parse};

/// Bytes of a frame that are parsed and edited.
pub(crate) const PACKET_BYTES: usize = 256;
/// Room for headers that are pushed.
const ROOM_BYTES: usize = PACKET_BYTES + super::edit::MAX_GROWTH_BYTES;
/// Marks of bits, by byte of the frame as it came; with room to take a word from any of them on.
type Marks = [u8; PACKET_BYTES + 8];

/// A change to be added to a checksum, once all that is covered has its final value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pending {
    header: u16,
    pseudo: u16,
    data: u16,
}

/// What is filled in when the frame leaves; until then it is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FillIn {
    /// The frame's length from so many bytes behind it on.
    LengthFrom(i32),
    /// The checksum of an IPv4 header without options.
    Ipv4Checksum,
}

/// A frame under evaluation.
#[derive(Clone)]
pub(crate) struct Packet {
    bytes: [u8; ROOM_BYTES],
    len: usize,
    /// How many bytes of the frame came.
    came: usize,
    pub(crate) layout: Layout,
    /// Bits that have a constant value by now, by byte of the frame as it came.
    written: Marks,
    /// Bits that were read, by byte of the frame as it came.
    looked_at: Marks,
    /// Lengths of frame and longest piece that the decisions so far hold for.
    pub(crate) frame_lengths: (u32, u32),
    pub(crate) wire_lengths: (u32, u32),
    edits: Vec<Edit>,
    pending: Vec<Pending>,
    /// By place.
    fills: Vec<(u16, FillIn)>,
    /// How much longer the frame is than it came.
    length_delta: isize,
    /// What was done is right for this frame alone.
    pub(crate) is_once: bool,
    /// Where the bytes came from: runs, in order, that cover all of them.
    moves: Vec<Move>,
    pub(crate) meta: Vec<u128>,
}

impl Packet {
    /// A frame that starts with `header`.
    pub(crate) fn new(header: &[u8], metadata: usize) -> Self {
        let mut packet = Self {
            bytes: [0; ROOM_BYTES],
            len: 0,
            came: 0,
            layout: Layout::default(),
            written: [0; PACKET_BYTES + 8],
            looked_at: [0; PACKET_BYTES + 8],
            frame_lengths: (0, u32::MAX),
            wire_lengths: (0, u32::MAX),
            edits: Vec::new(),
            pending: Vec::new(),
            fills: Vec::new(),
            length_delta: 0,
            is_once: false,
            moves: vec![Move::all()],
            meta: vec![0; metadata],
        };
        packet.fill(header);
        packet
    }

    fn fill(&mut self, header: &[u8]) {
        let header = header.get(..PACKET_BYTES).unwrap_or(header);
        if let Some(bytes) = self.bytes.get_mut(..header.len()) {
            bytes.copy_from_slice(header);
        }
        self.len = header.len();
        self.came = header.len();
    }

    /// Makes it another frame; keeps its memory.
    pub(crate) fn reset(&mut self, header: &[u8]) {
        self.fill(header);
        self.written.fill(0);
        self.looked_at.fill(0);
        self.frame_lengths = (0, u32::MAX);
        self.wire_lengths = (0, u32::MAX);
        self.edits.clear();
        self.pending.clear();
        self.fills.clear();
        self.length_delta = 0;
        self.is_once = false;
        self.moves.clear();
        self.moves.push(Move::all());
        self.meta.fill(0);
        self.layout.clear();
    }

    /// Finds its headers.
    pub(crate) fn parse(
        &mut self,
        program: &Compiled,
        (frame_bytes, origin): (u32, Origin),
        watch: &mut impl Watch,
    ) -> ParseError {
        let input = Input {
            bytes: self.bytes.get(..self.len).unwrap_or_default(),
            frame_bytes: self.changed_length(frame_bytes as usize),
            origin,
        };
        self.layout.clear();
        parse(program, input, &mut self.layout, watch)
    }

    /// Has these headers, as frames of its path do; the last one's length is its own.
    pub(crate) fn take_headers(&mut self, program: &Compiled, headers: &[(u16, Place)]) {
        self.layout.clear();
        for &(header, place) in headers {
            self.layout.found(header, place);
        }
        if let Some(&(header, place)) = headers.last()
            && let Some(spec) = program.headers.get(usize::from(header))
            && let Some(length) = spec.length
        {
            // Its parse found that it fits.
            let units = (self.peek(length.field) as u16).wrapping_add(length.plus);
            let bytes = units.wrapping_mul(length.unit_bytes);
            self.layout.set(header, Place { bytes, ..place });
        }
    }

    /// The bytes as they are now.
    #[inline]
    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// Where a header is.
    #[inline]
    pub(crate) fn place(&self, header: u16) -> Place {
        self.layout.place(header)
    }

    /// Bits that were read.
    pub(crate) fn looked_at(&self) -> &[u8] {
        self.looked_at.get(..PACKET_BYTES).unwrap_or_default()
    }

    /// How many they are.
    pub(crate) fn bits_looked_at(&self) -> u32 {
        let (words, _) = self.looked_at().as_chunks();
        let ones = |&word: &[u8; 8]| u64::from_ne_bytes(word).count_ones();
        // Behind the frame as it came there are none.
        let words = words.iter().take(self.came.div_ceil(8));
        words.map(ones).sum()
    }

    /// Notes that a field of a header counts.
    #[inline]
    pub(crate) fn look_at(&mut self, field: HeaderField) {
        self.look_at_place(self.place(field.header), field);
    }

    #[inline]
    fn look_at_place(&mut self, place: Place, field: HeaderField) {
        if place.is_valid() && place.origin != MADE_HERE {
            for_each_word(field.bit, field.bits, |byte, ones, _| {
                self.note(usize::from(place.origin) + byte, ones);
            });
        }
    }

    /// Notes that some bits of a field of a header count.
    pub(crate) fn look_at_bits(&mut self, field: HeaderField, bits: u128) {
        let place = self.place(field.header);
        if place.is_valid() && place.origin != MADE_HERE {
            for_each_word(field.bit, field.bits, |byte, ones, left| {
                let bits = match left {
                    ..0 => (bits as u64).checked_shl(left.unsigned_abs()),
                    0.. => bits
                        .checked_shr(left.unsigned_abs())
                        .map(|bits| bits as u64),
                };
                self.note(usize::from(place.origin) + byte, bits.unwrap_or(0) & ones);
            });
        }
    }

    /// Notes bits of the word from a byte on, but for those that have a constant value by now.
    #[inline]
    fn note(&mut self, at: usize, bits: u64) {
        if let (Some(looked_at), Some(written)) =
            (word_mut(&mut self.looked_at, at), word(&self.written, at))
        {
            let bits = bits & !u64::from_be_bytes(*written);
            *looked_at = (u64::from_be_bytes(*looked_at) | bits).to_be_bytes();
        }
    }

    /// The value of a header's field; 0 when it is not part of the frame.
    pub(crate) fn get(&mut self, field: HeaderField) -> u128 {
        let place = self.place(field.header);
        let (first, head) = (usize::from(field.bit / 8), field.bit % 8);
        let at = usize::from(place.at) + first;
        let end = at * 8 + usize::from(head + field.bits);
        // Nearly all fields are in one word.
        if let Some(behind) = 64u16.checked_sub(head + field.bits)
            && (place.is_valid() && field.bits > 0 && end <= self.len * 8)
            && let Some(word) = self.bytes.get(at..).and_then(|bytes| bytes.first_chunk())
        {
            let ones = u64::MAX >> (64 - field.bits);
            let value = u64::from_be_bytes(*word) >> behind & ones;
            if place.origin != MADE_HERE {
                self.note(usize::from(place.origin) + first, ones << behind);
            }
            return value.into();
        }
        self.look_at_place(place, field);
        self.peek_place(place, field)
    }

    /// The same, without depending on it.
    pub(crate) fn peek(&self, field: HeaderField) -> u128 {
        self.peek_place(self.place(field.header), field)
    }

    #[inline]
    fn peek_place(&self, place: Place, field: HeaderField) -> u128 {
        let end = usize::from(place.at) * 8 + usize::from(field.bit + field.bits);
        if !place.is_valid() || end > self.len * 8 {
            return 0;
        }
        // What is behind the frame is shifted out: so nearly all fields are in one word.
        read_bits(&self.bytes, place.at.into(), field.bit, field.bits).unwrap_or(0)
    }

    /// Writes a header's field, with the checksums that cover it; without effect when it is not part of the frame.
    pub(crate) fn set(&mut self, program: &Compiled, field: HeaderField, value: u128) {
        let place = self.place(field.header);
        let Some(header) = program.headers.get(usize::from(field.header)) else {
            return;
        };
        if !place.is_valid() || field.bit + field.bits > place.bytes * 8 {
            return;
        }
        // What was changed before is covered by the old checksum, not by the one that is written now.
        self.settle_if_checksum(program, field);
        let cover = self.cover(program, field.header, header.kind, field);
        // The whole bytes that change: what else is in them becomes part of the edit, so the verdict depends on it; and so it does on the
        // old value where the difference counts.
        let (first, last) = (field.bit / 8, (field.bit + field.bits).div_ceil(8));
        let whole = HeaderField {
            bit: first * 8,
            bits: (last - first) * 8,
            ..field
        };
        if cover == Cover::None {
            self.look_at_edges(field, whole);
        } else {
            self.look_at(whole);
        }
        let at = usize::from(place.at + first);
        let len = usize::from(last - first);
        let mut old = [0u8; 17];
        let mut new = [0u8; 17];
        let Some(bytes) = self.bytes.get_mut(at..at + len) else {
            return;
        };
        let (Some(old), Some(new)) = (old.get_mut(..len), new.get_mut(..len)) else {
            return;
        };
        old.copy_from_slice(bytes);
        write_bits(bytes, field.bit % 8, field.bits, value);
        new.copy_from_slice(bytes);
        self.fills
            .retain(|&(place, _)| !(at..at + len).contains(&usize::from(place)));
        if old == new && cover != Cover::None {
            // The old value counts already: nothing to do.
            return;
        }
        self.edits.push(Edit::Write {
            at: at as u16,
            bytes: Run::new(new),
        });
        self.overwrote(field.header, field.bit, field.bits);
        if cover != Cover::None {
            self.account(program, cover, delta(old, new, first % 2 == 1));
        }
        if self.has_transport_before(program, field.header) {
            let change = delta(old, new, at % 2 == 1);
            self.account_outer(program, (field.header, cover), change);
        }
    }

    /// What is in the bytes of `whole` beside `field`.
    fn look_at_edges(&mut self, field: HeaderField, whole: HeaderField) {
        let before = field.bit - whole.bit;
        let after = whole.bits - before - field.bits;
        if before > 0 {
            self.look_at(HeaderField {
                bits: before,
                ..whole
            });
        }
        if after > 0 {
            self.look_at(HeaderField {
                bit: field.bit + field.bits,
                bits: after,
                ..whole
            });
        }
    }

    /// Which checksums cover a field.
    fn cover(
        &self,
        program: &Compiled,
        header: u16,
        kind: HeaderKind,
        field: HeaderField,
    ) -> Cover {
        let kind_of = |header: u16| {
            program
                .headers
                .get(usize::from(header))
                .map_or(HeaderKind::Other, |header| header.kind)
        };
        let transport = || {
            let from = self
                .layout
                .order()
                .iter()
                .position(|&other| other == header)?;
            let behind = self.layout.order().get(from + 1..)?;
            for &other in behind {
                match kind_of(other) {
                    HeaderKind::Tcp | HeaderKind::Udp | HeaderKind::Icmpv6 => return Some(other),
                    HeaderKind::Ipv4
                    | HeaderKind::Ipv6
                    | HeaderKind::Icmp
                    | HeaderKind::Ethernet => {
                        return None;
                    }
                    _ => {}
                }
            }
            None
        };
        match kind {
            // Addresses are part of the pseudo-header (RFC 9293 §3.1).
            HeaderKind::Ipv4 if field.bit >= 96 => Cover::Ipv4 {
                header,
                transport: transport(),
            },
            HeaderKind::Ipv4 if (80..96).contains(&field.bit) => Cover::None,
            HeaderKind::Ipv4 => Cover::Ipv4 {
                header,
                transport: None,
            },
            HeaderKind::Ipv6 if field.bit >= 64 => match transport() {
                Some(transport) => Cover::Pseudo(transport),
                None => Cover::None,
            },
            HeaderKind::Tcp if (128..144).contains(&field.bit) => Cover::None,
            HeaderKind::Udp if (48..64).contains(&field.bit) => Cover::None,
            HeaderKind::Icmp | HeaderKind::Icmpv6 if (16..32).contains(&field.bit) => Cover::None,
            HeaderKind::Tcp | HeaderKind::Udp | HeaderKind::Icmp | HeaderKind::Icmpv6 => {
                Cover::Transport(header)
            }
            _ => Cover::None,
        }
    }

    fn account(&mut self, program: &Compiled, cover: Cover, delta: u16) {
        match cover {
            Cover::None => {}
            Cover::Ipv4 { header, transport } => {
                if self.has_checksum(program, header) {
                    self.pend(header, 0, delta);
                }
                if let Some(transport) = transport {
                    self.pend(transport, delta, 0);
                }
            }
            Cover::Pseudo(transport) => self.pend(transport, delta, 0),
            Cover::Transport(header) => self.pend(header, 0, delta),
        }
    }

    fn kind_of(program: &Compiled, header: u16) -> HeaderKind {
        let header = program.headers.get(usize::from(header));
        header.map_or(HeaderKind::Other, |header| header.kind)
    }

    /// Whether a header has a checksum that follows changes: that of an IPv4 header may be yet to come, UDP may do without.
    fn has_checksum(&self, program: &Compiled, header: u16) -> bool {
        let place = self.place(header);
        let Some(bit) = checksum_bit(Self::kind_of(program, header)) else {
            return false;
        };
        let at = place.at + bit / 8;
        let is_to_come = self.fills.iter().any(|&(place, _)| place == at);
        let is_none = Self::kind_of(program, header) == HeaderKind::Udp
            && read_bits(self.bytes(), at.into(), 0, 16) == Some(0);
        !is_to_come && !is_none
    }

    fn has_transport_before(&self, program: &Compiled, header: u16) -> bool {
        let order = self.layout.order().iter();
        order
            .take_while(|&&other| other != header)
            .any(|&other| is_transport(Self::kind_of(program, other)))
    }

    /// A field changed in a frame that is carried by a transport protocol, whose checksum covers it, and covers the checksums that
    /// follow the change. `change` is that of the field, counted from the frame's start.
    fn account_outer(&mut self, program: &Compiled, (header, cover): (u16, Cover), change: u16) {
        let mut outer = None;
        for at in 0..self.layout.order().len() {
            let Some(&other) = self.layout.order().get(at) else {
                break;
            };
            if other == header {
                break;
            }
            let kind = Self::kind_of(program, other);
            if !is_transport(kind) {
                continue;
            }
            if let Some(bit) = checksum_bit(kind).filter(|_| kind == HeaderKind::Udp) {
                // Nearly always none: then that is all to be known of it.
                self.look_at(HeaderField {
                    header: other,
                    bit,
                    bits: 16,
                });
            }
            if self.has_checksum(program, other) {
                // One further in is covered by this one, and makes up for the change.
                outer = Some(other);
            }
        }
        let Some(outer) = outer else { return };
        // Whether those in between have a checksum is not looked at; there is nothing to be gained from remembering this.
        self.is_once = true;
        let mut total = change;
        let inner = match cover {
            Cover::None => [None, None],
            Cover::Ipv4 { header, transport } => [Some(header), transport],
            Cover::Pseudo(header) | Cover::Transport(header) => [Some(header), None],
        };
        for covering in inner.into_iter().flatten() {
            if self.has_checksum(program, covering) {
                total = add(total, !change);
            }
        }
        if self.place(outer).at % 2 == 1 {
            total = total.swap_bytes();
        }
        self.pend(outer, 0, if total == 0xffff { 0 } else { total });
    }

    /// Before a checksum is read or replaced: what was changed so far is made part of it.
    #[inline]
    pub(crate) fn settle_if_checksum(&mut self, program: &Compiled, field: HeaderField) {
        if self.pending.is_empty() {
            return;
        }
        let is_checksum = checksum_bit(Self::kind_of(program, field.header))
            .is_some_and(|bit| field.bit < bit + 16 && bit < field.bit + field.bits);
        if is_checksum {
            self.settle_checksums(program);
        }
    }

    /// The length of the frame, which came with this one.
    pub(crate) fn changed_length(&self, frame_bytes: usize) -> usize {
        frame_bytes.saturating_add_signed(self.length_delta)
    }

    /// The value of a field of metadata.
    #[inline]
    pub(crate) fn meta(&self, index: u16) -> u128 {
        self.meta.get(usize::from(index)).copied().unwrap_or(0)
    }

    /// What has to wait until the frame leaves.
    pub(crate) fn fill_in_later(&mut self, at: u16, what: FillIn) {
        self.fills.push((at, what));
    }

    fn pend(&mut self, header: u16, pseudo: u16, data: u16) {
        match self
            .pending
            .iter_mut()
            .find(|pending| pending.header == header)
        {
            Some(pending) => {
                pending.pseudo = add(pending.pseudo, pseudo);
                pending.data = add(pending.data, data);
            }
            None => self.pending.push(Pending {
                header,
                pseudo,
                data,
            }),
        }
    }

    /// Turns what is pending into edits: before positions change or a checksum is read, and at the end.
    pub(crate) fn settle_checksums(&mut self, program: &Compiled) {
        let mut pending = std::mem::take(&mut self.pending);
        for change in pending.drain(..) {
            let at = self.place(change.header).at;
            let kind = Self::kind_of(program, change.header);
            let Some(bit) = checksum_bit(kind) else {
                continue;
            };
            if change.pseudo == 0 && change.data == 0 {
                continue;
            }
            let at = at + bit / 8;
            let edit = match kind {
                HeaderKind::Ipv4 => Edit::AdjustIpv4Checksum {
                    at,
                    delta: change.data,
                },
                kind => Edit::AdjustTransportChecksum {
                    at,
                    pseudo_delta: change.pseudo,
                    data_delta: change.data,
                    kind: match kind {
                        HeaderKind::Udp => TransportChecksum::Udp,
                        _ => TransportChecksum::Plain,
                    },
                },
            };
            // Also here, for whoever reads it.
            let mut frame = EditedFrame {
                buffer: &mut self.bytes,
                header_bytes: self.len,
                frame_bytes: self.len,
                partial_checksum: None,
            };
            if apply(&[edit], &mut frame).is_ok() {
                self.edits.push(edit);
            }
        }
        self.pending = pending;
    }

    /// Puts bytes before byte `at`, as a header of its own when one is named.
    pub(crate) fn insert(
        &mut self,
        program: &Compiled,
        at: usize,
        bytes: &[u8],
        header: Option<u16>,
    ) -> bool {
        self.settle_checksums(program);
        let end = self.len + bytes.len();
        if end > ROOM_BYTES || at > self.len {
            return false;
        }
        self.bytes.copy_within(at..self.len, at + bytes.len());
        if let Some(room) = self.bytes.get_mut(at..at + bytes.len()) {
            room.copy_from_slice(bytes);
        }
        self.len = end;
        self.length_delta += bytes.len() as isize;
        for (place, _) in &mut self.fills {
            if usize::from(*place) >= at {
                *place += bytes.len() as u16;
            }
        }
        self.layout.shift(at, bytes.len());
        insert_run(&mut self.moves, at, bytes.len());
        let mut from = at;
        for run in bytes.chunks(super::edit::EDIT_RUN_BYTES) {
            self.edits.push(Edit::Insert {
                at: from as u16,
                bytes: Run::new(run),
            });
            from += run.len();
        }
        header.is_none_or(|header| self.layout.put(header, at, bytes.len()))
    }

    /// Removes `range`, and the headers in it.
    pub(crate) fn remove(&mut self, program: &Compiled, range: std::ops::Range<usize>) {
        self.settle_checksums(program);
        let range = range.start.min(self.len)..range.end.min(self.len);
        if range.is_empty() {
            return;
        }
        self.length_delta -= range.len() as isize;
        self.fills
            .retain(|&(place, _)| !range.contains(&usize::from(place)));
        for (place, _) in &mut self.fills {
            if usize::from(*place) >= range.end {
                *place -= range.len() as u16;
            }
        }
        self.layout.remove(&range);
        remove_run(&mut self.moves, &range);
        self.bytes.copy_within(range.end..self.len, range.start);
        self.len -= range.len();
        self.edits.push(Edit::Remove {
            at: range.start as u16,
            bytes: range.len() as u16,
        });
    }

    /// How many bytes were added.
    pub(crate) fn grown(&self) -> usize {
        self.edits
            .iter()
            .map(|edit| match edit {
                Edit::Insert { bytes, .. } => bytes.bytes().len(),
                _ => 0,
            })
            .sum()
    }

    /// Bytes that were inserted are this header.
    pub(crate) fn made(&mut self, header: u16, at: usize, bytes: usize) {
        self.layout.put(header, at, bytes);
    }

    /// A header gets the place of another, which is gone.
    pub(crate) fn rename(&mut self, from: u16, to: u16) {
        self.layout.rename(from, to);
    }

    /// Before a header of a kind is made in front of the one there is: that becomes the inner one, and an inner one is carried along.
    pub(crate) fn shift_names(&mut self, outer: u16, inner: Option<u16>) {
        if !self.place(outer).is_valid() {
            return;
        }
        match inner {
            Some(inner) => {
                self.layout.forget(inner);
                self.layout.rename(outer, inner);
            }
            None => self.layout.forget(outer),
        }
    }

    /// Bits of a header have a constant value now.
    pub(crate) fn overwrote(&mut self, header: u16, bit: u16, bits: u16) {
        let place = self.place(header);
        if place.is_valid() && place.origin != MADE_HERE {
            for_each_word(bit, bits, |byte, ones, _| {
                if let Some(written) = word_mut(&mut self.written, usize::from(place.origin) + byte)
                {
                    *written = (u64::from_be_bytes(*written) | ones).to_be_bytes();
                }
            });
        }
    }

    /// Makes it the frame as it came again; what was looked at stays so.
    pub(crate) fn restart(&mut self, header: &[u8]) {
        let (looked_at, frame, wire) = (self.looked_at, self.frame_lengths, self.wire_lengths);
        let is_once = self.is_once;
        self.reset(header);
        self.is_once = is_once;
        self.looked_at = looked_at;
        self.frame_lengths = frame;
        self.wire_lengths = wire;
    }

    /// After its bytes were parsed once more: which of the headers lie where they came, and which bytes those were. `false` when one
    /// is made of bytes from several places, so that what is read of it cannot be traced back.
    #[must_use]
    pub(crate) fn restore_origins(&mut self) -> bool {
        let moves = std::mem::take(&mut self.moves);
        let mut traceable = true;
        self.layout.restore_origins(|at, bytes| {
            let run = moves.iter().rev().find(|run| run.at <= at)?;
            if at + bytes > run.at + run.bytes {
                traceable = false;
                return None;
            }
            run.origin.map(|origin| origin + (at - run.at))
        });
        self.moves = moves;
        traceable
    }

    /// Replaces bytes behind a header, which its checksum covers. What was there counts as looked at by whoever calls this, who
    /// must not remember the verdict.
    pub(crate) fn replace(&mut self, header: u16, at: usize, new: &[u8]) {
        let start = usize::from(self.place(header).at);
        let Some(bytes) = self.bytes.get_mut(at..at + new.len()) else {
            return;
        };
        let change = delta(bytes, new, (at - start.min(at)) % 2 == 1);
        bytes.copy_from_slice(new);
        for (number, run) in new.chunks(super::edit::EDIT_RUN_BYTES).enumerate() {
            self.edits.push(Edit::Write {
                at: (at + number * super::edit::EDIT_RUN_BYTES) as u16,
                bytes: Run::new(run),
            });
        }
        self.pend(header, 0, change);
    }

    /// What was done to the frame.
    pub(crate) fn edits(&mut self, program: &Compiled) -> EditList {
        self.settle_checksums(program);
        if self.fills.is_empty() {
            return EditList::new(&self.edits);
        }
        let mut edits = self.edits.clone();
        // Lengths first: checksums cover them.
        for &(at, what) in &self.fills {
            if let FillIn::LengthFrom(distance) = what {
                let from = u16::try_from(i32::from(at) + distance).unwrap_or(at);
                edits.push(Edit::WriteLength { at, from });
            }
        }
        for &(at, what) in &self.fills {
            if what == FillIn::Ipv4Checksum {
                let at = at.saturating_sub(10);
                edits.push(Edit::FinishIpv4Checksum { at });
            }
        }
        EditList::new(edits)
    }

    /// Whether anything was done to it.
    pub(crate) fn is_edited(&self) -> bool {
        !self.edits.is_empty() || !self.pending.is_empty()
    }

    /// Takes over what a copy of it looked at.
    pub(crate) fn join(&mut self, copy: &Self) {
        for (to, from) in self.looked_at.iter_mut().zip(copy.looked_at) {
            *to |= from;
        }
        let narrow = |to: &mut (u32, u32), from: (u32, u32)| {
            *to = (to.0.max(from.0), to.1.min(from.1));
        };
        narrow(&mut self.frame_lengths, copy.frame_lengths);
        narrow(&mut self.wire_lengths, copy.wire_lengths);
        self.is_once |= copy.is_once;
    }
}

/// Where the checksum of a header is.
fn checksum_bit(kind: HeaderKind) -> Option<u16> {
    match kind {
        HeaderKind::Ipv4 => Some(80),
        HeaderKind::Tcp => Some(128),
        HeaderKind::Udp => Some(48),
        HeaderKind::Icmp | HeaderKind::Icmpv6 => Some(16),
        _ => None,
    }
}

fn is_transport(kind: HeaderKind) -> bool {
    kind != HeaderKind::Ipv4 && checksum_bit(kind).is_some()
}

/// A run of bytes and where it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Move {
    at: usize,
    bytes: usize,
    /// Its first byte in the frame as it came; none for bytes that were made here.
    origin: Option<usize>,
}

impl Move {
    const fn all() -> Self {
        Self {
            at: 0,
            bytes: ROOM_BYTES,
            origin: Some(0),
        }
    }
}

fn insert_run(moves: &mut Vec<Move>, at: usize, bytes: usize) {
    split_run(moves, at);
    for run in moves.iter_mut().filter(|run| run.at >= at) {
        run.at += bytes;
    }
    let place = moves.iter().filter(|run| run.at < at).count();
    moves.insert(
        place,
        Move {
            at,
            bytes,
            origin: None,
        },
    );
}

fn remove_run(moves: &mut Vec<Move>, range: &std::ops::Range<usize>) {
    split_run(moves, range.start);
    split_run(moves, range.end);
    moves.retain(|run| !range.contains(&run.at));
    for run in moves.iter_mut().filter(|run| run.at >= range.end) {
        run.at -= range.len();
    }
}

fn split_run(moves: &mut Vec<Move>, at: usize) {
    let Some(index) = moves
        .iter()
        .position(|run| run.at < at && at < run.at + run.bytes)
    else {
        return;
    };
    if let Some(run) = moves.get_mut(index) {
        let before = at - run.at;
        let rest = Move {
            at,
            bytes: run.bytes - before,
            origin: run.origin.map(|origin| origin + before),
        };
        run.bytes = before;
        moves.insert(index + 1, rest);
    }
}

/// Writes a field into the bytes of its header.
pub(crate) fn write_field(header: &mut [u8], field: HeaderField, value: u128) {
    if let Some(bytes) = header.get_mut(usize::from(field.bit / 8)..) {
        write_bits(bytes, field.bit % 8, field.bits, within(field.bits, value));
    }
}

/// Which checksums cover a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cover {
    None,
    Ipv4 { header: u16, transport: Option<u16> },
    Pseudo(u16),
    Transport(u16),
}

/// Calls `note` with each byte of a run of bits and the bits of it that belong to the run.
pub(crate) fn for_each_byte(bit: u16, bits: u16, mut note: impl FnMut(usize, u8)) {
    let (start, end) = (bit, bit + bits);
    let mut at = start;
    while at < end {
        let byte = at / 8;
        let stop = end.min((byte + 1) * 8);
        // From `at` to `stop`, the most significant bit being the first.
        let exact = 0xff_u16 >> (at % 8) & 0xff_u16 << ((byte + 1) * 8 - stop);
        note(usize::from(byte), exact as u8);
        at = stop;
    }
}

/// Calls `note` with each word that a run of bits is in: its first byte, the bits of it that belong to the run, and how far the last
/// bit of the run is behind the word's, or before it when that is negative.
#[inline]
fn for_each_word(bit: u16, bits: u16, mut note: impl FnMut(usize, u64, i32)) {
    let (mut bit, mut left) = (bit, bits);
    while left > 0 {
        let head = bit % 8;
        let take = left.min(64 - head);
        left -= take;
        let behind = 64 - head - take;
        let ones = u64::MAX >> (64 - take) << behind;
        note(
            usize::from(bit / 8),
            ones,
            i32::from(left) - i32::from(behind),
        );
        bit += take;
    }
}

#[inline]
fn word(marks: &Marks, at: usize) -> Option<&[u8; 8]> {
    marks.get(at..)?.first_chunk()
}

#[inline]
fn word_mut(marks: &mut Marks, at: usize) -> Option<&mut [u8; 8]> {
    marks.get_mut(at..)?.first_chunk_mut()
}

fn write_bits(bytes: &mut [u8], bit: u16, bits: u16, value: u128) {
    if bit == 0 && usize::from(bits) == bytes.len() * 8 {
        let value = value.to_be_bytes();
        if let Some((_, value)) = value.split_at_checked(value.len() - bytes.len()) {
            bytes.copy_from_slice(value);
        }
        return;
    }
    let mut left = bits;
    let mut at = bit;
    for byte in bytes {
        if left == 0 {
            return;
        }
        let take = (8 - at).min(left);
        let part = (value >> (left - take)) as u8 & (0xff_u16 >> (8 - take)) as u8;
        let shift = 8 - at - take;
        let mask = ((0xff_u16 >> (8 - take)) << shift) as u8;
        *byte = *byte & !mask | part << shift;
        left -= take;
        at = 0;
    }
}

/// Adds in ones' complement.
fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum.wrapping_add(carry.into())
}

/// What the ones' complement sum changes by when bytes change; `odd` when the first is the second of its word (RFC 1624).
pub(crate) fn delta(old: &[u8], new: &[u8], odd: bool) -> u16 {
    let mut sum = 0;
    for (at, (&old, &new)) in old.iter().zip(new).enumerate() {
        let shift = if (at % 2 == 1) == odd { 8 } else { 0 };
        sum = add(sum, u16::from(new) << shift);
        sum = add(sum, !(u16::from(old) << shift));
    }
    // A change of nothing sums to all ones, which is zero.
    if sum == 0xffff { 0 } else { sum }
}

/// The field's value within its width.
#[inline]
pub(crate) fn within(bits: u16, value: u128) -> u128 {
    match bits {
        0 => 0,
        1..=64 => (value as u64 & u64::MAX >> (64 - bits)).into(),
        65..128 => value & u128::MAX >> (128 - bits),
        128.. => value,
    }
}
