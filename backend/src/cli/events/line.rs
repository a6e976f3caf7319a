//! An event in one line: `2026-11-22 08:15:42.123  port_down           vm1  its front-end has closed the socket`.
use crate::cli::table::printable;
use crate::control::events::Event;
use serde_json::{Map, Value};

/// Time in UTC, as it does not depend on where it is read; what happened; to whom; and what there is to say.
pub fn of(name: &str, data: &Map<String, Value>) -> String {
    let at = data.get("at_ms").and_then(Value::as_u64);
    let at = at.map_or_else(|| "-".to_owned(), time);
    let (subject, text) = what(name, data);
    let line = format!("{at:<23}  {name:<18}  {subject}  {text}");
    printable(line.trim_end())
}

/// Whom it is about, and what there is to say of it.
fn what(name: &str, data: &Map<String, Value>) -> (String, String) {
    if name == super::LAGGED {
        let missed = data.get("missed").and_then(Value::as_u64);
        let missed = missed.map_or_else(|| "an unknown number of".to_owned(), |n| n.to_string());
        return ("-".to_owned(), format!("{missed} events were missed"));
    }
    let mut tagged = data.clone();
    tagged.insert("event".to_owned(), name.into());
    match serde_json::from_value(Value::Object(tagged)) {
        Ok(event) => told(event),
        // A newer daemon's.
        Err(_) => ("-".to_owned(), Value::Object(data.clone()).to_string()),
    }
}

fn told(event: Event) -> (String, String) {
    match event {
        Event::PortAdded { port }
        | Event::PortRemoved { port }
        | Event::PortUp { port }
        | Event::MigrationStarted { port } => (port, String::new()),
        Event::PortDown { port, reason } => (port, reason),
        Event::DeviceChanged {
            device,
            state,
            before,
            reason,
        } => {
            let before = before.map(|before| format!("{before} -> "));
            let reason = reason.map(|reason| format!(": {reason}"));
            let text = [
                before.unwrap_or_default(),
                state,
                reason.unwrap_or_default(),
            ];
            (device, text.concat())
        }
        Event::MigrationRound {
            port,
            rounds,
            pages_marked,
            pages_per_second,
        } => {
            let pages = format!("{pages_marked} pages marked, {pages_per_second} a second");
            (port, format!("round {rounds}: {pages}"))
        }
        Event::MigrationEnded { port, took_ms } => {
            (port, format!("after {:.1} s", took_ms as f64 / 1000.0))
        }
        Event::MacMoved {
            mac,
            vlan,
            from,
            to,
        } => {
            let from = from.unwrap_or_else(|| "a port that is gone".to_owned());
            let vlan = vlan.map(|vlan| format!(", VLAN {vlan}"));
            (mac, format!("{from} -> {to}{}", vlan.unwrap_or_default()))
        }
        Event::MacMovesLost { count } => ("-".to_owned(), format!("{count} more stations moved")),
    }
}

/// `2026-11-22 08:15:42.123`, in UTC.
fn time(at_ms: u64) -> String {
    let (s, ms) = (at_ms / 1000, at_ms % 1000);
    let (year, month, day) = date(s / 86_400);
    let (hours, minutes, seconds) = (s / 3600 % 24, s / 60 % 60, s % 60);
    format!("{year:04}-{month:02}-{day:02} {hours:02}:{minutes:02}:{seconds:02}.{ms:03}")
}

/// The date so many days after 1970-01-01, in the Gregorian calendar, whose leap years repeat every 400 years: counted from a 1 March, so that
/// the leap day is a year's last.
fn date(days: u64) -> (u64, u64, u64) {
    const ERA: u64 = 400 * 365 + 97;
    // From 0000-03-01 to 1970-01-01.
    let days = days + 719_468;
    let (era, day) = (days / ERA, days % ERA);
    let year = (day - day / 1460 + day / 36_524 - day / (ERA - 1)) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // Months from March on have 153 days in five.
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    (400 * era + year + next, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn line(name: &str, data: Value) -> String {
        let mut data = data.as_object().unwrap().clone();
        data.insert("at_ms".to_owned(), 1_792_656_942_123_u64.into());
        of(name, &data)
    }

    #[test]
    fn each_event_has_a_line() {
        for (name, data, expected) in [
            ("port_up", json!({"port": "vm1"}), "vm1"),
            (
                "port_down",
                json!({"port": "vm1", "reason": "it\nwent"}),
                "vm1  it?went",
            ),
            (
                "device_changed",
                json!({"device": "d", "state": "ready", "before": "plugging"}),
                "d  plugging -> ready",
            ),
            (
                "device_changed",
                json!({"device": "d", "state": "failed", "reason": "no slot"}),
                "d  failed: no slot",
            ),
            (
                "migration_round",
                json!({"port": "vm1", "rounds": 2, "pages_marked": 7, "pages_per_second": 3}),
                "vm1  round 2: 7 pages marked, 3 a second",
            ),
            (
                "migration_ended",
                json!({"port": "vm1", "took_ms": 1500}),
                "vm1  after 1.5 s",
            ),
            (
                "mac_moved",
                json!({"mac": "m", "vlan": 10, "from": "vm1", "to": "vm2"}),
                "m  vm1 -> vm2, VLAN 10",
            ),
            (
                "mac_moved",
                json!({"mac": "m", "vlan": null, "to": "vm2"}),
                "m  a port that is gone -> vm2",
            ),
            (
                "mac_moves_lost",
                json!({"count": 3}),
                "-  3 more stations moved",
            ),
        ] {
            let expected = format!("2026-10-22 08:15:42.123  {name:<18}  {expected}");
            assert_eq!(line(name, data), expected);
        }
        assert!(line("sun_rose", json!({"where": "east"})).contains("\"where\":\"east\""));
        let lagged = |missed: Value| of("lagged", json!({ "missed": missed }).as_object().unwrap());
        assert!(lagged(json!(4)).ends_with("4 events were missed"));
        assert!(lagged(json!(null)).ends_with("an unknown number of events were missed"));
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (at_s, expected) in [
            (0, "1970-01-01 00:00:00.000"),
            (951_782_399, "2000-02-28 23:59:59.000"),
            (951_782_400, "2000-02-29 00:00:00.000"),
            (951_868_800, "2000-03-01 00:00:00.000"),
            (1_735_689_599, "2024-12-31 23:59:59.000"),
            (4_107_542_400, "2100-03-01 00:00:00.000"),
        ] {
            assert_eq!(time(at_s * 1000), expected);
        }
    }
}
