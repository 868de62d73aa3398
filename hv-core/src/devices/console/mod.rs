//! The console device (Virtual I/O Device 1.3, section 5.3): a terminal, and ports with names beside it.
//!
//! Port 0 is the console; it is in use from the start with a driver that knows of no others. The driver that does is told each
//! port's name, and whether somebody is at its other end, when it has said that it is ready for the port.
//!
//! Start at [`Terminals::process`](Device::process), then at `port`.

mod control;
mod port;

pub use port::Port;

use super::line::Line;
use super::ring::Ring;
use super::worker::Bell;
use super::{Broken, Device, Interest};
use control::{Control, event, message};
use hv_abi::device::kind;
use rustix::fd::BorrowedFd;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Ports of a console, with port 0.
pub const PORTS_MAX: usize = 8;
/// Messages to the driver that wait for room: the driver's own are not read while there are so many.
const MESSAGES: usize = 32;
/// The queues of [`PORTS_MAX`] ports: input and output of port 0, of messages, and of the other ports.
const QUEUES: [u16; 2 + 2 * PORTS_MAX] = [64; 2 + 2 * PORTS_MAX];
const CONTROL_IN: usize = 2;
const CONTROL_OUT: usize = 3;

mod feature {
    pub(super) const SIZE: u64 = 1 << 0;
    pub(super) const MULTIPORT: u64 = 1 << 1;
}

/// The queue of a port's input; its output's is the next.
fn input_queue(port: usize) -> usize {
    if port == 0 { 0 } else { 2 + 2 * port }
}

/// The port of a queue that is none of messages.
fn port_of(queue: usize) -> usize {
    if queue < CONTROL_IN { 0 } else { queue / 2 - 1 }
}

/// The size of the window that port 0 is shown in. Copies are of the same.
#[derive(Clone, Debug)]
pub struct Window(Arc<(AtomicU32, Bell)>);

impl Window {
    /// One of no known size.
    ///
    /// # Errors
    ///
    /// The host has no descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new((AtomicU32::new(0), Bell::new()?))))
    }

    /// It has so many columns and rows now. The guest is told.
    pub fn resize(&self, columns: u16, rows: u16) {
        self.0.0.store(u32::from(columns) | u32::from(rows) << 16, Relaxed);
        self.0.1.ring();
    }

    /// Columns, and rows in the upper half.
    fn size(&self) -> u32 {
        self.0.0.load(Relaxed)
    }
}

/// A console.
#[derive(Debug)]
pub struct Console {
    ports: Vec<Port>,
    window: Window,
}

impl Console {
    /// With these ports, of which the first is the console itself, shown in `window`.
    ///
    /// # Panics
    ///
    /// Panics if there are no ports, or more than [`PORTS_MAX`].
    pub fn new(ports: Vec<Port>, window: Window) -> Self {
        assert!((1..=PORTS_MAX).contains(&ports.len()), "a console has 1 to {PORTS_MAX} ports");
        Self { ports, window }
    }
}

/// The device.
pub(super) struct Terminals {
    ports: Vec<Port>,
    window: Window,
    /// The size that the guest was shown.
    shown: u32,
    multiport: bool,
    /// For the driver.
    messages: VecDeque<Vec<u8>>,
    /// Which ports had room for input when it was last looked.
    room: [bool; PORTS_MAX],
}

impl Device for Terminals {
    fn kind(&self) -> u32 {
        kind::CONSOLE
    }

    fn features(&self) -> u64 {
        feature::SIZE | feature::MULTIPORT
    }

    fn queues(&self) -> &'static [u16] {
        const { &QUEUES }.get(..2 + 2 * self.ports.len()).expect("a console has at most so many ports")
    }

    fn config(&self) -> Vec<u8> {
        let emergency_write = 0_u32;
        [self.shown, self.ports.len() as u32, emergency_write]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect()
    }

    fn activate(&mut self, features: u64) {
        self.multiport = features & feature::MULTIPORT != 0;
        self.ports[0].guest_open = !self.multiport;
    }

    fn reset(&mut self) {
        self.ports.iter_mut().for_each(Port::reset);
        self.messages.clear();
        self.room = [false; PORTS_MAX];
    }

    fn stop_queue(&mut self, queue: usize) {
        if let Some(port) = self.ports.get_mut(port_of(queue)) {
            port.stop_sending();
        }
    }

    fn sources(&self) -> Vec<(BorrowedFd<'_>, Interest)> {
        let accepts = self.messages.len() < MESSAGES;
        let ports = self.ports.iter().zip(self.room);
        let ports = ports.flat_map(|(port, room)| port.sources(room, accepts));
        ports.chain([(self.window.0.1.descriptor(), Interest::Read)]).collect()
    }

    fn waits_for(&self, queue: usize) -> bool {
        match queue {
            CONTROL_IN => !self.messages.is_empty(),
            CONTROL_OUT => self.messages.len() < MESSAGES,
            queue => {
                let (port, output) = (port_of(queue), queue % 2 == 1);
                if output { !self.ports[port].is_sending() } else { !self.room[port] }
            }
        }
    }

    fn process(&mut self, rings: &mut [Option<Ring>], line: &Line, look: bool) -> Result<bool, Broken> {
        let mut worked = self.take_messages(rings)?;
        if look {
            self.show_size(line);
        }
        for number in 0..self.ports.len() {
            worked |= self.serve_port(number, rings, look)?;
        }
        Ok(worked | self.send_messages(rings)?)
    }
}

impl Terminals {
    pub(super) fn new(console: Console) -> Self {
        let Console { ports, window } = console;
        let shown = window.size();
        Self { ports, window, shown, multiport: false, messages: VecDeque::new(), room: [false; PORTS_MAX] }
    }

    /// Tells the guest of a new size of the window.
    fn show_size(&mut self, line: &Line) {
        self.window.0.1.silence();
        let size = self.window.size();
        if size != self.shown && self.messages.len() < MESSAGES {
            self.shown = size;
            line.set_config(self.config());
            self.tell(0, event::RESIZE, 0, &size.to_le_bytes());
        }
    }

    fn tell(&mut self, port: usize, event: u16, value: u16, rest: &[u8]) {
        if self.multiport {
            self.messages.push_back(message(port, event, value, rest));
        }
    }

    fn serve_port(&mut self, number: usize, rings: &mut [Option<Ring>], look: bool) -> Result<bool, Broken> {
        let port = &mut self.ports[number];
        let was_open = port.is_open();
        let mut worked = false;
        if look && self.messages.len() < MESSAGES {
            worked |= port.accept();
        }
        if let Some(output) = &mut rings[input_queue(number) + 1]
            && (look || !port.is_sending())
        {
            worked |= port.send(output)?;
        }
        if let Some(input) = &mut rings[input_queue(number)] {
            self.room[number] = input.has_available();
            worked |= look && self.room[number] && port.receive(input)?;
        }
        let is_open = port.is_open();
        if is_open != was_open && port.guest_ready {
            self.tell(number, event::PORT_OPEN, is_open.into(), &[]);
        }
        Ok(worked)
    }

    /// Reads what the driver says of its ports. Whether it says something.
    fn take_messages(&mut self, rings: &mut [Option<Ring>]) -> Result<bool, Broken> {
        let Some(ring) = rings.get_mut(CONTROL_OUT).and_then(Option::as_mut) else { return Ok(false) };
        let mut worked = false;
        while self.messages.len() < MESSAGES
            && let Some(mut chain) = ring.pop()?
        {
            let short = |_| Broken("a message to a console is too short");
            self.take_message(&chain.read_value().map_err(short)?);
            ring.push(chain);
            worked = true;
        }
        Ok(worked)
    }

    fn take_message(&mut self, control: &Control) {
        let number = control.port as usize;
        match (control.event, self.ports.get_mut(number)) {
            (event::DEVICE_READY, _) if control.value == 1 => {
                (0..self.ports.len()).for_each(|port| self.tell(port, event::PORT_ADD, 1, &[]));
            }
            (event::PORT_READY, Some(port)) if control.value == 1 => {
                port.guest_ready = true;
                let (name, open) = (port.name().to_owned(), port.is_open());
                if number == 0 {
                    self.tell(number, event::CONSOLE_PORT, 1, &[]);
                }
                self.tell(number, event::PORT_NAME, 1, name.as_bytes());
                self.tell(number, event::PORT_OPEN, open.into(), &[]);
            }
            (event::PORT_OPEN, Some(port)) => port.guest_open = control.value != 0,
            _ => {} // it has no port, or nothing to say
        }
    }

    fn send_messages(&mut self, rings: &mut [Option<Ring>]) -> Result<bool, Broken> {
        let Some(ring) = rings.get_mut(CONTROL_IN).and_then(Option::as_mut) else { return Ok(false) };
        let mut worked = false;
        while let Some(message) = self.messages.front() {
            let Some(mut chain) = ring.pop()? else { break };
            let short = |_| Broken("a buffer for a console's messages is too short for one");
            chain.write(message).map_err(short)?;
            ring.push(chain);
            self.messages.pop_front();
            worked = true;
        }
        Ok(worked)
    }
}
