//! The allocator: `talc`, on memory that the kernel hands out. A page of it costs nothing until it is first touched.

#![expect(unsafe_code, reason = "the memory that the allocator is given")]

use crate::sync::RawMutex;
use crate::system;
use core::alloc::Layout;
use minios_abi::call;
use talc::{OomHandler, Span, Talc, Talck};

/// Least that is asked for at a time.
const PIECE: usize = 256 << 10;

/// The allocator that [`entry!`](crate::entry) makes the global one.
pub type Heap = Talck<RawMutex, More>;

/// An allocator with no memory yet.
pub const fn new() -> Heap {
    Talc::new(More).lock()
}

/// Asks the kernel for memory when there is none left.
pub struct More;

impl OomHandler for More {
    fn handle_oom(talc: &mut Talc<Self>, layout: Layout) -> Result<(), ()> {
        let length = (layout.size() + layout.align() + 1024).next_multiple_of(PIECE);
        let start = system::call(call::MAP, [length as u64, 0, 0, 0]).map_err(drop)?;
        let span = Span::from_base_size(core::ptr::with_exposed_provenance_mut(start as usize), length);
        // SAFETY: `claim` needs memory that is readable, writable and nobody else's: the kernel has just mapped it.
        unsafe { talc.claim(span) }.map(drop)
    }
}
