//! Networks as entries of Ringswitch's program `vpc`, in the form that `ringswitch table load` reads.

use serde_json::{Value, json};

use super::lists::{self, LAST_PRIORITY};
use super::rule::{Action, Rule};
use super::{CLIENT, Network, RULES, SERVER};

/// The bridge domain of all ports.
const DOMAIN: u16 = 1;
/// Ethernet's number of IPv4.
const IPV4: u16 = 0x0800;
/// The client's policy, and the server's.
const POLICIES: [u32; 2] = [1, 2];
/// The feature of a port whose frames go through the access list.
const ACCESS_LIST: u8 = 2;

/// The entries of a network of so many ports, one for each line; `None`: the default program is enough. Port 0 is the client's, port 1 the
/// server's; others are strangers. `mac` is that of a port.
pub fn entries(network: Network, ports: usize, mac: impl Fn(usize) -> String) -> Option<String> {
    let tracked = match network {
        Network::Plain => return None,
        Network::AccessList => false,
        Network::Groups | Network::LongGroups => true,
    };
    let mut entries = vec![json!({
        "table": "domains", "key": {"domain": DOMAIN}, "action": "describe",
        "params": {"vrf": 1, "zone": u8::from(tracked), "flood": 1, "options": 0},
    })];
    for port in 0..ports {
        let name = format!("vm{port}");
        let guest = POLICIES.get(port).filter(|_| tracked);
        entries.push(match guest {
            Some(policy) => json!({
                "table": "ports", "key": {"port": name}, "action": "guest",
                "params": {"domain": DOMAIN, "policy": policy},
            }),
            None => json!({
                "table": "ports", "key": {"port": name}, "action": "custom",
                "params": {"domain": DOMAIN, "policy": 0, "features": ACCESS_LIST},
            }),
        });
        entries.push(json!({
            "table": "stations", "key": {"domain": DOMAIN, "mac": mac(port)}, "action": "station",
            "params": {"port": name},
        }));
    }
    match network {
        Network::Plain => {}
        Network::AccessList => {
            entries.extend(lists::access_list().iter().map(stateless));
            entries.push(
                json!({"table": "acl_in", "key": {}, "priority": LAST_PRIORITY, "action": "deny"}),
            );
        }
        Network::Groups => entries.extend(guests(&lists::group(0), mac)),
        Network::LongGroups => entries.extend(guests(&lists::group(RULES - 2), mac)),
    }
    let lines = entries.iter().map(|entry| format!("{entry}\n"));
    Some(lines.collect())
}

fn action(rule: &Rule) -> &'static str {
    match rule.action {
        Action::Allow => "allow",
        Action::Deny => "deny",
    }
}

fn ports(rule: &Rule) -> Option<String> {
    (rule.ports.bits() > 0).then(|| format!("{}..{}", rule.ports.first(), rule.ports.last()))
}

/// A key without what may be anything.
fn key<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    let given = fields
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(given.collect())
}

fn stateless(rule: &Rule) -> Value {
    let key = key([
        ("ether_type", Some(IPV4.into())),
        ("source", rule.source.text().map(Value::from)),
        ("destination", rule.destination.text().map(Value::from)),
        ("protocol", Some(rule.protocol.into())),
        ("destination_port", ports(rule).map(Value::from)),
    ]);
    json!({"table": "acl_in", "key": key, "priority": rule.priority, "action": action(rule)})
}

/// Addresses that the guests may use, and the rules of both: what the client may open, and what may be opened to the server.
fn guests(rules: &[Rule], mac: impl Fn(usize) -> String) -> Vec<Value> {
    let mut entries = Vec::new();
    for (port, address) in [CLIENT, SERVER].into_iter().enumerate() {
        for address in ["0".to_owned(), address.to_string()] {
            entries.push(json!({
                "table": "port_security", "action": "permit",
                "key": {"port": format!("vm{port}"), "mac": mac(port), "address": address},
            }));
        }
    }
    let sides = [("egress_rules", "destination"), ("ingress_rules", "source")];
    for (policy, (table, peer)) in POLICIES.into_iter().zip(sides) {
        for rule in rules {
            let prefix = if peer == "source" {
                rule.source
            } else {
                rule.destination
            };
            let key = key([
                ("policy", Some(policy.into())),
                ("family", Some(4.into())),
                (peer, prefix.text().map(Value::from)),
                ("protocol", Some(rule.protocol.into())),
                ("destination_port", ports(rule).map(Value::from)),
            ]);
            entries.push(json!({"table": table, "key": key, "priority": rule.priority, "action": action(rule)}));
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn parsed(network: Network, ports: usize) -> Vec<Value> {
        let mac = |port| format!("52:54:00:00:00:{:02x}", port + 1);
        let text = entries(network, ports, mac).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    fn of<'a>(entries: &'a [Value], table: &str) -> Vec<&'a Value> {
        entries
            .iter()
            .filter(|entry| entry["table"] == table)
            .collect()
    }

    #[test]
    fn the_list_is_the_one_that_ovs_gets_and_all_else_is_denied() {
        let entries = parsed(Network::AccessList, 3);
        let rules = of(&entries, "acl_in");
        assert_eq!(rules.len(), RULES + 1);
        let (listed, last) = rules.split_at(RULES);
        for (entry, rule) in listed.iter().zip(lists::access_list()) {
            assert_eq!(entry["priority"], rule.priority);
            assert_eq!(entry["key"]["protocol"], rule.protocol);
            assert_eq!(entry["key"].get("source").is_some(), rule.source.bits() > 0);
            assert_eq!(entry["action"] == "allow", rule.action == Action::Allow);
        }
        assert_eq!(
            (&last[0]["action"], &last[0]["key"]),
            (&json!("deny"), &json!({}))
        );
        assert_eq!(of(&entries, "ports").len(), 3);
        assert_eq!(of(&entries, "stations").len(), 3);
    }

    #[test]
    fn no_key_is_there_twice() {
        for network in [Network::AccessList, Network::Groups, Network::LongGroups] {
            let entries = parsed(network, 2);
            let keys: HashSet<String> = entries
                .iter()
                .map(|entry| format!("{} {} {}", entry["table"], entry["key"], entry["priority"]))
                .collect();
            assert_eq!(keys.len(), entries.len());
        }
    }

    #[test]
    fn groups_have_port_security_and_the_rules_of_both_sides() {
        let entries = parsed(Network::LongGroups, 2);
        assert_eq!(of(&entries, "egress_rules").len(), RULES);
        assert_eq!(of(&entries, "ingress_rules").len(), RULES);
        assert_eq!(of(&entries, "port_security").len(), 4);
        assert!(
            of(&entries, "ports")
                .iter()
                .all(|port| port["action"] == "guest")
        );
        assert_eq!(of(&entries, "domains")[0]["params"]["zone"], 1);
    }

    #[test]
    fn without_rules_there_is_nothing_to_load() {
        assert_eq!(entries(Network::Plain, 2, |_| String::new()), None);
    }
}
