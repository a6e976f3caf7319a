//! File and flags together: one [`Configuration`], checked as a whole.
use super::connections::connections;
use super::file::{File, FilePort, FileSwitch, FileTenant, line_at};
use super::flags;
use super::port::{PortConfig, PortFields, PortKind, first_collision};
use super::program::ProgramSource;
use super::remote::{RemoteConfig, RemoteFlags, Written, group, remote};
use super::value::{InvalidField, SocketPath, bounded, folder};
use super::{DEFAULT_ADMIN_SOCKET, DEFAULT_RING_STATE, PortName};
use crate::control::MAX_PORTS;
use crate::control::tables::Quotas;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use switch_core::conntrack::ConntrackConfig;

/// Everything the daemon is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// The switch as a whole.
    pub switch: SwitchConfig,
    /// The ports to start with: the file's, then the flags'.
    pub ports: Vec<SourcedPort>,
    /// The file.
    pub file: Option<ConfigFile>,
}

/// The file that a configuration came from, as far as it can be changed at run time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFile {
    /// Where it is, whatever the working folder.
    pub path: PathBuf,
    /// Its ports, also those that a flag replaces.
    pub ports: Vec<PortConfig>,
}

impl ConfigFile {
    /// Reads the ports of a file, checked as by [`load`]. The rest of it has to be TOML with known keys.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = read(path)?;
        let parsed = parse(&text, path)?;
        let ports = file_ports(&parsed, &|offset| place_in(&text, path, offset))?;
        Ok(Self::of(path, &ports))
    }

    fn of(path: &Path, ports: &[SourcedPort]) -> Self {
        Self {
            path: std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
            ports: ports.iter().map(|port| port.config.clone()).collect(),
        }
    }
}

/// The switch as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwitchConfig {
    /// Data-path threads.
    pub workers: usize,
    /// The CPU of each worker; empty: not pinned.
    pub cpus: Vec<usize>,
    /// The admin socket.
    pub admin: SocketPath,
    /// The group, by name or number, whose members may use it too.
    pub admin_group: Option<String>,
    /// The same interface over TCP.
    pub remote: Option<RemoteConfig>,
    /// The folder in which the positions of packed rings are kept.
    pub ring_state: PathBuf,
    /// What the switch does with frames.
    pub program: ProgramSource,
    /// Where what is changed at run time is durable; `None`: nowhere.
    pub state_dir: Option<PathBuf>,
    /// The file with the services' configuration to begin with.
    pub services: Option<PathBuf>,
    /// The key that signs what migrates of ports; `None`: nothing does.
    pub device_state_key_file: Option<PathBuf>,
    /// How old that may be when it arrives.
    pub device_state_max_age_s: u32,
    /// How many table entries each tenant may have.
    pub quotas: Quotas,
    /// Bounds and timeouts of tracked connections.
    pub connections: ConntrackConfig,
    /// How long an idle worker polls before it sleeps.
    pub poll_us: u32,
    /// How long a learnt address is kept without a frame from it.
    pub mac_ageing_s: u32,
    /// How many learnt addresses are kept.
    pub mac_capacity: u32,
    /// How many of them one port may have.
    pub mac_limit_per_port: u32,
}

impl SwitchConfig {
    /// Bounds and defaults: docs/configuration.md shows them.
    pub const MAX_WORKERS: u32 = 64;
    /// Default of `poll_us`.
    pub const DEFAULT_POLL_US: u32 = 50;
    /// Upper bound of `poll_us`: past 10 ms an idle worker is a busy one.
    pub const MAX_POLL_US: u32 = 10_000;
    /// Default of `mac_ageing_s` (IEEE 802.1Q table 8-5).
    pub const DEFAULT_MAC_AGEING_S: u32 = 300;
    /// Bounds of `mac_ageing_s` (IEEE 802.1Q table 8-5).
    pub const MAC_AGEING_S: std::ops::RangeInclusive<u32> = 10..=1_000_000;
    /// Bounds of a tenant's entries.
    pub const TENANT_MAX_ENTRIES: std::ops::RangeInclusive<u32> = 0..=u32::MAX;
    /// Default of `mac_capacity`.
    pub const DEFAULT_MAC_CAPACITY: u32 = 65_536;
    /// Default of `device_state_max_age_s`: a migration takes minutes.
    pub const DEFAULT_STATE_MAX_AGE_S: u32 = 3_600;
    /// Bounds of `device_state_max_age_s`.
    pub const STATE_MAX_AGE_S: std::ops::RangeInclusive<u32> = 10..=604_800;
    /// Bounds of `mac_capacity`.
    pub const MAC_CAPACITY: std::ops::RangeInclusive<u32> = 16..=1_048_576;
}

/// A port and where the operator wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourcedPort {
    /// Where.
    pub origin: Origin,
    /// The port.
    pub config: PortConfig,
}

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In the file.
    File {
        /// Its path as given.
        path: PathBuf,
        /// From 1; `None`: the file as a whole.
        line: Option<usize>,
    },
    /// In a flag: its text.
    Flag(String),
    /// Nowhere: the default.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File {
                path,
                line: Some(line),
            } => write!(f, "{}:{line}", path.display()),
            Self::File { path, line: None } => path.display().fmt(f),
            Self::Flag(text) => f.write_str(text),
            Self::Default => f.write_str("default"),
        }
    }
}

/// What the command line says over the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--workers`.
    pub workers: Option<i64>,
    /// `--cpus`.
    pub cpus: Option<Vec<i64>>,
    /// `--admin`.
    pub admin: Option<String>,
    /// `--token-file`.
    pub token_file: Option<String>,
    /// `--listen` and its like.
    pub remote: RemoteFlags,
    /// `--ring-state`.
    pub ring_state: Option<String>,
    /// `--program`.
    pub program: Option<String>,
    /// `--state-dir`.
    pub state_dir: Option<String>,
    /// `--services`.
    pub services: Option<String>,
    /// `--device-state-key-file`.
    pub device_state_key_file: Option<String>,
    /// Each `--port`. One whose name the file has replaces the file's.
    pub ports: Vec<String>,
}

/// A configuration that is refused. Nothing has been changed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot be read ({source}); name a readable file with --config", .path.display())]
    Unreadable {
        /// As given.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, or a value of the wrong type.
    #[error("{origin}: {message}; docs/configuration.md lists every key with its type")]
    Malformed {
        /// Where.
        origin: Origin,
        /// What.
        message: String,
    },
    /// A value that cannot be accepted.
    #[error("{origin}: {invalid}")]
    Invalid {
        /// Where.
        origin: Origin,
        /// What.
        invalid: InvalidField,
    },
    /// Two ports cannot both be.
    #[error(
        "{origin}: `{field}` is that of port {other} ({other_origin}) already; give each port its own"
    )]
    Collision {
        /// Where the second port is.
        origin: Origin,
        /// `name`, `socket` or `interface`.
        field: &'static str,
        /// The first port.
        other: PortName,
        /// Where it is.
        other_origin: Origin,
    },
}

/// Why a port's state does not migrate.
pub const NO_STATE_KEY: &str = "the switch has no key to sign a port's state with";
/// What to do about that.
pub const STATE_KEY_REMEDY: &str = "name a file with `device_state_key_file` (or --device-state-key-file), the same on every host: \
     `(umask 077; head -c 32 /dev/urandom > /etc/ringswitch/device-state.key)`";

/// Largest file that is read: far beyond any real one, so that a wrong path (`/dev/zero`) ends.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// Reads the file, if there is one, lays the flags over it and checks the whole. `online_cpus` are those a worker can be pinned to.
pub fn load(
    file: Option<&Path>,
    overrides: Overrides,
    online_cpus: &BTreeSet<usize>,
) -> Result<Configuration, ConfigError> {
    let text = file.map(read).transpose()?.unwrap_or_default();
    let path = file.unwrap_or(Path::new(""));
    let place = |offset| place_in(&text, path, offset);
    let mut parsed = parse(&text, path)?;
    let flagged = overrides
        .ports
        .iter()
        .map(|text| port_from_flag(text))
        .collect::<Result<Vec<_>, _>>()?;
    let by_tenant = tenant_quotas(&parsed.tenant, &place)?;
    let mut switch = switch_config(
        std::mem::take(&mut parsed.switch),
        &overrides,
        &place,
        online_cpus,
    )?;
    switch.quotas.by_tenant = by_tenant;
    switch.connections = connections(&parsed.connections, &place)?;
    let mut ports = file_ports(&parsed, &place)?;
    let file = file.map(|path| ConfigFile::of(path, &ports));
    ports.retain(|port| {
        flagged
            .iter()
            .all(|flag: &SourcedPort| flag.config.name != port.config.name)
    });
    ports.extend(flagged);
    refuse_too_many(&ports, MAX_PORTS)?;
    refuse_collisions(&ports)?;
    refuse_admin_socket(&switch, &ports)?;
    refuse_keyless(&switch, &ports)?;
    Ok(Configuration {
        switch,
        ports,
        file,
    })
}

fn place_in(text: &str, path: &Path, offset: usize) -> Origin {
    Origin::File {
        path: path.to_owned(),
        line: Some(line_at(text, offset)),
    }
}

fn parse(text: &str, path: &Path) -> Result<File, ConfigError> {
    File::parse(text).map_err(|malformed| ConfigError::Malformed {
        origin: Origin::File {
            path: path.to_owned(),
            line: malformed.line,
        },
        message: malformed.message,
    })
}

/// The ports of a file, which can all be beside each other.
fn file_ports(
    parsed: &File,
    place: &dyn Fn(usize) -> Origin,
) -> Result<Vec<SourcedPort>, ConfigError> {
    let ports = parsed
        .port
        .iter()
        .map(|port| port_from_file(port.get_ref(), port.span().start, place))
        .collect::<Result<Vec<_>, _>>()?;
    refuse_too_many(&ports, MAX_PORTS)?;
    refuse_collisions(&ports)?;
    Ok(ports)
}

/// The CPUs that are online, from sysfs; where that is not mounted, those this process may run on.
pub fn online_cpus() -> std::io::Result<BTreeSet<usize>> {
    use rustix::thread::{CpuSet, sched_getaffinity};
    match std::fs::read_to_string("/sys/devices/system/cpu/online") {
        Ok(list) => Ok(parse_cpu_list(&list)),
        Err(_) => {
            let allowed = sched_getaffinity(None)?;
            Ok((0..CpuSet::MAX_CPU)
                .filter(|cpu| allowed.is_set(*cpu))
                .collect())
        }
    }
}

/// The kernel's list format: `0-2,5`. Parts that do not parse are left out.
fn parse_cpu_list(text: &str) -> BTreeSet<usize> {
    text.trim()
        .split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse().ok()?..=last.parse().ok()?)
        })
        .flatten()
        .collect()
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let read_bytes = file
        .take(MAX_FILE_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    if read_bytes as u64 > MAX_FILE_BYTES {
        return Err(unreadable(std::io::Error::other("it is larger than 4 MiB")));
    }
    Ok(text)
}

fn port_from_file(
    port: &FilePort,
    start: usize,
    place: &dyn Fn(usize) -> Origin,
) -> Result<SourcedPort, ConfigError> {
    match PortConfig::from_fields(port.fields()) {
        Ok(config) => Ok(SourcedPort {
            origin: place(port.offset_of("name").unwrap_or(start)),
            config,
        }),
        Err(invalid) => Err(ConfigError::Invalid {
            origin: place(port.offset_of(invalid.field).unwrap_or(start)),
            invalid,
        }),
    }
}

fn port_from_flag(text: &str) -> Result<SourcedPort, ConfigError> {
    let origin = Origin::Flag(format!("--port {text}"));
    match flags::parse_port(text).and_then(|fields: PortFields| PortConfig::from_fields(fields)) {
        Ok(config) => Ok(SourcedPort { origin, config }),
        Err(invalid) => Err(ConfigError::Invalid { origin, invalid }),
    }
}

/// One value of `[switch]` with its place, the flag's before the file's.
pub(super) struct Sourced<T> {
    pub(super) origin: Origin,
    pub(super) value: T,
}

fn pick<T>(
    flag: (&str, Option<T>),
    file: Option<toml::Spanned<T>>,
    place: &dyn Fn(usize) -> Origin,
) -> Option<Sourced<T>> {
    let (name, value) = flag;
    let flagged = value.map(|value| Sourced {
        origin: Origin::Flag(name.to_owned()),
        value,
    });
    flagged.or_else(|| in_file(file, place))
}

/// A value that no flag has.
fn in_file<T>(
    file: Option<toml::Spanned<T>>,
    place: &dyn Fn(usize) -> Origin,
) -> Option<Sourced<T>> {
    file.map(|value| Sourced {
        origin: place(value.span().start),
        value: value.into_inner(),
    })
}

fn number_or(
    value: Option<Sourced<i64>>,
    default: u32,
    parse: impl FnOnce(i64) -> Result<u32, InvalidField>,
) -> Result<u32, ConfigError> {
    match value {
        None => Ok(default),
        Some(Sourced { origin, value }) => {
            parse(value).map_err(|invalid| ConfigError::Invalid { origin, invalid })
        }
    }
}

fn switch_config(
    file: FileSwitch,
    overrides: &Overrides,
    place: &dyn Fn(usize) -> Origin,
    online_cpus: &BTreeSet<usize>,
) -> Result<SwitchConfig, ConfigError> {
    let cpus = pick(("--cpus", overrides.cpus.clone()), file.cpus, place);
    let workers = pick(("--workers", overrides.workers), file.workers, place);
    // Without `workers`, one for each CPU; a list that is too long or empty is then refused by its length.
    let most = SwitchConfig::MAX_WORKERS;
    let implied = cpus.as_ref().map_or(1, |cpus| {
        u32::try_from(cpus.value.len())
            .unwrap_or(most)
            .clamp(1, most)
    });
    let workers = number_or(workers, implied, |value| {
        bounded("workers", value, 1, SwitchConfig::MAX_WORKERS)
    })? as usize;
    let cpus = match cpus {
        None => vec![],
        Some(Sourced { origin, value }) => pinned_cpus(&value, workers, online_cpus)
            .map_err(|invalid| ConfigError::Invalid { origin, invalid })?,
    };
    let admin = match pick(("--admin", overrides.admin.clone()), file.admin, place) {
        None => Sourced {
            origin: Origin::Default,
            value: DEFAULT_ADMIN_SOCKET.to_owned(),
        },
        Some(admin) => admin,
    };
    let Sourced { origin, value } = admin;
    let admin = SocketPath::parse("admin", &value)
        .map_err(|invalid| ConfigError::Invalid { origin, invalid })?;
    let admin_group = pick(
        ("--admin-group", overrides.remote.admin_group.clone()),
        file.admin_group,
        place,
    )
    .map(|Sourced { origin, value }| {
        group(&value).map_err(|invalid| ConfigError::Invalid { origin, invalid })
    })
    .transpose()?;
    let flags = overrides.remote.clone();
    let over_tcp = [
        ("listen", "--listen", flags.listen, file.listen),
        (
            "token_file",
            "--token-file",
            overrides.token_file.clone(),
            file.token_file,
        ),
        ("tls_cert", "--tls-cert", flags.tls_cert, file.tls_cert),
        ("tls_key", "--tls-key", flags.tls_key, file.tls_key),
        (
            "tls_client_ca",
            "--tls-client-ca",
            flags.tls_client_ca,
            file.tls_client_ca,
        ),
        (
            "tls_read_client_ca",
            "--tls-read-client-ca",
            flags.tls_read_client_ca,
            file.tls_read_client_ca,
        ),
    ]
    .into_iter()
    .filter_map(|(key, flag, flagged, filed)| Some((key, pick((flag, flagged), filed, place)?)))
    .collect::<Written>();
    let over_tcp = remote(over_tcp)?;
    let ring_state = pick(
        ("--ring-state", overrides.ring_state.clone()),
        file.ring_state,
        place,
    );
    let ring_state = match ring_state {
        None => admin.as_path().with_file_name(DEFAULT_RING_STATE),
        Some(Sourced { origin, value }) => folder("ring_state", &value)
            .map_err(|invalid| ConfigError::Invalid { origin, invalid })?,
    };
    let program = match pick(
        ("--program", overrides.program.clone()),
        file.program,
        place,
    ) {
        None => ProgramSource::default(),
        Some(Sourced { origin, value }) => ProgramSource::parse(&value)
            .map_err(|invalid| ConfigError::Invalid { origin, invalid })?,
    };
    let state_dir = pick(
        ("--state-dir", overrides.state_dir.clone()),
        file.state_dir,
        place,
    )
    .map(|Sourced { origin, value }| {
        folder("state_dir", &value).map_err(|invalid| ConfigError::Invalid { origin, invalid })
    })
    .transpose()?;
    let services = pick(
        ("--services", overrides.services.clone()),
        file.services,
        place,
    )
    .map(|Sourced { origin, value }| {
        services_file(&value).map_err(|invalid| ConfigError::Invalid { origin, invalid })
    })
    .transpose()?;
    let device_state_key_file = pick(
        (
            "--device-state-key-file",
            overrides.device_state_key_file.clone(),
        ),
        file.device_state_key_file,
        place,
    )
    .map(|Sourced { origin, value }| {
        key_file(&value).map_err(|invalid| ConfigError::Invalid { origin, invalid })
    })
    .transpose()?;
    let state_max_age = in_file(file.device_state_max_age_s, place);
    let tenant_max_entries = in_file(file.tenant_max_entries, place);
    let poll_us = in_file(file.poll_us, place);
    let ageing = in_file(file.mac_ageing_s, place);
    let capacity = in_file(file.mac_capacity, place);
    let per_port = in_file(file.mac_limit_per_port, place);
    let within = |field, bounds: std::ops::RangeInclusive<u32>| {
        move |value| bounded(field, value, *bounds.start(), *bounds.end())
    };
    let mac_capacity = number_or(
        capacity,
        SwitchConfig::DEFAULT_MAC_CAPACITY,
        within("mac_capacity", SwitchConfig::MAC_CAPACITY),
    )?;
    Ok(SwitchConfig {
        workers,
        cpus,
        admin,
        admin_group,
        remote: over_tcp,
        ring_state,
        program,
        state_dir,
        services,
        device_state_key_file,
        device_state_max_age_s: number_or(
            state_max_age,
            SwitchConfig::DEFAULT_STATE_MAX_AGE_S,
            within("device_state_max_age_s", SwitchConfig::STATE_MAX_AGE_S),
        )?,
        quotas: Quotas {
            by_tenant: BTreeMap::new(),
            default: number_or(
                tenant_max_entries,
                Quotas::DEFAULT,
                within("tenant_max_entries", SwitchConfig::TENANT_MAX_ENTRIES),
            )?,
        },
        connections: ConntrackConfig::default(),
        poll_us: number_or(
            poll_us,
            SwitchConfig::DEFAULT_POLL_US,
            within("poll_us", 0..=SwitchConfig::MAX_POLL_US),
        )?,
        mac_ageing_s: number_or(
            ageing,
            SwitchConfig::DEFAULT_MAC_AGEING_S,
            within("mac_ageing_s", SwitchConfig::MAC_AGEING_S),
        )?,
        mac_capacity,
        mac_limit_per_port: number_or(
            per_port,
            mac_capacity / 4,
            within("mac_limit_per_port", 1..=mac_capacity),
        )?,
    })
}

/// The absolute path of the file with the key.
fn key_file(text: &str) -> Result<PathBuf, InvalidField> {
    folder("device_state_key_file", text).map_err(|invalid| {
        InvalidField::new(
            "device_state_key_file",
            invalid.reason.replace("of a folder", "of a file"),
            "start it with '/' and write it without '..', such as /etc/ringswitch/device-state.key",
        )
    })
}

/// The absolute path of the file with the services' configuration.
fn services_file(text: &str) -> Result<PathBuf, InvalidField> {
    folder("services", text).map_err(|invalid| {
        InvalidField::new(
            "services",
            invalid.reason.replace("of a folder", "of a file"),
            "start it with '/' and write it without '..', such as /etc/ringswitch/services.json",
        )
    })
}

/// The quotas of `[tenant.NAME]`.
fn tenant_quotas(
    tenants: &BTreeMap<toml::Spanned<String>, FileTenant>,
    place: &dyn Fn(usize) -> Origin,
) -> Result<BTreeMap<String, u32>, ConfigError> {
    let mut quotas = BTreeMap::new();
    for (name, tenant) in tenants {
        let (low, high) = SwitchConfig::TENANT_MAX_ENTRIES.into_inner();
        let most = bounded("max_entries", *tenant.max_entries.get_ref(), low, high).map_err(
            |invalid| ConfigError::Invalid {
                origin: place(tenant.max_entries.span().start),
                invalid,
            },
        )?;
        quotas.insert(name.get_ref().clone(), most);
    }
    Ok(quotas)
}

/// One online CPU for each worker, each named once: two pollers on one CPU would starve each other.
fn pinned_cpus(
    cpus: &[i64],
    workers: usize,
    online: &BTreeSet<usize>,
) -> Result<Vec<usize>, InvalidField> {
    if cpus.len() != workers {
        let reason = format!("{} CPUs for {workers} workers", cpus.len());
        return Err(InvalidField::new(
            "cpus",
            reason,
            "name one CPU for each worker, or leave `cpus` out to not pin them",
        ));
    }
    let mut pinned = vec![];
    for &cpu in cpus {
        let known = usize::try_from(cpu)
            .ok()
            .filter(|cpu| online.contains(cpu))
            .ok_or_else(|| {
                InvalidField::new(
                    "cpus",
                    format!("CPU {cpu} is not online"),
                    format!("choose among {}", listed(online)),
                )
            })?;
        if pinned.contains(&known) {
            return Err(InvalidField::new(
                "cpus",
                format!("CPU {cpu} is named twice"),
                "give each worker its own",
            ));
        }
        pinned.push(known);
    }
    Ok(pinned)
}

fn listed(cpus: &BTreeSet<usize>) -> String {
    cpus.iter()
        .map(usize::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

fn refuse_too_many(ports: &[SourcedPort], most: usize) -> Result<(), ConfigError> {
    match ports.get(most) {
        None => Ok(()),
        Some(port) => {
            let invalid = InvalidField::new(
                "port",
                "too many ports",
                format!("configure at most {most}"),
            );
            Err(ConfigError::Invalid {
                origin: port.origin.clone(),
                invalid,
            })
        }
    }
}

fn refuse_collisions(ports: &[SourcedPort]) -> Result<(), ConfigError> {
    let collision = first_collision(ports.iter().map(|port| &port.config));
    let pair = collision.and_then(|found| {
        let (port, earlier) = (ports.get(found.port)?, ports.get(found.earlier)?);
        Some((port, earlier, found.field))
    });
    match pair {
        None => Ok(()),
        Some((port, earlier, field)) => Err(ConfigError::Collision {
            origin: port.origin.clone(),
            field,
            other: earlier.config.name.clone(),
            other_origin: earlier.origin.clone(),
        }),
    }
}

/// A port's state cannot migrate without the key that all hosts share.
fn refuse_keyless(switch: &SwitchConfig, ports: &[SourcedPort]) -> Result<(), ConfigError> {
    let migrates = |port: &&SourcedPort| matches!(port.config.kind, PortKind::VhostUser { device_state, .. } if device_state);
    let wanting = ports.iter().find(migrates);
    match wanting.filter(|_| switch.device_state_key_file.is_none()) {
        None => Ok(()),
        Some(port) => Err(ConfigError::Invalid {
            origin: port.origin.clone(),
            invalid: InvalidField::new("device_state", NO_STATE_KEY, STATE_KEY_REMEDY),
        }),
    }
}

fn refuse_admin_socket(switch: &SwitchConfig, ports: &[SourcedPort]) -> Result<(), ConfigError> {
    match ports
        .iter()
        .find(|port| port.config.socket() == Some(&switch.admin))
    {
        None => Ok(()),
        Some(port) => {
            let invalid = InvalidField::new(
                "socket",
                format!("{} is the admin socket", switch.admin),
                "use another path",
            );
            Err(ConfigError::Invalid {
                origin: port.origin.clone(),
                invalid,
            })
        }
    }
}
