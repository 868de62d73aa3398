//! A VM as gdb sees it: its vCPUs are threads, numbered from 1.

use super::image_file::ImageFile;
use super::monitor;
use super::registers::{Frame, Number, X86_64};
use gdbstub::common::{Pid, Signal, Tid};
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::base::single_register_access::{SingleRegisterAccess, SingleRegisterAccessOps};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwWatchpoint, HwWatchpointOps, SwBreakpoint, SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::exec_file::ExecFileOps;
use gdbstub::target::ext::extended_mode::{Args, AttachKind, ExtendedMode, ExtendedModeOps, ShouldTerminate};
use gdbstub::target::ext::host_io::HostIoOps;
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use hv_core::debug::{Debugger, Reason, Standing};
use hv_core::engine::Fault;
use hv_core::handle::RequestError;
use hv_core::view::AddressSpace;
use std::fmt::Write;

/// What gdb debugs.
pub(super) struct Guest {
    pub(super) debugger: Debugger,
    pub(super) image: ImageFile,
    /// Whose memory gdb sees: this, or that of the vCPU that it looks at.
    pub(super) space: Option<AddressSpace>,
    /// The vCPU for which all stood last.
    stopped: u32,
    /// What gdb wants of vCPUs when they go on.
    steps: Vec<u32>,
    goes: Vec<u32>,
    /// That a watchpoint is slow has been said.
    told_of_steps: bool,
    /// Those that it said nothing of stay.
    is_locked: bool,
}

/// The vCPU that is a thread of gdb's.
fn vcpu(tid: Tid) -> u32 {
    tid.get() as u32 - 1
}

/// The thread of gdb's that is a vCPU.
pub(super) fn tid(vcpu: u32) -> Tid {
    Tid::MIN.saturating_add(vcpu as usize)
}

impl Guest {
    pub(super) fn new(debugger: Debugger, image: ImageFile) -> Self {
        let (steps, goes) = Default::default();
        Self { debugger, image, space: None, stopped: 0, steps, goes, told_of_steps: false, is_locked: false }
    }

    /// All vCPUs stand, for this one.
    pub(super) fn has_stopped(&mut self, by: u32, reason: Reason) -> MultiThreadStopReason<u64> {
        self.stopped = by;
        let (tid, signal) =
            (tid(by), |signal| MultiThreadStopReason::SignalWithThread { tid: tid(by), signal });
        match reason {
            Reason::Breakpoint => MultiThreadStopReason::SwBreak(tid),
            Reason::Watch { address } => {
                MultiThreadStopReason::Watch { tid, kind: WatchKind::Write, addr: address }
            }
            Reason::Asked => signal(Signal::SIGINT),
            Reason::Ending => signal(Signal::SIGABRT),
            Reason::Fault(fault) => signal(signal_of(fault)),
            _ => signal(Signal::SIGTRAP),
        }
    }

    /// gdb has interrupted the guest: all stand now, if they can be stopped.
    pub(super) fn interrupt(&mut self) -> Result<MultiThreadStopReason<u64>, RequestError> {
        self.debugger.interrupt()?;
        let vcpus = self.debugger.vcpus();
        let by = vcpus.iter().find(|vcpu| **vcpu == self.stopped).or(vcpus.first()).copied().unwrap_or(0);
        Ok(self.has_stopped(by, Reason::Asked))
    }

    pub(super) fn standing(&self, vcpu: u32) -> Option<Standing> {
        self.debugger.standing(vcpu)
    }

    fn find(&self, tid: Tid) -> TargetResult<Standing, Self> {
        self.standing(vcpu(tid)).ok_or(TargetError::NonFatal)
    }

    /// Whose memory a thread's addresses are to be looked for in, in this order.
    fn spaces(&self, tid: Tid) -> Vec<AddressSpace> {
        match (self.space, self.standing(vcpu(tid))) {
            (Some(space), _) => vec![space],
            (None, Some(Standing { space: space @ AddressSpace::User { .. }, .. })) => {
                vec![space, AddressSpace::Kernel]
            }
            (None, _) => vec![AddressSpace::Kernel],
        }
    }

    /// The address space of the programs that gdb means.
    fn program(&self) -> AddressSpace {
        let stopped = || self.standing(self.stopped).map(|standing| standing.space);
        self.space.or_else(stopped).unwrap_or(AddressSpace::Kernel)
    }
}

/// What a program of the host's would be told of it.
fn signal_of(fault: Fault) -> Signal {
    match fault {
        Fault::PageFault { .. } | Fault::InEngine { .. } => Signal::SIGSEGV,
        Fault::Exception { vector: 0 | 16 | 19, .. } => Signal::SIGFPE,
        Fault::Exception { vector: 1 | 3, .. } => Signal::SIGTRAP,
        Fault::Exception { vector: 6, .. } => Signal::SIGILL,
        Fault::Exception { vector: 17, .. } => Signal::SIGBUS,
        Fault::SystemCall { .. } => Signal::SIGSYS,
        _ => Signal::SIGSEGV,
    }
}

impl Target for Guest {
    type Arch = X86_64;
    type Error = RequestError;

    fn base_ops(&mut self) -> BaseOps<'_, X86_64, RequestError> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_extended_mode(&mut self) -> Option<ExtendedModeOps<'_, Self>> {
        Some(self)
    }

    fn support_exec_file(&mut self) -> Option<ExecFileOps<'_, Self>> {
        Some(self)
    }

    fn support_host_io(&mut self) -> Option<HostIoOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for Guest {
    fn read_registers(&mut self, frame: &mut Frame, tid: Tid) -> TargetResult<(), Self> {
        *frame = Frame::of(&self.find(tid)?);
        Ok(())
    }

    fn write_registers(&mut self, frame: &Frame, tid: Tid) -> TargetResult<(), Self> {
        let registers = frame.registers(&self.find(tid)?.registers);
        self.debugger.set_registers(vcpu(tid), registers).then_some(()).ok_or(TargetError::NonFatal)
    }

    fn support_single_register_access(&mut self) -> Option<SingleRegisterAccessOps<'_, Tid, Self>> {
        Some(self)
    }

    fn read_addrs(&mut self, address: u64, bytes: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let mut spaces = self.spaces(tid).into_iter();
        let read =
            spaces.find_map(|space| Some(self.debugger.read(space, address, bytes)).filter(|n| *n > 0));
        read.ok_or(TargetError::NonFatal)
    }

    fn write_addrs(&mut self, address: u64, bytes: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let mut spaces = self.spaces(tid).into_iter();
        let wrote = spaces.any(|space| self.debugger.write(space, address, bytes) == bytes.len());
        wrote.then_some(()).ok_or(TargetError::NonFatal)
    }

    fn list_active_threads(&mut self, thread_is_active: &mut dyn FnMut(Tid)) -> Result<(), RequestError> {
        self.debugger.vcpus().into_iter().for_each(|vcpu| thread_is_active(tid(vcpu)));
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl SingleRegisterAccess<Tid> for Guest {
    fn read_register(&mut self, tid: Tid, number: Number, buffer: &mut [u8]) -> TargetResult<usize, Self> {
        let bytes = Frame::of(&self.find(tid)?).get(number);
        buffer[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn write_register(&mut self, tid: Tid, number: Number, bytes: &[u8]) -> TargetResult<(), Self> {
        let mut frame = Frame::of(&self.find(tid)?);
        if !frame.set(number, bytes) {
            return Err(TargetError::NonFatal);
        }
        self.write_registers(&frame, tid)
    }
}

impl MultiThreadResume for Guest {
    fn resume(&mut self) -> Result<(), RequestError> {
        let mut goes = std::mem::take(&mut self.goes);
        goes.extend(&self.steps);
        let only = self.is_locked.then_some(&*goes);
        match self.debugger.go(only, &self.steps) {
            Err(RequestError::Ended) => Ok(()), // which is told next
            result => result,
        }
    }

    fn clear_resume_actions(&mut self) -> Result<(), RequestError> {
        self.steps.clear();
        self.goes.clear();
        self.is_locked = false;
        Ok(())
    }

    fn set_resume_action_continue(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), RequestError> {
        self.goes.push(vcpu(tid));
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Guest {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), RequestError> {
        self.steps.push(vcpu(tid));
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Guest {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), RequestError> {
        self.is_locked = true;
        Ok(())
    }
}

impl ThreadExtraInfo for Guest {
    fn thread_extra_info(&self, tid: Tid, buffer: &mut [u8]) -> Result<usize, RequestError> {
        let mut text = format!("vCPU {}", vcpu(tid));
        if let Some(standing) = self.standing(vcpu(tid)) {
            let _ = write!(text, ", {}", monitor::place(&standing)); // a string takes it
        }
        let length = text.len().min(buffer.len());
        buffer[..length].copy_from_slice(&text.as_bytes()[..length]);
        Ok(length)
    }
}

impl Breakpoints for Guest {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Guest {
    fn add_sw_breakpoint(&mut self, at: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.debugger.set_breakpoint(at))
    }

    fn remove_sw_breakpoint(&mut self, at: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.debugger.clear_breakpoint(at))
    }
}

impl HwWatchpoint for Guest {
    fn add_hw_watchpoint(&mut self, at: u64, length: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        let set = kind == WatchKind::Write && self.debugger.watch(at, length, self.program());
        if let Some(why) = self.debugger.steps_to_watch().filter(|_| set && !self.told_of_steps) {
            self.told_of_steps = true;
            tracing::warn!(%why, "the host's debug registers cannot watch that, and the guest runs in single steps");
        }
        Ok(set)
    }

    fn remove_hw_watchpoint(&mut self, at: u64, length: u64, _: WatchKind) -> TargetResult<bool, Self> {
        Ok(self.debugger.unwatch(at, length))
    }
}

/// For gdb's `kill`, to which it wants an answer; the rest of this mode is not served.
impl ExtendedMode for Guest {
    fn run(&mut self, _: Option<&[u8]>, _: Args<'_, '_>) -> TargetResult<Pid, Self> {
        Err(TargetError::NonFatal)
    }

    fn attach(&mut self, _: Pid) -> TargetResult<(), Self> {
        Err(TargetError::NonFatal)
    }

    fn query_if_attached(&mut self, _: Pid) -> TargetResult<AttachKind, Self> {
        Ok(AttachKind::Attach) // so that gdb lets it run on when its user leaves
    }

    fn kill(&mut self, _: Option<Pid>) -> TargetResult<ShouldTerminate, Self> {
        Ok(ShouldTerminate::Yes)
    }

    fn restart(&mut self) -> Result<(), RequestError> {
        Ok(())
    }
}

impl MonitorCmd for Guest {
    fn handle_monitor_cmd(&mut self, command: &[u8], mut out: ConsoleOutput<'_>) -> Result<(), RequestError> {
        let _ = out.write_str(&monitor::answer(self, &String::from_utf8_lossy(command))); // to memory
        Ok(())
    }
}
