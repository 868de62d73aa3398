//! Trials of sockets. At the host's port 1000 is somebody who sends back all that comes, at 1001 nobody, at 1002 somebody who
//! reads when it is told to.

use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::Cell;
use core::time::Duration;
use guest_sdk::println;
use guest_sdk::task::{self, Executor};
use guest_sdk::time::{self, Instant};
use pv_drivers::Error;
use pv_drivers::embedded_io::{ReadReady, Write, WriteReady};
use pv_drivers::vsock::{Vsock, VsockStream};

const ECHO: u32 = 1000;
const NOBODY: u32 = 1001;
const SLOW: u32 = 1002;
/// The guest's.
const SERVED: u32 = 2000;

fn read_to_end(stream: &VsockStream) -> Result<Vec<u8>, Error> {
    let (mut all, mut piece) = (Vec::new(), vec![0; 3000]);
    loop {
        match stream.read_blocking(&mut piece)? {
            0 => return Ok(all),
            length => all.extend(&piece[..length]),
        }
    }
}

/// Connects, is refused, sends and gets back, and closes one direction.
pub fn check() -> Result<(), Error> {
    let vsock = Vsock::find()?;
    println!("context {}", vsock.cid());
    assert_eq!(vsock.connect_blocking(NOBODY).err(), Some(Error::Refused));
    let mut stream = vsock.connect_blocking(ECHO)?;
    assert!(stream.write_ready()? && !stream.read_ready()?);
    Write::write_all(&mut stream, b"hello, ")?;
    write!(stream, "host").expect("it takes text");
    stream.finish();
    assert_eq!(stream.write_blocking(b"more"), Err(Error::Closed));
    assert_eq!(read_to_end(&stream)?, b"hello, host");
    assert!(stream.read_ready()?, "its end can be read");
    assert_eq!(task::block_on(stream.read(&mut [0; 10]))?, 0);
    stream.close_blocking()
}

/// Is connected to by a program of the host's, and sends back what it gets in reverse.
pub fn serve() -> Result<(), Error> {
    let vsock = Vsock::find()?;
    let listener = vsock.listen(SERVED)?;
    assert_eq!(vsock.listen(SERVED).err(), Some(Error::InUse));
    println!("listening");
    for _ in 0..2 {
        let mut stream = listener.accept_blocking()?;
        let mut bytes = read_to_end(&stream)?;
        bytes.reverse();
        Write::write_all(&mut stream, &bytes)?;
        stream.close_blocking()?;
    }
    Ok(())
}

/// Many connections at once, each of which sends and gets back much, some of which are dropped.
pub fn load(seed: u64) -> Result<(), Error> {
    const STREAMS: u64 = 12;
    let vsock = Vsock::find()?;
    let executor = Executor::new();
    let done = Rc::new(Cell::new(0));
    for number in 0..STREAMS {
        let (vsock, done, spawner) = (vsock.clone(), done.clone(), executor.spawner());
        executor.spawner().spawn(async move {
            let random = fastrand::Rng::with_seed(seed + number);
            for _ in 0..3 {
                let stream = vsock.connect(ECHO).await.expect("somebody is there");
                stream.write_all(b"dropped").await.expect("it is open");
            }
            let stream = Rc::new(vsock.connect(ECHO).await.expect("somebody is there"));
            let (writer, written) = (stream.clone(), random.clone());
            spawner.spawn(async move { send(&writer, written).await.expect("it is open") });
            get_back(&stream, random).await.expect("it is open");
            done.set(done.get() + 1);
        });
    }
    executor.run();
    assert_eq!(done.get(), STREAMS);
    Ok(())
}

const BYTES: usize = 1 << 20;

async fn send(stream: &VsockStream, mut random: fastrand::Rng) -> Result<(), Error> {
    let mut sizes = random.fork();
    let mut sent = 0;
    while sent < BYTES {
        let mut piece = vec![0; sizes.usize(1..100_000).min(BYTES - sent)];
        piece.fill_with(|| random.u8(..));
        stream.write_all(&piece).await?;
        sent += piece.len();
    }
    stream.finish();
    Ok(())
}

async fn get_back(stream: &VsockStream, mut random: fastrand::Rng) -> Result<(), Error> {
    let mut sizes = random.fork();
    let mut got = 0;
    loop {
        let mut piece = vec![0; sizes.usize(1..50_000)];
        match stream.read(&mut piece).await? {
            0 => break,
            length => {
                assert!(piece[..length].iter().all(|byte| *byte == random.u8(..)), "after {got} bytes");
                got += length;
            }
        }
    }
    assert_eq!(got, BYTES);
    Ok(())
}

/// A host that does not read is not written to without end, and loses nothing.
pub fn slow() -> Result<(), Error> {
    let vsock = Vsock::find()?;
    let mut stream = vsock.connect_blocking(SLOW)?;
    let bytes: Vec<u8> = (0..3 << 20).map(|at: u32| (at ^ at >> 8) as u8).collect();
    let mut sent = 0;
    // What the buffers on the way take.
    let mut full_since = Instant::now();
    while full_since.elapsed() < Duration::from_millis(200) {
        if stream.write_ready()? {
            sent += stream.write_blocking(&bytes[sent..])?;
            full_since = Instant::now();
            assert!(sent < bytes.len(), "all that nobody reads was taken");
        } else {
            time::sleep(Duration::from_millis(1));
        }
    }
    println!("full");
    Write::write_all(&mut stream, &bytes[sent..])?;
    stream.close_blocking()
}
