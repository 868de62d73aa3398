//! What must not work, whatever a guest asks for.

use super::*;
use rustix::fs::{CWD, FileType, Mode};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn no_name_leads_out_of_the_folder() {
    let mut guest = Guest::new(Access::ReadWrite);
    let directory = guest.mkdir(ROOT, "directory").unwrap().nodeid;
    symlink("..", guest.host("up")).unwrap();
    symlink("/", guest.host("root")).unwrap();
    let (up, root) = (guest.lookup(ROOT, "up").unwrap().nodeid, guest.lookup(ROOT, "root").unwrap().nodeid);
    for node in [ROOT, directory, up, root] {
        for name in
            ["..", ".", "", "../secret", "../../secret", "/etc/passwd", "up/secret", "directory/..", "/"]
        {
            assert_eq!(guest.lookup(node, name).unwrap_err(), Errno::INVAL, "{name}");
            assert_eq!(guest.create(node, name, open::READ_WRITE).unwrap_err(), Errno::INVAL, "{name}");
            assert_eq!(guest.mkdir(node, name).unwrap_err(), Errno::INVAL, "{name}");
            assert_eq!(guest.remove(node, name), Err(Errno::INVAL), "{name}");
            assert_eq!(guest.rmdir(node, name), Err(Errno::INVAL), "{name}");
            assert_eq!(guest.rename((ROOT, "directory"), (node, name), 0), Err(Errno::INVAL), "{name}");
            assert_eq!(guest.rename((node, name), (ROOT, "stolen"), 0), Err(Errno::INVAL), "{name}");
            let linked: Result<EntryOut> =
                guest.ask(opcode::LINK, node, &LinkIn { oldnodeid: up }, &zero(name));
            assert_eq!(linked, Err(Errno::INVAL), "{name}");
        }
    }
    for link in [up, root] {
        assert_eq!(guest.lookup(link, "secret").unwrap_err(), Errno::NOTDIR);
        assert_eq!(guest.create(link, "new", open::READ_WRITE).unwrap_err(), Errno::NOTDIR);
        assert_eq!(guest.opendir(link), Err(Errno::NOTDIR));
        assert_eq!(guest.open(link, open::READ_ONLY), Err(Errno::LOOP));
    }
    assert_eq!(fs::read(guest.outside().join("secret")).unwrap(), b"secret");
    assert_eq!(fs::read_dir(guest.outside()).unwrap().count(), 2);
}

#[test]
fn links_are_not_followed_whatever_is_done_to_them() {
    let mut guest = Guest::new(Access::ReadWrite);
    symlink("../secret", guest.host("link")).unwrap();
    let secret = guest.outside().join("secret");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o640)).unwrap();
    let before = fs::metadata(&secret).unwrap();
    let link = guest.lookup(ROOT, "link").unwrap().nodeid;
    let all = setattr::SIZE | setattr::MODE | setattr::ATIME | setattr::MTIME;
    for valid in (0..9).map(|bit| 1 << bit & all).filter(|valid| *valid != 0) {
        let _ = guest.set(link, SetattrIn { valid, mode: 0o777, atime: 1, mtime: 1, ..SetattrIn::default() });
    }
    for flags in 0..4 {
        assert!(guest.open(link, flags).is_err());
        assert!(guest.open(link, flags | open::TRUNCATE).is_err());
        assert!(guest.create(ROOT, "link", flags | open::TRUNCATE).is_err());
    }
    assert_eq!(guest.ask::<EntryOut>(opcode::SYMLINK, ROOT, &(), b"new\0/etc\0"), Err(Errno::PERM));
    let linked: Result<EntryOut> = guest.ask(opcode::LINK, ROOT, &LinkIn { oldnodeid: link }, b"second\0");
    assert!(linked.is_err() || fs::symlink_metadata(guest.host("second")).unwrap().is_symlink());
    let after = fs::metadata(&secret).unwrap();
    assert_eq!((after.permissions(), after.len()), (before.permissions(), before.len()));
    assert_eq!(
        (after.modified().unwrap(), after.accessed().unwrap()),
        (before.modified().unwrap(), before.accessed().unwrap())
    );
}

#[test]
fn what_is_no_file_is_shown_and_not_opened() {
    let mut guest = Guest::new(Access::ReadWrite);
    rustix::fs::mknodat(CWD, guest.host("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    let _listener = UnixListener::bind(guest.host("socket")).unwrap();
    for name in ["fifo", "socket"] {
        let node = guest.lookup(ROOT, name).unwrap().nodeid;
        for flags in 0..3 {
            // Were the FIFO opened, the test would hang here, for nobody is at its other end.
            assert_eq!(guest.open(node, flags), Err(Errno::ACCESS), "{name}");
            assert_eq!(guest.create(ROOT, name, flags).unwrap_err(), Errno::ACCESS, "{name}");
        }
        assert_eq!(guest.opendir(node), Err(Errno::NOTDIR));
        let set = SetattrIn { valid: setattr::SIZE, ..SetattrIn::default() };
        assert_eq!(guest.set(node, set), Err(Errno::ACCESS));
        let set = SetattrIn { valid: setattr::MODE, mode: 0o777, ..SetattrIn::default() };
        assert_eq!(guest.set(node, set), Err(Errno::OPNOTSUPP));
    }
}

#[test]
fn no_file_runs_as_its_owner() {
    let mut guest = Guest::new(Access::ReadWrite);
    let request = CreateIn { flags: open::READ_WRITE, mode: 0o107_777, umask: 0, open_flags: 0 };
    guest.raw(opcode::CREATE, ROOT, &[request.as_bytes(), b"file\0"], 4096).unwrap();
    let request = MkdirIn { mode: 0o7777, umask: 0 };
    guest.ask::<EntryOut>(opcode::MKDIR, ROOT, &request, b"directory\0").unwrap();
    for name in ["file", "directory"] {
        let node = guest.lookup(ROOT, name).unwrap().nodeid;
        let set = SetattrIn { valid: setattr::MODE, mode: 0o7777, ..SetattrIn::default() };
        assert_eq!(guest.attributes(node).unwrap().mode & 0o7000, 0, "{name}");
        assert_eq!(guest.set(node, set).unwrap().mode & 0o7777, 0o777, "{name}");
    }
    fs::set_permissions(guest.host("file"), fs::Permissions::from_mode(0o4755)).unwrap();
    let node = guest.lookup(ROOT, "file").unwrap().nodeid;
    for flags in [open::WRITE_ONLY, open::READ_WRITE, open::READ_ONLY | open::TRUNCATE] {
        assert_eq!(guest.open(node, flags), Err(Errno::PERM));
        assert_eq!(guest.create(ROOT, "file", flags).unwrap_err(), Errno::PERM);
    }
    let set = SetattrIn { valid: setattr::SIZE, ..SetattrIn::default() };
    assert_eq!(guest.set(node, set), Err(Errno::PERM));
    guest.open(node, open::READ_ONLY).unwrap();
}

#[test]
fn made_up_numbers_are_nobodys() {
    let mut guest = Guest::new(Access::ReadWrite);
    let (entry, fh) = guest.create(ROOT, "file", open::READ_WRITE).unwrap();
    for node in (0..100).chain([u64::MAX, 1 << 63]).filter(|node| ![ROOT, entry.nodeid].contains(node)) {
        assert_eq!(guest.attributes(node), Err(Errno::STALE));
        assert_eq!(guest.open(node, open::READ_ONLY), Err(Errno::STALE));
        assert_eq!(guest.lookup(node, "file").unwrap_err(), Errno::STALE);
    }
    for made_up in (0..100).chain([u64::MAX, 1 << 63]).filter(|made_up| *made_up != fh) {
        assert_eq!(guest.read(made_up, 0, 10), Err(Errno::BADF));
        assert_eq!(guest.write(made_up, 0, b"x"), Err(Errno::BADF));
        assert_eq!(guest.release(made_up), Err(Errno::BADF));
    }
    for lookups in [u64::MAX, 1] {
        guest.forget(ROOT, lookups);
        guest.forget(entry.nodeid, lookups);
    }
    assert_eq!(guest.attributes(entry.nodeid), Err(Errno::STALE), "it is forgotten");
    let again = guest.lookup(ROOT, "file").unwrap().nodeid;
    assert!(again > entry.nodeid, "and its number is not used again");
    assert_eq!(guest.write(fh, 0, b"x"), Ok(1), "what is open stays open");
}

#[test]
fn what_a_guest_can_have_is_limited() {
    let mut guest = Guest::new(Access::ReadWrite);
    for i in 0..200 {
        fs::write(guest.host(&format!("{i}")), "").unwrap();
    }
    let known = (0..200).filter(|i| guest.lookup(ROOT, &format!("{i}")).is_ok()).count();
    assert_eq!((known, guest.server.inodes.len()), (LIMITS.inodes, LIMITS.inodes));
    let known = (0..200).find(|i| guest.lookup(ROOT, &format!("{i}")).is_ok()).unwrap();
    let node = guest.lookup(ROOT, &format!("{known}")).unwrap().nodeid;
    let opened = (0..50).filter(|_| guest.open(node, open::READ_ONLY).is_ok()).count();
    assert_eq!((opened, guest.server.handles.len()), (LIMITS.handles, LIMITS.handles));
    assert_eq!(guest.open(node, open::READ_ONLY), Err(Errno::NFILE));
    assert_eq!(guest.opendir(ROOT), Err(Errno::NFILE));
    assert_eq!(guest.create(ROOT, "new", open::READ_WRITE).unwrap_err(), Errno::NFILE);
    assert!(!guest.host("new").exists(), "what cannot be opened is not made");
}

#[test]
fn a_folder_to_look_at_stays_as_it_is() {
    let mut guest = Guest::new(Access::ReadOnly);
    fs::write(guest.host("file"), "content").unwrap();
    fs::create_dir(guest.host("directory")).unwrap();
    let before = fs::metadata(guest.host("file")).unwrap();
    let (node, directory) =
        (guest.lookup(ROOT, "file").unwrap().nodeid, guest.lookup(ROOT, "directory").unwrap().nodeid);
    let fh = guest.open(node, open::READ_ONLY).unwrap();
    assert_eq!(guest.read(fh, 0, 100).unwrap(), b"content");
    assert_eq!(guest.list(ROOT, 4096).unwrap().len(), 4);

    let no = Errno::ROFS;
    for flags in [open::WRITE_ONLY, open::READ_WRITE, open::READ_ONLY | open::TRUNCATE] {
        assert_eq!(guest.open(node, flags), Err(no));
    }
    assert_eq!(guest.write(fh, 0, b"x"), Err(Errno::BADF));
    for flags in 0..3 {
        assert_eq!(guest.create(ROOT, "file", flags).unwrap_err(), no);
        assert_eq!(guest.create(ROOT, "new", flags).unwrap_err(), no);
    }
    for bit in 0..9 {
        let wanted = SetattrIn { valid: 1 << bit, fh, mtime: 1, mode: 0o777, ..SetattrIn::default() };
        assert_eq!(guest.set(node, wanted), Err(no));
        assert_eq!(guest.set(node, SetattrIn { valid: 1 << bit | setattr::FH, ..wanted }), Err(no));
    }
    assert_eq!(guest.mkdir(ROOT, "new").unwrap_err(), no);
    assert_eq!(guest.remove(ROOT, "file"), Err(no));
    assert_eq!(guest.rmdir(ROOT, "directory"), Err(no));
    assert_eq!(guest.rename((ROOT, "file"), (directory, "file"), 0), Err(no));
    assert_eq!(guest.ask::<EntryOut>(opcode::LINK, ROOT, &LinkIn { oldnodeid: node }, b"new\0"), Err(no));
    assert_eq!(guest.ask::<EntryOut>(opcode::SYMLINK, ROOT, &(), b"new\0x\0"), Err(no));
    let after = fs::metadata(guest.host("file")).unwrap();
    assert_eq!(
        (after.len(), after.permissions(), after.modified().unwrap()),
        (7, before.permissions(), before.modified().unwrap())
    );
    assert_eq!(fs::read_dir(guest.host("")).unwrap().count(), 2);
}

/// A program of the host's, hostile or not, exchanges a directory for a link to what is outside, all the time.
#[test]
fn names_that_change_while_they_are_looked_up_lead_nowhere_else() {
    let mut guest = Guest::new(Access::ReadWrite);
    fs::create_dir(guest.host("a")).unwrap();
    fs::write(guest.host("a/secret"), "mine").unwrap();
    symlink("..", guest.host("b")).unwrap();
    let (a, b, stop) = (guest.host("a"), guest.host("b"), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let exchange = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(CWD, &a, CWD, &b, exchange).unwrap();
            }
        });
        let (mut directories, mut links) = (0, 0);
        for _ in 0..5000 {
            let node = guest.lookup(ROOT, "a").unwrap().nodeid;
            match guest.lookup(node, "secret") {
                Ok(entry) => {
                    let fh = guest.open(entry.nodeid, open::READ_ONLY).unwrap();
                    assert_eq!(guest.read(fh, 0, 100).unwrap(), b"mine");
                    guest.release(fh).unwrap();
                    directories += 1;
                }
                Err(error) => {
                    assert_eq!(error, Errno::NOTDIR);
                    links += 1;
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        eprintln!("{directories} times the directory, {links} times the link");
    });
}

#[test]
fn mount_points_are_not_entered_and_proc_is_not_shared() {
    let open = |path, tag| SharedFolder::open(Path::new(path), tag, Access::ReadOnly);
    assert!(matches!(open("/proc/self", "share"), Err(FolderError::Proc { .. })));
    assert!(matches!(open("/etc/passwd", "share"), Err(FolderError::Open { .. })));
    for tag in ["", "a\0", "more than 36 bytes are too much for it"] {
        assert!(matches!(open("/", tag), Err(FolderError::Tag { .. })));
    }
    let root = open("/", "share").unwrap();
    let error = root.lookup(root.directory(), c"proc").unwrap_err();
    assert_eq!(error, Errno::XDEV);
}

#[test]
fn requests_of_any_length_and_content_get_an_answer() {
    let mut guest = Guest::new(Access::ReadWrite);
    guest.mkdir(ROOT, "a").unwrap();
    guest.create(ROOT, "b", open::READ_WRITE).unwrap();
    let mut random = fastrand::Rng::with_seed(1);
    for round in 0..20_000_u64 {
        let mut bytes: Vec<u8> =
            (0..random.usize(0..200)).map(|_| *random.choice(b"\0\x01\x02ab./\xff").unwrap()).collect();
        let small = |random: &mut fastrand::Rng| random.u64(0..4);
        for field in bytes.as_mut_slice().as_chunks_mut::<8>().0 {
            if random.bool() {
                field.copy_from_slice(&small(&mut random).to_le_bytes());
            }
        }
        let len = if random.u8(0..10) == 0 { random.u32(..) } else { 40 + bytes.len() as u32 };
        let nodeid = small(&mut random);
        let header =
            InHeader { len, opcode: random.u32(0..55), unique: round, nodeid, ..InHeader::default() };
        let mut request = [header.as_bytes(), &bytes].concat();
        if random.u8(0..20) == 0 {
            request.truncate(random.usize(0..request.len()));
        }
        let room = random.usize(0..400);
        let reply = guest.memory.answer(&mut guest.server, &request, room);
        if !reply.is_empty() {
            let told = OutHeader::read_from_prefix(&reply).unwrap().0;
            assert_eq!((told.len as usize, told.unique), (reply.len(), round));
            assert!((-4096..=0).contains(&told.error));
        }
    }
    assert!(guest.server.inodes.len() <= LIMITS.inodes && guest.server.handles.len() <= LIMITS.handles);
    assert_eq!(fs::read(guest.outside().join("secret")).unwrap(), b"secret");
    assert_eq!(fs::read_dir(guest.outside()).unwrap().count(), 2);
}
