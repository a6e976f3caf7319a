//! A software switch that serves virtual machines' NICs over vhost-user.

pub mod datapath;
pub mod port;
pub mod ring;
