//! The store and its log: what is answered is on the disk.
//!
//! Whoever serves clients gives [`Database::execute`] the commands that have come, then calls [`Database::commit`], once for
//! all of them, and only then sends the replies. So clients never see anything that could be lost, not even what another one
//! has changed.
//!
//! Start at [`Database::open`].

use crate::commands::{self, Call, Effect, Error};
use crate::disk::Disk;
use crate::journal::{Commit, Journal, LogFigures, OpenError};
use crate::reply::Reply;
use crate::resp::{self, Arguments, Parser};
use crate::snapshot;
use crate::store::Store;
use crate::value::Hasher;
use alloc::vec::Vec;
use foldhash::SharedSeed;

/// Bytes of commands that wait for a commit, after which it is made. With the longest command they are not more than a record
/// can hold.
const LONG: usize = 1 << 20;

/// Bytes of a key. A value that is written to the log in parts repeats its key in each.
const MAX_KEY: usize = 64 << 10;

/// Weight that a command can add beside the bytes of each of its arguments.
const ARGUMENT: usize = 512;

/// What is told of a database.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Of its log.
    pub log: LogFigures,
    /// What the store may weigh.
    pub most_weight: usize,
}

/// What the connection or the server is to do after a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Go on.
    Continue,
    /// Close the connection, once the replies are sent.
    Close,
    /// End, after a commit.
    Shutdown,
}

/// A store with its log.
#[derive(Debug)]
pub struct Database<D> {
    pub(crate) store: Store,
    journal: Journal<D>,
    random: fastrand::Rng,
    most_weight: usize,
}

impl<D: Disk> Database<D> {
    /// Opens what is on the disk. `seed` is a number that nobody else knows; `memory` is what the store may weigh.
    ///
    /// # Errors
    ///
    /// There is something else on the disk, or what is there cannot be read.
    pub fn open(disk: D, seed: u64, memory: usize) -> Result<Self, OpenError<D::Error>> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut store = Store::new(Hasher::with_seed(random.u64(..), SharedSeed::global_fixed()));
        let mut parser = Parser::for_log();
        let journal =
            Journal::open(disk, |record| replay(&mut store, &mut parser, &mut random, record).is_some())?;
        // A quarter of the room stays for what is written after a snapshot.
        let room = usize::try_from(journal.room() / 4 * 3).unwrap_or(usize::MAX);
        let mut database = Self { store, journal, random, most_weight: memory.min(room) };
        if database.compact()? { Ok(database) } else { Err(OpenError::Full) }
    }

    /// How many keys there are.
    pub fn keys(&self) -> usize {
        self.store.len()
    }

    /// How full the log is, and how full the store may be.
    pub fn figures(&self) -> Figures {
        Figures { log: self.journal.figures(), most_weight: self.most_weight }
    }

    /// Carries out a command. `now` is milliseconds since 1970. The reply is not to be sent before a [`commit`](Self::commit).
    ///
    /// # Errors
    ///
    /// The disk failed. Replies since the last commit must not be sent.
    pub fn execute(
        &mut self,
        arguments: Arguments<'_>,
        now: u64,
        reply: &mut Reply,
    ) -> Result<After, D::Error> {
        self.expire(now);
        let Some(name) = arguments.get(0) else {
            return Ok(After::Continue);
        };
        let effect = match self.run(name, arguments, now, reply) {
            Ok(effect) => effect,
            Err(refusal) => {
                refusal.tell(reply, name);
                return Ok(After::Continue);
            }
        };
        match effect {
            Effect::AsGiven => resp::write_command(self.journal.batch(), arguments.iter()),
            Effect::None | Effect::Logged => {}
            Effect::Compact => self.compact_or_keep()?,
            Effect::Close => return Ok(After::Close),
            Effect::Shutdown => return Ok(After::Shutdown),
        }
        if self.journal.waiting() > LONG {
            self.commit()?;
        }
        Ok(After::Continue)
    }

    fn run(
        &mut self,
        name: &[u8],
        arguments: Arguments<'_>,
        now: u64,
        reply: &mut Reply,
    ) -> Result<Effect, Refusal> {
        let figures = self.figures();
        let command = commands::find(name).ok_or(Refusal::Unknown)?;
        let (least, most) = command.arguments;
        if !(least..=most).contains(&arguments.len()) {
            return Err(Refusal::Arguments);
        }
        if command.grows {
            if arguments.get(1).is_some_and(|key| key.len() > MAX_KEY) {
                return Err(Refusal::Key);
            }
            let growth: usize = arguments.iter().map(|argument| 2 * argument.len() + ARGUMENT).sum();
            if self.store.weight() + growth > self.most_weight {
                return Err(Refusal::Full);
            }
        }
        let (store, log, random) = (&mut self.store, self.journal.batch(), &mut self.random);
        (command.run)(&mut Call { store, reply, log, now, random, figures: Some(figures) }, arguments)
            .map_err(Refusal::Error)
    }

    /// Takes keys away whose time has come; the log says so, for it is read without a clock.
    fn expire(&mut self, now: u64) {
        while let Some(key) = self.store.take_expired(now) {
            resp::write_command(self.journal.batch(), [&b"DEL"[..], &key].into_iter());
        }
    }

    /// Returns when everything that was carried out will survive.
    ///
    /// # Errors
    ///
    /// The disk failed. Replies since the last commit must not be sent.
    pub fn commit(&mut self) -> Result<(), D::Error> {
        match self.journal.commit()? {
            Commit::Done => Ok(()),
            Commit::Full => self.compact_or_keep(),
        }
    }

    /// Writes the log anew. It fits: the store never weighs more than three quarters of the room.
    fn compact_or_keep(&mut self) -> Result<(), D::Error> {
        let fits = self.compact()?;
        assert!(
            fits,
            "a store of weight {} does not fit into {} bytes",
            self.store.weight(),
            self.journal.room()
        );
        Ok(())
    }

    /// Writes the log anew; says whether there was room.
    fn compact(&mut self) -> Result<bool, D::Error> {
        let mut rewrite = self.journal.rewrite(self.random.u64(..));
        for (key, entry) in self.store.iter() {
            let fits = snapshot::each_command(key, entry, |command| {
                resp::write_command(rewrite.batch(), command.iter().copied());
                rewrite.write()
            })?;
            if !fits {
                return Ok(false);
            }
        }
        rewrite.finish()
    }
}

/// Carries out the commands of a record, if they can be read.
fn replay(
    store: &mut Store,
    parser: &mut Parser,
    random: &mut fastrand::Rng,
    mut record: &[u8],
) -> Option<()> {
    let mut log = Vec::new();
    while !record.is_empty() {
        let length = parser.next(record).ok()??;
        let arguments = parser.arguments(record);
        let command = commands::find(arguments.get(0)?)?;
        let (least, most) = command.arguments;
        if !(least..=most).contains(&arguments.len()) {
            return None;
        }
        let mut reply = Reply::default();
        let mut call = Call { store, reply: &mut reply, log: &mut log, now: 0, random, figures: None };
        (command.run)(&mut call, arguments).ok()?;
        log.clear();
        record = &record[length..];
    }
    Some(())
}

/// Why a command was not carried out.
enum Refusal {
    Unknown,
    Arguments,
    Full,
    Key,
    Error(Error),
}

impl Refusal {
    fn tell(self, reply: &mut Reply, name: &[u8]) {
        let name = name[..name.len().min(64)].escape_ascii();
        match self {
            Self::Unknown => reply.error(format_args!("ERR unknown command '{name}'")),
            Self::Arguments => {
                reply.error(format_args!("ERR wrong number of arguments for '{name}' command"))
            }
            Self::Full => reply.error("OOM command not allowed: the disk or the memory is full"),
            Self::Key => reply.error(format_args!("ERR the key is longer than {MAX_KEY} bytes")),
            Self::Error(error) => reply.error(error),
        }
    }
}

#[cfg(test)]
mod tests;
