//! How the header and the frame are cut into descriptors.
//!
//! Called by `guest_tx` per frame and by `guest_rx` once. Keeps true: the pieces add up to the whole.

/// How header and data lie in a chain (VIRTIO 1.3 §2.7.4.1: a modern device must accept any).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChainLayout {
    /// The header in one descriptor, everything else in a second: the only layout of a legacy driver without ANY_LAYOUT.
    HeaderAlone,
    /// Header and data in one descriptor.
    Single,
    /// Pieces of these lengths, counted from the first byte of the header; what is left goes into one more. 0 makes an empty descriptor.
    Cut(Vec<u32>),
    /// Pieces of this many bytes throughout.
    Every(u32),
    /// The header alone, then the data in this many pieces of about equal size.
    Pieces(u16),
}

impl ChainLayout {
    /// Appends the lengths of the pieces to `pieces`.
    pub(crate) fn cut(&self, header_bytes: usize, total_bytes: usize, pieces: &mut Vec<u32>) {
        match self {
            Self::Single => pieces.push(total_bytes as u32),
            Self::HeaderAlone => {
                let header = header_bytes.min(total_bytes);
                pieces.push(header as u32);
                push_nonzero(pieces, total_bytes - header);
            }
            Self::Cut(lengths) => {
                let mut left = total_bytes;
                for &length in lengths {
                    let length = left.min(length as usize);
                    pieces.push(length as u32);
                    left -= length;
                    if left == 0 {
                        return;
                    }
                }
                pieces.push(left as u32);
            }
            Self::Every(length) => {
                let length = (*length).max(1) as usize;
                let mut left = total_bytes;
                while left > 0 {
                    pieces.push(left.min(length) as u32);
                    left -= left.min(length);
                }
            }
            Self::Pieces(count) => {
                let header = header_bytes.min(total_bytes);
                let (data, count) = (total_bytes - header, usize::from(*count).max(1));
                pieces.push(header as u32);
                for piece in 0..count {
                    push_nonzero(pieces, data * (piece + 1) / count - data * piece / count);
                }
            }
        }
    }

    /// Bytes left unused between pieces, so that a device which reads on past a descriptor's end is found out.
    pub(crate) fn gap_bytes(&self) -> usize {
        match self {
            Self::Single | Self::HeaderAlone => 0,
            Self::Cut(_) | Self::Every(_) | Self::Pieces(_) => 3,
        }
    }
}

fn push_nonzero(pieces: &mut Vec<u32>, bytes: usize) {
    if bytes > 0 {
        pieces.push(bytes as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_covers_the_frame_exactly() {
        let layouts = [
            ChainLayout::HeaderAlone,
            ChainLayout::Single,
            ChainLayout::Cut(vec![5, 0, 7, 1]),
            ChainLayout::Cut(vec![4000]),
            ChainLayout::Every(1),
            ChainLayout::Every(7),
            ChainLayout::Pieces(5),
        ];
        for layout in layouts {
            for total in [1, 10, 12, 13, 72, 1530] {
                let mut pieces = Vec::new();
                layout.cut(12, total, &mut pieces);
                assert_eq!(
                    pieces.iter().sum::<u32>() as usize,
                    total,
                    "{layout:?} of {total}"
                );
            }
        }
    }
}
