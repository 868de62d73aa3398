//! Commands on keys, whatever they hold.

use super::{Call, Effect, Error, argument, integer};
use crate::glob;
use crate::resp::Arguments;
use crate::store::NEVER;
use alloc::vec::Vec;

pub fn delete(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    let removed = arguments.iter().skip(1).filter(|key| call.store.remove(key)).count();
    call.reply.count(removed);
    Ok(if removed > 0 { Effect::AsGiven } else { Effect::None })
}

pub fn exist(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    call.reply.count(arguments.iter().skip(1).filter(|key| call.store.entry(key).is_some()).count());
    Ok(Effect::None)
}

pub fn kind(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    call.reply.simple(call.store.entry(argument(arguments, 1)).map_or("none", |entry| entry.value.name()));
    Ok(Effect::None)
}

pub fn count(call: &mut Call<'_>, _: Arguments<'_>) -> Result<Effect, Error> {
    call.reply.count(call.store.len());
    Ok(Effect::None)
}

pub fn list(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    let pattern = argument(arguments, 1);
    let keys: Vec<_> =
        call.store.iter().map(|(key, _)| key).filter(|key| glob::matches(pattern, key)).collect();
    call.reply.bulks(keys.into_iter());
    Ok(Effect::None)
}

pub fn clear(call: &mut Call<'_>, _: Arguments<'_>) -> Result<Effect, Error> {
    call.store.clear();
    call.reply.ok();
    Ok(Effect::AsGiven)
}

pub fn expire(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    let seconds = integer(arguments, 2)?.checked_mul(1000).ok_or(Error::ExpireTime)?;
    expire_in(call, arguments, seconds)
}

pub fn expire_ms(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    let ms = integer(arguments, 2)?;
    expire_in(call, arguments, ms)
}

fn expire_in(call: &mut Call<'_>, arguments: Arguments<'_>, ms: i64) -> Result<Effect, Error> {
    let time = call.now.checked_add_signed(ms.max(-(call.now as i64))).ok_or(Error::ExpireTime)?;
    set_time(call, argument(arguments, 1), time)
}

pub fn expire_at_ms(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    let time = u64::try_from(integer(arguments, 2)?).unwrap_or(0);
    set_time(call, argument(arguments, 1), time)
}

/// A time that has passed takes the key away before the next command.
fn set_time(call: &mut Call<'_>, key: &[u8], time: u64) -> Result<Effect, Error> {
    if time > i64::MAX as u64 {
        return Err(Error::ExpireTime);
    }
    let exists = call.store.expire_at(key, time).is_some();
    call.reply.count(exists.into());
    if !exists {
        return Ok(Effect::None);
    }
    Ok(call.log(&[b"PEXPIREAT", key, itoa::Buffer::new().format(time).as_bytes()]))
}

pub fn persist(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    let before = call.store.expire_at(argument(arguments, 1), NEVER);
    let expired = before.is_some_and(|before| before != NEVER);
    call.reply.count(expired.into());
    Ok(if expired { Effect::AsGiven } else { Effect::None })
}

pub fn time_left(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    reply_time_left(call, arguments, 1000)
}

pub fn time_left_ms(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    reply_time_left(call, arguments, 1)
}

fn reply_time_left(call: &mut Call<'_>, arguments: Arguments<'_>, unit: u64) -> Result<Effect, Error> {
    let left = match call.store.entry(argument(arguments, 1)) {
        None => -2,
        Some(entry) if entry.expires == NEVER => -1,
        Some(entry) => (entry.expires.saturating_sub(call.now) + unit / 2).div_euclid(unit) as i64,
    };
    call.reply.integer(left);
    Ok(Effect::None)
}
