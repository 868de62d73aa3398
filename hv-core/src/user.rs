//! User mode, as far as it is the same on every engine: what a guest kernel hands over is checked, and a program's trap is
//! told in the guest kernel's words.
//!
//! Start at [`check`].

use crate::engine::process::xstate;
use crate::engine::{Access, Registers, UserCause, UserExit};
use crate::memory::GuestMemory;
use crate::mmu::Roots;
use hv_abi::address::SLOT_255;
use hv_abi::user::{LOWEST_USER, RFLAGS, RFLAGS_FIXED, UserContext, access, trap};
use hv_abi::{GuestPhys, Status};
use zerocopy::{FromZeros, IntoBytes};

/// Copies the context at P `context` and checks it, for a program to be entered under `root`.
pub(crate) fn check(
    memory: &GuestMemory,
    roots: &Roots,
    xstate: (u64, u64),
    root: u64,
    context: u64,
) -> Result<UserContext, Status> {
    let user: UserContext = memory.read(GuestPhys(context))?;
    if !roots.is_user(root) {
        return Err(Status::NOT_FOUND);
    }
    let rip_is_the_guests = (LOWEST_USER..SLOT_255).contains(&user.rip);
    let flags_are_allowed = user.rflags & !(RFLAGS | RFLAGS_FIXED) == 0;
    let canonical = (user.fs_base as i64) << 16 >> 16 == user.fs_base as i64;
    if !rip_is_the_guests || !flags_are_allowed || !canonical || user.xstate_valid > 1 {
        return Err(Status::BAD_ARGUMENT);
    }
    if user.reserved.iter().any(|word| *word != 0) {
        return Err(Status::BAD_ARGUMENT);
    }
    check_xstate(memory, xstate, &user)?;
    Ok(user)
}

/// Writes a trap into the context of the program that came back; gives its number.
pub(crate) fn trapped(memory: &GuestMemory, exit: &UserExit) -> u32 {
    let context = GuestPhys(exit.context);
    // It was there when it was entered, and memory does not shrink. Its guest kernel may have entered it again since, and
    // changed what is not looked at here.
    let mut user: UserContext = memory.read(context).expect("the context was read before");
    let number = describe(&mut user, exit.cause);
    if exit.cause != UserCause::Killed {
        put_registers(&mut user, &exit.registers);
    }
    user.trap = number;
    user.xstate_valid = 0;
    memory.write(context, &user).expect("and so it can be written");
    number
}

/// `size` and `mask` are the engine's.
fn check_xstate(memory: &GuestMemory, (size, mask): (u64, u64), user: &UserContext) -> Result<(), Status> {
    if !user.xstate.0.is_multiple_of(64) || !memory.contains(user.xstate, size) {
        return Err(Status::BAD_ADDRESS);
    }
    if user.xstate_valid == 0 {
        return Ok(());
    }
    let mut head = <[u64; xstate::HEAD]>::new_zeroed();
    memory.read_bytes(user.xstate, head.as_mut_bytes())?;
    if xstate::is_valid(&head, mask) { Ok(()) } else { Err(Status::BAD_ARGUMENT) }
}

/// What happened; gives the trap's number.
fn describe(user: &mut UserContext, cause: UserCause) -> u32 {
    match cause {
        UserCause::SystemCall => trap::SYSCALL,
        UserCause::PageFault { address, access } => {
            user.address = address;
            user.access = match access {
                Access::Read => access::READ,
                Access::Write => access::WRITE,
                Access::Execute => access::EXECUTE,
            };
            trap::PAGE_FAULT
        }
        UserCause::Exception { vector } => {
            user.vector = vector as u32;
            trap::EXCEPTION
        }
        UserCause::Interrupted => trap::INTERRUPTED,
        UserCause::Killed => trap::KILLED,
    }
}

fn put_registers(user: &mut UserContext, registers: &Registers) {
    registers.write_to_prefix(user.as_mut_bytes()).expect("a context begins with them");
    user.rflags = registers.rflags & RFLAGS | RFLAGS_FIXED;
}
