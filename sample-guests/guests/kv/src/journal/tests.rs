//! What is on a disk, and what becomes of it when something is wrong there.

use super::*;
use crate::testing::{PowerLoss, TestDisk};

const SECTORS: usize = 1024;

/// A log that is open, with the commands of its records.
type Opened<'a> = (Journal<&'a mut TestDisk>, Vec<Vec<u8>>);

fn open(disk: &mut TestDisk) -> Result<Opened<'_>, OpenError<PowerLoss>> {
    let mut records = Vec::new();
    let journal = Journal::open(disk, |record| {
        records.push(record.to_vec());
        true
    })?;
    Ok((journal, records))
}

/// A disk with a log of a snapshot, which is one record, and two commits.
fn written() -> TestDisk {
    let mut disk = TestDisk::new(SECTORS);
    let (mut journal, records) = open(&mut disk).unwrap();
    assert!(records.is_empty());
    let mut rewrite = journal.rewrite(7);
    rewrite.batch().extend_from_slice(b"snapshot");
    assert_eq!(rewrite.finish(), Ok(true));
    for record in [&b"first"[..], &[b'x'; 1000]] {
        journal.batch().extend_from_slice(record);
        assert_eq!(journal.commit(), Ok(Commit::Done));
    }
    disk
}

#[test]
fn what_was_committed_is_read_again() {
    let mut disk = written();
    let (journal, records) = open(&mut disk).unwrap();
    assert_eq!(records, [b"snapshot".to_vec(), b"first".to_vec(), vec![b'x'; 1000]]);
    assert_eq!(journal.figures().records, 3);
    assert_eq!(journal.figures().generation, 1);
}

#[test]
fn a_bit_that_changed_is_noticed_wherever_it_is() {
    let disk = written();
    // The first area: the header, the snapshot, one record of one sector, one of two.
    for byte in 0..5 * SECTOR {
        let mut damaged = disk.clone();
        damaged.durable[byte] ^= 0x10;
        let found = open(&mut damaged).map(|(_, records)| records.len());
        match byte / SECTOR {
            0 => assert!(
                matches!(found, Err(OpenError::Foreign | OpenError::Version(_))),
                "byte {byte}: {found:?}"
            ),
            1 => assert!(matches!(found, Err(OpenError::Damaged(0, 1))), "byte {byte}: {found:?}"),
            2 => assert!(matches!(found, Err(OpenError::Damaged(1, 2))), "byte {byte}: {found:?}"),
            _ => assert!(matches!(found, Ok(2)), "byte {byte}: the last record is cut off: {found:?}"),
        }
    }
}

#[test]
fn a_disk_with_something_else_is_left_alone() {
    let mut disk = TestDisk::new(SECTORS);
    disk.durable[510..512].copy_from_slice(&[0x55, 0xaa]);
    assert!(matches!(open(&mut disk), Err(OpenError::Foreign)));
    assert_eq!(disk.made, 0, "nothing was written");
    assert!(matches!(open(&mut TestDisk::new(255)), Err(OpenError::TooSmall(256))));
}

#[test]
fn records_of_an_older_log_are_not_taken_for_the_newers() {
    let mut disk = written();
    let (mut journal, _) = open(&mut disk).unwrap();
    // Into the second area, and then the first again, where the old records still are.
    for salt in [8, 9] {
        let mut rewrite = journal.rewrite(salt);
        rewrite.batch().extend_from_slice(b"snapshot");
        assert_eq!(rewrite.finish(), Ok(true));
    }
    assert_eq!(open(&mut disk).unwrap().1, [b"snapshot"]);
}

#[test]
fn what_does_not_fit_is_not_written() {
    let mut disk = written();
    let (mut journal, _) = open(&mut disk).unwrap();
    let room = journal.room() as usize;
    journal.batch().resize(room, b'y');
    assert_eq!(journal.commit(), Ok(Commit::Full));
    let mut rewrite = journal.rewrite(8);
    rewrite.batch().resize(room + 1, b'z');
    assert_eq!(rewrite.finish(), Ok(false));
    assert_eq!(open(&mut disk).unwrap().1.len(), 3, "the old log is as it was");
}

#[test]
fn random_damage_never_gives_other_records() {
    let disk = written();
    let whole = open(&mut disk.clone()).unwrap().1;
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..2000 {
        let mut damaged = disk.clone();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..8 * SECTOR);
            let length = random.usize(1..64);
            damaged.durable[at..at + length].fill_with(|| random.u8(..));
        }
        if let Ok((_, records)) = open(&mut damaged) {
            assert!(whole.starts_with(&records), "{records:?}");
        }
    }
}
