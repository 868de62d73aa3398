//! What a guest gains by telling the host what it knows, and by asking: each of five things in two ways.
//!
//! One way is that of a kernel which takes the machine for its own: it keeps to itself what it knows, and the host can only
//! guess. The other way tells the host, or asks it. `hv demo gap` runs the two side by side and measures what the difference is.
//!
//! Each module is one pair; start at [`idle`]. A guest prints a line when it is ready, if the host measures what comes then, and a
//! line of numbers when it is done; then it [rests](rest), so that the host can look at it.

#![no_std]
#![no_main]

extern crate alloc;

mod free;
mod idle;
mod lock;
mod tables;
mod zero;

use guest_sdk::hv_abi::call::NEVER;
use guest_sdk::{boot, hypercall, println};

guest_sdk::entry!(main);

fn main() -> u8 {
    let mut words = boot::arguments();
    let [pair, way] = [(); 2].map(|()| words.next().unwrap_or_default());
    let count = words.next().and_then(|word| word.parse().ok());
    match (pair, way, count) {
        ("idle", "spin", _) => idle::spin(),
        ("idle", "block", _) => idle::block(),
        ("idle", "work", Some(milliseconds)) => idle::work(milliseconds),
        ("zero", "clear", Some(pages)) => zero::clear(pages),
        ("zero", "ask", Some(pages)) => zero::ask(pages),
        ("free", "keep", Some(mib)) => free::keep(mib),
        ("free", "report", Some(mib)) => free::report(mib),
        ("lock", "ticket", Some(sections)) => lock::ticket(sections),
        ("lock", "paravirtual", Some(sections)) => lock::paravirtual(sections),
        ("tables", "single", Some(passes)) => tables::single(passes),
        ("tables", "batch", Some(passes)) => tables::batch(passes),
        _ => {
            println!("usage: gap idle spin|block, gap idle work MILLISECONDS");
            println!("       gap zero clear|ask PAGES");
            println!("       gap free keep|report MIB");
            println!("       gap lock ticket|paravirtual SECTIONS");
            println!("       gap tables single|batch PASSES");
            return 2;
        }
    }
    rest();
    0
}

/// Gives the processor back until the host ends the VM.
fn rest() {
    loop {
        hypercall::block(NEVER);
    }
}
