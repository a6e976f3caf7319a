//! What two looks at the counters come to, as text.
use crate::cli::arguments::TopSort;
use crate::cli::render;
use crate::cli::table::{Align, Table};
use crate::rest::wire::{Counters, PortCountersReport, StatsReport};
use clap::ValueEnum;
use std::time::Duration;

/// Workers and ports with their rates, the busiest first, and why frames were dropped in between.
pub fn text(before: &StatsReport, now: &StatsReport, sort: TopSort) -> String {
    let mut sorted = now.clone();
    sorted.ports.sort_by_cached_key(|port| {
        let old = earlier(before, port);
        (rank(sort, &old, &port.counters), port.name.clone())
    });
    format!(
        "{}{}",
        render::rates(before, &sorted),
        drops(before, &sorted)
    )
}

/// The one after it, round and round.
pub fn next_sort(sort: TopSort) -> TopSort {
    let all = TopSort::value_variants();
    let at = all.iter().position(|other| *other == sort).unwrap_or(0);
    all.get(at + 1).or(all.first()).copied().unwrap_or(sort)
}

/// As `--sort` has it.
pub fn sort_name(sort: TopSort) -> String {
    let value = sort.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

/// The port's counters in an earlier look; of a port, or a daemon, that was not there before: none.
fn earlier(before: &StatsReport, port: &PortCountersReport) -> Counters {
    let old = before.ports.iter().find(|old| old.name == port.name);
    old.map(|old| old.counters.clone()).unwrap_or_default()
}

/// What is more comes first.
fn rank(sort: TopSort, old: &Counters, new: &Counters) -> std::cmp::Reverse<u64> {
    let sum = |counters: &Counters| counters.drops.iter().map(|drop| drop.frames).sum();
    let of = |get: &dyn Fn(&Counters) -> u64| get(new).saturating_sub(get(old));
    std::cmp::Reverse(match sort {
        TopSort::Tx => of(&|counters| counters.guest_tx_frames),
        TopSort::Rx => of(&|counters| counters.guest_rx_frames),
        TopSort::Drops => of(&sum),
        TopSort::Busy => of(&|counters| counters.busy_ns),
        TopSort::Name => 0,
    })
}

/// Drops between the looks, most first.
fn drops(before: &StatsReport, now: &StatsReport) -> String {
    let elapsed_us = now
        .uptime_us
        .checked_sub(before.uptime_us)
        .unwrap_or(now.uptime_us);
    let seconds = Duration::from_micros(elapsed_us.max(1)).as_secs_f64();
    let mut rows = Vec::new();
    for port in &now.ports {
        let old = earlier(before, port);
        for drop in &port.counters.drops {
            let had = old.drops.iter().find(|old| old.reason == drop.reason);
            let lately = drop.frames.saturating_sub(had.map_or(0, |had| had.frames));
            if lately > 0 {
                rows.push((lately, port.name.clone(), drop));
            }
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    rows.sort_by_key(|(lately, ..)| std::cmp::Reverse(*lately));
    let mut table = Table::new(&[
        ("PORT", Align::Left),
        ("DROP_REASON", Align::Left),
        ("DROPS/S", Align::Right),
        ("WHAT_TO_DO", Align::Left),
    ]);
    for (lately, name, drop) in rows {
        let rate = format!("{:.0}", lately as f64 / seconds);
        table.row([name, drop.reason.clone(), rate, drop.advice.clone()]);
    }
    format!("\n{}", table.render())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn look(uptime_us: u64, ports: &[(&str, u64, u64, u64)]) -> StatsReport {
        let port = |(name, tx, rx, dropped): &(&str, u64, u64, u64)| {
            let drops = json!([{"reason": "rx_ring_full", "frames": dropped, "meaning": "M.", "advice": "A."}]);
            json!({
                "name": name, "guest_tx_frames": tx, "guest_tx_bytes": 0, "guest_rx_frames": rx, "guest_rx_bytes": 0,
                "drops": drops, "notifications_sent": 0, "notifications_saved": 0,
            })
        };
        let ports: Vec<_> = ports.iter().map(port).collect();
        serde_json::from_value(json!({"uptime_us": uptime_us, "ports": ports, "workers": []}))
            .unwrap()
    }

    fn order(sort: TopSort) -> Vec<String> {
        let before = look(
            1_000_000,
            &[("b", 10, 0, 100), ("a", 0, 0, 0), ("c", 5, 0, 0)],
        );
        let now = look(
            3_000_000,
            &[("b", 11, 0, 102), ("a", 7, 9, 0), ("c", 5, 30, 0)],
        );
        let text = text(&before, &now, sort);
        assert!(text.contains("b     rx_ring_full        1  A."), "{text}");
        assert_eq!(text.matches("rx_ring_full").count(), 1, "{text}");
        let lines = text.lines().skip(1).take(3);
        lines.map(|line| line[..1].to_owned()).collect()
    }

    #[test]
    fn ports_are_sorted_by_what_happened_between_the_looks() {
        assert_eq!(order(TopSort::Tx), ["a", "b", "c"]);
        assert_eq!(order(TopSort::Rx), ["c", "a", "b"]);
        assert_eq!(order(TopSort::Drops), ["b", "a", "c"]);
        assert_eq!(order(TopSort::Name), ["a", "b", "c"]);
    }

    #[test]
    fn sorting_goes_round() {
        let mut sort = TopSort::Tx;
        for _ in TopSort::value_variants() {
            sort = next_sort(sort);
        }
        assert_eq!(
            (sort, sort_name(next_sort(sort)).as_str()),
            (TopSort::Tx, "rx")
        );
    }
}
