//! The admin interface over TCP: what is read of it at the start, its socket, and what a connection has to show before its first request.
use super::access::{Access, TokenFileError, Tokens};
use super::tls::{Tls, TlsError};
use crate::config::RemoteConfig;
use rustix::net::sockopt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

/// Connections the kernel holds for us until they are accepted.
const BACKLOG: u32 = 64;
/// How long what was sent may stay unacknowledged, or a client's window closed: then it is dead.
const DEAD_AFTER: Duration = Duration::from_secs(30);
/// How long the process before may keep the address, and how often that is looked at.
const PATIENCE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(20);

/// Why there is no admin interface over TCP.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The tokens.
    #[error(transparent)]
    Tokens(#[from] TokenFileError),
    /// The files of TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address.
    #[error(
        "cannot listen on {address}: {source}; choose an address of this host and a free port with `listen`"
    )]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// How clients are reached over TCP, read and checked.
#[derive(Clone)]
pub struct Remote {
    address: SocketAddr,
    tokens: Option<Arc<Tokens>>,
    tls: Option<Tls>,
    socket: ListeningSocket,
}

/// A listening socket, as soon as there is one.
pub type ListeningSocket = Arc<OnceLock<OwnedFd>>;

/// Bytes both ways.
pub trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

impl Remote {
    /// Reads the files. Nothing is opened yet.
    pub fn read(config: &RemoteConfig) -> Result<Self, RemoteError> {
        let tokens = config.token_file.as_deref().map(Tokens::read).transpose()?;
        let tls = config.tls.as_ref().map(Tls::read).transpose()?;
        if tls.is_none() && !config.listen.ip().is_loopback() {
            log::warn!(
                "tokens cross the network in the clear: give `listen = \"{}\"` a `tls_cert` and `tls_key`",
                config.listen
            );
        }
        Ok(Self {
            address: config.listen,
            tokens: tokens.map(Arc::new),
            tls,
            socket: ListeningSocket::default(),
        })
    }

    /// Begins to listen; within the runtime.
    pub fn listen(&self) -> Result<TcpListener, RemoteError> {
        let listener = listen(self.address).map_err(|source| RemoteError::Listen {
            address: self.address,
            source,
        })?;
        self.opened(&listener);
        Ok(listener)
    }

    /// Goes on with what the process before listened on; `None`: it is not this address. Within the runtime.
    pub fn adopt(&self, listener: OwnedFd) -> Option<TcpListener> {
        let listener = std::net::TcpListener::from(listener);
        let found = listener.local_addr().ok()?;
        let mut wanted = self.address;
        if wanted.port() == 0 {
            wanted.set_port(found.port());
        }
        if found != wanted {
            return None;
        }
        let listener = TcpListener::from_std(listener).ok()?;
        self.opened(&listener);
        Some(listener)
    }

    /// What listens, once it does, for another process to go on with.
    pub fn socket(&self) -> ListeningSocket {
        Arc::clone(&self.socket)
    }

    fn opened(&self, listener: &TcpListener) {
        match listener.as_fd().try_clone_to_owned() {
            // It begins once.
            Ok(socket) => drop(self.socket.set(socket)),
            Err(error) => log::warn!("an upgrade will interrupt what is served over TCP: {error}"),
        }
        log::info!(
            "serving {}://{}",
            if self.tls.is_some() { "https" } else { "http" },
            listener.local_addr().unwrap_or(self.address)
        );
    }

    /// The same once the process before, which hands everything over, has let go of the address.
    pub async fn listen_in_turn(&self) -> Result<TcpListener, RemoteError> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            match self.listen() {
                Err(_) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(RETRY).await;
                }
                other => return other,
            }
        }
    }

    /// What a connection begins with; the caller bounds its time.
    pub async fn open(&self, stream: TcpStream) -> io::Result<(Box<dyn Stream>, Access)> {
        stream.set_nodelay(true)?;
        let ms = u32::try_from(DEAD_AFTER.as_millis()).unwrap_or(u32::MAX);
        sockopt::set_tcp_user_timeout(&stream, ms)?;
        let access = |certificate| Access::Remote {
            tokens: self.tokens.clone(),
            certificate,
        };
        match &self.tls {
            None => Ok((Box::new(stream), access(None))),
            Some(tls) => {
                let (stream, certificate) = tls.accept(stream).await?;
                Ok((Box::new(stream), access(certificate)))
            }
        }
    }
}

/// With SO_REUSEADDR, so that connections of the process before do not keep the next one out.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
        SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
