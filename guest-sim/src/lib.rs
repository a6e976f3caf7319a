//! An in-process VMM and virtio-net driver.
