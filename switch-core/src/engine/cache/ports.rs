//! What each port has in the cache: its masks, its flows from the oldest on, and how many more it may bring about.

use crate::rate_limit::{RateLimit, TokenBucket};
use crate::time::Millis;

use super::masks::MaskId;
use super::records::NO_FLOW;

/// Pairs of port and path whose tables are remembered.
const SHORTCUTS: usize = 64;

/// No port.
const NO_PORT: u16 = u16::MAX;

/// Masks of one path, the most recently successful first.
pub(super) struct PathMasks {
    pub(super) path: u16,
    pub(super) masks: Vec<MaskId>,
}

/// What one port has.
pub(super) struct PortFlows {
    pub(super) paths: Vec<PathMasks>,
    /// Masks of all paths.
    pub(super) masks: usize,
    pub(super) flows: usize,
    /// Flows under no mask, because it had no mask left.
    pub(super) exact: usize,
    pub(super) oldest: u32,
    pub(super) newest: u32,
    /// What it may push out of the tables.
    pub(super) insertions: TokenBucket,
    /// What it may push out of the exact front.
    pub(super) promotions: TokenBucket,
}

impl PortFlows {
    fn new(limit: RateLimit, now: Millis) -> Self {
        Self {
            paths: Vec::new(),
            masks: 0,
            flows: 0,
            exact: 0,
            oldest: NO_FLOW,
            newest: NO_FLOW,
            insertions: TokenBucket::full(limit, now),
            promotions: TokenBucket::full(limit, now),
        }
    }

    /// The masks of a path.
    #[inline]
    pub(super) fn masks_of(&self, path: u16) -> &[MaskId] {
        self.paths
            .iter()
            .find(|masks| masks.path == path)
            .map_or(&[], |masks| &masks.masks)
    }

    /// Where frames of a path can be found.
    pub(super) fn tables(&self, path: u16) -> Tables {
        match (self.masks_of(path), self.exact > 0) {
            ([], false) => Tables::None,
            (&[mask], false) => Tables::One(mask),
            _ => Tables::Several,
        }
    }

    /// Makes the mask at `place` the first to be tried.
    pub(super) fn move_to_front(&mut self, path: u16, place: usize) {
        let masks = self.paths.iter_mut().find(|masks| masks.path == path);
        if let Some(tried) = masks.and_then(|masks| masks.masks.get_mut(..=place)) {
            tried.rotate_right(1);
        }
    }

    pub(super) fn add_mask(&mut self, path: u16, mask: MaskId) {
        self.masks += 1;
        match self.paths.iter_mut().find(|masks| masks.path == path) {
            Some(masks) => masks.masks.push(mask),
            None => self.paths.push(PathMasks {
                path,
                masks: vec![mask],
            }),
        }
    }

    pub(super) fn remove_mask(&mut self, path: u16, mask: MaskId) {
        self.paths.retain_mut(|masks| {
            if masks.path == path {
                let had = masks.masks.len();
                masks.masks.retain(|id| *id != mask);
                self.masks -= had - masks.masks.len();
            }
            !masks.masks.is_empty()
        });
    }
}

/// Where the flows of a port and path can be found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Tables {
    /// Nowhere.
    None,
    /// Under this mask.
    One(MaskId),
    /// Under several masks, or under one and for their exact keys.
    Several,
}

/// The tables of one port and path.
#[derive(Clone, Copy)]
struct Shortcut {
    port: u16,
    path: u16,
    tables: Option<Tables>,
}

const NO_SHORTCUT: Shortcut = Shortcut {
    port: 0,
    path: 0,
    tables: None,
};

pub(super) struct Ports {
    /// Spares most lookups the way through the lists below. Emptied whenever a list of masks changes.
    shortcuts: [Shortcut; SHORTCUTS],
    /// Where each port's state is, by its number.
    places: Vec<u16>,
    ports: Vec<PortFlows>,
    /// Ports that have flows.
    active: usize,
    /// The port with the most flows, as far as known.
    largest: u16,
}

impl Ports {
    pub(super) fn new() -> Self {
        Self {
            shortcuts: [NO_SHORTCUT; SHORTCUTS],
            places: Vec::new(),
            ports: Vec::new(),
            active: 0,
            largest: NO_PORT,
        }
    }

    /// Where frames of this port and path can be found.
    #[inline(always)]
    pub(super) fn tables(&mut self, port: u16, path: u16) -> Tables {
        match self.shortcuts.get(shortcut(port, path)) {
            Some(&Shortcut {
                port: its_port,
                path: its_path,
                tables: Some(tables),
            }) if its_port == port && its_path == path => tables,
            _ => self.find_tables(port, path),
        }
    }

    #[inline(never)]
    fn find_tables(&mut self, port: u16, path: u16) -> Tables {
        let tables = self.get(port).map_or(Tables::None, |at| at.tables(path));
        if let Some(at) = self.shortcuts.get_mut(shortcut(port, path)) {
            *at = Shortcut {
                port,
                path,
                tables: Some(tables),
            };
        }
        tables
    }

    /// To be called when a mask comes or goes, or a port's first exact flow comes or last one goes.
    pub(super) fn masks_changed(&mut self) {
        self.shortcuts = [NO_SHORTCUT; SHORTCUTS];
    }

    #[inline]
    pub(super) fn get(&self, port: u16) -> Option<&PortFlows> {
        self.ports
            .get(usize::from(*self.places.get(usize::from(port))?))
    }

    #[inline]
    pub(super) fn get_mut(&mut self, port: u16) -> Option<&mut PortFlows> {
        self.ports
            .get_mut(usize::from(*self.places.get(usize::from(port))?))
    }

    /// A port's state, made at its first flow. `None` only when there are 65535 others.
    pub(super) fn get_or_add(
        &mut self,
        port: u16,
        limit: RateLimit,
        now: Millis,
    ) -> Option<&mut PortFlows> {
        let index = usize::from(port);
        if self.places.len() <= index {
            self.places.resize(index + 1, NO_PORT);
        }
        let place = self.places.get_mut(index)?;
        if *place == NO_PORT && self.ports.len() < usize::from(NO_PORT) {
            *place = self.ports.len() as u16;
            self.ports.push(PortFlows::new(limit, now));
        }
        self.ports.get_mut(usize::from(*place))
    }

    /// Notes that a port has a flow more.
    pub(super) fn count_flow(&mut self, port: u16) {
        let largest = self.get(self.largest).map_or(0, |port| port.flows);
        if let Some(state) = self.get_mut(port) {
            state.flows += 1;
            let flows = state.flows;
            self.active += usize::from(flows == 1);
            if flows > largest {
                self.largest = port;
            }
        }
    }

    /// Notes that a port has a flow less.
    pub(super) fn discount_flow(&mut self, port: u16) {
        if let Some(state) = self.get_mut(port) {
            state.flows -= 1;
            let flows = state.flows;
            self.active -= usize::from(flows == 0);
        }
    }

    /// Which port has to let a flow go so that `port` can have one more, when there is room for `most` in all: the port
    /// itself, if it has its share of them, else one that has more than that.
    pub(super) fn payer(&mut self, port: u16, most: usize) -> u16 {
        let flows = self.get(port).map_or(0, |state| state.flows);
        let active = self.active + usize::from(flows == 0);
        let share = most / active.max(1);
        if flows >= share.max(1) {
            return port;
        }
        let largest = self.get(self.largest).map_or(0, |state| state.flows);
        if largest <= share {
            let flows_of = |place: &u16| self.ports.get(usize::from(*place)).map(|at| at.flows);
            let places = self.places.iter().enumerate();
            let largest = places.max_by_key(|(_, place)| flows_of(place));
            self.largest = largest.map_or(NO_PORT, |(port, _)| port as u16);
        }
        self.largest
    }

    /// Forgets flows and masks; the limits stay as used up as they are.
    pub(super) fn clear(&mut self) {
        self.masks_changed();
        for port in &mut self.ports {
            port.paths = Vec::new();
            port.masks = 0;
            port.flows = 0;
            port.exact = 0;
            port.oldest = NO_FLOW;
            port.newest = NO_FLOW;
        }
        self.active = 0;
        self.largest = NO_PORT;
    }
}

/// Ports side by side and their first paths do not share a place.
fn shortcut(port: u16, path: u16) -> usize {
    usize::from(port.wrapping_mul(8) ^ path) % SHORTCUTS
}
