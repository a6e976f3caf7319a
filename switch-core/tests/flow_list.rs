//! What a worker remembers, as it is listed: each flow that holds and no other, in the program's words, by steps that are bounded.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod vpc;

use std::collections::BTreeSet;
use std::sync::Arc;

use switch_core::engine::control::{TraceStep, Update};
use switch_core::engine::model::Program;
use switch_core::engine::pipeline::EnginePipeline;
use switch_core::engine::runtime::{Engine, EngineConfig};
use switch_core::{
    Decide, FLOWS_PER_STEP, FlowCopy, FlowDecision, FlowWalk, FrameInfo, ListedFlow,
    MOST_COPIES_LISTED, MacAddress, Millis, PLACES_PER_STEP, Pipeline, PortId, RateLimit, Switch,
    SwitchConfig, VlanId, VlanPolicy,
};
use vpc::frames::{ACK, SYN, tcp, udp, way};
use vpc::{Names, two_tenants};

fn port(number: u16) -> PortId {
    PortId::new(number).unwrap()
}

fn info(frame: &[u8]) -> FrameInfo<'_> {
    FrameInfo {
        header: frame,
        frame_bytes: frame.len() as u32,
        wire_bytes: frame.len() as u32,
        partial_checksum: None,
    }
}

fn decide(decider: &mut impl Decide, from: u16, frame: &[u8], now: Millis) {
    decider.begin_batch(now);
    decider.decide(port(from), &info(frame));
}

/// Every flow, or every one of a port, with its port; taken some at a time.
fn list_of(
    decider: &impl Decide,
    wanted: Option<u16>,
    engine: Option<&Engine>,
    now: Millis,
) -> Vec<(u16, ListedFlow)> {
    let mut walk = FlowWalk::new(wanted.map(port), 5);
    let mut listed = Vec::new();
    while !walk.has_ended() {
        decider.list_flows(&mut walk, now);
        if walk.rests() {
            assert!(walk.found() <= 5);
            listed.extend(walk.take(engine, &Names));
        }
    }
    listed.sort_by_key(|(port, flow)| (port.get(), flow.r#match.clone()));
    listed
        .into_iter()
        .map(|(port, flow)| (port.get(), flow))
        .collect()
}

fn deliver(to: &str, edits: &[&str]) -> FlowDecision {
    FlowDecision::Deliver {
        copies: vec![FlowCopy {
            to: to.to_owned(),
            edits: edits.iter().map(|&edit| edit.to_owned()).collect(),
        }],
        more_copies: 0,
    }
}

fn drop_for(reason: &str) -> FlowDecision {
    FlowDecision::Drop {
        reason: reason.to_owned(),
    }
}

fn fields(flow: &ListedFlow) -> Vec<(&str, &str)> {
    let fields = flow.r#match.iter();
    fields
        .map(|(field, value)| (field.as_str(), value.as_str()))
        .collect()
}

mod default_program {
    use super::*;

    fn mac(last: u8) -> MacAddress {
        MacAddress([2, 0, 0, 0, 0, last])
    }

    fn frame(destination: MacAddress, source: MacAddress, tags: &[u16]) -> Vec<u8> {
        let mut frame = [destination.0, source.0].concat();
        for tci in tags {
            frame.extend(0x8100_u16.to_be_bytes());
            frame.extend(tci.to_be_bytes());
        }
        frame.extend([8, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        frame
    }

    fn vlan(number: u16) -> VlanId {
        VlanId::new(number).unwrap()
    }

    fn trunk() -> VlanPolicy {
        VlanPolicy::Trunk {
            allowed: [vlan(10), vlan(20)].into_iter().collect(),
            native: Some(vlan(20)),
        }
    }

    /// Port 1 is in VLAN 10, port 2 a trunk, ports 3 and 4 know no VLANs; behind port `n` is station `n`.
    fn switch() -> (Arc<Switch>, Pipeline) {
        let switch = Arc::new(Switch::new(SwitchConfig {
            flow_rate: RateLimit::UNLIMITED,
            ..SwitchConfig::default()
        }));
        for (number, policy) in [
            (1, VlanPolicy::Access(vlan(10))),
            (2, trunk()),
            (3, VlanPolicy::Transparent),
            (4, VlanPolicy::Transparent),
        ] {
            switch.add_port(port(number), policy).unwrap();
        }
        let pipeline = Pipeline::new(Arc::clone(&switch));
        (switch, pipeline)
    }

    const NOW: Millis = Millis(100_000);

    fn list(pipeline: &Pipeline, now: Millis) -> Vec<(u16, ListedFlow)> {
        list_of(pipeline, None, None, now)
    }

    /// Station 3 and 4 know each other.
    fn introduced() -> (Arc<Switch>, Pipeline) {
        let (switch, mut pipeline) = switch();
        for (from, to) in [(3, 4), (4, 3), (3, 4)] {
            let frame = frame(mac(to), mac(from), &[]);
            decide(&mut pipeline, from.into(), &frame, NOW);
        }
        (switch, pipeline)
    }

    #[test]
    fn addresses_and_tag_are_told_and_what_becomes_of_the_frames() {
        let (_, mut pipeline) = switch();
        assert_eq!(list(&pipeline, NOW), []);
        let sent: [(u16, Vec<u8>); 6] = [
            (1, frame(mac(2), mac(1), &[])),
            (2, frame(mac(1), mac(2), &[0xa00a])),
            (1, frame(mac(2), mac(1), &[])),
            (3, frame(MacAddress::BROADCAST, mac(3), &[])),
            (2, frame(mac(9), mac(2), &[0x100a, 5])),
            (3, frame(mac(3), mac(3), &[])),
        ];
        for (from, frame) in &sent {
            decide(&mut pipeline, *from, frame, NOW);
        }
        let listed = list(&pipeline, NOW);
        let told: Vec<_> = listed
            .iter()
            .map(|(port, flow)| {
                let headers = flow.headers.join(" ");
                (*port, headers, fields(flow), flow.decision.clone())
            })
            .collect();
        let to = |last: u8| format!("02:00:00:00:00:{last:02x}");
        let stations = [1, 2, 3, 9].map(to);
        let [one, two, three, nine] = stations.each_ref().map(String::as_str);
        let addresses = |dst, src| vec![("ethernet.dst", dst), ("ethernet.src", src)];
        let tagged = |dst, src, vid, (pcp, dei)| {
            let tag = [("vlan.dei", dei), ("vlan.pcp", pcp), ("vlan.vid", vid)];
            [addresses(dst, src), tag.to_vec()].concat()
        };
        let expected = [
            (
                1,
                "ethernet",
                addresses(two, one),
                deliver("vm2", &["push VLAN 10"]),
            ),
            (
                2,
                "ethernet vlan",
                tagged(one, two, "10", ("5", "0")),
                deliver("vm1", &["pop VLAN"]),
            ),
            (
                2,
                "ethernet vlan vlan_inner",
                tagged(nine, two, "10", ("0", "1")),
                FlowDecision::Flood { vlan: Some(10) },
            ),
            (
                3,
                "ethernet",
                addresses(three, three),
                drop_for("same_port"),
            ),
            (
                3,
                "ethernet",
                addresses("ff:ff:ff:ff:ff:ff", three),
                FlowDecision::Flood { vlan: None },
            ),
        ];
        let expected = expected
            .map(|(port, headers, fields, decision)| (port, headers.to_owned(), fields, decision));
        assert_eq!(told, expected);
        let ports_own = list_of(&pipeline, Some(3), None, NOW);
        assert_eq!(ports_own, listed[3..]);
    }

    #[test]
    fn a_flow_is_gone_when_its_time_is_up() {
        let (_, pipeline) = introduced();
        let listed = list(&pipeline, NOW);
        assert_eq!(listed.len(), 2);
        let left = listed[0].1.valid_for_ms.unwrap();
        assert!((1..=1000).contains(&left), "{left}");
        assert_eq!(list(&pipeline, NOW.after(Millis(left - 1))).len(), 2);
        assert_eq!(list(&pipeline, NOW.after(Millis(left))), []);
    }

    #[test]
    fn a_flow_is_gone_when_its_station_is_elsewhere() {
        let (_, mut pipeline) = introduced();
        decide(&mut pipeline, 2, &frame(mac(9), mac(9), &[]), NOW);
        let others = list_of(&pipeline, Some(3), None, NOW);
        assert_eq!(others.len(), 1);
        // Station 4 speaks from port 3.
        decide(&mut pipeline, 3, &frame(mac(9), mac(4), &[]), NOW);
        let listed = list(&pipeline, NOW);
        assert!(!listed.contains(&others[0]), "{listed:?}");
        assert!(listed.iter().all(|(port, _)| *port != 4), "{listed:?}");
    }

    #[test]
    fn all_flows_are_gone_when_a_port_is() {
        let (switch, mut pipeline) = introduced();
        switch.remove_port(port(1)).unwrap();
        assert_eq!(list(&pipeline, NOW), []);
        decide(&mut pipeline, 3, &frame(mac(4), mac(3), &[]), NOW);
        assert_eq!(list(&pipeline, NOW).len(), 1);
    }

    #[test]
    fn a_step_is_bounded_and_allocates_nothing() {
        let (switch, mut pipeline) = switch();
        for station in 0..20_000_u16 {
            let [high, low] = station.to_be_bytes();
            let destination = MacAddress([2, 0, 0, 1, high, low]);
            decide(&mut pipeline, 3, &frame(destination, mac(3), &[]), NOW);
        }
        let flows = list(&pipeline, NOW).len();
        assert!(flows > 5_000, "{flows}");
        bounded(&pipeline, flows, NOW);
        // As many of which none holds.
        switch.remove_port(port(1)).unwrap();
        bounded(&pipeline, flows, NOW);
    }
}

/// A walk over a cache with so many flows of port 3: whoever's flows are wanted, each step is small.
fn bounded(decider: &impl Decide, flows: usize, now: Millis) {
    for wanted in [None, Some(3), Some(2)] {
        let mut walk = FlowWalk::new(wanted.map(port), 1 << 20);
        let mut steps = 0;
        while !walk.has_ended() {
            let before = walk.found();
            let measured = allocation_counter::measure(|| decider.list_flows(&mut walk, now));
            assert_eq!(measured.count_total, 0);
            assert!(walk.found() - before <= FLOWS_PER_STEP);
            steps += 1;
        }
        let least = match wanted {
            Some(2) => flows / PLACES_PER_STEP,
            _ => flows / FLOWS_PER_STEP,
        };
        assert!(
            steps >= least,
            "{steps} steps over {flows} flows, of {wanted:?}"
        );
    }
}

mod programs {
    use super::*;

    const NOW: Millis = Millis(1_000);

    const ROUTER: &str = r#"{
        "name": "router",
        "actions": [
            {"name": "deny", "do": [{"drop": {"reason": "acl_denied"}}]},
            {"name": "pass", "do": []},
            {"name": "send", "params": [{"name": "port", "bits": 16, "format": "port"}],
             "do": [{"output": {"port": "$port"}}]},
            {"name": "tag", "params": [{"name": "port", "bits": 16, "format": "port"}, {"name": "vid", "bits": 12}],
             "do": [{"push_vlan": {"vid": "$vid"}}, {"output": {"port": "$port"}}]},
            {"name": "retag", "params": [{"name": "port", "bits": 16, "format": "port"}],
             "do": [{"pop_vlan": {}}, {"subtract": {"field": "ipv4.ttl", "value": 1}}, {"push_vlan": {"vid": 6, "pcp": 3}},
                    {"set": {"field": "ipv4.ttl", "to": 9}}, {"output": {"port": "$port"}}]},
            {"name": "flood", "do": [{"multicast": {"group": 7}}]},
            {"name": "ask", "do": [{"controller": {"reason": "who_is_it"}}]},
            {"name": "route", "params": [{"name": "port", "bits": 16, "format": "port"}, {"name": "mac", "bits": 48, "format": "mac"}],
             "do": [{"set": {"field": "ethernet.dst", "to": "$mac"}}, {"subtract": {"field": "ipv4.ttl", "value": 1}},
                    {"output": {"port": "$port"}}]}
        ],
        "tables": [
            {"name": "acl", "key": [{"field": "ipv4.src", "match": "ternary"}], "actions": ["deny", "pass"], "size": 1024},
            {"name": "forward", "key": [{"field": "ethernet.dst", "match": "exact"}],
             "actions": ["send", "tag", "retag", "flood", "ask"], "size": 1024},
            {"name": "routes", "key": [{"field": "ipv4.dst", "match": "lpm"}], "actions": ["route"], "size": 1024}
        ],
        "ingress": [
            {"if": {"if": {"valid": "ipv4"}, "then": [{"apply": {"table": "acl"}}]}},
            {"apply": {"table": "forward", "miss": [{"apply": {"table": "routes"}}]}}
        ]
    }"#;

    struct Router {
        engine: Arc<Engine>,
        pipeline: EnginePipeline,
    }

    impl Router {
        fn new() -> Self {
            let valid = Program::from_json(ROUTER).unwrap_or_else(|errors| panic!("{errors}"));
            let engine = Arc::new(Engine::new(valid, EngineConfig::default()).unwrap());
            let pipeline = EnginePipeline::new(Arc::clone(&engine));
            Self { engine, pipeline }
        }

        fn write(&self, json: &str) {
            let updates: Vec<Update> = serde_json::from_str(json).unwrap();
            let written = self.engine.write(&updates, &Names, NOW);
            written.unwrap_or_else(|error| panic!("{error}"));
        }

        fn forward(&self, last: u8, action: &str, params: &str) {
            self.write(&format!(
                r#"[{{"insert": {{"table": "forward", "key": {{"ethernet.dst": "02:00:00:00:00:{last:02x}"}},
                    "action": "{action}", "params": {{{params}}}}}}}]"#
            ));
        }

        fn send(&mut self, from: u16, frame: &[u8]) {
            decide(&mut self.pipeline, from, frame, NOW);
        }

        fn list(&self) -> Vec<(u16, ListedFlow)> {
            list_of(&self.pipeline, None, Some(&self.engine), NOW)
        }
    }

    fn packet(to: u8, addresses: [[u8; 4]; 2]) -> Vec<u8> {
        let [source, destination] = addresses;
        let mut frame = Vec::new();
        etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, to])
            .ipv4(source, destination, 64)
            .udp(1000, 2000)
            .write(&mut frame, b"hello")
            .unwrap();
        frame
    }

    const FAR: [[u8; 4]; 2] = [[10, 0, 0, 1], [10, 1, 2, 3]];

    #[test]
    fn masked_fields_and_edits_are_told_in_the_programs_words() {
        let mut router = Router::new();
        router.forward(7, "send", r#""port": "vm7""#);
        router.forward(8, "tag", r#""port": "vm8", "vid": 77"#);
        router.forward(9, "ask", "");
        router.write(
            r#"[{"insert": {"table": "routes", "key": {"ipv4.dst": "10.1.0.0/16"}, "action": "route",
                 "params": {"port": "vm3", "mac": "02:00:00:00:00:99"}}},
                {"insert": {"table": "acl", "key": {"ipv4.src": "192.0.0.0/8"}, "priority": 1, "action": "deny"}}]"#,
        );
        for to in [7, 8, 9, 10] {
            router.send(1, &packet(to, FAR));
        }
        router.send(2, &packet(7, [[192, 1, 1, 1], [10, 1, 2, 3]]));
        let listed = router.list();
        let told: Vec<_> = listed
            .iter()
            .map(|(port, flow)| {
                let dst = flow.r#match.get("ethernet.dst").map(String::as_str);
                (*port, dst, flow.decision.clone())
            })
            .collect();
        let to = |last: usize| {
            Some(
                [
                    "02:00:00:00:00:07",
                    "02:00:00:00:00:08",
                    "02:00:00:00:00:09",
                    "02:00:00:00:00:0a",
                ][last - 7],
            )
        };
        let routed = [
            "set ethernet.dst to 02:00:00:00:00:99",
            "set ipv4.ttl to 63",
        ];
        assert_eq!(
            told,
            [
                (1, to(7), deliver("vm7", &[])),
                (1, to(8), deliver("vm8", &["push VLAN 77"])),
                (1, to(9), deliver("controller: who_is_it", &[])),
                (1, to(10), deliver("vm3", &routed)),
                (2, None, drop_for("acl_denied")),
            ]
        );
        let flow = |number: usize| fields(&listed[number].1);
        // As many bits as tell the frame from those that the entry denies.
        assert_eq!(flow(4), [("ipv4.src", "192.0.0.0/8")]);
        assert!(flow(3).contains(&("ipv4.dst", "10.1.0.0/16")), "{listed:?}");
        assert!(flow(3).contains(&("ipv4.ttl", "64")), "{listed:?}");
        assert_eq!(listed[0].1.headers, ["ethernet", "ipv4", "udp"]);
        assert_eq!(listed[0].1.valid_for_ms, None);
    }

    #[test]
    fn fields_are_told_where_edits_have_moved_them() {
        let mut router = Router::new();
        router.forward(7, "retag", r#""port": "vm7""#);
        let plain = packet(7, FAR);
        let tagged = [&plain[..12], &[0x81, 0, 0, 5], &plain[12..]].concat();
        router.send(1, &tagged);
        router.send(2, &plain);
        let listed = router.list();
        let decisions: Vec<_> = listed.iter().map(|(_, flow)| &flow.decision).collect();
        let moved = [
            "set ipv4.ttl to 63",
            "push VLAN 6, priority 3",
            "set ipv4.ttl to 9",
        ];
        let untagged = [&["pop VLAN"][..], &moved].concat();
        assert_eq!(
            decisions,
            [&deliver("vm7", &untagged), &deliver("vm7", &moved)]
        );
        assert_eq!(listed[0].1.headers, ["ethernet", "vlan", "ipv4", "udp"]);
    }

    #[test]
    fn a_change_of_a_table_that_it_depends_on_makes_an_end_to_a_flow() {
        let mut router = Router::new();
        router.forward(7, "send", r#""port": "vm7""#);
        router.send(1, &packet(7, FAR));
        router.send(2, &packet(8, FAR));
        assert_eq!(router.list().len(), 2);
        router.write(
            r#"[{"insert": {"table": "routes", "key": {"ipv4.dst": "10.0.0.0/8"}, "action": "route",
                 "params": {"port": "vm3", "mac": "02:00:00:00:00:99"}}}]"#,
        );
        let left = router.list();
        assert_eq!(left.len(), 1, "{left:?}");
        assert_eq!(left[0].1.decision, deliver("vm7", &[]));
        router.send(2, &packet(8, FAR));
        assert_eq!(router.list().len(), 2);
        // The other frame is in no entry of that table, before and after.
        router.write(r#"[{"clear": {"table": "forward"}}]"#);
        let left = router.list();
        assert_eq!(left.len(), 1, "{left:?}");
        assert_eq!(left[0].0, 2);
    }

    #[test]
    fn of_many_copies_the_first_are_told_and_how_many_more_there_are() {
        let mut router = Router::new();
        let ports: Vec<String> = (1..=40).map(|number| format!("\"vm{number}\"")).collect();
        let ports = ports.join(",");
        router.write(&format!(
            r#"[{{"set_multicast": {{"group": 7, "ports": [{ports}]}}}}]"#
        ));
        router.forward(7, "flood", "");
        router.send(50, &packet(7, FAR));
        let listed = router.list();
        let FlowDecision::Deliver {
            copies,
            more_copies,
        } = &listed[0].1.decision
        else {
            panic!("{listed:?}");
        };
        assert_eq!(
            (copies.len(), *more_copies),
            (MOST_COPIES_LISTED, 40 - MOST_COPIES_LISTED as u32)
        );
    }

    #[test]
    fn a_step_is_bounded_and_allocates_nothing() {
        let mut router = Router::new();
        router.forward(7, "send", r#""port": "vm7""#);
        for station in 0..20_000_u32 {
            let [_, a, b, c] = station.to_be_bytes();
            let frame = packet(7, FAR);
            let frame = [&[2, 0, 9, a, b, c], &frame[6..]].concat();
            router.send(3, &frame);
        }
        let flows = router.pipeline.cache_stats().flows;
        assert!(flows >= 20_000, "{flows}");
        assert_eq!(router.list().len(), flows);
        bounded(&router.pipeline, flows, NOW);
        router.write(
            r#"[{"insert": {"table": "routes", "key": {"ipv4.dst": "10.0.0.0/8"}, "action": "route",
                 "params": {"port": "vm3", "mac": "02:00:00:00:00:99"}}}]"#,
        );
        assert_eq!(router.list(), []);
        bounded(&router.pipeline, flows, NOW);
    }
}

mod connections {
    use super::*;

    fn connected(addresses: [&str; 2]) -> (vpc::Lab, Vec<u8>, Vec<u8>) {
        let [one, two] = addresses;
        let (forth, back) = (way((1, 2), one, two), way((2, 1), two, one));
        let mut lab = two_tenants();
        lab.rule("egress_rules", 1, r#""policy": 1"#, "allow");
        lab.rule("ingress_rules", 1, r#""policy": 1"#, "allow");
        let ports = (1000, 80);
        lab.passes(1, &tcp(forth, ports, SYN, (1000, 0), &[]));
        lab.passes(2, &tcp(back, (80, 1000), SYN | ACK, (5000, 1001), &[]));
        lab.passes(1, &tcp(forth, ports, ACK, (1001, 5001), &[]));
        let request = tcp(forth, ports, ACK, (1001, 5001), b"get");
        lab.passes(1, &request);
        lab.is_cached(1, &request);
        let answer = tcp(back, (80, 1000), ACK, (5001, 1004), b"page");
        lab.passes(2, &answer);
        lab.is_cached(2, &answer);
        (lab, request, answer)
    }

    fn list(lab: &vpc::Lab, now: Millis) -> Vec<(u16, ListedFlow)> {
        let listed = list_of(&lab.warm, None, Some(&lab.engine), now);
        listed
            .into_iter()
            .filter(|(_, flow)| flow.connection.is_some())
            .collect()
    }

    /// The fields that a frame's explanation says were looked at, and what the parser saw in all.
    fn explained(
        lab: &vpc::Lab,
        from: u16,
        frame: &[u8],
    ) -> (BTreeSet<String>, Vec<(String, String)>) {
        let trace = lab
            .engine
            .explain((port(from), frame), &[], &Names, lab.now);
        let trace = trace.unwrap();
        let seen = trace.steps.into_iter().filter_map(|step| match step {
            TraceStep::Parse { header, fields, .. } => Some((header?, fields)),
            _ => None,
        });
        let seen = seen.flat_map(|(header, fields)| {
            fields
                .into_iter()
                .map(move |(field, value)| (format!("{header}.{field}"), value))
        });
        let looked_at = trace.looked_at.iter().map(|field| {
            let name = field.split(" & ").next().unwrap();
            name.to_owned()
        });
        (looked_at.collect(), seen.collect())
    }

    fn both_legs(addresses: [&str; 2]) {
        let (lab, request, answer) = connected(addresses);
        let listed = list(&lab, lab.now);
        let legs: Vec<_> = listed
            .iter()
            .map(|(port, flow)| (*port, flow.connection.as_deref().unwrap(), &flow.decision))
            .collect();
        assert_eq!(
            legs,
            [
                (1, "original", &deliver("vm2", &[])),
                (2, "reply", &deliver("vm1", &[]))
            ]
        );
        for ((from, flow), frame) in listed.iter().zip([request, answer]) {
            let (looked_at, seen) = explained(&lab, *from, &frame);
            let told: BTreeSet<String> = flow.r#match.keys().cloned().collect();
            assert_eq!(told, looked_at);
            for (field, value) in &flow.r#match {
                let exact = !value.contains(['/', '&']);
                let is_seen = seen.contains(&(field.clone(), value.clone()));
                assert!(!exact || is_seen, "{field}={value} is not in {seen:?}");
            }
        }
    }

    #[test]
    fn flows_of_a_connection_say_which_end_sends() {
        both_legs(["10.0.0.1", "10.0.0.2"]);
    }

    /// Their keys are longer than what lies in a flow's first line.
    #[test]
    fn flows_over_ipv6_too() {
        both_legs(["fd00::1", "fd00::2"]);
    }

    #[test]
    fn they_are_gone_with_it() {
        let (lab, ..) = connected(["10.0.0.1", "10.0.0.2"]);
        let long = Millis(lab.now.0 + 10 * 24 * 3_600_000);
        assert_eq!(list(&lab, long), [], "nobody spoke for ten days");
        assert_eq!(list(&lab, lab.now).len(), 2);
    }

    #[test]
    fn who_was_not_answered_is_told_from_who_was() {
        let mut lab = two_tenants();
        lab.rule("egress_rules", 1, r#""policy": 1"#, "allow");
        lab.rule("ingress_rules", 1, r#""policy": 1"#, "allow");
        let (forth, back) = (
            way((1, 2), "10.0.0.1", "10.0.0.2"),
            way((2, 1), "10.0.0.2", "10.0.0.1"),
        );
        let question = udp(forth, 1000, 53);
        lab.passes(1, &question);
        lab.is_cached(1, &question);
        let legs = |lab: &vpc::Lab| {
            let flows = list(lab, lab.now).into_iter();
            flows
                .map(|(port, flow)| (port, flow.connection.unwrap()))
                .collect::<Vec<_>>()
        };
        assert_eq!(legs(&lab), [(1, "unanswered".to_owned())]);
        lab.passes_once(2, &udp(back, 53, 1000));
        let after = legs(&lab);
        assert!(!after.contains(&(1, "unanswered".to_owned())), "{after:?}");
    }
}
