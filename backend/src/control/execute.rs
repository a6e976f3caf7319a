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
