//! Version, features, console, shutdown, panic and yield.

use crate::{memory_size, outside, phys, raw};
use alloc::vec;
use guest_sdk::hv_abi::call::{CONSOLE_READ_MAX, CONSOLE_WRITE_MAX, PANIC_TEXT_MAX, PanicReport};
use guest_sdk::hv_abi::{ABI_VERSION, Call, GuestPhys, Status};
use guest_sdk::hypercall::console_read;

const HALF: usize = 16;

guest_sdk::tests! {
    "VERSION-001" fn version_gives_the_abi_version() {
        assert_eq!(raw(Call::VERSION, []), Ok(ABI_VERSION.into()));
    }

    "FEATURES-001" fn features_are_those_of_boot_information_each_time() {
        let expected = guest_sdk::boot::info().features.bits();
        assert_eq!(raw(Call::FEATURES, []), Ok(expected));
        assert_eq!(raw(Call::FEATURES, []), Ok(expected));
    }

    "CONSOLE_WRITE-002 CONSOLE_WRITE-004" fn console_write_writes_all_and_gives_the_length() {
        let text = vec![b'x'; CONSOLE_WRITE_MAX as usize];
        let at = phys(&text[0]);
        assert_eq!(raw(Call::CONSOLE_WRITE, [at, 1]), Ok(1));
        assert_eq!(raw(Call::CONSOLE_WRITE, [at, CONSOLE_WRITE_MAX]), Ok(CONSOLE_WRITE_MAX));
    }

    "CONSOLE_WRITE-003" fn console_write_of_nothing_succeeds() {
        assert_eq!(raw(Call::CONSOLE_WRITE, [phys(&0_u64), 0]), Ok(0));
    }

    "CONSOLE_WRITE-005" fn console_write_of_too_much_is_out_of_range() {
        for length in [CONSOLE_WRITE_MAX + 1, 1 << 32, u64::MAX] {
            assert_eq!(raw(Call::CONSOLE_WRITE, [phys(&0_u64), length]), Err(Status::OUT_OF_RANGE), "{length}");
        }
    }

    "CONSOLE_WRITE-006" fn console_write_outside_memory_is_a_bad_address() {
        for start in outside(64) {
            assert_eq!(raw(Call::CONSOLE_WRITE, [start, 64]), Err(Status::BAD_ADDRESS), "{start:#x}");
        }
    }

    "CONSOLE_WRITE-006" fn console_write_up_to_the_last_byte_of_memory_succeeds() {
        assert_eq!(raw(Call::CONSOLE_WRITE, [memory_size() - 4, 4]), Ok(4));
        assert_eq!(raw(Call::CONSOLE_WRITE, [memory_size() - 3, 4]), Err(Status::BAD_ADDRESS));
    }

    "CONSOLE_READ-005 CONSOLE_READ-007" fn console_read_finds_nothing_where_nobody_types() {
        let mut buffer = [7_u8; 16];
        for length in [16, 1, 0] {
            assert_eq!(console_read(&mut buffer[..length]), Err(Status::NOT_FOUND), "{length}");
        }
        assert_eq!(raw(Call::CONSOLE_READ, [phys(&buffer), CONSOLE_READ_MAX + 1]), Err(Status::OUT_OF_RANGE));
        assert_eq!(buffer, [7; 16]);
    }

    "SHUTDOWN-002" fn shutdown_with_a_wide_code_goes_on() {
        for code in [256, 1 << 32, u64::MAX] {
            assert_eq!(raw(Call::SHUTDOWN, [code]), Err(Status::BAD_ARGUMENT), "{code}");
        }
    }

    "SHUTDOWN-001" fn shutdown_does_not_return() {
        let status = raw(Call::SHUTDOWN, [0]);
        panic!("it returned {status:?}");
    }

    "PANIC-002" fn a_panic_report_outside_memory_or_misaligned_goes_on() {
        let report = [PanicReport::default(); 2];
        for start in outside(size_of::<PanicReport>() as u64).into_iter().chain([phys(&report) + 4, phys(&report) + 1]) {
            assert_eq!(raw(Call::PANIC, [start]), Err(Status::BAD_ADDRESS), "{start:#x}");
        }
    }

    "PANIC-003" fn a_panic_text_outside_memory_goes_on() {
        for start in outside(HALF as u64) {
            let message = PanicReport { message: GuestPhys(start), message_length: 16, ..PanicReport::default() };
            assert_eq!(raw(Call::PANIC, [phys(&message)]), Err(Status::BAD_ADDRESS), "{start:#x}");
            let file = PanicReport { file: GuestPhys(start), file_length: 16, ..PanicReport::default() };
            assert_eq!(raw(Call::PANIC, [phys(&file)]), Err(Status::BAD_ADDRESS), "{start:#x}");
        }
    }

    "PANIC-004" fn a_panic_text_that_is_too_long_goes_on() {
        for length in [PANIC_TEXT_MAX + 1, u64::MAX] {
            let message = PanicReport { message_length: length, ..PanicReport::default() };
            assert_eq!(raw(Call::PANIC, [phys(&message)]), Err(Status::OUT_OF_RANGE), "{length}");
            let file = PanicReport { file_length: length, ..PanicReport::default() };
            assert_eq!(raw(Call::PANIC, [phys(&file)]), Err(Status::OUT_OF_RANGE), "{length}");
        }
    }

    "YIELD-001" fn yield_goes_on_without_an_event() {
        (0..100).for_each(|_| assert_eq!(raw(Call::YIELD, []), Ok(0)));
    }
}
