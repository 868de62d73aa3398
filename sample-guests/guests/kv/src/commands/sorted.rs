//! Commands on sorted sets.

use super::{Call, Effect, Error, argument, integer, is, optional_count, places};
use crate::resp::Arguments;
use crate::value::{Score, Sorted};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

fn parse_score(bytes: &[u8]) -> Result<Score, Error> {
    let number = core::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok());
    number.and_then(Score::new).ok_or(Error::NotAFloat)
}

/// A score as text from which the same score is read again, of some twenty characters at the most.
pub fn score_text(score: Score) -> String {
    let number = score.get();
    let plain = number == 0.0 || !number.is_finite() || (1e-5..1e17).contains(&number.abs());
    if plain { number.to_string() } else { format!("{number:e}") }
}

pub fn add(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    if !arguments.len().is_multiple_of(2) {
        return Err(Error::Syntax);
    }
    let pairs = (2..arguments.len()).step_by(2);
    let pairs: Vec<_> = pairs
        .map(|at| Ok((parse_score(argument(arguments, at))?, argument(arguments, at + 1))))
        .collect::<Result<_, Error>>()?;
    let added = call.store.edit(argument(arguments, 1), |set: &mut Sorted| {
        pairs.iter().filter(|(score, member)| set.insert(member, *score).is_none()).count()
    })?;
    call.reply.count(added);
    Ok(Effect::AsGiven)
}

pub fn pop_first(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    let count = optional_count(arguments)?.unwrap_or(1);
    let members = call.store.edit_existing(argument(arguments, 1), |set: &mut Sorted| {
        core::iter::from_fn(|| set.pop_first()).take(count).collect::<Vec<_>>()
    })?;
    let members = members.unwrap_or_default();
    call.reply.array(2 * members.len());
    for (score, member) in &members {
        call.reply.bulk(member);
        call.reply.bulk(score_text(*score).as_bytes());
    }
    Ok(if members.is_empty() { Effect::None } else { Effect::AsGiven })
}

pub fn range(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    let (start, stop) = (integer(arguments, 2)?, integer(arguments, 3)?);
    let with_scores = match arguments.get(4) {
        None => false,
        Some(word) if is(word, "WITHSCORES") => true,
        Some(_) => return Err(Error::Syntax),
    };
    let Some(set) = call.store.get::<Sorted>(argument(arguments, 1))? else {
        call.reply.array(0);
        return Ok(Effect::None);
    };
    let places = places(start, stop, set.len());
    call.reply.array(places.len() * if with_scores { 2 } else { 1 });
    for (score, member) in set.iter().skip(places.start).take(places.len()) {
        call.reply.bulk(member);
        if with_scores {
            call.reply.bulk(score_text(score).as_bytes());
        }
    }
    Ok(Effect::None)
}

pub fn score(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    let set = call.store.get::<Sorted>(argument(arguments, 1))?;
    let score = set.and_then(|set| set.score(argument(arguments, 2)));
    call.reply.bulk_or_null(score.map(score_text).as_ref().map(String::as_bytes));
    Ok(Effect::None)
}

pub fn count(call: &mut Call<'_>, arguments: Arguments<'_>) -> Result<Effect, Error> {
    let set = call.store.get::<Sorted>(argument(arguments, 1))?;
    call.reply.count(set.map_or(0, Sorted::len));
    Ok(Effect::None)
}
