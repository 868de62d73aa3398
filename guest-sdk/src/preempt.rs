//! Time slices: getting the processor back from a program that does not give it.
//!
//! A [`Slice`] sets the vCPU's timer, which interrupts whatever program runs when it is over. A kernel starts one when it
//! switches to a program, and keeps it over the program's system calls: that costs two hypercalls for a slice and not for a
//! trap. [`Task::run_for`] is for kernels that run a program to its next trap only.
//!
//! There is one timer. A kernel that waits for moments of its own uses slices that are not longer than until the next one.

use crate::space::AddressSpace;
use crate::time::{Duration, Instant, timer};
use crate::user::{Task, Trap};

/// A time slice. Dropped, it is forgotten.
#[derive(Debug)]
pub struct Slice(Instant);

impl Slice {
    /// One that begins now. The vCPU's timer is set to its end; a timer that was set before is forgotten.
    pub fn start(duration: Duration) -> Self {
        let end = Instant::now() + duration;
        timer::set(end, |_| ()); // the upcall itself is what interrupts the program
        Self(end)
    }

    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.0
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        timer::clear();
    }
}

impl Task {
    /// As [`run`](Self::run), and after `duration` it is interrupted. It may be so before, by any event.
    ///
    /// # Panics
    ///
    /// As [`run`](Self::run).
    pub fn run_for(&mut self, space: &mut AddressSpace, duration: Duration) -> Trap {
        let _slice = Slice::start(duration);
        self.run(space)
    }
}
