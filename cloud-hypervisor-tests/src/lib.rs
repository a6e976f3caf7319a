//! Cloud Hypervisor as the front-end.
