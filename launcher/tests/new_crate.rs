//! A crate that `hv new --with-tests` has just written builds, boots and tests itself, with nothing but cargo.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A crate in a directory of its own, removed at the end. What cargo builds of it is kept for the next time.
struct Guest(PathBuf);

impl Guest {
    fn new() -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("new-crate-{}", std::process::id()));
        let hv = Command::new(env!("CARGO_BIN_EXE_hv"))
            .arg("new")
            .arg(&path)
            .args(["--name", "guest-of-mine", "--with-tests"])
            .output();
        let output = hv.expect("hv can be started");
        assert!(output.status.success(), "{output:?}");
        Self(path)
    }

    /// Runs cargo in it, as its author would, but for the network: everything is there since this was built.
    fn cargo(&self, arguments: &[&str]) -> Output {
        let mut cargo = Command::new(env!("CARGO"));
        // Flags of the build that this test is in are not the guest's. All of rustup's variables stay: which toolchain
        // is used, and that none is installed or updated, is for whoever runs this to say.
        for flags in [
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
        ] {
            cargo.env_remove(flags);
        }
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("new-crate-target");
        cargo.current_dir(&self.0).args(arguments).arg("--offline").env("CARGO_TARGET_DIR", target);
        cargo.output().expect("cargo can be started")
    }

    fn change(&self, file: &str, from: &str, to: &str) {
        let path = self.0.join(file);
        let text = std::fs::read_to_string(&path).expect(file);
        assert!(text.contains(from), "{file} has no `{from}`");
        std::fs::write(&path, text.replace(from, to)).expect(file);
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[track_caller]
fn assert_told(output: &Output, success: bool, texts: &[&str]) {
    let text =
        format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.success(), success, "{text}");
    for wanted in texts {
        assert!(text.contains(wanted), "`{wanted}` is not in:\n{text}");
    }
}

#[test]
fn a_new_crate_runs_and_tests_itself() {
    let guest = Guest::new();
    assert_told(
        &guest.cargo(&["test"]),
        true,
        &[
            "arguments_are_shown ... ok", // its library, against the fake hypervisor
            "the_guest_greets ... ok",    // in a VM
            "3 passed, 0 failed",
        ],
    );
    assert_told(&guest.cargo(&["run", "-q"]), true, &["Hello from guest-of-mine."]);

    guest.change("src/bin/tests.rs", "numbers.len(), 1 << 20", "numbers.len(), 1 << 21");
    assert_told(
        &guest.cargo(&["test"]),
        false,
        &[
            "memory_can_be_had ... FAILED",
            "left: 1048576",
            "at src/bin/tests.rs:",
            "2 passed, 1 failed",
            "not all tests passed in their VMs",
        ],
    );
}
