//! Trials of the memory balloon as a device.

use alloc::vec::Vec;
use guest_sdk::frames::{self, Frame};
use guest_sdk::println;
use guest_sdk::task;
use pv_drivers::Error;
use pv_drivers::balloon::Balloon;

/// Gives up what the host asks for, until it asks for nothing again.
pub fn check() -> Result<(), Error> {
    let balloon = Balloon::find()?;
    let total = frames::available();
    println!("balloon ready");
    let mut was_asked = false;
    loop {
        balloon.follow()?;
        let (target, held) = (balloon.target(), balloon.held());
        // The lists of pages are of some, too.
        assert!((total - 512..=total).contains(&(held + frames::available())), "pages are lost");
        println!("holds {held} of {target}");
        if was_asked && target == 0 {
            return Ok(());
        }
        was_asked |= target > 0;
        task::block_on(balloon.changed())?;
    }
}

/// Tells of free pages, which then cost nothing and are zero.
pub fn report() -> Result<(), Error> {
    const PAGES: usize = 4096;
    let balloon = Balloon::find()?;
    let used: Vec<Frame> = (0..PAGES).map_while(|_| frames::allocate(0).ok()).collect();
    used.iter().for_each(|frame| frame.fill(0x5a));
    println!("filled {}", used.len());
    drop(used);
    let reported = balloon.report_free()?;
    assert!(reported >= PAGES as u64, "{reported}");
    println!("reported");
    // The host looks, and says so by the balloon.
    balloon.changed_blocking()?;
    assert_eq!(balloon.report_free()?, 0, "all free pages are zero");
    let again: Vec<Frame> = (0..PAGES).map_while(|_| frames::allocate(0).ok()).collect();
    let mut bytes = [1; 4096];
    for frame in &again {
        frame.read_at(0, &mut bytes);
        assert!(bytes == [0; 4096]);
    }
    Ok(())
}
