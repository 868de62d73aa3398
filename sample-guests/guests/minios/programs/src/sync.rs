//! What threads wait for each other with: a mutex, on the kernel's futexes.
//!
//! A futex is a word in memory at which threads can sleep, as long as it has a certain value, and be woken. Only who has to
//! sleep, or has somebody to wake, makes a system call.
//!
//! Start at [`Mutex`].

#![expect(unsafe_code, reason = "an implementation of RawMutex")]

use crate::system;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use minios_abi::call;

/// A value that one thread at a time may use.
pub type Mutex<T> = lock_api::Mutex<RawMutex, T>;

/// Sleeps until somebody [`wake`]s those that sleep at this word, if it is `expected`. May come back early.
pub fn wait(word: &AtomicU32, expected: u32) {
    let at = core::ptr::from_ref(word).expose_provenance() as u64;
    let _ = system::call(call::FUTEX_WAIT, [at, expected.into(), 0, 0]); // an error says that it is not as expected
}

/// Wakes at most `count` threads of this process that sleep at this word.
pub fn wake(word: &AtomicU32, count: u32) {
    let at = core::ptr::from_ref(word).expose_provenance() as u64;
    let _ = system::call(call::FUTEX_WAKE, [at, count.into(), 0, 0]); // it cannot fail
}

const FREE: u32 = 0;
const HELD: u32 = 1;
/// Held, and perhaps somebody sleeps.
const WAITED_FOR: u32 = 2;

/// The mutex without the value.
pub struct RawMutex(AtomicU32);

// SAFETY: `lock` and `try_lock` return with the mutex only when they have changed `FREE` to something else, and only `unlock`
// changes it back: so there is one holder at a time.
unsafe impl lock_api::RawMutex for RawMutex {
    const INIT: Self = Self(AtomicU32::new(FREE));
    type GuardMarker = lock_api::GuardSend;

    fn lock(&self) {
        if self.0.compare_exchange(FREE, HELD, Acquire, Relaxed).is_err() {
            // Who has slept cannot know whether it was the only one, so it has to wake one, too.
            while self.0.swap(WAITED_FOR, Acquire) != FREE {
                wait(&self.0, WAITED_FOR);
            }
        }
    }

    fn try_lock(&self) -> bool {
        self.0.compare_exchange(FREE, HELD, Acquire, Relaxed).is_ok()
    }

    unsafe fn unlock(&self) {
        if self.0.swap(FREE, Release) == WAITED_FOR {
            wake(&self.0, 1);
        }
    }
}
