//! Booting sample guests and listening to them.

#![allow(dead_code, unreachable_pub, clippy::allow_attributes, reason = "each test file uses a part of this")]

use hv_core::{Config, Image, Report, Vm};
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// How long a guest may take before a test gives up on it. Nothing here takes a second on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// What a guest has written to its console.
#[derive(Clone, Default)]
pub struct Console(Arc<(Mutex<Vec<u8>>, Condvar)>);

impl Console {
    /// All of it so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.0.lock().unwrap()).into_owned()
    }

    /// Waits until `text` has been written.
    pub fn wait_for(&self, text: &str) {
        let start = Instant::now();
        let mut bytes = self.0.0.lock().unwrap();
        while !String::from_utf8_lossy(&bytes).contains(text) {
            let written = String::from_utf8_lossy(&bytes);
            assert!(start.elapsed() < PATIENCE, "the guest did not write {text:?}, but:\n{written}");
            bytes = self.0.1.wait_timeout(bytes, Duration::from_secs(1)).unwrap().0;
        }
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.0.lock().unwrap().extend_from_slice(bytes);
        self.0.1.notify_all();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A sample guest with arguments, not yet started.
pub fn config(name: &str, arguments: &[&str]) -> (Config, Console) {
    let sample = sample_guests::find(name).unwrap_or_else(|| panic!("no sample guest {name}"));
    let mut config = Config::new(Image::parse(sample.image).expect("sample guests are good images"));
    let console = Console::default();
    config.engine = conformance::engine_of_environment().unwrap_or(hv_core::EngineKind::Process);
    config.console = Box::new(console.clone());
    config.command_line = arguments.iter().map(|argument| (*argument).to_string()).collect();
    (config, console)
}

/// Index of a test of the conformance suite's guest, which is that guest's argument.
pub fn conformance_test(name: &str) -> usize {
    let suite = conformance::Suite::conformance().expect("the suite lists its tests");
    let case = suite.cases.iter().find(|case| case.name == name);
    match case.unwrap_or_else(|| panic!("no test {name}")).kind {
        conformance::Kind::Guest { index } => index,
        conformance::Kind::Scenario { .. } => panic!("{name} is no guest's test"),
    }
}

/// Starts a sample guest.
pub fn start(name: &str, arguments: &[&str]) -> (Vm, Console) {
    let (config, console) = config(name, arguments);
    (Vm::start(config).expect("the VM starts"), console)
}

/// Waits for a VM's end.
pub fn wait(vm: Vm) -> Report {
    match vm.wait_timeout(PATIENCE) {
        Ok(report) => report,
        Err(vm) => panic!("still running after {PATIENCE:?}: {:?}", vm.stop()),
    }
}

/// Runs a sample guest to its end.
pub fn run(name: &str, arguments: &[&str]) -> (Report, String) {
    let (vm, console) = start(name, arguments);
    let report = wait(vm);
    (report, console.text())
}

/// Processor time that the sandboxes which a VM has now have had, as the host counts it.
pub fn cpu_time(vm: &Vm) -> Duration {
    let tasks =
        vm.processes().into_iter().filter_map(|pid| std::fs::read_dir(format!("/proc/{pid}/task")).ok());
    let ran = |task: std::fs::DirEntry| {
        let schedstat = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        schedstat.split(' ').next()?.parse::<u64>().ok()
    };
    Duration::from_nanos(tasks.flatten().filter_map(|task| ran(task.ok()?)).sum())
}

/// Whether a process exists (a dead one that nobody has waited for does).
pub fn exists(pid: u32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}
