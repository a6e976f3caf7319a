//! Plain traffic between two plain guests.

use vm_lab::pool::with_lab;
use vm_lab::traffic;

use crate::{MIB, exchange, expect_equal, pair};

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn pings_are_answered_both_ways() {
    with_lab(&pair(), |lab| {
        lab.wait_connected(2)?;
        for (from, to) in [(1, 2), (2, 1)] {
            for payload_bytes in [0, 56, 1472, 8000] {
                let pings = traffic::ping(&lab.host(from)?.0, lab.host(to)?.1, 10, payload_bytes)?;
                expect_equal("pings answered", pings.received, 10)?;
            }
        }
        Ok(())
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn tcp_and_udp_bulk_arrive_as_they_were_sent() {
    with_lab(&pair(), |lab| exchange(lab, (1, 2), 32 * MIB));
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn datagrams_in_fragments_arrive_whole() {
    with_lab(&pair(), |lab| {
        lab.wait_connected(2)?;
        let ((one, _), (two, address)) = (lab.host(1)?, lab.host(2)?);
        for payload_bytes in [16, 1473, 9000, 60_000] {
            let report = traffic::udp((&one, &two), address, 100, payload_bytes)?;
            let found = (report.received.frames, report.received.corrupt);
            expect_equal(
                &format!("datagrams of {payload_bytes} bytes, and damaged ones"),
                found,
                (100, 0),
            )?;
        }
        Ok(())
    });
}
