//! The store `kv`, killed at any moment, keeps what it has acknowledged.
//!
//! A monitor is a process of its own here: this program again, in which one test runs the guest with the process's standard
//! input and output as its console. `HV_KV=200 cargo test -p conformance --test kv` kills it 200 times.

mod common;

use common::config;
use hv_core::devices::{Block, BlockOptions};
use hv_core::{Config, DeviceConfig, Vm};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

/// Names the disk to a monitor.
const DISK: &str = "HV_KV_DISK";

/// What the guest says when it takes commands.
const READY: &str = "kv: no network; commands are taken from the console";

#[test]
#[ignore = "a part of the other tests, which start it as a process"]
fn monitor() {
    let disk = PathBuf::from(std::env::var_os(DISK).expect("whoever starts this names a disk"));
    let disk = Block::open(&disk, BlockOptions::default()).expect("it is a disk");
    let (config, _) = config("kv", &[]);
    let config = Config {
        devices: vec![DeviceConfig::Block(disk)],
        console: Box::new(io::stdout()),
        console_input: true,
        ..config
    };
    let vm = Vm::start(config).expect("the VM starts");
    let input = vm.console_input();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while input.wait_until_wanted() {
            match io::stdin().read(&mut buffer) {
                Ok(0) | Err(_) => return input.close(),
                Ok(length) => drop(input.push(&buffer[..length])), // it fits: the guest has found nothing
            }
        }
    });
    println!("{:?}", vm.wait().end);
}

/// A disk of zeros that goes with this value.
struct DiskFile(PathBuf);

impl DiskFile {
    fn new(name: &str, bytes: u64) -> Self {
        let path = std::env::temp_dir().join(format!("hv-kv-{}-{name}", std::process::id()));
        let file = std::fs::File::create(&path).expect("a temporary file can be made");
        file.set_len(bytes).expect("it can be as long");
        Self(path)
    }
}

impl Drop for DiskFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A monitor that ends, by SIGKILL, with this value.
struct Monitor(Child);

impl Drop for Monitor {
    fn drop(&mut self) {
        self.0.kill().expect("it is a child");
        self.0.wait().expect("it is a child");
    }
}

/// The one client of a running store.
struct Store {
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

/// A reply of the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Reply {
    Status(String),
    Number(i64),
    Text(Option<String>),
    Array(Vec<Self>),
}

impl Store {
    fn start(disk: &Path) -> (Monitor, Self) {
        let mut command = Command::new(std::env::current_exe().expect("this program has a file"));
        command.args(["--exact", "monitor", "--ignored", "--nocapture"]).env(DISK, disk);
        let mut monitor =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it can be started");
        let to = monitor.stdin.take().expect("it is a pipe");
        let from = BufReader::new(monitor.stdout.take().expect("it is a pipe"));
        let (monitor, mut store) = (Monitor(monitor), Self { to, from });
        let mut said = String::new();
        while !said.ends_with(&format!("{READY}\n")) {
            assert!(
                store.from.read_line(&mut said).expect("it can be read") > 0,
                "it does not start: {said}"
            );
        }
        (monitor, store)
    }

    fn reply(&mut self) -> io::Result<Reply> {
        let mut line = String::new();
        if self.from.read_line(&mut line)? == 0 || !line.ends_with("\r\n") {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (mark, rest) = line.trim_end().split_at(1);
        let number = || rest.parse::<i64>().unwrap_or_else(|_| panic!("no number in {line:?}"));
        Ok(match mark {
            "+" => Reply::Status(rest.to_owned()),
            ":" => Reply::Number(number()),
            "$" if number() < 0 => Reply::Text(None),
            "$" => {
                let mut bytes = vec![0; number() as usize + 2];
                self.from.read_exact(&mut bytes)?;
                bytes.truncate(bytes.len() - 2);
                Reply::Text(Some(String::from_utf8(bytes).expect("only text is stored here")))
            }
            "*" => Reply::Array((0..number()).map(|_| self.reply()).collect::<io::Result<_>>()?),
            _ => panic!("the store says {line:?}"),
        })
    }

    fn ask(&mut self, line: &str) -> Reply {
        writeln!(self.to, "{line}\r").expect("it takes commands");
        self.reply().unwrap_or_else(|error| panic!("no reply to {line}: {error}"))
    }
}

/// The command of that number: a counter, a list and some keys, all of which tell how many commands were carried out.
fn command(round: u32, number: u64) -> String {
    let turn = number / 3;
    match number % 3 {
        0 => format!("INCR count{round}"),
        1 => format!("RPUSH list{round} {turn}"),
        _ => format!("SET key{round}-{} {turn}:{}", turn % 20, "x".repeat(turn as usize * 7 % 900)),
    }
}

/// Sends commands until the store is gone: how many it acknowledged, how many were sent.
fn load(store: &mut Store, round: u32, random: &mut fastrand::Rng) -> (u64, u64) {
    let (mut acknowledged, mut sent) = (0, 0);
    loop {
        let batch = sent..sent + random.u64(1..60);
        sent = batch.end;
        let lines: String = batch.clone().map(|number| command(round, number) + "\r\n").collect();
        if store.to.write_all(lines.as_bytes()).is_err() {
            return (acknowledged, sent);
        }
        for _ in batch {
            match store.reply() {
                Ok(_) => acknowledged += 1,
                Err(_) => return (acknowledged, sent),
            }
        }
    }
}

/// How many commands of a round were carried out, as everything that they changed agrees.
fn carried_out(store: &mut Store, round: u32) -> u64 {
    let count = match store.ask(&format!("GET count{round}")) {
        Reply::Text(count) => count.map_or(0, |count| count.parse().expect("a number")),
        other => panic!("{other:?}"),
    };
    let Reply::Array(list) = store.ask(&format!("LRANGE list{round} 0 -1")) else { panic!("no list") };
    let expected = (0..list.len()).map(|turn| Reply::Text(Some(turn.to_string())));
    assert!(list.iter().cloned().eq(expected), "the list has all, in order");
    // Of the last turn, maybe some: all before it was done.
    let mut done = 3 * count;
    if (list.len() as u64) < count {
        assert_eq!(list.len() as u64 + 1, count, "INCR without the RPUSH before it");
        done -= 2;
    } else {
        assert_eq!(list.len() as u64, count, "RPUSH without the INCR before it");
    }
    let key = |turn: u64| format!("GET key{round}-{}", turn % 20);
    let value = |turn: u64| {
        let set = command(round, turn * 3 + 2);
        Reply::Text(set.rsplit(' ').next().map(str::to_owned))
    };
    if done > 0 && done.is_multiple_of(3) && store.ask(&key(count - 1)) != value(count - 1) {
        done -= 1; // the last SET is what is missing
    }
    for turn in (0..(done / 3)).rev().take(19) {
        assert_eq!(store.ask(&key(turn)), value(turn), "turn {turn} of {done} commands");
    }
    done
}

#[test]
fn what_was_acknowledged_is_there_after_a_kill_at_any_moment() {
    let rounds = std::env::var("HV_KV").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(20);
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    // So small that the log is written anew all the time.
    let disk = DiskFile::new("kill", 4 << 20);
    let mut kept = 0;
    for round in 0..rounds {
        let (monitor, mut store) = Store::start(&disk.0);
        if round > 0 {
            assert_eq!(carried_out(&mut store, round - 1), kept, "what was there is still there");
            store.ask("FLUSHALL");
        }
        let after = Duration::from_millis(random.u64(1..150));
        let killer = std::thread::spawn(move || {
            std::thread::sleep(after);
            drop(monitor);
        });
        let (acknowledged, sent) = load(&mut store, round, &mut random);
        killer.join().expect("it kills");
        let (_monitor, mut store) = Store::start(&disk.0);
        kept = carried_out(&mut store, round);
        assert!(
            (acknowledged..=sent).contains(&kept),
            "{acknowledged} acknowledged, {sent} sent, {kept} kept"
        );
        println!("{acknowledged} acknowledged, {sent} sent, {kept} kept");
    }
}
