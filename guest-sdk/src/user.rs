//! User programs: running them, and what they come back with.
//!
//! A [`Task`] is a program's registers and extended state. A guest kernel is a loop around [`Task::run`]:
//!
//! ```ignore
//! loop {
//!     match task.run(&mut space) {
//!         Trap::Syscall => serve(&mut task, &mut space),
//!         Trap::PageFault { address, .. } => space.map(page_of(address), allocate_zeroed(0)?, Rights::WRITE)?,
//!         Trap::Interrupted => schedule(),
//!         Trap::Exception { .. } | Trap::Killed => break,
//!     }
//! }
//! ```
//!
//! # The one rule
//!
//! While the host holds a program's extended state, it may write to the program's `UserContext` and `XSAVE` area, which
//! therefore stay where they are: they are in a [`State`], which the task shares with the address space that it ran in last.
//! The space keeps it until another task ran there, or its root is gone. Registers are the task's own, copied in and out, so
//! that there is never a reference to what the host writes.

#![expect(unsafe_code, reason = "a context that the host writes to, behind a pointer")]

pub use crate::space::Access;

use crate::hypercall;
use crate::memory::phys_of_mut;

use crate::space::{Enter, USER};
use crate::sync::Lock;
use alloc::alloc::{alloc_zeroed, dealloc, handle_alloc_error};
use alloc::sync::Arc;
use core::alloc::Layout;
use core::mem::offset_of;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use hv_abi::user::{RFLAGS, RFLAGS_FIXED, UserContext, access, trap};
use hv_abi::{GuestPhys, Status};

/// The vector of what a processor says to registers that no program can have.
const GENERAL_PROTECTION: u32 = 13;

/// Where MXCSR is in an `XSAVE` area, and what it starts as.
const MXCSR: (usize, u32) = (24, 0x1f80);

/// A program's general registers: the head of a `UserContext`.
#[expect(missing_docs, reason = "they are named as the processor names them")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Registers {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub rsp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
    pub fs_base: u64,
}
const _: () = assert!(size_of::<Registers>() == offset_of!(UserContext, xstate));
const _: () = assert!(offset_of!(Registers, rsp) == offset_of!(UserContext, rsp));
const _: () = assert!(offset_of!(Registers, r8) == offset_of!(UserContext, r8_to_r15));
const _: () = assert!(offset_of!(Registers, rip) == offset_of!(UserContext, rip));

impl Registers {
    /// Whether a processor in user mode can have these.
    fn are_possible(&self) -> bool {
        let canonical = (self.fs_base as i64) << 16 >> 16 == self.fs_base as i64;
        USER.contains(&self.rip) && canonical
    }
}

/// Why a program came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    /// It made a system call: see [`Task::syscall`].
    Syscall,
    /// Its address space does not allow what it did. RIP is at the instruction: if that is mended, it goes on.
    PageFault {
        /// What it accessed.
        address: u64,
        /// How.
        access: Access,
    },
    /// Any other exception.
    Exception {
        /// Its number, as the processor has it.
        vector: u32,
    },
    /// Nothing happened to it: an event is there for the kernel, or the host is short of something for now.
    Interrupted,
    /// The host had to give it up, registers and all. Running it again gives the same.
    Killed,
}

/// A system call, by the usual convention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syscall {
    /// RAX.
    pub number: u64,
    /// RDI, RSI, RDX, R10, R8, R9.
    pub arguments: [u64; 6],
}

/// A program: its registers and extended state.
#[derive(Debug)]
pub struct Task {
    registers: Registers,
    state: Arc<State>,
    killed: bool,
}

impl Task {
    /// One that begins at `entry` with its stack pointer at `stack`, and all other registers zero.
    pub fn new(entry: u64, stack: u64) -> Self {
        let registers = Registers { rip: entry, rsp: stack, rflags: RFLAGS_FIXED, ..Registers::default() };
        Self { registers, state: Arc::new(State::new()), killed: false }
    }

    /// Its registers.
    pub fn registers(&self) -> &Registers {
        &self.registers
    }

    /// Its registers, to be changed. Flags that are not a program's are taken away when it is run.
    pub fn registers_mut(&mut self) -> &mut Registers {
        &mut self.registers
    }

    /// Runs it until it traps. Handlers of events run meanwhile.
    ///
    /// Registers that no program can have give [`Trap::Exception`] with vector 13, as a processor would.
    ///
    /// # Panics
    ///
    /// Panics if the host refuses a change of the address space, which it has no reason to.
    pub fn run(&mut self, space: &mut impl Enter) -> Trap {
        if self.killed {
            return Trap::Killed;
        }
        if !self.registers.are_possible() {
            return Trap::Exception { vector: GENERAL_PROTECTION };
        }
        self.registers.rflags = self.registers.rflags & RFLAGS | RFLAGS_FIXED;
        self.state.set_registers(&self.registers);
        let trap = match self.enter(space) {
            Ok(number) => {
                self.registers = self.state.registers();
                self.state.trap(number)
            }
            Err(Status::BUSY) => Trap::Interrupted,
            Err(_) => Trap::Killed, // its extended state is lost: it was killed beside another one
        };
        self.killed = trap == Trap::Killed;
        trap
    }

    fn enter(&self, space: &mut impl Enter) -> Result<u32, Status> {
        let (root, leaving) = space.with(|space| (space.root(), space.begin(&self.state)));
        let trap = self.state.enter(root);
        space.with(|space| space.end(&self.state, leaving, trap.is_ok()));
        trap
    }

    /// Another one with the same registers and extended state. For what UNIX calls fork, its address space is yet to be made.
    pub fn duplicate(&self) -> Self {
        self.state.bring_up_to_date();
        Self { registers: self.registers, state: Arc::new(self.state.duplicate()), killed: self.killed }
    }

    /// The system call that it makes, after [`Trap::Syscall`].
    pub fn syscall(&self) -> Syscall {
        let Registers { rax, rdi, rsi, rdx, r10, r8, r9, .. } = self.registers;
        Syscall { number: rax, arguments: [rdi, rsi, rdx, r10, r8, r9] }
    }

    /// Gives the result of a system call: RAX.
    pub fn set_result(&mut self, result: u64) {
        self.registers.rax = result;
    }
}

/// A `UserContext`, and behind it its `XSAVE` area, where the host may write to them.
#[derive(Debug)]
pub(crate) struct State {
    context: NonNull<UserContext>,
    layout: Layout,
    /// The root under which it was entered last, which is the one whose engine may hold it.
    root: Lock<u64>,
}

// SAFETY: what is behind the pointer is this value's alone, as a box's would be.
unsafe impl Send for State {}
// SAFETY: what is not atomic in a shared `State` is reached in two ways, and never in both at once.
// 1. By its task, which is borrowed mutably while it runs.
// 2. By the address space that it was entered in last, when that is dropped: so the task does not run there, which would have
//    the space borrowed. If it begins to run elsewhere meanwhile, it waits for `root`.
unsafe impl Sync for State {}

impl State {
    fn new() -> Self {
        let area = crate::boot::info().xstate_size as usize;
        let size = size_of::<UserContext>() + area;
        let layout = Layout::from_size_align(size, 64).expect("a processor's state is small");
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(context) = NonNull::new(start.cast::<UserContext>()) else { handle_alloc_error(layout) };
        let state = Self { context, layout, root: Lock::new(0) };
        let (at, value) = MXCSR;
        // SAFETY: the area has 576 bytes at least, is aligned to 64, and nobody else has the state yet.
        unsafe { state.area().add(at).cast::<u32>().write(value) };
        state.point_to_area();
        state.valid().store(1, Relaxed);
        state
    }

    /// The address of the area goes into the context.
    fn point_to_area(&self) {
        let area =
            core::ptr::slice_from_raw_parts_mut(self.area(), self.layout.size() - size_of::<UserContext>());
        // SAFETY: the area is allocated, initialised, and not looked at while this reference is there.
        let phys = phys_of_mut(unsafe { &mut *area }).expect("the heap is in guest memory");
        // SAFETY: the field is allocated and aligned; no reference to it is there.
        unsafe { (&raw mut (*self.context.as_ptr()).xstate).write(phys) };
    }

    fn area(&self) -> *mut u8 {
        // SAFETY: `new` has allocated the area behind the context.
        unsafe { self.context.as_ptr().add(1).cast::<u8>() }
    }

    /// 1 if the area holds the extended state, 0 if the host does. The host writes this.
    fn valid(&self) -> &AtomicU32 {
        // SAFETY: the field is allocated, aligned and initialised for as long as `self` is there, and reached as an atomic
        // only, but for calls that take all of the context.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.context.as_ptr()).xstate_valid) }
    }

    fn set_registers(&self, registers: &Registers) {
        // SAFETY: a context begins with the registers, as is asserted above; no reference to it is there.
        unsafe { self.context.as_ptr().cast::<Registers>().write(*registers) };
    }

    fn registers(&self) -> Registers {
        // SAFETY: as in `set_registers`.
        unsafe { self.context.as_ptr().cast::<Registers>().read() }
    }

    /// The trap of that number, with what the context says of it.
    fn trap(&self, number: u32) -> Trap {
        // SAFETY: the context is allocated and initialised, and no reference to it is there.
        let context = unsafe { self.context.as_ptr().read() };
        match number {
            trap::SYSCALL => Trap::Syscall,
            trap::PAGE_FAULT => Trap::PageFault {
                address: context.address,
                access: match context.access {
                    access::WRITE => Access::Write,
                    access::EXECUTE => Access::Execute,
                    _ => Access::Read,
                },
            },
            trap::EXCEPTION => Trap::Exception { vector: context.vector },
            trap::INTERRUPTED => Trap::Interrupted,
            _ => Trap::Killed, // also what a newer host may say, of which nothing is known
        }
    }

    /// Runs the program in the space of `root`, which has told the host of its changes and holds this state.
    fn enter(&self, root: GuestPhys) -> Result<u32, Status> {
        *self.root.lock() = root.0;
        // SAFETY: the context is allocated and initialised; no other reference to it is there, for this one ends here.
        let context = unsafe { &mut *self.context.as_ptr() };
        // SAFETY:
        // 1. What is mapped: frames that the space keeps until they are out of a program's reach; a frame's bytes are reached
        //    by copying only.
        // 2. The context and its area are behind a pointer and stay. The space keeps this state until another one was entered
        //    under its root on this vCPU, or the root is destroyed; so does each space in which it ran before.
        unsafe { hypercall::enter_user(root, context) }
    }

    /// Readies it for the end of `root`, with which the host forgets the state that it holds there.
    pub(crate) fn leave(&self, root: GuestPhys) {
        let entered = self.root.lock();
        if *entered == root.0 {
            self.bring_up_to_date();
        }
    }

    /// Has the host write the extended state to the area, if it holds it. If it does not, the program was killed.
    fn bring_up_to_date(&self) {
        if self.valid().load(Relaxed) == 0 {
            // SAFETY: as in `enter`.
            let context = unsafe { &mut *self.context.as_ptr() };
            // SAFETY: the area is this state's.
            let _ = unsafe { hypercall::user_xstate(context) };
        }
    }

    /// Another one whose area is as this one's.
    fn duplicate(&self) -> Self {
        let new = Self::new();
        // SAFETY: both areas are allocated with the same size and do not overlap.
        unsafe {
            new.area().copy_from_nonoverlapping(self.area(), self.layout.size() - size_of::<UserContext>())
        };
        new
    }
}

impl Drop for State {
    fn drop(&mut self) {
        // SAFETY: `new` has allocated it with this layout. Who might let the host write there has a share of it.
        unsafe { dealloc(self.context.as_ptr().cast(), self.layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;
    use crate::frames::allocate_zeroed;
    use crate::space::{AddressSpace, Rights};
    use core::time::Duration;
    use hv_abi::Call;
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::vec::Vec;

    const ENTRY: u64 = 0x40_0000;

    fn space() -> AddressSpace {
        AddressSpace::new().unwrap()
    }

    /// How much memory is behind a state, and whether it is freed, is what a sanitizer looks at; this is whether it is shared.
    fn holders(task: &Task) -> usize {
        Arc::strong_count(&task.state)
    }

    #[test]
    fn a_program_traps_with_its_registers_and_goes_on_with_the_kernels() {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let log = seen.clone();
        fake::set_program(move |context| {
            log.borrow_mut().push((context.rip, context.rsp, context.rax));
            (context.rax, context.rdi, context.r8_to_r15[2]) = (7, 1, 4);
            context.rip += 2;
            Trap::Syscall
        });
        let (mut task, mut space) = (Task::new(ENTRY, 0x8000), space());
        assert_eq!(task.run(&mut space), Trap::Syscall);
        assert_eq!(task.syscall(), Syscall { number: 7, arguments: [1, 0, 0, 4, 0, 0] });
        task.set_result(99);
        assert_eq!(task.run(&mut space), Trap::Syscall);
        assert_eq!(*seen.borrow(), [(ENTRY, 0x8000, 0), (ENTRY + 2, 0x8000, 99)]);
        fake::finish();
    }

    #[test]
    fn every_trap_is_told() {
        let fault = |access| Trap::PageFault { address: 0x1234, access };
        let traps = [
            fault(Access::Read),
            fault(Access::Write),
            fault(Access::Execute),
            Trap::Exception { vector: 6 },
            Trap::Interrupted,
            Trap::Killed,
        ];
        let mut script = traps.into_iter();
        fake::set_program(move |_| script.next().expect("killed programs do not run"));
        let (mut task, mut space) = (Task::new(ENTRY, 0), space());
        assert_eq!(traps.map(|_| task.run(&mut space)), traps);
        assert_eq!(task.run(&mut space), Trap::Killed);
    }

    #[test]
    fn changes_of_the_space_are_made_before_a_program_runs() {
        fake::set_program(|_| Trap::Syscall);
        let (mut task, mut space) = (Task::new(ENTRY, 0), space());
        let frame = Arc::new(allocate_zeroed(0).unwrap());
        space.map(ENTRY, frame.clone(), Rights::EXECUTE).unwrap();
        fake::calls();
        task.run(&mut space);
        assert_eq!(fake::calls().iter().map(|(call, _)| *call).collect::<Vec<_>>(), [Call::MMU_UPDATE]);
        space.unmap(ENTRY..ENTRY + 4096).unwrap();
        assert_eq!(Arc::strong_count(&frame), 2, "the program might reach it yet");
        task.run(&mut space);
        assert_eq!(Arc::strong_count(&frame), 1);
    }

    #[test]
    fn registers_that_no_program_can_have_never_reach_the_host() {
        fake::set_program(|_| Trap::Syscall);
        let mut space = space();
        for (rip, fs_base) in [(0, 0), (0x1_0000, 0), (1 << 63, 0), (USER.end, 0), (ENTRY, 1 << 47)] {
            let mut task = Task::new(rip, 0);
            task.registers_mut().fs_base = fs_base;
            assert_eq!(task.run(&mut space), Trap::Exception { vector: 13 });
        }
        let mut task = Task::new(ENTRY, u64::MAX);
        task.registers_mut().rflags = u64::MAX;
        assert_eq!(task.run(&mut space), Trap::Syscall);
        assert_eq!(task.registers().rflags, RFLAGS | RFLAGS_FIXED);
    }

    #[test]
    fn a_state_stays_while_the_host_may_write_to_it() {
        fake::set_program(|_| Trap::Syscall);
        let (mut one, mut other, mut space) = (Task::new(ENTRY, 0), Task::new(ENTRY, 0), space());
        one.run(&mut space);
        assert_eq!((holders(&one), one.state.valid().load(Relaxed)), (2, 0));
        let left = one.state.clone();
        drop(one);
        assert_eq!(Arc::strong_count(&left), 2, "the space has it");
        other.run(&mut space); // which has the host write to what is left of the first one
        assert_eq!((Arc::strong_count(&left), left.valid().load(Relaxed)), (1, 1));
        assert_eq!(holders(&other), 2);
    }

    #[test]
    fn a_task_outlives_its_space_and_moves_to_others() {
        fake::set_program(|_| Trap::Syscall);
        let (mut task, mut first, mut second) = (Task::new(ENTRY, 0), space(), space());
        task.run(&mut first);
        task.run(&mut second);
        assert_eq!(holders(&task), 3);
        drop(first);
        drop(second);
        assert_eq!((holders(&task), task.state.valid().load(Relaxed)), (1, 1));
        assert_eq!(task.run(&mut space()), Trap::Syscall);
    }

    #[test]
    fn a_duplicate_goes_on_where_its_original_is() {
        fake::set_program(|context| {
            context.rbx += 1;
            Trap::Syscall
        });
        let (mut task, mut space) = (Task::new(ENTRY, 0), space());
        task.run(&mut space);
        // SAFETY: the byte is in the area, and the host does not write there in the fake.
        unsafe { task.state.area().add(160).write(0xa5) };
        let mut child = task.duplicate();
        assert_eq!(child.registers(), task.registers());
        // SAFETY: as above.
        assert_eq!(unsafe { child.state.area().add(160).read() }, 0xa5);
        child.set_result(0);
        child.run(&mut space);
        task.run(&mut space);
        assert_eq!((child.registers().rbx, task.registers().rbx), (2, 2));
        fake::finish();
    }

    #[test]
    fn a_slice_interrupts_when_it_is_over() {
        fake::set_program(|_| {
            fake::advance(Duration::from_millis(3));
            Trap::Interrupted // as the event's upcall makes it
        });
        let (mut task, mut space) = (Task::new(ENTRY, 0), space());
        let slice = crate::preempt::Slice::start(Duration::from_millis(5));
        task.run_within(&mut space, &slice);
        assert!(!slice.is_over());
        task.run_within(&mut space, &slice);
        assert!(slice.is_over());
        fake::set_program(|_| panic!("it runs though its slice is over"));
        assert_eq!(task.run_within(&mut space, &slice), Trap::Interrupted);
        assert_eq!(task.run_for(&mut space, Duration::ZERO), Trap::Interrupted);
        fake::finish();
    }
}
