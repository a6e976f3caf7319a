//! One port as `key=value,key=value` text: the argument of `--port` and of `port add`.
//!
//! The keys are those of the file. A comma within a value is doubled, as in QEMU's options. `vlan` is one value: `10` or `access:10` for an
//! access port, `trunk:10+20` for a trunk, whose untagged VLAN is the key `native`.
use super::port::{PortFields, VlanFields};
use super::value::{InvalidField, quoted};

/// The keys, for error messages and the command line's help.
pub const KEYS: &str =
    "name, type, socket, mode, queue_pairs, packed, device_state, mtu, vlan, native, interface";

/// Splits and types the fields of one port; their values are checked by [`super::PortConfig::from_fields`].
pub fn parse_port(text: &str) -> Result<PortFields, InvalidField> {
    let mut fields = PortFields::default();
    let mut native = None;
    for item in split_items(text) {
        let Some((key, value)) = item.split_once('=') else {
            return Err(malformed(format!("{} is not key=value", quoted(&item))));
        };
        let value = value.to_owned();
        match key {
            "name" => set("name", &mut fields.name, value)?,
            "type" => set("type", &mut fields.kind, value)?,
            "socket" => set("socket", &mut fields.socket, value)?,
            "mode" => set("mode", &mut fields.mode, value)?,
            "interface" => set("interface", &mut fields.interface, value)?,
            "queue_pairs" => set(
                "queue_pairs",
                &mut fields.queue_pairs,
                number("queue_pairs", &value)?,
            )?,
            "packed" => set("packed", &mut fields.packed, truth("packed", &value)?)?,
            "device_state" => set(
                "device_state",
                &mut fields.device_state,
                truth("device_state", &value)?,
            )?,
            "mtu" => set("mtu", &mut fields.mtu, number("mtu", &value)?)?,
            "vlan" => set("vlan", &mut fields.vlan, parse_vlan(&value)?)?,
            "native" => set("native", &mut native, number("native", &value)?)?,
            unknown => {
                return Err(malformed(format!(
                    "{} is not a key of a port",
                    quoted(unknown)
                )));
            }
        }
    }
    if native.is_some() {
        fields.vlan.get_or_insert_default().native = native;
    }
    Ok(fields)
}

fn malformed(reason: String) -> InvalidField {
    InvalidField::new(
        "port",
        reason,
        format!("write key=value pairs separated by commas; the keys are {KEYS}"),
    )
}

/// The text that [`parse_port`] reads as these fields.
pub fn port_text(fields: &PortFields) -> String {
    let number = |value: Option<i64>| value.map(|value| value.to_string());
    let vlan = fields.vlan.as_ref().and_then(|vlan| {
        let trunk = vlan.trunk.as_ref().map(|trunk| {
            let ids: Vec<String> = trunk.iter().map(i64::to_string).collect();
            format!("trunk:{}", ids.join("+"))
        });
        trunk.or_else(|| number(vlan.access))
    });
    let items = [
        ("name", fields.name.clone()),
        ("type", fields.kind.clone()),
        ("socket", fields.socket.clone()),
        ("mode", fields.mode.clone()),
        ("queue_pairs", number(fields.queue_pairs)),
        ("packed", fields.packed.map(|packed| packed.to_string())),
        (
            "device_state",
            fields.device_state.map(|offered| offered.to_string()),
        ),
        ("interface", fields.interface.clone()),
        ("mtu", number(fields.mtu)),
        ("vlan", vlan),
        (
            "native",
            fields.vlan.as_ref().and_then(|vlan| number(vlan.native)),
        ),
    ];
    let written: Vec<String> = items
        .into_iter()
        .filter_map(|(key, value)| Some(format!("{key}={}", value?.replace(',', ",,"))))
        .collect();
    written.join(",")
}

/// Splits at single commas; a doubled one is a comma within the value.
pub(crate) fn split_items(text: &str) -> Vec<String> {
    let mut items = vec![];
    let mut item = String::new();
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            ',' if chars.next_if_eq(&',').is_some() => item.push(','),
            ',' => items.push(std::mem::take(&mut item)),
            other => item.push(other),
        }
    }
    items.push(item);
    items
}

fn set<T>(key: &'static str, field: &mut Option<T>, value: T) -> Result<(), InvalidField> {
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err(InvalidField::new(key, "it is given twice", "give it once")),
    }
}

fn number(key: &'static str, text: &str) -> Result<i64, InvalidField> {
    text.parse().map_err(|_| {
        InvalidField::new(
            key,
            format!("{} is not a whole number", quoted(text)),
            "write digits only",
        )
    })
}

fn truth(key: &'static str, text: &str) -> Result<bool, InvalidField> {
    text.parse().map_err(|_| {
        InvalidField::new(
            key,
            format!("{} is neither true nor false", quoted(text)),
            "write true or false",
        )
    })
}

fn parse_vlan(text: &str) -> Result<VlanFields, InvalidField> {
    if let Some(list) = text.strip_prefix("trunk:") {
        let trunk = list
            .split('+')
            .map(|id| number("vlan", id))
            .collect::<Result<_, _>>()?;
        return Ok(VlanFields {
            trunk: Some(trunk),
            ..Default::default()
        });
    }
    let access = text.strip_prefix("access:").unwrap_or(text);
    let access = access.parse().map_err(|_| {
        InvalidField::new(
            "vlan",
            format!("{} is not a VLAN membership", quoted(text)),
            "write vlan=10 (access) or vlan=trunk:10+20,native=1",
        )
    })?;
    Ok(VlanFields {
        access: Some(access),
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_the_file_has_its_flag() {
        let text = "name=vm1,type=vhost-user,socket=/run/vm1.sock,mode=client,queue_pairs=2,packed=true,device_state=true,mtu=9000,vlan=trunk:10+20,native=1,interface=x";
        let expected = PortFields {
            name: Some("vm1".into()),
            kind: Some("vhost-user".into()),
            socket: Some("/run/vm1.sock".into()),
            mode: Some("client".into()),
            queue_pairs: Some(2),
            packed: Some(true),
            device_state: Some(true),
            interface: Some("x".into()),
            mtu: Some(9000),
            vlan: Some(VlanFields {
                access: None,
                trunk: Some(vec![10, 20]),
                native: Some(1),
            }),
        };
        assert_eq!(parse_port(text).as_ref(), Ok(&expected));
        assert_eq!(parse_port(&port_text(&expected)), Ok(expected));
        let comma = parse_port("socket=/run/a,,b,vlan=10").unwrap();
        assert_eq!(port_text(&comma), "socket=/run/a,,b,vlan=10");
    }

    #[test]
    fn an_access_vlan_has_a_short_and_a_long_form() {
        let access = Some(VlanFields {
            access: Some(10),
            ..Default::default()
        });
        assert_eq!(parse_port("vlan=10").unwrap().vlan, access);
        assert_eq!(parse_port("vlan=access:10").unwrap().vlan, access);
    }

    #[test]
    fn a_doubled_comma_is_one_within_the_value() {
        assert_eq!(
            parse_port("socket=/run/a,,b,name=x")
                .unwrap()
                .socket
                .as_deref(),
            Some("/run/a,b")
        );
    }

    #[test]
    fn what_is_not_a_port_is_refused_with_its_key() {
        let cases = [
            ("", "port"),
            ("name", "port"),
            ("name=a,", "port"),
            ("nmae=a", "port"),
            ("name=a,name=b", "name"),
            ("mtu=big", "mtu"),
            ("mtu=", "mtu"),
            ("queue_pairs=99999999999999999999", "queue_pairs"),
            ("vlan=trunk:", "vlan"),
            ("vlan=trunk:1+", "vlan"),
            ("vlan=all", "vlan"),
            ("vlan=10,vlan=11", "vlan"),
            ("native=x", "native"),
        ];
        for (text, field) in cases {
            let error = parse_port(text).expect_err(text);
            assert_eq!(error.field, field, "{text:?}: {error}");
        }
    }
}
