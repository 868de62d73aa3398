//! The command line: what can be asked for, and the help that teaches it. Nothing is done here.

use crate::bench::BenchOptions;
use crate::control::Name;
use crate::devices::DeviceOptions;
use crate::gdb;
use crate::logging::LogFormat;
use crate::net::{ConnectorOptions, SwitchOptions, UserNetOptions};
use crate::profile::ProfileOptions;
use crate::stats::StatsOptions;
use crate::top::TopOptions;
use crate::trace::TraceOptions;
use crate::{exit_code, units};
use clap::{Args, Parser, Subcommand, ValueEnum};
use hv_core::EngineKind;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

/// Runs paravirtualised guests at native speed, without root and without hardware virtualisation.
#[derive(Debug, Parser)]
#[command(name = "hv", version = VERSION.as_str(), arg_required_else_help = true, subcommand_required = true)]
#[command(
    disable_help_subcommand = true,
    after_help = "\
Examples:
  hv run hello          boot a built-in guest
  hv new my-guest       write a guest of your own; then: cd my-guest && cargo run
  hv doctor             what this host allows, and how fast it is

`hv COMMAND --help` says more about each command."
)]
pub(crate) struct Cli {
    /// How log lines look; RUST_LOG says which there are (default: warn)
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text", hide_default_value = true)]
    pub(crate) log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What `hv` can do.
#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one of it")]
pub(crate) enum Command {
    /// Boot a guest and wait for its end
    Run(RunOptions),
    /// List running VMs
    Ps(PsOptions),
    /// Hold a running VM, wherever it is
    Pause(NameOptions),
    /// Let a paused VM run on
    Resume(NameOptions),
    /// Stop a running VM, and wait until it is gone
    Stop(StopOptions),
    /// Show what running VMs did and hold, as text, JSON or for Prometheus
    Stats(StatsOptions),
    /// Record every crossing of a running VM, for a trace viewer and as a table
    Trace(TraceOptions),
    /// Watch running VMs, as `top` does processes
    Top(TopOptions),
    /// Find out where a running VM spends its time, as a flame graph and as a table
    Profile(ProfileOptions),
    /// Ask a guest to give up memory, or let it have it back
    Balloon(BalloonOptions),
    /// List the built-in guests
    Images(ImagesOptions),
    /// Run the tests that an image carries
    Test(TestOptions),
    /// Write a new guest crate
    New(NewOptions),
    /// Check what this host allows, and measure it
    Doctor(DoctorOptions),
    /// Measure, beside the host's own figures
    Bench(BenchOptions),
    /// Show what is gained, measured on this machine
    Demo(DemoOptions),
    /// Be the process that connects for a monitor
    #[command(hide = true)]
    VsockConnector(ConnectorOptions),
    /// Be the process beside a monitor that has a user-mode network
    #[command(hide = true)]
    NetUser(UserNetOptions),
    /// Be the process that has a switch
    #[command(hide = true)]
    NetSwitch(SwitchOptions),
}

impl Command {
    /// Whether errors are to be told as JSON.
    pub(crate) fn json(&self) -> bool {
        match self {
            Self::Run(options) => options.json,
            Self::Ps(options) => options.json,
            Self::Stats(options) => options.json,
            Self::Trace(options) => options.json,
            Self::Top(options) => options.json,
            Self::Profile(options) => options.json,
            Self::Images(options) => options.json,
            Self::Doctor(options) => options.json,
            Self::Bench(options) => options.json(),
            Self::Demo(options) => match &options.demo {
                Demo::Gap(options) => options.json,
            },
            Self::Test(options) => options.runner.json,
            Self::New(_) | Self::Pause(_) | Self::Resume(_) | Self::Stop(_) | Self::Balloon(_) => false,
            Self::NetUser(_) | Self::NetSwitch(_) | Self::VsockConnector(_) => false,
        }
    }
}

/// `hv run`
#[derive(Args, Debug)]
#[command(override_usage = "hv run [OPTIONS] <IMAGE> [ARGS]... [-- ARGS...]")]
#[command(after_help = RUN_EXAMPLES, after_long_help = run_long_help())]
pub(crate) struct RunOptions {
    /// A built-in guest (see `hv images`) or the path of an image
    ///
    /// A name without a slash is a built-in guest's if there is one; `./hello` is always a file.
    pub(crate) image: PathBuf,
    /// The guest's arguments
    ///
    /// Up to `--`, words that begin with `-` are options of hv, wherever they stand; other words behind IMAGE are
    /// the guest's. Behind `--` everything is the guest's.
    pub(crate) args: Vec<String>,
    /// The guest's memory: bytes, or a number with K, M, G or T
    #[arg(long, short, value_name = "SIZE", default_value = "64M", value_parser = units::parse_size)]
    pub(crate) memory: u64,
    /// Virtual processors, 1 to 64; more than this machine has is allowed
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) cpus: u32,
    /// What `hv ps` and the like call it [default: the image's name and hv's process number]
    ///
    /// Letters, digits, `-`, `_` and `.`. It must not be the name of a VM of yours that runs.
    #[arg(long)]
    pub(crate) name: Option<Name>,
    /// A file that the guest finds in its memory
    #[arg(long, value_name = "FILE")]
    pub(crate) ramdisk: Option<PathBuf>,
    /// How guest code is run
    #[arg(long, value_name = "ENGINE", default_value = "auto")]
    pub(crate) engine: Engine,
    /// Let every system call of a guest user program trap, and make none of them a jump
    #[arg(long)]
    pub(crate) no_rewrite: bool,
    /// Stop the guest if it runs longer than this, such as 500ms, 10s, 2m or 1h
    #[arg(long, short, value_name = "TIME", value_parser = units::parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// Give the VM, with all its host processes, at most so many percent of one processor, such as 25 or 150
    #[arg(long, value_name = "PERCENT", value_parser = units::parse_percent)]
    pub(crate) cpu_cap: Option<u32>,
    /// Share processors with other VMs of this user that have a weight as the weights say; usual is 100
    ///
    /// It is for VMs that want the same processor. What one of them does not use, the others get.
    #[arg(long, value_name = "1-10000", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) cpu_weight: Option<u32>,
    #[command(flatten)]
    pub(crate) devices: DeviceOptions,
    /// If the guest crashes, leave an ELF core there, for `gdb IMAGE FILE`: docs/observing.md
    ///
    /// It is made, or emptied, before the guest starts, and stays empty if the guest does not crash.
    #[arg(long, value_name = "FILE")]
    pub(crate) core: Option<PathBuf>,
    /// Record every crossing from the first instruction on, for a trace viewer: docs/observing.md
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Look for page tables that the guest kernel changed other than by MMU_UPDATE, and end it there: for finding its mistakes
    #[arg(long)]
    pub(crate) check_tables: bool,
    /// Have the guest wait for gdb, before its first instruction, at a port of this host or a Unix socket [default: 127.0.0.1:1234]
    ///
    /// ADDR is ADDRESS:PORT, a port, or a path with a slash in it; as the option's value it needs a `=`. Whoever can connect
    /// to it can do with the guest what they like: at a port that is everybody on this machine, at a socket, you. See
    /// docs/debugging.md for a session.
    #[arg(long, value_name = "ADDR", num_args = 0..=1, require_equals = true, default_missing_value = "127.0.0.1:1234")]
    pub(crate) gdb: Option<gdb::Place>,
    /// Run IMAGE as a program of this host's if it is one, and no guest: for cargo's runner, whose `cargo test` builds such
    #[arg(long)]
    pub(crate) or_native: bool,
    /// Say how it ended as one line of JSON, the last on standard error
    #[arg(long)]
    pub(crate) json: bool,
}

const RUN_EXAMPLES: &str = "\
Examples:
  hv run hello                          a built-in guest
  hv run --memory 16M ./my-guest a b    an image of yours, with arguments
  hv run hello --timeout 10s -- --flag  an argument that looks like an option
  hv run my-guest --net user -p 8080:80 a network, and its port 80 at this host's 8080
  hv run my-guest --gdb=./gdb           debug it: gdb ./my-guest -ex 'target remote ./gdb'
  hv run my-guest --disk data.img       with a disk (truncate --size 64M data.img makes one)

Standard output is the guest's alone. All that hv has to say goes to standard error.";

fn run_long_help() -> String {
    format!(
        "{RUN_EXAMPLES}\n\nCtrl-C stops the guest and says where it was; a second Ctrl-C ends it at once.\n\n{}",
        exit_code::help()
    )
}

/// Engines to choose from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    /// The fastest that works on this host
    Auto,
    /// Deprivileged host processes; works on any x86-64 Linux
    Process,
    /// The processor's virtualisation, where there is /dev/kvm; `hv doctor` says whether it works here
    Kvm,
}

impl From<Engine> for EngineKind {
    fn from(engine: Engine) -> Self {
        match engine {
            Engine::Auto => Self::Auto,
            Engine::Process => Self::Process,
            Engine::Kvm => Self::Kvm,
        }
    }
}

/// `hv ps`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hv run minios --name shell        in another terminal
  hv ps
  hv ps --json | jq -r '.[] | select(.state == \"paused\") | .name'

CPU is the processor time of the VM's processes, RESIDENT what the host holds of its memory.
These are your own VMs; the list is a private directory: docs/control.md says where.")]
pub(crate) struct PsOptions {
    /// Print a JSON array
    #[arg(long)]
    pub(crate) json: bool,
}

/// `hv pause` and `hv resume`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hv pause shell                    it stands still, and takes no CPU
  hv resume shell                   it runs on as if nothing had been; its clock ran on meanwhile

To pause a VM that is paused, or resume one that runs, is no error.")]
pub(crate) struct NameOptions {
    /// The VM's name, as `hv ps` shows it, or the beginning of it
    pub(crate) name: String,
}

/// `hv stop`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hv stop shell
  hv stop shell --timeout 60s       for a host that is busy

Its `hv run` says where the guest was, as after Ctrl-C, and exits with 143. A paused VM can be stopped, too.
It exits with 0 once the VM is gone, with 124 if it is still there when the time is over.")]
pub(crate) struct StopOptions {
    /// The VM's name, as `hv ps` shows it, or the beginning of it
    pub(crate) name: String,
    /// How long to wait until it is gone, such as 500ms, 10s, 2m or 1h
    #[arg(long, short, value_name = "TIME", default_value = "10s", value_parser = units::parse_duration)]
    pub(crate) timeout: Duration,
}

/// `hv balloon`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hv balloon shell 32M              the guest is to give up 32 MiB, for the host to use
  hv balloon shell 0                it may have all of its memory again
  hv stats shell                    how far it has come

The guest agrees or does not: it gives up what it can do without, when it next runs. What it has given up is the
host's at once.")]
pub(crate) struct BalloonOptions {
    /// The VM's name, as `hv ps` shows it, or the beginning of it
    pub(crate) name: String,
    /// What the guest is to do without, in all: bytes, or a number with K, M, G or T
    #[arg(value_parser = units::parse_size)]
    pub(crate) size: u64,
}

/// `hv images`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hv images                         a table
  hv images --json | jq '.[].name'  for scripts

`hv run NAME` runs one. Their sources are in sample-guests/guests/, one directory each.")]
pub(crate) struct ImagesOptions {
    /// Print a JSON array
    #[arg(long)]
    pub(crate) json: bool,
}

/// `hv test`
#[derive(Args, Debug)]
#[command(after_help = TEST_EXAMPLES, after_long_help = TEST_LONG_HELP)]
pub(crate) struct TestOptions {
    /// A test image: the path of one, or a built-in one such as `conformance`
    pub(crate) image: PathBuf,
    #[command(flatten)]
    pub(crate) runner: conformance::Options,
}

const TEST_EXAMPLES: &str = "\
Examples:
  hv test target/x86_64-unknown-linux-gnu/debug/my-tests
  hv test my-tests --filter timer
  hv test conformance --list            the ABI's own tests

Each test gets a fresh VM. It exits with 0 if all tests passed, with 1 if one did not.";

const TEST_LONG_HELP: &str = "\
Each test gets a fresh VM. It exits with 0 if all tests passed, with 1 if one did not, with 125 and up as `hv run` does
if they could not be run.

A test image is a guest that lists its tests in itself:

  guest_sdk::entry!(guest_sdk::testing::main);
  guest_sdk::tests! {
      fn one_and_one_is_two() {
          assert_eq!(1 + 1, 2);
      }
  }

A test that panics has failed; one that ends in any other way than by returning, or shutting down with code 0, is a
fault. `hv new --with-tests` writes a crate with such tests, and `cargo test` there runs them.

Examples:
  hv test target/x86_64-unknown-linux-gnu/debug/my-tests
  hv test my-tests --filter timer
  hv test my-tests --junit report.xml   for a CI that shows them
  hv test conformance --list            the ABI's own tests";

/// `hv new`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hv new my-guest && cd my-guest && cargo run
  hv new . --name kernel              into this directory, which must be empty
  hv new my-guest --with-tests        with tests that run in VMs, too: `cargo test` runs them

The crate builds with the stable toolchain. `cargo run` boots it with the hv that wrote it.")]
pub(crate) struct NewOptions {
    /// Directory to write; it must not exist, or be empty
    pub(crate) path: PathBuf,
    /// The crate's name [default: the directory's]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Also write tests that run inside the guest, each in a VM of its own, when one says `cargo test`
    #[arg(long)]
    pub(crate) with_tests: bool,
    /// Where the crate guest-sdk is [default: in the source tree that hv was built from]
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) sdk: Option<PathBuf>,
}

/// `hv doctor`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hv doctor
  taskset -c 0 hv doctor            what it costs with one processor only
  hv doctor --json | jq .measured   for scripts

It exits with 0 if guests run here, with 125 if not. Nothing is changed on the host.")]
pub(crate) struct DoctorOptions {
    /// Print a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// `hv demo`
#[derive(Args, Debug)]
pub(crate) struct DemoOptions {
    #[command(subcommand)]
    pub(crate) demo: Demo,
}

/// What `hv demo` can show.
#[derive(Debug, Subcommand)]
pub(crate) enum Demo {
    /// What a guest gains by telling the host what it knows, and by asking
    Gap(GapOptions),
}

/// `hv demo gap`
#[derive(Args, Debug)]
#[command(after_help = "\
Each of five things is done by a guest in two ways, in turn, several times:
  idle    a guest that spins when it has nothing to do, or calls block
  zero    an allocator that clears all pages, or knows which are zero
  free    a guest that keeps its free memory, or reports it
  lock    a ticket lock, or the SDK's, with twice as many vCPUs as cores
  tables  page-table changes one call at a time, or in one batch

Examples:
  hv demo gap                       a table, in less than a minute
  hv demo gap --quick --svg gap.svg a rough one, in a few seconds, and a picture of it
  hv demo gap --json | jq -r '.[] | [.pair, .measured, .times_better, .verdict] | @tsv'
  hv run gap -- idle spin           one of them by itself; Ctrl-C ends it

The guest is sample-guests/guests/gap, to be read. docs/performance.md says what the rows mean.
Other work on the machine spoils the figures; what is lost in the noise is told as no gain.")]
pub(crate) struct GapOptions {
    /// Print a JSON array
    #[arg(long)]
    pub(crate) json: bool,
    /// Also draw a chart, as an SVG file
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Take few samples: rough figures, in a few seconds
    #[arg(long)]
    pub(crate) quick: bool,
}

static VERSION: LazyLock<String> =
    LazyLock::new(|| format!("{} (ABI {})", env!("CARGO_PKG_VERSION"), hv_abi::ABI_VERSION));

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    /// The rule of `hv run`'s arguments, as its help tells it.
    #[test]
    fn where_the_guests_arguments_begin() {
        let cases: &[(&[&str], u64, &[&str])] = &[
            (&["hello"], 64, &[]),
            (&["hello", "--memory", "16M", "--", "a", "b"], 16, &["a", "b"]),
            (&["--memory", "16M", "hello", "a", "b"], 16, &["a", "b"]),
            (&["hello", "a", "--memory", "16M"], 16, &["a"]),
            (&["hello", "--", "--memory", "16M"], 64, &["--memory", "16M"]),
            (&["hello", "a", "--", "b"], 64, &["a", "b"]),
            (&["hello", "a", "--", "b", "--", "c"], 64, &["a", "b", "--", "c"]),
            (&["--", "hello", "--memory", "16M"], 64, &["--memory", "16M"]), // as cargo's runner calls it
            (&["--", "hello", "--", "-x"], 64, &["--", "-x"]),
        ];
        for (words, memory, args) in cases {
            let cli = Cli::try_parse_from([&["hv", "run"], *words].concat()).unwrap();
            let Command::Run(run) = cli.command else { panic!("`run` was asked for") };
            assert_eq!(run.memory >> 20, *memory, "{words:?}");
            assert_eq!(run.args, *args, "{words:?}");
        }
    }

    /// A slip must not become an argument of the guest's in silence.
    #[test]
    fn an_unknown_option_is_not_the_guests() {
        for words in [&["hello", "--memroy", "16M"][..], &["hello", "a", "-x"]] {
            assert!(Cli::try_parse_from([&["hv", "run"], words].concat()).is_err(), "{words:?}");
        }
    }
}
