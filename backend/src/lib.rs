//! A software switch that serves virtual machines' NICs over vhost-user.

pub mod datapath;
#[doc(hidden)]
pub mod fuzzing;
pub mod port;
pub mod ring;
