//! A guest's state is kept, in QEMU's own snapshots and in a file, and taken up again: its rings go on where they were then.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use vm_lab::artefacts::Artefacts;
use vm_lab::await_::{SOON, eventually};
use vm_lab::error::Doing;
use vm_lab::guest::Incoming;
use vm_lab::lab::{Lab, LabSpec};
use vm_lab::pool::with_lab;
use vm_lab::qmp::Qmp;
use vm_lab::{Error, Result};

use crate::packed::packed_pair;
use crate::{MIB, exchange, expect_equal, flood, pair, running_flow};

/// The drive that snapshots go to.
const DRIVE: &str = "snapshots";

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_guest_goes_on_after_a_snapshot_and_goes_back_to_it_again_and_again() {
    back_to_a_snapshot(&pair());
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_guest_with_packed_rings_goes_on_after_a_snapshot_and_goes_back_to_it() {
    back_to_a_snapshot(&packed_pair());
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_guest_kept_in_a_file_under_load_wakes_in_another_qemu_with_its_connections() {
    out_of_a_file(&pair());
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_guest_with_packed_rings_kept_in_a_file_wakes_in_another_qemu_with_its_connections() {
    out_of_a_file(&packed_pair());
}

fn back_to_a_snapshot(spec: &LabSpec) {
    with_lab(spec, |lab| {
        let flow = running_flow(lab)?;
        let flood = flood(lab, (1, 2))?;
        let file = lab.folder().join("snapshots.qcow2");
        let qmp = lab.guest_mut(2)?.qmp();
        add_drive(qmp, &file)?;
        snapshot(qmp, "snapshot-save")?;
        // The one that was kept while it ran runs on.
        flow.wait_more(4 * MIB)?;
        flow.stop()?;
        for _ in 0..2 {
            snapshot(lab.guest_mut(2)?.qmp(), "snapshot-load")?;
            lab.wait_connected(2)?;
            exchange(lab, (1, 2), MIB)?;
        }
        flood.stop()?;
        remove_drive(lab.guest_mut(2)?.qmp(), &file)
    });
}

fn out_of_a_file(spec: &LabSpec) {
    with_lab(spec, |lab| {
        let flow = running_flow(lab)?;
        let boots = lab.guest(2)?.agent().boots();
        for _ in 0..2 {
            sleep_and_wake(lab)?;
            flow.wait_more(4 * MIB)?;
        }
        flow.stop()?;
        expect_equal("boots", lab.guest(2)?.agent().boots(), boots)?;
        exchange(lab, (1, 2), MIB)
    });
}

/// The guest is written to a file, its QEMU ends, and another one goes on with what is in the file.
fn sleep_and_wake(lab: &mut Lab) -> Result<()> {
    let file = lab.folder().join("asleep");
    let file = file.display();
    let guest = lab.guest_mut(2)?;
    let (spec, agent) = (guest.spec().clone(), guest.agent().clone());
    let uri = json!({ "uri": format!("exec:cat >{file}") });
    guest.qmp().execute("migrate", uri)?;
    wait_migrated(guest.qmp())?;
    guest.process().kill()?;
    let mut target = Incoming::start(&Artefacts::find()?, lab.folder(), &spec, &agent)?;
    let qmp = target.qmp();
    qmp.clear_events();
    qmp.execute(
        "migrate-incoming",
        json!({ "uri": format!("exec:cat {file}") }),
    )?;
    qmp.wait_event("RESUME", |_| true)?;
    *lab.guest_mut(2)? = target.arrived(&agent);
    Ok(())
}

fn wait_migrated(qmp: &mut Qmp) -> Result<()> {
    eventually(SOON, "the guest to be in its file", || {
        match qmp.execute("query-migrate", json!({})) {
            Ok(state) => match text(&state, "/status") {
                "completed" => Ok(Ok(())),
                "failed" => Ok(Err(Error::Unexpected(state.to_string()))),
                _ => Err(state.to_string()),
            },
            Err(error) => Ok(Err(error)),
        }
    })?
}

/// Makes a qcow2 file, and gives QEMU a drive of it that no device uses.
fn add_drive(qmp: &mut Qmp, file: &Path) -> Result<()> {
    let create = |options: Value| json!({ "job-id": "create", "options": options });
    let raw = json!({ "driver": "file", "filename": file, "size": 0 });
    job(qmp, "blockdev-create", "create", create(raw))?;
    let raw = json!({ "driver": "file", "filename": file, "node-name": "raw" });
    qmp.execute("blockdev-add", raw)?;
    let qcow2 = json!({ "driver": "qcow2", "file": "raw", "size": 1 << 20 });
    job(qmp, "blockdev-create", "create", create(qcow2))?;
    let qcow2 = json!({ "driver": "qcow2", "file": "raw", "node-name": DRIVE });
    qmp.execute("blockdev-add", qcow2).map(drop)
}

/// Takes it out again, and the file away.
fn remove_drive(qmp: &mut Qmp, file: &Path) -> Result<()> {
    for node in [DRIVE, "raw"] {
        qmp.execute("blockdev-del", json!({ "node-name": node }))?;
    }
    fs::remove_file(file).doing(|| format!("removing {}", file.display()))
}

fn snapshot(qmp: &mut Qmp, command: &str) -> Result<()> {
    let what = json!({ "job-id": command, "tag": "kept", "vmstate": DRIVE, "devices": [DRIVE] });
    job(qmp, command, command, what)
}

/// Runs one of QEMU's jobs to its end.
fn job(qmp: &mut Qmp, command: &str, id: &str, arguments: Value) -> Result<()> {
    qmp.execute(command, arguments)?;
    let found = eventually(SOON, command, || {
        let jobs = qmp
            .execute("query-jobs", json!({}))
            .map_err(|e| e.to_string())?;
        let jobs = jobs.as_array().into_iter().flatten();
        let found = jobs.clone().find(|job| text(job, "/id") == id);
        match found {
            Some(job) if text(job, "/status") == "concluded" => Ok(job.clone()),
            _ => Err(format!("{found:?}")),
        }
    })?;
    qmp.execute("job-dismiss", json!({ "id": id }))?;
    match found.get("error") {
        None => Ok(()),
        Some(error) => Err(Error::Unexpected(format!("{command}: {error}"))),
    }
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}
