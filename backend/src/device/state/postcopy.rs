//! A VM that arrives and runs before all its memory has (vhost-user: postcopy, VHOST_USER_PROTOCOL_F_PAGEFAULT).
//!
//! POSTCOPY_ADVISE is answered with a userfaultfd, POSTCOPY_LISTEN begins the phase. Regions that are shared from then on are answered with where
//! the faults of each will be, and the front-end acks that before it can understand one: with the request that carried the last region, and a
//! body of one word. POSTCOPY_END says that everything is here.

use super::{Attachment, DeviceState, Handled, Outcome, Refusal};
use crate::device::message::{Reply, memory_table_body, single_region_body};
use crate::ring::RegionLayout;
use serde::{Deserialize, Serialize};
use vhost::vhost_user::message::VhostUserProtocolFeatures;

/// How far a postcopy migration to this port came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PostcopyPhase {
    /// There is none.
    #[default]
    None,
    /// It may come to one.
    Advised,
    /// Memory that is shared now arrives page by page.
    Receiving,
}

impl DeviceState {
    /// Whether memory arrives page by page.
    pub fn is_receiving(&self) -> bool {
        self.session.postcopy == PostcopyPhase::Receiving
    }

    /// Whether a postcopy migration to this port is under way, or may be.
    pub fn is_in_postcopy(&self) -> bool {
        self.session.postcopy != PostcopyPhase::None
    }

    /// Answered when there is a userfaultfd; if there will be none, without one, which ends the migration and leaves the VM where it is.
    pub(super) fn postcopy_advise(&mut self, attachment: &mut dyn Attachment) -> Handled {
        if !self.acked(VhostUserProtocolFeatures::PAGEFAULT) {
            return Err(Refusal::Unsupported);
        }
        // Once a session: each costs a process.
        if self.is_in_postcopy() || !self.session.memory.is_empty() {
            return Ok(Outcome::Refused(
                Reply::Body(Vec::new()),
                Refusal::PostcopyTooLate,
            ));
        }
        if let Err(error) = attachment.prepare_to_receive() {
            return Ok(Outcome::Refused(
                Reply::Body(Vec::new()),
                Refusal::Postcopy(error),
            ));
        }
        self.session.postcopy = PostcopyPhase::Advised;
        Ok(Outcome::Later)
    }

    pub(super) fn postcopy_listen(&mut self, attachment: &mut dyn Attachment) -> Handled {
        if self.session.postcopy != PostcopyPhase::Advised {
            return Err(Refusal::PostcopyOutOfTurn);
        }
        attachment.receive_from_now_on();
        self.session.postcopy = PostcopyPhase::Receiving;
        Ok(Outcome::Done)
    }

    /// Everything is here; as it is for a front-end that says so without there having been such a phase.
    pub(super) fn postcopy_end(&mut self, attachment: &mut dyn Attachment) -> Handled {
        if !self.acked(VhostUserProtocolFeatures::PAGEFAULT) {
            return Err(Refusal::Unsupported);
        }
        self.session.postcopy = PostcopyPhase::None;
        let lost = attachment.all_received();
        self.settle(lost, attachment)
    }

    /// Before memory is shared. If it was announced only, all of it came before the VM: nobody says the end of what has not begun.
    pub(super) fn postcopy_stays_away(&mut self, attachment: &mut dyn Attachment) {
        if self.session.postcopy == PostcopyPhase::Advised {
            self.session.postcopy = PostcopyPhase::None;
            // No memory was there, so no ring is lost.
            drop(attachment.all_received());
        }
    }

    /// The front-end understands faults in all regions.
    pub(super) fn postcopy_ack(&mut self, attachment: &mut dyn Attachment) -> Handled {
        if !self.is_receiving() {
            return Err(Refusal::EmptyMemoryTable);
        }
        attachment.regions_known();
        self.start_waiting_rings(attachment);
        Ok(Outcome::Done)
    }

    /// What a request that shared regions is answered with while they are received: themselves, with the address of their faults in place of the
    /// front-end's own.
    pub(super) fn answer_with_regions(
        &self,
        (regions, is_table): (&[RegionLayout], bool),
        shared: Handled,
        attachment: &dyn Attachment,
    ) -> Handled {
        match shared {
            shared if !self.is_receiving() => shared,
            // Of another size than it waits for: it gives up.
            Err(refusal) => Ok(Outcome::Refused(Reply::Value(1), refusal)),
            Ok(_) => {
                let faulting = regions.iter().map(|layout| RegionLayout {
                    user_addr: attachment.fault_address(layout).unwrap_or_default(),
                    ..*layout
                });
                let faulting: Vec<_> = faulting.collect();
                let body = match (faulting.as_slice(), is_table) {
                    ([region], false) => single_region_body(region),
                    (regions, _) => memory_table_body(regions),
                };
                Ok(Outcome::Reply(Reply::Body(body)))
            }
        }
    }
}
