//! How the monitors of one user that share processors by weight know of each other: a small file with a record each.
//!
//! A record says what its VM has used, what it waited for, and when that was written. Nothing has to be cleaned up: a record
//! that was not written lately is of no account, and a lock on it, which the host takes back when its monitor ends,
//! says whether somebody else may have its place. The others' words are numbers and no more: a monitor that writes
//! nonsense can make others of its user wait, as it could with signals, but not for long and not for ever.

use super::policy::Figures;
use crate::clock::monotonic_ns;
use rustix::fs::{Mode, OFlags};
use rustix::thread::sched_getaffinity;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Monitors that find a place.
const PLACES: usize = 256;
/// A record that is older is of no account.
const FRESH: Duration = Duration::from_millis(500);

/// What a monitor says of its VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Record {
    /// When it was written, on the host's monotonic clock; 0: never.
    at: u64,
    used: u64,
    delayed: u64,
    weight: u32,
    reserved: u32,
    /// Processors that it may run on, modulo their number here.
    processors: [u64; 4],
}
const SIZE: usize = size_of::<Record>();
const _: () = assert!(SIZE == 64);

/// A VM's place among its peers.
#[derive(Debug)]
pub struct Peers {
    file: File,
    place: usize,
}

/// Another VM on the same processors that is looked after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    pub place: usize,
    pub figures: Figures,
}

impl Peers {
    /// Takes a place in the file, which is made if it is not there. It should be in a directory that is its user's alone.
    ///
    /// # Errors
    ///
    /// What the host said; [`io::ErrorKind::StorageFull`] if all places are taken.
    pub fn join(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = File::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?);
        for place in 0..PLACES {
            if lock(&file, place)? {
                let peers = Self { file, place };
                peers.write(&Record::default())?;
                return Ok(peers);
            }
        }
        Err(io::Error::new(io::ErrorKind::StorageFull, format!("all {PLACES} places are taken")))
    }

    /// Says how the VM is doing. An error is none of the guest's business: the others then do without.
    pub(super) fn publish(&self, figures: Figures) {
        let Figures { at, weight, used, delayed } = figures;
        let record = Record { at, used, delayed, weight, reserved: 0, processors: processors() };
        if let Err(error) = self.write(&record) {
            tracing::debug!(%error, "the other monitors cannot be told");
        }
    }

    fn write(&self, record: &Record) -> io::Result<()> {
        self.file.write_all_at(record.as_bytes(), (self.place * SIZE) as u64)
    }

    /// The others that may run on a processor of this one's, and say that they are there.
    pub(super) fn others(&self) -> Vec<Peer> {
        let mut bytes = [0; PLACES * SIZE];
        let length = self.file.read_at(&mut bytes, 0).unwrap_or(0);
        let (own, now) = (processors(), monotonic_ns());
        let records = bytes[..length].as_chunks::<SIZE>().0.iter().map(|bytes| zerocopy::transmute!(*bytes));
        let fresh = |record: &Record| now.abs_diff(record.at) < FRESH.as_nanos() as u64;
        let meets = |record: &Record| record.processors.iter().zip(own).any(|(a, b)| a & b != 0);
        records
            .enumerate()
            .filter(|(place, record)| *place != self.place && fresh(record) && meets(record))
            .map(|(place, Record { at, weight, used, delayed, .. })| Peer {
                place,
                figures: Figures { at, weight, used, delayed },
            })
            .collect()
    }
}

/// Processors that this monitor, and so its guest, may run on.
fn processors() -> [u64; 4] {
    let mut set = [0; 4];
    match sched_getaffinity(None) {
        Ok(allowed) => {
            let there = (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
            there.for_each(|cpu| set[cpu / 64 % 4] |= 1 << (cpu % 64));
        }
        Err(_) => set = [u64::MAX; 4],
    }
    set
}

/// Takes the lock of a place, unless somebody has it, for as long as the file is open.
#[expect(unsafe_code, reason = "open file description locks of ranges have no safe wrapper")]
fn lock(file: &File, place: usize) -> io::Result<bool> {
    // SAFETY: a zeroed `flock` is one.
    let mut range: libc::flock = unsafe { core::mem::zeroed() };
    range.l_type = libc::F_WRLCK as i16;
    range.l_whence = libc::SEEK_SET as i16;
    (range.l_start, range.l_len) = ((place * SIZE) as i64, SIZE as i64);
    // SAFETY: `fcntl` with F_OFD_SETLK reads the `flock`, which lives.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const range) } == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        error => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(used: u64) -> Figures {
        Figures { at: monotonic_ns(), weight: 100, used, delayed: 7 }
    }

    fn path(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("hv-peers-{name}-{}", std::process::id()))
    }

    #[test]
    fn peers_see_each_other_while_they_publish() {
        let path = path("see");
        let [a, b] = [Peers::join(&path).unwrap(), Peers::join(&path).unwrap()];
        assert_eq!(a.others(), [], "nothing was published yet");
        let [first, second, third] = [1, 2, 3].map(figures);
        a.publish(first);
        b.publish(second);
        b.publish(third);
        assert_eq!(a.others(), [Peer { place: 1, figures: third }]);
        assert_eq!(b.others(), [Peer { place: 0, figures: first }]);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn the_place_of_one_that_is_gone_is_somebody_elses_and_empty() {
        let path = path("gone");
        let [a, b] = [Peers::join(&path).unwrap(), Peers::join(&path).unwrap()];
        a.publish(figures(1));
        drop(a);
        let c = Peers::join(&path).unwrap();
        assert_eq!(c.place, 0);
        assert_eq!(b.others(), []);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn an_old_record_or_nonsense_is_of_no_account() {
        let path = path("old");
        let [a, b] = [Peers::join(&path).unwrap(), Peers::join(&path).unwrap()];
        let old = Record { at: 1, weight: 1, processors: [u64::MAX; 4], ..Record::default() };
        a.write(&old).unwrap();
        assert_eq!(b.others(), []);
        let nowhere = Record { at: monotonic_ns(), ..Record::default() };
        a.write(&nowhere).unwrap();
        assert_eq!(b.others(), []);
        a.file.set_len(SIZE as u64 / 2).unwrap();
        assert_eq!(b.others(), []);
        std::fs::remove_file(path).unwrap();
    }
}
