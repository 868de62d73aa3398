//! How much processor time a VM gets: a cap, and a weight against others.
//!
//! One thread, which is there only for a VM that has either, looks at the processor time of the VM: of all its sandboxes, of
//! what starting them took, of the threads that serve its vCPUs, and its own. It holds guest code back when it has had
//! its part. What it looks at, and how it holds back, is out of the guest's reach: the host's own clocks, and SIGSTOP.
//!
//! Start at [`Keeper::start`]. [`policy`] decides, [`gate`] agrees with the monitor's other threads on when guest code
//! may be held back, [`peers`] is how monitors know of each other. [`steal`] tells the guest.

mod gate;
mod peers;
mod policy;
pub(crate) mod steal;

pub(crate) use gate::{Gate, Pass};
pub use peers::Peers;

use crate::clock::monotonic_ns;
use crate::cpu_clock;
use crate::engine::Control;
use crate::vm::Shared;
use gate::Waited;
use policy::{Cap, Figures, Rivalry, Step};
use serde::Serialize;
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// How much processor time a VM gets. By default, what the host's scheduler gives it.
#[derive(Debug, Default)]
pub struct CpuShare {
    /// At most so many percent of one processor, for guest code and all that the monitor does for it. At least 1.
    pub cap: Option<u32>,
    /// Its weight against other VMs on the same processors, 1 to 10000, and how their monitors find each other.
    pub weight: Option<(u32, Peers)>,
}

/// What a [`CpuShare`] came to, as it was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Measured {
    /// The cap, in percent of one processor.
    pub cap: Option<u32>,
    /// The weight.
    pub weight: Option<u32>,
    /// Processor time of guest code and of what the monitor did for it, in nanoseconds.
    pub cpu_ns: u64,
    /// The time in which it had it, in nanoseconds.
    pub wall_ns: u64,
    /// That as percent of one processor.
    pub percent: f64,
    /// How often guest code was held back.
    pub pauses: u64,
    /// For how long in all, in nanoseconds.
    pub held_back_ns: u64,
    /// Most other VMs that shared by weight at one time.
    pub peers: usize,
}

/// Holds a VM to its share, on a thread of its own.
pub(crate) struct Keeper {
    thread: JoinHandle<()>,
    measured: Arc<Mutex<Measured>>,
}

impl Keeper {
    /// Begins, if there is something to keep.
    pub(crate) fn start(
        share: CpuShare,
        gate: &Arc<Gate>,
        control: &Arc<dyn Control>,
        vm: &Arc<Shared>,
    ) -> io::Result<Option<Self>> {
        if share.cap.is_none() && share.weight.is_none() {
            return Ok(None);
        }
        let (weight, peers) = share.weight.unzip();
        let measured = Measured { cap: share.cap, weight, ..Measured::default() };
        let measured = Arc::new(Mutex::new(measured));
        let mut thread = Thread {
            gate: gate.clone(),
            control: control.clone(),
            vm: vm.clone(),
            cap: share.cap.map(Cap::new),
            weight: weight.unwrap_or_default(),
            peers,
            rivals: HashMap::new(),
            first: monotonic_ns(),
            last: monotonic_ns(),
            used: 0,
            measured: measured.clone(),
        };
        let builder = std::thread::Builder::new().name("hv-cpu-share".into()).stack_size(128 << 10);
        let thread = builder.spawn(move || thread.run())?;
        Ok(Some(Self { thread, measured }))
    }

    /// Waits for its thread's end, after the gate's, and gives what it measured.
    pub(crate) fn finish(self) -> Measured {
        // It panics only if the program is wrong; what was measured until then is still true.
        let _ = self.thread.join();
        self.measured.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

struct Thread {
    gate: Arc<Gate>,
    control: Arc<dyn Control>,
    vm: Arc<Shared>,
    cap: Option<Cap>,
    weight: u32,
    peers: Option<Peers>,
    /// By their places.
    rivals: HashMap<usize, Rivalry>,
    /// When this began, on the host's monotonic clock.
    first: u64,
    /// The last look.
    last: u64,
    used: u64,
    measured: Arc<Mutex<Measured>>,
}

impl Thread {
    fn run(&mut self) {
        let mut held_back = false;
        loop {
            let waited = match self.look(held_back) {
                Step::Run(time) => {
                    held_back = false;
                    self.gate.wait(time)
                }
                Step::Pause(time) => {
                    held_back = true;
                    self.pause(time)
                }
            };
            if waited == Waited::Ended {
                self.look(held_back);
                return;
            }
        }
    }

    /// Looks at what was used, and decides.
    fn look(&mut self, held_back: bool) -> Step {
        let now = monotonic_ns();
        let monitor = self.vm.vcpus().cpu_time(); // less when the VM ends, and with it its threads
        let all = (cpu_clock::this_thread() + monitor + self.control.total_cpu_time()).max(self.used);
        let elapsed = Duration::from_nanos(now - self.last);
        let used = Duration::from_nanos(all - self.used);
        (self.last, self.used) = (now, all);
        let by_cap = self.cap.as_mut().map(|cap| cap.look(elapsed, used));
        let by_weight = self.look_at_peers(used, held_back);
        {
            let mut measured = self.measured.lock().expect("no thread panics with the lock held");
            measured.cpu_ns = all;
            measured.wall_ns = now - self.first;
            measured.percent = all as f64 * 100.0 / measured.wall_ns.max(1) as f64;
            measured.peers = measured.peers.max(self.rivals.len());
        }
        [by_cap, by_weight].into_iter().flatten().reduce(Step::and).expect("a cap or a weight")
    }

    fn look_at_peers(&mut self, used: Duration, held_back: bool) -> Option<Step> {
        let peers = self.peers.as_ref()?;
        let delayed = (0..self.vm.pages.vcpus()).map(|vcpu| self.control.run_delay(vcpu)).sum();
        let own = Figures { at: self.last, weight: self.weight, used: self.used, delayed };
        peers.publish(own);
        let others = peers.others();
        self.rivals.retain(|place, _| others.iter().any(|peer| peer.place == *place));
        let mut step = Step::Run(policy::LONGEST);
        for peer in others {
            let rivalry = self.rivals.entry(peer.place).or_insert_with(|| Rivalry::new(peer.figures));
            step = step.and(rivalry.look(own, used, peer.figures, held_back));
        }
        Some(step)
    }

    /// Holds guest code back for so long, unless somebody needs it to run.
    fn pause(&self, time: Duration) -> Waited {
        if !self.gate.close() {
            return self.gate.wait(LIFTED);
        }
        let stolen = steal::HeldBack::new(&self.vm.pages);
        self.control.hold_back(true);
        stolen.begins();
        let waited = self.gate.wait(time);
        stolen.ends(self.gate.closed_for());
        self.control.hold_back(false);
        let closed = self.gate.open();
        let mut measured = self.measured.lock().expect("no thread panics with the lock held");
        measured.pauses += 1;
        measured.held_back_ns += closed.as_nanos() as u64;
        waited
    }
}

/// How soon to try again when the gate could not be closed.
const LIFTED: Duration = Duration::from_millis(1);
