//! Memory that comes and goes while frames are under way: regions added to and taken from live rings.

use serde_json::{Value, json};
use vm_lab::agent::Agent;
use vm_lab::artefacts::Artefacts;
use vm_lab::await_::{SOON, eventually};
use vm_lab::lab::{Lab, LabSpec, Station};
use vm_lab::pool::with_lab;
use vm_lab::{Error, Result};

use crate::{MIB, exchange, expect, expect_equal, running_flow};

pub const MODULE_MIB: u64 = 128;
/// More than the eight regions that fit one message.
const SLOTS: usize = 24;
/// What the guest's elastic device may grow to.
const ELASTIC_BYTES: u64 = 512 << 20;
const ELASTIC: &str = "elastic0";

/// Room for modules in both guests, and an elastic device in the second.
fn spec() -> LabSpec {
    let slots = format!("-m slots={SLOTS},maxmem=8G");
    let of_its_own = if elastic_has_slots() {
        ",dynamic-memslots=on"
    } else {
        ""
    };
    let elastic = format!(
        "-object memory-backend-memfd,id=elastic,size={ELASTIC_BYTES},share=on \
         -device virtio-mem-pci,id={ELASTIC},memdev=elastic,requested-size=0{of_its_own}"
    );
    LabSpec::of([
        Station::new("vm1").qemu(&slots),
        Station::new("vm2").qemu(&slots).qemu(&elastic),
    ])
}

/// With memory slots of its own, what the elastic device gains and loses is told to the back-end; else all of it always is.
fn elastic_has_slots() -> bool {
    Artefacts::find().is_ok_and(|artefacts| artefacts.qemu_version >= (8, 2))
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn memory_plugged_in_under_load_is_used_without_a_wrong_byte() {
    with_lab(&spec(), |lab| {
        let flow = running_flow(lab)?;
        for number in [2, 1] {
            let agent = lab.host(number)?.0;
            // As the kernel's own memory, where Linux takes its buffers from.
            put_to_use(&agent, "online")?;
            let before = memory_mib(&agent)?;
            lab.guest_mut(number)?.plug_memory("first", MODULE_MIB)?;
            wait_memory(&agent, "more", |now| now > before + MODULE_MIB / 2)?;
            // The new memory lies above 4 GiB, where Linux takes its buffers from first.
            flow.wait_more(32 * MIB)?;
        }
        flow.stop().map(drop)
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn modules_fill_every_slot_and_are_taken_out_again_under_load() {
    with_lab(&spec(), |lab| {
        let flow = running_flow(lab)?;
        let agent = lab.host(2)?.0;
        // Only what holds nothing of the kernel's own can be taken out.
        put_to_use(&agent, "online_movable")?;
        let (before, known) = (memory_mib(&agent)?, known_bytes(lab)?);
        let mut modules: Vec<String> = Vec::new();
        let refusal = loop {
            let module = format!("module{}", modules.len());
            match lab.guest_mut(2)?.plug_memory(&module, MODULE_MIB) {
                Ok(()) => modules.push(module),
                Err(refusal) => break refusal,
            }
            flow.wait_more(MIB)?;
        };
        expect(
            &format!("{} modules, then: {refusal}", modules.len()),
            modules.len() >= SLOTS - 1 && refusal.to_string().contains("slots"),
        )?;
        let all = before + modules.len() as u64 * MODULE_MIB;
        wait_memory(&agent, "all of it", |now| now >= all)?;
        expect_equal(
            "bytes that the switch knows",
            known_bytes(lab)?,
            known + modules.len() as u64 * MODULE_MIB * MIB,
        )?;
        flow.wait_more(8 * MIB)?;
        for module in &modules {
            lab.guest_mut(2)?.unplug_memory(module)?;
            flow.wait_more(MIB)?;
        }
        wait_memory(&agent, "what it had", |now| now <= before)?;
        expect_equal("bytes that the switch knows", known_bytes(lab)?, known)?;
        flow.wait_more(8 * MIB)?;
        flow.stop()?;
        exchange(lab, (1, 2), MIB)
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn an_elastic_memory_grows_and_shrinks_under_load() {
    with_lab(&spec(), |lab| {
        let flow = running_flow(lab)?;
        put_to_use(&lab.host(2)?.0, "online_movable")?;
        let known = known_bytes(lab)?;
        for bytes in [ELASTIC_BYTES, 0, ELASTIC_BYTES, 0] {
            resize_elastic(lab, bytes)?;
            if elastic_has_slots() {
                expect_equal(
                    "bytes that the switch knows",
                    known_bytes(lab)?,
                    known + bytes,
                )?;
            }
            flow.wait_more(8 * MIB)?;
        }
        flow.stop()?;
        exchange(lab, (1, 2), MIB)
    });
}

/// Asks for so much, and waits until the guest has it.
fn resize_elastic(lab: &mut Lab, bytes: u64) -> Result<()> {
    let path = format!("/machine/peripheral/{ELASTIC}");
    let qmp = lab.guest_mut(2)?.qmp();
    let wanted = json!({ "path": path, "property": "requested-size", "value": bytes });
    qmp.execute("qom-set", wanted)?;
    eventually(SOON, "the elastic memory to change", || {
        match qmp.execute("qom-get", json!({ "path": path, "property": "size" })) {
            Ok(size) if size == bytes => Ok(()),
            Ok(size) => Err(format!("{size} of {bytes}")),
            Err(error) => Err(error.to_string()),
        }
    })
}

/// How much of the second guest's memory the switch knows.
fn known_bytes(lab: &mut Lab) -> Result<u64> {
    let show = lab.switch()?.cli_json(&["port", "show", "vm2"])?;
    let bytes = show.pointer("/device/memory_bytes").and_then(Value::as_u64);
    bytes.ok_or_else(|| Error::Unexpected(show.to_string()))
}

/// What the guest does with memory that comes.
pub fn put_to_use(agent: &Agent, how: &str) -> Result<()> {
    let line = format!("echo {how} >/sys/devices/system/memory/auto_online_blocks");
    let (status, output) = agent.exec(["sh", "-c", &line])?;
    expect_equal(&output, status, 0)
}

fn wait_memory(agent: &Agent, what: &str, enough: impl Fn(u64) -> bool) -> Result<()> {
    let what = format!("the guest to have {what} of its memory");
    eventually(SOON, &what, || match memory_mib(agent) {
        Ok(now) if enough(now) => Ok(()),
        Ok(now) => Err(format!("{now} MiB")),
        Err(error) => Err(error.to_string()),
    })
}

fn memory_mib(agent: &Agent) -> Result<u64> {
    let total = agent.run("grep MemTotal /proc/meminfo")?;
    let kib = total
        .split_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse::<u64>().ok());
    kib.map(|kib| kib / 1024).ok_or(Error::Unexpected(total))
}
