//! A port's state as a migration carries it: with a signature, because it passes through a VMM.
//!
//! ```text
//! "RSWMOVE\n"  version u16  0 u16  0 u32  exported u64 (ms since 1970)  switch 16 bytes     all little-endian
//! the state ([`super::blob`])
//! HMAC-SHA256 of "ringswitch device state 1\0" and everything before it
//! ```
//! Whoever has the key may write entries, connections and stations into every switch that has it. Kept true: nothing of what came is looked
//! at before the signature was found to fit, in constant time.
use hmac::{Hmac, KeyInit, Mac};
use rustix::fs::{FileType, Mode, OFlags};
use sha2::Sha256;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"RSWMOVE\n";
const VERSION: u16 = 1;
/// Signatures are for this and nothing else, whatever else the key may sign one day.
const DOMAIN: &[u8] = b"ringswitch device state 1\0";
const SWITCH_DOMAIN: &[u8] = b"ringswitch switch 1\0";
const HEADER_BYTES: usize = 40;
const SIGNATURE_BYTES: usize = 32;
/// What a signed state has besides the state.
pub const OVERHEAD_BYTES: usize = HEADER_BYTES + SIGNATURE_BYTES;
/// The shortest key.
const MIN_KEY_BYTES: usize = 32;
/// The longest that is read: a wrong path ends.
const MAX_KEY_BYTES: usize = 4096;

/// Tells switches apart, for as long as they run.
pub type SwitchMark = [u8; 16];

/// What all hosts share.
#[derive(Clone, PartialEq, Eq)]
pub struct StateKey(Vec<u8>);

impl fmt::Debug for StateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StateKey")
    }
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not there, or not for us.
    #[error(
        "device_state_key_file {path}: it cannot be read ({source}); make it once with `(umask 077; head -c 32 /dev/urandom > {path})`, \
         and give every host the same file"
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A folder, a device or another thing.
    #[error("device_state_key_file {0}: it is not a file; name one with 32 random bytes or more")]
    NotAFile(PathBuf),
    /// Others may read or change it.
    #[error(
        "device_state_key_file {path}: others may use it (mode {mode:03o}); `chmod 600 {path}`, and make a new key if somebody else was there"
    )]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Too little or too much.
    #[error(
        "device_state_key_file {path}: a key has {MIN_KEY_BYTES} to {MAX_KEY_BYTES} bytes, this has {bytes}; make one with \
         `(umask 077; head -c 32 /dev/urandom > {path})`"
    )]
    Length {
        /// The file.
        path: PathBuf,
        /// How many it has; one more than the most for any more.
        bytes: usize,
    },
}

/// Bytes that are no state of ours. What they are is not told: they may be anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The other switch has no device state, say.
    #[error(
        "the state is empty: the switch that the VM comes from sent none; offer device_state on all hosts or on none"
    )]
    Empty,
    /// Damaged, forged, or of another key.
    #[error(
        "the state does not carry the signature of this switch's key: it is damaged or forged, or the hosts have different files in \
         device_state_key_file"
    )]
    Signature,
    /// Of a newer switch with the same key.
    #[error("the state is signed in a format of a newer switch: upgrade this one first")]
    Newer,
}

/// A state whose signature fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened<'a> {
    /// When it was signed, in milliseconds since 1970 by the clock of that host.
    pub exported_ms: u64,
    /// By which switch.
    pub switch: SwitchMark,
    /// The state.
    pub state: &'a [u8],
}

impl StateKey {
    /// Reads a key.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let unreadable = |source: std::io::Error| KeyError::Unreadable {
            path: path.to_owned(),
            source,
        };
        // A named pipe would wait for its writer.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::open(path, flags, Mode::empty());
        let file = file.map_err(|error| unreadable(error.into()))?;
        let stat = rustix::fs::fstat(&file).map_err(|error| unreadable(error.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(KeyError::NotAFile(path.to_owned()));
        }
        let mode = stat.st_mode & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::TooOpen {
                path: path.to_owned(),
                mode,
            });
        }
        let mut bytes = Vec::new();
        std::fs::File::from(file)
            .take(MAX_KEY_BYTES as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(unreadable)?;
        if !(MIN_KEY_BYTES..=MAX_KEY_BYTES).contains(&bytes.len()) {
            return Err(KeyError::Length {
                path: path.to_owned(),
                bytes: bytes.len(),
            });
        }
        Ok(Self(bytes))
    }

    /// A state with its signature.
    pub fn sign(&self, state: &[u8], exported_ms: u64, switch: &SwitchMark) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(state.len() + OVERHEAD_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend([0; 6]);
        bytes.extend(exported_ms.to_le_bytes());
        bytes.extend(switch);
        bytes.extend_from_slice(state);
        let signature = self.mac(DOMAIN, &bytes).finalize().into_bytes();
        bytes.extend(signature);
        bytes
    }

    /// The state, if the signature fits.
    ///
    /// # Errors
    /// See [`SignatureError`].
    pub fn open<'a>(&self, bytes: &'a [u8]) -> Result<Opened<'a>, SignatureError> {
        if bytes.is_empty() {
            return Err(SignatureError::Empty);
        }
        let (signed, signature) = bytes
            .split_last_chunk::<SIGNATURE_BYTES>()
            .ok_or(SignatureError::Signature)?;
        self.mac(DOMAIN, signed)
            .verify_slice(signature)
            .map_err(|_| SignatureError::Signature)?;
        let (header, state) = signed
            .split_first_chunk::<HEADER_BYTES>()
            .ok_or(SignatureError::Signature)?;
        let (magic, rest) = header.split_at(MAGIC.len());
        let ([v0, v1], rest) = rest
            .split_first_chunk::<2>()
            .ok_or(SignatureError::Signature)?;
        if magic != MAGIC || u16::from_le_bytes([*v0, *v1]) != VERSION {
            return Err(SignatureError::Newer);
        }
        let (exported, switch) = rest.split_at(14);
        let exported = exported.last_chunk().copied().unwrap_or_default();
        Ok(Opened {
            exported_ms: u64::from_le_bytes(exported),
            switch: switch.try_into().map_err(|_| SignatureError::Signature)?,
            state,
        })
    }

    /// The mark of the switch with that admin socket, in this mount namespace, until the host boots: the same after an upgrade.
    pub fn switch_mark(&self, admin: &Path) -> SwitchMark {
        let boot = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let space = std::fs::read_link("/proc/self/ns/mnt").unwrap_or_default();
        let place = [
            boot.as_slice(),
            space.as_os_str().as_encoded_bytes(),
            b"\0",
            admin.as_os_str().as_encoded_bytes(),
        ];
        let mac = self.mac(SWITCH_DOMAIN, &place.concat()).finalize();
        let mark = mac.into_bytes();
        mark.first_chunk().copied().unwrap_or_default()
    }

    fn mac(&self, domain: &[u8], bytes: &[u8]) -> Hmac<Sha256> {
        #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
        let mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("any length");
        mac.chain_update(domain).chain_update(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use vmm_sys_util::tempdir::TempDir;

    const SWITCH: SwitchMark = [7; 16];

    fn key(byte: u8) -> StateKey {
        StateKey(vec![byte; 32])
    }

    #[test]
    fn a_signed_state_opens_with_the_same_key_only() {
        let bytes = key(1).sign(b"state", 123, &SWITCH);
        assert_eq!(bytes.len(), 5 + OVERHEAD_BYTES);
        let opened = Opened {
            exported_ms: 123,
            switch: SWITCH,
            state: b"state",
        };
        assert_eq!(key(1).open(&bytes), Ok(opened));
        assert_eq!(key(2).open(&bytes), Err(SignatureError::Signature));
    }

    #[test]
    fn a_state_with_any_bit_turned_over_or_any_length_is_refused() {
        let bytes = key(1).sign(b"the state of a port", 123, &SWITCH);
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                assert!(key(1).open(&damaged).is_err(), "byte {at}, bit {bit}");
            }
            assert!(key(1).open(&bytes[..at]).is_err(), "{at} bytes");
        }
        let longer = [&bytes[..], b"\0"].concat();
        assert!(key(1).open(&longer).is_err());
        assert_eq!(key(1).open(b""), Err(SignatureError::Empty));
    }

    /// By a second implementation: Python's `hmac`, over the layout as the head of this module has it.
    #[test]
    fn the_signature_is_hmac_sha256_of_domain_and_bytes() {
        let bytes = StateKey(b"Jefe".to_vec()).sign(b"what do ya want for nothing?", 5, &SWITCH);
        let signature: String = bytes[bytes.len() - 32..]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(signature, PYTHON);
    }

    const PYTHON: &str = "104f89ff793f67a5f30176fac9765e670cc396d0ba3141087e74273a82c80f53";

    #[test]
    fn what_is_no_key_is_refused_with_what_to_do() {
        let folder = TempDir::new().unwrap();
        let path = folder.as_path().join("key");
        let text = |path: &Path| StateKey::read(path).unwrap_err().to_string();
        assert!(text(&path).contains("head -c 32 /dev/urandom"));
        std::fs::write(&path, [1; 32]).unwrap();
        let set = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        for mode in [0o640, 0o604, 0o660, 0o602, 0o644] {
            set(mode);
            assert!(text(&path).contains("chmod 600"), "{mode:o}");
        }
        for mode in [0o600, 0o400] {
            set(mode);
            assert_eq!(StateKey::read(&path).unwrap(), key(1));
        }
        set(0o600);
        std::fs::write(&path, [1; 31]).unwrap();
        assert!(text(&path).contains("this has 31"));
        std::fs::write(&path, [1; MAX_KEY_BYTES + 1]).unwrap();
        assert!(text(&path).contains("this has 4097"));
        assert!(text(folder.as_path()).contains("not a file"));
        assert!(text(Path::new("/dev/urandom")).contains("not a file"));
        assert!(!format!("{:?}", key(1)).contains('1'));
    }
}
