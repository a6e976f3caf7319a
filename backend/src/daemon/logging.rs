//! Log lines to standard error, filtered by `RUST_LOG` (default `info`).
//!
//! Under journald a line carries its priority (sd-daemon(3)) and no time, which journald adds; elsewhere it carries the time.
use log::Level;
use rustix::fs::fstat;
use std::io::Write;

/// Installs the logger. Called once, first of all.
pub fn start() {
    let mut builder =
        env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info"));
    if is_journal() {
        builder.format(|out, record| {
            writeln!(
                out,
                "<{}>{}: {}",
                priority(record.level()),
                record.target(),
                record.args()
            )
        });
    }
    // Fails only when a logger is there already: then that one serves.
    let _ = builder.try_init();
}

/// Whether standard error is the stream that journald gave (systemd.exec(5): JOURNAL_STREAM is `device:inode`).
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    fstat(std::io::stderr())
        .is_ok_and(|stderr| stream == format!("{}:{}", stderr.st_dev, stderr.st_ino))
}

/// syslog(3)'s priorities.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}
