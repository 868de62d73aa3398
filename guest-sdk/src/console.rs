//! Text to the console, and what is typed there.

use core::fmt::{self, Write};
use hv_abi::call::{CONSOLE_READ_MAX, CONSOLE_WRITE_MAX};

/// Prints to the console, as `std`'s `print!` does.
#[macro_export]
macro_rules! print {
    ($($argument:tt)*) => { $crate::console::print(format_args!($($argument)*)) };
}

/// Prints a line to the console, as `std`'s `println!` does. A line of up to 512 bytes is one hypercall.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($argument:tt)*) => { $crate::console::print(format_args!("{}\n", format_args!($($argument)*))) };
}

/// Collects text, so that a line is one hypercall.
struct Buffer {
    bytes: [u8; 512],
    used: usize,
}

impl Buffer {
    fn flush(&mut self) {
        write(&self.bytes[..self.used]);
        self.used = 0;
    }
}

impl Write for Buffer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if text.len() > self.bytes.len() - self.used {
            self.flush();
        }
        if text.len() > self.bytes.len() {
            write(text.as_bytes());
        } else {
            self.bytes[self.used..][..text.len()].copy_from_slice(text.as_bytes());
            self.used += text.len();
        }
        Ok(())
    }
}

/// Writes bytes to the console. What the host refuses is lost: a console has nowhere to report it.
pub fn write(bytes: &[u8]) {
    for chunk in bytes.chunks(CONSOLE_WRITE_MAX as usize) {
        let _ = crate::hypercall::console_write(chunk);
    }
}

/// Reads what was typed, at most as much as fits; 0 if nobody will ever type anything again. `None`: nothing at the moment;
/// [`Channel::CONSOLE`](crate::events::Channel::CONSOLE), once unmasked, fires when there is.
///
/// It is what the keys sent: nothing is shown, and nothing edited. Somebody types only for a guest that has called this.
pub fn read(buffer: &mut [u8]) -> Option<usize> {
    let most = buffer.len().min(CONSOLE_READ_MAX as usize);
    match crate::hypercall::console_read(&mut buffer[..most]) {
        Ok(0) if most > 0 => None,
        Ok(read) => Some(read),
        Err(_) => Some(0), // ended, or this host has no input
    }
}

/// What `print!` calls.
#[doc(hidden)]
pub fn print(arguments: fmt::Arguments<'_>) {
    let mut buffer = Buffer { bytes: [0; 512], used: 0 };
    let _ = buffer.write_fmt(arguments); // fails only if a `Display` does; what came before is printed
    buffer.flush();
}

#[cfg(test)]
mod tests {
    use crate::fake;
    use hv_abi::call::{CONSOLE_READ_MAX, CONSOLE_WRITE_MAX};
    use hv_abi::{Call, Status};
    use std::string::String;
    use std::vec::Vec;

    /// Lengths of the writes since this was last asked; there must be no other calls.
    fn writes() -> Vec<u64> {
        let length = |(call, arguments): (Call, [u64; 5])| {
            assert_eq!(call, Call::CONSOLE_WRITE);
            arguments[1]
        };
        fake::calls().into_iter().map(length).collect()
    }

    #[test]
    fn a_line_is_one_call_however_many_pieces_it_has() {
        crate::println!("{} and {:?} and {:>5}", 1, "two", 3);
        assert_eq!(fake::console(), "1 and \"two\" and     3\n");
        assert_eq!(writes(), [22]);
    }

    #[test]
    fn printing_nothing_makes_no_call() {
        crate::print!("");
        crate::print!("{}{}", "", "");
        super::write(b"");
        assert!(writes().is_empty());
        crate::println!();
        assert_eq!((fake::console().as_str(), writes().as_slice()), ("\n", &[1][..]));
    }

    #[test]
    fn a_line_of_512_bytes_is_one_call_and_a_longer_one_two() {
        for (length, expected) in [(511, &[512][..]), (512, &[512, 1]), (513, &[513, 1]), (600, &[600, 1])] {
            let text = "x".repeat(length);
            crate::println!("{text}");
            assert_eq!(fake::console(), text + "\n");
            assert_eq!(writes(), expected, "a line of {length} and its end");
        }
    }

    #[test]
    fn pieces_keep_their_order_when_one_does_not_fit() {
        let (a, b, c) = ("a".repeat(500), "b".repeat(20), "c".repeat(1000));
        crate::print!("{a}{b}{c}{a}");
        assert_eq!(fake::console(), [&*a, &*b, &*c, &*a].concat());
        assert_eq!(writes(), [500, 20, 1000, 500]);
    }

    #[test]
    fn long_texts_are_cut_where_the_host_takes_no_more() {
        let text = "é".repeat(CONSOLE_WRITE_MAX as usize); // two bytes each
        super::write(text.as_bytes());
        assert_eq!(fake::console(), text);
        assert_eq!(writes(), [CONSOLE_WRITE_MAX, CONSOLE_WRITE_MAX]);
        super::write(&text.as_bytes()[..CONSOLE_WRITE_MAX as usize + 1]);
        assert_eq!(writes(), [CONSOLE_WRITE_MAX, 1]);
    }

    #[test]
    fn what_the_host_refuses_is_lost_and_the_rest_is_not() {
        fake::fail_next(Call::CONSOLE_WRITE, Status::BUSY);
        crate::println!("lost");
        crate::println!("kept");
        assert_eq!(fake::console(), "kept\n");
    }

    #[test]
    fn what_is_typed_is_read_in_pieces_to_its_end() {
        use crate::events::Channel;
        fake::type_text("ab");
        fake::type_text("c");
        let mut buffer = [0; 1];
        let mut text = String::new();
        while let next @ (None | Some(1..)) = super::read(&mut buffer) {
            match next {
                None => Channel::CONSOLE.wait(),
                Some(_) => text.push(buffer[0].into()),
            }
        }
        assert_eq!(text, "abc");
        assert_eq!(super::read(&mut buffer), Some(0));
        fake::finish();
    }

    #[test]
    fn a_large_buffer_is_no_error_and_a_host_without_input_has_none() {
        fake::type_text("ab");
        let mut buffer = [0; CONSOLE_READ_MAX as usize + 1];
        assert_eq!((super::read(&mut buffer), super::read(&mut buffer)), (None, Some(2)));
        fake::type_text("c");
        fake::set_features(hv_abi::Features::EVENTS);
        assert_eq!(super::read(&mut buffer), Some(0));
    }

    #[test]
    fn what_came_before_a_display_that_fails_is_printed() {
        struct Fails;
        impl core::fmt::Display for Fails {
            fn fmt(&self, _: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                Err(core::fmt::Error)
            }
        }
        crate::println!("before {Fails} after");
        assert_eq!(fake::console(), String::from("before "));
    }
}
