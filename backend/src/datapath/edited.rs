//! A frame's header as it leaves: edited in the writer's own memory, with what its sender left undone moved along.

use super::frame::{OutgoingEdit, PrivateHeader};
use super::vnet_header::{GsoKind, Offload};
use switch_core::engine::edit::{Edit, EditList};
use switch_core::{DropReason, VlanEdit};

/// A frame, edited.
#[derive(Debug)]
pub struct Edited<'a> {
    /// Its private start.
    pub header: &'a mut PrivateHeader,
    /// What is left to be done.
    pub offload: Offload,
    /// Edits that have to wait until nothing is left to be done, and are for each piece then: no receiver finishes what is inside
    /// a tunnel.
    pub around: &'a [Edit],
    /// How many bytes longer these make each piece.
    pub growth: isize,
}

/// The frame with its header edited: in `staging` when there is something to edit, as it is otherwise. `rest_bytes` of it are not in
/// the header.
///
/// # Errors
/// Why the edits cannot be applied to this frame.
#[inline(always)]
pub fn edited<'a>(
    header: &'a mut PrivateHeader,
    rest_bytes: u32,
    edit: OutgoingEdit<'a>,
    offload: Offload,
    staging: &'a mut PrivateHeader,
) -> Result<Edited<'a>, DropReason> {
    let (header, offload) = match edit {
        OutgoingEdit::Vlan(VlanEdit::None) => (header, offload),
        OutgoingEdit::Vlan(edit) => {
            let rewrite = edit.rewrite(header.frame());
            staging.compose(
                rewrite.prefix(),
                header.frame().get(rewrite.skip()..).unwrap_or_default(),
            );
            (staging, offload.shifted(edit.length_delta()))
        }
        OutgoingEdit::List(list) => {
            return edited_by_list((header, rest_bytes), list, offload, staging);
        }
    };
    Ok(Edited {
        header,
        offload,
        around: &[],
        growth: 0,
    })
}

fn edited_by_list<'a>(
    (header, rest_bytes): (&'a PrivateHeader, u32),
    list: &'a EditList,
    offload: Offload,
    staging: &'a mut PrivateHeader,
) -> Result<Edited<'a>, DropReason> {
    staging.compose(header.frame(), &[]);
    let partial = offload.partial_checksum();
    let whole = staging.edit(list.edits(), rest_bytes, partial);
    let len_bytes = staging.frame().len() as u32 + rest_bytes;
    let in_one_piece = if offload.is_none() || list.is_in_place() {
        whole?;
        Some(offload)
    } else {
        // Not an error yet: pieces may be shorter than a length field allows.
        whole.ok().and_then(|partial| {
            offload.edited(partial, list.length_delta(), (staging.frame(), len_bytes))
        })
    };
    if let Some(offload) = in_one_piece {
        return Ok(Edited {
            header: staging,
            offload,
            around: &[],
            growth: 0,
        });
    }
    let (before, around) = list.split();
    let is_cut_by_ip = offload.segmentation.is_some_and(|s| s.kind == GsoKind::Udp);
    let adjusts = |edit: &Edit| matches!(edit, Edit::AdjustTransportChecksum { .. });
    if is_cut_by_ip && around.iter().any(adjusts) {
        // All fragments but the first have no transport header.
        return Err(DropReason::OffloadUnsupported);
    }
    staging.compose(header.frame(), &[]);
    staging.edit(before, rest_bytes, partial)?;
    Ok(Edited {
        header: staging,
        offload,
        around,
        growth: list.length_delta(),
    })
}
