//! What is raced: the cases by name, and the rig each needs.
//!
//! A table, read by the race. Keeps true: cases with the same rig follow each other, so that switches and guests are started once for all of them.

use std::time::Duration;

use crate::network::Network;
use crate::switch::Side;

/// What kind of ring the guest offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// Split, mergeable buffers.
    Split,
    /// Packed, in order, mergeable buffers.
    Packed,
    /// Packed, in order, no mergeable buffers: what testpmd's vectorised driver takes.
    PackedVectorised,
}

impl Ring {
    /// Whether RING_PACKED is wanted.
    pub fn is_packed(self) -> bool {
        self != Self::Split
    }
}

/// How long the rig's frames get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frames {
    /// Up to 1,518 bytes.
    Standard,
    /// Up to 9,000 bytes.
    Jumbo,
    /// TCP segmentation offload.
    Tso,
}

/// Who plays the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Player {
    /// DPDK's testpmd, which is nobody's of the three.
    Testpmd,
    /// The repository's own, where testpmd cannot.
    GuestSim,
}

impl Player {
    /// As results are labelled.
    pub fn label(self) -> &'static str {
        match self {
            Self::Testpmd => "testpmd",
            Self::GuestSim => "guest-sim",
        }
    }
}

/// What has to be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rig {
    /// Of every port.
    pub ring: Ring,
    /// Of every port.
    pub frames: Frames,
    /// Ports that take part.
    pub ports: usize,
    /// Ports that are connected and silent.
    pub idle: usize,
    /// Of every port that takes part.
    pub player: Player,
    /// What is known of the ports' traffic.
    pub network: Network,
    /// What Ringswitch is compared with instead of others, if it is.
    pub reference: Option<Reference>,
}

/// What Ringswitch is itself without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reference {
    /// The network: the default program, `l2`, with nothing in its way.
    PlainNetwork,
    /// The attack: everything else is the same.
    NoAttack,
}

/// OVS-DPDK is given no more ports than this: it takes 1,000, and then closes the connections of guests that come to them.
const OVS_MOST_PORTS: usize = 66;

impl Rig {
    const fn of(player: Player) -> Self {
        Self {
            ring: Ring::Split,
            frames: Frames::Standard,
            ports: 2,
            idle: 0,
            player,
            network: Network::Plain,
            reference: None,
        }
    }

    const fn with(self, network: Network) -> Self {
        Self { network, ..self }
    }

    /// Whether a side takes part.
    pub fn is_for(&self, side: Side) -> bool {
        match side {
            Side::Ringswitch => true,
            Side::Ovs => self.reference.is_none(),
            // It has no rules.
            Side::Io => self.reference.is_none() && self.network == Network::Plain,
            Side::Reference => self.reference.is_some(),
        }
    }

    /// What a side is told about the traffic.
    pub fn network_for(&self, side: Side) -> Network {
        match (side, self.reference) {
            (Side::Reference, Some(Reference::PlainNetwork)) => Network::Plain,
            _ => self.network,
        }
    }

    /// Idle ports that a side gets of those the case asks for.
    pub fn idle_for(&self, side: Side) -> usize {
        match side {
            Side::Ovs => self.idle.min(OVS_MOST_PORTS - self.ports),
            Side::Ringswitch | Side::Io | Side::Reference => self.idle,
        }
    }
}

/// What the guest does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// Two ports send each other's frames back: frames go both ways all the time.
    Bounce {
        /// Of each frame, without FCS.
        frame_bytes: usize,
        /// Frames the guest takes and gives at a time.
        burst: usize,
        /// Pairs of UDP ports the frames are sent with.
        flows: u32,
        /// Of each of the guest's buffers: longer frames are spread over several.
        buffer_bytes: usize,
    },
    /// Two ports talk to each other in UDP over IPv4, 64 bytes a frame, as the rig's network allows.
    Talk {
        /// What about.
        about: About,
        /// How many conversations.
        flows: u32,
        /// Whether port 2 sends frames with addresses and ports at random.
        attack: bool,
    },
    /// Port 0 sends to port 1, and each frame opens a connection.
    Open,
    /// Port 0 sends to port 1, a limited number being on its way.
    OneWay {
        /// Of each frame.
        frame_bytes: usize,
    },
    /// One frame at a time, to and fro; each way is timed.
    Ping {
        /// Of each frame.
        frame_bytes: usize,
        /// For how long nothing happens before each.
        idle: Duration,
    },
    /// Port 0 sends to each of the others in turn.
    FanOut {
        /// Of each frame.
        frame_bytes: usize,
    },
    /// Every port but 0 sends to port 0 as much as is taken from it.
    FanIn {
        /// Sizes of frames: each sender has one of them, in turn.
        frame_bytes: &'static [usize],
    },
    /// Port 0 sends to everybody.
    Flood {
        /// Of each frame.
        frame_bytes: usize,
    },
}

/// Which conversations are led.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// Each with a port of the client's: one rule allows what the client says, one what the server does.
    OwnRules,
    /// Between any addresses: rules all over the access list allow them.
    AllRules,
    /// Each with a port of the client's; the server answers what it gets, so that they are connections.
    Connections,
}

impl Load {
    /// Whether a switch may choose the best of its settings for it.
    pub fn wants_best_setting(&self) -> bool {
        matches!(self, Self::Open)
            || matches!(self, Self::Bounce { flows, .. } | Self::Talk { flows, .. } if *flows > 1)
    }

    /// Whether a switch that loses frames has failed: it would be fast by forwarding less.
    pub fn must_arrive(&self) -> bool {
        matches!(self, Self::Talk { .. } | Self::Open)
    }

    /// Whether somebody sends what is not meant to arrive.
    pub fn is_attacked(&self) -> bool {
        matches!(self, Self::Talk { attack: true, .. })
    }

    /// Connections that a switch must be tracking while this is on its way.
    pub fn connections(&self) -> usize {
        match self {
            Self::Talk {
                about: About::Connections,
                flows,
                ..
            } => *flows as usize,
            _ => 0,
        }
    }

    /// What a side is given of it.
    #[must_use]
    pub fn for_side(self, side: Side, reference: Option<Reference>) -> Self {
        match (side, reference, self) {
            (Side::Reference, Some(Reference::NoAttack), Self::Talk { about, flows, .. }) => {
                Self::Talk {
                    about,
                    flows,
                    attack: false,
                }
            }
            _ => self,
        }
    }

    /// Whether each ping waits for a while, so that a switch that can sleep does.
    pub fn is_from_sleep(&self) -> bool {
        matches!(self, Self::Ping { idle, .. } if !idle.is_zero())
    }
}

/// One line of the result.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// For `--only`, the records and JSON.
    pub name: &'static str,
    /// What it runs on.
    pub rig: Rig,
    /// What is done.
    pub load: Load,
    /// Whether `--quick` has it.
    pub quick: bool,
}

impl Case {
    const fn of(name: &'static str, rig: Rig, load: Load) -> Self {
        Self {
            name,
            rig,
            load,
            quick: false,
        }
    }

    const fn quick(self) -> Self {
        Self {
            quick: true,
            ..self
        }
    }

    /// The same with guest-sim in testpmd's place.
    #[must_use]
    pub fn played_by_guest_sim(mut self) -> Self {
        self.rig.player = Player::GuestSim;
        self
    }
}

const fn bounce(frame_bytes: usize) -> Load {
    Load::Bounce {
        frame_bytes,
        burst: 32,
        flows: 1,
        buffer_bytes: STANDARD_BUFFER,
    }
}

const fn bursts(frame_bytes: usize, burst: usize) -> Load {
    Load::Bounce {
        frame_bytes,
        burst,
        flows: 1,
        buffer_bytes: STANDARD_BUFFER,
    }
}

const fn flows(flows: u32) -> Load {
    Load::Bounce {
        frame_bytes: 64,
        burst: 64,
        flows,
        buffer_bytes: STANDARD_BUFFER,
    }
}

const fn long(frame_bytes: usize, buffer_bytes: usize) -> Load {
    Load::Bounce {
        frame_bytes,
        burst: 32,
        flows: 1,
        buffer_bytes,
    }
}

const fn talk(about: About, flows: u32) -> Load {
    Load::Talk {
        about,
        flows,
        attack: false,
    }
}

const fn attacked(about: About, flows: u32) -> Load {
    Load::Talk {
        about,
        flows,
        attack: true,
    }
}

const STANDARD_BUFFER: usize = 2048;
/// Long enough for every poll window of a switch that sleeps.
const IDLE: Duration = Duration::from_millis(2);
const NO_IDLE: Duration = Duration::ZERO;
/// A TSO frame.
const TSO_BYTES: usize = 65_000;

/// Every case, in the order in which they are run.
pub fn all() -> Vec<Case> {
    let testpmd = Rig::of(Player::Testpmd);
    let sim = Rig::of(Player::GuestSim);
    let jumbo = Rig {
        frames: Frames::Jumbo,
        ..testpmd
    };
    let tso = Rig {
        frames: Frames::Tso,
        ..sim
    };
    let packed = Rig {
        ring: Ring::Packed,
        ..testpmd
    };
    let vectorised = Rig {
        ring: Ring::PackedVectorised,
        ..testpmd
    };
    let idle = |idle| Rig { idle, ..testpmd };
    let ports = |ports| Rig { ports, ..sim };
    let access_list = sim.with(Network::AccessList);
    let groups = sim.with(Network::Groups);
    let beside_plain = Rig {
        reference: Some(Reference::PlainNetwork),
        ..sim.with(Network::LongGroups)
    };
    let beside_peace = Rig {
        reference: Some(Reference::NoAttack),
        ..ports(3).with(Network::AccessList)
    };
    vec![
        Case::of("64", testpmd, bounce(64)).quick(),
        Case::of("128", testpmd, bounce(128)),
        Case::of("256", testpmd, bounce(256)),
        Case::of("512", testpmd, bounce(512)).quick(),
        Case::of("1024", testpmd, bounce(1024)),
        Case::of("1518", testpmd, bounce(1518)).quick(),
        Case::of("64-burst-4", testpmd, bursts(64, 4)),
        Case::of("64-burst-32", testpmd, bursts(64, 32)),
        Case::of("9000", jumbo, long(9000, 9600)).quick(),
        Case::of("tso-17-segments", tso, long(TSO_BYTES, 3840)).quick(),
        Case::of("tso-1-segment", tso, long(TSO_BYTES, 65_600)).quick(),
        Case::of("64-one-way", sim, Load::OneWay { frame_bytes: 64 }),
        Case::of("1518-one-way", sim, Load::OneWay { frame_bytes: 1518 }),
        Case::of("64-flows-1", sim, flows(1)).quick(),
        Case::of("64-flows-1000", sim, flows(1000)),
        Case::of("64-flows-100000", sim, flows(100_000)).quick(),
        Case::of("ping-64", sim, ping(64, NO_IDLE)).quick(),
        Case::of("ping-1518", sim, ping(1518, NO_IDLE)),
        Case::of("ping-64-from-sleep", sim, ping(64, IDLE)).quick(),
        Case::of("packed-64", packed, bounce(64)),
        Case::of("packed-512", packed, bounce(512)),
        Case::of("packed-1518", packed, bounce(1518)),
        Case::of("packed-64-vectorised", vectorised, bounce(64)).quick(),
        Case::of("64-idle-64", idle(64), bounce(64)),
        Case::of("64-idle-1000", idle(1000), bounce(64)),
        Case::of("fan-out-8", ports(9), Load::FanOut { frame_bytes: 64 }),
        Case::of("fan-in-8", ports(9), fan_in(&[64])),
        Case::of("fan-in-8-mixed", ports(9), fan_in(&[64, 1518])),
        Case::of("flood-64", ports(65), Load::Flood { frame_bytes: 64 }),
        Case::of("rules-10k", access_list, talk(About::OwnRules, 1000)),
        Case::of(
            "rules-10k-spread",
            access_list,
            talk(About::AllRules, 10_000),
        ),
        Case::of("conntrack-1k", groups, talk(About::Connections, 1000)),
        Case::of("conntrack-100k", groups, talk(About::Connections, 100_000)),
        Case::of("connections-new", groups, Load::Open),
        Case::of("vpc-vs-l2", beside_plain, talk(About::Connections, 1000)),
        Case::of("explosion", beside_peace, attacked(About::OwnRules, 1000)),
    ]
}

const fn ping(frame_bytes: usize, idle: Duration) -> Load {
    Load::Ping { frame_bytes, idle }
}

const fn fan_in(frame_bytes: &'static [usize]) -> Load {
    Load::FanIn { frame_bytes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_fit_a_table() {
        let cases = all();
        let names: HashSet<_> = cases.iter().map(|case| case.name).collect();
        assert_eq!(names.len(), cases.len());
        assert!(names.iter().all(|name| !name.contains(['|', ' ', ','])));
    }

    #[test]
    fn cases_of_one_rig_follow_each_other() {
        let cases = all();
        let groups: Vec<_> = cases.chunk_by(|a, b| a.rig == b.rig).collect();
        for (at, group) in groups.iter().enumerate() {
            let later = groups.iter().skip(at + 1);
            assert!(later.clone().all(|other| other[0].rig != group[0].rig));
        }
    }

    #[test]
    fn a_frame_of_17_segments_has_17_and_one_of_1_has_1() {
        let segments = |name| {
            let case = all().into_iter().find(|case| case.name == name).unwrap();
            let Load::Bounce {
                frame_bytes,
                buffer_bytes,
                ..
            } = case.load
            else {
                panic!("{name} does not bounce");
            };
            (frame_bytes + 12).div_ceil(buffer_bytes)
        };
        assert_eq!(segments("tso-17-segments"), 17);
        assert_eq!(segments("tso-1-segment"), 1);
    }

    #[test]
    fn ringswitch_is_raced_with_others_or_with_itself() {
        for case in all() {
            let others = case.rig.is_for(Side::Ovs);
            assert!(case.rig.is_for(Side::Ringswitch));
            assert_ne!(others, case.rig.is_for(Side::Reference), "{}", case.name);
            if case.rig.network != Network::Plain {
                assert!(!case.rig.is_for(Side::Io), "{}", case.name);
            }
        }
    }

    #[test]
    fn a_reference_is_without_what_the_case_is_about_and_else_the_same() {
        let case = |name| all().into_iter().find(|case| case.name == name).unwrap();
        let plain = case("vpc-vs-l2");
        assert_eq!(plain.rig.network_for(Side::Reference), Network::Plain);
        assert_eq!(plain.rig.network_for(Side::Ringswitch), Network::LongGroups);
        let load = |side| plain.load.for_side(side, plain.rig.reference);
        assert_eq!(load(Side::Reference), load(Side::Ringswitch));
        let attacked = case("explosion");
        assert_eq!(
            attacked.rig.network_for(Side::Reference),
            Network::AccessList
        );
        let load = |side| attacked.load.for_side(side, attacked.rig.reference);
        assert_eq!(
            load(Side::Ringswitch),
            super::attacked(About::OwnRules, 1000)
        );
        assert_eq!(load(Side::Reference), talk(About::OwnRules, 1000));
    }

    #[test]
    fn ovs_gets_the_idle_ports_it_can_take() {
        let case = |name| all().into_iter().find(|case| case.name == name).unwrap();
        assert_eq!(case("64-idle-64").rig.idle_for(Side::Ovs), 64);
        assert_eq!(case("64-idle-1000").rig.idle_for(Side::Ovs), 64);
        assert_eq!(case("64-idle-1000").rig.idle_for(Side::Ringswitch), 1000);
    }
}
