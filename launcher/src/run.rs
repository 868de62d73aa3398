//! `hv run`: boots a guest and stays until it has ended.
//!
//! Four threads: this one waits for the VM, the second for signals and the time-out, and stops the VM when one
//! comes, the third for the guest to want input, and then for that, the fourth for others to ask for something
//! ([`control`]). All sleep until something happens.

use crate::cli::RunOptions;
use crate::console::{Console, Sink};
use crate::control::{self, Entry, Listening, Name, Served, Streams, Subject};
use crate::core_file::CoreFile;
use crate::devices::Opened;
use crate::exit_code::Cause;
use crate::failure::Failure;
use crate::gdb;
use crate::input::{self, Terminal};
use crate::lockdown::Kept;
use crate::output::{self, Style};
use crate::signals::Signals;
use crate::trace::{self, Recorder};
use crate::{devices, images, lockdown, report, shares};
use hv_core::cpu_share::{CpuShare, Peers};
use hv_core::vm::Stopper;
use hv_core::{Config, End, Vm};
use std::os::unix::process::CommandExt;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// Runs a guest; gives the exit code.
///
/// # Errors
///
/// The guest was not started, or its output was lost.
pub(crate) fn run(options: &RunOptions) -> Result<u8, Failure> {
    hv_core::prepare().map_err(|error| Failure::cannot("the host does not let hv make sandboxes", error))?;
    if options.or_native && images::is_native(&options.image) {
        return Err(run_native(options));
    }
    let image = images::load(&options.image)?;
    let ramdisk = options.ramdisk.as_deref().map(images::ramdisk).transpose()?.unwrap_or_default();
    let gdb = options.gdb.as_ref().map(|place| gdb::connect(place, &options.image)).transpose()?;
    let file = gdb::ImageFile::new(&options.image, image.bytes.clone());
    let cannot_watch = |error| Failure::cannot("the host does not let hv wait for signals", error);
    let signals = Signals::catch().map_err(cannot_watch)?;
    let sink = Sink::new().map_err(cannot_watch)?;
    let listening = listen(options)?;
    let cpu = CpuShare { cap: options.cpu_cap, weight: options.cpu_weight.map(join_peers).transpose()? };
    let Opened { devices, keyboard } = devices::open(&options.devices, &image)?;
    let trace = options.trace.as_deref().map(trace::open).transpose()?;
    let core = options.core.as_deref().map(CoreFile::create).transpose()?;
    let control = listening.as_ref().map(Listening::directory);
    let landlocked =
        lockdown::apply(&Kept { control, shares: &shares::among(&devices), watchpoints: gdb.is_some() })
            .map_err(|error| Failure::cannot("the host does not let hv give up its rights", error))?;
    tracing::debug!(?landlocked, "locked down");
    let mut vm = Vm::start(Config {
        memory: options.memory,
        vcpus: options.cpus,
        engine: options.engine.into(),
        command_line: options.args.clone(),
        ramdisk,
        rewrite: !options.no_rewrite,
        debug: gdb.is_some(),
        console: Box::new(Console(sink.clone())),
        console_input: keyboard.is_none(),
        check_tables: options.check_tables,
        cpu,
        core: core.is_some(),
        trace: trace.is_some(),
        devices,
        ..Config::new(image)
    })
    .map_err(|error| Failure::cannot("the VM could not be started", error))?;
    let started = Instant::now();
    let ending = Arc::new(Ending { cause: OnceLock::new(), stopper: vm.stopper(), sink: sink.clone() });
    sink.stop_with(vm.stopper());
    let image = options.image.to_string_lossy().into_owned();
    let recorder = trace.zip(vm.take_trace()).map(|(file, session)| file.record(session, &image));
    let recorder = recorder.transpose()?;
    let streams = Streams::new()
        .map_err(|error| Failure::cannot("the host does not let hv wait for commands", error))?;
    let subject = Subject {
        image,
        started,
        handle: vm.handle(),
        memory: vm.memory_control(),
        ending: ending.clone(),
        streams: streams.clone(),
    };
    let served = listening.map(|listening| control::serve(listening, subject)).transpose();
    let served =
        served.map_err(|error| Failure::cannot("the host does not let hv wait for commands", error))?;
    let terminal = Arc::<Terminal>::default();
    let watch = Watch {
        signals,
        deadline: options.timeout.and_then(|timeout| started.checked_add(timeout)),
        ending: ending.clone(),
        terminal: terminal.clone(),
        entry: served.as_ref().map(Served::entry),
    };
    let thread = std::thread::Builder::new().name("hv-watch".into()).spawn(move || watch.run());
    thread.map_err(cannot_watch)?;
    let (typed, keys, at_end) = (vm.console_input(), terminal.clone(), ending.clone());
    let thread = std::thread::Builder::new().name("hv-input".into()).spawn(move || match keyboard {
        None => input::read(&typed, &keys),
        Some(keyboard) => {
            if keyboard.read(&keys) {
                at_end.stop(Cause::Interrupt);
            }
        }
    });
    thread.map_err(|error| Failure::cannot("the host does not let hv wait for input", error))?;

    let session = gdb
        .zip(vm.debugger())
        .map(|(link, debugger)| gdb::Session::start(link, file, debugger, ending.clone()))
        .transpose()
        .map_err(|error| Failure::cannot("the host does not let hv wait for gdb's commands", error))?;

    let report = vm.wait();
    streams.finish();
    let recorded = recorder.map_or(Ok(()), Recorder::finish);
    drop(served);
    if let Some(session) = session {
        session.finish();
    }
    terminal.restore();
    let stopped = ending.cause.get();
    let told = report::Told { cause: cause(&report.end, stopped, &sink), report, timeout: options.timeout };
    match sink.error() {
        Some(error) if told.exit_code() == 0 || stopped.is_none() => {
            return Err(Failure::cannot("the guest's output could not be written", error));
        }
        _ => {}
    }
    let write_core = || core.zip(told.report.core.as_ref()).map(|(file, core)| file.write(core));
    if options.json {
        output::tell(&told.json(write_core().as_ref()));
    } else {
        output::tell(&told.text(&Style::stderr(), &sink)); // first: a large core takes its time
        output::tell(&write_core().map_or_else(String::new, |core| core.text(&options.image)));
    }
    recorded?;
    Ok(told.exit_code())
}

/// Takes the VM's name. One that nobody asked for is worth a warning and no more.
fn listen(options: &RunOptions) -> Result<Option<Listening>, Failure> {
    match (&options.name, options.name.clone().unwrap_or_else(|| Name::of_image(&options.image))) {
        (Some(_), name) => control::listen(name.clone())
            .map(Some)
            .map_err(|error| Failure::cannot(format!("the VM cannot be called `{name}`"), error)),
        (None, name) => Ok(control::listen(name)
            .inspect_err(|error| {
                let why = crate::failure::chain(error).join(": ");
                tracing::warn!("`hv ps` and the like will not find this VM: {why}");
            })
            .ok()),
    }
}

/// Takes a place among the VMs of this user that share by weight.
fn join_peers(weight: u32) -> Result<(u32, Peers), Failure> {
    let path = control::shared_file("cpu-shares")
        .map_err(|error| Failure::cannot("VMs that share processors cannot be found", error))?;
    let peers = Peers::join(&path).map_err(|error| {
        Failure::cannot(
            format!("{}, by which VMs share processors, could not be used", path.display()),
            error,
        )
    })?;
    Ok((weight, peers))
}

/// Becomes a program of the host's. Comes back only if that fails.
fn run_native(options: &RunOptions) -> Failure {
    let error = std::process::Command::new(&options.image).args(&options.args).exec();
    Failure::cannot(format!("`{}` could not be run", options.image.display()), error)
}

/// Why the command ends, from how the VM did and why it was stopped, if it was. A guest that shut itself down
/// after the output was let go came to that only by being stopped; and like any program whose reader has gone, one that
/// writes on is ended by that, whether it would have ended anyway or not.
fn cause(end: &End, stopped: Option<&Cause>, sink: &Sink) -> Cause {
    match end {
        End::Shutdown { .. } | End::Stopped | End::Unanswered
            if stopped.is_none() && sink.reader_has_gone() =>
        {
            Cause::ReaderGone
        }
        End::Shutdown { .. } if sink.has_dropped() => stopped.copied().unwrap_or(Cause::Shutdown),
        End::Shutdown { .. } => Cause::Shutdown,
        End::Panic { .. } => Cause::Panic,
        End::Crash { .. } | End::TableBypass(_) => Cause::Crash,
        End::Unanswered => Cause::Unanswered,
        End::Died { .. } => Cause::Died,
        End::Stopped => stopped.copied().unwrap_or(Cause::Terminated),
    }
}

/// Ends the VM from outside, at a stopping point.
pub(crate) struct Ending {
    /// Why; set before the VM is asked to stop.
    cause: OnceLock<Cause>,
    stopper: Stopper,
    sink: Arc<Sink>,
}

impl Ending {
    /// The first cause is what is told.
    pub(crate) fn stop(&self, cause: Cause) {
        tracing::debug!(?cause, "stopping the guest");
        let _ = self.cause.set(cause);
        self.stopper.stop();
        self.sink.let_go(); // a vCPU that waits for a reader could not be stopped
    }
}

/// What the second thread does.
struct Watch {
    signals: Signals,
    deadline: Option<Instant>,
    ending: Arc<Ending>,
    terminal: Arc<Terminal>,
    entry: Option<Arc<Entry>>,
}

impl Watch {
    /// The first signal, or the time-out, stops the guest where it can say where it was. The next one ends all at
    /// once: sandboxes die with this process.
    fn run(&self) {
        self.ending.stop(self.signals.wait(self.deadline));
        let cause = self.signals.wait(None);
        self.terminal.restore();
        if let Some(entry) = &self.entry {
            entry.remove();
        }
        std::process::exit(cause.code().into());
    }
}
