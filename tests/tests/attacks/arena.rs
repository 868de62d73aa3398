//! Where attacks are made: one at a time, beside a VM that must not notice, with a look around before and after.

use crate::common::{self, Console, PATIENCE, exists};
use crate::host_devices::HostDevices;
use hv_core::{Breakpoints, DeviceConfig, End, Report, Vm};
use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// One hostile VM: the arguments of the guest `attack`.
#[derive(Clone, Debug)]
pub(crate) struct Attack {
    pub(crate) arguments: Vec<String>,
    /// How long it is let run before it is stopped.
    pub(crate) limit: Duration,
    pub(crate) breakpoints: Breakpoints,
    /// Bytes of guest memory.
    pub(crate) memory: u64,
    pub(crate) vcpus: u32,
    /// It has a device of each kind.
    pub(crate) devices: bool,
}

impl Attack {
    pub(crate) fn new(way: &str, numbers: &[u64]) -> Self {
        let mut arguments = vec![way.to_owned()];
        arguments.extend(numbers.iter().map(u64::to_string));
        Self {
            arguments,
            limit: Duration::from_millis(30),
            breakpoints: Breakpoints::Continue,
            memory: 64 << 20,
            vcpus: 1,
            devices: false,
        }
    }

    pub(crate) fn start(&self) -> (Vm, Console) {
        self.start_as(Vec::new())
    }

    pub(crate) fn start_with_devices(&self) -> (Vm, Console, HostDevices) {
        let (host, devices) = HostDevices::new();
        let (vm, console) = self.start_as(devices);
        (vm, console, host)
    }

    fn start_as(&self, devices: Vec<DeviceConfig>) -> (Vm, Console) {
        let arguments: Vec<_> = self.arguments.iter().map(String::as_str).collect();
        let (mut config, console) = common::config("attack", &arguments);
        config.breakpoints = self.breakpoints;
        config.memory = self.memory;
        config.vcpus = self.vcpus;
        config.devices = devices;
        (Vm::start(config).expect("the VM starts"), console)
    }

    /// Lets it run until it ends or its time is over.
    fn run(&self) -> Report {
        let (host, devices) = self.devices.then(HostDevices::new).unzip();
        let (vm, _) = self.start_as(devices.unwrap_or_default());
        let processes = vm.processes();
        let report = match vm.wait_timeout(self.limit) {
            Ok(report) => report,
            Err(vm) => vm.stop(),
        };
        assert!(processes.iter().all(|pid| !exists(*pid)), "{self:?} left {processes:?}");
        drop(host);
        report
    }
}

/// How many times as many attacks are wanted.
pub(crate) fn factor() -> u64 {
    std::env::var("HV_ATTACKS").ok().and_then(|factor| factor.parse().ok()).unwrap_or(1)
}

/// What this process has, from the host's point of view.
#[derive(Clone, Debug)]
struct Possessions {
    descriptors: usize,
    threads: usize,
    children: usize,
    /// Mappings of VMs' files.
    mappings: usize,
    /// Kilobytes of its own memory.
    resident: u64,
}

impl Possessions {
    fn now() -> Self {
        let maps = fs::read_to_string("/proc/self/maps").expect("/proc is there");
        let count = |directory| fs::read_dir(directory).expect("/proc is there").count();
        Self {
            descriptors: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
            children: children(),
            mappings: maps.lines().filter(|line| line.contains("/memfd:hv-")).count(),
            resident: status("self", "RssAnon:"),
        }
    }
}

/// A field of `/proc/PID/status`, in its unit; 0 if the process is gone.
pub(crate) fn status(pid: &str, field: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap_or("0");
    line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}

/// Processes whose parent is this one.
fn children() -> usize {
    let is_child = |pid: &str| status(pid, "PPid:") == u64::from(std::process::id());
    let names = fs::read_dir("/proc")
        .expect("/proc is there")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).filter(|pid| is_child(pid)).count()
}

/// One test's attacks. Ends with the look around.
pub(crate) struct Arena {
    before: Possessions,
    neighbour: Option<(Vm, Console)>,
    _alone: MutexGuard<'static, ()>,
}

static ALONE: Mutex<()> = Mutex::new(());

/// Attacks at the same time. Many spend their time asleep.
const WORKERS: usize = 4;

impl Arena {
    pub(crate) fn enter() -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        // What is made once for the process, and its allocator's first memory.
        (0..20).for_each(|_| drop(common::run("hello", &[])));
        // The thread that reaps sandboxes lets go of the last one's files a moment after its end was told.
        let start = Instant::now();
        while Possessions::now().mappings > 0 && start.elapsed() < PATIENCE {
            std::thread::yield_now();
        }
        let before = Possessions::now();
        let neighbour = common::start("attack", &["checksum"]);
        Self { before, neighbour: Some(neighbour), _alone: alone }
    }

    /// Makes all attacks, and shows each report to `judge`.
    pub(crate) fn send(&self, attacks: impl IntoIterator<Item = Attack>, judge: impl Fn(&Attack, &Report)) {
        let (work, todo) = crossbeam_channel::unbounded::<Attack>();
        let (done, reports) = mpsc::channel();
        let mut left = 0;
        for attack in attacks {
            work.send(attack).expect("`todo` lives");
            left += 1;
        }
        drop(work);
        for _ in 0..WORKERS {
            let (todo, done) = (todo.clone(), done.clone());
            std::thread::spawn(move || {
                for attack in todo {
                    let report = attack.run();
                    let _ = done.send((attack, report)); // the test may have failed meanwhile
                }
            });
        }
        drop((done, todo));
        while left > 0 {
            let (attack, report) =
                reports.recv_timeout(PATIENCE).expect("an attack hangs the monitor, or broke it");
            told(&attack, &report);
            judge(&attack, &report);
            left -= 1;
        }
    }

    /// Stops the neighbour, and looks around.
    pub(crate) fn leave(mut self) {
        let (vm, console) = self.neighbour.take().expect("it is taken once");
        console.wait_for("round 1\n");
        let report = vm.stop();
        assert_eq!(report.end, End::Stopped, "the neighbour was disturbed");
        let start = Instant::now();
        loop {
            let now = Possessions::now();
            let countable = |p: &Possessions| (p.descriptors, p.children, p.mappings);
            if countable(&now) == countable(&self.before) && now.threads <= self.before.threads {
                let grown = now.resident.saturating_sub(self.before.resident);
                assert!(grown < 16 << 10, "the monitor grew by {grown} KiB");
                return;
            }
            // Worker threads take a moment to end.
            assert!(start.elapsed() < PATIENCE, "left: {now:?}, before: {:?}", self.before);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Every end has a reason, and none is the monitor's own failure.
pub(crate) fn told(attack: &Attack, report: &Report) {
    if let End::Died { reason } = &report.end {
        assert!(!reason.contains("threads ended"), "{attack:?}: the monitor's thread panicked");
        assert!(!reason.is_empty(), "{attack:?}");
    }
}
