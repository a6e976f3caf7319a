//! Where a daemon is and how one gets there: its admin socket, or TCP with a token, a certificate, or both.
use super::arguments::Reach;
use super::client::ClientError;
use crate::rest::tls::{TlsError, certificates, private_key, provider, roots};
use hyper::Uri;
use hyper::header::HeaderValue;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

/// Largest file with a token: a daemon's own.
const MAX_TOKEN_FILE_BYTES: u64 = 64 * 1024;

/// Why a daemon cannot be asked: what was said of it cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// It is no URL of a daemon.
    #[error(
        "{0:?} is not where a daemon can be; write --url https://host1:8443, or http:// where it has no TLS"
    )]
    Url(String),
    /// TLS without a CA.
    #[error("{0} has to prove who it is; name the CA that its certificate is of with --ca")]
    NoCa(String),
    /// One of certificate and key.
    #[error("a certificate needs its key; name both, --cert and --key")]
    HalfACertificate,
    /// The file with the token.
    #[error("{}: {reason}; name a file with one token, or with lines `admin TOKEN`, with --token-file", .path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A file of TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// They do not go together.
    #[error("the certificate and its key cannot be used: {0}; check that they belong together")]
    Pair(String),
}

/// Bytes both ways.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Where a daemon is.
#[derive(Clone)]
pub struct Place {
    way: Way,
    /// For the header Host.
    pub authority: HeaderValue,
    /// For the header Authorization.
    pub token: Option<HeaderValue>,
}

#[derive(Clone)]
enum Way {
    Socket(PathBuf),
    Tcp {
        host: String,
        port: u16,
        tls: Option<(TlsConnector, ServerName<'static>)>,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.way {
            Way::Socket(path) => path.display().fmt(f),
            Way::Tcp { host, port, tls } => {
                let scheme = if tls.is_some() { "https" } else { "http" };
                write!(f, "{scheme}://{host}:{port}")
            }
        }
    }
}

impl Place {
    /// As the arguments and variables have it.
    pub fn of(reach: &Reach) -> Result<Self, ReachError> {
        match reach.url() {
            None => Ok(Self {
                way: Way::Socket(reach.admin_socket()),
                authority: HeaderValue::from_static("localhost"),
                token: None,
            }),
            Some(url) => Self::over_tcp(&url, reach),
        }
    }

    fn over_tcp(url: &str, reach: &Reach) -> Result<Self, ReachError> {
        let wrong = || ReachError::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let (Some(host), Some(authority)) = (uri.host(), uri.authority()) else {
            return Err(wrong());
        };
        if !matches!(uri.path(), "" | "/") || authority.as_str().contains('@') {
            return Err(wrong());
        }
        let (is_tls, usual) = match uri.scheme_str() {
            Some("https") => (true, 443),
            Some("http") => (false, 80),
            _ => return Err(wrong()),
        };
        let token = reach.token_file().as_deref().map(token).transpose()?;
        // An IPv6 address has brackets in a URL, and nowhere else.
        let plain = host.trim_start_matches('[').trim_end_matches(']');
        let tls = if is_tls {
            let name = ServerName::try_from(plain.to_owned()).map_err(|_| wrong())?;
            Some((connector(url, reach)?, name))
        } else {
            None
        };
        Ok(Self {
            way: Way::Tcp {
                host: plain.to_owned(),
                port: uri.port_u16().unwrap_or(usual),
                tls,
            },
            authority: HeaderValue::from_str(authority.as_str()).map_err(|_| wrong())?,
            token,
        })
    }

    /// Connects.
    pub async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        match &self.way {
            Way::Socket(path) => Ok(Box::new(UnixStream::connect(path).await?)),
            Way::Tcp { host, port, tls } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                match tls {
                    None => Ok(Box::new(stream)),
                    Some((connector, name)) => {
                        Ok(Box::new(connector.connect(name.clone(), stream).await?))
                    }
                }
            }
        }
    }

    /// What to do when nobody can be reached there.
    pub fn advice(&self, error: &io::Error) -> &'static str {
        match (&self.way, error.kind()) {
            (_, io::ErrorKind::TimedOut) => "it is overloaded or stopped: look at its log",
            (Way::Tcp { .. }, io::ErrorKind::InvalidData) => {
                "check that --ca is the CA of the daemon's certificate, and that it is for this name"
            }
            (Way::Tcp { .. }, _) => "start it with `ringswitch run --listen`, or correct --url",
            (Way::Socket(_), io::ErrorKind::NotFound) => {
                "start it with `ringswitch run`, or name its socket with --admin"
            }
            (Way::Socket(_), io::ErrorKind::ConnectionRefused) => {
                "it has ended without removing its socket: start it again"
            }
            (Way::Socket(_), io::ErrorKind::PermissionDenied) => {
                "run this as the daemon's user, mostly root, or as a member of its --admin-group"
            }
            (Way::Socket(_), _) => "name its socket with --admin",
        }
    }
}

fn connector(url: &str, reach: &Reach) -> Result<TlsConnector, ReachError> {
    let ca = reach.ca().ok_or_else(|| ReachError::NoCa(url.to_owned()))?;
    let pair = |error: tokio_rustls::rustls::Error| ReachError::Pair(error.to_string());
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(pair)?
        .with_root_certificates(roots(&ca, "--ca")?);
    let config = match (reach.cert(), reach.key()) {
        (None, None) => builder.with_no_client_auth(),
        (Some(cert), Some(key)) => {
            let (chain, key) = (certificates(&cert, "--cert")?, private_key(&key, "--key")?);
            builder.with_client_auth_cert(chain, key).map_err(pair)?
        }
        _ => return Err(ReachError::HalfACertificate),
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

/// The first token of a file: alone in its line, or after a role as in a daemon's file.
fn token(path: &Path) -> Result<HeaderValue, ReachError> {
    use std::io::Read;
    let failed = |reason: String| ReachError::Token {
        path: path.to_owned(),
        reason,
    };
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_TOKEN_FILE_BYTES).read_to_string(&mut text))
        .map_err(|error| failed(error.to_string()))?;
    let mut lines = text.lines().map(str::trim);
    let line = lines.find(|line| !line.is_empty() && !line.starts_with('#'));
    let token = line.and_then(|line| line.split_whitespace().next_back());
    let token = token.ok_or_else(|| failed("there is no token in it".to_owned()))?;
    let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
        .map_err(|_| failed("the token has characters that no header can carry".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// As a value in a query: everything but unreserved characters is escaped (RFC 3986 §2.1).
pub(super) fn percent_encoded(text: &str) -> String {
    let encoded = |byte: u8| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    };
    text.bytes().map(encoded).collect()
}

impl From<ReachError> for ClientError {
    fn from(error: ReachError) -> Self {
        Self::Reach(Box::new(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(url: &str) -> Reach {
        Reach {
            url: Some(url.to_owned()),
            ..Reach::default()
        }
    }

    #[test]
    fn what_is_asked_for_is_escaped_in_a_query() {
        assert_eq!(
            percent_encoded("/run/vm 7&x.qmp"),
            "%2Frun%2Fvm%207%26x.qmp"
        );
    }

    #[test]
    fn a_url_says_where_and_what_cannot_is_refused() {
        let place = |url: &str| Place::of(&reach(url));
        for (url, shown) in [
            ("http://host1:8080", "http://host1:8080"),
            ("http://10.0.0.1:1/", "http://10.0.0.1:1"),
            ("http://[::1]:8080", "http://::1:8080"),
            ("http://host1", "http://host1:80"),
        ] {
            assert_eq!(place(url).unwrap().to_string(), shown);
        }
        for url in [
            "host1",
            "host1:8080",
            "ftp://host1",
            "http://",
            "http://a/b",
            "http://me@a",
        ] {
            assert!(matches!(place(url), Err(ReachError::Url(_))), "{url}");
        }
        assert!(matches!(place("https://host1"), Err(ReachError::NoCa(_))));
    }
}
