//! How much a network carries, from one guest to another: frames, and TCP. Both ends are told how many MiB it is to be.

use crate::net::{CLIENT, PORT, SERVER, with_stack};
use alloc::vec;
use guest_sdk::println;
use guest_sdk::time::Instant;
use pv_drivers::Error;
use pv_drivers::net::Net;
use pv_drivers::net::stack::{Buffers, TcpListener, TcpStream};

const MIB: usize = 1 << 20;
const BUFFERS: Buffers = Buffers { receive: MIB, send: MIB };

/// Says how fast so many bytes have come since `start`, in so many pieces.
fn tell(what: &str, bytes: usize, pieces: usize, start: Instant) {
    let nanos = start.elapsed().as_nanos().max(1) as u64;
    let megabits = bytes as u64 * 8000 / nanos;
    let pieces = pieces as u64 * 1_000_000_000 / nanos;
    println!("{what}: {}.{:03} Gbit/s, in {pieces} pieces a second", megabits / 1000, megabits % 1000);
}

/// Sends frames as long as can be.
pub fn send(mebibytes: usize) -> Result<(), Error> {
    let net = Net::find()?;
    let length = net.mtu() + 14;
    for _ in 0..(mebibytes * MIB).div_ceil(length) {
        let mut outgoing = net.outgoing_blocking()?;
        outgoing[..6].fill(0xff); // to all: a switch need not have learnt who is there
        outgoing.send(length);
    }
    net.flush_blocking()
}

/// Receives what [`send`] sends.
pub fn receive(mebibytes: usize) -> Result<(), Error> {
    let net = Net::find()?;
    let (mut bytes, mut frames) = (net.receive_blocking()?.len(), 1);
    let start = Instant::now();
    while bytes < mebibytes * MIB {
        bytes += net.receive_blocking()?.len();
        frames += 1;
    }
    tell("frames", bytes, frames, start);
    Ok(())
}

/// Receives what [`send_tcp`] sends.
pub fn receive_tcp() -> Result<(), Error> {
    with_stack(SERVER, |stack, _| async move {
        let listener = TcpListener::bind(&stack, PORT, 1, BUFFERS).expect("a good port");
        let stream = listener.accept().await;
        let (start, mut bytes, mut pieces) = (Instant::now(), 0, 0);
        loop {
            match stream.read_with(|some| (some.len(), some.len())).await? {
                0 => break,
                some => bytes += some,
            }
            pieces += 1;
        }
        tell("TCP", bytes, pieces, start);
        stream.finish().await
    })
}

/// Sends zeros by TCP.
pub fn send_tcp(mebibytes: usize) -> Result<(), Error> {
    with_stack(CLIENT, move |stack, _| async move {
        let stream = TcpStream::connect(&stack, (SERVER, PORT), BUFFERS).await.expect("the server is there");
        let zeros = vec![0; 64 << 10];
        for _ in 0..mebibytes * 16 {
            stream.write_all(&zeros).await?;
        }
        stream.finish().await?;
        stream.read(&mut [0]).await.map(drop)
    })
}
