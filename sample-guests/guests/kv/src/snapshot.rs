//! A key and its value as the commands that make them.

use crate::commands::score_text;
use crate::resp::Parts;
use crate::store::{Entry, NEVER};
use crate::value::Value;
use alloc::vec::Vec;

/// Gives `emit` each command that it takes to make an entry anew, until it says that there is no room for more.
///
/// # Errors
///
/// As `emit` has them.
pub fn each_command<E>(
    key: &[u8],
    entry: &Entry,
    mut emit: impl FnMut(&[&[u8]]) -> Result<bool, E>,
) -> Result<bool, E> {
    let fits = match &entry.value {
        Value::Text(text) => emit(&[b"SET", key, &text.0])?,
        Value::List(list) => in_parts(b"RPUSH", key, list.range(0..list.len()), 1, &mut emit)?,
        Value::Set(set) => in_parts(b"SADD", key, set.iter(), 1, &mut emit)?,
        Value::Hash(hash) => {
            let items = hash.iter().flat_map(|(field, value)| [field, value]);
            in_parts(b"HSET", key, items, 2, &mut emit)?
        }
        Value::Sorted(sorted) => {
            let members: Vec<_> = sorted.iter().map(|(score, member)| (score_text(score), member)).collect();
            let items = members.iter().flat_map(|(score, member)| [score.as_bytes(), member]);
            in_parts(b"ZADD", key, items, 2, &mut emit)?
        }
    };
    if !fits || entry.expires == NEVER {
        return Ok(fits);
    }
    emit(&[b"PEXPIREAT", key, itoa::Buffer::new().format(entry.expires).as_bytes()])
}

fn in_parts<'a, E>(
    name: &'a [u8],
    key: &'a [u8],
    items: impl Iterator<Item = &'a [u8]>,
    group: usize,
    emit: &mut impl FnMut(&[&[u8]]) -> Result<bool, E>,
) -> Result<bool, E> {
    for part in Parts::new(items, group) {
        let command: Vec<_> = [name, key].into_iter().chain(part).collect();
        if !emit(&command)? {
            return Ok(false);
        }
    }
    Ok(true)
}
