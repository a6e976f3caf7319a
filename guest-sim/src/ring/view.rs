//! The words of a virtqueue, split or packed.
//!
//! Made once per batch from a [`RingMemory`] (bounds are checked then) and used on the driver's thread.

use super::layout::{Format, RingMemory};
use super::packed_view::PackedView;
use super::split_view::SplitView;
use crate::error::Error;
use crate::memory::MemoryError;

/// One ring's words.
pub(crate) enum View<'m> {
    Split(SplitView<'m>),
    Packed(PackedView<'m>),
}

impl<'m> View<'m> {
    /// The words of a ring; fails only if its memory is not as it was laid out.
    pub fn of(memory: &'m RingMemory) -> Result<Self, Error> {
        let view = match memory.format() {
            Format::Split => SplitView::new(memory).map(Self::Split),
            Format::Packed => PackedView::new(memory).map(Self::Packed),
        };
        view.map_err(|_| {
            let (address, len) = (
                memory.descriptors().guest_address(),
                memory.descriptors().len(),
            );
            MemoryError::Unmapped { address, len }.into()
        })
    }
}

/// What a caller gets that uses one ring's words with another ring.
pub(super) const OTHER_FORMAT: Error =
    Error::Options("that ring has the other format: see Virtqueue::format");
