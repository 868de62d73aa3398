//! Acts that read what is typed on the console, for scenarios.

use crate::{outside, phys, raw};
use guest_sdk::console::write;
use guest_sdk::events::Channel;
use guest_sdk::hv_abi::call::CONSOLE_READ_MAX;
use guest_sdk::hv_abi::{Call, Status};
use guest_sdk::hypercall::console_read;

/// Reads all, by lengths of all sorts, and writes it to the console. It waits by the channel alone: an event that does not
/// come is never made up for.
pub fn read_all() {
    let lengths = [1, 2, 3, 100, 4095, CONSOLE_READ_MAX as usize];
    for length in lengths.into_iter().cycle() {
        let mut buffer = [0xa5; CONSOLE_READ_MAX as usize];
        match console_read(&mut buffer[..length]) {
            Ok(0) => Channel::CONSOLE.wait(),
            Ok(read) => {
                assert!(read <= length, "{read} bytes of {length}");
                assert!(buffer[read..].iter().all(|byte| *byte == 0xa5), "it wrote behind {read} bytes");
                write(&buffer[..read]);
            }
            Err(status) => return assert_eq!(status, Status::NOT_FOUND),
        }
    }
}

/// Reads `abc`, then `d`, then the end.
pub fn read_steps() {
    let mut buffer = [0; 8];
    assert!(!Channel::CONSOLE.take(), "nothing was typed");
    assert_eq!(console_read(&mut buffer), Ok(0));

    Channel::CONSOLE.wait();
    assert_eq!((console_read(&mut buffer[..1]), buffer[0]), (Ok(1), b'a'));
    assert_eq!(console_read(&mut []), Ok(0));
    refused(&mut buffer);
    assert_eq!((console_read(&mut buffer), &buffer[..2]), (Ok(2), &b"bc"[..]));
    assert_eq!(console_read(&mut buffer), Ok(0));

    Channel::CONSOLE.wait();
    refused(&mut buffer);
    assert_eq!((console_read(&mut buffer), buffer[0]), (Ok(1), b'd'));
    assert_eq!(console_read(&mut buffer), Ok(0));

    Channel::CONSOLE.wait();
    for length in [8, 1, 0] {
        assert_eq!(console_read(&mut buffer[..length]), Err(Status::NOT_FOUND), "{length}");
    }
}

/// Reads that fail, while there is something to read.
fn refused(buffer: &mut [u8; 8]) {
    let before = *buffer;
    for length in [CONSOLE_READ_MAX + 1, 1 << 32, u64::MAX] {
        assert_eq!(raw(Call::CONSOLE_READ, [phys(buffer), length]), Err(Status::OUT_OF_RANGE), "{length}");
    }
    for start in outside(64) {
        assert_eq!(raw(Call::CONSOLE_READ, [start, 64]), Err(Status::BAD_ADDRESS), "{start:#x}");
    }
    assert_eq!(raw(Call::CONSOLE_READ, [phys(buffer), 8, 1]), Err(Status::BAD_ARGUMENT));
    assert_eq!(*core::hint::black_box(buffer), before);
}
