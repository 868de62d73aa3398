//! The emulated machine: what it does when it has booted, and what its console says of that.
//!
//! Start at [`Machine::boot`].

use super::packages::Packages;
use super::{Error, Run, cannot};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// The processor. Debian's QEMU looks at the stack of a program's IRETQ as the kernel does, which SMAP forbids, so that is
/// left away.
const PROCESSOR: &str = "EPYC,+svm,+npt,-smap,-smep";
/// One: with several, a guest of the guest now and then finds its page tables to have reserved bits set, which they have not; with
/// one, too, once in some hundred VMs.
const PROCESSORS: &str = "1";
const MEMORY: &str = "2048";

const BEGIN: &str = "@@ begin ";
const END: &str = "@@ end ";

pub(super) struct Machine<'a> {
    pub packages: &'a Packages,
    /// Its files.
    pub image: &'a Path,
    /// Where all that its console says is kept.
    pub log: &'a Path,
}

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub name: String,
    /// `None`: it did not.
    pub status: Option<i32>,
    pub output: Vec<String>,
}

/// What the machine does when it has booted, for its shell.
pub(super) fn script(runs: &[Run]) -> String {
    let mut script = String::from(
        "#!/bin/sh\n\
         /bin/busybox --install -s /bin\n\
         export PATH=/bin RUST_BACKTRACE=0\n\
         mount -t proc proc /proc\nmount -t sysfs sys /sys\nmount -t devtmpfs dev /dev\n\
         mkdir -p /dev/shm /dev/pts\nmount -t tmpfs shm /dev/shm\nmount -t tmpfs tmp /tmp\nmount -t devpts pts /dev/pts\n\
         for module in /modules/*.ko; do insmod $module; done\n\
         ip link set lo up\n",
    );
    for run in runs {
        let (name, command) = (&run.name, &run.command);
        write!(script, "echo '{BEGIN}{name}'\n{command} 2>&1\necho \"{END}$?\"\n")
            .expect("a string takes it");
    }
    script.push_str("poweroff -f\n");
    script
}

/// A word for the machine's shell.
pub(super) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

impl Machine<'_> {
    /// Boots it, and waits until it has done all runs.
    pub(super) fn boot(&self, runs: &[Run], limit: Duration, verbose: bool) -> Result<Vec<Outcome>, Error> {
        let mut qemu = self.start()?;
        let result = self.listen(&mut qemu, runs, limit, verbose);
        let _ = qemu.kill(); // it may have ended
        let _ = qemu.wait();
        result
    }

    fn start(&self) -> Result<Child, Error> {
        let mut qemu = Command::new(&self.packages.qemu);
        if let Some(libraries) = self.packages.libraries() {
            qemu.env("LD_LIBRARY_PATH", libraries);
        }
        for data in &self.packages.data {
            qemu.arg("-L").arg(data);
        }
        qemu.args(["-accel", "tcg", "-cpu", PROCESSOR, "-smp", PROCESSORS, "-m", MEMORY]);
        qemu.args(["-nographic", "-no-reboot", "-nic", "none"]);
        qemu.arg("-kernel").arg(&self.packages.kernel).arg("-initrd").arg(self.image);
        qemu.args(["-append", "console=ttyS0 quiet panic=-1"]);
        qemu.stdin(Stdio::null()).stdout(Stdio::piped());
        let complaints = File::create(self.log.with_extension("qemu"))
            .map_err(cannot("making a file for QEMU's complaints"))?;
        qemu.stderr(complaints);
        qemu.spawn().map_err(cannot("starting QEMU"))
    }

    fn listen(
        &self,
        qemu: &mut Child,
        runs: &[Run],
        limit: Duration,
        verbose: bool,
    ) -> Result<Vec<Outcome>, Error> {
        let mut log = File::create(self.log).map_err(cannot("making the console's file"))?;
        let console = BufReader::new(qemu.stdout.take().expect("it is a pipe"));
        let (said, lines) = channel();
        std::thread::spawn(move || {
            for line in console.split(b'\n').map_while(Result::ok) {
                let _ = said.send(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
        });
        let end = Instant::now() + limit;
        let mut transcript = Transcript::default();
        loop {
            match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    writeln!(log, "{line}").map_err(cannot("writing the console's file"))?;
                    if verbose {
                        println!("{line}");
                    }
                    if let Some(told) = transcript.take(&line) {
                        eprintln!("{told}");
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    eprintln!("the machine has not done all of it after {} minutes", limit.as_secs() / 60);
                    break;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        Ok(transcript.outcomes(runs))
    }
}

/// What the console says, sorted by runs.
#[derive(Default)]
struct Transcript {
    outcomes: Vec<Outcome>,
    since: Option<Instant>,
}

impl Transcript {
    /// Takes a line. Gives what is told of it meanwhile.
    fn take(&mut self, line: &str) -> Option<String> {
        // The firmware leaves the cursor anywhere.
        if let Some((_, name)) = line.split_once(BEGIN) {
            self.outcomes.push(Outcome { name: name.to_owned(), status: None, output: Vec::new() });
            self.since = Some(Instant::now());
            return Some(format!("{name} …"));
        }
        let now = self.outcomes.last_mut().filter(|outcome| outcome.status.is_none())?;
        if let Some(status) = line.strip_prefix(END) {
            now.status = Some(status.parse().unwrap_or(-1));
            let seconds = self.since.map_or(0, |since| since.elapsed().as_secs());
            let how = if now.status == Some(0) { "ok" } else { "FAILED" };
            return Some(format!("{} {how}, {seconds} s", now.name));
        }
        now.output.push(line.to_owned());
        None
    }

    /// How all runs went: also those that were not begun.
    fn outcomes(mut self, runs: &[Run]) -> Vec<Outcome> {
        for run in runs.iter().skip(self.outcomes.len()) {
            self.outcomes.push(Outcome { name: run.name.clone(), status: None, output: Vec::new() });
        }
        self.outcomes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_is_sorted_by_runs() {
        let mut transcript = Transcript::default();
        for line in ["booting", "\x1b[2J@@ begin one", "said", "@@ end 0", "between", "@@ begin two", "half"]
        {
            transcript.take(line);
        }
        let runs = ["one", "two", "three"].map(|name| Run { name: name.into(), command: name.into() });
        let outcome = |name: &str, status, output: &[&str]| Outcome {
            name: name.into(),
            status,
            output: output.iter().map(|line| (*line).to_owned()).collect(),
        };
        let expected = [
            outcome("one", Some(0), &["said"]),
            outcome("two", None, &["half"]),
            outcome("three", None, &[]),
        ];
        assert_eq!(transcript.outcomes(&runs), expected);
    }

    #[test]
    fn words_are_quoted_for_the_shell() {
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
