//! Commands on hashes.

use super::{Call, Effect, Error, argument};
use crate::resp::Arguments;
use crate::value::Hash;

pub fn set(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    if !arguments.len().is_multiple_of(2) {
        return Err(Error::Syntax);
    }
    let added = call.store.edit(argument(arguments, 1), |hash: &mut Hash| {
        let fields = (2..arguments.len()).step_by(2);
        fields.filter(|at| hash.insert(argument(arguments, *at), argument(arguments, at + 1))).count()
    })?;
    call.reply.count(added);
    Ok(Effect::AsGiven)
}

pub fn get(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    let hash = call.store.get::<Hash>(argument(arguments, 1))?;
    call.reply.bulk_or_null(hash.and_then(|hash| hash.get(argument(arguments, 2))));
    Ok(Effect::None)
}

pub fn get_all(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    match call.store.get::<Hash>(argument(arguments, 1))? {
        None => call.reply.array(0),
        Some(hash) => {
            call.reply.array(2 * hash.len());
            hash.iter().flat_map(|(field, value)| [field, value]).for_each(|bytes| call.reply.bulk(bytes));
        }
    }
    Ok(Effect::None)
}

pub fn delete(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    let removed = call.store.edit_existing(argument(arguments, 1), |hash: &mut Hash| {
        arguments.iter().skip(2).filter(|field| hash.remove(field)).count()
    })?;
    let removed = removed.unwrap_or(0);
    call.reply.count(removed);
    Ok(if removed > 0 { Effect::AsGiven } else { Effect::None })
}

pub fn length(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    let hash = call.store.get::<Hash>(argument(arguments, 1))?;
    call.reply.count(hash.map_or(0, Hash::len));
    Ok(Effect::None)
}
