//! Reads and writes of a disk, many at a time.

use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::Cell;
use guest_sdk::print;
use guest_sdk::task::Executor;
use guest_sdk::time::Instant;
use pv_drivers::block::{Block, SECTOR};

/// What a run does.
#[derive(Clone, Copy)]
struct Run {
    write: bool,
    /// Bytes of a request.
    size: usize,
    random: bool,
    /// Requests of a batch.
    count: usize,
}

/// Prints picoseconds for one request, batch by batch.
pub fn measure<'a>(samples: usize, mut arguments: impl Iterator<Item = &'a str>) {
    let write = arguments.next() == Some("write");
    let mut number = || arguments.next().and_then(|n| n.parse().ok()).expect("a size, a depth and a count");
    let (size, depth, count) = (number(), number(), number());
    let run = Run { write, size, random: arguments.next() == Some("random"), count };
    let disk = Rc::new(Block::find().expect("a disk"));
    let mut buffers: Vec<_> = (0..depth).map(|_| Cell::new(vec![0x5a; size])).collect();
    batch(&disk, run, &mut buffers);
    for _ in 0..samples {
        let start = Instant::now();
        batch(&disk, run, &mut buffers);
        print!("{} ", start.elapsed().as_nanos() as u64 * 1000 / count as u64);
    }
}

/// One task for each buffer, which takes the next request until all are made.
fn batch(disk: &Rc<Block>, run: Run, buffers: &mut Vec<Cell<Vec<u8>>>) {
    let places = disk.sectors() / (run.size / SECTOR) as u64;
    let next = Rc::new(Cell::new(0));
    let executor = Executor::new();
    let back = Rc::new(Cell::new(Vec::new()));
    for (number, buffer) in buffers.drain(..).enumerate() {
        let (disk, next, back) = (disk.clone(), next.clone(), back.clone());
        let mut random = fastrand::Rng::with_seed(number as u64);
        executor.spawner().spawn(async move {
            let mut buffer = buffer.into_inner();
            while next.get() < run.count {
                let turn = next.get() as u64;
                next.set(next.get() + 1);
                let place = if run.random { random.u64(..places) } else { turn % places };
                let sector = place * (run.size / SECTOR) as u64;
                let done = if run.write {
                    disk.write(sector, buffer).await
                } else {
                    disk.read(sector, buffer).await
                };
                buffer = done.expect("the disk works");
            }
            let mut all = back.take();
            all.push(Cell::new(buffer));
            back.set(all);
        });
    }
    executor.run();
    *buffers = back.take();
}
