//! What the process as a whole asks of the operating system.
use crate::config::{PortConfig, PortKind};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Exit code after a panic, as that of Rust's own.
pub const PANIC_EXIT_CODE: i32 = 101;

/// Descriptors of the daemon itself, each worker's included.
const OWN_DESCRIPTORS: u64 = 64;
/// Descriptors of a vhost-user port with its guest: listener, timer, connection, and some regions of memory.
const PORT_DESCRIPTORS: u64 = 8;
/// Descriptors of a stream port with its peer: listener, timer, eventfd and connection.
const STREAM_DESCRIPTORS: u64 = 4;
/// Descriptors of each queue pair: kick, call and error eventfds of two rings.
const PAIR_DESCRIPTORS: u64 = 6;

/// Lets the process hold as many descriptors as it may: every port needs some for its socket, its memory and each of its rings. Says so if
/// that is not enough for `ports` once all have their guests.
pub fn raise_descriptor_limit<'a>(ports: impl Iterator<Item = &'a PortConfig>) {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let most = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            log::warn!(
                "cannot raise the limit of open descriptors from {:?}: {error}",
                limit.current
            );
            limit.current
        }
    };
    let needed = descriptors_of(ports);
    if let Some(most) = most.filter(|&most| most < needed) {
        log::warn!(
            "the configured ports need up to {needed} open descriptors, this process may have {most}: some guests will not be served; \
             raise its limit (LimitNOFILE= of the service, or `ulimit -Hn`)"
        );
    }
}

fn descriptors_of<'a>(ports: impl Iterator<Item = &'a PortConfig>) -> u64 {
    let of_port = |port: &PortConfig| match &port.kind {
        PortKind::VhostUser { queue_pairs, .. } => {
            PORT_DESCRIPTORS + PAIR_DESCRIPTORS * u64::from(queue_pairs.get())
        }
        PortKind::Tap { .. } => 1,
        PortKind::Stream { .. } => STREAM_DESCRIPTORS,
    };
    OWN_DESCRIPTORS + ports.map(of_port).sum::<u64>()
}

/// Makes a panic on any thread end the process, so that no daemon runs on with a worker or its control thread missing. The service manager
/// starts it anew; guests reconnect.
pub fn end_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        log::error!(
            "thread {} panicked, ending the process: {panic}",
            thread.name().unwrap_or("(unnamed)")
        );
        log::logger().flush();
        std::process::exit(PANIC_EXIT_CODE);
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// Set in the process that is to panic.
    const PANIC_HERE: &str = "RINGSWITCH_TEST_PANIC";

    /// Runs itself once more, as the process that panics on a thread nobody waits for.
    #[test]
    fn a_panic_on_any_thread_ends_the_process() {
        if std::env::var_os(PANIC_HERE).is_some() {
            end_on_panic();
            std::thread::spawn(|| panic!("on purpose"));
            loop {
                std::thread::park();
            }
        }
        let status = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "daemon::process::tests::a_panic_on_any_thread_ends_the_process",
            ])
            .env(PANIC_HERE, "1")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(PANIC_EXIT_CODE));
    }

    #[test]
    fn the_descriptor_limit_is_raised_to_its_maximum() {
        raise_descriptor_limit(std::iter::empty());
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
