//! A lock, with more vCPUs than processors.
//!
//! On a machine of its own a waiter that spins waits for a holder that runs. A vCPU's processor may be taken away at any time, also
//! between taking a lock and giving it back, and then its waiters spin for one that cannot go on before they stop. A ticket
//! lock is worse: only the next in line may have it, so everybody waits for that one's turn of the processor, too. The host could
//! run the right vCPU if it knew which; what it sees are several that all seem busy. The SDK's lock looks whether the holder
//! runs, which the host says in the vCPU page, spins for a bounded time, and then blocks until it is woken.

use core::cell::Cell;
use core::hint::{black_box, spin_loop};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64};
use guest_sdk::sync::Lock;
use guest_sdk::time::{Duration, Instant, sleep};
use guest_sdk::{hypercall, println, smp};

/// How the first of these pairs locks: fair, and good where every vCPU has a processor.
#[derive(Default)]
struct TicketLock {
    next: AtomicU32,
    serving: AtomicU32,
}

impl TicketLock {
    fn locked(&self, section: impl FnOnce()) {
        let ticket = self.next.fetch_add(1, Relaxed);
        while self.serving.load(Acquire) != ticket {
            spin_loop();
        }
        section();
        self.serving.store(ticket.wrapping_add(1), Release);
    }
}

/// Spins until it is its turn.
pub fn ticket(sections: u64) {
    static LOCK: TicketLock = TicketLock { next: AtomicU32::new(0), serving: AtomicU32::new(0) };
    measure(sections, |section| LOCK.locked(section));
}

/// Spins only for a holder that runs, and not for long.
pub fn paravirtual(sections: u64) {
    static LOCK: Lock<()> = Lock::new(());
    measure(sections, |section| {
        let held = LOCK.lock();
        section();
        drop(held);
    });
}

/// Nobody waits longer than this for all sections.
const LIMIT: Duration = Duration::from_secs(1);

/// Has all vCPUs together go through so many critical sections, each with as much work between two; prints nanoseconds for all of
/// them, and how many there were until the limit.
fn measure(sections: u64, locked: impl Fn(&dyn Fn()) + Send + Copy + 'static) {
    static READY: AtomicU32 = AtomicU32::new(0);
    static FINISHED: AtomicU32 = AtomicU32::new(0);
    static DONE: AtomicU64 = AtomicU64::new(0);
    static LIMIT_AT: AtomicU64 = AtomicU64::new(u64::MAX);
    let go_through = move || {
        while DONE.load(Relaxed) < sections && Instant::now().as_nanos() < LIMIT_AT.load(Relaxed) {
            locked(&compute);
            compute();
            DONE.fetch_add(1, Relaxed);
        }
    };
    let others = smp::count() - 1;
    for vcpu in 1..=others {
        let main = move || {
            READY.fetch_add(1, Relaxed);
            go_through();
            FINISHED.fetch_add(1, Release);
            crate::rest();
        };
        smp::start(vcpu, main).expect("it is not started yet");
    }
    // The lock is held until everybody wants it: otherwise the first vCPU would have it to itself for a while.
    let start = Cell::new(Instant::START);
    locked(&|| {
        while READY.load(Relaxed) < others {
            hypercall::yield_now();
        }
        println!("ready");
        start.set(Instant::now());
        LIMIT_AT.store((start.get() + LIMIT).as_nanos(), Relaxed);
    });
    go_through();
    while FINISHED.load(Acquire) < others {
        sleep(Duration::from_micros(100));
    }
    println!("{} {}", start.get().elapsed().as_nanos(), DONE.load(Relaxed));
}

/// About a microsecond's work.
fn compute() {
    (0..4000_u32).for_each(|i| {
        black_box(i);
    });
}
