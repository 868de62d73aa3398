//! A monitor that is killed, at whatever moment, takes its sandboxes with it, and the processes of its networks.

use rustix::process::{WaitOptions, getpid, set_child_subreaper, wait};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long the host may take to end what has been killed.
const PATIENCE: Duration = Duration::from_secs(300);

/// Waits until this process has no child left: none of the monitor's, which become ours when it dies.
fn assert_no_child_is_left(when: Duration) {
    let start = Instant::now();
    loop {
        match wait(WaitOptions::NOHANG) {
            Err(rustix::io::Errno::CHILD) => return,
            Ok(Some(_)) => {}
            Ok(None) => {
                assert!(start.elapsed() < PATIENCE, "killed after {when:?}, a process lives on");
                std::thread::sleep(Duration::from_micros(200));
            }
            Err(error) => panic!("waiting for children: {error}"),
        }
    }
}

#[test]
fn a_killed_monitor_leaves_no_process() {
    // Orphans come to us instead of to init, so that they can be seen. No other test is in this file, for that reason.
    set_child_subreaper(Some(getpid())).expect("Linux 3.4 or later");
    // A start takes two or three milliseconds; half of the moments are within it.
    let directory = std::env::temp_dir().join(format!("hv-kill-{}", std::process::id()));
    let socket = directory.join("vsock").display().to_string();
    // Some have a process beside them.
    let devices: [&[&str]; 4] =
        [&[], &["--net", "user:builtin"], &["--net", "switch=killed"], &["--vsock", &socket]];
    for step in 0..120_u64 {
        let when = Duration::from_micros(if step < 60 { step * 50 } else { 3000 + step * 100 });
        let mut monitor = Command::new(env!("CARGO_BIN_EXE_hv"))
            .args(["run", "crash", "loop"])
            .args(devices[step as usize % devices.len()])
            .env("HV_RUNTIME_DIR", &directory)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("hv can be run");
        std::thread::sleep(when);
        monitor.kill().expect("a child can be killed");
        monitor.wait().expect("a child can be waited for");
        assert_no_child_is_left(when);
    }
    std::fs::remove_dir_all(directory).expect("monitors made it");
}
