//! Ending a guest: by unwinding to where it was started.

use super::state::vm;
use super::{End, Place};
use core::any::Any;
use core::cell::RefCell;
use std::boxed::Box;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, resume_unwind, set_hook, take_hook};
use std::string::{String, ToString};
use std::sync::Once;

/// What is thrown when the VM has ended.
struct Ended;

std::thread_local! {
    /// The panic that code under `run` is unwinding from.
    static PANIC: RefCell<Option<(String, Place)>> = const { RefCell::new(None) };
}

/// Leaves the guest, whose host has noted how it ended.
pub(super) fn end() -> ! {
    resume_unwind(Box::new(Ended))
}

/// Runs `code` and says how it ended. Its panics are reported as a guest's are; the host's own go on to the test.
pub(super) fn catch(code: impl FnOnce()) -> End {
    install_hook();
    PANIC.take();
    vm().running.set(true);
    let mut result = catch_unwind(AssertUnwindSafe(code));
    if let Err(payload) = &result
        && !payload.is::<Ended>()
        && !vm().misused.get()
    {
        let (message, place) = PANIC.take().unwrap_or_else(|| (text(&**payload), nowhere()));
        result = catch_unwind(|| crate::panic::end(message, &place.file, place.line, place.column));
    }
    vm().running.set(false);
    match result {
        Ok(()) => End::Returned,
        Err(payload) if payload.is::<Ended>() => {
            vm().host.borrow().end.clone().expect("set before anything is thrown")
        }
        Err(payload) => resume_unwind(payload),
    }
}

/// Keeps panics of code under `run` from being printed, and remembers where they were.
fn install_hook() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |info| {
            // A second panic, in a destructor, ends the process: it must be seen.
            let first = PANIC.with_borrow(Option::is_none);
            if first && vm().running.get() && !vm().misused.get() {
                PANIC.set(Some((text(info.payload()), place(info))));
            } else {
                before(info);
            }
        }));
    });
}

/// What a panic said.
pub(super) fn text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without a text").to_string()
}

fn place(info: &PanicHookInfo<'_>) -> Place {
    info.location().map_or_else(nowhere, |l| Place {
        file: l.file().to_string(),
        line: l.line(),
        column: l.column(),
    })
}

fn nowhere() -> Place {
    Place { file: String::new(), line: 0, column: 0 }
}
