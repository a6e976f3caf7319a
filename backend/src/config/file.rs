//! The configuration file: TOML to fields, each with the line it stands on.
//!
//! Unknown keys are refused here, by serde; what the values mean is decided by [`mod@super::load`] and [`super::port`].
use super::connections::FileConnections;
use super::port::{PortFields, VlanFields};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ops::Range;
use toml::Spanned;

/// The file as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// `[switch]`.
    #[serde(default)]
    pub switch: FileSwitch,
    /// `[tenant.NAME]`.
    #[serde(default)]
    pub tenant: BTreeMap<Spanned<String>, FileTenant>,
    /// `[connections]`.
    #[serde(default)]
    pub connections: FileConnections,
    /// `[[port]]`, in the file's order.
    #[serde(default)]
    pub port: Vec<Spanned<FilePort>>,
}

/// `[switch]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSwitch {
    /// Data-path threads.
    pub workers: Option<Spanned<i64>>,
    /// CPUs to pin them to, one each.
    pub cpus: Option<Spanned<Vec<i64>>>,
    /// The admin socket.
    pub admin: Option<Spanned<String>>,
    /// The group whose members may use it.
    pub admin_group: Option<Spanned<String>>,
    /// Where the admin interface is reached over TCP.
    pub listen: Option<Spanned<String>>,
    /// The tokens that its clients have.
    pub token_file: Option<Spanned<String>>,
    /// The daemon's certificate there.
    pub tls_cert: Option<Spanned<String>>,
    /// Its key.
    pub tls_key: Option<Spanned<String>>,
    /// Whose certificates clients may do everything with.
    pub tls_client_ca: Option<Spanned<String>>,
    /// Whose certificates clients may read with.
    pub tls_read_client_ca: Option<Spanned<String>>,
    /// Where the positions of packed rings are kept.
    pub ring_state: Option<Spanned<String>>,
    /// What the switch does with frames: `l2`, `vpc`, or a file.
    pub program: Option<Spanned<String>>,
    /// Where what is changed at run time is durable.
    pub state_dir: Option<Spanned<String>>,
    /// The file with the services' configuration to begin with.
    pub services: Option<Spanned<String>>,
    /// The key that signs what migrates of ports.
    pub device_state_key_file: Option<Spanned<String>>,
    /// How old that may be when it arrives.
    pub device_state_max_age_s: Option<Spanned<i64>>,
    /// How many entries a tenant may have that has no `[tenant.NAME]`.
    pub tenant_max_entries: Option<Spanned<i64>>,
    /// How long a worker polls for work before it sleeps.
    pub poll_us: Option<Spanned<i64>>,
    /// How long a learnt address is kept.
    pub mac_ageing_s: Option<Spanned<i64>>,
    /// How many addresses are kept.
    pub mac_capacity: Option<Spanned<i64>>,
    /// How many of them one port may have.
    pub mac_limit_per_port: Option<Spanned<i64>>,
}

/// `[tenant.NAME]` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileTenant {
    /// How many table entries it may have.
    pub max_entries: Spanned<i64>,
}

/// `[[port]]` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilePort {
    name: Option<Spanned<String>>,
    r#type: Option<Spanned<String>>,
    socket: Option<Spanned<String>>,
    mode: Option<Spanned<String>>,
    queue_pairs: Option<Spanned<i64>>,
    packed: Option<Spanned<bool>>,
    device_state: Option<Spanned<bool>>,
    interface: Option<Spanned<String>>,
    mtu: Option<Spanned<i64>>,
    vlan: Option<Spanned<FileVlan>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileVlan {
    access: Option<i64>,
    trunk: Option<Vec<i64>>,
    native: Option<i64>,
}

/// Text that is not a configuration file.
#[derive(Debug)]
pub struct Malformed {
    /// Line of the fault, from 1; `None` when the whole file is at fault.
    pub line: Option<usize>,
    /// What is wrong there, on one line.
    pub message: String,
}

impl File {
    /// Reads the text of a file.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        toml::from_str(text).map_err(|error| Malformed {
            line: error.span().map(|span| line_at(text, span.start)),
            message: error.message().lines().collect::<Vec<_>>().join(", "),
        })
    }
}

impl FilePort {
    /// The fields without their places.
    pub fn fields(&self) -> PortFields {
        let text =
            |field: &Option<Spanned<String>>| field.as_ref().map(|value| value.get_ref().clone());
        let number = |field: &Option<Spanned<i64>>| field.as_ref().map(|value| *value.get_ref());
        PortFields {
            name: text(&self.name),
            kind: text(&self.r#type),
            socket: text(&self.socket),
            mode: text(&self.mode),
            queue_pairs: number(&self.queue_pairs),
            packed: self.packed.as_ref().map(|value| *value.get_ref()),
            device_state: self.device_state.as_ref().map(|value| *value.get_ref()),
            interface: text(&self.interface),
            mtu: number(&self.mtu),
            vlan: self.vlan.as_ref().map(|vlan| {
                let FileVlan {
                    access,
                    trunk,
                    native,
                } = vlan.get_ref();
                VlanFields {
                    access: *access,
                    trunk: trunk.clone(),
                    native: *native,
                }
            }),
        }
    }

    /// Byte offset of the field that an error names; `None` when it is not written.
    pub fn offset_of(&self, field: &str) -> Option<usize> {
        self.span_of(field.split('.').next().unwrap_or(field))
            .map(|span| span.start)
    }

    /// The bytes of a field's value; `None` when it is not written.
    pub fn span_of(&self, field: &str) -> Option<Range<usize>> {
        fn span<T>(value: &Option<Spanned<T>>) -> Option<Range<usize>> {
            value.as_ref().map(Spanned::span)
        }
        match field {
            "name" => span(&self.name),
            "type" => span(&self.r#type),
            "socket" => span(&self.socket),
            "mode" => span(&self.mode),
            "queue_pairs" => span(&self.queue_pairs),
            "packed" => span(&self.packed),
            "device_state" => span(&self.device_state),
            "interface" => span(&self.interface),
            "mtu" => span(&self.mtu),
            "vlan" => span(&self.vlan),
            _ => None,
        }
    }
}

/// The line, from 1, of a byte offset.
pub fn line_at(text: &str, offset: usize) -> usize {
    1 + text
        .bytes()
        .take(offset)
        .filter(|byte| *byte == b'\n')
        .count()
}
