//! gdb's `monitor` commands: what gdb has no words for.

use super::target::Guest;
use hv_core::debug::Standing;
use hv_core::view::AddressSpace;
use std::fmt::Write;

const HELP: &str = "\
monitor vcpus          where each vCPU stands
monitor program        continue will stop before the first instruction of the user program that is entered next
monitor root P         look at memory of the user address space whose root page table is at P (monitor vcpus shows P)
monitor root kernel    look at memory of the guest kernel
monitor root auto      look at memory of whatever the selected vCPU runs (as it is at first)
monitor watch          how watchpoints work here
";

const WATCH: &str = "\
A watchpoint stops behind an instruction that changed the place. Reads cannot be watched. The host's debug registers do it, at
full speed, for up to four places of 1, 2, 4 or 8 bytes that begin at a multiple of that, if the host lets hv have them. If not,
all vCPUs run in single steps while anything is watched, which is thousands of times slower.
";

/// How what is watched is watched.
fn watching(guest: &Guest) -> String {
    let now = match guest.debugger.steps_to_watch() {
        None => "Watchpoints are by debug registers now.\n".into(),
        Some(why) => format!("Watchpoints were by single steps when one was last set: {why}.\n"),
    };
    format!("{WATCH}{now}")
}

/// Does what a command says; gives what gdb is to print.
pub(super) fn answer(guest: &mut Guest, command: &str) -> String {
    let words: Vec<&str> = command.split_whitespace().collect();
    match *words {
        [] | ["help"] => HELP.into(),
        ["vcpus"] => vcpus(guest),
        ["watch"] => watching(guest),
        ["program"] => {
            guest.debugger.stop_at_entry();
            "continue will stop before the next user program's first instruction\n".into()
        }
        ["root", "auto"] => {
            guest.space = None;
            "memory is that of whatever the selected vCPU runs\n".into()
        }
        ["root", "kernel"] => {
            guest.space = Some(AddressSpace::Kernel);
            "memory is the guest kernel's\n".into()
        }
        ["root", root] => match root.strip_prefix("0x").map(|root| u64::from_str_radix(root, 16)) {
            Some(Ok(root)) => {
                guest.space = Some(AddressSpace::User { root });
                format!("memory is that of the programs under root {root:#x}\n")
            }
            _ => format!("`{root}` is no address such as 0x3f000, nor `kernel` or `auto`\n"),
        },
        _ => format!("there is no command `{command}`; there are:\n{HELP}"),
    }
}

fn vcpus(guest: &Guest) -> String {
    let mut text = String::new();
    for vcpu in guest.debugger.vcpus() {
        if let Some(standing) = guest.standing(vcpu) {
            let rip = standing.registers.rip;
            writeln!(text, "vCPU {vcpu}: {}, at {rip:#x}", place(&standing)).expect("a string takes it");
        }
    }
    text
}

/// Where a vCPU stands.
pub(super) fn place(standing: &Standing) -> String {
    let call = if standing.in_call { ", in a hypercall" } else { "" };
    match standing.space {
        AddressSpace::Kernel => format!("in the guest kernel{call}"),
        AddressSpace::User { root } => format!("in a user program under root {root:#x}"),
    }
}
