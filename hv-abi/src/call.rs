//! The table of hypercalls.
//!
//! [`for_each_call!`](crate::for_each_call) is the one place that gives each call its number, name, arguments, result and errors. From
//! it come the constants of [`Call`], the descriptions in [`CALLS`] that `docs/abi.md` is checked against, and
//! the host's dispatch trait.
//!
//! A call has up to five 64-bit arguments and gives a [`Status`] and one 64-bit value; the value is 0 unless the
//! table names it. Arguments are compared in full: a channel of 2^32 is out of range, not channel 0.

use crate::{Features, GuestPhys, Status};
use core::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Hands the table of hypercalls to a macro `$m`.
///
/// A row is `number NAME stem(arguments) -> result, [errors], crossing, served;`: `crossing` is `data` for a call
/// that may stand in a multicall and `alone` for one that may not; `served` is `served` or `later`.
#[macro_export]
macro_rules! for_each_call {
    ($m:ident) => {
        $m! {
            /// Asks for the ABI version: the null hypercall.
            0 VERSION version() -> abi_version, [], data, served;
            /// Asks which features are in force, as bits of `Features`.
            1 FEATURES features() -> features, [], data, served;
            /// Writes bytes to the console.
            2 CONSOLE_WRITE console_write(buffer, length) -> written,
                [BAD_ADDRESS, OUT_OF_RANGE], data, served;
            /// Ends the VM with an exit code. Does not return.
            3 SHUTDOWN shutdown(code) -> none, [BAD_ARGUMENT], alone, served;
            /// Ends the VM because the guest kernel gave up, with a message. Does not return.
            4 PANIC panic(report) -> none, [BAD_ADDRESS, OUT_OF_RANGE], alone, served;
            /// Lets others run on this host CPU.
            5 YIELD yield_now() -> none, [], alone, served;
            /// Lets another vCPU run instead of this one.
            6 YIELD_TO yield_to(vcpu) -> none, [NOT_FOUND], alone, served;
            /// Blocks until one of a set of event channels fires.
            7 POLL poll(set, deadline) -> channel, [BAD_ADDRESS], alone, served;
            /// Sets or clears this vCPU's timer.
            8 TIMER_SET timer_set(deadline) -> none, [], data, served;
            /// Takes a free event channel.
            9 EVENT_ALLOCATE event_allocate(vcpu) -> channel, [NOT_FOUND, NO_SPACE], data, served;
            /// Gives an event channel back.
            10 EVENT_CLOSE event_close(channel) -> none, [OUT_OF_RANGE, NOT_FOUND], data, served;
            /// Fires an event channel.
            11 EVENT_SEND event_send(channel) -> none, [OUT_OF_RANGE, NOT_FOUND], data, served;
            /// Moves an event channel to another vCPU.
            12 EVENT_BIND event_bind(channel, vcpu) -> none, [OUT_OF_RANGE, NOT_FOUND], data, served;
            /// Makes several calls in one crossing.
            13 MULTICALL multicall(entries, count) -> done, [BAD_ADDRESS, OUT_OF_RANGE], alone, served;
            /// Starts a vCPU at an entry point.
            14 VCPU_START vcpu_start(vcpu, entry, argument) -> none, [NOT_FOUND, BUSY, BAD_ADDRESS], alone, served;
            /// Stops the calling vCPU until it is started again.
            15 VCPU_STOP vcpu_stop() -> none, [BUSY], alone, served;
            /// Makes a page a root page table.
            16 ROOT_CREATE root_create(table) -> none, [BAD_ADDRESS, BAD_ARGUMENT, BUSY, NO_SPACE], data, served;
            /// Ends the use of a root page table.
            17 ROOT_DESTROY root_destroy(table) -> none, [NOT_FOUND, BUSY], data, served;
            /// Changes page-table entries.
            18 MMU_UPDATE mmu_update(updates, count, flags) -> done,
                [BAD_ADDRESS, OUT_OF_RANGE, BAD_ARGUMENT], data, served;
            /// Forgets translations: of a page, a range, a root, or all.
            19 MMU_FLUSH mmu_flush(root, start, length) -> none, [NOT_FOUND, BAD_ARGUMENT], data, served;
            /// Brings the saved extended state of a user context up to date.
            20 USER_XSTATE user_xstate(context) -> none, [BAD_ADDRESS, BAD_ARGUMENT], alone, served;
            /// Tells the host which pages are free; they read as zero when taken again.
            21 PAGES_REPORT pages_report(runs, count) -> done, [BAD_ADDRESS, OUT_OF_RANGE], data, served;
            /// Takes reported pages back before they are used.
            22 PAGES_CLAIM pages_claim(runs, count) -> done, [BAD_ADDRESS, OUT_OF_RANGE, BUSY], data, served;
            /// Says how many pages the balloon holds, and asks how many it should.
            23 BALLOON balloon(held) -> target, [], data, served;
            /// Reads a device register.
            24 DEVICE_READ device_read(device, offset) -> value, [NOT_FOUND, OUT_OF_RANGE], data, served;
            /// Writes a device register.
            25 DEVICE_WRITE device_write(device, offset, value) -> none,
                [NOT_FOUND, OUT_OF_RANGE, BAD_ARGUMENT], data, served;
            /// Rings a device queue's doorbell.
            26 DEVICE_NOTIFY device_notify(device, queue) -> none, [NOT_FOUND, OUT_OF_RANGE], data, served;
            /// Takes bytes that were typed on the console.
            27 CONSOLE_READ console_read(buffer, length) -> read,
                [BAD_ADDRESS, OUT_OF_RANGE, NOT_FOUND], data, served;
            /// Says where this vCPU's trace records are.
            28 TRACE_RING trace_ring(ring, records) -> none, [BAD_ADDRESS, OUT_OF_RANGE], data, served;
        }
    };
}

/// Number of a hypercall. Retired numbers are never reused. An unknown number gives
/// [`Status::UNKNOWN_CALL`], so a guest may probe.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Call(pub u32);
const _: () = assert!(size_of::<Call>() == 4);

/// What the table says of one call.
#[derive(Clone, Copy, Debug)]
pub struct Description {
    /// The call's number.
    pub call: Call,
    /// Its name, as in [`Call`]'s constants and in `docs/abi.md`.
    pub name: &'static str,
    /// Names of its arguments, in order.
    pub arguments: &'static [&'static str],
    /// Name of the value it gives, or `none`.
    pub result: &'static str,
    /// Statuses it can give beside `SUCCESS` and, for all calls, `UNKNOWN_CALL` and `BAD_ARGUMENT`.
    pub errors: &'static [Status],
    /// Whether it may stand in a multicall.
    pub in_multicall: bool,
    /// Whether this version of the host serves it; one that it does not answers `UNKNOWN_CALL`.
    pub served: bool,
}

macro_rules! yes {
    (data) => {
        true
    };
    (alone) => {
        false
    };
    (served) => {
        true
    };
    (later) => {
        false
    };
}

macro_rules! declare {
    ($($(#[$doc:meta])+ $number:literal $name:ident $stem:ident($($argument:ident),*) -> $result:ident,
       [$($error:ident),*], $crossing:ident, $served:ident;)+) => {
        impl Call {
            $($(#[$doc])+ pub const $name: Self = Self($number);)+
        }

        /// Every call, in number order.
        pub const CALLS: &[Description] = &[$(Description {
            call: Call::$name,
            name: stringify!($name),
            arguments: &[$(stringify!($argument)),*],
            result: stringify!($result),
            errors: &[$(Status::$error),*],
            in_multicall: yes!($crossing),
            served: yes!($served),
        }),+];
    };
}
for_each_call!(declare);

impl Call {
    /// What the table says of this call, if it knows the number.
    pub fn description(self) -> Option<&'static Description> {
        CALLS.get(usize::try_from(self.0).ok()?)
    }
}

impl Call {
    /// The feature that must be in force for the call to be served; none for the basic ones.
    pub const fn feature(self) -> Features {
        match self {
            Self::TIMER_SET | Self::POLL => Features::EVENTS,
            Self::EVENT_ALLOCATE | Self::EVENT_CLOSE | Self::EVENT_SEND | Self::EVENT_BIND => {
                Features::EVENTS
            }
            Self::MULTICALL => Features::MULTICALL,
            Self::YIELD_TO | Self::VCPU_START | Self::VCPU_STOP => Features::SMP,
            Self::ROOT_CREATE
            | Self::ROOT_DESTROY
            | Self::MMU_UPDATE
            | Self::MMU_FLUSH
            | Self::USER_XSTATE => Features::MMU,
            Self::PAGES_REPORT | Self::PAGES_CLAIM | Self::BALLOON => Features::PAGE_REPORTING,
            Self::DEVICE_READ | Self::DEVICE_WRITE | Self::DEVICE_NOTIFY => Features::DEVICES,
            Self::CONSOLE_READ => Features::CONSOLE_INPUT,
            Self::TRACE_RING => Features::TRACE,
            _ => Features::empty(),
        }
    }
}

const _: () = {
    let mut i = 0;
    while i < CALLS.len() {
        assert!(CALLS[i].call.0 as usize == i, "calls are numbered without gaps, in order");
        assert!(CALLS[i].arguments.len() <= 5);
        i += 1;
    }
};

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.description() {
            Some(description) => f.write_str(description.name),
            None => write!(f, "Call({})", self.0),
        }
    }
}

/// The most bytes that one `CONSOLE_WRITE` takes.
pub const CONSOLE_WRITE_MAX: u64 = 64 << 10;

/// The most bytes that one `CONSOLE_READ` gives.
pub const CONSOLE_READ_MAX: u64 = 4096;

/// The most entries that one `MULTICALL` takes.
pub const MULTICALL_MAX: u64 = 128;

/// The most bytes of message, or of file name, in a [`PanicReport`].
pub const PANIC_TEXT_MAX: u64 = 4096;

/// A deadline that never comes, for `block` and `TIMER_SET`.
pub const NEVER: u64 = u64::MAX;

/// The value that `block` gives: why it came back.
pub mod woken_by {
    /// An unmasked event is pending, or the call came back early; the caller looks.
    pub const EVENT: u64 = 0;
    /// The deadline has passed.
    pub const DEADLINE: u64 = 1;
}

/// One entry of a [`Call::MULTICALL`], 8-byte aligned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MulticallEntry {
    /// In: the call to make.
    pub call: Call,
    /// Out: how it ended.
    pub status: Status,
    /// In: its arguments; unused ones must be zero.
    pub arguments: [u64; 5],
    /// Out: its value.
    pub value: u64,
    /// Zero.
    pub reserved: u64,
}
const _: () =
    assert!(size_of::<MulticallEntry>() == 64 && core::mem::offset_of!(MulticallEntry, value) == 48);

/// Argument of [`Call::PANIC`], 8-byte aligned. Texts are UTF-8; what is not is shown replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PanicReport {
    /// In: the message.
    pub message: GuestPhys,
    /// In: its bytes, at most [`PANIC_TEXT_MAX`].
    pub message_length: u64,
    /// In: the source file's name.
    pub file: GuestPhys,
    /// In: its bytes, at most [`PANIC_TEXT_MAX`]; 0 if the place is not known.
    pub file_length: u64,
    /// In: line in that file, from 1.
    pub line: u32,
    /// In: column in that line, from 1.
    pub column: u32,
}
const _: () = assert!(size_of::<PanicReport>() == 40 && core::mem::offset_of!(PanicReport, line) == 32);
