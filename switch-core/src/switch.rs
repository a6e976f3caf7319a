//! The switch: what workers and the control thread share.
//!
//! The control thread adds and removes ports, expires, flushes and lists; workers reach it through their
//! [`Pipeline`](crate::Pipeline). Two locks, never held together: the MAC table's, taken on a flow-cache miss, and that of the
//! pointer to the port tables, taken by a worker only when they changed. A third one orders control operations among themselves.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::flow_key::FlowKey;
use crate::mac_table::{Limits, MacEntry, MacMoves, MacStats, MacStore};
use crate::port::PortId;
use crate::port_tables::PortTables;
use crate::program::{FieldSet, Learning, Program, Step};
use crate::rate_limit::RateLimit;
use crate::time::Millis;
use crate::verdict::Verdict;
use crate::vlan::VlanPolicy;

/// The longest a live flow goes without its source being noted as seen.
const REFRESH_INTERVAL: Millis = Millis(1000);

/// The largest MAC table: more stations than there are on any network a switch serves, in at most a gigabyte.
const MAX_MAC_TABLE_CAPACITY: usize = 1 << 24;

/// A switch's bounds.
#[derive(Clone, Debug)]
pub struct SwitchConfig {
    /// How many stations are known at once; at most 16,777,216. The room is taken when the switch is made.
    pub mac_table_capacity: usize,
    /// How many of them one port may have.
    pub mac_limit_per_port: usize,
    /// How long after its last frame a station is forgotten.
    pub mac_ageing: Millis,
    /// How fast a port may make a worker learn stations, new or moved. Frames beyond are forwarded; their source is not learned.
    pub learn_rate: RateLimit,
    /// How fast a port may push other flows out of a worker's flow cache. Frames beyond are forwarded; their verdict is not
    /// remembered.
    pub flow_rate: RateLimit,
}

impl Default for SwitchConfig {
    fn default() -> Self {
        Self {
            mac_table_capacity: 65_536,
            mac_limit_per_port: 16_384,
            mac_ageing: Millis::from_secs(300),
            learn_rate: RateLimit {
                per_second: 4_096,
                burst: 8_192,
            },
            flow_rate: RateLimit {
                per_second: 16_384,
                burst: 16_384,
            },
        }
    }
}

/// Why a port could not be added or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// The id is in use.
    #[error("port {0} is already part of the switch: remove it first, or use a free id")]
    AlreadyAdded(PortId),
    /// There is no such port.
    #[error("port {0} is not part of the switch: add it first")]
    Unknown(PortId),
}

/// Why a frame would go where it would go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Each table that took part, in order.
    pub steps: Vec<Step>,
    /// The fields of the frame that the verdict depends on.
    pub looked_at: FieldSet,
    /// The verdict.
    pub verdict: Verdict,
}

/// A learning switch.
pub struct Switch {
    config: SwitchConfig,
    macs: Arc<MacStore>,
    tables: Mutex<Arc<PortTables>>,
    /// The epoch of `tables`; read by every batch.
    tables_epoch: AtomicU32,
    /// Held by one control operation at a time.
    control: Mutex<()>,
}

impl Switch {
    /// A switch without ports.
    pub fn new(config: SwitchConfig) -> Self {
        // A station that ages out faster than that is noted three times before.
        let refresh = REFRESH_INTERVAL.min(Millis(config.mac_ageing.0 / 3));
        let macs = Arc::new(MacStore::new(Limits {
            capacity: config.mac_table_capacity.min(MAX_MAC_TABLE_CAPACITY),
            per_port: config.mac_limit_per_port,
            ageing: config.mac_ageing,
            refresh,
        }));
        Self {
            config,
            macs,
            tables: Mutex::new(Arc::new(PortTables::empty())),
            tables_epoch: AtomicU32::new(0),
            control: Mutex::new(()),
        }
    }

    /// Adds a port. Workers know it from their next batch on.
    ///
    /// # Errors
    /// [`PortError::AlreadyAdded`].
    pub fn add_port(&self, port: PortId, policy: VlanPolicy) -> Result<(), PortError> {
        let _in_order = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let tables = self.tables();
        if tables.policy(port).is_some() {
            return Err(PortError::AlreadyAdded(port));
        }
        self.macs.lock().attach(port);
        self.publish(&tables, port, Some(policy));
        Ok(())
    }

    /// Removes a port and what was learned on it. A batch under way may still end in verdicts that name it.
    ///
    /// # Errors
    /// [`PortError::Unknown`].
    pub fn remove_port(&self, port: PortId) -> Result<(), PortError> {
        let _in_order = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let tables = self.tables();
        if tables.policy(port).is_none() {
            return Err(PortError::Unknown(port));
        }
        self.publish(&tables, port, None);
        // A worker in a batch under the old tables learns nothing more on the port, so the flush leaves nothing behind.
        self.macs.lock().detach(port);
        self.macs.flush(port);
        Ok(())
    }

    /// Forgets what was learned on a port: its link went down, its guest detached.
    pub fn flush_port(&self, port: PortId) {
        self.macs.flush(port);
    }

    /// Removes stations not seen for the ageing time. They are no longer used even without it; call it every second or so, that
    /// they take no room either.
    pub fn expire(&self, now: Millis) {
        self.macs.expire(now);
    }

    /// The stations known now. Read in pieces between which the table may change.
    pub fn mac_entries(&self, now: Millis) -> Vec<MacEntry> {
        self.macs.entries(now)
    }

    /// The stations that have moved to another port since this was last asked.
    pub fn take_mac_moves(&self) -> MacMoves {
        self.macs.take_moves()
    }

    /// What the MAC table has done so far.
    pub fn mac_stats(&self) -> MacStats {
        self.macs.lock().stats()
    }

    /// What would happen to a frame that came from `in_port` now and starts with `header`, and why. Changes nothing.
    pub fn explain(&self, in_port: PortId, header: &[u8], now: Millis) -> Explanation {
        match FlowKey::parse(in_port, header) {
            Ok(key) => {
                let tables = self.tables();
                let program = Program {
                    ports: &tables,
                    macs: &self.macs,
                    now,
                };
                let mut steps = Vec::new();
                let evaluation = program.evaluate(key, Learning::Preview, &mut steps);
                Explanation {
                    steps,
                    looked_at: evaluation.looked_at,
                    verdict: evaluation.verdict,
                }
            }
            Err(reason) => Explanation {
                steps: Vec::new(),
                looked_at: FieldSet::default(),
                verdict: Verdict::Drop(reason),
            },
        }
    }

    pub(crate) fn config(&self) -> &SwitchConfig {
        &self.config
    }

    pub(crate) fn macs(&self) -> &Arc<MacStore> {
        &self.macs
    }

    /// The current port tables.
    pub(crate) fn tables(&self) -> Arc<PortTables> {
        Arc::clone(&self.tables.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The epoch of the current port tables, or of those just before.
    #[inline]
    pub(crate) fn tables_epoch(&self) -> u32 {
        self.tables_epoch.load(Ordering::Acquire)
    }

    fn publish(&self, tables: &PortTables, port: PortId, policy: Option<VlanPolicy>) {
        let mut policies = tables.policies().to_vec();
        if policies.len() <= port.index() {
            policies.resize(port.index() + 1, None);
        }
        if let Some(slot) = policies.get_mut(port.index()) {
            *slot = policy;
        }
        let epoch = tables.epoch().wrapping_add(1);
        let next = Arc::new(PortTables::build(epoch, policies));
        let previous = std::mem::replace(
            &mut *self.tables.lock().unwrap_or_else(PoisonError::into_inner),
            next,
        );
        self.tables_epoch.store(epoch, Ordering::Release);
        drop(previous);
    }
}
