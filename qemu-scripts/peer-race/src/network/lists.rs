//! Lists of rules, and flows that go through them. The same every time.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use guest_sim::bench::Flow;

use super::rule::{Action, Ports, Prefix, Rule, TCP, UDP, deciding};
use super::{CLIENT, CLIENT_PORT, CLIENT_PORTS, OPENED_PORT, OPENED_PORTS, RULES, SERVER};
use super::{SERVER_PORT, SERVER_PORTS};

/// How much of the source, the destination and the port is given: 64 combinations, each in turn.
const SOURCE_BITS: [u8; 4] = [0, 8, 16, 24];
/// The same of a group's sources: rules of a group say who, for there is no destination beside it that would tell them apart.
const GROUP_SOURCE_BITS: [u8; 4] = [12, 16, 20, 24];
const DESTINATION_BITS: [u8; 4] = [12, 16, 24, 32];
const PORT_BITS: [u8; 4] = [0, 8, 12, 16];
/// Ports that rules are often about.
const KNOWN_PORTS: [u16; 12] = [
    22, 53, 80, 123, 161, 443, 514, 1_812, 3_306, 5_432, 6_379, 8_080,
];
/// The priority of the rule that denies everything.
pub const LAST_PRIORITY: u16 = 1;

/// xorshift64* (Vigna 2016): numbers that are the same every time.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    fn of<T: Copy>(&mut self, choice: &[T; 4]) -> T {
        let [a, b, c, d] = *choice;
        match self.next() % 4 {
            0 => a,
            1 => b,
            2 => c,
            _ => d,
        }
    }

    fn address(&mut self) -> Ipv4Addr {
        // Half of them are in the guests' own network.
        let own = self.next().is_multiple_of(2);
        let address = self.next();
        let address = if own {
            0x0a00_0000 | address & 0x00ff_ffff
        } else {
            address
        };
        address.into()
    }

    fn port(&mut self) -> u16 {
        let known = self.next() as usize % (2 * KNOWN_PORTS.len());
        let any = self.next() as u16;
        KNOWN_PORTS.get(known).copied().unwrap_or(any)
    }
}

/// Whether a rule's ports are among so many from `first` on.
fn meets(rule: &Rule, first: u16, count: u32) -> bool {
    let last = u32::from(first) + count - 1;
    u32::from(rule.ports.first()) <= last && first <= rule.ports.last()
}

/// Whether a rule is about ports that the server is asked on.
fn is_about_the_server_ports(rule: &Rule) -> bool {
    rule.protocol == UDP
        && (meets(rule, SERVER_PORT, SERVER_PORTS.into())
            || meets(rule, OPENED_PORT, OPENED_PORTS.into()))
}

/// Whether frames between client and server may match a stateless rule, in either direction.
fn may_match_frames(rule: &Rule) -> bool {
    let forth = rule.source.covers(CLIENT) && rule.destination.covers(SERVER);
    let back = rule.source.covers(SERVER) && rule.destination.covers(CLIENT);
    forth && is_about_the_server_ports(rule)
        || back && rule.protocol == UDP && meets(rule, CLIENT_PORT, CLIENT_PORTS)
}

/// Whether the connections raced may match a rule of a group, of which a client's has no source and a server's no destination.
fn may_match_connections(rule: &Rule) -> bool {
    (rule.source.covers(CLIENT) || rule.destination.covers(SERVER))
        && is_about_the_server_ports(rule)
}

/// `count` rules that are not about what is raced, the first of priority `first` and each of the next of one less.
fn others(
    count: usize,
    first: u16,
    source_bits: &[u8; 4],
    is_raced: impl Fn(&Rule) -> bool,
) -> Vec<Rule> {
    let numbers = &mut Numbers(1);
    let mut rules = Vec::with_capacity(count);
    let combinations = PORT_BITS.len() * DESTINATION_BITS.len() * source_bits.len();
    while rules.len() < count {
        let number = rules.len() % combinations;
        let bits = |choice: &[u8; 4], digit: usize| choice.get(digit % 4).copied().unwrap_or(0);
        let rule = Rule {
            priority: first - rules.len() as u16,
            source: Prefix::of(numbers.address(), bits(source_bits, number)),
            destination: Prefix::of(numbers.address(), bits(&DESTINATION_BITS, number / 4)),
            protocol: numbers.of(&[UDP, UDP, TCP, TCP]),
            ports: Ports::of(numbers.port(), bits(&PORT_BITS, number / 16)),
            action: numbers.of(&[Action::Allow, Action::Allow, Action::Allow, Action::Deny]),
        };
        if !is_raced(&rule) {
            rules.push(rule);
        }
    }
    rules
}

/// The rules that allow what the guests say to each other.
fn own(first: u16) -> [Rule; 3] {
    let rule = |offset, source, destination, ports| Rule {
        priority: first - offset,
        source: Prefix::of(source, 24),
        destination: Prefix::of(destination, 32),
        protocol: UDP,
        ports,
        action: Action::Allow,
    };
    [
        rule(0, CLIENT, SERVER, Ports::of(SERVER_PORT, 13)),
        rule(1, CLIENT, SERVER, Ports::of(OPENED_PORT, 3)),
        rule(2, SERVER, CLIENT, Ports::of(0, 0)),
    ]
}

/// [`RULES`] stateless rules, of which the guests' own are the last ones, before all else is denied.
pub fn access_list() -> Vec<Rule> {
    let first = RULES as u16 + LAST_PRIORITY;
    let mut rules = others(RULES - 3, first, &SOURCE_BITS, may_match_frames);
    rules.extend(own(LAST_PRIORITY + 3));
    rules
}

/// Which connections the client may open: those to the server, and `others` more rules before these.
pub fn group(others_count: usize) -> Vec<Rule> {
    let first = others_count as u16 + LAST_PRIORITY + 2;
    let mut rules = others(
        others_count,
        first,
        &GROUP_SOURCE_BITS,
        may_match_connections,
    );
    let [known, opened, _] = own(LAST_PRIORITY + 2);
    rules.extend([known, opened]);
    rules
}

/// Different flows that rules all over the list allow, several for each of them.
pub fn spread(rules: &[Rule], count: usize) -> Vec<Flow> {
    let mut numbers = Numbers(2);
    let mut seen = HashSet::new();
    let mut flows = Vec::with_capacity(count);
    let udp = |rule: &&Rule| rule.protocol == UDP && rule.action == Action::Allow;
    let mut about = rules.iter().filter(udp).cycle();
    // Some are decided by another rule than meant: twenty attempts each are far more than enough.
    for rule in about.by_ref().take(20 * count) {
        if flows.len() == count {
            break;
        }
        let ports = rule.ports;
        let flow = Flow {
            source: rule.source.address(numbers.next()),
            destination: rule.destination.address(numbers.next()),
            source_port: 1024 + (numbers.next() % 60_000) as u16,
            destination_port: (ports.first() | numbers.next() as u16 & !ports.mask()).max(1),
        };
        let allowed = deciding(rules, &flow).is_some_and(|rule| rule.action == Action::Allow);
        if allowed && is_unicast(flow.source) && is_unicast(flow.destination) && seen.insert(flow) {
            flows.push(flow);
        }
    }
    flows
}

/// Addresses that no switch has reason to drop frames of.
fn is_unicast(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    (1..224).contains(&first) && first != 127
}

#[cfg(test)]
mod tests {
    use super::super::{conversations, first_opened};
    use super::*;

    fn priorities(rules: &[Rule]) -> HashSet<u16> {
        rules.iter().map(|rule| rule.priority).collect()
    }

    #[test]
    fn the_list_has_so_many_rules_each_with_a_priority_of_its_own() {
        let rules = access_list();
        assert_eq!(rules.len(), RULES);
        let priorities = priorities(&rules);
        assert_eq!(priorities.len(), RULES);
        assert!(priorities.iter().all(|&priority| priority > LAST_PRIORITY));
        assert_eq!(rules, access_list(), "it is the same every time");
    }

    #[test]
    fn the_list_has_about_64_masks() {
        let masks: HashSet<_> = access_list()
            .iter()
            .map(|rule| {
                (
                    rule.source.bits(),
                    rule.destination.bits(),
                    rule.ports.bits(),
                )
            })
            .collect();
        assert!((64..=67).contains(&masks.len()), "{}", masks.len());
    }

    #[test]
    fn the_guests_frames_match_the_rules_meant_and_no_others() {
        let rules = access_list();
        let [known, _, back] = own(LAST_PRIORITY + 3);
        for flow in conversations(1_000) {
            for (flow, meant) in [(flow, known), (flow.reversed(), back)] {
                let matching: Vec<&Rule> =
                    rules.iter().filter(|rule| rule.matches(&flow)).collect();
                assert_eq!(matching, [&meant]);
            }
        }
        let least = rules.iter().map(|rule| rule.priority).min();
        assert_eq!(least, Some(back.priority), "they are the last ones");
    }

    #[test]
    fn a_group_allows_the_clients_connections_and_nothing_of_the_servers() {
        for others in [0, RULES - 2] {
            let rules = group(others);
            assert_eq!(rules.len(), others + 2);
            assert_eq!(priorities(&rules).len(), rules.len());
            let all = conversations(100_000);
            for flow in all.iter().step_by(97).copied().chain([first_opened()]) {
                // A client's rules have no source, a server's no destination.
                let matching: Vec<&Rule> = rules
                    .iter()
                    .filter(|rule| {
                        rule.protocol == UDP
                            && rule.ports.covers(flow.destination_port)
                            && (rule.source.covers(CLIENT) || rule.destination.covers(SERVER))
                    })
                    .collect();
                assert_eq!(matching.len(), 1);
                assert!(matching[0].matches(&flow));
                assert_eq!(matching[0].action, Action::Allow);
                assert!(matching[0].priority <= LAST_PRIORITY + 2);
                assert_eq!(deciding(&rules, &flow.reversed()), None);
            }
        }
    }

    #[test]
    fn spread_flows_are_different_and_allowed_by_rules_all_over_the_list() {
        let rules = access_list();
        let flows = spread(&rules, 2_000);
        assert_eq!(flows.len(), 2_000);
        let different: HashSet<&Flow> = flows.iter().collect();
        assert_eq!(different.len(), flows.len());
        let by: HashSet<u16> = flows
            .iter()
            .map(|flow| {
                let rule = deciding(&rules, flow).unwrap();
                assert_eq!(rule.action, Action::Allow);
                rule.priority
            })
            .collect();
        assert!(by.len() > 1_000, "{}", by.len());
    }
}
