//! Ringswitch as its next version might be: it hands over in a format that this one does not read, and reads this one's. For tests of
//! upgrades between versions.
use clap::Parser;
use ringswitch::cli::{Arguments, execute};
use ringswitch::handover::messages::{Formats, set_formats};
use std::process::ExitCode;

fn main() -> ExitCode {
    set_formats(Formats {
        latest: Formats::OWN.latest + 1,
        ..Formats::OWN
    });
    match execute(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(error.exit_code())
        }
    }
}
