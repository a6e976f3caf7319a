//! What happens, told to whoever listens: ports, devices, migrations, stations.
//!
//! Published from the device thread, the control thread and whoever else knows of something; listened to by the REST interface. To publish
//! costs a short lock, whoever listens: there is one ring of the latest events, and each listener a place in it. One that is slower than
//! the ring loses the oldest and is told how many.
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use utoipa::ToSchema;

/// How many are kept.
pub const KEPT: usize = 1024;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// There is another port.
    PortAdded {
        /// Its name.
        port: String,
    },
    /// A port is gone.
    PortRemoved {
        /// Its name.
        port: String,
    },
    /// The first ring of a port runs.
    PortUp {
        /// Its name.
        port: String,
    },
    /// The last ring of a port stopped, or its interface is gone.
    PortDown {
        /// Its name.
        port: String,
        /// Why, in words.
        reason: String,
    },
    /// A virtual device is in another state.
    DeviceChanged {
        /// Its name.
        device: String,
        /// The state, as the device table has it.
        state: String,
        /// The state it was in.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        before: Option<String>,
        /// Why, in words, when there is something to say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// What a port's rings write is marked for a migration from now on.
    MigrationStarted {
        /// The port.
        port: String,
    },
    /// The front-end has read the log of a migration out once more.
    MigrationRound {
        /// The port.
        port: String,
        /// How often it did so far.
        rounds: u64,
        /// Pages marked that were clear.
        pages_marked: u64,
        /// How many of them a second, of late.
        pages_per_second: u64,
    },
    /// It is not marked any more: the VM has left, or stays.
    MigrationEnded {
        /// The port.
        port: String,
        /// How long it took.
        took_ms: u64,
    },
    /// A station turned up behind another port.
    MacMoved {
        /// Its address.
        mac: String,
        /// The VLAN it is in; `null`: that of ports without one.
        vlan: Option<u16>,
        /// The port it was behind; absent: one that is gone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<String>,
        /// The port it is behind now.
        to: String,
    },
    /// More stations moved than could be told one by one.
    MacMovesLost {
        /// How many.
        count: u64,
    },
}

/// An event with its place among all of this process.
#[derive(Debug, PartialEq, Eq)]
pub struct Published {
    /// From 1.
    pub number: u64,
    /// When it was published, in milliseconds since 1970.
    pub at_ms: u64,
    /// What happened.
    pub event: Event,
}

/// Where events go. Cheap to clone.
#[derive(Clone, Debug)]
pub struct EventBus(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Tells this process's numbers from another's.
    process: u64,
    ring: Mutex<Ring>,
    /// Wakes listeners.
    latest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Ring {
    events: VecDeque<Arc<Published>>,
    /// How many there have been.
    published: u64,
}

/// What a listener hears.
#[derive(Debug, PartialEq, Eq)]
pub enum Told {
    /// The next event.
    Event(Arc<Published>),
    /// So many were lost before the next.
    Lagged(u64),
}

/// A listener's place.
#[derive(Debug)]
pub struct Listener {
    bus: Arc<Shared>,
    woken: watch::Receiver<u64>,
    /// The number of the last event that it has heard of.
    heard: u64,
}

impl Default for EventBus {
    fn default() -> Self {
        Self(Arc::new(Shared {
            process: now_ms(),
            ring: Mutex::default(),
            latest: watch::Sender::new(0),
        }))
    }
}

impl EventBus {
    /// Tells everybody who listens.
    pub fn publish(&self, event: Event) {
        let at_ms = now_ms();
        let number = {
            let mut ring = self.0.lock();
            ring.published += 1;
            let number = ring.published;
            if ring.events.len() == KEPT {
                ring.events.pop_front();
            }
            ring.events.push_back(Arc::new(Published {
                number,
                at_ms,
                event,
            }));
            number
        };
        self.0.latest.send_replace(number);
    }

    /// Which process's numbers they are.
    pub fn process(&self) -> u64 {
        self.0.process
    }

    /// The number of the last event.
    pub fn latest(&self) -> u64 {
        self.0.lock().published
    }

    /// Listens from the event after `heard` on.
    pub fn listen_after(&self, heard: u64) -> Listener {
        Listener {
            woken: self.0.latest.subscribe(),
            heard: heard.min(self.latest()),
            bus: Arc::clone(&self.0),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener {
    /// The next thing to hear; waits for it. Can be dropped and asked for again, and nothing is lost.
    pub async fn next(&mut self) -> Told {
        loop {
            // Before it is looked, so that what comes meanwhile wakes.
            self.woken.mark_unchanged();
            if let Some(told) = self.told() {
                return told;
            }
            if self.woken.changed().await.is_err() {
                // The sender lives as long as this.
                std::future::pending::<()>().await;
            }
        }
    }

    fn told(&mut self) -> Option<Told> {
        let ring = self.bus.lock();
        let gone = ring.published - ring.events.len() as u64;
        if let Some(missed @ 1..) = gone.checked_sub(self.heard) {
            self.heard = gone;
            return Some(Told::Lagged(missed));
        }
        let place = usize::try_from(self.heard - gone).ok()?;
        let event = ring.events.get(place)?;
        self.heard = event.number;
        Some(Told::Event(Arc::clone(event)))
    }

    /// The number of the last event that was heard.
    pub fn heard(&self) -> u64 {
        self.heard
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up(number: u64) -> Event {
        Event::PortUp {
            port: format!("vm{number}"),
        }
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
    }

    fn number(told: &Told) -> u64 {
        match told {
            Told::Event(event) => event.number,
            Told::Lagged(missed) => panic!("{missed} were missed"),
        }
    }

    #[test]
    fn each_listener_hears_every_event_once_from_its_place_on() {
        runtime().block_on(async {
            let bus = EventBus::default();
            bus.publish(up(1));
            let mut late = bus.listen_after(bus.latest());
            let mut again = bus.listen_after(0);
            bus.publish(up(2));
            assert_eq!(number(&late.next().await), 2);
            assert_eq!(number(&again.next().await), 1);
            assert_eq!(number(&again.next().await), 2);
            assert_eq!((late.told(), again.told()), (None, None));
        });
    }

    #[test]
    fn a_waiting_listener_is_woken_from_another_thread() {
        let bus = EventBus::default();
        let mut listener = bus.listen_after(0);
        let there = bus.clone();
        let heard = runtime().block_on(async move {
            let hears = tokio::spawn(async move { listener.next().await });
            // The task waits by now: this runtime has one thread.
            tokio::task::yield_now().await;
            std::thread::spawn(move || there.publish(up(1)))
                .join()
                .unwrap();
            hears.await.unwrap()
        });
        assert_eq!(number(&heard), 1);
    }

    #[test]
    fn a_slow_listener_is_told_how_many_it_lost_and_goes_on_with_the_oldest_there_is() {
        let bus = EventBus::default();
        let mut slow = bus.listen_after(0);
        (0..KEPT as u64 + 5).for_each(|number| bus.publish(up(number)));
        assert_eq!(slow.told(), Some(Told::Lagged(5)));
        for expected in 6..=KEPT as u64 + 5 {
            assert_eq!(number(&slow.told().unwrap()), expected);
        }
        assert_eq!(slow.told(), None);
        // A place that is not reached yet is none.
        assert_eq!(bus.listen_after(u64::MAX).heard(), KEPT as u64 + 5);
    }
}
