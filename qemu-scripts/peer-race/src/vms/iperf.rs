//! `iperf3` as the guests run it: its flags, and its report.

use std::net::IpAddr;

use serde_json::Value;

use crate::error::{Error, Result};

/// Where guests have it; `qemu-scripts/iperf3-guest` puts it there.
pub const PROGRAM: &str = "/bin/iperf3";
/// Where it writes its process id in a guest, server or client: neither guest runs both.
pub const PID_FILE: &str = "/iperf3.pid";
/// With IPv4, UDP and Ethernet headers and FCS: a frame of 64 bytes.
const SMALL_PAYLOAD_BYTES: u16 = 18;

/// What travels from guest 1 to guest 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// One TCP stream.
    TcpOne,
    /// Four TCP streams.
    TcpFour,
    /// UDP in frames of 64 bytes, as fast as the guest sends.
    UdpSmall,
}

/// What arrived.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Traffic {
    /// Bits (TCP) or datagrams (UDP) a second, at the receiver.
    pub per_second: f64,
    /// For how long, in seconds, at the receiver.
    pub seconds: f64,
    /// UDP: share of the datagrams sent that the receiver's program did not get, 0 to 1.
    pub lost: Option<f64>,
}

impl Case {
    /// All, in order.
    pub const ALL: [Self; 3] = [Self::TcpOne, Self::TcpFour, Self::UdpSmall];

    /// As in `--only`.
    pub fn name(self) -> &'static str {
        match self {
            Self::TcpOne => "tcp-1",
            Self::TcpFour => "tcp-4",
            Self::UdpSmall => "udp-64",
        }
    }

    /// Of [`Traffic::per_second`], for people: its name, and how many of the basic unit make one.
    pub fn unit(self) -> (&'static str, f64) {
        match self {
            Self::TcpOne | Self::TcpFour => ("Gbit/s", 1e9),
            Self::UdpSmall => ("kpps", 1e3),
        }
    }

    /// The client's command line.
    pub fn command(self, server: IpAddr, seconds: u32) -> Vec<String> {
        let mut command = vec![
            PROGRAM.to_owned(),
            "--pidfile".to_owned(),
            PID_FILE.to_owned(),
            "--client".into(),
            server.to_string(),
            "--time".into(),
            seconds.to_string(),
            "--interval".into(),
            "0".into(),
            "--json".into(),
        ];
        match self {
            Self::TcpOne => {}
            Self::TcpFour => command.extend(["--parallel".into(), "4".into()]),
            Self::UdpSmall => command.extend([
                "--udp".into(),
                "--bitrate".into(),
                "0".into(),
                "--length".into(),
                SMALL_PAYLOAD_BYTES.to_string(),
            ]),
        }
        command
    }

    /// What the client's report says of the receiver's side.
    ///
    /// # Errors
    /// iperf3's own error, or its report is not one, or nothing arrived.
    pub fn parse(self, text: &str) -> Result<Traffic> {
        let unparsed = |what| Error::Unparsed {
            what,
            text: text.to_owned(),
        };
        let report: Value =
            serde_json::from_str(text).map_err(|_| unparsed("iperf3's JSON report"))?;
        if let Some(why) = report.get("error").and_then(Value::as_str) {
            return Err(Error::Invalid(format!("iperf3: {why}")));
        }
        let number = |pointer: &str| report.pointer(pointer).and_then(Value::as_f64);
        let received = number("/end/sum_received/bytes").zip(number("/end/sum_received/seconds"));
        let (bytes, seconds) = received.ok_or_else(|| unparsed("what the receiver got"))?;
        if bytes <= 0.0 || seconds <= 0.0 {
            return Err(Error::Invalid("iperf3: nothing arrived".into()));
        }
        let (amount, lost) = match self {
            Self::TcpOne | Self::TcpFour => (8.0 * bytes, None),
            Self::UdpSmall => {
                let arrived = bytes / f64::from(SMALL_PAYLOAD_BYTES);
                // Not `lost_packets`: that ends with the last datagram that came through.
                let sent = number("/end/sum_sent/packets")
                    .filter(|&sent| sent > 0.0)
                    .ok_or_else(|| unparsed("how many datagrams were sent"))?;
                (arrived, Some((1.0 - arrived / sent).max(0.0)))
            }
        };
        Ok(Traffic {
            per_second: amount / seconds,
            seconds,
            lost,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcp_is_what_the_receiver_got_in_its_time() {
        let text = r#"{"start":{},"end":{"streams":[],
            "sum_sent":{"bytes":9000,"seconds":2.0,"bits_per_second":1},
            "sum_received":{"bytes":8000,"seconds":4.0,"bits_per_second":2}}}"#;
        let expected = Traffic {
            per_second: 16_000.0,
            seconds: 4.0,
            lost: None,
        };
        assert_eq!(Case::TcpFour.parse(text).unwrap(), expected);
    }

    #[test]
    fn udp_counts_datagrams_that_arrived_of_those_sent() {
        // iperf3 itself says 10 lost of 60: it never learnt of the last 40.
        let text = r#"{"end":{"sum_sent":{"bytes":1800,"seconds":2.0,"packets":100},
            "sum_received":{"bytes":900,"seconds":2.0,"packets":60,"lost_packets":10}}}"#;
        let expected = Traffic {
            per_second: 25.0,
            seconds: 2.0,
            lost: Some(0.5),
        };
        assert_eq!(Case::UdpSmall.parse(text).unwrap(), expected);
    }

    #[test]
    fn what_is_no_measurement_is_an_error() {
        let said = |text| Case::UdpSmall.parse(text).unwrap_err().to_string();
        assert!(said(r#"{"end":{},"error":"the server is busy"}"#).contains("server is busy"));
        assert!(said("iperf3: command not found").contains("not found"));
        assert!(said(r#"{"end":{}}"#).contains("receiver"));
        let nothing = r#"{"end":{"sum_received":{"bytes":0,"seconds":1.0}}}"#;
        assert!(said(nothing).contains("nothing arrived"));
        let unsent = r#"{"end":{"sum_received":{"bytes":18,"seconds":1.0}}}"#;
        assert!(said(unsent).contains("sent"));
    }

    #[test]
    fn small_frames_are_of_64_bytes() {
        let (ethernet, ipv4, udp, fcs) = (14, 20, 8, 4);
        assert_eq!(SMALL_PAYLOAD_BYTES + ethernet + ipv4 + udp + fcs, 64);
    }
}
