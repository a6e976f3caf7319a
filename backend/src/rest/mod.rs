//! The REST interface: HTTP/1.1 over the admin socket.
//!
//! In the order a request flows:
//!
//! * [`admin_socket`]: the socket's life: claiming its path, replacing a dead instance's, its removal;
//! * [`server`]: connections, bounded in number and in time;
//! * [`routes`]: paths and methods, each request turned into a command of [`crate::control`];
//! * [`tables`]: those of tables and what belongs to them, and [`explain`]: what would happen to a frame;
//! * [`port_state`]: what is known of a port, as bytes;
//! * [`devices`]: which NICs which VM shall have;
//! * [`services`]: those of the switch's own services, and [`config`]: what runs beside the configuration file;
//! * [`body`]: a request's body as typed values;
//! * [`wire`]: the JSON, and its conversion from and to typed values;
//! * [`problem`]: every error as `application/problem+json` (RFC 9457).
//!
//! Runs on the daemon's main thread, in a runtime of one thread; never touches a frame. docs/rest.md describes it to its users.
pub mod admin_socket;
pub mod body;
pub mod config;
pub mod devices;
pub mod explain;
pub mod port_state;
pub mod problem;
pub mod routes;
pub mod server;
pub mod services;
pub mod tables;
mod upgrade;
pub mod wire;

pub use admin_socket::{AdminSocket, ClaimError};
pub use routes::router;
pub use server::{Limits, serve};
