//! Replies, as the protocol has them.
//!
//! They wait here until what they tell of is on the disk. How much can wait is bounded: a client that asks for more than
//! [`Reply::MOST`] at once is cut off, as Redis does it.

use alloc::vec::Vec;
use core::fmt::{self, Write};

/// Replies that have not been sent.
#[derive(Debug, Default)]
pub struct Reply {
    bytes: Vec<u8>,
    too_long: bool,
}

impl Reply {
    /// Bytes that can wait.
    pub const MOST: usize = 8 << 20;

    /// What is to be sent.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether more was to be sent than is kept.
    pub fn is_too_long(&self) -> bool {
        self.too_long
    }

    /// So many bytes were sent.
    pub fn sent(&mut self, count: usize) {
        self.bytes.drain(..count);
        if self.bytes.is_empty() && self.bytes.capacity() > 1 << 20 {
            self.bytes = Vec::new();
        }
    }

    /// `+OK` and the like.
    pub fn simple(&mut self, text: &str) {
        self.push(&[b"+", text.as_bytes(), b"\r\n"]);
    }

    /// `+OK`.
    pub fn ok(&mut self) {
        self.push(&[b"+OK\r\n"]);
    }

    /// An error; its text begins with a word in capitals.
    pub fn error(&mut self, text: impl fmt::Display) {
        let start = self.bytes.len();
        let _ = write!(self, "-{text}");
        for byte in &mut self.bytes[start..] {
            if matches!(*byte, b'\r' | b'\n') {
                *byte = b' ';
            }
        }
        self.push(&[b"\r\n"]);
    }

    /// A number.
    pub fn integer(&mut self, number: i64) {
        self.push(&[b":", itoa::Buffer::new().format(number).as_bytes(), b"\r\n"]);
    }

    /// A count.
    pub fn count(&mut self, count: usize) {
        self.integer(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A string.
    pub fn bulk(&mut self, bytes: &[u8]) {
        self.push(&[b"$", itoa::Buffer::new().format(bytes.len()).as_bytes(), b"\r\n", bytes, b"\r\n"]);
    }

    /// A string, or that there is none.
    pub fn bulk_or_null(&mut self, bytes: Option<&[u8]>) {
        match bytes {
            Some(bytes) => self.bulk(bytes),
            None => self.push(&[b"$-1\r\n"]),
        }
    }

    /// That there is no array.
    pub fn null_array(&mut self) {
        self.push(&[b"*-1\r\n"]);
    }

    /// That so many replies follow, which are one.
    pub fn array(&mut self, count: usize) {
        self.push(&[b"*", itoa::Buffer::new().format(count).as_bytes(), b"\r\n"]);
    }

    /// Strings.
    pub fn bulks<'a>(&mut self, strings: impl ExactSizeIterator<Item = &'a [u8]>) {
        self.array(strings.len());
        strings.for_each(|string| self.bulk(string));
    }

    fn push(&mut self, parts: &[&[u8]]) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if self.bytes.len() + length > Self::MOST {
            self.too_long = true;
        } else {
            parts.iter().for_each(|part| self.bytes.extend_from_slice(part));
        }
    }
}

impl fmt::Write for Reply {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(&[text.as_bytes()]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_as_the_protocol_has_them() {
        let mut reply = Reply::default();
        reply.ok();
        reply.error("ERR a\r\nb");
        reply.integer(-3);
        reply.bulk(b"x\r\n");
        reply.bulk_or_null(None);
        reply.bulks([&b"a"[..], b""].into_iter());
        let expected = b"+OK\r\n-ERR a  b\r\n:-3\r\n$3\r\nx\r\n\r\n$-1\r\n*2\r\n$1\r\na\r\n$0\r\n\r\n";
        assert_eq!(reply.bytes(), expected);
        reply.sent(5);
        assert_eq!(reply.bytes(), &expected[5..]);
    }

    #[test]
    fn no_more_waits_than_is_kept() {
        let mut reply = Reply::default();
        let megabyte = [0; 1 << 20];
        for _ in 0..8 {
            reply.bulk(&megabyte);
        }
        assert!(reply.is_too_long());
        assert!(reply.bytes().len() <= Reply::MOST);
    }
}
