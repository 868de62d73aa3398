//! How a vCPU waits for a token: every way that a guest can be in when an event is for it.

use crate::lanes;
use core::sync::atomic::AtomicU8;
use core::sync::atomic::Ordering::Relaxed;
use fastrand::Rng;
use guest_sdk::events::{Channel, without_upcalls};
use guest_sdk::frames::allocate_zeroed;
use guest_sdk::hv_abi::call::NEVER;
use guest_sdk::hypercall;
use guest_sdk::smp::{self, PerVcpu};
use guest_sdk::space::{AddressSpace, Rights};
use guest_sdk::time::{Duration, Instant};
use guest_sdk::user::{Task, Trap};

core::arch::global_asm!(
    ".pushsection .rodata.storm_program, \"a\", @progbits",
    ".globl storm_program",
    "storm_program:",
    "2: mov rcx, rdi", // it computes for so many turns between system calls
    "3: dec rcx",
    "jnz 3b",
    "mov eax, 1",
    "syscall",
    "jmp 2b",
    ".popsection",
);

unsafe extern "C" {
    static storm_program: [u8; 32];
}

const TEXT: u64 = 0x40_0000;

/// A program, in a space of its own.
pub struct Program {
    space: AddressSpace,
    task: Task,
}

impl Program {
    pub fn new() -> Self {
        let mut space = AddressSpace::new().expect("there is room for a space for each vCPU");
        let frame = allocate_zeroed(0).expect("a page");
        // SAFETY: constant bytes of this image; the program is shorter, and what lies behind it is read-only data, too.
        frame.write_at(0, unsafe { &storm_program });
        space.map(TEXT, frame, Rights::EXECUTE).expect("an address of a program's");
        Self { space, task: Task::new(TEXT, 0) }
    }

    /// Runs to its next system call, or until an event interrupts it.
    fn step(&mut self, turns: u64) {
        self.task.registers_mut().rdi = turns;
        self.task.registers_mut().rip = TEXT;
        match self.task.run(&mut self.space) {
            Trap::Syscall | Trap::Interrupted => {}
            trap => panic!("a program that computes gave {trap:?}"),
        }
    }
}

/// How each vCPU waits at the moment, for whoever looks for a lost event.
pub static DOING: PerVcpu<AtomicU8> = PerVcpu::new([const { AtomicU8::new(0) }; _]);

/// Waits, by some way, until `done` may be true. Most ways end only by an event.
pub fn wait(random: &mut Rng, program: &mut Program, done: &dyn Fn() -> bool) {
    let way = random.u8(..16);
    DOING.store(way + 1, Relaxed);
    match way {
        // Sleeps, and is woken by its handlers.
        0..3 => without_upcalls(|| {
            if !done() {
                hypercall::block(NEVER);
            }
        }),
        3 => drop(hypercall::block((Instant::now() + Duration::from_micros(random.u64(..2000))).as_nanos())),
        4 => masked(done, || {
            hypercall::block(NEVER);
        }),
        // Polls, with upcalls masked; or with its channels masked, too.
        5 => without_upcalls(|| {
            if !done() {
                hypercall::poll(&lanes::set(), NEVER);
            }
        }),
        6 | 7 => poll_masked(random, done),
        8 => drop(hypercall::poll(&lanes::set(), (Instant::now() + Duration::from_micros(100)).as_nanos())),
        // Computes: only an upcall tells it.
        9 if smp::count() <= 8 => {
            while !done() {
                core::hint::spin_loop();
            }
        }
        9 => (0..random.u32(..50_000)).for_each(|_| core::hint::spin_loop()),
        10 => hypercall::yield_now(),
        11 => drop(hypercall::yield_to(random.u32(..smp::count()))),
        // Runs a program that calls often; or never.
        12 | 13 => {
            let turns = random.u64(1..10_000);
            while !done() {
                program.step(turns);
            }
        }
        14 if smp::count() <= 8 => masked(done, || program.step(u64::MAX)),
        _ => {
            let turns = random.u64(1..1_000_000);
            masked(done, || program.step(turns));
        }
    }
    DOING.store(0, Relaxed);
}

/// Waits by something that ends when an event comes, with upcalls masked from the look on; they are handled in between.
fn masked(done: &dyn Fn() -> bool, mut way: impl FnMut()) {
    let mut ready = false;
    while !ready {
        without_upcalls(|| {
            ready = done();
            if !ready {
                way();
            }
        });
    }
}

/// Polls with the lanes masked: nothing wakes it but the poll. Takes what has come by itself.
fn poll_masked(random: &mut Rng, done: &dyn Fn() -> bool) {
    lanes::channels().for_each(Channel::mask);
    if !done() {
        let deadline =
            if random.bool() { NEVER } else { (Instant::now() + Duration::from_millis(2)).as_nanos() };
        hypercall::poll(&lanes::set(), deadline);
        lanes::channels().filter(|channel| channel.take()).for_each(lanes::came);
    }
    lanes::channels().for_each(Channel::unmask);
}
