//! The terminal while a page is shown: its own screen, no line editing, and everything as it was before once it is given back.
use crate::cli::table::printable;
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr,
};
use std::io::{self, Read, Write};
use tokio::sync::mpsc;

/// Another screen, without cursor; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// To the first line; to clear what is left of a line, and below.
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

/// What was pressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// q, or Ctrl-C where it is no signal.
    Quit,
    /// s.
    Sort,
    /// p.
    Pause,
    /// Space.
    Look,
    /// Anything else.
    Other,
}

impl Key {
    fn of(byte: u8) -> Self {
        match byte {
            b'q' | b'Q' | 3 => Self::Quit,
            b's' | b'S' => Self::Sort,
            b'p' | b'P' => Self::Pause,
            b' ' => Self::Look,
            _ => Self::Other,
        }
    }
}

/// The terminal, which is given back when this is dropped: at the end, and when a panic unwinds.
pub struct Screen {
    before: Termios,
    keys: mpsc::Receiver<Key>,
}

impl Screen {
    /// Takes the terminal.
    ///
    /// # Errors
    /// It cannot be set.
    pub fn open() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut own = before.clone();
        // Keys at once and unseen; Ctrl-C stays a signal.
        own.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
        own.special_codes[SpecialCodeIndex::VMIN] = 1;
        own.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(io::stdin(), OptionalActions::Now, &own)?;
        let (sender, keys) = mpsc::channel(16);
        let screen = Self { before, keys };
        std::thread::Builder::new()
            .name("keys".to_owned())
            .spawn(move || read_keys(&sender))?;
        write_all(ENTER)?;
        Ok(screen)
    }

    /// The next key; `None`: the terminal is gone.
    pub async fn key(&mut self) -> Option<Key> {
        self.keys.recv().await
    }

    /// Shows a page, as much of it as there is room for.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn show(&mut self, head: &str, fault: &str, text: &str) -> io::Result<()> {
        let (rows, columns) = match tcgetwinsize(io::stdout()) {
            Ok(size) if size.ws_row > 0 && size.ws_col > 0 => (size.ws_row, size.ws_col),
            _ => (24, 80),
        };
        write_all(&fitted((head, fault, text), (rows.into(), columns.into())))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // There is nobody left to tell if it fails.
        let _ = write_all(LEAVE);
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// On a thread of its own, which ends with the process or the terminal.
fn read_keys(keys: &mpsc::Sender<Key>) {
    let mut stdin = io::stdin().lock();
    let mut byte = [0];
    while let Ok(1) = stdin.read(&mut byte) {
        let [byte] = byte;
        if keys.blocking_send(Key::of(byte)).is_err() {
            return;
        }
    }
}

fn write_all(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// A page cut to the size of the screen: its first line in reverse, then a fault if there is one, then the text.
fn fitted((head, fault, text): (&str, &str, &str), (rows, columns): (usize, usize)) -> String {
    let cut = |line: &str| printable(line).chars().take(columns).collect::<String>();
    let mut page = format!("{HOME}\x1b[7m{:<columns$}\x1b[0m", cut(head));
    let fault = (!fault.is_empty()).then_some(fault);
    for line in fault
        .into_iter()
        .chain(text.lines())
        .take(rows.saturating_sub(1))
    {
        page += &format!("\r\n{}{CLEAR_LINE}", cut(line));
    }
    page + CLEAR_BELOW
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_cut_to_the_screen_and_cannot_steer_it() {
        let page = fitted(
            ("head", "", "one line that is long\ntwo\x1b[2J\nthree"),
            (3, 8),
        );
        assert_eq!(
            page,
            "\x1b[H\x1b[7mhead    \x1b[0m\r\none line\x1b[K\r\ntwo?[2J\x1b[K\x1b[J"
        );
        assert_eq!(
            fitted(("head", "gone", "one"), (2, 4))
                .matches("\r\n")
                .count(),
            1
        );
        assert_eq!(
            fitted(("head", "", "one"), (0, 0)).matches("\r\n").count(),
            0
        );
    }

    #[test]
    fn keys_are_known() {
        let keys = [b'q', 3, b's', b'P', b' ', b'x'].map(Key::of);
        assert_eq!(
            keys,
            [
                Key::Quit,
                Key::Quit,
                Key::Sort,
                Key::Pause,
                Key::Look,
                Key::Other
            ]
        );
    }
}
