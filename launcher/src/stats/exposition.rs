//! What VMs say, in Prometheus's text exposition format, version 0.0.4.
//!
//! Names, units and labels are by its conventions (<https://prometheus.io/docs/practices/naming/>): seconds and bytes, `_total`
//! for what only rises. A label has few values, and none that a restart makes anew: there is no label for a process number.
//!
//! Start at [`text`].

use super::device_name;
use crate::control::{Seen, State, Status};
use prometheus::TextEncoder;
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

/// The format's name on the wire.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Values with their labels.
type Samples = Vec<(Vec<(&'static str, String)>, f64)>;

/// What was seen of all VMs.
pub(super) fn text(seen: &[Seen]) -> String {
    let mut families = Families(Vec::new());
    families.of_all(seen);
    let answered: Vec<&Status> = seen.iter().filter_map(|vm| vm.status.as_deref().ok()).collect();
    families.of_vms(&answered);
    families.of_crossings(&answered);
    families.of_spaces(&answered);
    families.of_vcpus(&answered);
    families.of_devices(&answered);
    TextEncoder::new().encode_to_string(&families.0).expect("each family has a name and samples")
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// What is told, in its order.
struct Families(Vec<MetricFamily>);

impl Families {
    /// Adds a family, unless it has no samples.
    fn add(&mut self, kind: MetricType, name: &str, help: &str, samples: Samples) {
        if samples.is_empty() {
            return;
        }
        let metric = |(labels, value): (Vec<(&'static str, String)>, f64)| {
            let labels = labels.into_iter().map(|(name, value)| {
                let mut label = LabelPair::default();
                label.set_name(name.into());
                label.set_value(value);
                label
            });
            let mut metric = Metric::from_label(labels.collect());
            if kind == MetricType::COUNTER {
                let mut counter = Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            } else {
                let mut gauge = Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
            metric
        };
        let mut family = MetricFamily::default();
        family.set_name(name.into());
        family.set_help(help.into());
        family.set_field_type(kind);
        family.set_metric(samples.into_iter().map(metric).collect());
        self.0.push(family);
    }

    /// One value for each VM.
    fn gauge(&mut self, vms: &[&Status], name: &str, help: &str, value: impl Fn(&Status) -> f64) {
        let samples = vms.iter().map(|vm| (of(vm), value(vm))).collect();
        self.add(MetricType::GAUGE, name, help, samples);
    }

    fn counter(&mut self, vms: &[&Status], name: &str, help: &str, value: impl Fn(&Status) -> f64) {
        let samples = vms.iter().map(|vm| (of(vm), value(vm))).collect();
        self.add(MetricType::COUNTER, name, help, samples);
    }

    /// A value for each kind of something of each VM.
    fn by<K: ToString>(
        &mut self,
        vms: &[&Status],
        (name, label): (&str, &'static str),
        help: &str,
        values: impl Fn(&Status) -> Vec<(K, f64)>,
    ) {
        let of_one = |vm: &&Status| {
            let values = values(vm).into_iter();
            let samples =
                values.map(|(kind, value)| ([of(vm), vec![(label, kind.to_string())]].concat(), value));
            samples.collect::<Samples>()
        };
        self.add(MetricType::COUNTER, name, help, vms.iter().flat_map(of_one).collect());
    }

    fn of_all(&mut self, seen: &[Seen]) {
        let up = |vm: &Seen| (vec![("vm", vm.name.clone())], f64::from(u8::from(vm.status.is_ok())));
        let help = "Whether the VM's monitor answers.";
        self.add(MetricType::GAUGE, "hv_up", help, seen.iter().map(up).collect());
    }

    fn of_vms(&mut self, vms: &[&Status]) {
        let info = |vm: &&Status| ([of(vm), vec![("image", vm.image.clone())]].concat(), 1.0);
        self.add(MetricType::GAUGE, "hv_info", "What the VM runs.", vms.iter().map(info).collect());
        self.gauge(vms, "hv_paused", "Whether the VM is paused.", |vm| {
            f64::from(u8::from(vm.state == State::Paused))
        });
        self.gauge(vms, "hv_vcpus", "Virtual processors of the VM.", |vm| vm.vcpus.into());
        self.gauge(vms, "hv_uptime_seconds", "Time since the VM's start.", |vm| seconds(vm.up_ns));
        self.by(vms, ("hv_cpu_seconds_total", "part"), "Processor time of the VM's processes.", |vm| {
            vec![("monitor", seconds(vm.monitor_cpu_ns)), ("guest", seconds(vm.sandbox_cpu_ns))]
        });
        let help = "Time for which guest code was held back for its share of the processors.";
        self.counter(vms, "hv_held_back_seconds_total", help, |vm| seconds(vm.held_back_ns));
        self.gauge(vms, "hv_memory_bytes", "Guest-physical memory.", |vm| vm.memory as f64);
        let help = "Guest-physical memory that the host holds.";
        self.gauge(vms, "hv_memory_resident_bytes", help, |vm| vm.resident as f64);
        let help = "Memory that the guest has reported free.";
        self.gauge(vms, "hv_memory_reported_bytes", help, |vm| vm.reported as f64);
        let help = "Memory that the guest's balloon holds.";
        self.gauge(vms, "hv_memory_ballooned_bytes", help, |vm| vm.ballooned as f64);
        let help = "Memory that the guest's balloon was asked to hold.";
        self.gauge(vms, "hv_memory_balloon_target_bytes", help, |vm| vm.balloon_target as f64);
    }

    fn of_crossings(&mut self, vms: &[&Status]) {
        self.by(vms, ("hv_hypercalls_total", "call"), "Hypercalls that came to the monitor.", |vm| {
            vm.counters.calls.named().map(|(name, count)| (name, count as f64)).collect()
        });
        self.by(vms, ("hv_traps_total", "kind"), "Traps that came to the monitor.", |vm| {
            vm.counters.trap_kinds.named().map(|(name, count)| (name, count as f64)).to_vec()
        });
        let help = "Places in programs whose system calls were made jumps.";
        self.counter(vms, "hv_system_calls_rewritten_total", help, |vm| vm.counters.rewritten as f64);
    }

    fn of_spaces(&mut self, vms: &[&Status]) {
        let help = "Entries and faults for which nothing, or something, had to be mapped first.";
        self.by(vms, ("hv_shadow_lookups_total", "result"), help, |vm| {
            vec![("hit", vm.spaces.shadow_hits as f64), ("miss", vm.spaces.shadow_misses as f64)]
        });
        let help = "Shadows of page tables that were emptied or given up for want of room.";
        self.counter(vms, "hv_shadow_evictions_total", help, |vm| vm.spaces.evictions as f64);
        let help = "What shadows of page tables cost the host, about.";
        self.gauge(vms, "hv_shadow_bytes", help, |vm| vm.spaces.shadow_bytes as f64);
        let help = "Address spaces that have a sandbox, the guest kernel's included.";
        self.gauge(vms, "hv_address_spaces", help, |vm| vm.spaces.spaces as f64);
        let help = "Sandboxes that were made for programs.";
        self.counter(vms, "hv_address_spaces_made_total", help, |vm| vm.spaces.made as f64);
        let help = "Page-table entries that the guest changed.";
        self.counter(vms, "hv_page_table_entries_changed_total", help, |vm| vm.spaces.entries_changed as f64);
        let help = "Mappings that sandboxes were told to make.";
        self.counter(vms, "hv_mappings_total", help, |vm| vm.spaces.mappings as f64);
        let help = "Batches of mappings that sandboxes were told to make.";
        self.counter(vms, "hv_mapping_batches_total", help, |vm| vm.spaces.batches as f64);
    }

    fn of_vcpus(&mut self, vms: &[&Status]) {
        let mut family = |name: &str, help: &str, value: fn(&hv_core::handle::VcpuStats) -> f64| {
            self.by(vms, (name, "vcpu"), help, |vm| vm.vcpu_stats.iter().map(value).enumerate().collect());
        };
        family("hv_vcpu_hypercalls_total", "Hypercalls that came to the monitor.", |vcpu| {
            vcpu.counters.hypercalls as f64
        });
        family("hv_vcpu_traps_total", "Traps that came to the monitor.", |vcpu| vcpu.counters.traps as f64);
        family("hv_vcpu_upcalls_total", "Times that the vCPU was told of events.", |vcpu| {
            vcpu.counters.upcalls as f64
        });
        family("hv_vcpu_sleeps_total", "Sleeps of the monitor's thread.", |vcpu| vcpu.counters.sleeps as f64);
        family("hv_vcpu_steal_seconds_total", "Time for which guest code waited for a processor.", |vcpu| {
            seconds(vcpu.steal_ns)
        });
        family("hv_vcpu_host_spin_seconds_total", "Time that the monitor's thread span, about.", |vcpu| {
            seconds(vcpu.counters.host_spin_ns)
        });
        family(
            "hv_vcpu_guest_spin_seconds_total",
            "Time that the vCPU's thread span, about, as the guest's side says.",
            |vcpu| seconds(vcpu.counters.guest_spin_ns),
        );
    }

    fn of_devices(&mut self, vms: &[&Status]) {
        let mut family = |name: &str, help: &str, value: fn(&hv_core::devices::DeviceStats) -> u64| {
            let of_one = |vm: &&Status| {
                let devices = vm.devices.iter().enumerate();
                devices.map(|(i, device)| (of_device(vm, i), value(device) as f64)).collect::<Samples>()
            };
            self.add(MetricType::COUNTER, name, help, vms.iter().flat_map(of_one).collect());
        };
        family("hv_device_requests_total", "Chains of buffers that the device gave back.", |d| d.requests);
        let help = "Bytes that the device read from the guest's buffers.";
        family("hv_device_from_guest_bytes_total", help, |d| d.bytes_from_guest);
        let help = "Bytes that the device wrote to the guest's buffers.";
        family("hv_device_to_guest_bytes_total", help, |d| d.bytes_to_guest);
        family("hv_device_doorbells_total", "Times that the guest rang the doorbell.", |d| d.doorbells);
        family("hv_device_interrupts_total", "Times that the device told the guest.", |d| d.interrupts);
        family("hv_device_sleeps_total", "Sleeps of the device's thread.", |d| d.sleeps);
        family("hv_device_dropped_total", "Frames that could not be delivered.", |d| d.dropped);
    }
}

/// The label of a VM.
fn of(vm: &Status) -> Vec<(&'static str, String)> {
    vec![("vm", vm.name.clone())]
}

/// The labels of one of its devices.
fn of_device(vm: &Status, index: usize) -> Vec<(&'static str, String)> {
    let kind = device_name(vm.devices[index].kind).into();
    [of(vm), vec![("device", index.to_string()), ("kind", kind)]].concat()
}
