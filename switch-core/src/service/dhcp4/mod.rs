//! DHCPv4.

use super::config::RouterInterface;
use super::drop::ServiceDrop;
use super::inbound::Inbound;
use super::outbox::Outbox;
use crate::port::PortId;
use crate::time::Millis;

#[derive(Debug, Default)]
pub(super) struct Dhcp4Server {}

impl Dhcp4Server {
    pub(super) fn handle(
        &mut self,
        _inbound: &Inbound<'_>,
        interface: &RouterInterface,
        _out: &mut Outbox<'_>,
    ) -> Result<(), ServiceDrop> {
        let _ = interface.dhcp4()?;
        Err(ServiceDrop::NotConfigured)
    }
    pub(super) fn configure(&mut self, _interface: &RouterInterface) {}
    pub(super) fn remove(&mut self, _interface: u32) {}
    pub(super) fn forget_port(&mut self, _port: PortId) {}
    pub(super) fn advance(&mut self, _now: Millis) -> bool {
        false
    }
    pub(super) fn next_deadline(&self) -> Option<Millis> {
        None
    }
}
