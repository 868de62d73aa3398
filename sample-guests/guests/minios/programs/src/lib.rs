//! What the programs of minios are written with: a thin layer over its system calls.
//!
//! ```ignore
//! #![no_std]
//! #![no_main]
//! os::entry!(main);
//! fn main() -> i32 {
//!     os::println!("hello from {}", os::process::own());
//!     0
//! }
//! ```
//!
//! - [`process`]: fork, exec, wait, exit
//! - [`thread`], [`sync`]: threads of a process, and what they wait for each other with
//! - [`io`]: descriptors, files, pipes, lines, `println!`
//! - [`memory`]: pieces of memory from the kernel, for a program that wants to have them by itself
//! - [`heap`]: the allocator, on memory that the kernel hands out in larger pieces
//! - [`edit`], [`parse`], [`pattern`]: what the shell and `grep` do, without system calls, so that `cargo test` tests it

#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod edit;
pub mod heap;
pub mod io;
pub mod memory;
pub mod parse;
pub mod pattern;
pub mod process;
#[doc(hidden)]
pub mod start;
pub mod sync;
mod system;
pub mod thread;

pub use minios_abi as abi;
pub use minios_abi::Error;

/// The result of most things here.
pub type Result<T> = core::result::Result<T, Error>;

/// Makes `main` the program: writes its first instructions, the panic handler and the allocator. Once for each program.
/// `main` takes nothing and gives the exit status.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[global_allocator]
        static OS_HEAP: $crate::heap::Heap = $crate::heap::new();

        $crate::__guest_user::entry!(os_main, $crate::start::Minios);

        fn os_main(start: u64) {
            $crate::process::exit($crate::start::run(start, $main))
        }
    };
}

pub use start::arguments;

/// Does something for each of a program's arguments, and complains of those for which it cannot be done. Gives the status.
pub fn each_of(program: &str, all: &[&str], act: impl Fn(&str) -> Result<()>) -> i32 {
    let mut status = 0;
    for one in all {
        if let Err(error) = act(one) {
            eprintln!("{program}: {one}: {error}");
            status = 1;
        }
    }
    status
}

#[doc(hidden)]
pub use guest_user as __guest_user;
