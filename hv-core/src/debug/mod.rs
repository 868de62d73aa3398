//! A debugger's hold on a VM: its vCPUs stop for it, it looks at them and changes them, and lets them go.
//!
//! All vCPUs stand, or run: whatever one of them stops for stops the others, too. A vCPU that stands is in its guest kernel,
//! or in a user program, which [`Standing`] says. Its own thread of the monitor keeps it there (`vcpu/debugged.rs`), with its
//! registers here, where they may be changed.
//!
//! The debugger is trusted. The guest is not: what it does can keep a breakpoint or a step from being noticed, and nothing more.
//!
//! Start at [`Debugger`].

mod breakpoints;
mod hardware;

use crate::engine::{Fault, Mapping, Registers};
use crate::handle::{RequestError, VmHandle, Wanted};
use crate::memory::GuestMemory;
use crate::report::End;
use crate::view::{AddressSpace, View};
use breakpoints::Breakpoints;
pub(crate) use breakpoints::Hit;
use crossbeam_channel::{Receiver, Sender, unbounded};
use hardware::Armed;
use hv_abi::address::SLOT_255;
use hv_abi::user::LOWEST_USER;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Bytes that can be watched at once, at one place.
const MOST_WATCHED: u64 = 64;

/// Why a vCPU stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// It is before the guest's first instruction.
    Start,
    /// It was asked to, or another stood.
    Asked,
    /// It has come to a breakpoint, and not made its instruction.
    Breakpoint,
    /// It has made its step.
    Step,
    /// It has changed what is watched at this address.
    Watch {
        /// The first one of the place.
        address: u64,
    },
    /// Its guest kernel cannot go on from this, and would do it again.
    Fault(Fault),
    /// It is in its last call: when it goes on, the VM ends.
    Ending,
}

/// A vCPU that stands.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Whether it is in its guest kernel, or in which user program.
    pub space: AddressSpace,
    /// Why.
    pub reason: Reason,
    /// Where it goes on, and with what.
    pub registers: Registers,
    /// It is in a hypercall: of its registers RSP, RBP and RIP are known, and none can be changed.
    pub in_call: bool,
    /// Its x87 and SSE registers, as `FXSAVE` has them, if they are in memory.
    pub fx_state: Option<[u64; 64]>,
    /// It is to make one step, when it goes on.
    pub(crate) step: bool,
}

impl Standing {
    pub(crate) fn new(space: AddressSpace, reason: Reason, registers: Registers) -> Self {
        Self { space, reason, registers, in_call: false, fx_state: None, step: false }
    }
}

/// What a debugger waits for.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// All vCPUs stand, by this one.
    Stopped {
        /// The vCPU.
        vcpu: u32,
        /// Why it does.
        reason: Reason,
    },
    /// The VM has ended.
    Ended(End),
}

/// A place that is watched.
struct Watched {
    address: u64,
    space: AddressSpace,
    bytes: Vec<u8>,
}

/// What a VM's threads and its debugger share.
pub(crate) struct State {
    memory: GuestMemory,
    /// The guest kernel's image and direct map.
    fixed: Vec<Mapping>,
    kernel_root: Option<u64>,
    /// There is a debugger, or there will be.
    attached: AtomicBool,
    /// The guest has begun, or is about to.
    has_begun: AtomicBool,
    /// It has all vCPUs stand.
    holds: AtomicBool,
    events: Sender<Event>,
    inner: Mutex<Inner>,
}

struct Inner {
    breakpoints: Breakpoints,
    standing: BTreeMap<u32, Standing>,
    watched: Vec<Watched>,
    /// What the host watches of that, thread by thread.
    armed: Vec<Armed>,
    /// Why the host does not: then vCPUs run in single steps while anything is watched.
    not_armed: Option<String>,
    /// The host's threads of vCPUs that stand.
    threads: BTreeMap<u32, i32>,
    /// Whose addresses those of programs were when they were last watched.
    spaces: BTreeMap<u64, AddressSpace>,
    /// The next program that is entered and is there is stopped for.
    stops_at_entry: bool,
}

impl State {
    /// For a VM that is about to start; what happens is told there.
    pub(crate) fn new(
        memory: &GuestMemory,
        fixed: &[Mapping],
        kernel_root: Option<u64>,
    ) -> (Arc<Self>, Receiver<Event>) {
        let (events, happened) = unbounded();
        let inner = Inner {
            breakpoints: Breakpoints::new(memory.clone()),
            standing: BTreeMap::new(),
            watched: Vec::new(),
            armed: Vec::new(),
            not_armed: None,
            threads: BTreeMap::new(),
            spaces: BTreeMap::new(),
            stops_at_entry: false,
        };
        let state = Self {
            memory: memory.clone(),
            fixed: fixed.to_vec(),
            kernel_root,
            attached: AtomicBool::new(true),
            has_begun: AtomicBool::new(false),
            holds: AtomicBool::new(false),
            events,
            inner: Mutex::new(inner),
        };
        (Arc::new(state), happened)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no thread panics with the lock held")
    }

    fn kernel(&self) -> View<'_> {
        View::kernel(&self.memory, &self.fixed, self.kernel_root)
    }

    fn view(&self, space: AddressSpace) -> View<'_> {
        match space {
            AddressSpace::Kernel => self.kernel(),
            AddressSpace::User { root } => View::user(&self.memory, root),
        }
    }

    /// Whether the guest stops for a debugger.
    pub(crate) fn is_attached(&self) -> bool {
        self.attached.load(SeqCst)
    }

    /// A vCPU is about to run. Whether it is the first one.
    pub(crate) fn begins(&self) -> bool {
        !self.has_begun.swap(true, SeqCst)
    }

    /// Whether a debugger has the VM stand.
    pub(crate) fn holds(&self) -> bool {
        self.holds.load(SeqCst)
    }

    /// A vCPU is about to stand, whose guest code that thread of the host's runs.
    pub(crate) fn stands(&self, vcpu: u32, thread: Option<i32>, standing: Standing) {
        let reason = standing.reason;
        let mut inner = self.inner();
        inner.armed.retain(|armed| armed.vcpu != vcpu);
        inner.threads.extend(thread.map(|thread| (vcpu, thread)));
        inner.breakpoints.clear_return(vcpu);
        inner.standing.insert(vcpu, standing);
        drop(inner);
        if reason != Reason::Asked {
            self.holds.store(true, SeqCst);
            let _ = self.events.send(Event::Stopped { vcpu, reason }); // the debugger may have gone
        }
    }

    /// A vCPU goes on, with these registers; and whether it is to make one step.
    pub(crate) fn goes_on(&self, vcpu: u32) -> Option<(Registers, bool)> {
        self.inner().standing.remove(&vcpu).map(|standing| (standing.registers, standing.step))
    }

    /// The VM has ended.
    pub(crate) fn ended(&self, end: &End) {
        let _ = self.events.send(Event::Ended(end.clone()));
    }

    /// What is on top of a stack of the guest kernel's.
    pub(crate) fn top_of_stack(&self, rsp: u64) -> Option<u64> {
        self.kernel().read_word(rsp)
    }

    /// A vCPU in its guest kernel is to come back to an address. Whether there is code.
    pub(crate) fn set_return(&self, vcpu: u32, at: u64) -> bool {
        self.inner().breakpoints.set_return(&self.kernel(), vcpu, at)
    }

    pub(crate) fn clear_return(&self, vcpu: u32) {
        self.inner().breakpoints.clear_return(vcpu);
    }

    /// A vCPU has come to an `int3` of the guest kernel's address space.
    pub(crate) fn hit(&self, vcpu: u32, at: u64) -> Hit {
        self.inner().breakpoints.hit(&self.kernel(), vcpu, at)
    }

    /// One has come to an `int3` of a program's.
    pub(crate) fn hit_in_program(&self, root: u64, at: u64) -> Hit {
        self.inner().breakpoints.hit_in_program(&View::user(&self.memory, root), at)
    }

    /// Shows the instruction under a breakpoint of the guest kernel's, or hides it again.
    pub(crate) fn lift(&self, at: u64, lift: bool) {
        self.inner().breakpoints.lift(&self.kernel(), at, lift);
    }

    /// A program is about to run: it has the breakpoints that are set in programs.
    pub(crate) fn enters(&self, root: u64) {
        self.inner().breakpoints.apply(&View::user(&self.memory, root));
    }

    /// Whether a program that is about to be entered at V `at` is to be stopped for: if it is there already. What is loaded
    /// on demand faults first, and is entered again.
    pub(crate) fn stops_at_entry(&self, root: u64, at: u64) -> bool {
        let mut inner = self.inner();
        let stops = inner.stops_at_entry && View::user(&self.memory, root).is_executable(at);
        inner.stops_at_entry &= !stops;
        stops
    }

    /// A vCPU is about to go on in a space, by that thread of the host's: has the host watch it, if it does.
    pub(crate) fn arm(&self, vcpu: u32, space: AddressSpace, thread: i32) {
        let mut inner = self.inner();
        let inner = &mut *inner;
        if inner.not_armed.is_some() {
            return;
        }
        for place in inner.watched.iter().filter(|place| place.space == space) {
            let is_armed = |armed: &Armed| (armed.thread, armed.address) == (thread, place.address);
            if inner.armed.iter().any(is_armed) {
                continue;
            }
            match Armed::new(vcpu, thread, place.address, place.bytes.len() as u64) {
                Ok(armed) => inner.armed.push(armed),
                Err(error) => inner.not_armed = Some(error.to_string()),
            }
        }
    }

    /// Whether anything is watched.
    pub(crate) fn watches(&self) -> bool {
        !self.inner().watched.is_empty()
    }

    /// Whether that takes single steps.
    pub(crate) fn watches_by_steps(&self) -> bool {
        let inner = self.inner();
        !inner.watched.is_empty() && inner.not_armed.is_some()
    }

    /// A watched place that is not what it was. It is watched on as it is now.
    pub(crate) fn changed(&self) -> Option<u64> {
        let mut inner = self.inner();
        let mut places = inner.watched.iter_mut();
        places.find_map(|place| {
            let mut now = vec![0; place.bytes.len()];
            // What is not there at the moment has not changed.
            let is_there = self.view(place.space).read(place.address, &mut now) == now.len();
            let changed = is_there && now != place.bytes;
            changed.then(|| place.bytes = now).map(|()| place.address)
        })
    }
}

/// Holds a VM, looks at it and lets it go, from another thread than the one that waits for it. A VM that is
/// [made for it](crate::Config::debug) has its vCPU 0 stand before the guest's first instruction.
pub struct Debugger {
    state: Arc<State>,
    events: Receiver<Event>,
    vm: VmHandle,
}

impl Debugger {
    pub(crate) fn new(state: Arc<State>, events: Receiver<Event>, vm: VmHandle) -> Self {
        Self { state, events, vm }
    }

    /// Waits until a vCPU stands by itself, has all others stand, too, and says which it was; or until the VM has ended.
    /// `None` if nothing happens in that time.
    ///
    /// # Errors
    ///
    /// As [`interrupt`](Self::interrupt).
    pub fn wait(&self, time: Duration) -> Result<Option<Event>, RequestError> {
        match self.events.recv_timeout(time) {
            Err(_) => Ok(None),
            Ok(Event::Stopped { vcpu, reason }) => match self.interrupt() {
                // It goes by itself, and says so.
                Ok(()) | Err(RequestError::Ended) => Ok(Some(Event::Stopped { vcpu, reason })),
                Err(error) => Err(error),
            },
            Ok(ended) => Ok(Some(ended)),
        }
    }

    /// Has all vCPUs stand.
    ///
    /// # Errors
    ///
    /// The VM has ended, or a vCPU does not come to a stopping point, and all run on.
    pub fn interrupt(&self) -> Result<(), RequestError> {
        self.vm.pause()?;
        self.state.holds.store(true, SeqCst);
        // What stands has been told; a breakpoint that is still set is come to again.
        let ended = self.events.try_iter().filter(|event| matches!(event, Event::Ended(_))).last();
        ended.into_iter().for_each(|ended| drop(self.state.events.send(ended)));
        Ok(())
    }

    /// Lets vCPUs go on, all or only some of them, and has those that `steps` make one step and stand again.
    ///
    /// # Errors
    ///
    /// The VM has ended.
    pub fn go(&self, only: Option<&[u32]>, steps: &[u32]) -> Result<(), RequestError> {
        {
            let mut inner = self.state.inner();
            for (vcpu, standing) in &mut inner.standing {
                standing.step = steps.contains(vcpu);
            }
        }
        self.state.holds.store(false, SeqCst);
        self.vm.request(Wanted::Go(only.map(<[u32]>::to_vec)))
    }

    /// Lets go of the VM, which runs on as if there had never been a debugger.
    ///
    /// # Errors
    ///
    /// The VM has ended.
    pub fn detach(&self) -> Result<(), RequestError> {
        // None may be on its way from a breakpoint.
        self.interrupt()?;
        self.state.attached.store(false, SeqCst);
        {
            let mut inner = self.state.inner();
            inner.breakpoints.clear_all();
            inner.watched.clear();
            inner.armed.clear();
        }
        self.go(None, &[])
    }

    /// The vCPUs that stand.
    pub fn vcpus(&self) -> Vec<u32> {
        self.state.inner().standing.keys().copied().collect()
    }

    /// A vCPU that stands.
    pub fn standing(&self, vcpu: u32) -> Option<Standing> {
        self.state.inner().standing.get(&vcpu).cloned()
    }

    /// Changes the registers of a vCPU that stands, but in a hypercall. Whether that could be done.
    pub fn set_registers(&self, vcpu: u32, registers: Registers) -> bool {
        let mut inner = self.state.inner();
        let standing = inner.standing.get_mut(&vcpu).filter(|standing| !standing.in_call);
        standing.map(|standing| standing.registers = registers).is_some()
    }

    /// Fills `bytes` with guest memory, as it would be without breakpoints, up to what is not there. Gives how many it filled.
    pub fn read(&self, space: AddressSpace, address: u64, bytes: &mut [u8]) -> usize {
        self.state.inner().breakpoints.read(&self.state.view(space), address, bytes)
    }

    /// Writes guest memory, up to what is not there. Gives how many bytes it wrote.
    pub fn write(&self, space: AddressSpace, address: u64, bytes: &[u8]) -> usize {
        self.state.inner().breakpoints.write(&self.state.view(space), address, bytes)
    }

    /// Sets a breakpoint: in the guest kernel, if an address is its own, or else in all user programs, those that are yet
    /// to come, too. Whether it could be set.
    pub fn set_breakpoint(&self, at: u64) -> bool {
        let kernel = self.state.kernel();
        let mut inner = self.state.inner();
        if kernel.translate(at).is_some() {
            return inner.breakpoints.set_in_kernel(&kernel, at);
        }
        let programs = (LOWEST_USER..SLOT_255).contains(&at);
        if programs {
            inner.breakpoints.set_in_programs(at);
        }
        programs
    }

    /// Takes a breakpoint away. Whether there was one.
    pub fn clear_breakpoint(&self, at: u64) -> bool {
        self.state.inner().breakpoints.clear(at)
    }

    /// Watches a place: whoever changes it stands behind the instruction that did. If the host [cannot](Self::steps_to_watch),
    /// the vCPUs run in single steps, which is some thousand times slower. An address that is not the guest kernel's is that of `program`, or of whose it was
    /// when it was last watched. Whether it can be.
    pub fn watch(&self, address: u64, length: u64, program: AddressSpace) -> bool {
        let kernel = self.state.kernel();
        let mut inner = self.state.inner();
        let space = match kernel.translate(address) {
            Some(_) => AddressSpace::Kernel,
            None if program == AddressSpace::Kernel => *inner.spaces.get(&address).unwrap_or(&program),
            None => program,
        };
        if length > MOST_WATCHED {
            return false;
        }
        let mut bytes = vec![0; length as usize];
        if self.state.view(space).read(address, &mut bytes) != bytes.len() {
            return false;
        }
        inner.spaces.insert(address, space);
        inner.watched.push(Watched { address, space, bytes });
        // Whether the host would, is found out with a thread that stands; and that it has so many.
        let stands = |(vcpu, _): &(&u32, &i32)| inner.standing.contains_key(vcpu);
        let tried = inner.threads.iter().find(stands).map(|(vcpu, thread)| {
            let places = inner.watched.iter().map(|place| (place.address, place.bytes.len() as u64));
            places
                .map(|(address, length)| Armed::new(*vcpu, *thread, address, length))
                .collect::<Result<Vec<_>, _>>()
        });
        inner.not_armed = tried.and_then(Result::err).map(|error| error.to_string());
        true
    }

    /// Why what is watched now takes single steps; `None` if the host's debug registers do it.
    pub fn steps_to_watch(&self) -> Option<String> {
        self.state.inner().not_armed.clone()
    }

    /// Watches a place no more. Whether it was.
    pub fn unwatch(&self, address: u64, length: u64) -> bool {
        let mut inner = self.state.inner();
        let is_it = |place: &Watched| place.address == address && place.bytes.len() as u64 == length;
        let found = inner.watched.iter().position(is_it);
        inner.armed.retain(|armed| armed.address != address);
        found.map(|index| inner.watched.swap_remove(index)).is_some()
    }

    /// Stops before the first instruction of the program that is entered next.
    pub fn stop_at_entry(&self) {
        self.state.inner().stops_at_entry = true;
    }
}
