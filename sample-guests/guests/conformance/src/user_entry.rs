//! The entry `ENTER_USER`: what it refuses, and what it leaves alone.

use crate::entries::keeps_control_words;
use crate::program::{HEAP, Program, TEXT, area, code, context, enter};
use crate::registers::{enter as entry, good};
use crate::{memory_size, outside, phys};
use alloc::boxed::Box;
use guest_sdk::boot::info;
use guest_sdk::hv_abi::address::{SLOT_255, entry};
use guest_sdk::hv_abi::user::{LOWEST_USER, RFLAGS, RFLAGS_FIXED, UserContext, trap};
use guest_sdk::hv_abi::{GuestPhys, Status};

/// A program of one system call, which stores before it.
fn program() -> Program {
    let mut program = Program::new(code!("mov [rdi], rax", "syscall"));
    program.context.rdi = HEAP;
    program.context.rax = 1;
    program
}

/// Enters a program with something changed in its context, which must be refused and change nothing.
#[track_caller]
fn refused(change: impl FnOnce(&mut UserContext), status: Status) {
    let mut program = program();
    change(&mut program.context);
    let before = *program.context;
    assert_eq!(program.enter(), Err(status), "{before:x?}");
    assert_eq!(*program.context, before);
    assert_eq!(program.data.0[0], 0, "it has run");
}

/// Enters a program with something changed in its context, which must be good.
#[track_caller]
fn accepted(change: impl FnOnce(&mut UserContext)) {
    let mut program = program();
    change(&mut program.context);
    assert!(program.enter().is_ok(), "{:x?}", program.context);
}

/// The same, with something changed in its `XSAVE` area.
#[track_caller]
fn with_area(change: impl Fn(&mut [u64]), status: Status) {
    if status == Status::SUCCESS {
        accepted(|context| change(area(context)));
    } else {
        refused(|context| change(area(context)), status);
    }
    // With `xstate_valid` 0 the area is not looked at.
    let mut program = program();
    assert_eq!(program.run(), trap::SYSCALL);
    if program.context.xstate_valid == 0 {
        change(area(&program.context));
        program.calls(TEXT);
    }
}

guest_sdk::tests! {
    "ENTER_USER-002 ENTER_USER-003" fn it_keeps_what_a_call_keeps() {
        let mut program = program();
        let at = |context: &UserContext| phys(context);
        for _ in 0..100 {
            (program.context.rip, program.context.rflags) = (TEXT, 0x400);
            let answer = entry(entry::ENTER_USER, [program.space.root.0, at(&program.context), 7, 7, 7, 7]);
            if answer.value == trap::INTERRUPTED.into() {
                continue;
            }
            assert_eq!(answer, good(Status::SUCCESS, trap::SYSCALL.into()));
        }
        assert_eq!(entry(entry::ENTER_USER, [1, at(&program.context), 7, 7, 7, 7]), good(Status::NOT_FOUND, 0));
        assert_eq!(entry(entry::ENTER_USER, [program.space.root.0, 1, 7, 7, 7, 7]), good(Status::BAD_ADDRESS, 0));
        let mut other = Program::new(code!("fninit", "ldmxcsr [rdi]", "syscall"));
        other.data.0[0] = 0x9f80;
        other.context.rdi = HEAP;
        assert!(keeps_control_words(|| assert_eq!(other.run(), trap::SYSCALL)));
        assert!(keeps_control_words(|| assert!(!entry(entry::ENTER_USER, [0; 6]).df)));
    }

    "ENTER_USER-005" fn a_context_outside_memory_or_misaligned_is_a_bad_address() {
        let program = program();
        let (root, at) = (program.space.root.0, phys(&*program.context));
        for context in outside(256).into_iter().chain([1, 8, 16, 32].map(|offset| at + offset)).chain([memory_size() - 192]) {
            assert_eq!(entry(entry::ENTER_USER, [root, context, 0, 0, 0, 0]), good(Status::BAD_ADDRESS, 0), "{context:#x}");
        }
    }

    "ENTER_USER-006 ENTER_USER-015" fn an_area_outside_memory_or_misaligned_is_a_bad_address() {
        let size = info().xstate_size;
        let mut held = program();
        assert_eq!(held.run(), trap::SYSCALL);
        held.context.rip = TEXT;
        let good = held.context.xstate;
        for xstate in [memory_size(), (memory_size() - size + 64) & !63, (1 << 63), !63, good.0 + 8, good.0 + 32] {
            refused(|context| context.xstate = GuestPhys(xstate), Status::BAD_ADDRESS);
            held.context.xstate = GuestPhys(xstate);
            assert_eq!(held.enter(), Err(Status::BAD_ADDRESS), "{xstate:#x}, not valid");
        }
        held.context.xstate = good;
        assert_eq!(held.run(), trap::SYSCALL);
    }

    "ENTER_USER-007" fn what_is_no_root_is_not_found() {
        let mut program = program();
        let root = program.space.root.0;
        let table = program.space.entry(TEXT).0 & !4095;
        for root in [0, table, root + 8, root + 4096, root | 1 << 63, memory_size(), u64::MAX, !4095, info().kernel_root.0] {
            assert_eq!(enter(GuestPhys(root), &mut program.context), Err(Status::NOT_FOUND), "{root:#x}");
        }
        assert_eq!(program.data.0[0], 0);
    }

    "ENTER_USER-008 ENTER_USER-015" fn an_rip_that_is_not_the_guests_is_a_bad_argument() {
        for rip in [0, 0xffff, 0x1_0000, LOWEST_USER - 1, SLOT_255, SLOT_255 + 0x20_0000, 1 << 47, u64::MAX << 47, 1 << 63, u64::MAX] {
            refused(|context| context.rip = rip, Status::BAD_ARGUMENT);
        }
        for rip in [LOWEST_USER, SLOT_255 - 1] {
            let mut program = program();
            program.faults(rip, rip, 2);
        }
    }

    "ENTER_USER-009 ENTER_USER-015" fn flags_that_are_not_the_programs_are_a_bad_argument() {
        for bit in (0..64).map(|bit| 1 << bit) {
            if (RFLAGS | RFLAGS_FIXED) & bit == 0 {
                refused(|context| context.rflags = bit, Status::BAD_ARGUMENT);
                refused(|context| context.rflags = RFLAGS | RFLAGS_FIXED | bit, Status::BAD_ARGUMENT);
            } else {
                accepted(|context| context.rflags = bit);
            }
        }
    }

    "ENTER_USER-010 ENTER_USER-015" fn an_fs_base_that_is_not_canonical_is_a_bad_argument() {
        for base in [1 << 47, 1 << 48, 1 << 62, 1 << 63, (u64::MAX << 47) - 1, u64::MAX >> 1] {
            refused(|context| context.fs_base = base, Status::BAD_ARGUMENT);
        }
        for base in [(1 << 47) - 1, u64::MAX << 47, u64::MAX] {
            accepted(|context| context.fs_base = base);
        }
    }

    "ENTER_USER-011 ENTER_USER-012 ENTER_USER-015" fn other_words_that_must_be_zero_are_bad_arguments() {
        for valid in [2, 3, 0x100, 1 << 31, u32::MAX] {
            refused(|context| context.xstate_valid = valid, Status::BAD_ARGUMENT);
        }
        for word in 0..9 {
            for value in [1, 1 << 63] {
                refused(|context| context.reserved[word] = value, Status::BAD_ARGUMENT);
            }
        }
        accepted(|context| (context.trap, context.access, context.vector, context.address) = (77, 77, 77, u64::MAX));
    }

    "ENTER_USER-013 ENTER_USER-015" fn an_area_that_the_processor_would_not_take_is_a_bad_argument() {
        for component in (0..64).map(|bit| 1 << bit) {
            if info().xstate_mask & component == 0 {
                with_area(|area| area[64] = component, Status::BAD_ARGUMENT);
            } else {
                with_area(|area| area[64] |= component, Status::SUCCESS);
            }
        }
        for word in 65..72 {
            for value in [1, 1 << 63] {
                with_area(|area| area[word] = value, Status::BAD_ARGUMENT);
            }
        }
        for bit in 0..32 {
            let status = if bit < 16 { Status::SUCCESS } else { Status::BAD_ARGUMENT };
            with_area(|area| area[3] = 0x1f80 | 1 << bit, status);
        }
        with_area(|area| area[3] |= 0xffff_ffff << 32, Status::SUCCESS); // the mask, which is not loaded
    }

    "ENTER_USER-014 ENTER_USER-015" fn a_context_whose_state_nobody_holds_is_a_bad_argument() {
        refused(|context| context.xstate_valid = 0, Status::BAD_ARGUMENT);
        // Nor is a copy of one that is held.
        let mut program = program();
        assert_eq!(program.run(), trap::SYSCALL);
        let mut copy = Box::new(UserContext { rip: TEXT, xstate_valid: 0, ..*program.context });
        assert_eq!(enter(program.space.root, &mut copy), Err(Status::BAD_ARGUMENT));
        // And the one that was held still is.
        program.calls(TEXT);
        let mut other = Box::new(UserContext { xstate_valid: 0, ..context(TEXT) });
        assert_eq!(enter(program.space.root, &mut other), Err(Status::BAD_ARGUMENT));
    }
}
