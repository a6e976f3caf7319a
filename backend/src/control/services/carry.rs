//! Actions of the services, carried out in their order.
use super::counts::{Counts, count};
use super::floods::Floods;
use super::neighbors::{Known, NeighborName, NeighborTable};
use crate::datapath::{Datapath, PacketIn, SendError};
use std::collections::VecDeque;
use std::sync::Arc;
use switch_core::engine::runtime::Engine;
use switch_core::service::{ServiceAction, VNET_HEADER_BYTES};
use switch_core::{DropReason, PortId};

/// Most frames that wait for a worker to have room, and their bytes. As many as may wait for neighbours in all.
const WAITING: (usize, usize) = (8192, 16 << 20);

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Out of its port.
    Send,
    /// Through the program, as if it came from its port.
    Inject,
}

#[derive(Debug)]
struct Outgoing {
    way: Way,
    port: PortId,
    vnet_header: [u8; VNET_HEADER_BYTES],
    frame: Vec<u8>,
}

/// Carries actions out.
pub struct Carrier {
    datapath: Arc<Datapath>,
    neighbors: NeighborTable,
    floods: Floods,
    /// Frames that workers had no room for, oldest first; those behind them wait too, so that order is kept.
    waiting: VecDeque<Outgoing>,
    waiting_bytes: usize,
}

impl Carrier {
    /// Over a data path that runs the engine's program.
    pub fn new(datapath: Arc<Datapath>, engine: &Arc<Engine>) -> Self {
        Self {
            datapath,
            neighbors: NeighborTable::new(Arc::clone(engine)),
            floods: Floods::new(Arc::clone(engine)),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
        }
    }

    /// Whether frames wait for a worker.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether the program has a table for neighbours.
    pub fn has_neighbors(&self) -> bool {
        self.neighbors.is_there()
    }

    /// Carries out what a call of the services said. `about` is the frame that the call was about.
    pub fn carry(
        &mut self,
        actions: Vec<ServiceAction>,
        about: Option<&PacketIn>,
        counts: &Counts,
    ) {
        let mut gone: Vec<NeighborName> = Vec::new();
        for action in actions {
            if !matches!(action, ServiceAction::ForgetNeighbor { .. }) {
                self.neighbors.forget(&std::mem::take(&mut gone), counts);
            }
            match action {
                ServiceAction::Send { port, frame } => {
                    self.deliver(plain(port, frame), counts);
                }
                ServiceAction::Reinject {
                    port,
                    vnet_header,
                    frame,
                } => {
                    let outgoing = Outgoing {
                        way: Way::Inject,
                        port,
                        vnet_header,
                        frame,
                    };
                    self.deliver(outgoing, counts);
                }
                ServiceAction::Flood {
                    domain,
                    except,
                    frame,
                } => {
                    for (port, frame) in self.floods.copies(domain, except, &frame) {
                        self.deliver(plain(port, frame), counts);
                    }
                }
                ServiceAction::LearnNeighbor {
                    interface,
                    address,
                    mac,
                    domain,
                    port,
                } => {
                    let known = Known { mac, port, domain };
                    self.neighbors.learn((interface, address), known, counts);
                }
                ServiceAction::ForgetNeighbor { interface, address } => {
                    gone.push((interface, address));
                }
                ServiceAction::Drop { port, .. } => self.refuse(port, about),
            }
        }
        self.neighbors.forget(&gone, counts);
    }

    /// Counts a frame that ends here on the port that it came from.
    pub fn refuse(&self, port: PortId, about: Option<&PacketIn>) {
        let frame = about.map_or(&[][..], |packet| &packet.frame);
        self.datapath
            .count_drop(port, DropReason::ServiceRefused, frame);
    }

    /// Tries again to hand over what waits.
    pub fn retry(&mut self, counts: &Counts) {
        while let Some(outgoing) = self.waiting.pop_front() {
            if self.hand_over(&outgoing, counts) == Err(SendError::Busy) {
                self.waiting.push_front(outgoing);
                return;
            }
            self.waiting_bytes = self.waiting_bytes.saturating_sub(outgoing.frame.len());
        }
    }

    fn deliver(&mut self, outgoing: Outgoing, counts: &Counts) {
        if self.waiting.is_empty() && self.hand_over(&outgoing, counts) != Err(SendError::Busy) {
            return;
        }
        let (most_frames, most_bytes) = WAITING;
        let bytes = self.waiting_bytes + outgoing.frame.len();
        if self.waiting.len() >= most_frames || bytes > most_bytes {
            count(&counts.frames_lost);
            self.datapath
                .count_drop(outgoing.port, DropReason::ControllerBusy, &outgoing.frame);
            return;
        }
        self.waiting_bytes = bytes;
        self.waiting.push_back(outgoing);
    }

    /// Gives a frame to the worker of its port, and counts what became of it unless it has to wait.
    fn hand_over(&self, outgoing: &Outgoing, counts: &Counts) -> Result<(), SendError> {
        let Outgoing {
            way,
            port,
            vnet_header,
            frame,
        } = outgoing;
        let (done, counter) = match way {
            Way::Send => (
                self.datapath.send(*port, vnet_header, frame),
                &counts.frames_sent,
            ),
            Way::Inject => (
                self.datapath.inject(*port, vnet_header, frame),
                &counts.frames_given_back,
            ),
        };
        match done {
            Ok(()) => count(counter),
            Err(SendError::Busy) => {}
            Err(SendError::NoSuchPort | SendError::BadLength(_)) => count(&counts.frames_lost),
        }
        done
    }
}

/// A frame that is whole: nothing is left to be done about it.
fn plain(port: PortId, frame: Vec<u8>) -> Outgoing {
    Outgoing {
        way: Way::Send,
        port,
        vnet_header: [0; VNET_HEADER_BYTES],
        frame,
    }
}
