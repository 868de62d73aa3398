//! The same attacks by user programs: on their kernel, on other programs, on the engine, on the host.
//!
//! A program gets a copy of this image at the same addresses, so that it can run the code of the other modules. Whatever it
//! does, this kernel and a good program beside it must go on as if nothing had been: that is what it looks at after each.

#![expect(unsafe_code, reason = "the image's own pages, as data")]

use crate::{Numbers, hide, jump, pages, state, system_calls};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use guest_sdk::frames;
use guest_sdk::hv_abi::PAGE_SIZE;
use guest_sdk::hv_abi::address::DIRECT_MAP;
use guest_sdk::println;
use guest_sdk::space::{AddressSpace, Rights};
use guest_sdk::time::Duration;
use guest_sdk::user::{Task, Trap};

/// Odd, so that successive seeds come to all bytes, and far from each other.
const SPREAD: u64 = 2731;

/// What a program attacks with, by number; it is given a seed.
const WAYS: [fn(u64); 8] = [
    |seed| jump::anywhere([seed, seed * SPREAD % jump::STUB_BYTES as u64, 0]),
    |seed| jump::gadget([seed, seed % 16, seed / 16]),
    |seed| system_calls::make([seed % 4, seed / 4, 0]),
    |seed| state::trap([seed, seed, 0]),
    |seed| pages::overwrite([seed, seed % 3, 0]),
    |seed| pages::forge([seed, 0, 0]),
    |seed| hide::hide([2 + seed % 4, 0, 0]),
    // Half of them to the table's first entries, which are in use.
    |seed| match seed.is_multiple_of(2) {
        true => jump::table([seed, PAGE_SIZE + seed / 2 % 64, 0]),
        false => jump::table([seed, seed * SPREAD % (2 * PAGE_SIZE), 0]),
    },
];

/// Set in the copies that programs have.
static IN_USER: AtomicBool = AtomicBool::new(false);

/// Whether this is a program.
pub fn in_user() -> bool {
    IN_USER.load(Relaxed)
}

/// How long one program is let run, and how often it may trap.
const TIME: Duration = Duration::from_millis(3);
const TRAPS: u32 = 300;

/// `count` programs that attack in one way, from a seed on.
pub fn attack([way, first, count]: Numbers) {
    let kernel: Vec<u64> = (0..4096).map(|i| i * 0x9e37_79b9).collect();
    let mut good = Good::new();
    let mut ends = [0_u32; 5];
    for seed in first..first + count {
        let (mut space, mut task) = bad(way, seed);
        for _ in 0..TRAPS {
            let trap = task.run_for(&mut space, TIME);
            ends[kind(trap)] += 1;
            match trap {
                Trap::Syscall => task.set_result(seed),
                Trap::PageFault { address, .. } if demand(&mut space, address) => {}
                _ => break,
            }
        }
        good.goes_on();
        assert!(
            kernel.iter().zip(0..).all(|(word, i)| *word == i * 0x9e37_79b9),
            "a program reached its kernel"
        );
    }
    let [calls, faults, exceptions, interrupts, killed] = ends;
    println!(
        "{calls} calls, {faults} faults, {exceptions} exceptions, {interrupts} interrupts, {killed} killed"
    );
}

fn kind(trap: Trap) -> usize {
    match trap {
        Trap::Syscall => 0,
        Trap::PageFault { .. } => 1,
        Trap::Exception { .. } => 2,
        Trap::Interrupted => 3,
        Trap::Killed => 4,
    }
}

/// Some of the addresses that a bad program wants, it gets.
fn demand(space: &mut AddressSpace, address: u64) -> bool {
    let page = address - address % PAGE_SIZE;
    page.is_multiple_of(16 * PAGE_SIZE)
        && frames::allocate_zeroed(0).is_ok_and(|frame| space.map(page, frame, Rights::WRITE).is_ok())
}

/// A program with a copy of this image, that attacks.
fn bad(way: u64, seed: u64) -> (AddressSpace, Task) {
    unsafe extern "C" {
        static __hv_image_start: u8;
        static __hv_text_end: u8;
        static __hv_image_end: u8;
    }
    let address = |symbol: *const u8| symbol.addr() as u64;
    let (start, end) = (address(&raw const __hv_image_start), address(&raw const __hv_image_end));
    let text_end = address(&raw const __hv_text_end);
    let mut space = AddressSpace::new().expect("a root");
    for page in (start..end).step_by(PAGE_SIZE as usize) {
        let rights = if page < text_end { Rights::EXECUTE } else { Rights::WRITE };
        copy_page(&mut space, page, rights);
    }
    // What `boot::info` reads.
    (1..16).for_each(|page| copy_page(&mut space, DIRECT_MAP + page * PAGE_SIZE, Rights::READ));
    IN_USER.store(false, Relaxed);
    let mut task = Task::new(run as *const () as u64, end - 64 - 8);
    task.registers_mut().rdi = way;
    task.registers_mut().rsi = seed;
    (space, task)
}

/// Maps a copy of a page of this kernel's at the same address. What is not mapped here is not there, either.
fn copy_page(space: &mut AddressSpace, page: u64, rights: Rights) {
    unsafe extern "C" {
        static __hv_stack_bottom: u8;
    }
    let bottom = (&raw const __hv_stack_bottom).addr() as u64;
    if (bottom - 0x1_0000..bottom).contains(&page) {
        return; // the guard below the stack
    }
    let frame = frames::allocate(0).expect("memory");
    let mut bytes = [0_u8; PAGE_SIZE as usize];
    // SAFETY: the page is of the image or of boot information, mapped and readable; its bytes are copied as they are at
    // the moment, by volatile reads, since some are statics that others change.
    (0..).zip(&mut bytes).for_each(|(i, byte)| *byte = unsafe { ((page + i) as *const u8).read_volatile() });
    frame.write_at(0, &bytes);
    space.map(page, frame, rights).expect("a page of the lower half");
}

/// A program's first function.
extern "C" fn run(way: u64, seed: u64) -> ! {
    IN_USER.store(true, Relaxed);
    WAYS[way as usize % WAYS.len()](seed);
    loop {
        system_calls::make([0, seed, 0]);
    }
}

/// A program that counts its system calls in RBX, and keeps its address space for all the time.
struct Good {
    space: AddressSpace,
    task: Task,
    calls: u64,
}

impl Good {
    const ENTRY: u64 = 0x40_0000;
    /// `1: inc rbx; mov [rsp], rbx; syscall; jmp 1b`
    const CODE: [u8; 11] = [0x48, 0xff, 0xc3, 0x48, 0x89, 0x1c, 0x24, 0x0f, 0x05, 0xeb, 0xf5];

    fn new() -> Self {
        let mut space = AddressSpace::new().expect("a root");
        let code = frames::allocate_zeroed(0).expect("memory");
        code.write_at(0, &Self::CODE);
        space.map(Self::ENTRY, code, Rights::EXECUTE).expect("a good place");
        let stack = frames::allocate_zeroed(0).expect("memory");
        space.map(2 * Self::ENTRY, stack, Rights::WRITE).expect("a good place");
        Self { space, task: Task::new(Self::ENTRY, 2 * Self::ENTRY + 64), calls: 0 }
    }

    fn goes_on(&mut self) {
        for _ in 0..20 {
            self.calls += 1;
            let mut trap = self.task.run(&mut self.space);
            while trap == Trap::Interrupted {
                trap = self.task.run(&mut self.space); // the timer of a slice that ended early
            }
            assert_eq!(trap, Trap::Syscall);
            assert_eq!(self.task.registers().rbx, self.calls);
        }
        let mut word = [0; 8];
        self.space.copy_in(2 * Self::ENTRY + 64, &mut word).expect("its stack");
        assert_eq!(u64::from_le_bytes(word), self.calls);
    }
}
