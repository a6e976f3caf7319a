//! The control experiment: two guests without a switch. What fails here is the harness's fault, or QEMU's.

use vm_lab::lab::{LabSpec, Station, Wiring, with_lab};
use vm_lab::traffic::{self, TcpFlow};

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn the_harness_itself_carries_and_checks_traffic() {
    let spec = LabSpec {
        wiring: Wiring::BackToBack,
        ..LabSpec::of([Station::new("vm1"), Station::new("vm2")])
    };
    with_lab(&spec, |lab| {
        let ((one, _), (two, address)) = (lab.host(1)?, lab.host(2)?);
        lab.wait_connected(2)?;
        let pings = traffic::ping(&one, address, 5, 56)?;
        assert_eq!((pings.sent, pings.received), (5, 5));
        let carried = TcpFlow::start((&one, &two), address, Some(4 << 20))?.finish()?;
        assert_eq!(carried.bytes, 4 << 20);
        eprintln!("{pings:?} {:.0} Mbit/s", carried.mbps());
        let report = traffic::udp((&one, &two), address, 1000, 1400)?;
        eprintln!("{report:?}");
        assert_eq!((report.lost(), report.received.corrupt), (0, 0));
        Ok(())
    });
}
