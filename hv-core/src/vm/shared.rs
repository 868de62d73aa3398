//! What a VM's threads share: those that serve its vCPUs, and whoever holds the VM.

use crate::boot;
use crate::config::Breakpoints;
use crate::console_input::ConsoleInput;
use crate::debug;
use crate::devices::Devices;
use crate::engine::{AddressSpaces, Control, Counters, Mapping};
use crate::events::{Events, Notify, VcpuPages};
use crate::ledger::Ledger;
use crate::memory::GuestMemory;
use crate::mmu::Roots;
use crate::profile::Sampler;
use crate::trace::Tracer;
use crate::vcpus::Vcpus;
use crate::view::{AddressSpace, View};
use hv_abi::vcpu::BALLOON_CHANNEL;
use hv_abi::{Features, PAGE_SIZE};
use std::io::Write;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
/// What a VM's threads share.
pub(crate) struct Shared {
    pub memory: GuestMemory,
    pub pages: Arc<VcpuPages>,
    pub events: Arc<Events>,
    pub console_input: ConsoleInput,
    pub roots: Roots,
    /// The guest kernel's image and direct map.
    pub mappings: Vec<Mapping>,
    /// What live page tables should hold, if somebody wants to know.
    pub ledger: Option<Ledger>,
    /// What the engine keeps of page tables and user programs.
    pub spaces: Arc<dyn AddressSpaces>,
    /// Bytes and components of extended state, as the engine has them.
    pub xstate: (u64, u64),
    pub features: Features,
    pub breakpoints: Breakpoints,
    /// Per vCPU: somebody waits for it to stop.
    pub stopping: Vec<AtomicBool>,
    /// All have stopped, and wait.
    pub paused: AtomicBool,
    /// Which vCPUs are started.
    pub vcpus: Option<Vcpus>,
    /// Its devices; `None` in a VM without an engine.
    pub devices: Option<Devices>,
    /// What it has for being watched.
    pub tracer: Arc<Tracer>,
    /// What a debugger holds it by, if there is to be one.
    pub debug: Option<Arc<debug::State>>,
    /// A vCPU has ended the VM.
    pub ended: AtomicBool,
    /// If it crashes, it is to be seen where the other vCPUs are.
    pub leaves_core: bool,
    /// Who wants to know where its vCPUs are.
    pub sampler: Sampler,
    console: Mutex<Option<Box<dyn Write + Send>>>,
}

impl Shared {
    pub(crate) fn new(
        memory: GuestMemory,
        pages: Arc<VcpuPages>,
        notify: Arc<dyn Notify>,
        spaces: Arc<dyn AddressSpaces>,
        features: Features,
        breakpoints: Breakpoints,
        console: Box<dyn Write + Send>,
    ) -> Self {
        let events = Arc::new(Events::new(pages.clone(), notify));
        Self {
            memory,
            console_input: ConsoleInput::new(events.clone(), false),
            events,
            roots: Roots::new(boot::kernel_root(features)),
            mappings: Vec::new(),
            ledger: None,
            spaces,
            xstate: crate::cpu::xstate(),
            features,
            breakpoints,
            stopping: (0..pages.vcpus()).map(|_| AtomicBool::new(false)).collect(),
            paused: AtomicBool::new(false),
            vcpus: None,
            devices: None,
            tracer: Arc::new(Tracer::new(pages.vcpus())),
            debug: None,
            ended: AtomicBool::new(false),
            leaves_core: false,
            sampler: Sampler::new(pages.vcpus()),
            console: Mutex::new(Some(console)),
            pages,
        }
    }

    /// Asks the guest's balloon to hold so many bytes. Whether the guest was told.
    pub(crate) fn set_balloon(&self, bytes: u64) -> bool {
        let follows = self.features.contains(Features::PAGE_REPORTING);
        let pages = bytes.min(self.memory.size()) / PAGE_SIZE;
        if self.memory.presence().set_target(pages) && follows {
            self.events.raise(0, BALLOON_CHANNEL);
        }
        let has_device = self.devices.as_ref().is_some_and(Devices::retarget_balloon);
        follows || has_device
    }

    /// One of its address spaces.
    pub(crate) fn view(&self, space: AddressSpace) -> View<'_> {
        match space {
            AddressSpace::Kernel => View::kernel(&self.memory, &self.mappings, self.roots.kernel()),
            AddressSpace::User { root } => View::user(&self.memory, root),
        }
    }

    /// Its vCPUs.
    ///
    /// # Panics
    ///
    /// Panics in a VM without an engine, which has none that run.
    pub(crate) fn vcpus(&self) -> &Vcpus {
        self.vcpus.as_ref().expect("a VM that runs has vCPUs")
    }

    /// Its devices.
    ///
    /// # Panics
    ///
    /// As [`vcpus`](Self::vcpus).
    pub(crate) fn devices(&self) -> &Devices {
        self.devices.as_ref().expect("a VM that runs has its devices, if only none")
    }

    /// What each vCPU has counted.
    pub(crate) fn counters(&self, control: &dyn Control) -> Vec<Counters> {
        (0..self.pages.vcpus()).map(|vcpu| control.counters(vcpu)).collect()
    }

    /// Writes to the console. Output that nobody takes is dropped: it is no fault of the guest's.
    pub(crate) fn write_console(&self, bytes: &[u8]) {
        let mut console = self.console.lock().expect("no thread panics with the lock held");
        if let Some(writer) = console.as_mut()
            && let Err(error) = writer.write_all(bytes).and_then(|()| writer.flush())
        {
            tracing::warn!(%error, "the console's output is gone; what the guest writes from here on is dropped");
            *console = None;
        }
    }
}
