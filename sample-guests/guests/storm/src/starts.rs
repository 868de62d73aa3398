//! vCPUs that are started while others hold the locks that a start needs: none may wait for ever.
//!
//! A vCPU's first steps are the SDK's own, and one of them takes the allocator's lock. If it waits there before it can be woken,
//! it waits for ever, and so may those whom it should have woken next.

use alloc::boxed::Box;
use core::hint::black_box;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::Relaxed;
use guest_sdk::smp;
use guest_sdk::time::{Duration, Instant};
use guest_sdk::{hypercall, println};

/// Nothing takes that long on any host that is not overwhelmed.
const PATIENCE: Duration = Duration::from_secs(30);

/// Has every other vCPU allocate all the time, and starts the last one again and again meanwhile. Whether it always stopped.
pub fn storm(time: Duration) -> bool {
    static OVER: AtomicBool = AtomicBool::new(false);
    let last = smp::count() - 1;
    for vcpu in 1..last {
        let allocate = || {
            while !OVER.load(Relaxed) {
                black_box(Box::new([0_u8; 40]));
            }
        };
        smp::start(vcpu, allocate).expect("it is not started yet");
    }
    let (end, mut starts) = (Instant::now() + time, 0);
    while Instant::now() < end {
        smp::start(last, || {}).expect("it has stopped");
        let started = Instant::now();
        while smp::is_started(last) {
            if started.elapsed() > PATIENCE {
                return false;
            }
            hypercall::yield_now();
        }
        starts += 1;
    }
    OVER.store(true, Relaxed);
    println!("{starts} starts");
    true
}
