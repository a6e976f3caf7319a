//! Rates on the `vpc` program, as a guest sees them.

use std::net::SocketAddr;

use guest_agent::protocol::Job;
use serde_json::{Value, json};
use vm_lab::{Error, Result};

use crate::expect;
use crate::vpc_network::{RED, Vpc, insert, with_network};

/// Far below what any machine does.
const BYTES_PER_SECOND: u64 = 250_000;
/// As long as the sender may be held up without being given less.
const BURST_BYTES: u64 = BYTES_PER_SECOND;
const PAYLOAD_BYTES: u16 = 1000;
/// Ethernet, IPv4 and UDP.
const FRAME_BYTES: u16 = PAYLOAD_BYTES + 14 + 20 + 8;
const SECONDS: u64 = 8;
const TOLERANCE: f64 = 0.03;
/// A machine that stands still just when a measurement begins or ends makes it wrong.
const ATTEMPTS: usize = 3;

/// What gets through from vm2 to vm1, in bytes of frames a second, while three times as much is sent.
fn measured(vpc: &Vpc<'_>, port: u16) -> Result<f64> {
    let payload = |bytes: u64| bytes * u64::from(PAYLOAD_BYTES) / u64::from(FRAME_BYTES);
    let receiver = vpc.agent(1)?.start(Job::UdpMeasure {
        port,
        // The burst, and what the rate gives until that is used up.
        skip_bytes: payload(2 * BURST_BYTES),
        bytes: payload(SECONDS * BYTES_PER_SECOND),
    })?;
    let sender = vpc.agent(2)?.start(Job::UdpPace {
        to: SocketAddr::new(vpc.address(1)?, port),
        payload_bytes: PAYLOAD_BYTES,
        bytes_per_second: 3 * BYTES_PER_SECOND,
    })?;
    let received = receiver.wait()?;
    sender.stop()?;
    Ok(received.frames as f64 * f64::from(FRAME_BYTES) / received.seconds)
}

fn expect_rate(vpc: &Vpc<'_>, first_port: u16) -> Result<()> {
    let mut found = Vec::new();
    for port in (first_port..).take(ATTEMPTS) {
        let rate = measured(vpc, port)?;
        let error = rate / BYTES_PER_SECOND as f64 - 1.0;
        eprintln!(
            "  {rate:.0} bytes/s of {BYTES_PER_SECOND}: {:+.2} %",
            error * 100.0
        );
        if error.abs() <= TOLERANCE {
            return Ok(());
        }
        found.push(rate);
    }
    Err(Error::Unexpected(format!(
        "{found:?} bytes a second get through, {BYTES_PER_SECOND} should"
    )))
}

fn rate() -> Value {
    json!({ "bytes_per_second": BYTES_PER_SECOND, "burst_bytes": BURST_BYTES })
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn what_a_port_may_send_a_second_is_kept_within_three_percent() {
    with_network(&[(1, RED, 1), (2, RED, 2)], |vpc| {
        let index = vpc.port(2)?["id"].clone();
        let meter = |rate: Option<Value>| {
            let mut meter = json!({ "meter": "port_in", "index": index });
            if let Some(rate) = rate {
                meter["rate"] = rate;
            }
            json!({ "set_meter": meter })
        };
        vpc.write(&[meter(Some(rate()))])?;
        let outcome = expect_rate(vpc, 9000);
        vpc.write(&[meter(None)])?;
        outcome
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn what_a_rule_lets_through_a_second_is_kept_within_three_percent_and_nothing_else_is_slowed() {
    with_network(&[(1, RED, 1), (2, RED, 2)], |vpc| {
        let key = json!({ "policy": RED.vrf, "protocol": 17, "destination_port": "9100..9199" });
        let mut limited = insert(
            "ingress_rules",
            key,
            ("allow_limited", json!({ "meter": 5 })),
        );
        limited["insert"]["priority"] = json!(9);
        vpc.write(&[
            limited,
            json!({ "set_meter": { "meter": "rules", "index": 5, "rate": rate() } }),
        ])?;
        expect_rate(vpc, 9100)?;
        let other = vpc.flow((2, 1), Some(32 << 20))?.finish()?;
        eprintln!("  beside it: {:.0} Mbit/s", other.mbps());
        expect(
            "what no rule limits is faster than the limit",
            other.bytes as f64 / other.seconds > 2.0 * BYTES_PER_SECOND as f64,
        )
    });
}
