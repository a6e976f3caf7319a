//! Networks as OpenFlow rules, in the form that `ovs-ofctl` reads (ovs-fields(7), ovs-actions(7)).

use std::fmt::Write as _;

use super::rule::{Action, Rule, UDP};
use super::{Network, RULES, lists};

/// What a rule's frames look like: `udp,nw_src=...,tp_dst=...`.
fn shape(rule: &Rule) -> String {
    let mut text = String::from(if rule.protocol == UDP { "udp" } else { "tcp" });
    for (field, prefix) in [("nw_src", rule.source), ("nw_dst", rule.destination)] {
        if let Some(prefix) = prefix.text() {
            let _ = write!(text, ",{field}={prefix}");
        }
    }
    match rule.ports.bits() {
        0 => {}
        16 => {
            let _ = write!(text, ",tp_dst={}", rule.ports.first());
        }
        _ => {
            let (first, mask) = (rule.ports.first(), rule.ports.mask());
            let _ = write!(text, ",tp_dst={first:#x}/{mask:#x}");
        }
    }
    text
}

/// Between the ports beside any rules: neighbours are found, and addresses learnt.
const OTHERS: &str = "table=0,priority=65535,arp,actions=NORMAL\n\
    table=0,priority=65535,dl_dst=ff:ff:ff:ff:ff:ff,actions=NORMAL\n\
    table=0,priority=0,actions=drop\n";

/// The rules of a network, a line each; `None`: the switch is left as it is.
pub fn rules(network: Network) -> Option<String> {
    match network {
        Network::Plain => None,
        Network::AccessList => {
            let mut text = OTHERS.to_owned();
            for rule in lists::access_list() {
                let action = match rule.action {
                    Action::Allow => "NORMAL",
                    Action::Deny => "drop",
                };
                let (priority, shape) = (rule.priority, shape(&rule));
                let _ = writeln!(text, "table=0,priority={priority},{shape},actions={action}");
            }
            Some(text)
        }
        Network::Groups => Some(stateful(&lists::group(0))),
        Network::LongGroups => Some(stateful(&lists::group(RULES - 2))),
    }
}

/// What is new is asked the rules and becomes a connection; what belongs to one passes.
fn stateful(rules: &[Rule]) -> String {
    let mut text = format!(
        "{OTHERS}table=0,priority=100,ip,actions=ct(table=1,zone=1)\n\
         table=1,priority=65535,ct_state=+trk+inv,actions=drop\n\
         table=1,priority=65534,ct_state=+trk+est,actions=NORMAL\n\
         table=1,priority=0,actions=drop\n"
    );
    for rule in rules {
        let action = match rule.action {
            Action::Allow => "ct(commit,zone=1),NORMAL",
            Action::Deny => "drop",
        };
        let (priority, shape) = (rule.priority, shape(rule));
        let _ = writeln!(
            text,
            "table=1,priority={priority},ct_state=+trk+new,{shape},actions={action}"
        );
    }
    text
}

/// How many rules a text has.
pub fn count(text: &str) -> usize {
    text.lines().count()
}

#[cfg(test)]
mod tests {
    use super::super::rule::{Ports, Prefix, TCP};
    use super::*;
    use std::collections::HashSet;
    use std::net::Ipv4Addr;

    #[test]
    fn a_rule_says_what_it_is_about() {
        let rule = Rule {
            priority: 7,
            source: Prefix::of(Ipv4Addr::new(10, 1, 2, 3), 0),
            destination: Prefix::of(Ipv4Addr::new(10, 1, 2, 3), 24),
            protocol: TCP,
            ports: Ports::of(7_003, 12),
            action: Action::Allow,
        };
        assert_eq!(shape(&rule), "tcp,nw_dst=10.1.2.0/24,tp_dst=0x1b50/0xfff0");
        let one = Rule {
            ports: Ports::of(443, 16),
            ..rule
        };
        assert_eq!(shape(&one), "tcp,nw_dst=10.1.2.0/24,tp_dst=443");
        let any = Rule {
            protocol: UDP,
            ports: Ports::of(443, 0),
            ..rule
        };
        assert_eq!(shape(&any), "udp,nw_dst=10.1.2.0/24");
    }

    #[test]
    fn every_line_is_another_rule_with_what_ovs_asks_for() {
        for (network, least) in [(Network::AccessList, RULES), (Network::LongGroups, RULES)] {
            let text = rules(network).unwrap();
            let lines: HashSet<&str> = text.lines().collect();
            assert_eq!(lines.len(), count(&text), "no line twice");
            assert!(lines.len() >= least);
            for line in lines {
                let (matching, actions) = line.split_once(",actions=").unwrap();
                assert!(matching.starts_with("table="), "{line}");
                assert!(
                    [
                        "drop",
                        "NORMAL",
                        "ct(table=1,zone=1)",
                        "ct(commit,zone=1),NORMAL"
                    ]
                    .contains(&actions),
                    "{line}"
                );
                // OVS takes ports only of a protocol that has some.
                let with_ports = matching.contains("tp_dst");
                assert!(
                    !with_ports || matching.contains("udp") || matching.contains("tcp"),
                    "{line}"
                );
            }
        }
        assert_eq!(rules(Network::Plain), None);
    }

    #[test]
    fn only_new_connections_are_asked_about_rules() {
        let text = rules(Network::Groups).unwrap();
        let commits: Vec<&str> = text
            .lines()
            .filter(|line| line.contains("commit"))
            .collect();
        assert_eq!(commits.len(), 2);
        assert!(
            commits
                .iter()
                .all(|line| line.contains("ct_state=+trk+new"))
        );
    }
}
