//! Ports put into the text of a configuration file and taken out of it; everything else stays as the operator wrote it.
//!
//! Called by `config save`. Pure, and what it returns has been read again: it has the ports that were wanted, and no others.
//!
//! A port's section goes from `[[port]]` to its last key, with the comment that stands right above it. A section that changes keeps
//! its comments and the keys that say the same; one that goes takes them along.
use super::file::{File, FilePort};
use super::port::{PortConfig, PortFields, VlanFields, first_collision};
use super::value::PortName;
use std::ops::Range;

/// A port as the file shall have it; `None`: not at all.
pub type PortEdit = (PortName, Option<PortConfig>);

/// Why a text cannot be edited.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditFault {
    /// It is no configuration to begin with.
    #[error("{0}; correct the file first")]
    Malformed(String),
    /// It would not say what it should.
    #[error(
        "the section of port {0} is written in a way that cannot be edited; write it as [[port]] with a key on each line, or edit it by hand"
    )]
    Section(PortName),
    /// It could not be started with.
    #[error(
        "ports {port} and {other} would both have the same {field}; change one of them in the file or at run time"
    )]
    Collision {
        /// The second of them.
        port: PortName,
        /// The first.
        other: PortName,
        /// `socket` or `interface`.
        field: &'static str,
    },
}

/// The text with these ports as they shall be.
pub fn edited(text: &str, edits: &[PortEdit]) -> Result<String, EditFault> {
    let mut text = text.to_owned();
    for (name, wanted) in edits {
        text = edited_once(&text, name, wanted.as_ref())?;
    }
    // A port that was written into the file since the start may claim what another has that runs.
    let ports = ports_of(&text).map_err(EditFault::Malformed)?;
    let collision = first_collision(ports.iter());
    let ends = collision.and_then(|c| Some((c, ports.get(c.port)?, ports.get(c.earlier)?)));
    match ends {
        Some((collision, port, other)) => Err(EditFault::Collision {
            port: port.name.clone(),
            other: other.name.clone(),
            field: collision.field,
        }),
        None => Ok(text),
    }
}

fn edited_once(
    text: &str,
    name: &PortName,
    wanted: Option<&PortConfig>,
) -> Result<String, EditFault> {
    let before = ports_of(text).map_err(EditFault::Malformed)?;
    let mut expected = before.clone();
    expected.retain(|port| port.name != *name);
    expected.extend(wanted.cloned());
    let present = before.iter().position(|port| port.name == *name);
    let candidates = match (present, wanted) {
        (None, None) => vec![text.to_owned()],
        (None, Some(port)) => vec![appended(text, port)],
        (Some(index), None) => vec![without(text, index)],
        (Some(index), Some(port)) => vec![
            changed(text, index, port),
            appended(&without(text, index), port),
        ],
    };
    let is_as_wanted = |candidate: &String| {
        ports_of(candidate).is_ok_and(|ports| {
            ports.len() == expected.len() && expected.iter().all(|port| ports.contains(port))
        })
    };
    candidates
        .into_iter()
        .find(is_as_wanted)
        .ok_or_else(|| EditFault::Section(name.clone()))
}

fn ports_of(text: &str) -> Result<Vec<PortConfig>, String> {
    let file = File::parse(text).map_err(|malformed| match malformed.line {
        Some(line) => format!("line {line}: {}", malformed.message),
        None => malformed.message,
    })?;
    file.port
        .iter()
        .map(|port| PortConfig::from_fields(port.get_ref().fields()).map_err(|e| e.to_string()))
        .collect()
}

/// A port's lines, without its header.
fn key_lines(port: &PortConfig) -> String {
    let fields = PortFields::from(port);
    FIELDS
        .iter()
        .filter_map(|key| Some(format!("{key} = {}\n", value_text(&fields, key)?)))
        .collect()
}

const FIELDS: [&str; 10] = [
    "name",
    "type",
    "socket",
    "mode",
    "queue_pairs",
    "packed",
    "device_state",
    "interface",
    "mtu",
    "vlan",
];

/// A field's value in TOML; `None`: it is not written.
fn value_text(fields: &PortFields, key: &str) -> Option<String> {
    let text = |value: &Option<String>| {
        let value = value.clone()?;
        Some(toml::Value::String(value).to_string())
    };
    let number = |value: Option<i64>| value.map(|value| value.to_string());
    match key {
        "name" => text(&fields.name),
        "type" => text(&fields.kind),
        "socket" => text(&fields.socket),
        "mode" => text(&fields.mode),
        "queue_pairs" => number(fields.queue_pairs),
        "packed" => fields.packed.map(|packed| packed.to_string()),
        "device_state" => fields.device_state.map(|offered| offered.to_string()),
        "interface" => text(&fields.interface),
        "mtu" => number(fields.mtu),
        _ => fields.vlan.as_ref().map(vlan_text),
    }
}

fn vlan_text(vlan: &VlanFields) -> String {
    let numbers = |key: &str, value: Option<i64>| value.map(|value| format!("{key} = {value}"));
    let trunk = vlan.trunk.as_ref().map(|ids| {
        let ids: Vec<String> = ids.iter().map(i64::to_string).collect();
        format!("trunk = [{}]", ids.join(", "))
    });
    let parts: Vec<String> = [
        numbers("access", vlan.access),
        trunk,
        numbers("native", vlan.native),
    ]
    .into_iter()
    .flatten()
    .collect();
    format!("{{ {} }}", parts.join(", "))
}

fn appended(text: &str, port: &PortConfig) -> String {
    let gap = match text {
        "" => "",
        text if text.ends_with("\n\n") => "",
        text if text.ends_with('\n') => "\n",
        _ => "\n\n",
    };
    format!("{text}{gap}[[port]]\n{}", key_lines(port))
}

/// The text without the section of the file's port `index`, and without a gap where it was.
fn without(text: &str, index: usize) -> String {
    let Some(section) = Section::find(text, index) else {
        return text.to_owned();
    };
    let before = text.get(..section.start).unwrap_or_default();
    let after = text.get(section.end..).unwrap_or_default();
    let is_gap_before = before.is_empty() || before.ends_with("\n\n");
    let after = match after.strip_prefix('\n') {
        Some(rest) if is_gap_before => rest,
        _ => after,
    };
    if after.is_empty() {
        return format!("{}\n", before.trim_end_matches('\n'))
            .trim_start_matches('\n')
            .to_owned();
    }
    format!("{before}{after}")
}

/// The text with other values in the section of the file's port `index`.
fn changed(text: &str, index: usize, wanted: &PortConfig) -> String {
    let (Some(section), Ok(file)) = (Section::find(text, index), File::parse(text)) else {
        return text.to_owned();
    };
    let Some(port) = file.port.get(index).map(toml::Spanned::get_ref) else {
        return text.to_owned();
    };
    let fields = PortFields::from(wanted);
    let as_it_is = PortConfig::from_fields(port.fields()).map(|port| PortFields::from(&port));
    let mut edits: Vec<(Range<usize>, String)> = vec![];
    for key in FIELDS {
        let value = value_text(&fields, key);
        let says_so = as_it_is
            .as_ref()
            .is_ok_and(|fields| value_text(fields, key) == value);
        match (port.span_of(key), value) {
            _ if says_so => {}
            (Some(span), Some(value)) => edits.push((span, value)),
            (Some(span), None) => edits.push((lines_of(text, &span), String::new())),
            (None, Some(value)) => {
                edits.push((section.end..section.end, format!("{key} = {value}\n")));
            }
            (None, None) => {}
        }
    }
    apply(text, edits)
}

/// Carries edits out that do not overlap; those at one place in their order.
fn apply(text: &str, mut edits: Vec<(Range<usize>, String)>) -> String {
    edits.sort_by_key(|(range, _)| range.start);
    let mut out = String::new();
    let mut from = 0;
    for (range, replacement) in edits {
        out.push_str(text.get(from..range.start).unwrap_or_default());
        if range.is_empty() && !out.is_empty() && !out.ends_with('\n') {
            out.push('\n');
        }
        out.push_str(&replacement);
        from = range.end;
    }
    out.push_str(text.get(from..).unwrap_or_default());
    out
}

/// The whole lines that a range of bytes touches.
fn lines_of(text: &str, range: &Range<usize>) -> Range<usize> {
    let start = text.get(..range.start).and_then(|text| text.rfind('\n'));
    let end = text.get(range.end..).and_then(|text| text.find('\n'));
    start.map_or(0, |at| at + 1)..end.map_or(text.len(), |at| range.end + at + 1)
}

/// Where a port's section is, in bytes.
#[derive(Debug)]
struct Section {
    /// Where its comment begins, or its header.
    start: usize,
    /// Behind its last key.
    end: usize,
}

impl Section {
    fn find(text: &str, index: usize) -> Option<Self> {
        let file = File::parse(text).ok()?;
        let name = file.port.get(index)?.get_ref().span_of("name")?;
        let last_value = FIELDS
            .iter()
            .filter_map(|key| FilePort::span_of(file.port.get(index)?.get_ref(), key))
            .map(|span| span.end)
            .max()?;
        let lines: Vec<Range<usize>> = lines(text).collect();
        let line_text = |line: &Range<usize>| text.get(line.clone()).unwrap_or_default().trim();
        let of_name = lines.iter().position(|line| line.end > name.start)?;
        let header = lines
            .get(..=of_name)?
            .iter()
            .rposition(|line| line_text(line).starts_with("[["))?;
        let comments = lines
            .get(..header)?
            .iter()
            .rev()
            .take_while(|line| line_text(line).starts_with('#'))
            .count();
        let mut first = header - comments;
        if first == 0 {
            // The file's own heading, which says nothing of its first port.
            first = header;
        }
        let mut end = lines_of(text, &(last_value.saturating_sub(1)..last_value)).end;
        for line in lines.get(header + 1..)? {
            let shown = line_text(line);
            let is_header = shown.starts_with('[') && line.start >= end;
            if is_header && !shown.replace(' ', "").starts_with("[port.") {
                break;
            }
            if !shown.is_empty() && !shown.starts_with('#') {
                end = end.max(line.end);
            }
        }
        Some(Self {
            start: lines.get(first)?.start,
            end,
        })
    }
}

/// Each line with its end.
fn lines(text: &str) -> impl Iterator<Item = Range<usize>> {
    let mut from = 0;
    text.split_inclusive('\n').map(move |line| {
        let start = from;
        from += line.len();
        start..from
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::flags::parse_port;
    use proptest::prelude::*;

    fn port(text: &str) -> PortConfig {
        PortConfig::from_fields(parse_port(text).unwrap()).unwrap()
    }

    fn put(text: &str) -> PortEdit {
        let port = port(text);
        (port.name.clone(), Some(port))
    }

    fn gone(name: &str) -> PortEdit {
        (PortName::parse(name).unwrap(), None)
    }

    const FILE: &str = r#"# Ringswitch on host 7

[switch]
workers = 1 # one is enough

# customer A
[[port]]
name = "vm1"
type = "vhost-user"
# under /run
socket = "/run/vm1.sock" # his
mode = "server"
vlan = { access = 10 }

# These two belong together.

[[port]]
name = "host0"
type = "tap"
interface = "rs-host0"

# The end.
"#;

    #[test]
    fn what_comes_is_appended_and_nothing_else_changes() {
        let text = edited(
            FILE,
            &[
                put("name=vm3,type=vhost-user,socket=/run/vm\"3.sock,queue_pairs=2"),
                put("name=vm4,type=vhost-user,socket=/run/vm4.sock,vlan=trunk:10+20,native=1"),
            ],
        )
        .unwrap();
        let added = r#"
[[port]]
name = "vm3"
type = "vhost-user"
socket = '/run/vm"3.sock'
queue_pairs = 2

[[port]]
name = "vm4"
type = "vhost-user"
socket = "/run/vm4.sock"
vlan = { trunk = [10, 20], native = 1 }
"#;
        assert_eq!(text, format!("{FILE}{added}"));
        assert_eq!(
            edited("", &[put("name=t,type=tap,interface=t0")]).unwrap(),
            "[[port]]\nname = \"t\"\ntype = \"tap\"\ninterface = \"t0\"\n"
        );
    }

    #[test]
    fn what_goes_takes_its_own_comment_along_and_no_other() {
        let text = edited(FILE, &[gone("vm1")]).unwrap();
        let start = FILE.find("# customer A").unwrap();
        let end = FILE.find("# These two").unwrap();
        assert_eq!(text, format!("{}{}", &FILE[..start], &FILE[end..]));
        let text = edited(&text, &[gone("host0"), gone("never-there")]).unwrap();
        assert!(text.ends_with("# These two belong together.\n\n# The end.\n"));
        assert_eq!(ports_of(&text), Ok(vec![]));
    }

    #[test]
    fn what_changes_keeps_its_comments_and_what_it_says_already() {
        let text = edited(
            FILE,
            &[put(
                "name=vm1,type=vhost-user,socket=/run/other.sock,queue_pairs=4,mtu=9000",
            )],
        )
        .unwrap();
        let expected = FILE
            .replace("\"/run/vm1.sock\" # his", "\"/run/other.sock\" # his")
            .replace("vlan = { access = 10 }\n", "queue_pairs = 4\nmtu = 9000\n");
        assert_eq!(text, expected);
    }

    #[test]
    fn sections_in_other_styles_are_edited_or_refused_and_never_spoilt() {
        let dotted =
            "[[port]]\nname = \"a\"\ntype = \"tap\"\ninterface = \"a0\"\nvlan.access = 5\n";
        let table = "[[port]]\nname = \"a\"\ntype = \"tap\"\ninterface = \"a0\"\n[port.vlan]\naccess = 5\n[[port]]\nname = \"b\"\ntype = \"tap\"\ninterface = \"b0\"";
        let multi_line = "[[port]]\nname = \"a\"\ntype = \"tap\"\nvlan = { trunk = [\n 5,\n 6\n] }\ninterface = \"a0\"\n";
        for text in [dotted, table, multi_line] {
            for edit in [
                gone("a"),
                put("name=a,type=tap,interface=a1,vlan=7"),
                put("name=a,type=tap,interface=a0"),
                put("name=c,type=tap,interface=c0"),
            ] {
                let text = edited(text, std::slice::from_ref(&edit)).unwrap();
                let ports = ports_of(&text).unwrap();
                let found = ports.iter().find(|port| port.name == edit.0);
                assert_eq!(found, edit.1.as_ref(), "{text}");
            }
        }
        let inline = "port = [{ name = \"a\", type = \"tap\", interface = \"a0\" }]\n";
        assert!(matches!(
            edited(inline, &[gone("a")]),
            Err(EditFault::Section(_))
        ));
        let twin = put("name=b,type=tap,interface=a0");
        assert!(matches!(
            edited(dotted, &[twin]),
            Err(EditFault::Collision {
                field: "interface",
                ..
            })
        ));
        assert!(matches!(
            edited("[[port", &[gone("a")]),
            Err(EditFault::Malformed(_))
        ));
    }

    proptest! {
        #[test]
        fn any_edits_one_after_the_other_end_in_the_ports_that_were_wanted(
            edits in prop::collection::vec((0u8..5, prop::option::of((0u8..9, 1u8..4, any::<bool>(), 0u16..3))), 1..12)
        ) {
            let mut text = FILE.to_owned();
            let mut wanted = ports_of(FILE).unwrap();
            for (name, new) in edits {
                let name = PortName::parse(&format!("vm{name}")).unwrap();
                wanted.retain(|port| port.name != name);
                let new = new.map(|(socket, pairs, packed, vlan)| {
                    let vlan = ["", ",vlan=10", ",vlan=trunk:1+2"][usize::from(vlan)];
                    port(&format!("name={name},type=vhost-user,socket=/run/{name}-{socket},queue_pairs={pairs},packed={packed},device_state={packed}{vlan}"))
                });
                wanted.extend(new.clone());
                text = edited(&text, &[(name, new)]).unwrap();
                let mut found = ports_of(&text).unwrap();
                found.sort_by(|a, b| a.name.cmp(&b.name));
                wanted.sort_by(|a, b| a.name.cmp(&b.name));
                prop_assert_eq!(&found, &wanted);
                for kept in ["# Ringswitch on host 7", "workers = 1 # one is enough", "# These two", "# The end."] {
                    prop_assert!(text.contains(kept), "{} is gone from {}", kept, text);
                }
            }
        }
    }
}
