//! What a guest kernel must not do, and what is said of it when it does (`docs/abi.md`, chapter KERNEL).

use super::{Run, same, scenarios, wrong};
use crate::{Crash, Judgement};

/// The crash report of a machine that says first where its instruction is, and must crash there.
#[track_caller]
fn crash_where_it_says(run: Run) -> Judgement<Crash> {
    let text = run.text();
    let Ok(rip) = text.trim_end().parse::<u64>() else { return wrong(format!("the guest wrote {text:?}")) };
    let crash = run.crash()?;
    same("RIP in the report", crash.rip, rip)?;
    Ok(crash)
}

scenarios! {
    "KERNEL-006" fn a_page_fault_is_reported_with_address_and_rip(stand) {
        for (how, address) in [("read", 8), ("write", 0x1234_5678_9abc), ("read", 0x7f00_0000_0000)] {
            let crash = crash_where_it_says(stand.run(&[how, &u64::to_string(&address)]))?;
            same("the address", crash.address, Some(address))?;
        }
        Ok(())
    }

    "KERNEL-007" fn an_illegal_instruction_is_reported_with_rip(stand) {
        crash_where_it_says(stand.run(&["illegal"])).map(drop)
    }

    "KERNEL-008" fn a_divide_error_is_reported_with_rip(stand) {
        crash_where_it_says(stand.run(&["divide"])).map(drop)
    }

    // Numbers of host calls of which one that were made would be noticed: they end the process or the thread, or return.
    // 335 and 336 are two that a host's filters may not see.
    "KERNEL-009" fn a_system_call_is_a_crash_and_is_not_made(stand) {
        for number in [60_u64, 231, 39, 335, 336, 0x4000_0000 + 60, 0x4000_0000 + 39, u64::MAX] {
            stand.run(&["syscall", &number.to_string()]).crash()?;
        }
        Ok(())
    }
}
