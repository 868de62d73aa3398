//! `hv`: runs paravirtualised guests. Everything that it does is a call to `hv-core`; this crate reads the command
//! line, says what happened, and chooses the exit code.
//!
//! Start at [`cli`] for what can be asked for, and at [`run`] for the command that matters most.

mod bench;
mod cli;
mod console;
mod control;
mod core_file;
mod cpu_time;
mod demo;
mod devices;
mod doctor;
mod exit_code;
mod failure;
mod gdb;
mod images;
mod input;
mod lockdown;
mod logging;
mod net;
mod new;
mod output;
mod ports;
mod profile;
mod report;
mod run;
mod shares;
mod signals;
mod stats;
mod test;
mod top;
mod trace;
mod units;

use clap::Parser;
use cli::{Cli, Command, Demo};
use failure::Failure;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let code = dispatch(&cli).unwrap_or_else(|failure| failure.tell(cli.command.json()));
    ExitCode::from(code)
}

/// Does what was asked for; gives the exit code.
fn dispatch(cli: &Cli) -> Result<u8, Failure> {
    logging::start(cli.log_format)?;
    match &cli.command {
        Command::Run(options) => run::run(options),
        Command::Ps(options) => control::commands::ps(options),
        Command::Pause(options) => control::commands::pause(options),
        Command::Resume(options) => control::commands::resume(options),
        Command::Stop(options) => control::commands::stop(options),
        Command::Stats(options) => stats::stats(options),
        Command::Top(options) => top::top(options),
        Command::Trace(options) => trace::watch(options),
        Command::Profile(options) => profile::watch(options),
        Command::Balloon(options) => control::commands::balloon(options),
        Command::Images(options) => images::list(options),
        Command::Test(options) => test::run(options),
        Command::New(options) => new::write(options),
        Command::VsockConnector(options) => net::serve_connector(options),
        Command::NetUser(options) => net::serve_user(options),
        Command::NetSwitch(options) => net::serve_switch(options),
        Command::Doctor(options) => doctor::examine(options),
        Command::Bench(options) => bench::run(options),
        Command::Demo(options) => match &options.demo {
            Demo::Gap(options) => demo::gap(options),
        },
    }
}
