//! The vCPU page and FS base.

#![expect(unsafe_code, reason = "other vCPUs' pages, and FS base")]

use crate::{after, in_a_storm};
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use guest_sdk::boot::info;
use guest_sdk::events::{Channel, vcpu_page};
use guest_sdk::hv_abi::CpuFeatures;
use guest_sdk::hv_abi::address::{CLOCK_PAGE, VCPU_PAGES, VCPU_STRIDE};
use guest_sdk::hv_abi::clock::ClockPage;
use guest_sdk::hv_abi::vcpu::{VcpuPage, run_state};
use guest_sdk::hypercall::block;
use guest_sdk::time::{Duration, Instant, stolen, timer};

/// A vCPU's page at its own address.
fn page_of(vcpu: u32) -> &'static VcpuPage {
    assert!(vcpu < info().vcpus);
    // SAFETY: the ABI maps a `VcpuPage` there for each vCPU; all that changes in it are atomics.
    unsafe { &*core::ptr::with_exposed_provenance((VCPU_PAGES + u64::from(vcpu) * VCPU_STRIDE) as usize) }
}

/// The clock page behind a vCPU's page.
fn clock_of(vcpu: u32) -> &'static ClockPage {
    assert!(vcpu < info().vcpus);
    let at = VCPU_PAGES + u64::from(vcpu) * VCPU_STRIDE + CLOCK_PAGE;
    // SAFETY: the ABI maps a `ClockPage` there for each vCPU; all that changes in it are atomics.
    unsafe { &*core::ptr::with_exposed_provenance(at as usize) }
}

/// What a reading of a clock page rests on, from one turn of its sequence counter.
fn clock_fields(page: &ClockPage) -> [u64; 6] {
    loop {
        let before = page.sequence.load(SeqCst);
        let fields = [&page.tsc_base, &page.ns_base, &page.scale, &page.wall_base, &page.generation];
        let [a, b, c, d, e] = fields.map(|field| field.load(SeqCst));
        if before & 1 == 0 && page.sequence.load(SeqCst) == before {
            return [before.into(), a, b, c, d, e];
        }
    }
}

/// Steal time, brought up to date: a timer has fired, and not just after another.
fn settled() -> Duration {
    static FIRED: AtomicBool = AtomicBool::new(false);
    FIRED.store(false, SeqCst);
    timer::set(after(3), |_| FIRED.store(true, SeqCst));
    while !FIRED.load(SeqCst) {
        core::hint::spin_loop();
    }
    stolen()
}

fn set_fs_base(base: u64) {
    // SAFETY: FS base is the guest kernel's own, and nothing of this guest uses it.
    unsafe { asm!("wrfsbase {}", in(reg) base, options(nostack, preserves_flags)) };
}

fn fs_base() -> u64 {
    let base;
    // SAFETY: reads a register.
    unsafe { asm!("rdfsbase {}", out(reg) base, options(nostack, preserves_flags)) };
    base
}

guest_sdk::tests! {
    "VCPU-001" fn each_page_has_its_vcpus_number() {
        for vcpu in 0..info().vcpus {
            assert_eq!(page_of(vcpu).vcpu.load(SeqCst), vcpu);
        }
    }

    "VCPU-003" fn a_vcpu_that_looks_is_running() {
        static IN_HANDLER: AtomicU32 = AtomicU32::new(77);
        let running = || assert_eq!(vcpu_page().run_state.load(SeqCst), run_state::RUNNING);
        running();
        guest_sdk::hypercall::yield_now();
        running();
        timer::set(after(2), |_| IN_HANDLER.store(vcpu_page().run_state.load(SeqCst), SeqCst));
        while IN_HANDLER.load(SeqCst) == 77 {
            block(after(1000).as_nanos()); // the handler runs before this returns
            running();
        }
        assert_eq!(IN_HANDLER.load(SeqCst), run_state::RUNNING);
    }

    "VCPU-004" fn a_vcpu_that_runs_is_not_preempted() {
let zero = || {
            assert_eq!(vcpu_page().preempted.load(SeqCst), 0);
        };
        zero();
        in_a_storm(|| {
            let end = after(20);
            while Instant::now() < end {
                guest_sdk::hypercall::yield_now();
                zero();
            }
        });
        while !block(after(2).as_nanos()) {}
        zero();
    }

    "VCPU-006" fn steal_time_never_decreases() {
        in_a_storm(|| {
            let (end, mut last) = (after(50), stolen());
            while Instant::now() < end {
                let now = stolen();
                assert!(now >= last, "{now:?} after {last:?}");
                last = now;
            }
        });
    }

    // What was stolen is no more than the time that passed, less what was slept. The host may interrupt the vCPU just before it
    // begins to sleep, and then it is more; but not each time.
    "VCPU-007" fn a_vcpu_that_sleeps_is_not_stolen_from() {
        let honest = (0..20).any(|_| {
            let before = settled();
            let (begin, end) = (Instant::now(), after(50));
            while !block(end.as_nanos()) {}
            settled() - before <= begin.elapsed() - (end - begin)
        });
        assert!(honest, "{:?} were stolen in {:?}", stolen(), Instant::now());
    }

    "CLOCK-006" fn all_vcpus_have_the_same_clock() {
        for vcpu in 0..info().vcpus {
            loop {
                let before = clock_fields(clock_of(0));
                let found = clock_fields(clock_of(vcpu));
                if clock_fields(clock_of(0)) == before {
                    assert_eq!(found, before, "vCPU {vcpu}");
                    break; // else the host has changed it meanwhile
                }
            }
        }
    }

    "KERNEL-010" fn fs_base_is_kept_across_calls_upcalls_and_preemption() {
        if !info().cpu_features.contains(CpuFeatures::FSGSBASE) {
            return; // this guest cannot change it
        }
        let channel = Channel::allocate().unwrap();
        channel.on_event(|_| {});
        in_a_storm(|| {
            let end = after(100);
            let mut base = 0x1234_5678_9000;
            while Instant::now() < end {
                base += 0x10_0001;
                set_fs_base(base);
                (0..1000).for_each(|_| core::hint::spin_loop());
                assert_eq!(fs_base(), base, "after some turns");
                channel.send().unwrap();
                guest_sdk::hypercall::yield_now();
                assert_eq!(fs_base(), base, "after calls and an upcall");
                block((after(0)).as_nanos());
                assert_eq!(fs_base(), base, "after a block");
            }
        });
    }
}
