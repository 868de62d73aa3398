//! Commands on the connection and the server. Of these, there is what `redis-cli` and `redis-benchmark` ask for.

use super::{Call, Effect, Error, argument, integer, is};
use crate::database::Figures;
use crate::glob;
use crate::resp::Arguments;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// What `CONFIG GET` tells; nothing can be set.
const SETTINGS: &[(&str, &str)] = &[
    ("appendfsync", "always"),
    ("appendonly", "yes"),
    ("databases", "1"),
    ("maxmemory-policy", "noeviction"),
    ("save", ""),
];

pub fn ping(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    match arguments.get(1) {
        Some(message) => call.reply.bulk(message),
        None => call.reply.simple("PONG"),
    }
    Ok(Effect::None)
}

pub fn echo(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    call.reply.bulk(argument(arguments, 1));
    Ok(Effect::None)
}

pub fn select(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    if integer(arguments, 1)? != 0 {
        return Err(Error::Database);
    }
    call.reply.ok();
    Ok(Effect::None)
}

pub fn quit(call: &mut Call<'_>, _: Arguments<'_>) -> Result<Effect, Error> {
    call.reply.ok();
    Ok(Effect::Close)
}

pub fn shutdown(_: &mut Call<'_>, _: Arguments<'_>) -> Result<Effect, Error> {
    Ok(Effect::Shutdown)
}

pub fn compact(call: &mut Call<'_>, _: Arguments<'_>) -> Result<Effect, Error> {
    call.reply.simple("Append only file rewriting done");
    Ok(Effect::Compact)
}

/// Clients tell their names; nothing is made of them.
pub fn client(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    let what = argument(arguments, 1);
    if is(what, "SETNAME") || is(what, "SETINFO") {
        call.reply.ok();
    } else if is(what, "GETNAME") {
        call.reply.bulk_or_null(None);
    } else {
        return Err(Error::Syntax);
    }
    Ok(Effect::None)
}

/// Clients ask for descriptions, to help who types; there are none.
pub fn command(call: &mut Call<'_>, _: Arguments<'_>) -> Result<Effect, Error> {
    call.reply.array(0);
    Ok(Effect::None)
}

pub fn config(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    if !is(argument(arguments, 1), "GET") {
        return Err(Error::Syntax);
    }
    let asked = |name: &str| arguments.iter().skip(2).any(|pattern| glob::matches(pattern, name.as_bytes()));
    let found: Vec<_> = SETTINGS.iter().filter(|(name, _)| asked(name)).collect();
    call.reply.array(2 * found.len());
    for (name, value) in found {
        call.reply.bulk(name.as_bytes());
        call.reply.bulk(value.as_bytes());
    }
    Ok(Effect::None)
}

pub fn info(call: &mut Call<'_>, _: Arguments<'_>) -> Result<Effect, Error> {
    let mut text = String::from("# Server\r\nserver_name:kv\r\nredis_mode:standalone\r\n");
    if let Some(Figures { log, most_weight }) = call.figures {
        text += &format!(
            "# Memory\r\nused_memory:{}\r\nmaxmemory:{most_weight}\r\n\
             # Persistence\r\naof_enabled:1\r\naof_current_size:{}\r\naof_room:{}\r\naof_generation:{}\r\naof_records:{}\r\n",
            call.store.weight(),
            log.used,
            log.room,
            log.generation,
            log.records,
        );
    }
    text += &format!("# Keyspace\r\ndb0:keys={}\r\n", call.store.len());
    call.reply.bulk(text.as_bytes());
    Ok(Effect::None)
}
