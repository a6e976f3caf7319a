//! MAC addresses: IEEE 802 48-bit addresses, their classes and their written form.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An IEEE 802 MAC address, in the order it has on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// `ff:ff:ff:ff:ff:ff`, every station.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether the group bit is set: multicast or broadcast (IEEE 802-2014 §8.2.2).
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether this is the all-zero address, which no station has.
    pub const fn is_zero(self) -> bool {
        self.as_u64() == 0
    }

    /// Whether this is one of `01:80:c2:00:00:00` to `0f`, which no bridge relays (IEEE 802.1Q-2018 table 8-1).
    pub const fn is_bridge_reserved(self) -> bool {
        self.as_u64() >> 4 == 0x0180_c200_0000 >> 4
    }

    /// The address as a 48-bit number, first byte most significant.
    pub const fn as_u64(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }

    /// The address whose number is the low 48 bits of `value`.
    pub const fn from_u64(value: u64) -> Self {
        let [_, _, a, b, c, d, e, f] = value.to_be_bytes();
        Self([a, b, c, d, e, f])
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// The text is not a MAC address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a MAC address: write six pairs of hexadecimal digits separated by colons, as 52:54:00:12:34:56"
)]
pub struct InvalidMacAddress(String);

impl FromStr for MacAddress {
    type Err = InvalidMacAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidMacAddress(text.to_owned());
        let mut bytes = [0; 6];
        let mut pairs = text.split(':');
        for byte in &mut bytes {
            let pair = pairs.next().ok_or_else(invalid)?;
            if pair.len() != 2 || !pair.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(invalid());
            }
            *byte = u8::from_str_radix(pair, 16).map_err(|_| invalid())?;
        }
        if pairs.next().is_some() {
            Err(invalid())
        } else {
            Ok(Self(bytes))
        }
    }
}

impl Serialize for MacAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddress {
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
    fn an_address_reads_back_as_written() {
        let mac: MacAddress = "52:54:00:12:34:ff".parse().unwrap();
        assert_eq!(mac, MacAddress([0x52, 0x54, 0, 0x12, 0x34, 0xff]));
        assert_eq!(mac.to_string(), "52:54:00:12:34:ff");
        assert_eq!(MacAddress::from_u64(mac.as_u64()), mac);
    }

    #[test]
    fn what_is_not_an_address_is_refused() {
        for text in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "5:54:00:12:34:56",
            "+5:54:00:12:34:56",
            "52-54-00-12-34-56",
        ] {
            assert!(text.parse::<MacAddress>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn only_the_sixteen_reserved_addresses_are_reserved() {
        for last in 0..=0xff_u8 {
            assert_eq!(
                MacAddress([0x01, 0x80, 0xc2, 0, 0, last]).is_bridge_reserved(),
                last < 0x10
            );
        }
        assert!(!MacAddress([0x01, 0x80, 0xc2, 0, 1, 0]).is_bridge_reserved());
        assert!(!MacAddress([0x00, 0x80, 0xc2, 0, 0, 0]).is_bridge_reserved());
    }
}
