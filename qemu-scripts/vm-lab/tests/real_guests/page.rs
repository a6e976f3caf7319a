//! The web page in a real browser, with a real guest: a device is added to its VM from the page.

#[path = "../../../../backend/tests/page/browser.rs"]
#[allow(clippy::unwrap_used, clippy::panic)] // A test that cannot go on fails.
mod browser;

use vm_lab::pool::with_lab;
use vm_lab::traffic::Probes;

use crate::hotplug::{exchange_over_eth1, monitor, start_third, stop_third, traces};
use crate::{expect_equal, pair};
use browser::{Browser, Door};

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_running_guest_is_given_a_nic_from_the_page_and_loses_it_again() {
    with_lab(&pair(), |lab| {
        start_third(lab)?;
        let door = Door::open(lab.switch()?.admin().to_owned());
        let Some(mut page) = Browser::open(door.address()) else {
            return stop_third(lab);
        };
        let monitor = monitor(lab, "vm3");
        page.step(&["fill", "#device-name", "vm3-eth1"]);
        page.step(&["fill", "#device-socket", "no absolute path"]);
        page.step(&["click", "#device-form button"]);
        page.sees("#device-socket-problem", "absolute");
        page.step(&[
            "fill",
            "#device-socket",
            monitor.to_str().unwrap_or_default(),
        ]);
        page.step(&["click", "#device-form button"]);
        page.sees("#devices-rows .state", "ready");
        page.sees("#drawing svg", "vm3-eth1 · up");
        exchange_over_eth1(lab)?;
        page.sees("#events-list", "device_changed");
        // A little traffic: guests that send all they can leave a browser on the same two cores no time.
        let probes = Probes::start(&lab.host(1)?.0, lab.guest(2)?.spec().address(), 5_000)?;
        page.sees("#drawing svg", "kbit/s");
        page.picture("page.png");
        probes.stop()?;
        page.step(&["click", "[data-remove=vm3-eth1]"]);
        page.step(&["gone", "#devices-rows tr"]);
        expect_equal("what is left in QEMU", traces(lab)?, vec![])?;
        expect_equal(
            "what the page has against it",
            page.step(&["faults"]),
            serde_json::json!([]),
        )?;
        drop((page, door));
        stop_third(lab)
    });
}
