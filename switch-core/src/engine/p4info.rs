//! A program as P4Runtime describes one: the `P4Info` message (P4Runtime 1.4, `p4info.proto`) in protobuf's text form.
//!
//! What P4 has no word for is said in annotations: how a field is written (`@format`), and the names of the reasons for which frames
//! go to the controller (`@reason`), whose numbers follow from the names as ids do.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::ids::{IdKind, Ids};
use super::model::{Apply, Find, Format, Primitive, Program, Statement, TableDecl};
use super::validate::{ValidProgram, limits};

/// The number of a controller reason.
pub fn reason_number(reason: &str) -> u32 {
    IdKind::ControllerHeader.id_of_name(reason)
}

/// The P4Info of a program.
pub fn p4info(valid: &ValidProgram) -> String {
    let program = valid.program();
    let ids = valid.ids();
    let mut out = TextForm::default();
    out.message("pkg_info", |out| {
        out.text("name", &program.name);
        out.documentation(&program.description);
        out.text("arch", "ringswitch");
    });
    for (table, id) in program.tables.iter().zip(ids.tables()) {
        write_table(&mut out, valid, table, *id);
    }
    for (action, id) in program.actions.iter().zip(ids.actions()) {
        out.message("actions", |out| {
            out.preamble(*id, &action.name, &action.description);
            for (number, param) in (1_u32..).zip(&action.params) {
                out.message("params", |out| {
                    out.number("id", number);
                    out.text("name", &param.name);
                    out.format(param.format);
                    out.number("bitwidth", param.bits);
                });
            }
        });
    }
    for (selector, id) in program.selectors.iter().zip(ids.selectors()) {
        out.message("action_profiles", |out| {
            out.preamble(*id, &selector.name, "");
            for table in tables_that_select(valid, &selector.name) {
                out.number("table_ids", table);
            }
            out.line("with_selector: true");
            let members = u64::from(selector.max_groups) * u64::from(selector.max_members);
            out.number("size", members);
            out.number("max_group_size", selector.max_members);
        });
    }
    for (counter, id) in program.counters.iter().zip(ids.counters()) {
        out.message("counters", |out| {
            out.preamble(*id, &counter.name, "");
            out.message("spec", |out| out.line("unit: BOTH"));
            out.number("size", counter.size);
        });
    }
    for (table, id) in program.tables.iter().zip(ids.tables()) {
        if table.counters {
            out.message("direct_counters", |out| {
                out.preamble(
                    Ids::direct_counter(*id),
                    &format!("{}_counter", table.name),
                    "",
                );
                out.message("spec", |out| out.line("unit: BOTH"));
                out.number("direct_table_id", *id);
            });
        }
    }
    for (meter, id) in program.meters.iter().zip(ids.meters()) {
        out.message("meters", |out| {
            out.preamble(*id, &meter.name, "");
            out.message("spec", |out| out.line("unit: BYTES"));
            out.number("size", meter.size);
        });
    }
    write_controller_headers(&mut out, program);
    out.text
}

fn write_table(out: &mut TextForm, valid: &ValidProgram, table: &TableDecl, id: u32) {
    let program = valid.program();
    let action_id = |name: &str| {
        let found = program.actions.iter().zip(valid.ids().actions());
        found
            .filter(|(action, _)| action.name == name)
            .map(|(_, id)| *id)
            .next()
    };
    out.message("tables", |out| {
        out.preamble(id, &table.name, &table.description);
        for (number, key) in (1_u32..).zip(&table.key) {
            let Some(field) = valid.field(&key.field) else {
                continue;
            };
            out.message("match_fields", |out| {
                out.number("id", number);
                out.text("name", key.key_name());
                out.format(field.format);
                out.number("bitwidth", field.bits);
                out.line(&format!("match_type: {}", key.kind.name().to_uppercase()));
            });
        }
        for action in table.actions.iter().filter_map(|name| action_id(name)) {
            out.message("action_refs", |out| out.number("id", action));
        }
        let default = table.default_action.as_ref();
        if let Some(call) = default
            && let Some(action) = action_id(&call.action)
        {
            if !table.actions.contains(&call.action) {
                out.message("action_refs", |out| {
                    out.number("id", action);
                    out.line("scope: DEFAULT_ONLY");
                });
            }
            if table.const_default {
                out.number("const_default_action_id", action);
            }
        }
        if table.counters {
            out.number("direct_resource_ids", Ids::direct_counter(id));
        }
        out.number("size", table.size);
        if table.timeouts {
            out.line("idle_timeout_behavior: NOTIFY_CONTROL");
        }
    });
}

fn write_controller_headers(out: &mut TextForm, program: &Program) {
    out.message("controller_packet_metadata", |out| {
        out.message("preamble", |out| {
            out.number("id", IdKind::ControllerHeader.id_of_name("packet_in"));
            out.text("name", "packet_in");
            out.text("alias", "packet_in");
            out.text("annotations", "@controller_header(\"packet_in\")");
            for reason in controller_reasons(program) {
                let number = reason_number(reason);
                out.text("annotations", &format!("@reason({number}, \"{reason}\")"));
            }
        });
        out.metadata(1, "ingress_port", 16);
        out.metadata(2, "reason", 32);
        for (number, name) in (3..).zip(["arg0", "arg1", "arg2", "arg3"]) {
            out.metadata(number, name, limits::FIELD_BITS);
        }
    });
    out.message("controller_packet_metadata", |out| {
        out.message("preamble", |out| {
            out.number("id", IdKind::ControllerHeader.id_of_name("packet_out"));
            out.text("name", "packet_out");
            out.text("alias", "packet_out");
            out.text("annotations", "@controller_header(\"packet_out\")");
        });
        out.metadata(1, "egress_port", 16);
    });
}

fn tables_that_select(valid: &ValidProgram, selector: &str) -> Vec<u32> {
    let program = valid.program();
    let selects = |name: &String| {
        let mut bodies = program.actions.iter().filter(|action| action.name == *name);
        bodies.any(|action| {
            action.body.iter().any(|primitive| {
                matches!(primitive, Primitive::Select { selector: chosen, .. } if chosen == selector)
            })
        })
    };
    let tables = program.tables.iter().zip(valid.ids().tables());
    tables
        .filter(|(table, _)| table.actions.iter().any(selects))
        .map(|(_, id)| *id)
        .collect()
}

/// Every reason for which a frame may go to the controller, in order.
pub fn controller_reasons(program: &Program) -> BTreeSet<&str> {
    let mut reasons = BTreeSet::new();
    for action in &program.actions {
        add_reasons(&action.body, &mut reasons);
    }
    let mut rest: Vec<&Statement> = program.ingress.iter().chain(&program.egress).collect();
    while let Some(statement) = rest.pop() {
        match statement {
            Statement::Do(primitives) => add_reasons(primitives, &mut reasons),
            Statement::If(branch) => rest.extend(branch.then.iter().chain(&branch.otherwise)),
            Statement::Apply(Apply {
                hit, miss, actions, ..
            }) => rest.extend(hit.iter().chain(miss).chain(actions.values().flatten())),
            Statement::Find(Find { hit, miss, .. }) => rest.extend(hit.iter().chain(miss)),
            Statement::Exit => {}
        }
    }
    reasons
}

fn add_reasons<'p>(primitives: &'p [Primitive], reasons: &mut BTreeSet<&'p str>) {
    for primitive in primitives {
        if let Primitive::Controller { reason, .. } = primitive {
            reasons.insert(reason);
        }
    }
}

/// Protobuf's text form, as it grows.
#[derive(Default)]
struct TextForm {
    text: String,
    depth: usize,
}

impl TextForm {
    fn line(&mut self, line: &str) {
        for _ in 0..self.depth {
            self.text.push_str("  ");
        }
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn message(&mut self, name: &str, body: impl FnOnce(&mut Self)) {
        self.line(&format!("{name} {{"));
        self.depth += 1;
        body(self);
        self.depth -= 1;
        self.line("}");
    }

    fn number(&mut self, name: &str, number: impl Into<u64>) {
        let number: u64 = number.into();
        self.line(&format!("{name}: {number}"));
    }

    fn text(&mut self, name: &str, text: &str) {
        self.line(&format!("{name}: {}", quoted(text)));
    }

    fn preamble(&mut self, id: u32, name: &str, description: &str) {
        self.message("preamble", |out| {
            out.number("id", id);
            out.text("name", name);
            out.text("alias", name);
            out.documentation(description);
        });
    }

    fn documentation(&mut self, description: &str) {
        if !description.is_empty() {
            self.message("doc", |out| out.text("brief", description));
        }
    }

    fn format(&mut self, format: Format) {
        let name = match format {
            Format::Number => return,
            Format::Mac => "MAC_ADDRESS",
            Format::Ipv4 => "IPV4_ADDRESS",
            Format::Ipv6 => "IPV6_ADDRESS",
            Format::Port => "PORT",
        };
        self.text("annotations", &format!("@format({name})"));
    }

    fn metadata(&mut self, id: u32, name: &str, bits: u16) {
        self.message("metadata", |out| {
            out.number("id", id);
            out.text("name", name);
            out.number("bitwidth", bits);
        });
    }
}

/// A string as the text form writes it.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => {
                out.push('\\');
                out.push(character);
            }
            control if control.is_ascii_control() => {
                // Writing to a string does not fail.
                let _ = write!(out, "\\{:03o}", u32::from(control));
            }
            other => out.push(other),
        }
    }
    out.push('"');
    out
}
