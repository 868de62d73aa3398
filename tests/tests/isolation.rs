//! What the host finds in a sandbox, and what a VM leaves behind.

mod common;

use common::*;
use std::fs;

/// A line of a `/proc/PID/maps`: start, end, permissions, file.
fn maps(pid: u32) -> Vec<(u64, u64, String, String)> {
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let permissions = words.next()?.to_owned();
        let file = words.nth(3).unwrap_or("").to_owned();
        Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?, permissions, file))
    };
    fs::read_to_string(format!("/proc/{pid}/maps")).unwrap().lines().filter_map(parse).collect()
}

#[test]
fn a_sandbox_maps_its_guest_and_the_stub_and_nothing_else() {
    let (vm, console) = start("bench", &["idle"]);
    console.wait_for("idle");
    let pid = vm.processes()[0];
    let mut executable_in_slot_255 = 0;
    for (start, end, permissions, file) in maps(pid) {
        if file == "[vsyscall]" {
            continue; // the host kernel's, in its own half
        }
        let slot_255 = start >= hv_abi::address::SLOT_255;
        match file.as_str() {
            "/memfd:hv-guest-memory" => assert!(!slot_255),
            "/memfd:hv-sandbox" => {
                assert_eq!(permissions, "r-xp", "the stub is not writable");
                executable_in_slot_255 += 1;
            }
            "/memfd:hv-control" => assert_eq!(permissions, "r--s", "commands and reports are read-only"),
            "/memfd:hv-vcpu-pages" | "/memfd:hv-exchange" | "/memfd:hv-links" => {
                assert!(slot_255);
                assert!(!permissions.contains('x'));
            }
            other => panic!("{start:x}-{end:x} {permissions} {other} is not the design's"),
        }
        assert!(!(permissions.contains('w') && permissions.contains('x')), "{start:x} {permissions}");
    }
    assert_eq!(executable_in_slot_255, 1);
}

#[test]
fn the_clock_page_is_read_only() {
    let (vm, console) = start("bench", &["idle"]);
    console.wait_for("idle");
    let clock = hv_abi::address::VCPU_PAGES + hv_abi::address::CLOCK_PAGE;
    let maps = maps(vm.processes()[0]);
    let page = maps.iter().find(|(start, end, ..)| (*start..*end).contains(&clock)).unwrap();
    assert_eq!(page.2, "r--s");
}

#[test]
fn every_thread_of_a_sandbox_is_filtered_and_without_privileges() {
    let (vm, console) = start("bench", &["idle"]);
    console.wait_for("idle");
    let pid = vm.processes()[0];
    let mut filters = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            line.unwrap_or_else(|| panic!("no {name} in {status}"))[name.len()..].trim().to_owned()
        };
        assert_eq!(field("Seccomp:"), "2", "filter mode");
        assert_eq!(field("NoNewPrivs:"), "1");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(u64::from_str_radix(&field(set), 16), Ok(0), "{set}");
        }
        filters.push(field("Seccomp_filters:").parse::<u32>().unwrap());
    }
    filters.sort_unstable();
    let least = filters[0];
    assert_eq!(filters, [least, least + 1], "the mapping thread, and a vCPU thread with a filter more");
}

#[test]
fn a_sandbox_has_six_descriptors() {
    let (vm, console) = start("bench", &["idle"]);
    console.wait_for("idle");
    let pid = vm.processes()[0];
    let mut files: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|entry| fs::read_link(entry.unwrap().path()).unwrap().display().to_string())
        .collect();
    files.sort();
    let expected = ["control", "exchange", "guest-memory", "links", "rewritten", "vcpu-pages"]
        .map(|f| format!("/memfd:hv-{f} (deleted)"));
    assert_eq!(files, expected);
}

#[test]
fn no_process_is_left_whichever_way_a_guest_ends() {
    for (guest, arguments) in [
        ("hello", &[][..]),
        ("crash", &["panic"]),
        ("crash", &["page-fault"]),
        ("crash", &["syscall"]),
        ("crash", &["lost-stack"]),
    ] {
        let (vm, _) = start(guest, arguments);
        let processes = vm.processes();
        wait(vm);
        assert!(processes.iter().all(|pid| !exists(*pid)), "{guest} {arguments:?} left {processes:?}");
    }
}

#[test]
fn no_process_is_left_when_a_vm_is_dropped() {
    let (vm, console) = start("bench", &["idle"]);
    console.wait_for("idle");
    let processes = vm.processes();
    drop(vm);
    assert!(processes.iter().all(|pid| !exists(*pid)));
}

#[test]
fn no_descriptor_is_left() {
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    run("hello", &[]); // what is made once for the process
    // Other tests of this file run beside this one, so it is the trend that counts.
    let before = open();
    (0..50).for_each(|_| drop(run("hello", &[])));
    assert!(open() < before + 40, "{before} before, {} after 50 VMs", open());
}
