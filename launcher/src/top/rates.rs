//! Rates, from two looks at a VM.
//!
//! Counters are since a VM's start, so a rate is a difference over the VM's own clock between the two looks. There is none if
//! the VM is another than before, though of the same name; and none of a counter that went back, which only one that the guest
//! tells can do. What is not known is not zero.
//!
//! Start at [`Rates::between`].

use crate::control::Status;
use hv_core::devices::DeviceStats;
use hv_core::engine::Counters;
use hv_core::handle::VcpuStats;
use serde::Serialize;
use std::collections::BTreeMap;

/// What a VM did in an interval: each second, and in percent of one processor.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Rates {
    pub cpu_percent: Option<f64>,
    /// All its vCPUs waited so long for a processor.
    pub steal_percent: Option<f64>,
    pub held_back_percent: Option<f64>,
    /// The monitor's threads and its vCPUs', waiting for each other.
    pub spin_percent: Option<f64>,
    pub hypercalls: Option<f64>,
    /// Those that were made, by their names.
    pub calls: BTreeMap<&'static str, f64>,
    pub traps: Option<f64>,
    pub trap_kinds: BTreeMap<&'static str, f64>,
    pub upcalls: Option<f64>,
    /// Of entries and faults, those for which nothing had to be mapped.
    pub shadow_hit_percent: Option<f64>,
    pub entries_changed: Option<f64>,
    pub device_requests: Option<f64>,
    pub device_bytes: Option<f64>,
    pub vcpus: Vec<VcpuRates>,
    pub devices: Vec<DeviceRates>,
}

/// What a vCPU did.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct VcpuRates {
    pub steal_percent: Option<f64>,
    pub spin_percent: Option<f64>,
    pub kernel_cpu_percent: Option<f64>,
    pub monitor_cpu_percent: Option<f64>,
    pub hypercalls: Option<f64>,
    pub traps: Option<f64>,
    pub upcalls: Option<f64>,
}

/// What a device did.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct DeviceRates {
    pub requests: Option<f64>,
    pub bytes_from_guest: Option<f64>,
    pub bytes_to_guest: Option<f64>,
    pub doorbells: Option<f64>,
    pub interrupts: Option<f64>,
    pub dropped: Option<f64>,
}

impl Rates {
    /// Between two looks at a VM; `None` if it is not the same one, or no time has passed for it.
    pub(super) fn between(before: &Status, now: &Status) -> Option<Self> {
        let elapsed = now.up_ns.checked_sub(before.up_ns).filter(|ns| *ns > 0)?;
        if now.pid != before.pid {
            return None;
        }
        let over = Interval { seconds: elapsed as f64 / 1e9 };
        let vcpus = before.vcpu_stats.iter().zip(&now.vcpu_stats);
        let devices = before.devices.iter().zip(&now.devices);
        let of_devices = |field: fn(&DeviceStats) -> u64| {
            let rates = devices.clone().map(|(before, now)| over.rate(field(before), field(now)));
            rates.sum::<Option<f64>>()
        };
        let steal = |vm: &Status| vm.vcpu_stats.iter().map(|vcpu| vcpu.steal_ns).sum::<u64>();
        let (then, c) = (&before.counters, &now.counters);
        Some(Self {
            // What the sandboxes that have gone had is told in hundredths of a second, and may be less than was told before.
            cpu_percent: over.percent(before.cpu_ns().min(now.cpu_ns()), now.cpu_ns()),
            steal_percent: over.percent(steal(before), steal(now)),
            held_back_percent: over.percent(before.held_back_ns, now.held_back_ns),
            spin_percent: over.spin_percent(then, c),
            hypercalls: over.rate(then.hypercalls, c.hypercalls),
            calls: over.by_kind(then.calls.named(), c.calls.named()),
            traps: over.rate(then.traps, c.traps),
            trap_kinds: over.by_kind(then.trap_kinds.named(), c.trap_kinds.named()),
            upcalls: over.rate(then.upcalls, c.upcalls),
            shadow_hit_percent: hit_percent(before, now),
            entries_changed: over.rate(before.spaces.entries_changed, now.spaces.entries_changed),
            device_requests: of_devices(|device| device.requests),
            device_bytes: of_devices(|device| device.bytes_from_guest.wrapping_add(device.bytes_to_guest)),
            vcpus: vcpus.map(|(before, now)| over.of_vcpu(before, now)).collect(),
            devices: devices.clone().map(|(before, now)| over.of_device(before, now)).collect(),
        })
    }
}

fn hit_percent(before: &Status, now: &Status) -> Option<f64> {
    let hits = now.spaces.shadow_hits.checked_sub(before.spaces.shadow_hits)?;
    let misses = now.spaces.shadow_misses.checked_sub(before.spaces.shadow_misses)?;
    let all = hits.checked_add(misses).filter(|all| *all > 0)?;
    Some(hits as f64 * 100.0 / all as f64)
}

/// The time between two looks.
#[derive(Clone, Copy)]
struct Interval {
    seconds: f64,
}

impl Interval {
    /// Each second. `None` of a counter that went back.
    fn rate(self, before: u64, now: u64) -> Option<f64> {
        Some(now.checked_sub(before)? as f64 / self.seconds)
    }

    /// Of nanoseconds.
    fn percent(self, before: u64, now: u64) -> Option<f64> {
        Some(self.rate(before, now)? / 1e7)
    }

    fn spin_percent(self, before: &Counters, now: &Counters) -> Option<f64> {
        let host = self.percent(before.host_spin_ns, now.host_spin_ns)?;
        Some(host + self.percent(before.guest_spin_ns, now.guest_spin_ns)?)
    }

    /// Of kinds that are in the same order both times, those that there were.
    fn by_kind(
        self,
        before: impl IntoIterator<Item = (&'static str, u64)>,
        now: impl IntoIterator<Item = (&'static str, u64)>,
    ) -> BTreeMap<&'static str, f64> {
        let both = before.into_iter().zip(now);
        let rates = both.filter_map(|((name, before), (_, now))| Some((name, self.rate(before, now)?)));
        rates.filter(|(_, rate)| *rate > 0.0).collect()
    }

    fn of_vcpu(self, before: &VcpuStats, now: &VcpuStats) -> VcpuRates {
        let (then, c) = (&before.counters, &now.counters);
        VcpuRates {
            steal_percent: self.percent(before.steal_ns, now.steal_ns),
            spin_percent: self.spin_percent(then, c),
            kernel_cpu_percent: self.percent(before.kernel_cpu_ns, now.kernel_cpu_ns),
            monitor_cpu_percent: self.percent(before.monitor_cpu_ns, now.monitor_cpu_ns),
            hypercalls: self.rate(then.hypercalls, c.hypercalls),
            traps: self.rate(then.traps, c.traps),
            upcalls: self.rate(then.upcalls, c.upcalls),
        }
    }

    fn of_device(self, before: &DeviceStats, now: &DeviceStats) -> DeviceRates {
        DeviceRates {
            requests: self.rate(before.requests, now.requests),
            bytes_from_guest: self.rate(before.bytes_from_guest, now.bytes_from_guest),
            bytes_to_guest: self.rate(before.bytes_to_guest, now.bytes_to_guest),
            doorbells: self.rate(before.doorbells, now.doorbells),
            interrupts: self.rate(before.interrupts, now.interrupts),
            dropped: self.rate(before.dropped, now.dropped),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example, half a second later.
    fn later() -> Status {
        let before = Status::example();
        Status { up_ns: before.up_ns + 500_000_000, ..before }
    }

    #[test]
    fn rates_are_by_the_time_of_the_vm() {
        let (before, mut now) = (Status::example(), later());
        now.counters.hypercalls += 50;
        now.counters.trap_kinds.system_calls += 5;
        now.monitor_cpu_ns += 100_000_000;
        now.sandbox_cpu_ns += 25_000_000;
        now.vcpu_stats[1].steal_ns += 250_000_000;
        now.counters.guest_spin_ns += 50_000_000;
        now.devices[0].requests += 4;
        (now.spaces.shadow_hits, now.spaces.shadow_misses) = (3 + 3, 1 + 1);
        let rates = Rates::between(&before, &now).unwrap();
        assert_eq!(rates.hypercalls, Some(100.0));
        assert_eq!(rates.trap_kinds, BTreeMap::from([("system_calls", 10.0)]));
        assert_eq!((rates.cpu_percent, rates.steal_percent), (Some(25.0), Some(50.0)));
        assert_eq!((rates.spin_percent, rates.shadow_hit_percent), (Some(10.0), Some(75.0)));
        assert_eq!((rates.device_requests, rates.devices[0].requests), (Some(8.0), Some(8.0)));
        assert_eq!((rates.vcpus[0].steal_percent, rates.vcpus[1].steal_percent), (Some(0.0), Some(50.0)));
    }

    #[test]
    fn another_vm_of_the_same_name_has_no_rates_yet() {
        let (before, now) = (Status::example(), later());
        assert_eq!(Rates::between(&before, &Status { pid: before.pid + 1, ..now.clone() }), None);
        assert_eq!(Rates::between(&now, &before), None, "a process number that was used again");
        assert_eq!(Rates::between(&now, &now), None, "no time has passed");
    }

    #[test]
    fn a_counter_that_went_back_has_no_rate_and_others_have() {
        let (mut before, now) = (Status::example(), later());
        before.counters.guest_spin_ns = u64::MAX; // the guest says so
        before.spaces.shadow_hits = u64::MAX;
        before.sandbox_cpu_ns += 1;
        let rates = Rates::between(&before, &now).unwrap();
        assert_eq!((rates.spin_percent, rates.shadow_hit_percent), (None, None));
        assert_eq!((rates.hypercalls, rates.cpu_percent), (Some(0.0), Some(0.0)));
    }

    #[test]
    fn nothing_that_was_looked_up_has_no_hit_rate() {
        assert_eq!(Rates::between(&Status::example(), &later()).unwrap().shadow_hit_percent, None);
    }
}
