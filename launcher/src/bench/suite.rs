//! The suites by name: what each is about, what it measures, and how long that takes.

use crate::bench::figure::Figure;
use crate::bench::progress::Steps;
use crate::bench::{Phase, crossing, density, device, mmu, programs};
use clap::ValueEnum;

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Suite {
    Crossing,
    Mmu,
    Process,
    Device,
    Density,
}

impl Suite {
    /// In the order in which they are measured.
    pub(super) const ALL: [Self; 5] = [Self::Crossing, Self::Mmu, Self::Process, Self::Device, Self::Density];

    /// As the command line has it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Crossing => "crossing",
            Self::Mmu => "mmu",
            Self::Process => "process",
            Self::Device => "device",
            Self::Density => "density",
        }
    }

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Crossing => "Crossings: hypercalls, traps, upcalls, wake-ups, starts, an idle VM",
            Self::Mmu => "Page tables: changes of entries, faults, protection, mapping",
            Self::Process => "Programs: system calls, processes, pipes, switches, fresh memory",
            Self::Device => "Devices: disks, shared folders, console, networks, kv beside redis-server",
            Self::Density => "Many idle VMs: their start, memory, host CPU, and stop",
        }
    }

    /// Whether it can take fewer samples.
    pub(super) fn has_quick_form(self) -> bool {
        self != Self::Crossing
    }

    /// Seconds that a phase takes, about, on a machine with two cores.
    pub(super) fn expected_seconds(self, quick: bool) -> f64 {
        match (self, quick) {
            (Self::Crossing, _) => 20.0,
            (Self::Mmu, false) => 25.0,
            (Self::Mmu, true) => 8.0,
            (Self::Process, false) => 15.0,
            (Self::Process, true) => 4.0,
            (Self::Device, false) => 150.0,
            (Self::Device, true) => 40.0,
            (Self::Density, false) => 80.0,
            (Self::Density, true) => 15.0,
        }
    }

    /// Measures everything of one phase in this process.
    pub(super) fn measure(self, phase: Phase, quick: bool) -> Vec<Figure> {
        match self {
            Self::Crossing => crossing::measure(phase, &mut Steps::new(crossing::STEPS)),
            Self::Mmu => mmu::measure(phase, quick, &mut Steps::new(mmu::STEPS)),
            Self::Process => programs::measure(phase, quick, &mut Steps::new(programs::steps(quick))),
            Self::Device => device::measure(phase, quick, &mut Steps::new(device::steps())),
            Self::Density => density::measure(phase, quick, &mut Steps::new(density::steps(quick))),
        }
    }
}
