//! The monitor's end of a sandbox's mapping thread: batches of system calls, and the evidence that they are done.
//!
//! The commands are in memory that the sandbox cannot write, and the report is in memory that only the mapping
//! thread's `pwrite` reaches: what guest threads do to it meanwhile does not matter.

#![expect(unsafe_code, reason = "writing the command page, which only the monitor writes")]

use super::handover::{Atomics, Handover, Machine};
use super::layout::*;
use super::sandbox::Kind;
use super::{filter, stub};
use crate::engine::EngineError;
use crate::events::VcpuPages;
use crate::shared::SharedFile;
use core::mem::offset_of;
use core::sync::atomic::Ordering;
use hv_abi::user::GATE;
use hv_abi::vcpu::VcpuPage;
use rustix::fd::OwnedFd;
use std::ops::Range;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// The control pages of one sandbox.
#[derive(Debug)]
pub(super) struct Mapper {
    file: SharedFile,
    sequence: u32,
}

impl Mapper {
    /// New control pages with handlers, masks and filters, and no command yet.
    pub(super) fn new() -> std::io::Result<Self> {
        let file = SharedFile::new("hv-control", CONTROL_SIZE)?;
        let mut mapper = Self { file, sequence: 0 };
        mapper.write_constants();
        Ok(mapper)
    }

    /// The control file, for the one sandbox that is to have it.
    pub(super) fn take_file(&mut self) -> OwnedFd {
        self.file.take_file()
    }

    fn control(&mut self) -> *mut Control {
        self.file.pointer(0, size_of::<Control>()).cast().as_ptr()
    }

    fn write_constants(&mut self) {
        let action = |handler| KernelSigaction {
            handler,
            flags: (libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER | SA_RESTORER) as u64,
            restorer: stub::trap(), // never returned to: handlers do not use rt_sigreturn
            mask: 0,
        };
        for (i, byte) in (0..).zip(stub::gate_code()) {
            let gate = self.file.pointer(GATE_OFFSET + i, 1);
            // SAFETY: the pointer is to a byte inside the mapping, and no sandbox reads it before its start.
            unsafe { gate.write(byte) };
        }
        let (mapping, vcpu) = (filter::mapping_thread(), filter::vcpu_thread());
        let control = self.control();
        // SAFETY: the pointer is to a whole `Control` inside the mapping, aligned since mappings are page-aligned.
        // Nobody else writes it, and no sandbox reads it before its start, which is later.
        unsafe {
            (*control).trap_action = action(stub::trap());
            (*control).kick_action = action(stub::kick());
            (*control).all_signals = u64::MAX;
            (*control).vcpu_blocked = vcpu_blocked();
            write_filter(&raw mut (*control).mapping_filter, offset_of!(Control, mapping_filter), &mapping);
            write_filter(&raw mut (*control).vcpu_filter, offset_of!(Control, vcpu_filter), &vcpu);
        }
    }

    /// Makes a batch ready without waiting: for the commands that a sandbox finds at its start. The one before it has been
    /// reported.
    pub(super) fn post(&mut self, commands: &[Command]) {
        assert!(commands.len() <= MAX_COMMANDS, "a batch has room for {MAX_COMMANDS} commands");
        assert!(self.is_reported(), "the batch before, {}, is not made yet", self.sequence);
        self.sequence = (self.sequence + 1) % BATCH_NUMBERS;
        let report: &Report = self.file.at(REPORT_OFFSET);
        report.errno.store(0, Ordering::Relaxed);
        let sequence = self.sequence;
        let control = self.control();
        // SAFETY: as in `write_constants`; the mapping thread does not read commands until `sequence` changes, and
        // the batch before it is done: the thread has reported its number, as was looked at above.
        unsafe {
            (*control).count = commands.len() as u32;
            (&mut (*control).commands)[..commands.len()].copy_from_slice(commands);
            (*control).sequence.store(sequence, Ordering::SeqCst);
            Machine::wake(&(*control).sequence);
        }
    }

    /// Whether the last batch has been reported. The report has the number of what was made: an earlier batch, reported
    /// late, is not taken for a later one.
    fn is_reported(&self) -> bool {
        self.file.at::<Report>(REPORT_OFFSET).done.load(Ordering::Acquire) == self.sequence
    }

    /// Whether a command of the batch, which had so many, has failed. Without a failure this says nothing about
    /// whether the batch is done.
    pub(super) fn failure(&self, commands: usize) -> Option<EngineError> {
        if !self.is_reported() {
            return None;
        }
        let report: &Report = self.file.at(REPORT_OFFSET);
        let errno = report.errno.load(Ordering::Relaxed);
        (errno != 0).then(|| EngineError::Mapping {
            command: commands.saturating_sub(1 + report.left.load(Ordering::Relaxed) as usize),
            error: std::io::Error::from_raw_os_error(errno as i32),
        })
    }

    /// Waits until the batch is done, or `dead` or `patience` is over; tells whether it is.
    pub(super) fn wait(&self, dead: impl Fn() -> bool, patience: Duration) -> bool {
        const LOOK_AGAIN: Duration = Duration::from_millis(20);
        let done = &self.file.at::<Report>(REPORT_OFFSET).done;
        let start = Instant::now();
        loop {
            let seen = done.load(Ordering::Acquire);
            if seen == self.sequence {
                return true;
            }
            if dead() || start.elapsed() > patience {
                return false;
            }
            Machine::sleep(done, seen, Some(LOOK_AGAIN));
        }
    }

    /// The command that makes a vCPU's thread, which then makes its own: to be the last of a batch, and the thread
    /// to be seen running before the next.
    pub(super) fn vcpu_thread(&mut self, kind: Kind, vcpu: u32) -> Command {
        let stack = vcpu_area(vcpu) + STACK;
        let at = |offset| control_address(offset);
        let mut commands = vec![
            Command::new(libc::SYS_sigaltstack, [at(offset_of!(Control, signal_stack)), 0, 0, 0, 0, 0]),
            Command::new(
                libc::SYS_rt_sigprocmask,
                [libc::SIG_SETMASK as u64, at(offset_of!(Control, vcpu_blocked)), 0, 8, 0, 0],
            ),
        ];
        // Filters do not see all system calls: `uretprobe` and `uprobe` pass them. This sees all that are not the stub's.
        if *HAS_DISPATCH {
            let [option, on] = [PR_SET_SYSCALL_USER_DISPATCH as u64, 1];
            let arguments = [option, on, STUB_BASE, stub::code().len() as u64, 0, 0];
            commands.push(Command::new(libc::SYS_prctl, arguments));
        }
        // The host says there on which processor the thread runs, for the guest kernel's locks.
        if kind == Kind::Kernel && *HAS_RSEQ {
            let arguments =
                [vcpu_area(vcpu) + offset_of!(VcpuPage, engine0) as u64, RSEQ_SIZE, 0, RSEQ_SIGNATURE, 0, 0];
            commands.push(Command::new(libc::SYS_rseq, arguments));
        }
        commands.push(Command::new(
            libc::SYS_seccomp,
            [libc::SECCOMP_SET_MODE_FILTER.into(), 0, at(offset_of!(Control, vcpu_filter)), 0, 0, 0],
        ));
        let control = self.control();
        // SAFETY: as in `post`.
        unsafe {
            (*control).signal_stack = [stack, 0, STACK_SIZE];
            (*control).thread_count = commands.len() as u64;
            (&mut (*control).thread_commands)[..commands.len()].copy_from_slice(&commands);
        }
        let flags = libc::CLONE_VM
            | libc::CLONE_FS
            | libc::CLONE_FILES
            | libc::CLONE_SIGHAND
            | libc::CLONE_THREAD
            | libc::CLONE_PARENT_SETTID;
        let number = vcpu_area(vcpu) + HANDOVER + offset_of!(Handover, thread) as u64;
        Command::new(libc::SYS_clone, [flags as u64, stack + STACK_SIZE - 128, number, 0, 0, 0])
    }
}

/// Finds out what the host has, while this program may still ask.
pub(super) fn prepare() {
    LazyLock::force(&HAS_DISPATCH);
    LazyLock::force(&HAS_RSEQ);
}

/// Not in `libc`: include/uapi/linux/prctl.h.
const PR_SET_SYSCALL_USER_DISPATCH: i32 = 59;

/// Whether the host has syscall user dispatch: Linux 5.11. The calls that it is needed for came later.
static HAS_DISPATCH: LazyLock<bool> = LazyLock::new(|| {
    // SAFETY: `prctl` with this option and "off" takes no pointers, and switches off what this thread does not use.
    unsafe { libc::prctl(PR_SET_SYSCALL_USER_DISPATCH, 0, 0, 0, 0) == 0 }
});

/// Bytes of a `struct rseq`, and where in it the processor is.
const RSEQ_SIZE: u64 = 32;
const _: () = assert!(
    offset_of!(VcpuPage, engine0).is_multiple_of(32)
        && offset_of!(VcpuPage, processor) == offset_of!(VcpuPage, engine0) + 4
        && offset_of!(VcpuPage, pending) == offset_of!(VcpuPage, engine0) + RSEQ_SIZE as usize
);
/// Of restartable sequences, which nobody uses here.
const RSEQ_SIGNATURE: u64 = 0x5305_3053;

/// Whether the host tells threads on which processor they run: Linux 4.18, unless a filter forbids it.
static HAS_RSEQ: LazyLock<bool> = LazyLock::new(|| {
    // SAFETY: `rseq` takes integers; with a length of 0 it registers nothing and says that the length is wrong.
    let refused = unsafe { libc::syscall(libc::SYS_rseq, 0, 0, 0, 0) };
    refused != 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL)
});

const SA_RESTORER: i32 = 0x0400_0000;

/// Writes a `sock_fprog` with its program.
///
/// # Safety
///
/// `filter` must be in a mapping of control pages, at `offset`, and nobody may read it meanwhile.
unsafe fn write_filter(filter: *mut Filter, offset: usize, program: &[u64]) {
    // SAFETY: the caller says that the pointer is good and not shared; `program` fits, `filter::program` checks it.
    unsafe {
        (*filter).length = program.len() as u64;
        (*filter).address = control_address(offset + offset_of!(Filter, program));
        (&mut (*filter).program)[..program.len()].copy_from_slice(program);
    }
}

const BOTH: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// The commands that map what these vCPUs of a VM, which has so many, need in a sandbox.
pub(super) fn areas(kind: Kind, vcpus: u32, which: Range<u32>) -> Vec<Command> {
    use descriptor::{EXCHANGE, LINKS, VCPU_PAGES};
    let area = |vcpu: u32| {
        let area = vcpu_area(vcpu);
        let exchange = u64::from(vcpu) * EXCHANGE_STRIDE;
        let (page, handover) = match kind {
            Kind::Kernel => ((VCPU_PAGES, VcpuPages::offset(vcpu)), (EXCHANGE, exchange)),
            Kind::User { slot } => {
                ((EXCHANGE, exchange + EXCHANGE_NO_PAGE), (LINKS, link_offset(vcpus, slot, vcpu)))
            }
        };
        [
            map(area, 4096, page.0, page.1, BOTH),
            map(area + CLOCK, 4096, VCPU_PAGES, 0, libc::PROT_READ),
            map(area + HANDOVER, 4096, handover.0, handover.1, BOTH),
            map(area + STACK, STACK_SIZE, EXCHANGE, exchange + EXCHANGE_STACK, BOTH),
        ]
    };
    which.flat_map(area).collect()
}

/// The commands that every sandbox begins with: signals, a clean address space, the shared pages, those of its first vCPU, its
/// filter.
pub(super) fn first_commands(kind: Kind, vcpus: u32, vcpu: u32) -> Vec<Command> {
    let at = |offset| control_address(offset);
    let action =
        |signal: i32, offset| Command::new(libc::SYS_rt_sigaction, [signal as u64, at(offset), 0, 8, 0, 0]);
    let mut commands: Vec<Command> =
        TRAP_SIGNALS.iter().map(|signal| action(*signal, offset_of!(Control, trap_action))).collect();
    commands.push(action(KICK_SIGNAL, offset_of!(Control, kick_action)));
    commands.push(Command::new(
        libc::SYS_rt_sigprocmask,
        [libc::SIG_SETMASK as u64, at(offset_of!(Control, all_signals)), 0, 8, 0, 0],
    ));
    // Said again: an exec that changes rights takes it back.
    commands.push(Command::new(
        libc::SYS_prctl,
        [libc::PR_SET_PDEATHSIG as u64, libc::SIGKILL as u64, 0, 0, 0, 0],
    ));
    // The host's stack, vDSO and whatever else it put there: everything but slot 255's used part.
    commands.push(Command::new(libc::SYS_munmap, [0, STUB_BASE, 0, 0, 0, 0]));
    let top = 0x7fff_ffff_f000;
    commands.push(Command::new(libc::SYS_munmap, [SLOT_255_USED_END, top - SLOT_255_USED_END, 0, 0, 0, 0]));
    commands.extend(areas(kind, vcpus, vcpu..vcpu + 1));
    match kind {
        Kind::Kernel => {
            commands.push(map(LINKS_BASE, links_size(vcpus), descriptor::LINKS, 0, BOTH));
            let bindings = VcpuPages::bindings_offset(vcpus);
            commands.push(map(
                vcpu_area(0) + BINDINGS,
                4096,
                descriptor::VCPU_PAGES,
                bindings,
                libc::PROT_READ,
            ));
        }
        Kind::User { .. } => {
            // The one that programs read, also if another vCPU enters them.
            commands.push(map(vcpu_area(0) + CLOCK, 4096, descriptor::VCPU_PAGES, 0, libc::PROT_READ));
            const CODE: i32 = libc::PROT_READ | libc::PROT_EXEC;
            commands.push(map(GATE, 4096, descriptor::CONTROL, GATE_OFFSET, CODE));
            commands.push(map(TABLE, TABLE_SIZE, descriptor::REWRITTEN, 0, CODE));
        }
    }
    commands.push(Command::new(
        libc::SYS_seccomp,
        [libc::SECCOMP_SET_MODE_FILTER.into(), 0, at(offset_of!(Control, mapping_filter)), 0, 0, 0],
    ));
    commands
}

/// The command that changes what may be done with what is mapped.
pub(super) fn protect(address: u64, length: u64, protection: i32) -> Command {
    Command::new(libc::SYS_mprotect, [address, length, protection as u64, 0, 0, 0])
}

/// The command that maps nothing there.
pub(super) fn unmap(address: u64, length: u64) -> Command {
    Command::new(libc::SYS_munmap, [address, length, 0, 0, 0, 0])
}

/// A command that maps, which also has the host find the pages, so that the first touch is no fault.
pub(super) fn filled(map: Command) -> Command {
    let [address, length, protection, flags, file, offset] = map.arguments;
    let flags = flags | libc::MAP_POPULATE as u64;
    Command { arguments: [address, length, protection, flags, file, offset], ..map }
}

/// The command that maps a part of one of the sandbox's files.
pub(super) fn map(address: u64, length: u64, file: i32, offset: u64, protection: i32) -> Command {
    let flags = libc::MAP_SHARED | libc::MAP_FIXED;
    Command::new(libc::SYS_mmap, [address, length, protection as u64, flags as u64, file as u64, offset])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the mapping thread does when it has made a batch.
    fn report(mapper: &Mapper, number: u32) {
        mapper.file.at::<Report>(REPORT_OFFSET).done.store(number, Ordering::Release);
    }

    fn is_done(mapper: &Mapper) -> bool {
        mapper.wait(|| true, Duration::ZERO)
    }

    #[test]
    fn only_the_number_of_the_last_batch_says_that_it_is_made() {
        let mut mapper = Mapper::new().unwrap();
        for round in 1..3 * BATCH_NUMBERS {
            mapper.post(&[unmap(0, 4096)]);
            assert!(!is_done(&mapper), "batch {round}");
            report(&mapper, (round - 1) % BATCH_NUMBERS); // the one before, once more
            assert!(!is_done(&mapper), "batch {round}");
            report(&mapper, round % BATCH_NUMBERS);
            assert!(is_done(&mapper), "batch {round}");
        }
    }

    #[test]
    #[should_panic(expected = "the batch before, 1, is not made yet")]
    fn a_batch_is_posted_only_when_the_one_before_it_was_reported() {
        let mut mapper = Mapper::new().unwrap();
        mapper.post(&[]);
        mapper.post(&[]);
    }
}
