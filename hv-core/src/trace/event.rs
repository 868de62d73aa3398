//! What a trace tells of one crossing, or of something that the guest says.

use crate::engine::{Exit, Fault, UserCause};
use hv_abi::trace::{TraceRecord, kind};
use serde::{Deserialize, Serialize};

/// Something that took time, on a vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Event {
    /// What it was.
    pub kind: Kind,
    /// Of a hypercall its number, of an exception its vector.
    #[serde(skip_serializing_if = "is_zero")]
    pub number: u32,
    /// What the guest calls it, if it tells of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// When it began: of a crossing, when the monitor saw it.
    pub begin: u64,
    /// When it ended: of a crossing, when the monitor was done with it. Not before it began.
    pub end: u64,
    /// The first argument, the address of a fault, the root of a program; of what the guest tells, its value.
    #[serde(skip_serializing_if = "is_zero64")]
    pub argument: u64,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn is_zero64(number: &u64) -> bool {
    *number == 0
}

/// Why a vCPU came to the monitor, or what its guest told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Kind {
    /// A hypercall.
    #[default]
    Hypercall,
    /// The guest kernel enters a program by way of the monitor.
    EnterUser,
    /// A program came back with a system call, by way of the monitor.
    SystemCall,
    /// With a page fault that its guest kernel is to see.
    PageFault,
    /// With an exception.
    Exception,
    /// Because its vCPU is wanted.
    Interrupted,
    /// Because its address space is gone.
    Killed,
    /// The guest kernel did something that it cannot go on from.
    Trap,
    /// It came to a stopping point: at its start, or for a pause or the end of the VM.
    Stop,
    /// The monitor had something to do by itself: a timer, the clock.
    Timer,
    /// The guest code is gone.
    Died,
    /// The guest marked a moment.
    Mark,
    /// The guest told of something of its own.
    Span,
    /// The guest told of a crossing, as it saw it.
    GuestCrossing,
}

impl Kind {
    const OF_MONITOR: [Self; 11] = [
        Self::Hypercall,
        Self::EnterUser,
        Self::SystemCall,
        Self::PageFault,
        Self::Exception,
        Self::Interrupted,
        Self::Killed,
        Self::Trap,
        Self::Stop,
        Self::Timer,
        Self::Died,
    ];

    /// Whether it is the guest that told of it.
    pub fn is_told(self) -> bool {
        matches!(self, Self::Mark | Self::Span | Self::GuestCrossing)
    }
}

/// A kind and a number, in one word of a ring.
#[derive(Clone, Copy)]
pub(super) struct Tag(pub u64);

impl Tag {
    fn new(kind: Kind, number: u32) -> Self {
        Self(u64::from(number) << 8 | kind as u64)
    }

    /// Without its times.
    pub(super) fn event(self, argument: u64) -> Event {
        let kind = Kind::OF_MONITOR[self.0 as u8 as usize];
        Event { kind, number: (self.0 >> 8) as u32, argument, ..Event::default() }
    }
}

/// What an exit is, and its argument.
pub(super) fn tag(exit: &Exit) -> (Tag, u64) {
    let (kind, number, argument) = match exit {
        Exit::Hypercall { number, arguments } => (Kind::Hypercall, *number, arguments[0]),
        Exit::EnterUser { root, .. } => (Kind::EnterUser, 0, *root),
        Exit::User(exit) => match exit.cause {
            UserCause::SystemCall => (Kind::SystemCall, 0, exit.registers.rax),
            UserCause::PageFault { address, .. } => (Kind::PageFault, 0, address),
            UserCause::Exception { vector } => (Kind::Exception, vector as u32, exit.registers.rip),
            UserCause::Interrupted => (Kind::Interrupted, 0, 0),
            UserCause::Killed => (Kind::Killed, 0, 0),
        },
        Exit::Trap(trap) => match trap.fault {
            Fault::PageFault { address, .. } => (Kind::Trap, 0, address),
            _ => (Kind::Trap, 0, trap.registers.rip),
        },
        Exit::Stopped(_) | Exit::StoppedInBlock | Exit::Sampled { .. } => (Kind::Stop, 0, 0),
        Exit::Deadline => (Kind::Timer, 0, 0),
        Exit::Died(_) => (Kind::Died, 0, 0),
    };
    (Tag::new(kind, number), argument)
}

/// What a guest's record tells, without its times. `None`: its kind is not known here.
pub(super) fn told(record: &TraceRecord) -> Option<Event> {
    let kind = match record.kind {
        kind::MARK => Kind::Mark,
        kind::SPAN => Kind::Span,
        kind::CROSSING => Kind::GuestCrossing,
        _ => return None,
    };
    Some(Event { kind, name: printable(&record.name), argument: record.value, ..Event::default() })
}

/// A guest's name for something, fit to be shown.
fn printable(name: &[u8]) -> String {
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    let shown = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    String::from_utf8_lossy(&name[..end]).chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Registers, UserExit};

    #[test]
    fn a_kind_and_its_number_survive_being_kept_in_a_word() {
        for (index, kind) in (0..).zip(Kind::OF_MONITOR) {
            assert_eq!(kind as u8, index);
            let event = Tag::new(kind, u32::MAX - 1).event(7);
            assert_eq!((event.kind, event.number, event.argument), (kind, u32::MAX - 1, 7));
            assert!(!kind.is_told());
        }
        let exit = UserExit {
            context: 0,
            cause: UserCause::Exception { vector: 6 },
            registers: Registers { rip: 0x1000, ..Registers::default() },
        };
        let (tag, argument) = tag(&Exit::User(exit));
        let event = tag.event(argument);
        assert_eq!((event.kind, event.number, event.argument), (Kind::Exception, 6, 0x1000));
    }

    #[test]
    fn names_of_guests_are_made_fit_to_be_shown() {
        assert_eq!(printable(b"disk read\0rest"), "disk read");
        assert_eq!(printable(b"\x1b[2J\xff\n"), "\u{fffd}[2J\u{fffd}\u{fffd}");
        assert_eq!(printable(&[b'x'; 32]), "x".repeat(32));
        assert_eq!(printable(b""), "");
        assert_eq!(told(&TraceRecord { kind: 0, ..TraceRecord::default() }), None);
        assert_eq!(told(&TraceRecord { kind: 4, ..TraceRecord::default() }), None);
    }
}
