//! testpmd as a guest: two `virtio_user` ports on one core, each frame that arrives at one goes out at the other with its addresses rewritten.

use std::path::Path;
use std::time::Duration;

use guest_sim::Nic;

use super::{Guest, Rate, Seen};
use crate::case::{Frames, Load, Rig, Ring};
use crate::error::{Error, Result};
use crate::machine::Machine;
use crate::switch::Switch;
use crate::testpmd::{PortRates, Testpmd};

/// Frames on their way at any time, both directions together: half of what two receive rings hold.
const IN_FLIGHT: usize = 512;
/// How often traffic is started anew when it flows in one direction only: frames are lost while a switch learns.
const ATTEMPTS: usize = 5;
const SETTLE: Duration = Duration::from_millis(100);

/// A testpmd guest.
pub struct TestpmdGuest {
    testpmd: Testpmd,
    /// Held open, and silent.
    _idle: Vec<Nic>,
}

impl TestpmdGuest {
    /// Starts it and connects it.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(machine: &Machine, folder: &Path, rig: &Rig, switch: &dyn Switch) -> Result<Self> {
        let core = machine.guest_core;
        let mut environment: Vec<String> = ["--no-pci", "--in-memory", "--single-file-segments"]
            .map(str::to_owned)
            .into();
        environment.push(format!("--file-prefix=race-guest-{}", switch.side().key()));
        environment.push(format!("--lcores=0@{core},1@{core}"));
        environment.push("--socket-mem=320".into());
        let ring = match rig.ring {
            Ring::Split => "",
            Ring::Packed => ",packed_vq=1,in_order=1",
            Ring::PackedVectorised => ",packed_vq=1,in_order=1,mrg_rxbuf=0,vectorized=1",
        };
        if rig.ring == Ring::PackedVectorised {
            // The vectorised driver is for AVX-512, which DPDK uses only when told so.
            environment.push("--force-max-simd-bitwidth=512".into());
        }
        for port in 0..2 {
            let socket = switch.socket(port);
            environment.push(format!(
                "--vdev=net_virtio_user{port},mac={},path={},queues=1,queue_size=1024{ring}",
                mac(port),
                socket.display()
            ));
        }
        let mut own: Vec<String> = ["--nb-cores=1", "--no-mlockall", "--txd=1024", "--rxd=1024"]
            .map(str::to_owned)
            .into();
        match rig.frames {
            Frames::Standard => own.push("--total-num-mbufs=65536".into()),
            // Several buffers a frame, as guests have them: SCATTER and MULTI_SEGS.
            Frames::Jumbo => own.extend([
                "--total-num-mbufs=65536".into(),
                "--max-pkt-len=9100".into(),
                "--rx-offloads=0x2000".into(),
                "--tx-offloads=0x8000".into(),
            ]),
            Frames::Tso => {
                let why = "testpmd cannot forward TSO frames as they are";
                return Err(Error::NotOffered(why.into()));
            }
        }
        let mut testpmd = Testpmd::start(folder, "guest", &environment, &own)?;
        testpmd.commands(&[
            "set fwd mac".into(),
            format!("set eth-peer 0 {}", mac(1)),
            format!("set eth-peer 1 {}", mac(0)),
        ])?;
        let idle = super::idle_ports(rig, switch)?;
        Ok(Self {
            testpmd,
            _idle: idle,
        })
    }

    fn start_traffic(&mut self, frame_bytes: usize, burst: usize) -> Result<Vec<PortRates>> {
        // Once for the switch to learn both addresses. Starting drops what an earlier start left in the rings.
        for bursts in [1, IN_FLIGHT / 2 / burst] {
            self.testpmd.commands(&[
                "stop".into(),
                format!("set burst {burst}"),
                format!("set txpkts {}", segments(frame_bytes)),
                format!("start tx_first {bursts}"),
            ])?;
            self.testpmd.rates()?;
            std::thread::sleep(SETTLE);
        }
        self.testpmd.rates()
    }
}

/// The frame in pieces that fit testpmd's buffers, as `set txpkts` takes them.
fn segments(frame_bytes: usize) -> String {
    const MOST: usize = 2048;
    let count = frame_bytes.div_ceil(MOST);
    let pieces = (0..count).map(|piece| {
        let size = frame_bytes * (piece + 1) / count - frame_bytes * piece / count;
        size.to_string()
    });
    pieces.collect::<Vec<_>>().join(",")
}

fn mac(port: usize) -> String {
    format!("52:54:00:00:00:{:02x}", port + 1)
}

/// Whether about as many frames arrive at one port as at the other.
fn is_balanced(rates: &[PortRates]) -> bool {
    let frames = || rates.iter().map(|rate| rate.frames_per_s);
    let (least, most) = (frames().min().unwrap_or(0), frames().max().unwrap_or(0));
    rates.len() == 2 && least > 0 && 2 * least >= most
}

fn rate(rates: &[PortRates]) -> Rate {
    rates.iter().fold(Rate::default(), |sum, port| Rate {
        frames_per_s: sum.frames_per_s + port.frames_per_s as f64,
        bits_per_s: sum.bits_per_s + port.bits_per_s as f64,
        arrived: None,
        fairness: None,
    })
}

impl Guest for TestpmdGuest {
    fn freeze(&mut self) -> Result<()> {
        self.testpmd.process().freeze()
    }

    fn thaw(&mut self) -> Result<()> {
        self.testpmd.process().thaw()
    }

    fn load(&mut self, load: &Load) -> Result<()> {
        let Load::Bounce {
            frame_bytes,
            burst,
            flows: 1,
            ..
        } = *load
        else {
            let why = "testpmd cannot play this: use guest-sim";
            return Err(Error::NotOffered(why.into()));
        };
        let mut rates = Vec::new();
        for _ in 0..ATTEMPTS {
            rates = self.start_traffic(frame_bytes, burst)?;
            if is_balanced(&rates) {
                return Ok(());
            }
        }
        Err(Error::Invalid(format!(
            "traffic does not flow both ways, after {ATTEMPTS} attempts: {rates:?}"
        )))
    }

    fn warm_up(&mut self, time: Duration) -> Result<()> {
        std::thread::sleep(time);
        Ok(())
    }

    fn measure(&mut self, time: Duration) -> Result<Seen> {
        self.testpmd.rates()?;
        std::thread::sleep(time);
        let rates = self.testpmd.rates()?;
        if !is_balanced(&rates) {
            return Err(Error::Invalid(format!(
                "traffic does not flow both ways: {rates:?}"
            )));
        }
        Ok(Seen::Rate(rate(&rates)))
    }

    fn flows_by_itself(&self) -> bool {
        true
    }

    fn stop(self: Box<Self>) -> Result<()> {
        self.testpmd.quit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(frames: &[u64]) -> Vec<PortRates> {
        frames
            .iter()
            .map(|&frames_per_s| PortRates {
                frames_per_s,
                bits_per_s: 512 * frames_per_s,
            })
            .collect()
    }

    #[test]
    fn traffic_in_one_direction_is_not_taken_for_both() {
        assert!(is_balanced(&ports(&[5_000_000, 5_200_000])));
        assert!(!is_balanced(&ports(&[13_000_000, 0])));
        assert!(!is_balanced(&ports(&[9_000_000, 4_000_000])));
        assert!(!is_balanced(&ports(&[0, 0])));
        assert!(!is_balanced(&ports(&[5_000_000])));
    }

    #[test]
    fn long_frames_are_cut_into_pieces_that_add_up() {
        assert_eq!(segments(64), "64");
        assert_eq!(segments(1518), "1518");
        assert_eq!(segments(9000), "1800,1800,1800,1800,1800");
    }

    #[test]
    fn both_directions_are_counted() {
        let both = rate(&ports(&[3, 4]));
        assert_eq!(both.frames_per_s, 7.0);
        assert_eq!(both.bits_per_s, 7.0 * 512.0);
    }
}
