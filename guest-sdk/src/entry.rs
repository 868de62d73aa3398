//! A guest's first instructions.

#![expect(unsafe_code, reason = "called by assembly with what the host gave")]

use crate::process::Termination;
use hv_abi::Features;
use hv_abi::boot::BootInfo;

/// Features that the SDK uses when the host has them.
pub const NOTE_LIKED: Features = Features::EVENTS
    .union(Features::MULTICALL)
    .union(Features::MMU)
    .union(Features::SMP)
    .union(Features::PAGE_REPORTING)
    .union(Features::DEVICES)
    .union(Features::CONSOLE_INPUT)
    .union(Features::TRACE);

/// Makes `main` the guest's entry: writes the ELF note, the panic handler, the global allocator and the first
/// instructions into the image. To be used once, in the binary.
///
/// `main` takes nothing and returns nothing, an exit code (`u8`), or a `Result<(), E>`.
///
/// ```ignore
/// #![no_std]
/// #![no_main]
/// guest_sdk::entry!(main);
/// fn main() {}
/// ```
///
/// `entry!(main, memory = 16 << 20)` says how much memory the guest needs at the least, in bytes.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        $crate::entry!($main, memory = 4 << 20);
    };
    ($main:path, memory = $memory:expr) => {
        #[used]
        #[unsafe(link_section = ".note.hv")]
        static HV_NOTE: $crate::__private::ElfNote = $crate::__private::ElfNote::new(
            $crate::__private::Features::empty(),
            $crate::__private::NOTE_LIKED,
            $memory,
        );

        #[panic_handler]
        fn hv_panic(info: &::core::panic::PanicInfo<'_>) -> ! {
            $crate::panic::handle(info)
        }

        #[global_allocator]
        static HV_HEAP: $crate::heap::Heap = $crate::heap::Heap::new();

        // RDI is the boot information; the image brings its own stack. A zero frame pointer ends backtraces.
        ::core::arch::global_asm!(
            ".globl _start",
            ".type _start, @function",
            "_start:",
            "lea rsp, [rip + __hv_stack_top]",
            "xor ebp, ebp",
            "call hv_main",
            "ud2",
            ".size _start, . - _start",
        );

        #[unsafe(no_mangle)]
        extern "C" fn hv_main(boot: *const ()) -> ! {
            $crate::__private::start(boot, $main)
        }
    };
}

/// Sets the SDK up and runs `main`.
pub fn start<T: Termination>(boot: *const (), main: fn() -> T) -> ! {
    // SAFETY: `entry!` passes what the host gave the entry point; frames are `USABLE` memory only, so it stays unchanged.
    unsafe { crate::boot::set(boot.cast::<BootInfo>()) };
    crate::mem::init(crate::boot::info().cpu_features);
    crate::trace::init_first();
    crate::upcall::init();
    crate::process::exit(main().code())
}
