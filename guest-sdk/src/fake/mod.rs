//! A hypervisor inside `cargo test`.
//!
//! With the feature `fake-host`, everything that the SDK asks of the hypervisor is answered by this module, in the
//! same process and on the same thread, so that a guest's own code is tested like any other:
//!
//! ```toml
//! [dependencies]
//! guest-sdk = { workspace = true }
//!
//! [dev-dependencies]
//! guest-sdk = { workspace = true, features = ["fake-host"] }
//! ```
//!
//! ```
//! use guest_sdk::fake::{self, End};
//! use guest_sdk::time::{Duration, Instant, sleep};
//!
//! /// What the guest does; its `main` calls this.
//! fn greet() {
//!     for name in guest_sdk::boot::arguments() {
//!         guest_sdk::println!("hello, {name}");
//!         sleep(Duration::from_secs(3600)); // takes no time here
//!     }
//!     guest_sdk::process::exit(3);
//! }
//!
//! fake::set_arguments(&["world", "moon"]);
//! assert_eq!(fake::run(greet), End::Shutdown(3));
//! assert_eq!(fake::console(), "hello, world\nhello, moon\n");
//! assert_eq!(Instant::now() - Instant::START, Duration::from_secs(7200));
//! ```
//!
//! A guest itself, which does not unwind (`panic = "abort"`), is built without the fake whatever the features say. So
//! one `cargo test` can build both the tests of a guest's library and a test image of the same crate.
//!
//! # The one rule
//!
//! It is stricter than the real host. What the ABI answers with "fix the caller" (`BAD_ARGUMENT`, `BAD_ADDRESS`,
//! `OUT_OF_RANGE`, a channel that is not open) or leaves undefined is a panic here, whose message says what was
//! done wrong. [`run`] does not turn such a panic into an [`End`]. So is what the real host cannot see: a block that
//! nothing will ever end, a loop that waits for a clock without blocking, a write to what belongs to the host.
//!
//! # What it is like
//!
//! * Each thread has a VM of its own, with one vCPU, started as by `entry!`: tests may run in parallel. Handlers,
//!   boot information and the vCPU page are the thread's, too.
//! * Time is virtual. It stands still until the test calls [`advance`] or the guest blocks; a block jumps to its
//!   deadline or to the next event, whichever is earlier. [`raise_after`] is for events that come meanwhile.
//! * Upcalls come at the end of a call, of a block, of [`raise`] and [`advance`], and when the guest unmasks.
//! * Guest-physical addresses are the process's own. The host sees what was handed to
//!   [`phys_of`](crate::memory::phys_of) since the last call, and nothing else. The memory map has 8 MiB that are
//!   usable; boot information is outside it, and its seed is always the same.
//! * Nothing interrupts a guest between its calls: a loop that makes none and waits for a handler hangs.
//! * What is reported as free must be usable memory, and is cleared; that it is so still is checked when it is claimed.
//! * Page tables are held to the rules, but no program runs on them: entering user mode asks the test what the program does,
//!   see [`set_program`].
//! * A guest that ends leaves by unwinding, so destructors run that would not in a VM; their calls do nothing.

#![expect(unsafe_code, reason = "guest memory is this process's memory")]

mod boot;
mod calls;
mod devices;
pub(crate) mod entry;
mod lent;
mod mmu;
mod pages;
mod program;
mod state;
#[cfg(test)]
mod tests;
mod unwind;

use crate::events::Channel;
use core::time::Duration;
use hv_abi::vcpu::upcall;
use hv_abi::{Call, Features, Status};
use state::{OFFERED, misuse, vm};
use std::string::{String, ToString};
use std::vec::Vec;

pub(crate) use boot::ensure;
pub use devices::{Device, set_devices};
pub(crate) use lent::lend;
pub use program::set_program;
pub(crate) use state::{Armed, Frames, Handlers, Info};

/// How code under [`run`] ended.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It came back; the VM is still there.
    Returned,
    /// It shut the VM down with this exit code.
    Shutdown(u8),
    /// It panicked, or reported a panic.
    Panicked {
        /// The report's message, cut as the SDK cuts it.
        message: String,
        /// Where, if the report says.
        place: Option<Place>,
    },
}

/// A place in a source file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file's name.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Column, from 1.
    pub column: u32,
}

/// Starts a new VM and runs `code` in it, which may end it. What was set and what is to fail is kept; time, channels,
/// handlers, console and log begin anew.
///
/// A `main` that returns a code is run by `fake::run(|| process::exit(main().code()))`, as `entry!` does it.
///
/// # Panics
///
/// Panics if `code` breaks a rule of the ABI, or returns and [`finish`] finds something.
pub fn run(code: impl FnOnce()) -> End {
    if vm().running.get() {
        misuse!("fake::run inside fake::run: a thread has one VM");
    }
    vm().restart();
    let end = unwind::catch(code);
    if end == End::Returned {
        finish();
    }
    end
}

/// Throws the thread's VM away: a new one, as if none had been used, with nothing set.
pub fn reset() {
    vm().restart();
    vm().host.replace(state::Host::default());
}

/// Checks what a guest should have left in order: upcalls not masked, nothing changed in the vCPU page that is not
/// the guest's, no call still to fail. [`run`] does this for code that returns; a test without it may end with it.
///
/// # Panics
///
/// Panics if something is not in order.
pub fn finish() {
    vm().check_page();
    if vm().page.upcall.load(core::sync::atomic::Ordering::SeqCst) & upcall::MASKED != 0 {
        misuse!("upcalls are still masked at the end: who masked them has not gone back to what was before");
    }
    if let Some((call, status)) = vm().host.borrow().failures.first() {
        misuse!("fail_next({call:?}, {status:?}) was never used: the call was not made");
    }
}

/// What was written to the console since this was last asked. What is not UTF-8 is replaced.
pub fn console() -> String {
    let bytes = core::mem::take(&mut vm().host.borrow_mut().console);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Types a piece of text on the console. It comes once the guest has looked and found nothing, and after all that was typed
/// before; behind the last piece, input ends. Without any it has ended from the start.
pub fn type_text(text: &str) {
    let input = &mut vm().host.borrow_mut().input;
    input.open = true;
    input.later.push_back(text.as_bytes().into());
}

/// The crossings since this was last asked: each call with its arguments, whatever it gave. The calls in a multicall
/// are not listed, nor is `block`, which is no call.
pub fn calls() -> Vec<(Call, [u64; 5])> {
    core::mem::take(&mut vm().host.borrow_mut().log)
}

/// Makes the next `call`, also one in a multicall, fail with `status` and do nothing. May be used several times: then
/// the next ones fail, in order.
///
/// # Panics
///
/// Panics if `status` is success.
pub fn fail_next(call: Call, status: Status) {
    assert!(!status.is_success(), "fake host: SUCCESS is no failure");
    vm().host.borrow_mut().failures.push((call, status));
}

/// Asks the guest's balloon to hold so many pages.
pub fn set_balloon(pages: u64) {
    let old = core::mem::replace(&mut vm().host.borrow_mut().pages.target, pages);
    if old != pages {
        vm().fire(hv_abi::vcpu::BALLOON_CHANNEL);
        entry::deliver();
    }
}

/// How many pages the guest has reported, and how many of them it says that its balloon holds.
pub fn reported() -> (u64, u64) {
    let pages = &vm().host.borrow().pages;
    (pages.reported.len() as u64, pages.held)
}

/// Fires a channel as the host or a device would. Its handler runs before this returns, unless upcalls are masked.
///
/// # Panics
///
/// Panics if the channel is not open; the timer fires by time, see [`advance`].
pub fn raise(channel: Channel) {
    vm().host.borrow().expect_open("fake::raise", channel.number());
    vm().fire(channel.number());
    entry::deliver();
}

/// Fires a channel once so much time has passed, while the guest blocks or the test advances the clock; after no time,
/// during the next call. Nothing happens if it is closed by then.
pub fn raise_after(delay: Duration, channel: Channel) {
    let at = vm().now.get().saturating_add(nanoseconds(delay));
    vm().host.borrow_mut().expected.push((at, channel.number()));
}

/// Makes the next `block` come back early with nothing pending, as the ABI allows: callers must loop.
pub fn wake_early() {
    vm().host.borrow_mut().wake_early = true;
}

/// Lets time pass. What falls due fires in order, and its handlers run, each at its moment.
pub fn advance(duration: Duration) {
    let until = vm().now.get().saturating_add(nanoseconds(duration));
    while let Some(at) = vm().next_due().filter(|at| *at <= until) {
        vm().go_to(at);
        entry::deliver();
    }
    vm().go_to(until.max(vm().now.get()));
}

/// Sets the guest's arguments: what stands behind `--`. For boot information read from now on.
///
/// # Panics
///
/// Panics if one of them has a zero byte in it.
pub fn set_arguments(arguments: &[&str]) {
    assert!(
        arguments.iter().all(|a| !a.contains('\0')),
        "fake host: arguments cannot have a zero byte in them"
    );
    vm().host.borrow_mut().settings.arguments = arguments.iter().map(ToString::to_string).collect();
    vm().forget_boot();
}

/// Sets the ramdisk; empty for none. For boot information read from now on.
pub fn set_ramdisk(bytes: &[u8]) {
    vm().host.borrow_mut().settings.ramdisk = bytes.into();
    vm().forget_boot();
}

/// Says which features are in force; calls of others answer `UNKNOWN_CALL`. At first all that a host can offer are.
///
/// # Panics
///
/// Panics on features that no host serves yet.
pub fn set_features(features: Features) {
    assert!(OFFERED.contains(features), "fake host: no host serves {:?} yet", features.difference(OFFERED));
    vm().host.borrow_mut().settings.features = features;
    vm().forget_boot();
}

/// Watches the VM, or does so no more: whether [`trace::enabled`](crate::trace::enabled). No record is ever taken.
pub fn set_traced(traced: bool) {
    vm().page.trace.store(traced.into(), core::sync::atomic::Ordering::SeqCst);
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).expect("584 years are enough")
}
