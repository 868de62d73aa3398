//! Upcalls: what they leave alone, what they are entered with, and how they end.

#![expect(unsafe_code, reason = "code that knows each of its registers and addresses")]

use crate::probe::{self, SEEN, count};
use crate::{INTERRUPTIONS, after, in_a_storm, raw, timer_soon};
use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use guest_sdk::events::{Channel, vcpu_page};
use guest_sdk::hv_abi::Call;
use guest_sdk::hv_abi::address::{HYPERCALL_PAGE, entry};
use guest_sdk::hv_abi::call::NEVER;
use guest_sdk::hv_abi::vcpu::upcall;
use guest_sdk::hypercall::{block, timer_set};
use guest_sdk::time::{Instant, timer};

const CF: u64 = 1;
const DF: u64 = 1 << 10;

/// An open, unmasked channel without a handler.
fn channel() -> Channel {
    let channel = Channel::allocate().unwrap();
    channel.unmask();
    channel
}

/// Makes the timer interrupt what `section` does, with upcalls to the probe.
fn with_timer_upcalls(section: impl FnOnce()) {
    probe::install(|_, _| timer_soon());
    Channel::TIMER.unmask();
    timer_soon();
    section();
    timer_set(NEVER);
}

/// Runs `section` with upcalls masked. What is pending then is left to the upcall, other than by `without_upcalls`.
fn masked(section: impl FnOnce()) {
    vcpu_page().upcall.fetch_or(upcall::MASKED, SeqCst);
    section();
    vcpu_page().upcall.fetch_and(!upcall::MASKED, SeqCst);
}

/// Calls an entry with RDI and RSI, between two words on the stack. Gives where the call was, where it returned to, RSP
/// behind it, and what became of the words.
fn call_between_words(at: u64, rdi: u64, rsi: u64) -> (u64, u64, u64, [u64; 2]) {
    let (start, end, rsp, above, below): (u64, u64, u64, u64, u64);
    // SAFETY: the entries are functions of the System V convention; all that they do not keep is declared lost, and they
    // write no memory with these arguments. RSP is put back.
    unsafe {
        asm!(
            "lea r12, [rip + 2f]",
            "lea r13, [rip + 3f]",
            "mov rax, 0x0a0a0a0a0a0a0a0a",
            "push rax",
            "not rax",
            "push rax",
            "2: call r11",
            "3: mov r14, rsp",
            "pop r10",
            "pop r15",
            inout("r11") HYPERCALL_PAGE + at => _,
            inout("rdi") rdi => _, inout("rsi") rsi => _,
            inout("rdx") 0_u64 => _, inout("rcx") 0_u64 => _, inout("r8") 0_u64 => _, inout("r9") 0_u64 => _,
            out("rax") _, out("r10") below, out("r12") start, out("r13") end, out("r14") rsp, out("r15") above,
            clobber_abi("sysv64"),
        );
    }
    (start, end, rsp, [above, below])
}

/// The words of [`call_between_words`] as they should be.
const WORDS: [u64; 2] = [0x0a0a_0a0a_0a0a_0a0a, !0x0a0a_0a0a_0a0a_0a0a];

guest_sdk::tests! {
    "UPCALL-001" fn an_upcall_comes_to_code_that_makes_no_calls() {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        timer::set(after(1), |_| { COUNT.fetch_add(1, SeqCst); });
        while COUNT.load(SeqCst) == 0 {
            core::hint::spin_loop();
        }
    }

    "UPCALL-002" fn an_upcall_is_entered_masked() {
        probe::install(probe::nothing);
        channel().send().unwrap();
        assert_eq!((count(), SEEN.upcall.load(SeqCst)), (1, upcall::MASKED | upcall::PENDING));
        with_timer_upcalls(|| while count() < 100 {
            assert!(SEEN.upcall.load(SeqCst) & upcall::MASKED != 0);
        });
    }

    "UPCALL-003" fn no_upcall_comes_while_upcalls_are_masked() {
        let channel = channel();
        probe::install(probe::nothing);
        masked(|| {
            (0..10).for_each(|_| channel.send().unwrap());
            timer_set(0);
            block(after(5).as_nanos());
            (0..100).for_each(|_| guest_sdk::hypercall::yield_now());
            assert_eq!(count(), 0);
        });
        guest_sdk::hypercall::yield_now();
        assert_eq!(count(), 1, "events that nobody took are one upcall");
    }

    "UPCALL-004 UPCALL-010" fn frames_are_aligned_and_have_no_address_of_the_engines() {
        let channel = channel();
        with_timer_upcalls(|| {
            // Wherever the guest is: in its own code, in calls, in `block`, with a stack that ends anywhere.
            for i in 0_u64.. {
                channel.send().unwrap();
                call_between_words(entry::CALL, Call::YIELD.0.into(), 0);
                call_between_words(entry::BLOCK, Instant::now().as_nanos() + i % 40 * 1000, 0);
                misalign_and_spin(i % 16);
                if count() > 3000 {
                    break;
                }
            }
        });
        assert_eq!((SEEN.misaligned.load(SeqCst), SEEN.in_slot_255.load(SeqCst)), (0, 0), "of {}", count());
    }

    "UPCALL-005 UPCALL-009 UPCALL_RETURN-002" fn upcalls_between_any_two_instructions_change_nothing() {
        in_a_storm(|| while INTERRUPTIONS.load(SeqCst) < 1000 {
            every_register_survives();
        });
    }

    "UPCALL-006" fn an_upcall_at_the_end_of_a_call_is_as_behind_its_return() {
        let channel = channel();
        probe::install(probe::nothing);
        for i in 1..=100 {
            let (_, end, rsp, words) =
                call_between_words(entry::CALL, Call::EVENT_SEND.0.into(), channel.number().into());
            assert_eq!(words, WORDS);
            assert_eq!((count(), SEEN.rip.load(SeqCst), SEEN.rsp.load(SeqCst)), (i, end, rsp));
        }
    }

    "UPCALL-006 BLOCK-007" fn an_upcall_at_the_end_of_block_is_as_behind_its_return() {
        let channel = channel();
        probe::install(probe::nothing);
        for i in 1..=100 {
            masked(|| channel.send().unwrap());
            let (start, end, rsp, words) = call_between_words(entry::BLOCK, NEVER, 0);
            assert_eq!((count(), words), (i, WORDS));
            // An engine may be quick and make it as soon as the guest has unmasked: then it is not at the end.
            if SEEN.rip.load(SeqCst) > start {
                assert_eq!((SEEN.rip.load(SeqCst), SEEN.rsp.load(SeqCst)), (end, rsp));
            }
        }
    }

    "UPCALL-007 UPCALL_RETURN-002" fn df_is_clear_at_entry_and_the_flags_come_back() {
        probe::install(probe::nothing);
        Channel::TIMER.unmask();
        let mut delay = 20_000; // and more, where the timer fires before the flags are set
        while SEEN.rflags.load(SeqCst) & DF == 0 {
            delay += delay / 8;
            timer_set(Instant::now().as_nanos() + delay);
            let flags: u64;
            // SAFETY: spins with DF and CF set, and clears DF again before any other code runs. `loop` changes no flag.
            unsafe {
                asm!("std", "stc", "2: loop 2b", "pushfq", "pop {flags}", "cld", flags = out(reg) flags,
                     inout("rcx") 300_000_u64 => _);
            }
            assert_eq!(flags & (DF | CF), DF | CF);
            assert_eq!(SEEN.flags.load(SeqCst) & DF, 0);
        }
    }

    "UPCALL-008" fn an_upcall_that_was_unmasked_by_hand_comes_with_the_next_call() {
        let channel = channel();
        probe::install(probe::nothing);
        let entries: [fn(); 3] = [|| { raw(Call::VERSION, []).unwrap(); }, guest_sdk::hypercall::yield_now, || { block(NEVER); }];
        for (i, entry) in entries.into_iter().enumerate() {
            masked(|| channel.send().unwrap());
            entry();
            assert_eq!(count(), i as u32 + 1);
        }
    }

    "UPCALL_RETURN-001" fn the_end_of_an_upcall_unmasks() {
        let channel = channel();
        probe::install(probe::nothing);
        for i in 1..=10 {
            channel.send().unwrap();
            assert_eq!((count(), vcpu_page().upcall.load(SeqCst)), (i, 0));
        }
    }

    "UPCALL_RETURN-003" fn an_event_inside_an_upcall_enters_again_at_the_same_frame() {
        static CHANNEL: AtomicU32 = AtomicU32::new(0);
        static FRAMES: [AtomicU64; 100] = [const { AtomicU64::new(0) }; 100];
        static MASKED: AtomicU32 = AtomicU32::new(0);
        let channel = channel();
        CHANNEL.store(channel.number(), SeqCst);
        probe::install(|_, count| {
            FRAMES[count as usize - 1].store(SEEN.frame.load(SeqCst), SeqCst);
            MASKED.fetch_add(u32::from(SEEN.upcall.load(SeqCst) & upcall::MASKED != 0), SeqCst);
            if (count as usize) < FRAMES.len() {
                raw(Call::EVENT_SEND, [CHANNEL.load(SeqCst).into()]).unwrap();
            }
        });
        channel.send().unwrap();
        assert_eq!((count(), MASKED.load(SeqCst)), (100, 100));
        assert!(FRAMES.iter().all(|frame| frame.load(SeqCst) == FRAMES[0].load(SeqCst)), "another frame");
    }

    "UPCALL_RETURN-004" fn no_event_is_lost_that_fires_as_an_upcall_ends() {
        /// How long after the first upcall of a pair the second one's event fires, in ns: about when the first one ends.
        static DELAY: AtomicU64 = AtomicU64::new(0);
        Channel::TIMER.unmask();
        probe::install(|_, count| {
            if count % 2 == 1 {
                timer_set(Instant::now().as_nanos() + DELAY.load(SeqCst));
            }
        });
        for pair in 1..=4000 {
            DELAY.store(u64::from(pair) % 400 * 50, SeqCst);
            timer_set(0);
            while count() < 2 * pair {
                core::hint::spin_loop(); // no call: if an event is lost, nothing ends this
            }
        }
    }

    "UPCALL_RETURN-005" fn a_frame_that_was_changed_is_obeyed() {
        static GO_ON_AT: AtomicU64 = AtomicU64::new(0);
        static DELAY: AtomicU64 = AtomicU64::new(100_000);
        static OTHER_STACK: [AtomicU64; 512] = [const { AtomicU64::new(0) }; 512];
        let top = (&raw const OTHER_STACK).addr() as u64 + 2048;
        probe::install(|frame, _| {
            let at = GO_ON_AT.load(SeqCst);
            if at == 0 {
                // The code has yet to say where, and may need longer for that than an upcall takes to come.
                timer_set(Instant::now().as_nanos() + DELAY.fetch_add(DELAY.load(SeqCst), SeqCst));
            } else {
                frame.rip = at;
                frame.rsp = (&raw const OTHER_STACK).addr() as u64 + 2048;
                frame.rflags |= CF;
            }
        });
        Channel::TIMER.unmask();
        timer_set(Instant::now().as_nanos() + 100_000);
        let (rsp, carry): (u64, u8);
        // SAFETY: spins until the upcall makes it go on behind the loop, on another stack, which it leaves at once. What
        // it changes is declared lost, and the word it writes is an atomic's.
        unsafe {
            asm!(
                "mov r12, rsp",
                "clc",
                "lea rax, [rip + 3f]",
                "mov [{go_on_at}], rax",
                "2: pause",
                "jmp 2b",
                "3: mov r13, rsp",
                "mov rsp, r12",
                "setc r14b",
                go_on_at = in(reg) GO_ON_AT.as_ptr(),
                out("rax") _, out("r12") _, out("r13") rsp, out("r14b") carry,
            );
        }
        assert_eq!((rsp, carry), (top, 1));
    }

    "UPCALL-001 UPCALL_RETURN-002" fn a_computation_in_a_storm_comes_out_right() {
        let sum = || (0..100_000_u64).fold(0, |sum: u64, i| core::hint::black_box(sum.rotate_left(5) ^ i));
        let expected = sum();
        in_a_storm(|| (0..200).for_each(|_| assert_eq!(sum(), expected)));
    }
}

/// Spins some thousand turns with RSP so many bytes below where it was.
fn misalign_and_spin(bytes: u64) {
    // SAFETY: RSP is put back, and what is below it is nobody's; the loop writes no memory.
    unsafe {
        asm!("sub rsp, {bytes}", "2: dec {turns:e}", "jnz 2b", "add rsp, {bytes}",
             bytes = in(reg) bytes, turns = inout(reg) 5000 => _);
    }
}

/// Fills general and vector registers and the red zone, spins some thousand turns, and looks at all of them.
fn every_register_survives() {
    let wrong: u64;
    // SAFETY: touches only registers that are declared lost, and the 128 bytes below RSP, which are nobody's: no `push`
    // or `call` stands between.
    unsafe {
        asm!(
            "mov rax, 0x0101010101010101",
            "mov rcx, 0x0202020202020202",
            "mov rdx, 0x0303030303030303",
            "mov rsi, 0x0404040404040404",
            "mov rdi, 0x0505050505050505",
            "mov r8,  0x0808080808080808",
            "mov r9,  0x0909090909090909",
            "mov r10, 0x1010101010101010",
            "mov r11, 0x1111111111111111",
            "mov r12, 0x1212121212121212",
            "mov r13, 0x1313131313131313",
            "mov r14, 0x1414141414141414",
            "movq xmm0, rax",
            "movq xmm7, rcx",
            "movq xmm15, rdx",
            "mov [rsp - 8], r8",
            "mov [rsp - 64], r9",
            "mov [rsp - 128], r10",
            "mov r15d, 20000",
            "2:",
            "dec r15d",
            "jnz 2b",
            // r15 gathers what differs.
            "mov r14, 0x0101010101010101", "xor r14, rax", "or r15, r14",
            "movq r14, xmm0",  "xor r14, rax", "or r15, r14",
            "movq r14, xmm7",  "xor r14, rcx", "or r15, r14",
            "movq r14, xmm15", "xor r14, rdx", "or r15, r14",
            "mov r14, 0x0202020202020202", "xor r14, rcx", "or r15, r14",
            "mov r14, 0x0303030303030303", "xor r14, rdx", "or r15, r14",
            "mov r14, 0x0404040404040404", "xor r14, rsi", "or r15, r14",
            "mov r14, 0x0505050505050505", "xor r14, rdi", "or r15, r14",
            "mov r14, 0x0808080808080808", "xor r14, r8",  "or r15, r14",
            "mov r14, 0x0909090909090909", "xor r14, r9",  "or r15, r14",
            "mov r14, 0x1010101010101010", "xor r14, r10", "or r15, r14",
            "mov r14, 0x1111111111111111", "xor r14, r11", "or r15, r14",
            "mov r14, 0x1212121212121212", "xor r14, r12", "or r15, r14",
            "mov r14, 0x1313131313131313", "xor r14, r13", "or r15, r14",
            "mov r14, [rsp - 8]",   "xor r14, r8",  "or r15, r14",
            "mov r14, [rsp - 64]",  "xor r14, r9",  "or r15, r14",
            "mov r14, [rsp - 128]", "xor r14, r10", "or r15, r14",
            out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _, out("r8") _, out("r9") _,
            out("r10") _, out("r11") _, out("r12") _, out("r13") _, out("r14") _, out("r15") wrong,
            out("xmm0") _, out("xmm7") _, out("xmm15") _,
        );
    }
    assert_eq!(wrong, 0, "bits that an upcall changed");
}
