//! An engine runs a program that is given as JSON.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::sync::Arc;

use switch_core::engine::control::{Outcome, PortNames, Update, WriteErrorKind};
use switch_core::engine::model::Program;
use switch_core::engine::pipeline::EnginePipeline;
use switch_core::engine::runtime::{Engine, EngineConfig};
use switch_core::{Decide, DropReason, FrameInfo, HeaderEdit, Millis, PortId, Verdict};

/// Ports are called by their numbers.
struct Numbers;

impl PortNames for Numbers {
    fn id(&self, name: &str) -> Option<PortId> {
        PortId::new(name.strip_prefix("vm")?.parse().ok()?)
    }

    fn name(&self, id: PortId) -> Option<String> {
        Some(format!("vm{id}"))
    }
}

const FIREWALL: &str = r#"{
    "name": "firewall",
    "metadata": [{"name": "class", "bits": 8}],
    "actions": [
        {"name": "deny", "do": [{"drop": {"reason": "acl_denied"}}]},
        {"name": "classify", "params": [{"name": "class", "bits": 8}],
         "do": [{"set": {"field": "meta.class", "to": "$class"}}]},
        {"name": "send", "params": [{"name": "port", "bits": 16, "format": "port"}],
         "do": [{"output": {"port": "$port"}}]},
        {"name": "route", "params": [{"name": "port", "bits": 16, "format": "port"}, {"name": "mac", "bits": 48, "format": "mac"}],
         "do": [{"set": {"field": "ethernet.dst", "to": "$mac"}}, {"subtract": {"field": "ipv4.ttl", "value": 1}},
                {"output": {"port": "$port"}}]}
    ],
    "tables": [
        {"name": "acl", "key": [{"field": "ipv4.src", "match": "ternary"}, {"field": "tcp.dst_port", "match": "range"}],
         "actions": ["deny", "classify"], "size": 1024, "counters": true},
        {"name": "forward", "key": [{"field": "ethernet.dst", "match": "exact"}], "actions": ["send"], "size": 1024},
        {"name": "routes", "key": [{"field": "ipv4.dst", "match": "lpm"}], "actions": ["route", "deny"], "size": 1024}
    ],
    "ingress": [
        {"if": {"if": {"valid": "ipv4"}, "then": [{"apply": {"table": "acl"}}]}},
        {"apply": {"table": "forward", "miss": [{"apply": {"table": "routes"}}]}}
    ]
}"#;

fn tcp(destination: [u8; 4], port: u16) -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4([10, 0, 0, 1], destination, 64)
        .tcp(1234, port, 7, 1000);
    let mut frame = Vec::new();
    builder.write(&mut frame, b"hello").unwrap();
    frame
}

fn info(frame: &[u8]) -> FrameInfo<'_> {
    FrameInfo {
        header: frame,
        frame_bytes: frame.len() as u32,
        wire_bytes: frame.len() as u32,
        partial_checksum: None,
    }
}

fn updates(json: &str) -> Vec<Update> {
    serde_json::from_str(json).unwrap()
}

fn engine() -> Arc<Engine> {
    let valid = Program::from_json(FIREWALL).unwrap_or_else(|errors| panic!("{errors}"));
    Arc::new(Engine::new(valid, EngineConfig::default()).unwrap())
}

fn port(number: u16) -> PortId {
    PortId::new(number).unwrap()
}

#[test]
fn a_frame_goes_where_entries_say_and_a_change_is_seen_by_the_next() {
    let engine = engine();
    let now = Millis(1);
    let mut pipeline = EnginePipeline::new(Arc::clone(&engine));
    let frame = tcp([10, 0, 9, 9], 80);
    let mut decide = |frame: &[u8]| {
        pipeline.begin_batch(now);
        pipeline.decide(port(1), &info(frame))
    };
    assert_eq!(decide(&frame), Verdict::Drop(DropReason::NoDestination));
    let write = |json: &str| engine.write(&updates(json), &Numbers, now);
    write(
        r#"[{"insert": {"table": "forward", "key": {"ethernet.dst": "02:00:00:00:00:02"}, "action": "send", "params": {"port": "vm7"}}}]"#,
    )
    .unwrap();
    for _ in 0..3 {
        let to = decide(&frame);
        assert_eq!(
            to,
            Verdict::Output {
                port: port(7),
                edit: HeaderEdit::NONE
            }
        );
    }
    write(
        r#"[{"insert": {"table": "acl", "key": {"tcp.dst_port": "80..90"}, "priority": 10, "action": "deny"}}]"#,
    )
    .unwrap();
    assert_eq!(decide(&frame), Verdict::Drop(DropReason::AclDenied));
    assert!(matches!(
        decide(&tcp([10, 0, 9, 9], 91)),
        Verdict::Output { .. }
    ));
    let listed = engine.entries("acl", (None, 10), &Numbers).unwrap();
    assert_eq!(listed.len(), 1);
    // The first batch is counted at once, later ones when time goes on.
    pipeline.count_all();
    let listed = engine.entries("acl", (None, 10), &Numbers).unwrap();
    assert_eq!(listed[0].counters.unwrap().frames, 1);
    assert!(pipeline.stats().misses < 8);
}

#[test]
fn a_routed_frame_is_edited_with_its_checksum() {
    let engine = engine();
    let now = Millis(1);
    engine
        .write(
            &updates(
                r#"[{"insert": {"table": "routes", "key": {"ipv4.dst": "10.0.0.0/16"}, "action": "route",
                     "params": {"port": 3, "mac": "02:00:00:00:00:99"}}}]"#,
            ),
            &Numbers,
            now,
        )
        .unwrap();
    let mut pipeline = EnginePipeline::new(Arc::clone(&engine));
    for round in 0..3 {
        pipeline.begin_batch(now);
        let frame = tcp([10, 0, 9, round], 80);
        let verdict = pipeline.decide(port(1), &info(&frame));
        let Verdict::Output {
            port: to,
            edit: HeaderEdit::List(list),
        } = verdict
        else {
            panic!("{verdict:?}");
        };
        assert_eq!(to, port(3));
        let mut buffer = frame.clone();
        buffer.resize(256, 0);
        let mut edited = switch_core::engine::edit::EditedFrame {
            header_bytes: frame.len(),
            frame_bytes: frame.len(),
            buffer: &mut buffer,
            partial_checksum: None,
        };
        let edits = pipeline.outcomes().edit_list(list).unwrap();
        edits.apply(&mut edited).unwrap();
        let sliced = etherparse::SlicedPacket::from_ethernet(&buffer[..frame.len()]).unwrap();
        let Some(etherparse::NetSlice::Ipv4(ip)) = sliced.net else {
            panic!("no IPv4");
        };
        let header = ip.header().to_header();
        assert_eq!(header.time_to_live, 63);
        assert_eq!(header.header_checksum, header.calc_header_checksum());
    }
    assert!(pipeline.stats().misses <= 2, "{:?}", pipeline.stats());
}

#[test]
fn a_batch_with_a_fault_changes_nothing_and_says_where_it_is() {
    let engine = engine();
    let now = Millis(1);
    let error = engine
        .write(
            &updates(
                r#"[{"insert": {"table": "forward", "key": {"ethernet.dst": "02:00:00:00:00:02"}, "action": "send", "params": {"port": 7}}},
                    {"insert": {"table": "forward", "key": {"ethernet.dst": "02:00:00:00:00:02"}, "action": "send", "params": {"port": 8}}}]"#,
            ),
            &Numbers,
            now,
        )
        .unwrap_err();
    assert_eq!(
        (error.index, error.kind),
        (1, WriteErrorKind::AlreadyExists)
    );
    assert_eq!(engine.count("forward").unwrap(), 0);
    let error = engine
        .write(
            &updates(
                r#"[{"insert": {"table": "routes", "key": {"ipv4.dst": "10.0.0.1/8"}, "action": "deny"}}]"#,
            ),
            &Numbers,
            now,
        )
        .unwrap_err();
    assert_eq!(error.place, "key.ipv4.dst");
}

#[test]
fn an_explanation_tells_each_step_and_what_a_change_would_do() {
    let engine = engine();
    let frame = tcp([10, 0, 9, 9], 80);
    let what_if = updates(
        r#"[{"insert": {"table": "routes", "key": {"ipv4.dst": "10.0.0.0/16"}, "action": "route", "params": {"port": 3, "mac": "02:00:00:00:00:99"}}}]"#,
    );
    let explain = |what_if: &[Update]| {
        engine
            .explain((port(1), &frame), what_if, &Numbers, Millis(1))
            .unwrap()
    };
    assert!(matches!(explain(&[]).outcome, Outcome::Drop { .. }));
    let trace = explain(&what_if);
    let Outcome::Deliver { copies } = &trace.outcome else {
        panic!("{trace:?}");
    };
    assert_eq!(copies[0].to, "vm3");
    assert!(copies[0].changes.contains(&"ipv4.ttl: 64 -> 63".to_owned()));
    assert!(matches!(explain(&[]).outcome, Outcome::Drop { .. }));
    assert!(
        trace
            .looked_at
            .iter()
            .any(|field| field == "ipv4.dst & 0xffff0000"),
        "{:?}",
        trace.looked_at
    );
}

#[test]
fn a_program_s_default_need_not_be_among_the_actions_of_its_table() {
    let json = r#"{"name": "x", "ingress": [{"apply": {"table": "t"}}],
        "actions": [{"name": "none", "do": []}, {"name": "deny", "do": [{"drop": {"reason": "acl_denied"}}]}, {"name": "other", "do": []}],
        "tables": [{"name": "t", "key": [{"field": "std.in_port", "match": "exact"}], "actions": ["none"],
                    "default_action": {"action": "deny"}, "size": 4}]}"#;
    let valid = Program::from_json(json).unwrap_or_else(|errors| panic!("{errors}"));
    let engine = Arc::new(Engine::new(valid, EngineConfig::default()).unwrap());
    let mut pipeline = EnginePipeline::new(Arc::clone(&engine));
    pipeline.begin_batch(Millis(1));
    let frame = tcp([10, 0, 0, 2], 80);
    let verdict = pipeline.decide(port(1), &info(&frame));
    assert_eq!(verdict, Verdict::Drop(DropReason::AclDenied));
    let set = |action: &str| {
        let json = format!(
            r#"[{{"set_default": {{"table": "t", "default": {{"action": "{action}"}}}}}}]"#
        );
        engine.write(&updates(&json), &Numbers, Millis(1))
    };
    set("none").unwrap();
    set("deny").unwrap();
    assert_eq!(set("other").unwrap_err().kind, WriteErrorKind::Invalid);
}

/// Found by the oracle: a verdict from before anything was in a table held for keys whose counters it did not ask.
#[test]
fn what_is_added_to_an_empty_or_narrowly_asked_table_is_seen_by_flows_that_did_not_look_at_its_key()
{
    let valid = Program::from_json(
        r#"{
        "name": "two",
        "actions": [{"name": "deny", "do": [{"drop": {"reason": "acl_denied"}}]}],
        "tables": [
            {"name": "exact", "key": [{"field": "ethernet.src", "match": "exact"}], "actions": ["deny"], "size": 64},
            {"name": "prefix", "key": [{"field": "ipv4.dst", "match": "lpm"}], "actions": ["deny"], "size": 64}],
        "ingress": [{"do": [{"output": {"port": 3}}]}, {"apply": {"table": "exact"}}, {"apply": {"table": "prefix"}}]
    }"#,
    )
    .unwrap_or_else(|errors| panic!("{errors}"));
    let engine = Arc::new(Engine::new(valid, EngineConfig::default()).unwrap());
    let now = Millis(1);
    let mut pipeline = EnginePipeline::new(Arc::clone(&engine));
    let mut decide = |frame: &[u8]| {
        pipeline.begin_batch(now);
        pipeline.decide(port(1), &info(frame))
    };
    let from = |station: u8, destination| {
        let mut frame = tcp(destination, 80);
        frame[11] = station;
        frame
    };
    let denied = Verdict::Drop(DropReason::AclDenied);
    for station in 1..4 {
        assert_ne!(decide(&from(station, [10, 0, 0, 1])), denied);
        let update = format!(
            r#"[{{"insert": {{"table": "exact", "key": {{"ethernet.src": "02:00:00:00:01:{station:02x}"}}, "action": "deny"}}}}]"#
        );
        engine.write(&updates(&update), &Numbers, now).unwrap();
        let mut frame = from(station, [10, 0, 0, 1]);
        frame[10] = 1;
        assert_eq!(decide(&frame), denied, "station {station}");
    }
    for net in 1..200u8 {
        assert_ne!(decide(&from(1, [10, 200, 0, 1])), denied);
        let update = format!(
            r#"[{{"insert": {{"table": "prefix", "key": {{"ipv4.dst": "{}.{net}.5.0/24"}}, "action": "deny"}}}}]"#,
            if net % 2 == 0 { 10 } else { 192 }
        );
        if net < 60 {
            engine.write(&updates(&update), &Numbers, now).unwrap();
            let first = if net % 2 == 0 { 10 } else { 192 };
            assert_eq!(decide(&from(1, [first, net, 5, 9])), denied, "net {net}");
        }
    }
}

/// Found by the oracle: the path of headers too long for a key took the number of the next one that was seen.
#[test]
fn headers_that_are_too_long_to_be_remembered_are_not_taken_for_others() {
    let fields: Vec<String> = (0..14)
        .map(|number| format!(r#"{{"name": "f{number}", "bits": 128}}"#))
        .collect();
    let program = format!(
        r#"{{
        "name": "long",
        "header_types": [{{"name": "big", "fields": [{}]}}],
        "headers": [{{"name": "big", "type": "big"}}],
        "parser": {{"states": [{{"name": "big", "extract": "big"}}],
                   "extend": [{{"state": "ethernet", "cases": [{{"values": ["0x88b5"], "next": "big"}}]}}]}},
        "actions": [{{"name": "again", "do": [{{"recirculate": {{}}}}]}}],
        "tables": [{{"name": "none", "key": [{{"field": "ethernet.dst", "match": "exact"}}], "actions": ["again"], "size": 4}}],
        "ingress": [{{"if": {{"if": {{"valid": "big"}}, "then": [{{"do": [{{"output": {{"port": 2}}}}]}}],
                            "else": [{{"do": [{{"output": {{"port": 3}}}}]}}]}}}}]
    }}"#,
        fields.join(", ")
    );
    let valid = Program::from_json(&program).unwrap_or_else(|errors| panic!("{errors}"));
    let engine = Arc::new(Engine::new(valid, EngineConfig::default()).unwrap());
    let mut pipeline = EnginePipeline::new(engine);
    let mut long = vec![0; 240];
    long[12..14].copy_from_slice(&[0x88, 0xb5]);
    let short = vec![0; 60];
    for _ in 0..3 {
        for (frame, to) in [(&long, 2), (&short, 3)] {
            pipeline.begin_batch(Millis(1));
            let verdict = pipeline.decide(port(1), &info(frame));
            let edit = HeaderEdit::NONE;
            assert_eq!(
                verdict,
                Verdict::Output {
                    port: port(to),
                    edit
                }
            );
        }
    }
    assert!(pipeline.stats().pathless > 0, "it is too long");
}

#[test]
fn the_frames_of_many_flows_are_foreseen_and_all_counted_before_a_rest() {
    const FLOWS: u16 = 6000;
    let engine = engine();
    let now = Millis(1);
    let deny = r#"[{"insert": {"table": "acl", "key": {"tcp.dst_port": "1000..60000"}, "priority": 10, "action": "deny"}}]"#;
    engine.write(&updates(deny), &Numbers, now).unwrap();
    let mut pipeline = EnginePipeline::new(Arc::clone(&engine));
    let frames: Vec<Vec<u8>> = (0..FLOWS)
        .map(|flow| tcp([10, 0, 9, 9], 1000 + 9 * flow))
        .collect();
    let decide_all = |pipeline: &mut EnginePipeline| {
        for batch in frames.chunks(64) {
            pipeline.begin_batch(now);
            pipeline.foresee(port(1), batch.iter().map(|frame| info(frame)));
            for frame in batch {
                let verdict = pipeline.decide(port(1), &info(frame));
                assert_eq!(verdict, Verdict::Drop(DropReason::AclDenied));
            }
        }
    };
    decide_all(&mut pipeline);
    let missed = pipeline.stats().misses;
    assert!(pipeline.flows_of_port(port(1)) > 5000);
    for _ in 0..2 {
        decide_all(&mut pipeline);
    }
    assert_eq!(pipeline.stats().misses, missed);
    assert!(pipeline.cache_stats().foreseen_hits > u64::from(FLOWS));
    // Frames that were announced and others that come in their place, with the same port and from elsewhere.
    pipeline.begin_batch(now);
    pipeline.foresee(port(1), frames.iter().take(8).map(|frame| info(frame)));
    let other = tcp([10, 0, 9, 9], 80);
    assert!(!matches!(
        pipeline.decide(port(1), &info(&other)),
        Verdict::Drop(DropReason::AclDenied)
    ));
    let mut rests = 0;
    while pipeline.rest() {
        rests += 1;
        assert!(rests < 100, "it never ends");
    }
    assert!(rests > 1, "{rests}");
    let listed = engine.entries("acl", (None, 10), &Numbers).unwrap();
    let counted = listed[0].counters.unwrap().frames;
    assert_eq!(counted, 3 * u64::from(FLOWS));
}
