//! Parts of paths and queries.
//!
//! Those of paths are for the OpenAPI document alone, since a part of a path that is no name of anything is an answer of its own (404).
use serde::Deserialize;
use utoipa::IntoParams;

/// A port's path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct PortPath {
    /// The port: 1 to 63 letters, digits, `.`, `_` and `-`.
    pub name: String,
}

/// A device's path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct DevicePath {
    /// The device: 1 to 63 letters, digits, `.`, `_` and `-`.
    pub name: String,
}

/// A table's path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct TablePath {
    /// The table, by the program's name for it.
    pub table: String,
}

/// A weighted group's path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct GroupPath {
    /// The selector, by the program's name for it.
    pub selector: String,
    /// The group.
    #[param(minimum = 1)]
    pub group: u32,
}

/// A multicast group's path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct MulticastPath {
    /// The group.
    #[param(minimum = 1)]
    pub group: u16,
}

/// A meter's path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct MeterPath {
    /// The array of meters, by the program's name for it.
    pub meter: String,
    /// Which of it.
    pub index: u32,
}

/// The path of an array of counters.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct CounterPath {
    /// The array, by the program's name for it.
    pub counter: String,
}

/// The query of a listing of entries.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EntriesPage {
    /// Entries after that with this handle.
    pub after: Option<u64>,
    /// How many; 1000 when absent.
    #[param(minimum = 1, maximum = 10_000)]
    pub limit: Option<u32>,
}

/// The query of a listing of counters.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CountersPage {
    /// From this index on.
    pub from: Option<u32>,
    /// How many; 1000 when absent.
    #[param(minimum = 1, maximum = 10_000)]
    pub limit: Option<u32>,
}

/// The query of a listing of connections.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ConnectionsPage {
    /// The page behind the one whose `next` this is.
    pub after: Option<u32>,
    /// How many; 1000 when absent.
    #[param(minimum = 1, maximum = 10_000)]
    pub limit: Option<u32>,
}

/// The query of a stream of events.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventsQuery {
    /// From the event after that with this `id` on; goes over the header `Last-Event-ID`. Absent: from now on.
    pub after: Option<String>,
}

/// The query of a listing of ports.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PortsPage {
    /// Ports after that with this id.
    pub after: Option<u16>,
    /// How many; all when absent.
    #[param(minimum = 1, maximum = 10_000)]
    pub limit: Option<u32>,
}

/// The query of a listing of learnt addresses.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct FdbPage {
    /// `next` of the page before, such as `10-52:54:00:12:34:56`.
    #[param(pattern = "^([0-9]{1,4}|none)-([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}$")]
    pub after: Option<String>,
    /// How many; all when absent.
    #[param(minimum = 1, maximum = 10_000)]
    pub limit: Option<u32>,
}

/// The condition of a change.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct IfMatchHeader {
    /// `ETag` of the answer that the client has seen: the change is refused (412) if it would be another now.
    #[param(
        rename = "If-Match",
        nullable = false,
        pattern = r#"^(\*|(W/)?"[!#-~]{0,64}"(, ?(W/)?"[!#-~]{0,64}"){0,8})$"#
    )]
    pub if_match: Option<String>,
}
