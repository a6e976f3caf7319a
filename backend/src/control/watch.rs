//! What the control thread looks for once a second and tells of: rounds of migrations, interfaces that are gone, stations that moved.
//!
//! Whatever is told the moment it happens comes from the device thread instead. Here is only what nobody is told of by itself.
use super::PortId;
use super::engine::Engine;
use super::events::Event;
use super::thread::Control;
use std::collections::BTreeMap;
use switch_core::MacMove;

/// What was seen the last time.
#[derive(Debug, Default)]
pub(super) struct Watched {
    /// Rounds of each migration.
    rounds: BTreeMap<PortId, u64>,
    /// Ports whose interface is gone.
    lost: BTreeMap<PortId, String>,
}

impl<E: Engine> Control<E> {
    pub(super) fn watch(&mut self) {
        self.watch_migrations();
        self.watch_uplinks();
        self.watch_stations();
    }

    fn name(&self, id: PortId) -> Option<String> {
        Some(self.table.get(id)?.name.to_string())
    }

    fn watch_migrations(&mut self) {
        let mut rounds = BTreeMap::new();
        for (id, logging) in self.engine.migrations() {
            rounds.insert(id, logging.rounds);
            let before = self.watched.rounds.get(&id).copied().unwrap_or(0);
            if let Some(port) = self.name(id)
                && logging.rounds > before
            {
                self.events.publish(Event::MigrationRound {
                    port,
                    rounds: logging.rounds,
                    pages_marked: logging.pages_marked,
                    pages_per_second: logging.pages_per_second,
                });
            }
        }
        self.watched.rounds = rounds;
    }

    fn watch_uplinks(&mut self) {
        let lost = self.engine.lost_uplinks();
        for (id, reason) in &lost {
            if !self.watched.lost.contains_key(id)
                && let Some(port) = self.name(*id)
            {
                let reason = reason.clone();
                self.events.publish(Event::PortDown { port, reason });
            }
        }
        self.watched.lost = lost;
    }

    fn watch_stations(&mut self) {
        let taken = self.engine.mac_moves();
        if taken.lost > 0 {
            self.events
                .publish(Event::MacMovesLost { count: taken.lost });
        }
        for MacMove {
            vlan,
            mac,
            from,
            to,
        } in taken.moves
        {
            // One whose port is gone is nowhere.
            let Some(to) = self.name(to) else { continue };
            self.events.publish(Event::MacMoved {
                mac: mac.to_string(),
                vlan: vlan.map(switch_core::VlanId::get),
                from: self.name(from),
                to,
            });
        }
    }
}
