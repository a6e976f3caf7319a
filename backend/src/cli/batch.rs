//! `ringswitch batch`: a file of ports and table entries, carried out whole or not at all.
use super::client::Client;
use super::commands::{Format, show};
use super::exit::CliError;
use super::table_commands::read;
use crate::rest::wire::AtomicBatchDone;
use std::path::Path;

/// Sends the file as it is: what is wrong with it the daemon says, with the field.
pub async fn batch(file: &Path, client: &Client, format: Format) -> Result<(), CliError> {
    let body = client.post("/v1/batch", read(file)?).await?;
    show(client, format, &body, |done: &AtomicBatchDone| text(*done))
}

fn text(done: AtomicBatchDone) -> String {
    let AtomicBatchDone {
        added,
        removed,
        updates,
        durable,
    } = done;
    if (added, removed, updates) == (0, 0, 0) {
        return "nothing had to be done\n".to_owned();
    }
    let durable = if durable {
        ""
    } else {
        ", not durable: the daemon has no state_dir"
    };
    format!("{added} ports added, {removed} removed, {updates} changes of tables{durable}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_said() {
        let done = AtomicBatchDone {
            added: 2,
            removed: 0,
            updates: 5,
            durable: true,
        };
        assert_eq!(
            text(done),
            "2 ports added, 0 removed, 5 changes of tables\n"
        );
        let kept = AtomicBatchDone {
            durable: false,
            ..done
        };
        assert!(text(kept).ends_with("not durable: the daemon has no state_dir\n"));
        let nothing = AtomicBatchDone {
            added: 0,
            updates: 0,
            ..kept
        };
        assert_eq!(text(nothing), "nothing had to be done\n");
    }
}
