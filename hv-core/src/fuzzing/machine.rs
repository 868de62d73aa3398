//! A VM without an engine: real memory, vCPU pages and calls, and all of a guest's view of them as one value.

use crate::calls::{AfterCall, Calls};
use crate::config::Breakpoints;
use crate::console_input::ConsoleInput;
use crate::engine::AddressSpaces;
use crate::events::{Notify, VcpuPages};
use crate::memory::GuestMemory;
use crate::report::End;
use crate::vm::Shared;
use arbitrary::Unstructured;
use hv_abi::vcpu::{EVENT_WORDS, FIRST_DYNAMIC_CHANNEL};
use hv_abi::{Features, GuestPhys, PAGE_SIZE};
use std::io::Write;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};

/// Bytes of guest memory: a little more than the longest console write. The guest kernel's root is in it.
pub(super) const MEMORY: u64 = 18 * PAGE_SIZE;
/// P of the guest kernel's root, if it has one.
pub(super) const KERNEL_ROOT: u64 = 15 * PAGE_SIZE;
pub(super) const VCPUS: u32 = 2;

/// A vCPU's page, as far as calls change it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub upcall: u32,
    pub pending: [u64; EVENT_WORDS],
    pub masked: [u64; EVENT_WORDS],
    /// Not in the page: how often the engine was told to look at it.
    pub notified: u32,
}

/// All that calls can change.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct State {
    pub memory: Vec<u8>,
    pub pages: [Page; VCPUS as usize],
    pub console: Vec<u8>,
    pub timer: Option<u64>,
    /// Pages that are reported, and how many of them the balloon holds.
    pub reported: u64,
    pub held: u64,
    pub end: Option<End>,
}

impl State {
    /// Panics, and names what differs, if anything does.
    pub(super) fn assert_is(&self, expected: &Self, after: impl Fn() -> String) {
        if self.memory != expected.memory {
            let at = self.memory.iter().zip(&expected.memory).position(|(found, expected)| found != expected);
            panic!("memory is wrong at {at:x?} after {}", after());
        }
        assert_eq!(self.pages, expected.pages, "after {}", after());
        assert!(self.console == expected.console, "the console is wrong after {}", after());
        assert_eq!((self.timer, &self.end), (expected.timer, &expected.end), "after {}", after());
        assert_eq!((self.reported, self.held), (expected.reported, expected.held), "after {}", after());
    }
}

/// A store that happens while a console write is served, as if by another vCPU.
pub(super) type Interference = Arc<Mutex<Option<(GuestPhys, u64)>>>;

struct Console {
    written: Arc<Mutex<Vec<u8>>>,
    memory: GuestMemory,
    interference: Interference,
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.written.lock().unwrap().extend_from_slice(bytes);
        if let Some((at, value)) = self.interference.lock().unwrap().take() {
            let _ = self.memory.write(at, &value); // outside of memory it is no store
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[derive(Default)]
struct Notified([AtomicU32; VCPUS as usize]);

impl Notify for Notified {
    fn notify(&self, vcpu: u32) {
        self.0[vcpu as usize].fetch_add(1, SeqCst);
    }

    fn pending(&self, _: u32) {}
}

/// No program ever runs, so nothing is kept of its page tables, and no context is held.
pub(super) struct NoSpaces;

impl AddressSpaces for NoSpaces {
    fn root_created(&self, _: u64) {}

    fn yield_to(&self, _: u32) {}

    fn entry_changed(&self, _: u64) {}

    fn flush(&self) {}

    fn flush_kernel(&self) {}

    fn forget_root(&self, _: u64) -> bool {
        true
    }

    fn release_user(&self, _: u64) -> bool {
        false
    }

    fn frames_written(&self) {}
}

pub(super) struct Machine {
    pub vm: Arc<Shared>,
    pub interference: Interference,
    written: Arc<Mutex<Vec<u8>>>,
    notified: Arc<Notified>,
}

impl Machine {
    pub(super) fn new(features: Features) -> Self {
        let memory = GuestMemory::new(MEMORY).expect("a small memory can be had");
        let pages = Arc::new(VcpuPages::new(VCPUS).expect("vCPU pages can be had"));
        let (written, interference) = (Arc::default(), Interference::default());
        let (memory_of_console, notified) = (memory.clone(), Arc::new(Notified::default()));
        let console = Console {
            written: Arc::clone(&written),
            memory: memory_of_console,
            interference: interference.clone(),
        };
        let console = Box::new(console);
        let (notify, spaces) = (notified.clone(), Arc::new(NoSpaces));
        let mut vm = Shared::new(memory, pages, notify, spaces, features, Breakpoints::Crash, console);
        vm.console_input = ConsoleInput::new(vm.events.clone(), true);
        Self { vm: Arc::new(vm), interference, written, notified }
    }

    pub(super) fn calls(&self) -> Calls<'_> {
        Calls { vm: &self.vm, vcpu: 0, timer: None, then: None }
    }

    pub(super) fn state(&self, calls: &Calls<'_>) -> State {
        let mut memory = vec![0; MEMORY as usize];
        self.vm.memory.read_bytes(GuestPhys(0), &mut memory).expect("all of it is memory");
        let page = |vcpu| {
            let page = self.vm.pages.page(vcpu);
            Page {
                upcall: page.upcall.load(SeqCst),
                pending: core::array::from_fn(|i| page.pending[i].load(SeqCst)),
                masked: core::array::from_fn(|i| page.masked[i].load(SeqCst)),
                notified: self.notified.0[vcpu as usize].load(SeqCst),
            }
        };
        let (pages, console) = ([page(0), page(1)], self.written.lock().unwrap().clone());
        let stats = self.vm.memory.stats();
        let held = stats.ballooned / PAGE_SIZE;
        let reported = stats.reported / PAGE_SIZE + held;
        let end = match &calls.then {
            Some(AfterCall::End(end)) => Some(end.clone()),
            Some(after) => panic!("a call left {after:?}"),
            None => None,
        };
        State { memory, pages, console, timer: calls.timer, reported, held, end }
    }
}

/// A number that is likely to be at the edge of something.
pub(super) fn edge(u: &mut Unstructured<'_>) -> arbitrary::Result<u64> {
    let near = |base: u64, by: i8| base.wrapping_add_signed(by.into());
    Ok(match u.int_in_range(0..=9)? {
        0 => u.int_in_range(0..=2)?,
        1 => u64::from(FIRST_DYNAMIC_CHANNEL) + u.int_in_range(0..=3)?,
        2 => u.arbitrary::<u8>()?.into(),
        3 => u.arbitrary::<u16>()?.into(),
        4 => u64::from(u.arbitrary::<u16>()?) << 3,
        5 => near(MEMORY, u.arbitrary()?),
        6 => near(*u.choose(&[16, 64, 128, 256, 512, 4096, 1 << 16, 1 << 32, 1 << 63])?, u.arbitrary()?),
        7 => near(0, u.arbitrary()?),
        8 => MEMORY - u64::from(u.arbitrary::<u8>()?) * 64,
        _ => u.arbitrary()?,
    })
}

/// The arguments of a call: as many as it has, and seldom more.
pub(super) fn arguments(u: &mut Unstructured<'_>, number: u32) -> arbitrary::Result<[u64; 5]> {
    let mut arguments = [0; 5];
    let count = hv_abi::Call(number).description().map_or(5, |call| call.arguments.len());
    for (index, argument) in arguments[..count].iter_mut().enumerate() {
        // Few channels and vCPUs, so that the same ones meet again.
        let open = u64::from(FIRST_DYNAMIC_CHANNEL) + u64::from(u.arbitrary::<u8>()? % 4);
        *argument = match (number, index) {
            // Tables, and updates in them that a step has written.
            (16 | 17 | 19, 0) if u.ratio(3, 4)? => page(u)?,
            (18, 0) | (20, 0) if u.ratio(3, 4)? => page(u)? + 64 * u64::from(u.arbitrary::<u8>()? % 4),
            (21 | 22, 0) if u.ratio(3, 4)? => page(u)? + 64 * u64::from(u.arbitrary::<u8>()? % 4),
            (23, 0) if u.ratio(3, 4)? => u.int_in_range(0..=20)?,
            (18 | 21 | 22, 1) if u.ratio(3, 4)? => u.int_in_range(0..=4)?,
            (18, 2) if u.ratio(7, 8)? => u.int_in_range(0..=1)?,
            (28, 0) if u.ratio(3, 4)? => page(u)? + 64 * u64::from(u.arbitrary::<u8>()? % 64),
            (28, 1) if u.ratio(3, 4)? => u.int_in_range(0..=8)?,
            (19, 1 | 2) if u.ratio(3, 4)? => PAGE_SIZE << u.int_in_range(0..=36)?,
            (10..=12, 0) if u.ratio(3, 4)? => open,
            (6 | 9 | 14, 0) | (12, 1) if u.ratio(3, 4)? => u.int_in_range(0..=u64::from(VCPUS) - 1)?,
            _ => edge(u)?,
        };
    }
    if u.ratio(1, 16)? {
        arguments[u.int_in_range(0..=4)?] = edge(u)?;
    }
    Ok(arguments)
}

/// The number of a call, most likely one that there is.
pub(super) fn number(u: &mut Unstructured<'_>) -> arbitrary::Result<u32> {
    if u.ratio(15, 16)? {
        return u.int_in_range(0..=15);
    }
    let any: u32 = u.arbitrary()?;
    Ok(match any % 4 {
        0 => any,
        1 => 27 + any / 4 % 2,
        2 => 21 + any / 4 % 3,
        _ => 16 + any / 4 % 5,
    })
}

/// A page of guest memory, or one behind it; a few come often, so that the same ones meet again.
pub(super) fn page(u: &mut Unstructured<'_>) -> arbitrary::Result<u64> {
    if u.ratio(3, 4)? {
        return Ok(*u.choose(&[KERNEL_ROOT, PAGE_SIZE, 2 * PAGE_SIZE])?);
    }
    Ok(u.int_in_range(0..=MEMORY / PAGE_SIZE)? * PAGE_SIZE)
}

/// Features in force: most often all.
pub(super) fn features(u: &mut Unstructured<'_>) -> arbitrary::Result<Features> {
    let bits = u.arbitrary::<u8>()?;
    Ok(if bits < 16 { Features::from_bits_retain(bits.into()) } else { crate::offered_features() })
}
