//! Trials of the console device and its ports: `log`, which goes to a file, and `chat`, to which programs of the host connect.

use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;
use guest_sdk::println;
use guest_sdk::task::{self, Executor};
use guest_sdk::time::{self, Instant};
use pv_drivers::Error;
use pv_drivers::console::{Console, Port};
use pv_drivers::embedded_io::{Read, ReadReady, Write, WriteReady};

/// Writes to a file, and serves one program after the other.
pub fn check() -> Result<(), Error> {
    let console = Console::find()?;
    println!("ports {:?}", console.names());
    let mut log = console.port_named("log")?;
    assert_eq!(console.port_named("log").err(), Some(Error::InUse));
    assert_eq!(console.port_named("none").err(), Some(Error::NoDevice));
    Write::write_all(&mut log, b"a line\n")?;
    writeln!(log, "and {}", 1).expect("it takes text");
    Write::flush(&mut log)?;

    let mut chat = console.port_named("chat")?;
    assert!(!chat.is_open());
    assert_eq!(Read::read(&mut chat, &mut [0; 8])?, 0);
    assert_eq!(chat.write_blocking(b"nobody"), Err(Error::Closed));
    println!("waiting");
    for _ in 0..2 {
        chat.opened_blocking()?;
        let mut buffer = [0; 1000];
        loop {
            match Read::read(&mut chat, &mut buffer)? {
                0 => break,
                length => Write::write_all(&mut chat, &buffer[..length])?,
            }
        }
        println!("gone");
    }
    drop(log);
    console.port_named("log").map(drop)
}

/// Sends back much on one port while it writes much to another.
pub fn load() -> Result<(), Error> {
    let console = Console::find()?;
    let chat = Rc::new(console.port_named("chat")?);
    let log = console.port_named("log")?;
    task::block_on(chat.opened())?;
    let executor = Executor::new();
    executor.spawner().spawn(async move { echo(&chat).await.expect("somebody is there") });
    executor.spawner().spawn(async move {
        for number in 0..20_000_u32 {
            log.write_all(alloc::format!("line {number}\n").as_bytes()).await.expect("a file takes it");
        }
        log.flush().await.expect("a file takes it");
    });
    executor.run();
    Ok(())
}

async fn echo(port: &Port) -> Result<(), Error> {
    let mut buffer = vec![0; 30_000];
    loop {
        match port.read(&mut buffer).await? {
            0 => return Ok(()),
            length => port.write_all(&buffer[..length]).await?,
        }
    }
}

/// A program that does not read is not written to without end, and loses nothing.
pub fn slow() -> Result<(), Error> {
    let console = Console::find()?;
    let mut chat = console.port_named("chat")?;
    chat.opened_blocking()?;
    let bytes: Vec<u8> = (0..3 << 20).map(|at: u32| (at ^ at >> 8) as u8).collect();
    let mut sent = 0;
    // What the buffers on the way take.
    let mut full_since = Instant::now();
    while full_since.elapsed() < Duration::from_millis(200) {
        if chat.write_ready()? {
            sent += chat.write_blocking(&bytes[sent..])?;
            full_since = Instant::now();
            assert!(sent < bytes.len(), "all that nobody reads was taken");
        } else {
            time::sleep(Duration::from_millis(1));
        }
    }
    println!("full");
    Write::write_all(&mut chat, &bytes[sent..])?;
    chat.flush_blocking()
}

/// Shows each key and each size of the window, until `q` is typed.
pub fn terminal() -> Result<(), Error> {
    let console = Console::find()?;
    let mut terminal = console.port(0)?;
    let mut size = console.size();
    write!(terminal, "size {}x{}\r\n", size.columns, size.rows).expect("it takes text");
    loop {
        let mut keys = [0; 64];
        if terminal.read_ready()? {
            let length = terminal.read_blocking(&mut keys)?;
            write!(terminal, "keys {:x?}\r\n", &keys[..length]).expect("it takes text");
            if keys[..length].contains(&b'q') {
                return terminal.flush_blocking();
            }
        } else {
            time::sleep(Duration::from_millis(1));
        }
        let now = console.size();
        if now != core::mem::replace(&mut size, now) {
            write!(terminal, "size {}x{}\r\n", size.columns, size.rows).expect("it takes text");
        }
    }
}
