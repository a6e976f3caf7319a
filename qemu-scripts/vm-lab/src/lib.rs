//! Real QEMU guests on a real Ringswitch.
