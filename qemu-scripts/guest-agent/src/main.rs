//! `/init` of the test guests; with `--stdio`, the same services for the harness on the host.

use std::fs::OpenOptions;
use std::process::ExitCode;

use guest_agent::{init, serve};

/// The guest's second serial port: nothing else, in guest or kernel, writes there.
const CHANNEL: &str = "/dev/ttyS1";

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("--stdio") {
        let served = serve::until_closed(std::io::stdin(), std::io::stdout());
        return if served.is_ok() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        };
    }
    if std::process::id() != 1 {
        eprintln!("guest-agent: runs as /init of a test guest, or with --stdio");
        return ExitCode::FAILURE;
    }
    // The first process must never end: the kernel would panic. It says on the console what went wrong, and stays.
    loop {
        if let Err(error) = run_guest() {
            eprintln!("guest-agent: {error}");
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
    }
}

fn run_guest() -> std::io::Result<()> {
    init::bring_up()?;
    let channel = OpenOptions::new().read(true).write(true).open(CHANNEL)?;
    init::make_raw(&channel)?;
    serve::until_closed(channel.try_clone()?, channel)
}
