//! Waiting for a condition, with a deadline: nothing here sleeps for a fixed time and hopes.

use std::time::{Duration, Instant};

use crate::{Error, Result};

/// For what happens at once on an idle machine, and still must not fail on a crowded one.
pub const SOON: Duration = Duration::from_secs(30);
/// For a guest to boot, and for a transfer to end.
pub const PATIENCE: Duration = Duration::from_secs(180);

const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Looks until `look` returns something. `Err` from `look` means "not yet, because", and is shown if time runs out.
///
/// # Errors
/// The deadline passed.
pub fn eventually<T>(
    within: Duration,
    what: &str,
    mut look: impl FnMut() -> std::result::Result<T, String>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        match look() {
            Ok(found) => return Ok(found),
            Err(reason) if start.elapsed() >= within => {
                let last = (!reason.is_empty()).then_some(reason);
                return Err(Error::Deadline {
                    what: what.to_owned(),
                    waited: within,
                    last,
                });
            }
            Err(_) => std::thread::sleep(LOOK_EVERY),
        }
    }
}
