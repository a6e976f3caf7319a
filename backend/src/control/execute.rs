//! Carries a plan out: the one place where control has effects.
//!
//! Called on the control thread. Additions that fail are taken back, with every addition before them in the same plan, in reverse order, so that
//! nothing is left. A removal only ever goes forward: once a port has begun to go, finishing is what leaves nothing behind.
use super::PortId;
use super::engine::{Engine, StepError};
use super::plan::{Change, Step};
use super::port_table::PortTable;
use crate::config::PortName;

/// The step that failed, after everything was taken back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("port {port}: `{}`: {error}", .error.field)]
pub struct ExecuteError {
    /// The port whose step it was.
    pub port: PortName,
    /// Why.
    pub error: StepError,
}

/// Carries out `changes` in order and records each in `table` once it is complete.
pub fn execute(
    engine: &mut dyn Engine,
    table: &mut PortTable,
    changes: &[Change],
) -> Result<(), ExecuteError> {
    let mut added: Vec<(PortId, [Step; 2])> = vec![];
    for change in changes {
        match change {
            Change::Remove { id, .. } => {
                force(engine, &change.steps());
                table.remove(*id);
            }
            Change::Add { id, port } => {
                if let Err(error) = add(engine, &change.steps()) {
                    for (id, steps) in added.into_iter().rev() {
                        undo(engine, &steps);
                        table.remove(id);
                    }
                    return Err(ExecuteError {
                        port: port.name.clone(),
                        error,
                    });
                }
                table.insert(*id, port.clone());
                added.push((*id, change.steps()));
            }
        }
    }
    Ok(())
}

/// All steps or none.
fn add(engine: &mut dyn Engine, steps: &[Step]) -> Result<(), StepError> {
    for (done, step) in steps.iter().enumerate() {
        if let Err(error) = engine.apply(step) {
            undo(engine, steps.get(..done).unwrap_or_default());
            return Err(error);
        }
    }
    Ok(())
}

fn undo(engine: &mut dyn Engine, done: &[Step]) {
    let inverses: Vec<Step> = done.iter().rev().map(Step::inverse).collect();
    force(engine, &inverses);
}

/// Every step, whatever fails on the way: the rest still has to go.
fn force(engine: &mut dyn Engine, steps: &[Step]) {
    for step in steps {
        if let Err(error) = engine.apply(step) {
            log::warn!("while removing a port: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PortConfig;
    use crate::config::flags::parse_port;
    use crate::control::engine::PortHealth;
    use crate::control::plan::plan;
    use crate::datapath::{
        Destination, DroppedFrame, MoveError, PortCounters, SourceStats, WorkerStats,
    };
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};
    use switch_core::{MacEntry, Millis};

    /// Keeps what a real engine would keep, and fails the additions it is told to.
    #[derive(Default)]
    struct Recorder {
        steps: Vec<Step>,
        joined: BTreeSet<PortId>,
        open: BTreeSet<PortId>,
        /// Joins and opens still to come that succeed; then all fail.
        additions_left: Option<usize>,
    }

    impl Recorder {
        fn failing_after(additions: usize) -> Self {
            Self {
                additions_left: Some(additions),
                ..Self::default()
            }
        }

        fn admit(&mut self) -> Result<(), StepError> {
            match &mut self.additions_left {
                Some(0) => Err(StepError {
                    field: "socket",
                    reason: "refused".into(),
                    remedy: "try again".into(),
                }),
                Some(left) => {
                    *left -= 1;
                    Ok(())
                }
                None => Ok(()),
            }
        }
    }

    impl Engine for Recorder {
        fn apply(&mut self, step: &Step) -> Result<(), StepError> {
            self.steps.push(step.clone());
            match step {
                Step::Join { id, .. } => {
                    self.admit()?;
                    assert!(self.joined.insert(*id), "{id} joined twice");
                }
                Step::Open { id, .. } => {
                    self.admit()?;
                    assert!(self.joined.contains(id), "{id} opened before it joined");
                    assert!(self.open.insert(*id), "{id} opened twice");
                }
                Step::Close { id, .. } => assert!(self.open.remove(id), "{id} closed unopened"),
                Step::Leave { id, .. } => {
                    assert!(!self.open.contains(id), "{id} left while open");
                    assert!(self.joined.remove(id), "{id} left unjoined");
                }
            }
            Ok(())
        }
        fn health(&self, _: PortId) -> Option<PortHealth> {
            None
        }
        fn counters(&self, _: PortId) -> PortCounters {
            PortCounters::default()
        }
        fn worker_stats(&self) -> Vec<WorkerStats> {
            vec![]
        }
        fn sources(&self) -> Vec<SourceStats> {
            vec![]
        }
        fn move_sources(
            &mut self,
            _: PortId,
            _: Option<u16>,
            _: Destination,
        ) -> Result<Vec<SourceStats>, MoveError> {
            Err(MoveError::NoSuchPort)
        }
        fn last_drops(&self, _: PortId) -> (Millis, Vec<DroppedFrame>) {
            (Millis(0), vec![])
        }
        fn fdb(&self) -> Vec<MacEntry> {
            vec![]
        }
        fn tick(&mut self) {}
        fn stop(&mut self) {}
    }

    fn vm(number: u8) -> PortConfig {
        let text = format!("name=vm{number},type=vhost-user,socket=/run/vm{number}.sock");
        PortConfig::from_fields(parse_port(&text).unwrap()).unwrap()
    }

    fn ids(table: &PortTable) -> BTreeSet<PortId> {
        table.iter().map(|(id, _)| id).collect()
    }

    #[test]
    fn a_failure_at_any_step_takes_back_every_step_before_it() {
        let desired = [vm(1), vm(2), vm(3)];
        let changes = plan(&PortTable::default(), &desired, &BTreeMap::new()).unwrap();
        let steps: Vec<Step> = changes.iter().flat_map(Change::steps).collect();
        for (failing, step) in steps.iter().enumerate() {
            let (mut engine, mut table) = (Recorder::failing_after(failing), PortTable::default());
            let error = execute(&mut engine, &mut table, &changes).unwrap_err();
            assert_eq!(error.port, desired[failing / 2].name);
            assert!(table.is_empty() && engine.joined.is_empty() && engine.open.is_empty());
            let done = steps[..failing].to_vec();
            let undone = done.iter().rev().map(Step::inverse);
            let expected: Vec<Step> = done
                .iter()
                .cloned()
                .chain([step.clone()])
                .chain(undone)
                .collect();
            assert_eq!(engine.steps, expected, "failing at step {failing}");
        }
    }

    #[test]
    fn a_failed_addition_leaves_the_ports_before_it_alone() {
        let (mut engine, mut table) = (Recorder::default(), PortTable::default());
        let changes = plan(&table, &[vm(1)], &BTreeMap::new()).unwrap();
        execute(&mut engine, &mut table, &changes).unwrap();
        engine.additions_left = Some(1);
        let before = engine.steps.len();
        let changes = plan(&table, &[vm(1), vm(2)], &BTreeMap::new()).unwrap();
        execute(&mut engine, &mut table, &changes).unwrap_err();
        assert_eq!(
            table
                .iter()
                .map(|(_, port)| port.clone())
                .collect::<Vec<_>>(),
            [vm(1)]
        );
        let touched = |step: &Step| matches!(step, Step::Open { port, .. } | Step::Close { port, .. } if *port == vm(1));
        assert!(!engine.steps[before..].iter().any(touched));
    }

    proptest! {
        #[test]
        fn table_and_world_agree_after_any_plans_and_failures(
            rounds in prop::collection::vec((prop::collection::btree_set(0u8..6, 0..6), prop::option::of(0usize..8)), 1..8)
        ) {
            let (mut engine, mut table) = (Recorder::default(), PortTable::default());
            for (wanted, additions_left) in rounds {
                let desired: Vec<_> = wanted.into_iter().map(vm).collect();
                engine.additions_left = additions_left;
                let changes = plan(&table, &desired, &BTreeMap::new()).unwrap();
                let carried_out = execute(&mut engine, &mut table, &changes).is_ok();
                prop_assert_eq!(&engine.joined, &ids(&table));
                prop_assert_eq!(&engine.open, &ids(&table));
                let present: Vec<_> = table.iter().map(|(_, port)| port.clone()).collect();
                prop_assert!(present.iter().all(|port| desired.contains(port)));
                prop_assert!(!carried_out || present.len() == desired.len());
            }
        }
    }
}
