//! The programs that ship with the switch, and what they and the services say to each other.

use crate::service::{NO_INTERFACE, PacketMetadata, PuntReason};

/// The JSON of `vpc`.
pub const VPC: &str = include_str!("../programs/vpc.json");

/// Every program that ships: its name and its JSON.
const PROGRAMS: [(&str, &str); 3] = [
    ("vpc", VPC),
    ("acl", include_str!("../programs/acl.json")),
    ("tunnel", include_str!("../programs/tunnel.json")),
];

/// The JSON of a program that ships with the switch, by its name.
pub fn builtin(name: &str) -> Option<&'static str> {
    PROGRAMS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, json)| *json)
}

/// The names of the programs that ship.
pub fn names() -> impl Iterator<Item = &'static str> {
    PROGRAMS.iter().map(|(name, _)| *name)
}

/// What `vpc` means by the numbers of a frame that it sends to the controller: router interface, bridge domain that the frame came
/// from, VRF, next hop. The interface is the one that the packet was to leave by where the reason is about that, else the one that it
/// came in by.
pub fn packet_metadata(reason: PuntReason, args: [u128; 4]) -> PacketMetadata {
    let [interface, domain, _, next_hop] = args;
    let (interface, egress_interface) = match reason {
        PuntReason::NextHopUnresolved | PuntReason::PacketTooBig => {
            (NO_INTERFACE, interface as u32)
        }
        _ => (interface as u32, NO_INTERFACE),
    };
    PacketMetadata {
        interface,
        egress_interface,
        domain: domain as u16,
        next_hop,
        mtu_bytes: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::model::Program;

    #[test]
    fn every_shipped_program_is_valid_under_its_own_name() {
        for name in names() {
            let json = builtin(name).unwrap_or_default();
            let valid =
                Program::from_json(json).unwrap_or_else(|errors| panic!("{name}: {errors}"));
            assert_eq!(valid.program().name, name);
        }
        assert_eq!(builtin("none"), None);
    }
}
