//! The web page in a real browser: it loads, its numbers are those of the traffic, and errors are shown where they belong.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

#[path = "../page/browser.rs"]
mod browser;

use crate::rig::{Switch, WITHIN, guest_options, numbered, one_way};
use browser::Browser;
use guest_sim::Patience;

/// The admin socket for browsers, which know TCP only.
struct Door {
    address: String,
    thread: Option<JoinHandle<()>>,
}

impl Door {
    fn open(socket: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/", listener.local_addr().unwrap());
        let thread = thread::spawn(move || {
            for client in listener.incoming() {
                // Whoever says nothing at all closes the door.
                if !admit(&client.unwrap(), &socket) {
                    return;
                }
            }
        });
        Self {
            address,
            thread: Some(thread),
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let address = self
            .address
            .trim_start_matches("http://")
            .trim_end_matches('/');
        if let Ok(last) = TcpStream::connect(address) {
            let _ = last.shutdown(Shutdown::Both);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn admit(client: &TcpStream, socket: &Path) -> bool {
    let mut first = [0];
    if !matches!(client.peek(&mut first), Ok(1)) {
        return false;
    }
    let Ok(daemon) = UnixStream::connect(socket) else {
        return true;
    };
    let (mut from_client, mut to_client) =
        (client.try_clone().unwrap(), client.try_clone().unwrap());
    let (mut from_daemon, mut to_daemon) = (daemon.try_clone().unwrap(), daemon);
    thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_daemon);
        let _ = to_daemon.shutdown(Shutdown::Both);
    });
    thread::spawn(move || {
        let _ = io::copy(&mut from_daemon, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
    true
}

#[test]
fn the_page_shows_live_numbers_and_errors_where_they_belong() {
    let switch = Switch::with(&[("vm1", ""), ("vm2", ""), ("tenant", "vlan=10")]);
    let door = Door::open(switch.daemon.socket("admin"));
    let Some(mut page) = Browser::open(&door.address) else {
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
    let Some(mut page) = Browser::open(&door.address) else {
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
