//! An address and the length of its network's prefix: `10.0.0.1/24`, `fd00::1/64`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An address with a prefix length. The address may have bits beyond the prefix: an interface's address in its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpPrefix {
    address: IpAddr,
    length: u8,
}

/// The text or the numbers are no address with a prefix length.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address with a prefix length: write it as 10.0.0.1/24 or fd00::1/64")]
pub struct InvalidIpPrefix(String);

impl IpPrefix {
    /// The address with this prefix length, at most 32 or 128 bits.
    ///
    /// # Errors
    /// When the length is beyond that.
    pub fn new(address: IpAddr, length: u8) -> Result<Self, InvalidIpPrefix> {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        if length > longest {
            return Err(InvalidIpPrefix(format!("{address}/{length}")));
        }
        Ok(Self { address, length })
    }

    /// The address, with all its bits.
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// The prefix length in bits.
    pub const fn length(&self) -> u8 {
        self.length
    }

    /// The address with the bits beyond the prefix cleared.
    pub fn network(&self) -> IpAddr {
        match self.address {
            IpAddr::V4(address) => {
                Ipv4Addr::from_bits(address.to_bits() & mask_v4(self.length)).into()
            }
            IpAddr::V6(address) => {
                Ipv6Addr::from_bits(address.to_bits() & mask_v6(self.length)).into()
            }
        }
    }

    /// Whether `address` is in the network.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                (own.to_bits() ^ other.to_bits()) & mask_v4(self.length) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                (own.to_bits() ^ other.to_bits()) & mask_v6(self.length) == 0
            }
            _ => false,
        }
    }

    /// The IPv4 address, if it is one.
    pub const fn v4(&self) -> Option<Ipv4Addr> {
        match self.address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        }
    }

    /// The IPv6 address, if it is one.
    pub const fn v6(&self) -> Option<Ipv6Addr> {
        match self.address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(address),
        }
    }

    /// The netmask of an IPv4 prefix.
    pub fn netmask(&self) -> Option<Ipv4Addr> {
        self.v4().map(|_| Ipv4Addr::from_bits(mask_v4(self.length)))
    }

    /// The directed broadcast address, which IPv4 networks of more than two addresses have (RFC 3021).
    pub fn broadcast(&self) -> Option<Ipv4Addr> {
        let address = self.v4()?;
        (self.length < 31).then(|| Ipv4Addr::from_bits(address.to_bits() | !mask_v4(self.length)))
    }

    /// Whether a station of the network may have `address`: neither its network address nor its broadcast address (IPv4), nor
    /// the subnet-router anycast address (IPv6, RFC 4291 §2.6.1), nor a multicast or unspecified address.
    pub fn has_station(&self, address: IpAddr) -> bool {
        let has_edges = match address {
            IpAddr::V4(_) => self.length < 31,
            IpAddr::V6(_) => self.length < 127,
        };
        let is_edge = has_edges
            && (address == self.network() || self.broadcast().map(IpAddr::from) == Some(address));
        self.contains(address) && !is_edge && !address.is_multicast() && !address.is_unspecified()
    }
}

/// The first `length` bits, at most 32.
fn mask_v4(length: u8) -> u32 {
    u32::MAX
        .checked_shl(32_u32.saturating_sub(u32::from(length)))
        .unwrap_or(0)
}

/// The first `length` bits, at most 128.
fn mask_v6(length: u8) -> u128 {
    u128::MAX
        .checked_shl(128_u32.saturating_sub(u32::from(length)))
        .unwrap_or(0)
}

impl fmt::Display for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl FromStr for IpPrefix {
    type Err = InvalidIpPrefix;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidIpPrefix(text.to_owned());
        let (address, length) = text.split_once('/').ok_or_else(invalid)?;
        // A plus sign or leading zeros would be read as a number too.
        let plain = length.bytes().all(|digit| digit.is_ascii_digit())
            && (length == "0" || !length.starts_with('0'));
        if !plain {
            return Err(invalid());
        }
        let address = address.parse().map_err(|_| invalid())?;
        let length = length.parse().map_err(|_| invalid())?;
        Self::new(address, length).map_err(|_| invalid())
    }
}

impl Serialize for IpPrefix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for IpPrefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_reads_back_as_written() {
        for text in [
            "10.0.0.1/24",
            "0.0.0.0/0",
            "10.1.2.3/32",
            "fd00::1/64",
            "::/0",
            "fe80::1/128",
        ] {
            assert_eq!(text.parse::<IpPrefix>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_prefix_is_refused() {
        for text in [
            "",
            "10.0.0.1",
            "10.0.0.1/33",
            "10.0.0.1/+4",
            "10.0.0.1/04",
            "fd00::/129",
            "10.0.0/8",
            "/8",
            "::1/",
        ] {
            assert!(text.parse::<IpPrefix>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_network_knows_its_stations() {
        let net: IpPrefix = "10.0.0.1/30".parse().unwrap();
        let stations: Vec<u32> = (0..8)
            .filter(|low| net.has_station(Ipv4Addr::new(10, 0, 0, *low as u8).into()))
            .collect();
        assert_eq!(stations, [1, 2]);
        let pair: IpPrefix = "10.0.0.0/31".parse().unwrap();
        assert!(pair.has_station("10.0.0.0".parse().unwrap()));
        assert!(pair.has_station("10.0.0.1".parse().unwrap()));
        assert_eq!(pair.broadcast(), None);
        let all: IpPrefix = "10.0.0.1/0".parse().unwrap();
        assert!(all.contains("255.1.2.3".parse().unwrap()));
        assert!(!all.contains("::".parse().unwrap()));
        let v6: IpPrefix = "fd00::1/64".parse().unwrap();
        assert!(!v6.has_station("fd00::".parse().unwrap()));
        assert!(v6.has_station("fd00::ffff".parse().unwrap()));
        assert!(!v6.has_station("fd00:0:0:1::1".parse().unwrap()));
    }
}
