//! Random operations through the server, and the same by system calls in a directory beside it: every result is the
//! same, and so is what is there in the end.

use super::*;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Names, few, so that operations meet.
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// A path of one to three names.
fn path(random: &mut fastrand::Rng) -> Vec<&'static str> {
    (0..random.usize(1..4)).map(|_| NAMES[random.usize(..NAMES.len())]).collect()
}

impl Guest {
    /// The node of a directory on the way, by lookups as a guest's kernel makes them.
    fn walk(&mut self, path: &[&str]) -> Result<u64> {
        path.iter().try_fold(ROOT, |node, name| {
            let entry = self.lookup(node, name)?;
            if entry.attr.mode & mode::KIND == mode::DIRECTORY {
                Ok(entry.nodeid)
            } else {
                Err(Errno::NOTDIR)
            }
        })
    }
}

fn twin(guest: &Guest, path: &[&str]) -> PathBuf {
    guest.outside().join("twin").join(path.join("/"))
}

/// Does one thing, both ways.
fn step(guest: &mut Guest, random: &mut fastrand::Rng) {
    let (first, second) = (path(random), path(random));
    let (first_twin, second_twin) = (twin(guest, &first), twin(guest, &second));
    let (name, directory) = first.split_last().unwrap();
    let (other, other_directory) = second.split_last().unwrap();
    let node = guest.walk(directory);
    let data = vec![random.u8(..); random.usize(..5000)];
    let offset = random.u64(..5000);
    let (what, got, wanted) = match random.u8(..8) {
        0 => ("mkdir", node.and_then(|node| guest.mkdir(node, name)).map(drop), {
            rustix::fs::mkdir(&first_twin, Mode::from_raw_mode(0o755))
        }),
        1 => ("remove", node.and_then(|node| guest.remove(node, name)), rustix::fs::unlink(&first_twin)),
        2 => ("rmdir", node.and_then(|node| guest.rmdir(node, name)), rustix::fs::rmdir(&first_twin)),
        3 => {
            let flags = [0, rename::NO_REPLACE, rename::EXCHANGE][random.usize(..3)];
            let to = guest.walk(other_directory);
            let got = node.and_then(|node| guest.rename((node, name), (to?, other), flags));
            let flags = RenameFlags::from_bits_retain(flags);
            ("rename", got, rustix::fs::renameat_with(CWD, &first_twin, CWD, &second_twin, flags))
        }
        4 => {
            let to = guest.walk(other_directory);
            let from = node.and_then(|node| guest.lookup(node, name));
            let got = from.and_then(|from| {
                guest.ask::<EntryOut>(opcode::LINK, to?, &LinkIn { oldnodeid: from.nodeid }, &zero(other))
            });
            let empty = AtFlags::empty();
            ("link", got.map(drop), rustix::fs::linkat(CWD, &first_twin, CWD, &second_twin, empty))
        }
        5 => {
            let truncate = if random.bool() { open::TRUNCATE } else { 0 };
            let made = node.and_then(|node| guest.create(node, name, open::READ_WRITE | truncate));
            let got = made.and_then(|(_, fh)| {
                assert_eq!(guest.write(fh, offset, &data)?, data.len() as u32);
                guest.release(fh)
            });
            let flags = OFlags::CREATE | OFlags::RDWR | OFlags::from_bits_retain(truncate);
            let wanted = rustix::fs::open(&first_twin, flags, Mode::from_raw_mode(0o644));
            let wanted = wanted.and_then(|file| rustix::io::pwrite(file, &data, offset).map(drop));
            ("write", got, wanted)
        }
        6 => {
            let entry = node.and_then(|node| guest.lookup(node, name));
            let wanted = SetattrIn { valid: setattr::SIZE, size: offset, ..SetattrIn::default() };
            let got = entry.and_then(|entry| guest.set(entry.nodeid, wanted)).map(drop);
            let file = rustix::fs::open(&first_twin, OFlags::WRONLY, Mode::empty());
            ("truncate", got, file.and_then(|file| rustix::fs::ftruncate(file, offset)))
        }
        _ => {
            let entry = node.and_then(|node| guest.lookup(node, name));
            let read = entry.and_then(|entry| {
                let fh = guest.open(entry.nodeid, open::READ_ONLY)?;
                let read = guest.read(fh, 0, 1 << 20);
                guest.release(fh).and(read)
            });
            if let Ok(read) = &read {
                assert!(*read == fs::read(&first_twin).unwrap(), "{first:?}");
            }
            // A directory can be opened for reading there, and not read.
            let file = rustix::fs::open(&first_twin, OFlags::RDONLY, Mode::empty());
            let wanted = file.and_then(|file| rustix::io::read(file, &mut [0; 1]).map(drop));
            ("read", read.map(drop), wanted)
        }
    };
    assert_eq!(got, wanted, "{what} {first:?} {second:?}");
}

/// All there is beneath a directory: kind and permissions, and the content of files.
fn tree(directory: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut all = BTreeMap::new();
    let mut rest = vec![directory.to_path_buf()];
    while let Some(next) = rest.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::metadata(&path).unwrap();
            let content = if metadata.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            if metadata.is_dir() {
                rest.push(path.clone());
            }
            all.insert(path.strip_prefix(directory).unwrap().into(), (metadata.mode(), content));
        }
    }
    all
}

#[test]
fn random_operations_do_what_they_do_on_the_host() {
    for seed in 0..20 {
        let mut guest = Guest::new(Access::ReadWrite);
        fs::create_dir(twin(&guest, &[])).unwrap();
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..500 {
            step(&mut guest, &mut random);
            guest.server.reset(); // a guest that forgets all it knows
        }
        assert_eq!(tree(&guest.host("")), tree(&twin(&guest, &[])), "seed {seed}");
    }
}
