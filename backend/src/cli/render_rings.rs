//! How full rings are, as text: for `port show`, `top` and `stats --watch`.
use super::table::Align::Right;
use super::table::Table;
use crate::rest::wire::RingRow;
use std::collections::BTreeMap;

/// Of a port, in percent: how full the fullest guest-tx ring is of frames that wait, and how many buffers are free in the guest-rx ring that
/// has the fewest; `-` for a port without rings that run.
pub fn worst(rings: &[RingRow]) -> [String; 2] {
    let (sent, received): (Vec<&RingRow>, Vec<&RingRow>) =
        rings.iter().partition(|ring| ring.is_guest_tx());
    let waiting = sent.iter().map(|ring| ring.share()).reduce(f64::max);
    let free = received.iter().map(|ring| ring.share()).reduce(f64::min);
    [waiting, free].map(|share| match share {
        Some(share) => format!("{:.0}", share * 100.0),
        None => "-".to_owned(),
    })
}

/// A line for each queue pair.
pub fn pairs(rings: &[RingRow]) -> String {
    let mut pairs: BTreeMap<u16, [Option<&RingRow>; 2]> = BTreeMap::new();
    for ring in rings {
        let [tx, rx] = pairs.entry(ring.pair).or_default();
        *(if ring.is_guest_tx() { tx } else { rx }) = Some(ring);
    }
    let mut table = Table::new(&[
        ("PAIR", Right),
        ("TX_WAITING", Right),
        ("TX_SIZE", Right),
        ("RX_FREE", Right),
        ("RX_SIZE", Right),
    ]);
    for (pair, [tx, rx]) in pairs {
        let cells = |ring: Option<&RingRow>| match ring {
            Some(ring) => [ring.offered.to_string(), ring.size.to_string()],
            None => ["-".to_owned(), "-".to_owned()],
        };
        let cells = [
            [pair.to_string()].to_vec(),
            cells(tx).to_vec(),
            cells(rx).to_vec(),
        ];
        table.row(cells.concat());
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(pair: u16, direction: &str, offered: u16) -> RingRow {
        RingRow {
            pair,
            direction: direction.to_owned(),
            size: 256,
            offered,
            frames: 0,
            full: 0,
        }
    }

    #[test]
    fn a_port_is_shown_by_its_worst_rings() {
        let rings = [
            ring(0, "guest_rx", 256),
            ring(0, "guest_tx", 0),
            ring(1, "guest_rx", 64),
            ring(1, "guest_tx", 128),
        ];
        assert_eq!(worst(&rings), ["50", "25"]);
        assert_eq!(worst(&rings[1..2]), ["0", "-"]);
        assert_eq!(worst(&[]), ["-", "-"]);
    }

    #[test]
    fn each_pair_has_a_line() {
        let rings = [
            ring(1, "guest_tx", 3),
            ring(0, "guest_rx", 250),
            ring(0, "guest_tx", 0),
        ];
        let expected = "\
PAIR  TX_WAITING  TX_SIZE  RX_FREE  RX_SIZE
   0           0      256      250      256
   1           3      256        -        -
";
        assert_eq!(pairs(&rings), expected);
    }
}
