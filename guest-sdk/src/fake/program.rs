//! User programs, played by the test.

use super::state::{misuse, vm};
use crate::user::{Access, Trap};
use core::cell::RefCell;
use hv_abi::user::{UserContext, access, trap};
use std::boxed::Box;

type Program = Box<dyn FnMut(&mut UserContext) -> Trap>;

std::thread_local! {
    static PROGRAM: RefCell<Option<Program>> = const { RefCell::new(None) };
}

/// Says what programs do when the guest enters user mode: `program` is given the context, of
/// which the registers are its own, and says how it traps, having
/// changed them as the program would. It stands for all programs of the thread's guests; which one it is, RIP or another
/// register may tell. It may use this module, to let time pass for example, and no other part of the SDK.
///
/// A program that an event interrupts before its first instruction is not asked.
pub fn set_program(program: impl FnMut(&mut UserContext) -> Trap + 'static) {
    PROGRAM.set(Some(Box::new(program)));
}

/// Lets the program run until it traps; gives the trap's number and puts the rest into the context.
pub(super) fn step(user: &mut UserContext) -> u32 {
    let Some(mut program) = PROGRAM.take() else {
        misuse!("a guest has entered user mode: fake::set_program says what programs do")
    };
    let trap = program(user);
    // It may have set another one to follow it.
    PROGRAM.with_borrow_mut(|next| {
        next.get_or_insert(program);
    });
    vm().something_happened();
    match trap {
        Trap::Syscall => trap::SYSCALL,
        Trap::PageFault { address, access } => {
            user.address = address;
            user.access = match access {
                Access::Read => access::READ,
                Access::Write => access::WRITE,
                Access::Execute => access::EXECUTE,
            };
            trap::PAGE_FAULT
        }
        Trap::Exception { vector } => {
            user.vector = vector;
            trap::EXCEPTION
        }
        Trap::Interrupted => trap::INTERRUPTED,
        Trap::Killed => trap::KILLED,
    }
}
