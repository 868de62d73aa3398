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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{self, End};
    use core::convert::Infallible;

    fn ends(main: impl FnOnce() -> u8) -> End {
        fake::run(|| exit(main()))
    }

    #[test]
    fn exit_ends_the_guest_wherever_it_is() {
        fn deep(levels: u8) {
            if levels == 0 {
                exit(255);
            }
            crate::events::without_upcalls(|| deep(levels - 1));
        }
        assert_eq!(fake::run(|| deep(5)), End::Shutdown(255));
    }

    #[test]
    fn what_main_returns_becomes_the_code() {
        assert_eq!(ends(|| ().code()), End::Shutdown(0));
        assert_eq!(ends(|| 77.code()), End::Shutdown(77));
        assert_eq!(ends(|| Ok::<(), Infallible>(()).code()), End::Shutdown(0));
        assert_eq!(fake::console(), "");
    }

    #[test]
    fn an_error_is_printed_and_code_1() {
        assert_eq!(ends(|| Err("no such \"thing\"").code()), End::Shutdown(1));
        assert_eq!(fake::console(), "error: \"no such \\\"thing\\\"\"\n");
    }
}
