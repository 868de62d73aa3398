//! The hypercall page: what its entries leave alone, and what they give.

#![expect(unsafe_code, reason = "control words of the floating-point units")]

use crate::registers::{call, enter, good};
use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use guest_sdk::events::{Channel, without_upcalls};
use guest_sdk::hv_abi::address::entry;
use guest_sdk::hv_abi::call::{NEVER, woken_by};
use guest_sdk::hv_abi::{ABI_VERSION, Call, Status};
use guest_sdk::hypercall::timer_set;
use guest_sdk::time::{Duration, Instant};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Sets control words that are both unlike their defaults, runs `section`, and tells whether they were kept.
pub fn keeps_control_words(section: impl FnOnce()) -> bool {
    let (mxcsr, x87) = (0x5fa0_u32, 0x0a7f_u16); // other roundings, other masks
    let (mut mxcsr_after, mut x87_after) = (0_u32, 0_u16);
    // SAFETY: loads control words with valid bits; the defaults are put back below.
    unsafe { asm!("ldmxcsr [{0}]", "fldcw [{1}]", in(reg) &mxcsr, in(reg) &x87) };
    section();
    // SAFETY: stores the control words in variables of their sizes, and loads the defaults.
    unsafe {
        asm!("stmxcsr [{0}]", "fnstcw [{1}]", in(reg) &mut mxcsr_after, in(reg) &mut x87_after);
        asm!("ldmxcsr [{0}]", "fldcw [{1}]", in(reg) &0x1f80_u32, in(reg) &0x037f_u16);
    }
    (mxcsr_after & 0xffc0, x87_after) == (mxcsr & 0xffc0, x87) // the low six bits are status
}

guest_sdk::tests! {
    "CALL-001 CALL-003" fn a_call_keeps_registers_and_gives_status_and_value() {
        assert_eq!(call(Call::VERSION, []), good(Status::SUCCESS, ABI_VERSION.into()));
        assert_eq!(call(Call::EVENT_SEND, [16]), good(Status::NOT_FOUND, 0));
        assert_eq!(call(Call::EVENT_ALLOCATE, [0]), good(Status::SUCCESS, 16));
    }

    "CALL-004" fn a_call_looks_at_edi_only() {
        for upper in [1 << 32, 1 << 63, u64::MAX << 32] {
            let answer = enter(entry::CALL, [upper | u64::from(Call::VERSION.0), 0, 0, 0, 0, 0]);
            assert_eq!(answer, good(Status::SUCCESS, ABI_VERSION.into()), "{upper:#x}");
        }
    }

    "CALL-002" fn a_call_keeps_the_floating_point_control_words_and_clears_df() {
        assert!(keeps_control_words(|| (0..1000).for_each(|_| assert!(!call(Call::YIELD, []).df))));
    }

    "CALL-001 CALL-006" fn a_call_that_ends_with_an_upcall_gives_its_answer_and_keeps_registers() {
        let channel = Channel::allocate().unwrap();
        channel.on_event(|_| {
            COUNT.fetch_add(1, SeqCst);
            assert_eq!(guest_sdk::hypercall::version(), ABI_VERSION); // another answer in the same page
        });
        for i in 1..=1000 {
            assert_eq!(call(Call::EVENT_SEND, [channel.number().into()]), good(Status::SUCCESS, 0));
            assert_eq!(COUNT.load(SeqCst), i);
        }
    }

    "BLOCK-009" fn block_keeps_registers_and_control_words() {
        let block = |deadline| enter(entry::BLOCK, [deadline, 0, 0, 0, 0, 0]);
        let in_2_ms = || Instant::now() + Duration::from_millis(2);
        let mut answer = block(in_2_ms().as_nanos());
        assert!(answer.value <= woken_by::DEADLINE, "{answer:?}");
        assert_eq!(answer, good(Status::SUCCESS, answer.value));
        Channel::TIMER.unmask();
        // Masked, so that the timer's event is not gone before the guest blocks.
        answer = without_upcalls(|| {
            timer_set(in_2_ms().as_nanos());
            block(NEVER)
        });
        assert_eq!(answer, good(Status::SUCCESS, woken_by::EVENT));
        assert!(keeps_control_words(|| assert!(!block(in_2_ms().as_nanos()).df)));
    }
}
