//! The frames of a capture: classic pcap (draft-ietf-opsawg-pcap) and pcapng (draft-ietf-opsawg-pcapng), Ethernet only.
//!
//! Of pcapng: section headers, interface descriptions, enhanced and simple packets; every other block is passed over.
use super::MAX_FRAME_BYTES;

/// LINKTYPE_ETHERNET.
const ETHERNET: u32 = 1;

/// A capture that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CaptureError {
    /// Neither pcap nor pcapng.
    #[error("it is no capture; write one with tcpdump -w or Wireshark")]
    Unknown,
    /// It ends in the middle of something.
    #[error("it ends too early, at byte {0}; copy it again")]
    Truncated(usize),
    /// Not Ethernet.
    #[error("its link type is {0}; only Ethernet (1) can be explained")]
    LinkType(u32),
    /// A packet longer than any frame.
    #[error("the packet at byte {0} is longer than any frame")]
    TooLong(usize),
}

/// The first `most` frames.
pub fn frames(file: &[u8], most: usize) -> Result<Vec<&[u8]>, CaptureError> {
    let reader = |order| Reader { file, at: 0, order };
    match file.first_chunk() {
        Some([0xd4, 0xc3, 0xb2, 0xa1] | [0x4d, 0x3c, 0xb2, 0xa1]) => {
            reader(Order::Little).classic(most)
        }
        Some([0xa1, 0xb2, 0xc3, 0xd4] | [0xa1, 0xb2, 0x3c, 0x4d]) => {
            reader(Order::Big).classic(most)
        }
        Some([0x0a, 0x0d, 0x0d, 0x0a]) => reader(Order::Little).next_generation(most),
        _ => Err(CaptureError::Unknown),
    }
}

#[derive(Clone, Copy)]
enum Order {
    Little,
    Big,
}

struct Reader<'a> {
    file: &'a [u8],
    at: usize,
    order: Order,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], CaptureError> {
        let end = self.at.checked_add(length);
        let bytes = end
            .and_then(|end| self.file.get(self.at..end))
            .ok_or(CaptureError::Truncated(self.at))?;
        self.at += length;
        Ok(bytes)
    }

    fn number(&mut self) -> Result<u32, CaptureError> {
        let bytes = self.take(4)?;
        Ok(self.number_in(bytes, 0))
    }

    fn number_in(&self, bytes: &[u8], at: usize) -> u32 {
        let four = bytes.get(at..).and_then(<[u8]>::first_chunk).copied();
        match self.order {
            Order::Little => u32::from_le_bytes(four.unwrap_or_default()),
            Order::Big => u32::from_be_bytes(four.unwrap_or_default()),
        }
    }

    fn length(&mut self) -> Result<usize, CaptureError> {
        let at = self.at;
        let length = self.number()? as usize;
        if length > MAX_FRAME_BYTES {
            return Err(CaptureError::TooLong(at));
        }
        Ok(length)
    }

    fn classic(mut self, most: usize) -> Result<Vec<&'a [u8]>, CaptureError> {
        self.take(20)?;
        ethernet(self.number()? & 0xffff)?;
        let mut frames = vec![];
        while self.at < self.file.len() && frames.len() < most {
            self.take(8)?;
            let length = self.length()?;
            self.take(4)?;
            frames.push(self.take(length)?);
        }
        Ok(frames)
    }

    fn next_generation(mut self, most: usize) -> Result<Vec<&'a [u8]>, CaptureError> {
        let mut frames = vec![];
        let mut links: Vec<u32> = vec![];
        while self.at < self.file.len() && frames.len() < most {
            let start = self.at;
            let kind = self.number()?;
            if kind == 0x0a0d_0d0a {
                self.order = match self.file.get(start + 8..start + 12) {
                    Some([0x1a, 0x2b, 0x3c, 0x4d]) => Order::Big,
                    Some([0x4d, 0x3c, 0x2b, 0x1a]) => Order::Little,
                    _ => return Err(CaptureError::Truncated(start)),
                };
                links.clear();
            }
            let total = self.number()? as usize;
            // Type, length, and the length again at the end.
            let body = total
                .checked_sub(12)
                .ok_or(CaptureError::Truncated(start))?;
            let body = self.take(body)?;
            self.take(4)?;
            let packet = match kind {
                1 => {
                    let link = body.first_chunk().copied().unwrap_or_default();
                    links.push(u32::from(match self.order {
                        Order::Little => u16::from_le_bytes(link),
                        Order::Big => u16::from_be_bytes(link),
                    }));
                    None
                }
                6 => {
                    let interface = self.number_in(body, 0) as usize;
                    let link = links.get(interface).copied();
                    ethernet(link.ok_or(CaptureError::Truncated(start))?)?;
                    Some((20, self.number_in(body, 12) as usize))
                }
                3 => {
                    let link = links.first().copied();
                    ethernet(link.ok_or(CaptureError::Truncated(start))?)?;
                    let length = self.number_in(body, 0) as usize;
                    Some((4, length.min(body.len().saturating_sub(4))))
                }
                _ => None,
            };
            if let Some((from, length)) = packet {
                if length > MAX_FRAME_BYTES {
                    return Err(CaptureError::TooLong(start));
                }
                let frame = body.get(from..from + length);
                frames.push(frame.ok_or(CaptureError::Truncated(start))?);
            }
        }
        Ok(frames)
    }
}

fn ethernet(link: u32) -> Result<(), CaptureError> {
    match link {
        ETHERNET => Ok(()),
        other => Err(CaptureError::LinkType(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn classic(frames: &[&[u8]]) -> Vec<u8> {
        let mut file = vec![0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0];
        file.extend([0; 8]);
        file.extend(65_535u32.to_le_bytes());
        file.extend(1u32.to_le_bytes());
        for frame in frames {
            file.extend([0; 8]);
            let length = u32::try_from(frame.len()).unwrap().to_le_bytes();
            file.extend(length);
            file.extend(length);
            file.extend(*frame);
        }
        file
    }

    fn block(kind: u32, body: &[u8]) -> Vec<u8> {
        let mut body = body.to_vec();
        body.resize(body.len().next_multiple_of(4), 0);
        let total = u32::try_from(body.len() + 12).unwrap().to_be_bytes();
        [&kind.to_be_bytes()[..], &total, &body, &total].concat()
    }

    fn next_generation(frame: &[u8]) -> Vec<u8> {
        let section = [
            0x1a, 0x2b, 0x3c, 0x4d, 0, 1, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255,
        ];
        let length = u32::try_from(frame.len()).unwrap().to_be_bytes();
        let packet = [&[0; 12][..], &length, &length, frame].concat();
        [
            block(0x0a0d_0d0a, &section),
            block(1, &[0, 1, 0, 0, 0, 0, 0, 0]),
            block(5, &[9; 8]),
            block(6, &packet),
            block(3, &[&length[..], frame].concat()),
        ]
        .concat()
    }

    #[test]
    fn both_forms_give_their_frames() {
        let file = classic(&[b"first", b"", b"third"]);
        assert_eq!(frames(&file, 9).unwrap(), [&b"first"[..], b"", b"third"]);
        assert_eq!(frames(&file, 1).unwrap().len(), 1);
        let file = next_generation(b"a frame");
        assert_eq!(frames(&file, 9).unwrap(), [b"a frame", b"a frame"]);
    }

    #[test]
    fn other_links_are_refused() {
        let mut file = classic(&[b"x"]);
        file[20] = 113;
        assert_eq!(frames(&file, 9), Err(CaptureError::LinkType(113)));
        assert_eq!(frames(b"text", 9), Err(CaptureError::Unknown));
    }

    proptest! {
        #[test]
        fn a_broken_file_is_an_error_and_nothing_worse(
            cut in 0usize..140, change in 0usize..140, value in any::<u8>(), classic_form in any::<bool>()
        ) {
            let mut file = if classic_form { classic(&[b"first", b"second frame"]) } else { next_generation(b"a frame") };
            let change = change % file.len();
            file[change] = value;
            file.truncate(cut);
            let _ = frames(&file, 100);
        }
    }
}
