//! An upcall entry that looks at what it was entered with, in place of the SDK's.
//!
//! Start at [`install`]; a test then looks at [`SEEN`], or has [`ACTION`] called with the frame.

#![expect(unsafe_code, reason = "the upcall entry is assembly, and a frame is somebody's stack")]

use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering::SeqCst};
use guest_sdk::events::vcpu_page;
use guest_sdk::hv_abi::address::{HYPERCALL_PAGE, SLOT_255, entry};
use guest_sdk::hv_abi::vcpu::{UpcallFrame, upcall};

/// What the upcalls so far were entered with; of the last one unless it says otherwise.
pub struct Seen {
    /// How many there were.
    pub count: AtomicU32,
    /// The vCPU page's `upcall`.
    pub upcall: AtomicU32,
    /// RFLAGS.
    pub flags: AtomicU64,
    /// RSP: where the frame is.
    pub frame: AtomicU64,
    /// `rip`, `rflags` and `rsp` of the frame.
    pub rip: AtomicU64,
    pub rflags: AtomicU64,
    pub rsp: AtomicU64,
    /// How many had a frame that was not aligned.
    pub misaligned: AtomicU32,
    /// How many had a `rip` or `rsp` in slot 255.
    pub in_slot_255: AtomicU32,
}

/// See [`Seen`].
pub static SEEN: Seen = Seen {
    count: AtomicU32::new(0),
    upcall: AtomicU32::new(0),
    flags: AtomicU64::new(0),
    frame: AtomicU64::new(0),
    rip: AtomicU64::new(0),
    rflags: AtomicU64::new(0),
    rsp: AtomicU64::new(0),
    misaligned: AtomicU32::new(0),
    in_slot_255: AtomicU32::new(0),
};

/// What an upcall does beside looking: gets the frame, and how many upcalls there were, this one included.
pub type Action = fn(&mut UpcallFrame, u32);

static ACTION: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

core::arch::global_asm!(
    "hv_conformance_probe:",
    "push rbp",
    "mov rbp, rsp",
    "pushfq", // no instruction so far changes flags
    "push rax",
    "push rcx",
    "push rdx",
    "push rsi",
    "push rdi",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "lea rdi, [rbp + 8]", // the frame
    "mov rsi, [rbp - 8]", // the flags
    "cld",
    "sub rsp, 512",
    "and rsp, -16",
    "fxsave64 [rsp]", // all that this guest's code uses: it is built for SSE2
    "call {seen}",
    "fxrstor64 [rsp]",
    "lea rsp, [rbp - 80]",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rdi",
    "pop rsi",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "mov rsp, rbp",
    "pop rbp",
    "jmp qword ptr [rip + 2f]",
    ".balign 8",
    "2: .quad {upcall_return}",
    seen = sym seen,
    upcall_return = const HYPERCALL_PAGE + entry::UPCALL_RETURN,
);

unsafe extern "C" {
    static hv_conformance_probe: u8;
}

/// The upcall, in Rust: notes everything, takes all events that are not masked, and does what the test wants.
extern "C" fn seen(frame: &mut UpcallFrame, flags: u64) {
    let page = vcpu_page();
    let at = frame as *const UpcallFrame as u64;
    SEEN.upcall.store(page.upcall.load(SeqCst), SeqCst);
    SEEN.flags.store(flags, SeqCst);
    SEEN.frame.store(at, SeqCst);
    SEEN.rip.store(frame.rip, SeqCst);
    SEEN.rflags.store(frame.rflags, SeqCst);
    SEEN.rsp.store(frame.rsp, SeqCst);
    SEEN.misaligned.fetch_add(u32::from(!(at + 40).is_multiple_of(16)), SeqCst);
    SEEN.in_slot_255.fetch_add(u32::from(frame.rip >= SLOT_255 || frame.rsp >= SLOT_255), SeqCst);
    page.upcall.fetch_and(!upcall::PENDING, SeqCst);
    for (pending, masked) in page.pending.iter().zip(&page.masked) {
        pending.fetch_and(masked.load(SeqCst), SeqCst);
    }
    let count = SEEN.count.fetch_add(1, SeqCst) + 1;
    let action = ACTION.load(SeqCst);
    if !action.is_null() {
        // SAFETY: only `install` stores there, and only an `Action`; function and data pointers are alike.
        let action = unsafe { core::mem::transmute::<*mut (), Action>(action) };
        action(frame, count);
    }
}

/// Makes upcalls come here, and unmasks them.
pub fn install(action: Action) {
    ACTION.store(action as *mut (), SeqCst);
    vcpu_page().upcall_entry.store((&raw const hv_conformance_probe).addr() as u64, SeqCst);
    vcpu_page().upcall.fetch_and(!upcall::MASKED, SeqCst);
}

/// For a test that only looks.
pub fn nothing(_: &mut UpcallFrame, _: u32) {}

/// How many upcalls there were.
pub fn count() -> u32 {
    SEEN.count.load(SeqCst)
}
