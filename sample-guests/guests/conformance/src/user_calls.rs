//! System calls that are made again and again, from the same place: an engine may find a cheaper way for those, and nothing
//! else may change by that.

#![expect(unsafe_code, reason = "code is memory that programs run")]

use crate::program::{CODE, DATA, HEAP, Page, Program, Space, TEXT, code, context, page, release, run, set};
use crate::{in_a_storm, phys, raw};
use alloc::boxed::Box;
use guest_sdk::hv_abi::mmu::{Entry, MmuUpdate};
use guest_sdk::hv_abi::pages::PageRun;
use guest_sdk::hv_abi::user::{GATE, RFLAGS_FIXED, UserContext, access, trap};
use guest_sdk::hv_abi::{Call, GuestPhys};

const TF: u64 = 1 << 8;
const DF: u64 = 1 << 10;

/// How often each is made.
const TIMES: u64 = 40;

/// Where the programs' calls are, and where they go on: behind the padding, and eight bytes on.
const SITE: u64 = TEXT + 64;
const BEHIND: u64 = SITE + 8;

/// The same program three times: with a call that can be made a jump, with one whose number is not beside it, and with the
/// gate. R15 is [`GATE`].
fn programs() -> [Program; 3] {
    let codes = [
        code!(".skip 64, 0x90", "nop", "mov eax, 39", "syscall", "int3"),
        code!(".skip 64, 0x90", "mov eax, 39", "nop", "syscall", "int3"),
        code!(".skip 64, 0x90", "mov eax, 39", "call r15", "int3"),
    ];
    codes.map(|code| {
        let mut program = Program::new(code);
        program.context.r8_to_r15[7] = GATE;
        program
    })
}

/// Loads every register and flag with something else in each round.
fn load(context: &mut UserContext, round: u64) {
    let value = |i: u64| (round << 8 | i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let UserContext { rax, rbx, rcx, rdx, rsi, rdi, rbp, r8_to_r15, .. } = context;
    let registers = [rax, rbx, rcx, rdx, rsi, rdi, rbp].into_iter().chain(&mut r8_to_r15[..7]);
    (1..).zip(registers).for_each(|(i, register)| *register = value(i));
    context.rsp = HEAP + 4096 - round % 64 * 8;
    context.rflags = RFLAGS_FIXED | value(20) & 0x8d5 | if round.is_multiple_of(3) { DF } else { 0 };
    context.fs_base = value(21) >> 17;
    context.rip = SITE;
}

/// A context as far as the three programs have it alike.
fn alike(context: &UserContext) -> UserContext {
    let mut alike = *context;
    alike.xstate = GuestPhys(0);
    alike.xstate_valid = 0; // as the engine likes it
    alike.rcx = 0;
    alike.r8_to_r15[3] = 0; // R11
    alike
}

/// A program that calls `TIMES` times by one call, and traps then by another.
fn caller() -> Program {
    Program::new(code!(
        ".skip 64, 0x90",
        "2: add rbx, 1",
        "mov [rsp - 8], rbx",
        "mov [rsp - 128], rbx",
        "mov eax, 39",
        "syscall",
        "add rdx, rax",
        "cmp [rsp - 8], rbx",
        "jne 3f",
        "cmp [rsp - 128], rbx",
        "jne 3f",
        "cmp rbx, rsi",
        "jne 2b",
        "mov eax, 0x10000",
        "syscall",
        "3: ud2"
    ))
}

guest_sdk::tests! {
    "USER-036" fn a_call_gives_the_same_however_often_it_is_made() {
        let mut programs = programs();
        for round in 0..TIMES {
            let mut before = UserContext::default();
            for (which, program) in programs.iter_mut().enumerate() {
                load(&mut program.context, round);
                before = *program.context;
                assert_eq!(program.run(), trap::SYSCALL, "{which}");
                assert_eq!((program.context.rax, program.context.rip), (39, BEHIND), "{which}");
            }
            let [jump, trapped, gate] = programs.each_ref().map(|program| &*program.context);
            assert_eq!(alike(jump), alike(trapped));
            assert_eq!(alike(jump), alike(gate));
            // What the processor does: RIP in RCX, flags in R11.
            assert_eq!((jump.rcx, trapped.rcx), (BEHIND, BEHIND));
            assert_eq!(jump.r8_to_r15[3], trapped.r8_to_r15[3]);
            let expected = UserContext { rax: 39, rip: BEHIND, trap: trap::SYSCALL, xstate_valid: 0, ..before };
            assert_eq!(alike(jump), alike(&expected));
            // And from there on: an exception, with every register as the context says.
            for program in &mut programs {
                (program.context.rax, program.context.rcx) = (round, !round);
                let before = *program.context;
                assert_eq!(program.run(), trap::EXCEPTION);
                assert_eq!((program.context.vector, program.context.rip), (3, BEHIND + 1));
                let xstate_valid = before.xstate_valid;
                let after = UserContext { rip: BEHIND, vector: 0, trap: trap::SYSCALL, xstate_valid, ..*program.context };
                assert_eq!(after, UserContext { vector: 0, ..before });
            }
        }
    }

    "USER-036 USER-004" fn a_call_in_a_loop_goes_on_with_its_results_and_its_red_zone() {
        let mut program = caller();
        program.context.rsi = TIMES;
        let mut results = 0;
        for round in 1..=TIMES {
            assert_eq!(program.run(), trap::SYSCALL, "{:#x?}", program.context);
            assert_eq!((program.context.rax, program.context.rbx, program.context.rdx), (39, round, results));
            program.context.rax = round << 40 | round;
            results += program.context.rax;
        }
        assert_eq!(program.run(), trap::SYSCALL);
        assert_eq!((program.context.rax, program.context.rdx), (0x10000, results));
    }

    "USER-036 USER-023" fn a_call_in_a_loop_is_interrupted_anywhere() {
        let (mut program, mut rounds) = (caller(), 0);
        program.context.rsi = u64::MAX;
        in_a_storm(|| {
            while rounds < 5_000 {
                match program.enter().unwrap() {
                    trap::SYSCALL => {
                        rounds += 1;
                        assert_eq!((program.context.rax, program.context.rbx), (39, rounds), "{:#x?}", program.context);
                        assert_eq!(program.context.rip, program.context.rcx);
                        program.context.rax = 1;
                    }
                    trap::INTERRUPTED => {
                        let rip = program.context.rip;
                        assert!((TEXT..TEXT + 128).contains(&rip), "{rip:#x}");
                        assert!(program.context.rdx == rounds || program.context.rdx + 1 == rounds);
                    }
                    other => panic!("{other} {:#x?}", program.context),
                }
            }
        });
        guest_sdk::println!("{rounds} calls");
    }

    "USER-037 USER-016" fn a_call_is_single_stepped_however_often_it_was_made() {
        let [mut program, ..] = programs();
        for round in 0..TIMES {
            load(&mut program.context, round);
            program.calls(SITE);
            // Step by step: the nop, the number, the call.
            program.context.rax = 0;
            program.context.rip = SITE;
            program.context.rflags |= TF;
            let before = *program.context;
            for (rip, rax) in [(SITE + 1, 0), (SITE + 6, 39)] {
                assert_eq!(program.run(), trap::EXCEPTION);
                assert_eq!((program.context.vector, program.context.rip, program.context.rax), (1, rip, rax));
                let same = UserContext { rip, rax, trap: trap::EXCEPTION, vector: 1, ..before };
                assert_eq!(*program.context, same);
            }
            assert_eq!(program.run(), trap::SYSCALL);
            assert_eq!((program.context.rip, program.context.rcx), (BEHIND, BEHIND));
            assert_eq!(program.context.r8_to_r15[3] & TF, TF);
            program.context.rflags &= !TF;
        }
    }

    "USER-038" fn a_call_is_made_again_from_its_instruction() {
        let [mut program, ..] = programs();
        for round in 0..TIMES {
            load(&mut program.context, round);
            program.calls(SITE);
            let before = *program.context;
            // As a kernel does that restarts calls, and for any other number.
            for number in [39, round, 0xffff] {
                (program.context.rax, program.context.rcx) = (number, 7);
                program.calls(BEHIND - 2);
                assert_eq!(*program.context, UserContext { rax: number, ..before });
            }
        }
    }

    "USER-038" fn a_program_jumps_to_the_instruction_itself() {
        let mut program = Program::new(code!(
            ".skip 64, 0x90", "nop", "mov eax, 39", "3: syscall", "int3", "lea rdx, [rip + 3b]", "mov eax, 41", "jmp rdx"
        ));
        (0..TIMES).for_each(|_| program.calls(SITE));
        for _ in 0..TIMES {
            program.calls(SITE);
            assert_eq!((program.context.rax, program.context.rip), (39, BEHIND));
            program.calls(BEHIND + 1);
            assert_eq!((program.context.rax, program.context.rip, program.context.rcx), (41, BEHIND, BEHIND));
        }
    }

    "USER-039" fn code_that_its_kernel_changes_is_run_as_it_is() {
        let (mut space, text) = (Space::new(), page());
        space.map(TEXT, GuestPhys(phys(text)), CODE);
        let mut context = Box::new(context(TEXT));
        for number in 0..10 {
            for (at, byte) in [0x90, 0xb8, number, 0, 0, 0, 0x0f, 0x05].into_iter().enumerate() {
                store(text, 64 + at, byte);
            }
            for _ in 0..TIMES {
                context.rip = SITE;
                assert_eq!(run(space.root, &mut context), trap::SYSCALL);
                assert_eq!((context.rax, context.rip), (number.into(), BEHIND));
            }
        }
        store(text, 64, 0xcc);
        context.rip = SITE;
        assert_eq!(run(space.root, &mut context), trap::EXCEPTION);
        assert_eq!((context.vector, context.rip), (3, SITE + 1));
    }

    "USER-039 MMU-008" fn code_that_is_written_through_another_address_is_run_as_it_is() {
        // Before the loop's calls and between them it writes its own number, through a page that it can write.
        let code = code!(
            ".skip 64, 0x90", "nop", "mov eax, 39", "syscall", "int3", "mov [rdi], ebx", "jmp 2f", ".skip 32, 0x90", "2: int3"
        );
        let mut program = Program::new(code);
        let text = text_of(&mut program);
        program.space.map(HEAP + 0x2000, text, DATA);
        program.context.rdi = HEAP + 0x2000 + SITE % 4096 + 2;
        for number in 1..10 {
            for _ in 0..TIMES {
                program.calls(SITE);
            }
            program.context.rbx = number;
            program.context.rip = BEHIND + 1;
            assert_eq!(program.run(), trap::EXCEPTION);
            program.calls(SITE);
            assert_eq!(program.context.rax, number);
        }
    }

    "USER-039" fn code_that_a_call_writes_is_run_as_it_is() {
        // `old` of an update is where the code is, and entries that are not present are any numbers.
        let code = |number: u64| u64::from_le_bytes([0x90, 0xb8, 0, 0, 0, 0, 0x0f, 0x05]) | number << 16;
        let [mut program, ..] = programs();
        let text = text_of(&mut program);
        let entry = program.space.entry(HEAP + 0x5000);
        set(entry, Entry::from_bits_retain(code(77)), 0).unwrap();
        let at = SITE - core::mem::offset_of!(MmuUpdate, old) as u64;
        let address = guest_sdk::boot::info().direct_map + text.0 + at % 4096;
        let update = core::ptr::with_exposed_provenance_mut::<MmuUpdate>(address as usize);
        // SAFETY: it is inside the page, which is leaked, aligned, and nobody else's while this runs.
        unsafe { update.write(MmuUpdate { entry, new: 0, old: code(39), ..MmuUpdate::default() }) };
        (0..TIMES).for_each(|_| program.calls(SITE));
        assert_eq!(program.context.rax, 39);
        // SAFETY: as above.
        crate::mmu_update(unsafe { core::slice::from_raw_parts_mut(update, 1) }, 0).unwrap();
        program.calls(SITE);
        assert_eq!(program.context.rax, 77);
    }

    "PAGES_REPORT-010 USER-039" fn code_on_a_page_that_was_free_meanwhile_is_run_as_it_is() {
        let [mut program, ..] = programs();
        let text = text_of(&mut program);
        for number in 40..44 {
            (0..TIMES).for_each(|_| program.calls(SITE));
            let run = PageRun { start: text, count: 1 };
            for call in [Call::PAGES_REPORT, Call::PAGES_CLAIM] {
                assert_eq!(raw(call, [phys(&run), 1]), Ok(1));
            }
            program.context.rax = 0;
            program.faults(SITE, 0, access::WRITE); // zeros are `add [rax], al`
            for (at, byte) in (SITE % 4096..).zip([0xb8, number, 0, 0, 0, 0x0f, 0x05]) {
                store_at(text, at, byte);
            }
            program.calls(SITE);
            assert_eq!(program.context.rax, number.into());
        }
    }

    "USER-039 MMU-002" fn code_whose_page_becomes_writable_is_run_as_it_is() {
        let [mut program, ..] = programs();
        let text = text_of(&mut program);
        for number in [39, 40] {
            (0..TIMES).for_each(|_| program.calls(SITE));
            assert_eq!(program.context.rax, number);
            program.space.map(TEXT, text, CODE.union(DATA).difference(Entry::NO_EXECUTE));
            (0..TIMES).for_each(|_| program.calls(SITE));
            store_at(text, SITE % 4096 + 2, 40);
            program.calls(SITE);
            assert_eq!(program.context.rax, 40);
            program.space.map(TEXT, text, CODE);
            program.calls(SITE);
        }
    }

    "USER-036 USER-029" fn two_address_spaces_with_one_page_of_code_call_alike() {
        let [mut program, ..] = programs();
        let text = text_of(&mut program);
        let mut other = Space::new();
        other.map(TEXT, text, CODE);
        let mut second = Box::new(context(SITE));
        for round in 0..TIMES {
            load(&mut program.context, round);
            program.calls(SITE);
            second.rip = SITE;
            second.rbx = round;
            assert_eq!(run(other.root, &mut second), trap::SYSCALL);
            assert_eq!((second.rax, second.rip, second.rbx, second.rcx), (39, BEHIND, round, BEHIND));
        }
        // One goes, and the other has the page still; then the page is something else.
        release(&mut program.context).unwrap();
        guest_sdk::hypercall::root_destroy(program.space.root).unwrap();
        second.rip = SITE;
        assert_eq!(run(other.root, &mut second), trap::SYSCALL);
        store_at(text, SITE % 4096 + 2, 99);
        second.rip = SITE;
        assert_eq!(run(other.root, &mut second), trap::SYSCALL);
        assert_eq!(second.rax, 99);
    }

    "USER-036 USER-008" fn faults_beside_a_call_are_told_where_they_are() {
        let code = code!(
            ".skip 64, 0x90", "mov [rdi], rax", "mov eax, 39", "syscall", "mov rdx, [rdi]", "mov eax, 40", "syscall", "div edi"
        );
        let mut program = Program::new(code);
        for round in 0..TIMES {
            program.context.rdi = HEAP;
            program.calls(SITE);
            assert_eq!((program.context.rax, program.context.rip), (39, SITE + 10));
            program.context.rdi = 8 * round;
            let rip = program.context.rip;
            program.faults(rip, 8 * round, access::READ);
            assert_eq!(program.context.rip, rip);
            program.context.rdi = HEAP;
            program.calls(rip);
            assert_eq!((program.context.rax, program.context.rip), (40, SITE + 20));
            program.context.rdi = 0;
            program.excepts(SITE + 20, 0, SITE + 20);
            program.faults(SITE, 0, access::WRITE);
        }
    }
}

/// Writes one byte of a page that a program runs.
fn store(page: &mut Page, at: usize, byte: u8) {
    let shift = at % 8 * 8;
    let word = &mut page.0[at / 8];
    *word = core::hint::black_box(*word & !(0xff << shift) | u64::from(byte) << shift);
}

/// P of the page at [`TEXT`].
fn text_of(program: &mut Program) -> GuestPhys {
    let entry = crate::program::word(program.space.entry(TEXT));
    GuestPhys(entry & 0x000f_ffff_ffff_f000)
}

/// Writes one byte of guest memory.
fn store_at(page: GuestPhys, at: u64, byte: u8) {
    let address = guest_sdk::boot::info().direct_map + page.0 + at;
    // SAFETY: the page is leaked, and no reference to it is left; programs read it only.
    unsafe { core::ptr::with_exposed_provenance_mut::<u8>(address as usize).write_volatile(byte) };
}
