//! The guest `chat`: VMs on one switch.

mod common;

use common::*;
use hv_core::devices::{Net, NetLink};
use hv_core::net::switch::Switch;
use hv_core::{Config, DeviceConfig, End, Vm};
use std::os::unix::net::{UnixListener, UnixStream};

/// One who is in the room.
struct Member {
    vm: Vm,
    console: Console,
}

impl Member {
    fn new(wire: UnixStream, number: u8, name: &str) -> Self {
        let net = Net { link: NetLink::Stream(wire), mac: [2, 0, 0, 0, 7, number], mtu: 65_535 };
        let (config, console) = config("chat", &[name]);
        let config = Config { devices: vec![DeviceConfig::Net(net)], console_input: true, ..config };
        let vm = Vm::start(config).expect("the VM starts");
        console.wait_for(&format!("* you are {name};"));
        Self { vm, console }
    }

    fn types(&self, line: &str) {
        let line = format!("{line}\n");
        assert_eq!(self.vm.console_input().push(line.as_bytes()), line.len());
    }

    fn ends(self) {
        assert_eq!(wait(self.vm).end, End::Shutdown { code: 0 }, "{}", self.console.text());
    }
}

#[test]
fn what_is_typed_in_one_vm_appears_in_the_others() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("switch");
    let mut switch = Switch::new(UnixListener::bind(&path).expect("a socket")).expect("a switch");
    let wires = [(); 3].map(|()| UnixStream::connect(&path).expect("the switch is there"));
    assert!(switch.accept().expect("the host gives it ports"));
    std::thread::spawn(move || switch.serve());

    let [first, second, third] = wires;
    let alice = Member::new(first, 1, "alice");
    let bob = Member::new(second, 2, "bob");
    bob.console.wait_for("* alice "); // who has come or is here: both start at once
    alice.console.wait_for("* bob has come\n");
    let carol = Member::new(third, 3, "carol");
    carol.console.wait_for("* bob ");
    carol.console.wait_for("* alice ");

    alice.types("hello, all");
    bob.console.wait_for("alice: hello, all\n");
    carol.console.wait_for("alice: hello, all\n");
    carol.types("/who");
    carol.console.wait_for("* here: alice, bob, you\n");

    bob.types("/quit");
    alice.console.wait_for("* bob has gone\n");
    bob.ends();
    carol.vm.console_input().close();
    alice.console.wait_for("* carol has gone\n");
    carol.ends();
    alice.types("/who");
    alice.console.wait_for("* here: you\n");
    assert!(!alice.console.text().contains("alice:"), "nobody hears what they say themselves");
    alice.types("/quit");
    alice.ends();
}

#[test]
fn a_chat_without_a_network_says_what_to_do() {
    let (report, text) = run("chat", &["alice"]);
    assert_eq!(report.end, End::Shutdown { code: 1 });
    assert!(text.contains("--net switch=room"), "{text}");
}
