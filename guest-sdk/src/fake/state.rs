//! A thread's VM: what the guest sees of it, and what the host remembers.

use super::End;
use super::devices::Devices;
use super::lent::Lent;
use super::mmu::Mmu;
use super::pages::Pages;
use crate::frames::pool;
use core::cell::{Cell, RefCell};
use core::ops::Deref;
use core::sync::atomic::Ordering::SeqCst;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64};
use hv_abi::boot::BootInfo;
use hv_abi::call::NEVER;
use hv_abi::clock::ClockPage;
use hv_abi::vcpu::{
    BALLOON_CHANNEL, CONSOLE_CHANNEL, EVENT_CHANNELS, EVENT_WORDS, NO_PROCESSOR, TIMER_CHANNEL, VcpuPage,
    run_state, upcall,
};
use hv_abi::{Call, Features, Status};
use std::boxed::Box;
use std::collections::VecDeque;
use std::string::String;
use std::vec::Vec;

/// Features that hosts serve.
pub(super) const OFFERED: Features = Features::EVENTS
    .union(Features::MULTICALL)
    .union(Features::MMU)
    .union(Features::PAGE_REPORTING)
    .union(Features::DEVICES)
    .union(Features::CONSOLE_INPUT)
    .union(Features::TRACE);

/// Channels that are always open.
const FIXED_CHANNELS: [u32; 3] = [TIMER_CHANNEL, BALLOON_CHANNEL, CONSOLE_CHANNEL];

/// 2025-01-01 00:00:00 UTC, when every fake VM is started.
const WALL_BASE: u64 = 1_735_689_600 * 1_000_000_000;

/// Readings of a clock that stands still, after which a loop is taken to wait for it.
const SPINS: u32 = if cfg!(test) { 100_000 } else { 1_000_000 };

/// Panics because of what the guest did, past [`run`](super::run).
macro_rules! misuse {
    ($($message:tt)*) => {{
        $crate::fake::state::vm().misused.set(true);
        panic!("fake host: {}", format_args!($($message)*))
    }};
}
pub(super) use misuse;

/// What code of a guest finds in place of statics and shared pages, and the host behind it.
pub(super) struct Vm {
    pub page: VcpuPage,
    pub clock: ClockPage,
    handlers: [AtomicPtr<()>; EVENT_CHANNELS as usize],
    armed: AtomicU64,
    boot: AtomicPtr<BootInfo>,
    frames: pool::Global,
    /// Time on the guest's clock, in ns, which is also the time-stamp counter.
    pub now: Cell<u64>,
    /// How often the clock was read since something happened.
    spins: Cell<u32>,
    /// Whether the guest has broken a rule, so that its panic is the test's.
    pub misused: Cell<bool>,
    /// Whether code is under `run`.
    pub running: Cell<bool>,
    /// Borrowed for no longer than one function of this module's: never while code of the guest runs.
    pub host: RefCell<Host>,
    /// Borrowed while one of them works.
    pub devices: RefCell<Devices>,
}

/// What the host knows. Its default is a VM that has just been started, with nothing set.
#[derive(Default)]
pub(super) struct Host {
    pub settings: Settings,
    pub console: Vec<u8>,
    pub input: Input,
    pub log: Vec<(Call, [u64; 5])>,
    pub failures: Vec<(Call, Status)>,
    pub lent: Lent,
    pub end: Option<End>,
    pub timer: Option<u64>,
    /// Channels that devices will fire, and when.
    pub expected: Vec<(u64, u32)>,
    pub open: Vec<u32>,
    pub wake_early: bool,
    pub mmu: Mmu,
    pub pages: Pages,
}

/// What is typed, and has not been read.
#[derive(Default)]
pub(super) struct Input {
    /// There may be more behind `bytes`.
    pub open: bool,
    /// What can be read.
    pub bytes: VecDeque<u8>,
    /// What comes later, each once all before it was read and the guest has looked again.
    pub later: VecDeque<Vec<u8>>,
}

/// What a test sets before the guest starts.
pub(super) struct Settings {
    pub arguments: Vec<String>,
    pub ramdisk: Vec<u8>,
    pub features: Features,
}

impl Default for Settings {
    fn default() -> Self {
        Self { arguments: Vec::new(), ramdisk: Vec::new(), features: OFFERED }
    }
}

impl Host {
    /// Panics unless a dynamic channel is open.
    pub(super) fn expect_open(&self, what: &str, channel: u32) {
        if !self.open.contains(&channel) && !vm().is_of_device(channel) {
            misuse!("{what} of channel {channel}, which is not open: never allocated, or closed");
        }
    }
}

/// The thread's VM. It is leaked, since what it shows the guest lives as long as the guest.
pub(super) fn vm() -> &'static Vm {
    std::thread_local!(static VM: &'static Vm = Box::leak(Box::new(Vm::new())));
    VM.with(|vm| *vm)
}

impl Vm {
    fn new() -> Self {
        Self {
            page: VcpuPage {
                upcall: AtomicU32::new(0), // `entry!` has unmasked already
                vcpu: AtomicU32::new(0),
                upcall_entry: AtomicU64::new(0),
                run_state: AtomicU32::new(run_state::RUNNING),
                preempted: AtomicU32::new(0),
                steal_ns: AtomicU64::new(0),
                engine0: 0,
                processor: AtomicU32::new(NO_PROCESSOR),
                engine1: [0; 3],
                pending: [const { AtomicU64::new(0) }; EVENT_WORDS],
                masked: [const { AtomicU64::new(u64::MAX) }; EVENT_WORDS],
                trace: AtomicU32::new(0),
                reserved: 0,
            },
            clock: ClockPage {
                scale: AtomicU64::new(1 << 32),
                wall_base: AtomicU64::new(WALL_BASE),
                ..ClockPage::default()
            },
            handlers: [const { AtomicPtr::new(core::ptr::null_mut()) }; EVENT_CHANNELS as usize],
            armed: AtomicU64::new(NEVER),
            boot: AtomicPtr::default(),
            frames: pool::Global::new(None),
            now: Cell::new(0),
            spins: Cell::new(0),
            misused: Cell::new(false),
            running: Cell::new(false),
            host: RefCell::default(),
            devices: RefCell::default(),
        }
    }

    /// Starts anew, with the same settings, the same calls to fail, and what is still to be typed.
    pub(super) fn restart(&self) {
        let page = &self.page;
        for zero in [&page.upcall, &page.vcpu, &page.run_state, &page.preempted, &page.trace] {
            zero.store(0, SeqCst);
        }
        page.steal_ns.store(0, SeqCst);
        page.pending.iter().for_each(|word| word.store(0, SeqCst));
        page.masked.iter().for_each(|word| word.store(u64::MAX, SeqCst));
        self.handlers.iter().for_each(|handler| handler.store(core::ptr::null_mut(), SeqCst));
        self.armed.store(NEVER, SeqCst);
        self.forget_boot();
        self.now.set(0);
        self.spins.set(0);
        self.misused.set(false);
        let old = self.host.take();
        self.host.replace(Host {
            settings: old.settings,
            failures: old.failures,
            input: old.input,
            ..Host::default()
        });
    }

    /// Makes boot information be written again when it is next read.
    pub(super) fn forget_boot(&self) {
        self.boot.store(core::ptr::null_mut(), SeqCst);
        *self.frames.lock() = None;
    }

    /// Fires a channel: all of it but the upcall.
    pub(super) fn fire(&self, channel: u32) {
        let (word, bit) = place(channel);
        self.page.pending[word].fetch_or(bit, SeqCst);
        if self.page.masked[word].load(SeqCst) & bit == 0 {
            self.page.upcall.fetch_or(upcall::PENDING, SeqCst);
        }
    }

    /// Not pending, masked.
    pub(super) fn reset_channel(&self, channel: u32) {
        let (word, bit) = place(channel);
        self.page.masked[word].fetch_or(bit, SeqCst);
        self.page.pending[word].fetch_and(!bit, SeqCst);
    }

    /// When the timer or a device fires next.
    pub(super) fn next_due(&self) -> Option<u64> {
        let host = self.host.borrow();
        host.expected.iter().map(|(at, _)| *at).chain(host.timer).min()
    }

    /// Makes it that time, unless it is later already, and fires what is due then.
    pub(super) fn go_to(&self, time: u64) {
        let now = self.now.get().max(time);
        self.now.set(now);
        self.something_happened();
        let mut host = self.host.borrow_mut();
        if host.timer.is_some_and(|at| at <= now) {
            host.timer = None;
            self.fire(TIMER_CHANNEL);
        }
        let Host { expected, open, .. } = &mut *host;
        let due = expected.extract_if(.., |(at, _)| *at <= now);
        due.filter(|(_, channel)| open.contains(channel)).for_each(|(_, channel)| self.fire(channel));
    }

    /// Counts a reading of the clock.
    pub(super) fn count_reading(&self) {
        self.spins.set(self.spins.get() + 1);
        if self.spins.get() > SPINS {
            misuse!(
                "the clock was read {SPINS} times while it stood still: wait by time::sleep, not in a loop"
            );
        }
    }

    pub(super) fn something_happened(&self) {
        self.spins.set(0);
    }

    /// Panics if the guest has written to its page what it must not.
    pub(super) fn check_page(&self) {
        let page = &self.page;
        let hosts = [
            ("vcpu", u64::from(page.vcpu.load(SeqCst))),
            ("run_state", page.run_state.load(SeqCst).into()),
            ("preempted", page.preempted.load(SeqCst).into()),
            ("steal_ns", page.steal_ns.load(SeqCst)),
        ];
        if let Some((field, value)) = hosts.iter().find(|(_, value)| *value != 0) {
            misuse!("the guest has set `{field}` of its vCPU page to {value}, which only the host may");
        }
        let bits = page.upcall.load(SeqCst) & !(upcall::PENDING | upcall::MASKED);
        if bits != 0 {
            misuse!("the guest has set bits {bits:#x} of `upcall`, which mean nothing");
        }
        let open = &self.host.borrow().open;
        let closed = |channel: &u32| {
            !FIXED_CHANNELS.contains(channel) && !open.contains(channel) && !self.is_of_device(*channel)
        };
        let touched = |(word, bit): (usize, u64)| {
            (page.pending[word].load(SeqCst) | !page.masked[word].load(SeqCst)) & bit != 0
        };
        // Looking at words first keeps the common case cheap: nothing is unmasked or pending.
        let words = (0..EVENT_WORDS as u32).filter(|word| touched((*word as usize, u64::MAX)));
        let mut channels = words.flat_map(|word| word * 64..(word + 1) * 64);
        if let Some(channel) = channels.find(|c| closed(c) && touched(place(*c))) {
            misuse!(
                "channel {channel} was unmasked, or made pending, and is not open: never allocated, or closed"
            );
        }
    }
}

/// Word and bit of a channel.
fn place(channel: u32) -> (usize, u64) {
    (channel as usize / 64, 1 << (channel % 64))
}

/// Stands for what the timer is armed for.
pub(crate) struct Armed;

impl Deref for Armed {
    type Target = AtomicU64;
    fn deref(&self) -> &AtomicU64 {
        &vm().armed
    }
}

/// Stands for the static table of handlers.
pub(crate) struct Handlers;

impl Deref for Handlers {
    type Target = [AtomicPtr<()>; EVENT_CHANNELS as usize];
    fn deref(&self) -> &Self::Target {
        &vm().handlers
    }
}

/// Stands for the static pointer to boot information.
pub(crate) struct Info;

impl Deref for Info {
    type Target = AtomicPtr<BootInfo>;
    fn deref(&self) -> &Self::Target {
        &vm().boot
    }
}

/// Stands for the static allocator of frames.
pub(crate) struct Frames;

impl Deref for Frames {
    type Target = pool::Global;
    fn deref(&self) -> &Self::Target {
        &vm().frames
    }
}
