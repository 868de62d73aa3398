//! The server under the client that everybody else's servers have: Linux's, by `/dev/fuse`. Only root can mount.

#![expect(unsafe_code, reason = "a mount namespace of its own")]

use super::*;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;

/// Mounts a folder for this thread alone, and what it starts, and serves it. `None`: this user may not.
fn mount(folder: &Path, at: &Path) -> Option<()> {
    let device = rustix::fs::openat(CWD, "/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).ok()?;
    // SAFETY: a mount namespace of its own takes nothing from a thread that it could still be using.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.ok()?;
    let private = rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).ok()?;
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let options = std::ffi::CString::new(options).unwrap();
    rustix::mount::mount("hv", at, "fuse", rustix::mount::MountFlags::empty(), Some(options.as_c_str()))
        .ok()?;
    let limits = Limits { inodes: 10_000, handles: 100 };
    let server = Server::new(SharedFolder::open(folder, "share", Access::ReadWrite).unwrap(), limits);
    std::thread::spawn(move || serve(server, &device));
    Some(())
}

/// Until it is unmounted, which the end of the last thread and process that see it does.
fn serve(mut server: Server, device: &OwnedFd) {
    let mut memory = Memory::new();
    let mut request = vec![0; MOST];
    while let Ok(length) = rustix::io::read(device, &mut request) {
        let reply = memory.answer(&mut server, &request[..length], MOST);
        if !reply.is_empty() {
            rustix::io::write(device, &reply).expect("Linux takes the reply");
        }
    }
}

fn shell(directory: &Path, command: &str) -> String {
    let output = Command::new("sh").arg("-ec").arg(command).current_dir(directory).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command}: {told}{}", String::from_utf8_lossy(&output.stderr));
    told
}

#[test]
fn linux_can_use_the_folder() {
    let outside = tempfile::tempdir().unwrap();
    let (folder, mounted) = (outside.path().join("folder"), outside.path().join("mounted"));
    fs::create_dir(&folder).unwrap();
    fs::create_dir(&mounted).unwrap();
    let path = outside.path().to_path_buf();
    std::thread::spawn(move || {
        if mount(&folder, &mounted).is_none() {
            eprintln!("no file system can be mounted here: not tested");
            return;
        }
        // Copies of this crate's own source, made on either side, are the same on the other.
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
        shell(&path, &format!("cp -r {source} mounted/copy; diff -r {source} folder/copy"));
        shell(&path, &format!("cp -r {source} folder/other; diff -r {source} mounted/other"));
        shell(&path, "tar cf mounted/all.tar -C mounted copy; tar xf folder/all.tar -C folder/other; diff -r mounted/copy mounted/other/copy");
        shell(&path, "mv mounted/other mounted/copy/deep; diff -r mounted/copy/deep/copy mounted/copy/deep/copy; rm -r mounted/copy/deep");
        // As many files as take many replies to list; then of the sizes around pages and requests.
        shell(&path, "mkdir mounted/many; cd mounted/many; seq 3000 | xargs touch; ls | wc -l | grep -qx 3000");
        assert_eq!(fs::read_dir(folder.join("many")).unwrap().count(), 3000);
        for size in [0, 1, 4095, 4097, (1 << 20) - 1, 1 << 20, (3 << 20) + 5] {
            shell(&path, &format!("head -c {size} /dev/urandom >mounted/data; cmp mounted/data folder/data; cat mounted/data | cmp - folder/data"));
        }
        shell(&path, "echo one >mounted/log; echo two >>mounted/log; printf 'one\\ntwo\\n' | cmp - folder/log");
        shell(&path, "ln mounted/log mounted/hard; chmod 600 mounted/hard; test $(stat -c %a%h folder/log) = 6002");
        shell(&path, "touch -d @1000 mounted/log; test $(stat -c %Y folder/log) = 1000; df mounted >/dev/null; sync mounted/log");
        shell(&path, "! ln -s /etc mounted/link; ln -s ../folder/log folder/link; test $(cat mounted/link) = one || true");
        shell(&path, "truncate -s 5 mounted/log; test $(stat -c %s folder/log) = 5; rm mounted/log; test ! -e folder/log");
    })
    .join()
    .expect("Linux could use it");
}
