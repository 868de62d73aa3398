//! How a call ended: a number on the wire.

use core::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Result of a hypercall as it crosses the boundary; 0 is success. A number with names, not an `enum`: a newer
/// host may send a value that this crate does not know, and it prints as its number.
#[must_use]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Status(pub u32);
const _: () = assert!(size_of::<Status>() == 4);

/// Declares the statuses once: the doc comment is also the message at run time.
macro_rules! statuses {
    ($($(#[doc = $text:literal])+ $number:literal $name:ident;)+) => {
        impl Status {
            $($(#[doc = $text])+ pub const $name: Self = Self($number);)+

            /// Every status this crate knows, in number order.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The status's name in `docs/abi.md`, if this crate knows the number.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 { $($number => Some(stringify!($name)),)+ _ => None }
            }

            /// What the status means and what to do about it.
            pub const fn message(self) -> &'static str {
                match self.0 { $($number => concat!($($text),+),)+ _ => " A status that this SDK cannot name." }
            }
        }
    };
}

statuses! {
    /// Done.
    0 SUCCESS;
    /// This host does not serve the call. Probe with it, or ask for the feature in the image's note.
    1 UNKNOWN_CALL;
    /// An argument has a value that is never valid. Fix the caller; retrying cannot help.
    2 BAD_ARGUMENT;
    /// A guest-physical range is not inside guest memory, or is misaligned. Fix the caller.
    3 BAD_ADDRESS;
    /// An index or length is past the end of what it names. Fix the caller.
    4 OUT_OF_RANGE;
    /// The host is short of something for now. The same call may work later.
    5 BUSY;
    /// A fixed limit of this VM is reached: release something first.
    6 NO_SPACE;
    /// The thing named does not exist, or is closed.
    7 NOT_FOUND;
    /// The call may not stand inside a multicall. Make it by itself.
    8 NOT_IN_MULTICALL;
}

impl Status {
    /// Whether the call did what was asked.
    pub const fn is_success(self) -> bool {
        self.0 == Self::SUCCESS.0
    }

    /// `Ok` for [`Status::SUCCESS`], the status itself otherwise.
    pub const fn ok(self) -> Result<(), Self> {
        if self.is_success() { Ok(()) } else { Err(self) }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "Status({})", self.0),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}:{}", self.message())
    }
}
