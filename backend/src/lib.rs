//! A software switch that serves virtual machines' NICs over vhost-user.

pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod datapath;
pub mod device;
pub mod devices;
#[doc(hidden)]
pub mod fuzzing;
pub mod handover;
pub mod hypervisor;
pub mod metrics;
pub mod pager;
pub mod port;
pub mod rest;
pub mod ring;
