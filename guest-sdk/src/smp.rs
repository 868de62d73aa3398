//! More than one vCPU: starting them, and what they know of each other.
//!
//! The guest begins on vCPU 0 alone. Each of the others runs what it is started with, on a stack of its own, with upcalls
//! unmasked, and can be started again once it has come to the end of that.
//!
//! Start at [`start`].

#![cfg_attr(
    not(any(test, all(feature = "fake-host", panic = "unwind"))),
    expect(unsafe_code, reason = "a vCPU's first instructions")
)]

use crate::events::Channel;
use crate::raw;
use alloc::boxed::Box;
use core::ops::Deref;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use hv_abi::Status;
use hv_abi::address::MAX_VCPUS;
use hv_abi::vcpu::{NO_PROCESSOR, run_state};

/// One value for each vCPU; reached is this vCPU's.
pub struct PerVcpu<T>([T; MAX_VCPUS as usize]);

impl<T> PerVcpu<T> {
    /// One for each, by its number.
    pub const fn new(values: [T; MAX_VCPUS as usize]) -> Self {
        Self(values)
    }

    /// That of a vCPU.
    pub fn of(&self, vcpu: u32) -> &T {
        &self.0[vcpu as usize]
    }
}

impl<T> Deref for PerVcpu<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.of(current())
    }
}

/// How many vCPUs there are, from 1 to 64.
pub fn count() -> u32 {
    crate::boot::info().vcpus
}

/// The number of the vCPU that this runs on.
pub fn current() -> u32 {
    raw::vcpu_page().vcpu.load(Relaxed)
}

/// Whether a vCPU is started.
pub fn is_started(vcpu: u32) -> bool {
    page(vcpu).is_some_and(|page| page.run_state.load(SeqCst) != run_state::STOPPED)
}

/// Whether a vCPU runs at the moment, as far as can be told: `false` is sure to have been so, `true` is not.
pub(crate) fn runs(vcpu: u32) -> bool {
    let Some(page) = page(vcpu) else { return false };
    let here = raw::vcpu_page().processor.load(Relaxed);
    let shares = vcpu != current() && here != NO_PROCESSOR && page.processor.load(Relaxed) == here;
    page.run_state.load(Relaxed) == run_state::RUNNING && page.preempted.load(Relaxed) == 0 && !shares
}

fn page(vcpu: u32) -> Option<&'static hv_abi::vcpu::VcpuPage> {
    if vcpu == current() {
        return Some(raw::vcpu_page());
    }
    #[cfg(not(any(test, all(feature = "fake-host", panic = "unwind"))))]
    return (vcpu < count()).then(|| raw::page_of(vcpu));
    #[cfg(any(test, all(feature = "fake-host", panic = "unwind")))]
    None // there is one
}

/// Per vCPU: the channel by which it is woken for a lock; 0 if it has none.
static KICKS: PerVcpu<AtomicU32> = PerVcpu::new([const { AtomicU32::new(0) }; _]);

/// The channel by which a vCPU is woken for a lock, if it is one of several.
pub(crate) fn kick_channel(vcpu: u32) -> Option<Channel> {
    Some(KICKS.of(vcpu).load(Acquire)).filter(|number| *number != 0).map(Channel::from_number)
}

/// Lets this vCPU be woken by its channel.
fn listen() {
    if let Some(kick) = kick_channel(current()) {
        kick.unmask();
    }
}

/// Gives a vCPU its channel for being woken.
fn ensure_kick_channel(vcpu: u32) -> Result<(), Status> {
    if kick_channel(vcpu).is_none() {
        let channel = Channel::allocate_for(vcpu)?;
        let was = KICKS.of(vcpu).compare_exchange(0, channel.number(), SeqCst, SeqCst);
        if was.is_err() {
            channel.close()?; // another vCPU was first
        }
    }
    Ok(())
}

/// Starts a vCPU with `main`. When that returns, the vCPU is stopped, and can be started again.
///
/// # Errors
///
/// `NOT_FOUND` if there is no such vCPU, `BUSY` if it is started or the host is short of something, `NO_SPACE` if there are no
/// event channels left, `UNKNOWN_CALL` if the host does not serve several.
pub fn start(vcpu: u32, main: impl FnOnce() + Send + 'static) -> Result<(), Status> {
    if vcpu >= count() {
        return Err(Status::NOT_FOUND);
    }
    if is_started(vcpu) {
        return Err(Status::BUSY);
    }
    for vcpu in [current(), vcpu] {
        ensure_kick_channel(vcpu)?;
    }
    listen();
    launch(vcpu, Box::new(main))
}

#[cfg(any(test, all(feature = "fake-host", panic = "unwind")))]
fn launch(_: u32, _: Box<dyn FnOnce() + Send>) -> Result<(), Status> {
    Err(Status::UNKNOWN_CALL) // a fake VM has one vCPU
}

#[cfg(not(any(test, all(feature = "fake-host", panic = "unwind"))))]
use real::launch;

#[cfg(not(any(test, all(feature = "fake-host", panic = "unwind"))))]
mod real {
    use super::*;
    use crate::hypercall;
    use core::sync::atomic::AtomicPtr;

    /// Bytes of a vCPU's stack.
    const STACK: usize = 64 << 10;

    #[repr(C, align(16))]
    struct Stack([u8; STACK]);

    /// Each vCPU's stack, once it has been started: the next start uses it again.
    static STACKS: PerVcpu<AtomicPtr<Stack>> =
        PerVcpu::new([const { AtomicPtr::new(core::ptr::null_mut()) }; _]);

    /// What a vCPU finds at its first instruction.
    #[repr(C)]
    struct Launch {
        stack_end: u64,
        main: Box<dyn FnOnce() + Send>,
    }

    core::arch::global_asm!(
        ".pushsection .text.hv_vcpu_entry, \"ax\", @progbits",
        ".globl hv_vcpu_entry",
        "hv_vcpu_entry:",
        "mov rsp, [rdi + {stack_end}]",
        "xor ebp, ebp", // ends backtraces
        "call {run}",
        "ud2",
        ".popsection",
        stack_end = const core::mem::offset_of!(Launch, stack_end),
        run = sym run,
    );

    unsafe extern "C" {
        static hv_vcpu_entry: u8;
    }

    pub(super) fn launch(vcpu: u32, main: Box<dyn FnOnce() + Send>) -> Result<(), Status> {
        let stack = take_stack(vcpu);
        let stack_end = stack.addr() as u64 + STACK as u64;
        let launch = Box::into_raw(Box::new(Launch { stack_end, main }));
        let entry = (&raw const hv_vcpu_entry).addr() as u64;
        // SAFETY: the code at `entry` takes a `Launch`, which nobody else has, and begins a stack that nobody else has: it was
        // taken from its place, and is put back when the vCPU no longer runs on it.
        let started = unsafe { hypercall::vcpu_start(vcpu, entry, launch.expose_provenance() as u64) };
        if started.is_err() {
            // SAFETY: it came from `Box::into_raw` above, and no vCPU was started with it.
            drop(unsafe { Box::from_raw(launch) });
            give_back(vcpu, stack);
        }
        started
    }

    /// A stack for a vCPU that nobody else has.
    fn take_stack(vcpu: u32) -> *mut Stack {
        let kept = STACKS.of(vcpu).swap(core::ptr::null_mut(), SeqCst);
        if !kept.is_null() {
            return kept;
        }
        let layout = core::alloc::Layout::new::<Stack>();
        // SAFETY: the layout is not of size 0.
        let stack = unsafe { alloc::alloc::alloc_zeroed(layout) }.cast::<Stack>();
        if stack.is_null() {
            alloc::alloc::handle_alloc_error(layout);
        }
        stack
    }

    /// Keeps a stack for the vCPU's next start. If it has another by then, this one is lost: two starts of one vCPU at once.
    fn give_back(vcpu: u32, stack: *mut Stack) {
        let _ = STACKS.of(vcpu).compare_exchange(core::ptr::null_mut(), stack, SeqCst, SeqCst);
    }

    extern "C" fn run(launch: *mut Launch) -> ! {
        listen(); // before anything that may wait for a lock, as the allocator does
        // SAFETY: `launch` made it by `Box::into_raw`, and only this vCPU was given it.
        let Launch { stack_end, main } = *unsafe { Box::from_raw(launch) };
        crate::trace::init_other();
        crate::upcall::init();
        main();
        crate::upcall::Masked::set();
        crate::time::timer::clear();
        let stack = core::ptr::with_exposed_provenance_mut::<Stack>(stack_end as usize - STACK);
        let vcpu = current();
        // Whoever takes it from there cannot start this vCPU with it before it has stopped, and so left it.
        give_back(vcpu, stack);
        let status = hypercall::vcpu_stop();
        panic!("the last vCPU cannot stop itself: {status:?}");
    }
}
