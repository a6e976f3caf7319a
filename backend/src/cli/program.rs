//! `ringswitch program ...`: of the running program ask the daemon; of another, no daemon is needed.
use super::client::Client;
use super::commands::{Format, print, print_json};
use super::exit::CliError;
use super::table_arguments::ProgramCommand;
use crate::rest::wire::ProgramInfo;

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
            let text = serde_json::to_string_pretty(&info.program).unwrap_or_default();
            print(&format!("{text}\n"))
        }
        ProgramCommand::Check { .. } | ProgramCommand::Schema => Ok(()),
    }
}
