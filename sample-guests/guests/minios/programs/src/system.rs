//! The one place where system calls are made.

#![expect(unsafe_code, reason = "a system call writes where its arguments point")]

use minios_abi::{Error, FilePage, call};
use zerocopy::{FromBytes, IntoBytes};

/// Makes a call whose arguments are plain numbers.
pub(crate) fn call(number: u64, arguments: [u64; 4]) -> Result<u64, Error> {
    let [a, b, c, d] = arguments;
    // SAFETY: the calls made through here write no memory of this program's but what their callers in this module lend
    // them for as long as the call lasts, or in THREAD_EXIT for good; FORK copies the program.
    let result = unsafe { guest_user::syscall(number, [a, b, c, d, 0, 0]) } as i64;
    if result < 0 { Err(Error::from_result(result)) } else { Ok(result as u64) }
}

/// Makes a call that reads `bytes`, between other arguments.
pub(crate) fn with_bytes(number: u64, first: Option<u64>, bytes: &[u8]) -> Result<u64, Error> {
    let (at, length) = (bytes.as_ptr().expose_provenance() as u64, bytes.len() as u64);
    match first {
        Some(first) => call(number, [first, at, length, 0]),
        None => call(number, [at, length, 0, 0]),
    }
}

/// Makes a call that has one path or two, and another argument behind them.
pub(crate) fn with_paths(number: u64, paths: &[&str], last: u64) -> Result<u64, Error> {
    let at = |path: &str| [path.as_ptr().expose_provenance() as u64, path.len() as u64];
    let ([a, b], [c, d]) = match paths {
        [from, to] => (at(from), at(to)),
        [path] => (at(path), [last, 0]),
        _ => return Err(Error::Invalid),
    };
    call(number, [a, b, c, d])
}

/// LIST_FILES.
pub(crate) fn list(path: &str, from: u64) -> Result<FilePage, Error> {
    let (at, length) = (path.as_ptr().expose_provenance() as u64, path.len() as u64);
    with_answer(call::LIST_FILES, [at, length, from, 0], 3).map(|(_, page)| page)
}

/// READ, into `buffer`.
pub(crate) fn read(descriptor: u32, buffer: &mut [u8]) -> Result<usize, Error> {
    let at = buffer.as_mut_ptr().expose_provenance() as u64;
    call(call::READ, [descriptor.into(), at, buffer.len() as u64, 0]).map(|length| length as usize)
}

/// EXEC. Comes back only on an error.
pub(crate) fn exec(path: &[u8], arguments: &[u8]) -> Error {
    let at = |bytes: &[u8]| bytes.as_ptr().expose_provenance() as u64;
    let result = call(call::EXEC, [at(path), path.len() as u64, at(arguments), arguments.len() as u64]);
    result.err().unwrap_or(Error::Invalid)
}

/// Makes a call that writes a `T` at its argument number `place`; gives the result and what was written.
pub(crate) fn with_answer<T: FromBytes + IntoBytes>(
    number: u64,
    mut arguments: [u64; 4],
    place: usize,
) -> Result<(u64, T), Error> {
    let mut answer = T::new_zeroed();
    arguments[place] = answer.as_mut_bytes().as_mut_ptr().expose_provenance() as u64;
    call(number, arguments).map(|result| (result, answer))
}
