//! A client, without the network: bytes in, bytes out.

use crate::database::{After, Database};
use crate::disk::Disk;
use crate::reply::Reply;
use crate::resp::Parser;
use alloc::vec::Vec;

/// Bytes of replies that wait to be sent, from which on no more commands of this client are carried out.
const MUCH: usize = 256 << 10;

/// What a client has sent, and what it is to get.
#[derive(Debug, Default)]
pub struct Connection {
    parser: Parser,
    input: Vec<u8>,
    /// Bytes of the input that have been carried out.
    done: usize,
    /// Whether there may be commands in the input that wait for room for their replies.
    waits: bool,
    /// Its replies. They are not to be sent before a commit.
    pub reply: Reply,
    /// Whether it is to be closed once the replies are sent; what it sends is no longer looked at.
    pub closing: bool,
}

impl Connection {
    /// Takes what the client has sent.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// Whether what it sends can be taken now.
    pub fn is_ready(&self) -> bool {
        !self.closing && self.reply.bytes().len() < MUCH
    }

    /// Whether commands that have come wait for room for their replies.
    pub fn waits(&self) -> bool {
        self.waits
    }

    /// Bytes of memory that it takes.
    pub fn held(&self) -> usize {
        self.input.capacity() + self.reply.bytes().len()
    }

    /// Carries out what has come, as far as there is room for replies; says whether the server is to end.
    ///
    /// # Errors
    ///
    /// The disk failed.
    pub fn run<D: Disk>(&mut self, database: &mut Database<D>, now: u64) -> Result<bool, D::Error> {
        let mut shutdown = false;
        while self.is_ready() && !shutdown {
            let input = &self.input[self.done..];
            let length = match self.parser.next(input) {
                Ok(Some(length)) => length,
                Ok(None) => break,
                Err(error) => {
                    self.reply.error(format_args!("ERR {error}"));
                    self.closing = true;
                    break;
                }
            };
            match database.execute(self.parser.arguments(input), now, &mut self.reply)? {
                After::Continue => self.closing = self.reply.is_too_long(),
                After::Close => self.closing = true,
                After::Shutdown => shutdown = true,
            }
            self.done += length;
        }
        self.forget_done();
        self.waits = !self.is_ready() && !self.input.is_empty();
        Ok(shutdown)
    }

    /// Gives back the memory of what was carried out.
    fn forget_done(&mut self) {
        if self.closing {
            self.input = Vec::new();
        } else if self.done == self.input.len() {
            self.input.clear();
            self.input.shrink_to(MUCH);
        } else {
            self.input.drain(..self.done);
        }
        self.done = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestDisk;

    /// What is answered to bytes that come in these pieces, and whether the connection is closed then.
    fn answers<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (String, bool) {
        let mut disk = TestDisk::new(4096);
        let mut database = Database::open(&mut disk, 1, 1 << 20).unwrap();
        let mut connection = Connection::default();
        for piece in pieces {
            connection.receive(piece);
            assert_eq!(connection.run(&mut database, 0), Ok(false));
        }
        (String::from_utf8_lossy(connection.reply.bytes()).replace("\r\n", "|"), connection.closing)
    }

    #[test]
    fn commands_are_answered_in_order_however_they_come() {
        let input = b"SET k 1\r\n*2\r\n$4\r\nINCR\r\n$1\r\nk\r\n\r\nGET k\r\nNOSUCH\r\n";
        let expected = "+OK|:2|$1|2|-ERR unknown command 'NOSUCH'|";
        for piece in [1, 7, input.len()] {
            assert_eq!(answers(input.chunks(piece)), (expected.into(), false));
        }
    }

    #[test]
    fn nothing_is_done_after_the_end() {
        assert_eq!(answers([&b"QUIT\r\nSET k 1\r\n"[..], b"GET k\r\n"]), ("+OK|".into(), true));
        let (answer, closing) = answers([&b"PING\r\n*1\r\n+\r\nPING\r\n"[..]]);
        assert_eq!((&*answer, closing), ("+PONG|-ERR Protocol error: expected '$'|", true));
    }

    #[test]
    fn a_client_that_does_not_read_is_not_served_further() {
        let mut disk = TestDisk::new(4096);
        let mut database = Database::open(&mut disk, 1, 1 << 20).unwrap();
        let mut connection = Connection::default();
        connection.receive(&b"PING\r\n".repeat(100_000));
        connection.run(&mut database, 0).unwrap();
        assert!(!connection.is_ready());
        let mut answered = 0;
        while !connection.reply.bytes().is_empty() {
            assert!(connection.reply.bytes().len() <= MUCH + 7);
            answered += connection.reply.bytes().len();
            connection.reply.sent(connection.reply.bytes().len());
            connection.run(&mut database, 0).unwrap();
        }
        assert_eq!(answered, 700_000);
    }

    #[test]
    fn a_reply_that_is_too_long_ends_the_connection() {
        let mut disk = TestDisk::new(1 << 16);
        let mut database = Database::open(&mut disk, 1, 1 << 30).unwrap();
        let mut connection = Connection::default();
        let value = [b'v'; 60_000];
        connection.receive(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$60000\r\n");
        connection.receive(&value);
        connection.receive(b"\r\nMGET");
        connection.receive(&b" k".repeat(200));
        connection.receive(b"\r\n");
        connection.run(&mut database, 0).unwrap();
        assert!(connection.closing && connection.reply.bytes().len() <= Reply::MOST);
    }
}
