//! The neighbours, their deadlines, and the shares of the ports in both: one place keeps the three in step.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;

use super::VnetHeader;
use super::shares::Shares;
use crate::mac::MacAddress;
use crate::port::PortId;
use crate::service::action::{PacketIn, PacketMetadata};
use crate::service::build::Tags;
use crate::service::config::ServiceLimits;
use crate::service::drop::ServiceDrop;
use crate::time::Millis;

/// A neighbour's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::service) struct NeighborKey {
    pub interface: u32,
    pub address: IpAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Asked for; frames may wait.
    Incomplete,
    /// In the engine's table.
    Reachable,
    /// In the engine's table, and being asked whether it is still there.
    Probing,
    /// Did not answer.
    Failed,
}

/// A frame that waits.
#[derive(Debug)]
pub(in crate::service) struct Waiting {
    pub metadata: PacketMetadata,
    pub port: PortId,
    pub vnet_header: VnetHeader,
    pub frame: Vec<u8>,
}

/// A neighbour.
#[derive(Debug)]
pub(in crate::service) struct Neighbor {
    pub(super) state: State,
    /// Zero until it is known.
    pub(super) mac: MacAddress,
    /// Where it is; until it is known, the port whose frame it is sought for.
    pub(super) port: PortId,
    pub(super) tags: Tags,
    pub(super) requests: u8,
    pub(super) deadline: Millis,
    pub(super) changed_at: Millis,
    pub(super) queue: VecDeque<Waiting>,
    /// The second in which frames came back although the neighbour is known, and how many.
    repeats: (Millis, u32),
}

impl Neighbor {
    pub(super) fn sought(port: PortId, deadline: Millis) -> Self {
        Self {
            state: State::Incomplete,
            mac: MacAddress::default(),
            port,
            tags: Tags::default(),
            requests: 1,
            deadline,
            changed_at: Millis(0),
            queue: VecDeque::new(),
            repeats: (Millis(0), 0),
        }
    }

    /// Whether the engine's table has it.
    pub(super) fn is_known(&self) -> bool {
        matches!(self.state, State::Reachable | State::Probing)
    }

    /// Where it is; until it is known, the port whose frame it is sought for.
    pub(in crate::service) fn port(&self) -> PortId {
        self.port
    }

    /// Counts a frame that came back although the neighbour is known.
    pub(super) fn may_repeat(&mut self, now: Millis, most: u32) -> bool {
        if now.since(self.repeats.0) >= Millis(1000) {
            self.repeats = (now, 0);
        }
        self.repeats.1 = self.repeats.1.saturating_add(1);
        self.repeats.1 <= most
    }
}

/// A neighbour, as shown to an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighborInfo {
    /// The router interface whose neighbour it is.
    pub interface: u32,
    /// Its address.
    pub address: IpAddr,
    /// How much is known.
    pub state: NeighborState,
    /// Frames that wait for it.
    pub queued_frames: usize,
}

/// How much is known of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighborState {
    /// It was asked for.
    Sought,
    /// It is there, behind this port.
    Known(MacAddress, PortId),
    /// It does not answer.
    Failed,
}

/// All neighbours.
#[derive(Debug, Default)]
pub(in crate::service) struct Neighbors {
    table: HashMap<NeighborKey, Neighbor>,
    deadlines: BTreeSet<(Millis, NeighborKey)>,
    shares: Shares,
    queued_bytes: usize,
}

impl Neighbors {
    pub(super) fn get(&self, key: &NeighborKey) -> Option<&Neighbor> {
        self.table.get(key)
    }

    pub(super) fn get_mut(&mut self, key: &NeighborKey) -> Option<&mut Neighbor> {
        self.table.get_mut(key)
    }

    /// Bytes of frames that wait.
    pub(in crate::service) fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// All neighbours, for an operator.
    pub(in crate::service) fn infos(&self) -> impl Iterator<Item = NeighborInfo> {
        self.table.iter().map(|(key, neighbor)| NeighborInfo {
            interface: key.interface,
            address: key.address,
            state: match neighbor.state {
                State::Incomplete => NeighborState::Sought,
                State::Reachable | State::Probing => {
                    NeighborState::Known(neighbor.mac, neighbor.port)
                }
                State::Failed => NeighborState::Failed,
            },
            queued_frames: neighbor.queue.len(),
        })
    }

    /// When the next neighbour has something to do.
    pub(in crate::service) fn next_deadline(&self) -> Option<Millis> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }

    /// The neighbour that has something to do, if its time came.
    pub(super) fn due(&self, now: Millis) -> Option<NeighborKey> {
        self.deadlines
            .first()
            .filter(|&&(deadline, _)| deadline <= now)
            .map(|&(_, key)| key)
    }

    pub(super) fn keys_where(
        &self,
        wanted: impl Fn(&NeighborKey, &Neighbor) -> bool,
    ) -> Vec<NeighborKey> {
        let mut keys: Vec<_> = self
            .table
            .iter()
            .filter(|(key, neighbor)| wanted(key, neighbor))
            .map(|(&key, _)| key)
            .collect();
        keys.sort_unstable();
        keys
    }

    /// Puts in a neighbour that is sought.
    pub(super) fn insert_sought(
        &mut self,
        key: NeighborKey,
        neighbor: Neighbor,
        limits: &ServiceLimits,
    ) -> Result<(), ServiceDrop> {
        let is_full = self.table.len() >= limits.neighbors as usize
            || self.shares.of(neighbor.port).sought >= limits.resolutions_per_port;
        if is_full {
            return Err(ServiceDrop::NeighborLimit);
        }
        self.shares.change(neighbor.port, |share| share.sought += 1);
        self.deadlines.insert((neighbor.deadline, key));
        self.table.insert(key, neighbor);
        Ok(())
    }

    /// Puts a frame into the neighbour's queue.
    pub(super) fn wait(
        &mut self,
        key: &NeighborKey,
        packet: &PacketIn<'_>,
        limits: &ServiceLimits,
    ) -> Result<(), ServiceDrop> {
        let bytes = self.queued_bytes + packet.frame.len();
        let port_is_full = self.shares.of(packet.port).frames >= limits.queued_frames_per_port;
        let Some(neighbor) = self.table.get_mut(key) else {
            return Err(ServiceDrop::NeighborQueueFull);
        };
        let queue_is_full = neighbor.queue.len() >= limits.queued_frames_per_neighbor as usize;
        if port_is_full || queue_is_full || bytes > limits.queued_bytes as usize {
            return Err(ServiceDrop::NeighborQueueFull);
        }
        neighbor.queue.push_back(Waiting {
            metadata: packet.metadata,
            port: packet.port,
            vnet_header: packet.vnet_header,
            frame: packet.frame.to_vec(),
        });
        self.queued_bytes = bytes;
        self.shares.change(packet.port, |share| share.frames += 1);
        Ok(())
    }

    /// Empties the neighbour's queue.
    pub(super) fn take_queue(&mut self, key: &NeighborKey) -> VecDeque<Waiting> {
        let queue = match self.table.get_mut(key) {
            Some(neighbor) => std::mem::take(&mut neighbor.queue),
            None => VecDeque::new(),
        };
        self.release(&queue);
        queue
    }

    /// Takes the frames of a port that is gone out of all queues.
    pub(in crate::service) fn forget_frames_of(&mut self, port: PortId) {
        if self.shares.of(port).frames == 0 {
            return;
        }
        let mut gone = VecDeque::new();
        for neighbor in self.table.values_mut() {
            let (of_port, others) = std::mem::take(&mut neighbor.queue)
                .into_iter()
                .partition::<VecDeque<_>, _>(|waiting| waiting.port == port);
            neighbor.queue = others;
            gone.extend(of_port);
        }
        self.release(&gone);
    }

    fn release(&mut self, queue: &VecDeque<Waiting>) {
        for waiting in queue {
            self.queued_bytes = self.queued_bytes.saturating_sub(waiting.frame.len());
            self.shares.change(waiting.port, |share| {
                share.frames = share.frames.saturating_sub(1);
            });
        }
    }

    /// Makes a neighbour known at a place, from now until then, new or not. A queue that it has stays.
    pub(super) fn set_reachable(
        &mut self,
        key: NeighborKey,
        (mac, port, tags): (MacAddress, PortId, Tags),
        (now, until): (Millis, Millis),
        limits: &ServiceLimits,
    ) -> Result<(), ServiceDrop> {
        let old = self.table.get(&key);
        let was_there = old.is_some_and(|old| old.is_known() && old.port == port);
        let has_room = self.shares.of(port).known < limits.neighbors_per_port
            && (old.is_some() || self.table.len() < limits.neighbors as usize);
        if !was_there && !has_room {
            return Err(ServiceDrop::NeighborLimit);
        }
        if let Some(old) = old {
            let (old_port, was_known) = (old.port, old.is_known());
            self.deadlines.remove(&(old.deadline, key));
            self.leave_share(old_port, was_known);
        }
        self.shares.change(port, |share| share.known += 1);
        let neighbor = self
            .table
            .entry(key)
            .or_insert_with(|| Neighbor::sought(port, until));
        if neighbor.mac != mac {
            neighbor.changed_at = now;
        }
        neighbor.state = State::Reachable;
        (neighbor.mac, neighbor.port, neighbor.tags) = (mac, port, tags);
        (neighbor.requests, neighbor.deadline) = (0, until);
        self.deadlines.insert((until, key));
        Ok(())
    }

    /// Notes that a neighbour was asked so many times, or given up.
    pub(super) fn set_asked(
        &mut self,
        key: &NeighborKey,
        (state, requests): (State, u8),
        deadline: Millis,
    ) {
        if let Some(neighbor) = self.table.get_mut(key) {
            self.deadlines.remove(&(neighbor.deadline, *key));
            (neighbor.state, neighbor.requests) = (state, requests);
            neighbor.deadline = deadline;
            self.deadlines.insert((deadline, *key));
        }
    }

    /// Takes a neighbour out, with the frames that wait for it.
    pub(super) fn remove(&mut self, key: &NeighborKey) -> Option<Neighbor> {
        let neighbor = self.table.remove(key)?;
        self.deadlines.remove(&(neighbor.deadline, *key));
        self.leave_share(neighbor.port, neighbor.is_known());
        self.release(&neighbor.queue);
        Some(neighbor)
    }

    fn leave_share(&mut self, port: PortId, was_known: bool) {
        self.shares.change(port, |share| {
            let count = if was_known {
                &mut share.known
            } else {
                &mut share.sought
            };
            *count = count.saturating_sub(1);
        });
    }
}
