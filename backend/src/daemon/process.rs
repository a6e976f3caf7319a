//! What the process as a whole asks of the operating system.
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Exit code after a panic, as that of Rust's own.
pub const PANIC_EXIT_CODE: i32 = 101;

/// Lets the process hold as many descriptors as it may: every port needs some for its socket, its memory and each of its rings.
pub fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => log::debug!(
            "may hold {} descriptors",
            limit
                .maximum
                .map_or("any number of".to_owned(), |most| most.to_string())
        ),
        Err(error) => log::warn!(
            "cannot raise the limit of open descriptors from {:?}: {error}",
            limit.current
        ),
    }
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
