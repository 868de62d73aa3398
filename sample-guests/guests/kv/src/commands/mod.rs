//! The commands: a table, and a function for each.
//!
//! A command that changes the store says how it goes into the log ([`Effect`]): as it came, or, where its outcome depends on
//! the time or on chance, as commands that say what happened. What is in the log is carried out by the same functions when
//! the store is read again, with no time that passes.

mod hashes;
mod keys;
mod lists;
mod server;
mod sets;
mod sorted;
mod strings;

use crate::database::Figures;
use crate::reply::Reply;
use crate::resp::{self, Arguments};
use crate::store::{Store, WrongKind};
use alloc::vec::Vec;
use core::fmt;

pub use sorted::score_text;

/// What a command works with.
pub struct Call<'a> {
    /// The keys.
    pub store: &'a mut Store,
    /// Where its reply goes.
    pub reply: &'a mut Reply,
    /// What is to be written to the log.
    pub log: &'a mut Vec<u8>,
    /// Milliseconds since 1970.
    pub now: u64,
    /// Chance.
    pub random: &'a mut fastrand::Rng,
    /// What `INFO` tells of the log; nothing while that is being read.
    pub figures: Option<Figures>,
}

impl Call<'_> {
    /// Writes a command to the log that says what happened.
    fn log(&mut self, arguments: &[&[u8]]) -> Effect {
        resp::write_command(self.log, arguments.iter().copied());
        Effect::Logged
    }
}

/// What a command did, beside its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing that is kept.
    None,
    /// It changed the store; the command goes into the log as it came.
    AsGiven,
    /// It changed the store, and wrote to the log itself.
    Logged,
    /// The client wants to be let go.
    Close,
    /// The log is to be written anew.
    Compact,
    /// The guest is to end.
    Shutdown,
}

/// Why a command was refused. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    WrongKind,
    NotAnInteger,
    NotAFloat,
    Overflow,
    Syntax,
    ExpireTime,
    NegativeCount,
    TooLong,
    Database,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WrongKind => "WRONGTYPE Operation against a key holding the wrong kind of value",
            Self::NotAnInteger => "ERR value is not an integer or out of range",
            Self::NotAFloat => "ERR value is not a valid float",
            Self::Overflow => "ERR increment or decrement would overflow",
            Self::Syntax => "ERR syntax error",
            Self::ExpireTime => "ERR invalid expire time",
            Self::NegativeCount => "ERR value is out of range, must be positive",
            Self::TooLong => "ERR string exceeds maximum allowed size",
            Self::Database => "ERR DB index is out of range; there is one, 0",
        })
    }
}

impl From<WrongKind> for Error {
    fn from(_: WrongKind) -> Self {
        Self::WrongKind
    }
}

/// A command.
pub struct Command {
    /// Its name, in capitals.
    pub name: &'static str,
    /// Arguments that it has at the least and at the most, with its name.
    pub arguments: (usize, usize),
    /// Whether it may make the store grow.
    pub grows: bool,
    /// Carries it out. The number of arguments has been checked.
    pub run: fn(&mut Call<'_>, Arguments<'_>) -> Result<Effect, Error>,
}

const MANY: usize = usize::MAX;
const GROWS: bool = true;

/// All commands, in order.
#[rustfmt::skip]
static COMMANDS: &[Command] = &[
    command("APPEND", (3, 3), GROWS, strings::append),
    command("BGREWRITEAOF", (1, 1), false, server::compact),
    command("CLIENT", (2, MANY), false, server::client),
    command("COMMAND", (1, MANY), false, server::command),
    command("CONFIG", (2, MANY), false, server::config),
    command("DBSIZE", (1, 1), false, keys::count),
    command("DECR", (2, 2), GROWS, strings::decrement),
    command("DECRBY", (3, 3), GROWS, strings::decrement_by),
    command("DEL", (2, MANY), false, keys::delete),
    command("ECHO", (2, 2), false, server::echo),
    command("EXISTS", (2, MANY), false, keys::exist),
    command("EXPIRE", (3, 3), false, keys::expire),
    command("FLUSHALL", (1, 2), false, keys::clear),
    command("FLUSHDB", (1, 2), false, keys::clear),
    command("GET", (2, 2), false, strings::get),
    command("HDEL", (3, MANY), false, hashes::delete),
    command("HGET", (3, 3), false, hashes::get),
    command("HGETALL", (2, 2), false, hashes::get_all),
    command("HLEN", (2, 2), false, hashes::length),
    command("HSET", (4, MANY), GROWS, hashes::set),
    command("INCR", (2, 2), GROWS, strings::increment),
    command("INCRBY", (3, 3), GROWS, strings::increment_by),
    command("INFO", (1, MANY), false, server::info),
    command("KEYS", (2, 2), false, keys::list),
    command("LLEN", (2, 2), false, lists::length),
    command("LPOP", (2, 3), false, lists::pop_left),
    command("LPUSH", (3, MANY), GROWS, lists::push_left),
    command("LRANGE", (4, 4), false, lists::range),
    command("MGET", (2, MANY), false, strings::get_many),
    command("MSET", (3, MANY), GROWS, strings::set_many),
    command("PERSIST", (2, 2), false, keys::persist),
    command("PEXPIRE", (3, 3), false, keys::expire_ms),
    command("PEXPIREAT", (3, 3), false, keys::expire_at_ms),
    command("PING", (1, 2), false, server::ping),
    command("PTTL", (2, 2), false, keys::time_left_ms),
    command("QUIT", (1, 1), false, server::quit),
    command("RPOP", (2, 3), false, lists::pop_right),
    command("RPUSH", (3, MANY), GROWS, lists::push_right),
    command("SADD", (3, MANY), GROWS, sets::add),
    command("SCARD", (2, 2), false, sets::count),
    command("SELECT", (2, 2), false, server::select),
    command("SET", (3, MANY), GROWS, strings::set),
    command("SHUTDOWN", (1, MANY), false, server::shutdown),
    command("SISMEMBER", (3, 3), false, sets::is_member),
    command("SMEMBERS", (2, 2), false, sets::members),
    command("SPOP", (2, 3), false, sets::pop),
    command("SREM", (3, MANY), false, sets::remove),
    command("STRLEN", (2, 2), false, strings::length),
    command("TTL", (2, 2), false, keys::time_left),
    command("TYPE", (2, 2), false, keys::kind),
    command("ZADD", (4, MANY), GROWS, sorted::add),
    command("ZCARD", (2, 2), false, sorted::count),
    command("ZPOPMIN", (2, 3), false, sorted::pop_first),
    command("ZRANGE", (4, 5), false, sorted::range),
    command("ZSCORE", (3, 3), false, sorted::score),
];

const fn command(
    name: &'static str,
    arguments: (usize, usize),
    grows: bool,
    run: fn(&mut Call<'_>, Arguments<'_>) -> Result<Effect, Error>,
) -> Command {
    Command { name, arguments, grows, run }
}

/// The command of that name, however it is written.
pub fn find(name: &[u8]) -> Option<&'static Command> {
    let mut capitals = [0; 16];
    let capitals = capitals.get_mut(..name.len())?;
    capitals.copy_from_slice(name);
    capitals.make_ascii_uppercase();
    let place = COMMANDS.binary_search_by(|command| command.name.as_bytes().cmp(capitals)).ok()?;
    Some(&COMMANDS[place])
}

/// An argument whose presence the table has seen to.
fn argument<'a>(arguments: Arguments<'a>, index: usize) -> &'a [u8] {
    arguments.get(index).unwrap_or_default()
}

/// An argument that is a number.
fn integer(arguments: Arguments<'_>, index: usize) -> Result<i64, Error> {
    resp::integer(argument(arguments, index)).ok_or(Error::NotAnInteger)
}

/// How many a command that takes elements out is to take, if it says so.
fn optional_count(arguments: Arguments<'_>) -> Result<Option<usize>, Error> {
    if arguments.len() < 3 {
        return Ok(None);
    }
    usize::try_from(integer(arguments, 2)?).map(Some).map_err(|_| Error::NegativeCount)
}

/// The places from `start` to `stop`, both counted from the end if they are negative, in a sequence of `length`.
fn places(start: i64, stop: i64, length: usize) -> core::ops::Range<usize> {
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    let from_start = |place: i64| if place < 0 { (length + place.max(-length)).max(0) } else { place };
    let stop = if stop < -length { 0 } else { from_start(stop).saturating_add(1).min(length) };
    let start = from_start(start).min(stop);
    start as usize..stop as usize
}

/// Whether an argument is this word, however it is written.
fn is(argument: &[u8], word: &str) -> bool {
    argument.eq_ignore_ascii_case(word.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order_and_found_however_it_is_written() {
        assert!(COMMANDS.is_sorted_by(|a, b| a.name < b.name));
        assert_eq!(find(b"zPopMin").map(|command| command.name), Some("ZPOPMIN"));
        assert!(find(b"").is_none() && find(b"NOSUCH").is_none() && find(&[b'A'; 99]).is_none());
    }

    #[test]
    fn places_are_counted_from_either_end() {
        let cases = [
            ((0, -1), 0..5),
            ((1, 2), 1..3),
            ((-2, -1), 3..5),
            ((-9, 1), 0..2),
            ((3, 99), 3..5),
            ((4, 2), 3..3),
            ((0, -9), 0..0),
            ((9, 9), 5..5),
            ((i64::MIN, i64::MAX), 0..5),
            ((i64::MAX, i64::MIN), 0..0),
        ];
        for ((start, stop), expected) in cases {
            assert_eq!(places(start, stop, 5), expected, "{start} {stop}");
        }
        assert_eq!(places(0, -1, 0), 0..0);
    }
}
