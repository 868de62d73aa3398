//! The same thing so often, for the host to count what it costs: the act `cost`.
//!
//! Start at [`of`].

use crate::phys;
use crate::program::{CODE, DATA, HEAP, Program, code, page, set};
use guest_sdk::events::without_upcalls;
use guest_sdk::hv_abi::GuestPhys;
use guest_sdk::hv_abi::mmu::Entry;
use guest_sdk::hv_abi::user::trap;
use guest_sdk::hypercall;
use guest_sdk::time::Instant;

/// V of a page that a program faults at.
const SPOT: u64 = HEAP + 0x10_0000;

/// Does `what` so many times.
pub fn of(what: &str, times: u64) {
    match what {
        "null" => (0..times).for_each(|_| assert_eq!(hypercall::version(), guest_sdk::hv_abi::ABI_VERSION)),
        "clock" => (0..times).for_each(|_| {
            core::hint::black_box(Instant::now());
        }),
        "mask" => (0..times).for_each(|_| without_upcalls(|| ())),
        "update" => updates(times),
        "call" => calls(times),
        "fault" => faults(times),
        _ => panic!("{what} is nothing that is counted"),
    }
}

fn updates(times: u64) {
    let (table, to) = (page(), GuestPhys(phys(page())));
    let at = GuestPhys(phys(table));
    for _ in 0..times {
        set(at, Entry::new(to, DATA), 0).expect("a good entry");
        set(at, Entry::empty(), 0).expect("a good entry");
    }
}

fn calls(times: u64) {
    let mut program = Program::new(code!("2: syscall", "jmp 2b"));
    (0..times).for_each(|_| assert_eq!(program.run(), trap::SYSCALL));
}

fn faults(times: u64) {
    let mut program = Program::new(code!("2: mov rax, [rdi]", "syscall", "jmp 2b"));
    program.context.rdi = SPOT;
    let (entry, to) = (program.space.entry(SPOT), GuestPhys(phys(page())));
    for _ in 0..times {
        assert_eq!(program.run(), trap::PAGE_FAULT);
        set(entry, Entry::new(to, CODE), 0).expect("a good entry");
        assert_eq!(program.run(), trap::SYSCALL);
        set(entry, Entry::empty(), 0).expect("a good entry");
    }
}
