//! A debugger's hold on a VM, without gdb: where guests stand, what is seen of them, and how they go on.

mod common;

use common::*;
use hv_core::debug::{Debugger, Event, Reason, Standing};
use hv_core::engine::{Access, Fault};
use hv_core::handle::RequestError;
use hv_core::view::AddressSpace;
use hv_core::{Config, End, Report, Vm};
use std::thread::JoinHandle;
use std::time::Duration;

const SLOT_255: u64 = hv_abi::address::SLOT_255;

/// A VM that stands before its first instruction, and whoever waits for its end.
struct Held {
    debugger: Debugger,
    entry: u64,
    waits: JoinHandle<Report>,
}

impl Held {
    fn new(mut config: Config) -> Self {
        config.debug = true;
        let entry = config.image.entry;
        let mut vm = Vm::start(config).expect("the VM starts");
        let debugger = vm.debugger().expect("it was made for one");
        assert!(vm.debugger().is_none(), "there is one");
        let held = Self { debugger, entry, waits: std::thread::spawn(move || wait(vm)) };
        assert_eq!(held.stopped(), (0, Reason::Start));
        assert_eq!(held.standing(0).registers.rip, entry);
        held
    }

    fn stopped(&self) -> (u32, Reason) {
        match self.debugger.wait(PATIENCE).expect("all vCPUs come to stand") {
            Some(Event::Stopped { vcpu, reason }) => (vcpu, reason),
            other => panic!("expected a stop, found {other:?}"),
        }
    }

    fn standing(&self, vcpu: u32) -> Standing {
        self.debugger.standing(vcpu).expect("it stands")
    }

    fn go(&self) -> (u32, Reason) {
        self.debugger.go(None, &[]).expect("it goes on");
        self.stopped()
    }

    /// One step of vCPU 0, and of nobody else.
    fn step(&self) -> Standing {
        self.debugger.go(Some(&[0]), &[0]).expect("it goes on");
        assert_eq!(self.stopped(), (0, Reason::Step));
        self.standing(0)
    }

    /// Runs on without a debugger.
    fn end(self) -> Report {
        self.debugger.detach().expect("it goes on");
        self.waits.join().expect("the VM ends")
    }
}

#[test]
fn breakpoints_are_come_to_seen_by_nobody_and_taken_away() {
    let (config, console) = config("hello", &[]);
    let held = Held::new(config);
    let entry = held.entry;
    let mut code = [0; 16];
    assert_eq!(held.debugger.read(AddressSpace::Kernel, entry, &mut code), 16);
    let second = held.step().registers.rip;
    assert_ne!(second, entry);
    assert!(held.debugger.set_breakpoint(entry) && held.debugger.set_breakpoint(second));
    let mut with_breakpoints = [0; 16];
    held.debugger.read(AddressSpace::Kernel, entry, &mut with_breakpoints);
    assert_eq!(with_breakpoints, code, "a breakpoint shows");
    assert_eq!(held.go(), (0, Reason::Breakpoint));
    assert_eq!(held.standing(0).registers.rip, second, "RIP is not at the breakpoint");
    // Back to the first one, with what was in the registers.
    let registers = held.standing(0).registers;
    assert!(held.debugger.set_registers(0, hv_core::engine::Registers { rip: entry, ..registers }));
    assert_eq!(held.go(), (0, Reason::Breakpoint));
    assert_eq!(held.standing(0).registers.rip, entry);
    assert!(held.debugger.clear_breakpoint(entry) && held.debugger.clear_breakpoint(second));
    assert!(!held.debugger.clear_breakpoint(second), "it was taken away");
    assert!(!held.debugger.set_breakpoint(SLOT_255), "the engine's code");
    assert!(!held.debugger.set_breakpoint(0x1000), "nobody's code");
    assert_eq!(held.end().end, End::Shutdown { code: 0 });
    assert_eq!(console.text(), run("hello", &[]).1);
}

#[test]
fn steps_show_the_guest_alone_and_step_over_hypercalls() {
    let (config, console) = config("hello", &[]);
    let held = Held::new(config);
    let mut wrote = false;
    for _ in 0..20_000 {
        let standing = held.step();
        assert!(standing.registers.rip < SLOT_255, "{standing:x?}");
        assert!(!standing.in_call && standing.space == AddressSpace::Kernel);
        wrote = !console.text().is_empty();
        if wrote {
            break;
        }
    }
    assert!(wrote, "20,000 steps came to no hypercall");
    assert_eq!(held.end().end, End::Shutdown { code: 0 });
    assert_eq!(console.text(), run("hello", &[]).1);
}

#[test]
fn programs_are_stopped_at_their_entry_at_breakpoints_and_step_over_system_calls() {
    let (config, console) = config("minios", &["-c", "sh -c 'echo one'; sh -c 'echo two'"]);
    let held = Held::new(config);
    held.debugger.stop_at_entry();
    assert_eq!(held.go(), (0, Reason::Step));
    let first = held.standing(0);
    let AddressSpace::User { root } = first.space else { panic!("not in a program: {first:x?}") };
    let entry = first.registers.rip;
    let mut code = [0; 16];
    assert_eq!(held.debugger.read(first.space, entry, &mut code), 16, "its code is there");
    let kernels = held.debugger.read(AddressSpace::Kernel, entry, &mut [0; 1]);
    assert_eq!(kernels, 0, "the guest kernel has something at the program's {entry:#x}");
    // Steps of the program stay in it, also over its system calls; its guest kernel may end or change it meanwhile.
    for _ in 0..1000 {
        let standing = held.step();
        assert_eq!(standing.space, AddressSpace::User { root });
        assert!((0x2_0000..SLOT_255).contains(&standing.registers.rip), "{standing:x?}");
    }
    // It is a breakpoint of all programs: those that are yet to be loaded there come to it, too.
    assert!(held.debugger.set_breakpoint(entry));
    let mut roots = Vec::new();
    while roots.len() < 2 {
        assert_eq!(held.go(), (0, Reason::Breakpoint));
        let standing = held.standing(0);
        assert_eq!(standing.registers.rip, entry);
        assert!(standing.fx_state.is_some(), "it has come by a trap");
        let mut seen = [0; 16];
        held.debugger.read(standing.space, entry, &mut seen);
        assert_ne!(seen[0], 0xcc, "the breakpoint shows");
        roots.push(standing.space);
        held.debugger.clear_breakpoint(entry);
        held.step();
        held.debugger.set_breakpoint(entry);
    }
    assert_eq!(held.end().end, End::Shutdown { code: 0 });
    assert_eq!(console.text(), "one\ntwo\n");
}

/// A guest kernel and its program write to their stacks: `length` bytes below their ends are watched.
fn watch_stacks(length: u64) -> Option<String> {
    let (config, _) = config("minios", &["-c", "true"]);
    let held = Held::new(config);
    let stands_for = |space, program| {
        let place = held.standing(0).registers.rsp - length;
        let before = bytes(&held, space, place, length);
        assert!(held.debugger.watch(place, length, program));
        assert_eq!(held.go(), (0, Reason::Watch { address: place }));
        assert_eq!(held.standing(0).space, space);
        assert_ne!(bytes(&held, space, place, length), before);
        assert!(held.debugger.unwatch(place, length) && !held.debugger.unwatch(place, length));
    };
    held.step(); // it has a stack now
    stands_for(AddressSpace::Kernel, AddressSpace::Kernel);
    held.debugger.stop_at_entry();
    assert_eq!(held.go(), (0, Reason::Step));
    let program = held.standing(0).space;
    stands_for(program, program);
    let steps = held.debugger.steps_to_watch();
    assert_eq!(held.end().end, End::Shutdown { code: 0 });
    steps
}

#[test]
fn a_watched_place_stops_whoever_changes_it() {
    if let Some(why) = watch_stacks(8) {
        eprintln!("the host does not lend its debug registers: {why}");
    }
}

#[test]
fn a_place_that_is_too_large_is_watched_by_steps() {
    assert!(watch_stacks(24).is_some());
}

fn bytes(held: &Held, space: AddressSpace, at: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; length as usize];
    assert_eq!(held.debugger.read(space, at, &mut bytes), bytes.len(), "{at:#x} is not there");
    bytes
}

#[test]
fn an_interrupt_stops_all_vcpus_wherever_they_are_and_with_all_registers() {
    let (mut config, _) = config("minios", &["-c", "threads 8 2000000; par 1000000 4; sleep 1"]);
    config.vcpus = 4;
    let held = Held::new(config);
    let mut in_programs = 0;
    for i in 0..100_u64 {
        held.debugger.go(None, &[]).expect("it goes on");
        std::thread::sleep(Duration::from_micros(i * 97 % 20_000));
        match held.debugger.interrupt() {
            Ok(()) => {}
            Err(RequestError::Ended) => break,
            Err(error) => panic!("{error}"),
        }
        for vcpu in held.debugger.vcpus() {
            let standing = held.standing(vcpu);
            assert!(standing.registers.rip < SLOT_255 && standing.registers.rip != 0, "{standing:x?}");
            in_programs += u32::from(standing.space != AddressSpace::Kernel);
        }
    }
    assert!(in_programs > 0, "no program was ever found");
    let _ = held.debugger.detach();
    assert_eq!(held.waits.join().expect("it ends").end, End::Shutdown { code: 0 });
}

#[test]
fn a_guest_that_crashes_or_panics_stands_and_ends_when_it_is_let_go() {
    let held = Held::new(config("crash", &["page-fault"]).0);
    let fault = Fault::PageFault { address: 0x1234_5678_9000, access: Access::Write };
    for _ in 0..2 {
        assert_eq!(held.go(), (0, Reason::Fault(fault)), "it would do it again");
    }
    assert!(matches!(held.end().end, End::Crash { fault: found, .. } if found == fault));

    let held = Held::new(config("crash", &["panic"]).0);
    assert_eq!(held.go(), (0, Reason::Ending));
    let standing = held.standing(0);
    assert!(standing.in_call && standing.registers.rip < SLOT_255, "{standing:x?}");
    assert!(!held.debugger.set_registers(0, standing.registers), "it is in a call");
    assert!(matches!(held.end().end, End::Panic { .. }));
}

#[test]
fn a_vm_that_is_held_can_be_stopped_and_dropped_and_is_resumed_by_its_debugger_alone() {
    let (mut config, _) = config("hello", &[]);
    config.debug = true;
    let mut vm = Vm::start(config).expect("it starts");
    let (debugger, stopper, handle) = (vm.debugger().expect("made for one"), vm.stopper(), vm.handle());
    let waits = std::thread::spawn(move || wait(vm));
    debugger.wait(PATIENCE).expect("it stands");
    assert_eq!(handle.resume(), Err(RequestError::Debugged));
    stopper.stop();
    assert_eq!(waits.join().expect("it ends").end, End::Stopped);
    assert!(matches!(debugger.wait(PATIENCE), Ok(Some(Event::Ended(End::Stopped)))));
    assert_eq!(debugger.go(None, &[]), Err(RequestError::Ended));

    let (mut config, _) = config_of("hello");
    config.debug = true;
    drop(Vm::start(config).expect("it starts"));
}

fn config_of(guest: &str) -> (Config, Console) {
    config(guest, &[])
}
