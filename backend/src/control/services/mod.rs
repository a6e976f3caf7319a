//! The switch's own services: what answers the frames that a program sends to the controller.
//!
//! `switch_core::service` decides and does nothing; here is who calls it and does what it says. In the order a frame flows:
//!
//! * [`crate::datapath::packet_in`]: workers leave frames there, bounded for each port;
//! * [`thread`]: the one thread that takes them out, asks the services, and wakes when a timer of theirs is due;
//! * [`carry`]: actions carried out, in their order; frames that a worker has no room for wait, bounded;
//! * [`neighbors`]: learned neighbours in the program's table;
//! * [`floods`]: which ports a bridge domain has, and how each wants frames tagged;
//! * [`handle`]: what the admin socket and the control thread call;
//! * [`document`]: the configuration as text, and where it comes from at the start;
//! * [`counts`]: what all this did.
//!
//! What it keeps true: workers never wait for this thread; a frame that waited for a neighbour goes on only once the neighbour is in
//! the table; what a change of the configuration does is durable before it is in effect.
pub mod carry;
pub mod counts;
pub mod document;
pub mod floods;
pub mod handle;
pub mod neighbors;
pub mod thread;

pub use document::{DocumentFault, ServicesFileFault};
pub use handle::{ServicesError, ServicesHandle, ServicesOptions, StartServicesError};
pub use neighbors::TABLE as NEIGHBORS;
