//! What is on the console (`docs/abi.md`, `CONSOLE_WRITE`, `CONSOLE_READ` and `MULTICALL`).

use super::{holds, same, scenarios};
use hv_abi::call::CONSOLE_WRITE_MAX;

scenarios! {
    "CONSOLE_WRITE-001 CONSOLE_WRITE-002 CONSOLE_WRITE-004" fn bytes_appear_whole_and_in_order(stand) {
        let text: Vec<u8> = (0..20_000_u64)
            .flat_map(|i| [b'0' + (i % 10) as u8, b'a' + (i / 10 % 26) as u8, b'\n', i as u8])
            .collect();
        let lengths = [1, 2, 3, 100, 4095, 4096, 4097, CONSOLE_WRITE_MAX - 1, CONSOLE_WRITE_MAX];
        let expected: Vec<u8> = lengths.iter().flat_map(|length| text[..*length as usize].to_vec()).collect();
        let shown = stand.run(&["lengths"]).done()?.bytes();
        let differs = shown.iter().zip(&expected).position(|(a, b)| a != b);
        holds(shown == expected, || {
            format!("{} bytes of {}, with a difference at {differs:?}", shown.len(), expected.len())
        })
    }

    "RULE-007 CONSOLE_WRITE-001" fn a_call_that_is_interrupted_and_stopped_is_made_once(stand) {
        let expected: String = (0..3000).map(|i| format!("{i}\n")).collect();
        for pauses in [false, true] {
            let mut machine = stand.machine(&["count"]);
            machine.pauses = pauses;
            let text = stand.boot(machine).done()?.text();
            let differs = text.lines().zip(expected.lines()).find(|(found, expected)| found != expected);
            holds(text == expected, || format!("{} lines; first difference: {differs:?}", text.lines().count()))?;
        }
        Ok(())
    }

    "RULE-006 CONSOLE_WRITE-003 CONSOLE_WRITE-005 CONSOLE_WRITE-006" fn a_write_that_fails_writes_nothing(stand) {
        same("the console", stand.run(&["refused"]).done()?.text(), "[]".into())
    }

    "RULE-010 CONSOLE_WRITE-007" fn a_store_behind_a_write_changes_nothing(stand) {
        same("the console", stand.run(&["overwrite"]).done()?.text(), "good\n".repeat(1000))
    }

    "RULE-007 CONSOLE_READ-001 CONSOLE_READ-002 CONSOLE_READ-003 CONSOLE_READ-009 CONSOLE_READ-010"
    fn what_is_typed_is_read_whole_and_in_order(stand) {
        // More than any host keeps, in pieces of all sorts of lengths.
        let text: Vec<u8> = (0..50_000_u64).flat_map(|i| [(i % 251) as u8, (i / 251) as u8]).collect();
        let lengths = [1, 2, 3, 100, 4095, 4096, 4097, text.len(), 1];
        let pieces = lengths.map(|length| text[..length].to_vec()).to_vec();
        for pauses in [false, true] {
            let mut machine = stand.machine(&["read-all"]);
            machine.typed = Some(pieces.clone());
            machine.pauses = pauses;
            let shown = stand.boot(machine).done()?.bytes();
            let expected = pieces.concat();
            let differs = shown.iter().zip(&expected).position(|(a, b)| a != b);
            holds(shown == expected, || {
                format!("{} bytes of {}, with a difference at {differs:?}", shown.len(), expected.len())
            })?;
        }
        Ok(())
    }

    "RULE-006 CONSOLE_READ-002 CONSOLE_READ-004 CONSOLE_READ-005 CONSOLE_READ-006 CONSOLE_READ-007 CONSOLE_READ-008
     CONSOLE_READ-009 CONSOLE_READ-010"
    fn reads_of_what_is_typed_step_by_step(stand) {
        let mut machine = stand.machine(&["read-steps"]);
        machine.typed = Some(vec![b"abc".to_vec(), b"d".to_vec()]);
        stand.boot(machine).done().map(drop)
    }

    "MULTICALL-013" fn a_multicall_writes_its_results_behind_the_last_call(stand) {
        // The guest writes the entries twice: by one of themselves, and as they were before.
        let bytes = stand.run(&["entries"]).done()?.bytes();
        let (during, before) = bytes.split_at(bytes.len() / 2);
        same("bytes of three entries", during.len(), 192)?;
        same("the entries during the call", during, before)
    }
}
