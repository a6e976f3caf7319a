//! The admin interface over TCP: where it listens, and how its clients prove who they are.
//!
//! Nobody is let in over TCP for the asking: without a file of tokens or a client CA it is refused here, before anything is opened.
use super::load::{ConfigError, Origin, Sourced};
use super::value::{InvalidField, folder, quoted};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Where the admin interface is reached over TCP, and by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteConfig {
    /// Where it listens; port 0: one that is free.
    pub listen: SocketAddr,
    /// The file of tokens; `None`: certificates prove all.
    pub token_file: Option<PathBuf>,
    /// TLS; `None`: everybody on the way can read along, tokens too.
    pub tls: Option<TlsFiles>,
}

/// The files of TLS, all PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The daemon's certificate, and what it is signed by.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Whose certificates clients may do everything with.
    pub client_ca: Option<PathBuf>,
    /// Whose certificates clients may read with.
    pub read_client_ca: Option<PathBuf>,
}

/// `--listen` and its like: the keys of `[switch]` of the same names.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct RemoteFlags {
    /// Serve the admin interface over TCP too, such as 127.0.0.1:8443; with --token-file, a client CA, or both.
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<String>,
    /// Over TCP: the daemon's certificate chain (PEM).
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<String>,
    /// Over TCP: its private key (PEM), which nobody else may read.
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<String>,
    /// Over TCP: clients with a certificate of this CA (PEM) may do everything; others need one of --tls-read-client-ca.
    #[arg(long, value_name = "FILE")]
    pub tls_client_ca: Option<String>,
    /// Over TCP: clients with a certificate of this CA (PEM) may read.
    #[arg(long, value_name = "FILE")]
    pub tls_read_client_ca: Option<String>,
    /// The group, by name or number, whose members may use the admin socket too [default: only the daemon's user].
    #[arg(long, value_name = "GROUP")]
    pub admin_group: Option<String>,
}

/// What was written of it, by key.
pub(super) type Written = BTreeMap<&'static str, Sourced<String>>;

/// Checks what was written as a whole.
pub(super) fn remote(mut written: Written) -> Result<Option<RemoteConfig>, ConfigError> {
    let Some(listen) = written.remove("listen") else {
        return match written.into_iter().next() {
            None => Ok(None),
            Some((field, value)) => {
                let remedy = "say where with `listen` (or --listen), or leave this out";
                let invalid = InvalidField::new(field, "the daemon does not listen on TCP", remedy);
                Err(refused(value.origin, invalid))
            }
        };
    };
    let address = address(&listen.value);
    let address = address.map_err(|invalid| refused(listen.origin.clone(), invalid))?;
    let token_file = path(written.remove("token_file"), "token_file")?;
    let tls = tls(written)?;
    let asks_for_certificates = tls
        .as_ref()
        .is_some_and(|tls| tls.client_ca.is_some() || tls.read_client_ca.is_some());
    if token_file.is_none() && !asks_for_certificates {
        let invalid = InvalidField::new(
            "listen",
            "whoever reaches the address could do everything: there is neither a file of tokens nor a client CA",
            "name `token_file` (or --token-file), or `tls_cert`, `tls_key` and `tls_client_ca`; without `listen` there is the admin socket alone",
        );
        return Err(refused(listen.origin, invalid));
    }
    Ok(Some(RemoteConfig {
        listen: address,
        token_file,
        tls,
    }))
}

fn tls(mut written: Written) -> Result<Option<TlsFiles>, ConfigError> {
    let place = written
        .iter()
        .next()
        .map(|(field, value)| (*field, value.origin.clone()));
    let Some((field, origin)) = place else {
        return Ok(None);
    };
    let mut take = |field| path(written.remove(field), field);
    let (cert, key) = (take("tls_cert")?, take("tls_key")?);
    let (client_ca, read_client_ca) = (take("tls_client_ca")?, take("tls_read_client_ca")?);
    match (cert, key) {
        (Some(cert), Some(key)) => Ok(Some(TlsFiles {
            cert,
            key,
            client_ca,
            read_client_ca,
        })),
        _ => {
            let reason = "TLS needs both the daemon's certificate and its key";
            let invalid = InvalidField::new(field, reason, "name `tls_cert` and `tls_key`");
            Err(refused(origin, invalid))
        }
    }
}

fn address(text: &str) -> Result<SocketAddr, InvalidField> {
    text.parse().map_err(|_| {
        InvalidField::new(
            "listen",
            format!("{} is not an address with a port", quoted(text)),
            "write 127.0.0.1:8443, [::1]:8443, or 0.0.0.0:8443 for every address",
        )
    })
}

fn path(
    written: Option<Sourced<String>>,
    field: &'static str,
) -> Result<Option<PathBuf>, ConfigError> {
    let Some(Sourced { origin, value }) = written else {
        return Ok(None);
    };
    folder(field, &value).map(Some).map_err(|invalid| {
        let invalid = InvalidField::new(
            field,
            invalid.reason.replace("of a folder", "of a file"),
            "start it with '/' and write it without '..'",
        );
        refused(origin, invalid)
    })
}

/// Checks a group, by name or number; that there is one is seen when the socket is made.
pub(super) fn group(text: &str) -> Result<String, InvalidField> {
    let allowed = |byte: u8| byte.is_ascii_graphic() && byte != b':' && byte != b',';
    if (1..=32).contains(&text.len()) && text.bytes().all(allowed) {
        return Ok(text.to_owned());
    }
    Err(InvalidField::new(
        "admin_group",
        format!("{} is not the name or number of a group", quoted(text)),
        "use one that `getent group` lists",
    ))
}

fn refused(origin: Origin, invalid: InvalidField) -> ConfigError {
    ConfigError::Invalid { origin, invalid }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(fields: &[(&'static str, &str)]) -> Written {
        let sourced = |value: &str| Sourced {
            origin: Origin::Default,
            value: value.to_owned(),
        };
        let fields = fields.iter();
        fields.map(|(key, value)| (*key, sourced(value))).collect()
    }

    #[test]
    fn nobody_is_let_in_over_tcp_for_the_asking() {
        let refusal = |fields: &[(&'static str, &str)]| match remote(written(fields)) {
            Err(ConfigError::Invalid { invalid, .. }) => invalid.field,
            other => panic!("{fields:?}: {other:?}"),
        };
        let listen = ("listen", "127.0.0.1:8443");
        let (cert, key) = (("tls_cert", "/c"), ("tls_key", "/k"));
        assert_eq!(refusal(&[listen]), "listen");
        assert_eq!(refusal(&[listen, cert, key]), "listen");
        assert_eq!(refusal(&[("listen", "localhost")]), "listen");
        assert_eq!(
            refusal(&[("listen", ":80"), ("token_file", "/t")]),
            "listen"
        );
        assert_eq!(refusal(&[("token_file", "/t")]), "token_file");
        assert_eq!(refusal(&[listen, ("token_file", "t")]), "token_file");
        assert_eq!(refusal(&[listen, ("token_file", "/t"), cert]), "tls_cert");
        assert_eq!(
            refusal(&[listen, ("tls_client_ca", "/ca")]),
            "tls_client_ca"
        );
        assert!(remote(Written::new()).unwrap().is_none());
        for proof in [
            ("token_file", "/t"),
            ("tls_client_ca", "/a"),
            ("tls_read_client_ca", "/a"),
        ] {
            let config = remote(written(&[listen, cert, key, proof])).unwrap();
            assert_eq!(config.unwrap().listen, "127.0.0.1:8443".parse().unwrap());
        }
        assert!(
            remote(written(&[listen, ("token_file", "/t")]))
                .unwrap()
                .is_some()
        );
    }

    #[test]
    fn a_group_is_a_name_or_a_number() {
        for good in ["kvm", "libvirt-qemu", "36", "DOM\\admins"] {
            assert_eq!(group(good).as_deref(), Ok(good));
        }
        for bad in ["", "a b", "a:b", &"g".repeat(33)] {
            assert_eq!(group(bad).unwrap_err().field, "admin_group", "{bad:?}");
        }
    }
}
