//! Commands on strings.

use super::{Call, Effect, Error, argument, integer, is};
use crate::resp::{Arguments, MAX_COMMAND};
use crate::store::NEVER;
use crate::value::Text;

pub fn get(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    let text = call.store.get::<Text>(argument(arguments, 1))?;
    call.reply.bulk_or_null(text.map(|text| &*text.0));
    Ok(Effect::None)
}

/// What `SET` is asked beside setting.
#[derive(Default)]
struct Options {
    only_new: bool,
    only_old: bool,
    get: bool,
    keep_time: bool,
    expires: Option<u64>,
}

impl Options {
    fn parse(arguments: Arguments<'_>, now: u64) -> Result<Self, Error> {
        let mut options = Self::default();
        let mut at = 3;
        while let Some(word) = arguments.get(at) {
            at += 1;
            if is(word, "NX") {
                options.only_new = true;
            } else if is(word, "XX") {
                options.only_old = true;
            } else if is(word, "GET") {
                options.get = true;
            } else if is(word, "KEEPTTL") {
                options.keep_time = true;
            } else if options.expires.is_none() && at < arguments.len() {
                options.expires = Some(expiry(word, integer(arguments, at)?, now)?);
                at += 1;
            } else {
                return Err(Error::Syntax);
            }
        }
        let contradict =
            options.only_new && options.only_old || options.keep_time && options.expires.is_some();
        if contradict { Err(Error::Syntax) } else { Ok(options) }
    }
}

/// The moment that a word and a number say.
fn expiry(word: &[u8], number: i64, now: u64) -> Result<u64, Error> {
    let (unit, since) = match word {
        word if is(word, "EX") => (1000, now),
        word if is(word, "PX") => (1, now),
        word if is(word, "EXAT") => (1000, 0),
        word if is(word, "PXAT") => (1, 0),
        _ => return Err(Error::Syntax),
    };
    let number = u64::try_from(number).ok().filter(|number| *number > 0).ok_or(Error::ExpireTime)?;
    let time = number.checked_mul(unit).and_then(|time| time.checked_add(since));
    time.filter(|time| *time <= i64::MAX as u64).ok_or(Error::ExpireTime)
}

pub fn set(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    let (key, text) = (argument(arguments, 1), argument(arguments, 2));
    let options = Options::parse(arguments, call.now)?;
    let exists = call.store.entry(key).is_some();
    let refused = options.only_new && exists || options.only_old && !exists;
    if options.get {
        let old = call.store.get::<Text>(key)?;
        call.reply.bulk_or_null(old.map(|text| &*text.0));
    } else if refused {
        call.reply.bulk_or_null(None);
    } else {
        call.reply.ok();
    }
    if refused {
        return Ok(Effect::None);
    }
    call.store.set(key, text);
    if let Some(expires) = options.expires {
        call.store.expire_at(key, expires);
        let mut time = itoa::Buffer::new();
        return Ok(call.log(&[b"SET", key, text, b"PXAT", time.format(expires).as_bytes()]));
    }
    if exists && !options.keep_time {
        call.store.expire_at(key, NEVER);
    }
    Ok(Effect::AsGiven)
}

pub fn get_many(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    call.reply.array(arguments.len() - 1);
    for key in arguments.iter().skip(1) {
        let text = call.store.get::<Text>(key).ok().flatten();
        call.reply.bulk_or_null(text.map(|text| &*text.0));
    }
    Ok(Effect::None)
}

pub fn set_many(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    if arguments.len().is_multiple_of(2) {
        return Err(Error::Syntax);
    }
    for index in (1..arguments.len()).step_by(2) {
        let key = argument(arguments, index);
        call.store.set(key, argument(arguments, index + 1));
        call.store.expire_at(key, NEVER);
    }
    call.reply.ok();
    Ok(Effect::AsGiven)
}

pub fn append(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    let (key, more) = (argument(arguments, 1), argument(arguments, 2));
    let length = call.store.get::<Text>(key)?.map_or(0, |text| text.0.len()) + more.len();
    // Longer ones could not be read from the log again.
    if length > MAX_COMMAND {
        return Err(Error::TooLong);
    }
    call.store.edit(key, |text: &mut Text| text.0.extend_from_slice(more))?;
    call.reply.count(length);
    Ok(Effect::AsGiven)
}

pub fn length(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    let text = call.store.get::<Text>(argument(arguments, 1))?;
    call.reply.count(text.map_or(0, |text| text.0.len()));
    Ok(Effect::None)
}

pub fn increment(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    add(call, arguments, 1)
}

pub fn decrement(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    add(call, arguments, -1)
}

pub fn increment_by(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    add(call, arguments, integer(arguments, 2)?)
}

pub fn decrement_by(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    add(call, arguments, integer(arguments, 2)?.checked_neg().ok_or(Error::Overflow)?)
}

fn add(call: &mut Call<'_>, arguments: Arguments<'_>, number: i64) -> Result<Effect, Error> {
    let key = argument(arguments, 1);
    let old = match call.store.get::<Text>(key)? {
        Some(text) => crate::resp::integer(&text.0).ok_or(Error::NotAnInteger)?,
        None => 0,
    };
    let new = old.checked_add(number).ok_or(Error::Overflow)?;
    call.store.set(key, itoa::Buffer::new().format(new).as_bytes());
    call.reply.integer(new);
    Ok(Effect::AsGiven)
}
