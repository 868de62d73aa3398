//! Writes to a port of the console device.

use alloc::vec;
use guest_sdk::print;
use guest_sdk::time::Instant;
use pv_drivers::console::Console;
use pv_drivers::embedded_io::Write;

/// Prints picoseconds for a MiB, batch by batch.
pub fn measure(samples: usize) {
    const BATCH: u64 = 32;
    let console = Console::find().expect("a console");
    let mut port = console.port(0).expect("its first port");
    let mebibyte = vec![b'x'; 1 << 20];
    for _ in 0..samples {
        let start = Instant::now();
        (0..BATCH).for_each(|_| Write::write_all(&mut port, &mebibyte).expect("the host reads"));
        Write::flush(&mut port).expect("the host reads");
        print!("{} ", start.elapsed().as_nanos() as u64 * 1000 / BATCH);
    }
}
