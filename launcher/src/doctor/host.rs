//! What can be read off the host without trying it.

use super::{Check, Status};
use crate::lockdown::Landlocked;
use crate::units::show_duration;
use hv_core::engine::kvm;
use std::path::Path;

/// All checks, the ones that matter most first.
pub(super) fn checks() -> Vec<Check> {
    vec![
        architecture(),
        kernel(),
        fsgsbase(),
        seccomp(),
        memfd(),
        lockdown(),
        proc_mounted(),
        max_map_count(),
        processors(),
        clock(),
        user(),
        kvm(),
    ]
}

/// A small file of the kernel's, without the line's end.
fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim_end().to_owned())
}

/// This program is built for x86-64 only; under an emulator the processor may still be another.
fn architecture() -> Check {
    let machine = rustix::system::uname().machine().to_string_lossy().into_owned();
    let advice = "guests are x86-64 code, run by the processor itself; use an x86-64 host";
    Check::unless(machine == "x86_64", "processor", machine, Status::Missing, advice)
}

/// 5.9 brought FSGSBASE and `close_range`.
fn kernel() -> Check {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let advice = "the process engine needs Linux 5.9 or later";
    Check::unless(version(&release) >= (5, 9), "kernel", format!("Linux {release}"), Status::Missing, advice)
}

/// The first two numbers of a kernel's release.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// `AT_HWCAP2`, bit 1: the kernel lets programs use the instructions.
fn fsgsbase() -> Check {
    let there = rustix::param::linux_hwcap().1 & 2 != 0;
    let advice = "the process engine needs it: a processor of 2012 or later, and no `nofsgsbase` on the kernel's command line";
    Check::unless(there, "FSGSBASE", if there { "allowed" } else { "not allowed" }, Status::Missing, advice)
}

/// A kernel that can filter says in each process's status how many filters it has.
fn seccomp() -> Check {
    let status = read("/proc/self/status").unwrap_or_default();
    let filters = status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:")).map(str::trim);
    let found = match filters {
        None => "no filters".to_owned(),
        Some("0") => "filters; hv itself has none".to_owned(),
        Some(number) => format!("filters; hv itself runs under {number}, from whoever started it"),
    };
    let advice =
        "sandboxes are locked down with filters; use a kernel with CONFIG_SECCOMP_FILTER, and mount /proc";
    Check::unless(filters.is_some(), "seccomp", found, Status::Missing, advice)
}

/// 2 forbids executing a file in memory, whatever its maker says; 1 only changes what is meant by saying nothing.
fn memfd() -> Check {
    let found = match read("/proc/sys/vm/memfd_noexec").as_deref() {
        Some("2") => "files in memory may not be executed: sandboxes start from an unnamed file on disk",
        _ => "files in memory may be executed",
    };
    Check::ok("memfd", found)
}

/// What `hv run` gives up before a guest runs.
fn lockdown() -> Check {
    let advice =
        "hv keeps rights that it does not need; Linux 5.13 or later with Landlock among its LSMs takes them";
    let (good, found) = match crate::lockdown::try_out() {
        Ok(Landlocked::Fully) => (true, "hv run gives up files, network and privileges".into()),
        Ok(Landlocked::Partly) => {
            (true, "hv run gives up files and privileges (this kernel's Landlock is older)".into())
        }
        Ok(Landlocked::No) => (false, "no Landlock in this kernel".into()),
        Err(reason) => (false, reason),
    };
    Check::unless(good, "lock-down", found, Status::Warn, advice)
}

fn proc_mounted() -> Check {
    let there = Path::new("/proc/self/status").exists();
    let advice = "mount it: `mount -t proc proc /proc`; hv reads there what its sandboxes do";
    Check::unless(there, "/proc", if there { "mounted" } else { "not mounted" }, Status::Missing, advice)
}

/// The kernel's default; each sandbox's mappings count one by one.
fn max_map_count() -> Check {
    const DEFAULT: u64 = 65_530;
    let count = read("/proc/sys/vm/max_map_count");
    let number = count.as_deref().and_then(|count| count.parse::<u64>().ok());
    let found = format!("vm.max_map_count={}", count.as_deref().unwrap_or("not known"));
    let advice = "less than the kernel's default; guests with many small mappings lose speed: `sysctl vm.max_map_count=65530`";
    Check::unless(number.is_none_or(|number| number >= DEFAULT), "mappings", found, Status::Warn, advice)
}

fn processors() -> Check {
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    let found = format!("{count} for this process");
    let advice =
        "with one, monitor and guest take turns, and each hypercall costs two switches; give hv two or more";
    Check::unless(count > 1, "processors", found, Status::Warn, advice)
}

/// Guests read the time from the time-stamp counter, and trust it as far as the kernel does.
fn clock() -> Check {
    let source = read("/sys/devices/system/clocksource/clocksource0/current_clocksource").unwrap_or_default();
    let found = match &*source {
        "tsc" => "the kernel keeps time by the time-stamp counter".to_owned(),
        "" => "the kernel does not say by what it keeps time".to_owned(),
        other => format!("the kernel keeps time by `{other}`"),
    };
    let advice = "the time-stamp counter may not be steady here, and guests read the time from it: their clocks may drift";
    Check::unless(source == "tsc", "clock", found, Status::Warn, advice)
}

fn user() -> Check {
    let uid = rustix::process::getuid();
    let found = if uid.is_root() { "root".to_owned() } else { format!("uid {}", uid.as_raw()) };
    let advice = "hv needs no root; as another user, a guest that broke out would have less";
    Check::unless(!uid.is_root(), "user", found, Status::Warn, advice)
}

/// Tried, and timed: a KVM may be software. Guests run without it.
fn kvm() -> Check {
    let found = match kvm::probe() {
        _ if !Path::new("/dev/kvm").exists() => "not present; not needed".into(),
        Err(why) => format!("present, and not used: {why}"),
        Ok(probe) => format!(
            "an instruction of ring 0 takes {:.2} ns, leaving the guest and coming back {}: {}",
            probe.instruction.as_secs_f64() * 1e9,
            show_duration(probe.exit),
            if probe.is_hardware() {
                "hardware, which `--engine auto` takes"
            } else {
                "software, and slower than the process engine"
            }
        ),
    };
    Check::ok("/dev/kvm", found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_as_numbers() {
        assert_eq!(version("6.18.44-fc"), (6, 18));
        assert_eq!(version("5.9"), (5, 9));
        assert!(version("5.10.0") > version("5.9.16"));
        assert_eq!(version(""), (0, 0));
    }
}
