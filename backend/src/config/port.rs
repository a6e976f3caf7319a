//! One port's configuration, from the fields an operator wrote (in the file, a flag or a REST request) to a typed value.
//!
//! This is the one place that knows which fields belong to which type of port and what they default to.
use super::value::{
    InterfaceName, InvalidField, Mtu, PortName, QueuePairs, SocketPath, quoted, vlan_id,
};
use crate::device::SocketMode;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ffi::OsStr;
use switch_core::{VlanId, VlanPolicy, VlanSet};

/// The fields of a port as written, types checked but nothing else. As JSON: a port in requests, and in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortFields {
    /// `name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `type`.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// `socket`, for vhost-user and stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// `mode`, for vhost-user and stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// `queue_pairs`, for vhost-user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_pairs: Option<i64>,
    /// `packed`, for vhost-user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packed: Option<bool>,
    /// `device_state`, for vhost-user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_state: Option<bool>,
    /// `interface`, for TAP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// `mtu`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<i64>,
    /// `vlan`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanFields>,
}

/// The fields of `vlan` as written: `{ access = 10 }` or `{ trunk = [10, 20], native = 1 }`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VlanFields {
    /// `access`: the one VLAN of an untagged port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<i64>,
    /// `trunk`: the VLANs that cross tagged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trunk: Option<Vec<i64>>,
    /// `native`: the VLAN of a trunk's untagged frames.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub native: Option<i64>,
}

/// A port as it shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortConfig {
    /// Unique among all ports.
    pub name: PortName,
    /// What is at its other end.
    pub kind: PortKind,
    /// Offered to a guest (`VIRTIO_NET_F_MTU`), set on a TAP, the longest that a stream's peer is sent; absent: the guest's and the kernel's own choice.
    pub mtu: Option<Mtu>,
    /// Which VLANs it belongs to.
    pub vlan: VlanPolicy,
}

/// The types of port, each with what it alone has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// A VM's NIC over vhost-user.
    VhostUser {
        /// The UNIX socket, unique among all ports.
        socket: SocketPath,
        /// Which side listens.
        mode: SocketMode,
        /// Pairs of rings offered.
        queue_pairs: QueuePairs,
        /// Whether packed rings are offered.
        packed: bool,
        /// Whether what the switch knows of the port migrates with its VM.
        device_state: bool,
    },
    /// A TAP interface of the host.
    Tap {
        /// The interface, created when absent; unique among all ports.
        interface: InterfaceName,
    },
    /// A VM's NIC of any model over QEMU's `-netdev stream`.
    Stream {
        /// The UNIX socket, unique among all ports.
        socket: SocketPath,
        /// Which side listens.
        mode: SocketMode,
    },
}

impl PortConfig {
    /// Types and checks the fields of one port. The first field that cannot be accepted is the error.
    pub fn from_fields(fields: PortFields) -> Result<Self, InvalidField> {
        let name = PortName::parse(&required(
            "name",
            fields.name.clone(),
            "give the port a name, such as vm1",
        )?)?;
        let kind = required(
            "type",
            fields.kind.clone(),
            "set it to \"vhost-user\", \"stream\" or \"tap\"",
        )?;
        let kind = match kind.as_str() {
            "vhost-user" => vhost_user(&fields)?,
            "stream" => stream(&fields)?,
            "tap" => tap(&fields)?,
            other => {
                return Err(InvalidField::new(
                    "type",
                    format!("{} is not a type of port", quoted(other)),
                    "use \"vhost-user\", \"stream\" or \"tap\"",
                ));
            }
        };
        let mtu = fields.mtu.map(Mtu::parse).transpose()?;
        let vlan = fields
            .vlan
            .map_or(Ok(VlanPolicy::Transparent), VlanFields::policy)?;
        Ok(Self {
            name,
            kind,
            mtu,
            vlan,
        })
    }

    /// What no other port may have, by field: its name, and its socket or interface.
    fn claims(&self) -> [(&'static str, &OsStr); 2] {
        let place = match &self.kind {
            PortKind::VhostUser { socket, .. } | PortKind::Stream { socket, .. } => {
                ("socket", socket.as_path().as_os_str())
            }
            PortKind::Tap { interface } => ("interface", OsStr::new(interface.as_str())),
        };
        [("name", OsStr::new(self.name.as_str())), place]
    }

    /// What this port and another both claim, so that they cannot both be.
    pub fn claims_of_both(&self, other: &Self) -> Option<&'static str> {
        let theirs = other.claims();
        self.claims()
            .into_iter()
            .find(|claim| theirs.contains(claim))
            .map(|(field, _)| field)
    }

    /// Whether a front-end finds the same device at both: everything but where, and what is done with its frames, is equal.
    pub fn is_same_device(&self, other: &Self) -> bool {
        let mut kind = self.kind.clone();
        if let (
            PortKind::VhostUser { socket, mode, .. },
            PortKind::VhostUser {
                socket: other_socket,
                mode: other_mode,
                ..
            },
        ) = (&mut kind, &other.kind)
        {
            socket.clone_from(other_socket);
            *mode = *other_mode;
        }
        kind == other.kind
    }

    /// The socket of a vhost-user or stream port.
    pub fn socket(&self) -> Option<&SocketPath> {
        match &self.kind {
            PortKind::VhostUser { socket, .. } | PortKind::Stream { socket, .. } => Some(socket),
            PortKind::Tap { .. } => None,
        }
    }
}

/// As an operator would write it: what is as by default is left out.
impl From<&PortConfig> for PortFields {
    fn from(port: &PortConfig) -> Self {
        let fields = Self {
            name: Some(port.name.to_string()),
            kind: Some(port.kind.type_name().to_owned()),
            mtu: port.mtu.map(|mtu| mtu.get().into()),
            vlan: VlanFields::of(&port.vlan),
            ..Self::default()
        };
        match &port.kind {
            PortKind::VhostUser {
                socket,
                mode,
                queue_pairs,
                packed,
                device_state,
            } => Self {
                socket: Some(socket.to_string()),
                mode: (*mode == SocketMode::Client).then(|| "client".to_owned()),
                queue_pairs: (*queue_pairs != QueuePairs::default())
                    .then(|| queue_pairs.get().into()),
                packed: packed.then_some(true),
                device_state: device_state.then_some(true),
                ..fields
            },
            PortKind::Tap { interface } => Self {
                interface: Some(interface.to_string()),
                ..fields
            },
            PortKind::Stream { socket, mode } => Self {
                socket: Some(socket.to_string()),
                mode: (*mode == SocketMode::Client).then(|| "client".to_owned()),
                ..fields
            },
        }
    }
}

/// Two ports that cannot both be, by their places in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Collision {
    /// The port that comes too late.
    pub port: usize,
    /// The port that was there first.
    pub earlier: usize,
    /// What both have: `name`, `socket` or `interface`.
    pub field: &'static str,
}

/// The first port that cannot be beside those before it.
pub fn first_collision<'a>(ports: impl Iterator<Item = &'a PortConfig>) -> Option<Collision> {
    let mut taken = HashMap::new();
    for (index, port) in ports.enumerate() {
        for claim in port.claims() {
            if let Some(earlier) = taken.insert(claim, index) {
                return Some(Collision {
                    port: index,
                    earlier,
                    field: claim.0,
                });
            }
        }
    }
    None
}

impl PortKind {
    /// The type as it is written.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::VhostUser { .. } => "vhost-user",
            Self::Tap { .. } => "tap",
            Self::Stream { .. } => "stream",
        }
    }
}

impl VlanFields {
    /// As an operator would write it; `None`: not at all.
    pub fn of(policy: &VlanPolicy) -> Option<Self> {
        let number = |vlan: VlanId| i64::from(vlan.get());
        match policy {
            VlanPolicy::Transparent => None,
            VlanPolicy::Access(vlan) => Some(Self {
                access: Some(number(*vlan)),
                ..Self::default()
            }),
            VlanPolicy::Trunk { allowed, native } => Some(Self {
                access: None,
                trunk: Some(allowed.iter().map(number).collect()),
                native: native.map(number),
            }),
        }
    }

    fn policy(self) -> Result<VlanPolicy, InvalidField> {
        const REMEDY: &str = "write { access = ID } or { trunk = [ID, ...], native = ID }";
        match (self.access, self.trunk, self.native) {
            (Some(access), None, None) => vlan_id("vlan.access", access).map(VlanPolicy::Access),
            (None, Some(trunk), _) if trunk.is_empty() => Err(InvalidField::new(
                "vlan.trunk",
                "the list is empty",
                "name at least one VLAN, or use access",
            )),
            (None, Some(trunk), native) => {
                let allowed = trunk
                    .into_iter()
                    .map(|id| vlan_id("vlan.trunk", id))
                    .collect::<Result<VlanSet, _>>()?;
                let native = native.map(|id| vlan_id("vlan.native", id)).transpose()?;
                Ok(VlanPolicy::Trunk { allowed, native })
            }
            (None, None, None) => Err(InvalidField::new(
                "vlan",
                "neither access nor trunk is given",
                REMEDY,
            )),
            (None, None, Some(_)) => Err(InvalidField::new(
                "vlan.native",
                "native belongs to a trunk",
                REMEDY,
            )),
            (Some(_), _, _) => Err(InvalidField::new(
                "vlan",
                "access excludes trunk and native",
                REMEDY,
            )),
        }
    }
}

fn required(
    field: &'static str,
    value: Option<String>,
    remedy: &str,
) -> Result<String, InvalidField> {
    value.ok_or_else(|| InvalidField::new(field, "it is missing", remedy))
}

fn vhost_user(fields: &PortFields) -> Result<PortKind, InvalidField> {
    foreign("interface", &fields.interface, "vhost-user")?;
    let socket = required(
        "socket",
        fields.socket.clone(),
        "give the path of the vhost-user socket",
    )?;
    Ok(PortKind::VhostUser {
        socket: SocketPath::parse("socket", &socket)?,
        mode: socket_mode(fields)?,
        queue_pairs: fields
            .queue_pairs
            .map(QueuePairs::parse)
            .transpose()?
            .unwrap_or_default(),
        packed: fields.packed.unwrap_or_default(),
        device_state: fields.device_state.unwrap_or_default(),
    })
}

fn stream(fields: &PortFields) -> Result<PortKind, InvalidField> {
    foreign("interface", &fields.interface, "stream")?;
    foreign("queue_pairs", &fields.queue_pairs, "stream")?;
    foreign("packed", &fields.packed, "stream")?;
    foreign("device_state", &fields.device_state, "stream")?;
    let socket = required(
        "socket",
        fields.socket.clone(),
        "give the path of the socket that QEMU's -netdev stream has",
    )?;
    Ok(PortKind::Stream {
        socket: SocketPath::parse("socket", &socket)?,
        mode: socket_mode(fields)?,
    })
}

fn socket_mode(fields: &PortFields) -> Result<SocketMode, InvalidField> {
    match fields.mode.as_deref() {
        None | Some("server") => Ok(SocketMode::Server),
        Some("client") => Ok(SocketMode::Client),
        Some(other) => Err(InvalidField::new(
            "mode",
            format!("{} is not a mode", quoted(other)),
            "use \"server\" (Ringswitch listens) or \"client\" (the hypervisor listens)",
        )),
    }
}

fn tap(fields: &PortFields) -> Result<PortKind, InvalidField> {
    foreign("socket", &fields.socket, "tap")?;
    foreign("mode", &fields.mode, "tap")?;
    foreign("queue_pairs", &fields.queue_pairs, "tap")?;
    foreign("packed", &fields.packed, "tap")?;
    foreign("device_state", &fields.device_state, "tap")?;
    let interface = required(
        "interface",
        fields.interface.clone(),
        "name the TAP interface, such as rs-host0",
    )?;
    Ok(PortKind::Tap {
        interface: InterfaceName::parse(&interface)?,
    })
}

/// Refuses a field that the port's type does not have: ignoring it would hide a mistake.
fn foreign<T>(field: &'static str, value: &Option<T>, kind: &str) -> Result<(), InvalidField> {
    match value {
        None => Ok(()),
        Some(_) => Err(InvalidField::new(
            field,
            format!("a {kind} port does not have it"),
            "remove it, or change `type`",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vhost_fields() -> PortFields {
        PortFields {
            name: Some("vm1".into()),
            kind: Some("vhost-user".into()),
            socket: Some("/run/vm1.sock".into()),
            ..Default::default()
        }
    }

    fn stream_fields() -> PortFields {
        PortFields {
            kind: Some("stream".into()),
            ..vhost_fields()
        }
    }

    fn tap_fields() -> PortFields {
        PortFields {
            name: Some("host0".into()),
            kind: Some("tap".into()),
            interface: Some("rs-host0".into()),
            ..Default::default()
        }
    }

    #[test]
    fn a_vhost_user_port_needs_only_name_type_and_socket() {
        let port = PortConfig::from_fields(vhost_fields()).unwrap();
        assert_eq!(
            port.kind,
            PortKind::VhostUser {
                socket: SocketPath::parse("socket", "/run/vm1.sock").unwrap(),
                mode: SocketMode::Server,
                queue_pairs: QueuePairs::default(),
                packed: false,
                device_state: false,
            }
        );
        assert_eq!((port.mtu, port.vlan), (None, VlanPolicy::Transparent));
    }

    #[test]
    fn a_stream_port_is_read_as_it_is_written() {
        for mode in [None, Some("client".to_owned())] {
            let fields = PortFields {
                mode: mode.clone(),
                ..stream_fields()
            };
            let port = PortConfig::from_fields(fields.clone()).unwrap();
            let expected = match mode {
                None => SocketMode::Server,
                Some(_) => SocketMode::Client,
            };
            assert_eq!(
                port.kind,
                PortKind::Stream {
                    socket: SocketPath::parse("socket", "/run/vm1.sock").unwrap(),
                    mode: expected,
                }
            );
            assert_eq!(PortFields::from(&port), fields);
        }
    }

    #[test]
    fn a_trunk_is_sorted_and_without_repeats() {
        let vlan = VlanFields {
            trunk: Some(vec![20, 10, 20]),
            native: Some(1),
            ..Default::default()
        };
        let port = PortConfig::from_fields(PortFields {
            vlan: Some(vlan),
            ..tap_fields()
        })
        .unwrap();
        let VlanPolicy::Trunk { allowed, native } = port.vlan else {
            panic!("not a trunk: {:?}", port.vlan)
        };
        let tagged: Vec<u16> = allowed.iter().map(VlanId::get).collect();
        assert_eq!((tagged, native), (vec![10, 20], VlanId::new(1)));
    }

    #[test]
    fn every_refusal_names_its_field() {
        let vlan = |access, trunk: Option<&[i64]>, native| {
            Some(VlanFields {
                access,
                trunk: trunk.map(<[i64]>::to_vec),
                native,
            })
        };
        let cases = [
            (
                "name",
                PortFields {
                    name: None,
                    ..vhost_fields()
                },
            ),
            (
                "name",
                PortFields {
                    name: Some("a b".into()),
                    ..vhost_fields()
                },
            ),
            (
                "type",
                PortFields {
                    kind: None,
                    ..vhost_fields()
                },
            ),
            (
                "type",
                PortFields {
                    kind: Some("veth".into()),
                    ..vhost_fields()
                },
            ),
            (
                "socket",
                PortFields {
                    socket: None,
                    ..vhost_fields()
                },
            ),
            (
                "socket",
                PortFields {
                    socket: Some("vm1.sock".into()),
                    ..vhost_fields()
                },
            ),
            (
                "mode",
                PortFields {
                    mode: Some("listen".into()),
                    ..vhost_fields()
                },
            ),
            (
                "queue_pairs",
                PortFields {
                    queue_pairs: Some(0),
                    ..vhost_fields()
                },
            ),
            (
                "interface",
                PortFields {
                    interface: Some("tap0".into()),
                    ..vhost_fields()
                },
            ),
            (
                "socket",
                PortFields {
                    socket: None,
                    ..stream_fields()
                },
            ),
            (
                "mode",
                PortFields {
                    mode: Some("listen".into()),
                    ..stream_fields()
                },
            ),
            (
                "queue_pairs",
                PortFields {
                    queue_pairs: Some(1),
                    ..stream_fields()
                },
            ),
            (
                "packed",
                PortFields {
                    packed: Some(false),
                    ..stream_fields()
                },
            ),
            (
                "device_state",
                PortFields {
                    device_state: Some(false),
                    ..stream_fields()
                },
            ),
            (
                "interface",
                PortFields {
                    interface: Some("tap0".into()),
                    ..stream_fields()
                },
            ),
            (
                "interface",
                PortFields {
                    interface: None,
                    ..tap_fields()
                },
            ),
            (
                "interface",
                PortFields {
                    interface: Some("a/b".into()),
                    ..tap_fields()
                },
            ),
            (
                "socket",
                PortFields {
                    socket: Some("/run/vm1.sock".into()),
                    ..tap_fields()
                },
            ),
            (
                "mode",
                PortFields {
                    mode: Some("server".into()),
                    ..tap_fields()
                },
            ),
            (
                "queue_pairs",
                PortFields {
                    queue_pairs: Some(1),
                    ..tap_fields()
                },
            ),
            (
                "mtu",
                PortFields {
                    mtu: Some(67),
                    ..tap_fields()
                },
            ),
            (
                "vlan",
                PortFields {
                    vlan: vlan(None, None, None),
                    ..tap_fields()
                },
            ),
            (
                "vlan",
                PortFields {
                    vlan: vlan(Some(1), Some(&[2]), None),
                    ..tap_fields()
                },
            ),
            (
                "vlan",
                PortFields {
                    vlan: vlan(Some(1), None, Some(2)),
                    ..tap_fields()
                },
            ),
            (
                "vlan.native",
                PortFields {
                    vlan: vlan(None, None, Some(2)),
                    ..tap_fields()
                },
            ),
            (
                "vlan.access",
                PortFields {
                    vlan: vlan(Some(4095), None, None),
                    ..tap_fields()
                },
            ),
            (
                "vlan.trunk",
                PortFields {
                    vlan: vlan(None, Some(&[]), None),
                    ..tap_fields()
                },
            ),
            (
                "vlan.trunk",
                PortFields {
                    vlan: vlan(None, Some(&[1, 0]), None),
                    ..tap_fields()
                },
            ),
            (
                "vlan.native",
                PortFields {
                    vlan: vlan(None, Some(&[1]), Some(0)),
                    ..tap_fields()
                },
            ),
        ];
        for (field, fields) in cases {
            let error = PortConfig::from_fields(fields.clone()).expect_err(&format!("{fields:?}"));
            assert_eq!(error.field, field, "{fields:?}");
            assert!(!error.remedy.is_empty());
        }
    }

    #[test]
    fn ports_collide_by_name_socket_or_interface_and_by_nothing_else() {
        let port = |fields| PortConfig::from_fields(fields).unwrap();
        let vm1 = port(vhost_fields());
        let named = |name: &str, fields: PortFields| {
            port(PortFields {
                name: Some(name.into()),
                ..fields
            })
        };
        let collision = |ports: &[&PortConfig]| first_collision(ports.iter().copied());
        let (h1, h2) = (named("h1", tap_fields()), named("h2", tap_fields()));
        let twin = named("vm2", stream_fields());
        let namesake = named("vm1", tap_fields());
        for (ports, port, earlier, field) in [
            (vec![&vm1, &namesake], 1, 0, "name"),
            (vec![&h1, &vm1, &twin], 2, 1, "socket"),
            (vec![&h1, &vm1, &h2, &twin], 2, 0, "interface"),
        ] {
            let expected = Collision {
                port,
                earlier,
                field,
            };
            assert_eq!(collision(&ports), Some(expected));
        }
        assert_eq!(collision(&[&vm1, &h1]), None);
    }
}
