//! The single values of the configuration, each parsed once and valid ever after.
use std::ffi::OsString;
use std::fmt;
use std::path::{Component, Path, PathBuf};
use switch_core::VlanId;

/// One field that cannot be accepted: which, why, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}`: {reason}; {remedy}")]
pub struct InvalidField {
    /// The field as the operator writes it: `socket`, `vlan.trunk`.
    pub field: &'static str,
    /// What is wrong, with the value in question.
    pub reason: String,
    /// What to do about it.
    pub remedy: String,
}

impl InvalidField {
    /// An error for `field`.
    pub fn new(field: &'static str, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            field,
            reason: reason.into(),
            remedy: remedy.into(),
        }
    }
}

/// A whole number within `low..=high`, or the reason why not.
pub(crate) fn bounded(
    field: &'static str,
    value: i64,
    low: u32,
    high: u32,
) -> Result<u32, InvalidField> {
    match u32::try_from(value) {
        Ok(value) if (low..=high).contains(&value) => Ok(value),
        _ => Err(InvalidField::new(
            field,
            format!("{value} is out of bounds"),
            format!("use a whole number from {low} to {high}"),
        )),
    }
}

/// Narrows a number whose bound is known to fit 16 bits.
fn bounded_u16(field: &'static str, value: i64, low: u16, high: u16) -> Result<u16, InvalidField> {
    bounded(field, value, u32::from(low), u32::from(high))
        .map(|value| u16::try_from(value).unwrap_or(high))
}

/// Shows an operator's text in an error: quoted, control characters escaped, cut at 64 characters.
pub(crate) fn quoted(text: &str) -> String {
    const SHOWN_CHARS: usize = 64;
    let mut shown: String = text
        .chars()
        .take(SHOWN_CHARS)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(SHOWN_CHARS).is_some() {
        shown.push('…');
    }
    format!("\"{shown}\"")
}

/// A port's name: 1 to 63 of `A-Z a-z 0-9 . _ -`, so that it is safe in a URL, a log line and a shell.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortName(String);

impl PortName {
    /// Longest name, in bytes.
    pub const MAX_BYTES: usize = 63;

    /// Checks the characters and the length.
    pub fn parse(text: &str) -> Result<Self, InvalidField> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        // "." and ".." are path segments that HTTP clients resolve away (RFC 3986 §5.2.4).
        let addressable = text != "." && text != "..";
        if !text.is_empty()
            && text.len() <= Self::MAX_BYTES
            && text.bytes().all(allowed)
            && addressable
        {
            return Ok(Self(text.to_owned()));
        }
        Err(InvalidField::new(
            "name",
            format!("{} is not a port name", quoted(text)),
            "use 1 to 63 letters, digits, '.', '_' or '-'",
        ))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An absolute path that fits a UNIX socket address. Two spellings of one path (`//`, `/./`) compare equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketPath(OsString);

impl SocketPath {
    /// Longest path, in bytes: `sun_path` is 108 with its closing NUL (unix(7)).
    pub const MAX_BYTES: usize = 107;

    /// Checks a path; `field` names it in the error (`socket`, `admin`).
    pub fn parse(field: &'static str, text: &str) -> Result<Self, InvalidField> {
        let refuse = |reason: String, remedy: &str| Err(InvalidField::new(field, reason, remedy));
        let path = Path::new(text);
        if !path.is_absolute() {
            return refuse(
                format!("{} is not an absolute path", quoted(text)),
                "start it with '/', such as /run/ringswitch/vm1.sock",
            );
        }
        if text.len() > Self::MAX_BYTES {
            return refuse(
                format!("{} is {} bytes long", quoted(text), text.len()),
                "a UNIX socket path holds at most 107 bytes: use a shorter one",
            );
        }
        if text.contains('\0') {
            return refuse(format!("{} contains a NUL byte", quoted(text)), "remove it");
        }
        if path.components().any(|part| part == Component::ParentDir)
            || path.file_name().is_none()
            || text.ends_with('/')
        {
            return refuse(
                format!("{} does not name a file directly", quoted(text)),
                "write the path without '..' and end it with the socket's name",
            );
        }
        // In one spelling, so that comparing is comparing bytes.
        Ok(Self(
            path.components().collect::<PathBuf>().into_os_string(),
        ))
    }

    /// The path.
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl fmt::Display for SocketPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

/// Checks the absolute path of a folder; `field` names it in the error.
pub fn folder(field: &'static str, text: &str) -> Result<PathBuf, InvalidField> {
    let path = Path::new(text);
    let plain = path.is_absolute()
        && !text.contains('\0')
        && path.components().all(|part| part != Component::ParentDir);
    if plain {
        Ok(path.components().collect())
    } else {
        Err(InvalidField::new(
            field,
            format!("{} is not the absolute path of a folder", quoted(text)),
            "start it with '/' and write it without '..', such as /run/ringswitch/rings",
        ))
    }
}

/// A network interface's name, as the kernel accepts it (`dev_valid_name`): 1 to 15 bytes, no `/`, `:`, `%` or white space.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// Longest name, in bytes: `IFNAMSIZ` is 16 with its closing NUL.
    pub const MAX_BYTES: usize = 15;

    /// Checks the characters and the length. `%` would make the kernel choose a number, so that the name is not the one asked for.
    pub fn parse(text: &str) -> Result<Self, InvalidField> {
        let allowed = |byte: u8| byte.is_ascii_graphic() && !b"/:%".contains(&byte);
        let named = text != "." && text != "..";
        if !text.is_empty() && text.len() <= Self::MAX_BYTES && text.bytes().all(allowed) && named {
            return Ok(Self(text.to_owned()));
        }
        Err(InvalidField::new(
            "interface",
            format!("{} is not an interface name", quoted(text)),
            "use 1 to 15 printable characters without '/', ':' or '%', such as rs-host0",
        ))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Pairs of guest_rx and guest_tx rings a port offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuePairs(u16);

impl QueuePairs {
    /// What a port can have.
    pub const MAX: u16 = crate::datapath::ports::MAX_QUEUE_PAIRS;

    /// 1 to [`Self::MAX`].
    pub fn parse(value: i64) -> Result<Self, InvalidField> {
        bounded_u16("queue_pairs", value, 1, Self::MAX).map(Self)
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl Default for QueuePairs {
    fn default() -> Self {
        Self(1)
    }
}

/// The MTU offered to a guest or set on a TAP, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mtu(u16);

impl Mtu {
    /// The least an IPv4 link carries (RFC 791 §3.2), and the least `VIRTIO_NET_F_MTU` allows (VIRTIO 1.3 §5.1.4.1).
    pub const MIN: u16 = 68;
    /// The jumbo frames promised.
    pub const MAX: u16 = 9216;

    /// [`Self::MIN`] to [`Self::MAX`].
    pub fn parse(value: i64) -> Result<Self, InvalidField> {
        bounded_u16("mtu", value, Self::MIN, Self::MAX).map(Self)
    }

    /// Bytes.
    pub fn get(self) -> u16 {
        self.0
    }
}

/// A VLAN, 1 to 4094; `field` names the value in the error (`vlan.access`).
pub(crate) fn vlan_id(field: &'static str, value: i64) -> Result<VlanId, InvalidField> {
    let number = u16::try_from(value).ok();
    number.and_then(VlanId::new).ok_or_else(|| {
        InvalidField::new(
            field,
            format!("{value} is not a VLAN"),
            "use a number from 1 to 4094 (IEEE 802.1Q)",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_refused_that_a_url_or_a_log_could_misread() {
        for bad in [
            "",
            ".",
            "..",
            "a b",
            "a/b",
            "a,b",
            "é",
            "a\n",
            &"x".repeat(64),
        ] {
            let error = PortName::parse(bad).unwrap_err();
            assert_eq!(error.field, "name", "{bad:?}");
        }
        for good in ["a", "vm-1.eth_0", "...", &"x".repeat(63)] {
            assert_eq!(PortName::parse(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn socket_paths_are_absolute_direct_and_fit_an_address() {
        let longest = format!("/{}", "s".repeat(SocketPath::MAX_BYTES - 1));
        let too_long = format!("{longest}s");
        for bad in [
            "",
            "vm.sock",
            "./vm.sock",
            "/",
            "/run/",
            "/run/..",
            "/run/../vm.sock",
            "/run/a\0b",
            too_long.as_str(),
        ] {
            assert!(SocketPath::parse("socket", bad).is_err(), "{bad:?}");
        }
        for good in ["/vm.sock", "/run/ringswitch/vm1.sock", longest.as_str()] {
            assert_eq!(
                SocketPath::parse("socket", good).unwrap().as_path(),
                Path::new(good)
            );
        }
    }

    #[test]
    fn two_spellings_of_one_socket_are_one() {
        let plain = SocketPath::parse("socket", "/run/vm.sock").unwrap();
        assert_eq!(
            SocketPath::parse("socket", "/run//./vm.sock").unwrap(),
            plain
        );
    }

    #[test]
    fn interface_names_are_those_the_kernel_takes_as_they_are() {
        for bad in [
            "",
            ".",
            "..",
            "a b",
            "a/b",
            "a:b",
            "tap%d",
            "sixteen-letters-",
            "é",
        ] {
            assert!(InterfaceName::parse(bad).is_err(), "{bad:?}");
        }
        for good in ["rs-host0", "tap0", "fifteen-letters"] {
            assert_eq!(InterfaceName::parse(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn numbers_are_taken_at_their_bounds_and_refused_past_them() {
        assert!(QueuePairs::parse(1).is_ok() && QueuePairs::parse(64).is_ok());
        assert!(
            QueuePairs::parse(0).is_err()
                && QueuePairs::parse(65).is_err()
                && QueuePairs::parse(i64::MIN).is_err()
        );
        assert!(Mtu::parse(68).is_ok() && Mtu::parse(9216).is_ok());
        assert!(
            Mtu::parse(67).is_err() && Mtu::parse(9217).is_err() && Mtu::parse(i64::MAX).is_err()
        );
        assert!(vlan_id("vlan", 1).is_ok() && vlan_id("vlan", 4094).is_ok());
        assert!(
            vlan_id("vlan", 0).is_err()
                && vlan_id("vlan", 4095).is_err()
                && vlan_id("vlan", 65_537).is_err()
        );
    }

    #[test]
    fn an_error_shows_hostile_text_escaped_and_cut() {
        let error = PortName::parse(&format!("\u{1b}[31m{}", "x".repeat(500))).unwrap_err();
        assert!(
            error.reason.contains("\\u{1b}") && error.reason.len() < 200,
            "{}",
            error.reason
        );
    }
}
