//! Editing a line on a terminal: what is typed goes in byte by byte, what the terminal is to show comes out.
//!
//! Ctrl-A, Ctrl-E, arrows, backspace, Ctrl-U (all before), Ctrl-K (all behind), up and down for lines of before, Ctrl-C to
//! give the line up, Ctrl-D on an empty line for the end.
//!
//! Start at [`Editor::byte`].

use alloc::string::String;
use alloc::vec::Vec;

/// What a byte has led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Typed {
    /// The line goes on.
    Nothing,
    /// The line is complete.
    Line(String),
    /// The line was given up.
    GivenUp,
    /// There will be no more lines.
    End,
}

/// A line that is being edited, and those before it.
#[derive(Default)]
pub struct Editor {
    line: Vec<char>,
    /// Where the cursor is, in characters.
    at: usize,
    history: Vec<String>,
    /// Which line of `history` is shown; its length for a new one.
    shown: usize,
    /// Bytes of an escape sequence, or of a character of several bytes, so far.
    partial: Vec<u8>,
}

const ESCAPE: u8 = 0x1b;

impl Editor {
    /// An empty line, and none before it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one byte; adds to `screen` what the terminal is to be sent.
    pub fn byte(&mut self, byte: u8, screen: &mut String) -> Typed {
        if !self.partial.is_empty() {
            self.partial.push(byte);
            self.finish_partial(screen);
            return Typed::Nothing;
        }
        match byte {
            b'\r' | b'\n' => return self.complete(screen),
            0x03 => {
                screen.push_str("^C\r\n");
                self.replace(String::new());
                self.shown = self.history.len();
                return Typed::GivenUp;
            }
            0x04 if self.line.is_empty() => return Typed::End,
            0x01 => self.move_to(0, screen),
            0x05 => self.move_to(self.line.len(), screen),
            0x08 | 0x7f if self.at > 0 => {
                self.move_to(self.at - 1, screen);
                self.line.remove(self.at);
                self.redraw(screen);
            }
            0x0b => {
                self.line.truncate(self.at);
                self.redraw(screen);
            }
            0x15 => {
                let end = self.at;
                self.move_to(0, screen);
                self.line.drain(..end);
                self.redraw(screen);
            }
            ESCAPE | 0xc0.. => self.partial.push(byte),
            b' '..0x7f => self.insert(byte.into(), screen),
            _ => {}
        }
        Typed::Nothing
    }

    fn complete(&mut self, screen: &mut String) -> Typed {
        screen.push_str("\r\n");
        let line: String = self.line.iter().collect();
        self.replace(String::new());
        if !line.trim().is_empty() && self.history.last() != Some(&line) {
            self.history.push(line.clone());
        }
        self.shown = self.history.len();
        Typed::Line(line)
    }

    /// Acts on what was gathered, if it is complete.
    fn finish_partial(&mut self, screen: &mut String) {
        match &self.partial[..] {
            [ESCAPE] | [ESCAPE, b'['] | [ESCAPE, b'[', .., b'0'..=b'9' | b';'] => return,
            b"\x1b[A" => self.recall(self.shown.saturating_sub(1), screen),
            b"\x1b[B" => self.recall(self.shown + 1, screen),
            b"\x1b[C" => self.move_to((self.at + 1).min(self.line.len()), screen),
            b"\x1b[D" => self.move_to(self.at.saturating_sub(1), screen),
            b"\x1b[H" => self.move_to(0, screen),
            b"\x1b[F" => self.move_to(self.line.len(), screen),
            [ESCAPE, ..] => {}
            bytes => match core::str::from_utf8(bytes).map(|text| text.chars().next()) {
                Ok(new) => new.into_iter().for_each(|new| self.insert(new, screen)),
                Err(error) if error.error_len().is_none() => return,
                Err(_) => {}
            },
        }
        self.partial.clear();
    }

    fn insert(&mut self, new: char, screen: &mut String) {
        self.line.insert(self.at, new);
        self.at += 1;
        screen.push(new);
        if self.at < self.line.len() {
            self.redraw(screen);
        }
    }

    /// Shows another line: one of before, or an empty one behind them.
    fn recall(&mut self, which: usize, screen: &mut String) {
        if which > self.history.len() {
            return;
        }
        self.shown = which;
        self.move_to(0, screen);
        self.replace(self.history.get(which).cloned().unwrap_or_default());
        screen.extend(&self.line);
        self.redraw(screen);
    }

    fn replace(&mut self, line: String) {
        self.line = line.chars().collect();
        self.at = self.line.len();
    }

    fn move_to(&mut self, to: usize, screen: &mut String) {
        let (steps, direction) =
            if to < self.at { (self.at - to, "\x1b[D") } else { (to - self.at, "\x1b[C") };
        (0..steps).for_each(|_| screen.push_str(direction));
        self.at = to;
    }

    /// Shows what is behind the cursor anew, and comes back.
    fn redraw(&mut self, screen: &mut String) {
        screen.extend(&self.line[self.at..]);
        screen.push_str("\x1b[K");
        (self.at..self.line.len()).for_each(|_| screen.push_str("\x1b[D"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Types all; gives the lines that were completed, and what is left on a terminal's last line.
    fn typed(text: &str) -> (Vec<String>, String) {
        let (mut editor, mut screen, mut lines) = (Editor::new(), String::new(), Vec::new());
        for byte in text.bytes() {
            if let Typed::Line(line) = editor.byte(byte, &mut screen) {
                lines.push(line);
            }
        }
        (lines, terminal(&screen))
    }

    /// What a terminal's last line looks like after this was sent to it.
    fn terminal(sent: &str) -> String {
        let (mut line, mut at) = (Vec::new(), 0);
        let mut rest = sent.chars();
        while let Some(next) = rest.next() {
            match next {
                '\r' => (),
                '\n' => (line, at) = (Vec::new(), 0),
                '\x1b' => match (rest.next(), rest.next()) {
                    (_, Some('C')) => at += 1,
                    (_, Some('D')) => at -= 1,
                    _ => line.truncate(at),
                },
                other => {
                    line.truncate(line.len().max(at));
                    if at < line.len() {
                        line[at] = other
                    } else {
                        line.push(other)
                    }
                    at += 1;
                }
            }
        }
        line.into_iter().collect()
    }

    #[test]
    fn what_is_typed_is_the_line_and_on_the_screen() {
        assert_eq!(typed("ls\r"), (vec!["ls".into()], String::new()));
        assert_eq!(typed("echo grüße"), (vec![], "echo grüße".into()));
    }

    #[test]
    fn keys_that_edit() {
        let cases = [
            ("lx\x7fs", "ls"),
            ("s\x01l", "ls"),
            ("s\x1b[Dl\x05 -l", "ls -l"),
            ("abc\x1b[D\x1b[D\x0b", "a"),
            ("abc\x1b[D\x15", "c"),
            ("ac\x1b[Db\x1b[C\x1b[Cd", "abcd"),
            ("\x7f\x7fa\x1b[3~b", "ab"),
            ("a\x1b[1;5Cb", "ab"),
        ];
        for (keys, line) in cases {
            assert_eq!(typed(keys).1, line, "{keys:?}");
            assert_eq!(typed(&format!("{keys}\r")).0, [line], "{keys:?}");
        }
    }

    #[test]
    fn lines_of_before_come_back() {
        let (up, down) = ("\x1b[A", "\x1b[B");
        assert_eq!(typed(&format!("one\rtwo\r{up}")).1, "two");
        assert_eq!(typed(&format!("one\rtwo\r{up}{up}{up}")).1, "one");
        assert_eq!(typed(&format!("one\rtwo\r{up}{up}{down}")).1, "two");
        assert_eq!(typed(&format!("one\r{up}{down}{down}")).1, "");
        assert_eq!(typed(&format!("one\r{up}s\r")).0, ["one", "ones"]);
    }

    #[test]
    fn giving_up_and_ending() {
        let (mut editor, mut screen) = (Editor::new(), String::new());
        assert_eq!(editor.byte(b'a', &mut screen), Typed::Nothing);
        assert_eq!(editor.byte(0x04, &mut screen), Typed::Nothing, "not at the end of an empty line");
        assert_eq!(editor.byte(0x03, &mut screen), Typed::GivenUp);
        assert_eq!(editor.byte(0x04, &mut screen), Typed::End);
    }
}
