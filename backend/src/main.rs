//! The Ringswitch daemon and its command line.
use clap::Parser;
use ringswitch::cli::{Arguments, commands::error_text, execute};
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match execute(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // With standard error gone, the exit code is all there is to say.
            let _ = writeln!(std::io::stderr(), "{}", error_text(&error, &arguments));
            ExitCode::from(error.exit_code())
        }
    }
}
