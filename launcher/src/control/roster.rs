//! All running VMs of this user, asked how they are: once, or again and again.
//!
//! They are asked together, and one that does not answer in time is said to be silent and holds no other up. Its connection is
//! kept: what it answers in the end is what it was asked, and a new connection each time would fill its queue.
//!
//! Start at [`Roster::look`].

use super::client::{self, Connection, NoAnswer};
use super::directory::{Directory, Name};
use super::protocol::{Outcome, Status, Wanted};
use crate::failure::Failure;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// VMs that are asked at the same time: each is a descriptor.
const AT_ONCE: usize = 100;

/// The VMs in the directory of control sockets.
pub(crate) struct Roster {
    directory: Directory,
    /// Those that are connected to.
    asked: BTreeMap<Name, Asked>,
}

struct Asked {
    connection: Connection,
    /// It has yet to answer, and did not in the time that it had.
    late: bool,
}

/// What was seen of a VM.
pub(crate) struct Seen {
    pub(crate) name: String,
    /// How it is, or why it does not say.
    pub(crate) status: Result<Box<Status>, NoAnswer>,
}

impl Roster {
    /// None is asked yet.
    ///
    /// # Errors
    ///
    /// The directory cannot be had.
    pub(crate) fn open() -> Result<Self, Failure> {
        Ok(Self { directory: client::directory()?, asked: BTreeMap::new() })
    }

    /// Asks all, and waits for so long at the most. Gives them by their names; one that has ended is none. What a killed one left is
    /// cleared away.
    ///
    /// # Errors
    ///
    /// The directory cannot be read.
    pub(crate) fn look(&mut self, patience: Duration) -> Result<Vec<Seen>, Failure> {
        let names = client::names(&self.directory)?;
        self.asked.retain(|name, _| names.contains(name));
        let mut seen = Vec::with_capacity(names.len());
        for some in names.chunks(AT_ONCE) {
            let silent: Vec<_> = some.iter().filter_map(|name| self.ask(name).err()).collect();
            let until = Instant::now() + patience;
            seen.extend(some.iter().filter_map(|name| self.answer(name, until)));
            seen.extend(silent);
            if names.len() > AT_ONCE {
                self.asked.clear();
            }
        }
        seen.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(seen)
    }

    /// Asks a VM how it is, unless it has not answered yet.
    fn ask(&mut self, name: &Name) -> Result<(), Seen> {
        let asked = match self.asked.get_mut(name) {
            Some(asked) if asked.late => Ok(()),
            Some(asked) => asked.connection.send(Wanted::Status),
            None => Err(NoAnswer::Gone),
        };
        match asked {
            Err(NoAnswer::Gone) => self.connect(name),
            asked => asked,
        }
        .map_err(|why| {
            self.asked.remove(name);
            Seen { name: name.to_string(), status: Err(why) }
        })
    }

    /// Connects to a VM that may have been started, or started anew, and asks it.
    fn connect(&mut self, name: &Name) -> Result<(), NoAnswer> {
        self.asked.remove(name);
        match Connection::open(&self.directory, name.clone())? {
            Some(mut connection) => {
                connection.send(Wanted::Status)?;
                self.asked.insert(name.clone(), Asked { connection, late: false });
            }
            None => {
                if let Err(error) = self.directory.clear(name) {
                    tracing::warn!(%name, %error, "the socket of a VM that was killed cannot be removed");
                }
            }
        }
        Ok(())
    }

    /// What a VM that was asked answers. One that has ended meanwhile is none.
    fn answer(&mut self, name: &Name, until: Instant) -> Option<Seen> {
        let asked = self.asked.get_mut(name)?;
        let until = if asked.late { Instant::now() } else { until };
        let answer = asked.connection.receive(until);
        asked.late = matches!(answer, Err(NoAnswer::Late));
        let status = match answer {
            Ok(Outcome::Status(status)) => Ok(status),
            Err(NoAnswer::Late) => Err(NoAnswer::Late),
            answer => {
                self.asked.remove(name);
                Err(answer.err().filter(|why| !matches!(why, NoAnswer::Gone))?)
            }
        };
        Some(Seen { name: name.to_string(), status })
    }
}
