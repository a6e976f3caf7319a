//! The last of these tests, by its name: the labs that served the others end as they should.

use std::fs;

use vm_lab::pool::drop_labs;

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn labs_that_are_dropped_leave_no_process_and_no_file() {
    for traces in drop_labs() {
        assert!(
            !traces.folder.exists(),
            "{} is still there",
            traces.folder.display()
        );
        for process in traces.processes {
            let status = fs::read_to_string(format!("/proc/{process}/status"));
            // One that ended as nobody's child here is the init process's to collect.
            let running = status.is_ok_and(|status| !status.contains("State:\tZ"));
            assert!(!running, "process {process} is still there");
        }
    }
}
