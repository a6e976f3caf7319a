//! The control experiment: two guests without a switch. What fails here is the harness's fault, or QEMU's.

use vm_lab::lab::{LabSpec, Wiring};
use vm_lab::pool::with_lab;

use crate::{MIB, exchange, pair};

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn the_harness_itself_carries_and_checks_traffic() {
    let spec = LabSpec {
        wiring: Wiring::BackToBack,
        ..pair()
    };
    with_lab(&spec, |lab| exchange(lab, (1, 2), 4 * MIB));
}
