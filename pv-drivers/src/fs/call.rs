//! What is asked of the host: one request, and its reply.

use super::reply::Reply;
use super::{Error, Result, SharedFolder};
use crate::queue::{Buffers, Parts};
use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::future::{Future, IntoFuture};
use core::pin::Pin;
use hv_abi::fuse::{BatchForgetIn, ForgetOne, InHeader, OutHeader, ReleaseIn, opcode};
use zerocopy::IntoBytes;

/// Nodes that are forgotten by one request.
const FORGET_AT_ONCE: usize = 32;

/// A request with room for its reply.
pub(super) struct Exchange {
    header: InHeader,
    arguments: Vec<u8>,
    data: Vec<u8>,
    reply: OutHeader,
    room: Vec<u8>,
}

impl Buffers for Exchange {
    fn parts<'a>(&'a mut self, parts: &mut Parts<'a>) {
        parts.read(self.header.as_bytes());
        parts.read(&self.arguments);
        parts.read(&self.data);
        if !has_no_reply(self.header.opcode) {
            parts.write(self.reply.as_mut_bytes());
            parts.write(&mut self.room);
        }
    }
}

fn has_no_reply(asked: u32) -> bool {
    matches!(asked, opcode::FORGET | opcode::BATCH_FORGET)
}

impl Exchange {
    fn new(
        folder: &SharedFolder,
        opcode: u32,
        nodeid: u64,
        arguments: Vec<u8>,
        data: Vec<u8>,
        room: Vec<u8>,
    ) -> Box<Self> {
        let len = (size_of::<InHeader>() + arguments.len() + data.len()) as u32;
        let header = InHeader { len, opcode, unique: folder.unique(), nodeid, ..InHeader::default() };
        Box::new(Self { header, arguments, data, reply: OutHeader::default(), room })
    }

    /// The reply, of which the device has written so many bytes.
    fn reply(self, written: u32) -> Result<Reply> {
        Reply::new(self.header.unique, self.reply, written, self.room, self.data)
    }
}

/// Something that is asked of the host: `.await` it, or [`blocking`](Self::blocking).
#[must_use = "nothing is asked until it is waited for"]
pub struct Call<T> {
    folder: SharedFolder,
    exchange: Box<Exchange>,
    read: fn(&SharedFolder, Reply) -> Result<T>,
}

impl<T> Call<T> {
    pub(super) fn new(
        folder: &SharedFolder,
        opcode: u32,
        node: u64,
        arguments: Vec<u8>,
        data: Vec<u8>,
        room: Vec<u8>,
        read: fn(&SharedFolder, Reply) -> Result<T>,
    ) -> Self {
        let exchange = Exchange::new(folder, opcode, node, arguments, data, room);
        Self { folder: folder.clone(), exchange, read }
    }

    /// Asks, and has the vCPU sleep until there is a reply.
    ///
    /// # Errors
    ///
    /// The host's, or the device's.
    pub fn blocking(self) -> Result<T> {
        let device = &self.folder.0.device;
        let (exchange, written) = device.queue.request_blocking(&**device, self.exchange)?;
        (self.read)(&self.folder, exchange.reply(written)?)
    }
}

impl<T: 'static> IntoFuture for Call<T> {
    type Output = Result<T>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<T>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        let Self { folder, exchange, read } = self;
        Box::pin(async move {
            let (exchange, written) = folder.0.device.queue.request(exchange).await.map_err(Error::from)?;
            read(&folder, exchange.reply(written)?)
        })
    }
}

/// What the host need not keep any more.
#[derive(Clone, Copy)]
pub(super) enum Farewell {
    Forget(u64),
    Release { fh: u64, of_directory: bool },
}

impl SharedFolder {
    /// Tells the host, without waiting: at once of what is open, and of nodes when there are some.
    pub(super) fn part(&self, farewell: Farewell) {
        let mut all = self.0.farewells.lock();
        all.push(farewell);
        if matches!(farewell, Farewell::Forget(_)) && all.len() < FORGET_AT_ONCE {
            return;
        }
        while let Some(next) = self.next_farewell(&mut all) {
            let mut queue = self.0.device.queue.lock();
            queue.look(); // what has come back makes room
            match queue.submit(next.exchange) {
                Ok(token) => {
                    queue.forget(&token);
                    queue.ring();
                }
                Err(_) => {
                    all.extend(next.farewells); // for the next time
                    return;
                }
            }
        }
    }

    /// One release, or all that is to be forgotten.
    fn next_farewell(&self, all: &mut Vec<Farewell>) -> Option<Parting> {
        if let Some(at) = all.iter().position(|farewell| matches!(farewell, Farewell::Release { .. })) {
            let farewell = all.swap_remove(at);
            let Farewell::Release { fh, of_directory } = farewell else { return None };
            let opcode = if of_directory { opcode::RELEASEDIR } else { opcode::RELEASE };
            let request = ReleaseIn { fh, ..ReleaseIn::default() };
            let exchange =
                Exchange::new(self, opcode, 0, request.as_bytes().to_vec(), Vec::new(), Vec::new());
            return Some(Parting { exchange, farewells: vec![farewell] });
        }
        if all.len() < FORGET_AT_ONCE {
            return None;
        }
        let farewells = core::mem::take(all);
        let count = BatchForgetIn { count: farewells.len() as u32, dummy: 0 };
        let mut arguments = count.as_bytes().to_vec();
        for farewell in &farewells {
            if let Farewell::Forget(nodeid) = farewell {
                arguments.extend_from_slice(ForgetOne { nodeid: *nodeid, nlookup: 1 }.as_bytes());
            }
        }
        let exchange = Exchange::new(self, opcode::BATCH_FORGET, 0, arguments, Vec::new(), Vec::new());
        Some(Parting { exchange, farewells })
    }
}

/// A request that nobody waits for.
struct Parting {
    exchange: Box<Exchange>,
    farewells: Vec<Farewell>,
}
