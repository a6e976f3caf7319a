//! What actions are made of.

use std::sync::Arc;

use super::super::compile::{Field, Prim, PushedHeader};
use super::{
    Again, Args, Destination, Effects, Evaluator, Flow, Metered, Observer, OutCopy, Target,
};
use crate::drop_reason::DropReason;
use crate::mac::MacAddress;
use crate::mac_table::{SourceAction, StationKey};
use crate::port::PortId;
use crate::vlan::BroadcastDomain;

impl<O: Observer> Evaluator<'_, O> {
    pub(super) fn primitives(&mut self, primitives: &[Prim], args: Args<'_>) -> Flow {
        for primitive in primitives {
            let flow = match primitive {
                // Most of them.
                Prim::Set(field, value) => {
                    let value = self.value(*value, args);
                    self.write(*field, value);
                    Flow::On
                }
                other => self.primitive(other, args),
            };
            if O::WATCHES {
                self.observer
                    .done(self.state, primitive, args, self.out.drop);
            }
            if flow != Flow::On {
                return flow;
            }
        }
        Flow::On
    }

    fn primitive(&mut self, primitive: &Prim, args: Args<'_>) -> Flow {
        match primitive {
            Prim::Set(field, value) => {
                let value = self.value(*value, args);
                self.write(*field, value);
            }
            Prim::Add(field, value) => {
                let sum = self.read(*field).wrapping_add(self.value(*value, args));
                self.write(*field, sum);
            }
            Prim::Subtract(field, value) => {
                let rest = self.read(*field).wrapping_sub(self.value(*value, args));
                self.write(*field, rest);
            }
            Prim::PushVlan { vid, pcp, tpid } => {
                let tag = [
                    self.value(*tpid, args),
                    self.value(*pcp, args),
                    self.value(*vid, args),
                ];
                return self.push_vlan(tag);
            }
            Prim::PopVlan => self.pop_vlan(),
            Prim::PushMpls { label, tc, ttl } => {
                let label = [
                    self.value(*label, args),
                    self.value(*tc, args),
                    self.value(*ttl, args),
                ];
                return self.push_mpls(label);
            }
            Prim::PopMpls { ether_type } => {
                let ether_type = self.value(*ether_type, args);
                self.pop_mpls(ether_type);
            }
            Prim::Output(port) => {
                self.destination = Destination::Port(self.value(*port, args) as u16)
            }
            Prim::Multicast(group) => {
                self.destination = Destination::Group(self.value(*group, args) as u16);
            }
            Prim::Mirror(port) => {
                let port = self.value(*port, args) as u16;
                if PortId::new(port).is_some() {
                    self.out.copies.push(OutCopy {
                        target: Target::Port(port),
                        edits: None,
                    });
                }
            }
            Prim::Resubmit(kept) => return self.again(Again::Resubmit, kept),
            Prim::Recirculate(kept) => return self.again(Again::Recirculate, kept),
            Prim::Drop(reason) => return self.end(*reason),
            Prim::Controller { reason, args: told } => {
                let mut numbers = [0; 4];
                for (number, value) in numbers.iter_mut().zip(told) {
                    *number = self.value(*value, args);
                }
                self.out.copies.push(OutCopy {
                    target: Target::Controller {
                        reason: *reason,
                        args: numbers,
                    },
                    edits: None,
                });
            }
            Prim::Meter {
                meter,
                index,
                reason,
            } => {
                let index = self.value(*index, args) as u32;
                return self.meter(*meter, index, *reason);
            }
            Prim::Count { counter, index } => {
                let index = self.value(*index, args) as u32;
                self.out.counts.push((*counter, index));
            }
            Prim::Track(zone) => {
                let zone = self.value(*zone, args) as u16;
                self.track(zone);
            }
            Prim::Commit(spec) => return self.commit(spec, args),
            Prim::Nat => self.translate(),
            Prim::Learn { domain, address } => {
                let (domain, address) = (self.value(*domain, args), self.value(*address, args));
                self.learn(domain, address);
            }
            Prim::Select {
                selector,
                group,
                hash,
                into,
            } => {
                let group = self.value(*group, args) as u32;
                self.select((*selector, group), hash, into);
            }
            Prim::Encapsulate(headers) => return self.encapsulate_all(headers, args),
            Prim::Decapsulate(header) => self.decapsulate(*header),
        }
        Flow::On
    }

    pub(super) fn end(&mut self, reason: DropReason) -> Flow {
        self.out.drop = Some(reason);
        Flow::End
    }

    fn again(&mut self, how: Again, kept: &[u16]) -> Flow {
        self.kept = kept
            .iter()
            .map(|&index| {
                let value = self.packet.meta.get(usize::from(index)).copied();
                (index, value.unwrap_or(0))
            })
            .collect();
        Flow::Again(how)
    }

    fn meter(&mut self, array: u16, index: u32, reason: DropReason) -> Flow {
        if index == 0 {
            return Flow::On;
        }
        // One without a rate lets everything pass; giving it one makes the verdict stale.
        let Some(setting) = self.snapshot.extras.meter(array, index) else {
            return Flow::On;
        };
        let passes = match self.effects {
            Effects::Live(_) => setting.passes(self.frame.frame_bytes, self.frame.now),
            Effects::Preview => true,
        };
        if passes {
            self.out.meters.push(Metered {
                setting: Arc::clone(setting),
                reason,
                from: self.out.copies.len(),
                to: None,
            });
            Flow::On
        } else {
            // What would have happened to a frame within the rate is not known.
            self.remember = false;
            self.end(reason)
        }
    }

    fn select(&mut self, (selector, group): (u16, u32), hash: &[Field], into: &[Field]) {
        let state = self.state;
        let mut hasher = state.selection_hasher();
        for &field in hash {
            let value = self.read(field);
            hasher.write(value);
        }
        let hash = hasher.finish();
        let member = self.snapshot.extras.member(selector, group, hash);
        for (at, &field) in into.iter().enumerate() {
            let value = member
                .and_then(|member| member.get(at))
                .copied()
                .unwrap_or(0);
            self.write(field, value);
        }
    }

    fn encapsulate_all(&mut self, headers: &[PushedHeader], args: Args<'_>) -> Flow {
        let values: Vec<Vec<u128>> = headers
            .iter()
            .map(|header| {
                header
                    .fields
                    .iter()
                    .map(|&(_, value)| self.value(value, args))
                    .collect()
            })
            .collect();
        self.encapsulate(headers, &values)
    }

    /// The port a station is behind.
    pub(super) fn find_station(&mut self, domain: u128, address: u128) -> Option<u16> {
        let (domain, address) = station(domain, address);
        // Nothing is learned under a group address.
        if address.is_multicast() {
            return None;
        }
        let macs = &self.state.macs;
        let table = macs.lock();
        let found = table.lookup(StationKey::new(domain, address), self.frame.now);
        // Read under the lock, so that it belongs to the answer.
        let epoch = macs.epochs().get(found.bucket);
        drop(table);
        self.out.conditions.stations.push(found.bucket);
        self.out.conditions.station_sum = self.out.conditions.station_sum.wrapping_add(epoch);
        let station = found.station?;
        let ages_out = station.last_seen.after(macs.limits().ageing);
        self.out.conditions.valid_until = self.out.conditions.valid_until.min(ages_out);
        Some(station.port.get())
    }

    fn learn(&mut self, domain: u128, address: u128) {
        let (domain, address) = station(domain, address);
        if address.is_multicast() || address.is_zero() {
            return;
        }
        let macs = &self.state.macs;
        let (port, now) = (self.frame.in_port, self.frame.now);
        let mut table = macs.lock();
        let key = StationKey::new(domain, address);
        let seen = match &mut self.effects {
            Effects::Live(budget) => table.observe(key, port, now, || budget.take(now)),
            Effects::Preview => table.preview(key, port, now),
        };
        let epoch = macs.epochs().get(seen.bucket);
        drop(table);
        self.out.conditions.stations.push(seen.bucket);
        self.out.conditions.station_sum = self.out.conditions.station_sum.wrapping_add(epoch);
        let refresh_due = seen.last_seen.after(macs.limits().refresh);
        self.out.conditions.valid_until = self.out.conditions.valid_until.min(refresh_due);
        if seen.action == SourceAction::Withheld {
            self.remember = false;
        }
        if O::WATCHES {
            self.observer.learned(address, seen.action);
        }
    }
}

fn station(domain: u128, address: u128) -> (BroadcastDomain, MacAddress) {
    (
        BroadcastDomain::any(domain as u16),
        MacAddress::from_u64(address as u64),
    )
}
