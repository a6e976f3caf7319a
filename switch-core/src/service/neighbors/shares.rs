//! What each port has of the neighbour table and its queues.

use std::collections::HashMap;

use crate::port::PortId;

/// The share of one port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    /// Neighbours known behind the port.
    pub known: u32,
    /// Neighbours sought, or given up, for frames of the port.
    pub sought: u32,
    /// Frames of the port that wait.
    pub frames: u32,
}

/// The shares of all ports that have one.
#[derive(Debug, Default)]
pub(super) struct Shares {
    by_port: HashMap<PortId, Share>,
}

impl Shares {
    pub(super) fn of(&self, port: PortId) -> Share {
        self.by_port.get(&port).copied().unwrap_or_default()
    }

    /// Changes a port's share. One that is empty takes no memory.
    pub(super) fn change(&mut self, port: PortId, change: impl FnOnce(&mut Share)) {
        let mut share = self.of(port);
        change(&mut share);
        if share == Share::default() {
            self.by_port.remove(&port);
        } else {
            self.by_port.insert(port, share);
        }
    }
}
