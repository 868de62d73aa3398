//! The hypercall page's entries, and the pages, as `raw::real` has them.

use super::calls;
use super::state::{misuse, vm};
use super::{program, unwind};
use crate::raw::Answer;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::SeqCst;
use hv_abi::call::{NEVER, woken_by};
use hv_abi::clock::ClockPage;
use hv_abi::user::{UserContext, trap};
use hv_abi::vcpu::{EVENT_CHANNELS, VcpuPage, upcall};
use hv_abi::{Call, GuestPhys};
use std::vec::Vec;

/// Makes a hypercall.
///
/// # Safety
///
/// Guest memory that the call makes the host read must be initialised memory that is still there, and what it makes
/// the host write must be memory that the caller may have written.
pub(crate) unsafe fn call(number: u32, arguments: [u64; 5]) -> Answer {
    if std::thread::panicking() {
        return Answer { status: 0, value: 0 }; // a destructor, which would not run in a VM
    }
    vm().something_happened();
    vm().check_page();
    vm().host.borrow_mut().log.push((Call(number), arguments));
    expect_running(Call(number));
    // SAFETY: what it reads and writes is what this function's caller answers for.
    let result = unsafe { calls::crossing(vm(), Call(number), arguments) };
    vm().host.borrow_mut().lent.clear();
    if vm().host.borrow().end.is_some() {
        unwind::end();
    }
    vm().go_to(vm().now.get()); // a timer whose deadline has passed fires at once
    deliver();
    Answer { status: result.err().map_or(0, |status| status.0.into()), value: result.unwrap_or(0) }
}

/// Runs the program that the test has set, until it traps.
///
/// # Safety
///
/// The context must be initialised memory that the caller may have written, and stay that until the host does not hold its
/// state any more.
pub(crate) unsafe fn enter_user(root: u64, context: u64) -> Answer {
    if std::thread::panicking() {
        return Answer { status: 0, value: trap::KILLED.into() }; // as in `call`
    }
    vm().something_happened();
    vm().check_page();
    expect_running("enter_user");
    let entered = {
        let host = &mut *vm().host.borrow_mut();
        // SAFETY: as this function's caller says.
        let entered = unsafe { host.mmu.enter(&host.lent, root, GuestPhys(context)) };
        host.lent.clear();
        entered
    };
    let mut user = match entered {
        Ok(user) => user,
        Err(status) => return Answer { status: status.0.into(), value: 0 },
    };
    let number = match vm().page.upcall.load(SeqCst) & upcall::PENDING {
        0 => program::step(&mut user),
        _ => trap::INTERRUPTED,
    };
    user.trap = number;
    user.xstate_valid = 0;
    // SAFETY: `enter` has found the context aligned and lent for writing, and the caller says that it is still there.
    unsafe { core::ptr::with_exposed_provenance_mut::<UserContext>(context as usize).write(user) };
    deliver();
    Answer { status: 0, value: number.into() }
}

/// Gives the CPU back until an event or the deadline.
pub(crate) fn block(deadline: u64) -> Answer {
    if std::thread::panicking() {
        let until = if deadline == NEVER { 0 } else { deadline };
        vm().now.set(vm().now.get().max(until));
        return Answer { status: 0, value: woken_by::DEADLINE };
    }
    vm().check_page();
    expect_running("block");
    let value = loop {
        let early = core::mem::take(&mut vm().host.borrow_mut().wake_early);
        if early || vm().page.upcall.load(SeqCst) & upcall::PENDING != 0 {
            break woken_by::EVENT;
        }
        if vm().now.get() >= deadline && deadline != NEVER {
            break woken_by::DEADLINE;
        }
        match vm().next_due() {
            _ if vm().let_devices_work() => {}
            Some(at) if at <= deadline => vm().go_to(at),
            _ if deadline == NEVER => deadlock(),
            _ => vm().go_to(deadline),
        }
    };
    deliver();
    Answer { status: 0, value }
}

/// This vCPU's page.
pub(crate) fn vcpu_page() -> &'static VcpuPage {
    &vm().page
}

/// The clock page.
pub(crate) fn clock_page() -> &'static ClockPage {
    &vm().clock
}

/// Whether the test watches this VM.
pub(crate) fn is_traced() -> bool {
    vm().page.trace.load(SeqCst) != 0
}

/// As [`tsc`], for what happens by itself and is not waiting.
pub(crate) fn ticks() -> u64 {
    vm().now.get()
}

/// The time-stamp counter: ns of virtual time.
pub(crate) fn tsc() -> u64 {
    if !std::thread::panicking() {
        vm().count_reading();
    }
    vm().now.get()
}

/// Makes upcalls while they are pending and not masked, as the assembly does: masked while handlers run, and looking
/// again after unmasking. A guest that has ended gets none.
pub(super) fn deliver() {
    if vm().host.borrow().end.is_some() {
        return;
    }
    let upcall = &vm().page.upcall;
    while upcall.load(SeqCst) & (upcall::PENDING | upcall::MASKED) == upcall::PENDING {
        upcall.fetch_or(upcall::MASKED, SeqCst);
        crate::upcall::take_events();
        upcall.fetch_and(!upcall::MASKED, SeqCst);
    }
}

fn expect_running(what: impl core::fmt::Debug) {
    if let Some(end) = &vm().host.borrow().end {
        misuse!("{what:?} after the end of the VM, which was {end:?}; fake::reset gives a new one");
    }
}

fn deadlock() -> ! {
    let page = &vm().page;
    let masked = page.upcall.load(SeqCst) & upcall::MASKED != 0;
    let bit =
        |words: &[AtomicU64], channel: &u32| words[*channel as usize / 64].load(SeqCst) >> (channel % 64) & 1;
    let unhandled = |channel: &u32| bit(&page.pending, channel) == 1 && bit(&page.masked, channel) == 0;
    let waiting: Vec<u32> = (0..EVENT_CHANNELS).filter(unhandled).collect();
    let hint = match waiting.is_empty() {
        true => "",
        false => "; their upcalls came before the block: look, and block, with upcalls masked",
    };
    misuse!(
        "deadlock: block without a deadline, and no timer or device will ever end it (upcalls masked: {masked}; \
         channels pending, unmasked and without a handler: {waiting:?}{hint})"
    );
}
