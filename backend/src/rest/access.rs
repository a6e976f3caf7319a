//! Who may do what: roles, the file of tokens, and the question each request is asked.
//!
//! Runs on the main thread, before a request reaches its route. Over the admin socket nobody is asked: who can open it may do everything.
//! Over TCP every request proves a role by its token, its connection by a certificate, or both, and may then do what both allow. What is
//! known of tokens is their digests alone, and they are compared in constant time.
use super::problem::Problem;
use super::web_page;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hmac::{Hmac, KeyInit, Mac};
use rustix::fs::{FileType, Mode, OFlags, Stat};
use sha2::Sha256;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Largest file of tokens.
const MAX_FILE_BYTES: u64 = 64 * 1024;
/// Bounds of a token: shorter ones can be guessed.
const TOKEN_BYTES: std::ops::RangeInclusive<usize> = 16..=512;
/// What digests of tokens are of.
const DOMAIN: &[u8] = b"ringswitch admin token";

/// What somebody may do. The lesser is less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Look at everything, change nothing.
    Read,
    /// Everything.
    Admin,
}

impl Role {
    /// Whether a request is within the role. To have a frame explained changes nothing.
    fn may(self, method: &Method, path: &str) -> bool {
        let looks = method == Method::GET
            || method == Method::HEAD
            || (method == Method::POST && path == "/v1/explain");
        self == Self::Admin || looks
    }
}

/// How a connection's requests prove who they are of.
#[derive(Clone, Debug)]
pub enum Access {
    /// They need not: it is the admin socket.
    Local,
    /// Over TCP.
    Remote {
        /// By a token.
        tokens: Option<Arc<Tokens>>,
        /// By the certificate that the connection began with.
        certificate: Option<Role>,
    },
}

impl Access {
    /// Lets a request pass, or answers it.
    pub fn check(&self, method: &Method, path: &str, headers: &HeaderMap) -> Result<(), Denied> {
        let looks = method == Method::GET || method == Method::HEAD;
        if !looks && is_foreign(headers) {
            return Err(Denied::Foreign);
        }
        if web_page::PATHS.contains(&path) {
            // The page asks whoever looks at it for a token.
            return Ok(());
        }
        let role = match self {
            Self::Local => return Ok(()),
            Self::Remote {
                tokens: Some(tokens),
                certificate,
            } => {
                let token = bearer(headers).ok_or(Denied::NoToken)?;
                let role = tokens.role(token).ok_or(Denied::UnknownToken)?;
                certificate.map_or(role, |certified| role.min(certified))
            }
            Self::Remote {
                tokens: None,
                certificate,
            } => certificate.ok_or(Denied::NoToken)?,
        };
        if role.may(method, path) {
            Ok(())
        } else {
            Err(Denied::ReadOnly)
        }
    }
}

/// Whether a browser sends it for a page that is not the daemon's own: certificates go along with whatever such a page asks for.
fn is_foreign(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return false;
    };
    let text = origin.to_str().unwrap_or_default();
    let origin = text.split_once("://").map(|(_, authority)| authority);
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    match (origin, host) {
        (Some(origin), Some(host)) => !origin.eq_ignore_ascii_case(host),
        _ => true,
    }
}

/// The token of `Authorization: Bearer TOKEN` (RFC 6750 §2.1).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = text.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim_matches(' '))
}

/// Why a request is not let pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// It has none.
    NoToken,
    /// It is none of the file's.
    UnknownToken,
    /// It would change something.
    ReadOnly,
    /// It would change something, for another site's page.
    Foreign,
}

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        let (status, detail, remedy, challenge) = match self {
            Self::NoToken => (
                StatusCode::UNAUTHORIZED,
                "the request has no token",
                "send the header Authorization: Bearer TOKEN, with a token of the daemon's file; `ringswitch` does with --token-file",
                r#"Bearer realm="ringswitch""#,
            ),
            Self::UnknownToken => (
                StatusCode::UNAUTHORIZED,
                "the token is none of the daemon's",
                "use one that is in the daemon's file of tokens now",
                r#"Bearer realm="ringswitch", error="invalid_token""#,
            ),
            Self::ReadOnly => (
                StatusCode::FORBIDDEN,
                "the token or certificate is for reading only, and this changes something",
                "use one with the role admin",
                r#"Bearer realm="ringswitch", error="insufficient_scope""#,
            ),
            Self::Foreign => {
                return Problem::new(
                    StatusCode::FORBIDDEN,
                    "a page of another site asks for a change",
                )
                .about("Origin")
                .remedy("use the daemon's own page, or a client that is no browser")
                .into_response();
            }
        };
        let mut response = Problem::new(status, detail).remedy(remedy).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::WWW_AUTHENTICATE,
            HeaderValue::from_static(challenge),
        );
        response
    }
}

/// Why a file of tokens cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// It cannot be read.
    #[error("{}: cannot be read ({source}); name a readable file with `token_file`", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A folder, a pipe, a device.
    #[error("{}: it is no regular file; name one with `token_file`", .0.display())]
    NotAFile(PathBuf),
    /// Others could read or change it.
    #[error("{}: others may read or change it (mode {mode:03o}); chmod 600 it", .path.display())]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Something in it.
    #[error("{}:{line}: {reason}; write `admin TOKEN` or `read TOKEN`, with a token such as `head -c 32 /dev/urandom | base64` makes", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong. Never what is written there.
        reason: &'static str,
    },
    /// There is nothing in it.
    #[error("{}: there is no token in it; write `admin TOKEN` or `read TOKEN`", .0.display())]
    Empty(PathBuf),
}

/// The tokens of a file, which is read again when it has changed.
#[derive(Debug)]
pub struct Tokens {
    path: PathBuf,
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    /// What the file was when it was last looked into, to any end.
    seen: Option<Seen>,
    tokens: Vec<Token>,
}

#[derive(Clone, Debug)]
struct Token {
    role: Role,
    digest: [u8; 32],
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    inode: (u64, u64),
    changed: (i64, i64),
    bytes: i64,
}

impl Seen {
    #[allow(clippy::unnecessary_cast)] // The fields' types are not the same on every machine.
    fn of(stat: &Stat) -> Self {
        Self {
            inode: (stat.st_dev as u64, stat.st_ino as u64),
            changed: (stat.st_ctime as i64, stat.st_ctime_nsec as i64),
            bytes: stat.st_size as i64,
        }
    }
}

impl Tokens {
    /// Reads the file.
    pub fn read(path: &Path) -> Result<Self, TokenFileError> {
        let (seen, tokens) = read(path)?;
        let held = Mutex::new(Held {
            seen: Some(seen),
            tokens,
        });
        Ok(Self {
            path: path.to_owned(),
            held,
        })
    }

    /// The role of a token; that of the greatest, if it is there more than once.
    fn role(&self, presented: &str) -> Option<Role> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        self.refresh(&mut held);
        let mut role = None;
        // To the end, so that the time it takes tells nothing.
        for token in &held.tokens {
            let matches = mac(presented).verify_slice(&token.digest).is_ok();
            role = role.max(matches.then_some(token.role));
        }
        role
    }

    /// Reads the file again if it has changed. One that cannot be used leaves the tokens there were, and is said once.
    fn refresh(&self, held: &mut Held) {
        let now = rustix::fs::stat(&self.path).ok().as_ref().map(Seen::of);
        if now == held.seen {
            return;
        }
        held.seen = now;
        match read(&self.path) {
            Ok((seen, tokens)) => {
                log::info!("{} tokens from {}", tokens.len(), self.path.display());
                held.seen = Some(seen);
                held.tokens = tokens;
            }
            Err(error) => log::warn!("the tokens stay those that were read before: {error}"),
        }
    }
}

fn mac(token: &str) -> Hmac<Sha256> {
    // HMAC takes keys of every length; were one refused, the empty key's digest is that of no token.
    let keyed = Hmac::<Sha256>::new_from_slice(token.as_bytes());
    keyed
        .unwrap_or_else(|_| Hmac::new(&Default::default()))
        .chain_update(DOMAIN)
}

fn read(path: &Path) -> Result<(Seen, Vec<Token>), TokenFileError> {
    let unreadable = |source: io::Error| TokenFileError::Unreadable {
        path: path.to_owned(),
        source,
    };
    // A named pipe would wait for its writer.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty());
    let file = file.map_err(|error| unreadable(error.into()))?;
    let stat = rustix::fs::fstat(&file).map_err(|error| unreadable(error.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(TokenFileError::NotAFile(path.to_owned()));
    }
    let mode = stat.st_mode & 0o777;
    // The group may be let read it, but not write.
    if mode & 0o027 != 0 {
        let path = path.to_owned();
        return Err(TokenFileError::TooOpen { path, mode });
    }
    let mut text = String::new();
    std::fs::File::from(file)
        .take(MAX_FILE_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(unreadable(io::Error::other("it is larger than 64 KiB")));
    }
    Ok((Seen::of(&stat), parse(&text, path)?))
}

fn parse(text: &str, path: &Path) -> Result<Vec<Token>, TokenFileError> {
    let mut tokens = vec![];
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let token = token(line).map_err(|reason| TokenFileError::Malformed {
            path: path.to_owned(),
            line: number,
            reason,
        })?;
        tokens.push(token);
    }
    if tokens.is_empty() {
        return Err(TokenFileError::Empty(path.to_owned()));
    }
    Ok(tokens)
}

fn token(line: &str) -> Result<Token, &'static str> {
    let mut words = line.split_whitespace();
    let role = match words.next() {
        Some("admin") => Role::Admin,
        Some("read") => Role::Read,
        _ => return Err("it does not begin with a role"),
    };
    let (Some(text), None) = (words.next(), words.next()) else {
        return Err("there is not one token after the role");
    };
    // token68 of RFC 9110 §11.2, which is what a header can carry.
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    if !text.bytes().all(allowed) {
        return Err("the token has other characters than A-Z a-z 0-9 - . _ ~ + / =");
    }
    if !TOKEN_BYTES.contains(&text.len()) {
        return Err("the token is not 16 to 512 characters long");
    }
    Ok(Token {
        role,
        digest: mac(text).finalize().into_bytes().into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use vmm_sys_util::tempdir::TempDir;

    const ADMIN: &str = "0123456789abcdef/+==";
    const READER: &str = "fedcba9876543210";

    struct File {
        folder: TempDir,
    }

    impl File {
        fn new(text: &str) -> Self {
            let prefix = std::env::temp_dir().join("ringswitch-tokens-");
            let file = Self {
                folder: TempDir::new_with_prefix(prefix).unwrap(),
            };
            file.write(text, 0o600);
            file
        }

        fn path(&self) -> PathBuf {
            self.folder.as_path().join("tokens")
        }

        /// As an editor does: another file in its place.
        fn write(&self, text: &str, mode: u32) {
            let new = self.folder.as_path().join("new");
            std::fs::write(&new, text).unwrap();
            std::fs::set_permissions(&new, std::fs::Permissions::from_mode(mode)).unwrap();
            std::fs::rename(&new, self.path()).unwrap();
        }
    }

    fn tokens() -> String {
        format!("# who\nadmin {ADMIN}\n\n  read   {READER}\n")
    }

    fn remote(tokens: Tokens, certificate: Option<Role>) -> Access {
        Access::Remote {
            tokens: Some(Arc::new(tokens)),
            certificate,
        }
    }

    fn with(token: &str) -> HeaderMap {
        let value = HeaderValue::from_str(token).unwrap();
        HeaderMap::from_iter([(header::AUTHORIZATION, value)])
    }

    #[test]
    fn a_request_may_do_what_its_token_allows() {
        let file = File::new(&tokens());
        let access = remote(Tokens::read(&file.path()).unwrap(), None);
        let ask = |headers: &HeaderMap, method: &Method, path| access.check(method, path, headers);
        let (admin, reader) = (
            with(&format!("Bearer {ADMIN}")),
            with(&format!("bearer {READER}")),
        );
        let ports = "/v1/ports";
        assert_eq!(ask(&admin, &Method::POST, ports), Ok(()));
        assert_eq!(ask(&reader, &Method::GET, ports), Ok(()));
        assert_eq!(ask(&reader, &Method::HEAD, ports), Ok(()));
        assert_eq!(ask(&reader, &Method::POST, "/v1/explain"), Ok(()));
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            assert_eq!(
                ask(&reader, &method, ports),
                Err(Denied::ReadOnly),
                "{method}"
            );
        }
        assert_eq!(
            ask(&HeaderMap::new(), &Method::GET, ports),
            Err(Denied::NoToken)
        );
        assert_eq!(
            ask(&with(&format!("Basic {ADMIN}")), &Method::GET, ports),
            Err(Denied::NoToken)
        );
        for wrong in ["", "0123456789abcdef", "0123456789abcdef/+==x", "admin"] {
            let headers = with(&format!("Bearer {wrong}"));
            assert_eq!(
                ask(&headers, &Method::GET, ports),
                Err(Denied::UnknownToken),
                "{wrong}"
            );
        }
    }

    /// A browser sends its user's certificate with whatever any page asks for.
    #[test]
    fn a_page_of_another_site_changes_nothing() {
        let access = Access::Remote {
            tokens: None,
            certificate: Some(Role::Admin),
        };
        let ask = |origin: Option<&'static str>, method: &Method| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static("switch1:8443"));
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
            }
            access.check(method, "/v1/ports", &headers)
        };
        for own in [
            None,
            Some("https://switch1:8443"),
            Some("https://SWITCH1:8443"),
        ] {
            assert_eq!(ask(own, &Method::POST), Ok(()), "{own:?}");
        }
        for other in ["https://evil.example", "https://switch1", "null", ""] {
            assert_eq!(
                ask(Some(other), &Method::POST),
                Err(Denied::Foreign),
                "{other}"
            );
            // What it is answered it cannot read.
            assert_eq!(ask(Some(other), &Method::GET), Ok(()), "{other}");
        }
    }

    #[test]
    fn a_certificate_and_a_token_allow_what_both_do() {
        let file = File::new(&tokens());
        let admin = with(&format!("Bearer {ADMIN}"));
        for (certificate, expected) in [(Role::Read, Err(Denied::ReadOnly)), (Role::Admin, Ok(()))]
        {
            let access = remote(Tokens::read(&file.path()).unwrap(), Some(certificate));
            assert_eq!(access.check(&Method::POST, "/v1/ports", &admin), expected);
            let alone = Access::Remote {
                tokens: None,
                certificate: Some(certificate),
            };
            assert_eq!(
                alone.check(&Method::POST, "/v1/ports", &HeaderMap::new()),
                expected
            );
        }
        let nobody = Access::Remote {
            tokens: None,
            certificate: None,
        };
        assert_eq!(
            nobody.check(&Method::GET, "/v1/ports", &admin),
            Err(Denied::NoToken)
        );
    }

    #[test]
    fn a_file_that_changes_is_read_again_and_one_that_cannot_be_used_changes_nothing() {
        let file = File::new(&tokens());
        let tokens = Tokens::read(&file.path()).unwrap();
        assert_eq!(tokens.role(ADMIN), Some(Role::Admin));
        file.write(&format!("read {ADMIN}\n"), 0o640);
        assert_eq!(tokens.role(ADMIN), Some(Role::Read));
        assert_eq!(tokens.role(READER), None);
        file.write("nonsense", 0o600);
        assert_eq!(tokens.role(ADMIN), Some(Role::Read));
        std::fs::remove_file(file.path()).unwrap();
        assert_eq!(tokens.role(ADMIN), Some(Role::Read));
        file.write(&format!("admin {READER}\nread {READER}"), 0o600);
        assert_eq!(tokens.role(READER), Some(Role::Admin));
        assert_eq!(tokens.role(ADMIN), None);
    }

    #[test]
    fn what_is_no_file_of_tokens_is_refused_with_its_line_and_without_what_it_says() {
        let file = File::new("");
        let refused = |text: &str, mode| {
            file.write(text, mode);
            Tokens::read(&file.path()).unwrap_err().to_string()
        };
        for (text, part) in [
            ("", "there is no token"),
            ("# only\n", "there is no token"),
            (
                "\nroot 0123456789secret",
                ":2: it does not begin with a role",
            ),
            ("0123456789secret", ":1: it does not begin"),
            ("admin", "there is not one token"),
            ("admin 0123456789secret x", "there is not one token"),
            ("admin secret", "16 to 512"),
            (&format!("read secret{}", "x".repeat(512)), "16 to 512"),
            ("admin 0123456789secret\u{e9}", "other characters"),
        ] {
            let error = refused(text, 0o600);
            assert!(
                error.contains(part) && !error.contains("secret"),
                "{text:?}: {error}"
            );
        }
        for mode in [0o644, 0o604, 0o602, 0o620, 0o666] {
            assert!(refused(&tokens(), mode).contains("chmod 600"), "{mode:o}");
        }
        assert!(
            Tokens::read(file.folder.as_path())
                .unwrap_err()
                .to_string()
                .contains("no regular file")
        );
        assert!(Tokens::read(Path::new("/nonexistent")).is_err());
        assert!(refused(&"#\n".repeat(40_000), 0o600).contains("64 KiB"));
    }
}
