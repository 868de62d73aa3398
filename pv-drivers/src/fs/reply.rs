//! What the host replies. It is not trusted: lengths, numbers and names are checked against what was asked.

use super::{Error, Result};
use alloc::vec::Vec;
use hv_abi::fuse::{Attr, Dirent, NAME_MAX, OutHeader, StatfsOut, mode};
use zerocopy::FromBytes;

/// The greatest number of an error.
const ERRNO_MAX: i32 = 4095;

/// A reply that says no error, without its header.
pub(super) struct Reply {
    bytes: Vec<u8>,
    /// Data that the request had.
    sent: Vec<u8>,
}

/// The reply does not answer what was asked.
const BROKEN: Error = Error::Device(crate::Error::Broken);

impl Reply {
    /// A reply to the request `unique`, with so many bytes written to its header and then to `room`.
    pub(super) fn new(
        unique: u64,
        header: OutHeader,
        written: u32,
        mut room: Vec<u8>,
        sent: Vec<u8>,
    ) -> Result<Self> {
        let body = (written as usize).checked_sub(size_of::<OutHeader>()).ok_or(BROKEN)?;
        if header.len != written || header.unique != unique || body > room.len() {
            return Err(BROKEN);
        }
        match header.error {
            0 => {
                room.truncate(body);
                Ok(Self { bytes: room, sent })
            }
            error if (-ERRNO_MAX..0).contains(&error) => Err(Error::Refused(-error)),
            _ => Err(BROKEN),
        }
    }

    /// The data that was sent.
    pub(super) fn sent(self) -> Vec<u8> {
        self.sent
    }

    pub(super) fn nothing(self) -> Result<()> {
        if self.bytes.is_empty() { Ok(()) } else { Err(BROKEN) }
    }

    pub(super) fn bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub(super) fn structure<T: FromBytes>(&self) -> Result<T> {
        T::read_from_bytes(&self.bytes).map_err(|_| BROKEN)
    }

    pub(super) fn two_structures<A: FromBytes, B: FromBytes>(&self) -> Result<(A, B)> {
        let (first, rest) = A::read_from_prefix(&self.bytes).map_err(|_| BROKEN)?;
        Ok((first, B::read_from_bytes(rest).map_err(|_| BROKEN)?))
    }

    /// Entries of a directory.
    pub(super) fn entries(self) -> Result<Vec<DirectoryEntry>> {
        let (mut entries, mut rest) = (Vec::new(), &self.bytes[..]);
        while !rest.is_empty() {
            let (entry, behind) = Dirent::read_from_prefix(rest).map_err(|_| BROKEN)?;
            let length = entry.namelen as usize;
            let name = behind.get(..length).filter(|name| is_name(name)).ok_or(BROKEN)?;
            let padded = (size_of::<Dirent>() + length).next_multiple_of(8);
            rest = rest.get(padded..).ok_or(BROKEN)?;
            entries.push(DirectoryEntry {
                name: name.to_vec(),
                kind: Kind::of(entry.kind << 12),
                next: entry.off,
            });
        }
        Ok(entries)
    }
}

fn is_name(name: &[u8]) -> bool {
    (1..=NAME_MAX).contains(&name.len()) && !name.contains(&b'/') && !name.contains(&0)
}

/// What a name of a directory stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file with bytes.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// Something that cannot be opened.
    Other,
}

impl Kind {
    fn of(bits: u32) -> Self {
        match bits & mode::KIND {
            mode::REGULAR => Self::File,
            mode::DIRECTORY => Self::Directory,
            mode::SYMLINK => Self::Link,
            _ => Self::Other,
        }
    }
}

/// An entry of a directory. `.` and `..` are among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// Its name: no slash and no zero byte is in it, but it need not be UTF-8.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Where the entries behind it are.
    pub next: u64,
}

/// What is known of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// What it is.
    pub kind: Kind,
    /// Its permissions on the host.
    pub permissions: u32,
    /// Its bytes.
    pub size: u64,
    /// When it was last written to, in seconds since 1970.
    pub modified: u64,
}

impl From<Attr> for Attributes {
    fn from(told: Attr) -> Self {
        Self {
            kind: Kind::of(told.mode),
            permissions: told.mode & 0o7777,
            size: told.size,
            modified: told.mtime,
        }
    }
}

/// How much room the host has where the folder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes that there are.
    pub size: u64,
    /// Bytes that can be used yet.
    pub available: u64,
}

impl From<StatfsOut> for Room {
    fn from(told: StatfsOut) -> Self {
        let bytes = |blocks: u64| blocks.saturating_mul(told.frsize.into());
        Self { size: bytes(told.blocks), available: bytes(told.bavail) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use zerocopy::IntoBytes;

    fn reply(header: OutHeader, written: u32, room: &[u8]) -> Result<Reply> {
        Reply::new(7, header, written, room.to_vec(), Vec::new())
    }

    #[test]
    fn a_reply_is_what_was_asked_for() {
        let good = OutHeader { len: 19, error: 0, unique: 7 };
        assert_eq!(reply(good, 19, b"abcdef").unwrap().bytes(), b"abc");
        assert_eq!(reply(good, 19, b"abcdef").unwrap().nothing(), Err(BROKEN));
        assert_eq!(reply(good, 19, b"abcdef").unwrap().structure::<u64>(), Err(BROKEN));
        let refused = OutHeader { len: 16, error: -2, unique: 7 };
        assert_eq!(reply(refused, 16, b"").err(), Some(Error::Refused(2)));
    }

    #[test]
    fn a_reply_that_does_not_answer_is_refused() {
        let good = OutHeader { len: 19, error: 0, unique: 7 };
        for (header, written) in [
            (good, 18),
            (good, 0),
            (good, 15),
            (OutHeader { len: 40, ..good }, 40),
            (OutHeader { len: u32::MAX, ..good }, u32::MAX),
            (OutHeader { unique: 8, ..good }, 19),
            (OutHeader { error: 1, ..good }, 19),
            (OutHeader { error: -4096, ..good }, 19),
            (OutHeader { error: i32::MIN, ..good }, 19),
        ] {
            assert_eq!(reply(header, written, b"abcdef").err(), Some(BROKEN), "{header:?} {written}");
        }
    }

    fn entry(name: &[u8], namelen: u32) -> Vec<u8> {
        let mut bytes = Dirent { ino: 1, off: 9, namelen, kind: 8 }.as_bytes().to_vec();
        bytes.extend_from_slice(name);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    fn entries(bytes: Vec<u8>) -> Result<Vec<DirectoryEntry>> {
        Reply { bytes, sent: Vec::new() }.entries()
    }

    #[test]
    fn entries_have_names_that_are_names() {
        let two = entries([entry(b"a", 1), entry(b"\xff~", 2)].concat()).unwrap();
        let kind = Kind::File;
        assert_eq!(two[0], DirectoryEntry { name: vec![b'a'], kind, next: 9 });
        assert_eq!(two[1].name, b"\xff~");
        for (name, namelen) in
            [(&b"a/b"[..], 3), (b"a\0b", 3), (b"", 0), (b"a", 100), (b"a", u32::MAX), (&[b'a'; 256], 256)]
        {
            assert_eq!(entries(entry(name, namelen)), Err(BROKEN), "{name:?} {namelen}");
        }
        let cut = entry(b"abc", 3);
        for length in 1..cut.len() {
            assert_eq!(entries(cut[..length].to_vec()), Err(BROKEN), "{length}");
        }
    }
}
