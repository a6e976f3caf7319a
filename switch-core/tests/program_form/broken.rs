//! Broken programs: each with the places that must be named, all of them and no other.

use serde_json::{Value, json};
use switch_core::engine::model::Program;

use super::{EVERYTHING, json as parsed};

/// Puts `value` where a JSON pointer says; `-` at its end is behind a list's last item.
fn put(program: &mut Value, pointer: &str, value: Value) {
    let (parent, last) = pointer.rsplit_once('/').unwrap();
    match program.pointer_mut(parent).unwrap() {
        Value::Array(items) if last == "-" => items.push(value),
        Value::Array(items) => items[last.parse::<usize>().unwrap()] = value,
        Value::Object(fields) => {
            fields.insert(last.to_owned(), value);
        }
        other => panic!("{pointer}: {other}"),
    }
}

fn errors(program: &Value) -> Vec<(String, String)> {
    match Program::from_json(&program.to_string()) {
        Ok(_) => Vec::new(),
        Err(errors) => errors
            .0
            .into_iter()
            .map(|error| (error.place.clone(), error.to_string()))
            .collect(),
    }
}

fn expect(cases: &[(&str, Value, &[&str])]) {
    for (pointer, value, places) in cases {
        let mut program = parsed(EVERYTHING);
        put(&mut program, pointer, value.clone());
        let found = errors(&program);
        let found_places: Vec<&str> = found.iter().map(|(place, _)| place.as_str()).collect();
        assert_eq!(found_places, *places, "{pointer} = {value}\n{found:#?}");
    }
}

#[test]
fn declarations() {
    expect(&[
        ("/name", json!(""), &["name"]),
        ("/name", json!("1st"), &["name"]),
        ("/name", json!("x".repeat(65)), &["name"]),
        ("/description", json!("x".repeat(5000)), &["description"]),
        (
            "/metadata/1/name",
            json!("a"),
            &[
                "metadata[1].name",
                "actions[0].do[3].set.field",
                "actions[0].do[4].set.field",
            ],
        ),
        (
            "/metadata/2/bits",
            json!(0),
            &[
                "metadata[2].bits",
                "tables[1].const_entries[0].key.meta.c",
                "tables[1].const_entries[1].key.meta.c",
            ],
        ),
        ("/metadata/5/bits", json!(129), &["metadata[5].bits"]),
        ("/metadata/0/bits", json!(33), &["metadata[0].format"]),
        (
            "/metadata/1/bits",
            json!(127),
            &["metadata[1].format", "actions[0].do[4].set.to"],
        ),
        (
            "/metadata/3/bits",
            json!(8),
            &["metadata[3].format", "ingress[2].find.port"],
        ),
        (
            "/header_types/1/fields",
            json!([]),
            &["header_types[1].fields", "parser.states[2].select[0]"],
        ),
        (
            "/header_types/1/fields/-",
            json!({"name": "odd", "bits": 3}),
            &["header_types[1].fields"],
        ),
        (
            "/header_types/1/fields/-",
            json!({"name": "number", "bits": 8}),
            &["header_types[1].fields[1].name"],
        ),
        (
            "/header_types/1/fields/-",
            json!({"name": "valid", "bits": 8}),
            &["header_types[1].fields[1].name"],
        ),
        (
            "/header_types/0/length/field",
            json!("word"),
            &["header_types[0].length.field"],
        ),
        (
            "/header_types/0/length/unit_bytes",
            json!(0),
            &["header_types[0].length.unit_bytes"],
        ),
        (
            "/header_types/0/length/max_bytes",
            json!(7),
            &["header_types[0].length.max_bytes"],
        ),
        (
            "/header_types/-",
            json!({"name": "own", "fields": [{"name": "kind", "bits": 8}]}),
            &[
                "header_types[2].name",
                "parser.states[0].verify[2].ne[0]",
                "parser.states[0].select[1]",
            ],
        ),
        (
            "/headers/1/type",
            json!("plan"),
            &["headers[1].type", "parser.states[2].select[0]"],
        ),
        (
            "/headers/-",
            json!({"name": "meta", "type": "plain"}),
            &["headers[2].name"],
        ),
        (
            "/headers/-",
            json!({"name": "own", "type": "own"}),
            &["headers[2].name"],
        ),
        (
            "/meters/0/size",
            json!(0),
            &["meters[0].size", "actions[7].do[0].meter.index"],
        ),
        ("/counters/0/size", json!(1_048_577), &["counters[0].size"]),
        (
            "/selectors/0/member",
            json!([]),
            &["selectors[0].member", "actions[9].do[1].select.into"],
        ),
        (
            "/selectors/0/max_groups",
            json!(0),
            &["selectors[0].max_groups"],
        ),
        (
            "/selectors/0/max_members",
            json!(5000),
            &["selectors[0].max_members"],
        ),
        (
            "/learning/-",
            json!({"name": "stations"}),
            &["learning[1].name"],
        ),
    ]);
}

#[test]
fn parsers() {
    let own = "parser.states[0]";
    expect(&[
        (
            "/parser/states/0/name",
            json!("accept"),
            &["parser.states[0].name", "parser.extend[0].cases[2].next"],
        ),
        (
            "/parser/states/0/extract",
            json!("owm"),
            &[&format!("{own}.extract")],
        ),
        (
            "/parser/states/0/verify/1",
            json!({"valid": "nothing"}),
            &[&format!("{own}.verify[1].valid")],
        ),
        (
            "/parser/states/0/verify/1",
            json!({"eq": ["meta.a", 1]}),
            &[&format!("{own}.verify[1].eq[0]")],
        ),
        (
            "/parser/states/0/verify/1",
            json!({"eq": ["$a", 1]}),
            &[&format!("{own}.verify[1].eq[0]")],
        ),
        (
            "/parser/states/0/verify/0",
            json!({"masked": ["own.kind", "0xf0", "0x1f"]}),
            &[&format!("{own}.verify[0].masked[2]")],
        ),
        (
            "/parser/states/0/select/0",
            json!("std.in_port"),
            &[&format!("{own}.select[0]")],
        ),
        (
            "/parser/states/0/cases/0/values",
            json!([1]),
            &[&format!("{own}.cases[0].values")],
        ),
        (
            "/parser/states/0/cases/0/values/0",
            json!(256),
            &[&format!("{own}.cases[0].values[0]")],
        ),
        (
            "/parser/states/0/cases/0/values/0",
            json!("vm1"),
            &[&format!("{own}.cases[0].values[0]")],
        ),
        (
            "/parser/states/0/cases/0/values/1",
            json!({"value": 2, "mask": 1}),
            &[&format!("{own}.cases[0].values[1].value")],
        ),
        (
            "/parser/states/0/cases/0/next",
            json!("plane"),
            &[&format!("{own}.cases[0].next")],
        ),
        (
            "/parser/states/1/default",
            json!("nowhere"),
            &["parser.states[1].default"],
        ),
        (
            "/parser/states/2/default",
            json!("decide"),
            &["parser.states[2]"],
        ),
        (
            "/parser/extend/0/state",
            json!("upd"),
            &["parser.extend[0].state"],
        ),
        (
            "/parser/extend/0/cases/0/values",
            json!([1, 2]),
            &["parser.extend[0].cases[0].values"],
        ),
        (
            "/parser/extend/0/cases/1/next",
            json!("genève"),
            &["parser.extend[0].cases[1].next"],
        ),
        (
            "/parser/extend/-",
            json!({"state": "decide", "cases": [{"values": [1], "next": "start"}]}),
            &[],
        ),
        (
            "/parser/extend/-",
            json!({"state": "start", "cases": [{"values": [], "next": "start"}]}),
            &["parser.states[built-in start]"],
        ),
        (
            "/header_types/-",
            json!({"name": "udp", "fields": [{"name": "ports", "bits": 64}]}),
            &[
                "parser.states[built-in udp].select[0]",
                "actions[10].do[0].encapsulate.headers[2].fields.dst_port",
            ],
        ),
    ]);
}

#[test]
fn actions() {
    let set = "/actions/0/do/0/set";
    expect(&[
        (
            "/actions/1/name",
            json!("fields"),
            &[
                "actions[1].name",
                "tables[0].actions[1]",
                "tables[0].default_action.params.x",
            ],
        ),
        (
            set,
            json!({"field": "meta.d", "to": 1}),
            &["actions[0].do[0].set.field"],
        ),
        (
            set,
            json!({"field": "std.in_port", "to": 1}),
            &["actions[0].do[0].set.field"],
        ),
        (
            set,
            json!({"field": "ct.mark", "to": 1}),
            &["actions[0].do[0].set.field"],
        ),
        (
            set,
            json!({"field": "ipv4.valid", "to": 1}),
            &["actions[0].do[0].set.field"],
        ),
        (
            set,
            json!({"field": "ipv4.ttl", "to": 256}),
            &["actions[0].do[0].set.to"],
        ),
        (
            set,
            json!({"field": "meta.a", "to": "$y"}),
            &["actions[0].do[0].set.to"],
        ),
        (
            set,
            json!({"field": "meta.a", "to": "std.frame_bytes"}),
            &["actions[0].do[0].set.to"],
        ),
        (
            set,
            json!({"field": "ipv5.ttl", "to": "std.frame"}),
            &["actions[0].do[0].set.field", "actions[0].do[0].set.to"],
        ),
        (
            "/actions/1/do/0/push_vlan/vid",
            json!(4096),
            &["actions[1].do[0].push_vlan.vid"],
        ),
        (
            "/actions/1/do/3/push_mpls/label",
            json!(1 << 20),
            &["actions[1].do[3].push_mpls.label"],
        ),
        (
            "/actions/2/do/1/mirror/port",
            json!(16384),
            &["actions[2].do[1].mirror.port"],
        ),
        (
            "/actions/4/do/0/resubmit/keep/0",
            json!("ipv4.ttl"),
            &["actions[4].do[0].resubmit.keep[0]"],
        ),
        (
            "/actions/5/do/0/drop/reason",
            json!("no_destinaton"),
            &["actions[5].do[0].drop.reason"],
        ),
        (
            "/actions/6/do/0/controller/reason",
            json!("why not"),
            &["actions[6].do[0].controller.reason"],
        ),
        (
            "/actions/6/do/0/controller/args",
            json!([1, 2, 3, 4, 5]),
            &["actions[6].do[0].controller.args"],
        ),
        (
            "/actions/7/do/0/meter/meter",
            json!("rate"),
            &["actions[7].do[0].meter.meter"],
        ),
        (
            "/actions/7/do/0/meter/index",
            json!(16),
            &["actions[7].do[0].meter.index"],
        ),
        (
            "/actions/7/do/1/count/counter",
            json!("rates"),
            &["actions[7].do[1].count.counter"],
        ),
        (
            "/actions/8/do/0/track/zone",
            json!(65536),
            &["actions[8].do[0].track.zone"],
        ),
        (
            "/actions/8/do/2/commit/data",
            json!([1, 2, 3, 4, 5]),
            &["actions[8].do[2].commit.data"],
        ),
        (
            "/actions/8/do/2/commit/source/high",
            json!("10.0.0.0"),
            &["actions[8].do[2].commit.source.high"],
        ),
        (
            "/actions/9/do/0/learn/table",
            json!("station"),
            &["actions[9].do[0].learn.table"],
        ),
        (
            "/actions/9/do/1/select/selector",
            json!("ways"),
            &["actions[9].do[1].select.selector"],
        ),
        (
            "/actions/9/do/1/select/hash",
            json!([]),
            &["actions[9].do[1].select.hash"],
        ),
        (
            "/actions/9/do/1/select/into",
            json!(["meta.port"]),
            &["actions[9].do[1].select.into"],
        ),
        (
            "/actions/9/do/1/select/into/1",
            json!("std.pass"),
            &["actions[9].do[1].select.into[1]"],
        ),
        (
            "/actions/10/do/0/encapsulate/headers",
            json!([]),
            &["actions[10].do[0].encapsulate.headers"],
        ),
        (
            "/actions/10/do/0/encapsulate/headers/0/header",
            json!("outer"),
            &[
                "actions[10].do[0].encapsulate.headers[0].header",
                "actions[10].do[0].encapsulate.headers[1].header",
            ],
        ),
        (
            "/actions/10/do/0/encapsulate/headers/1/header",
            json!("outer_ethernet"),
            &[
                "actions[10].do[0].encapsulate.headers[1].header",
                "actions[10].do[0].encapsulate.headers[1].fields.ttl",
                "actions[10].do[0].encapsulate.headers[2].header",
            ],
        ),
        (
            "/actions/10/do/0/encapsulate/headers/-",
            json!({"header": "outer_ipv6"}),
            &[],
        ),
        (
            "/actions/10/do/0/encapsulate/headers",
            json!([{"header": "outer_ethernet"}, {"header": "outer_ipv6"}, {"header": "ipv6"}, {"header": "vxlan"}]),
            &["actions[10].do[0].encapsulate.headers"],
        ),
        (
            "/actions/10/do/0/encapsulate/headers/3/fields/vni",
            json!(1 << 24),
            &["actions[10].do[0].encapsulate.headers[3].fields.vni"],
        ),
        (
            "/actions/11/do/0/decapsulate/to",
            json!("inner"),
            &["actions[11].do[0].decapsulate.to"],
        ),
        (
            "/actions/12/do",
            json!(vec![json!({"pop_vlan": {}}); 65]),
            &["actions[12].do"],
        ),
    ]);
}

#[test]
fn tables() {
    expect(&[
        (
            "/tables/1/name",
            json!("rules"),
            &[
                "tables[2].name",
                "ingress[0].apply.actions.out[0].apply.table",
            ],
        ),
        (
            "/tables/1/key/1/field",
            json!("ipv6.dest"),
            &["tables[1].key[1].field"],
        ),
        (
            "/tables/1/key/1/field",
            json!("std.wire_bytes"),
            &["tables[1].key[1].field"],
        ),
        (
            "/tables/2/key/1/match",
            json!("lpm"),
            &["tables[2].key[3].match"],
        ),
        (
            "/tables/2/key/-",
            json!({"field": "ipv4.src", "match": "exact"}),
            &["tables[2].key[4]"],
        ),
        (
            "/tables/2/key/0/name",
            json!("a b"),
            &["tables[2].key[0].name"],
        ),
        (
            "/tables/3/key",
            json!(vec![json!({"field": "ipv4.src", "match": "exact"}); 13]),
            &[
                "tables[3].key",
                "tables[3].key[1]",
                "tables[3].key[2]",
                "tables[3].key[3]",
                "tables[3].key[4]",
                "tables[3].key[5]",
                "tables[3].key[6]",
                "tables[3].key[7]",
                "tables[3].key[8]",
                "tables[3].key[9]",
                "tables[3].key[10]",
                "tables[3].key[11]",
            ],
        ),
        (
            "/tables/3/key",
            Value::from(
                (0..9)
                    .map(
                        |n| json!({"field": "ipv6.src", "match": "exact", "name": format!("k{n}")}),
                    )
                    .collect::<Vec<_>>(),
            ),
            &["tables[3].key"],
        ),
        (
            "/tables/0/actions/1",
            json!("tag"),
            &["tables[0].actions[1]"],
        ),
        (
            "/tables/0/actions/1",
            json!("fields"),
            &["tables[0].actions[1]"],
        ),
        (
            "/tables/0/default_action/params",
            json!({}),
            &["tables[0].default_action.params"],
        ),
        (
            "/tables/0/default_action/params/x",
            json!("0x100000000"),
            &["tables[0].default_action.params.x"],
        ),
        (
            "/tables/0/default_action/params/y",
            json!(1),
            &["tables[0].default_action.params.y"],
        ),
        (
            "/tables/0/default_action/action",
            json!("nothing"),
            &["tables[0].default_action.action"],
        ),
        (
            "/tables/1/const_default",
            json!(true),
            &["tables[1].const_default"],
        ),
        (
            "/tables/0/size",
            json!(0),
            &["tables[0].size", "tables[0].const_entries"],
        ),
        ("/tables/0/size", json!(4_194_305), &["tables[0].size"]),
        (
            "/tables/0/const_entries/1/action",
            json!("stop"),
            &["tables[0].const_entries[1].action"],
        ),
        (
            "/tables/0/const_entries/0/params/limit",
            json!("vm1"),
            &["tables[0].const_entries[0].params.limit"],
        ),
        (
            "/tables/0/const_entries/0/key/station",
            json!("1..2"),
            &["tables[0].const_entries[0].key.station"],
        ),
        (
            "/tables/0/const_entries/0/key/place",
            json!(1),
            &["tables[0].const_entries[0].key.place"],
        ),
        (
            "/tables/0/const_entries/1/key",
            json!({"station": 1}),
            &["tables[0].const_entries[1].key"],
        ),
        (
            "/tables/0/const_entries/1/priority",
            json!(1),
            &["tables[0].const_entries[1].priority"],
        ),
        (
            "/tables/1/const_entries/0/key/destination",
            json!("fe80::/129"),
            &["tables[1].const_entries[0].key.destination"],
        ),
        (
            "/tables/1/const_entries/0/key/destination",
            json!("fe80::1/64"),
            &["tables[1].const_entries[0].key.destination"],
        ),
        (
            "/tables/1/const_entries/0/key/destination",
            json!("fe80::/x"),
            &["tables[1].const_entries[0].key.destination"],
        ),
        (
            "/tables/1/const_entries/3/key/destination",
            json!("::1"),
            &["tables[1].const_entries[3]"],
        ),
        (
            "/tables/2/const_entries/0/priority",
            json!(0),
            &["tables[2].const_entries[0].priority"],
        ),
        (
            "/tables/2/const_entries/0",
            json!({"key": {}, "action": "police"}),
            &["tables[2].const_entries[0]"],
        ),
        (
            "/tables/2/const_entries/0/key/tcp.dst_port",
            json!("443..80"),
            &["tables[2].const_entries[0].key.tcp.dst_port"],
        ),
        (
            "/tables/2/const_entries/0/key/tcp.dst_port",
            json!("80..65536"),
            &["tables[2].const_entries[0].key.tcp.dst_port"],
        ),
        (
            "/tables/2/const_entries/0/key/ipv4.src",
            json!({"value": 2, "mask": 1}),
            &["tables[2].const_entries[0].key.ipv4.src.value"],
        ),
        (
            "/tables/2/const_entries/0/key/ipv4.src",
            json!("here"),
            &["tables[2].const_entries[0].key.ipv4.src"],
        ),
    ]);
}

#[test]
fn controls() {
    let condition = "/ingress/3/if/if";
    expect(&[
        (
            "/ingress/0/apply/table",
            json!("exakt"),
            &["ingress[0].apply.table"],
        ),
        (
            "/ingress/0/apply/actions/wrap",
            json!([]),
            &["ingress[0].apply.actions.wrap"],
        ),
        (
            "/ingress/-",
            json!({"apply": {"table": "leaving"}}),
            &["ingress[5].apply.table"],
        ),
        (
            "/ingress/-",
            json!({"do": [{"set": {"field": "meta.a", "to": "std.out_port"}}]}),
            &["ingress[5].do[0].set.to"],
        ),
        (
            "/ingress/-",
            json!({"do": [{"set": {"field": "meta.a", "to": "$x"}}]}),
            &["ingress[5].do[0].set.to"],
        ),
        (
            "/egress/-",
            json!({"do": [{"output": {"port": 1}}]}),
            &["egress[2].do[0].output"],
        ),
        (
            "/egress/-",
            json!({"do": [{"recirculate": {}}]}),
            &["egress[2].do[0].recirculate"],
        ),
        (
            "/egress/-",
            json!({"apply": {"table": "exact"}}),
            &[
                "egress[2].apply.table",
                "egress[2].apply.table",
                "egress[2].apply.table",
            ],
        ),
        (
            "/tables/3/actions/0",
            json!("connection"),
            &["egress[0].apply.table"],
        ),
        (
            "/ingress/2/find/table",
            json!("rates"),
            &["ingress[2].find.table"],
        ),
        (
            "/ingress/2/find/port",
            json!("meta.c"),
            &["ingress[2].find.port"],
        ),
        (
            condition,
            json!({"eq": ["ipv4.ttl", 256]}),
            &["ingress[3].if.if.eq[1]"],
        ),
        (
            condition,
            json!({"lt": [256, "ipv4.ttl"]}),
            &["ingress[3].if.if.lt[0]"],
        ),
        (
            condition,
            json!({"le": ["std.frame_bytes", "ipv4.total_bytes"]}),
            &["ingress[3].if.if.le[1]"],
        ),
        (
            condition,
            json!({"gt": ["std.frame_bytes", "std.wire_bytes"]}),
            &["ingress[3].if.if.gt[1]", "ingress[3].if.if.gt[0]"],
        ),
        (
            condition,
            json!({"masked": ["std.frame_bytes", 1, 1]}),
            &["ingress[3].if.if.masked[0]"],
        ),
        (
            condition,
            json!({"all": [{"any": []}]}),
            &["ingress[3].if.if.all[0].any"],
        ),
        (
            condition,
            json!({"not": {"valid": "ipv5"}}),
            &["ingress[3].if.if.not.valid"],
        ),
    ]);
}

#[test]
fn ids() {
    expect(&[
        ("/tables/0/id", json!(0), &["tables[0].id"]),
        ("/tables/0/id", json!(0x0100_0001), &["tables[0].id"]),
        ("/tables/1/id", json!(0x0200_0001), &["tables[1].id"]),
        ("/actions/1/id", json!(1), &["actions[1].id"]),
        ("/counters/0/id", json!(0x1200_0000), &["counters[0].id"]),
    ]);
}

#[test]
fn nesting_and_numbers_of_statements_are_bounded() {
    let nested = |levels: usize| {
        (0..levels).fold(
            json!([]),
            |inner, _| json!([{"if": {"if": {"valid": "tcp"}, "then": inner}}]),
        )
    };
    let mut program = parsed(EVERYTHING);
    // JSON's own bound on nesting is 128 levels, of which a statement takes three.
    put(&mut program, "/ingress", nested(32));
    assert_eq!(errors(&program), []);
    put(&mut program, "/ingress", nested(33));
    assert_eq!(
        errors(&program)[0].0,
        format!("ingress{}", "[0].if.then".repeat(32))
    );

    let negated = |levels: usize| {
        let condition = (0..levels).fold(json!({"valid": "tcp"}), |inner, _| json!({"not": inner}));
        json!([{"if": {"if": condition}}])
    };
    put(&mut program, "/ingress", negated(15));
    assert_eq!(errors(&program), []);
    put(&mut program, "/ingress", negated(16));
    assert_eq!(
        errors(&program)[0].0,
        format!("ingress[0].if.if{}", ".not".repeat(16))
    );

    put(
        &mut program,
        "/ingress",
        Value::from(vec![json!("exit"); 4_093]),
    );
    assert_eq!(errors(&program), []);
    put(
        &mut program,
        "/ingress",
        Value::from(vec![json!("exit"); 100_000]),
    );
    assert_eq!(errors(&program)[0].0, "ingress[4096]");
}

#[test]
fn every_fault_is_listed_up_to_a_bound() {
    let mut program = parsed(EVERYTHING);
    put(&mut program, "/name", json!("not a name"));
    put(&mut program, "/tables/1/size", json!(0));
    put(&mut program, "/actions/5/do/0/drop/reason", json!("whim"));
    let places: Vec<_> = errors(&program)
        .into_iter()
        .map(|(place, _)| place)
        .collect();
    assert_eq!(
        places,
        [
            "name",
            "actions[5].do[0].drop.reason",
            "tables[1].size",
            "tables[1].const_entries"
        ]
    );

    put(
        &mut program,
        "/metadata",
        Value::from(vec![json!({"name": "?", "bits": 0}); 200_000]),
    );
    assert!(errors(&program).len() <= 1_000);
}

/// Programs as large as JSON may be, made to be slow to refuse; minutes where a bound is missing.
#[test]
fn hostile_programs_are_refused_in_bounded_work() {
    let many = |count: usize, item: &dyn Fn(usize) -> Value| {
        Value::from((0..count).map(item).collect::<Vec<_>>())
    };
    let long = "n".repeat(60);
    let hostile: [(&str, Value); 7] = [
        (
            "/parser/states",
            many(
                40_000,
                &|n| json!({"name": format!("s{n}"), "default": format!("s{}", n + 1)}),
            ),
        ),
        (
            "/meters",
            many(60_000, &|n| json!({"name": format!("m{n}"), "size": 1})),
        ),
        ("/tables/0/actions", many(500_000, &|_| json!("a"))),
        (
            "/actions",
            many(
                1_024,
                &|n| json!({"name": format!("a{n}"), "do": many(24, &|m| json!({"decapsulate": {"to": format!("{long}{m}")}}))}),
            ),
        ),
        (
            "/header_types",
            many(
                10_000,
                &|n| json!({"name": format!("h{n}"), "fields": [{"name": "a", "bits": 7}]}),
            ),
        ),
        (
            "/ingress",
            many(
                4_096,
                &|_| json!({"apply": {"table": "leaving", "actions": {"a": []}}}),
            ),
        ),
        (
            "/tables/0/key",
            many(80_000, &|_| json!({"field": "ipv4.src", "match": "exact"})),
        ),
    ];
    for (pointer, value) in hostile {
        let mut program = parsed(EVERYTHING);
        put(&mut program, pointer, value);
        let found = errors(&program).len();
        assert!((1..=1_000).contains(&found), "{pointer}: {found}");
    }
}

/// Each program of the documentation is one.
#[test]
fn the_programs_of_the_documentation_are_valid() {
    let text = include_str!("../../../docs/programs.md");
    let mut block = String::new();
    let mut programs = 0;
    for line in text.lines().chain([""]) {
        if let Some(code) = line.strip_prefix("    ") {
            block.push_str(code);
            block.push('\n');
            continue;
        }
        let code = std::mem::take(&mut block);
        if code.starts_with("{\"name\"") {
            programs += 1;
            if let Err(errors) = Program::from_json(&code) {
                panic!("{code}\n{errors}");
            }
        }
    }
    assert_eq!(programs, 3);
}

#[test]
fn an_error_says_what_is_wrong_and_what_to_do() {
    let mut program = parsed(EVERYTHING);
    put(&mut program, "/tables/1/key/1/field", json!("ipv6.dts"));
    assert_eq!(
        errors(&program)[0].1,
        "tables[1].key[1].field: there is no field `ipv6.dts`; did you mean `ipv6.dst`?"
    );
    let syntax = Program::from_json("{\n  \"name\": \"x\",\n  \"nam\": 3\n}").unwrap_err();
    assert_eq!(syntax.0[0].place, "line 3 column 7");
    assert!(
        syntax.to_string().contains("unknown field `nam`"),
        "{syntax}"
    );
    for unknown in [
        r#"{"name": "x", "ingress": [{"apply": {"table": "t", "hits": []}}]}"#,
        r#"{"name": "x", "ingress": [{"do": [{"nat": {"x": 1}}]}]}"#,
        r#"{"name": "x", "ingress": [{"do": [{"output": {"port": 1, "x": 1}}]}]}"#,
        r#"{"name": "x", "ingress": [], "parser": {"states": [{"name": "y", "cases": [{"values": [{"value": 1, "mask": 1, "x": 1}], "next": "accept"}]}]}}"#,
        r#"{"name": "x", "ingress": [], "tables": [{"name": "t", "key": [], "actions": [], "size": 1, "const_entries": [{"key": {"a": {"value": 1, "mask": 2, "prefix_bits": 3}}, "action": "a"}]}]}"#,
        r#"{"name": "x", "ingress": [], "name": "y"}"#,
        r#"{"name": "x"}"#,
        "",
    ] {
        let errors = Program::from_json(unknown).unwrap_err();
        assert_eq!(errors.0.len(), 1, "{errors}");
        assert!(errors.0[0].place.starts_with("line "), "{errors}");
    }
}
