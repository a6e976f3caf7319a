//! What a front-end can put on the socket that it must not.
//!
//! Walked through by tests, each message on a connection of its own or many on one. Keeps true: each case is data, so that a fuzzer can
//! start from it as well.

use std::os::fd::AsFd;

use super::descriptors::PassedDescriptor;
use crate::error::Error;
use crate::message::{NEED_REPLY, REPLY, RawFrontend, Request, VERSION, header};

/// One message that should not be.
#[derive(Clone, Debug)]
pub struct HostileMessage {
    /// What is wrong with it.
    pub name: String,
    /// Its bytes, header included.
    pub bytes: Vec<u8>,
    /// What is passed with it.
    pub descriptors: Vec<PassedDescriptor>,
}

impl HostileMessage {
    fn new(name: impl Into<String>, bytes: Vec<u8>) -> Self {
        Self {
            name: name.into(),
            bytes,
            descriptors: Vec::new(),
        }
    }

    fn with(mut self, descriptors: &[PassedDescriptor]) -> Self {
        self.descriptors = descriptors.to_vec();
        self
    }

    /// Sends it.
    ///
    /// # Errors
    /// [`Error::Disconnected`] when the back-end has hung up.
    pub fn send(&self, raw: &mut RawFrontend) -> Result<(), Error> {
        let owned = self
            .descriptors
            .iter()
            .map(|kind| kind.make())
            .collect::<Result<Vec<_>, _>>()?;
        let borrowed: Vec<_> = owned.iter().map(|fd| fd.as_fd()).collect();
        raw.send_bytes(&self.bytes, &borrowed)
    }
}

/// Every message that should not be.
pub fn messages() -> Vec<HostileMessage> {
    let mut all = headers();
    all.extend(bodies());
    all.extend(memory_tables());
    all.extend(memory_regions());
    all.extend(rings());
    all.extend(ring_descriptors());
    all
}

fn message(request: Request, body: &[u8]) -> Vec<u8> {
    let mut bytes = header(request, VERSION, body.len() as u32).to_vec();
    bytes.extend_from_slice(body);
    bytes
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// `struct vhost_vring_state`.
fn state(ring: u32, value: u32) -> Vec<u8> {
    [ring.to_le_bytes(), value.to_le_bytes()].concat()
}

fn headers() -> Vec<HostileMessage> {
    let get = |flags, size| header(Request::GET_FEATURES, flags, size).to_vec();
    let mut all = vec![
        HostileMessage::new("half a header", get(VERSION, 0)[..6].to_vec()),
        HostileMessage::new(
            "a header that announces a body which never comes",
            header(Request::SET_FEATURES, VERSION, 8).to_vec(),
        ),
        HostileMessage::new(
            "half a body",
            message(Request::SET_FEATURES, &[0; 8])[..16].to_vec(),
        ),
        HostileMessage::new("a body of 4 GiB announced", get(VERSION, u32::MAX)),
        HostileMessage::new("a body of 4,097 bytes announced", get(VERSION, 4097)),
        HostileMessage::new("version 0", get(0, 0)),
        HostileMessage::new("version 2", get(2, 0)),
        HostileMessage::new("version 3", get(3, 0)),
        HostileMessage::new("a reply nobody asked for", get(VERSION | REPLY, 0)),
        HostileMessage::new("reserved flags", get(VERSION | 0xffff_fff0, 0)),
        HostileMessage::new("nothing but zeroes", vec![0; 64]),
        HostileMessage::new("nothing but ones", vec![0xff; 64]),
    ];
    for code in [0, 44, 45, 100, 0x7fff_ffff, u32::MAX] {
        let request = Request::other(code);
        all.push(HostileMessage::new(
            format!("unknown request {code}"),
            message(request, &[]),
        ));
        let asking = header(request, VERSION | NEED_REPLY, 0).to_vec();
        all.push(HostileMessage::new(
            format!("unknown request {code} that wants a reply"),
            asking,
        ));
    }
    all
}

fn bodies() -> Vec<HostileMessage> {
    let mut all = Vec::new();
    for request in Request::EVERY {
        let name = request.name();
        all.push(HostileMessage::new(
            format!("{name} without a body"),
            message(*request, &[]),
        ));
        all.push(HostileMessage::new(
            format!("{name} with one byte"),
            message(*request, &[1]),
        ));
        all.push(HostileMessage::new(
            format!("{name} with 7 bytes of ones"),
            message(*request, &[0xff; 7]),
        ));
        all.push(HostileMessage::new(
            format!("{name} with 64 bytes of ones"),
            message(*request, &[0xff; 64]),
        ));
        all.push(HostileMessage::new(
            format!("{name} with 4,096 bytes"),
            message(*request, &[0x41; 4096]),
        ));
        let many = [PassedDescriptor::EventFd; 253];
        all.push(
            HostileMessage::new(
                format!("{name} with 253 descriptors"),
                message(*request, &[0; 8]),
            )
            .with(&many),
        );
    }
    all.push(HostileMessage::new(
        "every feature acked",
        message(Request::SET_FEATURES, &[0xff; 8]),
    ));
    all.push(HostileMessage::new(
        "every protocol feature acked",
        message(Request::SET_PROTOCOL_FEATURES, &[0xff; 8]),
    ));
    all
}

/// (guest address, size, user address, mmap offset) of each region.
fn table(count: u32, regions: &[[u64; 4]]) -> Vec<u8> {
    let mut body = [count.to_le_bytes(), [0; 4]].concat();
    for region in regions {
        body.extend(words(region));
    }
    message(Request::SET_MEM_TABLE, &body)
}

const GOOD: [u64; 4] = [0, 1 << 16, 0x7f00_0000_0000, 0];

/// Regions that cannot be right, with a memfd of 64 KiB.
const BAD_REGIONS: &[(&str, [u64; 4])] = &[
    ("of size 0", [0, 0, GOOD[2], 0]),
    ("larger than its memfd", [0, 1 << 40, GOOD[2], 0]),
    ("of 2^64 - 1 bytes", [0, u64::MAX, GOOD[2], 0]),
    (
        "whose guest addresses wrap",
        [u64::MAX - 0xfff, 1 << 16, GOOD[2], 0],
    ),
    (
        "whose user addresses wrap",
        [0, 1 << 16, u64::MAX - 0xfff, 0],
    ),
    (
        "whose mmap offset is past its memfd",
        [0, 1 << 16, GOOD[2], 1 << 40],
    ),
    (
        "whose mmap offset and size wrap",
        [0, 1 << 16, GOOD[2], u64::MAX - 0xfff],
    ),
    (
        "whose mmap offset is not a multiple of a page",
        [0, 1 << 12, GOOD[2], 123],
    ),
    (
        "whose size is not a multiple of a page",
        [0, 4097, GOOD[2], 0],
    ),
];

fn memory_tables() -> Vec<HostileMessage> {
    let memfd = PassedDescriptor::Memfd(1 << 16);
    let second = [1 << 20, 1 << 16, 0x7e00_0000_0000, 0];
    let mut all = vec![
        HostileMessage::new("no region", table(0, &[])),
        HostileMessage::new("2^32 - 1 regions announced", table(u32::MAX, &[GOOD])).with(&[memfd]),
        HostileMessage::new("more regions announced than there are", table(2, &[GOOD]))
            .with(&[memfd, memfd]),
        HostileMessage::new("more regions than announced", table(1, &[GOOD, second]))
            .with(&[memfd]),
        HostileMessage::new("a region without a descriptor", table(1, &[GOOD])),
        HostileMessage::new("fewer descriptors than regions", table(2, &[GOOD, second]))
            .with(&[memfd]),
        HostileMessage::new("more descriptors than regions", table(1, &[GOOD])).with(&[memfd; 5]),
        HostileMessage::new("nine regions", table(9, &[GOOD; 9])).with(&[memfd; 9]),
        HostileMessage::new("the same region twice", table(2, &[GOOD, GOOD])).with(&[memfd; 2]),
        HostileMessage::new(
            "regions that overlap in guest memory",
            table(2, &[GOOD, [0x8000, 1 << 16, 0x7e00_0000_0000, 0]]),
        )
        .with(&[memfd; 2]),
        HostileMessage::new(
            "regions that overlap in user memory",
            table(2, &[GOOD, [1 << 20, 1 << 16, GOOD[2] + 0x8000, 0]]),
        )
        .with(&[memfd; 2]),
    ];
    for (what, region) in BAD_REGIONS {
        all.push(
            HostileMessage::new(
                format!("a memory table with a region {what}"),
                table(1, &[*region]),
            )
            .with(&[memfd]),
        );
    }
    for kind in PassedDescriptor::NOT_MEMORY {
        all.push(
            HostileMessage::new(format!("a memory table on {kind:?}"), table(1, &[GOOD]))
                .with(&[*kind]),
        );
    }
    all
}

fn memory_regions() -> Vec<HostileMessage> {
    let memfd = PassedDescriptor::Memfd(1 << 16);
    let one = |request, region: &[u64; 4]| message(request, &[words(&[0]), words(region)].concat());
    let mut all = vec![
        HostileMessage::new(
            "a region added without a descriptor",
            one(Request::ADD_MEM_REG, &GOOD),
        ),
        HostileMessage::new(
            "a region added with two descriptors",
            one(Request::ADD_MEM_REG, &GOOD),
        )
        .with(&[memfd; 2]),
        HostileMessage::new(
            "a region removed that was never added",
            one(Request::REM_MEM_REG, &[1 << 44, 1 << 16, 1, 0]),
        ),
        HostileMessage::new(
            "a region removed with a descriptor",
            one(Request::REM_MEM_REG, &[1 << 44, 1 << 16, 1, 0]),
        )
        .with(&[memfd]),
    ];
    for (what, region) in BAD_REGIONS {
        all.push(
            HostileMessage::new(
                format!("a region added {what}"),
                one(Request::ADD_MEM_REG, region),
            )
            .with(&[memfd]),
        );
    }
    for kind in PassedDescriptor::NOT_MEMORY {
        all.push(
            HostileMessage::new(
                format!("a region added on {kind:?}"),
                one(Request::ADD_MEM_REG, &GOOD),
            )
            .with(&[*kind]),
        );
    }
    all
}

fn rings() -> Vec<HostileMessage> {
    let mut all = Vec::new();
    let by_state = [
        Request::SET_VRING_NUM,
        Request::SET_VRING_BASE,
        Request::GET_VRING_BASE,
        Request::SET_VRING_ENABLE,
    ];
    for request in by_state {
        for ring in [64, 255, 256, 0x8000_0000, u32::MAX] {
            let name = format!("{} for ring {ring}", request.name());
            all.push(HostileMessage::new(name, message(request, &state(ring, 1))));
        }
    }
    for size in [0, 3, 255, 32769, 65536, 1 << 31, u32::MAX] {
        let name = format!("a ring of {size} entries");
        all.push(HostileMessage::new(
            name,
            message(Request::SET_VRING_NUM, &state(0, size)),
        ));
    }
    for base in [65536, u32::MAX] {
        let name = format!("a ring base of {base}");
        all.push(HostileMessage::new(
            name,
            message(Request::SET_VRING_BASE, &state(0, base)),
        ));
    }
    for value in [2, u32::MAX] {
        let name = format!("SET_VRING_ENABLE with {value}");
        all.push(HostileMessage::new(
            name,
            message(Request::SET_VRING_ENABLE, &state(0, value)),
        ));
    }
    let addresses: &[(&str, [u64; 5])] = &[
        (
            "of ring 2^32 - 1",
            [u32::MAX as u64, GOOD[2], GOOD[2], GOOD[2], 0],
        ),
        ("outside memory", [0, 8, 16, 24, 0]),
        (
            "at the end of the address space",
            [0, u64::MAX, u64::MAX - 1, u64::MAX - 3, 0],
        ),
        (
            "that are not aligned",
            [0, GOOD[2] + 1, GOOD[2] + 3, GOOD[2] + 5, 0],
        ),
        (
            "with unknown flags",
            [0xffff_fffe_0000_0000, GOOD[2], GOOD[2], GOOD[2], 0],
        ),
        (
            "with logging and no log",
            [1 << 32, GOOD[2], GOOD[2], GOOD[2], u64::MAX],
        ),
    ];
    for (what, body) in addresses {
        all.push(HostileMessage::new(
            format!("ring addresses {what}"),
            message(Request::SET_VRING_ADDR, &words(body)),
        ));
    }
    all
}

fn ring_descriptors() -> Vec<HostileMessage> {
    let mut all = Vec::new();
    for request in [
        Request::SET_VRING_KICK,
        Request::SET_VRING_CALL,
        Request::SET_VRING_ERR,
    ] {
        let name = request.name();
        let new = |what: &str, value: u64| {
            HostileMessage::new(format!("{name} {what}"), message(request, &words(&[value])))
        };
        let good = PassedDescriptor::EventFd;
        all.push(new("without the descriptor it promises", 0));
        all.push(new("with a descriptor it says it does not have", 0x100).with(&[good]));
        all.push(new("with two descriptors", 0).with(&[good; 2]));
        all.push(new("for ring 255", 255).with(&[good]));
        all.push(new("with reserved bits", u64::MAX).with(&[good]));
        for kind in PassedDescriptor::NOT_EVENTFDS {
            all.push(new(&format!("with {kind:?}"), 0).with(&[*kind]));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn every_message_can_be_sent_and_has_a_name_of_its_own() {
        let mut names = HashSet::new();
        for case in messages() {
            assert!(names.insert(case.name.clone()), "{} twice", case.name);
            let (ours, _theirs) = UnixStream::pair().unwrap();
            case.send(&mut RawFrontend::new(ours))
                .unwrap_or_else(|error| panic!("{}: {error}", case.name));
        }
    }
}
