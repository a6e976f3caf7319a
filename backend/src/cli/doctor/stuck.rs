//! Rings that stand still between two looks: frames wait and nobody takes them, or no buffer is free and frames are dropped for it.
use super::Findings;
use crate::rest::wire::{Port, RingRow};

/// Every such ring of a port that is up. `is_enabled` says of a ring, by its vhost-user index, whether the front-end lets it be served.
pub fn examine(
    findings: &mut Findings,
    (before, now): (&Port, &Port),
    is_enabled: impl Fn(u16) -> bool,
) {
    if now.state != "up" || before.state != "up" {
        return;
    }
    for ring in &now.rings {
        let is_same = |old: &&RingRow| (old.pair, &old.direction) == (ring.pair, &ring.direction);
        let Some(old) = before.rings.iter().find(is_same) else {
            continue;
        };
        let index = ring.pair.saturating_mul(2) + u16::from(ring.is_guest_tx());
        // One that began anew counts from zero.
        if ring.frames != old.frames || !is_enabled(index) {
            continue;
        }
        let name = format!("ring {index} ({})", ring.direction);
        let dropped = ring.full.saturating_sub(old.full);
        match ring.is_guest_tx() {
            true if ring.offered > 0 && old.offered > 0 => findings.problem(
                "rings",
                format!("{name} is stuck: {} frames wait in it, and none was taken in the last second", ring.offered),
                &format!(
                    "`ringswitch worker move {}/{} --auto` has it looked at once more: if it goes on then, its VMM lost a kick (report it there); \
                     if not, memory of the guest is missing, behind its IOMMU or while it arrives by postcopy: look at the VMM's log",
                    now.name, ring.pair
                ),
            ),
            false if ring.offered == 0 && old.offered == 0 && dropped > 0 => findings.problem(
                "rings",
                format!("{name} is stuck: it has no free buffer, and frames of {dropped} batches were dropped for it in the last second"),
                "its guest gives none back: it hangs, is paused, or its driver is stuck: look at its console",
            ),
            _ => {}
        }
    }
}
