//! The stream of events: what it tells, where it goes on from, and what clients that do not listen cost.

use crate::recorder::TestSwitch;
use ringswitch::rest::Limits;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

fn vm(number: u16) -> Value {
    json!({"name": format!("vm{number}"), "type": "vhost-user", "socket": format!("/run/vm{number}.sock")})
}

/// An event as it came.
#[derive(Debug, Default, PartialEq, Eq)]
struct Heard {
    id: String,
    name: String,
    data: Value,
}

struct Stream {
    lines: BufReader<UnixStream>,
    status: u16,
}

impl Stream {
    fn open(switch: &TestSwitch, path: &str, headers: &str) -> Self {
        let mut stream = switch.connect();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n").unwrap();
        let mut lines = BufReader::new(stream);
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        let mut stream = Self { lines, status };
        while !stream.line().is_empty() {}
        stream
    }

    fn new(switch: &TestSwitch) -> Self {
        let stream = Self::open(switch, "/v1/events", "");
        assert_eq!(stream.status, 200);
        stream
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(
            self.lines.read_line(&mut line).unwrap() > 0,
            "the stream ended"
        );
        line.trim_end().to_owned()
    }

    /// The next event, or the place that the stream begins with, whose name is empty. Lengths of chunks are passed over: they have no colon.
    fn next(&mut self) -> Heard {
        let mut heard = Heard::default();
        let mut has_begun = false;
        loop {
            let line = self.line();
            match line.split_once(": ") {
                Some(("id", id)) => heard.id = id.to_owned(),
                Some(("event", name)) => heard.name = name.to_owned(),
                Some(("data", data)) => heard.data = serde_json::from_str(data).unwrap(),
                _ if line.is_empty() && has_begun => return heard,
                _ => continue,
            }
            has_begun = true;
        }
    }
}

/// Where a stream would begin now.
pub fn place(switch: &TestSwitch) -> String {
    Stream::new(switch).next().id
}

#[test]
fn ports_that_come_and_go_are_told_in_order() {
    let switch = TestSwitch::start(Limits::default());
    switch.post(&vm(1));
    let mut stream = Stream::new(&switch);
    let place = stream.next();
    assert!(place.name.is_empty() && !place.id.is_empty(), "{place:?}");
    switch.post(&vm(2));
    // The very same port again, and one that cannot be opened, are no events.
    switch.post(&vm(2));
    assert_eq!(
        switch
            .post(&json!({"name": "refused", "type": "tap", "interface": "x"}))
            .status,
        422
    );
    switch.request("DELETE", "/v1/ports/vm1", "");
    for (name, port) in [("port_added", "vm2"), ("port_removed", "vm1")] {
        let heard = stream.next();
        assert_eq!(
            (heard.name.as_str(), &heard.data["port"]),
            (name, &json!(port))
        );
        assert!(heard.data["at_ms"].as_u64().unwrap() > 1_600_000_000_000);
        assert!(heard.data.get("event").is_none());
    }
}

#[test]
fn stations_that_move_are_told_with_their_ports() {
    let switch = TestSwitch::start(Limits::default());
    switch.post(&vm(1));
    let mut stream = Stream::new(&switch);
    stream.next();
    switch.post(&json!({"name": "mover", "type": "tap", "interface": "x"}));
    assert_eq!(stream.next().name, "port_added");
    let heard = stream.next();
    assert_eq!(heard.name, "mac_moves_lost");
    assert_eq!(heard.data["count"], 3);
    let heard = stream.next();
    assert_eq!(heard.name, "mac_moved");
    let expected = json!({"mac": "52:54:00:00:00:01", "vlan": 10, "from": "vm1", "to": "mover", "at_ms": heard.data["at_ms"]});
    assert_eq!(heard.data, expected);
}

#[test]
fn a_client_goes_on_where_it_was() {
    let switch = TestSwitch::start(Limits::default());
    let place = Stream::new(&switch).next().id;
    for number in 1..=3 {
        switch.post(&vm(number));
    }
    let mut all = Stream::open(&switch, &format!("/v1/events?after={place}"), "");
    all.next();
    let heard: Vec<Heard> = (0..3).map(|_| all.next()).collect();
    let header = format!("Last-Event-ID: {}\r\n", heard[0].id);
    let mut rest = Stream::open(&switch, "/v1/events", &header);
    rest.next();
    assert_eq!([rest.next(), rest.next()], heard[1..]);
    // An event of another process, or none at all: nobody knows how many were missed.
    let mut lost = Stream::open(&switch, "/v1/events", "Last-Event-ID: 1-7\r\n");
    lost.next();
    assert_eq!(lost.next().name, "lagged");
    assert_eq!(lost.next(), heard[0]);
}

#[test]
fn a_slow_client_is_told_how_many_it_lost() {
    let switch = TestSwitch::start(Limits::default());
    let place = Stream::new(&switch).next().id;
    // Each is two events, of which the daemon keeps 1024.
    for _ in 0..520 {
        assert_eq!(switch.post(&vm(1)).status, 201);
        assert_eq!(switch.request("DELETE", "/v1/ports/vm1", "").status, 204);
    }
    let mut stream = Stream::open(&switch, &format!("/v1/events?after={place}"), "");
    stream.next();
    let lagged = stream.next();
    assert_eq!(lagged.name, "lagged");
    assert!(lagged.data["missed"].as_u64().unwrap() >= 16, "{lagged:?}");
    assert_eq!(stream.next().name, "port_added");
}

#[test]
fn there_are_so_many_streams_and_no_more_and_one_that_ends_makes_room() {
    let switch = TestSwitch::start(Limits::default());
    let mut streams: Vec<Stream> = (0..32).map(|_| Stream::new(&switch)).collect();
    let refused = switch.get("/v1/events");
    assert_eq!(refused.problem()["status"], 503);
    assert_eq!(switch.get("/healthz").status, 200);
    streams.pop();
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    // Until the daemon has seen that it is gone.
    while Stream::open(&switch, "/v1/events", "").status != 200 {
        assert!(std::time::Instant::now() < deadline);
    }
}

#[test]
fn a_stream_lasts_longer_than_a_connection_may() {
    let switch = TestSwitch::start(Limits {
        connection: Duration::from_millis(200),
        ..Limits::default()
    });
    let mut stream = Stream::new(&switch);
    stream.next();
    // Two connections that do nothing, one after the other, live their whole lives meanwhile.
    for _ in 0..2 {
        let mut idle = BufReader::new(switch.connect());
        assert_eq!(idle.read_line(&mut String::new()).unwrap(), 0);
    }
    switch.post(&vm(1));
    assert_eq!(stream.next().name, "port_added");
}

#[test]
fn streams_end_with_the_daemon_and_do_not_hold_it_up() {
    let switch = TestSwitch::start(Limits::default());
    let mut stream = Stream::new(&switch);
    stream.next();
    drop(switch);
    // Its end may be a reset.
    let _ = stream.lines.read_line(&mut String::new());
}

#[test]
fn a_query_that_it_does_not_know_is_refused() {
    let switch = TestSwitch::start(Limits::default());
    assert_eq!(switch.get("/v1/events?since=1").problem()["status"], 400);
}
