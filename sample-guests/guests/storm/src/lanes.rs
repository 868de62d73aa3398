//! How tokens go from vCPU to vCPU.
//!
//! A lane is taken by who sends a token over it, and free again once that has come, so an event that is lost is never made
//! good by a later one on the same lane. A lane may be bound to another vCPU at any time, its event under way or not; and a
//! vCPU may stop itself: whoever sends or binds something to it then starts it again.
//!
//! Start at [`send`].

use crate::{COUNT, HELD, worker};
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use fastrand::Rng;
use guest_sdk::events::Channel;
use guest_sdk::hv_abi::Status;
use guest_sdk::hv_abi::address::{VCPU_PAGES, VCPU_STRIDE};
use guest_sdk::hv_abi::vcpu::{EVENT_CHANNELS, EVENT_WORDS, VcpuPage};
use guest_sdk::smp::{self, PerVcpu};
use guest_sdk::time::Instant;
use guest_sdk::{hypercall, println};

/// Enough for a token on each vCPU and as many free ones.
const LANES: usize = 128;

struct Lane {
    taken: AtomicBool,
    /// The number of the last journey that was begun, of the last that was ended, and when the last began.
    sent: AtomicU64,
    came: AtomicU64,
    since: AtomicU64,
    channel: AtomicU32,
}

static ALL: [Lane; LANES] = [const {
    Lane {
        taken: AtomicBool::new(false),
        sent: AtomicU64::new(0),
        came: AtomicU64::new(0),
        since: AtomicU64::new(0),
        channel: AtomicU32::new(0),
    }
}; LANES];

/// The lane of each channel.
static LANE_OF: [AtomicU32; EVENT_CHANNELS as usize] =
    [const { AtomicU32::new(u32::MAX) }; EVENT_CHANNELS as usize];

/// The first vCPU's, for the round's end.
static HOME: AtomicU32 = AtomicU32::new(0);
/// The longest journey, in nanoseconds.
static LATEST: AtomicU64 = AtomicU64::new(0);
/// vCPUs that are about to stop, have, or are being started.
static STOPPING: PerVcpu<AtomicBool> = PerVcpu::new([const { AtomicBool::new(true) }; _]);

impl Lane {
    fn channel(&self) -> Channel {
        Channel::from_number(self.channel.load(Relaxed))
    }
}

/// Opens the lanes; each vCPU has some.
pub fn open() {
    STOPPING.store(false, SeqCst);
    for (index, lane) in (0..).zip(&ALL) {
        let channel = Channel::allocate_for(index % smp::count()).expect("a free channel");
        lane.channel.store(channel.number(), Relaxed);
        LANE_OF[channel.number() as usize].store(index, Relaxed);
        channel.on_event(came);
    }
    let home = Channel::allocate().expect("a free channel");
    home.on_event(|_| ());
    HOME.store(home.number(), Relaxed);
}

/// Has a vCPU that has just been started hear of events.
pub fn listen() {
    STOPPING.store(false, SeqCst);
    ALL.iter().for_each(|lane| lane.channel().unmask());
}

/// All lanes' channels, as a set.
pub fn set() -> [u64; EVENT_WORDS] {
    let mut set = [0; EVENT_WORDS];
    for number in ALL.iter().map(|lane| lane.channel().number()) {
        set[number as usize / 64] |= 1 << (number % 64);
    }
    set
}

pub fn channels() -> impl Iterator<Item = Channel> {
    ALL.iter().map(Lane::channel)
}

/// A lane's event was taken on this vCPU. If it carried a token, that is here now.
pub fn came(channel: Channel) {
    let lane = &ALL[LANE_OF[channel.number() as usize].load(Relaxed) as usize];
    let since = lane.since.load(SeqCst);
    let sent = lane.sent.load(SeqCst);
    let Some(before) = sent.checked_sub(1) else { return };
    if lane.came.compare_exchange(before, sent, SeqCst, SeqCst).is_err() {
        assert_eq!(lane.came.load(SeqCst).max(sent), lane.came.load(SeqCst), "a journey was left out");
        return; // noise, or one event that two vCPUs saw while its lane went from one to the other
    }
    LATEST.fetch_max(Instant::now().as_nanos().saturating_sub(since), Relaxed);
    lane.taken.store(false, SeqCst);
    HELD.fetch_add(1, SeqCst);
}

/// Sends a token over a free lane.
pub fn send(random: &mut Rng) {
    let lane = loop {
        let lane = &ALL[random.usize(..LANES)];
        if !lane.taken.swap(true, SeqCst) {
            break lane;
        }
    };
    lane.since.store(Instant::now().as_nanos(), SeqCst);
    lane.sent.fetch_add(1, SeqCst);
    fire(lane);
}

/// Sends an event without a token.
pub fn make_noise(random: &mut Rng) {
    fire(&ALL[random.usize(..LANES)]);
}

fn fire(lane: &Lane) {
    lane.channel().send().expect("it is open");
    start_who_is_wanted();
}

/// Binds a lane to some vCPU, whatever is under way on it.
pub fn bind(random: &mut Rng) {
    let lane = &ALL[random.usize(..LANES)];
    lane.channel().bind(random.u32(..smp::count())).expect("it is open");
    COUNT.binds.fetch_add(1, Relaxed);
    start_who_is_wanted();
}

/// Has the first vCPU look whether all tokens are home.
pub fn wake_the_first() {
    Channel::from_number(HOME.load(Relaxed)).send().expect("it is open");
}

/// Whether this vCPU may stop, with its lanes masked from then on: it says that it is about to, then looks for events. Whoever
/// sends one looks in the other order.
pub fn may_stop() -> bool {
    channels().for_each(Channel::mask);
    STOPPING.store(true, SeqCst);
    let may = HELD.load(SeqCst) == 0 && !is_wanted(smp::current());
    if !may {
        listen();
    }
    may
}

fn start_who_is_wanted() {
    for vcpu in 0..smp::count() {
        while STOPPING.of(vcpu).load(SeqCst) && is_wanted(vcpu) {
            match smp::start(vcpu, worker) {
                Ok(()) => drop(COUNT.starts.fetch_add(1, Relaxed)),
                Err(Status::BUSY) => hypercall::yield_now(), // it is yet to stop, or to say that it runs
                Err(status) => panic!("vCPU {vcpu} cannot be started: {status:?}"),
            }
        }
    }
}

/// Whether there is an event for a vCPU.
fn is_wanted(vcpu: u32) -> bool {
    let page = core::ptr::with_exposed_provenance((VCPU_PAGES + u64::from(vcpu) * VCPU_STRIDE) as usize);
    // SAFETY: the ABI maps a `VcpuPage` there for each vCPU; all that changes in it are atomics.
    let page: &VcpuPage = unsafe { &*page };
    page.pending.iter().zip(set()).any(|(pending, set)| pending.load(SeqCst) & set != 0)
}

/// Journeys that were made, and microseconds that the longest took.
pub fn figures() -> [u64; 2] {
    [ALL.iter().map(|lane| lane.came.load(SeqCst)).sum(), LATEST.load(Relaxed) / 1000]
}

/// Prints what is under way, and what vCPUs are doing.
pub fn print() {
    let now = Instant::now().as_nanos();
    for lane in ALL.iter().filter(|lane| lane.taken.load(SeqCst)) {
        let late = (now - lane.since.load(SeqCst)) / 1000;
        println!("channel {}: journey {} is {late} us late", lane.channel().number(), lane.sent.load(SeqCst));
    }
    for vcpu in 0..smp::count() {
        let page = core::ptr::with_exposed_provenance((VCPU_PAGES + u64::from(vcpu) * VCPU_STRIDE) as usize);
        // SAFETY: as above.
        let page: &VcpuPage = unsafe { &*page };
        println!(
            "vCPU {vcpu}: state {} upcall {} held {} stopping {} doing {} pending {:x?}",
            page.run_state.load(SeqCst),
            page.upcall.load(SeqCst),
            HELD.of(vcpu).load(SeqCst),
            STOPPING.of(vcpu).load(SeqCst),
            crate::waits::DOING.of(vcpu).load(SeqCst),
            page.pending.each_ref().map(|word| word.load(SeqCst)),
        );
    }
}
