//! The virtual-device table from outside: a real daemon, and hypervisors that are doubles: of QEMU's monitor, as QEMU 10.0 was seen to answer,
//! and of Cloud Hypervisor's API. Real guests are given NICs in vm-lab's tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test that cannot go on fails.
mod cloud_hypervisor;
mod durability;
mod fake_cloud_hypervisor;
mod fake_qemu;
mod hostile;
mod qemu;
mod rest;
mod rig;
mod scale;
