//! A process of its own for each port whose VM arrives page by page (vhost-user: postcopy).
//!
//! The front-end wants a userfaultfd, by which it hears of pages that the switch needs. Who holds one may also fill any memory of the process it
//! is of, or have it wait for ever: the daemon, which serves other tenants, must not give away its own. So a port in that phase has a pager, the
//! same program once more, that maps the VM's memory alone. Asked for a page, it touches it, waits in the fault, and answers.
//!
//! * [`client`]: what the daemon says and hears;
//! * [`process`]: the pager itself;
//! * [`message`]: what goes between, on a socket that is the pager's standard input.
//!
//! Kept true: the daemon never waits for a pager, believes nothing of what it says but that a page came, and ends it with the phase or the session.
pub mod client;
pub mod message;
pub mod process;

/// What the program is told to be one.
pub const ARGUMENT: &str = "postcopy-pager";
