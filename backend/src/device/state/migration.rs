//! What a migration asks of a device (vhost-user: Migration): written pages are marked in a log that the front-end shares.
//!
//! Logging is on while LOG_ALL is acked and a log is mapped. With LOG_ALL acked and no log, rings are held: on `cont` and on reconnect
//! in the middle of a migration QEMU kicks them before it sends SET_LOG_BASE, and what they wrote until then would never be copied.
//! For the same reason a log is let go of when LOG_ALL goes, or when the last ring is stopped: the next one may be another.

use super::{Attachment, DeviceState, Handled, Outcome, Refusal};
use crate::device::features::LOG_ALL;
use crate::device::message::Reply;
use crate::ring::LogLayout;
use std::os::fd::OwnedFd;
use vhost::vhost_user::message::VhostUserProtocolFeatures;

impl DeviceState {
    /// Whether everything that rings write is marked for a migration.
    pub fn is_logging(&self) -> bool {
        self.wants_log() && self.session.log.is_some()
    }

    /// Whether rings wait for the log.
    pub fn is_held(&self) -> bool {
        self.wants_log() && self.session.log.is_none()
    }

    /// LOG_ALL is acked.
    pub(super) fn wants_log(&self) -> bool {
        let features = self.session.features;
        features.is_some_and(|features| features & LOG_ALL != 0)
    }

    /// The front-end waits for a reply of its own, whatever came of the request. A log that cannot be used leaves none: better rings that
    /// are held than a VM that arrives with stale memory.
    pub(super) fn set_log(
        &mut self,
        layout: LogLayout,
        file: Option<OwnedFd>,
        attachment: &mut dyn Attachment,
    ) -> Handled {
        if !self.acked(VhostUserProtocolFeatures::LOG_SHMFD) {
            return Err(Refusal::NoLog);
        }
        let reply = Reply::Log(layout);
        let mapped = match file {
            Some(file) => attachment.set_log(layout, file).map_err(Refusal::Log),
            None => Err(Refusal::LogWithoutFile),
        };
        if let Err(refusal) = mapped {
            self.drop_log(attachment);
            self.hold_rings(attachment);
            return Ok(Outcome::Refused(reply, refusal));
        }
        self.session.log = Some(layout);
        self.start_waiting_rings(attachment);
        Ok(Outcome::Reply(reply))
    }

    /// After SET_FEATURES, which acked LOG_ALL before or did not.
    pub(super) fn log_after_features(&mut self, wanted: bool, attachment: &mut dyn Attachment) {
        if wanted && !self.wants_log() {
            self.drop_log(attachment);
        }
        self.hold_rings(attachment);
    }

    /// After a ring was stopped.
    pub(super) fn log_after_stop(&mut self, attachment: &mut dyn Attachment) {
        let mut rings = self.session.rings.iter();
        if self.wants_log() && !rings.any(|ring| ring.was_handed_over()) {
            self.drop_log(attachment);
        }
    }

    fn drop_log(&mut self, attachment: &mut dyn Attachment) {
        if self.session.log.take().is_some() {
            attachment.drop_log();
        }
    }

    /// Takes running rings back until there is a log.
    fn hold_rings(&mut self, attachment: &mut dyn Attachment) {
        if self.is_held() {
            self.suspend_rings(|_| true, attachment);
        }
    }
}
