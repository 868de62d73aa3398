//! Reads and writes of a file in a shared folder, one at a time.

use alloc::vec;
use guest_sdk::hv_abi::fuse::open;
use guest_sdk::print;
use guest_sdk::time::Instant;
use pv_drivers::fs::{Error, Handle, SharedFolder};

/// Prints picoseconds for one request, batch by batch. The folder has a file `data`.
pub fn measure<'a>(samples: usize, mut arguments: impl Iterator<Item = &'a str>) {
    let write = arguments.next() == Some("write");
    let mut number = || arguments.next().and_then(|n| n.parse().ok()).expect("a size and a count");
    let (size, count) = (number(), number());
    let random = arguments.next() == Some("random");
    let folder = SharedFolder::find().expect("a shared folder");
    let (file, length) = open_data(&folder).expect("a file in it");
    let mut places =
        Places { next: 0, places: length / size as u64, random: random.then(|| fastrand::Rng::with_seed(1)) };
    let mut buffer = vec![0x5a; size];
    for sample in 0..=samples {
        let start = Instant::now();
        for _ in 0..count {
            let at = places.next() * size as u64;
            let done = match write {
                true => file.write(at, buffer).blocking().map(|(_, buffer)| buffer),
                false => file.read(at, buffer).blocking(),
            };
            buffer = done.expect("the folder works");
        }
        // The first is to warm up.
        if sample > 0 {
            print!("{} ", start.elapsed().as_nanos() as u64 * 1000 / count as u64);
        }
    }
}

fn open_data(folder: &SharedFolder) -> Result<(Handle, u64), Error> {
    let (node, attributes) = folder.root().lookup("data")?.blocking()?;
    Ok((node.open(open::READ_WRITE).blocking()?, attributes.size))
}

struct Places {
    next: u64,
    places: u64,
    random: Option<fastrand::Rng>,
}

impl Places {
    fn next(&mut self) -> u64 {
        self.next += 1;
        match &mut self.random {
            Some(random) => random.u64(..self.places),
            None => self.next % self.places,
        }
    }
}
