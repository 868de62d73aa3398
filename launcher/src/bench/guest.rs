//! Guests, measured from inside by the sample guests `bench` and `minios`, or from outside.

use crate::bench::host::{to_ns, warmed};
use crate::bench::{Figure, Phase};
use crate::cli::Engine;
use hv_abi::GuestPhys;
use hv_core::Breakpoints;
use hv_core::devices::DeviceStats;
use hv_core::engine::Counters;
use hv_core::{Config, DeviceConfig, End, Image, Vm};
use std::io::Write;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// Where a benchmark guest's console goes: each write, with its time.
struct Lines(Sender<(Instant, Vec<u8>)>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let _ = self.0.send((Instant::now(), bytes.to_vec()));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The engine of all guests that are measured, once it was said.
static ENGINE: OnceLock<Engine> = OnceLock::new();

/// Has guests run on an engine, from here on.
pub(super) fn use_engine(engine: Engine) {
    let _ = ENGINE.set(engine); // one process measures one
}

/// Which that is.
pub(super) fn engine() -> Engine {
    *ENGINE.get_or_init(|| Engine::Auto)
}

/// A built-in guest with arguments, and where what it writes comes out.
pub(crate) fn config(guest: &str, arguments: &[&str]) -> (Config, Receiver<(Instant, Vec<u8>)>) {
    let image = sample_guests::find(guest).expect("a guest that is built in").image;
    let mut config = Config::new(Image::parse(image).expect("built-in images are good"));
    let (lines, output) = channel();
    config.console = Box::new(Lines(lines));
    config.command_line = arguments.iter().map(|a| (*a).to_string()).collect();
    config.breakpoints = Breakpoints::Continue;
    config.engine = engine().into();
    (config, output)
}

fn start(config: Config) -> Vm {
    Vm::start(config).unwrap_or_else(|error| panic!("a benchmark guest did not start: {error}"))
}

/// Memory of a benchmark guest: enough for those that let none go.
const MEMORY: u64 = 256 << 20;

/// Runs a guest; gives what it printed, and what its crossings cost.
fn run(guest: &str, arguments: &[&str]) -> (String, Counters) {
    run_on(1, guest, arguments)
}

fn run_on(vcpus: u32, guest: &str, arguments: &[&str]) -> (String, Counters) {
    let (mut config, output) = config(guest, arguments);
    config.memory = MEMORY;
    config.vcpus = vcpus;
    let report = start(config).wait();
    let text: Vec<u8> = output.iter().flat_map(|(_, bytes)| bytes).collect();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert_eq!(report.end, End::Shutdown { code: 0 }, "the guest `{guest}` failed, and said: {text}");
    (text, report.counters)
}

/// Runs the guest `bench` with devices; gives the numbers that it printed, and what the devices did.
pub(super) fn with_devices(devices: Vec<DeviceConfig>, arguments: &[&str]) -> (Vec<f64>, Vec<DeviceStats>) {
    let (mut config, output) = config("bench", arguments);
    config.memory = MEMORY;
    config.devices = devices;
    let report = start(config).wait();
    let text: Vec<u8> = output.iter().flat_map(|(_, bytes)| bytes).collect();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert_eq!(report.end, End::Shutdown { code: 0 }, "the guest `bench` failed, and said: {text}");
    (parse(text.as_bytes()), report.devices)
}

/// What a guest prints.
pub(super) fn console(guest: &str, arguments: &[&str]) -> String {
    run(guest, arguments).0
}

/// Runs the guest `bench` and gives the numbers that it printed, and what its crossings cost.
fn numbers(arguments: &[&str]) -> (Vec<f64>, Counters) {
    let (text, counters) = run("bench", arguments);
    (parse(text.as_bytes()), counters)
}

fn parse(text: &[u8]) -> Vec<f64> {
    String::from_utf8_lossy(text).split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// A row that the guest measures in picoseconds per operation.
pub(super) fn picoseconds(name: &str, phase: Phase, what: &str) -> (Figure, Counters) {
    of_picoseconds(name, phase, &[what, "21"])
}

/// As [`picoseconds`], of a guest that is traced meanwhile.
pub(super) fn traced(name: &str, phase: Phase, what: &str) -> Figure {
    let (mut config, output) = config("bench", &[what, "21"]);
    config.memory = MEMORY;
    config.trace = true;
    let mut vm = start(config);
    let mut session = vm.take_trace().expect("it is traced from the start");
    let (end, ended) = channel::<()>();
    let taking = std::thread::spawn(move || {
        let mut events = 0;
        while ended.recv_timeout(Duration::from_millis(1)) == Err(RecvTimeoutError::Timeout) {
            events += session.take().iter().map(|batch| batch.events.len()).sum::<usize>();
        }
        events
    });
    assert_eq!(vm.wait().end, End::Shutdown { code: 0 }, "a benchmark guest failed");
    drop(end);
    assert!(taking.join().expect("it does not panic") > 1000, "the guest was not traced");
    let text: Vec<u8> = output.iter().flat_map(|(_, bytes)| bytes).collect();
    Figure::new(name, "ns", phase, parse(&text).into_iter().map(|ps| ps / 1000.0).collect())
}

/// A row of page tables.
pub(super) fn pages(name: &str, phase: Phase, arguments: &[&str]) -> Figure {
    of_picoseconds(name, phase, arguments).0
}

fn of_picoseconds(name: &str, phase: Phase, arguments: &[&str]) -> (Figure, Counters) {
    let (samples, counters) = numbers(arguments);
    let ns = samples.iter().map(|ps| ps / 1000.0).collect();
    (Figure::new(name, "ns", phase, ns), counters)
}

/// A row that the guest measures in nanoseconds per operation.
pub(super) fn nanoseconds(name: &str, phase: Phase, what: &str) -> Figure {
    let (samples, _) = numbers(&[what, "101"]);
    Figure::new(name, "ns", phase, samples)
}

/// An event from one vCPU to another, which is blocked, and one back.
pub(super) fn ping(name: &str, phase: Phase) -> Figure {
    let (text, _) = run_on(2, "bench", &["ping", "11"]);
    Figure::new(name, "ns", phase, parse(text.as_bytes()).into_iter().map(|ps| ps / 1000.0).collect())
}

/// From sending an event on one vCPU until the handler runs on another, which computes.
pub(super) fn interrupt(name: &str, phase: Phase, samples: usize) -> Figure {
    let (text, _) = run_on(2, "bench", &["interrupt", &samples.to_string()]);
    let ns = parse(text.as_bytes()).into_iter().map(|ticks| to_ns(ticks as u64)).collect();
    Figure::new(name, "ns", phase, ns)
}

/// From raising an event on the host until the guest's handler runs.
pub(super) fn upcall(name: &str, phase: Phase, mode: &str, samples: usize) -> Figure {
    let (config, output) = config("bench", &[mode, &samples.to_string()]);
    let vm = start(config);
    let (_, line) = output.recv().expect("the guest tells its channel");
    let numbers = parse(&line);
    let (channel, sent, count) =
        (numbers[0] as u32, GuestPhys(numbers[1] as u64), GuestPhys(numbers[2] as u64));
    for i in 0..samples as u32 {
        std::thread::sleep(Duration::from_micros(500));
        vm.memory().write(sent, &hv_core::clock::tsc()).expect("the guest told a good address");
        vm.raise_event(channel);
        let raised = Instant::now();
        // Events that come faster than they are taken become one.
        while vm.memory().read::<u32>(count).expect("the guest told a good address") <= i {
            assert!(raised.elapsed() < Duration::from_secs(10), "an event was lost");
            std::thread::yield_now();
        }
    }
    assert_eq!(vm.wait().end, End::Shutdown { code: 0 }, "a benchmark guest failed");
    let text: Vec<u8> = output.iter().flat_map(|(_, bytes)| bytes).collect();
    Figure::new(name, "ns", phase, parse(&text).into_iter().map(|ticks| to_ns(ticks as u64)).collect())
}

/// From `Vm::start` until the monitor has served the guest's first call.
pub(super) fn start_to_first_call(phase: Phase) -> Figure {
    let once = || {
        let (config, output) = config("bench", &["first"]);
        let begun = Instant::now();
        let vm = start(config);
        let (first, _) = output.recv().expect("the guest writes a line");
        drop(vm.wait());
        (first - begun).as_nanos() as f64 / 1000.0
    };
    Figure::new("Vm::start to first hypercall", "us", phase, warmed(31, once))
}
