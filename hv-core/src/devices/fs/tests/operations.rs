//! What works, operation by operation, and what the host then has.

use super::*;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::{Duration, UNIX_EPOCH};

#[test]
fn a_file_is_made_written_read_and_removed() {
    let mut guest = Guest::new(Access::ReadWrite);
    let (entry, fh) = guest.create(ROOT, "file", open::READ_WRITE).unwrap();
    assert_eq!(entry.attr.mode, mode::REGULAR | 0o644);
    assert_eq!(guest.write(fh, 3, b"abc"), Ok(3));
    assert_eq!(fs::read(guest.host("file")).unwrap(), b"\0\0\0abc");
    assert_eq!(guest.read(fh, 1, 100).unwrap(), b"\0\0abc");
    assert_eq!(guest.read(fh, 6, 100).unwrap(), b"");
    assert_eq!(guest.ask(opcode::FSYNC, 0, &FsyncIn { fh, ..FsyncIn::default() }, b""), Ok(()));
    assert_eq!(guest.ask(opcode::FLUSH, 0, &FlushIn { fh, ..FlushIn::default() }, b""), Ok(()));
    assert_eq!(guest.remove(ROOT, "file"), Ok(()));
    assert!(!guest.host("file").exists());
    assert_eq!(guest.read(fh, 3, 3).unwrap(), b"abc", "it is open still");
    assert_eq!(guest.attributes(entry.nodeid).unwrap().nlink, 0);
    assert_eq!(guest.release(fh), Ok(()));
    assert_eq!(guest.release(fh), Err(Errno::BADF));
    assert_eq!(guest.lookup(ROOT, "file").unwrap_err(), Errno::NOENT);
}

#[test]
fn a_write_of_a_mebibyte_is_one_request() {
    let mut guest = Guest::new(Access::ReadWrite);
    let (_, fh) = guest.create(ROOT, "file", open::READ_WRITE).unwrap();
    let bytes: Vec<u8> = (0..1 << 20).map(|i: u32| (i / 7) as u8).collect();
    assert_eq!(guest.write(fh, 0, &bytes), Ok(1 << 20));
    assert!(guest.read(fh, 0, 1 << 20).unwrap() == bytes);
    assert_eq!(guest.write(fh, 0, &[&bytes[..], b"x"].concat()), Err(Errno::INVAL));
    assert_eq!(guest.read(fh, 0, u32::MAX >> 8).unwrap().len(), 1 << 20);
}

#[test]
fn opening_truncates_appends_and_excludes() {
    let mut guest = Guest::new(Access::ReadWrite);
    fs::write(guest.host("file"), "before").unwrap();
    let node = guest.lookup(ROOT, "file").unwrap().nodeid;
    let fh = guest.open(node, open::WRITE_ONLY | open::APPEND).unwrap();
    assert_eq!(guest.write(fh, 0, b" and after"), Ok(10));
    assert_eq!(fs::read(guest.host("file")).unwrap(), b"before and after");
    assert_eq!(guest.read(fh, 0, 1), Err(Errno::BADF));
    let made = guest.create(ROOT, "file", open::READ_WRITE | open::EXCLUSIVE);
    assert_eq!(made.unwrap_err(), Errno::EXIST);
    let (entry, _) = guest.create(ROOT, "file", open::WRITE_ONLY | open::TRUNCATE).unwrap();
    assert_eq!((entry.nodeid, entry.attr.size), (node, 0));
}

#[test]
fn directories_are_made_listed_and_removed() {
    let mut guest = Guest::new(Access::ReadWrite);
    let directory = guest.mkdir(ROOT, "directory").unwrap();
    assert_eq!(directory.attr.mode, mode::DIRECTORY | 0o755);
    let names: Vec<String> = (0..500).map(|i| format!("file with the number {i}")).collect();
    names.iter().for_each(|name| fs::write(guest.host("directory").join(name), "").unwrap());
    for size in [64, 500, 4096, 1 << 20] {
        let mut listed = guest.list(directory.nodeid, size).unwrap();
        listed.sort_by(|a, b| a.0.cmp(&b.0));
        let mut wanted = [&[".".to_owned(), "..".to_owned()], &names[..]].concat();
        wanted.sort();
        assert_eq!(
            listed.iter().map(|(name, _)| name).collect::<Vec<_>>(),
            wanted.iter().collect::<Vec<_>>()
        );
        for (name, dirent) in listed {
            let ino = fs::metadata(guest.host("directory").join(if name == ".." { "." } else { &name }));
            assert_eq!(dirent.ino, ino.unwrap().ino(), "{name}");
            assert_eq!(dirent.kind, if name.starts_with('.') { 4 } else { 8 }, "{name}");
        }
    }
    assert_eq!(guest.list(directory.nodeid, 40).unwrap_err(), Errno::INVAL, "no name fits");
    assert_eq!(guest.rmdir(ROOT, "directory"), Err(Errno::NOTEMPTY));
    fs::remove_dir_all(guest.host("directory")).unwrap();
    assert_eq!(guest.list(directory.nodeid, 4096).unwrap_err(), Errno::NOENT);
    assert_eq!(guest.mkdir(directory.nodeid, "x").unwrap_err(), Errno::NOENT);
    guest.mkdir(ROOT, "directory").unwrap();
    assert_eq!(guest.rmdir(ROOT, "directory"), Ok(()));
    assert_eq!(guest.remove(ROOT, "directory"), Err(Errno::NOENT));
}

#[test]
fn a_listing_with_nodes_looks_everything_up() {
    let mut guest = Guest::new(Access::ReadWrite);
    fs::write(guest.host("a"), "abc").unwrap();
    let a = guest.lookup(ROOT, "a").unwrap().nodeid;
    let fh = guest.opendir(ROOT).unwrap();
    let request = ReadIn { fh, size: 4096, ..ReadIn::default() };
    let reply = guest.raw(opcode::READDIRPLUS, ROOT, &[request.as_bytes()], 4096).unwrap();
    let mut rest = &reply[..];
    let mut found = 0;
    while !rest.is_empty() {
        let Direntplus { entry, dirent } = Direntplus::read_from_prefix(rest).unwrap().0;
        let length = 152 + dirent.namelen as usize;
        match &rest[152..length] {
            b"a" => assert_eq!((entry.nodeid, entry.attr.size), (a, 3)),
            _ => assert_eq!(entry, EntryOut::default(), "`.` and `..` are not looked up"),
        }
        rest = &rest[length.next_multiple_of(8)..];
        found += 1;
    }
    assert_eq!((found, guest.server.inodes.len()), (3, 1));
    guest.forget(a, 1);
    assert_eq!(guest.server.inodes.len(), 1, "it was given twice");
    guest.forget(a, 1);
    assert_eq!(guest.server.inodes.len(), 0);
}

#[test]
fn attributes_are_set_one_by_one() {
    let mut guest = Guest::new(Access::ReadWrite);
    let (EntryOut { nodeid, attr, .. }, fh) = guest.create(ROOT, "file", open::READ_WRITE).unwrap();
    let set = |valid| SetattrIn { valid, fh, size: 5, mode: 0o600, mtime: 1000, ..SetattrIn::default() };
    assert_eq!(guest.set(nodeid, set(setattr::SIZE)).unwrap().size, 5);
    assert_eq!(guest.set(nodeid, SetattrIn { size: 9, ..set(setattr::SIZE | setattr::FH) }).unwrap().size, 9);
    assert_eq!(guest.set(nodeid, set(setattr::MODE)).unwrap().mode, mode::REGULAR | 0o600);
    let told = guest.set(nodeid, set(setattr::MTIME)).unwrap();
    assert_eq!((told.mtime, told.mtimensec, told.atime), (1000, 0, attr.atime));
    let modified = fs::metadata(guest.host("file")).unwrap().modified().unwrap();
    assert_eq!(modified, UNIX_EPOCH + Duration::from_secs(1000));
    assert!(guest.set(nodeid, set(setattr::MTIME | setattr::MTIME_NOW)).unwrap().mtime > 1000);
    let owner = SetattrIn { uid: attr.uid, gid: attr.gid, ..set(setattr::UID | setattr::GID) };
    assert_eq!(guest.set(nodeid, owner).map(|attr| attr.uid), Ok(attr.uid));
    assert_eq!(guest.set(nodeid, SetattrIn { uid: attr.uid + 1, ..owner }), Err(Errno::PERM));
    assert_eq!(fs::metadata(guest.host("file")).unwrap().permissions().mode() & 0o7777, 0o600);
}

#[test]
fn names_move_and_change_places() {
    let mut guest = Guest::new(Access::ReadWrite);
    let directory = guest.mkdir(ROOT, "directory").unwrap().nodeid;
    fs::write(guest.host("a"), "a").unwrap();
    fs::write(guest.host("b"), "b").unwrap();
    let no = guest.rename((ROOT, "a"), (ROOT, "b"), rename::NO_REPLACE);
    assert_eq!(no, Err(Errno::EXIST));
    assert_eq!(guest.rename((ROOT, "a"), (ROOT, "b"), rename::EXCHANGE), Ok(()));
    assert_eq!(fs::read(guest.host("a")).unwrap(), b"b");
    assert_eq!(guest.rename((ROOT, "a"), (directory, "c"), 0), Ok(()));
    assert_eq!(fs::read(guest.host("directory/c")).unwrap(), b"b");
    let request = RenameIn { newdir: ROOT };
    assert_eq!(guest.ask(opcode::RENAME, directory, &request, b"c\0b\0"), Ok(()));
    assert_eq!(fs::read(guest.host("b")).unwrap(), b"b");
    assert_eq!(guest.rename((ROOT, "directory"), (directory, "itself"), 0), Err(Errno::INVAL));
}

#[test]
fn hard_links_are_one_file() {
    let mut guest = Guest::new(Access::ReadWrite);
    fs::write(guest.host("a"), "abc").unwrap();
    let a = guest.lookup(ROOT, "a").unwrap().nodeid;
    let linked: EntryOut = guest.ask(opcode::LINK, ROOT, &LinkIn { oldnodeid: a }, b"b\0").unwrap();
    assert_eq!((linked.nodeid, linked.attr.nlink), (a, 2));
    assert_eq!(fs::read(guest.host("b")).unwrap(), b"abc");
}

#[test]
fn links_are_shown_as_links() {
    let mut guest = Guest::new(Access::ReadWrite);
    symlink("../secret", guest.host("link")).unwrap();
    let link = guest.lookup(ROOT, "link").unwrap();
    assert_eq!(link.attr.mode & mode::KIND, mode::SYMLINK);
    assert_eq!(guest.raw(opcode::READLINK, link.nodeid, &[], 4096).unwrap(), b"../secret");
    assert_eq!(guest.raw(opcode::READLINK, link.nodeid, &[], 3), Err(Errno::MSGSIZE));
}

#[test]
fn what_the_host_does_is_seen_at_once() {
    let mut guest = Guest::new(Access::ReadWrite);
    fs::write(guest.host("file"), "one").unwrap();
    let entry = guest.lookup(ROOT, "file").unwrap();
    assert_eq!((entry.entry_valid, entry.attr_valid), (0, 0));
    fs::write(guest.host("file"), "three").unwrap();
    assert_eq!(guest.attributes(entry.nodeid).unwrap().size, 5);
    fs::rename(guest.host("file"), guest.host("other")).unwrap();
    assert_eq!(guest.lookup(ROOT, "file").unwrap_err(), Errno::NOENT);
    assert_eq!(guest.lookup(ROOT, "other").unwrap().nodeid, entry.nodeid);
    let fh = guest.open(entry.nodeid, open::READ_ONLY).unwrap();
    assert_eq!(guest.read(fh, 0, 100).unwrap(), b"three");
    fs::write(guest.host("other"), "").unwrap();
    assert_eq!(guest.read(fh, 0, 100).unwrap(), b"", "a file that shrinks is no error");
}

#[test]
fn the_protocols_version_is_agreed_on() {
    let mut guest = Guest::new(Access::ReadWrite);
    let mut init = |major, minor| {
        let request = InitIn { major, minor, max_readahead: 4096, flags: init::BIG_WRITES };
        guest.ask::<InitOut>(opcode::INIT, 0, &request, b"").map(|out| (out.major, out.minor, out.flags))
    };
    assert_eq!(init(7, 31), Ok((7, 31, init::BIG_WRITES)));
    assert_eq!(init(7, 27), Ok((7, 27, init::BIG_WRITES)));
    assert_eq!(init(7, 40), Ok((7, 31, init::BIG_WRITES)));
    assert_eq!(init(8, 0), Ok((7, 31, init::BIG_WRITES)));
    assert_eq!(init(7, 26), Err(Errno::PROTO));
    assert_eq!(init(6, 99), Err(Errno::PROTO));
    let created = guest.create(ROOT, "file", open::READ_WRITE).unwrap();
    guest.ask::<()>(opcode::DESTROY, 0, &(), b"").unwrap();
    assert_eq!(guest.attributes(created.0.nodeid), Err(Errno::STALE));
    assert_eq!(guest.release(created.1), Err(Errno::BADF));
}

#[test]
fn the_host_tells_how_much_room_there_is() {
    let mut guest = Guest::new(Access::ReadOnly);
    let told: StatfsOut = guest.ask(opcode::STATFS, ROOT, &(), b"").unwrap();
    let host = rustix::fs::statvfs(guest.host("")).unwrap();
    assert_eq!((told.blocks, told.frsize, told.namelen), (host.f_blocks, host.f_frsize as u32, 255));
}
