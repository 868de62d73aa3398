//! `hv bench device`: what devices do, beside their counterparts on the host.

use crate::bench::host_disk::{self, Access};
use crate::bench::progress::Steps;
use crate::bench::{Figure, Phase, guest, network, store};
use hv_core::DeviceConfig;
use hv_core::devices::{
    Access as Rights, Block, BlockOptions, Console, DeviceStats, Port, SharedFolder, Window,
};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Requests: bytes, whether anywhere, how many at once, and how many of them in a batch.
const SHAPES: [(usize, bool, usize, usize); 4] = [
    (4 << 10, true, 1, 2000),
    (4 << 10, true, 32, 8000),
    (1 << 20, false, 1, 256),
    (1 << 20, false, 32, 256),
];

/// In the host's page cache, and past it.
const CACHES: [bool; 2] = [false, true];

/// Of files in a shared folder, as above.
const FOLDER_SHAPES: [(usize, bool, usize); 2] = [(4 << 10, true, 2000), (1 << 20, false, 256)];

const CONSOLE_STEPS: u32 = 1;

pub(super) fn steps() -> u32 {
    (SHAPES.len() * 2 * CACHES.len() + FOLDER_SHAPES.len() * 2) as u32
        + CONSOLE_STEPS
        + network::STEPS
        + store::STEPS
}

pub(super) fn measure(phase: Phase, quick: bool, progress: &mut Steps) -> Vec<Figure> {
    let size = if quick { 32 << 20 } else { 256 << 20 };
    let file = DiskFile::new(size);
    let mut figures = Vec::new();
    for direct in CACHES {
        for write in [false, true] {
            for (bytes, random, depth, count) in SHAPES {
                // The disk itself is the limit past the page cache: fewer say as much.
                let count = if direct { (count / 8).max(32) } else { count };
                let access = Access { write, bytes, random, depth, count, direct };
                progress.next(&access.to_string());
                figures.extend(disk(phase, if quick { 3 } else { 11 }, &file.0, access));
            }
        }
    }
    for write in [false, true] {
        for (bytes, random, count) in FOLDER_SHAPES {
            let access = Access { write, bytes, random, depth: 1, count, direct: false };
            progress.next(&format!("{access}, shared folder"));
            figures.extend(folder(phase, if quick { 3 } else { 11 }, &file, access));
        }
    }
    progress.next("console");
    figures.extend(console(phase, if quick { 3 } else { 11 }));
    progress.next("networks");
    figures.extend(network::measure(phase, quick, file.directory()));
    progress.next("kv and redis-server");
    figures.extend(store::measure(phase, quick, file.directory()));
    figures
}

/// A file for a disk, alone in a directory, that goes with this value.
struct DiskFile(PathBuf);

impl DiskFile {
    fn new(size: usize) -> Self {
        let directory = std::env::temp_dir().join(format!("hv-bench-disk-{}", std::process::id()));
        std::fs::create_dir(&directory).expect("the temporary directory can be written");
        let path = directory.join("data");
        // Written once, so that what is measured is reading and writing, not finding room.
        std::fs::write(&path, vec![0xa5; size]).expect("the temporary directory has room for a disk");
        Self(path)
    }
}

impl DiskFile {
    fn directory(&self) -> &Path {
        self.0.parent().expect("it is in a directory")
    }
}

impl Drop for DiskFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.directory());
    }
}

/// The guest's figure beside the host's, fio's if there is one, and what it took of doorbells and interrupts.
fn disk(phase: Phase, samples: usize, path: &Path, access: Access) -> Vec<Figure> {
    let Ok(block) = Block::open(path, BlockOptions { direct: access.direct, ..BlockOptions::default() })
    else {
        return Vec::new(); // no direct I/O in the temporary directory
    };
    let host = host_disk::measure(phase, samples, path, access);
    let fio = host_disk::fio(phase, path, access);
    let arguments = [
        "disk",
        &samples.to_string(),
        if access.write { "write" } else { "read" },
        &access.bytes.to_string(),
        &access.depth.to_string(),
        &access.count.to_string(),
        if access.random { "random" } else { "sequential" },
    ];
    let (ps, stats) = guest::with_devices(vec![DeviceConfig::Block(block)], &arguments);
    let us = ps.into_iter().map(|ps| ps / 1e6).collect();
    let guest = Figure::new(&format!("{access}, in a guest"), "us", phase, us).against(&host);
    // At least 0.9 of the host's bytes a second, and 0.8 of its requests.
    let guest = match (access.random, access.depth) {
        (false, _) => guest.ratio_at_most(1.0 / 0.9),
        (true, 32) => guest.ratio_at_most(1.0 / 0.8),
        _ => guest,
    };
    let mut figures = vec![host];
    figures.extend(fio);
    figures.push(guest);
    if access.depth > 1 {
        figures.extend(events(phase, access, &stats[0]));
    }
    figures
}

/// The guest's figure for a file in a folder, beside the host's for the same file.
fn folder(phase: Phase, samples: usize, file: &DiskFile, access: Access) -> [Figure; 2] {
    let host = host_disk::measure(phase, samples, &file.0, access);
    let host = Figure { name: format!("{access}, of a file in the folder, on the host"), ..host };
    let arguments = [
        "folder",
        &samples.to_string(),
        if access.write { "write" } else { "read" },
        &access.bytes.to_string(),
        &access.count.to_string(),
        if access.random { "random" } else { "sequential" },
    ];
    let shared = SharedFolder::open(file.directory(), "share", Rights::ReadWrite);
    let shared = DeviceConfig::FileSystem(shared.expect("the directory can be shared"));
    let (ps, _) = guest::with_devices(vec![shared], &arguments);
    let us = ps.into_iter().map(|ps| ps / 1e6).collect();
    let guest = Figure::new(&format!("{access}, in a shared folder"), "us", phase, us).against(&host);
    [host, guest]
}

/// What a guest writes to its terminal, beside what goes through a pair of sockets on the host; somebody reads at the other end.
fn console(phase: Phase, samples: usize) -> [Figure; 2] {
    const MEBIBYTES: usize = 32;
    let drained = || {
        let (near, mut far) = UnixStream::pair().expect("a pair of sockets");
        std::thread::spawn(move || std::io::copy(&mut far, &mut std::io::sink()));
        near
    };
    let mut near = drained();
    let bytes = vec![b'x'; 1 << 20];
    let batch = |_| {
        let start = Instant::now();
        (0..MEBIBYTES).for_each(|_| near.write_all(&bytes).expect("the other end reads"));
        start.elapsed().as_secs_f64() * 1e6 / MEBIBYTES as f64
    };
    let host = Figure::new("a MiB through a pair of sockets", "us", phase, (0..samples).map(batch).collect());
    let ports = vec![Port::streams("", None, drained().into())];
    let device = DeviceConfig::Console(Console::new(ports, Window::new().expect("a descriptor")));
    let (ps, _) = guest::with_devices(vec![device], &["console", &samples.to_string()]);
    let us = ps.into_iter().map(|ps| ps / 1e6).collect();
    [host.clone(), Figure::new("a MiB to a console's port", "us", phase, us).against(&host)]
}

fn events(phase: Phase, access: Access, stats: &DeviceStats) -> [Figure; 2] {
    let per_request = |events: u64| vec![events as f64 / stats.requests.max(1) as f64];
    let row = |what: &str, events| {
        Figure::new(&format!("{access}: {what} a request"), "", phase, per_request(events)).at_most(0.1)
    };
    [row("doorbells", stats.doorbells), row("interrupts", stats.interrupts)]
}
