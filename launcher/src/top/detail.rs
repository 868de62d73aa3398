//! One VM closely: its kinds of traps and calls, its vCPUs, its devices.

use super::columns::{percent, rate};
use super::history::Row;
use crate::stats::{device_name, state_name};
use crate::units::show_size;
use std::collections::BTreeMap;

/// Lines of text, the headings marked.
pub(super) fn lines(row: &Row) -> Vec<(bool, String)> {
    let Some(vm) = &row.status else {
        return vec![(false, row.silent.clone().unwrap_or_default())];
    };
    let mut lines: Vec<_> = row.silent.iter().map(|why| (false, format!("silent: {why}"))).collect();
    lines.push((false, format!("calls/s  {}", by_kind(&row.rates.calls))));
    lines.push((false, format!("traps/s  {}", by_kind(&row.rates.trap_kinds))));
    let s = &vm.spaces;
    let hits = row.rates.shadow_hit_percent.map_or_else(String::new, |hits| format!(", {hits:.1}% hits"));
    let spaces = format!(
        "shadows  {} for {} address space(s){hits}, {} evictions so far, {} entries changed/s",
        show_size(s.shadow_bytes),
        s.spaces,
        s.evictions,
        rate(row.rates.entries_changed)
    );
    lines.push((false, spaces));
    vcpus(row, &mut lines);
    devices(row, &mut lines);
    lines
}

/// The most frequent first.
fn by_kind(rates: &BTreeMap<&'static str, f64>) -> String {
    let mut kinds: Vec<_> = rates.iter().collect();
    kinds.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    let kinds: Vec<_> = kinds.iter().map(|(name, of)| format!("{} {name}", rate(Some(**of)))).collect();
    if kinds.is_empty() { "none".into() } else { kinds.join(", ") }
}

fn vcpus(row: &Row, lines: &mut Vec<(bool, String)>) {
    let heading = format!(
        "{:<4}  {:7}  {:>7}  {:>8}  {:>6}  {:>6}  {:>7}  {:>7}  {:>7}",
        "VCPU", "STATE", "KERNEL%", "MONITOR%", "STEAL%", "SPIN%", "CALL/S", "TRAP/S", "UPC/S"
    );
    lines.push((true, heading));
    let vcpus = row.status.iter().flat_map(|vm| &vm.vcpu_stats);
    for (i, vcpu) in vcpus.enumerate() {
        let of = row.rates.vcpus.get(i).cloned().unwrap_or_default();
        let line = format!(
            "{i:<4}  {:7}  {:>7}  {:>8}  {:>6}  {:>6}  {:>7}  {:>7}  {:>7}",
            state_name(vcpu.state),
            percent(of.kernel_cpu_percent),
            percent(of.monitor_cpu_percent),
            percent(of.steal_percent),
            percent(of.spin_percent),
            rate(of.hypercalls),
            rate(of.traps),
            rate(of.upcalls)
        );
        lines.push((false, line));
    }
}

fn devices(row: &Row, lines: &mut Vec<(bool, String)>) {
    let devices = row.status.iter().flat_map(|vm| &vm.devices);
    for (i, device) in devices.enumerate() {
        if i == 0 {
            let heading = format!(
                "{:<10}  {:>7}  {:>7}  {:>7}  {:>7}  {:>7}  {:>7}",
                "DEVICE", "REQ/S", "OUT B/S", "IN B/S", "BELL/S", "INTR/S", "DROP/S"
            );
            lines.push((true, heading));
        }
        let of = row.rates.devices.get(i).cloned().unwrap_or_default();
        let line = format!(
            "{:<10}  {:>7}  {:>7}  {:>7}  {:>7}  {:>7}  {:>7}",
            format!("{i} {}", device_name(device.kind)),
            rate(of.requests),
            rate(of.bytes_from_guest),
            rate(of.bytes_to_guest),
            rate(of.doorbells),
            rate(of.interrupts),
            rate(of.dropped)
        );
        lines.push((false, line));
    }
}
