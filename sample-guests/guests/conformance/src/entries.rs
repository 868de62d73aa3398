//! The hypercall page: what calls and upcalls leave alone.

#![expect(unsafe_code, reason = "calling the hypercall page with every register known")]

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use guest_sdk::events::Channel;
use guest_sdk::hv_abi::address::{HYPERCALL_PAGE, entry};
use guest_sdk::hv_abi::call::NEVER;
use guest_sdk::hv_abi::{ABI_VERSION, Call};
use guest_sdk::time::{Duration, Instant, timer};

/// Registers that a call must preserve, with values of which no two are alike.
const KEPT: [u64; 4] =
    [0x1212_1212_1212_1212, 0x1313_1313_1313_1313, 0x1414_1414_1414_1414, 0x1515_1515_1515_1515];

/// Calls an entry with `rdi` and `rsi`; gives RAX, RDX and what became of R12 to R15.
fn call_entry(at: u64, rdi: u64, rsi: u64) -> (u64, u64, [u64; 4]) {
    let [mut r12, mut r13, mut r14, mut r15] = KEPT;
    let (rax, rdx);
    // SAFETY: the entries are functions of the System V convention; all that it does not keep is declared lost, and
    // they write no memory with these arguments.
    unsafe {
        asm!(
            "call {entry}",
            entry = in(reg) HYPERCALL_PAGE + at,
            inout("rdi") rdi => _, inout("rsi") rsi => _,
            in("rcx") 0, in("r8") 0, in("r9") 0,
            lateout("rax") rax, inout("rdx") 0_u64 => rdx,
            inout("r12") r12, inout("r13") r13, inout("r14") r14, inout("r15") r15,
            clobber_abi("sysv64"),
        );
    }
    (rax, rdx, [r12, r13, r14, r15])
}

static COUNT: AtomicU32 = AtomicU32::new(0);

guest_sdk::tests! {
    "CALL-001 CALL-003 CALL-004" fn a_call_keeps_registers_and_looks_at_edi_only() {
        for upper in [0, 1 << 32, u64::MAX << 32] {
            let answer = call_entry(entry::CALL, upper | u64::from(Call::VERSION.0), 0);
            assert_eq!(answer, (0, ABI_VERSION.into(), KEPT));
        }
    }

    "CALL-002" fn a_call_keeps_the_floating_point_control_words() {
        let (mxcsr, x87) = (0x5fa0_u32, 0x0a7f_u16); // both unlike their defaults: other roundings, other masks
        let (mut mxcsr_after, mut x87_after) = (0_u32, 0_u16);
        // SAFETY: loads control words with valid bits and stores them again; the defaults are put back below.
        unsafe { asm!("ldmxcsr [{0}]", "fldcw [{1}]", in(reg) &mxcsr, in(reg) &x87) };
        for _ in 0..1000 {
            call_entry(entry::CALL, Call::YIELD.0.into(), 0);
        }
        call_entry(entry::BLOCK, Instant::now().as_nanos() + 1_000_000, 0);
        // SAFETY: as above.
        unsafe {
            asm!("stmxcsr [{0}]", "fnstcw [{1}]", in(reg) &mut mxcsr_after, in(reg) &mut x87_after);
            asm!("ldmxcsr [{0}]", "fldcw [{1}]", in(reg) &0x1f80_u32, in(reg) &0x037f_u16);
        }
        assert_eq!((mxcsr_after, x87_after), (mxcsr, x87));
    }

    "CALL-006" fn a_call_that_ends_with_an_upcall_gives_its_answer() {
        let channel = Channel::allocate().unwrap();
        channel.on_event(|_| {
            COUNT.fetch_add(1, SeqCst);
            assert_eq!(guest_sdk::hypercall::version(), ABI_VERSION); // another answer in the same page
        });
        for i in 1..=1000 {
            let answer = call_entry(entry::CALL, Call::EVENT_SEND.0.into(), channel.number().into());
            assert_eq!(answer, (0, 0, KEPT));
            assert_eq!(COUNT.load(SeqCst), i);
        }
    }

    "BLOCK-009" fn block_keeps_registers() {
        let (status, _, kept) = call_entry(entry::BLOCK, Instant::now().as_nanos() + 2_000_000, 0);
        assert_eq!((status, kept), (0, KEPT));
        timer::set(Instant::now() + Duration::from_millis(1), |_| {});
        let (status, _, kept) = call_entry(entry::BLOCK, NEVER, 0);
        assert_eq!((status, kept), (0, KEPT));
    }

    "UPCALL-005 UPCALL-009 UPCALL_RETURN-002" fn upcalls_between_any_two_instructions_change_nothing() {
        timer::set(Instant::now(), again);
        let end = Instant::now() + Duration::from_millis(200);
        while Instant::now() < end {
            every_register_survives();
        }
        timer::clear();
        assert!(COUNT.load(SeqCst) > 100, "{} upcalls", COUNT.load(SeqCst));
    }
}

/// The timer's handler: uses the extended state itself, and sets the timer again, 20 us on.
fn again(_: Channel) {
    COUNT.fetch_add(1, SeqCst);
    let mut noise = [0_u8; 256];
    noise.fill(COUNT.load(SeqCst) as u8);
    core::hint::black_box(&noise);
    timer::set(Instant::now() + Duration::from_micros(20), again);
}

/// Fills general and vector registers and the red zone, spins some thousand turns, and looks at all of them.
fn every_register_survives() {
    let wrong: u64;
    // SAFETY: touches only registers that are declared lost, and the 128 bytes below RSP, which are nobody's: no `push`
    // or `call` stands between.
    unsafe {
        asm!(
            "mov rax, 0x0101010101010101",
            "mov rcx, 0x0202020202020202",
            "mov rdx, 0x0303030303030303",
            "mov rsi, 0x0404040404040404",
            "mov rdi, 0x0505050505050505",
            "mov r8,  0x0808080808080808",
            "mov r9,  0x0909090909090909",
            "mov r10, 0x1010101010101010",
            "mov r11, 0x1111111111111111",
            "mov r12, 0x1212121212121212",
            "mov r13, 0x1313131313131313",
            "mov r14, 0x1414141414141414",
            "movq xmm0, rax",
            "movq xmm7, rcx",
            "movq xmm15, rdx",
            "mov [rsp - 8], r8",
            "mov [rsp - 64], r9",
            "mov [rsp - 128], r10",
            "mov r15d, 20000",
            "2:",
            "dec r15d",
            "jnz 2b",
            // r15 gathers what differs.
            "mov r14, 0x0101010101010101", "xor r14, rax", "or r15, r14",
            "movq r14, xmm0",  "xor r14, rax", "or r15, r14",
            "movq r14, xmm7",  "xor r14, rcx", "or r15, r14",
            "movq r14, xmm15", "xor r14, rdx", "or r15, r14",
            "mov r14, 0x0202020202020202", "xor r14, rcx", "or r15, r14",
            "mov r14, 0x0303030303030303", "xor r14, rdx", "or r15, r14",
            "mov r14, 0x0404040404040404", "xor r14, rsi", "or r15, r14",
            "mov r14, 0x0505050505050505", "xor r14, rdi", "or r15, r14",
            "mov r14, 0x0808080808080808", "xor r14, r8",  "or r15, r14",
            "mov r14, 0x0909090909090909", "xor r14, r9",  "or r15, r14",
            "mov r14, 0x1010101010101010", "xor r14, r10", "or r15, r14",
            "mov r14, 0x1111111111111111", "xor r14, r11", "or r15, r14",
            "mov r14, 0x1212121212121212", "xor r14, r12", "or r15, r14",
            "mov r14, 0x1313131313131313", "xor r14, r13", "or r15, r14",
            "mov r14, [rsp - 8]",   "xor r14, r8",  "or r15, r14",
            "mov r14, [rsp - 64]",  "xor r14, r9",  "or r15, r14",
            "mov r14, [rsp - 128]", "xor r14, r10", "or r15, r14",
            out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _, out("r8") _, out("r9") _,
            out("r10") _, out("r11") _, out("r12") _, out("r13") _, out("r14") _, out("r15") wrong,
            out("xmm0") _, out("xmm7") _, out("xmm15") _,
        );
    }
    assert_eq!(wrong, 0, "bits that an upcall changed");
}
