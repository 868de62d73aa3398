//! One VM, with all its figures, for people.

use super::device_name;
use crate::control::Status;
use crate::output::Style;
use crate::report::printable;
use crate::units::{show_duration, show_size, show_span};
use hv_core::handle::VcpuState;
use std::fmt::Write;
use std::time::Duration;

/// One VM's sheet.
pub(super) fn sheet(vm: &Status, style: &Style) -> String {
    let head = format!("{} ({}, process {})", printable(&vm.name), printable(&vm.image), vm.pid);
    let mut text = format!("{}\n", style.bold(&head));
    for (name, value) in general(vm).into_iter().chain(crossings(vm)) {
        line(&mut text, &format!("{name:10}  {value}"));
    }
    if vm.vcpu_stats.len() > 1 {
        vcpus(&mut text, vm, style);
    }
    if !vm.devices.is_empty() {
        devices(&mut text, vm, style);
    }
    text
}

fn line(text: &mut String, line: &str) {
    writeln!(text, "  {}", line.trim_end()).expect("a string takes it");
}

fn time(ns: u64) -> String {
    show_duration(Duration::from_nanos(ns))
}

fn general(vm: &Status) -> Vec<(&'static str, String)> {
    let s = if vm.vcpus == 1 { "" } else { "s" };
    let up = show_span(Duration::from_nanos(vm.up_ns));
    let steal = vm.vcpu_stats.iter().map(|vcpu| vcpu.steal_ns).sum();
    vec![
        ("state", format!("{}, {} vCPU{s}, up {up}", vm.state.name(), vm.vcpus)),
        (
            "CPU",
            format!("{} in the monitor, {} in guest code", time(vm.monitor_cpu_ns), time(vm.sandbox_cpu_ns)),
        ),
        (
            "waited",
            format!("{} for a processor, {} held back for its share", time(steal), time(vm.held_back_ns)),
        ),
        ("memory", format!("{}, of which the host holds {}", show_size(vm.memory), show_size(vm.resident))),
        (
            "given up",
            format!(
                "{} reported free, {} of {} in the balloon",
                show_size(vm.reported),
                show_size(vm.ballooned),
                show_size(vm.balloon_target)
            ),
        ),
    ]
}

fn crossings(vm: &Status) -> Vec<(&'static str, String)> {
    let (c, s) = (&vm.counters, &vm.spaces);
    vec![
        ("hypercalls", format!("{} came to the monitor{}", c.hypercalls, by_kind(c.calls.named()))),
        ("traps", format!("{} came to the monitor{}", c.traps, by_kind(c.trap_kinds.named()))),
        ("upcalls", format!("{} sent", c.upcalls)),
        ("sleeps", format!("{} of the monitor's threads", c.sleeps)),
        ("spinning", format!("{} in the monitor, {} in vCPUs", time(c.host_spin_ns), time(c.guest_spin_ns))),
        ("rewritten", format!("{} system calls of programs, {} have to trap", c.rewritten, c.not_rewritten)),
        (
            "shadows",
            format!(
                "{} hits, {} misses, {} evictions; {} for {} address space(s) now, {} made for programs",
                s.shadow_hits,
                s.shadow_misses,
                s.evictions,
                show_size(s.shadow_bytes),
                s.spaces,
                s.made
            ),
        ),
        (
            "mapping",
            format!(
                "{} mappings in {} batches, {} entries changed",
                s.mappings, s.batches, s.entries_changed
            ),
        ),
    ]
}

/// The kinds that there were, the most frequent first.
fn by_kind(named: impl IntoIterator<Item = (&'static str, u64)>) -> String {
    let mut kinds: Vec<_> = named.into_iter().filter(|(_, count)| *count > 0).collect();
    kinds.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let kinds: Vec<_> = kinds.iter().map(|(name, count)| format!("{count} {name}")).collect();
    if kinds.is_empty() { String::new() } else { format!(": {}", kinds.join(", ")) }
}

/// As it is shown.
pub(crate) fn state_name(state: VcpuState) -> &'static str {
    match state {
        VcpuState::Stopped => "stopped",
        VcpuState::Running => "running",
        VcpuState::Blocked => "blocked",
        VcpuState::Other => "other",
    }
}

fn vcpus(text: &mut String, vm: &Status, style: &Style) {
    let heading = format!(
        "{:<4}  {:7}  {:>10}  {:>10}  {:>10}  {:>10}  {:>10}  {:>10}",
        "VCPU", "STATE", "HYPERCALLS", "TRAPS", "UPCALLS", "STEAL", "KERNEL", "MONITOR"
    );
    line(text, &style.bold(&heading));
    for (i, vcpu) in vm.vcpu_stats.iter().enumerate() {
        let c = &vcpu.counters;
        let row = format!(
            "{i:<4}  {:7}  {:>10}  {:>10}  {:>10}  {:>10}  {:>10}  {:>10}",
            state_name(vcpu.state),
            c.hypercalls,
            c.traps,
            c.upcalls,
            time(vcpu.steal_ns),
            time(vcpu.kernel_cpu_ns),
            time(vcpu.monitor_cpu_ns)
        );
        line(text, &row);
    }
}

fn devices(text: &mut String, vm: &Status, style: &Style) {
    let heading = format!(
        "{:<10}  {:>10}  {:>10}  {:>10}  {:>10}  {:>10}  {:>7}",
        "DEVICE", "REQUESTS", "FROM GUEST", "TO GUEST", "DOORBELLS", "INTERRUPTS", "DROPPED"
    );
    line(text, &style.bold(&heading));
    for (i, device) in vm.devices.iter().enumerate() {
        let row = format!(
            "{:<10}  {:>10}  {:>10}  {:>10}  {:>10}  {:>10}  {:>7}",
            format!("{i} {}", device_name(device.kind)),
            device.requests,
            show_size(device.bytes_from_guest),
            show_size(device.bytes_to_guest),
            device.doorbells,
            device.interrupts,
            device.dropped
        );
        line(text, &row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sheet_says_all() {
        let mut vm = Status::example();
        vm.counters.trap_kinds.system_calls = 8;
        let text = sheet(&vm, &Style::plain());
        for part in [
            "a (./a",
            "process 4711",
            "paused, 2 vCPUs, up 3m 20s",
            "10 ms for a processor, 3 ms held back",
            "the host holds 4 KiB",
            "1 MiB of 2 MiB",
            "  hypercalls  20 came to the monitor\n",
            "8 came to the monitor: 8 system_calls\n",
            "3 hits, 1 misses",
            "\n  1     blocked          10",
            "\n  0 block              7",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
    }

    #[test]
    fn frequent_kinds_come_first_and_others_not_at_all() {
        assert_eq!(by_kind([("a", 1), ("b", 0), ("c", 5)]), ": 5 c, 1 a");
        assert_eq!(by_kind([("a", 0)]), "");
    }
}
