//! Stations that turned up behind another port: the latest of them, for whoever watches the network.
//!
//! Noted under the table's lock, where a station moves, which its port's learning rate bounds; taken by the control side now and then.

use std::collections::VecDeque;

use crate::mac::MacAddress;
use crate::port::PortId;
use crate::vlan::VlanId;

/// Most that are kept until they are taken.
const MOST: usize = 256;

/// A station that turned up behind another port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacMove {
    /// The VLAN it is in; `None`: that of ports without one.
    pub vlan: Option<VlanId>,
    /// Its address.
    pub mac: MacAddress,
    /// The port it was behind.
    pub from: PortId,
    /// The port it is behind now.
    pub to: PortId,
}

/// Moves that nobody has taken yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MacMoves {
    /// Oldest first.
    pub moves: Vec<MacMove>,
    /// How many there were besides, before them.
    pub lost: u64,
}

/// Where they are kept.
pub(super) struct MoveLog {
    moves: VecDeque<MacMove>,
    lost: u64,
}

impl MoveLog {
    pub(super) fn new() -> Self {
        Self {
            moves: VecDeque::with_capacity(MOST),
            lost: 0,
        }
    }

    /// Never allocates.
    pub(super) fn note(&mut self, station: MacMove) {
        if self.moves.len() == MOST {
            self.moves.pop_front();
            self.lost = self.lost.saturating_add(1);
        }
        self.moves.push_back(station);
    }

    pub(super) fn take(&mut self) -> MacMoves {
        MacMoves {
            moves: self.moves.drain(..).collect(),
            lost: std::mem::take(&mut self.lost),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_kept_and_the_others_counted() {
        let station = |last: u16| MacMove {
            vlan: None,
            mac: MacAddress::from_u64(last.into()),
            from: PortId::new(0).unwrap(),
            to: PortId::new(1).unwrap(),
        };
        let mut log = MoveLog::new();
        assert_eq!(log.take(), MacMoves::default());
        (0..300).for_each(|last| log.note(station(last)));
        let taken = log.take();
        assert_eq!(taken.lost, 44);
        assert_eq!(taken.moves, (44..300).map(station).collect::<Vec<_>>());
        assert_eq!(log.take(), MacMoves::default());
    }
}
