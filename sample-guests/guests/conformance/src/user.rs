//! User mode: programs of a few instructions, and how they trap.

use crate::program::{HEAP, Program, TEXT};
use guest_sdk::hv_abi::user::{access, trap};

/// `mov eax, 7; syscall; mov eax, 8; syscall`, then the next byte.
const TWO_CALLS: [u8; 14] = [0xb8, 7, 0, 0, 0, 0x0f, 5, 0xb8, 8, 0, 0, 0, 0x0f, 5];

guest_sdk::tests! {
    "ENTER_USER-001" fn a_program_runs_and_its_system_calls_come_back() {
        let mut program = Program::new(&TWO_CALLS);
        program.context.rdi = 0x1234;
        assert_eq!(program.run(), trap::SYSCALL);
        assert_eq!((program.context.rax, program.context.rip), (7, TEXT + 7));
        assert_eq!((program.context.rdi, program.context.trap), (0x1234, trap::SYSCALL));
        program.context.rax = 0;
        assert_eq!(program.run(), trap::SYSCALL);
        assert_eq!((program.context.rax, program.context.rip), (8, TEXT + 14));
        assert_eq!(program.run(), trap::EXCEPTION);
        assert_eq!((program.context.vector, program.context.rip), (3, TEXT + 15));
    }

    "ENTER_USER-002" fn a_page_fault_tells_address_and_access() {
        // mov [rdi], rax; mov rax, [rdi]; jmp rdi
        let mut program = Program::new(&[0x48, 0x89, 0x07, 0x48, 0x8b, 0x07, 0xff, 0xe7]);
        program.context.rdi = HEAP;
        program.context.rax = 99;
        assert_eq!(program.run(), trap::PAGE_FAULT, "data is not executed");
        assert_eq!(program.data.0[0], 99);
        assert_eq!((program.context.address, program.context.access), (HEAP, access::EXECUTE));
        program.context.rip = TEXT;
        program.context.rdi = HEAP + 0x1_0008;
        assert_eq!(program.run(), trap::PAGE_FAULT);
        assert_eq!((program.context.address, program.context.access), (HEAP + 0x1_0008, access::WRITE));
        assert_eq!(program.context.rip, TEXT);
        program.context.rip = TEXT + 3;
        assert_eq!(program.run(), trap::PAGE_FAULT);
        assert_eq!((program.context.address, program.context.access), (HEAP + 0x1_0008, access::READ));
    }
}

guest_sdk::tests! {
    "X-001" fn time_of_a_system_call() {
        // 1: syscall; jmp 1b
        let mut program = Program::new(&[0x0f, 5, 0xeb, 0xfc]);
        for _ in 0..1000 { program.run(); }
        let mut best = u64::MAX;
        for _ in 0..20 {
            let start = guest_sdk::time::Instant::now();
            for _ in 0..2000 { program.run(); }
            best = best.min(start.elapsed().as_nanos() as u64 / 2000);
        }
        // 1: call [rdi]; jmp 1b
        let mut program = Program::new(&[0xff, 0xd7, 0xeb, 0xfc]);
        program.context.rdi = guest_sdk::hv_abi::user::GATE;
        program.context.r8_to_r15 = [1, 2, 3, 4, 5, 6, 7, 8];
        program.context.rflags = 0xad7;
        for _ in 0..1000 {
            assert_eq!(program.run(), trap::SYSCALL);
            assert_eq!(program.context.rip, TEXT + 2);
            assert_eq!(program.context.rflags, 0xad7);
            assert_eq!(program.context.r8_to_r15, [1, 2, 3, 4, 5, 6, 7, 8]);
        }
        let mut gate = u64::MAX;
        for _ in 0..20 {
            let start = guest_sdk::time::Instant::now();
            for _ in 0..2000 { program.run(); }
            gate = gate.min(start.elapsed().as_nanos() as u64 / 2000);
        }
        panic!("trap {best} ns, gate {gate} ns");
    }
}
