//! Dies, each time in the way its argument names: what a report of each looks like.

#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "dying takes it")]

use core::arch::asm;
use core::hint::black_box;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::SeqCst;
use guest_sdk::area::{Area, Stack};
use guest_sdk::hv_abi::address::{HYPERCALL_PAGE, MAX_VCPUS, VCPU_PAGES, entry};
use guest_sdk::{println, smp};

guest_sdk::entry!(main);

/// A way to die: its name, what it does, and the function.
type Way = (&'static str, &'static str, fn());

const WAYS: &[Way] = &[
    ("panic", "a Rust panic", || panic!("this is what a guest's panic looks like")),
    ("page-fault", "writes where nothing is mapped", page_fault),
    ("read-only", "writes to its own code", read_only),
    ("execute", "jumps to its own data", execute),
    ("null", "reads through a null pointer", null),
    ("illegal-instruction", "runs an instruction that does not exist", illegal_instruction),
    ("stack-overflow", "recurses until the guard page", || println!("{}", recurse(0))),
    ("own-stack", "recurses until the guard page of a stack that it has made", own_stack),
    ("table", "changes a live page table by a plain store; needs --check-tables", table),
    ("divide", "divides by zero", divide),
    ("syscall", "makes a host system call", system_call),
    ("loop", "never ends; needs --timeout", endless),
    ("unanswering", "hides from the request to stop; needs --timeout", unanswering),
    ("others", "panics while its other vCPUs compute and sleep; needs --cpus", others),
    ("lost-stack", "faults with its stack pointer where the host's signals land", lost_stack),
];

fn main() -> u8 {
    let name = guest_sdk::boot::arguments().next().unwrap_or("");
    match WAYS.iter().find(|way| way.0 == name) {
        Some((_, _, way)) => way(),
        None => {
            println!("usage: crash WAY");
            WAYS.iter().for_each(|(name, about, _)| println!("  {name:<20} {about}"));
        }
    }
    2
}

#[inline(never)]
fn page_fault() {
    // SAFETY: not met: nothing is mapped there, which is the point.
    unsafe { black_box(0x1234_5678_9000 as *mut u64).write_volatile(1) };
}

#[inline(never)]
fn read_only() {
    // SAFETY: not met: code is not writable, which is the point.
    unsafe { (main as *mut u8).write_volatile(0) };
}

#[inline(never)]
fn execute() {
    static DATA: [u8; 16] = [0xc3; 16];
    // SAFETY: not met: data is not a function, which is the point.
    let data = unsafe { core::mem::transmute::<*const [u8; 16], fn()>(&raw const DATA) };
    black_box(data)();
}

#[inline(never)]
fn null() {
    // SAFETY: not met: null is never mapped, which is the point.
    black_box(unsafe { black_box(core::ptr::without_provenance::<u64>(8)).read_volatile() });
}

#[inline(never)]
fn illegal_instruction() {
    // SAFETY: not met: the instruction does not return, which is the point.
    unsafe { asm!("ud2") };
}

#[expect(unconditional_recursion, reason = "the stack has an end, which is the point")]
#[inline(never)]
fn recurse(depth: u64) -> u64 {
    let ballast = black_box([depth; 64]);
    recurse(depth + 1) + ballast[0]
}

/// Maps a page for itself, and then changes the page's entry as if nobody had to know.
fn table() {
    let area = Area::new(0).expect("a host that has page tables, and a few pages");
    let info = guest_sdk::boot::info();
    let mut table = info.kernel_root.0;
    let entry = |table: u64, level: u32| {
        (info.direct_map + table + (area.address() >> (3 + 9 * level)) % 512 * 8) as *mut u64
    };
    for level in [4, 3, 2] {
        // SAFETY: the area's tables are there, in the direct map, and nobody changes them meanwhile.
        table = unsafe { entry(table, level).read_volatile() } & 0x000f_ffff_ffff_f000;
    }
    // SAFETY: not met: a live table is changed by MMU_UPDATE, which is the point.
    unsafe { entry(table, 1).write_volatile(0) };
    drop(area);
}

fn own_stack() {
    let mut stack = Stack::new(2).expect("a host that has page tables, and 16 KiB");
    println!("{}", stack.run(|| recurse(0)));
}

#[inline(never)]
fn divide() {
    // SAFETY: not met: dividing by zero does not return, which is the point.
    unsafe { asm!("div {0}", in(reg) 0_u64, inout("rax") 1_u64 => _, inout("rdx") 0_u64 => _) };
}

#[inline(never)]
fn system_call() {
    const GETPID: u64 = 39;
    // SAFETY: not met: the host's system calls are not a guest's, which is the point.
    unsafe { asm!("syscall", inout("rax") GETPID => _, out("rcx") _, out("r11") _) };
}

#[inline(never)]
fn endless() {
    READY[smp::current() as usize].store(true, SeqCst);
    loop {
        black_box(0);
    }
}

/// The second vCPU computes, and those after it sleep.
#[inline(never)]
fn others() {
    for vcpu in 1..smp::count() {
        let work: fn() = if vcpu == 1 { endless } else { sleeper };
        smp::start(vcpu, work).expect("it was not started");
    }
    while (1..smp::count()).any(|vcpu| !READY[vcpu as usize].load(SeqCst)) {
        core::hint::spin_loop();
    }
    panic!("the others go on");
}

static READY: [AtomicBool; MAX_VCPUS as usize] = [const { AtomicBool::new(false) }; MAX_VCPUS as usize];

#[inline(never)]
fn sleeper() {
    READY[smp::current() as usize].store(true, SeqCst);
    loop {
        guest_sdk::time::sleep(core::time::Duration::from_secs(1000));
    }
}

/// Enters the hypercall page's `block` with GS base at a page of its own, so that the sleep never looks at what the
/// hypervisor asks.
#[inline(never)]
fn unanswering() {
    #[repr(align(4096))]
    struct Pages {
        _words: [u64; 2048],
    }
    static mut PAGES: Pages = Pages { _words: [0; 2048] };
    println!("deaf from here on");
    let block = HYPERCALL_PAGE + entry::BLOCK;
    // SAFETY: not met: GS base must be the vCPU page at a hypercall, which is the point.
    unsafe {
        asm!("wrgsbase {0}", "call {1}", in(reg) &raw mut PAGES, in(reg) block, in("rdi") u64::MAX, options(noreturn))
    };
}

/// The lowest page of vCPU 0's signal stack has no room for a signal, and the host notices only when one lands.
#[inline(never)]
fn lost_stack() {
    let near_its_end = VCPU_PAGES + 0x1_0000 + 1024;
    // SAFETY: not met: RSP must be a stack of the guest's, which is the point.
    unsafe { asm!("mov rsp, {0}", "ud2", in(reg) near_its_end, options(noreturn)) };
}
