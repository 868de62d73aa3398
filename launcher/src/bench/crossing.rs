//! `hv bench crossing`: hypercalls, traps, upcalls, wake-ups, starts, and what an idle VM costs.

use crate::bench::progress::Steps;
use crate::bench::{Figure, Phase, command, guest, host, host_signal};

pub(super) const STEPS: u32 = 23;

const SAMPLES: usize = 301;

pub(super) fn measure(phase: Phase, progress: &mut Steps) -> Vec<Figure> {
    let mut figures = crossings(phase, progress);
    figures.extend(traces(phase, progress));
    figures.extend(latencies(phase, progress));
    figures.extend(starts(phase, progress));
    progress.next("idle VM, ten seconds");
    figures.extend(command::idle(phase));
    figures
}

/// Hypercall, clock and trap, and the spinning that the hypercalls took.
fn crossings(phase: Phase, progress: &mut Steps) -> Vec<Figure> {
    progress.next("system call");
    let system_call = host::system_call(phase);
    progress.next("futex ping-pong");
    let futex = host::futex_ping_pong(phase);
    progress.next("null hypercall");
    let (null, counters) = guest::picoseconds("null hypercall", phase, "null");
    let per_call = |ns: u64| vec![ns as f64 / counters.hypercalls as f64];
    let host_spin =
        Figure::new("spinning of the monitor per hypercall", "ns", phase, per_call(counters.host_spin_ns));
    let guest_spin =
        Figure::new("spinning of the vCPU per hypercall", "ns", phase, per_call(counters.guest_spin_ns));
    let null = match phase {
        Phase::Spare => null.against(&system_call).ratio_at_most(1.0),
        Phase::Pinned => null.against(&futex).ratio_at_most(1.1),
    };
    progress.next("clock");
    let host_clock = host::clock(phase);
    let (clock, _) = guest::picoseconds("clock read", phase, "clock");
    let clock = clock.against(&host_clock);
    progress.next("trap");
    let signal = host_signal::round_trip(phase);
    let (trap, _) = guest::picoseconds("trap round trip", phase, "trap");
    // The aim: 1.3 times the signal, and the hand-over on top.
    let aim = 1.3 + null.median / signal.median;
    let trap = trap.against(&signal).ratio_at_most(aim);
    let mut figures = vec![system_call, futex];
    if phase == Phase::Spare {
        progress.next("cache line");
        figures.push(host::cache_line(phase));
    }
    figures.extend([null, host_spin, guest_spin, host_clock, clock, signal, trap]);
    figures
}

/// What it costs to be watched, and to have something to tell.
fn traces(phase: Phase, progress: &mut Steps) -> Vec<Figure> {
    progress.next("null hypercall, traced");
    let traced = guest::traced("null hypercall while traced", phase, "null");
    progress.next("marks");
    let (mark, _) = guest::picoseconds("mark of a guest, nobody watches", phase, "mark");
    progress.next("marks, traced");
    let marked = guest::traced("mark of a guest, traced", phase, "mark").at_most(60.0);
    vec![traced, mark, marked]
}

/// From an event until somebody runs.
fn latencies(phase: Phase, progress: &mut Steps) -> Vec<Figure> {
    progress.next("event to oneself");
    let host_self = host_signal::to_oneself(phase, SAMPLES);
    let to_self = guest::nanoseconds("event to oneself until its handler runs", phase, "self");
    let to_self = to_self.against(&host_self);
    progress.next("signal to a running thread");
    let host_running = host_signal::to_running(phase, SAMPLES);
    progress.next("upcall into a running guest");
    let running = guest::upcall("upcall into a running guest", phase, "running", SAMPLES);
    let running = running.against(&host_running);
    progress.next("event into a running vCPU");
    let interrupt = guest::interrupt("event from vCPU to vCPU, which computes", phase, SAMPLES);
    let interrupt = interrupt.against(&host_running);
    progress.next("wake-up of a thread");
    let host_wake = host::wake(phase, SAMPLES);
    progress.next("wake-up of a blocked guest");
    let blocked = guest::upcall("wake-up of a blocked guest by an event", phase, "blocked", SAMPLES);
    let blocked = blocked.against(&host_wake);
    progress.next("futex of two threads");
    let host_ping = host::thread_ping_pong(phase);
    progress.next("event to a blocked vCPU and back");
    let ping = guest::ping("event to a blocked vCPU and back", phase).against(&host_ping).ratio_at_most(1.2);
    progress.next("lateness of sleeps");
    let host_sleep = host::sleep(phase);
    let sleep = guest::nanoseconds("lateness of a guest's sleep", phase, "sleep").against(&host_sleep);
    vec![
        host_self,
        to_self,
        host_running,
        running,
        interrupt,
        host_wake,
        blocked,
        host_ping,
        ping,
        host_sleep,
        sleep,
    ]
}

fn starts(phase: Phase, progress: &mut Steps) -> Vec<Figure> {
    progress.next("fork and exec");
    let spawn = host::spawn(phase);
    progress.next("Vm::start");
    let start = guest::start_to_first_call(phase).against(&spawn).at_most(500.0);
    progress.next("hv run hello");
    let hello = command::run_hello(phase).against(&spawn).at_most(5000.0);
    vec![spawn, start, hello]
}
