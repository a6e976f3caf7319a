//! For tests: a process that is killed before its next store, or the one after that.
//!
//! What a killed process has stored stays, in program order; so ending a call before its n-th store, for every n, is every way in which a
//! kill can interrupt it.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

thread_local! {
    static STORES_LEFT: Cell<Option<u32>> = const { Cell::new(None) };
}

struct Killed;

/// Called before each store that outlives the process.
pub fn point() {
    match STORES_LEFT.get() {
        None => {}
        Some(0) => resume_unwind(Box::new(Killed)),
        Some(left) => STORES_LEFT.set(Some(left - 1)),
    }
}

/// Runs `act`, which is killed after `stores` stores; `None` when it was.
pub fn after<R>(stores: u32, act: impl FnOnce() -> R) -> Option<R> {
    STORES_LEFT.set(Some(stores));
    let outcome = catch_unwind(AssertUnwindSafe(act));
    STORES_LEFT.set(None);
    match outcome {
        Ok(value) => Some(value),
        Err(panic) if panic.is::<Killed>() => None,
        Err(panic) => resume_unwind(panic),
    }
}
