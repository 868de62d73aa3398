//! User mode: registers, system calls and exceptions.

use crate::program::{HEAP, Program, TEXT, code, context, run};
use crate::{in_a_storm, probe};
use alloc::boxed::Box;
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use guest_sdk::events::{Channel, vcpu_page, without_upcalls};
use guest_sdk::hv_abi::CpuFeatures;
use guest_sdk::hv_abi::address::VCPU_PAGES;
use guest_sdk::hv_abi::user::{GATE, RFLAGS, RFLAGS_FIXED, UserContext, trap};
use guest_sdk::hv_abi::vcpu::upcall;
use guest_sdk::hypercall::timer_set;
use guest_sdk::time::{Duration, Instant};

/// Flags by their bits.
const CF: u64 = 1;
const TF: u64 = 1 << 8;
const DF: u64 = 1 << 10;
const AC: u64 = 1 << 18;
const ID: u64 = 1 << 21;

/// Every general register with a value of its own, all over 64 bits.
fn fill(context: &mut UserContext) {
    let value = |i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 << 63;
    let UserContext { rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8_to_r15, .. } = context;
    let registers = [rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp].into_iter().chain(r8_to_r15);
    (1..).zip(registers).for_each(|(i, register)| *register = value(i));
}

/// The general registers, without RCX and R11 if a system call may have them.
fn registers(context: &UserContext, all: bool) -> [u64; 16] {
    let UserContext { rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8_to_r15, .. } = *context;
    let [r8, r9, r10, r11, r12, r13, r14, r15] = r8_to_r15;
    let (rcx, r11) = if all { (rcx, r11) } else { (0, 0) };
    [rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8, r9, r10, r11, r12, r13, r14, r15]
}

/// A program that counts in RAX for ever.
fn counter() -> Program {
    Program::new(code!("2: add rax, 1", "jmp 2b"))
}

static EVENTS: AtomicU32 = AtomicU32::new(0);

fn count_timer_events() {
    Channel::TIMER.on_event(|_| {
        EVENTS.fetch_add(1, SeqCst);
    });
}

guest_sdk::tests! {
    "USER-006 ENTER_USER-003" fn a_program_runs_and_its_system_calls_come_back() {
        let mut program = Program::new(code!("mov eax, 7", "syscall", "mov eax, 8", "syscall", "int3"));
        assert_eq!(program.run(), trap::SYSCALL);
        assert_eq!((program.context.rax, program.context.rip, program.context.trap), (7, TEXT + 7, trap::SYSCALL));
        assert_eq!(program.run(), trap::SYSCALL);
        assert_eq!((program.context.rax, program.context.rip), (8, TEXT + 14));
        assert_eq!(program.run(), trap::EXCEPTION);
        assert_eq!((program.context.vector, program.context.trap), (3, trap::EXCEPTION));
    }

    "USER-001 USER-006 USER-005" fn registers_go_in_and_come_out() {
        let mut program = Program::new(code!("syscall", "ud2"));
        fill(&mut program.context);
        let before = registers(&program.context, false);
        program.calls(TEXT);
        assert_eq!(registers(&program.context, false), before, "in {before:x?}");
        fill(&mut program.context);
        let before = registers(&program.context, true);
        program.excepts(TEXT + 2, 6, TEXT + 2);
        assert_eq!(registers(&program.context, true), before);
        // Each register, as the program sees it and changes it.
        let mut program = Program::new(code!(
            "not rax", "not rbx", "not rcx", "not rdx", "not rsi", "not rdi", "not rbp", "not rsp", "not r8", "not r9",
            "not r10", "not r11", "not r12", "not r13", "not r14", "not r15", "ud2"
        ));
        fill(&mut program.context);
        let before = registers(&program.context, true);
        assert_eq!(program.run(), trap::EXCEPTION);
        assert_eq!(registers(&program.context, true), before.map(|register| !register));
    }

    "USER-007" fn all_numbers_of_system_calls_come_through() {
        let mut program = Program::new(code!("syscall"));
        for number in [0, 1, 60, 231, 335, 336, 1023, 0x4000_0000, 0x4000_0208, 0x7fff_ffff, 0xffff_ffff, 1 << 32, 1 << 63, u64::MAX] {
            program.context.rax = number;
            program.context.rdi = 1;
            program.calls(TEXT);
            assert_eq!((program.context.rax, program.context.rdi, program.context.rip), (number, 1, TEXT + 2), "{number:#x}");
        }
    }

    "USER-002" fn flags_are_the_programs() {
        let mut program = Program::new(code!("syscall", "ud2", "mov rsp, rdi", "pushfq", "pop rax", "syscall", "not rax"));
        program.context.rdi = HEAP + 2048;
        for bit in (0..22).map(|bit| 1_u64 << bit).filter(|bit| RFLAGS & bit != 0 && bit & (TF | AC) == 0) {
            for given in [bit, bit | RFLAGS_FIXED] {
                program.context.rflags = given;
                program.calls(TEXT);
                assert_eq!(program.context.rflags, bit | RFLAGS_FIXED, "SYSCALL");
                program.context.rflags = given;
                program.excepts(TEXT + 2, 6, TEXT + 2);
                assert_eq!(program.context.rflags & !(1 << 16), bit | RFLAGS_FIXED, "an exception");
                program.context.rflags = given;
                program.calls(TEXT + 4);
                assert_eq!(program.context.rax & RFLAGS, bit, "as the program sees it");
            }
        }
        program.context.rflags = AC | ID | DF | CF;
        program.excepts(TEXT + 2, 6, TEXT + 2);
        assert_eq!(program.context.rflags, AC | ID | DF | CF | RFLAGS_FIXED);
    }

    "USER-002" fn a_program_changes_its_flags() {
        let mut program = Program::new(code!("push rdi", "popfq", "syscall", "ud2"));
        for flags in [0, RFLAGS & !TF, DF | CF, AC | ID, RFLAGS & !(TF | AC | DF)] {
            program.context.rdi = flags;
            program.calls(TEXT);
            assert_eq!(program.context.rflags, flags | RFLAGS_FIXED, "{flags:#x}");
            program.context.rsp = HEAP + 4096;
        }
        // What is not the program's comes to nothing: IOPL, NT, RF, VIF, VIP.
        program.context.rdi = 0x1d_7000 & !AC;
        program.calls(TEXT);
        assert_eq!(program.context.rflags, RFLAGS_FIXED);
    }

    "USER-003" fn fs_base_is_the_programs() {
        let mut program = Program::new(code!("mov rax, fs:[8]", "syscall", "wrfsbase rdi", "mov rax, fs:[8]", "syscall"));
        program.data.0[1] = 11;
        program.data.0[9] = 99;
        program.context.fs_base = HEAP;
        program.calls(TEXT);
        assert_eq!((program.context.rax, program.context.fs_base), (11, HEAP));
        program.context.fs_base = HEAP + 64;
        program.calls(TEXT);
        assert_eq!((program.context.rax, program.context.fs_base), (99, HEAP + 64));
        for base in [0, 1, (1 << 47) - 1, u64::MAX << 47, u64::MAX] {
            let mut other = Program::new(code!("syscall"));
            other.context.fs_base = base;
            other.calls(TEXT);
            assert_eq!(other.context.fs_base, base);
        }
        if guest_sdk::boot::info().cpu_features.contains(CpuFeatures::FSGSBASE) {
            program.context.rdi = HEAP;
            let second = program.context.rip;
            program.calls(second);
            assert_eq!((program.context.rax, program.context.fs_base), (11, HEAP));
        }
    }

    "USER-004" fn traps_write_no_memory_of_the_program() {
        let mut program = Program::new(code!("syscall", "ud2", "mov rax, [rdi]", "2: sub rax, 1", "jnz 2b", "syscall"));
        program.data.0.fill(0x5a5a);
        program.context.rsp = HEAP + 2048;
        program.calls(TEXT);
        program.excepts(TEXT + 2, 6, TEXT + 2);
        program.context.rdi = 8;
        program.faults(TEXT + 4, 8, 0);
        program.context.rdi = HEAP;
        program.data.0[0] = 3_000_000;
        in_a_storm(|| program.calls(TEXT + 4));
        program.data.0[0] = 0x5a5a;
        assert!(core::hint::black_box(&program.data.0).iter().all(|word| *word == 0x5a5a));
    }

    "USER-005" fn rsp_may_have_any_value() {
        let mut program = Program::new(code!("syscall", "ud2", "mov rax, [rdi]", "2: sub rax, 1", "jnz 2b", "syscall"));
        program.context.rdi = HEAP;
        for rsp in [0, 1, HEAP + 3, TEXT, 1 << 46, 1 << 47, 1 << 63, u64::MAX] {
            program.context.rsp = rsp;
            program.calls(TEXT);
            program.excepts(TEXT + 2, 6, TEXT + 2);
            program.data.0[0] = 200_000;
            in_a_storm(|| program.calls(TEXT + 4));
            assert_eq!(program.context.rsp, rsp);
        }
    }

    "USER-012 USER-013 USER-014" fn instructions_that_except_tell_their_vector() {
        let instructions: [(&[u8], u32, u64); 18] = [
            (code!("ud2"), 6, 0),
            (code!("xor edx, edx", "xor ecx, ecx", "div ecx"), 0, 4),
            (code!("hlt"), 13, 0),
            (code!("cli"), 13, 0),
            (code!("sti"), 13, 0),
            (code!("in al, 0x80"), 13, 0),
            (code!("out 0x80, al"), 13, 0),
            (code!("mov rax, cr3"), 13, 0),
            (code!("rdmsr"), 13, 0),
            (code!("wbinvd"), 13, 0),
            (code!("lidt [rsp - 64]"), 13, 0),
            (code!("swapgs"), 13, 0),
            (code!("int3"), 3, 1),
            (code!("int 0x80"), 13, 0),
            (code!("int 0"), 13, 0),
            (code!("int 0x20"), 13, 0),
            (code!("int 0xff"), 13, 0),
            (code!("mov eax, 0x33", "mov ss, ax"), 13, 5),
        ];
        for (code, vector, at) in instructions {
            let mut program = Program::new(code);
            program.context.rbx = u64::MAX;
            program.context.rflags = CF;
            program.excepts(TEXT, vector, TEXT + at);
            assert_eq!(program.context.rbx, u64::MAX, "{code:x?}");
        }
        let mut program = Program::new(code!("int 0x80"));
        program.context.rax = 20; // getpid, for those who answer
        program.excepts(TEXT, 13, TEXT);
        assert_eq!(program.context.rax & 0xffff_ffff, 20);
    }

    "USER-015" fn non_canonical_addresses_are_vector_13_or_12() {
        let mut program = Program::new(code!("mov rax, [rdi]", "mov [rdi], rax", "mov rax, [rsp]", "push rax"));
        for address in [(1 << 47) + 8, 1 << 62, (1 << 63) - 8, 0xffff_7fff_ffff_fff0] {
            program.context.rdi = address;
            program.excepts(TEXT, 13, TEXT);
            program.excepts(TEXT + 3, 13, TEXT + 3);
            program.context.rsp = address;
            program.excepts(TEXT + 6, 12, TEXT + 6);
            program.excepts(TEXT + 10, 12, TEXT + 10);
        }
    }

    "USER-016 USER-002" fn tf_steps_through_one_instruction() {
        let mut program = Program::new(code!("mov eax, 1", "nop", "add eax, 1", "syscall", "nop"));
        program.context.rflags = TF;
        for (rip, rax) in [(5, 1), (6, 1), (9, 2)] {
            assert_eq!(program.run(), trap::EXCEPTION);
            let UserContext { vector, rip: at, rax: value, rflags, .. } = *program.context;
            assert_eq!((vector, at, value, rflags & TF), (1, TEXT + rip, rax, TF));
        }
        program.context.rflags = 0;
        assert_eq!(program.run(), trap::SYSCALL);
        assert_eq!(program.context.rip, TEXT + 11);
    }

    "USER-017" fn a_misaligned_access_with_ac_is_vector_17() {
        let mut program = Program::new(code!("mov rax, [rdi]", "syscall"));
        program.context.rdi = HEAP + 1;
        program.calls(TEXT);
        program.context.rflags = AC;
        program.excepts(TEXT, 17, TEXT);
        assert_eq!(program.context.rflags & AC, AC);
    }

    "USER-018" fn floating_point_errors_are_vectors_16_and_19() {
        let mut program = Program::new(code!("fninit", "fldcw [rdi]", "fldz", "fld1", "fdivrp", "fwait", "syscall"));
        program.data.0[0] = 0x37b; // division by zero unmasked
        program.context.rdi = HEAP;
        assert_eq!((program.run(), program.context.vector), (trap::EXCEPTION, 16));
        let mut program = Program::new(code!("ldmxcsr [rdi]", "xorps xmm0, xmm0", "cvtsi2ss xmm1, rdi", "divss xmm1, xmm0"));
        program.data.0[0] = 0x1d80;
        program.context.rdi = HEAP;
        assert_eq!((program.run(), program.context.vector), (trap::EXCEPTION, 19));
    }

    "USER-019" fn a_far_jump_is_an_exception() {
        let jump = code!("jmp fword ptr [rdi]");
        let mut program = Program::new(jump);
        program.context.rdi = HEAP;
        for selector in [0x23_u64, 0, 0x10, 0x2b, 0xffff] {
            program.data.0[0] = (TEXT + 2) | (selector << 32); // to the breakpoints behind it
            program.context.rip = TEXT;
            assert_eq!((program.run(), program.context.vector), (trap::EXCEPTION, 13), "{selector:#x}");
        }
        // An endless loop there is interrupted, and no more than that.
        let mut program = Program::new(code!("jmp fword ptr [rdi]", "2: jmp 2b"));
        program.context.rdi = HEAP;
        program.data.0[0] = (TEXT + 2) | (0x23 << 32);
        count_timer_events();
        let trap = guest_sdk::events::without_upcalls(|| {
            timer_set((Instant::now() + Duration::from_millis(5)).as_nanos());
            program.enter().unwrap()
        });
        assert!(trap == trap::INTERRUPTED || (trap == trap::EXCEPTION && program.context.vector == 13), "{trap}");
    }

    "USER-020 USER-025" fn sysenter_is_an_exception_or_kills() {
        let mut program = Program::new(code!("sysenter"));
        program.context.rbp = HEAP;
        let trap = program.run();
        assert!(trap == trap::EXCEPTION || trap == trap::KILLED, "{trap} {:#x?}", program.context);
        Program::new(code!("syscall")).calls(TEXT);
    }

    "USER-021" fn with_an_event_pending_it_is_interrupted_at_once() {
        let mut program = counter();
        let channel = Channel::allocate().unwrap();
        channel.on_event(|_| {});
        for _ in 0..100 {
            without_upcalls(|| {
                channel.send().unwrap();
                assert_eq!(program.enter(), Ok(trap::INTERRUPTED));
            });
            assert_eq!((program.context.rip, program.context.rax, program.context.trap), (TEXT, 0, trap::INTERRUPTED));
        }
    }

    "USER-021 USER-024" fn an_upcall_that_is_pending_is_made_before_the_entry_returns() {
        let mut program = counter();
        probe::install(probe::nothing);
        for i in 1..100 {
            vcpu_page().upcall.fetch_or(upcall::PENDING, SeqCst);
            assert_eq!(program.enter(), Ok(trap::INTERRUPTED));
            assert_eq!((probe::count(), program.context.rax), (i, 0));
        }
    }

    "USER-022 USER-023 USER-024" fn a_timer_interrupts_an_endless_loop() {
        let mut program = counter();
        fill(&mut program.context);
        program.context.rax = 0;
        let (mut before, mut interruptions) = (registers(&program.context, true), 0);
        count_timer_events();
        while interruptions < 20 {
            let events = EVENTS.load(SeqCst);
            timer_set((Instant::now() + Duration::from_millis(10)).as_nanos());
            while EVENTS.load(SeqCst) == events {
                assert_eq!(program.enter(), Ok(trap::INTERRUPTED));
                assert!((TEXT..TEXT + 6).contains(&program.context.rip), "{:#x}", program.context.rip);
                let after = registers(&program.context, true);
                assert!(after[0] >= before[0]);
                before[0] = after[0];
                assert_eq!(after, before);
                interruptions += 1;
            }
        }
        assert!(before[0] > 0, "it got nowhere");
    }

    "USER-023 USER-028 USER-029" fn what_is_interrupted_goes_on_as_if_nothing_had_been() {
        // A sum of a million numbers, in general registers, in XMM registers and on the x87 stack, in two programs at once.
        let sum = code!(
            "fninit", "fldz", "pxor xmm0, xmm0", "mov rcx, 1000000", "xor eax, eax",
            "2: add rax, rcx", "movq xmm1, rcx", "paddq xmm0, xmm1", "mov [rdi], rcx", "fild qword ptr [rdi]", "faddp",
            "sub rcx, 1", "jnz 2b", "movq rdx, xmm0", "fistp qword ptr [rdi]", "mov rbx, [rdi]", "syscall"
        );
        let mut programs = [Program::new(sum), Program::new(sum)];
        programs[1].context.rdi = HEAP + 8;
        programs[0].context.rdi = HEAP;
        in_a_storm(|| {
            let mut done = [false; 2];
            while done != [true; 2] {
                for (program, done) in programs.iter_mut().zip(&mut done).filter(|(_, done)| !**done) {
                    *done = program.enter() == Ok(trap::SYSCALL);
                }
            }
        });
        const SUM: u64 = 1_000_000 * 1_000_001 / 2;
        for program in &programs {
            let UserContext { rax, rdx, rbx, .. } = *program.context;
            assert_eq!([rax, rdx, rbx], [SUM; 3]);
        }
    }

    "USER-025 USER-026" fn a_program_that_writes_over_the_hypervisors_pages_ends_itself_at_the_most() {
        let fill = code!("mov rdi, rsi", "rep stosb", "syscall", "jmp rsi");
        // The vCPU's pages, all at once and one by one; the hypercall page; and what is beside them.
        let mut ranges: alloc::vec::Vec<_> = (0..32).map(|page| (VCPU_PAGES + page * 4096, 4096)).collect();
        ranges.extend([(VCPU_PAGES, 0x2000), (VCPU_PAGES + 0x2000, 0x1e000), (0x7f80_0000_0000, 4096), (0x7f80_0010_0000, 4096)]);
        let mut witness = Program::new(code!("syscall"));
        for (start, length) in ranges {
            for byte in [0, 1, 2, 0xff] {
                let mut program = Program::new(fill);
                (program.context.rsi, program.context.rcx, program.context.rax) = (start, length, byte);
                let trap = program.enter().unwrap();
                assert!((trap::SYSCALL..=trap::KILLED).contains(&trap), "{trap}");
                if trap != trap::KILLED {
                    program.context.rip = TEXT + fill.len() as u64 - 2;
                    let _ = program.enter(); // runs what is there
                }
                // A new context under the same root, and another program.
                let mut other = Box::new(context(TEXT + 5));
                assert_eq!(run(program.space.root, &mut other), trap::SYSCALL);
                witness.calls(TEXT);
                guest_sdk::hypercall::root_destroy(program.space.root).unwrap();
            }
        }
    }

    "USER-025" fn entries_of_the_hypercall_page_are_not_for_programs() {
        for offset in (0..0x200).step_by(8) {
            let mut program = Program::new(code!("mov edi, 3", "xor esi, esi", "call rax", "syscall"));
            program.context.rax = 0x7f80_0000_0000 + offset;
            let channel = Channel::TIMER;
            channel.on_event(|_| {});
            // Masked, so that the timer is not handled before the entry, which then nobody would interrupt.
            let trap = guest_sdk::events::without_upcalls(|| {
                timer_set((Instant::now() + Duration::from_millis(2)).as_nanos());
                program.enter().unwrap()
            });
            assert!((trap::SYSCALL..=trap::KILLED).contains(&trap), "{trap}");
            guest_sdk::hypercall::root_destroy(program.space.root).unwrap();
        }
        Program::new(code!("syscall")).calls(TEXT);
    }

    "USER-034" fn a_call_of_the_gate_is_a_system_call() {
        let mut program = Program::new(code!("call rax", "call rax", "syscall"));
        program.context.rax = GATE;
        program.context.rcx = 11;
        program.context.rflags = 0xad7; // carry, parity, adjust, zero, sign, direction, overflow; and the two fixed
        program.context.r8_to_r15 = [1, 2, 3, 4, 5, 6, 7, 8];
        let before = *program.context;
        for rip in [TEXT + 2, TEXT + 4] {
            assert_eq!(program.run(), trap::SYSCALL);
            let xstate_valid = program.context.xstate_valid; // as the engine likes it
            let expected = UserContext { rip, trap: trap::SYSCALL, xstate_valid, ..before };
            assert_eq!(*program.context, expected);
        }
        program.calls(TEXT + 4);
    }

    "USER-034 USER-023" fn a_program_is_never_interrupted_at_the_gate() {
        // A first call takes longest: the host may have to look for the gate's page.
        for _ in 0..200 {
            let mut program = Program::new(code!("2: call rax", "jmp 2b"));
            program.context.rax = GATE;
            in_a_storm(|| {
                let mut calls = 0;
                while calls < 20 {
                    match program.enter() {
                        Ok(trap::SYSCALL) => calls += 1,
                        trap => assert_eq!(trap, Ok(trap::INTERRUPTED)),
                    }
                    let rip = program.context.rip;
                    assert!((TEXT..TEXT + 4).contains(&rip), "{rip:#x} after {calls} calls");
                }
            });
            guest_sdk::hypercall::root_destroy(program.space.root).unwrap();
        }
    }

    "USER-035" fn a_program_goes_on_from_the_gate_as_its_context_says() {
        // Two programs of one root, and one of another, each with a pattern of its own in XMM5.
        let code = code!("movq xmm5, rdi", "2: call rax", "movq rbx, xmm5", "jmp 2b");
        let (mut first, mut other) = (Program::new(code), Program::new(code));
        let mut second = Box::new(context(TEXT));
        for (context, pattern) in [(&mut first.context, 0x1111), (&mut second, 0x2222), (&mut other.context, 0x3333)] {
            (context.rax, context.rdi) = (GATE, pattern);
        }
        for round in 0..20 {
            assert_eq!(first.run(), trap::SYSCALL);
            assert_eq!(run(first.space.root, &mut second), trap::SYSCALL);
            assert_eq!(other.run(), trap::SYSCALL);
            if round > 0 {
                assert_eq!([first.context.rbx, second.rbx, other.context.rbx], [0x1111, 0x2222, 0x3333]);
            }
            first.context.r8_to_r15[3] = round; // a register that changes at the gate
        }
        assert_eq!(first.context.r8_to_r15[3], 19);
    }
}
