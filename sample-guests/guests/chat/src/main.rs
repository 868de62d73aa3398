//! A chat: what is typed here appears in the other VMs of its network, as in `hv run chat --net switch=room -- alice`.

#![no_std]
#![no_main]

extern crate alloc;

mod typed;

use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use chat::message::{self, LONGEST, Message, What};
use chat::room::Room;
use core::cell::RefCell;
use guest_sdk::task::Executor;
use guest_sdk::{boot, println};
use pv_drivers::Error;
use pv_drivers::net::Net;
use pv_drivers::net::stack::{Addressing, Ipv4Address, Ipv4Cidr, Stack, UdpSocket};

guest_sdk::entry!(main);

const PORT: u16 = 4100;

fn main() -> Result<(), Error> {
    let net = match Net::find() {
        Err(Error::NoDevice) => {
            println!("chat: there is no network; try `hv run chat --net switch=room -- alice`");
            return Err(Error::NoDevice);
        }
        net => net?,
    };
    let [.., a, b] = net.mac();
    let name = boot::arguments().next().and_then(message::name);
    let name = name.unwrap_or_else(|| format!("guest-{a:02x}{b:02x}"));
    println!("* you are {name}; /who tells who is here, /quit or Ctrl-D ends");
    let stack = Stack::new(net, link_local(a, b));
    let executor = Executor::new();
    executor.spawner().spawn(stack.clone().run());
    let member = Rc::new(Member {
        socket: UdpSocket::bind(&stack, PORT).expect("the port is not 0"),
        room: RefCell::new(Room::new(name)),
    });
    executor.spawner().spawn(member.clone().listen());
    executor.run_until(async move {
        member.talk().await;
        stack.flush().await;
    });
    Ok(())
}

/// An address that needs nobody to give it: of the network for such, by the end of the card's own address.
fn link_local(a: u8, b: u8) -> Addressing {
    // The first and the last 256 addresses are reserved (RFC 3927).
    let address = Ipv4Address::new(169, 254, a.clamp(1, 254), b);
    Addressing::Fixed { address: Ipv4Cidr::new(address, 16), gateway: None, dns: None }
}

/// One who is in a room.
struct Member {
    socket: UdpSocket,
    room: RefCell<Room>,
}

impl Member {
    async fn send(&self, message: &Message) {
        let everybody = (Ipv4Address::BROADCAST, PORT);
        self.socket
            .send_to(message.datagram().as_bytes(), everybody)
            .await
            .expect("it is short, and has an address");
    }

    /// Shows what others say.
    async fn listen(self: Rc<Self>) {
        let mut datagram = [0; LONGEST];
        loop {
            let (length, _) = self.socket.receive_from(&mut datagram).await;
            let Some(message) = Message::parse(&datagram[..length]) else { continue };
            let heard = self.room.borrow_mut().hear(message);
            if let Some(line) = heard.line {
                println!("{line}");
            }
            if let Some(answer) = heard.answer {
                self.send(&answer).await;
            }
        }
    }

    /// Says what is typed, until nothing more is.
    async fn talk(&self) {
        let come = self.room.borrow().own(What::Comes);
        self.send(&come).await;
        let mut lines = typed::Lines::new();
        while let Some(line) = lines.next().await {
            match line.trim() {
                "/quit" => break,
                "/who" => println!("{}", self.room.borrow().everybody()),
                text => self.say(text).await,
            }
        }
        let go = self.room.borrow().own(What::Goes);
        self.send(&go).await;
    }

    async fn say(&self, text: &str) {
        let message: Option<Message> = self.room.borrow().say(text);
        if let Some(message) = message {
            self.send(&message).await;
        }
    }
}
