//! The Redis protocol, version 2: commands as clients send them.
//!
//! [`Parser`] finds one command after the other in the bytes that have come so far. It copies nothing: it notes where the
//! arguments are, and goes on where it stopped when more has come, so a command that comes in a thousand pieces is read once.
//!
//! What a client sends is a claim: counts and lengths are bounded before anything is kept for them.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

/// Bytes of the longest command, with everything around its arguments.
pub const MAX_COMMAND: usize = 4 << 20;
/// Bytes of the longest command that is typed as a line.
const MAX_LINE: usize = 64 << 10;
/// Bytes of the longest command in the log: one that says the same as a client's may be longer.
const MAX_LOGGED: usize = 3 * MAX_COMMAND;
/// Bytes after which a command that is written in parts goes on in another.
const MAX_PART: usize = 1 << 20;
/// Bytes of a line that holds a count or length.
const MAX_HEADER: usize = 32;
/// Bytes that an argument needs at the least.
const MIN_ARGUMENT: usize = 6;

/// What a client sent is no command. Nothing that follows can be understood, so the connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// A line begins with something else than it has to.
    Expected(char),
    /// A count or length is no number, or out of range.
    Length,
    /// An argument does not end where its length says.
    End,
    /// A line, or the command, is longer than is taken.
    TooLong,
    /// A line has a quotation mark without its partner.
    Quotes,
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Protocol error: ")?;
        match self {
            Self::Expected(what) => write!(f, "expected '{what}'"),
            Self::Length => f.write_str("invalid count or length"),
            Self::End => f.write_str("an argument does not end with CR LF"),
            Self::TooLong => {
                write!(f, "too long; a command has at most {MAX_COMMAND} bytes, a line {MAX_LINE}")
            }
            Self::Quotes => f.write_str("unbalanced quotes in request"),
        }
    }
}

/// The arguments of a command, its name first.
#[derive(Clone, Copy, Debug)]
pub struct Arguments<'a> {
    input: &'a [u8],
    places: &'a [Range<usize>],
}

impl<'a> Arguments<'a> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is none: an empty line.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// One of them, if there are so many.
    pub fn get(&self, index: usize) -> Option<&'a [u8]> {
        self.places.get(index).map(|place| &self.input[place.clone()])
    }

    /// All of them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &'a [u8]> + Clone + use<'a> {
        let input = self.input;
        self.places.iter().map(move |place| &input[place.clone()])
    }
}

/// Finds commands. One for each connection.
#[derive(Debug)]
pub struct Parser {
    /// Bytes of the longest command.
    longest: usize,
    places: Vec<Range<usize>>,
    /// How far the command has been read.
    position: usize,
    /// Arguments of the command, once its first line was read.
    expected: Option<usize>,
    /// Bytes of the next argument, once its first line was read.
    length: Option<usize>,
    /// Bytes in which there is no end of line: they need not be searched again.
    searched: usize,
}

impl Default for Parser {
    fn default() -> Self {
        Self {
            longest: MAX_COMMAND,
            places: Vec::new(),
            position: 0,
            expected: None,
            length: None,
            searched: 0,
        }
    }
}

impl Parser {
    /// One for the log's commands.
    pub fn for_log() -> Self {
        Self { longest: MAX_LOGGED, ..Self::default() }
    }

    /// Reads on in `input`, which begins with the command. Gives its length once all of it has come; its arguments are then
    /// [`arguments`](Self::arguments), until [`next`](Self::next) is called again.
    ///
    /// # Errors
    ///
    /// It is none.
    pub fn next(&mut self, input: &[u8]) -> Result<Option<usize>, ProtocolError> {
        if self.expected.is_some_and(|expected| expected == self.places.len()) {
            self.forget();
        }
        let complete = match input.first() {
            None => false,
            Some(b'*') => self.array(input)?,
            Some(_) => self.line(input)?,
        };
        if !complete && input.len() > self.longest {
            return Err(ProtocolError::TooLong);
        }
        Ok(complete.then_some(self.position))
    }

    /// The arguments of the command that `next` has found in `input`.
    pub fn arguments<'a>(&'a self, input: &'a [u8]) -> Arguments<'a> {
        Arguments { input, places: &self.places }
    }

    /// Makes ready for another command.
    fn forget(&mut self) {
        self.places.clear();
        (self.position, self.searched) = (0, 0);
        (self.expected, self.length) = (None, None);
    }

    fn array(&mut self, input: &[u8]) -> Result<bool, ProtocolError> {
        let expected = match self.expected {
            Some(expected) => expected,
            None => match self.header(input, b'*')? {
                Some(count) => *self.expected.insert(usize::try_from(count).unwrap_or(0)),
                None => return Ok(false),
            },
        };
        if expected > self.longest / MIN_ARGUMENT {
            return Err(ProtocolError::Length);
        }
        while self.places.len() < expected {
            let length = match self.length {
                Some(length) => length,
                None => match self.header(input, b'$')? {
                    Some(length) => usize::try_from(length).map_err(|_| ProtocolError::Length)?,
                    None => return Ok(false),
                },
            };
            if length > self.longest {
                return Err(ProtocolError::Length);
            }
            let end = self.position + length;
            match input.get(end..end + 2) {
                Some(b"\r\n") => self.places.push(self.position..end),
                Some(_) => return Err(ProtocolError::End),
                None => {
                    self.length = Some(length);
                    return Ok(false);
                }
            }
            self.length = None;
            self.position = end + 2;
        }
        Ok(true)
    }

    /// Reads a line that is a mark and a number.
    fn header(&mut self, input: &[u8], mark: u8) -> Result<Option<i64>, ProtocolError> {
        let rest = &input[self.position..];
        match rest.first() {
            None => return Ok(None),
            Some(first) if *first != mark => return Err(ProtocolError::Expected(mark.into())),
            Some(_) => {}
        }
        let within = &rest[1..rest.len().min(MAX_HEADER)];
        let Some(end) = within.iter().position(|byte| *byte == b'\n') else {
            return if rest.len() < MAX_HEADER { Ok(None) } else { Err(ProtocolError::Length) };
        };
        self.position += end + 2;
        let digits = within[..end].strip_suffix(b"\r").ok_or(ProtocolError::Length)?;
        integer(digits).map(Some).ok_or(ProtocolError::Length)
    }

    /// Reads a command that was typed: words between spaces, which quotation marks keep together.
    fn line(&mut self, input: &[u8]) -> Result<bool, ProtocolError> {
        let Some(end) = input[self.searched..].iter().position(|byte| *byte == b'\n') else {
            self.searched = input.len();
            return if input.len() < MAX_LINE { Ok(false) } else { Err(ProtocolError::TooLong) };
        };
        let end = self.searched + end;
        let mut at = 0;
        while at < end {
            match input[at] {
                byte if byte.is_ascii_whitespace() => at += 1,
                quote @ (b'"' | b'\'') => {
                    let length = input[at + 1..end].iter().position(|byte| *byte == quote);
                    let close = at + 1 + length.ok_or(ProtocolError::Quotes)?;
                    self.places.push(at + 1..close);
                    at = close + 1;
                }
                _ => {
                    let length = input[at..end].iter().position(|byte| byte.is_ascii_whitespace());
                    let after = length.map_or(end, |length| at + length);
                    self.places.push(at..after);
                    at = after;
                }
            }
        }
        self.position = end + 1;
        self.expected = Some(self.places.len());
        Ok(true)
    }
}

/// A number in decimal, as Redis takes it: no plus, no spaces, no zeros in front.
pub fn integer(digits: &[u8]) -> Option<i64> {
    match digits {
        [b'0'] => Some(0),
        [b'-', b'1'..=b'9', ..] | [b'1'..=b'9', ..] => core::str::from_utf8(digits).ok()?.parse().ok(),
        _ => None,
    }
}

/// Writes a command as a client would send it.
pub fn write_command<'a>(buffer: &mut Vec<u8>, arguments: impl Iterator<Item = &'a [u8]> + Clone) {
    write_header(buffer, b'*', arguments.clone().count());
    for argument in arguments {
        write_header(buffer, b'$', argument.len());
        buffer.extend_from_slice(argument);
        buffer.extend_from_slice(b"\r\n");
    }
}

/// Many items in parts, for commands of a bounded length. Items that belong together, `group` of them, stay in one.
pub struct Parts<I> {
    items: I,
    group: usize,
}

impl<'a, I: Iterator<Item = &'a [u8]>> Parts<I> {
    /// These items.
    pub fn new(items: I, group: usize) -> Self {
        Self { items, group }
    }
}

impl<'a, I: Iterator<Item = &'a [u8]>> Iterator for Parts<I> {
    type Item = Vec<&'a [u8]>;

    fn next(&mut self) -> Option<Self::Item> {
        let (mut part, mut length) = (Vec::new(), 0);
        while length < MAX_PART {
            let before = part.len();
            part.extend(self.items.by_ref().take(self.group));
            if part.len() == before {
                break;
            }
            length += part[before..].iter().map(|item| item.len() + MAX_HEADER).sum::<usize>();
        }
        (!part.is_empty()).then_some(part)
    }
}

fn write_header(buffer: &mut Vec<u8>, mark: u8, number: usize) {
    buffer.push(mark);
    buffer.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    buffer.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All commands in `input`, given to the parser in pieces of `piece` bytes.
    fn commands(input: &[u8], piece: usize) -> Result<Vec<Vec<Vec<u8>>>, ProtocolError> {
        let (mut parser, mut start, mut found) = (Parser::default(), 0, Vec::new());
        for come in (0..=input.len()).step_by(piece).chain([input.len()]) {
            while let Some(length) = parser.next(&input[start..come])? {
                found.push(parser.arguments(&input[start..]).iter().map(<[u8]>::to_vec).collect());
                start += length;
            }
        }
        Ok(found)
    }

    #[test]
    fn commands_are_found_however_they_are_cut() {
        let input = b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n*0\r\n*-1\r\n*3\r\n$3\r\nSET\r\n$0\r\n\r\n$5\r\na\r\n*b\r\nPING \"a b\" 'c'\r\n\r\nECHO x\n";
        let whole = commands(input, input.len()).unwrap();
        let expected: &[&[&[u8]]] = &[
            &[b"GET", b"k"],
            &[],
            &[],
            &[b"SET", b"", b"a\r\n*b"],
            &[b"PING", b"a b", b"c"],
            &[],
            &[b"ECHO", b"x"],
        ];
        assert_eq!(whole, expected);
        for piece in 1..input.len() {
            assert_eq!(commands(input, piece).as_ref(), Ok(&whole), "in pieces of {piece}");
        }
    }

    #[test]
    fn what_is_no_command_is_refused() {
        let cases: &[(&[u8], ProtocolError)] = &[
            (b"*1\r\n+3\r\n", ProtocolError::Expected('$')),
            (b"*x\r\n", ProtocolError::Length),
            (b"*1\n", ProtocolError::Length),
            (b"*99999999\r\n", ProtocolError::Length),
            (b"*1\r\n$-1\r\n", ProtocolError::Length),
            (b"*1\r\n$999999999999999999999999\r\n", ProtocolError::Length),
            (b"*1\r\n$99999999\r\n", ProtocolError::Length),
            (b"*00000000000000000000000000000000000000", ProtocolError::Length),
            (b"*1\r\n$1\r\nabc", ProtocolError::End),
            (b"SET \"a\r\n", ProtocolError::Quotes),
        ];
        for (input, error) in cases {
            assert_eq!(commands(input, input.len()), Err(*error), "{:?}", input.escape_ascii());
            assert_eq!(commands(input, 1), Err(*error), "{:?}", input.escape_ascii());
        }
        assert_eq!(commands(&[b'a'; MAX_LINE + 1], 1000), Err(ProtocolError::TooLong));
        let mut long = b"*3\r\n".to_vec();
        for _ in 0..3 {
            long.extend_from_slice(b"$2097152\r\n");
            long.resize(long.len() + (2 << 20), b'x');
            long.extend_from_slice(b"\r\n");
        }
        assert_eq!(commands(&long, 1 << 16), Err(ProtocolError::TooLong));
    }

    #[test]
    fn random_bytes_are_commands_or_are_refused() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..20_000 {
            let length = random.usize(1..60);
            let input: Vec<u8> =
                (0..length).map(|_| random.choice(b"*$0123-\r\n\"' aZ\xff").copied().unwrap()).collect();
            let whole = commands(&input, input.len());
            // A fault may be seen before the command is complete, or after; what is found before it is the same.
            if let (Ok(whole), Ok(pieces)) = (whole, commands(&input, random.usize(1..=length))) {
                assert_eq!(whole, pieces, "{:?}", input.escape_ascii());
            }
        }
    }

    #[test]
    fn a_command_that_is_written_is_read_again() {
        let mut buffer = Vec::new();
        let arguments: [&[u8]; 3] = [b"SET", b"", b"\r\n$1\r\n"];
        write_command(&mut buffer, arguments.into_iter());
        assert_eq!(commands(&buffer, 1).unwrap(), [arguments]);
    }

    #[test]
    fn parts_hold_all_items_and_keep_groups_together() {
        let items: Vec<Vec<u8>> = (0..300_000_u32).map(|n| n.to_string().into_bytes()).collect();
        let mut buffer = Vec::new();
        for part in Parts::new(items.iter().map(|item| &**item), 2) {
            write_command(&mut buffer, [&b"HSET"[..], b"key"].into_iter().chain(part));
        }
        let parts = commands(&buffer, 1 << 20).unwrap();
        assert!(parts.len() > 5);
        assert!(
            parts
                .iter()
                .all(|part| part[..2] == [b"HSET".to_vec(), b"key".to_vec()] && part.len().is_multiple_of(2))
        );
        assert!(parts.iter().flat_map(|part| &part[2..]).eq(&items));
    }

    #[test]
    fn numbers_are_decimal_and_nothing_else() {
        assert_eq!(
            [&b"0"[..], b"-7", b"9223372036854775807"].map(integer),
            [Some(0), Some(-7), Some(i64::MAX)]
        );
        for not in [&b""[..], b"-", b"+1", b"01", b"-0", b" 1", b"1 ", b"9223372036854775808", b"1.5"] {
            assert_eq!(integer(not), None, "{:?}", not.escape_ascii());
        }
    }
}
