//! `ringswitch man`: manual pages, made from what can be said.
use super::arguments::Arguments;
use super::commands::print;
use super::exit::CliError;
use clap::CommandFactory;
use clap_mangen::{Man, generate_to};
use std::io;
use std::path::Path;

/// Prints `ringswitch(1)`, or writes that and a page for each command into a folder.
pub fn write(directory: Option<&Path>) -> Result<(), CliError> {
    let failed = |source: io::Error| CliError::Io {
        action: "write manual pages",
        source,
    };
    let mut command = Arguments::command().disable_help_subcommand(true);
    // Gives each command its whole name, which its page goes by.
    command.build();
    match directory {
        Some(directory) => generate_to(command, directory).map_err(failed),
        None => {
            let mut page = Vec::new();
            Man::new(command).render(&mut page).map_err(failed)?;
            print(&String::from_utf8_lossy(&page))
        }
    }
}
