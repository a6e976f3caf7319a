//! The last of these tests, by its name: the lab that served the others ends as it should.

use std::path::Path;

use vm_lab::lab::drop_lab;

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_lab_that_is_dropped_leaves_no_process_and_no_file() {
    let Some(traces) = drop_lab() else { return };
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
