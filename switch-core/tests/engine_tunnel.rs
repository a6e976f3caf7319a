//! A tunnel protocol that nobody has heard of, end to end, from `programs/tunnel.json` alone.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::sync::Arc;

use etherparse::{PacketBuilder, SlicedPacket};
use switch_core::engine::control::{PortNames, Update};
use switch_core::engine::edit::EditedFrame;
use switch_core::engine::model::Program;
use switch_core::engine::pipeline::EnginePipeline;
use switch_core::engine::runtime::{Engine, EngineConfig};
use switch_core::{Decide, DropReason, FrameInfo, HeaderEdit, Millis, PortId, Verdict};

const ENTRIES: &str = r#"[
    {"insert": {"table": "stations", "key": {"station": "02:00:00:00:00:0b"}, "action": "enter_tunnel",
                "params": {"port": "uplink", "local": "02:00:00:00:aa:01", "remote": "02:00:00:00:aa:02", "tenant": 77}}},
    {"insert": {"table": "tenants", "key": {"tenant": 77, "station": "02:00:00:00:00:0b"}, "priority": 10, "action": "leave_tunnel",
                "params": {"port": "vm", "counter": 5}}},
    {"insert": {"table": "tenants", "key": {"tenant": 78}, "priority": 1, "action": "relay",
                "params": {"port": "uplink", "next_hop": "02:00:00:00:aa:03", "flow": 4242}}}
]"#;

struct Names;

impl PortNames for Names {
    fn id(&self, name: &str) -> Option<PortId> {
        match name {
            "vm" => PortId::new(1),
            "uplink" => PortId::new(2),
            _ => None,
        }
    }

    fn name(&self, _: PortId) -> Option<String> {
        None
    }
}

/// An engine, a pipeline that remembers, and one that does not.
struct Switch {
    engine: Arc<Engine>,
    pipelines: [EnginePipeline; 2],
}

#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Dropped(DropReason),
    Sent(u16, Vec<u8>),
}

impl Switch {
    fn new() -> Self {
        let valid = Program::from_json(include_str!("../programs/tunnel.json")).unwrap();
        let engine = Arc::new(Engine::new(valid, EngineConfig::default()).unwrap());
        let updates: Vec<Update> = serde_json::from_str(ENTRIES).unwrap();
        engine.write(&updates, &Names, Millis(1)).unwrap();
        Self {
            pipelines: [0, 1].map(|_| EnginePipeline::new(Arc::clone(&engine))),
            engine,
        }
    }

    /// The same from evaluation, on the first frame and from memory.
    fn send(&mut self, port: u16, frame: &[u8]) -> Seen {
        let [remembers, forgets] = &mut self.pipelines;
        let first = decide(remembers, port, frame);
        let before = remembers.stats().misses;
        assert_eq!(decide(remembers, port, frame), first);
        assert_eq!(remembers.stats().misses, before, "it is remembered");
        forgets.forget();
        assert_eq!(decide(forgets, port, frame), first);
        first
    }
}

fn decide(pipeline: &mut EnginePipeline, port: u16, frame: &[u8]) -> Seen {
    pipeline.begin_batch(Millis(2));
    let info = FrameInfo {
        header: frame,
        frame_bytes: frame.len() as u32,
        wire_bytes: frame.len() as u32,
        partial_checksum: None,
    };
    match pipeline.decide(PortId::new(port).unwrap(), &info) {
        Verdict::Drop(reason) => Seen::Dropped(reason),
        Verdict::Output { port, edit } => {
            let HeaderEdit::List(list) = edit else {
                panic!("this program edits every frame that it sends");
            };
            let mut buffer = frame.to_vec();
            buffer.resize(frame.len() + 96, 0);
            let mut edited = EditedFrame {
                buffer: &mut buffer,
                header_bytes: frame.len(),
                frame_bytes: frame.len(),
                partial_checksum: None,
            };
            let list = pipeline.outcomes().edit_list(list).unwrap();
            list.apply(&mut edited).unwrap();
            let length = edited.header_bytes;
            buffer.truncate(length);
            Seen::Sent(port.get(), buffer)
        }
        other => panic!("{other:?}"),
    }
}

/// What a guest sends to the station.
fn inner(station: u8, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 0xa], [2, 0, 0, 0, 0, station])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .udp(1000, 2000);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

/// The tunnel's headers: Ethernet, then version, words, next, flow, tenant, TTL, and so many words of options.
fn tunnelled((tenant, ttl, options): (u32, u8, u8), next: u8, carried: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0xaa, 1, 2, 0, 0, 0, 0xaa, 2, 0x88, 0xb5];
    frame.extend([0x10 | (2 + options), next, 0, 0]);
    frame.extend(&tenant.to_be_bytes()[1..]);
    frame.push(ttl);
    frame.extend(vec![0xdd; usize::from(options) * 4]);
    frame.extend(carried);
    frame
}

#[test]
fn a_frame_enters_the_tunnel_whole() {
    let mut switch = Switch::new();
    for payload in [&b"hello"[..], &[7; 900]] {
        let frame = inner(0xb, payload);
        let mut expected = tunnelled((77, 16, 0), 1, &frame);
        expected[..12].copy_from_slice(&[2, 0, 0, 0, 0xaa, 2, 2, 0, 0, 0, 0xaa, 1]);
        assert_eq!(switch.send(1, &frame), Seen::Sent(2, expected));
    }
    let stranger = switch.send(1, &inner(0xc, b"hello"));
    assert_eq!(stranger, Seen::Dropped(DropReason::NoDestination));
}

#[test]
fn a_frame_leaves_the_tunnel_as_it_entered_it_whatever_options_the_tunnel_has() {
    let mut switch = Switch::new();
    let frame = inner(0xb, b"to the station");
    for options in 0..=13 {
        let carried = tunnelled((77, 9, options), 1, &frame);
        let Seen::Sent(1, left) = switch.send(2, &carried) else {
            panic!("with {options} words of options");
        };
        assert_eq!(left, frame);
        let sliced = SlicedPacket::from_ethernet(&left).unwrap();
        assert!(sliced.transport.is_some());
    }
    // Behind a tag as well.
    let mut tagged = tunnelled((77, 9, 1), 1, &frame);
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    assert_eq!(switch.send(2, &tagged), Seen::Sent(1, frame));
    for pipeline in &mut switch.pipelines {
        pipeline.count_all();
    }
    let counted = switch.engine.counters("tenant_frames", 0, 10).unwrap();
    // Three times each of fifteen frames.
    assert_eq!((counted[0].0, counted[0].1.frames), (5, 45));
}

#[test]
fn a_frame_is_relayed_with_one_hop_less() {
    let mut switch = Switch::new();
    let frame = tunnelled((78, 2, 3), 1, &inner(0xb, b"on"));
    let mut expected = frame.clone();
    expected[..12].copy_from_slice(&[2, 0, 0, 0, 0xaa, 3, 2, 0, 0, 0, 0xaa, 1]);
    expected[16..18].copy_from_slice(&4242u16.to_be_bytes());
    expected[21] = 1;
    assert_eq!(switch.send(2, &frame), Seen::Sent(2, expected.clone()));
    // The next one finds no hop left.
    let dropped = switch.send(2, &expected);
    assert_eq!(dropped, Seen::Dropped(DropReason::NoDestination));
}

#[test]
fn malformed_and_unknown_frames_of_the_tunnel_are_dropped() {
    let mut switch = Switch::new();
    let good = tunnelled((77, 9, 1), 1, &inner(0xb, b"x"));
    let bent = |bend: fn(&mut Vec<u8>)| {
        let mut frame = good.clone();
        bend(&mut frame);
        frame
    };
    let cases = [
        ("version 2", bent(|frame| frame[14] = 0x23)),
        ("a length of one word", bent(|frame| frame[14] = 0x11)),
        ("cut in the options", bent(|frame| frame.truncate(24))),
        ("cut in the header", bent(|frame| frame.truncate(20))),
        ("an unknown tenant", bent(|frame| frame[20] = 99)),
        ("a station of nobody", bent(|frame| frame[31] = 99)),
        ("reserved next", bent(|frame| frame[15] = 0xf3)),
        ("no hop left", bent(|frame| frame[21] = 1)),
        ("nothing inside", bent(|frame| frame.truncate(26))),
    ];
    for (what, frame) in cases {
        // The program tells those apart whose header was taken out and refused.
        let reason = match what {
            "version 2" | "reserved next" => DropReason::ParseError,
            _ => DropReason::NoDestination,
        };
        let seen = switch.send(2, &frame);
        assert_eq!(seen, Seen::Dropped(reason), "{what}");
    }
    assert!(matches!(switch.send(2, &good), Seen::Sent(1, _)));
}
