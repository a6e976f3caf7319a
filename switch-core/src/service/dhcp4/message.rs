//! DHCPv4 messages (RFC 2131 §2): what a client sent, read; what it gets, written.

use std::net::Ipv4Addr;

use crate::mac::MacAddress;
use crate::service::drop::ServiceDrop;

/// The fixed part, up to and with the magic cookie.
const FIXED_BYTES: usize = 240;
/// RFC 2131 §3: the first four bytes of the options.
const MAGIC: [u8; 4] = [99, 130, 83, 99];
/// BOOTP's shortest message (RFC 1542 §2.1), which some clients insist on.
const SHORTEST_REPLY_BYTES: usize = 300;

/// The options of RFC 2132 that are read or written.
pub(super) mod option {
    pub const PAD: u8 = 0;
    pub const SUBNET_MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const DNS: u8 = 6;
    pub const HOST_NAME: u8 = 12;
    pub const DOMAIN_NAME: u8 = 15;
    pub const MTU: u8 = 26;
    pub const BROADCAST: u8 = 28;
    pub const NTP: u8 = 42;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER: u8 = 54;
    pub const LONGEST_MESSAGE: u8 = 57;
    pub const RENEWAL_TIME: u8 = 58;
    pub const REBINDING_TIME: u8 = 59;
    pub const CLIENT: u8 = 61;
    /// Classless static routes (RFC 3442).
    pub const ROUTES: u8 = 121;
    pub const END: u8 = 255;
}

/// What a client wants (RFC 2132 §9.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestKind {
    Discover,
    Request,
    Decline,
    Release,
    Inform,
}

/// What it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum ReplyKind {
    Offer = 2,
    Ack = 5,
    Nak = 6,
}

/// A client's message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    pub kind: RequestKind,
    pub transaction: [u8; 4],
    /// Seconds, then flags: the broadcast flag is the highest bit of the third byte.
    flags: [u8; 2],
    /// The client's address, if it has one already.
    pub client_address: Ipv4Addr,
    pub relay: Ipv4Addr,
    pub mac: MacAddress,
    pub requested: Option<Ipv4Addr>,
    pub server: Option<Ipv4Addr>,
    pub client: Option<&'a [u8]>,
    longest_message: Option<u16>,
}

impl<'a> Request<'a> {
    /// Reads a client's message. Of an option that stands there twice the first counts; options in the file and server name fields
    /// (option overload) are not looked at.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, ServiceDrop> {
        let malformed = ServiceDrop::Malformed;
        let (fixed, options) = bytes.split_first_chunk::<FIXED_BYTES>().ok_or(malformed)?;
        let address = |offset: usize| {
            fixed
                .get(offset..)
                .and_then(|rest| rest.first_chunk::<4>())
                .map(|octets| Ipv4Addr::from(*octets))
                .ok_or(malformed)
        };
        // A request, over Ethernet, with addresses of six bytes.
        let (&[1, 1, 6, _, t0, t1, t2, t3, _, _, f0, f1], true) = (
            fixed.first_chunk::<12>().ok_or(malformed)?,
            fixed.ends_with(&MAGIC),
        ) else {
            return Err(malformed);
        };
        let mac = fixed
            .get(28..)
            .and_then(|rest| rest.first_chunk::<6>())
            .ok_or(malformed)?;
        let mut request = Self {
            kind: RequestKind::Discover,
            transaction: [t0, t1, t2, t3],
            flags: [f0, f1],
            client_address: address(12)?,
            relay: address(24)?,
            mac: MacAddress(*mac),
            requested: None,
            server: None,
            client: None,
            longest_message: None,
        };
        let kind = request.read_options(options)?;
        request.kind = kind.ok_or(malformed)?;
        Ok(request)
    }

    fn read_options(&mut self, mut rest: &'a [u8]) -> Result<Option<RequestKind>, ServiceDrop> {
        let mut kind = None;
        loop {
            match rest {
                [] | [option::END, ..] => return Ok(kind),
                [option::PAD, after @ ..] => rest = after,
                &[code, length, ref after @ ..] => {
                    let (value, after) = after
                        .split_at_checked(usize::from(length))
                        .ok_or(ServiceDrop::Malformed)?;
                    rest = after;
                    self.read_option(code, value, &mut kind)?;
                }
                [_] => return Err(ServiceDrop::Malformed),
            }
        }
    }

    fn read_option(
        &mut self,
        code: u8,
        value: &'a [u8],
        kind: &mut Option<RequestKind>,
    ) -> Result<(), ServiceDrop> {
        match code {
            option::MESSAGE_TYPE => {
                let told = match value {
                    [1] => RequestKind::Discover,
                    [3] => RequestKind::Request,
                    [4] => RequestKind::Decline,
                    [7] => RequestKind::Release,
                    [8] => RequestKind::Inform,
                    [_] => return Err(ServiceDrop::NotServed),
                    _ => return Err(ServiceDrop::Malformed),
                };
                kind.get_or_insert(told);
            }
            option::REQUESTED_ADDRESS => {
                self.requested.get_or_insert(exactly::<4>(value)?.into());
            }
            option::SERVER => {
                self.server.get_or_insert(exactly::<4>(value)?.into());
            }
            option::LONGEST_MESSAGE => {
                let bytes = u16::from_be_bytes(exactly(value)?);
                self.longest_message.get_or_insert(bytes);
            }
            // RFC 2132 §9.14: at least two bytes. Some clients send less; they get it back as it is.
            option::CLIENT => {
                self.client.get_or_insert(value);
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether the client cannot take a unicast frame before it has its address.
    pub(super) fn wants_broadcast(&self) -> bool {
        let [high, _] = self.flags;
        high & 0x80 != 0
    }

    /// How long a reply's UDP payload may be: what the client takes, but at least what all must (RFC 2131 §2).
    pub(super) fn longest_reply_bytes(&self) -> usize {
        let packet = self.longest_message.unwrap_or(576).clamp(576, 1500);
        usize::from(packet) - 28
    }
}

fn exactly<const N: usize>(value: &[u8]) -> Result<[u8; N], ServiceDrop> {
    value.try_into().map_err(|_| ServiceDrop::Malformed)
}

/// A reply being written. Options are appended in the order of their weight: those that would make it too long are left out.
pub(super) struct Reply {
    bytes: Vec<u8>,
    longest: usize,
}

impl Reply {
    /// A reply with these addresses: the client's old one, and its new one.
    pub(super) fn new(
        request: &Request<'_>,
        kind: ReplyKind,
        (client_address, your_address): (Ipv4Addr, Ipv4Addr),
    ) -> Self {
        let mut bytes = Vec::with_capacity(SHORTEST_REPLY_BYTES);
        bytes.extend([2, 1, 6, 0]);
        bytes.extend(request.transaction);
        bytes.extend([0, 0]);
        bytes.extend(request.flags);
        bytes.extend(client_address.octets());
        bytes.extend(your_address.octets());
        // Neither a next server to boot from nor a relay.
        bytes.extend([0; 8]);
        bytes.extend(request.mac.0);
        bytes.extend([0; 10 + 64 + 128]);
        bytes.extend(MAGIC);
        bytes.extend([option::MESSAGE_TYPE, 1, kind as u8]);
        Self {
            bytes,
            longest: request.longest_reply_bytes(),
        }
    }

    /// Appends an option that has a value.
    pub(super) fn option(&mut self, code: u8, value: &[u8]) {
        let Ok(length) = u8::try_from(value.len()) else {
            return;
        };
        // One byte for the end.
        let fits = self.bytes.len() + 2 + value.len() < self.longest;
        if length > 0 && fits {
            self.bytes.extend([code, length]);
            self.bytes.extend(value);
        }
    }

    /// Appends an option that is a list of addresses.
    pub(super) fn addresses(&mut self, code: u8, addresses: &[Ipv4Addr]) {
        let value: Vec<u8> = addresses.iter().flat_map(Ipv4Addr::octets).collect();
        self.option(code, &value);
    }

    /// Appends an option that is a 32-bit number.
    pub(super) fn number(&mut self, code: u8, number: u32) {
        self.option(code, &number.to_be_bytes());
    }

    /// The message, as a UDP payload.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.bytes.push(option::END);
        if self.bytes.len() < SHORTEST_REPLY_BYTES {
            self.bytes.resize(SHORTEST_REPLY_BYTES, option::PAD);
        }
        self.bytes
    }
}
