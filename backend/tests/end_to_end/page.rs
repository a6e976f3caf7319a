//! The web page in a real browser: it loads, its numbers are those of the traffic, and errors are shown where they belong.

#[path = "../page/browser.rs"]
mod browser;

use crate::rig::{Switch, WITHIN, guest_options, numbered, one_way};
use browser::{Browser, Door};
use guest_sim::Patience;
use guest_sim::bench::daemon::PortArgument;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use vmm_sys_util::tempdir::TempDir;

#[test]
fn the_page_shows_live_numbers_and_errors_where_they_belong() {
    let switch = Switch::with(&[("vm1", ""), ("vm2", ""), ("tenant", "vlan=10")]);
    let door = Door::open(switch.daemon.socket("admin"));
    let Some(mut page) = Browser::open(door.address()) else {
        return switch.finish();
    };
    page.sees("#ports-rows tr:nth-child(1) .state", "listening");
    page.sees("#ports-rows tr:nth-child(3)", "access 10");
    let mut one = switch.guest("vm1", guest_options());
    let mut other = switch.guest("vm2", guest_options());
    page.sees("#ports-rows tr:nth-child(1) .state", "up");
    page.sees("#drawing svg", "vm1 · up");
    let sent = |page: &mut Browser| page.text("#ports-rows tr:nth-child(1) td[data-label=Sent]");
    assert_eq!(sent(&mut page), "0/s");
    // Until the page has noticed.
    let (mut number, patience) = (0_u16, Patience::of(WITHIN));
    while sent(&mut page) == "0/s" {
        assert!(!patience.is_over(), "the page shows no traffic");
        for _ in 0..50 {
            one_way(&numbered(number, 1, 2), &mut one, &mut other);
            number = number.wrapping_add(1);
        }
    }
    page.step(&["there", "#drawing svg .flows"]);
    page.picture("page.png");

    page.step(&["fill", "#explain-flow", "nonsense"]);
    page.step(&["click", "#explain-form button"]);
    page.sees("#explain-flow-problem", "a flow is a protocol");
    assert_eq!(
        page.step(&["attribute", "#explain-flow", "aria-invalid"]),
        "true"
    );
    assert_eq!(page.step(&["focused"]), "explain-flow");
    page.step(&["fill", "#explain-flow", "tcp 10.0.0.1:40000 > 10.0.0.2:80"]);
    page.step(&["press", "Enter"]);
    page.sees("#explain-answer .outcome", "Outcome:");
    page.step(&["gone", "#explain-flow-problem"]);

    page.step(&["fill", "#ports-filter", "ten"]);
    page.step(&["gone", "#ports-rows tr:nth-child(2)"]);
    page.sees("#ports-rows tr", "tenant");

    // A phone, and a keyboard without a mouse.
    page.resize(360, 740);
    page.sees("#ports-rows tr", "vm1");
    let wide = page.step(&[
        "evaluate",
        "document.documentElement.scrollWidth - innerWidth",
    ]);
    assert!(wide.as_i64().unwrap() <= 0, "{wide} pixels too wide");
    page.picture("page-phone.png");
    page.step(&["press", "Tab"]);
    assert_eq!(page.step(&["focused"]), "Skip to the picture");
    page.step(&["press", "Enter"]);
    assert_eq!(page.step(&["focused"]), "picture");
    assert_eq!(page.step(&["faults"]), serde_json::json!([]));
    drop(page);
    drop(door);
    switch.finish();
}

#[test]
fn the_page_waits_for_a_switch_that_is_away_and_goes_on() {
    let mut switch = Switch::of(&["vm1"]);
    let door = Door::open(switch.daemon.socket("admin"));
    let Some(mut page) = Browser::open(door.address()) else {
        return switch.finish();
    };
    page.sees("#about", "1 port");
    switch.daemon.kill().unwrap();
    page.sees("#about", "does not answer");
    switch.daemon.restart().unwrap();
    page.sees("#about", "1 port");
    assert_eq!(page.step(&["faults"]), serde_json::json!([]));
    drop(page);
    drop(door);
    switch.finish();
}

/// Over TCP, where a token is asked for.
#[test]
fn the_page_asks_for_a_token_where_one_is_needed() {
    const TOKEN: &str = "reads-and-changes-nothing";
    let folder = TempDir::new_with_prefix(std::env::temp_dir().join("ringswitch-page-")).unwrap();
    let tokens = folder.as_path().join("tokens");
    std::fs::write(&tokens, format!("read {TOKEN}\n")).unwrap();
    std::fs::set_permissions(&tokens, Permissions::from_mode(0o600)).unwrap();
    let arguments = [
        "--listen",
        "127.0.0.1:0",
        "--token-file",
        tokens.to_str().unwrap(),
    ];
    let switch = Switch::new(&[PortArgument::named("vm1")], &arguments);
    let log = switch.daemon.log();
    let (_, after) = log
        .split_once("127.0.0.1:")
        .unwrap_or_else(|| panic!("no address: {log}"));
    let port: String = after.chars().take_while(char::is_ascii_digit).collect();
    let Some(mut page) = Browser::open(&format!("http://127.0.0.1:{port}/")) else {
        return switch.finish();
    };
    page.sees("#token", "asks for a token");
    page.step(&["fill", "#token-value", "no-token-of-this-switch"]);
    page.step(&["press", "Enter"]);
    page.sees("#token-problem", "does not know that token");
    page.step(&["fill", "#token-value", TOKEN]);
    page.step(&["press", "Enter"]);
    page.sees("#ports-rows tr", "vm1");
    // It is for reading only: what it may not do is said where it was asked for.
    page.step(&["fill", "#device-name", "vm1-eth1"]);
    page.step(&["fill", "#device-socket", "/nowhere.qmp"]);
    page.step(&["click", "#device-form button"]);
    page.sees("#device-problem", "for reading only");
    let _guest = switch.guest("vm1", guest_options());
    page.sees("#events-list", "port_up");
    drop(page);
    switch.finish();
}
