//! Trials of a network card: frames, and TCP over them.

use alloc::rc::Rc;
use alloc::vec;
use core::cell::Cell;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;
use guest_sdk::println;
use guest_sdk::task::{self, Executor, Spawner};
use guest_sdk::time::{Duration, Instant};
use pv_drivers::Error;
use pv_drivers::net::Net;
use pv_drivers::net::stack::{
    Addressing, Buffers, Ipv4Address, Ipv4Cidr, Stack, TcpError, TcpListener, TcpStream,
};

/// Where a frame's type is: behind its addresses.
const TYPE: core::ops::Range<usize> = 12..14;
/// The type of the last frame of a trial; others are of any.
const LAST: [u8; 2] = [0x88, 0xb6];

/// Sends every frame back as it came.
pub fn echo() -> Result<(), Error> {
    let net = Net::find()?;
    loop {
        let received = net.receive_blocking()?;
        let mut outgoing = net.outgoing_blocking()?;
        outgoing[..received.len()].copy_from_slice(&received);
        outgoing.send(received.len());
        if received[TYPE] == LAST {
            return net.flush_blocking();
        }
    }
}

/// The `number`th frame of a burst: its number, and bytes that depend on it.
fn fill(random: &mut fastrand::Rng, number: u32, frame: &mut [u8]) -> usize {
    let short = random.bool();
    let length = random.usize(18..=if short { 200.min(frame.len()) } else { frame.len() });
    frame[..length].fill(number as u8);
    frame[TYPE].copy_from_slice(&[0x88, 0xb5]);
    frame[14..18].copy_from_slice(&number.to_le_bytes());
    length
}

/// Sends frames of many lengths, as fast as it can.
pub fn send(count: u32) -> Result<(), Error> {
    let net = Net::find()?;
    let mut random = fastrand::Rng::with_seed(1);
    for number in 0..count {
        let mut outgoing = net.outgoing_blocking()?;
        let length = fill(&mut random, number, &mut outgoing);
        outgoing.send(length);
    }
    net.flush_blocking()
}

/// Receives what [`send`] sends: all of it, and nothing else.
pub fn expect(count: u32) -> Result<(), Error> {
    let net = Net::find()?;
    let mut random = fastrand::Rng::with_seed(1);
    let mut expected = vec![0; net.mtu() + 14];
    for number in 0..count {
        let length = fill(&mut random, number, &mut expected);
        let received = net.receive_blocking()?;
        assert!(received[..] == expected[..length], "frame {number}, of {length} bytes");
    }
    Ok(())
}

/// Waits until nobody is at the other end; what is sent then is lost, and holds nobody up.
pub fn link() -> Result<(), Error> {
    let net = Net::find()?;
    assert!(net.is_up());
    println!("the link is up");
    task::block_on(net.link(false));
    for _ in 0..1000 {
        let outgoing = net.outgoing_blocking()?;
        outgoing.send(60);
    }
    net.flush_blocking()
}

pub const SERVER: Ipv4Address = Ipv4Address::new(10, 1, 0, 1);
pub const CLIENT: Ipv4Address = Ipv4Address::new(10, 1, 0, 2);
pub const PORT: u16 = 7;

fn fixed(address: Ipv4Address) -> Addressing {
    Addressing::Fixed { address: Ipv4Cidr::new(address, 24), gateway: None, dns: None }
}

/// Runs a trial with TCP/IP to its end.
pub fn with_stack<F: Future<Output = Result<(), TcpError>> + 'static>(
    address: Ipv4Address,
    trial: impl FnOnce(Stack, Spawner) -> F,
) -> Result<(), Error> {
    let stack = Stack::new(Net::find()?, fixed(address));
    let executor = Executor::new();
    let spawner = executor.spawner();
    let trial = trial(stack.clone(), executor.spawner());
    let result = executor.run_until(async move {
        // It begins when the trial waits: who listens does so before anything is taken from the network.
        spawner.spawn(stack.clone().run());
        let result = trial.await;
        stack.flush().await; // the other end waits for the last acknowledgement
        result
    });
    result.map_err(|_| Error::Io)
}

/// A server that sends every byte back, changed, on so many connections.
pub fn serve(connections: usize) -> Result<(), Error> {
    with_stack(SERVER, move |stack, spawner| async move {
        let listener = TcpListener::bind(&stack, PORT, connections, Buffers::default()).expect("a good port");
        let ended = Rc::new(Cell::new(0));
        for _ in 0..connections {
            let (stream, ended) = (listener.accept().await, ended.clone());
            spawner.spawn(async move {
                change(&stream).await.expect("a connection");
                ended.set(ended.get() + 1);
            });
        }
        while ended.get() < connections {
            task::sleep_until(Instant::now() + Duration::from_millis(1)).await;
        }
        Ok(())
    })
}

async fn change(stream: &TcpStream) -> Result<(), TcpError> {
    let mut bytes = vec![0; 16 << 10];
    loop {
        let length = stream.read(&mut bytes).await?;
        if length == 0 {
            return stream.finish().await;
        }
        bytes[..length].iter_mut().for_each(|byte| *byte ^= 0x5a);
        stream.write_all(&bytes[..length]).await?;
    }
}

/// Several clients of [`serve`] at once; each sends so many random bytes, and gets them changed.
pub fn clients(connections: usize, bytes: usize) -> Result<(), Error> {
    with_stack(CLIENT, move |stack, spawner| async move {
        let ended = Rc::new(Cell::new(0));
        for number in 0..connections {
            let (stack, ended) = (stack.clone(), ended.clone());
            spawner.spawn(async move {
                client(&stack, number as u64, bytes).await.expect("a connection");
                ended.set(ended.get() + 1);
            });
        }
        while ended.get() < connections {
            task::sleep_until(Instant::now() + Duration::from_millis(1)).await;
        }
        Ok(())
    })
}

async fn client(stack: &Stack, seed: u64, bytes: usize) -> Result<(), TcpError> {
    let stream = TcpStream::connect(stack, (SERVER, PORT), Buffers::default()).await;
    let stream = stream.expect("the server accepts connections");
    let (mut sent, mut expected) = (fastrand::Rng::with_seed(seed), fastrand::Rng::with_seed(seed));
    let write = async {
        let mut left = bytes;
        let mut buffer = vec![0; 10_000];
        while left > 0 {
            let part = left.min(buffer.len());
            buffer[..part].fill_with(|| sent.u8(..));
            stream.write_all(&buffer[..part]).await?;
            left -= part;
        }
        stream.finish().await
    };
    let read = async {
        let mut received = 0;
        loop {
            let part = stream.read_with(|part| {
                let good = part.iter().all(|byte| *byte == expected.u8(..) ^ 0x5a);
                assert!(good, "behind byte {received} is something else");
                (part.len(), part.len())
            });
            match part.await? {
                0 => return Ok(received),
                part => received += part,
            }
        }
    };
    let (written, received) = both(write, read).await;
    written?;
    assert_eq!(received?, bytes);
    Ok(())
}

/// Runs two futures to their ends.
async fn both<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
    let (mut a, mut b) = (pin!(a), pin!(b));
    let (mut of_a, mut of_b) = (None, None);
    poll_fn(|context| {
        if of_a.is_none()
            && let Poll::Ready(value) = a.as_mut().poll(context)
        {
            of_a = Some(value);
        }
        if of_b.is_none()
            && let Poll::Ready(value) = b.as_mut().poll(context)
        {
            of_b = Some(value);
        }
        if of_a.is_some() && of_b.is_some() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    (of_a.expect("it has ended"), of_b.expect("it has ended"))
}
