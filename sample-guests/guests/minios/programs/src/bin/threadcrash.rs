//! `threadcrash fault|exit|exec|spin`: what one thread does, while others compute, sleep and wait.

#![no_std]
#![no_main]

use core::time::Duration;
use os::sync::Mutex;
use os::{process, thread};

os::entry!(main);

static HELD: Mutex<()> = Mutex::new(());

fn main() -> i32 {
    let act: fn() = match os::arguments() {
        ["fault"] => fault,
        ["exit"] => || process::exit(7),
        ["exec"] => exec,
        ["spin"] => spin,
        _ => {
            os::eprintln!("usage: threadcrash fault|exit|exec|spin");
            return 2;
        }
    };
    let held = HELD.lock();
    let others = [
        thread::spawn(spin),
        thread::spawn(|| process::sleep(Duration::from_secs(3600))),
        thread::spawn(|| drop(HELD.lock())),
        thread::spawn(act),
    ];
    if others.iter().any(Result::is_err) {
        os::eprintln!("threadcrash: no threads");
        return 1;
    }
    process::sleep(Duration::from_secs(3600));
    drop(held);
    0
}

fn spin() {
    loop {
        core::hint::spin_loop();
    }
}

#[expect(unsafe_code, reason = "it is to fault")]
fn fault() {
    process::sleep(Duration::from_millis(20)); // the others are at it by then
    // SAFETY: nothing is there, so that nothing is written: the kernel ends the process.
    unsafe { core::ptr::null_mut::<u64>().write_volatile(1) }
}

fn exec() {
    os::println!("threadcrash: {}", process::exec("true", &["true"]));
    process::exit(0);
}
