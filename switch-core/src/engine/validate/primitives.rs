//! What actions are made of.

use std::collections::BTreeSet;

use super::control::Control;
use super::error::Place;
use super::fields::FieldSource;
use super::operands::Scope;
use super::{Checker, limits};
use crate::drop_reason::DropReason;
use crate::engine::edit::MAX_GROWTH_BYTES;
use crate::engine::literal::Operand;
use crate::engine::model::{ActionDecl, ArrayDecl, Commit, NewHeader, Primitive};
use crate::port::PortId;

impl<'p> Checker<'p> {
    pub(super) fn actions(&mut self) {
        let actions: &'p [ActionDecl] = &self.own.actions;
        let list = Place::root("actions");
        let count = self.at_most(list, actions.len(), limits::ACTIONS);
        self.unique(list, actions, |action| &action.name);
        for (index, action) in actions.iter().take(count).enumerate() {
            let place = list.index(index);
            self.description(place.field("description"), &action.description);
            self.fields(place.field("params"), &action.params, limits::PARAMS);
            self.primitives(
                place.field("do"),
                &action.body,
                Scope::Action(&action.params),
            );
            let restricted = std::mem::take(&mut self.restricted);
            self.restricted_actions.insert(&action.name, restricted);
        }
    }

    pub(super) fn primitives(
        &mut self,
        list: Place<'_>,
        primitives: &[Primitive],
        scope: Scope<'_>,
    ) {
        let count = self.at_most(list, primitives.len(), limits::PRIMITIVES);
        for (index, primitive) in primitives.iter().take(count).enumerate() {
            let item = list.index(index);
            let name = primitive.name();
            let place = item.field(name);
            if primitive.is_ingress_only() {
                self.only_in(place, Control::Ingress, &format!("`{name}`"));
            }
            self.primitive(place, primitive, scope);
        }
    }

    fn primitive(&mut self, place: Place<'_>, primitive: &Primitive, scope: Scope<'_>) {
        let number = |checker: &mut Self, field: &str, operand: &Operand, bits: u16| {
            checker.operand(place.field(field), operand, scope, bits);
        };
        match primitive {
            Primitive::Set { field, to } => self.assignment(place, field, ("to", to), scope),
            Primitive::Add { field, value } | Primitive::Subtract { field, value } => {
                self.assignment(place, field, ("value", value), scope);
            }
            Primitive::PushVlan { vid, pcp, tpid } => {
                number(self, "vid", vid, 12);
                number(self, "pcp", pcp, 3);
                if let Some(tpid) = tpid {
                    number(self, "tpid", tpid, 16);
                }
            }
            Primitive::PopVlan {} | Primitive::Nat {} => {}
            Primitive::PushMpls { label, tc, ttl } => {
                number(self, "label", label, 20);
                number(self, "tc", tc, 3);
                number(self, "ttl", ttl, 8);
            }
            Primitive::PopMpls { ether_type } => number(self, "ether_type", ether_type, 16),
            Primitive::Output { port } | Primitive::Mirror { port } => {
                self.port(place.field("port"), port, scope);
            }
            Primitive::Multicast { group } => number(self, "group", group, 16),
            Primitive::Resubmit { keep } | Primitive::Recirculate { keep } => {
                self.kept(place.field("keep"), keep);
            }
            Primitive::Drop { reason } => self.drop_reason(place.field("reason"), reason),
            Primitive::Controller { reason, args } => {
                self.name(place.field("reason"), reason);
                self.numbers(place.field("args"), args, scope, limits::FIELD_BITS);
            }
            Primitive::Meter {
                meter,
                index,
                reason,
            } => {
                if let Some(reason) = reason {
                    self.drop_reason(place.field("reason"), reason);
                }
                let found = array(&self.own.meters, meter);
                self.array_index((place, "meter", meter), found, index, scope);
            }
            Primitive::Count { counter, index } => {
                let found = array(&self.own.counters, counter);
                self.array_index((place, "counter", counter), found, index, scope);
            }
            Primitive::Track { zone } => number(self, "zone", zone, 16),
            Primitive::Commit(commit) => self.commit(place, commit, scope),
            Primitive::Learn {
                table,
                domain,
                address,
            } => {
                self.learning_table(place.field("table"), table);
                number(self, "domain", domain, limits::FIELD_BITS);
                number(self, "address", address, limits::FIELD_BITS);
            }
            Primitive::Select { .. } => self.select(place, primitive, scope),
            Primitive::Encapsulate { headers } => {
                self.encapsulate(place.field("headers"), headers, scope);
            }
            Primitive::Decapsulate { to } => self.header(place.field("to"), to),
        }
    }

    fn assignment(
        &mut self,
        place: Place<'_>,
        field: &str,
        (name, value): (&str, &Operand),
        scope: Scope<'_>,
    ) {
        let bits = self
            .written(place.field("field"), field)
            .map_or(limits::FIELD_BITS, |field| field.bits);
        self.operand(place.field(name), value, scope, bits);
    }

    fn port(&mut self, place: Place<'_>, port: &Operand, scope: Scope<'_>) {
        match port {
            Operand::Constant(number) if *number >= PortId::LIMIT as u128 => self.error(
                place,
                format!("{number} is no port"),
                format!("use at most {}", PortId::LIMIT - 1),
            ),
            port => self.operand(place, port, scope, 16),
        }
    }

    fn numbers(&mut self, list: Place<'_>, numbers: &[Operand], scope: Scope<'_>, bits: u16) {
        let count = self.at_most(list, numbers.len(), limits::NUMBERS);
        for (index, operand) in numbers.iter().take(count).enumerate() {
            self.operand(list.index(index), operand, scope, bits);
        }
    }

    fn kept(&mut self, list: Place<'_>, keep: &[String]) {
        let count = self.at_most(list, keep.len(), limits::METADATA);
        for (index, name) in keep.iter().take(count).enumerate() {
            let place = list.index(index);
            let found = self.find_field(place, name);
            if found.is_some_and(|field| field.source != FieldSource::Metadata) {
                self.error(
                    place,
                    format!("`{name}` is no metadata"),
                    "name metadata as `meta.name`; the rest is found anew",
                );
            }
        }
    }

    fn drop_reason(&mut self, place: Place<'_>, reason: &str) {
        if DropReason::by_name(reason).is_none() {
            let known = DropReason::ALL.iter().map(|reason| reason.name());
            let mut remedy = self.suggest(reason, known);
            if !remedy.starts_with("did") {
                remedy = "use one of those in the documentation of programs".to_owned();
            }
            self.error(place, format!("there is no drop reason `{reason}`"), remedy);
        }
    }

    fn array_index(
        &mut self,
        (place, kind, name): (Place<'_>, &str, &str),
        found: Option<&ArrayDecl>,
        index: &Operand,
        scope: Scope<'_>,
    ) {
        let Some(array) = found else {
            let own = self.own;
            let arrays = if kind == "meter" {
                &own.meters
            } else {
                &own.counters
            };
            let known = arrays.iter().map(|array| array.name.as_str());
            self.error(
                place.field(kind),
                format!("there is no {kind} array `{name}`"),
                self.suggest(name, known),
            );
            self.operand(place.field("index"), index, scope, 32);
            return;
        };
        match index {
            Operand::Constant(number) if *number >= u128::from(array.size) => self.error(
                place.field("index"),
                format!("{number} is beyond the array's end"),
                format!("use at most {}", array.size.saturating_sub(1)),
            ),
            index => self.operand(place.field("index"), index, scope, 32),
        }
    }

    pub(super) fn learning_table(&mut self, place: Place<'_>, name: &str) {
        let own = self.own;
        if !own.learning.iter().any(|table| table.name == name) {
            let known = own.learning.iter().map(|table| table.name.as_str());
            self.error(
                place,
                format!("there is no learning table `{name}`"),
                self.suggest(name, known),
            );
        }
    }

    fn commit(&mut self, place: Place<'_>, commit: &Commit, scope: Scope<'_>) {
        if let Some(mark) = &commit.mark {
            self.operand(place.field("mark"), mark, scope, 32);
        }
        self.numbers(place.field("data"), &commit.data, scope, 32);
        if let Some(source) = &commit.source {
            let place = place.field("source");
            self.operand(place.field("low"), &source.low, scope, 128);
            self.operand(place.field("high"), &source.high, scope, 128);
            self.operand(place.field("low_port"), &source.low_port, scope, 16);
            self.operand(place.field("high_port"), &source.high_port, scope, 16);
            let ordered = [
                ("high", &source.low, &source.high),
                ("high_port", &source.low_port, &source.high_port),
            ];
            for (name, low, high) in ordered {
                if let (Operand::Constant(low), Operand::Constant(high)) = (low, high)
                    && low > high
                {
                    self.error(
                        place.field(name),
                        format!("{high} is less than the lowest, {low}"),
                        "exchange the two",
                    );
                }
            }
        }
        if let Some(destination) = &commit.destination {
            let place = place.field("destination");
            self.operand(place.field("address"), &destination.address, scope, 128);
            self.operand(place.field("port"), &destination.port, scope, 16);
        }
    }

    fn select(&mut self, place: Place<'_>, primitive: &Primitive, scope: Scope<'_>) {
        let Primitive::Select {
            selector,
            group,
            hash,
            into,
        } = primitive
        else {
            return;
        };
        let own = self.own;
        self.operand(place.field("group"), group, scope, 32);
        let hashed = place.field("hash");
        if hash.is_empty() {
            self.error(hashed, "nothing is hashed", "name a field");
        }
        let count = self.at_most(hashed, hash.len(), limits::HASHED_FIELDS);
        for (index, name) in hash.iter().take(count).enumerate() {
            self.read(hashed.index(index), name, scope);
        }
        let targets = place.field("into");
        let count = self.at_most(targets, into.len(), limits::MEMBER_FIELDS);
        for (index, name) in into.iter().take(count).enumerate() {
            self.written(targets.index(index), name);
        }
        let Some(found) = own.selectors.iter().find(|found| found.name == *selector) else {
            let known = own.selectors.iter().map(|found| found.name.as_str());
            self.error(
                place.field("selector"),
                format!("there is no selector `{selector}`"),
                self.suggest(selector, known),
            );
            return;
        };
        if found.member.len() != into.len() {
            self.error(
                targets,
                format!(
                    "{} fields for a member that is made of {}",
                    into.len(),
                    found.member.len()
                ),
                "name one for each",
            );
        }
    }

    fn encapsulate(&mut self, list: Place<'_>, headers: &[NewHeader], scope: Scope<'_>) {
        if headers.is_empty() {
            self.error(list, "no header to put before the frame", "name one");
        }
        let count = self.at_most(list, headers.len(), limits::NEW_HEADERS);
        let mut seen = BTreeSet::new();
        let mut bytes = 0;
        let mut before: Option<&str> = None;
        for (index, new) in headers.iter().take(count).enumerate() {
            let place = list.index(index);
            let header_place = place.field("header");
            self.header(header_place, &new.header);
            let Some(header_type) = self.headers.get(new.header.as_str()).copied().flatten() else {
                continue;
            };
            if !seen.insert(&new.header) {
                self.error(
                    header_place,
                    format!("`{}` stands there twice", new.header),
                    "declare a second header of its type",
                );
            }
            let kind = header_type.name.as_str();
            let (fits, remedy) = match (kind, before) {
                ("ethernet", None) => (true, ""),
                (_, None) => (false, "begin with a header of type `ethernet`"),
                ("udp", Some(before)) => (
                    matches!(before, "ipv4" | "ipv6"),
                    "put a header of type `ipv4` or `ipv6` before it",
                ),
                ("tcp", Some(_)) => (false, "use `udp`; a stream has state that no action keeps"),
                _ => (true, ""),
            };
            if !fits {
                self.error(
                    header_place,
                    format!("a header of type `{kind}` has no place here"),
                    remedy,
                );
            }
            before = Some(kind);
            bytes += header_type
                .fields
                .iter()
                .map(|field| usize::from(field.bits))
                .sum::<usize>()
                / 8;
            let fields = place.field("fields");
            for (name, value) in &new.fields {
                let place = fields.field(name);
                let declared = header_type.fields.iter().find(|field| field.name == *name);
                match declared {
                    Some(field) => self.operand(place, value, scope, field.bits),
                    None => {
                        let known = header_type.fields.iter().map(|field| field.name.as_str());
                        self.error(
                            place,
                            format!("header type `{kind}` has no field `{name}`"),
                            self.suggest(name, known),
                        );
                    }
                }
            }
        }
        if bytes > MAX_GROWTH_BYTES {
            self.error(
                list,
                format!("the headers have {bytes} bytes together"),
                format!("use at most {MAX_GROWTH_BYTES}"),
            );
        }
    }
}

fn array<'a>(arrays: &'a [ArrayDecl], name: &str) -> Option<&'a ArrayDecl> {
    arrays.iter().find(|array| array.name == name)
}
