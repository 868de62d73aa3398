//! Time slices: getting the processor back from a program that does not give it.
//!
//! A [`Slice`] sets the vCPU's timer, which interrupts whatever program runs when it is over. A kernel starts one when it
//! switches to a program, and keeps it over the program's system calls. The timer is left as it is when a slice ends early, and
//! set anew only when it has fired: so a kernel that switches often makes no hypercall for it.
//!
//! Each vCPU has one timer. A kernel that waits for moments of its own uses slices that are not longer than until the next one.

use crate::events::without_upcalls;
use crate::space::Enter;
use crate::time::{Duration, Instant, timer};
use crate::user::{Task, Trap};

/// A time slice.
#[derive(Debug)]
pub struct Slice(Instant);

impl Slice {
    /// One that begins now. The vCPU's timer is used for it; one that was set before is forgotten.
    pub fn start(duration: Duration) -> Self {
        let end = Instant::now() + duration;
        timer::arm(end);
        Self(end)
    }

    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        timer::has_come(self.0)
    }
}

impl Task {
    /// As [`run`](Self::run), and at the end of `slice` it is interrupted, before its first instruction if that was already.
    /// It may be so before, by any event.
    ///
    /// # Panics
    ///
    /// As [`run`](Self::run).
    pub fn run_within(&mut self, space: &mut impl Enter, slice: &Slice) -> Trap {
        // Masked, so that the end of the slice is not handled between the look and the entry: an event that is pending then
        // makes the entry return at once.
        without_upcalls(|| if slice.is_over() { Trap::Interrupted } else { self.run(space) })
    }

    /// As [`run_within`](Self::run_within), in a slice of its own.
    ///
    /// # Panics
    ///
    /// As [`run`](Self::run).
    pub fn run_for(&mut self, space: &mut impl Enter, duration: Duration) -> Trap {
        self.run_within(space, &Slice::start(duration))
    }
}
