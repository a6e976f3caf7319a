//! Whatever a front-end sends, the device keeps its promises and the next front-end finds it fresh.

use crate::rig::*;
use proptest::collection::vec;
use proptest::prelude::*;
use std::os::fd::AsFd;
use vhost::VhostBackend;

/// A request with a body of its own size more often than not, so that sequences get somewhere.
#[derive(Clone, Debug)]
struct Sent {
    request: u32,
    need_reply: bool,
    body: Vec<u8>,
    descriptors: usize,
}

fn message() -> impl Strategy<Value = Sent> {
    let small = prop_oneof![4 => 0_u32..4, 1 => any::<u32>()];
    let word = prop_oneof![
        4 => (0_u64..4).prop_map(|slot| USER_BASE + slot * 0x4000),
        2 => Just(MEMORY_BYTES),
        2 => Just(1_u64 << 32 | 1 << 30),
        2 => 0_u64..512,
        1 => any::<u64>(),
    ];
    let request = prop_oneof![9 => 1_u32..45, 1 => any::<u32>()];
    (
        request,
        any::<bool>(),
        small.clone(),
        prop_oneof![Just(256_u32), small],
        vec(word, 4),
        0_usize..12,
    )
        .prop_map(|(request, need_reply, index, number, words, luck)| {
            let pair = [index, number].map(u32::to_ne_bytes).concat();
            let words: Vec<u8> = words.into_iter().flat_map(u64::to_ne_bytes).collect();
            let (body, descriptors) = match request {
                1 | 3 | 4 | 15 | 17 | 34 | 36 => (Vec::new(), 0),
                2 | 16 | 19 | 20 => (words[..8].to_vec(), 0),
                8 | 10 | 11 | 18 => (pair, 0),
                9 => ([pair, words].concat(), 0),
                12..=14 => (u64::from(index % 4).to_ne_bytes().to_vec(), 1),
                5 => {
                    let region = [1_u64, 0, MEMORY_BYTES, USER_BASE, 0];
                    (region.map(u64::to_ne_bytes).concat(), 1)
                }
                37 => ([vec![0; 8], words].concat(), 1),
                38 => ([vec![0; 8], words].concat(), 0),
                _ => (words, 1),
            };
            // Now and then the body or the descriptors are wrong.
            match luck {
                0 => Sent {
                    request,
                    need_reply,
                    body: body[..body.len() / 2].to_vec(),
                    descriptors,
                },
                1 => Sent {
                    request,
                    need_reply,
                    body,
                    descriptors: descriptors + 1,
                },
                _ => Sent {
                    request,
                    need_reply,
                    body,
                    descriptors,
                },
            }
        })
}

/// As the fuzz target reads it.
fn as_fuzz_input(messages: &[Sent]) -> Vec<u8> {
    let mut input = Vec::new();
    for sent in messages {
        let flags = 1 | u32::from(sent.need_reply) << 3;
        let mut bytes = Raw::header(sent.request, flags, sent.body.len() as u32);
        bytes.extend_from_slice(&sent.body);
        input.extend([sent.descriptors as u8, bytes.len() as u8]);
        input.extend(bytes);
    }
    input
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_messages_breaks_a_promise(messages in vec(message(), 0..60)) {
        ringswitch::fuzzing::session::run(&as_fuzz_input(&messages));
    }

    #[test]
    fn no_bytes_break_a_promise(bytes in vec(any::<u8>(), 0..600)) {
        ringswitch::fuzzing::session::run(&bytes);
    }
}

#[test]
fn after_any_sequence_a_clean_session_comes_up() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let (rig, _attachment) = Rig::with_port(1);
    let mut runner = TestRunner::deterministic();
    for _ in 0..60 {
        let messages = vec(message(), 1..40)
            .new_tree(&mut runner)
            .unwrap()
            .current();
        let mut raw = rig.raw(PORT);
        let descriptor = new_eventfd();
        for sent in messages {
            let descriptors = vec![descriptor.as_fd(); sent.descriptors];
            let flags = u32::from(sent.need_reply) << 3;
            if raw
                .try_send(sent.request, flags, &sent.body, &descriptors)
                .is_err()
            {
                break;
            }
        }
        drop(raw);
        let mut front_end = rig.front_end(PORT);
        negotiate(&mut front_end, cloud_hypervisor_features());
        activate(&mut front_end, &Guest::new(2));
        assert_eq!(rig.status(PORT).state, "up");
        assert_eq!(front_end.get_vring_base(0).unwrap(), 0);
    }
}
