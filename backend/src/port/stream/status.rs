//! A stream port in plain values, for `port show`: what happened, and if it is not up, why not, in words.

use crate::device::SocketMode;
use crate::device::status::{ConnectionCounters, PortState};
use serde::Serialize;
use std::path::PathBuf;

/// A stream port as it fares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StreamStatus {
    /// In one word: `listening`, `connecting`, `up` or `faulted`.
    pub state: PortState,
    /// Why it is not up, with what to do about it.
    pub reason: Option<String>,
    /// Path of the socket.
    pub socket: PathBuf,
    /// Who listens on it.
    pub mode: SocketMode,
    /// Since when a peer is connected.
    pub connected_ms: Option<u64>,
    /// What happened on the socket over the port's life.
    pub connections: ConnectionCounters,
    /// Connections that were closed because their peer did not keep to the framing.
    pub protocol_errors: u64,
    /// Why the last connection ended.
    pub last_disconnect: Option<String>,
    /// Bytes that wait for the peer to read.
    pub unsent_bytes: usize,
}

/// What the port knows of its socket.
#[derive(Debug)]
pub struct Surroundings {
    /// See [`StreamStatus::socket`].
    pub socket: PathBuf,
    /// See [`StreamStatus::mode`].
    pub mode: SocketMode,
    /// See [`StreamStatus::connected_ms`].
    pub connected_ms: Option<u64>,
    /// Why no connection can be had.
    pub connect_error: Option<String>,
    /// See [`StreamStatus::connections`].
    pub connections: ConnectionCounters,
    /// See [`StreamStatus::protocol_errors`].
    pub protocol_errors: u64,
    /// See [`StreamStatus::last_disconnect`].
    pub last_disconnect: Option<String>,
    /// See [`StreamStatus::unsent_bytes`].
    pub unsent_bytes: usize,
}

/// Its state in words.
pub fn describe(around: Surroundings) -> StreamStatus {
    let state = match (around.connected_ms, around.mode) {
        (Some(_), _) => PortState::Up,
        (None, SocketMode::Server) if around.connect_error.is_some() => PortState::Faulted,
        (None, SocketMode::Server) => PortState::Listening,
        (None, SocketMode::Client) => PortState::Connecting,
    };
    StreamStatus {
        state,
        reason: (state != PortState::Up).then(|| explain(&around)),
        socket: around.socket,
        mode: around.mode,
        connected_ms: around.connected_ms,
        connections: around.connections,
        protocol_errors: around.protocol_errors,
        last_disconnect: around.last_disconnect,
        unsent_bytes: around.unsent_bytes,
    }
}

fn explain(around: &Surroundings) -> String {
    let socket = around.socket.display();
    let before = around.last_disconnect.as_ref();
    let before = before.map_or_else(String::new, |end| {
        format!("; the last connection ended: {end}")
    });
    match (around.mode, &around.connect_error) {
        (SocketMode::Server, None) => format!("waiting for a peer on {socket}{before}"),
        (SocketMode::Server, Some(error)) => {
            format!("cannot accept a peer on {socket}: {error}{before}")
        }
        (SocketMode::Client, None) => format!("connecting to the peer at {socket}{before}"),
        (SocketMode::Client, Some(error)) => {
            format!("no peer listens at {socket}: {error}; trying again until one does{before}")
        }
    }
}
