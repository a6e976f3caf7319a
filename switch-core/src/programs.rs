//! The programs that ship with the switch.

/// Every program that ships: its name and its JSON.
const PROGRAMS: [(&str, &str); 4] = [
    ("l2", include_str!("../programs/l2.json")),
    ("vpc", include_str!("../programs/vpc.json")),
    ("acl", include_str!("../programs/acl.json")),
    ("tunnel", include_str!("../programs/tunnel.json")),
];

/// The JSON of a program that ships with the switch, by its name.
///
/// That of `l2` is what the switch has compiled in, as data.
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
