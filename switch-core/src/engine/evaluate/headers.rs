//! Headers that are pushed and removed.

use super::super::compile::{Header, HeaderField, HeaderKind, PushedHeader};
use super::super::edit::MAX_GROWTH_BYTES;
use super::super::packet::{FillIn, within};
use super::{Evaluator, Flow, Observer};
use crate::drop_reason::DropReason;

const ETHER_TYPE_VLAN: u128 = 0x8100;
const ETHER_TYPE_IPV4: u128 = 0x0800;
const ETHER_TYPE_IPV6: u128 = 0x86dd;
const ETHER_TYPE_MPLS: u128 = 0x8847;
const ETHER_TYPE_TRANSPARENT_BRIDGING: u128 = 0x6558;

impl<O: Observer> Evaluator<'_, O> {
    fn kind(&self, header: u16) -> HeaderKind {
        self.program
            .headers
            .get(usize::from(header))
            .map_or(HeaderKind::Other, |header| header.kind)
    }

    fn field(&self, header: u16, name: &str) -> Option<HeaderField> {
        self.program
            .headers
            .get(usize::from(header))
            .and_then(|header| header.field(name))
    }

    /// A header, if it is part of the frame.
    fn present(&self, header: Option<u16>) -> Option<u16> {
        header.filter(|&header| self.packet.place(header).is_valid())
    }

    /// `tag` is TPID, priority, identifier.
    pub(super) fn push_vlan(&mut self, [tpid, pcp, vid]: [u128; 3]) -> Flow {
        let known = &self.state.known;
        let (Some(ethernet), Some(vlan)) = (self.present(known.ethernet), known.vlan) else {
            return Flow::On;
        };
        // The tag takes over the EtherType, whatever it is.
        if let Some(ether_type) = self.field(ethernet, "ether_type") {
            self.packet.get(ether_type);
        }
        let tci = within(3, pcp) << 13 | within(12, vid);
        let (tpid, tci) = ((tpid as u16).to_be_bytes(), (tci as u16).to_be_bytes());
        let [a, b] = tpid;
        let [c, d] = tci;
        let at = usize::from(self.packet.place(ethernet).at) + 12;
        if !self.has_room(4) || !self.packet.insert(self.program, at, &[a, b, c, d], None) {
            return self.end(DropReason::HeadersTooLong);
        }
        self.packet.shift_names(vlan, known.vlan_inner);
        self.packet.made(vlan, at + 2, 4);
        self.packet.overwrote(ethernet, 96, 16);
        Flow::On
    }

    pub(super) fn pop_vlan(&mut self) {
        let known = &self.state.known;
        let (Some(ethernet), Some(vlan)) = (self.present(known.ethernet), self.present(known.vlan))
        else {
            return;
        };
        let at = usize::from(self.packet.place(ethernet).at) + 12;
        if usize::from(self.packet.place(vlan).at) != at + 2 {
            // The tag of a frame inside this one.
            return;
        }
        if let Some(ether_type) = self.field(vlan, "ether_type") {
            self.packet.get(ether_type);
        }
        self.packet.remove(self.program, at..at + 4);
        self.packet.overwrote(ethernet, 96, 16);
        if let Some(inner) = self.present(known.vlan_inner) {
            self.packet.rename(inner, vlan);
        }
    }

    /// The EtherType in front of the network header, and where that header starts.
    fn last_ether_type(&self) -> Option<(HeaderField, usize)> {
        let known = &self.state.known;
        let header = [
            known.vlan_skipped,
            known.vlan_inner,
            known.vlan,
            known.ethernet,
        ]
        .into_iter()
        .find_map(|header| self.present(header))?;
        let place = self.packet.place(header);
        let field = self.field(header, "ether_type")?;
        Some((field, usize::from(place.at + place.bytes)))
    }

    /// `label` is the label, its traffic class, its TTL.
    pub(super) fn push_mpls(&mut self, [label, tc, ttl]: [u128; 3]) -> Flow {
        let known = &self.state.known;
        let (Some((ether_type, at)), Some(mpls)) = (self.last_ether_type(), known.mpls) else {
            return Flow::On;
        };
        let is_bottom = u32::from(!self.packet.place(mpls).is_valid());
        let entry = (within(20, label) as u32) << 12
            | (within(3, tc) as u32) << 9
            | is_bottom << 8
            | within(8, ttl) as u32;
        if !self.has_room(4)
            || !self
                .packet
                .insert(self.program, at, &entry.to_be_bytes(), None)
        {
            return self.end(DropReason::HeadersTooLong);
        }
        self.packet.shift_names(mpls, known.mpls_inner);
        self.packet.made(mpls, at, 4);
        self.packet.set(self.program, ether_type, ETHER_TYPE_MPLS);
        Flow::On
    }

    pub(super) fn pop_mpls(&mut self, behind: u128) {
        let known = &self.state.known;
        let (Some((ether_type, _)), Some(mpls)) =
            (self.last_ether_type(), self.present(known.mpls))
        else {
            return;
        };
        let is_bottom = match self.field(mpls, "bottom") {
            Some(bottom) => self.packet.get(bottom) == 1,
            None => true,
        };
        let place = self.packet.place(mpls);
        let at = usize::from(place.at);
        self.packet
            .remove(self.program, at..at + usize::from(place.bytes));
        if let Some(inner) = self.present(known.mpls_inner) {
            self.packet.rename(inner, mpls);
        }
        if is_bottom {
            self.packet.set(self.program, ether_type, behind);
        }
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.packet.grown() + bytes <= MAX_GROWTH_BYTES
    }

    pub(super) fn encapsulate(&mut self, headers: &[PushedHeader], values: &[Vec<u128>]) -> Flow {
        let program = self.program;
        let specs: Vec<(&PushedHeader, &Header)> = headers
            .iter()
            .filter_map(|pushed| Some((pushed, program.headers.get(usize::from(pushed.header))?)))
            .collect();
        let total: usize = specs
            .iter()
            .map(|(_, header)| usize::from(header.bytes))
            .sum();
        if !self.has_room(total) {
            return self.end(DropReason::HeadersTooLong);
        }
        // What the frame starts with now follows the last new header.
        let first = self.packet.layout.order().first().copied();
        let carried = first.map_or(HeaderKind::Other, |header| self.kind(header));
        let mut bytes = Vec::with_capacity(total);
        let mut computed = Vec::new();
        for (number, ((pushed, header), values)) in specs.iter().zip(values).enumerate() {
            let next = specs
                .get(number + 1)
                .map_or(carried, |(_, header)| header.kind);
            let at = bytes.len();
            let mut made = vec![0u8; usize::from(header.bytes)];
            fill_in(header, pushed, next, &mut made);
            for (&(field, _), &value) in pushed.fields.iter().zip(values) {
                super::super::packet::write_field(&mut made, field, value);
            }
            lengths(header, pushed, at as u16, &mut computed);
            bytes.extend(made);
        }
        let mut at = bytes.len();
        if !self.packet.insert(program, 0, &bytes, None) {
            return self.end(DropReason::HeadersTooLong);
        }
        // From the innermost out, as each stands before the others.
        for (pushed, header) in specs.iter().rev() {
            at -= usize::from(header.bytes);
            self.packet
                .made(pushed.header, at, usize::from(header.bytes));
        }
        for (at, what) in computed {
            self.packet.fill_in_later(at, what);
        }
        Flow::On
    }

    pub(super) fn decapsulate(&mut self, header: u16) {
        let place = self.packet.place(header);
        if place.is_valid() && place.at > 0 {
            self.packet.remove(self.program, 0..usize::from(place.at));
        }
    }
}

/// What a header says when the program does not.
fn fill_in(header: &Header, pushed: &PushedHeader, next: HeaderKind, bytes: &mut [u8]) {
    let mut put = |name: &str, value: u128| {
        if let Some(field) = header.field(name)
            && !pushed.said.iter().any(|said| said == name)
        {
            super::super::packet::write_field(bytes, field, value);
        }
    };
    let ether_type = match next {
        HeaderKind::Vlan => Some(ETHER_TYPE_VLAN),
        HeaderKind::Ipv4 => Some(ETHER_TYPE_IPV4),
        HeaderKind::Ipv6 => Some(ETHER_TYPE_IPV6),
        HeaderKind::Mpls => Some(ETHER_TYPE_MPLS),
        HeaderKind::Ethernet => Some(ETHER_TYPE_TRANSPARENT_BRIDGING),
        _ => None,
    };
    let protocol = match next {
        HeaderKind::Ipv4 => Some(4),
        HeaderKind::Ipv6 => Some(41),
        HeaderKind::Tcp => Some(6),
        HeaderKind::Udp => Some(17),
        _ => None,
    };
    match header.kind {
        HeaderKind::Ethernet | HeaderKind::Vlan => {
            if let Some(ether_type) = ether_type {
                put("ether_type", ether_type);
            }
        }
        HeaderKind::Ipv4 => {
            put("version", 4);
            put("ihl", 5);
            put("ttl", 64);
            if let Some(protocol) = protocol {
                put("protocol", protocol);
            }
        }
        HeaderKind::Ipv6 => {
            put("version", 6);
            put("hop_limit", 64);
            if let Some(protocol) = protocol {
                put("next_header", protocol);
            }
        }
        // The VNI counts (RFC 7348 §5).
        HeaderKind::Vxlan => put("flags", 0x08),
        HeaderKind::Tunnel => {
            if let Some(ether_type) = ether_type {
                put("protocol", ether_type);
            }
        }
        _ => {}
    }
}

/// What is filled in when the frame leaves, because it depends on the frame's length, and where.
fn lengths(header: &Header, pushed: &PushedHeader, at: u16, fills: &mut Vec<(u16, FillIn)>) {
    let said = |name: &str| pushed.said.iter().any(|said| said == name);
    match header.kind {
        HeaderKind::Ipv4 => {
            if !said("total_bytes") {
                fills.push((at + 2, FillIn::LengthFrom(-2)));
            }
            if !said("checksum") {
                fills.push((at + 10, FillIn::Ipv4Checksum));
            }
        }
        HeaderKind::Ipv6 if !said("payload_bytes") => {
            fills.push((at + 4, FillIn::LengthFrom(36)));
        }
        // Without a checksum: the frame inside has its own (RFC 7348 §5, RFC 6935).
        HeaderKind::Udp if !said("length") => fills.push((at + 4, FillIn::LengthFrom(-4))),
        _ => {}
    }
}
