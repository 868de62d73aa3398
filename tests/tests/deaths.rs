//! Every way to die is reported with its cause, address and a backtrace in the guest's own words.

mod common;

use common::*;
use hv_core::engine::{Access, Fault};
use hv_core::{End, Report};

/// Runs the `crash` guest and checks what every report must have.
fn die(way: &str, function: &str) -> Report {
    let (report, _) = run("crash", &[way]);
    let named =
        |f: &hv_core::backtrace::StackFrame| f.function.as_deref().is_some_and(|n| n.contains(function));
    assert!(report.backtrace.iter().any(named), "{function} is not in {:#?}", report.backtrace);
    let main = |f: &hv_core::backtrace::StackFrame| {
        f.file.as_deref().is_some_and(|n| n.ends_with("crash/src/main.rs")) && f.line.is_some()
    };
    assert!(report.backtrace.iter().any(main), "no line of the guest's source in {:#?}", report.backtrace);
    report
}

fn crash(report: &Report) -> (Fault, Option<&'static str>) {
    match report.end {
        End::Crash { fault, hint } => (fault, hint),
        ref other => panic!("expected a crash, found {other:?}"),
    }
}

#[test]
fn panic_tells_message_and_place() {
    let report = die("panic", "crash");
    let End::Panic { message, place: Some(place) } = report.end else { panic!("{:?}", report.end) };
    assert_eq!(message, "this is what a guest's panic looks like");
    assert!(place.file.ends_with("crash/src/main.rs"), "{}", place.file);
    assert!(place.line > 0 && place.column > 0);
}

#[test]
fn page_fault_tells_address_and_access() {
    let report = die("page-fault", "page_fault");
    let expected = Fault::PageFault { address: 0x1234_5678_9000, access: Access::Write };
    assert_eq!(crash(&report), (expected, None));
}

#[test]
fn code_cannot_be_written() {
    let report = die("read-only", "read_only");
    let (Fault::PageFault { access, .. }, hint) = crash(&report) else { panic!("{:?}", report.end) };
    assert_eq!((access, hint), (Access::Write, Some("the page is read-only")));
}

#[test]
fn data_cannot_be_executed() {
    let report = die("execute", "execute");
    let (Fault::PageFault { address, access }, hint) = crash(&report) else { panic!("{:?}", report.end) };
    assert_eq!((access, hint), (Access::Execute, Some("the page is not executable")));
    assert_eq!(address, report.registers.rip);
}

#[test]
fn null_is_not_mapped() {
    let report = die("null", "null");
    let expected = Fault::PageFault { address: 8, access: Access::Read };
    assert_eq!(crash(&report), (expected, Some("a null pointer, or near one")));
}

#[test]
fn stack_overflow_hits_the_guard_page() {
    for way in ["stack-overflow", "own-stack"] {
        let report = die(way, "recurse");
        let (Fault::PageFault { .. }, hint) = crash(&report) else { panic!("{:?}", report.end) };
        assert_eq!(hint, Some("the stack has overflowed into its guard page"), "{way}");
    }
}

#[test]
fn exceptions_tell_their_vector() {
    for (way, function, vector) in
        [("illegal-instruction", "illegal_instruction", 6), ("divide", "divide", 0)]
    {
        let report = die(way, function);
        assert_eq!(crash(&report).0, Fault::Exception { vector, error: 0 }, "{way}");
    }
}

#[test]
fn direct_system_calls_are_told_by_number() {
    let report = die("syscall", "system_call");
    assert_eq!(crash(&report).0, Fault::SystemCall { number: 39 });
}

#[test]
fn an_endless_loop_is_stopped_where_it_is() {
    let (vm, _) = start("crash", &["loop"]);
    std::thread::sleep(std::time::Duration::from_millis(50));
    let report = vm.stop();
    assert_eq!(report.end, End::Stopped);
    let endless =
        |f: &hv_core::backtrace::StackFrame| f.function.as_deref().is_some_and(|n| n.contains("endless"));
    assert!(report.backtrace.iter().any(endless), "{:#?}", report.backtrace);
}

#[test]
fn a_guest_that_hides_from_the_stop_is_ended() {
    // It hides some instructions after it has said so, and nothing tells when: a stop that comes too early finds it.
    for milliseconds in (0..2000).step_by(100) {
        let (vm, console) = start("crash", &["unanswering"]);
        console.wait_for("deaf");
        std::thread::sleep(std::time::Duration::from_millis(milliseconds));
        match vm.stop().end {
            End::Stopped => {}
            end => return assert_eq!(end, End::Unanswered),
        }
    }
    panic!("every stop was answered");
}

#[test]
fn a_guest_without_a_stack_for_signals_dies_alone() {
    let (report, _) = run("crash", &["lost-stack"]);
    let End::Died { reason } = report.end else { panic!("{:?}", report.end) };
    assert!(reason.contains("SIGSEGV"), "{reason}");
}
