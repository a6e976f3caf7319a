//! What a switch knows of a port goes along in QEMU's migration stream, and stays out of a snapshot that is loaded late.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::Value;
use vm_lab::artefacts::{Artefacts, ringswitch};
use vm_lab::guest::{Backend, Guest, GuestSpec, Incoming, QemuEnd, VIRTIO_NIC};
use vm_lab::lab::Station;
use vm_lab::migration::{Limits, Manner, Migration};
use vm_lab::pool::without_lab;
use vm_lab::run_dir::RunDir;
use vm_lab::switch::{Network, Switch, SwitchOptions};
use vm_lab::{Error, Result, traffic};

const PORT: &str = "vm";
/// In the guests' network.
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 99);
const BRISK: Limits = Limits {
    bytes_per_second: 256 << 20,
    downtime_ms: 100,
};

/// Two switches on this machine: with the same key, with a key each, or without.
struct Hosts {
    switches: Vec<(Switch, RunDir)>,
    artefacts: Artefacts,
    folder: RunDir,
}

impl Hosts {
    fn start(keys: [Option<u8>; 2]) -> Result<Self> {
        let folder = RunDir::create("device-state")?;
        let switches = keys.iter().zip(1..).map(|(byte, number)| {
            let path = folder.join(&format!("key-{number}"));
            let key = byte.map(|byte| write_key(path, byte)).transpose()?;
            let own = RunDir::create("device-state-switch")?;
            let ports = [Station::new(PORT).port(&own)];
            let options = SwitchOptions {
                network: Network::Machine,
                program: None,
                device_state_key: key,
            };
            let switch = Switch::start(&ringswitch()?, &own, &ports, &options)?;
            Ok((switch, own))
        });
        Ok(Self {
            switches: switches.collect::<Result<_>>()?,
            artefacts: Artefacts::find()?,
            folder,
        })
    }

    fn switch(&self, number: usize) -> Result<&(Switch, RunDir)> {
        let switch = self.switches.get(number);
        switch.ok_or_else(|| Error::Unexpected("no such switch".to_owned()))
    }

    /// The guest at one of them, or arriving there.
    fn spec(&self, number: usize) -> Result<GuestSpec> {
        let socket = self.switch(number)?.1.join(&format!("{PORT}.sock"));
        Ok(GuestSpec {
            name: format!("vm-{number}"),
            number: 1,
            queue_pairs: 1,
            backend: Backend::VhostUser(QemuEnd::Connects, socket),
            nic_model: VIRTIO_NIC.to_owned(),
            nic_properties: Vec::new(),
            arguments: Vec::new(),
            launcher: Vec::new(),
        })
    }

    fn guest(&self) -> Result<Guest> {
        let mut guest = Guest::start(&self.artefacts, &self.folder, &self.spec(0)?)?;
        guest.wait_booted()?;
        guest.configure_network()?;
        Ok(guest)
    }

    fn incoming(&self, guest: &Guest) -> Result<Incoming> {
        let spec = self.spec(1)?;
        Incoming::start(&self.artefacts, &self.folder, &spec, guest.agent())
    }

    fn port(&self, number: usize) -> Result<Value> {
        self.switch(number)?.0.get(&format!("/v1/ports/{PORT}"))
    }

    fn notes(&self, number: usize) -> Result<String> {
        Ok(self.port(number)?["device"]["notes"].to_string())
    }

    fn sent(&self, number: usize) -> Result<u64> {
        let port = self.port(number)?;
        let sent = port["counters"]["guest_tx_frames"].as_u64();
        sent.ok_or_else(|| Error::Unexpected(format!("no counters in {port}")))
    }
}

fn write_key(path: PathBuf, byte: u8) -> Result<PathBuf> {
    let written = fs::write(&path, [byte; 32])
        .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o600)));
    written.map_err(|error| Error::Unexpected(format!("the key: {error}")))?;
    Ok(path)
}

/// Why a guest does not get from one switch to the other; it goes on where it was.
fn failure(hosts: &Hosts) -> Result<Option<String>> {
    let mut guest = hosts.guest()?;
    let target = hosts.incoming(&guest)?;
    let socket = hosts.folder.join("migrate.sock");
    let migration = Migration::start(&mut guest, target, socket, Manner::Precopy, BRISK);
    let failed = migration.and_then(|mut migration| {
        migration.wait_resumed()?;
        migration.finish().map(drop)
    });
    let why = failed.err().map(|error| error.to_string());
    if why.is_some() {
        guest.agent().run("true")?;
    }
    Ok(why)
}

fn expect(what: &str, holds: bool, told: &str) -> Result<()> {
    match holds {
        true => Ok(()),
        false => Err(Error::Unexpected(format!("{what}: {told}"))),
    }
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn what_the_switch_knows_of_a_guest_arrives_with_it() {
    without_lab(|| {
        let hosts = Hosts::start([Some(7), Some(7)])?;
        let mut guest = hosts.guest()?;
        // Nobody answers; the switch has learned who asks.
        let _ = traffic::ping(guest.agent(), NOBODY.into(), 1, 56);
        let sent = hosts.sent(0)?;
        expect("the guest has sent frames", sent > 0, &sent.to_string())?;
        let target = hosts.incoming(&guest)?;
        let socket = hosts.folder.join("migrate.sock");
        let mut migration = Migration::start(&mut guest, target, socket, Manner::Precopy, BRISK)?;
        migration.wait_resumed()?;
        let taken = hosts.notes(0)?;
        expect(
            "the source was asked",
            taken.contains("took the port's state along"),
            &taken,
        )?;
        expect(
            "its station went along",
            taken.contains("1 stations"),
            &taken,
        )?;
        let came = hosts.notes(1)?;
        expect(
            "it arrived",
            came.contains("the port's state came with the VM"),
            &came,
        )?;
        expect("the station arrived", came.contains("1 stations"), &came)?;
        let there = hosts.sent(1)?;
        expect(
            "counters went on",
            there >= sent,
            &format!("{sent}, then {there}"),
        )?;
        let (guest, _) = migration.finish()?;
        guest.agent().run("true").map(drop)
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_guest_stays_where_it_was_if_the_other_switch_does_not_believe_what_comes_with_it() {
    without_lab(|| {
        let hosts = Hosts::start([Some(7), Some(8)])?;
        let why = failure(&hosts)?;
        expect("the migration fails", why.is_some(), "it did not")?;
        let log = fs::read_to_string(hosts.switch(1)?.1.join("ringswitch.log")).unwrap_or_default();
        let refused = log.contains("CHECK_DEVICE_STATE refused") && log.contains("signature");
        expect("it fails for that", refused, &log)?;
        let sent = hosts.sent(1)?;
        expect("nothing arrived", sent == 0, &sent.to_string())
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_guest_goes_only_from_those_that_send_nothing_to_those_that_would_take_it() {
    without_lab(|| {
        let why = failure(&Hosts::start([Some(7), None])?)?;
        expect("it is not lost without a word", why.is_some(), "it moved")?;
        let why = failure(&Hosts::start([None, Some(7)])?)?;
        expect(
            "there was nothing to take",
            why.is_none(),
            &why.unwrap_or_default(),
        )
    });
}
