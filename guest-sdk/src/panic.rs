//! What a guest's panic does: it tells the host the message and the place, and the VM ends.

use core::fmt::Write;
use core::panic::PanicInfo;
use hv_abi::call::PANIC_TEXT_MAX;

/// Room for the message; what is longer is cut. On the stack, since the heap may be what panicked.
struct Message {
    bytes: [u8; 1024],
    used: usize,
}

const _: () = assert!(1024 <= PANIC_TEXT_MAX);

impl Write for Message {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let room = self.bytes.len() - self.used;
        let mut length = text.len().min(room);
        while !text.is_char_boundary(length) {
            length -= 1;
        }
        self.bytes[self.used..][..length].copy_from_slice(&text.as_bytes()[..length]);
        self.used += length;
        if length == text.len() { Ok(()) } else { Err(core::fmt::Error) } // what follows the cut is left out, too
    }
}

/// Ends the VM with the panic's message and place. `entry!` makes this the panic handler.
pub fn handle(info: &PanicInfo<'_>) -> ! {
    let (file, line, column) = info.location().map_or(("", 0, 0), |l| (l.file(), l.line(), l.column()));
    end(info.message(), file, line, column)
}

/// Ends the VM as panicked. The fake host reports by this, too; in a guest it is a part of [`handle`].
#[inline(always)]
pub(crate) fn end(text: impl core::fmt::Display, file: &str, line: u32, column: u32) -> ! {
    let mut message = Message { bytes: [0; 1024], used: 0 };
    let _ = write!(message, "{text}"); // fails if it is cut
    let _ = crate::hypercall::panic(&message.bytes[..message.used], file.as_bytes(), line, column);
    // The host refused the report, which is a fault of this SDK; the code says so at least.
    crate::hypercall::shutdown(101)
}

#[cfg(test)]
mod tests {
    use crate::fake::{self, End, Place};
    use hv_abi::{Call, Status};
    use std::string::String;

    /// What the report of a panic with this message says.
    fn reported(message: impl core::fmt::Display) -> String {
        match fake::run(|| panic!("{message}")) {
            End::Panicked { message, .. } => message,
            end => panic!("ended as {end:?}"),
        }
    }

    #[test]
    fn a_panic_is_reported_with_its_message_and_place() {
        let line = line!() + 1;
        let end = fake::run(|| assert_eq!(1 + 1, 3, "sums"));
        let place = Place { file: file!().into(), line, column: 32 };
        let message = "assertion `left == right` failed: sums\n  left: 2\n right: 3".into();
        assert_eq!(end, End::Panicked { message, place: Some(place) });
    }

    #[test]
    fn a_message_of_1024_bytes_is_whole_and_a_longer_one_is_cut() {
        assert_eq!(reported(""), "");
        assert_eq!(reported("x".repeat(1023)).len(), 1023);
        assert_eq!(reported("x".repeat(1024)).len(), 1024);
        assert_eq!(reported("x".repeat(1025)), "x".repeat(1024));
        assert_eq!(reported("x".repeat(1 << 20)).len(), 1024);
    }

    #[test]
    fn a_message_is_not_cut_inside_a_character() {
        for before in 1021..=1024 {
            let message = reported("x".repeat(before) + "é€𝄞");
            let expected = match before {
                1021 => "é",
                1022 => "é",
                _ => "",
            };
            assert_eq!(message, "x".repeat(before) + expected, "{before} bytes before");
        }
    }

    #[test]
    fn what_follows_the_cut_is_left_out_even_if_it_would_fit() {
        let long = "x".repeat(1023);
        let (wide, narrow) = (String::from("€"), String::from("y")); // literals would become one piece
        let end = fake::run(|| super::end(format_args!("{long}{wide}{narrow}"), "", 0, 0));
        assert_eq!(end, End::Panicked { message: long, place: None });
    }

    #[test]
    fn a_report_that_the_host_refuses_ends_with_code_101() {
        fake::fail_next(Call::PANIC, Status::BAD_ADDRESS);
        assert_eq!(fake::run(|| panic!("lost")), End::Shutdown(101));
    }

    #[test]
    fn a_panic_in_a_handler_is_the_guests() {
        let end = fake::run(|| {
            let channel = crate::events::Channel::allocate().unwrap();
            channel.on_event(|_| panic!("in a handler"));
            channel.send().unwrap();
        });
        assert!(matches!(end, End::Panicked { message, .. } if message == "in a handler"));
    }
}
