//! What minios and its programs agree on: the numbers of system calls, their errors, and the structures that cross.
//!
//! A call has a number and up to four arguments, and gives one signed number: a negative one is an [`Error`]. Text is
//! passed as an address and a length, and is UTF-8.
//!
//! Start at [`call`].

#![no_std]
#![forbid(unsafe_code)]

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Numbers of system calls, with their arguments and what they give.
pub mod call {
    /// `(code)`: ends the process, all its threads. Does not return.
    pub const EXIT: u64 = 1;
    /// `()`: makes a copy of the process, with the calling thread alone. Gives the child's id to the parent, 0 to the child.
    pub const FORK: u64 = 2;
    /// `(path, length, arguments, length)`: becomes another program. The arguments are joined by zero bytes; the first
    /// is the program's name. Returns only on an error; it is one if the process has other threads.
    pub const EXEC: u64 = 3;
    /// `(process, status, flags)`: waits until a child has ended, any of them if `process` is 0. Gives its id and writes
    /// its status, an `i32`, if the address is not 0. With [`WAIT_POLL`](crate::WAIT_POLL) it does not wait: gives 0.
    pub const WAIT: u64 = 4;
    /// `(process)`: ends a process, with the status [`KILLED`](crate::KILLED).
    pub const KILL: u64 = 5;
    /// `()`: gives the process's own id.
    pub const PROCESS: u64 = 6;
    /// `(path, length, opening)`: gives a file descriptor for a file. How it is opened: [`Opening`](crate::Opening).
    pub const OPEN: u64 = 7;
    /// `(descriptor)`: gives it back.
    pub const CLOSE: u64 = 8;
    /// `(descriptor, bytes, length)`: gives how many bytes were read; 0 is the end.
    pub const READ: u64 = 9;
    /// `(descriptor, bytes, length)`: gives how many bytes were written.
    pub const WRITE: u64 = 10;
    /// `(descriptor, other)`: makes `other` mean the same as `descriptor`.
    pub const DUPLICATE: u64 = 11;
    /// `(descriptors)`: makes a pipe, and writes two `u32`: the end to read, the end to write.
    pub const PIPE: u64 = 12;
    /// `(length)`: gives the address of fresh memory, all zero.
    pub const MAP: u64 = 13;
    /// `(nanoseconds)`: waits.
    pub const SLEEP: u64 = 14;
    /// `(path, length, from, page)`: writes a [`FilePage`](crate::FilePage): what is in a directory, `from` where the page before
    /// said, or 0.
    pub const LIST_FILES: u64 = 15;
    /// `(thread, entry)`: writes the [`ThreadInfo`](crate::ThreadInfo) of the first thread whose id is that or more. A
    /// process's first thread has the process's id, and so has a process that has ended. Gives 1, or 0 if there is none.
    pub const LIST_THREADS: u64 = 16;
    /// `(entry)`: writes [`SystemInfo`](crate::SystemInfo).
    pub const SYSTEM: u64 = 17;
    /// `()`: lets other threads run.
    pub const YIELD: u64 = 18;
    /// `(address)`: gives back memory that [`MAP`] gave, all of it.
    pub const UNMAP: u64 = 19;
    /// `(entry, stack, argument)`: makes a thread that begins at `entry` with its stack pointer at `stack` and `argument` in
    /// RDI. Gives its id.
    pub const THREAD_CREATE: u64 = 20;
    /// `(word)`: ends the calling thread, and with the last one the process, with status 0. When the thread runs no more, 1
    /// is stored in the `u32` there, if it is not 0, and all that wait there are woken. Does not return.
    pub const THREAD_EXIT: u64 = 21;
    /// `(word, expected)`: waits until a [`FUTEX_WAKE`] of the `u32` there, if it is `expected`. An error,
    /// [`Changed`](crate::Error::Changed), if it is not.
    pub const FUTEX_WAIT: u64 = 22;
    /// `(word, count)`: wakes so many threads of the process that wait there. Gives how many it woke.
    pub const FUTEX_WAKE: u64 = 23;
    /// `(path, length)`: makes a directory.
    pub const MAKE_DIRECTORY: u64 = 24;
    /// `(path, length)`: removes a file, or a directory that is empty.
    pub const REMOVE: u64 = 25;
    /// `(path, length, new path, length)`: gives a file or directory another name, within its file system.
    pub const RENAME: u64 = 26;
    /// `(index, entry)`: writes the [`MountInfo`](crate::MountInfo) of a file system. Gives 1, or 0 if there are no more.
    pub const LIST_MOUNTS: u64 = 27;
    /// `(address, writable)`: makes memory that [`MAP`] gave, all of it, read-only if `writable` is 0, and writable otherwise.
    pub const PROTECT: u64 = 28;
}

/// Flag of [`call::WAIT`].
pub const WAIT_POLL: u64 = 1;

/// Status of a process that was killed, by [`call::KILL`] or by the kernel because of what it did.
pub const KILLED: i32 = 137;

/// Descriptors that a process starts with.
pub mod descriptor {
    /// Where it reads.
    pub const INPUT: u32 = 0;
    /// Where it writes.
    pub const OUTPUT: u32 = 1;
    /// Where it complains.
    pub const ERRORS: u32 = 2;
}

/// What a process finds at its first instruction: RDI is the address of this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Start {
    /// Address of its arguments, joined by zero bytes; the first is the program's name.
    pub arguments: u64,
    /// Their length.
    pub length: u64,
}

macro_rules! errors {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        /// Why a system call failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Error {
            $(#[doc = $text] $name = $number,)*
        }

        impl Error {
            /// The error that a call's negative result means.
            pub fn from_result(result: i64) -> Self {
                match result.wrapping_neg() { $($number => Self::$name,)* _ => Self::Invalid }
            }

            /// What to tell people.
            pub fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

errors! {
    NotFound = 1, "no such file";
    NoProcess = 2, "no such process";
    NoChild = 3, "no such child";
    OutOfMemory = 4, "out of memory";
    TooManyProcesses = 5, "too many processes";
    TooManyFiles = 6, "too many open files";
    BadDescriptor = 7, "bad file descriptor";
    BadAddress = 8, "bad address";
    BrokenPipe = 9, "nobody reads the pipe";
    NotExecutable = 10, "not a program";
    Unknown = 11, "no such system call";
    Invalid = 12, "invalid argument";
    TooManyThreads = 13, "too many threads";
    HasThreads = 14, "the process has other threads";
    Changed = 15, "the word is not what was expected";
    Exists = 16, "it is there already";
    NotDirectory = 17, "not a directory";
    IsDirectory = 18, "a directory";
    NotEmpty = 19, "the directory is not empty";
    ReadOnly = 20, "cannot be changed: the file system is read-only";
    NoSpace = 21, "no room is left";
    NameTooLong = 22, "the name is too long";
    NotPermitted = 23, "not permitted";
    OtherFileSystem = 24, "the other name is in another file system";
    Device = 25, "the device failed";
}

impl Error {
    /// How a system call gives it.
    pub fn result(self) -> i64 {
        -(self as i64)
    }
}

impl core::fmt::Display for Error {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.text())
    }
}

/// A name, padded with zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Name([u8; 64]);

impl Name {
    /// The name, or the start of it that fits.
    pub fn new(text: &str) -> Self {
        let mut bytes = [0; 64];
        let length = text.floor_char_boundary(64);
        bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
        Self(bytes)
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(self.0.len());
        core::str::from_utf8(&self.0[..end]).unwrap_or("?")
    }
}

/// How a file is opened, by [`call::OPEN`]: none of these is to read, which can be done either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening(pub u64);

impl Opening {
    /// Only to read.
    pub const READ: Self = Self(0);
    /// To write, too.
    pub const WRITE: Self = Self(1);
    /// It is made if it is not there.
    pub const CREATE: Self = Self(2);
    /// It is made empty.
    pub const TRUNCATE: Self = Self(4);
    /// Each write goes to its end.
    pub const APPEND: Self = Self(8);

    /// Whether that is among it.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl core::ops::BitOr for Opening {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Numbers of [`FileInfo::kind`].
pub mod file_kind {
    /// A file.
    pub const FILE: u32 = 1;
    /// A directory.
    pub const DIRECTORY: u32 = 2;
    /// Something else.
    pub const OTHER: u32 = 3;
}

/// A file, as [`call::LIST_FILES`] tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FileInfo {
    /// Its length in bytes.
    pub size: u64,
    /// One of [`file_kind`].
    pub kind: u32,
    /// Bytes of its name.
    length: u32,
    name: [u8; 256],
}

impl FileInfo {
    /// One of that name, or the start of it that fits.
    pub fn new(name: &str, kind: u32, size: u64) -> Self {
        let length = name.floor_char_boundary(256);
        let mut bytes = [0; 256];
        bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
        Self { size, kind, length: length as u32, name: bytes }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        let bytes = self.name.get(..self.length as usize).unwrap_or_default();
        core::str::from_utf8(bytes).unwrap_or("?")
    }
}

/// Some of what is in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FilePage {
    /// Where there is more; [`END`](Self::END) if there is none.
    pub next: u64,
    /// How many of `files` count.
    pub count: u64,
    /// The files.
    pub files: [FileInfo; Self::MOST],
}

impl FilePage {
    /// Files of a page, at most.
    pub const MOST: usize = 16;
    /// As [`next`](Self::next): there is no more.
    pub const END: u64 = u64::MAX;
}

/// A file system, as [`call::LIST_MOUNTS`] tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MountInfo {
    /// What it is.
    pub kind: Name,
    /// Where it is.
    pub place: Name,
}

/// A thread, or a process that has ended, as [`call::LIST_THREADS`] tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ThreadInfo {
    /// Its id.
    pub thread: u32,
    /// Its process's id.
    pub process: u32,
    /// The id of its process's parent; 0 if it has none.
    pub parent: u32,
    /// One of [`state`].
    pub state: u32,
    /// The vCPU that runs it, or ran it last.
    pub vcpu: u32,
    /// Pages of memory that it can see, those that it shares included.
    pub pages: u32,
    /// How long it has run.
    pub run_nanoseconds: u64,
    /// Its program.
    pub name: Name,
}

/// What a thread is doing.
pub mod state {
    /// It would run if it were its turn.
    pub const READY: u32 = 0;
    /// It waits for something.
    pub const WAITING: u32 = 1;
    /// Its process has ended, and the parent has not looked yet.
    pub const ENDED: u32 = 2;
    /// A vCPU runs it.
    pub const RUNNING: u32 = 3;
}

/// The system, as [`call::SYSTEM`] tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SystemInfo {
    /// Pages of memory.
    pub pages: u64,
    /// Pages that are free.
    pub free_pages: u64,
    /// Pages of those that the host has at the moment, and gives back when they are needed.
    pub reported_pages: u64,
    /// Pages that the host has asked for and got, and how many it asks for.
    pub balloon_pages: u64,
    /// See `balloon_pages`.
    pub balloon_target: u64,
    /// Nanoseconds since it was started.
    pub up_nanoseconds: u64,
    /// Processes that there are.
    pub processes: u64,
    /// vCPUs that run them.
    pub vcpus: u64,
}
