//! The kernel on the fake host: memory by itself, and processes whose programs are played by the tests.

use crate::files::Files;
use crate::kernel::{FIRST, Kernel, MOST_PROCESSES};
use crate::memory::{Fault, MOST_PAGES, Memory, Region};
use crate::mounts::Mounts;
use crate::program;
use crate::vcpu;
use guest_sdk::hv_abi::user::UserContext;
use guest_sdk::space::{Access, Rights};
use guest_sdk::sync::Lock;
use guest_sdk::time::Duration;
use guest_sdk::user::Trap;
use guest_sdk::{fake, frames};
use minios_abi::{Error, KILLED, call};
use std::cell::RefCell;
use std::rc::Rc;
use std::vec::Vec;

const PAGE: u64 = 4096;
const AT: u64 = 0x40_0000;

fn files() -> Files {
    Files::new(&[include_bytes!(concat!(env!("OUT_DIR"), "/files.tar"))])
}

/// Memory with a region of 64 pages, writable or not, which begins with some of a file.
fn memory(write: bool) -> Memory {
    let memory = Memory::new().unwrap();
    let rights = Rights { write, execute: false };
    memory.add(Region { range: AT..AT + 64 * PAGE, rights, content: (AT + 5, b"from a file") }).unwrap();
    memory
}

fn byte(memory: &Memory, at: u64) -> Result<u8, Error> {
    let mut byte = [0];
    memory.read(at, &mut byte).map(|()| byte[0])
}

#[test]
fn the_archive_has_files_and_programs() {
    let files = files();
    assert_eq!(files.find("/motd").unwrap().bytes, include_bytes!("../files/motd"));
    assert!(files.find("none").is_none());
    let shell = files.find("sh").unwrap();
    let start = program::load(shell.bytes, b"sh\0-c\0true").unwrap();
    assert_eq!(start.stack % 16, 0);
    assert_eq!(program::load(b"not a program", b"").unwrap_err(), Error::NotExecutable);
    for length in 0..200 {
        let cut = &shell.bytes[..length];
        assert_eq!(program::load(cut, b"").unwrap_err(), Error::NotExecutable, "cut off at {length}");
    }
    drop(start);
    fake::finish();
}

#[test]
fn pages_appear_when_they_are_touched_with_what_belongs_there() {
    let memory = memory(false);
    assert_eq!(memory.pages(), 0);
    let mut bytes = [1; 20];
    memory.read(AT, &mut bytes).unwrap();
    assert_eq!(&bytes, b"\0\0\0\0\0from a file\0\0\0\0");
    assert_eq!(memory.pages(), 16, "and those around");
    assert_eq!(memory.write(AT, b"x"), Err(Error::BadAddress));
    assert_eq!(memory.fault(AT, Access::Execute), Err(Fault::Forbidden));
    assert_eq!(byte(&memory, AT - 1), Err(Error::BadAddress));
    assert_eq!(byte(&memory, AT + 64 * PAGE), Err(Error::BadAddress));
    assert_eq!(byte(&memory, AT + 64 * PAGE - 1), Ok(0));
    assert_eq!(memory.read(u64::MAX - 3, &mut [0; 8]), Err(Error::BadAddress));
}

#[test]
fn a_fork_shares_pages_until_one_side_writes() {
    let parent = memory(true);
    parent.write(AT, b"a").unwrap();
    let child = parent.fork().unwrap();
    let before = frames::available();
    assert_eq!((byte(&parent, AT), byte(&child, AT)), (Ok(b'a'), Ok(b'a')));
    assert_eq!(frames::available(), before, "reading copies nothing");
    child.write(AT, b"c").unwrap();
    assert_eq!(frames::available(), before - 1);
    parent.write(AT, b"p").unwrap();
    assert_eq!((byte(&parent, AT), byte(&child, AT)), (Ok(b'p'), Ok(b'c')));
    child.space.lock().flush();
    parent.space.lock().flush();
    assert_eq!(frames::available(), before - 1, "the last one that has a page does not copy it");
}

#[test]
fn memory_is_refused_before_the_kernel_has_none() {
    let mut all = Vec::new();
    let refused = loop {
        let memory = match Memory::new() {
            Ok(memory) => memory,
            Err(error) => break error,
        };
        let at = memory.allocate(MOST_PAGES as u64 * PAGE).unwrap();
        assert_eq!(memory.allocate(MOST_PAGES as u64 * PAGE + 1), Err(Error::OutOfMemory));
        let fault = (0..).find_map(|page| memory.write(at + page * PAGE, b"x").err());
        assert!(memory.pages() <= MOST_PAGES);
        assert!(fault.is_some());
        all.push(memory);
    };
    assert_eq!(refused, Error::OutOfMemory);
    assert_eq!(all[0].fork().unwrap_err(), Error::OutOfMemory);
    drop(all);
    assert!(Memory::new().is_ok());
}

#[test]
fn regions_do_not_overlap_and_run_out() {
    let memory = memory(true);
    let region = |range| Region { range, rights: Rights::READ, content: (0, &[]) };
    for range in [AT..AT + PAGE, AT - PAGE..AT + PAGE, 0..PAGE, AT + 1..AT + PAGE, AT - PAGE..AT - PAGE] {
        assert_eq!(memory.add(region(range)), Err(Error::Invalid));
    }
    assert!((0..1000).any(|_| memory.allocate(1) == Err(Error::OutOfMemory)));
}

#[test]
fn memory_is_read_only_and_writable_again_and_copied_if_it_is_shared() {
    let memory = memory(true);
    assert_eq!(memory.protect(AT, false), Err(Error::Invalid), "the program did not ask for it");
    let at = memory.allocate(2 * PAGE).unwrap();
    memory.write(at, b"a").unwrap();
    memory.protect(at, false).unwrap();
    assert_eq!(memory.write(at, b"b"), Err(Error::BadAddress));
    assert_eq!(memory.fault(at + PAGE, Access::Write), Err(Fault::Forbidden), "what was not touched, too");
    assert_eq!(byte(&memory, at), Ok(b'a'));
    let child = memory.fork().unwrap();
    assert_eq!(child.write(at, b"b"), Err(Error::BadAddress));
    for memory in [&memory, &child] {
        memory.protect(at, true).unwrap();
    }
    child.write(at, b"c").unwrap();
    assert_eq!((byte(&memory, at), byte(&child, at)), (Ok(b'a'), Ok(b'c')));
    child.space.lock().flush(); // it lets go of the page that it has a copy of
    let before = frames::available();
    memory.protect(at, false).unwrap();
    memory.protect(at, true).unwrap();
    let writable = memory.space.lock().translate(at).unwrap().rights.write;
    assert!(writable, "what is nobody else's is writable at once");
    assert_eq!(frames::available(), before);
}

/// Runs a kernel to its end.
fn boot() -> i32 {
    vcpu::run(&Lock::new(Kernel::new(Mounts::new(files()), "sh", b"sh").unwrap())).unwrap()
}

/// Runs a kernel whose programs are all `program`: it is called with the registers, of which RBX counts its calls, and RAX
/// is the result of the last system call. It gives the next one, with its first arguments.
fn run(mut program: impl FnMut(u64, u64) -> (u64, [u64; 3]) + 'static) -> i32 {
    fake::set_program(move |user: &mut UserContext| {
        let (number, [a, b, c]) = program(user.rbx, user.rax);
        (user.rax, user.rdi, user.rsi, user.rdx) = (number, a, b, c);
        user.rbx += 1;
        Trap::Syscall
    });
    boot()
}

#[test]
fn a_parent_waits_for_its_child() {
    let status = run(|step, result| match (step, result) {
        (0, _) => (call::FORK, [0; 3]),
        (1, 0) => (call::SLEEP, [1_000_000, 0, 0]),
        (2, 0) => (call::EXIT, [7, 0, 0]), // the child has slept
        (1, child) => (call::WAIT, [child, 0, 0]),
        (2, child) => (call::EXIT, [child + 40, 0, 0]),
        _ => unreachable!("{step} {result}"),
    });
    assert_eq!(status, 42);
    fake::finish();
}

#[test]
fn whoever_reads_the_console_waits_for_what_is_typed_and_for_its_end() {
    fake::type_text("hi");
    fake::type_text("!");
    let mut buffer = 0;
    let status = run(move |step, result| match (step, result) {
        (0, _) => (call::MAP, [4096, 0, 0]),
        (1, _) => {
            buffer = result;
            (call::READ, [0, buffer, 10])
        }
        (2, 2) | (3, 1) => (call::READ, [0, buffer, 10]),
        (4, 0) => (call::EXIT, [5, 0, 0]),
        _ => unreachable!("{step} {result}"),
    });
    assert_eq!(status, 5);
    fake::finish();
}

#[test]
fn processes_run_out_and_forks_are_refused() {
    // Each child waits for ever; the parent counts them.
    let status = run(|step, result| match (step, result) {
        (0, _) => (call::FORK, [0; 3]),
        (_, 0) => (call::SLEEP, [u64::MAX >> 1, 0, 0]),
        (_, child) if child as i64 > 0 => (call::FORK, [0; 3]),
        (step, refused) if refused as i64 == Error::TooManyProcesses.result() => (call::EXIT, [step, 0, 0]),
        (_, result) => (call::EXIT, [result, 0, 0]),
    });
    assert_eq!(status, MOST_PROCESSES as i32);
}

#[test]
fn a_process_that_is_killed_is_gone() {
    let status = run(|step, result| match (step, result) {
        (0, _) => (call::FORK, [0; 3]),
        (1, 0) => (call::SLEEP, [u64::MAX >> 1, 0, 0]),
        (1, child) => (call::KILL, [child, 0, 0]),
        (2, 0) => (call::KILL, [99, 0, 0]),
        (3, result) if result as i64 == Error::NoProcess.result() => (call::WAIT, [0; 3]),
        (4, _) => (call::WAIT, [0; 3]),
        (5, result) if result as i64 == Error::NoChild.result() => (call::KILL, [FIRST.into(), 0, 0]),
        _ => unreachable!("{step} {result}"),
    });
    assert_eq!(status, KILLED);
}

#[test]
fn a_program_that_goes_on_and_on_is_preempted() {
    let turns = Rc::new(RefCell::new(Vec::new()));
    let seen = turns.clone();
    let status = run(move |step, result| match step {
        0 => (call::FORK, [0; 3]),
        1 => (call::PROCESS, [0; 3]),
        100 => (call::EXIT, [0; 3]),
        _ => {
            fake::advance(Duration::from_millis(3));
            seen.borrow_mut().push(result);
            (call::PROCESS, [0; 3])
        }
    });
    assert_eq!(status, 0);
    let mut turns = turns.take();
    turns.dedup();
    assert!(turns.len() > 20, "each had its turns: {turns:?}");
}

#[test]
fn nonsense_is_refused_and_changes_nothing() {
    let bad = |error: Error| error.result() as u64;
    let status = run(move |step, result| match step {
        0 => (call::READ, [0, 0, 5]),
        1 if result == bad(Error::BadAddress) => (call::WRITE, [1, u64::MAX, 5]),
        2 if result == bad(Error::BadAddress) => (call::WRITE, [77, AT, 0]),
        3 if result == bad(Error::BadDescriptor) => (call::OPEN, [AT, u64::MAX, 0]),
        4 if result == bad(Error::Invalid) => (call::WAIT, [0; 3]),
        5 if result == bad(Error::NoChild) => (call::PIPE, [0; 3]),
        6 if result == bad(Error::BadAddress) => (call::EXEC, [AT, 1, 0]),
        7 if (result as i64) < 0 => (99, [0; 3]),
        8 if result == bad(Error::Unknown) => (call::EXIT, [3, 0, 0]),
        _ => unreachable!("{step} {}", result as i64),
    });
    assert_eq!(status, 3);
}

#[test]
fn whoever_does_wrong_is_killed_with_a_line_on_the_console() {
    fake::set_program(|_| Trap::PageFault { address: 0x10, access: Access::Write });
    assert_eq!(boot(), KILLED);
    fake::set_program(|_| Trap::Exception { vector: 6 });
    assert_eq!(boot(), KILLED);
    let console = fake::console();
    assert!(console.contains("minios: killed sh (1): Write of 0x10,"), "{console}");
    assert!(console.contains("minios: killed sh (1): exception 6,"), "{console}");
}
