//! Clients on the network: the server of the library, on the VM's network card.

use crate::epoch_ms;
use core::task::Poll;
use guest_sdk::println;
use guest_sdk::task::{Alarm, block_on};
use guest_sdk::time::{Duration, Instant};
use kv::database::Database;
use kv::disk::Disk;
use kv::server::{Next, Now, PORT, Server};
use pv_drivers::Error;
use pv_drivers::net::Net;
use smoltcp::iface::{Config, Interface};
use smoltcp::wire::EthernetAddress;

/// Serves clients until one of them asks for the end. `memory` is what they may take, `seed` a number that nobody knows.
///
/// # Errors
///
/// The disk failed, or the network card.
pub fn serve<D: Disk<Error = Error>>(
    mut net: Net,
    database: &mut Database<D>,
    memory: usize,
    seed: u64,
) -> Result<(), Error> {
    let mut config = Config::new(EthernetAddress(net.mac()).into());
    config.random_seed = seed;
    let mut interface = Interface::new(config, &mut net, now().monotonic);
    let mut server = Server::new(memory).with_dhcp();
    let mut address = None;
    while !net.is_broken() {
        let deadline = match server.turn(&mut interface, &mut net, database, now())? {
            Next::Shutdown => return Ok(()),
            Next::Wait(deadline) => deadline,
        };
        if interface.ipv4_addr() != address {
            address = interface.ipv4_addr();
            match address {
                Some(address) => println!("kv: listening at {address}:{PORT}"),
                None => println!("kv: the network has taken the address back"),
            }
        }
        if deadline.is_none_or(|deadline| deadline > now().monotonic) {
            block_on(change(&net, deadline));
        }
    }
    Err(Error::Broken)
}

fn now() -> Now {
    let monotonic = smoltcp::time::Instant::from_micros((Instant::now().as_nanos() / 1000) as i64);
    Now { monotonic, epoch_ms: epoch_ms() }
}

/// Waits until a frame has come, until there is room for one to send after there was none, or until `deadline`.
async fn change(net: &Net, deadline: Option<smoltcp::time::Instant>) {
    // While the card takes no frame, there is nothing else to wait for.
    let deadline = deadline.filter(|_| net.try_outgoing().is_some());
    let deadline = deadline.map(|at| Instant::START + Duration::from_micros(at.total_micros().max(0) as u64));
    let (mut alarm, mut waits) = (Alarm::new(), false);
    core::future::poll_fn(|context| {
        if core::mem::replace(&mut waits, true) {
            return Poll::Ready(());
        }
        net.wake_at_change(context.waker());
        alarm.set(deadline, context.waker());
        Poll::Pending
    })
    .await;
}
