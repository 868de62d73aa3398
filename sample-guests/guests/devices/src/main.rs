//! Lists its devices, and tries those that its arguments name.

#![no_std]
#![no_main]

extern crate alloc;

mod balloon;
mod console;
mod disk;
mod hostile;
mod net;
mod rate;
mod share;
mod vsock;

use alloc::vec;
use core::str::FromStr;
use guest_sdk::hv_abi::device::kind;
use guest_sdk::{boot, println};
use pv_drivers::Error;
use pv_drivers::rng::Rng;

guest_sdk::entry!(main);

fn main() -> Result<(), Error> {
    for device in boot::devices() {
        println!("device {}: {}", device.device, name(device.kind));
    }
    let mut arguments = boot::arguments();
    while let Some(trial) = arguments.next() {
        match trial {
            "rng" => rng()?,
            "disk" => disk::check()?,
            "disk-load" => disk::load(number(&mut arguments))?,
            "disk-read-only" => disk::read_only()?,
            "vsock" => vsock::check()?,
            "vsock-serve" => vsock::serve()?,
            "vsock-load" => vsock::load(number(&mut arguments))?,
            "vsock-slow" => vsock::slow()?,
            "vsock-hostile" => hostile::vsock(number(&mut arguments))?,
            "console" => console::check()?,
            "console-load" => console::load()?,
            "console-slow" => console::slow()?,
            "console-hostile" => hostile::console(number(&mut arguments))?,
            "terminal" => console::terminal()?,
            "balloon" => balloon::check()?,
            "balloon-report" => balloon::report()?,
            "balloon-hostile" => hostile::balloon(number(&mut arguments))?,
            "net-echo" => net::echo()?,
            "net-send" => net::send(number(&mut arguments))?,
            "net-expect" => net::expect(number(&mut arguments))?,
            "net-link" => net::link()?,
            "net-serve" => net::serve(number(&mut arguments))?,
            "net-clients" => net::clients(number(&mut arguments), number(&mut arguments))?,
            "rate-send" => rate::send(number(&mut arguments))?,
            "rate-receive" => rate::receive(number(&mut arguments))?,
            "rate-send-tcp" => rate::send_tcp(number(&mut arguments))?,
            "rate-receive-tcp" => rate::receive_tcp()?,
            "share-load" => share::load(number(&mut arguments)).unwrap_or_else(|error| panic!("{error}")),
            other => panic!("no trial is called {other:?}"),
        }
        println!("{trial}: good");
    }
    Ok(())
}

/// A number among the arguments.
fn number<T: FromStr + From<bool>>(arguments: &mut impl Iterator<Item = &'static str>) -> T {
    arguments.next().and_then(|number| number.parse().ok()).unwrap_or(T::from(true))
}

fn name(of: u32) -> &'static str {
    match of {
        kind::NETWORK => "network",
        kind::BLOCK => "disk",
        kind::CONSOLE => "console",
        kind::ENTROPY => "entropy",
        kind::BALLOON => "balloon",
        kind::VSOCK => "vsock",
        kind::FILE_SYSTEM => "shared folder",
        _ => "unknown",
    }
}

/// Random bytes differ, and there are as many as were asked for.
fn rng() -> Result<(), Error> {
    let rng = Rng::find()?;
    assert_eq!(Rng::find().err(), Some(Error::NoDevice), "a device has one driver");
    let mut pages = [vec![0; 10_000], vec![0; 10_000]];
    for page in &mut pages {
        rng.fill_blocking(page)?;
        let ones: u32 = page.iter().map(|byte: &u8| byte.count_ones()).sum();
        assert!((38_000..42_000).contains(&ones), "{ones} of 80000 bits are set");
    }
    assert_ne!(pages[0], pages[1]);
    drop(rng);
    Rng::find()?.fill_blocking(&mut [0; 3]) // and again, after a reset
}
