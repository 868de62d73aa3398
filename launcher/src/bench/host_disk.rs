//! Reads and writes of a file on the host, as a guest makes them of a disk: one at a time by `pread` and `pwrite`, many at once by
//! `io_uring`; and fio's figures, where it is installed.

#![expect(unsafe_code, reason = "requests to io_uring")]

use crate::bench::{Figure, Phase};
use io_uring::{IoUring, opcode, types};
use serde_json::Value;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// How a file is read or written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Access {
    pub write: bool,
    /// Of a request.
    pub bytes: usize,
    pub random: bool,
    /// How many requests at once.
    pub depth: usize,
    /// How many of them in a batch.
    pub count: usize,
    /// Past the page cache.
    pub direct: bool,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operation = if self.write { "write" } else { "read" };
        let size = if self.bytes < 1 << 20 { "4 KiB" } else { "1 MiB" };
        let order = if self.random { "random" } else { "sequential" };
        let direct = if self.direct { ", direct" } else { "" };
        write!(f, "{operation} {size}, {order}, depth {}{direct}", self.depth)
    }
}

/// Microseconds for a request.
pub(super) fn measure(phase: Phase, samples: usize, path: &Path, access: Access) -> Figure {
    let mut open = File::options();
    open.read(true).write(true);
    if access.direct {
        open.custom_flags(libc::O_DIRECT);
    }
    let file = open.open(path).expect("the benchmark's file");
    let places = file.metadata().expect("it is open").len() / access.bytes as u64;
    let mut random = fastrand::Rng::with_seed(1);
    let mut buffers = Buffers::new(access);
    let mut batch = || {
        let mut turn = 0;
        let mut offset = || {
            turn += 1;
            let place = if access.random { random.u64(..places) } else { turn % places };
            place * access.bytes as u64
        };
        let start = Instant::now();
        if access.depth == 1 {
            one_at_a_time(&file, access, &mut buffers, &mut offset).expect("the file can be used");
        } else {
            many_at_once(&file, access, &mut buffers, &mut offset).expect("the host has io_uring");
        }
        start.elapsed().as_secs_f64() * 1e6 / access.count as f64
    };
    batch();
    let us = (0..samples).map(|_| batch()).collect();
    Figure::new(&format!("{access}, on the host"), "us", phase, us)
}

/// A buffer for each request, aligned as direct I/O wants it.
struct Buffers {
    memory: Vec<u8>,
    first: usize,
    size: usize,
}

impl Buffers {
    fn new(access: Access) -> Self {
        let memory = vec![0x5a; access.bytes * access.depth + 4096];
        let first = memory.as_ptr().align_offset(4096);
        Self { memory, first, size: access.bytes }
    }

    fn get(&mut self, number: usize) -> &mut [u8] {
        &mut self.memory[self.first + number * self.size..][..self.size]
    }
}

fn one_at_a_time(
    file: &File,
    access: Access,
    buffers: &mut Buffers,
    offset: &mut impl FnMut() -> u64,
) -> io::Result<()> {
    for _ in 0..access.count {
        if access.write {
            file.write_all_at(buffers.get(0), offset())?;
        } else {
            file.read_exact_at(buffers.get(0), offset())?;
        }
    }
    Ok(())
}

fn many_at_once(
    file: &File,
    access: Access,
    buffers: &mut Buffers,
    offset: &mut impl FnMut() -> u64,
) -> io::Result<()> {
    let mut ring = IoUring::new(access.depth as u32)?;
    let mut free: Vec<usize> = (0..access.depth).collect();
    let (mut begun, mut done) = (0, 0);
    while done < access.count {
        while begun < access.count
            && let Some(number) = free.pop()
        {
            let (file, buffer) = (types::Fd(file.as_raw_fd()), buffers.get(number));
            let (start, length) = (buffer.as_mut_ptr(), buffer.len() as u32);
            let entry = if access.write {
                opcode::Write::new(file, start, length).offset(offset()).build()
            } else {
                opcode::Read::new(file, start, length).offset(offset()).build()
            };
            // SAFETY: the buffer lives until all requests are done, at the end of this function, and is this request's alone.
            unsafe { ring.submission().push(&entry.user_data(number as u64)) }.map_err(io::Error::other)?;
            begun += 1;
        }
        ring.submit_and_wait(1)?;
        for entry in ring.completion() {
            assert_eq!(entry.result(), access.bytes as i32, "a whole request is served");
            free.push(entry.user_data() as usize);
            done += 1;
        }
    }
    Ok(())
}

/// What fio says of the same; `None` if it is not installed.
pub(super) fn fio(phase: Phase, path: &Path, access: Access) -> Option<Figure> {
    let operation = match (access.random, access.write) {
        (false, false) => "read",
        (false, true) => "write",
        (true, false) => "randread",
        (true, true) => "randwrite",
    };
    let engine = if access.depth == 1 { "psync" } else { "io_uring" };
    let output = Command::new("fio")
        .args(["--name=hv", "--output-format=json", "--time_based", "--runtime=1", "--overwrite=1"])
        .arg(format!("--filename={}", path.display()))
        .arg(format!("--rw={operation}"))
        .arg(format!("--bs={}", access.bytes))
        .arg(format!("--iodepth={}", access.depth))
        .arg(format!("--direct={}", u8::from(access.direct)))
        .arg(format!("--ioengine={engine}"))
        .arg("--invalidate=0")
        .output()
        .ok()?;
    let json: Value = serde_json::from_slice(&output.stdout).ok()?;
    let side = if access.write { "write" } else { "read" };
    let per_second = json["jobs"][0][side]["iops"].as_f64()?;
    Some(Figure::new(&format!("{access}, fio"), "us", phase, vec![1e6 / per_second]))
}
