//! TLS: the daemon's certificate, and what a client's own is worth.
//!
//! Files are read once, at the start; a daemon takes up others with `ringswitch upgrade`. A client's role follows from the CA that its
//! certificate is of: subjects are for people, and nothing has to be kept in step with them.
use super::access::Role;
use crate::config::TlsFiles;
use rustix::fs::{Mode, stat};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;

/// Most certificates of one file.
const MAX_CERTIFICATES: usize = 256;

/// Why the files of TLS cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// One of them cannot be read, or is not what it should be.
    #[error("{}: {reason}; name a PEM file with `{key}`", .path.display())]
    File {
        /// The key of the configuration.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Others could read the key.
    #[error("{}: others may read the key (mode {mode:03o}); chmod 600 it", .path.display())]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// They do not go together.
    #[error("{} and its key cannot be used: {reason}; check that `tls_key` is the key of `tls_cert`", .cert.display())]
    Pair {
        /// The certificate.
        cert: PathBuf,
        /// Why.
        reason: String,
    },
}

/// The daemon's side of every TLS connection.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    /// Who tells that a certificate is worth which role, the greater first; empty: certificates are not asked for.
    roles: Arc<[(Role, Arc<dyn ClientCertVerifier>)]>,
}

/// What makes the files of clients and daemons alike.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The certificates of a PEM file.
pub fn certificates(
    path: &Path,
    key: &'static str,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |reason: String| TlsError::File {
        key,
        path: path.to_owned(),
        reason,
    };
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
        .map_err(|error| failed(error.to_string()))?
        .take(MAX_CERTIFICATES + 1)
        .collect();
    let certificates = certificates.map_err(|error| failed(error.to_string()))?;
    match certificates.len() {
        0 => Err(failed("there is no certificate in it".to_owned())),
        1..=MAX_CERTIFICATES => Ok(certificates),
        _ => Err(failed(format!(
            "it has over {MAX_CERTIFICATES} certificates"
        ))),
    }
}

/// The CAs of a PEM file.
pub fn roots(path: &Path, key: &'static str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, key)? {
        roots.add(certificate).map_err(|error| TlsError::File {
            key,
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
    }
    Ok(roots)
}

/// The private key of a PEM file that nobody else may read.
pub fn private_key(path: &Path, key: &'static str) -> Result<PrivateKeyDer<'static>, TlsError> {
    let failed = |reason: String| TlsError::File {
        key,
        path: path.to_owned(),
        reason,
    };
    let found = stat(path).map_err(|error| failed(error.to_string()))?;
    let mode = Mode::from_raw_mode(found.st_mode).bits() & 0o777;
    if mode & 0o027 != 0 {
        let path = path.to_owned();
        return Err(TlsError::TooOpen { path, mode });
    }
    PrivateKeyDer::from_pem_file(path).map_err(|error| failed(error.to_string()))
}

impl Tls {
    /// Reads the files.
    pub fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let provider = provider();
        let pair = |error: tokio_rustls::rustls::Error| TlsError::Pair {
            cert: files.cert.clone(),
            reason: error.to_string(),
        };
        let mut roles = vec![];
        let mut every = RootCertStore::empty();
        for (role, key, path) in [
            (Role::Admin, "tls_client_ca", &files.client_ca),
            (Role::Read, "tls_read_client_ca", &files.read_client_ca),
        ] {
            let Some(path) = path else { continue };
            let roots = roots(path, key)?;
            every.roots.extend(roots.roots.iter().cloned());
            roles.push((role, verifier(roots, &provider, (key, path))?));
        }
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(pair)?;
        let builder = match (&files.client_ca, &files.read_client_ca) {
            (None, None) => builder.with_no_client_auth(),
            (Some(path), _) | (None, Some(path)) => {
                let verifier = verifier(every, &provider, ("tls_client_ca", path))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let chain = certificates(&files.cert, "tls_cert")?;
        let key = private_key(&files.key, "tls_key")?;
        let mut config = builder.with_single_cert(chain, key).map_err(pair)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            roles: roles.into(),
        })
    }

    /// The handshake. Says what the client's certificate is worth, if one was asked for.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> io::Result<(TlsStream<S>, Option<Role>)> {
        let stream = self.acceptor.accept(stream).await?;
        let (_, connection) = stream.get_ref();
        let role = match connection.peer_certificates() {
            Some([client, others @ ..]) => self.worth(client, others),
            _ => None,
        };
        Ok((stream, role))
    }

    fn worth(&self, client: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Option<Role> {
        let now = UnixTime::now();
        let verified = |verifier: &Arc<dyn ClientCertVerifier>| {
            verifier.verify_client_cert(client, others, now).is_ok()
        };
        let mut roles = self.roles.iter();
        roles.find_map(|(role, verifier)| verified(verifier).then_some(*role))
    }
}

fn verifier(
    roots: RootCertStore,
    provider: &Arc<CryptoProvider>,
    (key, path): (&'static str, &Path),
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let built =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
    built.map_err(|error| TlsError::File {
        key,
        path: path.to_owned(),
        reason: error.to_string(),
    })
}
