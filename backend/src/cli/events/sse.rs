//! Server-sent events out of bytes (WHATWG HTML §9.2.6), with a bound on what is kept of one.

/// Most bytes of one event, far above what a daemon sends: there is nothing longer than a reason in words.
const MAX_EVENT_BYTES: usize = 256 * 1024;

/// An event whose end came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The last `id` that there was, of this event or an earlier one.
    pub id: String,
    /// Its `event`.
    pub name: String,
    /// Its `data`, lines with a newline in between.
    pub data: String,
}

/// The stream holds an event that is too long to be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event has more than {MAX_EVENT_BYTES} bytes")]
pub struct TooLong;

/// A stream that is being read.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    /// The line before ended with CR: an LF that follows belongs to it.
    after_return: bool,
    /// The first line was read, before which there may be a byte order mark.
    has_begun: bool,
    /// `id` of the event in hand, and of the last one that was told.
    id: String,
    last_id: String,
    name: String,
    data: Option<String>,
}

impl Parser {
    /// Takes bytes in; events that are whole now are added to `told`, also those before a fault.
    ///
    /// # Errors
    /// An event that is longer than any is.
    pub fn add(&mut self, bytes: &[u8], told: &mut Vec<Told>) -> Result<(), TooLong> {
        for &byte in bytes {
            let ends_pair = byte == b'\n' && std::mem::take(&mut self.after_return);
            if ends_pair {
                continue;
            }
            self.after_return = byte == b'\r';
            if matches!(byte, b'\r' | b'\n') {
                let line = std::mem::take(&mut self.line);
                told.extend(self.end_line(&String::from_utf8_lossy(&line)));
                continue;
            }
            let kept = self.line.len() + self.data.as_ref().map_or(0, String::len);
            if kept >= MAX_EVENT_BYTES {
                return Err(TooLong);
            }
            self.line.push(byte);
        }
        Ok(())
    }

    /// The `id` to go on after; empty: there was none.
    pub fn last_id(&self) -> &str {
        &self.last_id
    }

    fn end_line(&mut self, line: &str) -> Option<Told> {
        let is_first = !std::mem::replace(&mut self.has_begun, true);
        let line = match line.strip_prefix('\u{feff}') {
            Some(rest) if is_first => rest,
            _ => line,
        };
        if line.is_empty() {
            return self.end_event();
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" if !value.contains('\0') => value.clone_into(&mut self.id),
            "event" => value.clone_into(&mut self.name),
            "data" => match &mut self.data {
                Some(data) => data.extend(["\n", value]),
                None => self.data = Some(value.to_owned()),
            },
            // A comment, `retry`, or what a newer daemon says.
            _ => {}
        }
        None
    }

    /// What has no data is no event, but a place.
    fn end_event(&mut self) -> Option<Told> {
        self.last_id.clone_from(&self.id);
        let name = std::mem::take(&mut self.name);
        let data = self.data.take().filter(|data| !data.is_empty())?;
        Some(Told {
            id: self.last_id.clone(),
            name,
            data,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told of a stream that comes in pieces of so many bytes, and where it goes on.
    fn told(stream: &[u8], piece: usize) -> (Vec<(String, String, String)>, String) {
        let (mut parser, mut told) = (Parser::default(), Vec::new());
        for bytes in stream.chunks(piece) {
            parser.add(bytes, &mut told).unwrap();
        }
        let told = told.into_iter().map(|told| (told.id, told.name, told.data));
        (told.collect(), parser.last_id().to_owned())
    }

    #[track_caller]
    fn tells(stream: &str, expected: &[(&str, &str, &str)], last_id: &str) {
        let own = |(id, name, data): &(&str, &str, &str)| {
            ((*id).to_owned(), (*name).to_owned(), (*data).to_owned())
        };
        let expected = (expected.iter().map(own).collect(), last_id.to_owned());
        for piece in [1, 2, 3, 7, 1000] {
            assert_eq!(told(stream.as_bytes(), piece), expected, "{piece} bytes");
        }
    }

    #[test]
    fn events_are_told_as_a_daemon_sends_them() {
        tells(
            "retry: 2000\nid: a-0\n\n:\n\nid: a-1\nevent: port_up\ndata: {\"port\":\"vm1\"}\n\n\
             event: lagged\ndata: {\"missed\":2}\n\nid: a-2\nevent: x\n",
            &[
                ("a-1", "port_up", "{\"port\":\"vm1\"}"),
                ("a-1", "lagged", "{\"missed\":2}"),
            ],
            "a-1",
        );
        // The place it begins with, before anything happened.
        tells("retry: 2000\nid: a-7\n\n", &[], "a-7");
    }

    #[test]
    fn lines_end_in_any_of_three_ways_and_fields_are_read_as_the_standard_says() {
        tells(
            "\u{feff}id:1\r\ndata:  a\r\rdata: b\r\ndata\r\ndata:c\r\n\r\nid\ndata: \u{fe}\n\n",
            &[("1", "", " a"), ("1", "", "b\n\nc"), ("", "", "\u{fe}")],
            "",
        );
        // An id with NUL is none, an unknown field is nothing, an event without data is none.
        tells(
            "id: 1\n\nid: 2\0\nx: y\nevent: gone\n\ndata: a\n\n",
            &[("1", "", "a")],
            "1",
        );
    }

    #[test]
    fn what_never_ends_is_given_up_and_what_came_before_is_told() {
        let endless = |line: &str, ends: bool| {
            let (mut parser, mut told) = (Parser::default(), Vec::new());
            parser.add(b"data: a\n\n", &mut told).unwrap();
            let mut line = line.repeat(1000);
            if ends {
                line.push('\n');
            }
            let fault = (0..1000).find_map(|_| parser.add(line.as_bytes(), &mut told).err());
            assert_eq!((fault, told.len()), (Some(TooLong), 1));
            assert!(parser.line.len() <= MAX_EVENT_BYTES);
        };
        endless("x", false);
        endless("data:x", true);
    }
}
