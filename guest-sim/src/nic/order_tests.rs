//! The messages of each front-end, as a back-end that answers everything hears them.

use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Duration;

use vhost::vhost_user::VhostUserProtocolFeatures as Bits;

use super::options::{NicOptions, ProtocolFeatures, Settle};
use super::{MessageOrder, Nic, RingBase};
use crate::features::Features;
use crate::memory::{GuestMemory, GuestMemoryLayout};
use crate::message::{NEED_REPLY, REPLY, RawFrontend, Request, VERSION};

/// What it answers to GET_VRING_BASE: of a split ring, and of a packed one.
const STOPPED_AT: u32 = 7;
const PACKED_STOPPED_AT: u32 = 0x8005_0007;

/// Answers every request until the front-end hangs up; tells what it heard, `name ring` with `?` where a reply was asked for, `+LOG` where
/// logging was, the base of a packed ring, and the length of a log.
fn back_end(stream: UnixStream, protocol: u64) -> JoinHandle<Vec<String>> {
    std::thread::spawn(move || {
        let mut socket = RawFrontend::new(stream);
        let mut heard = Vec::new();
        let mut acked = Features::NONE;
        while let Ok(message) = socket.receive(Duration::from_secs(20)) {
            let known = Request::EVERY
                .iter()
                .find(|request| request.code() == message.request);
            let request = *known.unwrap();
            let asked = message.flags & NEED_REPLY != 0;
            if request == Request::SET_FEATURES {
                acked =
                    Features::from_bits(u64::from_le_bytes(message.body[..8].try_into().unwrap()));
            }
            let packed = acked.contains(Features::RING_PACKED);
            heard.push(format!(
                "{}{}{}",
                request.name(),
                ring_of(request, &message.body, packed),
                if asked { "?" } else { "" }
            ));
            let offered = Features::LINUX
                | Features::MQ
                | Features::IN_ORDER
                | Features::MTU
                | Features::RING_PACKED
                | Features::LOG_ALL
                | Features::PROTOCOL_FEATURES;
            let reply = match request {
                Request::GET_FEATURES => offered.bits(),
                Request::GET_PROTOCOL_FEATURES => protocol,
                Request::GET_QUEUE_NUM => 8,
                Request::GET_MAX_MEM_SLOTS => 509,
                // The vring state's number is the upper half.
                Request::GET_VRING_BASE => {
                    let base = if packed {
                        PACKED_STOPPED_AT
                    } else {
                        STOPPED_AT
                    };
                    u64::from(message.body[0]) | u64::from(base) << 32
                }
                Request::SET_LOG_BASE => {
                    let sent = socket.send_with(request, VERSION | REPLY, &message.body, &[]);
                    sent.unwrap();
                    continue;
                }
                _ if asked => 0,
                _ => continue,
            };
            socket
                .send_with(request, VERSION | REPLY, &reply.to_le_bytes(), &[])
                .unwrap();
        }
        heard
    })
}

fn ring_of(request: Request, body: &[u8], packed: bool) -> String {
    let name = request.name();
    let number = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().unwrap());
    match request {
        Request::SET_LOG_BASE => {
            assert_eq!(number(8), 0, "the log starts where its file does");
            return format!("={}", number(0));
        }
        Request::SET_FEATURES if Features::from_bits(number(0)).contains(Features::LOG_ALL) => {
            return "+LOG".into();
        }
        // Index and flags, three addresses, and where to log.
        Request::SET_VRING_ADDR if body[4] == 1 => {
            assert_ne!(number(32), 0, "the used ring's guest address");
            return format!(" {}+LOG", body[0]);
        }
        _ => {}
    }
    if !name.contains("VRING") {
        return String::new();
    }
    match request {
        Request::SET_VRING_ENABLE => format!(" {}={}", body[0], body[4]),
        Request::SET_VRING_BASE if packed => {
            let base = u32::from_le_bytes(body[4..8].try_into().unwrap());
            format!(" {}={base:#010x}", body[0])
        }
        _ => format!(" {}", body[0]),
    }
}

pub(super) fn messages(
    options: NicOptions,
    protocol: u64,
    life: impl FnOnce(&mut Nic),
) -> Vec<String> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let thread = back_end(theirs, protocol);
    let memory = GuestMemory::new(&GuestMemoryLayout::around_pci_hole(4 << 20, 4 << 20)).unwrap();
    let options = NicOptions {
        settle: Settle::Never,
        ..options
    };
    let mut nic = Nic::introduce(&memory, options, ours).unwrap();
    life(&mut nic);
    drop(nic);
    thread.join().unwrap()
}

#[test]
fn qemu_boots_two_pairs_and_resets_them() {
    let options = NicOptions {
        queue_pairs: 2,
        features: Features::LINUX | Features::MTU,
        mtu: Some(1500),
        ..NicOptions::default()
    };
    let protocol = ProtocolFeatures::QEMU.bits();
    let heard = messages(options, protocol, |nic| {
        nic.start().unwrap();
        nic.reset().unwrap();
        assert_eq!(nic.stopped_at(), [0; 4]);
    });
    let expected = "GET_FEATURES GET_PROTOCOL_FEATURES SET_PROTOCOL_FEATURES GET_QUEUE_NUM GET_MAX_MEM_SLOTS SET_OWNER GET_FEATURES \
        SET_VRING_CALL·0 SET_VRING_ERR·0 SET_VRING_CALL·1 SET_VRING_ERR·1 \
        GET_FEATURES GET_PROTOCOL_FEATURES SET_PROTOCOL_FEATURES GET_MAX_MEM_SLOTS GET_FEATURES \
        SET_VRING_CALL·2 SET_VRING_ERR·2 SET_VRING_CALL·3 SET_VRING_ERR·3 \
        SET_VRING_ENABLE·0=1? SET_VRING_ENABLE·1=1? SET_VRING_ENABLE·2=0? SET_VRING_ENABLE·3=0? \
        NET_SET_MTU? \
        SET_VRING_ENABLE·0=1? SET_VRING_ENABLE·1=1? SET_FEATURES ADD_MEM_REG? ADD_MEM_REG? \
        SET_VRING_NUM·0 SET_VRING_BASE·0 SET_VRING_ADDR·0 SET_VRING_KICK·0 SET_VRING_CALL·0 \
        SET_VRING_NUM·1 SET_VRING_BASE·1 SET_VRING_ADDR·1 SET_VRING_KICK·1 SET_VRING_CALL·1 \
        SET_VRING_ENABLE·2=1? SET_VRING_ENABLE·3=1? SET_FEATURES \
        SET_VRING_NUM·2 SET_VRING_BASE·2 SET_VRING_ADDR·2 SET_VRING_KICK·2 SET_VRING_CALL·2 \
        SET_VRING_NUM·3 SET_VRING_BASE·3 SET_VRING_ADDR·3 SET_VRING_KICK·3 SET_VRING_CALL·3 \
        GET_VRING_BASE·0 GET_VRING_BASE·1 GET_VRING_BASE·2 GET_VRING_BASE·3 RESET_DEVICE? \
        SET_VRING_ENABLE·0=1? SET_VRING_ENABLE·1=1? SET_VRING_ENABLE·2=0? SET_VRING_ENABLE·3=0?";
    assert_eq!(
        heard
            .iter()
            .map(|one| one.replace(' ', "·"))
            .collect::<Vec<_>>()
            .join(" "),
        expected
    );
}

#[test]
fn qemu_without_memory_slots_sends_a_table() {
    let protocol = ProtocolFeatures::QEMU
        .without(Bits::CONFIGURE_MEM_SLOTS)
        .bits();
    let heard = messages(NicOptions::default(), protocol, |nic| nic.start().unwrap());
    assert!(heard.contains(&"SET_MEM_TABLE?".to_owned()), "{heard:?}");
    assert!(
        !heard.iter().any(|one| one.starts_with("ADD_MEM_REG")),
        "{heard:?}"
    );
}

#[test]
fn qemu_goes_on_where_the_back_end_stopped() {
    let heard = messages(
        NicOptions::default(),
        ProtocolFeatures::QEMU.bits(),
        |nic| {
            nic.start().unwrap();
            nic.pause().unwrap();
            assert_eq!(nic.stopped_at(), [7, 7]);
            nic.resume().unwrap();
        },
    );
    // Memory is not told again on the same connection.
    assert_eq!(
        heard
            .iter()
            .filter(|one| one.starts_with("ADD_MEM_REG"))
            .count(),
        2
    );
}

fn packed() -> NicOptions {
    NicOptions {
        features: Features::LINUX | Features::RING_PACKED,
        // Not powers of two.
        guest_rx_ring_size: 300,
        guest_tx_ring_size: 7,
        ..NicOptions::default()
    }
}

fn bases(heard: &[String]) -> Vec<&str> {
    heard
        .iter()
        .filter_map(|one| one.strip_prefix("SET_VRING_BASE "))
        .collect()
}

#[test]
fn packed_rings_start_with_both_wrap_counters_and_go_on_with_all_32_bits() {
    let heard = messages(packed(), ProtocolFeatures::QEMU.bits(), |nic| {
        nic.start().unwrap();
        assert_eq!(nic.ring(1).unwrap().size(), 7);
        nic.pause().unwrap();
        assert_eq!(nic.stopped_at(), [PACKED_STOPPED_AT; 2]);
        nic.resume().unwrap();
        nic.reset().unwrap();
        nic.start().unwrap();
    });
    assert_eq!(
        bases(&heard),
        [
            "0=0x80008000",
            "1=0x80008000",
            "0=0x80050007",
            "1=0x80050007",
            "0=0x80008000",
            "1=0x80008000"
        ]
    );
}

#[test]
fn after_a_crash_packed_rings_start_where_the_front_end_last_knew_them() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let first = back_end(theirs, ProtocolFeatures::QEMU.bits());
    let memory = GuestMemory::new(&GuestMemoryLayout::one_region(4 << 20)).unwrap();
    let options = NicOptions {
        settle: Settle::Never,
        ..packed()
    };
    let mut nic = Nic::introduce(&memory, options, ours).unwrap();
    nic.start().unwrap();
    let posted = nic.ring(0).unwrap().outstanding();
    assert_eq!(posted, 300);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let second = back_end(theirs, ProtocolFeatures::QEMU.bits());
    nic.reconnect(ours).unwrap();
    assert_eq!(nic.ring(0).unwrap().outstanding(), posted, "rings stay");
    let (ours, theirs) = UnixStream::pair().unwrap();
    let third = back_end(theirs, ProtocolFeatures::QEMU.bits());
    nic.reconnect_from(ours, RingBase::AvailIndex).unwrap();
    drop(nic);
    first.join().unwrap();
    assert_eq!(
        bases(&second.join().unwrap()),
        ["0=0x80008000", "1=0x80008000"]
    );
    assert_eq!(
        bases(&third.join().unwrap()),
        ["0=0x80000000", "1=0x80008000"]
    );
}

#[test]
fn cloud_hypervisor_boots_pauses_resets_and_leaves() {
    let heard = messages(
        NicOptions::cloud_hypervisor(),
        ProtocolFeatures::CLOUD_HYPERVISOR.bits(),
        |nic| {
            nic.start().unwrap();
            nic.pause().unwrap();
            nic.resume().unwrap();
            nic.reset().unwrap();
            nic.start().unwrap();
        },
    );
    let activation = "SET_FEATURES? SET_MEM_TABLE? SET_VRING_NUM·0? SET_VRING_NUM·1? \
        SET_VRING_ADDR·0? SET_VRING_BASE·0? SET_VRING_CALL·0? SET_VRING_KICK·0? \
        SET_VRING_ADDR·1? SET_VRING_BASE·1? SET_VRING_CALL·1? SET_VRING_KICK·1? \
        SET_VRING_ENABLE·0=1? SET_VRING_ENABLE·1=1?";
    let expected = format!(
        "SET_OWNER GET_FEATURES GET_PROTOCOL_FEATURES SET_PROTOCOL_FEATURES GET_QUEUE_NUM? {activation} \
        SET_VRING_ENABLE·0=0? SET_VRING_ENABLE·1=0? SET_VRING_ENABLE·0=1? SET_VRING_ENABLE·1=1? \
        SET_VRING_ENABLE·0=0? GET_VRING_BASE·0? SET_VRING_ENABLE·1=0? GET_VRING_BASE·1? {activation}"
    );
    assert_eq!(
        heard
            .iter()
            .map(|one| one.replace(' ', "·"))
            .collect::<Vec<_>>()
            .join(" "),
        expected
    );
}

#[test]
fn cloud_hypervisor_reconnects_without_asking_again() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let first = back_end(theirs, ProtocolFeatures::CLOUD_HYPERVISOR.bits());
    let memory = GuestMemory::new(&GuestMemoryLayout::one_region(4 << 20)).unwrap();
    let mut nic = Nic::introduce(&memory, NicOptions::cloud_hypervisor(), ours).unwrap();
    nic.start().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let second = back_end(theirs, ProtocolFeatures::CLOUD_HYPERVISOR.bits());
    nic.reconnect(ours).unwrap();
    drop(nic);
    first.join().unwrap();
    let heard = second.join().unwrap();
    assert_eq!(
        heard[..4],
        [
            "SET_OWNER",
            "GET_FEATURES",
            "SET_PROTOCOL_FEATURES",
            "SET_FEATURES?"
        ]
    );
}

#[test]
fn a_queue_without_a_vector_gets_no_call() {
    let options = NicOptions {
        rings_without_call: vec![1],
        ..NicOptions::cloud_hypervisor()
    };
    let heard = messages(options, ProtocolFeatures::CLOUD_HYPERVISOR.bits(), |nic| {
        nic.start().unwrap()
    });
    assert!(heard.contains(&"SET_VRING_CALL 0?".to_owned()));
    assert!(!heard.contains(&"SET_VRING_CALL 1?".to_owned()));
}

#[test]
fn an_old_front_end_knows_neither_protocol_features_nor_enable() {
    for order in [MessageOrder::Qemu, MessageOrder::CloudHypervisor] {
        let options = NicOptions {
            protocol: ProtocolFeatures::NONE,
            order,
            ..NicOptions::default()
        };
        let heard = messages(options, ProtocolFeatures::QEMU.bits(), |nic| {
            nic.start().unwrap();
            assert!(!nic.acked().contains(Features::PROTOCOL_FEATURES));
        });
        assert!(
            !heard
                .iter()
                .any(|one| one.contains("PROTOCOL") || one.contains("ENABLE")),
            "{heard:?}"
        );
    }
}
