//! `cargo xtask`: what is done with this workspace beside building and testing it.
//!
//! Start at [`svm`], the only one so far.

mod svm;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Chores of this workspace
#[derive(Parser)]
#[command(bin_name = "cargo xtask", arg_required_else_help = true, subcommand_required = true)]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Try the KVM engine on any machine: in QEMU's emulation of a processor that has virtualisation
    Svm(svm::Options),
}

fn main() -> ExitCode {
    let Chore::Svm(options) = Arguments::parse().chore;
    match svm::run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}
