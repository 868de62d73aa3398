//! The patterns of `grep`: text, with `^` and `$` for a line's start and end, `.` for any character, and `*` for any
//! number of the character before it. A backslash takes away what the next character would mean.

use alloc::vec::Vec;

/// A pattern.
pub struct Pattern {
    pieces: Vec<Piece>,
    from_start: bool,
    to_end: bool,
}

#[derive(Clone, Copy)]
struct Piece {
    /// `None`: any.
    character: Option<char>,
    repeated: bool,
}

impl Pattern {
    /// Reads a pattern. All text is one.
    pub fn new(text: &str) -> Self {
        let (from_start, text) = text.strip_prefix('^').map_or((false, text), |rest| (true, rest));
        let mut pieces: Vec<Piece> = Vec::new();
        let mut to_end = false;
        let mut rest = text.chars().peekable();
        while let Some(next) = rest.next() {
            let character = match next {
                '*' if !pieces.is_empty() => {
                    pieces.last_mut().expect("there is one").repeated = true;
                    continue;
                }
                '$' if rest.peek().is_none() => {
                    to_end = true;
                    continue;
                }
                '.' => None,
                '\\' => Some(rest.next().unwrap_or('\\')),
                other => Some(other),
            };
            pieces.push(Piece { character, repeated: false });
        }
        Self { pieces, from_start, to_end }
    }

    /// Whether it is in a line.
    pub fn is_in(&self, line: &str) -> bool {
        let starts = line.char_indices().map(|(at, _)| at).chain([line.len()]);
        let mut starts = starts.take(if self.from_start { 1 } else { usize::MAX });
        starts.any(|start| self.matches(&line[start..]))
    }

    /// Whether a line's rest begins with it. Follows all ways at once: `ways[i]` is set if the first `i` pieces have led
    /// to here.
    fn matches(&self, rest: &str) -> bool {
        let last = self.pieces.len();
        let mut ways = alloc::vec![false; last + 1];
        ways[0] = true;
        self.skip_repeated(&mut ways);
        for character in rest.chars() {
            if ways[last] && !self.to_end {
                return true;
            }
            let mut next = alloc::vec![false; last + 1];
            for (i, piece) in self.pieces.iter().enumerate().filter(|(i, _)| ways[*i]) {
                if piece.character.is_none_or(|wanted| wanted == character) {
                    next[if piece.repeated { i } else { i + 1 }] = true;
                }
            }
            self.skip_repeated(&mut next);
            ways = next;
        }
        ways[last]
    }

    /// A repeated piece may be there no times at all.
    fn skip_repeated(&self, ways: &mut [bool]) {
        for (i, piece) in self.pieces.iter().enumerate() {
            ways[i + 1] |= ways[i] && piece.repeated;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let cases = [
            ("", "", true),
            ("or", "hello world", true),
            ("xor", "hello world", false),
            ("^hell", "hello", true),
            ("^ello", "hello", false),
            ("llo$", "hello", true),
            ("ell$", "hello", false),
            ("^$", "", true),
            ("^$", "a", false),
            ("h.l", "hello", true),
            ("h.o", "hello", false),
            ("^hel*o$", "hellllo", true),
            ("^hex*lo$", "helo", true),
            ("h.*o", "say hello", true),
            ("^.*7$", "17", true),
            (r"a\.b", "axb", false),
            (r"a\.b", "a.b", true),
            ("*a", "*a", true),
            ("a$b", "a$b", true),
        ];
        for (pattern, line, expected) in cases {
            assert_eq!(Pattern::new(pattern).is_in(line), expected, "{pattern:?} in {line:?}");
        }
    }

    #[test]
    fn a_pattern_with_many_stars_takes_no_time() {
        let (pattern, line) = ("a*".repeat(30) + "b", "a".repeat(200));
        assert!(!Pattern::new(&pattern).is_in(&line));
    }
}
