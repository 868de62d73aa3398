//! Page faults of programs: what is told of them, and that there are no others.

use crate::mmu_update;
use crate::program::{CODE, CONSTANT, DATA, HEAP, Page, Program, Space, TABLE, TEXT, code, page, run, span};
use crate::{phys, probe};
use alloc::vec::Vec;
use guest_sdk::boot::info;
use guest_sdk::hv_abi::GuestPhys;
use guest_sdk::hv_abi::address::{CLOCK_PAGE, HYPERCALL_PAGE, SLOT_255, VCPU_PAGES};
use guest_sdk::hv_abi::mmu::{Entry, MmuUpdate};
use guest_sdk::hv_abi::user::access::{EXECUTE, READ, WRITE};
use guest_sdk::hv_abi::user::{LOWEST_USER, trap};

/// A program with a load, a store, a load that stores and a jump, and where each is.
fn accesses() -> (Program, [(u64, u32); 4]) {
    let code = code!(
        "mov rax, [rdi]",
        "syscall",
        "mov [rdi], rax",
        "syscall",
        "lock add qword ptr [rdi], 1",
        "syscall",
        "jmp rdi"
    );
    (Program::new(code), [(TEXT, READ), (TEXT + 5, WRITE), (TEXT + 10, WRITE), (TEXT + 17, EXECUTE)])
}

guest_sdk::tests! {
    "USER-008 USER-009" fn a_page_fault_tells_address_and_access() {
        let (mut program, all) = accesses();
        for address in [LOWEST_USER, HEAP + 0x1_0008, HEAP + 0x1fff, SLOT_255 - 8] {
            for (rip, access) in all {
                program.context.rdi = address;
                program.context.rax = 0x1234;
                program.faults(rip, address, access);
                let at = if access == EXECUTE { address } else { rip };
                assert_eq!((program.context.rip, program.context.rax), (at, 0x1234));
            }
        }
        program.context.rdi = HEAP;
        program.faults(TEXT + 17, HEAP, EXECUTE); // data
        program.context.rdi = TEXT;
        program.faults(TEXT + 5, TEXT, WRITE); // code
    }

    "USER-009 USER-010" fn an_instruction_is_done_once_the_tables_allow_it() {
        let (mut program, _) = accesses();
        let at = HEAP + 0x5000;
        program.context.rdi = at;
        program.faults(TEXT + 10, at, WRITE);
        let data = page();
        data.0[0] = 41;
        let to = GuestPhys(phys(data));
        program.space.map(at, to, CONSTANT);
        assert_eq!(program.run(), trap::PAGE_FAULT, "not writable");
        assert_eq!(crate::program::word(to), 41);
        program.space.map(at, to, DATA);
        assert_eq!(program.run(), trap::SYSCALL);
        assert_eq!(crate::program::word(to), 42);
    }

    "USER-008 USER-009" fn an_access_across_two_pages_faults_at_the_second() {
        let (mut program, _) = accesses();
        program.context.rdi = HEAP + 4093;
        program.faults(TEXT, HEAP + 4096, READ);
        program.context.rax = u64::MAX;
        program.faults(TEXT + 5, HEAP + 4096, WRITE);
        assert_eq!(program.data.0[511], 0, "half of it was stored");
        let second = page();
        program.space.map(HEAP + 4096, GuestPhys(phys(second)), DATA);
        assert_eq!(program.run(), trap::SYSCALL);
        assert_eq!((program.data.0[511], second.0[0]), (0xff_ffff << 40, 0xff_ffff_ffff));
    }

    "USER-011" fn what_is_not_the_programs_faults() {
        let (mut program, all) = accesses();
        let image = probe::count as fn() -> u32 as usize as u64;
        let upper = [0xffff_8000_0000_0000, 0xffff_ffff_8000_0000, 0xffff_ffff_ff60_1000, u64::MAX - 7];
        let kernel = [image, info().direct_map, info().direct_map + program.space.root.0];
        for address in [0, 8, 0xfff, 0x1000, 0xfff8].into_iter().chain(kernel) {
            for (rip, access) in all {
                program.context.rdi = address;
                program.faults(rip, address, access);
            }
        }
        for address in upper {
            for (rip, access) in &all[..3] {
                program.context.rdi = address;
                program.faults(*rip, address, *access);
            }
        }
    }

    "USER-011" fn the_hosts_page_of_old_system_calls_is_not_the_guests() {
        let mut program = Program::new(code!("mov rax, [rdi]", "syscall", "jmp rbx"));
        for call in [0_u64, 0x400, 0x800, 0xc00, 0x10, 0xfff] {
            for argument in [0, HEAP, 0x1000_0000, u64::MAX] {
                // An access before it, that is allowed and that the engine has to see to.
                let address = 0xffff_ffff_ff60_0000 + call;
                (program.context.rdi, program.context.rsi) = (argument, argument);
                (program.context.rbx, program.context.rsp) = (address, HEAP + 4096 - 16);
                program.data.0[510] = TEXT + 3; // where a call would return to
                program.faults(TEXT + 5, address, EXECUTE);
                assert_eq!((program.context.rip, program.context.rsp), (address, HEAP + 4096 - 16));
            }
        }
    }

    "USER-010" fn ten_thousand_pages_here_and_there_are_all_found() {
        const STEP: u64 = 0x8_1000; // 4 pages for each of 2,500 tables
        const COUNT: u64 = 10_000;
        const START: u64 = 0x10_0000_0000;
        let walk = code!(
            "2: mov rax, [rdi]", "add rbx, rax", "lock add qword ptr [rdi + 8], 1", "add rdi, rsi", "sub rcx, 1", "jnz 2b",
            "syscall"
        );
        let mut program = Program::new(walk);
        let pages: Vec<&'static mut Page> = (0..64).map(|i| { let page = page(); page.0[0] = i; page }).collect();
        let mut updates: Vec<MmuUpdate> = Vec::new();
        for i in 0..COUNT {
            let entry = program.space.entry(START + i * STEP);
            let new = Entry::new(GuestPhys(phys(&*pages[i as usize % 64])), DATA).bits();
            updates.push(MmuUpdate { entry, new, ..MmuUpdate::default() });
        }
        for batch in updates.chunks_mut(512) {
            mmu_update(batch, 0).unwrap();
            assert!(batch.iter().all(|update| update.status.is_success() && update.old == 0));
        }
        let expected: u64 = (0..COUNT).map(|i| i % 64).sum();
        for round in 1..=2 {
            (program.context.rbx, program.context.rdi) = (0, START);
            (program.context.rsi, program.context.rcx) = (STEP, COUNT);
            program.calls(TEXT);
            assert_eq!(program.context.rbx, expected);
            let stored: u64 = core::hint::black_box(&pages).iter().map(|page| page.0[1]).sum();
            assert_eq!(stored, round * COUNT);
        }
    }

    "USER-010 USER-029 USER-028" fn two_hundred_roots_keep_what_they_have() {
        // Each counts in a general register, an XMM register and memory.
        let count = code!(
            "add rax, 1", "movq xmm1, rsi", "paddq xmm0, xmm1", "movq rbx, xmm0", "add [rdi], rsi", "syscall"
        );
        let mut programs: Vec<Program> = (0..200).map(|i| {
            let mut program = Program::new(count);
            (program.context.rdi, program.context.rsi) = (HEAP, i);
            program
        }).collect();
        for round in 1..=3 {
            for (i, program) in (0..).zip(&mut programs) {
                program.calls(TEXT);
                let expected = (round, round * i, round * i);
                assert_eq!((program.context.rax, program.context.rbx, program.data.0[0]), expected, "root {i}");
            }
        }
    }

    "USER-033" fn the_clock_page_is_read_and_not_written() {
        let (mut program, all) = accesses();
        let clock = VCPU_PAGES + CLOCK_PAGE;
        program.context.rdi = clock + 24; // the scale, which does not change
        program.calls(TEXT);
        assert_ne!(program.context.rax, 0);
        for offset in [0, 8, 24, 4088] {
            program.context.rdi = clock + offset;
            program.faults(all[1].0, clock + offset, WRITE);
            program.faults(all[2].0, clock + offset, WRITE);
        }
    }

    "USER-033 CLOCK-002" fn a_program_reads_the_time() {
        let read = code!(
            "2: mov r8d, [rdi]", "test r8d, 1", "jnz 2b", "lfence", "rdtsc", "shl rdx, 32", "or rax, rdx", "xor ecx, ecx",
            "sub rax, [rdi + 8]", "cmovb rax, rcx", "mul qword ptr [rdi + 24]", "shrd rax, rdx, 32", "add rax, [rdi + 16]",
            "cmp r8d, [rdi]", "jne 2b", "syscall"
        );
        let mut program = Program::new(read);
        program.context.rdi = VCPU_PAGES + CLOCK_PAGE;
        for _ in 0..100 {
            let before = guest_sdk::time::Instant::now().as_nanos();
            program.calls(TEXT);
            let after = guest_sdk::time::Instant::now().as_nanos();
            assert!((before..=after).contains(&program.context.rax), "{before} {} {after}", program.context.rax);
        }
    }

    "MMU-007" fn what_is_mapped_below_the_lowest_address_is_not_there() {
        let (mut program, all) = accesses();
        let data = page();
        data.0.fill(0x1122_3344);
        let at = GuestPhys(phys(data));
        let all_rights = Entry::PRESENT | Entry::USER | Entry::WRITE;
        for virt in [0, 0x1000, 0xf000] {
            program.space.map(virt, at, all_rights);
            for (rip, access) in all {
                program.context.rdi = virt + 8;
                program.faults(rip, virt + 8, access);
            }
        }
        // What is between 0x10000 and there is the hypervisor's, but it is not the guest's page.
        for virt in [0x1_0000, 0x1_1000, LOWEST_USER - 0x1000] {
            program.space.map(virt, at, all_rights);
            program.context.rdi = virt + 8;
            program.context.rip = TEXT;
            let trap = program.run();
            assert!(trap == trap::PAGE_FAULT || program.context.rax != 0x1122_3344, "{virt:#x}");
        }
        program.space.map(LOWEST_USER, at, all_rights);
        program.context.rdi = LOWEST_USER;
        program.calls(TEXT);
        assert_eq!(program.context.rax, 0x1122_3344);
    }

    "MMU-007 MMU-004" fn a_large_page_at_0_begins_at_the_lowest_address() {
        let mut program = Program::new(code!("mov rax, [rdi]", "syscall"));
        let large = crate::mmu::large_page();
        let at = program.space.entry_at(0, 2);
        crate::program::set(at, Entry::new(large, TABLE | Entry::LARGE), 0).unwrap();
        for (virt, index) in [(LOWEST_USER, 0x20), (span(2) - 4096, 511)] {
            program.context.rdi = virt;
            program.calls(TEXT);
            assert_eq!(program.context.rax, index, "{virt:#x}");
        }
        program.context.rdi = 0x8000;
        program.faults(TEXT, 0x8000, READ);
    }

    "USER-025 USER-011" fn jumps_to_anywhere_end_no_vm() {
        let mut space = Space::new();
        let (jump, witness) = (page(), page());
        jump.0[0] = 0xe7ff; // jmp rdi
        space.map(TEXT, GuestPhys(phys(jump)), CODE);
        for address in [0, HYPERCALL_PAGE - 1, HYPERCALL_PAGE + 0x80, VCPU_PAGES, VCPU_PAGES + 0x1_0000, (1 << 47) - 2] {
            let mut context = alloc::boxed::Box::new(crate::program::context(TEXT));
            context.rdi = address;
            let trap = run(space.root, &mut context);
            assert!((trap::SYSCALL..=trap::KILLED).contains(&trap), "{trap}");
        }
        witness.0[0] = 0x050f;
        space.map(TEXT + 4096, GuestPhys(phys(witness)), CODE);
        assert_eq!(run(space.root, &mut alloc::boxed::Box::new(crate::program::context(TEXT + 4096))), trap::SYSCALL);
    }
}
