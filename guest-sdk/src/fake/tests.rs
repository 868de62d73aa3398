//! The fake host's own behaviour: above all, what it does not let pass.

#![expect(unsafe_code, reason = "entries of page tables by address")]

use super::*;
use crate::events::without_upcalls;
use crate::memory::{phys_of, phys_of_mut};
use crate::time::{Instant, sleep, timer};
use crate::upcall::Masked;
use crate::{hypercall, process, raw};
use core::sync::atomic::Ordering::SeqCst;
use hv_abi::GuestPhys;
use hv_abi::call::{CONSOLE_WRITE_MAX, MulticallEntry, NEVER};
use hv_abi::mmu::MmuUpdate;
use hv_abi::user::UserContext;
use hv_abi::vcpu::run_state;
use std::panic::{AssertUnwindSafe, catch_unwind};

const MS: Duration = Duration::from_millis(1);

/// The message with which the host stops `code`, run in a new VM.
fn stopped<T>(code: impl FnOnce() -> T) -> String {
    let code = || {
        code();
    };
    let payload = catch_unwind(AssertUnwindSafe(|| run(code))).expect_err("the host let it pass");
    reset();
    unwind::text(&*payload)
}

#[track_caller]
fn assert_stopped<T>(expected: &str, code: impl FnOnce() -> T) {
    let message = stopped(code);
    assert!(message.contains(expected), "not {expected:?}, but {message:?}");
}

fn probe(call: Call, arguments: [u64; 5]) -> Result<u64, Status> {
    // SAFETY: used below only for calls that write nothing, or that name no memory that was not lent.
    unsafe { hypercall::any(call, arguments) }
}

#[test]
fn arguments_that_a_call_does_not_have_must_be_zero() {
    assert_stopped("unused arguments must be zero", || probe(Call::VERSION, [0, 0, 0, 0, 1]));
    assert_stopped("unused arguments must be zero", || probe(Call::TIMER_SET, [NEVER, 1, 0, 0, 0]));
}

#[test]
fn arguments_must_be_as_narrow_as_the_abi_says() {
    assert_stopped("more than 32 bits", || probe(Call::EVENT_ALLOCATE, [1 << 32, 0, 0, 0, 0]));
    assert_stopped("codes are 0 to 255", || probe(Call::SHUTDOWN, [256, 0, 0, 0, 0]));
}

#[test]
fn a_buffer_must_be_lent_for_the_call_that_names_it() {
    assert_stopped("was not lent for this call", || probe(Call::CONSOLE_WRITE, [0x1000, 5, 0, 0, 0]));
    assert_stopped("was not lent for this call", || {
        let at = phys_of(b"hello").unwrap().0;
        probe(Call::CONSOLE_WRITE, [at, 5, 0, 0, 0]).unwrap();
        probe(Call::CONSOLE_WRITE, [at, 5, 0, 0, 0])
    });
}

#[test]
fn a_buffer_must_not_be_longer_than_what_was_lent() {
    let text = b"hello";
    assert_stopped("is longer than what was lent there", || {
        let at = phys_of(&text[..4]).unwrap().0;
        probe(Call::CONSOLE_WRITE, [at, 5, 0, 0, 0])
    });
    assert_stopped("at most 65536", || {
        let long = std::vec![0_u8; CONSOLE_WRITE_MAX as usize + 1];
        let _ = hypercall::console_write(&long);
    });
    assert_stopped("at most 4096", || hypercall::panic(&[b'x'; 4097], b"", 0, 0));
}

#[test]
fn a_part_of_what_was_lent_may_be_named() {
    let end = run(|| {
        let at = phys_of(b"hello").unwrap().0;
        probe(Call::CONSOLE_WRITE, [at + 1, 3, 0, 0, 0]).unwrap();
        probe(Call::CONSOLE_WRITE, [0x1234, 0, 0, 0, 0]).unwrap();
    });
    assert_eq!((end, console().as_str()), (End::Returned, "ell"));
}

#[test]
fn what_the_host_writes_must_be_lent_for_writing_and_aligned() {
    let mut entries = [MulticallEntry::default(); 2];
    assert_stopped("was lent for reading only", || {
        let at = phys_of(&entries).unwrap().0;
        probe(Call::MULTICALL, [at, 2, 0, 0, 0])
    });
    assert_stopped("not aligned to 8 bytes", || {
        let at = phys_of_mut(&mut entries).unwrap().0;
        probe(Call::MULTICALL, [at + 4, 1, 0, 0, 0])
    });
    assert_stopped("at most 128", || probe(Call::MULTICALL, [0, 129, 0, 0, 0]));
}

#[test]
fn entries_of_a_multicall_are_held_to_the_same_rules() {
    let batch = |entry| {
        // SAFETY: the entries below write nothing.
        let _ = unsafe { hypercall::multicall(&mut [entry]) };
    };
    let entry = MulticallEntry::default();
    assert_stopped("`reserved` is not zero", || batch(MulticallEntry { reserved: 1, ..entry }));
    assert_stopped("must be zero", || batch(MulticallEntry { arguments: [1; 5], ..entry }));
}

#[test]
fn a_channel_must_be_open() {
    assert_stopped("EVENT_SEND of channel 16, which is not open", || hypercall::event_send(16));
    assert_stopped("EVENT_CLOSE of channel 0", || Channel::TIMER.close());
    assert_stopped("EVENT_BIND of channel 600", || hypercall::event_bind(600, 0));
    assert_stopped("fake::raise of channel 16", || {
        let channel = Channel::allocate().unwrap();
        channel.close().unwrap();
        raise(channel);
    });
}

#[test]
fn a_closed_channel_must_not_be_unmasked() {
    assert_stopped("channel 16 was unmasked, or made pending, and is not open", || {
        let channel = Channel::allocate().unwrap();
        channel.close().unwrap();
        channel.unmask();
    });
}

#[test]
fn a_device_may_fire_a_channel_that_was_closed_meanwhile() {
    let channel = Channel::allocate().unwrap();
    raise_after(MS, channel);
    channel.close().unwrap();
    advance(MS);
    finish();
}

#[test]
fn what_is_the_hosts_in_the_vcpu_page_must_stay() {
    assert_stopped("set `run_state` of its vCPU page to 1", || {
        raw::vcpu_page().run_state.store(run_state::BLOCKED, SeqCst);
        sleep(MS);
    });
    assert_stopped("set `vcpu` of its vCPU page to 7", || raw::vcpu_page().vcpu.store(7, SeqCst));
    assert_stopped("set `preempted`", || raw::vcpu_page().preempted.store(1, SeqCst));
    assert_stopped("set bits 0x2 of `upcall`", || raw::vcpu_page().upcall.fetch_or(2, SeqCst));
}

#[test]
fn upcalls_must_be_unmasked_at_the_end() {
    assert_stopped("still masked at the end", Masked::set);
    assert_eq!(run(|| without_upcalls(|| process::exit(1))), End::Shutdown(1));
}

#[test]
fn a_failure_that_was_asked_for_must_be_used() {
    fail_next(Call::YIELD, Status::BUSY);
    assert_stopped("fail_next(YIELD, BUSY) was never used", || ());
}

#[test]
fn a_block_that_nothing_can_end_is_a_deadlock() {
    let forever = || hypercall::block(NEVER);
    assert_stopped("deadlock", forever);
    assert_stopped("upcalls masked: true", || without_upcalls(forever));
    assert_stopped("deadlock", || {
        hypercall::timer_set(5); // its channel is masked, so it does not end the block
        forever()
    });
}

#[test]
fn a_wake_up_that_was_lost_is_explained() {
    assert_stopped("handler: [16]; their upcalls came before the block", || {
        let channel = Channel::allocate().unwrap();
        channel.unmask();
        let seen = channel.take();
        raise(channel);
        if !seen {
            hypercall::block(NEVER);
        }
    });
}

#[test]
fn a_loop_that_waits_for_the_clock_without_blocking_is_stopped() {
    let wait = || while Instant::START.elapsed() < MS {};
    assert_stopped("while it stood still", wait);
    assert_stopped("while it stood still", || {
        let channel = Channel::allocate().unwrap();
        channel.unmask();
        without_upcalls(|| {
            raise(channel);
            sleep(MS); // every block returns at once, because something is pending
        });
    });
}

#[test]
fn the_vm_is_gone_after_its_end() {
    assert_eq!(run(|| process::exit(4)), End::Shutdown(4));
    let after = catch_unwind(|| crate::println!("still here?")).expect_err("the host let it pass");
    assert!(unwind::text(&*after).contains("after the end of the VM, which was Shutdown(4)"));
    reset();
    crate::println!("a new one");
    assert_eq!(console(), "a new one\n");
}

#[test]
fn nothing_of_a_guest_runs_after_its_end() {
    let end = run(|| {
        timer::set(Instant::START + MS, |_| panic!("a handler of a guest that is gone"));
        process::exit(0);
    });
    advance(2 * MS);
    assert_eq!(end, End::Shutdown(0));
}

#[test]
fn only_what_runs_under_run_may_end() {
    let outside = catch_unwind(|| process::exit(0)).expect_err("the host let it pass");
    assert!(unwind::text(&*outside).contains("run what may end it by fake::run"));
    assert_stopped("fake::run inside fake::run", || run(|| ()));
}

#[test]
fn run_starts_a_new_vm_with_the_same_settings() {
    set_arguments(&["kept"]);
    fail_next(Call::YIELD, Status::BUSY);
    let channel = Channel::allocate().unwrap();
    channel.on_event(|_| panic!("the old VM's handler"));
    advance(MS);
    crate::println!("old");
    let end = run(|| {
        assert_eq!(Instant::now(), Instant::START);
        assert_eq!(crate::boot::arguments().next(), Some("kept"));
        assert_eq!(probe(Call::YIELD, [0; 5]), Err(Status::BUSY));
        let channel = Channel::allocate().unwrap();
        channel.unmask();
        raise(channel);
    });
    assert_eq!((end, console().as_str(), calls().len()), (End::Returned, "", 2));
    reset();
    assert_eq!(crate::boot::arguments().count(), 0);
}

#[test]
fn destructors_on_the_way_out_call_nobody() {
    struct Loud;
    impl Drop for Loud {
        fn drop(&mut self) {
            crate::println!("would not run in a VM");
            sleep(MS);
            let _ = hypercall::event_close(99);
        }
    }
    let leave = |code: fn()| {
        run(|| {
            let _loud = Loud;
            code();
        })
    };
    assert_eq!(leave(|| process::exit(2)), End::Shutdown(2));
    assert!(matches!(leave(|| panic!("left")), End::Panicked { message, .. } if message == "left"));
    assert_eq!(console(), "");
}

#[test]
fn advance_fires_everything_in_order_and_each_at_its_time() {
    std::thread_local!(static AT: core::cell::RefCell<Vec<(u32, Duration)>> = const { core::cell::RefCell::new(Vec::new()) });
    fn note(channel: Channel) {
        AT.with_borrow_mut(|at| at.push((channel.number(), Instant::START.elapsed())));
    }
    let channel = Channel::allocate().unwrap();
    channel.on_event(note);
    raise_after(3 * MS, channel);
    raise_after(MS, channel);
    timer::set(Instant::START + 2 * MS, note);
    advance(2 * MS);
    assert_eq!(AT.take(), [(16, MS), (0, 2 * MS)]);
    advance(2 * MS);
    assert_eq!(AT.take(), [(16, 3 * MS)]);
    assert_eq!(Instant::START.elapsed(), 4 * MS);
}

#[test]
fn each_thread_has_its_own_vm() {
    advance(MS);
    crate::println!("here");
    let there =
        std::thread::spawn(|| (Instant::now(), console(), core::ptr::from_ref(raw::vcpu_page()).addr()));
    let (now, console_there, page) = there.join().unwrap();
    assert_eq!((now, console_there.as_str()), (Instant::START, ""));
    assert_ne!(page, core::ptr::from_ref(raw::vcpu_page()).addr());
    assert_eq!(console(), "here\n");
}

#[test]
fn only_features_that_hosts_serve_can_be_set() {
    assert!(catch_unwind(|| set_features(Features::SMP)).is_err());
    assert!(catch_unwind(|| fail_next(Call::YIELD, Status::SUCCESS)).is_err());
    assert!(catch_unwind(|| set_arguments(&["a\0b"])).is_err());
}

/// A root, made and destroyed by the test; its frame outlives what is done in between.
fn root() -> crate::frames::Frame {
    let frame = crate::frames::allocate_zeroed(0).unwrap();
    hypercall::root_create(frame.phys()).unwrap();
    frame
}

#[test]
fn roots_are_held_to_the_rules() {
    assert_stopped("no page of usable memory", || hypercall::root_create(GuestPhys(0x1000)));
    assert_stopped("which is a root already", || hypercall::root_create(root().phys()));
    assert_stopped("whose entry 300 is not zero", || {
        let frame = crate::frames::allocate_zeroed(0).unwrap();
        frame.write_at(300 * 8, &[1]);
        hypercall::root_create(frame.phys())
    });
    assert_stopped("ROOT_DESTROY of 0x1000, which is no root", || hypercall::root_destroy(GuestPhys(0x1000)));
    assert_stopped("not whole pages", || hypercall::mmu_flush(root().phys(), 1, 0));
}

#[test]
fn updates_of_page_tables_are_held_to_the_rules() {
    let update = |change: fn(GuestPhys) -> (u64, u64)| {
        move || {
            let root = root();
            let (entry, new) = change(root.phys());
            let entry = GuestPhys(entry);
            // SAFETY: the entry is in a table of this test's, or is refused.
            unsafe { hypercall::mmu_update(&mut [MmuUpdate { entry, new, ..MmuUpdate::default() }], 0) }
        }
    };
    assert_stopped("no entry in usable memory", update(|root| (root.0 + 4, 0)));
    assert_stopped("no entry in usable memory", update(|_| (0x1000, 0)));
    assert_stopped("entry 255 of a root", update(|root| (root.0 + 255 * 8, 0)));
    assert_stopped("bits are set that must be zero", update(|root| (root.0, root.0 | 0x101)));
    assert_stopped("bits are set that must be zero", update(|root| (root.0, (root.0 | 0x1000) | 0x81)));
    assert_stopped("which is not in usable memory", update(|root| (root.0, 0x1001)));
    assert_stopped("at most 512", || {
        // SAFETY: so many are refused.
        let _ = unsafe { hypercall::mmu_update(&mut [MmuUpdate::default(); 513], 0) };
    });
    let free = update(|root| (root.0, 0xfff0));
    assert_eq!(run(|| assert_eq!(free(), Ok(()))), End::Returned, "not present: the guest's own");
}

#[test]
fn contexts_are_held_to_the_rules() {
    let enter = |change: fn(&mut UserContext)| {
        move || {
            set_program(|_| crate::user::Trap::Syscall);
            let mut context = UserContext {
                rip: 0x40_0000,
                xstate: GuestPhys(64),
                xstate_valid: 1,
                ..UserContext::default()
            };
            change(&mut context);
            // SAFETY: nothing is mapped; the fake does not look at the area, and holds no state after the VM's end.
            unsafe { hypercall::enter_user(root().phys(), &mut context) }
        }
    };
    assert_stopped("registers that no program can have", enter(|context| context.rip = 0x1_0000));
    assert_stopped("registers that no program can have", enter(|context| context.rflags = 1 << 12));
    assert_stopped("registers that no program can have", enter(|context| context.fs_base = 1 << 47));
    assert_stopped("`reserved` is not zero", enter(|context| context.reserved[8] = 1));
    assert_stopped("the host does not hold its state", enter(|context| context.xstate_valid = 0));
}

#[test]
fn a_program_that_nobody_plays_is_told() {
    assert_stopped("fake::set_program says what programs do", || {
        let mut space = crate::space::AddressSpace::new().unwrap();
        crate::user::Task::new(0x40_0000, 0).run(&mut space)
    });
}

#[test]
fn an_event_that_is_pending_comes_before_the_program() {
    set_program(|_| panic!("it was to be interrupted"));
    let (mut task, mut space) =
        (crate::user::Task::new(0x40_0000, 0), crate::space::AddressSpace::new().unwrap());
    let channel = Channel::allocate().unwrap();
    channel.on_event(|_| ());
    without_upcalls(|| {
        raise(channel);
        assert_eq!(task.run(&mut space), crate::user::Trap::Interrupted);
    });
    finish();
}

#[test]
fn without_the_feature_there_is_no_user_mode() {
    set_features(Features::EVENTS);
    assert_eq!(crate::space::AddressSpace::new().err(), Some(Status::UNKNOWN_CALL));
}
