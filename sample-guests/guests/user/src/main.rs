//! Runs user programs: a system call, a page on demand, a crash, and an endless loop that is preempted.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::collections::VecDeque;
use guest_sdk::frames::allocate_zeroed;
use guest_sdk::hv_abi::PAGE_SIZE;
use guest_sdk::space::{AddressSpace, Rights};
use guest_sdk::time::Duration;
use guest_sdk::user::{Task, Trap};
use guest_sdk::{elf, print, println};

guest_sdk::entry!(main, memory = 16 << 20);

/// The program, which looks at its argument to know what to do.
const PROGRAM: &[u8] = include_bytes!(env!("PROGRAM"));
const NAMES: [&str; 4] = ["hello", "on demand", "crash", "loop"];

/// Where pages are made when they are first used: the stack, and below it what programs like.
const ON_DEMAND: core::ops::Range<u64> = 0x7000_0000..0x8000_0000;

/// System calls, known to the program, too.
const EXIT: u64 = 0;
const WRITE: u64 = 1;

struct Process {
    name: &'static str,
    space: AddressSpace,
    task: Task,
}

fn main() {
    let mut ready: VecDeque<Process> = (0..).zip(NAMES).map(|(what, name)| start(name, what)).collect();
    while let Some(mut process) = ready.pop_front() {
        let preempted = run(&mut process);
        if preempted && ready.is_empty() {
            println!("[{} goes on for ever]", process.name);
        } else if preempted {
            ready.push_back(process);
        }
    }
}

fn start(name: &'static str, argument: u64) -> Process {
    let mut space = AddressSpace::new().expect("the host has user mode");
    let program = elf::load(&mut space, PROGRAM).expect("a good program");
    let mut task = Task::new(program.entry, ON_DEMAND.end);
    task.registers_mut().rdi = argument;
    Process { name, space, task }
}

/// Runs a process until it ends or its time is over. Whether it is that.
fn run(process: &mut Process) -> bool {
    let Process { name, space, task } = process;
    loop {
        match task.run_for(space, Duration::from_millis(5)) {
            Trap::Syscall if task.syscall().number == EXIT => {
                println!("[{name} exits with code {}]", task.syscall().arguments[0]);
                return false;
            }
            Trap::Syscall => system_call(space, task),
            Trap::PageFault { address, .. } if ON_DEMAND.contains(&address) => {
                let page = address - address % PAGE_SIZE;
                let frame = allocate_zeroed(0).expect("there is memory for four programs");
                space.map(page, frame, Rights::WRITE).expect("a page of user space");
            }
            Trap::Interrupted => return true,
            trap => {
                println!("[{name} is ended: {trap:x?}]");
                return false;
            }
        }
    }
}

/// Every call but [`EXIT`]. One that goes wrong gives the largest number.
fn system_call(space: &AddressSpace, task: &mut Task) {
    let call = task.syscall();
    let mut buffer = [0; 256];
    let [at, length, ..] = call.arguments;
    let text = buffer.get_mut(..length as usize).filter(|_| call.number == WRITE);
    let text = text.and_then(|text| space.copy_in(at, text).ok().map(|()| text));
    let result = text.map_or(u64::MAX, |text| {
        print!("{}", core::str::from_utf8(text).unwrap_or("?"));
        length
    });
    task.set_result(result);
}
