//! A store that speaks the Redis protocol, on a disk: killed at any moment, it keeps what it acknowledged.

#![no_std]
#![no_main]

extern crate alloc;

mod network;

use alloc::string::{String, ToString};
use alloc::vec;
use guest_sdk::events::Channel;
use guest_sdk::hv_abi::PAGE_SIZE;
use guest_sdk::{boot, console, frames, println, time};
use kv::connection::Connection;
use kv::database::Database;
use kv::disk::Disk;
use pv_drivers::Error;
use pv_drivers::block::Block;
use pv_drivers::net::Net;

guest_sdk::entry!(main, memory = 32 << 20);

/// Bytes that are taken from the console before what has come is carried out.
const INPUT: usize = 64 << 10;

fn main() -> u8 {
    match run() {
        Ok(()) => 0,
        Err(error) => {
            println!("kv: {error}");
            1
        }
    }
}

fn run() -> Result<(), String> {
    let disk = Block::find().map_err(|error| match error {
        Error::NoDevice => "there is no disk; give it one with --disk FILE".to_string(),
        error => error.to_string(),
    })?;
    if disk.is_read_only() {
        return Err("the disk is read-only".to_string());
    }
    let memory = (frames::available() * PAGE_SIZE) as usize;
    let seed = boot::info().seed.first_chunk().copied().unwrap_or_default();
    let mut random = fastrand::Rng::with_seed(u64::from_ne_bytes(seed));
    let mut database =
        Database::open(BlockDisk(disk), random.u64(..), memory / 2).map_err(|error| error.to_string())?;
    let figures = database.figures();
    println!(
        "kv: {} keys, {} KiB of {} KiB in the log",
        database.keys(),
        figures.log.used >> 10,
        figures.log.room >> 10
    );
    match Net::find() {
        Ok(net) => network::serve(net, &mut database, memory / 4, random.u64(..)),
        Err(Error::NoDevice) => serve_console(&mut database),
        Err(error) => Err(error),
    }
    .map_err(|error| error.to_string())
}

fn epoch_ms() -> u64 {
    time::since_epoch().as_millis() as u64
}

/// The disk as the log wants it.
struct BlockDisk(Block);

impl Disk for BlockDisk {
    type Error = Error;

    fn sectors(&self) -> u64 {
        self.0.sectors()
    }

    fn read(&mut self, sector: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.0.read_blocking(sector, bytes)
    }

    fn write(&mut self, sector: u64, bytes: &[u8]) -> Result<(), Error> {
        self.0.write_blocking(sector, bytes)
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.0.flush_blocking()
    }
}

/// Serves one client, at the console, until it ends.
fn serve_console(database: &mut Database<BlockDisk>) -> Result<(), Error> {
    println!("kv: no network; commands are taken from the console");
    let mut client = Connection::default();
    let mut buffer = vec![0; INPUT];
    loop {
        let came = console::read(&mut buffer);
        client.receive(&buffer[..came.unwrap_or(0)]);
        let shutdown = client.run(database, epoch_ms())?;
        database.commit()?;
        console::write(client.reply.bytes());
        client.reply.sent(client.reply.bytes().len());
        if shutdown || client.closing || came == Some(0) {
            return Ok(());
        }
        if came.is_none() && !client.waits() {
            Channel::CONSOLE.wait();
        }
    }
}
