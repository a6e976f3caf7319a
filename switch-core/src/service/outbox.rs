//! Where services put what is to be done, and what they ask before they answer: the budgets of the port.

use std::collections::HashMap;

use super::action::ServiceAction;
use super::config::ServiceLimits;
use super::drop::ServiceDrop;
use super::stats::ServiceStats;
use crate::port::PortId;
use crate::rate_limit::{RateLimit, TokenBucket};
use crate::time::Millis;

/// The token buckets of one port.
#[derive(Debug)]
struct PortBudget {
    answers: TokenBucket,
    errors: TokenBucket,
}

/// The token buckets of all ports; at most [`PortId::LIMIT`].
#[derive(Debug, Default)]
pub(super) struct Budgets {
    by_port: HashMap<PortId, PortBudget>,
}

impl Budgets {
    pub(super) fn forget(&mut self, port: PortId) {
        self.by_port.remove(&port);
    }

    pub(super) fn clear(&mut self) {
        self.by_port.clear();
    }
}

/// The actions of one call, and what the services share while they make them.
pub(super) struct Outbox<'a> {
    pub now: Millis,
    pub limits: &'a ServiceLimits,
    pub stats: &'a mut ServiceStats,
    pub budgets: &'a mut Budgets,
    pub actions: &'a mut Vec<ServiceAction>,
}

impl Outbox<'_> {
    pub(super) fn send(&mut self, port: PortId, frame: Vec<u8>) {
        self.actions.push(ServiceAction::Send { port, frame });
    }

    pub(super) fn flood(&mut self, domain: u16, frame: Vec<u8>) {
        self.actions.push(ServiceAction::Flood {
            domain,
            except: None,
            frame,
        });
    }

    pub(super) fn drop(&mut self, port: PortId, reason: ServiceDrop) {
        self.stats.count_drop(reason);
        self.actions.push(ServiceAction::Drop { port, reason });
    }

    /// Takes from what the port may have answered.
    pub(super) fn take_answer(&mut self, port: PortId) -> Result<(), ServiceDrop> {
        let now = self.now;
        taken(self.budget(port).answers.take(now))
    }

    /// Takes from the ICMP errors that the port may cause.
    pub(super) fn take_error(&mut self, port: PortId) -> Result<(), ServiceDrop> {
        let now = self.now;
        taken(self.budget(port).errors.take(now))
    }

    fn budget(&mut self, port: PortId) -> &mut PortBudget {
        let (limits, now) = (self.limits, self.now);
        self.budgets.by_port.entry(port).or_insert_with(|| {
            let bucket =
                |per_second, burst| TokenBucket::full(RateLimit { per_second, burst }, now);
            PortBudget {
                answers: bucket(limits.answers_per_second, limits.answers_burst),
                errors: bucket(limits.icmp_errors_per_second, limits.icmp_errors_burst),
            }
        })
    }
}

fn taken(token: bool) -> Result<(), ServiceDrop> {
    if token {
        Ok(())
    } else {
        Err(ServiceDrop::RateLimited)
    }
}
