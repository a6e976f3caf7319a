//! The last of these tests, by its name: the labs that served the others end as they should.

use std::path::Path;

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
            let running = Path::new("/proc").join(process.to_string()).exists();
            assert!(!running, "process {process} is still there");
        }
    }
}
