//! The extended state of programs: who has it when, and that none is lost.

use crate::program::{HEAP, Program, TEXT, area, code, context, enter, release, run};
use crate::{in_a_storm, memory_size, outside, phys, raw};
use alloc::boxed::Box;
use guest_sdk::boot::info;
use guest_sdk::hv_abi::user::{UserContext, trap};
use guest_sdk::hv_abi::{Call, CpuFeatures, Status};

/// Code that loads all registers from RDI, calls, stores them to RSI, calls, and begins again; as far as the processor goes.
fn registers() -> &'static [u8] {
    let features = info().cpu_features;
    if features.contains(CpuFeatures::AVX512) {
        code!(
            "2: ldmxcsr [rdi + 2048]",
            "fninit",
            "fldcw [rdi + 2056]",
            ".irp i, 7, 6, 5, 4, 3, 2, 1, 0",
            r"fild qword ptr [rdi + 2064 + \i * 8]",
            ".endr",
            ".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
            r"vmovdqu64 zmm\i, [rdi + \i * 64]",
            ".endr",
            ".irp i, 0, 1, 2, 3, 4, 5, 6, 7",
            r"kmovq k\i, [rdi + 2128 + \i * 8]",
            ".endr",
            "syscall",
            "stmxcsr [rsi + 2048]",
            "fnstcw [rsi + 2056]",
            ".irp i, 0, 1, 2, 3, 4, 5, 6, 7",
            r"fistp qword ptr [rsi + 2064 + \i * 8]",
            ".endr",
            ".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
            r"vmovdqu64 [rsi + \i * 64], zmm\i",
            ".endr",
            ".irp i, 0, 1, 2, 3, 4, 5, 6, 7",
            r"kmovq [rsi + 2128 + \i * 8], k\i",
            ".endr",
            "syscall",
            "jmp 2b"
        )
    } else if features.contains(CpuFeatures::AVX) {
        code!(
            "2: ldmxcsr [rdi + 2048]",
            "fninit",
            "fldcw [rdi + 2056]",
            ".irp i, 7, 6, 5, 4, 3, 2, 1, 0",
            r"fild qword ptr [rdi + 2064 + \i * 8]",
            ".endr",
            ".irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
            r"vmovdqu ymm\i, [rdi + \i * 64]",
            ".endr",
            "syscall",
            "stmxcsr [rsi + 2048]",
            "fnstcw [rsi + 2056]",
            ".irp i, 0, 1, 2, 3, 4, 5, 6, 7",
            r"fistp qword ptr [rsi + 2064 + \i * 8]",
            ".endr",
            ".irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
            r"vmovdqu [rsi + \i * 64], ymm\i",
            ".endr",
            "syscall",
            "jmp 2b"
        )
    } else {
        code!(
            "2: ldmxcsr [rdi + 2048]",
            "fninit",
            "fldcw [rdi + 2056]",
            ".irp i, 7, 6, 5, 4, 3, 2, 1, 0",
            r"fild qword ptr [rdi + 2064 + \i * 8]",
            ".endr",
            ".irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
            r"movdqu xmm\i, [rdi + \i * 64]",
            ".endr",
            "syscall",
            "stmxcsr [rsi + 2048]",
            "fnstcw [rsi + 2056]",
            ".irp i, 0, 1, 2, 3, 4, 5, 6, 7",
            r"fistp qword ptr [rsi + 2064 + \i * 8]",
            ".endr",
            ".irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
            r"movdqu [rsi + \i * 64], xmm\i",
            ".endr",
            "syscall",
            "jmp 2b"
        )
    }
}

/// Where the program stores: the second page of its data, which [`pattern`] fills the first of.
const STORED: u64 = HEAP + 0x10_0000;

/// A program that is about to load a pattern of its own.
struct Patterned {
    program: Program,
    stored: &'static mut crate::program::Page,
    pattern: [u64; 512],
}

impl Patterned {
    fn new(seed: u64) -> Self {
        let mut program = Program::new(registers());
        let stored = crate::program::page();
        program.space.map(STORED, guest_sdk::hv_abi::GuestPhys(phys(stored)), crate::program::DATA);
        let mut new = Self { program, stored, pattern: [0; 512] };
        new.program.context.rsi = STORED;
        new.program.context.rdi = HEAP;
        new.choose(seed);
        new
    }

    /// Another pattern, to be loaded next.
    fn choose(&mut self, seed: u64) {
        let features = info().cpu_features;
        let (count, width) = match () {
            () if features.contains(CpuFeatures::AVX512) => (32, 8),
            () if features.contains(CpuFeatures::AVX) => (16, 4),
            () => (16, 2),
        };
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        self.pattern = [0; 512];
        (0..count)
            .for_each(|register| (0..width).for_each(|word| self.pattern[register * 8 + word] = random()));
        self.pattern[256] = 0x1f80 ^ (seed & 3) << 13; // MXCSR: a rounding of its own
        self.pattern[257] = 0x37f ^ (seed & 3) << 10; // x87 control word: the same
        (258..266).for_each(|word| self.pattern[word] = random());
        if count == 32 {
            (266..274).for_each(|word| self.pattern[word] = random());
        }
        self.program.data.0 = self.pattern;
        self.stored.0 = [0; 512];
    }

    /// Goes on from where it is to its next call: loaded, or stored.
    #[track_caller]
    fn step(&mut self) {
        assert_eq!(self.program.run(), trap::SYSCALL, "{:#x?}", self.program.context);
    }

    /// After it has stored: that it stored what it had loaded.
    #[track_caller]
    fn check(&self) {
        let differs = self.stored.0.iter().zip(&self.pattern).position(|(stored, loaded)| stored != loaded);
        assert_eq!(differs, None, "word {differs:?} of the registers is wrong");
    }
}

guest_sdk::tests! {
    "USER-028" fn extended_state_survives_traps() {
        let mut one = Patterned::new(1);
        for seed in 2..50 {
            one.step();
            // Other traps between: a page fault and an exception, by way of which the program is sent and comes back.
            let (rip, rcx) = (one.program.context.rip, one.program.context.rcx);
            for at in [TEXT + 0x800, 0x1000_0000] {
                one.program.context.rip = at;
                assert!([trap::EXCEPTION, trap::PAGE_FAULT].contains(&one.program.run()));
            }
            (one.program.context.rip, one.program.context.rcx) = (rip, rcx);
            one.step();
            one.check();
            one.choose(seed);
        }
    }

    "USER-029" fn contexts_of_one_root_keep_their_extended_states() {
        let mut one = Patterned::new(1);
        let mut others: alloc::vec::Vec<_> = (0..3).map(|_| Box::new(context(TEXT))).collect();
        for other in &mut others {
            (other.rdi, other.rsi) = (HEAP, STORED);
        }
        // Each loads a pattern of its own; then each stores.
        let root = one.program.space.root;
        let mut patterns = [[0; 512]; 3];
        for round in 0..10 {
            one.choose(round * 4);
            one.step();
            let first = one.pattern;
            for (i, (other, pattern)) in (1..).zip(others.iter_mut().zip(&mut patterns)) {
                one.choose(round * 4 + i);
                *pattern = one.pattern;
                assert_eq!(run(root, other), trap::SYSCALL);
            }
            for (other, pattern) in others.iter_mut().zip(&patterns) {
                one.pattern = *pattern;
                assert_eq!(run(root, other), trap::SYSCALL);
                one.check();
            }
            one.pattern = first;
            one.step();
            one.check();
        }
    }

    "USER-029 USER-028" fn contexts_of_two_roots_keep_their_extended_states() {
        let mut two = [Patterned::new(1), Patterned::new(2)];
        for round in 0..20 {
            two.iter_mut().for_each(Patterned::step);
            two.iter_mut().for_each(Patterned::step);
            two.iter().for_each(Patterned::check);
            for (i, one) in (0..).zip(&mut two) {
                one.choose(round * 2 + i);
            }
        }
    }

    "USER-028 USER-023" fn extended_state_survives_interruptions() {
        let mut one = Patterned::new(5);
        let mut spin = Box::new(context(TEXT));
        (spin.rdi, spin.rsi) = (HEAP, STORED);
        in_a_storm(|| {
            for seed in 6..200 {
                one.step();
                one.step();
                one.check();
                one.choose(seed);
            }
        });
    }

    "USER-030" fn a_context_goes_on_under_another_root() {
        let mut two = [Patterned::new(1), Patterned::new(2)];
        let roots = two.each_ref().map(|one| one.program.space.root);
        for round in 0..10 {
            // Loads under the one, stores under the other: there, to the other's memory.
            let [one, other] = &mut two;
            assert_eq!(run(roots[0], &mut one.program.context), trap::SYSCALL);
            if round % 2 == 0 {
                other.step();
                other.step();
                other.check();
            }
            assert_eq!(run(roots[1], &mut one.program.context), trap::SYSCALL);
            assert!(other.stored.0[..256] == one.pattern[..256], "round {round}");
            one.choose(round * 2 + 3);
            other.choose(round * 2 + 4);
        }
    }

    "USER-027 USER-032 USER_XSTATE-001" fn the_area_has_the_state_and_gives_it() {
        let mut one = Patterned::new(1);
        one.step();
        assert_eq!(release(&mut one.program.context), Ok(()));
        assert_eq!(one.program.context.xstate_valid, 1);
        let words = area(&one.program.context);
        assert_eq!(words[3] & 0xffff_ffff, one.pattern[256] & 0xffff_ffff, "MXCSR");
        assert_eq!(words[0] & 0xffff, one.pattern[257] & 0xffff, "the x87 control word");
        for register in 0..16 {
            assert_eq!(words[20 + register * 2..][..2], one.pattern[register * 8..][..2], "XMM{register}");
        }
        // What is changed there is what it goes on with.
        (0..32).for_each(|word| words[20 + word] ^= u64::MAX);
        words[3] = words[3] & !0xffff_ffff | 0x3f80;
        one.step();
        assert_eq!(one.stored.0[256], 0x3f80);
        for register in 0..16 {
            let expected = [0, 1].map(|word| !one.pattern[register * 8 + word]);
            assert_eq!(one.stored.0[register * 8..][..2], expected, "XMM{register}");
        }
    }

    "USER-027" fn a_component_that_the_area_does_not_name_is_initial() {
        let mut one = Patterned::new(1);
        one.step();
        release(&mut one.program.context).unwrap();
        area(&one.program.context)[64] = 0;
        one.step();
        assert!(one.stored.0[..256].iter().all(|word| *word == 0));
        assert_eq!(one.stored.0[257] & 0xffff, 0x37f);
    }

    "USER-032 USER-031" fn what_the_guest_says_is_valid_is_not_written_over() {
        let mut one = Patterned::new(1);
        let mut other = Box::new(context(TEXT));
        (other.rdi, other.rsi) = (HEAP, STORED);
        one.step();
        // The engine may hold a state of it, but the guest has put another one into the area.
        let words = area(&one.program.context);
        words.fill(0);
        (words[3], words[64]) = (0x1f80, 2);
        words[20..52].fill(0x77);
        one.program.context.xstate_valid = 1;
        assert_eq!(run(one.program.space.root, &mut other), trap::SYSCALL);
        assert_eq!((one.program.context.xstate_valid, words[20], words[51]), (1, 0x77, 0x77));
        one.step();
        assert!((0..16).all(|register| one.stored.0[register * 8..][..2] == [0x77; 2]));
    }

    "USER-031" fn a_state_that_is_written_back_is_in_the_area_of_its_last_entry() {
        let mut one = Patterned::new(1);
        one.step();
        let mut moved = context(TEXT);
        moved.xstate_valid = 0;
        if one.program.context.xstate_valid == 1 {
            area(&moved).copy_from_slice(area(&one.program.context)); // the state is in memory, and moves with it
        }
        one.program.context.xstate = moved.xstate; // another area, from the next entry on
        one.step();
        one.check();
        release(&mut one.program.context).unwrap();
        assert_eq!(area(&moved)[20..22], one.pattern[..2]);
    }

    "USER_XSTATE-002" fn a_state_that_is_valid_is_left_alone() {
        let mut one = Patterned::new(1);
        assert_eq!(release(&mut one.program.context), Ok(()), "it was never entered");
        one.step();
        area(&one.program.context).fill(0x55);
        one.program.context.xstate_valid = 1;
        assert_eq!(release(&mut one.program.context), Ok(()));
        assert!(area(&one.program.context).iter().all(|word| *word == 0x55));
    }

    "USER_XSTATE-003" fn a_context_that_was_let_go_of_is_the_guests() {
        let mut one = Patterned::new(1);
        let mut other = Box::new(context(TEXT));
        (other.rdi, other.rsi) = (HEAP, STORED);
        one.step();
        release(&mut one.program.context).unwrap();
        one.program.context.xstate_valid = 0;
        area(&one.program.context).fill(0x55);
        let before = *one.program.context;
        assert_eq!(one.program.enter(), Err(Status::BAD_ARGUMENT));
        assert_eq!(run(one.program.space.root, &mut other), trap::SYSCALL);
        assert_eq!(release(&mut other), Ok(()));
        guest_sdk::hypercall::root_destroy(one.program.space.root).unwrap();
        assert_eq!(*one.program.context, before);
        assert!(area(&one.program.context).iter().all(|word| *word == 0x55));
    }

    "USER_XSTATE-004" fn a_context_outside_memory_or_misaligned_is_a_bad_address() {
        let context = Box::new(context(TEXT));
        for at in outside(256).into_iter().chain([8, 16, 32].map(|offset| phys(&*context) + offset)).chain([memory_size() - 192]) {
            assert_eq!(raw(Call::USER_XSTATE, [at]), Err(Status::BAD_ADDRESS), "{at:#x}");
        }
    }

    "USER_XSTATE-005" fn a_context_that_is_not_held_is_a_bad_argument() {
        let mut context = Box::new(UserContext { xstate_valid: 0, ..context(TEXT) });
        assert_eq!(release(&mut context), Err(Status::BAD_ARGUMENT));
        let mut one = Patterned::new(1);
        one.step();
        let good = one.program.context.xstate_valid;
        for valid in [2, u32::MAX] {
            one.program.context.xstate_valid = valid;
            assert_eq!(release(&mut one.program.context), Err(Status::BAD_ARGUMENT), "{valid}");
        }
        one.program.context.xstate_valid = good;
        one.step();
        one.check();
    }

    "ROOT_DESTROY-004" fn with_its_root_a_state_is_forgotten() {
        let mut two = [Patterned::new(1), Patterned::new(2)];
        two.iter_mut().for_each(Patterned::step);
        let [one, other] = &mut two;
        guest_sdk::hypercall::root_destroy(one.program.space.root).unwrap();
        one.program.context.xstate_valid = 0;
        area(&one.program.context).fill(0x55);
        let before = *one.program.context;
        assert_eq!(enter(other.program.space.root, &mut one.program.context), Err(Status::BAD_ARGUMENT));
        assert_eq!(*one.program.context, before);
        assert!(area(&one.program.context).iter().all(|word| *word == 0x55));
        other.step();
        other.check();
    }
}
