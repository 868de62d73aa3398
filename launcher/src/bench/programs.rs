//! `hv bench process`: system calls, processes, pipes and memory of programs. One program measures them, `lat`: in the sample
//! guest minios, and on the host. Both are run several times, in turn, so that what else the machine does meets both.

use crate::bench::progress::Steps;
use crate::bench::{Figure, Phase, guest, host, host_signal};
use rustix::fs::{MemfdFlags, memfd_create};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The samples of each row, by its name.
type Samples = BTreeMap<String, Vec<f64>>;

/// How often guest and host take turns.
fn turns(quick: bool) -> u32 {
    if quick { 1 } else { 4 }
}

pub(super) fn steps(quick: bool) -> u32 {
    1 + 2 * turns(quick)
}

pub(super) fn measure(phase: Phase, quick: bool, progress: &mut Steps) -> Vec<Figure> {
    progress.next("signal and futex");
    let signal = host_signal::round_trip(phase);
    let futex = host::futex_ping_pong(phase);
    // Samples of each row a turn, and microseconds that each takes at least.
    let effort = if quick { ["5", "200"] } else { ["7", "5000"] };
    let (mut here, mut there) = (Samples::new(), Samples::new());
    for _ in 0..turns(quick) {
        progress.next("programs of the host");
        add(&mut here, &on_host(effort));
        progress.next("programs of minios");
        add(&mut there, &guest::console("minios", &["-c", &format!("lat {}", effort.join(" "))]));
    }
    rows(phase, signal, futex, &Rows { here, there })
}

/// Runs the program on the host; gives what it printed.
fn on_host(effort: [&str; 2]) -> String {
    let mut file = File::from(memfd_create("lat", MemfdFlags::CLOEXEC).expect("a file in memory"));
    file.write_all(sample_guests::HOST_LAT).expect("a file in memory can be written");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let output = Command::new(&path).arg0("/proc/self/exe").args(effort).output();
    let output = output.unwrap_or_else(|error| panic!("`lat` could not be started on the host: {error}"));
    assert!(output.status.success(), "`lat` failed on the host: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("`lat` prints text")
}

/// Adds what `lat` printed: a sample in each line, after its name.
fn add(samples: &mut Samples, text: &str) {
    for line in text.lines() {
        let sample = line.rsplit_once(' ').and_then(|(name, ns)| Some((name, ns.parse().ok()?)));
        let (name, ns): (_, f64) = sample.unwrap_or_else(|| panic!("`lat` printed `{line}`"));
        assert!(ns.is_finite() && ns >= 0.0, "`lat` printed `{line}`");
        samples.entry(name.to_owned()).or_default().push(ns);
    }
}

/// What was measured.
struct Rows {
    here: Samples,
    there: Samples,
}

impl Rows {
    fn host(&self, name: &str, phase: Phase) -> Figure {
        figure(&self.here, name, &format!("host: {name}"), phase)
    }

    fn guest(&self, name: &str, phase: Phase) -> Figure {
        figure(&self.there, name, name, phase)
    }
}

fn figure(samples: &Samples, name: &str, title: &str, phase: Phase) -> Figure {
    let samples = samples.get(name).unwrap_or_else(|| panic!("`lat` did not measure {name}"));
    Figure::new(title, "ns", phase, samples.clone())
}

/// The rows: what system calls are made of, the ways in which a program of minios can make one, and the rest.
fn rows(phase: Phase, signal: Figure, futex: Figure, rows: &Rows) -> Vec<Figure> {
    const NULL: &str = "lat_syscall null";
    let null = rows.host(NULL, phase);
    let gate = rows.guest(NULL, phase);
    let rewritten = rows.guest("lat_syscall null, rewritten", phase);
    let [gate, rewritten] = [gate, rewritten].map(|figure| match phase {
        Phase::Spare => figure.against(&null).ratio_at_most(2.0),
        Phase::Pinned => figure.against(&futex).ratio_at_most(1.2),
    });
    // The aim: 1.3 times the signal, and the hand-over on top.
    let aim = 1.3 + gate.median / signal.median;
    let trapped = rows.guest("lat_syscall null, trapped", phase).against(&signal).ratio_at_most(aim);
    let mut figures = vec![futex, signal, null, gate, rewritten, trapped];
    let fork_aim = match phase {
        Phase::Spare => 3.0,
        Phase::Pinned => 5.0,
    };
    let others = [
        ("lat_proc fork", Some(fork_aim)),
        ("lat_proc exec", None),
        ("lat_pipe", None),
        ("lat_ctx", None),
        ("touch of fresh memory", Some(1.2)),
    ];
    for (name, aim) in others {
        let host = rows.host(name, phase);
        let guest = rows.guest(name, phase).against(&host);
        let guest = match aim {
            Some(aim) => guest.ratio_at_most(aim),
            None => guest,
        };
        figures.extend([host, guest]);
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_samples_by_name() {
        let mut samples = Samples::new();
        add(&mut samples, "lat_proc fork 81000.5\nlat_pipe 12.0\n");
        add(&mut samples, "lat_pipe 11.5\n");
        assert_eq!(samples["lat_proc fork"], [81000.5]);
        assert_eq!(samples["lat_pipe"], [12.0, 11.5]);
    }

    #[test]
    #[should_panic(expected = "`lat` printed `minios: killed lat (3)`")]
    fn what_is_no_sample_is_a_failure() {
        add(&mut Samples::new(), "lat_pipe 12.0\nminios: killed lat (3)\n");
    }

    #[test]
    #[should_panic(expected = "did not measure lat_pipe")]
    fn a_row_that_is_not_there_is_a_failure() {
        figure(&Samples::new(), "lat_pipe", "lat_pipe", Phase::Spare);
    }
}
