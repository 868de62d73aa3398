//! The host's own figures: what a crossing is compared with.

#![expect(unsafe_code, reason = "system calls and shared memory without the standard library between")]

use crate::bench::{Figure, Phase};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Nanoseconds for one `operation`, batch by batch.
pub(super) fn batches(samples: usize, count: u32, mut operation: impl FnMut()) -> Vec<f64> {
    (0..count / 4).for_each(|_| operation());
    let mut batch = || {
        let start = Instant::now();
        (0..count).for_each(|_| operation());
        start.elapsed().as_nanos() as f64 / f64::from(count)
    };
    (0..samples).map(|_| batch()).collect()
}

/// Samples of something that is slower the first times, which do not count.
pub(super) fn warmed(samples: usize, once: impl FnMut() -> f64) -> Vec<f64> {
    const FIRST: usize = 3;
    std::iter::repeat_with(once).skip(FIRST).take(samples).collect()
}

/// A system call that does next to nothing.
pub(super) fn system_call(phase: Phase) -> Figure {
    let samples = batches(21, 20_000, || {
        // SAFETY: `getppid` has no arguments and no effects.
        unsafe { libc::syscall(libc::SYS_getppid) };
    });
    Figure::new("host: system call (getppid)", "ns", phase, samples)
}

/// Reading the clock through the vDSO.
pub(super) fn clock(phase: Phase) -> Figure {
    let samples = batches(21, 100_000, || {
        std::hint::black_box(rustix::time::clock_gettime(rustix::time::ClockId::Monotonic));
    });
    Figure::new("host: clock_gettime", "ns", phase, samples)
}

/// A cache line to another core and back.
pub(super) fn cache_line(phase: Phase) -> Figure {
    const ROUNDS: u32 = 200_000;
    const SAMPLES: u32 = 11;
    let word = AtomicU32::new(0);
    let mut samples = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0..ROUNDS * SAMPLES {
                while word.load(Ordering::Acquire) != i * 2 + 1 {
                    std::hint::spin_loop();
                }
                word.store(i * 2 + 2, Ordering::Release);
            }
        });
        for sample in 0..SAMPLES {
            let start = Instant::now();
            for i in sample * ROUNDS..(sample + 1) * ROUNDS {
                word.store(i * 2 + 1, Ordering::Release);
                while word.load(Ordering::Acquire) != i * 2 + 2 {
                    std::hint::spin_loop();
                }
            }
            samples.push(start.elapsed().as_nanos() as f64 / f64::from(ROUNDS));
        }
    });
    Figure::new("host: cache line there and back", "ns", phase, samples)
}

/// A futex ping-pong between two processes, there and back.
pub(super) fn futex_ping_pong(phase: Phase) -> Figure {
    const ROUNDS: u32 = 5_000;
    const SAMPLES: u32 = 11;
    let words = shared_words();
    let (ping, pong) = (&words[0], &words[1]);
    // SAFETY: the child makes only system calls, on memory that is shared and lives, and leaves by `_exit`.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "the host refuses a process");
    if child == 0 {
        answer(ping, pong, ROUNDS * SAMPLES);
        // SAFETY: ends the child without running the parent's destructors.
        unsafe { libc::_exit(0) };
    }
    let samples = ask(ping, pong, ROUNDS, SAMPLES);
    // SAFETY: waits for our own child; the status is not wanted.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    Figure::new("host: futex there and back, two processes", "ns", phase, samples)
}

/// The same between two threads of one process.
pub(super) fn thread_ping_pong(phase: Phase) -> Figure {
    const ROUNDS: u32 = 5_000;
    const SAMPLES: u32 = 11;
    let words = shared_words();
    let (ping, pong) = (words[0], words[1]);
    let samples = std::thread::scope(|scope| {
        scope.spawn(|| answer(ping, pong, ROUNDS * SAMPLES));
        ask(ping, pong, ROUNDS, SAMPLES)
    });
    Figure::new("host: futex there and back, two threads", "ns", phase, samples)
}

/// Asks so many times in each sample, and gives what a round took in each, in nanoseconds.
fn ask(ping: &AtomicU32, pong: &AtomicU32, rounds: u32, samples: u32) -> Vec<f64> {
    let sample = |sample: u32| {
        let start = Instant::now();
        for i in sample * rounds..(sample + 1) * rounds {
            tell(ping, i + 1);
            wait_for(pong, i + 1);
        }
        start.elapsed().as_nanos() as f64 / f64::from(rounds)
    };
    (0..samples).map(sample).collect()
}

/// The other side of [`ask`].
fn answer(ping: &AtomicU32, pong: &AtomicU32, times: u32) {
    for i in 0..times {
        wait_for(ping, i + 1);
        tell(pong, i + 1);
    }
}

fn wait_for(word: &AtomicU32, value: u32) {
    loop {
        let now = word.load(Ordering::Acquire);
        if now == value {
            return;
        }
        let _ = rustix::thread::futex::wait(word, rustix::thread::futex::Flags::empty(), now, None);
    }
}

fn tell(word: &AtomicU32, value: u32) {
    word.store(value, Ordering::Release);
    let _ = rustix::thread::futex::wake(word, rustix::thread::futex::Flags::empty(), 1);
}

/// Two words on cache lines of their own, shared with children.
fn shared_words() -> [&'static AtomicU32; 2] {
    // SAFETY: a new anonymous mapping, zero, page-aligned, never unmapped: good for atomics that live for ever.
    unsafe {
        let page = libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        assert_ne!(page, libc::MAP_FAILED, "the host refuses a page");
        [&*page.cast::<AtomicU32>(), &*page.byte_add(128).cast::<AtomicU32>()]
    }
}

/// From a wake-up until the sleeping thread runs.
pub(super) fn wake(phase: Phase, samples: usize) -> Figure {
    let (word, ran) = (AtomicU32::new(0), std::sync::atomic::AtomicU64::new(0));
    let mut times = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0..samples as u32 {
                wait_for(&word, i + 1);
                ran.store(hv_core::clock::tsc(), Ordering::Release);
            }
        });
        for i in 0..samples as u32 {
            std::thread::sleep(Duration::from_micros(500));
            ran.store(0, Ordering::Relaxed);
            let sent = hv_core::clock::tsc();
            tell(&word, i + 1);
            let came = loop {
                match ran.load(Ordering::Acquire) {
                    0 => std::thread::yield_now(),
                    came => break came,
                }
            };
            times.push(to_ns(came.saturating_sub(sent)));
        }
    });
    Figure::new("host: wake-up of a sleeping thread", "ns", phase, times)
}

/// Nanoseconds of ticks of the time-stamp counter.
pub(super) fn to_ns(ticks: u64) -> f64 {
    ticks as f64 * 1e9 / hv_core::clock::tsc_hz() as f64
}

/// How late a sleep ends.
pub(super) fn sleep(phase: Phase) -> Figure {
    let late = || {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let deadline = Duration::new(now.tv_sec as u64, now.tv_nsec as u32) + Duration::from_millis(2);
        let request =
            libc::timespec { tv_sec: deadline.as_secs() as i64, tv_nsec: deadline.subsec_nanos().into() };
        // SAFETY: reads one `timespec`, which lives; writes nothing, since the sleep is absolute.
        unsafe {
            libc::clock_nanosleep(libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME, &request, std::ptr::null_mut())
        };
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let now = Duration::new(now.tv_sec as u64, now.tv_nsec as u32);
        now.saturating_sub(deadline).as_nanos() as f64
    };
    Figure::new("host: lateness of clock_nanosleep", "ns", phase, (0..101).map(|_| late()).collect())
}

/// Starting a static program that prints a line, until it is gone.
pub(super) fn spawn(phase: Phase) -> Figure {
    use std::os::fd::AsRawFd;
    let file = tiny_program(EXIT);
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let once = || {
        let start = Instant::now();
        let output = Command::new(&path).output().expect("a tiny static program can be run");
        assert_eq!(output.stdout, b"hello\n");
        start.elapsed().as_nanos() as f64 / 1000.0
    };
    Figure::new("host: fork + exec of a static hello", "us", phase, warmed(51, once))
}

/// `exit(0)`.
const EXIT: [u8; 9] = [
    0xb8, 60, 0, 0, 0, // mov eax, 60
    0x31, 0xff, // xor edi, edi
    0x0f, 0x05, // syscall
];

/// `pause()`, for ever: no signal that has a handler comes.
const PAUSE: [u8; 9] = [
    0xb8, 34, 0, 0, 0, // mov eax, 34
    0x0f, 0x05, // syscall
    0xeb, 0xf7, // jmp to the start
];

/// A program that prints a line and waits.
pub(super) fn waiting_program() -> rustix::fd::OwnedFd {
    tiny_program(PAUSE)
}

/// An ELF file of one segment: `write(1, "hello\n", 6)`, and what comes after that.
fn tiny_program(then: [u8; 9]) -> rustix::fd::OwnedFd {
    const BASE: u64 = 0x40_0000;
    let print: &[u8] = &[
        0xb8, 1, 0, 0, 0, // mov eax, 1
        0xbf, 1, 0, 0, 0, // mov edi, 1
        0x48, 0x8d, 0x35, 16, 0, 0, 0, // lea rsi, [rip + 16]
        0xba, 6, 0, 0, 0, // mov edx, 6
        0x0f, 0x05, // syscall
    ];
    let code = [print, &then, b"hello\n"].concat();
    let size = 120 + code.len() as u64;
    let mut image = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 62, 0, 1, 0, 0, 0];
    for word in [BASE + 120, 64, 0] {
        image.extend_from_slice(&u64::to_le_bytes(word)); // entry, program headers, section headers
    }
    image.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    image.extend_from_slice(&[1, 0, 0, 0, 5, 0, 0, 0]); // PT_LOAD, readable and executable
    for word in [0, BASE, BASE, size, size, 4096] {
        image.extend_from_slice(&u64::to_le_bytes(word));
    }
    image.extend_from_slice(&code);
    let file = rustix::fs::memfd_create("tiny", rustix::fs::MemfdFlags::CLOEXEC).expect("a file in memory");
    rustix::io::pwrite(&file, &image, 0).expect("a file in memory can be written");
    file
}
