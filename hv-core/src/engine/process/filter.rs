//! Seccomp filters that know instruction addresses.
//!
//! A sandbox's threads share one address space with the guest, so a filter that only names system calls would
//! let the guest make the mapping thread's. These name the *instruction* as well: the kernel compares the
//! address behind the `syscall` with the few that are in the stub, and the stub is not writable.
//!
//! Existing filter crates have no instruction-pointer conditions; the program is a dozen lines of BPF.

use super::layout::MAX_FILTER;
use super::stub;
use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W};

/// A system call that a filter allows at one instruction.
struct Allowed {
    /// Address behind the `syscall` instruction.
    instruction: u64,
    /// Numbers of the calls it may make.
    numbers: &'static [i64],
}

pub(super) const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

/// Offsets in the kernel's `seccomp_data`.
mod data {
    pub(super) const NUMBER: u32 = 0;
    pub(super) const ARCH: u32 = 4;
    pub(super) const INSTRUCTION_LOW: u32 = 8;
    pub(super) const INSTRUCTION_HIGH: u32 = 12;
    pub(super) const ARGUMENT_1_LOW: u32 = 24;
}

/// Everything that a sandbox does after its start; the vCPU threads' own filter then takes more away.
///
/// What is not allowed is `SECCOMP_RET_TRAP`: a SIGSYS for a vCPU thread, and the end for the mapping thread,
/// which has all signals blocked.
pub(super) fn mapping_thread() -> Vec<u64> {
    const FUTEX: &[i64] = &[libc::SYS_futex];
    const COMMANDS: &[i64] = &[
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mprotect,
        libc::SYS_clone,
        libc::SYS_sigaltstack,
        libc::SYS_rt_sigprocmask,
        libc::SYS_prctl,
        libc::SYS_rseq,
        libc::SYS_seccomp,
    ];
    let mut allowed = vec![
        Allowed { instruction: stub::command(), numbers: COMMANDS },
        Allowed { instruction: stub::mapping_futex_1(), numbers: FUTEX },
        Allowed { instruction: stub::mapping_futex_2(), numbers: FUTEX },
    ];
    for instruction in [stub::pwrite_1(), stub::pwrite_2(), stub::pwrite_3()] {
        allowed.push(Allowed { instruction, numbers: &[libc::SYS_pwrite64] });
    }
    allowed.extend(vcpu_futexes());
    program(&allowed, false)
}

/// What a vCPU thread may do: the stub's own `FUTEX_WAIT` and `FUTEX_WAKE`.
pub(super) fn vcpu_thread() -> Vec<u64> {
    program(&vcpu_futexes().collect::<Vec<_>>(), true)
}

/// The futex calls of vCPU threads. When a process was stopped and goes on, the kernel goes on with a wait that has a time-out
/// by a `restart_syscall` in its place.
fn vcpu_futexes() -> impl Iterator<Item = Allowed> {
    let numbers = |at| match TIMED.map(|instruction| instruction()).contains(&at) {
        true => &[libc::SYS_futex, libc::SYS_restart_syscall][..],
        false => &[libc::SYS_futex],
    };
    futex_instructions().into_iter().map(move |at| Allowed { instruction: at, numbers: numbers(at) })
}

/// Those that wait with a time-out: in `block`, and for a program that was entered without the monitor.
const TIMED: [fn() -> u64; 2] = [stub::futex_3, stub::futex_7];

fn futex_instructions() -> [u64; 10] {
    [
        stub::futex_1(),
        stub::futex_2(),
        stub::futex_3(),
        stub::futex_4(),
        stub::futex_5(),
        stub::futex_6(),
        stub::futex_7(),
        stub::futex_8(),
        stub::futex_9(),
        stub::futex_10(),
    ]
}

/// One instruction as the kernel has it: code 16 bits, jump-if-true 8, jump-if-false 8, operand 32.
fn instruction(code: u32, if_true: u8, if_false: u8, operand: u32) -> u64 {
    u64::from(code) | u64::from(if_true) << 16 | u64::from(if_false) << 24 | u64::from(operand) << 32
}

fn load(offset: u32) -> u64 {
    instruction(BPF_LD | BPF_W | BPF_ABS, 0, 0, offset)
}

fn equal(value: u32, if_true: u8, if_false: u8) -> u64 {
    instruction(BPF_JMP | BPF_JEQ | BPF_K, if_true, if_false, value)
}

/// The program: architecture, upper half of the address, then for each instruction its calls.
fn program(allowed: &[Allowed], only_wait_and_wake: bool) -> Vec<u64> {
    let allow = instruction(BPF_RET | BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW);
    let trap = instruction(BPF_RET | BPF_K, 0, 0, libc::SECCOMP_RET_TRAP);
    let mut program = vec![load(data::ARCH), equal(AUDIT_ARCH_X86_64, 1, 0), trap];
    if only_wait_and_wake {
        // Operations 0 (wait) and 1 (wake), without flags.
        let other_bits = !(libc::FUTEX_WAIT | libc::FUTEX_WAKE) as u32;
        program.push(load(data::ARGUMENT_1_LOW));
        program.push(instruction(BPF_JMP | BPF_JSET | BPF_K, 0, 1, other_bits));
        program.push(trap);
    }
    let high = (super::layout::STUB_BASE >> 32) as u32;
    program.extend([load(data::INSTRUCTION_HIGH), equal(high, 1, 0), trap]);
    for Allowed { instruction: address, numbers } in allowed {
        // Behind the loads: one comparison for each number, then the trap, then the allow.
        let count = numbers.len() as u8;
        program.push(load(data::INSTRUCTION_LOW));
        program.push(equal(*address as u32, 0, count + 3));
        program.push(load(data::NUMBER));
        for (i, number) in (0..).zip(*numbers) {
            program.push(equal(*number as u32, count - i, 0));
        }
        program.extend([trap, allow]);
    }
    program.push(trap);
    assert!(program.len() <= MAX_FILTER, "{} instructions", program.len());
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a filter as the kernel does.
    fn run(program: &[u64], arch: u32, number: u32, at: u64, argument_1: u32) -> u32 {
        let data = |offset| match offset {
            data::NUMBER => number,
            data::ARCH => arch,
            data::INSTRUCTION_LOW => at as u32,
            data::INSTRUCTION_HIGH => (at >> 32) as u32,
            data::ARGUMENT_1_LOW => argument_1,
            other => panic!("loads offset {other}"),
        };
        let (mut accumulator, mut next) = (0, 0);
        loop {
            let word = program[next];
            let (code, yes, no, k) = (
                word as u16 as u32,
                (word >> 16) as u8 as usize,
                (word >> 24) as u8 as usize,
                (word >> 32) as u32,
            );
            next += 1;
            if code == BPF_LD | BPF_W | BPF_ABS {
                accumulator = data(k);
            } else if code == BPF_RET | BPF_K {
                return k;
            } else {
                let jump = match code {
                    c if c == BPF_JMP | BPF_JEQ | BPF_K => accumulator == k,
                    c if c == BPF_JMP | BPF_JSET | BPF_K => accumulator & k != 0,
                    other => panic!("code {other:#x}"),
                };
                next += if jump { yes } else { no };
            }
        }
    }

    const FUTEX: u32 = libc::SYS_futex as u32;
    const MMAP: u32 = libc::SYS_mmap as u32;

    #[test]
    fn vcpu_threads_may_only_wait_and_wake_at_the_stubs_instructions() {
        let filter = vcpu_thread();
        for at in futex_instructions() {
            for operation in [libc::FUTEX_WAIT as u32, libc::FUTEX_WAKE as u32] {
                assert_eq!(run(&filter, AUDIT_ARCH_X86_64, FUTEX, at, operation), libc::SECCOMP_RET_ALLOW);
            }
            for operation in [2, 6, 128, 129, 0x100, u32::MAX] {
                assert_eq!(run(&filter, AUDIT_ARCH_X86_64, FUTEX, at, operation), libc::SECCOMP_RET_TRAP);
            }
            for number in (0..1024).chain([0x4000_0000 | FUTEX]).filter(|n| *n != FUTEX) {
                let goes_on =
                    number == libc::SYS_restart_syscall as u32 && TIMED.iter().any(|timed| timed() == at);
                let expected = if goes_on { libc::SECCOMP_RET_ALLOW } else { libc::SECCOMP_RET_TRAP };
                assert_eq!(run(&filter, AUDIT_ARCH_X86_64, number, at, 0), expected, "{number} at {at:#x}");
            }
            let i386 = 0x4000_0003;
            assert_eq!(run(&filter, i386, FUTEX, at, 0), libc::SECCOMP_RET_TRAP);
        }
        for at in [
            0x20_0000,
            stub::command(),
            stub::mapping_futex_1(),
            stub::futex_1() + 1,
            stub::futex_1() + (1 << 32),
        ] {
            assert_eq!(run(&filter, AUDIT_ARCH_X86_64, FUTEX, at, 0), libc::SECCOMP_RET_TRAP, "{at:#x}");
        }
    }

    #[test]
    fn mapping_thread_may_map_only_at_its_one_instruction() {
        let filter = mapping_thread();
        assert_eq!(run(&filter, AUDIT_ARCH_X86_64, MMAP, stub::command(), 0), libc::SECCOMP_RET_ALLOW);
        for at in [stub::futex_1(), stub::pwrite_1(), stub::command() - 1, 0x20_0000] {
            assert_eq!(run(&filter, AUDIT_ARCH_X86_64, MMAP, at, 0), libc::SECCOMP_RET_TRAP, "{at:#x}");
        }
        for number in [libc::SYS_open, libc::SYS_execve, libc::SYS_ptrace, libc::SYS_mremap, libc::SYS_exit] {
            let number = number as u32;
            assert_eq!(run(&filter, AUDIT_ARCH_X86_64, number, stub::command(), 0), libc::SECCOMP_RET_TRAP);
        }
    }
}
