//! The running daemon, replaced by another process under VMs that notice nothing.
//!
//! [`give`] is the old process's side, [`take`] the new one's; [`messages`] is what they say, over a [`channel`] that also carries
//! [`descriptors`]; [`content`] is how tables travel.
//!
//! Kept true: at any moment exactly one process serves a ring, or none for the moment of the change; whichever process is left serves
//! all of them; the old one goes on unless the new one has said that it runs.
pub mod channel;
pub mod content;
pub mod descriptors;
pub mod give;
pub mod messages;
pub mod take;
