//! From turns to figures. Pure. Keeps true: ratios compare turns of the same round only.

use super::Side;
use super::iperf::{Case, Traffic};
use crate::stats::Spread;

/// One side's turn in a round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Turn {
    /// Who.
    pub side: Side,
    /// What arrived.
    pub traffic: Traffic,
    /// CPU time of the switch, in seconds; a kernel bridge has none of its own.
    pub switch_cpu_s: Option<f64>,
    /// System time of both QEMUs, in seconds: notifications, interrupts, and with a bridge all of the forwarding.
    pub qemu_system_s: f64,
}

/// One case.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Which.
    pub case: Case,
    /// Cache-line round trips of the two cores before each round and after the last, in nanoseconds.
    pub round_trips_ns: Vec<f64>,
    /// The turns of each round.
    pub rounds: Vec<Vec<Turn>>,
    /// Who failed, and why.
    pub failed: Vec<(Side, String)>,
}

impl Turn {
    /// Share of a core that the switch used, at most 1: all it used around the flow counts as if used during it.
    pub fn switch_share(&self) -> Option<f64> {
        Some((self.switch_cpu_s? / self.traffic.seconds).min(1.0))
    }

    /// Share of a core that both QEMUs spent in the kernel.
    pub fn qemu_system_share(&self) -> f64 {
        self.qemu_system_s / self.traffic.seconds
    }

    /// CPU time of the switch, in nanoseconds, for each bit (TCP) or datagram (UDP) that arrived.
    pub fn switch_ns_each(&self) -> Option<f64> {
        Some(1e9 * self.switch_share()? / self.traffic.per_second)
    }
}

impl Outcome {
    /// Some value of one side's turns.
    pub fn of_side(&self, side: Side, value: impl Fn(&Turn) -> Option<f64>) -> Option<Spread> {
        let turns = self.rounds.iter().flatten();
        Spread::of(turns.filter(|turn| turn.side == side).filter_map(value))
    }

    /// Ringswitch's value over another side's, in each round that has both.
    pub fn ratio(&self, other: Side, value: impl Fn(&Turn) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.rounds.iter().filter_map(|round| {
            let of = |side| value(round.iter().find(|turn| turn.side == side)?);
            let (ours, theirs) = (of(Side::Ringswitch)?, of(other)?);
            (theirs > 0.0).then_some(ours / theirs)
        }))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn turn(side: Side, per_second: f64, switch_cpu_s: Option<f64>) -> Turn {
        Turn {
            side,
            traffic: Traffic {
                per_second,
                seconds: 4.0,
                lost: None,
            },
            switch_cpu_s,
            qemu_system_s: 1.0,
        }
    }

    pub fn outcome() -> Outcome {
        let round = |ours, theirs| {
            vec![
                turn(Side::Ringswitch, ours, Some(1.0)),
                turn(Side::Ovs, theirs, Some(5.0)),
                turn(Side::Bridge, 1e9, None),
            ]
        };
        Outcome {
            case: Case::TcpOne,
            round_trips_ns: vec![60.0],
            rounds: vec![round(4e9, 2e9), round(6e9, 2e9), round(1e9, 2e9)],
            failed: vec![],
        }
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let ratio = outcome().ratio(Side::Ovs, |turn| Some(turn.traffic.per_second));
        let ratio = ratio.unwrap();
        assert_eq!((ratio.min, ratio.median, ratio.max), (0.5, 2.0, 3.0));
    }

    #[test]
    fn no_switch_uses_more_than_its_core_and_a_bridge_is_not_free() {
        let of = |side| outcome().of_side(side, Turn::switch_share);
        assert_eq!(of(Side::Ringswitch).unwrap().median, 0.25);
        assert_eq!(of(Side::Ovs).unwrap().max, 1.0);
        assert_eq!(of(Side::Bridge), None);
        assert_eq!(outcome().ratio(Side::Bridge, Turn::switch_share), None);
    }

    #[test]
    fn cpu_for_the_same_traffic_is_by_what_arrived() {
        // A quarter of a core for 4, 6 and 1 Gbit/s; OVS a whole one for 2.
        let ratio = outcome().ratio(Side::Ovs, Turn::switch_ns_each).unwrap();
        assert_eq!((ratio.median, ratio.max), (0.125, 0.5));
    }
}
