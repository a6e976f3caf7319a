//! What a switch is told about its guests' traffic, the same for each: none, an access list, security groups.
//!
//! [`rule`] (what a rule says, and which flows match it) -> [`lists`] (lists of rules, and flows that go through them) -> [`openflow`] (as
//! OVS takes it), [`vpc`] (as entries of Ringswitch's program `vpc`). Pure. Keeps true: both sides get the same rules in the same order,
//! what no rule allows is dropped, and every flow that is raced is allowed by the rule that is meant.

pub mod lists;
pub mod openflow;
pub mod rule;
pub mod vpc;

use std::net::Ipv4Addr;

use guest_sim::bench::Flow;

/// Rules of a long list.
pub const RULES: usize = 10_000;
/// The client's address: port 0.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The server's address: port 1.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// The first of the server's ports that clients know.
pub const SERVER_PORT: u16 = 7_000;
/// How many there are.
pub const SERVER_PORTS: u16 = 8;
/// The first of the server's ports that connections are opened to, each once.
pub const OPENED_PORT: u16 = 8_192;
/// How many there are.
pub const OPENED_PORTS: u16 = 8_192;
/// The first port that clients send from.
const CLIENT_PORT: u16 = 20_000;
/// How many there are.
const CLIENT_PORTS: u32 = 20_000;

/// What there is beside two ports that know each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// Nothing: the default program, `NORMAL`.
    #[default]
    Plain,
    /// A list of stateless rules, for what comes from any port.
    AccessList,
    /// Security groups: connections that the client may open, and what belongs to them.
    Groups,
    /// The same with long lists of rules, for the client and for the server.
    LongGroups,
}

/// The client's conversations with the server, as the client sends.
pub fn conversations(count: u32) -> Vec<Flow> {
    (0..count)
        .map(|number| Flow {
            source: CLIENT,
            destination: SERVER,
            source_port: CLIENT_PORT + (number % CLIENT_PORTS) as u16,
            destination_port: SERVER_PORT + (number / CLIENT_PORTS) as u16,
        })
        .collect()
}

/// The first of the connections that are opened with one frame each.
pub fn first_opened() -> Flow {
    Flow {
        source: CLIENT,
        destination: SERVER,
        source_port: CLIENT_PORT,
        destination_port: OPENED_PORT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn conversations_are_different_and_to_the_servers_ports() {
        let flows = conversations(100_000);
        let different: HashSet<&Flow> = flows.iter().collect();
        assert_eq!(different.len(), 100_000);
        let ports = SERVER_PORT..SERVER_PORT + SERVER_PORTS;
        assert!(flows.iter().all(|f| ports.contains(&f.destination_port)));
    }
}
