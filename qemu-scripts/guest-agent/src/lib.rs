//! The agent inside a test guest, and the language it speaks with the harness.
//!
//! The same program is `/init` of the guest and, started on the host with `--stdio`, the host's own end of a transfer.
//! In the order a request meets them:
//!
//! * [`protocol`]: what may be asked and answered, one JSON object a line;
//! * [`serve`]: reads requests from a channel, answers each by its id;
//! * [`jobs`]: what runs longer than a question: started, polled, waited for, stopped;
//! * [`tcp`], [`udp`], [`rate`], [`probe`], [`sniff`]: the jobs themselves;
//! * [`pattern`]: the bytes that travel, known to both ends, so that every one of them is checked;
//! * [`init`]: what the first process of a guest has to do before any of it.

pub mod init;
pub mod jobs;
pub mod pattern;
pub mod probe;
pub mod protocol;
pub mod rate;
pub mod serve;
pub mod sniff;
pub mod tcp;
pub mod udp;
