//! Commands on lists.

use super::{Call, Effect, Error, argument, integer, optional_count, places};
use crate::resp::Arguments;
use crate::value::{End, List};
use alloc::vec::Vec;

pub fn push_left(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    push(call, arguments, End::Left)
}

pub fn push_right(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    push(call, arguments, End::Right)
}

fn push(call: &mut Call<'_>, arguments: Arguments<'_>, end: End) -> Result<Effect, Error> {
    let length = call.store.edit(argument(arguments, 1), |list: &mut List| {
        arguments.iter().skip(2).for_each(|item| list.push(end, item));
        list.len()
    })?;
    call.reply.count(length);
    Ok(Effect::AsGiven)
}

pub fn pop_left(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    pop(call, arguments, End::Left)
}

pub fn pop_right(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    pop(call, arguments, End::Right)
}

fn pop(call: &mut Call<'_>, arguments: Arguments<'_>, end: End) -> Result<Effect, Error> {
    let key = argument(arguments, 1);
    let Some(count) = optional_count(arguments)? else {
        let item = call.store.edit_existing(key, |list: &mut List| list.pop(end))?.flatten();
        call.reply.bulk_or_null(item.as_deref());
        return Ok(if item.is_some() { Effect::AsGiven } else { Effect::None });
    };
    let items = call.store.edit_existing(key, |list: &mut List| {
        core::iter::from_fn(|| list.pop(end)).take(count).collect::<Vec<_>>()
    })?;
    match items {
        None => call.reply.null_array(),
        Some(items) => {
            call.reply.bulks(items.iter().map(|item| &**item));
            return Ok(if items.is_empty() { Effect::None } else { Effect::AsGiven });
        }
    }
    Ok(Effect::None)
}

pub fn length(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    let list = call.store.get::<List>(argument(arguments, 1))?;
    call.reply.count(list.map_or(0, List::len));
    Ok(Effect::None)
}

pub fn range(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    let (start, stop) = (integer(arguments, 2)?, integer(arguments, 3)?);
    match call.store.get::<List>(argument(arguments, 1))? {
        None => call.reply.array(0),
        Some(list) => call.reply.bulks(list.range(places(start, stop, list.len()))),
    }
    Ok(Effect::None)
}
