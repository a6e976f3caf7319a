//! INTERFACE SKETCH (the integrator replaces this file).
#![allow(missing_docs)]
pub mod tap {
    /// An open TAP interface with virtio-net header and offloads; created if absent; up.
    #[derive(Debug)]
    pub struct Tap {}
    impl Tap {
        pub fn open(_interface: &str) -> std::io::Result<Self> {
            unimplemented!()
        }
        pub fn set_mtu(&self, _mtu: u16) -> std::io::Result<()> {
            unimplemented!()
        }
    }
}
