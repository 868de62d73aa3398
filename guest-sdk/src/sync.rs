//! Locks between vCPUs, and against upcalls.
//!
//! A guest that spins for a lock whose holder the host has taken the processor from spins for nothing: so a waiter looks
//! whether the holder runs, spins for a bounded time, and then gives its own processor back until the lock is free. The
//! holder's page says whether the hypervisor has stopped it; and if it last ran on the very processor on which the waiter runs
//! now, it does not run, either.
//!
//! Start at [`Lock`].

#![expect(unsafe_code, reason = "an implementation of RawMutex")]

use crate::upcall::Masked;
use crate::{hypercall, raw, smp};
use core::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use hv_abi::call::NEVER;
use hv_abi::vcpu::upcall;

/// A value that one vCPU at a time may use. Upcalls are masked meanwhile, so handlers of events may take it, too.
pub type Lock<T> = lock_api::Mutex<RawLock, T>;

/// What a [`Lock`] that is held gives.
pub type Guard<'a, T> = lock_api::MutexGuard<'a, RawLock, T>;

/// Turns of spinning before a waiter gives its processor back: some microseconds, about what it costs to be woken.
const SPINS: u32 = 512;
/// It looks whether the holder runs after so many.
const LOOK: u32 = 32;

/// The lock without the value.
pub struct RawLock {
    /// 0, or the number of the vCPU that has it, and 1.
    holder: AtomicU32,
    was_masked: AtomicBool,
    /// vCPUs that sleep until it is free, or are about to, one bit each.
    waiters: AtomicU64,
}

// SAFETY: `lock` returns only when `holder` went from 0 to this vCPU's number, `unlock` sets it back, so one holder at a time.
unsafe impl lock_api::RawMutex for RawLock {
    const INIT: Self =
        Self { holder: AtomicU32::new(0), was_masked: AtomicBool::new(false), waiters: AtomicU64::new(0) };
    type GuardMarker = lock_api::GuardNoSend;

    fn lock(&self) {
        let was_masked = Masked::set();
        if !self.take() {
            self.wait();
        }
        self.was_masked.store(was_masked, Relaxed);
    }

    fn try_lock(&self) -> bool {
        let was_masked = Masked::set();
        let free = self.take();
        if free {
            self.was_masked.store(was_masked, Relaxed);
        } else {
            Masked::restore(was_masked);
        }
        free
    }

    unsafe fn unlock(&self) {
        let was_masked = self.was_masked.load(Relaxed);
        // A waiter says that it sleeps, and then looks whether the lock is free; here it is the other way round.
        self.holder.swap(0, SeqCst);
        if self.waiters.load(SeqCst) != 0 {
            self.wake_one();
        }
        Masked::restore(was_masked);
    }
}

impl RawLock {
    fn take(&self) -> bool {
        self.holder.compare_exchange(0, smp::current() + 1, Acquire, Relaxed).is_ok()
    }

    #[cold]
    fn wait(&self) {
        let mut held_back = false;
        while !self.spin() {
            held_back |= self.sleep();
        }
        if held_back {
            // What came meanwhile is looked at when upcalls are unmasked.
            raw::vcpu_page().upcall.fetch_or(upcall::PENDING, SeqCst);
        }
    }

    /// Spins for as long as it pays. Whether it has the lock.
    fn spin(&self) -> bool {
        for turn in 1..=SPINS {
            let holder = self.holder.load(Relaxed);
            if holder == 0 && self.take() {
                return true;
            }
            if turn.is_multiple_of(LOOK) && holder != 0 && !smp::runs(holder - 1) {
                return false;
            }
            core::hint::spin_loop();
        }
        false
    }

    /// Gives the processor back until the lock may be free. Whether the sign of a pending upcall was put away for it.
    fn sleep(&self) -> bool {
        let Some(kick) = smp::kick_channel(smp::current()) else {
            if let Some(holder) = self.holder.load(Relaxed).checked_sub(1) {
                let _ = hypercall::yield_to(holder);
            }
            return false;
        };
        let me = 1 << smp::current();
        self.waiters.fetch_or(me, SeqCst);
        // A `block` would end at once while an upcall is pending, and upcalls are masked.
        let pending = raw::vcpu_page().upcall.fetch_and(!upcall::PENDING, SeqCst) & upcall::PENDING != 0;
        if self.holder.load(SeqCst) != 0 && !kick.is_pending() {
            hypercall::block(NEVER);
        }
        kick.take();
        self.waiters.fetch_and(!me, SeqCst);
        pending || raw::vcpu_page().upcall.load(SeqCst) & upcall::PENDING != 0
    }

    /// Wakes the waiter that comes next behind this vCPU.
    #[cold]
    fn wake_one(&self) {
        let waiters = self.waiters.load(SeqCst);
        let next = smp::current() + 1;
        let later = waiters.checked_shr(next).map_or(0, |later| later.checked_shl(next).unwrap_or(0));
        let candidates = if later != 0 { later } else { waiters };
        if candidates == 0 {
            return; // it has come by itself
        }
        let waiter = candidates.trailing_zeros();
        self.waiters.fetch_and(!(1 << waiter), SeqCst);
        if let Some(kick) = smp::kick_channel(waiter) {
            let _ = kick.send(); // it is open as long as the vCPU is started
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Channel, without_upcalls};
    use crate::fake;
    use lock_api::RawMutex;

    #[test]
    fn a_lock_that_another_vcpu_holds_leaves_upcalls_unmasked() {
        let lock = RawLock { holder: AtomicU32::new(2), ..RawLock::INIT };
        assert!(!RawMutex::try_lock(&lock));
        fake::finish();
    }

    #[test]
    fn the_lock_masks_upcalls_and_goes_back_to_what_was_before() {
        static LOCK: Lock<u32> = Lock::new(0);
        fn count(_: Channel) {
            *LOCK.lock() += 1;
        }
        let channel = Channel::allocate().unwrap();
        channel.on_event(count);
        let held = LOCK.lock();
        fake::raise(channel);
        assert!(LOCK.try_lock().is_none());
        assert_eq!(*held, 0);
        drop(held);
        assert_eq!(*LOCK.lock(), 1, "the event was handled when the lock was given back");
        without_upcalls(|| {
            drop(LOCK.try_lock().unwrap());
            fake::raise(channel);
            assert_eq!(*LOCK.lock(), 1, "upcalls were masked before the lock was taken");
        });
        assert_eq!(*LOCK.lock(), 2);
        fake::finish();
    }
}
