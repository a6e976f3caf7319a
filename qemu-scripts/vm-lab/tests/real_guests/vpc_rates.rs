//! Rates on the `vpc` program, as a guest sees them.

use std::net::SocketAddr;

use guest_agent::protocol::Job;
use serde_json::{Value, json};
use vm_lab::agent::RunningJob;
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

/// A sender, and a port of vm1 that it sends to.
type Stream = (u8, u16);

/// What gets through to vm1 of each, in bytes of frames a second, while three times as much is sent.
fn measured(vpc: &Vpc<'_>, streams: &[Stream]) -> Result<Vec<f64>> {
    let payload = |bytes: u64| bytes * u64::from(PAYLOAD_BYTES) / u64::from(FRAME_BYTES);
    let start = |&(guest, port): &Stream| -> Result<(RunningJob, RunningJob)> {
        let receiver = vpc.agent(1)?.start(Job::UdpMeasure {
            port,
            // The burst, and what the rate gives until that is used up.
            skip_bytes: payload(2 * BURST_BYTES),
            bytes: payload(SECONDS * BYTES_PER_SECOND),
        })?;
        let sender = vpc.agent(guest)?.start(Job::UdpPace {
            to: SocketAddr::new(vpc.address(1)?, port),
            payload_bytes: PAYLOAD_BYTES,
            bytes_per_second: 3 * BYTES_PER_SECOND,
        })?;
        Ok((receiver, sender))
    };
    let running: Vec<_> = streams.iter().map(start).collect::<Result<_>>()?;
    let rates = running.into_iter().map(|(receiver, sender)| {
        let received = receiver.wait()?;
        sender.stop()?;
        Ok(received.frames as f64 * f64::from(FRAME_BYTES) / received.seconds)
    });
    rates.collect()
}

/// Of each of `streams`, beside the others, as much gets through as should.
fn expect_rates(vpc: &Vpc<'_>, streams: &[Stream]) -> Result<()> {
    let mut left: Vec<Stream> = streams.to_vec();
    let mut found = Vec::new();
    for _ in 0..ATTEMPTS {
        let rates = measured(vpc, &left)?;
        let wrong = left.iter().zip(rates).filter_map(|(&(guest, port), rate)| {
            let error = rate / BYTES_PER_SECOND as f64 - 1.0;
            eprintln!(
                "  vm{guest}: {rate:.0} bytes/s of {BYTES_PER_SECOND}: {:+.2} %",
                error * 100.0
            );
            found.push(rate);
            (error.abs() > TOLERANCE).then_some((guest, port + 1))
        });
        left = wrong.collect();
        if left.is_empty() {
            return Ok(());
        }
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
fn what_a_port_and_a_rule_let_through_a_second_is_kept_within_three_percent_and_nothing_else_is_slowed()
 {
    with_network(&[(1, RED, 1), (2, RED, 2), (3, RED, 3)], |vpc| {
        let index = vpc.port(3)?["id"].clone();
        let port_meter = |rate: Option<Value>| {
            let mut meter = json!({ "meter": "port_in", "index": index });
            if let Some(rate) = rate {
                meter["rate"] = rate;
            }
            json!({ "set_meter": meter })
        };
        let key = json!({ "policy": RED.vrf, "protocol": 17, "destination_port": "9100..9199" });
        let mut limited = insert(
            "ingress_rules",
            key,
            ("allow_limited", json!({ "meter": 5 })),
        );
        limited["insert"]["priority"] = json!(9);
        vpc.write(&[
            port_meter(Some(rate())),
            limited,
            json!({ "set_meter": { "meter": "rules", "index": 5, "rate": rate() } }),
        ])?;
        // By the rule from vm2, and by its port from vm3.
        let outcome = expect_rates(vpc, &[(2, 9100), (3, 9000)]);
        vpc.write(&[port_meter(None)])?;
        outcome?;
        let other = vpc.flow((2, 1), Some(32 << 20))?.finish()?;
        eprintln!("  beside it: {:.0} Mbit/s", other.mbps());
        expect(
            "what no rule limits is faster than the limit",
            other.bytes as f64 / other.seconds > 2.0 * BYTES_PER_SECOND as f64,
        )
    });
}
