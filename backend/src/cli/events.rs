//! `ringswitch events`: what happens, as it happens, a line for each event.
//!
//! `sse` reads the stream, `line` makes text of an event. What is wanted is picked here; the daemon tells everything. It does not come
//! again by itself when the stream ends: whoever started it is told from where it goes on.
mod line;
mod sse;

use super::client::{Client, Stream};
use super::commands::{Format, print};
use super::exit::CliError;
use super::reach::percent_encoded;
use super::table::printable;
use crate::config::PortName;
use clap::Args;
use clap::builder::PossibleValuesParser;
use hyper::body::Bytes;
use serde_json::{Map, Value};
use sse::{Parser, Told};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Every event there is, as `control::events` names them; `lagged` is shown always.
const KINDS: [&str; 10] = [
    "port_added",
    "port_removed",
    "port_up",
    "port_down",
    "device_changed",
    "migration_started",
    "migration_round",
    "migration_ended",
    "mac_moved",
    "mac_moves_lost",
];
/// Events were missed.
const LAGGED: &str = "lagged";
/// Four heartbeats: a daemon that is silent for longer hangs, or the way to it is cut.
const SILENCE: Duration = Duration::from_secs(60);
/// What is about a port: a device is that of its own port.
const SUBJECTS: [&str; 4] = ["port", "device", "from", "to"];

/// What `events` is asked.
#[derive(Clone, Debug, Default, Args)]
pub struct EventsArguments {
    /// Only what is about this port, or the device of this name.
    #[arg(long, value_name = "NAME")]
    pub port: Option<String>,
    /// Only events of this kind; repeatable.
    #[arg(long = "kind", value_name = "KIND", value_parser = PossibleValuesParser::new(KINDS))]
    pub kinds: Vec<String>,
    /// From the event after this one on, by its id: what the daemon still has of them [default: from now on].
    #[arg(long, value_name = "ID")]
    pub after: Option<String>,
    /// End after so many.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
}

/// An event with its place, and what it says.
struct Event {
    id: String,
    name: String,
    data: Map<String, Value>,
}

/// Prints events until there are as many as were wanted, or SIGINT or SIGTERM comes.
pub async fn events(
    asked: &EventsArguments,
    client: &Client,
    format: Format,
) -> Result<(), CliError> {
    let path = request(asked)?;
    let io = |action| move |source| CliError::Io { action, source };
    let mut interrupted = signal(SignalKind::interrupt()).map_err(io("catch SIGINT"))?;
    let mut terminated = signal(SignalKind::terminate()).map_err(io("catch SIGTERM"))?;
    let mut stream = client.stream(&path).await?;
    let (mut parser, mut told) = (Parser::default(), Vec::new());
    let mut shown = 0;
    loop {
        let more = tokio::select! {
            more = next(&mut stream) => more,
            _ = interrupted.recv() => return Ok(()),
            _ = terminated.recv() => return Ok(()),
        };
        let bytes = more.map_err(|reason| CliError::StreamEnded {
            reason,
            after: printable(parser.last_id()),
        })?;
        let whole = parser.add(&bytes, &mut told);
        for told in told.drain(..) {
            let event = read(told).map_err(|reason| stream.unusable(reason))?;
            if !asked.wants(&event) {
                continue;
            }
            print(&format!("{}\n", text(&event, format)))?;
            shown += u64::from(event.name != LAGGED);
            if asked.count == Some(shown) {
                return Ok(());
            }
        }
        whole.map_err(|error| stream.unusable(error))?;
    }
}

/// More of the stream, or why there is none.
async fn next(stream: &mut Stream) -> Result<Bytes, String> {
    match tokio::time::timeout(SILENCE, stream.next()).await {
        Ok(Ok(Some(bytes))) => Ok(bytes),
        Ok(Ok(None)) => Err("the daemon ends, or is upgraded".to_owned()),
        Ok(Err(_)) => Err("the daemon has gone away".to_owned()),
        Err(_) => Err(format!(
            "the daemon has said nothing for {} s",
            SILENCE.as_secs()
        )),
    }
}

fn request(asked: &EventsArguments) -> Result<String, CliError> {
    if let Some(port) = &asked.port {
        PortName::parse(port)?;
    }
    Ok(match &asked.after {
        None => "/v1/events".to_owned(),
        Some(id) => format!("/v1/events?after={}", percent_encoded(id)),
    })
}

fn read(told: Told) -> Result<Event, String> {
    let data = serde_json::from_str(&told.data)
        .map_err(|error| format!("what it says of an event is no JSON object: {error}"))?;
    Ok(Event {
        id: told.id,
        name: told.name,
        data,
    })
}

fn text(event: &Event, format: Format) -> String {
    match format {
        Format::Text => line::of(&event.name, &event.data),
        Format::Json => {
            let mut object = event.data.clone();
            object.insert("id".to_owned(), event.id.as_str().into());
            object.insert("event".to_owned(), event.name.as_str().into());
            Value::Object(object).to_string()
        }
    }
}

impl EventsArguments {
    fn wants(&self, event: &Event) -> bool {
        let is_about = |port: &String| {
            let mut subjects = SUBJECTS.iter().filter_map(|field| event.data.get(*field));
            subjects.any(|subject| subject == port)
        };
        let is_of_kind = self.kinds.is_empty() || self.kinds.contains(&event.name);
        event.name == LAGGED || is_of_kind && self.port.as_ref().is_none_or(is_about)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use utoipa::PartialSchema;

    fn event(name: &str, data: Value) -> Event {
        let told = Told {
            id: "a-1".to_owned(),
            name: name.to_owned(),
            data: data.to_string(),
        };
        read(told).unwrap()
    }

    #[test]
    fn every_event_of_the_daemon_can_be_asked_for() {
        let schema = crate::control::events::Event::schema();
        let schema = serde_json::to_value(schema).unwrap();
        let mut names: Vec<&str> = schema["oneOf"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["properties"]["event"]["enum"][0].as_str().unwrap())
            .collect();
        let mut kinds = KINDS.to_vec();
        names.sort_unstable();
        kinds.sort_unstable();
        assert_eq!(names, kinds);
    }

    #[test]
    fn what_is_wanted_is_picked_and_losses_are_always_told() {
        let up = event("port_up", json!({"port": "vm1"}));
        let device = event("device_changed", json!({"device": "vm1", "state": "ready"}));
        let moved = event(
            "mac_moved",
            json!({"mac": "52:54:00:00:00:01", "from": "vm1", "to": "vm2"}),
        );
        let lagged = event("lagged", json!({"missed": 3}));
        let picked = |asked: &EventsArguments| {
            [&up, &device, &moved, &lagged].map(|event| asked.wants(event))
        };
        let of = |port: &str| EventsArguments {
            port: Some(port.to_owned()),
            ..EventsArguments::default()
        };
        let kind = |kind: &str, rest| EventsArguments {
            kinds: vec![kind.to_owned()],
            ..rest
        };
        assert_eq!(picked(&EventsArguments::default()), [true; 4]);
        assert_eq!(picked(&of("vm1")), [true; 4]);
        assert_eq!(picked(&of("vm2")), [false, false, true, true]);
        assert_eq!(
            picked(&kind("port_up", of("vm1"))),
            [true, false, false, true]
        );
        assert_eq!(
            picked(&kind("port_up", of("vm2"))),
            [false, false, false, true]
        );
    }

    #[test]
    fn for_programs_an_event_is_one_object_with_its_place_and_name() {
        let line = text(
            &event("port_up", json!({"port": "vm1", "at_ms": 5})),
            Format::Json,
        );
        assert!(!line.contains('\n'));
        let object: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            object,
            json!({"id": "a-1", "event": "port_up", "port": "vm1", "at_ms": 5})
        );
    }

    #[test]
    fn a_place_is_escaped_in_the_query() {
        let asked = EventsArguments {
            after: Some("a&b 1".to_owned()),
            ..EventsArguments::default()
        };
        assert_eq!(request(&asked).unwrap(), "/v1/events?after=a%26b%201");
        let slip = EventsArguments {
            port: Some("a/b".to_owned()),
            ..EventsArguments::default()
        };
        assert_eq!(request(&slip).unwrap_err().exit_code(), 2);
    }
}
