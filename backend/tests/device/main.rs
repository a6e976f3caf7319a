//! The vhost-user device through its socket and through its state machine, over a recording stand-in for the data path.

mod hostile;
mod lifecycle;
mod negotiation;
mod properties;
mod rig;
mod rings;
mod session;
