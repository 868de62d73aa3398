//! How a vCPU's thread is had out of the guest: by a signal, from another thread or from its own timer.
//!
//! The signal's handler sets `immediate_exit` in the vCPU's `kvm_run`, so a signal that comes just before the thread enters the
//! guest keeps it from that (Documentation/virt/kvm/api.rst, section 5). The thread clears it, and only then looks at what it may
//! have been called for.
//!
//! Start at [`Seat`] and [`Timer`].

#![expect(unsafe_code, reason = "a signal, its handler, and a timer that sends it")]

use core::cell::Cell;
use core::ptr;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::{AtomicI32, AtomicU8, AtomicU32, AtomicU64};
use std::io;
use std::sync::Once;

/// The signal: the last of those that are nobody's, and so not what other code takes first.
fn signal() -> i32 {
    libc::SIGRTMAX()
}

std::thread_local! {
    /// `immediate_exit` of the vCPU whose thread this is.
    static IMMEDIATE_EXIT: Cell<*const AtomicU8> = const { Cell::new(ptr::null()) };
}

extern "C" fn leave(_: i32) {
    let immediate_exit = IMMEDIATE_EXIT.get();
    if !immediate_exit.is_null() {
        // SAFETY: it was set by this thread's `Seat::take`, and is taken back before the page goes.
        unsafe { &*immediate_exit }.store(1, SeqCst);
    }
}

/// Has the signal handled, once for the process.
pub(super) fn prepare() {
    static PREPARED: Once = Once::new();
    PREPARED.call_once(|| {
        // SAFETY: `sigaction` is given a whole structure: zeros mean no flags, so that system calls are interrupted, and an empty
        // mask. The handler only looks at a thread-local that needs no initialisation and stores a byte.
        unsafe {
            let mut action: libc::sigaction = core::mem::zeroed();
            action.sa_sigaction = leave as extern "C" fn(i32) as usize;
            libc::sigaction(signal(), &raw const action, ptr::null_mut());
        }
    });
}

/// Where a vCPU is run: by which thread, whether it is in the guest, and what it is wanted for.
#[derive(Debug, Default)]
pub(super) struct Seat {
    /// 0 while it has none.
    thread: AtomicI32,
    /// Odd while it is in the guest, or about to be.
    runs: AtomicU64,
    /// Bits of [`wanted`].
    wanted: AtomicU32,
}

/// What a vCPU is wanted for.
pub(super) mod wanted {
    /// An event, or translations to forget: the interrupt.
    pub(crate) const INTERRUPT: u32 = 1;
    /// To look around.
    pub(crate) const LOOK: u32 = 2;
}

impl Seat {
    /// The calling thread runs the vCPU from here on.
    pub(super) fn take(&self, immediate_exit: &AtomicU8) {
        IMMEDIATE_EXIT.set(immediate_exit);
        self.thread.store(rustix::thread::gettid().as_raw_nonzero().get(), SeqCst);
    }

    /// It does no more.
    pub(super) fn leave(&self) {
        IMMEDIATE_EXIT.set(ptr::null());
        self.thread.store(0, SeqCst);
    }

    /// The thread that runs it.
    pub(super) fn thread(&self) -> Option<i32> {
        Some(self.thread.load(SeqCst)).filter(|thread| *thread != 0)
    }

    /// Wants it for something. If it is in the guest, it comes out.
    pub(super) fn want(&self, what: u32) {
        self.wanted.fetch_or(what, SeqCst);
        if self.is_in_guest()
            && let Some(thread) = self.thread()
        {
            // SAFETY: takes numbers; a thread that is gone is an error, which is no harm.
            unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), thread, signal()) };
        }
    }

    /// What it is wanted for, which is then no more.
    pub(super) fn take_wanted(&self) -> u32 {
        if self.wanted.load(Relaxed) == 0 { 0 } else { self.wanted.swap(0, SeqCst) }
    }

    /// It is about to enter the guest. Not, and gives `false`, if it is wanted.
    pub(super) fn enter(&self) -> bool {
        self.runs.fetch_add(1, SeqCst);
        let free = self.wanted.load(SeqCst) == 0;
        if !free {
            self.exit();
        }
        free
    }

    /// It has come out.
    pub(super) fn exit(&self) {
        self.runs.fetch_add(1, SeqCst);
    }

    pub(super) fn is_in_guest(&self) -> bool {
        !self.runs().is_multiple_of(2)
    }

    /// Changes with each entry and exit.
    pub(super) fn runs(&self) -> u64 {
        self.runs.load(SeqCst)
    }
}

/// A thread's own timer, which has it out of the guest.
#[derive(Debug)]
pub(super) struct Timer {
    timer: libc::timer_t,
    /// What it is set to, in nanoseconds of the host's monotonic clock; never, as `u64::MAX`.
    set: u64,
}

// SAFETY: a timer is a number of the process; it signals the thread that it was made for, wherever this value is.
unsafe impl Send for Timer {}

impl Timer {
    /// A timer for the calling thread.
    pub(super) fn new() -> io::Result<Self> {
        let mut timer: libc::timer_t = ptr::null_mut();
        // SAFETY: zeros are a good `sigevent`; the fields that SIGEV_THREAD_ID needs are set. The call stores the timer's number.
        let failed = unsafe {
            let mut event: libc::sigevent = core::mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = signal();
            event.sigev_notify_thread_id = rustix::thread::gettid().as_raw_nonzero().get();
            libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer)
        };
        if failed != 0 { Err(io::Error::last_os_error()) } else { Ok(Self { timer, set: u64::MAX }) }
    }

    /// Has it signal at that moment, and not at the one before.
    pub(super) fn set(&mut self, deadline: u64) {
        if deadline == self.set {
            return;
        }
        self.set = deadline;
        let deadline = if deadline == u64::MAX { 0 } else { deadline.max(1) };
        const SECOND: u64 = 1_000_000_000;
        let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let at = libc::timespec { tv_sec: (deadline / SECOND) as i64, tv_nsec: (deadline % SECOND) as i64 };
        let times = libc::itimerspec { it_interval: none, it_value: at };
        // SAFETY: the timer is this value's, and the times are whole; nothing is stored.
        unsafe { libc::timer_settime(self.timer, libc::TIMER_ABSTIME, &raw const times, ptr::null_mut()) };
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: the timer is this value's, and nobody uses it afterwards.
        unsafe { libc::timer_delete(self.timer) };
    }
}
