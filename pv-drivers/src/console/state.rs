//! Ports, and what the host says of them.
//!
//! Input stays in its buffers until it is read; then they are the device's again. So a guest that reads slowly holds the host back,
//! and so does a host that reads slowly hold the guest back.
//!
//! Start at [`State::look`].

use super::Size;
use super::control::{Control, event};
use crate::Error;
use crate::buffers::{Inbound, Outbound};
use crate::queue::Queue;
use crate::registered::Wakers;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::task::Waker;
use zerocopy::{FromBytes, IntoBytes};

/// Buffers for a port's input, and bytes of each; pieces of its output that wait until the host has them, and the most bytes of one.
const INPUT: usize = 4;
const INPUT_BYTES: usize = 4096;
const OUTPUT: usize = 8;
const OUTPUT_BYTES: usize = 16 << 10;
/// Messages either way; bytes of one, with a name.
const MESSAGES: usize = 16;
const MESSAGE_BYTES: usize = 128;
/// Messages that wait for room in the ring. A host that does not take them loses some.
const PENDING: usize = 128;

/// A buffer of input, and what of it was not read.
struct Filled {
    buffer: Box<Inbound>,
    at: usize,
    end: usize,
}

pub(super) struct PortState {
    input: Queue<Inbound, INPUT>,
    output: Queue<Outbound, OUTPUT>,
    filled: VecDeque<Filled>,
    name: Option<String>,
    /// The host has said its name, and then whether somebody is at the other end.
    announced: bool,
    /// That is so.
    open: bool,
    /// Somebody in the guest has it.
    taken: bool,
    /// Somebody waits for the host to take output.
    wants_room: bool,
    wakers: Wakers,
}

impl PortState {
    pub(super) fn new(
        mut input: Queue<Inbound, INPUT>,
        output: Queue<Outbound, OUTPUT>,
    ) -> Result<Self, Error> {
        fill(&mut input, INPUT_BYTES)?;
        Ok(Self {
            input,
            output,
            filled: VecDeque::new(),
            name: None,
            announced: false,
            open: false,
            taken: false,
            wants_room: false,
            wakers: Wakers::default(),
        })
    }

    fn is_broken(&self) -> bool {
        self.input.is_broken() || self.output.is_broken()
    }

    fn look(&mut self) -> bool {
        let made_room = self.output.look();
        let happened = self.input.look() | made_room;
        while let Some(Ok((buffer, length))) = self.input.take_next() {
            self.filled.push_back(Filled { buffer, at: 0, end: length as usize });
        }
        if happened {
            self.wants_room &= !made_room;
            self.wakers.wake();
        }
        happened
    }

    fn arm(&mut self) -> bool {
        self.input.arm() | (self.wants_room && self.output.arm())
    }

    /// Takes input out of its buffers, and gives those back that were read.
    fn take(&mut self, bytes: &mut [u8]) -> usize {
        let mut taken = 0;
        while taken < bytes.len()
            && let Some(filled) = self.filled.front_mut()
        {
            let length = (filled.end - filled.at).min(bytes.len() - taken);
            bytes[taken..taken + length].copy_from_slice(&filled.buffer.0[filled.at..filled.at + length]);
            (filled.at, taken) = (filled.at + length, taken + length);
            if filled.at == filled.end {
                let Filled { buffer, .. } = self.filled.pop_front().expect("it was there");
                let _ = self.input.submit(buffer); // broken: it was reset, and wants none
                self.input.ring();
            }
        }
        taken
    }
}

/// Hands a queue as many buffers as it has room for.
fn fill<const SIZE: usize>(queue: &mut Queue<Inbound, SIZE>, bytes: usize) -> Result<(), Error> {
    for _ in 0..SIZE {
        queue.submit(Box::new(Inbound(vec![0; bytes]))).map_err(|_| Error::NoMemory)?;
    }
    Ok(())
}

/// Queues of messages from the device, and to it.
type Messages = (Queue<Inbound, MESSAGES>, Queue<Outbound, MESSAGES>);

/// All of it.
pub(super) struct State {
    size: Size,
    ports: Vec<PortState>,
    messages: Messages,
    pending: VecDeque<Control>,
    /// Who waits for another size.
    wakers: Wakers,
}

impl State {
    pub(super) fn new(size: Size, ports: Vec<PortState>, mut messages: Messages) -> Result<Self, Error> {
        fill(&mut messages.0, MESSAGE_BYTES)?;
        Ok(Self { size, ports, messages, pending: VecDeque::new(), wakers: Wakers::default() })
    }

    /// The device is ready, and is to say what ports it has.
    pub(super) fn begin(&mut self) {
        self.messages.0.ring();
        self.ports.iter_mut().for_each(|port| port.input.ring());
        self.send(0, event::DEVICE_READY, 1);
    }

    fn is_broken(&self) -> bool {
        let (from, to) = &self.messages;
        from.is_broken() || to.is_broken() || self.ports.iter().any(PortState::is_broken)
    }

    /// Takes what the host has sent. Whether there was something.
    pub(super) fn look(&mut self) -> bool {
        let (from, to) = &mut self.messages;
        let mut happened = from.look() | to.look();
        while let Some(Ok((message, length))) = self.messages.0.take_next() {
            self.receive(&message.0[..length as usize]);
            let _ = self.messages.0.submit(message); // broken: it was reset, and wants none
            self.messages.0.ring();
        }
        for port in &mut self.ports {
            happened |= port.look();
        }
        if happened {
            self.send_pending();
            if self.is_broken() {
                self.wakers.wake();
                self.ports.iter_mut().for_each(|port| port.wakers.wake());
            }
        }
        happened
    }

    pub(super) fn arm(&mut self) -> bool {
        let (from, to) = &mut self.messages;
        let happened = from.arm() | (!self.pending.is_empty() && to.arm());
        self.ports.iter_mut().fold(happened, |happened, port| port.arm() | happened)
    }

    fn receive(&mut self, message: &[u8]) {
        let Ok((control, rest)) = Control::read_from_prefix(message) else { return };
        let number = control.port as usize;
        let Some(port) = self.ports.get_mut(number) else { return };
        match control.event {
            event::PORT_ADD => self.send(number, event::PORT_READY, 1),
            event::PORT_NAME => port.name = Some(String::from_utf8_lossy(rest).into_owned()),
            event::PORT_OPEN => {
                (port.announced, port.open) = (port.name.is_some(), control.value != 0);
                port.wakers.wake();
            }
            event::RESIZE => {
                if let Ok((size, _)) = u32::read_from_prefix(rest) {
                    self.size = Size::of(size);
                    self.wakers.wake();
                }
            }
            _ => {}
        }
    }

    fn send(&mut self, port: usize, event: u16, value: u16) {
        if self.pending.len() < PENDING {
            self.pending.push_back(Control { port: port as u32, event, value });
        }
        self.send_pending();
    }

    fn send_pending(&mut self) {
        while let Some(control) = self.pending.front() {
            let message = Box::new(Outbound(control.as_bytes().to_vec()));
            if self.messages.1.submit_and_forget(message).is_err() {
                return;
            }
            self.pending.pop_front();
        }
        self.messages.1.ring();
    }

    /// Whether the host has told of all ports; `None`: not yet.
    pub(super) fn try_announced(&mut self) -> Option<Result<(), Error>> {
        if self.is_broken() {
            return Some(Err(Error::Broken));
        }
        self.ports.iter().all(|port| port.announced).then_some(Ok(()))
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.ports.iter().map(|port| port.name.as_deref().unwrap_or_default())
    }

    pub(super) fn size(&self) -> Size {
        self.size
    }

    pub(super) fn try_resized(&mut self, from: Size, waker: Option<&Waker>) -> Option<Result<Size, Error>> {
        match self.size {
            _ if self.is_broken() => Some(Err(Error::Broken)),
            size if size != from => Some(Ok(size)),
            _ => self.wakers.add(waker),
        }
    }

    /// Somebody in the guest takes a port.
    pub(super) fn open(&mut self, number: usize) -> Result<(), Error> {
        let port = self.ports.get_mut(number).ok_or(Error::NoDevice)?;
        if core::mem::replace(&mut port.taken, true) {
            return Err(Error::InUse);
        }
        self.send(number, event::PORT_OPEN, 1);
        Ok(())
    }

    /// Nobody has it any more.
    pub(super) fn close(&mut self, number: usize) {
        self.ports[number].taken = false;
        self.send(number, event::PORT_OPEN, 0);
    }

    /// Whether somebody is at the port's other end.
    pub(super) fn is_open(&self, number: usize) -> bool {
        self.ports[number].open
    }

    pub(super) fn try_open(&mut self, number: usize, waker: Option<&Waker>) -> Option<Result<(), Error>> {
        let broken = self.is_broken();
        match &mut self.ports[number] {
            _ if broken => Some(Err(Error::Broken)),
            port if port.open => Some(Ok(())),
            port => port.wakers.add(waker),
        }
    }

    /// Reads what there is; 0: nobody is at the other end. `None`: there is nothing yet.
    pub(super) fn try_read(
        &mut self,
        number: usize,
        bytes: &mut [u8],
        waker: Option<&Waker>,
    ) -> Option<Result<usize, Error>> {
        let broken = self.is_broken();
        let port = &mut self.ports[number];
        match port.take(bytes) {
            0 if bytes.is_empty() => Some(Ok(0)),
            0 if broken => Some(Err(Error::Broken)),
            0 if !port.open => Some(Ok(0)),
            0 => port.wakers.add(waker),
            length => Some(Ok(length)),
        }
    }

    /// Whether [`try_read`](Self::try_read) would give something.
    pub(super) fn can_read(&self, number: usize) -> bool {
        let port = &self.ports[number];
        !port.filled.is_empty() || !port.open || self.is_broken()
    }

    /// Hands some of `bytes` to the host, as much as there is room for. `None`: there is none.
    pub(super) fn try_write(
        &mut self,
        number: usize,
        bytes: &[u8],
        waker: Option<&Waker>,
    ) -> Option<Result<usize, Error>> {
        let broken = self.is_broken();
        let port = &mut self.ports[number];
        if broken || !port.open {
            return Some(Err(if broken { Error::Broken } else { Error::Closed }));
        }
        let piece = &bytes[..bytes.len().min(OUTPUT_BYTES)];
        if piece.is_empty() {
            return Some(Ok(0));
        }
        if port.output.submit_and_forget(Box::new(Outbound(piece.to_vec()))).is_err() {
            port.wants_room = true;
            return port.wakers.add(waker);
        }
        port.output.ring();
        Some(Ok(piece.len()))
    }

    /// Whether [`try_write`](Self::try_write) would give something.
    pub(super) fn can_write(&self, number: usize) -> bool {
        let port = &self.ports[number];
        port.output.in_flight() < OUTPUT || !port.open || self.is_broken()
    }

    /// Whether the host has taken all that was written; `None`: not yet.
    pub(super) fn try_flush(&mut self, number: usize, waker: Option<&Waker>) -> Option<Result<(), Error>> {
        let broken = self.is_broken();
        let port = &mut self.ports[number];
        if broken || port.output.in_flight() == 0 {
            return Some(if broken { Err(Error::Broken) } else { Ok(()) });
        }
        port.wants_room = true;
        port.wakers.add(waker)
    }
}
