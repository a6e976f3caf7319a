//! The messages of each front-end while it migrates, as a back-end that answers everything hears them.

use super::options::NicOptions;
use super::order_tests::messages;
use super::{MemoryUpdate, Nic, RingState, Vmm};
use crate::memory::RegionLayout;

/// A plugged region that no log made before reaches.
const PLUGGED: RegionLayout = RegionLayout {
    guest_base: 8 << 30,
    size_bytes: 1 << 20,
    memfd: 1,
    mmap_offset_bytes: 0,
};

fn logged(heard: &[String]) -> String {
    let relevant = |one: &&String| {
        [
            "FEATURES",
            "ADDR",
            "LOG",
            "KICK",
            "MEM_",
            "ENABLE",
            "GET_VRING",
        ]
        .iter()
        .any(|part| one.contains(part))
            && !one.contains("GET_FEATURES")
    };
    let shown: Vec<_> = heard
        .iter()
        .filter(relevant)
        .map(|one| one.replace(' ', "·"))
        .collect();
    shown.join(" ")
}

/// What is said from the first log on.
fn heard_while(options: NicOptions, life: impl FnOnce(&mut Nic)) -> String {
    let protocol = options.protocol.bits();
    let heard = messages(options, protocol, |nic| {
        nic.start().unwrap();
        nic.start_logging().unwrap();
        life(nic);
    });
    let start = heard.iter().position(|one| one.starts_with("SET_LOG"));
    logged(&heard[start.unwrap()..])
}

#[test]
fn qemu_logs_per_pair_and_leaves_off_without_asking() {
    let options = NicOptions {
        queue_pairs: 2,
        ..NicOptions::default()
    };
    let heard = heard_while(options, |nic| {
        let mut vmm = nic.vmm();
        assert!(vmm.take_logged().unwrap().is_empty());
        vmm.stop_logging().unwrap();
    });
    assert_eq!(
        heard,
        "SET_LOG_BASE=131200 SET_FEATURES+LOG? SET_VRING_ADDR·0+LOG? SET_VRING_ADDR·1+LOG? \
        SET_FEATURES+LOG? SET_VRING_ADDR·2+LOG? SET_VRING_ADDR·3+LOG? \
        SET_FEATURES SET_VRING_ADDR·0 SET_VRING_ADDR·1 SET_FEATURES SET_VRING_ADDR·2 SET_VRING_ADDR·3"
    );
}

#[test]
fn qemu_restarts_rings_with_logging_before_it_says_where() {
    let heard = heard_while(NicOptions::default(), |nic| {
        nic.pause().unwrap();
        nic.resume().unwrap();
    });
    let again = heard.split("GET_VRING_BASE·1 ").nth(1).unwrap();
    assert_eq!(
        again,
        "SET_VRING_ENABLE·0=1? SET_VRING_ENABLE·1=1? SET_FEATURES+LOG? \
        SET_VRING_ADDR·0+LOG? SET_VRING_KICK·0 SET_VRING_ADDR·1+LOG? SET_VRING_KICK·1 SET_LOG_BASE=131200"
    );
}

#[test]
fn qemu_passes_a_longer_log_before_the_memory_that_needs_it() {
    let heard = heard_while(NicOptions::default(), |nic| {
        nic.add_region(PLUGGED, MemoryUpdate::OneRegion).unwrap();
    });
    let needed = ((8u64 << 30) + (1 << 20)) / 4096 / 8;
    let expected = format!("SET_LOG_BASE={} ADD_MEM_REG?", needed + 4096);
    assert!(heard.ends_with(&expected), "{heard}");
}

#[test]
fn cloud_hypervisor_logs_to_a_new_log_each_round() {
    let heard = heard_while(NicOptions::cloud_hypervisor(), |nic| {
        let mut vmm = nic.vmm();
        vmm.take_logged().unwrap();
        vmm.take_logged().unwrap();
        vmm.pause().unwrap();
        vmm.enable_all(RingState::Enabled).unwrap();
        vmm.stop_logging().unwrap();
    });
    assert_eq!(
        heard,
        "SET_LOG_BASE=131200? SET_FEATURES+LOG? SET_VRING_ADDR·0+LOG? SET_VRING_ADDR·1+LOG? SET_LOG_BASE=131200? SET_LOG_BASE=131200? \
        SET_VRING_ENABLE·0=0? SET_VRING_ENABLE·1=0? SET_VRING_ENABLE·0=1? SET_VRING_ENABLE·1=1? \
        SET_VRING_ADDR·0? SET_VRING_ADDR·1? SET_FEATURES?"
    );
}

#[test]
fn marks_in_a_log_that_was_replaced_are_not_lost() {
    for options in [NicOptions::default(), NicOptions::cloud_hypervisor()] {
        let protocol = options.protocol.bits();
        messages(options, protocol, |nic| {
            nic.start().unwrap();
            nic.start_logging().unwrap();
            let mut vmm = nic.vmm();
            // As the back-end would: bit 3 of byte 0.
            let mark = |vmm: &Vmm<'_>, byte: u8| {
                let log = vmm.log().unwrap().descriptor();
                rustix::io::pwrite(log, &[byte], 0).unwrap();
            };
            mark(&vmm, 8);
            vmm.set_log_base().unwrap();
            mark(&vmm, 16);
            assert_eq!(vmm.take_logged().unwrap(), [3, 4]);
            assert!(vmm.take_logged().unwrap().is_empty());
        });
    }
}
