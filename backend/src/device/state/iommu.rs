//! A guest behind a virtual IOMMU (vhost-user: IOMMU support): where its rings and buffers are is known only piece by piece.
//!
//! With ACCESS_PLATFORM acked, and BACKEND_REQ so that somebody can be asked, the addresses of rings and buffers are I/O addresses. A ring
//! whose parts are not known waits; what is known may be taken away again at any time, and a ring whose parts are taken away goes
//! back to waiting. The answer to an IOTLB_MSG says that it is in force: no worker uses what was before.

use super::{Attachment, DeviceState, Handled, Outcome, Refusal};
use crate::device::descriptors::BackendSocket;
use crate::device::features::ACCESS_PLATFORM;
use crate::device::message::{IotlbChange, Reply};
use vhost::vhost_user::message::VhostUserProtocolFeatures;

impl DeviceState {
    /// Whether rings and buffers are at I/O addresses. Without BACKEND_REQ nobody could be asked what they stand for: such
    /// front-ends (DPDK's virtio_user) ack ACCESS_PLATFORM and mean nothing by it.
    pub fn is_translating(&self) -> bool {
        let features = self.session.features.unwrap_or_default();
        features & ACCESS_PLATFORM != 0 && self.acked(VhostUserProtocolFeatures::BACKEND_REQ)
    }

    /// After features changed, which were translating before or not.
    pub(super) fn translate_after(&mut self, before: bool, attachment: &mut dyn Attachment) {
        if self.is_translating() == before {
            return;
        }
        for lost in attachment.translate(!before) {
            self.suspend(lost.queue, attachment);
        }
    }

    /// While no ring is with a worker, the front-end does not say what becomes of I/O addresses: QEMU hears of changes only between
    /// the start of a device and its stop. So nothing that was known then counts any more.
    pub(super) fn forget_unwatched_translations(&mut self, attachment: &mut dyn Attachment) {
        let mut rings = self.session.rings.iter();
        if self.is_translating() && !rings.any(|ring| ring.was_handed_over()) {
            attachment.unmap_io(0, u64::MAX);
        }
    }

    pub(super) fn set_backend_channel(
        &mut self,
        socket: BackendSocket,
        attachment: &mut dyn Attachment,
    ) -> Handled {
        if !self.acked(VhostUserProtocolFeatures::BACKEND_REQ) {
            return Err(Refusal::Unsupported);
        }
        attachment
            .set_backend_channel(socket)
            .map_err(Refusal::BackendChannel)?;
        self.start_waiting_rings(attachment);
        Ok(Outcome::Done)
    }

    /// Always answered (vhost-user: VHOST_USER_IOTLB_MSG).
    pub(super) fn change_iotlb(
        &mut self,
        change: IotlbChange,
        attachment: &mut dyn Attachment,
    ) -> Outcome {
        let lost = match change {
            IotlbChange::Update(translation) if self.is_translating() => {
                match attachment.map_io(translation) {
                    Ok(lost) => lost,
                    Err(error) => {
                        return Outcome::Refused(Reply::Value(1), Refusal::Memory(error));
                    }
                }
            }
            // Nothing is known that could be forgotten.
            IotlbChange::Invalidate { .. } if !self.is_translating() => Vec::new(),
            IotlbChange::Invalidate { first, last } => attachment.unmap_io(first, last),
            IotlbChange::Update(_) | IotlbChange::Impossible => {
                return Outcome::Refused(Reply::Value(1), Refusal::Iotlb);
            }
        };
        for queue in lost {
            self.suspend(queue, attachment);
        }
        self.start_waiting_rings(attachment);
        Outcome::Reply(Reply::Value(0))
    }

    /// The attachment's own descriptors are ready: questions go out, answers come in. What came of the request that waits for its answer,
    /// if that is known now.
    pub fn attachment_ready(&mut self, attachment: &mut dyn Attachment) -> Option<Handled> {
        let exchanged = attachment.exchange();
        if exchanged.rings_may_start {
            self.start_waiting_rings(attachment);
        }
        exchanged.late.or_else(|| self.late_check(attachment))
    }
}
