//! Commands on sets.

use super::{Call, Effect, Error, argument, optional_count};
use crate::resp::{self, Arguments, Parts};
use crate::value::Set;
use alloc::vec::Vec;

pub fn add(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    let added = call.store.edit(argument(arguments, 1), |set: &mut Set| {
        arguments.iter().skip(2).filter(|member| set.insert(member)).count()
    })?;
    call.reply.count(added);
    Ok(if added > 0 { Effect::AsGiven } else { Effect::None })
}

pub fn remove(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    let removed = call.store.edit_existing(argument(arguments, 1), |set: &mut Set| {
        arguments.iter().skip(2).filter(|member| set.remove(member)).count()
    })?;
    let removed = removed.unwrap_or(0);
    call.reply.count(removed);
    Ok(if removed > 0 { Effect::AsGiven } else { Effect::None })
}

/// Takes members out at random; the log says which they were.
pub fn pop(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    let key = argument(arguments, 1);
    let count = optional_count(arguments)?;
    let random = &mut *call.random;
    let members = call.store.edit_existing(key, |set: &mut Set| {
        let one = || (set.len() > 0).then(|| random.usize(..set.len())).and_then(|place| set.take(place));
        core::iter::from_fn(one).take(count.unwrap_or(1)).collect::<Vec<_>>()
    })?;
    let members = members.unwrap_or_default();
    match count {
        None => call.reply.bulk_or_null(members.first().map(|member| &**member)),
        Some(_) => call.reply.bulks(members.iter().map(|member| &**member)),
    }
    if members.is_empty() {
        return Ok(Effect::None);
    }
    for part in Parts::new(members.iter().map(|member| &**member), 1) {
        resp::write_command(call.log, [&b"SREM"[..], key].into_iter().chain(part));
    }
    Ok(Effect::Logged)
}

pub fn members(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    match call.store.get::<Set>(argument(arguments, 1))? {
        None => call.reply.array(0),
        Some(set) => call.reply.bulks(set.iter()),
    }
    Ok(Effect::None)
}

pub fn is_member(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    let set = call.store.get::<Set>(argument(arguments, 1))?;
    call.reply.count(set.is_some_and(|set| set.contains(argument(arguments, 2))).into());
    Ok(Effect::None)
}

pub fn count(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    let set = call.store.get::<Set>(argument(arguments, 1))?;
    call.reply.count(set.map_or(0, Set::len));
    Ok(Effect::None)
}
