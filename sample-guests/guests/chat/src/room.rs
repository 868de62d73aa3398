//! Who is there, and what of it is told.
//!
//! Start at [`Room::hear`].

use crate::message::{Message, What};
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// The most that are remembered: names are free, and anybody can make up many.
const MOST: usize = 64;

/// A room as one of those in it sees it.
pub struct Room {
    name: String,
    others: BTreeSet<String>,
}

/// What a message leads to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// A line to show.
    pub line: Option<String>,
    /// A message to send.
    pub answer: Option<Message>,
}

impl Room {
    /// An empty one.
    pub fn new(name: String) -> Self {
        Self { name, others: BTreeSet::new() }
    }

    /// A message of this one's own.
    pub fn own(&self, what: What) -> Message {
        Message { name: self.name.clone(), what }
    }

    /// What this one says. `None`: it is nothing.
    pub fn say(&self, text: &str) -> Option<Message> {
        Message::say(&self.name, text)
    }

    /// Takes a message of another's.
    pub fn hear(&mut self, message: Message) -> Heard {
        let Message { name, what } = message;
        match what {
            What::Comes => {
                self.note(&name);
                Heard { line: Some(format!("* {name} has come")), answer: Some(self.own(What::IsHere)) }
            }
            What::IsHere => {
                Heard { line: self.note(&name).then(|| format!("* {name} is here")), answer: None }
            }
            What::Goes => {
                let was_here = self.others.remove(&name);
                Heard { line: was_here.then(|| format!("* {name} has gone")), answer: None }
            }
            What::Says(text) => {
                self.note(&name);
                Heard { line: Some(format!("{name}: {text}")), answer: None }
            }
        }
    }

    /// Remembers that somebody is there. Whether that is new.
    fn note(&mut self, name: &str) -> bool {
        self.others.len() < MOST && self.others.insert(name.into())
    }

    /// A line with everybody.
    pub fn everybody(&self) -> String {
        let mut all: Vec<&str> = self.others.iter().map(|name| &**name).collect();
        all.push("you");
        format!("* here: {}", all.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(name: &str, what: What) -> Message {
        Message { name: name.into(), what }
    }

    #[test]
    fn those_who_come_hear_of_those_who_are_there() {
        let (mut alice, mut bob) = (Room::new("alice".into()), Room::new("bob".into()));
        let heard = alice.hear(bob.own(What::Comes));
        assert_eq!(heard.line.as_deref(), Some("* bob has come"));
        let heard = bob.hear(heard.answer.unwrap());
        assert_eq!(heard, Heard { line: Some("* alice is here".into()), answer: None });
        assert_eq!(bob.hear(alice.own(What::IsHere)), Heard::default(), "it is known");
        assert_eq!(bob.hear(alice.say("hi").unwrap()).line.as_deref(), Some("alice: hi"));
        assert_eq!(bob.everybody(), "* here: alice, you");
        assert_eq!(bob.hear(alice.own(What::Goes)).line.as_deref(), Some("* alice has gone"));
        assert_eq!(bob.hear(alice.own(What::Goes)).line, None, "nobody goes twice");
        assert_eq!(bob.everybody(), "* here: you");
    }

    #[test]
    fn a_crowd_is_not_remembered() {
        let mut room = Room::new("a".into());
        for number in 0..10_000 {
            room.hear(message(&format!("n{number}"), What::IsHere));
        }
        assert_eq!(room.others.len(), MOST);
    }
}
