//! What each call does. A caller that must be fixed is told by a panic, not by a status.

use super::state::{Host, Vm, misuse};
use super::{End, Place};
use hv_abi::call::{
    CONSOLE_READ_MAX, CONSOLE_WRITE_MAX, MULTICALL_MAX, MulticallEntry, NEVER, PANIC_TEXT_MAX, PanicReport,
};
use hv_abi::trace::{TRACE_RECORDS_MAX, TraceRecord};
use hv_abi::vcpu::{CONSOLE_CHANNEL, EVENT_CHANNELS, FIRST_DYNAMIC_CHANNEL};
use hv_abi::{ABI_VERSION, Call, GuestPhys, Status};
use std::string::String;
use std::vec::Vec;

type CallResult = Result<u64, Status>;

/// A call as it comes from the guest.
///
/// # Safety
///
/// As for [`entry::call`](super::entry::call).
pub(super) unsafe fn crossing(vm: &Vm, call: Call, arguments: [u64; 5]) -> CallResult {
    super::ensure(); // while nothing is borrowed: what is in memory is looked up there
    let host = &mut *vm.host.borrow_mut();
    if let Some(refused) = admit(host, call, arguments) {
        return Err(refused);
    }
    let [a, b, ..] = arguments;
    // SAFETY: what either reads and writes is what this function's caller answers for.
    unsafe {
        match call {
            Call::MULTICALL => multicall(vm, host, a, b),
            _ => serve(vm, host, call, arguments),
        }
    }
}

/// Why a call is not made at all. Panics if it has arguments that it does not have.
fn admit(host: &mut Host, call: Call, arguments: [u64; 5]) -> Option<Status> {
    let Some(description) = call.description().filter(|description| description.served) else {
        return Some(Status::UNKNOWN_CALL);
    };
    if !host.settings.features.contains(call.feature()) {
        return Some(Status::UNKNOWN_CALL);
    }
    let unused = &arguments[description.arguments.len()..];
    if unused.iter().any(|argument| *argument != 0) {
        misuse!("{call:?}{:?} with {arguments:x?}: unused arguments must be zero", description.arguments);
    }
    let failure = host.failures.iter().position(|(which, _)| *which == call)?;
    Some(host.failures.remove(failure).1)
}

/// Every call but a multicall.
///
/// # Safety
///
/// As for [`entry::call`](super::entry::call).
unsafe fn serve(vm: &Vm, host: &mut Host, call: Call, [a, b, c, ..]: [u64; 5]) -> CallResult {
    match call {
        Call::VERSION => Ok(ABI_VERSION.into()),
        Call::FEATURES => Ok(host.settings.features.bits()),
        Call::CONSOLE_WRITE => {
            // SAFETY: initialised and still there, as this function's caller says.
            let bytes = unsafe { copy(host, "CONSOLE_WRITE's buffer", GuestPhys(a), b, CONSOLE_WRITE_MAX) };
            host.console.extend(bytes);
            Ok(b)
        }
        // SAFETY: the buffer is the guest's to have written, as this function's caller says.
        Call::CONSOLE_READ => unsafe { console_read(vm, host, GuestPhys(a), b) },
        Call::SHUTDOWN => {
            let Ok(code) = u8::try_from(a) else { misuse!("SHUTDOWN with code {a}: codes are 0 to 255") };
            end(vm, host, call, End::Shutdown(code))
        }
        Call::PANIC => {
            // SAFETY: initialised and still there, as this function's caller says.
            let panicked = unsafe { panicked(host, a) };
            end(vm, host, call, panicked)
        }
        Call::YIELD => Ok(0),
        Call::TIMER_SET => {
            host.timer = (a != NEVER).then_some(a);
            Ok(0)
        }
        Call::EVENT_ALLOCATE => {
            exists(narrow(call, "vcpu", a))?;
            let mut channels = FIRST_DYNAMIC_CHANNEL..EVENT_CHANNELS;
            let free = |channel: &u32| !host.open.contains(channel) && !vm.is_of_device(*channel);
            let channel = channels.find(free).ok_or(Status::NO_SPACE)?;
            host.open.push(channel);
            vm.reset_channel(channel);
            Ok(channel.into())
        }
        Call::EVENT_CLOSE => {
            let channel = open_channel(host, call, a);
            host.open.retain(|open| *open != channel);
            vm.reset_channel(channel);
            Ok(0)
        }
        Call::EVENT_SEND => {
            vm.fire(open_channel(host, call, a));
            Ok(0)
        }
        Call::EVENT_BIND => {
            open_channel(host, call, a);
            exists(narrow(call, "vcpu", b))?;
            Ok(0)
        }
        Call::ROOT_CREATE => host.mmu.root_create(a),
        Call::ROOT_DESTROY => host.mmu.root_destroy(a),
        // SAFETY: the updates are initialised and still there, as this function's caller says.
        Call::MMU_UPDATE => unsafe { host.mmu.update(&host.lent, GuestPhys(a), b, c) },
        Call::MMU_FLUSH => host.mmu.flush(a, b, c),
        // SAFETY: the context is initialised and still there, as this function's caller says.
        Call::USER_XSTATE => unsafe { host.mmu.user_xstate(&host.lent, GuestPhys(a)) },
        // SAFETY: the runs are initialised and still there, and pages that are reported are nobody's, as this function's
        // caller says.
        Call::PAGES_REPORT => unsafe { host.pages.report(&host.lent, GuestPhys(a), b) },
        // SAFETY: as above.
        Call::PAGES_CLAIM => unsafe { host.pages.claim(&host.lent, GuestPhys(a), b) },
        Call::BALLOON => Ok(host.pages.hold(a)),
        Call::TRACE_RING => trace_ring(host, GuestPhys(a), b),
        Call::DEVICE_READ | Call::DEVICE_WRITE | Call::DEVICE_NOTIFY => vm.call_device(call, [a, b, c]),
        _ => Err(Status::UNKNOWN_CALL),
    }
}

/// A ring, of which nothing is ever taken.
fn trace_ring(host: &Host, ring: GuestPhys, records: u64) -> CallResult {
    if records > 0 {
        if records > TRACE_RECORDS_MAX || !records.is_power_of_two() {
            misuse!("TRACE_RING of {records} records: a power of two, at most {TRACE_RECORDS_MAX}");
        }
        host.lent.check_table::<TraceRecord>("TRACE_RING's ring", ring, records + 1, false);
    }
    Ok(0)
}

/// Several calls: all copied in, then made, then status and value written.
///
/// # Safety
///
/// As for [`entry::call`](super::entry::call).
unsafe fn multicall(vm: &Vm, host: &mut Host, entries: u64, count: u64) -> CallResult {
    if count > MULTICALL_MAX {
        misuse!("MULTICALL of {count} entries: at most {MULTICALL_MAX}");
    }
    if count == 0 {
        return Ok(0);
    }
    let at = host.lent.check_table::<MulticallEntry>("MULTICALL's entries", GuestPhys(entries), count, true);
    // SAFETY: `from_raw_parts` needs memory that is readable, aligned, initialised and not changed while borrowed.
    // 1. Readable, aligned: `check_table` found that it was lent as a whole, which the caller says is still there.
    // 2. Initialised: as the caller says.
    // 3. Not changed: the guest waits, and the copy is over before anything is written.
    let batch: Vec<MulticallEntry> = unsafe { core::slice::from_raw_parts(at, count as usize) }.to_vec();
    for (i, entry) in batch.iter().enumerate() {
        // SAFETY: what it reads and writes is what this function's caller answers for.
        let result = unsafe { batched(vm, host, entry) };
        // SAFETY: the entry is in the table that was checked above to be lent for writing; only these two fields of
        // it are touched, as integers, so nothing is dropped or made invalid.
        unsafe {
            (*at.add(i)).status = result.err().unwrap_or(Status::SUCCESS);
            (*at.add(i)).value = result.unwrap_or(0);
        }
    }
    Ok(count)
}

/// One call of a multicall.
///
/// # Safety
///
/// As for [`entry::call`](super::entry::call).
unsafe fn batched(vm: &Vm, host: &mut Host, entry: &MulticallEntry) -> CallResult {
    match entry.call.description() {
        Some(description) if description.served && !description.in_multicall => {
            return Err(Status::NOT_IN_MULTICALL);
        }
        _ if entry.reserved != 0 => misuse!("an entry of a multicall whose `reserved` is not zero"),
        _ => (),
    }
    if let Some(refused) = admit(host, entry.call, entry.arguments) {
        return Err(refused);
    }
    // SAFETY: what it reads and writes is what this function's caller answers for.
    unsafe { serve(vm, host, entry.call, entry.arguments) }
}

/// Gives the guest what was typed. Who finds nothing makes the next piece come.
///
/// # Safety
///
/// As for [`entry::call`](super::entry::call).
unsafe fn console_read(vm: &Vm, host: &mut Host, buffer: GuestPhys, length: u64) -> CallResult {
    if length > CONSOLE_READ_MAX {
        misuse!("CONSOLE_READ of {length} bytes: at most {CONSOLE_READ_MAX}");
    }
    if host.input.bytes.is_empty() {
        if !host.input.open {
            return Err(Status::NOT_FOUND);
        }
        if length > 0 {
            let piece = host.input.later.pop_front();
            host.input.open = piece.is_some();
            host.input.bytes.extend(piece.into_iter().flatten());
            vm.fire(CONSOLE_CHANNEL);
        }
        return Ok(0);
    }
    if length == 0 {
        return Ok(0);
    }
    let at = host.lent.check_table::<u8>("CONSOLE_READ's buffer", buffer, length, true);
    let read = host.input.bytes.len().min(length as usize);
    for (i, byte) in host.input.bytes.drain(..read).enumerate() {
        // SAFETY: it is one of `length` bytes that `check_table` found to be lent for writing, which the caller says are
        // still there.
        unsafe { at.add(i).write(byte) };
    }
    Ok(read as u64)
}

/// Reads a panic report.
///
/// # Safety
///
/// As for [`entry::call`](super::entry::call).
unsafe fn panicked(host: &Host, report: u64) -> End {
    let at = host.lent.check_table::<PanicReport>("PANIC's report", GuestPhys(report), 1, false);
    // SAFETY: readable and aligned, as `check_table` found; initialised and still there, as this function's caller
    // says.
    let report = unsafe { at.read() };
    // SAFETY: initialised and still there, as this function's caller says.
    let message =
        unsafe { copy(host, "the panic's message", report.message, report.message_length, PANIC_TEXT_MAX) };
    // SAFETY: as above.
    let file = unsafe { copy(host, "the panic's file", report.file, report.file_length, PANIC_TEXT_MAX) };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let place = Place { file: text(&file), line: report.line, column: report.column };
    End::Panicked { message: text(&message), place: (!file.is_empty()).then_some(place) }
}

/// Copies bytes that were lent.
///
/// # Safety
///
/// They are initialised and still there.
unsafe fn copy(host: &Host, what: &str, start: GuestPhys, length: u64, most: u64) -> Vec<u8> {
    if length > most {
        misuse!("{what} has {length} bytes: at most {most}");
    }
    if length == 0 {
        return Vec::new();
    }
    let at = host.lent.check_table::<u8>(what, start, length, false);
    // SAFETY: readable, as `check_table` found that it was lent as a whole; initialised and still there, as this
    // function's caller says; not changed, since the guest waits.
    unsafe { core::slice::from_raw_parts(at, length as usize) }.to_vec()
}

fn end(vm: &Vm, host: &mut Host, call: Call, end: End) -> CallResult {
    if !vm.running.get() {
        misuse!("{call:?} would end the VM as {end:?}: run what may end it by fake::run");
    }
    host.end = Some(end);
    Ok(0)
}

fn narrow(call: Call, what: &str, argument: u64) -> u32 {
    match u32::try_from(argument) {
        Ok(argument) => argument,
        Err(_) => misuse!("{call:?} with {what} {argument:#x}, which has more than 32 bits"),
    }
}

fn open_channel(host: &Host, call: Call, channel: u64) -> u32 {
    let channel = narrow(call, "channel", channel);
    host.expect_open(call.description().map_or("a call", |description| description.name), channel);
    channel
}

/// There is one vCPU.
fn exists(vcpu: u32) -> Result<(), Status> {
    if vcpu == 0 { Ok(()) } else { Err(Status::NOT_FOUND) }
}
