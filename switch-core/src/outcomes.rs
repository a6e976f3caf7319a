//! What verdicts of one batch refer to: edit lists, copies, punts.
//!
//! A verdict is passed in registers, so what does not fit is here, under numbers that are good until the next batch begins. Whoever
//! decides fills it; the data path reads it at delivery. A program without edits and copies leaves it empty, and it costs nothing.

use std::ops::Range;
use std::sync::Arc;

use crate::drop_reason::DropReason;
use crate::engine::edit::EditList;
use crate::verdict::{FrameCopy, Punt};

/// Copies that the frames of a batch may become together.
pub const MAX_COPIES_PER_BATCH: usize = 1 << 16;
/// Copies of one frame, the controller's among them: all ports of a large group, and some mirrors.
pub const MAX_COPIES_PER_FRAME: usize = 2_048;

/// An edit list of the batch in hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EditListId(u16);

/// The copies of a frame of the batch in hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopiesId(u16);

/// What the control side is told about a frame of the batch in hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PuntId(u16);

/// The storage. Keeps its memory from batch to batch.
#[derive(Debug, Default)]
pub struct Outcomes {
    lists: Vec<Arc<EditList>>,
    copies: Vec<FrameCopy>,
    /// Where in `copies` those of each frame are.
    frames: Vec<Range<usize>>,
    punts: Vec<Punt>,
}

impl Outcomes {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets everything: a batch begins.
    #[inline]
    pub fn clear(&mut self) {
        if !self.lists.is_empty() || !self.frames.is_empty() || !self.punts.is_empty() {
            self.lists.clear();
            self.copies.clear();
            self.frames.clear();
            self.punts.clear();
        }
    }

    /// Adds an edit list. One that is added twice in a row, as by the frames of one flow, is there once.
    ///
    /// # Errors
    /// [`DropReason::TooManyCopies`] when the batch has no room for it.
    #[inline]
    pub fn add_list(&mut self, list: &Arc<EditList>) -> Result<EditListId, DropReason> {
        if let (Some(last), Some(number)) = (self.lists.last(), self.lists.len().checked_sub(1))
            && Arc::ptr_eq(last, list)
        {
            return Ok(EditListId(number as u16));
        }
        let id = number(self.lists.len())?;
        self.lists.push(Arc::clone(list));
        Ok(EditListId(id))
    }

    /// Adds the copies of a frame.
    ///
    /// # Errors
    /// [`DropReason::TooManyCopies`] when there are more than [`MAX_COPIES_PER_FRAME`], or the batch has no room for them.
    pub fn add_copies(
        &mut self,
        copies: impl IntoIterator<Item = FrameCopy>,
    ) -> Result<CopiesId, DropReason> {
        let id = number(self.frames.len())?;
        let start = self.copies.len();
        let room = MAX_COPIES_PER_FRAME.min(MAX_COPIES_PER_BATCH.saturating_sub(start));
        self.copies.extend(copies.into_iter().take(room + 1));
        let end = self.copies.len();
        if end - start > room {
            self.copies.truncate(start);
            return Err(DropReason::TooManyCopies);
        }
        self.frames.push(start..end);
        Ok(CopiesId(id))
    }

    /// Adds what the control side is told about a frame.
    ///
    /// # Errors
    /// [`DropReason::TooManyCopies`] when the batch has no room for it.
    pub fn add_punt(&mut self, punt: Punt) -> Result<PuntId, DropReason> {
        let id = number(self.punts.len())?;
        self.punts.push(punt);
        Ok(PuntId(id))
    }

    /// An edit list.
    #[inline]
    pub fn edit_list(&self, id: EditListId) -> Option<&EditList> {
        self.lists.get(usize::from(id.0)).map(|list| &**list)
    }

    /// The copies of a frame; none for an id of another batch.
    #[inline]
    pub fn copies(&self, id: CopiesId) -> &[FrameCopy] {
        self.frames
            .get(usize::from(id.0))
            .and_then(|range| self.copies.get(range.clone()))
            .unwrap_or_default()
    }

    /// What the control side is told about a frame.
    #[inline]
    pub fn punt(&self, id: PuntId) -> Option<&Punt> {
        self.punts.get(usize::from(id.0))
    }
}

fn number(taken: usize) -> Result<u16, DropReason> {
    u16::try_from(taken).map_err(|_| DropReason::TooManyCopies)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::edit::{Edit, Run};
    use crate::port::PortId;
    use crate::verdict::{HeaderEdit, Target};

    fn copy(port: u16) -> FrameCopy {
        FrameCopy {
            target: Target::Port(PortId::new(port).expect("a small number")),
            edit: HeaderEdit::NONE,
        }
    }

    #[test]
    fn what_is_added_is_found_until_the_next_batch() {
        let mut outcomes = Outcomes::new();
        let list = |byte| {
            let bytes = Run::new(&[byte]);
            Arc::new(EditList::new(vec![Edit::Write { at: 0, bytes }]))
        };
        let (one, other) = (list(1), list(2));
        let ids = [&one, &one, &other].map(|list| outcomes.add_list(list));
        assert_eq!(ids[0], ids[1], "once for a flow");
        assert_ne!(ids[1], ids[2]);
        assert_eq!(ids[2].map(|id| outcomes.edit_list(id)), Ok(Some(&*other)));
        let few = outcomes.add_copies([copy(1), copy(2)]).expect("room");
        let none = outcomes.add_copies([]).expect("room");
        assert_eq!(outcomes.copies(few), [copy(1), copy(2)]);
        assert_eq!(outcomes.copies(none), []);
        let punt = Punt {
            args: [7; 4],
            ..Punt::default()
        };
        let punted = outcomes.add_punt(punt).expect("room");
        assert_eq!(outcomes.punt(punted), Some(&punt));
        outcomes.clear();
        assert_eq!(outcomes.copies(few), []);
        assert_eq!(outcomes.punt(punted), None);
        assert_eq!(ids[0].map(|id| outcomes.edit_list(id)), Ok(None));
    }

    #[test]
    fn copies_are_bounded_for_a_frame_and_for_a_batch() {
        let mut outcomes = Outcomes::new();
        let many = |count: usize| std::iter::repeat_n(copy(1), count);
        let refused = outcomes.add_copies(many(MAX_COPIES_PER_FRAME + 1));
        assert_eq!(refused, Err(DropReason::TooManyCopies));
        let full = MAX_COPIES_PER_BATCH / MAX_COPIES_PER_FRAME;
        for _ in 0..full {
            assert!(outcomes.add_copies(many(MAX_COPIES_PER_FRAME)).is_ok());
        }
        assert_eq!(outcomes.add_copies(many(1)), Err(DropReason::TooManyCopies));
        outcomes.clear();
        assert!(outcomes.add_copies(many(1)).is_ok());
    }
}
