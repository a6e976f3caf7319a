//! The control side from outside: the admin socket and the command line, over a switch whose ports are only a record.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test that cannot go on fails.
mod batch;
mod command_line;
mod completeness;
mod conditions;
mod durability;
mod events;
mod events_command_line;
mod fake_engine;
mod flows;
mod kills;
mod l2_tables;
mod process;
mod real_engine;
mod recorder;
mod remote;
mod rest;
mod rest_conformance;
mod run_time_ports;
mod services;
mod table_command_line;
mod tables;
mod tools;
