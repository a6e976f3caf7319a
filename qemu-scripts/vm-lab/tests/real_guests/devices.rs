//! Guests whose NICs differ: what one can do and the other cannot is made up for by the switch.

use vm_lab::lab::{LabSpec, Station};
use vm_lab::pool::with_lab;

use crate::{MIB, exchange, expect_equal};

/// Feature bits, VIRTIO 1.3 §5.1.3 and §6.
const NET_F_CSUM: usize = 0;
const NET_F_GUEST_CSUM: usize = 1;
const NET_F_HOST_TSO4: usize = 11;
const NET_F_MRG_RXBUF: usize = 15;
const F_VERSION_1: usize = 32;

const NO_OFFLOADS: &str = "csum=off,guest_csum=off,gso=off,host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off,\
                           guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off";

/// 1: everything on, modern. 2: no offloads. 3: no mergeable buffers. 4: legacy.
fn spec() -> LabSpec {
    LabSpec::of([
        Station::new("vm1").nic("disable-legacy=on"),
        Station::new("vm2").nic(NO_OFFLOADS),
        Station::new("vm3").nic("mrg_rxbuf=off"),
        Station::new("vm4").nic("disable-modern=on"),
    ])
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn each_guest_negotiates_what_its_device_offers() {
    with_lab(&spec(), |lab| {
        let negotiated = |number: usize, bit| lab.guest(number)?.negotiated(bit);
        expect_equal("vm1 is modern", negotiated(1, F_VERSION_1)?, true)?;
        for bit in [
            NET_F_CSUM,
            NET_F_GUEST_CSUM,
            NET_F_HOST_TSO4,
            NET_F_MRG_RXBUF,
        ] {
            expect_equal(&format!("vm1 has feature {bit}"), negotiated(1, bit)?, true)?;
        }
        for bit in [NET_F_CSUM, NET_F_GUEST_CSUM, NET_F_HOST_TSO4] {
            expect_equal(
                &format!("vm2 has feature {bit}"),
                negotiated(2, bit)?,
                false,
            )?;
        }
        expect_equal(
            "vm3 has mergeable buffers",
            negotiated(3, NET_F_MRG_RXBUF)?,
            false,
        )?;
        expect_equal("vm4 is modern", negotiated(4, F_VERSION_1)?, false)
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_guest_without_offloads_talks_to_one_with_all_of_them() {
    with_lab(&spec(), |lab| exchange(lab, (1, 2), 16 * MIB));
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_guest_without_mergeable_buffers_talks_to_one_with_them() {
    with_lab(&spec(), |lab| exchange(lab, (1, 3), 16 * MIB));
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_legacy_guest_talks_to_a_modern_one() {
    with_lab(&spec(), |lab| exchange(lab, (1, 4), 16 * MIB));
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn guests_that_each_lack_something_else_talk_to_each_other() {
    with_lab(&spec(), |lab| {
        exchange(lab, (2, 3), 4 * MIB)?;
        exchange(lab, (4, 2), 4 * MIB)
    });
}
