//! Ending the guest.

/// Ends the VM with an exit code, which becomes that of `hv run`.
pub fn exit(code: u8) -> ! {
    crate::hypercall::shutdown(code)
}

/// What a guest's `main` may return: nothing, which is code 0, or a code.
pub trait Termination {
    /// The exit code.
    fn code(self) -> u8;
}

impl Termination for () {
    fn code(self) -> u8 {
        0
    }
}

impl Termination for u8 {
    fn code(self) -> u8 {
        self
    }
}

impl Termination for core::convert::Infallible {
    fn code(self) -> u8 {
        match self {}
    }
}

impl<E: core::fmt::Debug> Termination for Result<(), E> {
    /// An error is printed, and is code 1.
    fn code(self) -> u8 {
        match self {
            Ok(()) => 0,
            Err(error) => {
                crate::println!("error: {error:?}");
                1
            }
        }
    }
}
