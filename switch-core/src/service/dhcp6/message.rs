//! DHCPv6 messages (RFC 8415 §8, §21): what a client sent, read; what it gets, written.

use std::net::Ipv6Addr;

use crate::service::drop::ServiceDrop;

/// The longest DUID (RFC 8415 §11.1): 128 bytes and the type.
const LONGEST_DUID_BYTES: usize = 130;
/// How many identity associations of a message are looked at.
const MOST_ASSOCIATIONS: usize = 4;
/// How many addresses of an identity association are looked at.
const MOST_ADDRESSES: usize = 4;

/// The options of RFC 8415 §21 and RFC 3646 that are read or written.
pub(super) mod option {
    pub const CLIENT: u16 = 1;
    pub const SERVER: u16 = 2;
    pub const ASSOCIATION: u16 = 3;
    pub const ADDRESS: u16 = 5;
    pub const STATUS: u16 = 13;
    pub const RAPID_COMMIT: u16 = 14;
    pub const DNS: u16 = 23;
    pub const SEARCH: u16 = 24;
}

/// What a client wants (RFC 8415 §7.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestKind {
    Solicit,
    Request,
    Confirm,
    Renew,
    Rebind,
    Release,
    Decline,
    InformationRequest,
}

impl RequestKind {
    fn of(number: u8) -> Result<Self, ServiceDrop> {
        match number {
            1 => Ok(Self::Solicit),
            3 => Ok(Self::Request),
            4 => Ok(Self::Confirm),
            5 => Ok(Self::Renew),
            6 => Ok(Self::Rebind),
            8 => Ok(Self::Release),
            9 => Ok(Self::Decline),
            11 => Ok(Self::InformationRequest),
            12 => Err(ServiceDrop::Relayed),
            _ => Err(ServiceDrop::NotServed),
        }
    }

    /// Whether the message names the server that it is for (RFC 8415 §16).
    fn names_server(self) -> bool {
        matches!(
            self,
            Self::Request | Self::Renew | Self::Release | Self::Decline
        )
    }
}

/// What it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum ReplyKind {
    Advertise = 2,
    Reply = 7,
}

/// A status code (RFC 8415 §21.13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Status {
    Success = 0,
    NoAddressAvailable = 2,
    NoBinding = 3,
    NotOnLink = 4,
}

/// An identity association for addresses (IA_NA).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Association {
    pub id: [u8; 4],
    /// The addresses that the client has or wants.
    pub addresses: Vec<Ipv6Addr>,
}

/// A client's message.
#[derive(Clone, Debug)]
pub(super) struct Request<'a> {
    pub kind: RequestKind,
    pub transaction: [u8; 3],
    pub client: Option<&'a [u8]>,
    pub server: Option<&'a [u8]>,
    pub associations: Vec<Association>,
    pub wants_rapid_commit: bool,
}

impl<'a> Request<'a> {
    /// Reads a client's message and checks what RFC 8415 §16 says of its kind, but for the server's name being ours.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, ServiceDrop> {
        let (&[kind, t0, t1, t2], options) = bytes
            .split_first_chunk::<4>()
            .ok_or(ServiceDrop::Malformed)?;
        let mut request = Self {
            kind: RequestKind::of(kind)?,
            transaction: [t0, t1, t2],
            client: None,
            server: None,
            associations: Vec::new(),
            wants_rapid_commit: false,
        };
        for_each_option(options, |code, value| request.read_option(code, value))?;
        let kind = request.kind;
        let is_complete = if kind == RequestKind::InformationRequest {
            request.associations.is_empty()
        } else {
            request.client.is_some() && request.server.is_some() == kind.names_server()
        };
        if is_complete {
            Ok(request)
        } else {
            Err(ServiceDrop::Malformed)
        }
    }

    fn read_option(&mut self, code: u16, value: &'a [u8]) -> Result<(), ServiceDrop> {
        let is_duid = || (3..=LONGEST_DUID_BYTES).contains(&value.len());
        match code {
            option::CLIENT | option::SERVER if !is_duid() => return Err(ServiceDrop::Malformed),
            option::CLIENT => {
                self.client.get_or_insert(value);
            }
            option::SERVER => {
                self.server.get_or_insert(value);
            }
            option::RAPID_COMMIT => self.wants_rapid_commit = true,
            option::ASSOCIATION if self.associations.len() < MOST_ASSOCIATIONS => {
                self.associations.push(Association::read(value)?);
            }
            _ => {}
        }
        Ok(())
    }
}

impl Association {
    fn read(value: &[u8]) -> Result<Self, ServiceDrop> {
        let (&[i0, i1, i2, i3, ..], options) = value
            .split_first_chunk::<12>()
            .ok_or(ServiceDrop::Malformed)?;
        let mut addresses = Vec::new();
        for_each_option(options, |code, value| {
            if code == option::ADDRESS && addresses.len() < MOST_ADDRESSES {
                // The address, two lifetimes, and options that are the server's to send.
                let (address, _) = value
                    .first_chunk::<24>()
                    .and_then(|fixed| fixed.split_first_chunk::<16>())
                    .ok_or(ServiceDrop::Malformed)?;
                addresses.push(Ipv6Addr::from(*address));
            }
            Ok(())
        })?;
        Ok(Self {
            id: [i0, i1, i2, i3],
            addresses,
        })
    }
}

/// Walks options; each moves on by at least four bytes.
fn for_each_option<'a>(
    mut rest: &'a [u8],
    mut visit: impl FnMut(u16, &'a [u8]) -> Result<(), ServiceDrop>,
) -> Result<(), ServiceDrop> {
    while !rest.is_empty() {
        let (&[c0, c1, l0, l1], after) = rest
            .split_first_chunk::<4>()
            .ok_or(ServiceDrop::Malformed)?;
        let length = usize::from(u16::from_be_bytes([l0, l1]));
        let (value, after) = after
            .split_at_checked(length)
            .ok_or(ServiceDrop::Malformed)?;
        rest = after;
        visit(u16::from_be_bytes([c0, c1]), value)?;
    }
    Ok(())
}

/// A reply being written.
pub(super) struct Reply(Vec<u8>);

impl Reply {
    /// A reply from the server with this DUID.
    pub(super) fn new(kind: ReplyKind, request: &Request<'_>, server: &[u8]) -> Self {
        let [t0, t1, t2] = request.transaction;
        let mut reply = Self(vec![kind as u8, t0, t1, t2]);
        reply.option(option::SERVER, server);
        if let Some(client) = request.client {
            reply.option(option::CLIENT, client);
        }
        reply
    }

    /// Appends an option.
    pub(super) fn option(&mut self, code: u16, value: &[u8]) {
        append_option(&mut self.0, code, value);
    }

    /// Appends a status for the whole message.
    pub(super) fn status(&mut self, status: Status) {
        self.option(option::STATUS, &(status as u16).to_be_bytes());
    }

    /// Appends an identity association: the address that it has, if any, those that it has no longer, and a status if it has none.
    pub(super) fn association(&mut self, id: [u8; 4], granted: &Granted<'_>) {
        let mut value = id.to_vec();
        let Lifetimes {
            preferred_s,
            valid_s,
        } = granted.lifetimes;
        // RFC 8415 §21.4: times to renew and rebind, at half and four fifths of the preferred lifetime; ours to choose.
        let (t1, t2) = match granted.address {
            Some(_) => (preferred_s / 2, preferred_s / 5 * 4),
            None => (0, 0),
        };
        value.extend(t1.to_be_bytes());
        value.extend(t2.to_be_bytes());
        if let Some(address) = granted.address {
            append_address(&mut value, address, (preferred_s, valid_s));
        }
        for &address in granted.ended {
            append_address(&mut value, address, (0, 0));
        }
        if let Some(status) = granted.status {
            append_option(&mut value, option::STATUS, &(status as u16).to_be_bytes());
        }
        self.option(option::ASSOCIATION, &value);
    }

    /// The message, as a UDP payload.
    pub(super) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// How long an address lasts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lifetimes {
    pub preferred_s: u32,
    pub valid_s: u32,
}

/// What an identity association gets.
pub(super) struct Granted<'a> {
    pub address: Option<Ipv6Addr>,
    pub lifetimes: Lifetimes,
    /// Addresses that it must not use any more.
    pub ended: &'a [Ipv6Addr],
    pub status: Option<Status>,
}

fn append_address(value: &mut Vec<u8>, address: Ipv6Addr, (preferred_s, valid_s): (u32, u32)) {
    let mut fields = address.octets().to_vec();
    fields.extend(preferred_s.to_be_bytes());
    fields.extend(valid_s.to_be_bytes());
    append_option(value, option::ADDRESS, &fields);
}

fn append_option(bytes: &mut Vec<u8>, code: u16, value: &[u8]) {
    let Ok(length) = u16::try_from(value.len()) else {
        return;
    };
    bytes.extend(code.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes.extend(value);
}
