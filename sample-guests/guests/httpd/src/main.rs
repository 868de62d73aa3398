//! A web server, HTTP/1.1: serves a shared folder, the archive that is its ramdisk, or a few pages of its own.

#![no_std]
#![no_main]

extern crate alloc;

mod shared;

use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::Cell;
use guest_sdk::task::{Executor, Spawner, until};
use guest_sdk::time::{Duration, Instant};
use guest_sdk::{boot, println};
use httpd::folder::{Archive, Folder};
use httpd::server::{self, Connection, Gone, Wait};
use pv_drivers::fs::{self, SharedFolder};
use pv_drivers::net::Net;
use pv_drivers::net::stack::{Addressing, Buffers, Ipv4Cidr, Stack, TcpListener, TcpStream};
use shared::Shared;

guest_sdk::entry!(main);

/// Where the site is without a ramdisk.
static WWW: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/www.tar"));

/// The port of the web.
const PORT: u16 = 80;
/// Connections that may wait, and that there may be.
const BACKLOG: usize = 256;
const CONNECTIONS: usize = 256;
/// Requests are short, and files may be long. As many connections again may be on their way out: all take 30 MiB.
const BUFFERS: Buffers = Buffers { receive: 8 << 10, send: 32 << 10 };

/// How long a connection may be idle, a request may take to come, and a client to take some of an answer.
const IDLE: Duration = Duration::from_secs(30);
const HEAD: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(30);

/// Why the server does not start.
#[derive(Debug)]
#[expect(dead_code, reason = "it is shown as it is")]
enum Failure {
    /// The only argument is an address with the length of its network, as in `10.0.0.2/24`.
    Usage,
    /// The ramdisk is no tar archive.
    NoArchive,
    /// There is no network card that works.
    Network(pv_drivers::Error),
    /// The shared folder does not work.
    Folder(fs::Error),
}

fn main() -> Result<(), Failure> {
    let mut arguments = boot::arguments();
    let addressing = match (arguments.next(), arguments.next()) {
        (None, None) => Addressing::Dhcp,
        (Some(address), None) => {
            let address: Ipv4Cidr = address.parse().map_err(|()| Failure::Usage)?;
            Addressing::Fixed { address, gateway: None, dns: None }
        }
        _ => return Err(Failure::Usage),
    };
    let stack = Stack::new(Net::find().map_err(Failure::Network)?, addressing);
    match SharedFolder::find() {
        Ok(folder) => {
            let what = format!("the shared folder `{}`", folder.tag());
            serve(stack, Shared(folder), what);
        }
        Err(fs::Error::Device(pv_drivers::Error::NoDevice)) => {
            let archive = if boot::ramdisk().is_empty() { WWW } else { boot::ramdisk() };
            let archive = Archive::new(archive).ok_or(Failure::NoArchive)?;
            let what = format!("an archive with {} files", archive.files());
            serve(stack, archive, what);
        }
        Err(error) => return Err(Failure::Folder(error)),
    }
    Err(Failure::Network(pv_drivers::Error::Broken))
}

/// Serves a folder until the network card is broken.
fn serve(stack: Stack, folder: impl Folder + 'static, what: String) {
    let executor = Executor::new();
    executor.spawner().spawn(accept(stack.clone(), Rc::new(folder), what, executor.spawner()));
    executor.run_until(stack.run());
}

async fn accept(stack: Stack, folder: Rc<impl Folder + 'static>, what: String, spawner: Spawner) {
    let address = stack.address().await;
    let listener = TcpListener::bind(&stack, PORT, BACKLOG, BUFFERS).expect("the port is not 0");
    println!("httpd: {what} is at http://{}/", address.address());
    let connections = Rc::new(Cell::new(0));
    loop {
        let stream = listener.accept().await;
        if connections.get() == CONNECTIONS {
            stream.abort();
            continue;
        }
        connections.set(connections.get() + 1);
        let (folder, connections) = (folder.clone(), connections.clone());
        spawner.spawn(async move {
            let mut client = Client { stream, rest_until: None };
            if server::serve(&mut client, &*folder).await.is_ok() {
                // What a client still sends must not make it lose the answer.
                let _ = until(Instant::now() + HEAD, client.stream.finish()).await;
            }
            connections.set(connections.get() - 1);
        });
    }
}

/// A client at the other end of a connection.
struct Client {
    stream: TcpStream,
    /// When a request that has begun must have come.
    rest_until: Option<Instant>,
}

impl Connection for Client {
    async fn read(&mut self, bytes: &mut Vec<u8>, wait: Wait) -> Result<(), Gone> {
        let deadline = match (wait, self.rest_until) {
            (Wait::Request, _) => {
                self.rest_until = None;
                Instant::now() + IDLE
            }
            (Wait::Rest, Some(deadline)) => deadline,
            (Wait::Rest, None) => *self.rest_until.insert(Instant::now() + HEAD),
        };
        let read = self.stream.read_with(|received| {
            bytes.extend_from_slice(received);
            (received.len(), received.len())
        });
        match until(deadline, read).await {
            Some(Ok(1..)) => Ok(()),
            Some(_) => Err(Gone::Closed),
            None => Err(Gone::Late),
        }
    }

    async fn write(&mut self, mut bytes: &[u8]) -> Result<(), Gone> {
        while !bytes.is_empty() {
            let some = self.stream.write_with(|room| {
                let length = room.len().min(bytes.len());
                room[..length].copy_from_slice(&bytes[..length]);
                (length, length)
            });
            match until(Instant::now() + ANSWER, some).await {
                Some(Ok(written)) => bytes = &bytes[written..],
                Some(Err(_)) => return Err(Gone::Closed),
                None => {
                    self.stream.abort();
                    return Err(Gone::Late);
                }
            }
        }
        Ok(())
    }
}
