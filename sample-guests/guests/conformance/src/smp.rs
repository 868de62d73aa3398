//! Several vCPUs. The runner gives each test four.

#![expect(unsafe_code, reason = "a vCPU's first instructions, and other vCPUs' pages")]

use crate::program::{HEAP, Program, TEXT, code, context, enter, page, run};
use crate::{after, phys, raw};
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use guest_sdk::boot::info;
use guest_sdk::events::{Channel, vcpu_page, without_upcalls};
use guest_sdk::hv_abi::address::{SLOT_255, VCPU_PAGES, VCPU_STRIDE};
use guest_sdk::hv_abi::mmu::{EAGER, Entry};
use guest_sdk::hv_abi::user::trap;
use guest_sdk::hv_abi::vcpu::{NO_PROCESSOR, VcpuPage, run_state, upcall};
use guest_sdk::hv_abi::{Call, GuestPhys, Status};
use guest_sdk::hypercall::{self, block};
use guest_sdk::smp;
use guest_sdk::sync::Lock;
use guest_sdk::time::{Instant, timer};

/// A vCPU's page at its own address.
pub fn page_of(vcpu: u32) -> &'static VcpuPage {
    assert!(vcpu < info().vcpus);
    // SAFETY: the ABI maps a `VcpuPage` there for each vCPU; all that changes in it are atomics.
    unsafe { &*core::ptr::with_exposed_provenance((VCPU_PAGES + u64::from(vcpu) * VCPU_STRIDE) as usize) }
}

/// Waits for something that another vCPU does.
fn until(mut done: impl FnMut() -> bool) {
    while !done() {
        hypercall::yield_now();
    }
}

fn run_state_of(vcpu: u32) -> u32 {
    page_of(vcpu).run_state.load(SeqCst)
}

/// What a vCPU found at its first instruction.
#[repr(C)]
struct Found {
    rdi: AtomicU64,
    rflags: AtomicU64,
    gs: AtomicU64,
    mxcsr: AtomicU32,
    x87: AtomicU32,
    upcall: AtomicU32,
    vcpu: AtomicU32,
}

static FOUND: Found = Found {
    rdi: AtomicU64::new(0),
    rflags: AtomicU64::new(0),
    gs: AtomicU64::new(0),
    mxcsr: AtomicU32::new(0),
    x87: AtomicU32::new(0),
    upcall: AtomicU32::new(0),
    vcpu: AtomicU32::new(u32::MAX),
};

// A vCPU's first instructions: they note what they find, say that they have, and stop the vCPU. RDI is the V of a stack's end.
global_asm!(
    ".globl hv_conformance_vcpu",
    "hv_conformance_vcpu:",
    "mov rsp, rdi",
    "lea rbx, [rip + {found}]",
    "mov [rbx], rdi",
    "pushfq",
    "pop qword ptr [rbx + 8]",
    "rdgsbase rax",
    "mov [rbx + 16], rax",
    "stmxcsr [rbx + 24]",
    "fnstcw [rbx + 28]",
    "mov eax, gs:[0]",
    "mov [rbx + 32], eax",
    "mov eax, gs:[4]",
    "mov [rbx + 36], eax",
    "2: mov edi, {stop}",
    "xor esi, esi",
    "xor edx, edx",
    "xor ecx, ecx",
    "xor r8d, r8d",
    "xor r9d, r9d",
    "mov rax, {call}",
    "call rax",
    "jmp 2b",
    found = sym FOUND,
    stop = const Call::VCPU_STOP.0,
    call = const guest_sdk::hv_abi::address::HYPERCALL_PAGE + guest_sdk::hv_abi::address::entry::CALL,
);

unsafe extern "C" {
    static hv_conformance_vcpu: u8;
}

/// Starts a vCPU there. Gives its RDI.
fn start_raw(vcpu: u64) -> (u64, Result<u64, Status>) {
    let stack_end = core::ptr::from_ref(page()).addr() as u64 + 4096;
    let entry = (&raw const hv_conformance_vcpu).addr() as u64;
    (stack_end, raw(Call::VCPU_START, [vcpu, entry, stack_end]))
}

/// Starts a vCPU that stops at once, and waits until it has.
fn start_and_stop(vcpu: u32) {
    FOUND.vcpu.store(u32::MAX, SeqCst);
    start_raw(vcpu.into()).1.expect("it is not started");
    until(|| FOUND.vcpu.load(SeqCst) == vcpu && run_state_of(vcpu) == run_state::STOPPED);
}

fn is_pending(vcpu: u32, channel: Channel) -> bool {
    let number = channel.number();
    page_of(vcpu).pending[number as usize / 64].load(SeqCst) & 1 << (number % 64) != 0
}

guest_sdk::tests! {
    "SMP-001" fn there_are_as_many_vcpus_as_were_asked_for() {
        assert_eq!(info().vcpus, 4);
    }

    "SMP-002" fn at_first_only_vcpu_0_is_started() {
        assert_eq!([0, 1, 2, 3].map(run_state_of), [0, 2, 2, 2]);
        for vcpu in 1..4 {
            let page = page_of(vcpu);
            assert_eq!(page.upcall.load(SeqCst), upcall::MASKED);
            assert!(page.pending.iter().all(|word| word.load(SeqCst) == 0));
            assert!(page.masked.iter().all(|word| word.load(SeqCst) == u64::MAX));
        }
    }

    "VCPU_START-001 VCPU_START-002 VCPU_START-003 SMP-003" fn a_vcpu_begins_as_the_image_does() {
        for vcpu in [1, 3, 1] {
            FOUND.vcpu.store(u32::MAX, SeqCst);
            let (rdi, started) = start_raw(vcpu);
            assert_eq!(started, Ok(0));
            until(|| FOUND.vcpu.load(SeqCst) != u32::MAX);
            assert_eq!(u64::from(FOUND.vcpu.load(SeqCst)), vcpu);
            assert_eq!(FOUND.rdi.load(SeqCst), rdi);
            assert_eq!(FOUND.gs.load(SeqCst), VCPU_PAGES + vcpu * VCPU_STRIDE);
            assert_eq!(FOUND.rflags.load(SeqCst) & 1 << 10, 0, "DF");
            assert_eq!((FOUND.mxcsr.load(SeqCst), FOUND.x87.load(SeqCst)), (0x1f80, 0x37f));
            assert_eq!(FOUND.upcall.load(SeqCst), upcall::MASKED);
            assert!(page_of(vcpu as u32).masked.iter().all(|word| word.load(SeqCst) == u64::MAX));
            until(|| run_state_of(vcpu as u32) == run_state::STOPPED);
        }
    }

    "VCPU_START-004 VCPU_START-005 VCPU_START-006" fn what_cannot_be_started_is_told() {
        let entry = (&raw const hv_conformance_vcpu).addr() as u64;
        for vcpu in [4, 64, 1 << 32, u64::MAX] {
            assert_eq!(raw(Call::VCPU_START, [vcpu, entry, 0]), Err(Status::NOT_FOUND), "{vcpu}");
        }
        for bad in [0, 0xffff, SLOT_255, 1 << 47, u64::MAX] {
            assert_eq!(raw(Call::VCPU_START, [1, bad, 0]), Err(Status::BAD_ADDRESS), "{bad:#x}");
        }
        assert_eq!(raw(Call::VCPU_START, [0, entry, 0]), Err(Status::BUSY));
        static GO_ON: AtomicBool = AtomicBool::new(false);
        smp::start(2, || until(|| GO_ON.load(SeqCst))).unwrap();
        assert_eq!(raw(Call::VCPU_START, [2, entry, 0]), Err(Status::BUSY));
        GO_ON.store(true, SeqCst);
        until(|| !smp::is_started(2));
    }

    "VCPU_START-007" fn what_was_stored_before_is_seen() {
        let word = Arc::new(AtomicU64::new(0));
        for turn in 1..200 {
            let seen = word.clone();
            word.store(turn, SeqCst);
            smp::start(1, move || assert_eq!(seen.load(SeqCst), turn)).unwrap();
            until(|| !smp::is_started(1));
        }
    }

    "VCPU_START-008 VCPU_STOP-003" fn an_event_for_a_vcpu_that_is_not_started_waits_for_it() {
        let channel = Channel::allocate_for(2).unwrap();
        channel.send().unwrap();
        assert!(is_pending(2, channel));
        start_and_stop(2);
        assert!(is_pending(2, channel), "through a start and a stop");
        static TAKEN: AtomicBool = AtomicBool::new(false);
        smp::start(2, move || TAKEN.store(channel.take(), SeqCst)).unwrap();
        until(|| !smp::is_started(2));
        assert!(TAKEN.load(SeqCst));
        channel.send().unwrap();
        assert!(is_pending(2, channel), "it is still bound to it");
    }

    "VCPU_STOP-001 VCPU_STOP-002" fn a_vcpu_that_stops_itself_runs_no_more() {
        static TURNS: AtomicU64 = AtomicU64::new(0);
        static STOP: AtomicBool = AtomicBool::new(false);
        smp::start(1, || {
            until(|| TURNS.fetch_add(1, SeqCst) > 10 && STOP.load(SeqCst));
            hypercall::timer_set((after(30)).as_nanos());
        })
        .unwrap();
        until(|| TURNS.load(SeqCst) > 10);
        assert_eq!(run_state_of(1), run_state::RUNNING);
        STOP.store(true, SeqCst);
        until(|| run_state_of(1) == run_state::STOPPED);
        let turns = TURNS.load(SeqCst);
        let end = after(60);
        while !block(end.as_nanos()) {}
        assert_eq!(TURNS.load(SeqCst), turns);
        assert!(!is_pending(1, Channel::TIMER), "its timer fired");
    }

    "VCPU_STOP-004" fn the_last_vcpu_cannot_stop_itself() {
        assert_eq!(raw(Call::VCPU_STOP, [0]), Err(Status::BUSY));
        start_and_stop(3);
        assert_eq!(raw(Call::VCPU_STOP, [0]), Err(Status::BUSY));
    }

    "SMP-004" fn events_go_between_vcpus_whatever_the_other_does() {
        static SEEN: AtomicU32 = AtomicU32::new(0);
        static STATE: AtomicU32 = AtomicU32::new(0);
        static ON: AtomicU32 = AtomicU32::new(u32::MAX);
        let channel = Channel::allocate_for(1).unwrap();
        smp::start(1, move || {
            channel.on_event(|_| {
                ON.store(smp::current(), SeqCst);
                SEEN.fetch_add(1, SeqCst);
            });
            STATE.store(1, SeqCst);
            while STATE.load(SeqCst) == 1 {
                core::hint::spin_loop(); // it computes
            }
            while STATE.load(SeqCst) == 2 {
                block(u64::MAX); // it waits
            }
            let mut program = Program::new(code!("2: jmp 2b"));
            while STATE.load(SeqCst) == 3 {
                let _ = program.enter(); // it runs a program
            }
        })
        .unwrap();
        until(|| STATE.load(SeqCst) == 1);
        let mut sent = 0;
        for state in 1..=3 {
            STATE.store(state, SeqCst);
            for _ in 0..300 {
                sent += 1;
                channel.send().unwrap();
                until(|| SEEN.load(SeqCst) == sent);
            }
        }
        STATE.store(4, SeqCst);
        channel.send().unwrap();
        until(|| !smp::is_started(1));
        assert_eq!(ON.load(SeqCst), 1);
    }

    "USER-022" fn an_event_of_another_vcpu_interrupts_a_program_though_upcalls_are_masked() {
        // The program is entered by the monitor the first time, and once it has made a call by the guest kernel itself.
        static STATE: AtomicU32 = AtomicU32::new(0);
        static SEEN: AtomicU32 = AtomicU32::new(0);
        const TURNS: u32 = 50;
        let channel = Channel::allocate_for(1).unwrap();
        smp::start(1, move || {
            channel.on_event(|_| {
                SEEN.fetch_add(1, SeqCst);
            });
            for turn in 0..TURNS {
                let mut program = Program::new(code!("test edi, edi", "jz 2f", "syscall", "2: jmp 2b"));
                program.context.rdi = u64::from(turn % 2);
                if turn % 2 == 1 {
                    assert_eq!(program.run(), trap::SYSCALL);
                }
                without_upcalls(|| {
                    STATE.store(turn + 1, SeqCst);
                    while vcpu_page().upcall.load(SeqCst) & upcall::PENDING == 0 {
                        assert_eq!(program.enter(), Ok(trap::INTERRUPTED));
                    }
                });
            }
        })
        .unwrap();
        for turn in 0..TURNS {
            until(|| STATE.load(SeqCst) == turn + 1);
            let begun = Instant::now();
            until(|| begun.elapsed().as_nanos() > 100_000 * u128::from(turn % 7)); // it runs, or is about to
            channel.send().unwrap();
            until(|| SEEN.load(SeqCst) == turn + 1);
        }
        until(|| !smp::is_started(1));
    }

    "SMP-005" fn each_vcpu_has_a_timer_of_its_own() {
        static FIRED: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];
        fn fire(_: Channel) {
            FIRED[smp::current() as usize].store(Instant::now().as_nanos(), SeqCst);
        }
        let start = Instant::now();
        for vcpu in 1..4 {
            smp::start(vcpu, move || {
                timer::set(start + guest_sdk::time::Duration::from_millis(u64::from(vcpu) * 5), fire);
                while FIRED[vcpu as usize].load(SeqCst) == 0 {
                    block(u64::MAX);
                }
            })
            .unwrap();
        }
        until(|| (1..4).all(|vcpu| !smp::is_started(vcpu)));
        for (vcpu, fired) in (0_u64..).zip(&FIRED).skip(1) {
            assert!(fired.load(SeqCst) >= start.as_nanos() + vcpu * 5_000_000, "vCPU {vcpu}");
        }
        assert_eq!(FIRED[0].load(SeqCst), 0);
    }

    "SMP-006" fn one_address_space_runs_on_several_vcpus_at_once() {
        // Each adds to one word of their memory; nothing is lost, though they come back at every step.
        let program = Program::new(code!("2: lock inc qword ptr [rdi]", "mov eax, 3", "syscall", "jmp 2b"));
        let root = program.space.root;
        static DONE: AtomicU32 = AtomicU32::new(0);
        const TURNS: u64 = 2000;
        let turns = move || {
            let mut context = Box::new(context(TEXT));
            context.rdi = HEAP;
            for _ in 0..TURNS {
                assert_eq!(run(root, &mut context), trap::SYSCALL);
            }
            DONE.fetch_add(1, SeqCst);
        };
        for vcpu in 1..4 {
            smp::start(vcpu, turns).unwrap();
        }
        turns();
        until(|| DONE.load(SeqCst) == 4);
        // SAFETY: the page is the program's data, and no program runs any more.
        let counted = unsafe { (&raw const program.data.0[0]).read_volatile() };
        assert_eq!(counted, 4 * TURNS);
    }

    "SMP-007" fn a_context_goes_on_on_another_vcpu_with_all_its_state() {
        let program = Program::new(code!(
            "movq xmm3, rax", "mov eax, 1", "syscall", "movq rbx, xmm3", "mov eax, 2", "syscall"
        ));
        let root = program.space.root;
        let mine = Box::leak(Box::new(context(TEXT)));
        mine.rax = 0x1234_5678_9abc;
        let at = core::ptr::from_mut(mine).expose_provenance();
        assert_eq!(run(root, mine), trap::SYSCALL);
        static WENT: AtomicBool = AtomicBool::new(false);
        smp::start(1, move || {
            // Another program of that space is on this vCPU first.
            let mut other = Box::new(context(TEXT));
            assert_eq!(run(root, &mut other), trap::SYSCALL);
            // SAFETY: the context is leaked, and vCPU 0 waits until this one is done with it.
            let context = unsafe { &mut *core::ptr::with_exposed_provenance_mut(at) };
            assert_eq!(run(root, context), trap::SYSCALL);
            assert_eq!((context.rax, context.rbx), (2, 0x1234_5678_9abc));
            WENT.store(true, SeqCst);
        })
        .unwrap();
        until(|| WENT.load(SeqCst));
    }

    "MMU-012 MMU-014" fn a_change_is_in_force_for_programs_on_other_vcpus() {
        // The other vCPU's program reads the page all the time and stores what it found.
        let mut program =
            Program::new(code!("2: mov rax, [rdi]", "mov [rsi], rax", "inc qword ptr [rsi + 8]", "jmp 2b"));
        let pages = crate::program::numbered();
        const SPOT: u64 = 0x900_0000;
        program.space.map(SPOT, pages[0], crate::program::CONSTANT);
        let entry = program.space.entry(SPOT);
        let (root, data) = (program.space.root, phys(program.data));
        static STOP: AtomicBool = AtomicBool::new(false);
        smp::start(1, move || {
            let mut context = Box::new(context(TEXT));
            (context.rdi, context.rsi) = (SPOT, HEAP);
            while !STOP.load(SeqCst) {
                assert_eq!(enter(root, &mut context), Ok(trap::INTERRUPTED), "{context:x?}");
            }
        })
        .unwrap();
        let turns = || crate::program::word(GuestPhys(data + 8));
        for turn in 0..400_usize {
            let to = Entry::new(pages[turn % 2], crate::program::CONSTANT);
            if turn % 4 < 2 {
                crate::program::set(entry, to, EAGER).unwrap();
            } else {
                crate::program::set(entry, to, 0).unwrap();
                hypercall::mmu_flush(root, 0, 0).unwrap();
            }
            // What it had read before may be stored once more; the turn after that is all new.
            let now = turns();
            until(|| turns() >= now + 2);
            assert_eq!(crate::program::word(GuestPhys(data)), turn as u64 % 2, "turn {turn}");
        }
        STOP.store(true, SeqCst);
        let channel = Channel::allocate_for(1).unwrap();
        page_of(1).masked[0].fetch_and(!(1 << channel.number()), SeqCst);
        channel.send().unwrap();
        until(|| !smp::is_started(1));
    }

    "ROOT_DESTROY-003" fn a_root_under_which_another_vcpu_runs_a_program_is_busy() {
        let program = Program::new(code!("2: jmp 2b"));
        let root = program.space.root;
        static STATE: AtomicU32 = AtomicU32::new(0);
        smp::start(1, move || {
            let mut context = Box::new(context(TEXT));
            STATE.store(1, SeqCst);
            while STATE.load(SeqCst) < 2 {
                assert_eq!(enter(root, &mut context), Ok(trap::INTERRUPTED));
            }
        })
        .unwrap();
        until(|| STATE.load(SeqCst) == 1);
        let busy = (0..1000).filter(|_| {
            hypercall::yield_now();
            matches!(raw(Call::ROOT_DESTROY, [root.0 + 4096]), Err(Status::NOT_FOUND)) // a page that is no root
        });
        assert_eq!(busy.count(), 1000);
        assert_eq!(raw(Call::ROOT_DESTROY, [root.0]), Err(Status::BUSY));
        STATE.store(2, SeqCst);
        let channel = Channel::allocate_for(1).unwrap();
        page_of(1).masked[0].fetch_and(!(1 << channel.number()), SeqCst);
        channel.send().unwrap();
        until(|| !smp::is_started(1));
        assert_eq!(raw(Call::ROOT_DESTROY, [root.0]), Ok(0));
    }

    "VCPU-005" fn the_processor_is_the_hosts() {
        let mut agreed = 0;
        let end = after(100);
        while Instant::now() < end {
            let before = vcpu_page().processor.load(SeqCst);
            let here: u32;
            // SAFETY: reads the processor's number, and the counter.
            unsafe { asm!("rdtscp", out("ecx") here, out("eax") _, out("edx") _, options(nostack, nomem)) };
            if before == NO_PROCESSOR {
                return; // this host does not say
            }
            if vcpu_page().processor.load(SeqCst) == before {
                assert_eq!(before, here & 0xfff);
                agreed += 1;
            }
        }
        assert!(agreed > 0);
    }

    "YIELD_TO-001 YIELD_TO-002" fn a_vcpu_yields_to_any_that_there_is() {
        for vcpu in 0..4 {
            assert_eq!(raw(Call::YIELD_TO, [vcpu]), Ok(0), "{vcpu}");
        }
        for vcpu in [4, 1 << 32, u64::MAX] {
            assert_eq!(raw(Call::YIELD_TO, [vcpu]), Err(Status::NOT_FOUND), "{vcpu}");
        }
    }

    "SMP-008" fn a_lock_between_vcpus_lets_one_in_at_a_time() {
        // What the SDK builds of events, blocks and hints: two vCPUs more than a small host has processors.
        static COUNT: Lock<(u64, u64)> = Lock::new((0, 0));
        static DONE: AtomicU32 = AtomicU32::new(0);
        const TURNS: u64 = 20_000;
        let turns = || {
            for turn in 0..TURNS {
                let mut count = COUNT.lock();
                assert_eq!(count.0, count.1);
                count.0 += 1;
                if turn % 64 == 0 {
                    hypercall::yield_now(); // as if the host had taken the processor away
                }
                count.1 += 1;
            }
            DONE.fetch_add(1, SeqCst);
        };
        for vcpu in 1..4 {
            smp::start(vcpu, turns).unwrap();
        }
        turns();
        until(|| DONE.load(SeqCst) == 4);
        assert_eq!(COUNT.lock().0, 4 * TURNS);
    }
}
