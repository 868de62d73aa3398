//! Where a guest spends its time: samples of its stacks, taken while it runs.
//!
//! Whoever profiles asks all vCPUs at the rate of its liking ([`Profiler::ask`]). One that computes is interrupted by the
//! engine; the thread that serves it walks its stack by frame pointers and lets it go on at once, so no other waits. One that
//! sleeps is idle, and sleeps on. What a guest has on its stack is its own affair: a sample is of bounded size whatever that
//! is, and samples that nobody fetches are dropped.
//!
//! Start at [`VmHandle::profile`](crate::VmHandle::profile); [`Sampler`] is the vCPUs' side.

use crate::backtrace::{self, Address};
use crate::engine::{Control, Registers};
use crate::view::{AddressSpace, View};
use crate::vm::Shared;
use crossbeam_channel::{Receiver, Sender, bounded};
use serde::{Deserialize, Serialize};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Mutex, MutexGuard, Weak};

/// Frames of one sample, at the most.
pub const MOST_FRAMES: usize = 128;

/// Samples that wait to be fetched, at the most.
const MOST_WAITING: usize = 4096;

/// Bytes of code that are looked at around each address of a program.
pub const CODE_LINE: u64 = 64;

/// Where a vCPU was.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Sample {
    /// Which vCPU.
    pub vcpu: u32,
    /// Whether it ran a user program, and not its guest kernel.
    pub user: bool,
    /// The instruction it was at, and then those that called, innermost first: an address in each call.
    pub frames: Vec<u64>,
    /// The stack was walked to its outermost frame, whose frame pointer is 0.
    pub complete: bool,
    /// Of a program: a [digest](Digest) of the code at `frames`, to know the program by. All have the same addresses.
    pub code: u64,
}

/// A digest of lines of code (FNV-1a).
#[derive(Clone, Copy, Debug)]
pub struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    /// Adds a line.
    #[must_use]
    pub fn with(self, line: &[u8]) -> Self {
        Self(line.iter().fold(self.0, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)))
    }

    /// Of all lines so far.
    pub fn value(self) -> u64 {
        self.0
    }
}

impl Sample {
    fn new(vcpu: u32, user: bool, view: &View<'_>, registers: &Registers) -> Self {
        let stack = backtrace::walk(view, registers, MOST_FRAMES);
        let frames: Vec<u64> = stack
            .addresses
            .iter()
            .map(|address| match *address {
                Address::Instruction(at) | Address::Nowhere(at) => at,
                Address::Return(at) => at.saturating_sub(1),
            })
            .collect();
        let digest = frames.iter().filter(|_| user).fold(Digest::default(), |digest, at| {
            let mut line = [0; CODE_LINE as usize];
            view.read(at - at % CODE_LINE, &mut line);
            digest.with(&line)
        });
        Self { vcpu, user, frames, complete: stack.complete, code: digest.value() }
    }
}

/// What the vCPUs of a VM are asked for, and where they give it.
pub(crate) struct Sampler {
    wanted: Vec<AtomicBool>,
    samples: Mutex<Option<Sender<Sample>>>,
}

impl Sampler {
    /// Nobody profiles.
    pub(crate) fn new(vcpus: u32) -> Self {
        Self { wanted: (0..vcpus).map(|_| AtomicBool::new(false)).collect(), samples: Mutex::new(None) }
    }

    fn samples(&self) -> MutexGuard<'_, Option<Sender<Sample>>> {
        self.samples.lock().expect("no thread panics with the lock held")
    }

    /// Whether a sample of a vCPU is wanted.
    pub(crate) fn is_wanted(&self, vcpu: u32) -> bool {
        self.wanted[vcpu as usize].load(Relaxed)
    }

    /// As [`is_wanted`](Self::is_wanted); the vCPU's thread then [gives](Self::give) it.
    pub(crate) fn take(&self, vcpu: u32) -> bool {
        self.is_wanted(vcpu) && self.wanted[vcpu as usize].swap(false, SeqCst)
    }

    /// A vCPU was there, in an address space of `vm`.
    pub(crate) fn give(&self, vm: &Shared, vcpu: u32, space: AddressSpace, registers: &Registers) {
        if let Some(samples) = &*self.samples() {
            let user = space != AddressSpace::Kernel;
            let _ = samples.try_send(Sample::new(vcpu, user, &vm.view(space), registers)); // full: nobody fetches them
        }
    }
}

/// Why a VM cannot be profiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// There is no VM any more.
    #[error("the VM has ended")]
    Ended,
    /// One at a time.
    #[error("somebody else profiles this VM; one can at a time")]
    Busy,
}

/// Profiles a VM until it is dropped. It does not keep the VM.
pub struct Profiler {
    shared: Weak<Shared>,
    control: Weak<dyn Control>,
    samples: Receiver<Sample>,
}

/// What vCPUs did when they were asked where they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// So many compute, and give a sample in a moment.
    pub running: u64,
    /// So many sleep, are paused, or are not started.
    pub idle: u64,
    /// So many had not yet said where they were when they were last asked.
    pub late: u64,
}

impl Profiler {
    pub(crate) fn new(shared: Weak<Shared>, control: Weak<dyn Control>) -> Result<Self, ProfileError> {
        let vm = shared.upgrade().ok_or(ProfileError::Ended)?;
        let mut sender = vm.sampler.samples();
        if sender.is_some() {
            return Err(ProfileError::Busy);
        }
        let (samples_in, samples) = bounded(MOST_WAITING);
        *sender = Some(samples_in);
        drop(sender);
        Ok(Self { shared, control, samples })
    }

    /// Asks each vCPU where it is. `None` once the VM is gone.
    pub fn ask(&self) -> Option<Asked> {
        let (vm, control) = (self.shared.upgrade()?, self.control.upgrade()?);
        let mut asked = Asked::default();
        for vcpu in 0..vm.pages.vcpus() {
            let wanted = &vm.sampler.wanted[vcpu as usize];
            if vm.paused.load(SeqCst) || !control.computes(vcpu) {
                asked.idle += 1;
                continue;
            }
            if wanted.swap(true, SeqCst) {
                asked.late += 1;
            } else {
                asked.running += 1;
            }
            control.request_sample(vcpu);
        }
        Some(asked)
    }

    /// The samples since this was last called.
    pub fn samples(&self) -> impl Iterator<Item = Sample> {
        self.samples.try_iter()
    }
}

impl Drop for Profiler {
    fn drop(&mut self) {
        let Some(vm) = self.shared.upgrade() else { return };
        *vm.sampler.samples() = None;
        vm.sampler.wanted.iter().for_each(|wanted| wanted.store(false, SeqCst));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Mapping;
    use crate::memory::GuestMemory;
    use hv_abi::GuestPhys;

    const CODE: u64 = 0x40_0000;
    const STACK: u64 = 0x50_0000;

    fn mappings() -> [Mapping; 2] {
        let page =
            |virt, phys, execute: bool| Mapping { virt, phys, length: 0x1000, write: !execute, execute };
        [page(CODE, 0x1000, true), page(STACK, 0x2000, false)]
    }

    fn sample(frames: &[(u64, u64, u64)]) -> Sample {
        let memory = GuestMemory::new(1 << 20).unwrap();
        for (at, next, address) in frames {
            memory.write(GuestPhys(0x2000 + at), next).unwrap();
            memory.write(GuestPhys(0x2008 + at), address).unwrap();
        }
        let mappings = mappings();
        let registers = Registers { rip: CODE + 8, rbp: STACK, ..Registers::default() };
        Sample::new(3, true, &View::kernel(&memory, &mappings, None), &registers)
    }

    #[test]
    fn a_stack_that_ends_with_a_frame_pointer_of_0_is_complete() {
        let found = sample(&[(0, STACK + 32, CODE + 100), (32, 0, CODE + 200)]);
        assert_eq!((found.vcpu, found.complete), (3, true));
        assert_eq!(found.frames, [CODE + 8, CODE + 99, CODE + 199]);
        let broken = sample(&[(0, 5, CODE + 100)]);
        assert_eq!((broken.frames, broken.complete), (vec![CODE + 8, CODE + 99], false));
    }

    #[test]
    fn stacks_in_circles_and_without_end_are_cut_off() {
        let endless: Vec<_> = (0..255).map(|i| (i * 16, STACK + i * 16 + 16, CODE + 100)).collect();
        let found = sample(&endless);
        assert_eq!((found.frames.len(), found.complete), (MOST_FRAMES, false));
        assert_eq!(sample(&[(0, STACK, CODE + 100)]).frames.len(), 2, "a frame that is its own caller's");
    }
}
