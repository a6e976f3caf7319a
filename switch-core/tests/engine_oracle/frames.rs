//! Random frames: mostly well-formed, of values that entries ask for, and some that are cut, bent or garbage.

use crate::bytes::sum;
use crate::choices::Choices;

pub const MACS: [u128; 4] = [
    0x0200_0000_0001,
    0x0200_0000_0002,
    0xffff_ffff_ffff,
    0x5254_0012_3456,
];
pub const IPV4S: [u128; 5] = [
    0x0a00_0001,
    0x0a00_0102,
    0x0a01_0203,
    0xc0a8_0001,
    0xe000_0001,
];
pub const IPV6S: [u128; 4] = [
    0xfe80_0000_0000_0000_0000_0000_0000_0001,
    0x2001_0db8_0000_0000_0000_0000_0000_0001,
    0x2001_0db8_0000_0001_0000_0000_0000_0002,
    1,
];
pub const PORTS: [u128; 5] = [80, 443, 53, 1234, 60000];
pub const VIDS: [u128; 4] = [1, 5, 100, 4095];
const TPIDS: [u16; 3] = [0x8100, 0x88a8, 0x9100];

/// What a value that entries and conditions ask for may be.
pub fn interesting(choices: &mut Choices<'_>, field: &str, bits: u16) -> u128 {
    let name = field.rsplit('.').next().unwrap_or(field);
    let known: &[u128] = match (name, bits) {
        (_, 48) => &MACS,
        (_, 128) => &IPV6S,
        ("src" | "dst" | "sender_ip" | "target_ip", 32) => &IPV4S,
        ("src_port" | "dst_port", 16) => &PORTS,
        ("vid", _) => &VIDS,
        ("ether_type", _) => &[0x0800, 0x86dd, 0x8100, 0x88b5, 0x8847, 0x0806, 0x88a8],
        ("protocol" | "next_header", 8) => &[6, 17, 1, 58, 44, 51, 0, 60, 43],
        ("ttl" | "hop_limit", 8) => &[64, 1, 63, 0],
        ("in_port" | "out_port", _) => &[1, 2, 3],
        _ => &[0, 1, 2, 3, 5, 8, 16],
    };
    if choices.chance(12) {
        return choices.number(bits);
    }
    crate::bytes::cut(choices.pick(known), bits)
}

/// A frame, and where its unfinished checksum would be: the start of what it covers, and its place.
#[derive(Clone, Debug)]
pub struct Made {
    pub bytes: Vec<u8>,
    pub checksum: Option<(usize, usize)>,
}

struct Builder<'a, 'c> {
    choices: &'a mut Choices<'c>,
    bytes: Vec<u8>,
    checksum: Option<(usize, usize)>,
}

pub fn frame(choices: &mut Choices<'_>) -> Made {
    let mut builder = Builder {
        choices,
        bytes: Vec::new(),
        checksum: None,
    };
    if builder.choices.chance(3) {
        let length = builder.choices.below(120);
        return Made {
            bytes: builder.choices.bytes(length),
            checksum: None,
        };
    }
    builder.ethernet(2);
    let Builder {
        mut bytes,
        mut checksum,
        ..
    } = builder;
    if choices.chance(4) {
        let length = choices.below(bytes.len() + 1);
        bytes.truncate(length);
        checksum = None;
    } else if choices.chance(10) {
        while bytes.len() < 60 {
            bytes.push(choices.byte());
        }
        checksum = None;
    }
    Made { bytes, checksum }
}

/// A frame that differs in a few bits.
pub fn mutated(choices: &mut Choices<'_>, from: &Made) -> Made {
    let mut bytes = from.bytes.clone();
    if bytes.is_empty() {
        return from.clone();
    }
    for _ in 0..=choices.below(2) {
        // Rather in the headers.
        let at = choices.below(bytes.len().min(100));
        if choices.chance(50) {
            bytes[at] ^= 1 << choices.below(8);
        } else {
            bytes[at] = choices.byte();
        }
    }
    if choices.chance(5) {
        let length = choices.below(bytes.len() + 1);
        bytes.truncate(length);
    }
    Made {
        bytes,
        checksum: None,
    }
}

impl Builder<'_, '_> {
    fn put(&mut self, value: u128, bytes: usize) {
        let all = value.to_be_bytes();
        self.bytes.extend(&all[16 - bytes..]);
    }

    fn value(&mut self, known: &[u128]) -> u128 {
        self.choices.pick(known)
    }

    fn any(&mut self, count: usize) {
        let bytes = self.choices.bytes(count);
        self.bytes.extend(bytes);
    }

    fn ethernet(&mut self, depth: usize) {
        for _ in 0..2 {
            let mac = self.value(&MACS);
            self.put(mac, 6);
        }
        let tags = [0, 0, 0, 0, 1, 1, 2, 3, 4, 5][self.choices.below(10)];
        for _ in 0..tags {
            let tpid = self.choices.pick(&TPIDS);
            self.put(tpid.into(), 2);
            let tci = self.value(&VIDS) | (self.choices.below(8) as u128) << 13;
            self.put(tci, 2);
        }
        self.network(depth);
    }

    fn network(&mut self, depth: usize) {
        match self.choices.below(12) {
            0..=3 => {
                self.put(0x0800, 2);
                self.ipv4(depth);
            }
            4..=6 => {
                self.put(0x86dd, 2);
                self.ipv6(depth);
            }
            7 => {
                self.put(0x0806, 2);
                let head: u128 = if self.choices.chance(90) {
                    0x0001_0800_0604
                } else {
                    0x0006_0800_0604
                };
                self.put(head, 6);
                let operation = 1 + self.choices.below(2) as u128;
                self.put(operation, 2);
                for _ in 0..2 {
                    let (mac, ip) = (self.value(&MACS), self.value(&IPV4S));
                    self.put(mac, 6);
                    self.put(ip, 4);
                }
            }
            8 => {
                self.put(0x8847, 2);
                let labels = 1 + self.choices.below(3);
                for number in 0..labels {
                    let bottom = u128::from(number + 1 == labels);
                    let label = self.choices.below(4) as u128;
                    self.put(label << 12 | bottom << 8 | 64, 4);
                }
                self.any(20);
            }
            9..=10 => {
                self.put(0x88b5, 2);
                self.hop(depth);
            }
            _ => {
                self.any(2);
                self.any(30);
            }
        }
    }

    /// The programs' own header.
    fn hop(&mut self, depth: usize) {
        let kind = self.choices.pick(&[1u8, 2, 3, 1, 0xf3, 9]);
        self.bytes.push(kind);
        let words = 2 + self.choices.below(3) as u128;
        let rest = words << 44 | self.choices.number(44);
        self.put(rest, 6);
        let tenant = self.choices.below(3) as u128;
        self.put(tenant, 3);
        let port = self.value(&PORTS);
        self.put(port, 2);
        self.any((words as usize - 2) * 4);
        match kind {
            1 if depth > 0 => self.ethernet(depth - 1),
            2 => self.ipv4(depth),
            3 if depth > 0 => self.hop(depth - 1),
            _ => self.any(16),
        }
    }

    fn ipv4(&mut self, depth: usize) {
        let start = self.bytes.len();
        let options = [0, 0, 0, 1, 2][self.choices.below(5)];
        let later = self.choices.chance(8);
        let first = self.choices.chance(8);
        let fragment = u128::from(first) << 13 | if later { 5 } else { 0 };
        self.put(0x45 + options as u128, 1);
        let tos = self.choices.pick(&[0, 0, 0, 0x28, 0x2e]);
        self.put(tos, 1);
        self.put(0, 2);
        self.any(2);
        self.put(fragment, 2);
        let ttl = self.choices.pick(&[64, 64, 1, 63]);
        self.put(ttl, 1);
        let protocol = self.choices.pick(&[6u8, 6, 17, 17, 1, 51, 47, 99]);
        self.put(protocol.into(), 1);
        self.put(0, 2);
        let (source, destination) = (self.value(&IPV4S), self.value(&IPV4S));
        self.put(source, 4);
        self.put(destination, 4);
        self.any(options * 4);
        let behind = self.bytes.len();
        if later {
            self.any(24);
        } else {
            let pseudo = self.bytes[start + 12..start + 20].to_vec();
            self.transport(protocol, (pseudo, !first), depth);
        }
        let total = (self.bytes.len() - start) as u16;
        // Zero: to be cut.
        let total = if self.choices.chance(3) { 0 } else { total };
        self.bytes[start + 2..start + 4].copy_from_slice(&total.to_be_bytes());
        let header = sum(&self.bytes[start..behind]);
        let checksum = ((0xffff - header) % 0xffff) as u16;
        self.bytes[start + 10..start + 12].copy_from_slice(&checksum.to_be_bytes());
    }

    fn ipv6(&mut self, depth: usize) {
        let start = self.bytes.len();
        let class = self.choices.pick(&[0u128, 0, 0x28 << 20, 0x12345]);
        self.put(6 << 28 | class, 4);
        self.put(0, 2);
        let mut next_at = self.bytes.len();
        self.put(0, 1);
        let hops = self.choices.pick(&[64, 64, 1, 63]);
        self.put(hops, 1);
        for _ in 0..2 {
            let address = self.value(&IPV6S);
            self.put(address, 16);
        }
        let mut is_whole = true;
        let mut is_later = false;
        let extensions = [0, 0, 0, 1, 2, 3][self.choices.below(6)];
        for number in 0..extensions {
            let kind = match number {
                0 => self.choices.pick(&[0u8, 60, 43, 44, 51]),
                _ => self.choices.pick(&[60, 43, 44, 51]),
            };
            self.bytes[next_at] = kind;
            next_at = self.bytes.len();
            self.put(0, 1);
            match kind {
                44 => {
                    let offset = self.choices.pick(&[0, 0, 0, 8]);
                    let more = self.choices.below(2) as u128;
                    is_whole &= offset == 0 && more == 0;
                    is_later |= offset != 0;
                    self.put(0, 1);
                    self.put(offset | more, 2);
                    self.any(4);
                }
                51 => {
                    self.put(1, 1);
                    self.any(10);
                }
                _ => {
                    let words = self.choices.below(2);
                    self.put(words as u128, 1);
                    self.any(6 + words * 8);
                }
            }
        }
        let protocol = self.choices.pick(&[6u8, 17, 58, 59, 6, 17]);
        self.bytes[next_at] = protocol;
        if is_later {
            self.any(24);
        } else {
            let pseudo = self.bytes[start + 8..start + 40].to_vec();
            self.transport(protocol, (pseudo, is_whole), depth);
        }
        let payload = (self.bytes.len() - start - 40) as u16;
        let payload = if self.choices.chance(3) { 0 } else { payload };
        self.bytes[start + 4..start + 6].copy_from_slice(&payload.to_be_bytes());
    }

    fn transport(&mut self, protocol: u8, (pseudo, is_whole): (Vec<u8>, bool), depth: usize) {
        let start = self.bytes.len();
        let mut place = None;
        // What it carries may be another UDP header, which then is the one that is known: this one's checksum follows no more.
        let mut is_known = true;
        match protocol {
            6 => {
                let options = self.choices.below(2);
                self.ports(&PORTS);
                self.any(8);
                self.put((5 + options as u128) << 4, 1);
                let flags = self.choices.pick(&[2, 16, 18, 24]);
                self.put(flags, 1);
                self.any(2);
                self.put(0, 2);
                self.any(2);
                self.any(options * 4);
                self.payload();
                place = Some(start + 16);
            }
            17 => {
                let tunnel = self.choices.pick(&[0, 0, 0, 4789, 7777]);
                let source = self.value(&PORTS);
                self.put(source, 2);
                let destination = match tunnel {
                    0 => self.value(&PORTS),
                    tunnel => tunnel,
                };
                self.put(destination, 2);
                self.put(0, 4);
                match tunnel {
                    4789 if depth > 0 => {
                        let flags = self.choices.pick(&[8, 8, 8, 0]);
                        self.put(flags << 24, 4);
                        let tenant = self.choices.below(3) as u128;
                        self.put(tenant << 8, 4);
                        self.ethernet(depth - 1);
                    }
                    7777 if depth > 0 => {
                        self.hop(depth - 1);
                        is_known = false;
                    }
                    _ => self.payload(),
                }
                let length = (self.bytes.len() - start) as u16;
                self.bytes[start + 4..start + 6].copy_from_slice(&length.to_be_bytes());
                if self.choices.chance(80) {
                    place = Some(start + 6);
                }
            }
            1 | 58 => {
                let kind = self.choices.pick(&[8, 0, 128, 129, 135, 3]);
                self.put(kind, 1);
                self.put(0, 1);
                self.put(0, 2);
                let identifier = self.choices.below(3) as u128;
                self.put(identifier << 16, 4);
                self.payload();
                place = Some(start + 2);
            }
            51 => {
                self.put(6, 1);
                self.put(1, 1);
                self.any(10);
                self.transport(6, (pseudo, false), depth);
                return;
            }
            _ => self.any(20),
        }
        let Some(place) = place else { return };
        let length = (self.bytes.len() - start) as u64;
        let mut total = sum(&self.bytes[start..]);
        if protocol != 1 {
            total += sum(&pseudo) + length + u64::from(protocol);
        }
        let mut checksum = ((0xffff * 8 - total) % 0xffff) as u16;
        if checksum == 0 && protocol == 17 {
            checksum = 0xffff;
        }
        self.bytes[place..place + 2].copy_from_slice(&checksum.to_be_bytes());
        let is_outer = matches!(protocol, 6 | 17) && is_whole && is_known && depth == 2;
        self.checksum = is_outer.then_some((start, place));
    }

    fn ports(&mut self, known: &[u128]) {
        for _ in 0..2 {
            let port = self.value(known);
            self.put(port, 2);
        }
    }

    fn payload(&mut self) {
        let length = self.choices.below(24);
        self.any(length);
        // Longer than what is parsed.
        if self.choices.chance(4) {
            self.bytes.extend([0x5a; 300]);
        }
    }
}
