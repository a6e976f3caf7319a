//! A port's state in the switch goes along with a migration (vhost-user: Migrating back-end state).
//!
//! The front-end passes a pipe while the rings are stopped, and asks afterwards whether all went well. The bytes are carried beside
//! everything else ([`crate::device::state_transfer`]), so that answer may have to wait for them.

use super::{Attachment, DeviceState, Handled, Outcome, Refusal};
use crate::device::descriptors::BackendSocket;
use crate::device::message::{Reply, StateTransfer};
use crate::device::state_transfer::{Direction, Transferred};
use vhost::vhost_user::message::VhostUserProtocolFeatures;

/// The low byte of the answer to SET_DEVICE_STATE_FD is 0, and with this bit no descriptor comes along.
const BEGUN: u64 = 0x100;
/// The same, and an error.
const NOT_BEGUN: u64 = 0x101;
const SAVE: u32 = 0;
const LOAD: u32 = 1;
/// The one phase there is: all rings are stopped.
const STOPPED: u32 = 0;

impl DeviceState {
    pub(super) fn begin_transfer(
        &mut self,
        asked: StateTransfer,
        pipe: BackendSocket,
        attachment: &mut dyn Attachment,
    ) -> Handled {
        self.check_offered()?;
        let begun = self.try_begin(asked, pipe, attachment);
        Ok(match begun {
            Ok(()) => Outcome::Reply(Reply::Value(BEGUN)),
            Err(refusal) => Outcome::Refused(Reply::Value(NOT_BEGUN), refusal),
        })
    }

    fn try_begin(
        &mut self,
        asked: StateTransfer,
        pipe: BackendSocket,
        attachment: &mut dyn Attachment,
    ) -> Result<(), Refusal> {
        let direction = match asked {
            StateTransfer {
                direction: SAVE,
                phase: STOPPED,
            } => Direction::Save,
            StateTransfer {
                direction: LOAD,
                phase: STOPPED,
            } => Direction::Load,
            StateTransfer { direction, phase } => {
                return Err(Refusal::StateTransfer { direction, phase });
            }
        };
        if self.any_ring_runs() {
            return Err(Refusal::StateOfRunningRings);
        }
        let begun = attachment.begin_transfer(direction, pipe);
        begun.map_err(Refusal::State)
    }

    pub(super) fn check_transfer(&mut self, attachment: &mut dyn Attachment) -> Handled {
        self.check_offered()?;
        match attachment.transferred() {
            Some(transferred) => Ok(self.note_transfer(transferred)),
            None => {
                self.session.awaits_transfer = true;
                Ok(Outcome::Later)
            }
        }
    }

    /// The answer to a check that waits, if it is known now.
    pub(super) fn late_check(&mut self, attachment: &mut dyn Attachment) -> Option<Handled> {
        if !self.session.awaits_transfer {
            return None;
        }
        let transferred = attachment.transferred()?;
        self.session.awaits_transfer = false;
        Some(Ok(self.note_transfer(transferred)))
    }

    fn note_transfer(&mut self, transferred: Transferred) -> Outcome {
        match transferred {
            Ok(done) => {
                self.session.transferred = Some(done);
                Outcome::Reply(Reply::Value(0))
            }
            Err(error) => Outcome::Refused(Reply::Value(1), Refusal::State(error)),
        }
    }

    fn check_offered(&self) -> Result<(), Refusal> {
        match self.acked(VhostUserProtocolFeatures::DEVICE_STATE) {
            true => Ok(()),
            false => Err(Refusal::Unsupported),
        }
    }
}
