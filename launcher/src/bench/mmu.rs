//! `hv bench mmu`: page tables: changes of entries, faults, protection, mapping; and free pages.

use crate::bench::progress::Steps;
use crate::bench::{Figure, Phase, guest, host_memory};

pub(super) const STEPS: u32 = 17;

/// Batches of MMU_UPDATE: how many entries, whether at once.
const BATCHES: [(usize, bool); 5] = [(1, false), (8, false), (64, false), (512, false), (64, true)];

pub(super) fn measure(phase: Phase, quick: bool, progress: &mut Steps) -> Vec<Figure> {
    let samples = if quick { 3 } else { 21 };
    let host_shared = host_memory::fresh_shared(phase, samples);
    let mut figures = updates(phase, samples, progress);
    figures.extend(touches(phase, samples, &host_shared, progress));
    figures.extend(changes(phase, samples, progress));
    figures.extend(free_pages(phase, samples, &host_shared, progress));
    figures
}

/// MMU_UPDATE for each entry.
fn updates(phase: Phase, samples: usize, progress: &mut Steps) -> Vec<Figure> {
    progress.next("mprotect");
    let host = host_memory::protect(phase, samples);
    let mut figures = vec![host.clone()];
    for (used, state) in [(false, "not entered"), (true, "in use")] {
        for (batch, eager) in BATCHES {
            let how = if eager { ", eager" } else { "" };
            let name = format!("entry, MMU_UPDATE of {batch}{how}, {state}");
            progress.next(&name);
            let samples = samples.to_string();
            let batch = batch.to_string();
            let mut arguments = vec!["update", &*samples, &*batch];
            arguments.extend(eager.then_some("eager"));
            arguments.extend(used.then_some("used"));
            figures.push(guest::pages(&name, phase, &arguments).against(&host));
        }
    }
    figures
}

/// First touches of pages.
fn touches(phase: Phase, samples: usize, host_shared: &Figure, progress: &mut Steps) -> Vec<Figure> {
    progress.next("touch of fresh memory");
    let host = host_memory::fresh(phase, samples);
    let count = samples.to_string();
    let stream = guest::pages("touch of fresh memory, a page", phase, &["stream", &count]);
    let stream = stream.against(&host).ratio_at_most(1.2);
    let unused = guest::pages("the same, never used before", phase, &["stream-unused", &count]);
    let unused = unused.against(host_shared);
    progress.next("demand fault");
    let host_fault = host_memory::page_fault(phase, samples);
    let fault = guest::pages("one demand fault, alone", phase, &["fault", &count]);
    let aim = match phase {
        Phase::Spare => 8000.0,
        Phase::Pinned => 12_000.0,
    };
    let fault = fault.against(&host_fault).at_most(aim);
    vec![host, host_shared.clone(), stream, unused, host_fault, fault]
}

/// What changes pages that are there.
fn changes(phase: Phase, samples: usize, progress: &mut Steps) -> Vec<Figure> {
    let count = samples.to_string();
    progress.next("protection");
    let host_protect = host_memory::protection_fault(phase, samples);
    let protect = guest::pages("protect, fault, give back, a page", phase, &["protect", &count]);
    let protect = protect.against(&host_protect);
    progress.next("map, touch, unmap");
    let host_map = host_memory::map(phase, samples);
    let map = guest::pages("map, touch and unmap 64 KiB", phase, &["map", &count]).against(&host_map);
    vec![host_protect, protect, host_map, map]
}

/// Pages that are zero, and pages that are reported and claimed.
fn free_pages(phase: Phase, samples: usize, host_shared: &Figure, progress: &mut Steps) -> Vec<Figure> {
    const ROWS: [(&str, &str); 6] = [
        ("zeroed page, known to be zero", "zero-known"),
        ("the same, cleared nevertheless", "zero-cleared-again"),
        ("zeroed page, used before and cleared", "zero-used"),
        ("PAGES_REPORT of 64 MiB, a page", "report"),
        ("PAGES_CLAIM of 64 MiB, a page", "claim"),
        ("touch of a page that was claimed", "touch-claimed"),
    ];
    progress.next("free pages");
    let count = samples.min(11).to_string();
    let host_clear = host_memory::clear(phase, samples);
    let host_hole = host_memory::hole(phase, samples);
    let row = |(name, what): (&str, &str)| guest::pages(name, phase, &[what, &count]);
    let [known, cleared, used, report, claim, touch] = ROWS.map(row);
    vec![
        host_clear.clone(),
        known.against(&host_clear),
        cleared.against(&host_clear),
        used.against(&host_clear),
        host_hole.clone(),
        report.against(&host_hole),
        claim.against(&host_hole),
        touch.against(host_shared),
    ]
}
