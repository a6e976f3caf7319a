//! `ringswitch completions`: scripts for shells, made from what can be said.
use super::arguments::{Arguments, CompletionShell};
use clap::CommandFactory;
use clap_complete::{Shell, generate};

/// The script for a shell.
pub fn script(shell: CompletionShell) -> Vec<u8> {
    let shell = match shell {
        CompletionShell::Bash => Shell::Bash,
        CompletionShell::Zsh => Shell::Zsh,
        CompletionShell::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    generate(shell, &mut Arguments::command(), "ringswitch", &mut script);
    script
}
