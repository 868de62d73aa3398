//! `hv run --share`, with the monitor locked down as it always is.

use std::fs;
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

fn run(command: &mut Command) -> Output {
    command.env_remove("RUST_LOG").stdin(Stdio::null()).output().expect("hv can be started")
}

/// What minios writes for `line`, with these options.
fn minios(options: &[&str], line: &str) -> Output {
    let hv = env!("CARGO_BIN_EXE_hv");
    run(Command::new(hv).args(["run", "minios"]).args(options).args(["--", "-c", line]))
}

fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A directory with a file in it.
fn folder() -> (TempDir, String) {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    fs::write(directory.path().join("file"), "content\n").expect("a file can be written");
    let path = directory.path().to_str().expect("text").to_owned();
    (directory, path)
}

#[test]
fn a_folder_is_read_only_unless_the_option_says_otherwise() {
    let (directory, path) = folder();
    let output = minios(&["--share", &path], "cat /share/file; echo new >/share/new");
    assert_eq!(told(&output), "content\nsh: /share/new: cannot be changed: the file system is read-only\n");
    let output =
        minios(&["--share", &format!("{path}:data:rw")], "mkdir /data/d; cp /data/file /data/d/copy");
    assert_eq!((output.status.code(), told(&output)), (Some(0), String::new()));
    assert_eq!(fs::read(directory.path().join("d/copy")).expect("it is there"), b"content\n");
}

#[test]
fn several_folders_have_a_tag_each() {
    let ((_one, one), (_other, other)) = (folder(), folder());
    let output = minios(
        &["--share", &format!("{one}:one"), "--share", &format!("{other}:other:rw")],
        "cp /one/file /other/copy; cat /other/copy; mount",
    );
    let mounts = "/                archive\n/one             shared folder\n/other           shared folder\n";
    assert_eq!(told(&output), format!("content\n{mounts}"));
    let output = minios(&["--share", &one, "--share", &other], "");
    assert_ne!(output.status.code(), Some(0));
    assert!(told(&output).contains("two shared folders have the tag `share`"), "{}", told(&output));
}

#[test]
fn what_cannot_be_shared_is_refused_with_the_reason() {
    for (option, why) in [
        ("/nowhere/at/all", "No such file"),
        ("/etc/passwd", "Not a directory"),
        ("/proc/self", "in /proc"),
        ("/tmp:a tag that is longer than the thirty-six bytes of one", "36 bytes"),
        (":rw", "expected a folder"),
    ] {
        let output = minios(&["--share", option], "");
        assert_ne!(output.status.code(), Some(0), "{option}");
        assert!(told(&output).contains(why), "{option}: {}", told(&output));
    }
    let (_directory, path) = folder();
    let output = run(Command::new(env!("CARGO_BIN_EXE_hv")).args(["run", "hello", "--share", &path]));
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
}

#[test]
fn a_file_longer_than_the_user_may_make_one_is_an_error_of_the_guests() {
    let (directory, path) = folder();
    let file = fs::File::create(directory.path().join("big")).expect("a file can be made");
    file.set_len(24 << 20).expect("and be made long");
    // In blocks of 512 bytes: 40 MiB, for the VM's memory is a file, too.
    let script = r#"ulimit -f 81920; exec "$0" run minios --memory 32M --share "$1:share:rw" -- -c 'cat /share/big /share/big >/share/out; echo on'"#;
    let output = run(Command::new("sh").args(["-c", script, env!("CARGO_BIN_EXE_hv"), &path]));
    assert_eq!(told(&output), "cat: /share/big: no room is left\non\n");
    assert_eq!(fs::metadata(directory.path().join("out")).expect("it is there").len(), 40 << 20);
}
