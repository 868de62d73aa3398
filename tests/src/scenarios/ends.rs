//! How a VM ends (`docs/abi.md`, `SHUTDOWN`, `PANIC` and `CONSOLE_WRITE`).

use super::{same, scenarios, wrong};
use crate::End;
use hv_abi::call::PANIC_TEXT_MAX;
use std::time::Duration;

/// A panic as it should be told.
fn panic(message: &str, place: Option<String>) -> End {
    End::Panic { message: message.into(), place }
}

scenarios! {
    "SHUTDOWN-001 SHUTDOWN-003 CONSOLE_WRITE-008" fn a_shutdown_has_its_code_and_is_the_last_instruction(stand) {
        for code in [0, 1, 77, 255] {
            let run = stand.run(&["shutdown", &code.to_string()]);
            same("the end", run.end.clone(), End::Shutdown { code })?;
            same("the console", run.text(), "before\n".into())?;
        }
        Ok(())
    }

    "PANIC-001 CONSOLE_WRITE-008" fn a_panic_has_its_message_and_place_and_is_the_last_instruction(stand) {
        let run = stand.run(&["panic", "whole"]);
        same("the end", run.end.clone(), panic("what: \u{e9}", Some("some/file.rs:7:9".into())))?;
        same("the console", run.text(), "before\n".into())
    }

    "PANIC-001 PANIC-004" fn the_longest_texts_of_a_panic_are_whole(stand) {
        let long = "x".repeat(PANIC_TEXT_MAX as usize);
        same("the end", stand.run(&["panic", "longest"]).end, panic(&long, Some(format!("{long}:7:9"))))
    }

    "PANIC-005" fn a_panic_may_have_no_place(stand) {
        same("the end", stand.run(&["panic", "without-place"]).end, panic("nowhere", None))
    }

    "PANIC-006" fn a_panic_whose_message_is_no_text_is_a_panic(stand) {
        match stand.run(&["panic", "not-text"]).end {
            End::Panic { message, .. } if message.starts_with('a') && message.ends_with('b') => Ok(()),
            other => wrong(format!("{other:?}")),
        }
    }

    "CONSOLE_WRITE-008" fn what_was_written_before_a_crash_appears(stand) {
        let run = stand.run(&["illegal"]);
        let text = run.text();
        let crash = run.crash()?;
        same("the console", text, format!("{}\n", crash.rip))
    }

    "CONSOLE_WRITE-008" fn what_was_written_before_the_host_ends_a_vm_appears(stand) {
        // A guest that has not come to write by the first limit does so by a longer one, on however slow a machine.
        for limit in [Duration::from_millis(100), Duration::from_secs(2), stand.limit] {
            let mut machine = stand.machine(&["spin"]);
            machine.limit = limit;
            let run = stand.boot(machine);
            match (run.text().as_str(), &run.end) {
                ("before\n", End::TimedOut { .. }) => return Ok(()),
                ("", End::TimedOut { .. }) => {}
                (text, end) => return wrong(format!("{text:?}, then {end:?}")),
            }
        }
        wrong("nothing appeared".into())
    }
}
