//! This project's own hypervisor, with one of its engines.

use crate::{Crash, Device, End, Hypervisor, Machine};
use hv_core::devices::{Block, BlockOptions};
use hv_core::engine::Fault;
use hv_core::vm::MemoryControl;
use hv_core::{Config, ConsoleInput, CpuShare, DeviceConfig, EngineKind, Image, Report, Vm};
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// hv, with an engine.
#[derive(Clone, Copy, Debug)]
pub struct Hv {
    /// Which runs the VMs.
    pub engine: EngineKind,
    /// See [`Config::check_tables`].
    pub check_tables: bool,
}

impl Default for Hv {
    /// The engine that `HV_ENGINE` in the environment names; otherwise the process engine.
    fn default() -> Self {
        Self { engine: engine_of_environment().unwrap_or(EngineKind::Process), check_tables: false }
    }
}

/// The engine that `HV_ENGINE` names, for tests that boot VMs: `process`, `kvm`, or `auto`.
///
/// # Panics
///
/// Panics if it names none.
pub fn engine_of_environment() -> Option<EngineKind> {
    let name = std::env::var("HV_ENGINE").ok()?;
    Some(match &*name {
        "auto" => EngineKind::Auto,
        "process" => EngineKind::Process,
        "kvm" => EngineKind::Kvm,
        other => panic!("HV_ENGINE is {other:?}, expected process, kvm or auto"),
    })
}

impl Hypervisor for Hv {
    fn name(&self) -> &str {
        match self.engine {
            EngineKind::Auto => "auto",
            EngineKind::Process => "process",
            EngineKind::Kvm => "kvm",
        }
    }

    fn boot(&self, machine: Machine, console: Box<dyn Write + Send>) -> End {
        let Machine {
            image,
            arguments,
            memory,
            vcpus,
            ramdisk,
            typed,
            balloon,
            limit,
            pauses,
            cpu_cap,
            devices,
        } = machine;
        let started = Image::parse(image).map_err(|error| error.to_string()).and_then(|image| {
            let config = Config {
                memory,
                vcpus,
                engine: self.engine,
                command_line: arguments,
                ramdisk,
                console,
                console_input: typed.is_some(),
                check_tables: self.check_tables,
                cpu: CpuShare { cap: cpu_cap, ..CpuShare::default() },
                devices: devices.into_iter().map(device).collect(),
                ..Config::new(image)
            };
            Vm::start(config).map_err(|error| error.to_string())
        });
        if let (Ok(vm), Some(pieces)) = (&started, typed) {
            let input = vm.console_input();
            std::thread::spawn(move || enter(&input, &pieces));
        }
        if let (Ok(vm), false) = (&started, balloon.is_empty()) {
            let control = vm.memory_control();
            std::thread::spawn(move || ask(&control, &balloon));
        }
        let ended = match started {
            Err(cause) => return End::Refused(cause),
            Ok(vm) if pauses => run_with_pauses(vm, limit),
            Ok(vm) => vm.wait_timeout(limit),
        };
        match ended {
            Ok(report) => end(report),
            Err(vm) => {
                let cpu_time = cpu_time(&vm.processes());
                End::TimedOut { cpu_time, backtrace: backtrace(&vm.stop()) }
            }
        }
    }
}

fn device(device: Device) -> DeviceConfig {
    match device {
        Device::Entropy => DeviceConfig::Entropy,
        Device::Disk(bytes) => DeviceConfig::Block(disk(&bytes)),
    }
}

/// A disk in memory, which goes with its VM.
fn disk(bytes: &[u8]) -> Block {
    let file = memfd_create("disk", MemfdFlags::CLOEXEC).expect("the host has memory for a disk");
    let mut file = File::from(file);
    file.write_all(bytes).expect("the host has memory for a disk");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Block::open(path.as_ref(), BlockOptions::default()).expect("whole sectors are a disk")
}

/// Types these pieces, each when the guest wants some, until the VM has ended.
fn enter(input: &ConsoleInput, pieces: &[Vec<u8>]) {
    for piece in pieces {
        let mut rest = &piece[..];
        while !rest.is_empty() {
            if !input.wait_until_wanted() {
                return;
            }
            rest = &rest[input.push(rest)..];
        }
    }
    if input.wait_until_wanted() {
        input.close();
    }
}

/// Asks for these numbers of bytes, each when the balloon holds what it was asked to, until the VM has ended.
fn ask(control: &MemoryControl, targets: &[u64]) {
    for target in targets {
        while control.stats().is_some_and(|stats| stats.ballooned != stats.balloon_target) {
            std::thread::sleep(Duration::from_millis(1));
        }
        if control.set_balloon(*target).is_err() {
            return; // it has ended, and said why
        }
    }
}

/// As [`Vm::wait_timeout`], with pauses.
#[expect(clippy::result_large_err, reason = "the error is the VM, given back")]
fn run_with_pauses(mut vm: Vm, limit: Duration) -> Result<Report, Vm> {
    let start = Instant::now();
    while start.elapsed() < limit {
        vm = match vm.pause() {
            Ok(paused) => paused.resume(),
            Err(report) => return Ok(report),
        };
        vm = match vm.wait_timeout(Duration::from_micros(100)) {
            Ok(report) => return Ok(report),
            Err(running) => running,
        };
    }
    Err(vm)
}

/// Processor time of all threads of these processes.
fn cpu_time(processes: &[u32]) -> Duration {
    let tasks = processes.iter().filter_map(|pid| std::fs::read_dir(format!("/proc/{pid}/task")).ok());
    let ran = |task: std::fs::DirEntry| {
        let schedstat = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        schedstat.split(' ').next()?.parse::<u64>().ok()
    };
    Duration::from_nanos(tasks.flatten().filter_map(|task| ran(task.ok()?)).sum())
}

fn end(report: Report) -> End {
    let backtrace = backtrace(&report);
    match report.end {
        hv_core::End::Shutdown { code } => End::Shutdown { code },
        hv_core::End::Panic { message, place } => {
            let place = place.map(|place| format!("{}:{}:{}", place.file, place.line, place.column));
            End::Panic { message, place }
        }
        hv_core::End::Crash { fault, .. } => {
            let address = match fault {
                Fault::PageFault { address, .. } => Some(address),
                _ => None,
            };
            let (cause, rip) = (report.end.to_string(), report.registers.rip);
            End::Crash(Crash { cause, rip, address, backtrace })
        }
        other => End::Gone(other.to_string()),
    }
}

fn backtrace(report: &Report) -> Vec<String> {
    report.backtrace.iter().map(ToString::to_string).collect()
}
