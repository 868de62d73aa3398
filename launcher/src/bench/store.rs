//! The guest `kv` beside Debian's redis-server, under the same `redis-benchmark`. Without these programs there is nothing to
//! compare, and no row.

use crate::bench::{Figure, Phase};
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(super) const STEPS: u32 = 1;

/// Clients, requests that each has under way, and how many in all.
const LOADS: [(u32, u32, u32); 3] = [(1, 1, 5_000), (50, 1, 50_000), (50, 16, 200_000)];
/// Part of redis-server's requests a second that is wanted.
const AIM: f64 = 0.7;
const PATIENCE: Duration = Duration::from_secs(30);

/// A server that goes with this value.
struct Server {
    child: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts it, and waits until it answers; `None` if it cannot be started.
    fn start(mut command: Command, port: u16) -> Option<Self> {
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null()).spawn().ok()?;
        let server = Self { child, port };
        let begun = Instant::now();
        while server.rates("ping_mbulk", (1, 1, 1)).is_none() {
            if begun.elapsed() > PATIENCE {
                return None;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(server)
    }

    /// Microseconds a request, of each operation that `redis-benchmark` names.
    fn rates(&self, operations: &str, (clients, pipelined, requests): (u32, u32, u32)) -> Option<Vec<f64>> {
        TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok()?;
        let number = |number: u32| number.to_string();
        let output = Command::new("redis-benchmark")
            .args(["--csv", "-p", &self.port.to_string(), "-t", operations])
            .args(["-c", &number(clients), "-P", &number(pipelined), "-n", &number(requests)])
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let rate = |line: &str| Some(1e6 / line.split(',').nth(1)?.trim_matches('"').parse::<f64>().ok()?);
        let rates: Vec<f64> = text.lines().filter_map(rate).collect();
        (!rates.is_empty()).then_some(rates)
    }
}

/// A port that nobody has at the moment.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("the loopback has a port");
    listener.local_addr().expect("it is bound").port()
}

pub(super) fn measure(phase: Phase, quick: bool, directory: &Path) -> Vec<Figure> {
    const OPERATIONS: [&str; 2] = ["SET", "GET"];
    let (Some(redis), Some(kv)) = (redis(directory), kv(directory)) else { return Vec::new() };
    let mut figures = Vec::new();
    for (clients, pipelined, requests) in LOADS {
        let load = (clients, pipelined, if quick { requests / 5 } else { requests });
        let host = redis.rates("set,get", load).unwrap_or_default();
        let guest = kv.rates("set,get", load).unwrap_or_default();
        for (operation, (host, guest)) in OPERATIONS.iter().zip(host.into_iter().zip(guest)) {
            let s = if clients == 1 { "" } else { "s" };
            let what = format!("{operation}, {clients} client{s}, {pipelined} at a time");
            let host = Figure::new(&format!("{what}, redis-server, synced"), "us", phase, vec![host]);
            let guest = Figure::new(&format!("{what}, kv"), "us", phase, vec![guest]);
            figures.extend([host.clone(), guest.against(&host).ratio_at_most(1.0 / AIM)]);
        }
    }
    figures
}

/// Debian's, which writes as kv does: a request is answered when it is on the disk.
fn redis(directory: &Path) -> Option<Server> {
    let port = free_port();
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
    command.args(["--appendonly", "yes", "--appendfsync", "always", "--dir"]).arg(directory);
    Server::start(command, port)
}

fn kv(directory: &Path) -> Option<Server> {
    let (port, disk) = (free_port(), directory.join("kv"));
    File::create(&disk).and_then(|file| file.set_len(256 << 20)).expect("there is room for a disk");
    let mut command = Command::new(std::env::current_exe().ok()?);
    command.args(["run", "kv", "--memory", "256M", "--net", "user:builtin", "-p"]);
    command
        .arg(format!("127.0.0.1:{port}:6379"))
        .arg("--disk")
        .arg(disk)
        .env("HV_RUNTIME_DIR", directory.join("hv"));
    Server::start(command, port)
}
