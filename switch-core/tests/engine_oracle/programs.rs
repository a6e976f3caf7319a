//! Random programs, well-formed by construction.

use serde_json::{Map, Value, json};

use crate::choices::Choices;
use crate::frames::interesting;

/// What keys and conditions look at.
const READ: &[(&str, u16)] = &[
    ("ethernet.dst", 48),
    ("ethernet.src", 48),
    ("ethernet.ether_type", 16),
    ("vlan.vid", 12),
    ("vlan.pcp", 3),
    ("vlan.ether_type", 16),
    ("vlan_inner.vid", 12),
    ("vlan_skipped.vid", 12),
    ("mpls.label", 20),
    ("mpls.bottom", 1),
    ("mpls_inner.ttl", 8),
    ("arp.operation", 16),
    ("arp.sender_ip", 32),
    ("ipv4.src", 32),
    ("ipv4.dst", 32),
    ("ipv4.ttl", 8),
    ("ipv4.dscp", 6),
    ("ipv4.ihl", 4),
    ("ipv4.protocol", 8),
    ("ipv4.total_bytes", 16),
    ("ipv4.more_fragments", 1),
    ("ipv4.fragment_offset", 13),
    ("ipv6.src", 128),
    ("ipv6.dst", 128),
    ("ipv6.flow_label", 20),
    ("ipv6.next_header", 8),
    ("ipv6_extension.next_header", 8),
    ("ipv6_fragment.offset", 13),
    ("authentication.spi", 32),
    ("tcp.src_port", 16),
    ("tcp.dst_port", 16),
    ("tcp.flags", 8),
    ("udp.dst_port", 16),
    ("udp.src_port", 16),
    ("icmp.type", 8),
    ("icmpv6.type", 8),
    ("hop.kind", 8),
    ("hop.mark", 13),
    ("hop.flag", 3),
    ("hop.tenant", 28),
    ("hop.dst_port", 16),
    ("vxlan.vni", 24),
    ("inner_ethernet.dst", 48),
    ("inner_vlan.vid", 12),
    ("inner_ipv4.dst", 32),
    ("inner_tcp.dst_port", 16),
    ("outer_ipv4.ttl", 8),
    ("std.in_port", 16),
    ("std.parse_error", 8),
    ("std.pass", 8),
    ("ct.tracked", 1),
    ("ipv4.valid", 1),
    ("tcp.valid", 1),
    ("vlan.valid", 1),
    ("hop.valid", 1),
    ("meta.a", 8),
    ("meta.b", 33),
    ("meta.c", 128),
    ("meta.d", 16),
];

/// What actions write.
const WRITTEN: &[(&str, u16)] = &[
    ("meta.a", 8),
    ("meta.b", 33),
    ("meta.c", 128),
    ("meta.d", 16),
    ("ethernet.dst", 48),
    ("ethernet.src", 48),
    ("ethernet.ether_type", 16),
    ("vlan.vid", 12),
    ("vlan.pcp", 3),
    ("vlan.ether_type", 16),
    ("vlan_inner.vid", 12),
    ("mpls.ttl", 8),
    ("arp.operation", 16),
    ("ipv4.src", 32),
    ("ipv4.dst", 32),
    ("ipv4.src", 32),
    ("ipv4.dst", 32),
    ("ipv6.dst", 128),
    ("ipv4.ttl", 8),
    ("ipv4.dscp", 6),
    ("ipv4.ecn", 2),
    ("ipv4.identification", 16),
    ("ipv4.dont_fragment", 1),
    ("ipv4.protocol", 8),
    ("ipv6.src", 128),
    ("ipv6.dst", 128),
    ("ipv6.hop_limit", 8),
    ("ipv6.flow_label", 20),
    ("ipv6.dscp", 6),
    ("tcp.src_port", 16),
    ("tcp.dst_port", 16),
    ("tcp.flags", 8),
    ("tcp.window", 16),
    ("udp.src_port", 16),
    ("udp.dst_port", 16),
    ("icmp.code", 8),
    ("icmpv6.identifier", 16),
    ("hop.mark", 13),
    ("hop.flag", 3),
    ("hop.tenant", 28),
    ("vxlan.vni", 24),
    ("inner_ethernet.dst", 48),
    ("inner_ipv4.dst", 32),
    ("inner_ipv4.ttl", 8),
    ("inner_udp.dst_port", 16),
    ("outer_ethernet.src", 48),
    ("outer_ipv4.dscp", 6),
    ("outer_ipv4.dst", 32),
    ("outer_udp.src_port", 16),
];

/// Checksums, lengths and what the parser goes by; rarely.
const DELICATE: &[(&str, u16)] = &[
    ("ipv4.checksum", 16),
    ("tcp.checksum", 16),
    ("udp.checksum", 16),
    ("icmp.checksum", 16),
    ("inner_ipv4.checksum", 16),
    ("outer_ipv4.checksum", 16),
    ("outer_ipv4.total_bytes", 16),
    ("outer_udp.length", 16),
    ("ipv4.total_bytes", 16),
    ("ipv4.ihl", 4),
    ("ipv4.version", 4),
    ("ipv6.payload_bytes", 16),
    ("tcp.data_offset", 4),
    ("hop.words", 4),
    ("hop.kind", 8),
];

const REASONS: [&str; 4] = ["acl_denied", "no_route", "storm_control", "ttl_expired"];

/// A table as the driver needs to know it.
#[derive(Clone, Debug)]
pub struct Table {
    pub name: String,
    /// Name in entries, field, bits, kind.
    pub key: Vec<(String, String, u16, &'static str)>,
    pub actions: Vec<usize>,
    pub default: Option<(usize, Vec<u128>)>,
    pub is_counting: bool,
    pub size: usize,
}

#[derive(Clone, Debug)]
pub struct Action {
    pub name: String,
    pub params: Vec<(String, u16)>,
    is_for_egress: bool,
}

/// A program and what it is made of.
#[derive(Clone, Debug)]
pub struct Made {
    pub json: Value,
    pub actions: Vec<Action>,
    pub tables: Vec<Table>,
    /// Whether it reads or writes checksums, so that an unfinished one would make a difference.
    pub is_delicate: bool,
}

struct Builder<'a, 'c> {
    choices: &'a mut Choices<'c>,
    actions: Vec<Action>,
    tables: Vec<Table>,
    is_delicate: bool,
    may_be_delicate: bool,
    /// Statements and conditions that may still be made.
    left: usize,
}

pub fn program(choices: &mut Choices<'_>) -> Made {
    let may_be_delicate = choices.chance(40);
    let mut builder = Builder {
        may_be_delicate,
        choices,
        actions: Vec::new(),
        tables: Vec::new(),
        is_delicate: false,
        left: 24,
    };
    let mut actions = Vec::new();
    for number in 0..7 {
        actions.push(builder.action(number, number < 3));
    }
    let egress_tables = builder.choices.below(2);
    let mut tables = Vec::new();
    let count = 2 + builder.choices.below(3);
    for number in 0..count + egress_tables {
        tables.push(builder.table(number, number >= count));
    }
    let mut ingress = Vec::new();
    if builder.choices.chance(70) {
        // So that something happens to most frames.
        ingress.push(json!({"do": [{"output": {"port": 3}}]}));
    }
    for _ in 0..2 + builder.choices.below(3) {
        let statement = builder.statement((0, count), 0);
        ingress.push(statement);
    }
    let mut egress = Vec::new();
    builder.left += 6;
    if builder.choices.chance(50) {
        for _ in 0..1 + builder.choices.below(2) {
            let statement = builder.statement((count, count + egress_tables), 1);
            egress.push(statement);
        }
    }
    let Builder {
        choices,
        actions: made_actions,
        tables: made_tables,
        is_delicate,
        ..
    } = builder;
    let verify = if choices.chance(50) {
        json!([{"ge": ["hop.words", 2]}, {"ne": ["hop.flag", 7]}])
    } else {
        json!([])
    };
    let json = json!({
        "name": "random",
        "header_types": [
            {"name": "hop", "fields": [
                {"name": "kind", "bits": 8}, {"name": "words", "bits": 4}, {"name": "flag", "bits": 3}, {"name": "mark", "bits": 13},
                {"name": "tenant", "bits": 28}, {"name": "reserved", "bits": 8}, {"name": "dst_port", "bits": 16}, {"name": "low", "bits": 16}],
             "length": {"field": "words", "unit_bytes": 4, "plus": 1, "max_bytes": 60}}],
        "headers": [{"name": "hop", "type": "hop"}, {"name": "outer_hop", "type": "hop"}, {"name": "outer_vxlan", "type": "vxlan"},
                    {"name": "outer_mpls", "type": "mpls"}],
        "metadata": [{"name": "a", "bits": 8}, {"name": "b", "bits": 33}, {"name": "c", "bits": 128}, {"name": "d", "bits": 16}],
        "parser": {
            "states": [{"name": "hop", "extract": "hop", "verify": verify, "select": ["hop.kind"], "cases": [
                {"values": [1], "next": "inner_ethernet"}, {"values": [2], "next": "ipv4"}, {"values": [3], "next": "hop"},
                {"values": [{"value": "0xf0", "mask": "0xf0"}], "next": "reject"}]}],
            "extend": [
                {"state": "ethernet", "cases": [{"values": ["0x88b5"], "next": "hop"}]},
                {"state": "vlan", "cases": [{"values": ["0x88b5"], "next": "hop"}]},
                {"state": "udp", "cases": [{"values": [4789], "next": "vxlan"}, {"values": [7777], "next": "hop"}]},
                {"state": "ipv4", "cases": [{"values": [0, 47], "next": "gre"}]}]},
        "counters": [{"name": "seen", "size": 16}],
        "selectors": [{"name": "pool", "member": [{"name": "x", "bits": 16}, {"name": "y", "bits": 32}], "max_groups": 8, "max_members": 8}],
        "actions": actions,
        "tables": tables,
        "ingress": ingress,
        "egress": egress,
    });
    Made {
        json,
        actions: made_actions,
        tables: made_tables,
        is_delicate,
    }
}

/// A number as it is written.
pub fn text(number: u128) -> Value {
    match u64::try_from(number) {
        Ok(number) => json!(number),
        Err(_) => json!(format!("{number:#x}")),
    }
}

impl Builder<'_, '_> {
    fn readable(&mut self) -> (&'static str, u16) {
        if self.may_be_delicate && self.choices.chance(6) {
            self.is_delicate = true;
            return self.choices.pick(DELICATE);
        }
        self.choices.pick(READ)
    }

    fn operand(&mut self, bits: u16, params: &[(String, u16)]) -> Value {
        let kind = self.choices.below(10);
        if kind < 4 && !params.is_empty() {
            let at = self.choices.below(params.len());
            return json!(format!("${}", params[at].0));
        }
        if kind < 6 {
            return json!(self.readable().0);
        }
        let number = interesting(self.choices, "", bits);
        text(number)
    }

    fn action(&mut self, number: usize, is_for_egress: bool) -> Value {
        let params: Vec<(String, u16)> = (0..self.choices.below(4))
            .map(|number| {
                let bits = self.choices.pick(&[8u16, 16, 16, 32, 48, 128]);
                (format!("p{number}"), bits)
            })
            .collect();
        let name = format!("act{number}");
        let count = 1 + self.choices.below(4);
        let body = self.primitives(count, &params, is_for_egress);
        let declared: Vec<Value> = params
            .iter()
            .map(|(name, bits)| json!({"name": name, "bits": bits}))
            .collect();
        self.actions.push(Action {
            name: name.clone(),
            params,
            is_for_egress,
        });
        json!({"name": name, "params": declared, "do": body})
    }

    fn primitives(
        &mut self,
        count: usize,
        params: &[(String, u16)],
        is_for_egress: bool,
    ) -> Vec<Value> {
        (0..count)
            .map(|_| self.primitive(params, is_for_egress))
            .collect()
    }

    fn written(&mut self) -> (&'static str, u16) {
        if self.may_be_delicate && self.choices.chance(8) {
            self.is_delicate = true;
            return self.choices.pick(DELICATE);
        }
        self.choices.pick(WRITTEN)
    }

    fn primitive(&mut self, params: &[(String, u16)], is_for_egress: bool) -> Value {
        let most = if is_for_egress { 27 } else { 38 };
        match self.choices.below(most) {
            0..=7 => {
                let (field, bits) = self.written();
                json!({"set": {"field": field, "to": self.operand(bits, params)}})
            }
            8..=11 => {
                let (field, bits) = self.written();
                let how = self.choices.pick(&["add", "subtract"]);
                json!({how: {"field": field, "value": self.operand(bits, params)}})
            }
            12..=13 => {
                let mut tag = json!({"vid": self.operand(12, params)});
                if self.choices.chance(50) {
                    tag["pcp"] = self.operand(3, params);
                }
                if self.choices.chance(30) {
                    tag["tpid"] = json!(0x88a8);
                }
                json!({"push_vlan": tag})
            }
            14..=15 => json!({"pop_vlan": {}}),
            16 => {
                let (label, tc, ttl) = (
                    self.operand(20, params),
                    self.operand(3, params),
                    self.operand(8, params),
                );
                json!({"push_mpls": {"label": label, "tc": tc, "ttl": ttl}})
            }
            17 => json!({"pop_mpls": {"ether_type": self.operand(16, params)}}),
            18 => {
                let reason = self.choices.pick(&["odd", "copy"]);
                let args: Vec<Value> = (0..self.choices.below(3))
                    .map(|_| self.operand(64, params))
                    .collect();
                json!({"controller": {"reason": reason, "args": args}})
            }
            19 => json!({"mirror": {"port": self.choices.pick(&[4, 5])}}),
            20 => json!({"count": {"counter": "seen", "index": self.choices.below(16)}}),
            21 => {
                let hash: Vec<Value> = (0..1 + self.choices.below(3))
                    .map(|_| json!(self.readable().0))
                    .collect();
                let (one, other) = (self.written().0, self.written().0);
                let group = self.choices.below(4);
                json!({"select": {"selector": "pool", "group": group, "hash": hash, "into": [one, other]}})
            }
            22 => self.encapsulate(params),
            23 => {
                let to =
                    self.choices
                        .pick(&["inner_ethernet", "ipv4", "inner_ipv4", "hop", "ethernet"]);
                json!({"decapsulate": {"to": to}})
            }
            24..=25 => json!({"drop": {"reason": self.choices.pick(&REASONS)}}),
            26 => {
                let (field, bits) = self.choices.pick(&WRITTEN[..4]);
                json!({"set": {"field": field, "to": self.operand(bits, params)}})
            }
            27..=32 => {
                let port = match self.choices.below(5) {
                    0 => self.operand(14, params),
                    _ => json!(1 + self.choices.below(6)),
                };
                json!({"output": {"port": port}})
            }
            33..=34 => json!({"multicast": {"group": self.choices.below(4)}}),
            35 => json!({"resubmit": {"keep": ["meta.a"]}}),
            _ => json!({"recirculate": {"keep": ["meta.b", "meta.c"]}}),
        }
    }

    fn encapsulate(&mut self, params: &[(String, u16)]) -> Value {
        let mut headers = vec![
            json!({"header": "outer_ethernet", "fields": {"dst": self.operand(48, params), "src": 2}}),
        ];
        match self.choices.below(5) {
            0 => headers.push(json!({"header": "outer_vlan", "fields": {"vid": 7}})),
            1 => {
                headers.push(json!({"header": "outer_ipv4", "fields":
                    {"src": "10.0.0.9", "dst": self.operand(32, params), "dscp": 4}}));
                headers.push(json!({"header": "outer_udp", "fields": {"src_port": self.operand(16, params), "dst_port": 4789}}));
                headers.push(json!({"header": "outer_vxlan", "fields": {"vni": 5}}));
            }
            2 => {
                headers.push(
                    json!({"header": "outer_ipv6", "fields": {"src": "fe80::9", "dst": self.operand(128, params)}}),
                );
                let mut udp = json!({"header": "outer_udp", "fields": {"dst_port": 7777}});
                if self.choices.chance(30) {
                    udp["fields"]["checksum"] = json!(0x1234);
                }
                headers.push(udp);
                headers.push(json!({"header": "outer_hop", "fields": {"kind": 1, "words": 2}}));
            }
            3 => {
                headers = vec![json!({"header": "ethernet", "fields": {"ether_type": "0x88b5"}})];
                headers.push(
                    json!({"header": "hop", "fields": {"kind": 1, "words": 2, "tenant": self.operand(28, params)}}),
                );
            }
            _ => headers.push(
                json!({"header": "outer_mpls", "fields": {"label": 9, "bottom": 1, "ttl": 3}}),
            ),
        }
        json!({"encapsulate": {"headers": headers}})
    }

    fn table(&mut self, number: usize, is_for_egress: bool) -> Value {
        let shape = self.choices.below(4);
        let fields = match shape {
            3 => self.choices.below(2),
            _ => 1 + self.choices.below(3),
        };
        let mut key = Vec::new();
        let mut has_prefix = false;
        for place in 0..fields + usize::from(shape == 3) {
            let (field, bits) = if is_for_egress && place == 0 && self.choices.chance(50) {
                ("std.out_port", 16)
            } else {
                self.readable()
            };
            let kind = match shape {
                0 => "exact",
                1 | 2 => {
                    let kind = self
                        .choices
                        .pick(&["ternary", "range", "optional", "exact", "lpm"]);
                    if kind == "lpm" && has_prefix {
                        "ternary"
                    } else {
                        kind
                    }
                }
                _ if place == 0 => "lpm",
                _ => "exact",
            };
            has_prefix |= kind == "lpm";
            key.push((format!("k{place}"), field.to_owned(), bits, kind));
        }
        let candidates: Vec<usize> = (0..self.actions.len())
            .filter(|&at| !is_for_egress || self.actions[at].is_for_egress)
            .collect();
        let mut actions = Vec::new();
        for _ in 0..3 {
            let action = self.choices.pick(&candidates);
            if !actions.contains(&action) {
                actions.push(action);
            }
        }
        // A default need not be among them.
        let default = self.choices.chance(40).then(|| {
            let action = self.choices.pick(&candidates);
            let params = self.actions[action].params.clone();
            (action, self.arguments(&params))
        });
        let name = format!("tab{number}");
        let (is_counting, size) = (self.choices.chance(50), self.choices.pick(&[4096, 4096, 6]));
        let declared: Vec<Value> = key
            .iter()
            .map(|(name, field, _, kind)| json!({"name": name, "field": field, "match": kind}))
            .collect();
        let names: Vec<&str> = actions
            .iter()
            .map(|&at| self.actions[at].name.as_str())
            .collect();
        let mut json = json!({"name": name, "key": declared, "actions": names, "size": size, "counters": is_counting});
        if let Some((action, arguments)) = &default {
            json["default_action"] = call(&self.actions[*action], arguments);
        }
        self.tables.push(Table {
            name,
            key,
            actions,
            default,
            is_counting,
            size,
        });
        json
    }

    fn arguments(&mut self, params: &[(String, u16)]) -> Vec<u128> {
        arguments(self.choices, params)
    }

    fn condition(&mut self, depth: usize) -> Value {
        match self.choices.below(if depth > 2 { 10 } else { 14 }) {
            0..=2 => {
                let headers = [
                    "ipv4",
                    "ipv6",
                    "tcp",
                    "udp",
                    "vlan",
                    "vlan_inner",
                    "hop",
                    "arp",
                    "mpls",
                    "inner_ethernet",
                ];
                json!({"valid": self.choices.pick(&headers)})
            }
            3..=5 => {
                let (field, bits) = self.readable();
                let number = interesting(self.choices, field, bits);
                let how = self.choices.pick(&["eq", "ne", "lt", "le", "gt", "ge"]);
                json!({how: [field, text(number)]})
            }
            6 => {
                let (one, other) = (self.readable().0, self.readable().0);
                let how = self.choices.pick(&["eq", "lt", "ge"]);
                json!({how: [one, other]})
            }
            7 => {
                let (field, bits) = self.readable();
                let mask = self.choices.number(bits) & self.choices.number(bits);
                let value = interesting(self.choices, field, bits) & mask;
                json!({"masked": [field, text(mask), text(value)]})
            }
            8..=9 => {
                let field = self.choices.pick(&["std.frame_bytes", "std.wire_bytes"]);
                let how = self.choices.pick(&["eq", "ne", "lt", "le", "gt", "ge"]);
                let with = match self.choices.below(4) {
                    0 => json!("meta.a"),
                    _ => json!(self.choices.below(120)),
                };
                if self.choices.chance(50) {
                    json!({how: [field, with]})
                } else {
                    json!({how: [with, field]})
                }
            }
            10 => json!({"not": self.condition(depth + 1)}),
            kind => {
                let parts: Vec<Value> = (0..1 + self.choices.below(3))
                    .map(|_| self.condition(depth + 1))
                    .collect();
                let how = if kind < 12 { "all" } else { "any" };
                json!({how: parts})
            }
        }
    }

    fn statements(&mut self, tables: (usize, usize), depth: usize) -> Vec<Value> {
        (0..self.choices.below(3))
            .map(|_| self.statement(tables, depth))
            .collect()
    }

    /// Egress is where the tables do not begin with the first.
    fn statement(&mut self, tables: (usize, usize), depth: usize) -> Value {
        let is_for_egress = tables.0 != 0;
        let is_leaf = depth > 2 || self.left == 0;
        self.left = self.left.saturating_sub(1);
        match self.choices.below(10) {
            0..=4 if tables.0 < tables.1 => {
                let at = tables.0 + self.choices.below(tables.1 - tables.0);
                let table = self.tables[at].clone();
                let mut apply = json!({"table": table.name});
                if !is_leaf && self.choices.chance(50) {
                    apply["hit"] = json!(self.statements(tables, depth + 1));
                    apply["miss"] = json!(self.statements(tables, depth + 1));
                }
                if !is_leaf && self.choices.chance(30) {
                    let action = self.choices.pick(&table.actions);
                    let steps = self.statements(tables, depth + 1);
                    let mut actions = Map::new();
                    actions.insert(self.actions[action].name.clone(), json!(steps));
                    apply["actions"] = Value::Object(actions);
                }
                json!({"apply": apply})
            }
            5..=7 if !is_leaf => {
                let condition = self.condition(0);
                let (then, otherwise) = (
                    self.statements(tables, depth + 1),
                    self.statements(tables, depth + 1),
                );
                json!({"if": {"if": condition, "then": then, "else": otherwise}})
            }
            8 if depth > 0 && self.choices.chance(30) => json!("exit"),
            _ => {
                let count = 1 + self.choices.below(2);
                json!({"do": self.primitives(count, &[], is_for_egress)})
            }
        }
    }
}

/// Values for parameters.
pub fn arguments(choices: &mut Choices<'_>, params: &[(String, u16)]) -> Vec<u128> {
    params
        .iter()
        .map(|&(_, bits)| interesting(choices, "", bits))
        .collect()
}

/// A call as it is written.
pub fn call(action: &Action, arguments: &[u128]) -> Value {
    let params: Map<String, Value> = action
        .params
        .iter()
        .zip(arguments)
        .map(|((name, _), &value)| (name.clone(), text(value)))
        .collect();
    json!({"action": action.name, "params": params})
}
