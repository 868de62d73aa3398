//! Trials of a disk.

use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;
use guest_sdk::println;
use guest_sdk::task::{self, Executor};
use pv_drivers::Error;
use pv_drivers::block::{Block, SECTOR};

/// What sector `number` of a disk of a test holds at first.
fn pattern(number: u64) -> Vec<u8> {
    (0..SECTOR as u64).map(|at| (number.wrapping_mul(31).wrapping_add(at) ^ (at >> 8)) as u8).collect()
}

/// All sectors are the host's; what is written is read again; what is outside is refused.
pub fn check() -> Result<(), Error> {
    let disk = Block::find()?;
    println!("{} sectors", disk.sectors());
    let mut sector = [0; SECTOR];
    for number in 0..disk.sectors() {
        disk.read_blocking(number, &mut sector)?;
        assert!(sector[..] == pattern(number), "sector {number}");
    }
    // Across pages, and at an odd address.
    let mut many = vec![0; 40 * SECTOR + 1];
    disk.read_blocking(3, &mut many[1..])?;
    let expected: Vec<u8> = (3..43).flat_map(pattern).collect();
    assert!(many[1..] == expected);
    let last = disk.sectors() - 1;
    disk.write_blocking(last, &[0x5a; SECTOR])?;
    disk.flush_blocking()?;
    disk.read_blocking(last, &mut sector)?;
    assert_eq!(sector, [0x5a; SECTOR]);
    assert_eq!(disk.read_blocking(last, &mut many[..2 * SECTOR]), Err(Error::BadRequest));
    assert_eq!(disk.read_blocking(u64::MAX, &mut sector), Err(Error::BadRequest));
    assert_eq!(disk.write_blocking(0, &[0; 100]), Err(Error::BadRequest));
    task::block_on(async {
        disk.write_zeroes(1, 2).await?;
        let zeros = disk.read(1, vec![1; 2 * SECTOR]).await?;
        assert_eq!(zeros, [0; 2 * SECTOR]);
        disk.discard(4, 4).await?;
        assert_eq!(disk.write_zeroes(last, 2).await, Err(Error::Io), "past the end");
        disk.flush().await
    })
}

/// A disk that cannot be written says so.
pub fn read_only() -> Result<(), Error> {
    let disk = Block::find()?;
    assert!(disk.is_read_only());
    assert_eq!(disk.write_blocking(0, &[0; SECTOR]), Err(Error::Unsupported));
    assert_eq!(task::block_on(disk.discard(0, 1)), Err(Error::Unsupported));
    let mut sector = [0; SECTOR];
    disk.read_blocking(0, &mut sector)?;
    assert!(sector[..] == pattern(0));
    Ok(())
}

/// Many tasks write and read at once, each in its own part of the disk, and some lose interest.
pub fn load(seed: u64) -> Result<(), Error> {
    const TASKS: u64 = 48;
    const ROUNDS: usize = 60;
    let disk = Rc::new(Block::find()?);
    let part = disk.sectors() / TASKS;
    let failed = Rc::new(RefCell::new(None));
    let executor = Executor::new();
    for number in 0..TASKS {
        let (disk, failed) = (disk.clone(), failed.clone());
        executor.spawner().spawn(async move {
            if let Err(error) = work(&disk, number * part, part, seed + number, ROUNDS).await {
                *failed.borrow_mut() = Some(error);
            }
        });
    }
    executor.run();
    failed.take().map_or(Ok(()), Err)
}

/// Makes a request, and waits no longer.
async fn lose_interest<F: Future>(request: F) {
    let mut request = pin!(request);
    poll_fn(|context| {
        let _ = request.as_mut().poll(context);
        Poll::Ready(())
    })
    .await;
}

async fn work(disk: &Block, start: u64, sectors: u64, seed: u64, rounds: usize) -> Result<(), Error> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut model: Vec<u8> = (start..start + sectors).flat_map(pattern).collect();
    for _ in 0..rounds {
        let first = random.usize(..sectors as usize);
        let bytes = first * SECTOR..random.usize(first + 1..=sectors as usize) * SECTOR;
        if random.bool() {
            random.fill(&mut model[bytes.clone()]);
            disk.write(start + first as u64, model[bytes].to_vec()).await?;
        } else {
            let read = disk.read(start + first as u64, vec![0; bytes.len()]).await?;
            assert!(read == model[bytes], "sectors {}.. differ", start + first as u64);
        }
        match random.u8(..) {
            0..16 => disk.flush().await?,
            16..40 => lose_interest(disk.read(start, vec![0; SECTOR])).await,
            _ => {}
        }
    }
    Ok(())
}
