//! Every hypercall that this SDK knows, safe and typed. Most guests want the layers above.

#![expect(unsafe_code, reason = "hypercalls that take the address of something")]

use crate::memory::{phys_of, phys_of_mut};
use crate::raw;
use crate::trace::{Name, Span};
use hv_abi::call::{MULTICALL_MAX, MulticallEntry, PanicReport};
use hv_abi::mmu::MmuUpdate;
use hv_abi::pages::PageRun;
use hv_abi::user::UserContext;
use hv_abi::vcpu::{EVENT_CHANNELS, EVENT_WORDS};
use hv_abi::{Call, Features, GuestPhys, Status};

/// Makes a call that writes no guest memory.
fn call(call: Call, arguments: [u64; 5]) -> Result<u64, Status> {
    // SAFETY: the calls made through here, all in this module, write no guest memory (docs/abi.md).
    unsafe { raw::call(call.0, arguments) }.result()
}

/// Any call by number, with any arguments, for probing and testing.
///
/// # Safety
///
/// What the call makes the host write to guest memory must be memory that the caller may have written. With
/// `fake-host`, what it makes the host read must be there, too.
pub unsafe fn any(number: Call, arguments: [u64; 5]) -> Result<u64, Status> {
    // SAFETY: the caller answers for it.
    unsafe { raw::call(number.0, arguments) }.result()
}

/// The ABI version that the host serves. The null hypercall.
pub fn version() -> u32 {
    call(Call::VERSION, [0; 5]).map_or(0, |version| version as u32)
}

/// The features in force.
pub fn features() -> Features {
    call(Call::FEATURES, [0; 5]).map_or(Features::empty(), Features::from_bits_retain)
}

/// Writes at most [`CONSOLE_WRITE_MAX`](hv_abi::call::CONSOLE_WRITE_MAX) bytes to the console. May wait for the
/// host's output.
///
/// # Errors
///
/// `OUT_OF_RANGE` for more than that; `BAD_ADDRESS` if the bytes are not in memory that the host can see.
pub fn console_write(bytes: &[u8]) -> Result<(), Status> {
    let buffer = phys_of(bytes).ok_or(Status::BAD_ADDRESS)?;
    call(Call::CONSOLE_WRITE, [buffer.0, bytes.len() as u64, 0, 0, 0]).map(drop)
}

/// Takes bytes that were typed on the console, at most as many as `buffer` has room for; gives how many. 0: none at the
/// moment, and [`Channel::CONSOLE`](crate::events::Channel::CONSOLE) fires when there are.
///
/// # Errors
///
/// `NOT_FOUND` if there will never be any again; `UNKNOWN_CALL` without `CONSOLE_INPUT`; `OUT_OF_RANGE` for a buffer of more
/// than [`CONSOLE_READ_MAX`](hv_abi::call::CONSOLE_READ_MAX) bytes; `BAD_ADDRESS` if it is not memory that the host can see.
pub fn console_read(buffer: &mut [u8]) -> Result<usize, Status> {
    let at = phys_of_mut(buffer).ok_or(Status::BAD_ADDRESS)?;
    let arguments = [at.0, buffer.len() as u64, 0, 0, 0];
    // SAFETY: the host writes at most `buffer.len()` bytes at `buffer`, which is borrowed mutably for the call.
    let read = unsafe { raw::call(Call::CONSOLE_READ.0, arguments) }.result()?;
    Ok(read as usize)
}

/// Ends the VM with an exit code.
pub fn shutdown(code: u8) -> ! {
    let _ = call(Call::SHUTDOWN, [code.into(), 0, 0, 0, 0]);
    unreachable!("a shutdown with a code of 0 to 255 does not return")
}

/// Ends the VM as panicked. Returns only if the host refuses the report.
///
/// # Errors
///
/// `BAD_ADDRESS` if a part of it is not in memory that the host can see, `OUT_OF_RANGE` if a text is longer than
/// [`PANIC_TEXT_MAX`](hv_abi::call::PANIC_TEXT_MAX).
pub fn panic(message: &[u8], file: &[u8], line: u32, column: u32) -> Result<(), Status> {
    let report = PanicReport {
        message: phys_of(message).ok_or(Status::BAD_ADDRESS)?,
        message_length: message.len() as u64,
        file: phys_of(file).ok_or(Status::BAD_ADDRESS)?,
        file_length: file.len() as u64,
        line,
        column,
    };
    let at = phys_of(core::slice::from_ref(&report)).ok_or(Status::BAD_ADDRESS)?;
    call(Call::PANIC, [at.0, 0, 0, 0, 0]).map(drop)
}

/// Lets others run on this host CPU.
pub fn yield_now() {
    let _ = call(Call::YIELD, [0; 5]);
}

/// Lets another vCPU run first, for whose doing this one waits.
///
/// # Errors
///
/// `NOT_FOUND` if there is no such vCPU.
pub fn yield_to(vcpu: u32) -> Result<(), Status> {
    call(Call::YIELD_TO, [vcpu.into(), 0, 0, 0, 0]).map(drop)
}

/// Waits until a channel of the set, which is laid out as `VcpuPage::pending`, is pending on this vCPU, and gives the lowest;
/// `None` at `deadline` on the guest's clock, or if an upcall is pending. Nothing is cleared.
pub fn poll(set: &[u64; EVENT_WORDS], deadline: u64) -> Option<u32> {
    // It lies in the stack frame of the caller, which is memory that the host can see.
    let at = phys_of(set).unwrap_or_default();
    let channel = call(Call::POLL, [at.0, deadline, 0, 0, 0]).unwrap_or(EVENT_CHANNELS.into());
    (channel < EVENT_CHANNELS.into()).then_some(channel as u32)
}

/// Starts a vCPU that is not started, at V `entry`, with `argument` in RDI. It has no stack of its own, and upcalls masked:
/// [`smp::start`](crate::smp::start) is what a kernel wants.
///
/// # Errors
///
/// `NOT_FOUND` if there is no such vCPU, `BUSY` if it is started or the host is short of something, `BAD_ADDRESS` if `entry` is
/// no V of a guest's, `UNKNOWN_CALL` without the feature `SMP`.
///
/// # Safety
///
/// There must be code at `entry` that is right for a vCPU in that state.
pub unsafe fn vcpu_start(vcpu: u32, entry: u64, argument: u64) -> Result<(), Status> {
    call(Call::VCPU_START, [vcpu.into(), entry, argument, 0, 0]).map(drop)
}

/// Stops this vCPU. Returns only if it fails.
///
/// # Errors
///
/// `BUSY` if no other vCPU is started, `UNKNOWN_CALL` without the feature `SMP`.
pub fn vcpu_stop() -> Status {
    call(Call::VCPU_STOP, [0; 5]).err().unwrap_or(Status::SUCCESS)
}

/// Gives the CPU back until an event is pending, or until `deadline` on the guest's clock, in nanoseconds
/// ([`NEVER`](hv_abi::call::NEVER) for none). May return early. True if the deadline has passed.
pub fn block(deadline: u64) -> bool {
    const BLOCK: &Name = &Name::new("block");
    let _span = Span::crossing(BLOCK, 0);
    raw::block(deadline).value == hv_abi::call::woken_by::DEADLINE
}

/// Makes this vCPU's timer fire once, at `deadline` on the guest's clock; one that was set before is forgotten.
/// [`NEVER`](hv_abi::call::NEVER) clears it.
pub fn timer_set(deadline: u64) {
    let _ = call(Call::TIMER_SET, [deadline, 0, 0, 0, 0]);
}

/// Takes a free event channel for a vCPU; masked, not pending.
///
/// # Errors
///
/// `NO_SPACE` if all are taken, `NOT_FOUND` if there is no such vCPU.
pub fn event_allocate(vcpu: u32) -> Result<u32, Status> {
    call(Call::EVENT_ALLOCATE, [vcpu.into(), 0, 0, 0, 0]).map(|channel| channel as u32)
}

/// Gives an event channel back.
///
/// # Errors
///
/// `NOT_FOUND` if it is not allocated, `OUT_OF_RANGE` if there is no such channel.
pub fn event_close(channel: u32) -> Result<(), Status> {
    call(Call::EVENT_CLOSE, [channel.into(), 0, 0, 0, 0]).map(drop)
}

/// Fires an event channel.
///
/// # Errors
///
/// As [`event_close`].
pub fn event_send(channel: u32) -> Result<(), Status> {
    call(Call::EVENT_SEND, [channel.into(), 0, 0, 0, 0]).map(drop)
}

/// Moves an event channel to another vCPU.
///
/// # Errors
///
/// As [`event_close`], and `NOT_FOUND` if there is no such vCPU.
pub fn event_bind(channel: u32, vcpu: u32) -> Result<(), Status> {
    call(Call::EVENT_BIND, [channel.into(), vcpu.into(), 0, 0, 0]).map(drop)
}

/// Reads the register of a device at `offset`, one of [`register`](hv_abi::device::register).
///
/// # Errors
///
/// `NOT_FOUND` if there is no such device, `OUT_OF_RANGE` if no such register can be read, `UNKNOWN_CALL` without the feature
/// `DEVICES`.
pub fn device_read(device: u32, offset: u64) -> Result<u32, Status> {
    call(Call::DEVICE_READ, [device.into(), offset, 0, 0, 0]).map(|value| value as u32)
}

/// Writes one. A write of 0 to the status register waits until the device no longer touches guest memory.
///
/// # Errors
///
/// As [`device_read`], and `BAD_ARGUMENT` if the register cannot take the value.
///
/// # Safety
///
/// Registers tell a device where it may write: that must be memory which is the device's until it is reset.
pub unsafe fn device_write(device: u32, offset: u64, value: u32) -> Result<(), Status> {
    // SAFETY: the caller answers for where the device writes from here on.
    unsafe { raw::call(Call::DEVICE_WRITE.0, [device.into(), offset, value.into(), 0, 0]) }.result().map(drop)
}

/// Rings the doorbell of a device's queue.
///
/// # Errors
///
/// `NOT_FOUND` if there is no such device, `OUT_OF_RANGE` if it has no such queue, `UNKNOWN_CALL` without the feature `DEVICES`.
pub fn device_notify(device: u32, queue: u32) -> Result<(), Status> {
    call(Call::DEVICE_NOTIFY, [device.into(), queue.into(), 0, 0, 0]).map(drop)
}

/// Makes several calls in one crossing. Each entry gets its own status and value.
///
/// # Errors
///
/// `OUT_OF_RANGE` for more than [`MULTICALL_MAX`] entries, `BAD_ADDRESS` if they are not in memory that the host can
/// see; then none was made.
///
/// # Safety
///
/// What the entries make the host write to guest memory must be memory that the caller may have written. With
/// `fake-host`, what they make the host read must be there, too.
pub unsafe fn multicall(entries: &mut [MulticallEntry]) -> Result<(), Status> {
    let count = entries.len() as u64;
    if count > MULTICALL_MAX {
        return Err(Status::OUT_OF_RANGE);
    }
    let at = phys_of_mut(entries).ok_or(Status::BAD_ADDRESS)?;
    // SAFETY: the host writes `entries`, which the caller lent us to write, and what the entries themselves ask for,
    // which the caller answers for.
    unsafe { raw::call(Call::MULTICALL.0, [at.0, count, 0, 0, 0]) }.result().map(drop)
}

/// Makes the page at `table` a root page table.
///
/// # Errors
///
/// `BAD_ADDRESS` for what is no page of guest memory, `BAD_ARGUMENT` if an entry from 255 on is not zero, `BUSY` for a page
/// that is a root already, `NO_SPACE` if there are too many.
pub fn root_create(table: GuestPhys) -> Result<(), Status> {
    call(Call::ROOT_CREATE, [table.0, 0, 0, 0, 0]).map(drop)
}

/// Ends the use of a root: its tables are plain memory again.
///
/// # Errors
///
/// `NOT_FOUND` for what is no root, `BUSY` for one under which a vCPU runs a program.
pub fn root_destroy(table: GuestPhys) -> Result<(), Status> {
    call(Call::ROOT_DESTROY, [table.0, 0, 0, 0, 0]).map(drop)
}

/// Changes page-table entries, in order. Each update gets its own status and the value that it replaced. With
/// [`EAGER`](hv_abi::mmu::EAGER) in `flags` they are in force when this returns, otherwise when the root is next entered.
///
/// # Errors
///
/// `OUT_OF_RANGE` for more than [`MMU_UPDATE_MAX`](hv_abi::mmu::MMU_UPDATE_MAX) updates, `BAD_ADDRESS` if they are not in
/// memory that the host can see, `BAD_ARGUMENT` for unknown flags; then none was made.
///
/// # Safety
///
/// 1. Each `entry` is in a page that the caller has given up to be a page table: nothing else reads or writes it.
/// 2. Under the guest kernel's own root, what a change maps or takes away must be right for who uses those addresses.
pub unsafe fn mmu_update(updates: &mut [MmuUpdate], flags: u64) -> Result<(), Status> {
    let count = updates.len() as u64;
    let at = phys_of_mut(updates).ok_or(Status::BAD_ADDRESS)?;
    // SAFETY: the host writes `updates`, which the caller lent us to write, and entries, of which the caller says that they
    // are in tables. What is mapped for programs matters when one is run, to whoever runs it.
    unsafe { raw::call(Call::MMU_UPDATE.0, [at.0, count, flags, 0, 0]) }.result().map(drop)
}

/// Waits until no vCPU uses a translation of the range under `root` that is no more in the tables; of all of `root` if
/// `length` is 0, and of all roots if `root` is 0, too.
///
/// # Errors
///
/// `NOT_FOUND` for what is no root, `BAD_ARGUMENT` for a range that is misaligned or not in the lower half.
pub fn mmu_flush(root: GuestPhys, start: u64, length: u64) -> Result<(), Status> {
    call(Call::MMU_FLUSH, [root.0, start, length, 0, 0]).map(drop)
}

/// Makes the host let go of a context: its extended state is in its area afterwards, and `xstate_valid` is 1.
///
/// # Errors
///
/// `BAD_ARGUMENT` if `xstate_valid` is 0 and the host does not hold its state, `BAD_ADDRESS` if the context is not in memory that it can see.
///
/// # Safety
///
/// The area that the context names must be the caller's to have written.
pub unsafe fn user_xstate(context: &mut UserContext) -> Result<(), Status> {
    let at = phys_of_mut(core::slice::from_mut(context)).ok_or(Status::BAD_ADDRESS)?;
    // SAFETY: the host writes the context, which the caller lent us to write, and the area, which the caller answers for.
    unsafe { raw::call(Call::USER_XSTATE.0, [at.0, 0, 0, 0, 0]) }.result().map(drop)
}

/// Runs a program until it traps; gives one of [`trap`](hv_abi::user::trap).
///
/// # Errors
///
/// `NOT_FOUND` if `root` is no root, `BAD_ADDRESS` if the context or its area is not in memory that the host can see, or
/// misaligned, `BAD_ARGUMENT` for registers that a program cannot have, `BUSY` if the host is short of something.
///
/// # Safety
///
/// 1. What the tables under `root` map for user mode must be memory that the program may read and write as they say.
/// 2. The context stays where it is, and it and the area that it names stay the caller's to have written, for as long as the
///    host may hold its extended state: until [`user_xstate`], or until the root is destroyed under which it was entered
///    last.
pub unsafe fn enter_user(root: GuestPhys, context: &mut UserContext) -> Result<u32, Status> {
    let at = phys_of_mut(core::slice::from_mut(context)).ok_or(Status::BAD_ADDRESS)?;
    const PROGRAM: &Name = &Name::new("program");
    let mut span = Span::crossing(PROGRAM, 0);
    // SAFETY: the host writes the context, which the caller lent us to write; the rest the caller answers for.
    let answer = unsafe { raw::enter_user(root.0, at.0) };
    span.set_value(answer.value);
    answer.result().map(|trap| trap as u32)
}

/// Tells the host that pages are free: it takes their memory back, and they are zero when they are claimed.
///
/// # Errors
///
/// `OUT_OF_RANGE` for more than [`PAGE_RUNS_MAX`](hv_abi::pages::PAGE_RUNS_MAX) runs, `BAD_ADDRESS` for a run that is not
/// pages of guest memory, or if the runs are not in memory that the host can see, `UNKNOWN_CALL` without `PAGE_REPORTING`;
/// then nothing was reported.
///
/// # Safety
///
/// The pages must be nobody's: nothing reads or writes them until they are claimed, neither through a reference, nor as a
/// page table, a program's page, or a context or area that the host may write.
pub unsafe fn pages_report(runs: &[PageRun]) -> Result<(), Status> {
    let at = phys_of(runs).ok_or(Status::BAD_ADDRESS)?;
    // SAFETY: the host writes nothing but the pages, which the caller answers for.
    unsafe { raw::call(Call::PAGES_REPORT.0, [at.0, runs.len() as u64, 0, 0, 0]) }.result().map(drop)
}

/// Takes reported pages back, all or none. They are zero. Those that were not reported stay as they are.
///
/// # Errors
///
/// As [`pages_report`], and `BUSY` if the host does not give them now, or the [balloon](balloon) is said to hold them; then
/// nothing was claimed.
pub fn pages_claim(runs: &[PageRun]) -> Result<(), Status> {
    let at = phys_of(runs).ok_or(Status::BAD_ADDRESS)?;
    call(Call::PAGES_CLAIM, [at.0, runs.len() as u64, 0, 0, 0]).map(drop)
}

/// Says how many of the reported pages the balloon holds; gives how many the host asks for.
///
/// # Errors
///
/// `UNKNOWN_CALL` without `PAGE_REPORTING`.
pub fn balloon(held: u64) -> Result<u64, Status> {
    call(Call::BALLOON, [held, 0, 0, 0, 0])
}

/// Says where this vCPU's trace records are: a [`TraceRing`](hv_abi::trace::TraceRing) at `ring`, and so many records, a power
/// of two. 0 takes the ring back.
///
/// # Errors
///
/// `OUT_OF_RANGE` for more than [`TRACE_RECORDS_MAX`](hv_abi::trace::TRACE_RECORDS_MAX), `BAD_ARGUMENT` if it is no power of two,
/// `BAD_ADDRESS` if the ring is not in memory that the host can see, or misaligned, `UNKNOWN_CALL` without `TRACE`.
///
/// # Safety
///
/// The ring is memory that the host may write, and `head` and `tail` are zero, until the ring is taken back or another takes
/// its place.
pub unsafe fn trace_ring(ring: GuestPhys, records: u64) -> Result<(), Status> {
    call(Call::TRACE_RING, [ring.0, records, 0, 0, 0]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{self, End};
    use hv_abi::call::CALLS;
    use std::string::ToString;
    use std::vec;

    /// A status that no wrapper looks for.
    const ODD: Status = Status(4711);

    fn entry(call: Call, arguments: [u64; 5]) -> MulticallEntry {
        MulticallEntry { call, arguments, status: ODD, value: 99, reserved: 0 }
    }

    #[test]
    fn a_call_that_is_not_served_is_unknown_whatever_its_arguments() {
        let later = CALLS.iter().filter(|row| !row.served).map(|row| row.call);
        for call in later.chain([Call(CALLS.len() as u32), Call(u32::MAX)]) {
            // SAFETY: an unknown call writes nothing.
            assert_eq!(unsafe { any(call, [1, 2, 3, 4, 5]) }, Err(Status::UNKNOWN_CALL), "{call:?}");
        }
    }

    #[test]
    fn calls_of_a_feature_that_is_not_in_force_are_unknown() {
        fake::set_features(Features::empty());
        assert_eq!(event_allocate(0), Err(Status::UNKNOWN_CALL));
        assert_eq!(event_send(16), Err(Status::UNKNOWN_CALL));
        // SAFETY: no entries write nothing.
        assert_eq!(unsafe { multicall(&mut []) }, Err(Status::UNKNOWN_CALL));
        assert_eq!(console_write(b"still here"), Ok(()));
    }

    #[test]
    fn every_wrapper_passes_the_hosts_status_on() {
        let refuse = |call| fake::fail_next(call, ODD);
        refuse(Call::CONSOLE_WRITE);
        assert_eq!(console_write(b"x"), Err(ODD));
        refuse(Call::EVENT_ALLOCATE);
        assert_eq!(event_allocate(0), Err(ODD));
        let channel = event_allocate(0).unwrap();
        refuse(Call::EVENT_SEND);
        assert_eq!(event_send(channel), Err(ODD));
        refuse(Call::EVENT_BIND);
        assert_eq!(event_bind(channel, 0), Err(ODD));
        refuse(Call::EVENT_CLOSE);
        assert_eq!(event_close(channel), Err(ODD));
        refuse(Call::MULTICALL);
        let mut entries = [entry(Call::VERSION, [0; 5])];
        // SAFETY: VERSION writes nothing.
        assert_eq!(unsafe { multicall(&mut entries) }, Err(ODD));
        assert_eq!(entries, [entry(Call::VERSION, [0; 5])], "a call that fails writes nothing");
        refuse(Call::PANIC);
        assert_eq!(panic(b"m", b"f", 1, 2), Err(ODD));
        fake::finish();
    }

    #[test]
    fn wrappers_without_a_result_survive_a_refusal() {
        for call in [Call::VERSION, Call::FEATURES, Call::YIELD, Call::TIMER_SET] {
            fake::fail_next(call, ODD);
        }
        assert_eq!(version(), 0);
        assert_eq!(features(), Features::empty());
        yield_now();
        timer_set(1);
        crate::events::Channel::TIMER.unmask();
        assert!(block(5), "the timer was set all the same");
        fake::finish();
    }

    #[test]
    fn a_shutdown_that_is_refused_is_a_panic() {
        fake::fail_next(Call::SHUTDOWN, ODD);
        let end = fake::run(|| shutdown(0));
        assert!(matches!(end, End::Panicked { message, .. } if message.contains("does not return")));
    }

    #[test]
    fn calls_reach_the_host_as_they_are_meant() {
        assert_eq!(version(), hv_abi::ABI_VERSION);
        yield_now();
        let channel = event_allocate(0).unwrap();
        event_bind(channel, 0).unwrap();
        event_send(channel).unwrap();
        event_close(channel).unwrap();
        let channel = u64::from(channel);
        let expected = [
            (Call::VERSION, [0; 5]),
            (Call::YIELD, [0; 5]),
            (Call::EVENT_ALLOCATE, [0; 5]),
            (Call::EVENT_BIND, [channel, 0, 0, 0, 0]),
            (Call::EVENT_SEND, [channel, 0, 0, 0, 0]),
            (Call::EVENT_CLOSE, [channel, 0, 0, 0, 0]),
        ];
        assert_eq!(fake::calls(), expected);
    }

    #[test]
    fn there_is_one_vcpu() {
        assert_eq!(event_allocate(1), Err(Status::NOT_FOUND));
        let channel = event_allocate(0).unwrap();
        assert_eq!(event_bind(channel, 1), Err(Status::NOT_FOUND));
    }

    #[test]
    fn block_says_whether_the_deadline_has_passed() {
        assert!(block(0));
        assert!(block(500));
        assert_eq!(crate::time::Instant::now().as_nanos(), 500);
        timer_set(700);
        crate::events::Channel::TIMER.unmask();
        assert!(!block(1000), "the timer came first");
        assert!(block(1000));
        fake::wake_early();
        assert!(!block(2000));
        assert_eq!(crate::time::Instant::now().as_nanos(), 1000);
    }

    #[test]
    fn each_entry_of_a_multicall_gets_its_own_status() {
        let text = b"from a batch\n";
        let at = phys_of(text).unwrap().0;
        fake::fail_next(Call::FEATURES, ODD);
        let mut entries = [
            entry(Call::CONSOLE_WRITE, [at, text.len() as u64, 0, 0, 0]),
            entry(Call::SHUTDOWN, [0; 5]),
            entry(Call::MULTICALL, [0; 5]),
            entry(Call(1 << 20), [0; 5]),
            entry(Call(u32::MAX), [1; 5]),
            entry(Call::FEATURES, [0; 5]),
            entry(Call::EVENT_ALLOCATE, [0; 5]),
        ];
        // SAFETY: none of the calls writes guest memory.
        assert_eq!(unsafe { multicall(&mut entries) }, Ok(()));
        let expected = [
            (Status::SUCCESS, text.len() as u64),
            (Status::NOT_IN_MULTICALL, 0),
            (Status::NOT_IN_MULTICALL, 0),
            (Status::UNKNOWN_CALL, 0),
            (Status::UNKNOWN_CALL, 0),
            (ODD, 0),
            (Status::SUCCESS, 16),
        ];
        assert_eq!(entries.map(|e| (e.status, e.value)), expected);
        assert_eq!(entries[4].arguments, [1; 5]);
        assert_eq!(fake::console(), "from a batch\n");
        assert_eq!(fake::calls().len(), 1);
    }

    #[test]
    fn a_multicall_has_at_most_128_entries() {
        let mut entries = vec![entry(Call::VERSION, [0; 5]); MULTICALL_MAX as usize + 1];
        // SAFETY: VERSION writes nothing.
        assert_eq!(unsafe { multicall(&mut entries) }, Err(Status::OUT_OF_RANGE));
        assert!(fake::calls().is_empty());
        // SAFETY: VERSION writes nothing.
        assert_eq!(unsafe { multicall(&mut entries[1..]) }, Ok(()));
        assert!(entries[1..].iter().all(|e| e.status.is_success() && e.value == 1));
        assert_eq!(entries[0].value, 99);
        // SAFETY: no entries write nothing.
        assert_eq!(unsafe { multicall(&mut []) }, Ok(()));
    }

    #[test]
    fn a_panic_without_a_file_has_no_place_and_need_not_be_utf_8() {
        let end = fake::run(|| panic(b"bad \xff", b"", 0, 0).unwrap());
        assert_eq!(end, End::Panicked { message: "bad \u{fffd}".to_string(), place: None });
    }
}
