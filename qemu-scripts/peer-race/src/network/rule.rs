//! One rule: prefixes, a protocol, a block of ports.

use std::net::Ipv4Addr;

use guest_sim::bench::Flow;

/// UDP, by its IP protocol number: what all flows are.
pub const UDP: u8 = 17;
/// TCP, by its IP protocol number.
pub const TCP: u8 = 6;

/// Addresses that begin alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    address: u32,
    bits: u8,
}

impl Prefix {
    /// The prefix of `bits` (at most 32) that `address` is in.
    pub fn of(address: Ipv4Addr, bits: u8) -> Self {
        Self {
            address: u32::from(address) & mask(32, bits),
            bits: bits.min(32),
        }
    }

    /// Whether an address is in it.
    pub fn covers(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(32, self.bits) == self.address
    }

    /// The address of this number in it, counted round.
    pub fn address(&self, number: u32) -> Ipv4Addr {
        (self.address | number & !mask(32, self.bits)).into()
    }

    /// How many bits are given.
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// As both sides write it; `None`: any address.
    pub fn text(&self) -> Option<String> {
        (self.bits > 0).then(|| format!("{}/{}", self.address(0), self.bits))
    }
}

/// Ports that begin alike: a block whose size is a power of two, at a multiple of its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports {
    first: u16,
    bits: u8,
}

impl Ports {
    /// The block with `bits` (at most 16) given that `port` is in.
    pub fn of(port: u16, bits: u8) -> Self {
        Self {
            first: port & mask(16, bits) as u16,
            bits: bits.min(16),
        }
    }

    /// Whether a port is in it.
    pub fn covers(&self, port: u16) -> bool {
        port & self.mask() == self.first
    }

    /// The first.
    pub fn first(&self) -> u16 {
        self.first
    }

    /// The last.
    pub fn last(&self) -> u16 {
        self.first | !self.mask()
    }

    /// Of the bits that are given.
    pub fn mask(&self) -> u16 {
        mask(16, self.bits) as u16
    }

    /// How many bits are given.
    pub fn bits(&self) -> u8 {
        self.bits
    }
}

/// `bits` ones in front, in a word of `of` bits.
fn mask(of: u8, bits: u8) -> u32 {
    let ones = u64::from(u32::MAX) << (of - bits.min(of));
    (ones & ((1 << of) - 1)) as u32
}

/// What becomes of a frame that a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// It goes on.
    Allow,
    /// It is dropped.
    Deny,
}

/// A rule; of those that match a frame, the one with the largest priority decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// From 1 on, at most 65,535: what OpenFlow takes.
    pub priority: u16,
    /// Who sends.
    pub source: Prefix,
    /// To whom.
    pub destination: Prefix,
    /// IP protocol: TCP or UDP.
    pub protocol: u8,
    /// To which ports.
    pub ports: Ports,
    /// What then.
    pub action: Action,
}

impl Rule {
    /// Whether a UDP flow's frames match.
    pub fn matches(&self, flow: &Flow) -> bool {
        self.protocol == UDP
            && self.source.covers(flow.source)
            && self.destination.covers(flow.destination)
            && self.ports.covers(flow.destination_port)
    }
}

/// The rule that decides about a UDP flow: every rule is asked.
pub fn deciding<'a>(rules: &'a [Rule], flow: &Flow) -> Option<&'a Rule> {
    let matching = rules.iter().filter(|rule| rule.matches(flow));
    matching.max_by_key(|rule| rule.priority)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_cover_what_begins_like_them() {
        let prefix = Prefix::of(Ipv4Addr::new(10, 1, 2, 3), 12);
        assert_eq!(prefix.text().as_deref(), Some("10.0.0.0/12"));
        assert!(prefix.covers(Ipv4Addr::new(10, 15, 255, 255)));
        assert!(!prefix.covers(Ipv4Addr::new(10, 16, 0, 0)));
        assert_eq!(prefix.address(u32::MAX), Ipv4Addr::new(10, 15, 255, 255));
        let any = Prefix::of(Ipv4Addr::new(10, 1, 2, 3), 0);
        assert_eq!(any.text(), None);
        assert!(any.covers(Ipv4Addr::BROADCAST));
        let one = Prefix::of(Ipv4Addr::BROADCAST, 32);
        assert!(one.covers(Ipv4Addr::BROADCAST) && !one.covers(Ipv4Addr::UNSPECIFIED));
    }

    #[test]
    fn blocks_of_ports_end_where_they_should() {
        let block = Ports::of(7_003, 13);
        assert_eq!(
            (block.first(), block.last(), block.mask()),
            (7_000, 7_007, 0xfff8)
        );
        assert!(block.covers(7_007) && !block.covers(7_008) && !block.covers(6_999));
        let any = Ports::of(80, 0);
        assert_eq!((any.first(), any.last()), (0, 65_535));
        let one = Ports::of(80, 16);
        assert_eq!((one.first(), one.last()), (80, 80));
    }

    #[test]
    fn the_largest_priority_decides() {
        let any = Prefix::of(Ipv4Addr::UNSPECIFIED, 0);
        let rule = |priority, protocol, ports, action| Rule {
            priority,
            source: any,
            destination: any,
            protocol,
            ports,
            action,
        };
        let rules = [
            rule(1, UDP, Ports::of(0, 0), Action::Deny),
            rule(3, TCP, Ports::of(0, 0), Action::Deny),
            rule(2, UDP, Ports::of(7_000, 13), Action::Allow),
        ];
        let flow = super::super::conversations(1)[0];
        assert_eq!(deciding(&rules, &flow).map(|rule| rule.priority), Some(2));
        assert_eq!(
            deciding(&rules, &flow.reversed()).map(|rule| rule.priority),
            Some(1)
        );
        assert_eq!(deciding(&[], &flow), None);
    }
}
