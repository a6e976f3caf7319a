//! The REST interface: HTTP/1.1 over the admin socket, and over TCP where that is asked for.
//!
//! In the order a request flows:
//!
//! * [`admin_socket`]: the socket's life: claiming its path, replacing a dead instance's, its removal;
//! * [`remote`]: the same interface over TCP, with [`tls`]; [`access`]: who may do what there;
//! * [`server`]: connections, bounded in number and in time;
//! * [`routes`]: paths and methods, each request turned into a command of [`crate::control`];
//! * [`tables`]: those of tables and what belongs to them, and [`explain`]: what would happen to a frame;
//! * [`flows`]: what workers remember of frames;
//! * [`events`]: what happens, as it happens;
//! * [`batch`]: ports and table entries in one go;
//! * [`port_state`]: what is known of a port, as bytes;
//! * [`capture`]: a port's frames, as long as somebody reads them;
//! * [`devices`]: which NICs which VM shall have;
//! * [`services`]: those of the switch's own services, and [`config`]: what runs beside the configuration file;
//! * [`metrics`]: everything that is counted, and [`web_page`]: all of it in a browser;
//! * [`body`]: a request's body as typed values;
//! * [`wire`]: the JSON, and its conversion from and to typed values;
//! * [`tags`]: what has changed since a client saw it;
//! * [`page`]: how much of a list is asked for;
//! * [`openapi`]: all of it as a document for programs;
//! * [`problem`]: every error as `application/problem+json` (RFC 9457).
//!
//! Runs on the daemon's main thread, in a runtime of one thread; never touches a frame. docs/rest.md describes it to its users.
pub mod access;
pub mod admin_socket;
pub mod batch;
pub mod body;
pub mod capture;
pub mod config;
pub mod devices;
pub mod events;
pub mod explain;
pub mod flows;
pub mod metrics;
pub mod openapi;
pub mod page;
pub mod port_state;
pub mod problem;
pub mod remote;
pub mod routes;
pub mod server;
pub mod services;
pub mod tables;
pub mod tags;
pub mod tls;
mod upgrade;
pub mod web_page;
pub mod wire;

pub use admin_socket::{AdminSocket, ClaimError};
pub use remote::{ListeningSocket, Remote, RemoteError};
pub use routes::router;
pub use server::{Leave, Limits, Turn, serve, serve_all};
