//! DPDK's `testpmd`, driven through its prompt on a terminal of its own.
//!
//! Plays the guest, and the switch that switches nothing. Called on the main thread. Keeps true: a command is done when its prompt is back;
//! what does not answer in time is an error that shows what it said.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::error::{Doing, Error, Result};
use crate::process::{Process, SOON, last_lines};

/// The program.
pub const PROGRAM: &str = "dpdk-testpmd";
const PROMPT: &str = "testpmd> ";
const QUIT_WITHIN: Duration = Duration::from_secs(5);

/// A running, interactive testpmd.
#[derive(Debug)]
pub struct Testpmd {
    process: Process,
    terminal: File,
    said: String,
}

impl Testpmd {
    /// Starts it and waits for its prompt. `environment` are DPDK's: the arguments before `--`; `own` are testpmd's, after it.
    ///
    /// # Errors
    /// It ends, or is not ready in time: what it said.
    pub fn start(
        folder: &Path,
        name: &str,
        environment: &[String],
        own: &[String],
    ) -> Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let doing = || "making a terminal for testpmd".to_owned();
        let master = openpt(flags).doing(doing)?;
        grantpt(&master).doing(doing)?;
        unlockpt(&master).doing(doing)?;
        let path = ptsname(&master, Vec::new()).doing(doing)?;
        let slave = rustix::fs::open(
            path,
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .doing(doing)?;
        let mut command = Command::new(PROGRAM);
        command.args(environment).arg("--").args(own).arg("-i");
        // Where DPDK keeps its run-time files.
        command.env("RUNTIME_DIRECTORY", folder);
        let process = Process::start_on(&File::from(slave), name, &command)?;
        let mut testpmd = Self {
            process,
            terminal: File::from(master),
            said: String::new(),
        };
        testpmd.read_to_prompt("starting")?;
        Ok(testpmd)
    }

    /// Types a command; what it prints.
    ///
    /// # Errors
    /// It ends, or the prompt does not come back in time.
    pub fn command(&mut self, line: &str) -> Result<String> {
        let name = self.process.name().to_owned();
        self.terminal
            .write_all(format!("{line}\n").as_bytes())
            .doing(|| format!("typing `{line}` for {name}"))?;
        let output = self.read_to_prompt(line)?;
        // testpmd answers what it does not understand, and goes on.
        if ["Bad arguments", "Command not found", "Ambiguous command"]
            .iter()
            .any(|refusal| output.contains(refusal))
        {
            return Err(Error::Program {
                program: format!("{name}: {line}"),
                how: "refused".into(),
                said: output,
            });
        }
        Ok(output)
    }

    /// Types several commands.
    ///
    /// # Errors
    /// As [`Self::command`].
    pub fn commands(&mut self, lines: &[String]) -> Result<()> {
        lines
            .iter()
            .try_for_each(|line| self.command(line).map(drop))
    }

    fn read_to_prompt(&mut self, doing: &str) -> Result<String> {
        let start = Instant::now();
        self.said.clear();
        loop {
            if let Some((output, _)) = self.said.split_once(PROMPT) {
                return Ok(output.to_owned());
            }
            let left = SOON.saturating_sub(start.elapsed());
            if left.is_zero() {
                self.process.check_running()?;
                return Err(Error::Deadline {
                    what: format!("{}: the prompt after `{doing}`", self.process.name()),
                    within: SOON,
                    said: format!("; the end of what it said:\n{}", last_lines(&self.said)),
                });
            }
            self.read_some(left)?;
        }
    }

    fn read_some(&mut self, within: Duration) -> Result<()> {
        let name = self.process.name().to_owned();
        let ended = |said: &str| Error::Ended {
            name: name.clone(),
            how: "its terminal was closed".into(),
            said: last_lines(said),
        };
        let timeout = Timespec::try_from(within).unwrap_or_default();
        let mut polled = [PollFd::from_borrowed_fd(
            self.terminal.as_fd(),
            PollFlags::IN,
        )];
        if poll(&mut polled, Some(&timeout)).doing(|| format!("waiting for {name}"))? == 0 {
            return Ok(());
        }
        let mut bytes = [0; 16384];
        match self.terminal.read(&mut bytes) {
            // EIO: nobody has the other end open any more.
            Ok(0) | Err(_) => Err(ended(&self.said)),
            Ok(count) => {
                let text = String::from_utf8_lossy(bytes.get(..count).unwrap_or_default());
                self.said.push_str(&text);
                Ok(())
            }
        }
    }

    /// The process, to freeze and thaw.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Ends it.
    ///
    /// # Errors
    /// It cannot be signalled.
    pub fn quit(mut self) -> Result<()> {
        self.process.thaw()?;
        // Its memory goes with it: nothing is lost when it does not answer, or not in time.
        if self.terminal.write_all(b"quit\n").is_ok() {
            let _gone = self.process.wait(QUIT_WITHIN);
        }
        Ok(())
    }

    /// Rates of every port since the last call, by testpmd's own clock, read together with its counters.
    ///
    /// # Errors
    /// As [`Self::command`].
    pub fn rates(&mut self) -> Result<Vec<PortRates>> {
        let text = self.command("show port stats all")?;
        let rates = parse_rates(&text);
        if rates.is_empty() {
            let what = "the statistics of a port";
            return Err(Error::Unparsed { what, text });
        }
        Ok(rates)
    }

    /// Cycles spent on forwarded frames since the last `clear fwd stats all`; needs `set record-core-cycles on`.
    ///
    /// # Errors
    /// As [`Self::command`].
    pub fn cycles(&mut self) -> Result<ForwardCycles> {
        let text = self.command("show fwd stats all")?;
        parse_cycles(&text).ok_or(Error::Unparsed {
            what: "CPU cycles/packet",
            text,
        })
    }
}

/// What one port received, per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortRates {
    /// Frames.
    pub frames_per_s: u64,
    /// Bits of them.
    pub bits_per_s: u64,
}

fn parse_rates(text: &str) -> Vec<PortRates> {
    let number = |line: &str, key: &str| -> Option<u64> {
        let (_, rest) = line.split_once(key)?;
        rest.split_whitespace().next()?.parse().ok()
    };
    text.lines()
        .filter_map(|line| {
            Some(PortRates {
                frames_per_s: number(line, "Rx-pps:")?,
                bits_per_s: number(line, "Rx-bps:")?,
            })
        })
        .collect()
}

/// What forwarding cost. Polls that found nothing are not in it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ForwardCycles {
    /// Time-stamp counter cycles in polls that found frames.
    pub busy_cycles: f64,
    /// Frames.
    pub frames: f64,
}

/// `CPU cycles/packet=145.20 (total cycles=1452000 / total RX packets=10000) at 2600 MHz Clock`.
fn parse_cycles(text: &str) -> Option<ForwardCycles> {
    let line = text
        .lines()
        .find(|line| line.contains("CPU cycles/packet="))?;
    let after = |key: &str| -> Option<f64> {
        let (_, rest) = line.split_once(key)?;
        let end = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        rest.get(..end)?.parse().ok()
    };
    Some(ForwardCycles {
        busy_cycles: after("total cycles=")?,
        frames: after("packets=")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_of_each_port_are_read() {
        let text = "\
  ######################## NIC statistics for port 0  ########################\r
  RX-packets: 13276960   RX-missed: 0          RX-bytes:  849725440\r
  Throughput (since last show)\r
  Rx-pps:     13226075          Rx-bps:   6771750712\r
  Tx-pps:            0          Tx-bps:            0\r
  ############################################################################\r
  Rx-pps:            7          Rx-bps:         3584\r
";
        let expected =
            [(13_226_075, 6_771_750_712), (7, 3584)].map(|(frames_per_s, bits_per_s)| PortRates {
                frames_per_s,
                bits_per_s,
            });
        assert_eq!(parse_rates(text), expected);
        assert_eq!(parse_rates("Rx-pps: many Rx-bps: 1"), []);
    }

    #[test]
    fn cycles_are_read() {
        let text = "  CPU cycles/packet=145.20 (total cycles=1452000 / total RX packets=10000) at 2600 MHz Clock";
        let expected = ForwardCycles {
            busy_cycles: 1_452_000.0,
            frames: 10_000.0,
        };
        assert_eq!(parse_cycles(text), Some(expected));
        assert_eq!(parse_cycles("nothing of the kind"), None);
    }
}
