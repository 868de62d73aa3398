//! A vCPU that a debugger looks at: where it stands, and how it goes on from there.
//!
//! A single step is the processor's own, by TF in the flags with which guest code goes on. It must not go through the stub,
//! which hands over through memory that a trap would write to: a step that finds itself in there runs on, to a breakpoint
//! where the call returns. In the same way a vCPU that is to stop in a call stops where that returns, with all its registers.
//! A step of a program that is a system call, or faults, is over when its guest kernel enters the program again.
//!
//! Start at [`VcpuThread::stand`].

use super::{Message, Order, Then, VcpuThread};
use crate::config::Breakpoints;
use crate::debug::{Hit, Reason, Standing, State};
use crate::engine::{Fault, Registers, UserCause, UserExit};
use crate::report::End;
use crate::user;
use crate::view::AddressSpace;
use hv_abi::GuestPhys;
use hv_abi::user::{LOWEST_USER, UserContext};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use zerocopy::IntoBytes;

const DEBUG: u64 = 1;
const BREAKPOINT: u64 = 3;
/// In the flags: a debug exception follows the next instruction.
const TF: u64 = 1 << 8;

/// A user program, as its guest kernel entered it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Program {
    root: u64,
    /// P of its context.
    context: u64,
}

/// A step that is not over.
#[derive(Clone, Copy)]
struct Step {
    /// Whose it is, if it is not the guest kernel's.
    program: Option<Program>,
    /// Where it began.
    from: u64,
}

/// What a vCPU's thread keeps for a debugger.
pub(crate) struct Debugged {
    state: Arc<State>,
    /// The program that was entered last.
    program: Option<Program>,
    step: Option<Step>,
    /// The breakpoint that it steps over, which is for others.
    over: Option<u64>,
    /// The program that runs does so in single steps.
    traces_program: bool,
}

impl Debugged {
    pub(crate) fn new(state: Arc<State>) -> Self {
        Self { state, program: None, step: None, over: None, traces_program: false }
    }

    /// Whether the program, or the guest kernel, is to make a step.
    fn steps(&self, program: Option<Program>) -> bool {
        self.step.is_some_and(|step| step.program == program)
    }

    /// Flags with which the program, or the guest kernel, goes on.
    fn flags(&self, program: Option<Program>, flags: u64) -> u64 {
        if self.steps(program) || self.over.is_some() || self.state.watches_by_steps() {
            flags | TF
        } else {
            flags & !TF
        }
    }
}

impl VcpuThread {
    /// What it keeps for a debugger, if there is one.
    fn debugged(&mut self) -> Option<&mut Debugged> {
        self.debugged.as_mut().filter(|debugged| debugged.state.is_attached())
    }

    pub(super) fn is_debugged(&self) -> bool {
        self.debugged.as_ref().is_some_and(|debugged| debugged.state.is_attached())
    }

    /// Stands until the debugger lets it go on: with these registers, or not at all.
    #[expect(clippy::result_large_err, reason = "the large one is a VM's last")]
    pub(super) fn stand(&mut self, standing: Standing) -> Result<Registers, Then> {
        let (registers, space) = (standing.registers, standing.space);
        let held = standing.reason != Reason::Asked;
        if let Some(debugged) = &mut self.debugged {
            if let Some(over) = debugged.over.take() {
                debugged.state.lift(over, false);
            }
            debugged.step = None;
            debugged.state.stands(self.vcpu, self.runner.guest_thread(), standing);
        }
        let preempted = &self.vm.pages.page(self.vcpu).preempted;
        preempted.store(1, SeqCst);
        let _ = self.messages.send(Message::Stopped { vcpu: self.vcpu, registers, held });
        let order = self.orders.recv();
        preempted.store(0, SeqCst);
        let Ok(Order::Resume) = order else { return Err(Then::End(End::Stopped, registers)) };
        let Some(debugged) = &mut self.debugged else { return Ok(registers) };
        let (registers, steps) = debugged.state.goes_on(self.vcpu).unwrap_or((registers, false));
        let program = debugged.program.filter(|_| space != AddressSpace::Kernel);
        debugged.step = steps.then_some(Step { program, from: registers.rip });
        Ok(registers)
    }

    /// Stands in a call. The registers that are known say where it returns to.
    #[expect(clippy::result_large_err, reason = "the large one is a VM's last")]
    pub(super) fn stand_in_call(&mut self, reason: Reason) -> Result<(), Then> {
        let mut registers = self.runner.registers_in_call();
        let Some(state) = self.debugged.as_ref().map(|debugged| debugged.state.clone()) else {
            return self.stand(Standing::new(AddressSpace::Kernel, reason, registers)).map(drop);
        };
        if let Some(returns_to) = state.top_of_stack(registers.rsp) {
            (registers.rip, registers.rsp) = (returns_to, registers.rsp.wrapping_add(8));
        }
        let standing = Standing { in_call: true, ..Standing::new(AddressSpace::Kernel, reason, registers) };
        let registers = self.stand(standing)?;
        if self.debugged().is_some_and(|debugged| debugged.step.is_some()) {
            state.set_return(self.vcpu, registers.rip);
        }
        self.arm(AddressSpace::Kernel);
        Ok(())
    }

    /// It is to stop, and in a call that is about to return: whether it will stop there.
    pub(super) fn stops_at_return(&mut self) -> bool {
        let rsp = self.runner.registers_in_call().rsp;
        let vcpu = self.vcpu;
        self.debugged().is_some_and(|debugged| {
            let returns_to = debugged.state.top_of_stack(rsp);
            returns_to.is_some_and(|returns_to| debugged.state.set_return(vcpu, returns_to))
        })
    }

    /// Is about to go on in its guest kernel, or in the program that has been entered.
    pub(super) fn arm(&self, space: AddressSpace) {
        if let Some(debugged) = self.debugged.as_ref().filter(|debugged| debugged.state.is_attached())
            && let Some(thread) = self.runner.guest_thread()
        {
            debugged.state.arm(self.vcpu, space, thread);
        }
    }

    /// Goes on in the guest kernel.
    fn go_on(&mut self, mut registers: Registers) -> Then {
        self.arm(AddressSpace::Kernel);
        if let Some(debugged) = self.debugged() {
            registers.rflags = debugged.flags(None, registers.rflags);
        }
        self.runner.set_registers(&registers);
        self.runner.resume();
        Then::Run
    }

    /// Stands in the guest kernel, and goes on there.
    pub(super) fn stand_in_kernel(&mut self, reason: Reason, registers: Registers) -> Then {
        let mut standing = Standing::new(AddressSpace::Kernel, reason, registers);
        standing.fx_state = self.runner.fx_state();
        standing.registers.rflags &= !TF;
        match self.stand(standing) {
            Ok(registers) => self.go_on(registers),
            Err(end) => end,
        }
    }

    /// The vCPU has stopped in its guest kernel, for a debugger or for others, or is at its first instruction.
    pub(super) fn stopped_for_debugger(&mut self, registers: Registers) -> Then {
        let vcpu = self.vcpu;
        let Some(debugged) = &self.debugged else { return self.go_on(registers) };
        let is_first = debugged.state.begins();
        match is_first {
            true => self.stand_in_kernel(Reason::Start, registers),
            false if self.vm.stopping[vcpu as usize].load(SeqCst) => {
                self.stand_in_kernel(Reason::Asked, registers)
            }
            false => self.go_on(registers),
        }
    }

    /// The guest kernel has trapped.
    pub(super) fn trap_for_debugger(&mut self, fault: Fault, mut registers: Registers) -> Then {
        let breakpoints = self.vm.breakpoints;
        let (vcpu, asked) = (self.vcpu, self.vm.stopping[self.vcpu as usize].load(SeqCst));
        let Some(debugged) = self.debugged() else {
            return Then::End(End::Crash { fault, hint: None }, registers);
        };
        let steps = debugged.steps(None);
        let reason = match fault {
            Fault::Exception { vector: DEBUG, .. } => {
                if let Some(over) = debugged.over.take() {
                    debugged.state.lift(over, false);
                }
                match debugged.state.changed() {
                    Some(address) => Some(Reason::Watch { address }),
                    None => steps.then_some(Reason::Step),
                }
            }
            Fault::Exception { vector: BREAKPOINT, .. } => {
                let at = registers.rip.wrapping_sub(1);
                let hit = debugged.state.hit(vcpu, at);
                if hit != Hit::Guests {
                    registers.rip = at;
                }
                match hit {
                    Hit::Set => Some(Reason::Breakpoint),
                    Hit::Return => {
                        debugged.state.clear_return(vcpu);
                        let changed = debugged.state.changed().map(|address| Reason::Watch { address });
                        let asked = asked.then_some(Reason::Asked);
                        changed.or(steps.then_some(Reason::Step)).or(asked)
                    }
                    Hit::Other if asked => Some(Reason::Asked),
                    Hit::Other => {
                        debugged.state.lift(at, true);
                        debugged.over = Some(at);
                        None
                    }
                    Hit::Guests if breakpoints == Breakpoints::Continue => None,
                    Hit::Guests => Some(Reason::Fault(fault)),
                }
            }
            Fault::InEngine { signal: libc::SIGTRAP, .. } if registers.rflags & TF != 0 => {
                return self.leave_engine(fault, registers);
            }
            // It has written to what is watched, for the guest: an upcall's frame.
            Fault::InEngine { signal: libc::SIGTRAP, .. } if debugged.state.watches() => {
                self.runner.resume();
                return Then::Run;
            }
            _ => Some(Reason::Fault(fault)),
        };
        match reason {
            Some(reason) => self.stand_in_kernel(reason, registers),
            None => self.go_on(registers),
        }
    }

    /// A step has come into the stub, where nobody steps: it goes on where the call returns.
    fn leave_engine(&mut self, fault: Fault, mut registers: Registers) -> Then {
        let vcpu = self.vcpu;
        let returns = self.debugged().is_some_and(|debugged| {
            let returns_to = debugged.state.top_of_stack(registers.rsp);
            returns_to.is_some_and(|returns_to| debugged.state.set_return(vcpu, returns_to))
        });
        if !returns {
            return Then::End(End::Crash { fault, hint: None }, registers);
        }
        registers.rflags &= !TF;
        self.runner.set_registers(&registers);
        self.runner.resume();
        Then::Run
    }

    /// The guest kernel enters a program. The context with which it is entered, if that is not the one of the guest kernel.
    #[expect(clippy::result_large_err, reason = "the large one is a VM's last")]
    pub(super) fn entering_for_debugger(
        &mut self,
        root: u64,
        context: u64,
        program: &mut UserContext,
    ) -> Result<(), Then> {
        let Some(debugged) = self.debugged() else { return Ok(()) };
        let space = AddressSpace::User { root };
        let entered = Some(Program { root, context });
        debugged.program = entered;
        let has_stepped = |step: Step| step.program == entered && step.from != program.rip;
        let has_stepped = debugged.step.is_some_and(has_stepped);
        let stops = debugged.state.stops_at_entry(root, program.rip) || has_stepped;
        if stops {
            let registers = Registers::from(&*program);
            let registers = self.stand(Standing::new(space, Reason::Step, registers))?;
            registers.write_to_prefix(program.as_mut_bytes()).expect("a context begins with them");
        }
        if let Some(debugged) = self.debugged() {
            debugged.state.enters(root);
            program.rflags = debugged.flags(entered, program.rflags);
            debugged.traces_program = program.rflags & TF != 0;
        }
        Ok(())
    }

    /// A program has come back. `Some` if its guest kernel does not hear of that.
    pub(super) fn user_exit_for_debugger(&mut self, exit: &mut UserExit) -> Option<Then> {
        const GATE_PAGE: std::ops::Range<u64> = hv_abi::user::GATE..LOWEST_USER;
        let asked = self.vm.stopping[self.vcpu as usize].load(SeqCst);
        let debugged = self.debugged()?;
        let program = debugged.program.filter(|program| program.context == exit.context)?;
        let space = AddressSpace::User { root: program.root };
        let registers = &mut exit.registers;
        let traces = std::mem::take(&mut debugged.traces_program);
        if traces {
            registers.rflags &= !TF;
        }
        let reason = match exit.cause {
            UserCause::Exception { vector: DEBUG } if traces || debugged.state.watches() => {
                if GATE_PAGE.contains(&registers.rip) {
                    let registers = *registers;
                    return Some(self.reenter(program, registers)); // to its guest kernel, without a step
                }
                match debugged.state.changed() {
                    Some(address) => Some(Reason::Watch { address }),
                    None => debugged.steps(Some(program)).then_some(Reason::Step),
                }
            }
            UserCause::Exception { vector: BREAKPOINT } => {
                let at = registers.rip.wrapping_sub(1);
                let hit = debugged.state.hit_in_program(program.root, at);
                if hit == Hit::Guests {
                    return None;
                }
                registers.rip = at;
                (hit == Hit::Set).then_some(Reason::Breakpoint)
            }
            UserCause::Interrupted if asked => Some(Reason::Asked),
            _ => return None,
        };
        let mut registers = *registers;
        if let Some(reason) = reason {
            let fx_state = self.runner.fx_state();
            let standing = Standing { fx_state, ..Standing::new(space, reason, registers) };
            match self.stand(standing) {
                Ok(changed) => registers = changed,
                Err(end) => return Some(end),
            }
        }
        if let Some(debugged) = self.debugged() {
            debugged.state.enters(program.root);
            registers.rflags = debugged.flags(Some(program), registers.rflags);
            debugged.traces_program = registers.rflags & TF != 0;
        }
        Some(self.reenter(program, registers))
    }

    /// Goes on in a program that has come back, as if its guest kernel had entered it again.
    fn reenter(&mut self, program: Program, registers: Registers) -> Then {
        let Program { root, context } = program;
        let Ok(mut user) = self.vm.memory.read::<UserContext>(GuestPhys(context)) else {
            unreachable!("it was read when it was entered")
        };
        registers.write_to_prefix(user.as_mut_bytes()).expect("a context begins with them");
        user.xstate_valid = 0;
        if let Err(error) = self.runner.enter_user(root, context, &user) {
            tracing::warn!(?error, "a program that a debugger stopped could not go on");
            let exit = UserExit { context, cause: UserCause::Killed, registers };
            let number = user::trapped(&self.vm.memory, &exit);
            self.runner.answer(hv_abi::Status::SUCCESS, number.into());
        }
        self.arm(AddressSpace::User { root });
        Then::Run
    }
}
