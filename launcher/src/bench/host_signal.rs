//! The host's own signals: what traps and upcalls are made of.

#![expect(unsafe_code, reason = "signal handlers")]

use crate::bench::host::{batches, to_ns, warmed};
use crate::bench::{Figure, Phase};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

/// When the last signal's handler ran.
static CAME: AtomicU64 = AtomicU64::new(0);

extern "C" fn nothing(_: libc::c_int) {}

extern "C" fn note_time(_: libc::c_int) {
    CAME.store(hv_core::clock::tsc(), Ordering::Release);
}

fn handle(signal: i32, handler: extern "C" fn(libc::c_int)) {
    // SAFETY: `sigaction` with a zeroed structure and a handler that only stores to an atomic, if anything, which
    // handlers may do.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
    }
}

/// A breakpoint, its handler, and the return from it.
pub(super) fn round_trip(phase: Phase) -> Figure {
    handle(libc::SIGTRAP, nothing);
    let samples = batches(21, 10_000, || {
        // SAFETY: SIGTRAP has a handler, which returns behind the instruction.
        unsafe { std::arch::asm!("int3") };
    });
    Figure::new("host: signal round trip (int3)", "ns", phase, samples)
}

/// From a thread's signal to itself until its handler runs.
pub(super) fn to_oneself(phase: Phase, samples: usize) -> Figure {
    handle(libc::SIGUSR2, note_time);
    let once = || {
        let sent = hv_core::clock::tsc();
        // SAFETY: `raise` takes an integer; the signal has a handler, which has run when `raise` returns.
        unsafe { libc::raise(libc::SIGUSR2) };
        to_ns(CAME.load(Ordering::Acquire).saturating_sub(sent))
    };
    Figure::new("host: signal to oneself until its handler runs", "ns", phase, warmed(samples, once))
}

/// From sending a signal until its handler runs in a thread that is computing.
pub(super) fn to_running(phase: Phase, samples: usize) -> Figure {
    handle(libc::SIGUSR2, note_time);
    let (stop, thread) = (AtomicBool::new(false), AtomicI32::new(0));
    let mut times = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            thread.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Release);
            while !stop.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        while thread.load(Ordering::Acquire) == 0 {
            std::thread::yield_now();
        }
        let process = rustix::process::getpid().as_raw_nonzero().get();
        for _ in 0..samples {
            std::thread::sleep(Duration::from_micros(200));
            CAME.store(0, Ordering::Relaxed);
            let sent = hv_core::clock::tsc();
            // SAFETY: `tgkill` takes integers; the thread is our own, and the signal has a handler.
            unsafe {
                libc::syscall(libc::SYS_tgkill, process, thread.load(Ordering::Relaxed), libc::SIGUSR2)
            };
            let came = loop {
                match CAME.load(Ordering::Acquire) {
                    0 => std::thread::yield_now(),
                    came => break came,
                }
            };
            times.push(to_ns(came.saturating_sub(sent)));
        }
        stop.store(true, Ordering::Relaxed);
    });
    Figure::new("host: signal to a running thread", "ns", phase, times)
}
