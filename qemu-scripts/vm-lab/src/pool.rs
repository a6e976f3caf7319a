//! The labs of a test run: booted when a test first wants one, and handed on to the next that does.
//!
//! Booting is what takes longest, so guests outlive tests. A lab that was asked to be [kept](LabSpec::kept) stays until all end: its guests
//! wait in silence while a test has another one, and serve any test that wants them on a switch of another kind. Of the others
//! there is one at most.
//!
//! Kept true: one test runs at a time, whatever runs the tests; a lab in which a test failed is not handed on.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::fs::{FlockOperation, flock};

use crate::artefacts::repository;
use crate::error::Doing;
use crate::lab::{Lab, LabSpec};
use crate::{Error, Result};

/// What the next test may use.
static LABS: Mutex<Vec<Lab>> = Mutex::new(Vec::new());

// A poisoned lock is a failed test: it took its lab with it.
fn labs() -> MutexGuard<'static, Vec<Lab>> {
    LABS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `test` on a lab of that shape, alone on this machine's emulated CPUs.
pub fn with_lab(spec: &LabSpec, test: impl FnOnce(&mut Lab) -> Result<()>) {
    let mut labs = labs();
    let mut lab = match only_test_on_this_machine().and_then(|()| lab_for(&mut labs, spec)) {
        Ok(lab) => lab,
        Err(error) => fail(&error, ""),
    };
    // A panic in the test drops the lab on its way out; so does an error.
    match test(&mut lab) {
        Ok(()) => labs.push(lab),
        Err(error) => fail(&error, &lab.logs()),
    }
}

fn lab_for(labs: &mut Vec<Lab>, spec: &LabSpec) -> Result<Lab> {
    if let Some(same) = labs.iter().position(|lab| lab.spec() == spec) {
        return Ok(labs.swap_remove(same));
    }
    if let Some(alike) = labs.iter().position(|lab| lab.can_become(spec)) {
        let mut lab = labs.swap_remove(alike);
        return match lab.rewire(spec) {
            Ok(()) => Ok(lab),
            Err(error) => fail(&error, &lab.logs()),
        };
    }
    labs.retain(|lab| lab.spec().kept);
    Lab::start("lab", spec)
}

/// Runs a test that boots what it needs by itself, alone on this machine's emulated CPUs too.
pub fn without_lab(test: impl FnOnce() -> Result<()>) {
    let mut labs = labs();
    labs.retain(|lab| lab.spec().kept);
    if let Err(error) = only_test_on_this_machine().and_then(|()| test()) {
        fail(&error, "");
    }
}

#[allow(clippy::panic, reason = "this is how a test fails; only tests call it")]
fn fail(error: &Error, logs: &str) -> ! {
    panic!("{error}\n{logs}")
}

/// What would remain of a lab if it did not clean up.
#[derive(Debug)]
pub struct Traces {
    /// Its folder.
    pub folder: PathBuf,
    /// Its guests' and its switch's process ids.
    pub processes: Vec<u32>,
}

/// Ends the labs that wait for the next test.
#[must_use]
pub fn drop_labs() -> Vec<Traces> {
    let mut labs = labs();
    let traces = labs.iter_mut().map(|lab| Traces {
        folder: lab.folder().path().to_path_buf(),
        processes: lab.processes(),
    });
    let traces = traces.collect();
    labs.clear();
    traces
}

/// Held until this process ends.
fn only_test_on_this_machine() -> Result<()> {
    static LOCK: OnceLock<File> = OnceLock::new();
    if LOCK.get().is_none() {
        let path = repository().join("target/vm-lab/lab.lock");
        let file = File::create(&path).doing(|| format!("opening {}", path.display()))?;
        flock(&file, FlockOperation::LockExclusive)
            .doing(|| format!("locking {}", path.display()))?;
        let _ = LOCK.set(file);
    }
    Ok(())
}
