//! Of one port, as it was a moment ago and as it is now.
use super::{Finding, Findings, stuck};
use crate::rest::wire::{Counters, Drop, Port};
use serde::Deserialize;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// What is looked at of a device's state. What an older or newer daemon does not say is empty.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Device {
    notes: Vec<String>,
    features_offered: Vec<String>,
    features_acked: Option<Vec<String>>,
    rings: Vec<Ring>,
    memory_regions: u64,
    memory_bytes: u64,
    connected_ms: Option<u64>,
    logging: Option<serde_json::Value>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Ring {
    index: u16,
    direction: String,
    size: Option<u16>,
    enabled: bool,
    running: bool,
    fault: Option<String>,
}

/// A ring of QEMU's default size.
const SMALL_RING: u16 = 256;

/// Features whose loss costs speed, what it costs, and what to do about it.
const SPEED: [(&str, &str, &str); 8] = [
    (
        "MRG_RXBUF",
        "each frame needs a buffer of the largest size",
        "let the VMM offer it (QEMU: mrg_rxbuf=on)",
    ),
    (
        "CSUM",
        "the guest computes checksums",
        "QEMU: csum=on; in the guest: ethtool -K DEVICE tx on",
    ),
    (
        "GUEST_CSUM",
        "the switch computes checksums for it",
        "QEMU: guest_csum=on; in the guest: ethtool -K DEVICE rx on",
    ),
    (
        "HOST_TSO4",
        "the guest cuts TCP into small frames",
        "QEMU: host_tso4=on; in the guest: ethtool -K DEVICE tso on",
    ),
    (
        "HOST_TSO6",
        "the guest cuts TCP over IPv6 into small frames",
        "QEMU: host_tso6=on; in the guest: ethtool -K DEVICE tso on",
    ),
    (
        "GUEST_TSO4",
        "the switch cuts TCP into small frames for it",
        "QEMU: guest_tso4=on; in the guest: ethtool -K DEVICE gro on lro on",
    ),
    (
        "GUEST_TSO6",
        "the switch cuts TCP over IPv6 into small frames for it",
        "QEMU: guest_tso6=on; in the guest: ethtool -K DEVICE gro on lro on",
    ),
    (
        "EVENT_IDX",
        "more notifications are sent than needed",
        "QEMU: event_idx=on",
    ),
];

/// Everything about a port.
pub fn examine(before: Option<&Port>, now: &Port) -> Vec<Finding> {
    let mut port = Findings::about(&now.name);
    let device = now.device.clone();
    let device: Option<Device> = device.and_then(|device| serde_json::from_value(device).ok());
    state(&mut port, now);
    if let Some(device) = &device {
        socket(&mut port, now, device);
        memory(&mut port, device);
        features(&mut port, now, device);
        rings(&mut port, device);
        for note in &device.notes {
            port.warn("notes", note.clone(), "");
        }
        if device.logging.is_some() {
            port.ok(
                "migration",
                "its VM is on its way to another host: what is written is marked",
            );
        }
    }
    if let Some(before) = before {
        // What an older daemon does not say of a ring is taken for granted.
        let rings = device.as_ref().map(|device| device.rings.as_slice());
        let is_enabled = |index| {
            let mut rings = rings.unwrap_or_default().iter();
            rings
                .find(|ring| ring.index == index)
                .is_none_or(|ring| ring.enabled)
        };
        stuck::examine(&mut port, (before, now), is_enabled);
    }
    drops(&mut port, (before, now), device.as_ref());
    port.list
}

fn state(port: &mut Findings, now: &Port) {
    let reason = now.reason.clone().unwrap_or_default();
    match now.state.as_str() {
        "up" => port.ok("state", "up"),
        "faulted" => port.problem("state", format!("faulted: {reason}"), ""),
        other => {
            let advice = if other == "negotiating" {
                "the VM's driver has the next step: boot it, or load virtio_net"
            } else {
                "start the VM, with this socket as its chardev or vhost_socket"
            };
            port.warn("state", format!("{other}: {reason}"), advice);
        }
    }
}

/// The port's socket, as a hypervisor finds it. A client's is the hypervisor's own.
fn socket(port: &mut Findings, now: &Port, device: &Device) {
    let (Some(path), Some("server")) = (&now.socket, now.mode.as_deref()) else {
        return;
    };
    match std::fs::symlink_metadata(path) {
        Err(error) => port.problem(
            "socket",
            format!("{path}: {error}"),
            "somebody has removed it: remove the port and add it again, and keep the folder from being cleaned",
        ),
        Ok(file) if !file.file_type().is_socket() => port.problem(
            "socket",
            format!("{path} is not a socket"),
            "somebody has put it there: remove it and the port, and add the port again",
        ),
        // Whoever is connected could.
        Ok(_) if device.connected_ms.is_some() => port.ok("socket", path.clone()),
        Ok(file) => {
            let folder = Path::new(path).parent().and_then(|folder| folder.metadata().ok());
            // Connecting takes write permission for the socket and search permission for its folder (unix(7)).
            let is_closed = file.mode() & 0o022 == 0 || folder.is_some_and(|folder| folder.mode() & 0o011 == 0);
            let finding = format!("{path} (mode {:o}, user {})", file.mode() & 0o777, file.uid());
            let hint = if is_closed {
                "; only that user and root can connect, so the VMM has to run as one of them"
            } else {
                ""
            };
            port.ok("socket", finding + hint);
        }
    }
}

fn memory(port: &mut Findings, device: &Device) {
    if device.memory_regions > 0 {
        let mib = device.memory_bytes >> 20;
        port.ok(
            "memory",
            format!("{mib} MiB shared in {} regions", device.memory_regions),
        );
    } else if device.features_acked.is_some() {
        port.problem(
            "memory",
            "the driver has started the device, but guest memory is not shared",
            "give the VM memory-backend-memfd,share=on (QEMU) or --memory shared=on (Cloud Hypervisor)",
        );
    }
}

fn features(port: &mut Findings, now: &Port, device: &Device) {
    let Some(acked) = &device.features_acked else {
        return;
    };
    let is_lost = |feature: &str| {
        device.features_offered.iter().any(|name| name == feature)
            && !acked.iter().any(|name| name == feature)
    };
    let mut lost = 0;
    for (feature, cost, remedy) in SPEED {
        if is_lost(feature) {
            lost += 1;
            port.warn(
                "features",
                format!("{feature} is offered and not used: {cost}"),
                remedy,
            );
        }
    }
    let pairs = now.queue_pairs.unwrap_or(1);
    if pairs > 1 && is_lost("MQ") {
        lost += 1;
        port.warn(
            "features",
            format!("the port has {pairs} queue pairs and the guest uses one (MQ)"),
            "QEMU: mq=on,vectors=N and queues=N at the netdev; Cloud Hypervisor: num_queues",
        );
    }
    if lost == 0 {
        port.ok("features", "all that matter for speed are used");
    }
}

fn rings(port: &mut Findings, device: &Device) {
    let mut running = 0;
    for ring in &device.rings {
        let name = format!("ring {} ({})", ring.index, ring.direction);
        match &ring.fault {
            Some(fault) => port.problem(
                "rings",
                format!("{name} was stopped: {fault}"),
                "its driver is at fault: reload it or reboot the guest, and report it with `ringswitch port show`",
            ),
            None if ring.running && !ring.enabled => port.warn(
                "rings",
                format!("{name} runs, but the front-end keeps it disabled"),
                "resume the VM if it is paused; in the guest: ethtool -L DEVICE combined N",
            ),
            None if ring.running => running += 1,
            None => {}
        }
    }
    if running > 0 {
        port.ok("rings", format!("{running} of {} run", device.rings.len()));
    }
}

/// What was dropped, and of that what is being dropped now.
fn drops(port: &mut Findings, (before, now): (Option<&Port>, &Port), device: Option<&Device>) {
    let none = Counters::default();
    let old = before.map_or(&none, |before| &before.counters);
    let of = |counters: &Counters, reason: &str| {
        let found = counters.drops.iter().find(|drop| drop.reason == reason);
        found.map_or(0, |drop| drop.frames)
    };
    let mut earlier = Vec::new();
    for Drop {
        reason,
        frames,
        meaning,
        advice,
    } in &now.counters.drops
    {
        let lately = frames.saturating_sub(of(old, reason));
        if lately == 0 || before.is_none() {
            earlier.push(format!("{frames} {reason}"));
            continue;
        }
        let taken = now
            .counters
            .guest_rx_frames
            .saturating_sub(old.guest_rx_frames);
        if reason == "rx_ring_full" && taken == 0 {
            port.problem(
                "drops",
                format!(
                    "{lately} frames found no buffer in the last second, and the guest took none"
                ),
                "it hangs, is paused, or its driver is stuck: look at its console",
            );
        } else {
            port.warn(
                "drops",
                format!("{lately} frames in the last second: {reason}. {meaning}"),
                advice,
            );
        }
        if reason == "rx_ring_full" {
            small_rings(port, device);
        }
    }
    if !earlier.is_empty() {
        let list = earlier.join(", ");
        port.ok(
            "drops",
            format!(
                "none in the last second; since the start: {list} (`ringswitch port show` explains)"
            ),
        );
    } else if now.counters.drops.is_empty() {
        port.ok("drops", "none");
    }
}

/// Rings that are soon full, where they are.
fn small_rings(port: &mut Findings, device: Option<&Device>) {
    let rings = device
        .map(|device| device.rings.as_slice())
        .unwrap_or_default();
    let receiving = rings
        .iter()
        .filter(|ring| ring.direction == "guest_rx" && ring.running);
    if let Some(size) = receiving
        .filter_map(|ring| ring.size)
        .min()
        .filter(|size| *size <= SMALL_RING)
    {
        port.warn(
            "ring_size",
            format!("its receive rings have {size} entries"),
            "QEMU: rx_queue_size=1024; Cloud Hypervisor: queue_size=1024",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Level;
    use serde_json::{Value, json};

    fn port(change: impl FnOnce(&mut Value)) -> Port {
        let features = [
            "MRG_RXBUF",
            "CSUM",
            "GUEST_CSUM",
            "HOST_TSO4",
            "MQ",
            "EVENT_IDX",
        ];
        let ring = |index, direction| json!({"index": index, "direction": direction, "size": 256, "enabled": true, "running": true, "fault": null});
        let fill = |direction, offered| json!({"pair": 0, "direction": direction, "size": 256, "offered": offered, "frames": 10, "full": 0});
        let mut port = json!({
            "name": "vm1", "id": 1, "type": "vhost-user", "queue_pairs": 1, "state": "up",
            "device": {
                "notes": [], "features_offered": features, "features_acked": features, "memory_regions": 2,
                "memory_bytes": 64 << 20, "connected_ms": 5, "logging": null, "unheard_of": 1,
                "rings": [ring(0, "guest_rx"), ring(1, "guest_tx")],
            },
            "rings": [fill("guest_rx", 256), fill("guest_tx", 0)],
            "counters": {
                "guest_tx_frames": 10, "guest_tx_bytes": 0, "guest_rx_frames": 10, "guest_rx_bytes": 0, "drops": [],
                "notifications_sent": 0, "notifications_saved": 0,
            },
        });
        change(&mut port);
        serde_json::from_value(port).unwrap()
    }

    fn drop(frames: u64) -> Value {
        json!([{"reason": "rx_ring_full", "frames": frames, "meaning": "M.", "advice": "A."}])
    }

    /// What is not as it should be.
    fn found(before: &Port, now: &Port) -> Vec<(Level, &'static str, String)> {
        let findings = examine(Some(before), now);
        let bad = findings
            .into_iter()
            .filter(|finding| finding.level > Level::Ok);
        bad.map(|finding| (finding.level, finding.check, finding.finding))
            .collect()
    }

    #[track_caller]
    fn finds(change: impl FnOnce(&mut Value), level: Level, check: &str, part: &str) {
        let (before, now) = (port(|_| ()), port(change));
        let found = found(&before, &now);
        let fits = |(l, c, text): &(Level, &str, String)| {
            *l == level && *c == check && text.contains(part)
        };
        assert!(found.iter().any(fits), "{found:?}");
    }

    #[test]
    fn a_port_that_is_well_has_nothing_to_be_done() {
        let well = port(|_| ());
        assert_eq!(found(&well, &well), []);
        let dropped = port(|port| port["counters"]["drops"] = drop(7));
        assert_eq!(found(&dropped, &dropped), [], "what is over is over");
    }

    #[test]
    fn each_illness_is_found() {
        finds(
            |port| port["state"] = "faulted".into(),
            Level::Problem,
            "state",
            "faulted",
        );
        finds(
            |port| port["state"] = "listening".into(),
            Level::Warning,
            "state",
            "listening",
        );
        finds(
            |port| port["device"]["memory_regions"] = 0.into(),
            Level::Problem,
            "memory",
            "not shared",
        );
        finds(
            |port| port["device"]["features_acked"] = json!(["CSUM"]),
            Level::Warning,
            "features",
            "MRG_RXBUF",
        );
        finds(
            |port| {
                port["queue_pairs"] = 4.into();
                port["device"]["features_acked"] = json!(["MRG_RXBUF"]);
            },
            Level::Warning,
            "features",
            "4 queue pairs",
        );
        finds(
            |port| port["device"]["rings"][0]["fault"] = "a loop".into(),
            Level::Problem,
            "rings",
            "a loop",
        );
        finds(
            |port| port["device"]["rings"][1]["enabled"] = false.into(),
            Level::Warning,
            "rings",
            "disabled",
        );
        finds(
            |port| port["device"]["notes"] = json!(["odd"]),
            Level::Warning,
            "notes",
            "odd",
        );
    }

    #[test]
    fn a_guest_that_takes_nothing_is_told_from_one_that_is_slow() {
        let change = |frames: u64| {
            move |port: &mut Value| {
                port["counters"]["drops"] = drop(7);
                port["counters"]["guest_rx_frames"] = frames.into();
            }
        };
        finds(change(10), Level::Problem, "drops", "took none");
        finds(
            change(11),
            Level::Warning,
            "drops",
            "7 frames in the last second",
        );
        finds(change(11), Level::Warning, "ring_size", "256 entries");
    }

    /// A port before and after a second in which these things changed.
    #[track_caller]
    fn over_a_second(
        both: impl Fn(&mut Value),
        later: impl FnOnce(&mut Value),
    ) -> Vec<(Level, &'static str, String)> {
        let before = port(&both);
        let now = port(|port| {
            both(port);
            later(port);
        });
        found(&before, &now)
    }

    #[test]
    fn a_guest_tx_ring_is_stuck_when_frames_wait_in_it_and_none_is_taken() {
        let waits = |port: &mut Value| port["rings"][1]["offered"] = 3.into();
        let found = over_a_second(waits, |_| ());
        let [(Level::Problem, "rings", text)] = found.as_slice() else {
            panic!("{found:?}")
        };
        assert!(
            text.contains("ring 1 (guest_tx) is stuck: 3 frames wait"),
            "{text}"
        );
        // It goes on, they came just now, or the front-end holds it.
        let none = [];
        assert_eq!(
            over_a_second(waits, |port| port["rings"][1]["frames"] = 11.into()),
            none
        );
        assert_eq!(over_a_second(|_| (), waits), none);
        assert_eq!(
            over_a_second(waits, |port| port["state"] = "negotiating".into())
                .iter()
                .filter(|(_, check, _)| *check == "rings")
                .count(),
            0
        );
        let disabled = over_a_second(waits, |port| {
            port["device"]["rings"][1]["enabled"] = false.into();
        });
        let [(Level::Warning, "rings", text)] = disabled.as_slice() else {
            panic!("{disabled:?}")
        };
        assert!(text.contains("keeps it disabled"), "{text}");
    }

    #[test]
    fn a_guest_rx_ring_is_stuck_when_it_stays_without_buffers_and_frames_are_dropped_for_it() {
        let empty = |port: &mut Value| port["rings"][0]["offered"] = 0.into();
        let drops = |port: &mut Value| port["rings"][0]["full"] = 7.into();
        let found = over_a_second(empty, drops);
        let [(Level::Problem, "rings", text)] = found.as_slice() else {
            panic!("{found:?}")
        };
        assert!(
            text.contains("ring 0 (guest_rx) is stuck") && text.contains("7 batches"),
            "{text}"
        );
        // Nobody sends to it, it has buffers again, or it took some.
        assert_eq!(over_a_second(empty, |_| ()), []);
        assert_eq!(
            over_a_second(empty, |port| {
                drops(port);
                port["rings"][0]["offered"] = 1.into();
            }),
            []
        );
        assert_eq!(
            over_a_second(empty, |port| {
                drops(port);
                port["rings"][0]["frames"] = 11.into();
            }),
            []
        );
    }

    #[test]
    fn a_socket_that_is_gone_is_found() {
        let change = |port: &mut Value| {
            port["mode"] = "server".into();
            port["socket"] = "/nonexistent/vm1.sock".into();
        };
        finds(change, Level::Problem, "socket", "/nonexistent/vm1.sock");
    }
}
