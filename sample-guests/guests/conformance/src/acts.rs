//! What the image does for a scenario: the first argument names the act, the others are its arguments.
//!
//! Addresses are guest-virtual and decimal. An act that returns ends the VM with code 0.

#![expect(unsafe_code, reason = "crashing takes it")]

use crate::registers::{enter, good};
use crate::{cost, devices, digest, direct, first, in_a_storm, kernel_space, pages, phys, raw, typed};
use alloc::vec::Vec;
use guest_sdk::boot::info;
use guest_sdk::console::write;
use guest_sdk::hv_abi::address::entry;
use guest_sdk::hv_abi::boot::{BootInfo, MemoryRegion, region};
use guest_sdk::hv_abi::call::{
    CALLS, CONSOLE_WRITE_MAX, MULTICALL_MAX, MulticallEntry, NEVER, PANIC_TEXT_MAX, PanicReport,
};
use guest_sdk::hv_abi::mmu::ROOTS_MAX;
use guest_sdk::hv_abi::{Call, Features, GuestPhys, PAGE_SIZE, Status};
use guest_sdk::time::{Duration, Instant, since_epoch, stolen};
use guest_sdk::{hypercall, print, println};

/// An act: its name, and what it does with the other arguments.
type Act = (&'static str, fn(&[&'static str]));

const ACTS: &[Act] = &[
    ("arguments", |_| write(direct(info().command_line.start, info().command_line.length))),
    ("block", |_| {
        loop {
            hypercall::block(NEVER);
        }
    }),
    ("boot", |_| boot()),
    ("clock", |_| clock()),
    ("count", |_| in_a_storm(|| (0..3000).for_each(|i| println!("{i}")))),
    ("cost", |arguments| cost::of(arguments[0], number(arguments[1]))),
    ("digest", |_| println!("{:016x}", digest::digest())),
    ("entries", |_| entries()),
    ("balloon", |_| pages::follow_balloon()),
    ("featureless", |_| featureless()),
    ("lengths", |_| lengths()),
    ("many-requests", |_| devices::many_requests()),
    ("overwrite", |_| overwrite()),
    ("own-entry", |arguments| kernel_space::entry_without(arguments[0], arguments[1], arguments[2])),
    ("own-slot", |arguments| kernel_space::fill_slot(number(arguments[0]))),
    ("panic", |arguments| panic_as(arguments[0])),
    ("ramdisk", |_| ramdisk()),
    ("rate", |_| rate()),
    ("read-all", |_| typed::read_all()),
    ("read-steps", |_| typed::read_steps()),
    ("refused", |_| refused()),
    ("roots", |_| roots()),
    ("show", |arguments| show(number(arguments[0]), number(arguments[1]))),
    ("shutdown", |arguments| shutdown(number(arguments[0]))),
    ("spin", |_| spin()),
    ("steal", |arguments| steal(number(arguments[0]))),
    (first::ZEROS, |_| first::report_zeros()),
    // Acts that may crash: each writes where its instruction is, and runs it.
    ("divide", |_| crash(&raw const hv_conformance_divide, 0)),
    ("execute", |arguments| touch("execute", number(arguments[0]))),
    ("illegal", |_| crash(&raw const hv_conformance_illegal, 0)),
    ("read", |arguments| touch("read", number(arguments[0]))),
    ("syscall", |arguments| crash(&raw const hv_conformance_syscall, number(arguments[0]))),
    ("write", |arguments| touch("write", number(arguments[0]))),
];

/// Does what the command line says, if its first word is the name of an act.
pub fn perform() -> bool {
    let arguments: Vec<&str> = guest_sdk::boot::arguments().collect();
    let act = arguments.first().and_then(|name| ACTS.iter().find(|act| act.0 == *name));
    act.inspect(|act| act.1(&arguments[1..])).is_some()
}

pub fn number(text: &str) -> u64 {
    text.parse().expect("a decimal number")
}

// Functions of one instruction that may crash, with RDI as its operand, and a return.
core::arch::global_asm!(
    "hv_conformance_read: mov al, [rdi]",
    "ret",
    "hv_conformance_write: lock or byte ptr [rdi], 0", // changes nothing where it does not crash
    "ret",
    "hv_conformance_execute: jmp rdi", // to a `ret`, if anything is there
    "hv_conformance_illegal: ud2",
    "hv_conformance_divide: div edi",
    "ret",
    "hv_conformance_syscall: syscall",
    "ret",
);

unsafe extern "C" {
    static hv_conformance_read: u8;
    static hv_conformance_write: u8;
    static hv_conformance_execute: u8;
    static hv_conformance_illegal: u8;
    static hv_conformance_divide: u8;
    static hv_conformance_syscall: u8;
}

/// Touches an address in a way that may crash.
pub fn touch(how: &str, address: u64) {
    match how {
        "read" => crash(&raw const hv_conformance_read, address),
        "write" => crash(&raw const hv_conformance_write, address),
        "execute" => crash(&raw const hv_conformance_execute, address),
        other => panic!("no way to touch {other:?}"),
    }
}

fn crash(function: *const u8, operand: u64) {
    println!("{}", function.addr());
    // SAFETY: the function is one of the above, which return or end the VM, and change nothing but what is declared lost.
    // Whether the operand is what they need is what the scenario is about.
    unsafe {
        core::arch::asm!("call {}", in(reg) function, in("rdi") operand, inout("rax") operand => _,
                         inout("rdx") 0_u64 => _, clobber_abi("sysv64"));
    }
}

/// Writes the boot information and the memory map, as they are.
fn boot() {
    let start = info() as *const BootInfo as u64 - info().direct_map;
    write(direct(GuestPhys(start), size_of::<BootInfo>() as u64));
    write(direct(info().memory_map.start, info().memory_map.length * size_of::<MemoryRegion>() as u64));
}

/// Writes the clock and the wall time at which it showed 0, in nanoseconds.
fn clock() {
    let now = Instant::now().as_nanos();
    let base = since_epoch() - Duration::from_nanos(Instant::now().as_nanos());
    println!("{now} {}", base.as_nanos());
}

/// Writes, now and a second later, lines between two readings of the clock, and then the readings.
fn rate() {
    let mut readings = [0; 40];
    for half in 0..2 {
        for i in 0..10 {
            readings[half * 20 + i * 2] = Instant::now().as_nanos();
            println!("now");
            readings[half * 20 + i * 2 + 1] = Instant::now().as_nanos();
        }
        guest_sdk::time::sleep(Duration::from_secs(1 - half as u64));
    }
    readings.iter().for_each(|reading| print!("{reading} "));
}

/// Writes the entries of a multicall by an entry of that multicall.
fn entries() {
    let entry = MulticallEntry { status: Status(77), value: 77, ..MulticallEntry::default() };
    let mut entries = [entry; 3];
    entries[1].call = Call::CONSOLE_WRITE;
    entries[1].arguments[0] = phys(&entries);
    entries[1].arguments[1] = size_of_val(&entries) as u64;
    let expected = entries;
    assert_eq!(raw(Call::MULTICALL, [phys(&entries), 3]), Ok(3));
    let found = core::hint::black_box(&entries).map(|entry| (entry.status.0, entry.value));
    assert_eq!(found, [(0, 1), (0, 192), (0, 1)]);
    // What the call has written is for the host to see; here is what it should be.
    // SAFETY: entries are plain words, so their bytes may be looked at.
    write(unsafe { core::slice::from_raw_parts(expected.as_ptr().cast::<u8>(), 192) });
}

/// For an image that asks for no feature: fails if a call of one is served.
fn featureless() {
    assert_eq!(info().features, Features::empty());
    assert_eq!(info().kernel_root, GuestPhys(0));
    for call in CALLS.iter().filter(|call| !call.call.feature().is_empty()) {
        for arguments in [[0; 5], [u64::MAX; 5]] {
            assert_eq!(raw(call.call, arguments), Err(Status::UNKNOWN_CALL), "{}", call.name);
        }
    }
    assert_eq!(raw(Call::YIELD, []), Ok(0), "a call of no feature");
    for (root, context) in [(0, 0), (0x1000, 0x2000), (u64::MAX, u64::MAX)] {
        assert_eq!(enter(entry::ENTER_USER, [root, context, 7, 7, 7, 7]), good(Status::UNKNOWN_CALL, 0));
    }
}

/// Makes as many roots as there can be, of pages near the end of memory that the heap has not come to.
fn roots() {
    let size = crate::memory_size();
    let root = |i: u64| GuestPhys(size - (i + 256) * PAGE_SIZE);
    let create = |i| MulticallEntry {
        call: Call::ROOT_CREATE,
        arguments: [root(i).0, 0, 0, 0, 0],
        ..MulticallEntry::default()
    };
    for first in (0..ROOTS_MAX).step_by(MULTICALL_MAX as usize) {
        let last = ROOTS_MAX.min(first + MULTICALL_MAX);
        let entries: Vec<_> = (first..last).map(create).collect();
        assert_eq!(raw(Call::MULTICALL, [phys(&entries[0]), last - first]), Ok(last - first));
        assert!(entries.iter().all(|entry| entry.status == Status::SUCCESS), "roots from {first} on");
    }
    assert_eq!(hypercall::root_create(root(ROOTS_MAX)), Err(Status::NO_SPACE));
    assert_eq!(hypercall::root_destroy(root(7)), Ok(()));
    assert_eq!(hypercall::root_create(root(ROOTS_MAX)), Ok(()));
    assert_eq!(hypercall::root_create(root(7)), Err(Status::NO_SPACE));
}

/// Writes runs of the digits of a counter, of all sorts of lengths, each with one call.
fn lengths() {
    let text: Vec<u8> = (0_u64..20_000)
        .flat_map(|i| [b'0' + (i % 10) as u8, b'a' + (i / 10 % 26) as u8, b'\n', i as u8])
        .collect();
    for length in [1, 2, 3, 100, 4095, 4096, 4097, CONSOLE_WRITE_MAX - 1, CONSOLE_WRITE_MAX] {
        assert_eq!(raw(Call::CONSOLE_WRITE, [phys(&text[0]), length]), Ok(length));
    }
}

/// Writes a text again and again, and overwrites it behind each call.
fn overwrite() {
    let mut text;
    for _ in 0..1000 {
        text = *core::hint::black_box(b"good\n");
        assert_eq!(raw(Call::CONSOLE_WRITE, [phys(core::hint::black_box(&text)), 5]), Ok(5));
        text = *core::hint::black_box(b"BAD!\n");
        core::hint::black_box(&mut text);
    }
}

/// Panics with a report of a certain kind.
fn panic_as(kind: &str) {
    println!("before");
    let long = [b'x'; PANIC_TEXT_MAX as usize];
    let (message, file): (&[u8], &[u8]) = match kind {
        "whole" => ("what: \u{e9}".as_bytes(), b"some/file.rs"),
        "longest" => (&long, &long),
        "without-place" => (b"nowhere", b""),
        "not-text" => (b"a\xff\xfeb", b"f"),
        other => panic!("no report of the kind {other:?}"),
    };
    let text = |text: &[u8]| text.first().map_or(GuestPhys(0), |first| GuestPhys(phys(first)));
    let report = PanicReport {
        message: text(message),
        message_length: message.len() as u64,
        file: text(file),
        file_length: file.len() as u64,
        line: 7,
        column: 9,
    };
    let status = raw(Call::PANIC, [phys(&report)]);
    println!("it returned {status:?}");
}

/// Writes the ramdisk, once it is where it should be.
fn ramdisk() {
    let ramdisk = info().ramdisk;
    assert!(ramdisk.start.0.is_multiple_of(guest_sdk::hv_abi::PAGE_SIZE), "{ramdisk:?}");
    let end = ramdisk.start.0 + ramdisk.length;
    let holds = |run: &MemoryRegion| run.start <= ramdisk.start && end <= run.start.0 + run.length;
    assert!(
        guest_sdk::memory::map().iter().any(|run| run.kind == region::RAMDISK && holds(run)),
        "{ramdisk:?}"
    );
    write(direct(ramdisk.start, ramdisk.length));
}

/// Writes what the host refuses, between two words that it takes.
fn refused() {
    print!("[");
    let (text, size) = ([b'x'; 64], info().memory_size);
    assert_eq!(raw(Call::CONSOLE_WRITE, [phys(&text), CONSOLE_WRITE_MAX + 1]), Err(Status::OUT_OF_RANGE));
    assert_eq!(raw(Call::CONSOLE_WRITE, [phys(&text), u64::MAX]), Err(Status::OUT_OF_RANGE));
    for (start, length) in [(size - 1, 2), (size - 4096, 4097), (size, 1), (u64::MAX, 2), (1 << 63, 64)] {
        assert_eq!(raw(Call::CONSOLE_WRITE, [start, length]), Err(Status::BAD_ADDRESS), "{start:#x}");
    }
    assert_eq!(raw(Call::CONSOLE_WRITE, [phys(&text), 0]), Ok(0));
    assert_eq!(raw(Call::CONSOLE_WRITE, [phys(&text), 64, 1]), Err(Status::BAD_ARGUMENT));
    print!("]");
}

/// Writes what is at an address.
fn show(start: u64, length: u64) {
    let at = core::ptr::with_exposed_provenance::<u8>(start as usize);
    // A copy, for the console takes only what is in the image or in the direct map.
    // SAFETY: the scenario names bytes of the image's own segments, which nothing changes meanwhile.
    let bytes = unsafe { core::slice::from_raw_parts(at, length as usize) }.to_vec();
    write(&bytes);
}

fn shutdown(code: u64) {
    println!("before");
    let status = raw(Call::SHUTDOWN, [code]);
    println!("it returned {status:?}");
}

/// Computes for so many milliseconds, and tells how long that was and how much of it was stolen.
fn steal(milliseconds: u64) {
    in_a_storm(|| {
        let (start, before) = (Instant::now(), stolen());
        while start.elapsed() < Duration::from_millis(milliseconds) {
            core::hint::spin_loop();
        }
        let time = start.elapsed();
        println!("{} {}", time.as_nanos(), (stolen() - before).as_nanos());
    });
}

fn spin() {
    println!("before");
    loop {
        core::hint::spin_loop();
    }
}
