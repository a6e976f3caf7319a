//! `ringswitch program ...`: of the running program ask the daemon; of another, no daemon is needed.
use super::client::Client;
use super::commands::{Format, print, print_json};
use super::exit::CliError;
use super::table_arguments::ProgramCommand;
use crate::config::ProgramSource;
use crate::rest::wire::ProgramInfo;
use switch_core::engine::model::Program;
use switch_core::engine::p4info::p4info;
use switch_core::engine::schema::JSON_SCHEMA;
use switch_core::engine::validate::ValidProgram;

/// Whether no daemon is needed.
pub fn is_local(command: &ProgramCommand) -> bool {
    match command {
        ProgramCommand::Info { program } | ProgramCommand::Show { program } => program.is_some(),
        ProgramCommand::Check { .. } | ProgramCommand::Schema => true,
    }
}

/// What is answered without a daemon.
pub fn local(command: &ProgramCommand) -> Result<(), CliError> {
    match command {
        ProgramCommand::Info { program } => match program {
            Some(program) => print(&p4info(&load(program)?)),
            None => Ok(()),
        },
        ProgramCommand::Show { program } => match program {
            Some(program) => pretty(load(program)?.source()),
            None => Ok(()),
        },
        ProgramCommand::Check { program } => {
            let valid = load(program)?;
            print(&format!(
                "ok: program {}, {} tables\n",
                valid.source().name,
                valid.source().tables.len()
            ))
        }
        ProgramCommand::Schema => print(JSON_SCHEMA),
    }
}

fn load(program: &str) -> Result<ValidProgram, CliError> {
    Ok(ProgramSource::from_argument(program).load()?)
}

fn pretty(program: &Program) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(program).map_err(|error| CliError::Io {
        action: "write the program",
        source: error.into(),
    })?;
    print(&format!("{text}\n"))
}

/// What the daemon is asked.
pub async fn ask(
    command: &ProgramCommand,
    client: &Client,
    format: Format,
) -> Result<(), CliError> {
    match command {
        ProgramCommand::Info { .. } => {
            let body = client.get("/v1/program/p4info").await?;
            print(&String::from_utf8_lossy(&body))
        }
        ProgramCommand::Show { .. } => {
            let body = client.get("/v1/program").await?;
            if format == Format::Json {
                return print_json(&body);
            }
            let info: ProgramInfo = client.decode(&body)?;
            pretty(&info.program)
        }
        ProgramCommand::Check { .. } | ProgramCommand::Schema => Ok(()),
    }
}
