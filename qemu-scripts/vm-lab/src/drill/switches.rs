//! The two switches of a drill, and how they are joined.
//!
//! ```text
//!  peer ── switch 1 ══ TAP, bridge, TAP ══ switch 2
//!           │    │                          │    │
//!          a1    a2                        b1    b2      the guest: a1 → a2 → b1 → b2 → a1
//! ```
//!
//! Both switches and the bridge are in one network namespace of the drill's own, which goes with its last process. Without the
//! right to have one there is switch 1 alone.

use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use crate::agent::Agent;
use crate::artefacts::{Artefacts, ringswitch};
use crate::await_::SOON;
use crate::guest::{Backend, QemuEnd};
use crate::lab::{Station, tap_port};
use crate::run_dir::RunDir;
use crate::switch::{Network, PortSpec, Switch, SwitchOptions};
use crate::{Error, Result};

/// The port of the peer, at switch 1.
pub const PEER_PORT: &str = "peer";
const UPLINKS: [&str; 2] = ["rs-uplink1", "rs-uplink2"];
/// By switch. A step to the next is to another port of the same switch, then of the other, and so on.
const PLACES: [(usize, &str); 4] = [(0, "a1"), (0, "a2"), (1, "b1"), (1, "b2")];
/// How often a switch is asked where it has learnt an address.
const ASK_EVERY: Duration = Duration::from_millis(1);

/// A port that the guest may be at: the `n`-th step of its way round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place(usize);

impl Place {
    fn switch(self) -> usize {
        self.entry().0
    }

    fn port(self) -> &'static str {
        self.entry().1
    }

    fn entry(self) -> (usize, &'static str) {
        PLACES.get(self.0).copied().unwrap_or(PLACES[0])
    }

    /// Is the other at the other switch?
    #[must_use]
    pub fn is_across(self, other: Self) -> bool {
        self.switch() != other.switch()
    }

    /// Where a switch has a guest that is here.
    fn seen_from(self, switch: usize) -> &'static str {
        if self.switch() == switch {
            self.port()
        } else {
            UPLINKS.get(switch).copied().unwrap_or_default()
        }
    }
}

/// Running, and joined.
pub struct Switches(Vec<(Switch, RunDir)>);

impl Switches {
    /// Starts and joins them.
    ///
    /// # Errors
    /// One does not come up; what it said is in the error.
    pub fn start(artefacts: &Artefacts, queue_pairs: u16) -> Result<Self> {
        let binary = ringswitch()?;
        let private = Network::private_is_allowed();
        let start = |number: usize, network: Network| -> Result<(Switch, RunDir)> {
            let folder = RunDir::create("drill-switch")?;
            let mut ports: Vec<PortSpec> = PLACES
                .iter()
                .filter(|(switch, _)| *switch == number)
                .map(|(_, port)| Station::new(port).queue_pairs(queue_pairs).port(&folder))
                .collect();
            if number == 0 {
                ports.push(Station::new(PEER_PORT).port(&folder));
            }
            if let (true, Some(uplink)) = (private, UPLINKS.get(number)) {
                ports.push(tap_port(uplink));
            }
            let options = SwitchOptions {
                network,
                program: None,
                device_state_key: None,
            };
            Ok((Switch::start(&binary, &folder, &ports, &options)?, folder))
        };
        if !private {
            return Ok(Self(vec![start(0, Network::Machine)?]));
        }
        let mut first = start(0, Network::Private)?;
        let home = first.0.process().id();
        let second = start(1, Network::Of(home))?;
        let host = Agent::on_host(artefacts, Some(home))?;
        host.run("ip link add rs-drill type bridge")?;
        for uplink in UPLINKS {
            host.run(&format!("ip link set {uplink} master rs-drill"))?;
            host.run(&format!("ip link set {uplink} up"))?;
        }
        host.run("ip link set rs-drill up")?;
        Ok(Self(vec![first, second]))
    }

    /// Is there a second one?
    #[must_use]
    pub fn are_two(&self) -> bool {
        self.0.len() > 1
    }

    /// The place after that one.
    #[must_use]
    pub fn after(&self, place: Place) -> Place {
        Place((place.0 + 1) % (2 * self.0.len()))
    }

    /// What a NIC hangs on at that place.
    ///
    /// # Errors
    /// It is at a switch that there is not.
    pub fn backend(&self, place: Place) -> Result<Backend> {
        self.socket(place.switch(), place.port())
    }

    /// What the peer's NIC hangs on.
    ///
    /// # Errors
    /// There is no switch.
    pub fn peer_backend(&self) -> Result<Backend> {
        self.socket(0, PEER_PORT)
    }

    fn socket(&self, number: usize, port: &str) -> Result<Backend> {
        let socket = self.numbered(number)?.1.join(&format!("{port}.sock"));
        Ok(Backend::VhostUser(QemuEnd::Connects, socket))
    }

    /// Waits until `mac` is known at `place`, to the switch it is at and to its peer's, and says how long after `since` that
    /// was seen.
    ///
    /// # Errors
    /// It is not known there soon.
    pub fn wait_learnt(&self, mac: &str, place: Place, since: SystemTime) -> Result<Duration> {
        let start = Instant::now();
        for number in [place.switch(), 0] {
            loop {
                let learnt = self.learnt_at(number, mac)?;
                if learnt.as_deref() == Some(place.seen_from(number)) {
                    break;
                }
                if start.elapsed() > SOON {
                    return Err(Error::Unexpected(format!(
                        "switch {} has {mac} at {learnt:?}, {SOON:?} after the guest moved",
                        number + 1
                    )));
                }
                std::thread::sleep(ASK_EVERY);
            }
        }
        Ok(since.elapsed().unwrap_or_default())
    }

    fn learnt_at(&self, number: usize, mac: &str) -> Result<Option<String>> {
        let table = self.numbered(number)?.0.get("/v1/fdb")?;
        let entries = table.get("entries").and_then(Value::as_array);
        Ok(entries
            .into_iter()
            .flatten()
            .find(|entry| entry.get("mac").and_then(Value::as_str) == Some(mac))
            .and_then(|entry| entry.get("port")?.as_str())
            .map(str::to_owned))
    }

    /// What the switch says about the port at that place.
    ///
    /// # Errors
    /// It does not.
    pub fn port(&self, place: Place) -> Result<Value> {
        let (switch, _) = self.numbered(place.switch())?;
        switch.get(&format!("/v1/ports/{}", place.port()))
    }

    /// Their folders.
    pub fn folders(&self) -> impl Iterator<Item = &RunDir> {
        self.0.iter().map(|(_, folder)| folder)
    }

    fn numbered(&self, number: usize) -> Result<&(Switch, RunDir)> {
        self.0
            .get(number)
            .ok_or_else(|| Error::Unexpected("there is one switch only".to_owned()))
    }
}
