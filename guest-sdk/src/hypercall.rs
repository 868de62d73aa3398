//! Every hypercall that this SDK knows, safe and typed. Most guests want the layers above.

#![expect(unsafe_code, reason = "hypercalls that take the address of something")]

use crate::memory::{phys_of, phys_of_mut};
use crate::raw;
use hv_abi::call::{MULTICALL_MAX, MulticallEntry, PanicReport};
use hv_abi::{Call, Features, Status};

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

/// Gives the CPU back until an event is pending, or until `deadline` on the guest's clock, in nanoseconds
/// ([`NEVER`](hv_abi::call::NEVER) for none). May return early. True if the deadline has passed.
pub fn block(deadline: u64) -> bool {
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
