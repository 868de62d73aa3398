//! What each vCPU does: takes a thread, runs it until its turn is over, and waits when there is none.
//!
//! Upcalls are masked but for the moment between two turns, so that nothing is handled between a look and a sleep, or between a
//! look and a program's entry: both end at once while an event is pending.
//!
//! Start at [`run`].

use crate::console;
use crate::kernel::{Kernel, Next};
use crate::thread::Turn;
use guest_sdk::events::{Channel, without_upcalls};
use guest_sdk::hv_abi::Status;
use guest_sdk::hv_abi::call::NEVER;
use guest_sdk::preempt::Slice;
use guest_sdk::sync::Lock;
use guest_sdk::time::{self, Duration, Instant};
use guest_sdk::user::Trap;
use guest_sdk::{frames, hypercall, smp};

/// How long a thread runs before it is another one's turn.
const SLICE: Duration = Duration::from_millis(10);

/// The vCPU to which the host sends the console's events.
const CONSOLE_VCPU: u32 = 0;

/// Runs threads on this vCPU until the first process has ended; gives its status.
///
/// # Errors
///
/// There is no event channel by which this vCPU could be woken.
pub fn run(kernel: &Lock<Kernel>) -> Result<i32, Status> {
    let kick = Channel::allocate()?;
    kick.on_event(|_| {}); // that it came is all there is to it
    kernel.lock().scheduler.join(smp::current(), kick);
    if smp::current() == CONSOLE_VCPU {
        console::listen();
    }
    loop {
        if let Some(status) = without_upcalls(|| next(kernel)) {
            return Ok(status);
        }
    }
}

/// A thread's turn, or a rest. Gives the first process's status if it has ended.
fn next(kernel: &Lock<Kernel>) -> Option<i32> {
    let mut locked = kernel.lock();
    if let Some(status) = locked.status() {
        return Some(status);
    }
    locked.look_around();
    let vcpu = smp::current();
    let turn = locked.scheduler.take(vcpu);
    locked.scheduler.rouse(false);
    match turn {
        Some(turn) => {
            drop(locked);
            self::turn(kernel, turn);
        }
        None => {
            let moment = locked.scheduler.rest(vcpu);
            drop(locked);
            rest(moment);
        }
    }
    None
}

impl Kernel {
    /// Makes those ready for whom something has come from outside.
    fn look_around(&mut self) {
        self.scheduler.wake_sleepers();
        if smp::current() == CONSOLE_VCPU && console::input_came() {
            self.scheduler.wake(|_, wait| wait == crate::thread::Wait::Pipe);
        }
    }
}

/// Gives the processor back until an event comes. The vCPU that waits for a moment also gives back memory that nobody needs.
fn rest(moment: Option<u64>) {
    let until =
        moment.map(|moment| frames::report_free().map_or(moment, |again| moment.min(again.as_nanos())));
    hypercall::block(until.unwrap_or(NEVER));
}

/// A thread's turn.
fn turn(kernel: &Lock<Kernel>, mut turn: Turn) {
    let mut quantum = Quantum::start();
    // What it waited for has come: the call that it made then is made again.
    let mut trap = core::mem::take(&mut turn.again).then_some(Trap::Syscall);
    loop {
        let came_for = trap.take().unwrap_or_else(|| run_until_trap(&mut turn, &mut quantum));
        let mut locked = kernel.lock();
        match locked.serve(&mut turn, came_for) {
            Next::Run => locked.scheduler.rouse(false),
            Next::Work(work) => {
                locked.scheduler.rouse(false);
                drop(locked);
                work.run(kernel, &mut turn);
                // Others may have waited for long, and an event that ended its process may have come meanwhile.
                trap = Some(Trap::Interrupted);
            }
            next => {
                locked.settle(turn, next, quantum.used());
                return;
            }
        }
    }
}

/// Runs a thread until there is something to be done for which the kernel has to be locked.
fn run_until_trap(turn: &mut Turn, quantum: &mut Quantum) -> Trap {
    loop {
        match turn.task.run_within(&mut &turn.memory.space, &quantum.slice) {
            Trap::PageFault { address, access } if turn.memory.fault(address, access).is_ok() => {}
            Trap::Interrupted if quantum.extend() => {}
            trap => return trap,
        }
    }
}

/// What a thread may use of a vCPU in one turn.
struct Quantum {
    slice: Slice,
    start: Instant,
    /// The time that had been stolen from this vCPU when the slice began.
    stolen: Duration,
    /// For how long the vCPU was held back before.
    lost: Duration,
}

impl Quantum {
    fn start() -> Self {
        let (start, stolen) = (Instant::now(), time::stolen());
        Self { slice: Slice::start(SLICE), start, stolen, lost: Duration::ZERO }
    }

    /// Begins another slice, once, if this one is over and the host let somebody else run for most of it: the thread is not
    /// to pay for what it did not get.
    fn extend(&mut self) -> bool {
        let lost = time::stolen().saturating_sub(self.stolen);
        let extended = self.lost.is_zero() && lost > SLICE / 2 && self.slice.is_over();
        if extended {
            self.slice = Slice::start(SLICE);
            (self.stolen, self.lost) = (self.stolen + lost, lost);
        }
        extended
    }

    /// For how long the thread has run, as far as is known.
    fn used(&self) -> Duration {
        let lost = self.lost + time::stolen().saturating_sub(self.stolen);
        self.start.elapsed().saturating_sub(lost)
    }
}
