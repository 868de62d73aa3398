//! Descriptors, files, pipes, and text.

use crate::system;
use crate::{Error, Result, process};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use minios_abi::call;
pub use minios_abi::{FileInfo, FilePage, MountInfo, Opening, descriptor, file_kind};

/// Status of a program whose output nobody reads any more: what a shell shows of one that `SIGPIPE` ended.
pub const NOBODY_READS: i32 = 141;

/// Opens a file for reading.
///
/// # Errors
///
/// There is none, or too many files are open.
pub fn open(path: &str) -> Result<u32> {
    open_to(path, Opening::READ)
}

/// Opens a file.
///
/// # Errors
///
/// There is none, it cannot be opened so, or too many files are open.
pub fn open_to(path: &str, how: Opening) -> Result<u32> {
    system::with_paths(call::OPEN, &[path], how.0).map(|descriptor| descriptor as u32)
}

/// Makes a file, or an empty one of one that is there.
///
/// # Errors
///
/// As [`open_to`].
pub fn create(path: &str) -> Result<u32> {
    open_to(path, Opening::WRITE | Opening::CREATE | Opening::TRUNCATE)
}

/// Makes a directory.
///
/// # Errors
///
/// Something has that name, or nothing can be made there.
pub fn make_directory(path: &str) -> Result<()> {
    system::with_paths(call::MAKE_DIRECTORY, &[path], 0).map(drop)
}

/// Removes a file, or a directory that is empty.
///
/// # Errors
///
/// It is not there, or is not empty.
pub fn remove(path: &str) -> Result<()> {
    system::with_paths(call::REMOVE, &[path], 0).map(drop)
}

/// Gives a file or directory another name.
///
/// # Errors
///
/// It is not there, or cannot have that name.
pub fn rename(from: &str, to: &str) -> Result<()> {
    system::with_paths(call::RENAME, &[from, to], 0).map(drop)
}

/// Gives a descriptor back. That it is none is no matter.
pub fn close(descriptor: u32) {
    let _ = system::call(call::CLOSE, [descriptor.into(), 0, 0, 0]);
}

/// Reads what is there, up to the buffer's length; waits if there is nothing yet. 0 is the end.
///
/// # Errors
///
/// The descriptor is none for reading.
pub fn read(descriptor: u32, buffer: &mut [u8]) -> Result<usize> {
    system::read(descriptor, buffer)
}

/// Writes everything.
///
/// # Errors
///
/// The descriptor is none for writing, or nobody reads any more.
pub fn write(descriptor: u32, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        let written = system::with_bytes(call::WRITE, Some(descriptor.into()), bytes)?;
        bytes = &bytes[written as usize..];
    }
    Ok(())
}

/// Makes `other` mean the same as `descriptor`.
///
/// # Errors
///
/// The descriptor is none.
pub fn duplicate(descriptor: u32, other: u32) -> Result<()> {
    system::call(call::DUPLICATE, [descriptor.into(), other.into(), 0, 0]).map(drop)
}

/// Makes a pipe: the end to read, the end to write.
///
/// # Errors
///
/// Too many files are open, or there is no memory.
pub fn pipe() -> Result<(u32, u32)> {
    let (_, [read, write]) = system::with_answer::<[u32; 2]>(call::PIPE, [0; 4], 0)?;
    Ok((read, write))
}

/// What is in a directory, sorted.
///
/// # Errors
///
/// There is no such directory.
pub fn list(path: &str) -> Result<Vec<FileInfo>> {
    let (mut files, mut from) = (Vec::new(), 0);
    while from != FilePage::END {
        let page = system::list(path, from)?;
        files.extend_from_slice(page.files.get(..page.count as usize).unwrap_or_default());
        from = page.next;
    }
    files.sort_by(|a: &FileInfo, b| a.name().cmp(b.name()));
    Ok(files)
}

/// All file systems.
pub fn mounts() -> impl Iterator<Item = MountInfo> {
    let mut next = 0;
    core::iter::from_fn(move || {
        let (found, info) = system::with_answer::<MountInfo>(call::LIST_MOUNTS, [next, 0, 0, 0], 1).ok()?;
        next += 1;
        (found != 0).then_some(info)
    })
}

/// Copies what one descriptor reads to another.
///
/// # Errors
///
/// It cannot be read, or the other not be written.
pub fn copy(from: u32, to: u32) -> Result<()> {
    let mut buffer = alloc::vec![0; 64 << 10];
    loop {
        match read(from, &mut buffer)? {
            0 => return Ok(()),
            length => write(to, &buffer[..length])?,
        }
    }
}

/// Runs `each` with the input that a program's arguments name: each file in turn, or what it reads if there are none.
/// A file that is not there is complained of, and makes the result false.
pub fn each_input(program: &str, files: &[&str], mut each: impl FnMut(Option<&str>, u32)) -> bool {
    if files.is_empty() {
        each(None, descriptor::INPUT);
    }
    let mut all = true;
    for name in files {
        match open(name) {
            Ok(file) => {
                each(Some(name), file);
                close(file);
            }
            Err(error) => {
                crate::eprintln!("{program}: {name}: {error}");
                all = false;
            }
        }
    }
    all
}

/// Lines of what a descriptor reads, without their ends.
pub struct Lines {
    descriptor: u32,
    buffer: Vec<u8>,
    ended: bool,
}

impl Lines {
    /// From here on.
    pub fn of(descriptor: u32) -> Self {
        Self { descriptor, buffer: Vec::new(), ended: false }
    }
}

impl Iterator for Lines {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                self.buffer.drain(..=end);
                return Some(line);
            }
            if self.ended {
                let rest = core::mem::take(&mut self.buffer);
                return (!rest.is_empty()).then(|| String::from_utf8_lossy(&rest).into_owned());
            }
            let mut more = [0; 1024];
            let length = read(self.descriptor, &mut more).unwrap_or(0);
            self.ended = length == 0;
            self.buffer.extend_from_slice(&more[..length]);
        }
    }
}

/// Text to a descriptor, gathered so that a few KiB are one system call. If nobody reads it any more, the program ends.
pub struct Output {
    descriptor: u32,
    buffer: Vec<u8>,
}

impl Output {
    /// To the program's output.
    pub fn new() -> Self {
        Self::to(descriptor::OUTPUT)
    }

    /// To a descriptor.
    pub fn to(descriptor: u32) -> Self {
        Self { descriptor, buffer: Vec::new() }
    }

    /// Adds bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= 4096 {
            self.flush();
        }
    }

    /// Writes what was gathered.
    pub fn flush(&mut self) {
        if write(self.descriptor, &self.buffer) == Err(Error::BrokenPipe) {
            process::exit(NOBODY_READS);
        }
        self.buffer.clear();
    }
}

impl Default for Output {
    fn default() -> Self {
        Self::new()
    }
}

impl Write for Output {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.bytes(text.as_bytes());
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.flush();
    }
}

/// What the macros call.
#[doc(hidden)]
pub fn print(descriptor: u32, arguments: fmt::Arguments<'_>) {
    let _ = Output::to(descriptor).write_fmt(arguments); // fails only if a `Display` does
}

/// Prints to the program's output.
#[macro_export]
macro_rules! print {
    ($($argument:tt)*) => { $crate::io::print($crate::io::descriptor::OUTPUT, format_args!($($argument)*)) };
}

/// Prints a line to the program's output.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($argument:tt)*) => { $crate::print!("{}\n", format_args!($($argument)*)) };
}

/// Prints a line to where the program complains.
#[macro_export]
macro_rules! eprintln {
    ($($argument:tt)*) => {
        $crate::io::print($crate::io::descriptor::ERRORS, format_args!("{}\n", format_args!($($argument)*)))
    };
}
