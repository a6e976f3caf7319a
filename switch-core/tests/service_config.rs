//! The JSON form of the configuration: what is documented is accepted, and what is wrong is refused with its place.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod service_lab;

use service_lab::{Lab, config};
use switch_core::service::{PuntReason, ServiceDrop, Services, ServicesConfig};
use switch_core::{DropReason, Millis};

const DOCUMENTATION: &str = include_str!("../../docs/services.md");

#[test]
fn the_documented_example_is_a_good_configuration() {
    let (_, rest) = DOCUMENTATION.split_once("```json").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    let config: ServicesConfig = serde_json::from_str(example).unwrap();
    config.check().unwrap();
    let written = serde_json::to_string(&config).unwrap();
    assert_eq!(
        serde_json::from_str::<ServicesConfig>(&written).unwrap(),
        config
    );
}

#[test]
fn every_reason_is_documented() {
    for reason in ServiceDrop::ALL {
        let row = format!(
            "| `{reason}` | {} | {} |",
            reason.meaning(),
            reason.advice()
        );
        assert!(DOCUMENTATION.contains(&row), "{row}");
        assert_eq!(ServiceDrop::ALL[reason.index()], reason);
        assert!(
            DropReason::ALL
                .iter()
                .all(|other| other.name() != reason.name())
        );
    }
    for reason in PuntReason::ALL {
        let row = format!("| {} | `{}` |", reason.number(), reason.name());
        assert!(DOCUMENTATION.contains(&row), "{row}");
        assert_eq!(PuntReason::from_number(reason.number()), Some(reason));
    }
    assert_eq!(PuntReason::from_number(0), None);
    assert_eq!(PuntReason::from_number(15), None);
}

#[test]
fn what_is_wrong_is_refused_with_its_place() {
    for (extra, place) in [
        (
            r#", "proxies": [ { "address": "224.0.0.1" } ]"#,
            "interfaces[0].proxies[0]",
        ),
        (
            r#", "proxies": [ { "address": "10.0.0.1" } ]"#,
            "interfaces[0].proxies[0]",
        ),
        (
            r#", "proxies": [ { "address": "10.0.0.9", "mac": "01:00:00:00:00:01" } ]"#,
            "interfaces[0].proxies[0]",
        ),
        (
            r#", "proxies": [ { "address": "10.0.0.9" }, { "address": "10.0.0.9" } ]"#,
            "interfaces[0].proxies",
        ),
        (r#", "mtu": 60"#, "interfaces[0].mtu"),
        (r#", "mtu": 1000"#, "interfaces[0].mtu"),
        (
            r#", "dhcp4": { "server": "10.0.0.2" }"#,
            "interfaces[0].dhcp4.server",
        ),
        (
            r#", "dhcp4": { "pool": { "first": "10.0.0.9", "last": "10.0.0.3" } }"#,
            "interfaces[0].dhcp4.pool",
        ),
        (
            r#", "dhcp4": { "pool": { "first": "10.0.0.9", "last": "10.0.0.255" } }"#,
            "interfaces[0].dhcp4.pool",
        ),
        (
            r#", "dhcp4": { "pool": { "first": "10.0.0.9", "last": "10.5.0.0" } }"#,
            "interfaces[0].dhcp4.pool",
        ),
        (
            r#", "dhcp4": { "reservations": [ { "mac": "52:54:00:00:00:01", "address": "10.0.0.1" } ] }"#,
            "interfaces[0].dhcp4.reservations[0]",
        ),
        (
            r#", "dhcp4": { "reservations": [ { "mac": "52:54:00:00:00:01", "address": "10.0.0.5", "port": 20000 } ] }"#,
            "interfaces[0].dhcp4.reservations[0].port",
        ),
        (
            r#", "dhcp4": { "reservations": [ { "mac": "52:54:00:00:00:01", "address": "10.0.0.5", "hostname": "a_b" } ] }"#,
            "interfaces[0].dhcp4.reservations[0].hostname",
        ),
        (
            r#", "dhcp4": { "reservations": [ { "mac": "52:54:00:00:00:01", "address": "10.0.0.5" }, { "mac": "52:54:00:00:00:01", "address": "10.0.0.6" } ] }"#,
            "interfaces[0].dhcp4.reservations",
        ),
        (
            r#", "dhcp4": { "reservations": [ { "mac": "52:54:00:00:00:01", "address": "10.0.0.5" }, { "mac": "52:54:00:00:00:02", "address": "10.0.0.5" } ] }"#,
            "interfaces[0].dhcp4.reservations",
        ),
        (
            r#", "dhcp4": { "router": "10.0.1.1" }"#,
            "interfaces[0].dhcp4.router",
        ),
        (
            r#", "dhcp4": { "routes": [ { "to": "10.9.0.1/16", "via": "10.0.0.2" } ] }"#,
            "interfaces[0].dhcp4.routes[0].to",
        ),
        (
            r#", "dhcp4": { "routes": [ { "to": "fd00::/16", "via": "10.0.0.2" } ] }"#,
            "interfaces[0].dhcp4.routes[0].to",
        ),
        (
            r#", "dhcp4": { "domain_name": "a..b" }"#,
            "interfaces[0].dhcp4.domain_name",
        ),
        (
            r#", "dhcp4": { "lease_s": 5 }"#,
            "interfaces[0].dhcp4.lease_s",
        ),
        (
            r#", "dhcp6": { "pool": { "first": "fd00:1::1:0", "last": "fd00:1::2:0" } }"#,
            "interfaces[0].dhcp6.pool",
        ),
        (
            r#", "dhcp6": { "pool": { "first": "fd00:9::1", "last": "fd00:9::2" } }"#,
            "interfaces[0].dhcp6.pool",
        ),
        (
            r#", "dhcp6": { "reservations": [ { "mac": "52:54:00:00:00:01", "address": "fd00:1::1" } ] }"#,
            "interfaces[0].dhcp6.reservations[0]",
        ),
        (
            r#", "dhcp6": { "search": ["-x"] }"#,
            "interfaces[0].dhcp6.search[0]",
        ),
        (
            r#", "ra": { "interval_s": 3 }"#,
            "interfaces[0].ra.interval_s",
        ),
        (
            r#", "ra": { "interval_s": 100, "lifetime_s": 99 }"#,
            "interfaces[0].ra.lifetime_s",
        ),
        (
            r#", "ra": { "prefixes": [ { "prefix": "fd00::1/64" } ] }"#,
            "interfaces[0].ra.prefixes[0]",
        ),
        (
            r#", "ra": { "prefixes": [ { "prefix": "fd00::/56" } ] }"#,
            "interfaces[0].ra.prefixes[0]",
        ),
        (
            r#", "ra": { "prefixes": [ { "prefix": "fd00::/64", "valid_s": 5 } ] }"#,
            "interfaces[0].ra.prefixes[0]",
        ),
        (
            r#", "ra": { "dns": ["fd00::1","fd00::2","fd00::3","fd00::4","fd00::5","fd00::6","fd00::7","fd00::8","fd00::9"] }"#,
            "interfaces[0].ra.dns",
        ),
    ] {
        let error = config(extra).check().expect_err(extra);
        assert_eq!(error.place, place, "{error}");
    }
    type Change = fn(&mut ServicesConfig);
    let changes: [(Change, &str); 9] = [
        (|config| config.interfaces[1].id = 0, "interfaces[1].id"),
        (|config| config.interfaces[1].id = 1, "interfaces"),
        (
            |config| config.interfaces[0].mac = "01:00:00:00:00:01".parse().unwrap(),
            "interfaces[0].mac",
        ),
        (
            |config| {
                config.interfaces[0]
                    .addresses
                    .push("10.5.0.0/24".parse().unwrap())
            },
            "interfaces[0].addresses[2]",
        ),
        (
            |config| {
                config.interfaces[0]
                    .addresses
                    .push("127.0.0.1/8".parse().unwrap())
            },
            "interfaces[0].addresses[2]",
        ),
        (
            |config| {
                config.interfaces[0]
                    .addresses
                    .push("10.0.0.1/24".parse().unwrap())
            },
            "interfaces[0].addresses",
        ),
        (
            |config| {
                config.interfaces[1]
                    .addresses
                    .push("10.0.0.1/24".parse().unwrap())
            },
            "interfaces[1].addresses",
        ),
        (|config| config.limits.neighbors = 0, "limits.neighbors"),
        (
            |config| config.limits.queued_frames_per_neighbor = 257,
            "limits.queued_frames_per_neighbor",
        ),
    ];
    for (change, place) in changes {
        let mut config = config("");
        change(&mut config);
        assert_eq!(config.check().unwrap_err().place, place);
    }
}

#[test]
fn tenants_may_use_the_same_addresses_in_vrfs_of_their_own() {
    let mut config = config("");
    config.interfaces[1]
        .addresses
        .push("10.0.0.1/24".parse().unwrap());
    config.interfaces[1].vrf = 9;
    config.check().unwrap();
}

#[test]
fn unknown_keys_are_refused() {
    for text in [
        r#"{ "interface": [] }"#,
        r#"{ "limits": { "neighbours": 5 } }"#,
        r#"{ "interfaces": [ { "id": 1, "domain": 1, "mac": "02:00:00:00:00:01", "addresses": [], "dhcp": {} } ] }"#,
        r#"{ "interfaces": [ { "id": 1, "domain": 1, "mac": "02:00:00:00:00:01", "addresses": ["10.0.0.1"] } ] }"#,
    ] {
        assert!(
            serde_json::from_str::<ServicesConfig>(text).is_err(),
            "{text}"
        );
    }
}

#[test]
fn a_refused_configuration_changes_nothing() {
    let mut lab = Lab::new("");
    let mut bad = config(r#", "dhcp4": { "lease_s": 5 }"#);
    bad.limits.neighbors = 5;
    let mut actions = Vec::new();
    assert!(lab.services.configure(bad, lab.now, &mut actions).is_err());
    assert_eq!(actions, []);
    assert_eq!(lab.services.limits().neighbors, 65_536);
    assert_eq!(lab.services.interfaces().count(), 2);
}

#[test]
fn one_interface_is_checked_against_the_others() {
    let mut services = Services::new(1);
    let mut actions = Vec::new();
    let [first, mut second] = config("").interfaces.try_into().unwrap();
    services
        .set_interface(first.clone(), Millis(0), &mut actions)
        .unwrap();
    second.addresses.push("10.0.0.1/24".parse().unwrap());
    let error = services
        .set_interface(second.clone(), Millis(0), &mut actions)
        .unwrap_err();
    assert!(error.place.ends_with("addresses"), "{error}");
    second.vrf = 3;
    services
        .set_interface(second, Millis(0), &mut actions)
        .unwrap();
    // Its own old addresses are no rivals.
    services
        .set_interface(first, Millis(0), &mut actions)
        .unwrap();
    assert_eq!(services.interfaces().count(), 2);
}
