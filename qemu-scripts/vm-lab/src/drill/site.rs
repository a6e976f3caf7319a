//! Where a drill takes place: the [`Switches`], a peer that stays at one of them, and a guest that goes round their ports.

use std::path::PathBuf;

use super::load::Ends;
use super::switches::{Place, Switches};
use crate::Result;
use crate::artefacts::Artefacts;
use crate::guest::{Guest, GuestSpec, Incoming, VIRTIO_NIC};
use crate::process::tail;
use crate::run_dir::RunDir;
use crate::traffic;

/// Booted and wired. Fields are dropped in this order: guests first, their folder last.
pub struct Site {
    guest: Guest,
    peer: Guest,
    place: Place,
    /// QEMUs started for the guest that moves: each has files of its own.
    started: u32,
    switches: Switches,
    artefacts: Artefacts,
    folder: RunDir,
}

/// The NIC of the guest that moves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// Of the guest and of each of its ports.
    pub queue_pairs: u16,
    /// Further properties, as after `-device virtio-net-pci,`.
    pub properties: Vec<String>,
}

impl Site {
    /// Starts the switches, boots both guests and waits until they reach each other.
    ///
    /// # Errors
    /// Something does not come up; what it said is in the error.
    pub fn start(nic: Nic) -> Result<Self> {
        let artefacts = Artefacts::find()?;
        let folder = RunDir::create("drill")?;
        let switches = Switches::start(&artefacts, nic.queue_pairs)?;
        let place = Place::default();
        let guest_spec = GuestSpec {
            name: name(1),
            number: 1,
            queue_pairs: nic.queue_pairs,
            backend: switches.backend(place)?,
            nic_model: VIRTIO_NIC.to_owned(),
            nic_properties: nic.properties,
            arguments: Vec::new(),
            launcher: Vec::new(),
        };
        let peer_spec = GuestSpec {
            name: "peer".to_owned(),
            number: 2,
            queue_pairs: 1,
            backend: switches.peer_backend()?,
            nic_model: VIRTIO_NIC.to_owned(),
            nic_properties: Vec::new(),
            arguments: Vec::new(),
            launcher: Vec::new(),
        };
        let mut site = Self {
            guest: Guest::start(&artefacts, &folder, &guest_spec)?,
            peer: Guest::start(&artefacts, &folder, &peer_spec)?,
            place,
            started: 1,
            switches,
            artefacts,
            folder,
        };
        for guest in [&mut site.guest, &mut site.peer] {
            guest.wait_booted()?;
            guest.configure_network()?;
        }
        traffic::wait_reachable(site.peer.agent(), site.guest.spec().address().into())?;
        Ok(site)
    }

    /// The guest that moves.
    #[must_use]
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// The guest that moves, to be moved, and the switches that it moves between.
    pub fn parts(&mut self) -> (&mut Guest, &Switches) {
        (&mut self.guest, &self.switches)
    }

    /// The switches.
    #[must_use]
    pub fn switches(&self) -> &Switches {
        &self.switches
    }

    /// Where the guest is.
    #[must_use]
    pub fn place(&self) -> Place {
        self.place
    }

    /// The peer, then the guest that moves.
    #[must_use]
    pub fn ends(&self) -> Ends<'_> {
        [&self.peer, &self.guest].map(|guest| (guest.agent(), guest.spec().address().into()))
    }

    /// Starts a QEMU at a place, to which the guest may move.
    ///
    /// # Errors
    /// It does not start.
    pub fn incoming(&mut self, place: Place) -> Result<Incoming> {
        self.started += 1;
        let spec = GuestSpec {
            name: name(self.started),
            backend: self.switches.backend(place)?,
            ..self.guest.spec().clone()
        };
        Incoming::start(&self.artefacts, &self.folder, &spec, self.guest.agent())
    }

    /// A socket for the next migration.
    #[must_use]
    pub fn migration_socket(&self) -> PathBuf {
        self.folder.join(&format!("migrate-{}.sock", self.started))
    }

    /// The guest is there now; the QEMU it came from ends.
    pub fn moved(&mut self, guest: Guest, place: Place) {
        self.guest = guest;
        self.place = place;
    }

    /// The ends of the latest logs, for whoever has to find out what went wrong.
    #[must_use]
    pub fn logs(&self) -> String {
        let guests = (1..=self.started)
            .rev()
            .take(2)
            .flat_map(|number| ["log", "console"].map(|kind| format!("{}.{kind}", name(number))))
            .chain(["peer.log".to_owned()])
            .map(|log| self.folder.join(&log));
        let switches = self
            .switches
            .folders()
            .map(|folder| folder.join("ringswitch.log"));
        guests
            .chain(switches)
            .map(|log| (tail(&log), log))
            .filter(|(end, _)| !end.is_empty())
            .map(|(end, log)| format!("--- {}\n{end}\n", log.display()))
            .collect()
    }
}

fn name(started: u32) -> String {
    format!("vm-{started}")
}
