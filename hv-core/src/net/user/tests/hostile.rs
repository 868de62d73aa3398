//! Guests that mean harm: whatever they send, nothing panics, nothing grows, and what was there goes on.

use super::super::link::ToGuest;
use super::super::{dns, tcp, udp};
use super::*;
use crate::net::frames::PREFIX;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetFrame, EthernetProtocol, EthernetRepr, IpProtocol, Ipv4Packet,
    Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UDP_HEADER_LEN, UdpPacket, UdpRepr,
};
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

/// A network without a thread, to be looked into.
struct Inside {
    network: UserNetwork,
    to_guest: ToGuest,
    /// The guest's end, and the network's.
    socket: UnixStream,
    far: UnixStream,
    received: FrameReader,
}

impl Inside {
    fn new(options: &Options) -> Self {
        let (socket, far) = UnixStream::pair().unwrap();
        let network = UserNetwork::new(options).unwrap();
        Self { network, to_guest: ToGuest::new(), socket, far, received: FrameReader::new(0) }
    }

    /// One round with a frame; how many it was answered by.
    fn give(&mut self, frame: &[u8]) -> usize {
        let now = Instant::now();
        self.network.take(frame, now, &mut self.to_guest);
        self.network.tcp.advance(&mut self.to_guest);
        self.network.udp.expire(now);
        self.network.dns.expire(now, &mut self.to_guest);
        self.to_guest.flush(&self.far).unwrap();
        let mut answers = 0;
        while self.received.fill(&self.socket).unwrap() {
            while self.received.next_frame().unwrap().is_some() {
                answers += 1;
            }
        }
        answers
    }

    fn held(&self) -> [usize; 3] {
        [self.network.tcp.len(), self.network.udp.len(), self.network.dns.len()]
    }
}

const MOST: [usize; 3] = [tcp::FLOWS, udp::FLOWS, dns::QUERIES];

/// A frame of the guest's with an IP packet.
fn ip_frame(to: Ipv4Addr, next_header: IpProtocol, payload: &[u8]) -> Vec<u8> {
    let ip =
        Ipv4Repr { src_addr: GUEST, dst_addr: to, next_header, payload_len: payload.len(), hop_limit: 64 };
    let link = EthernetRepr {
        src_addr: ADDRESS,
        dst_addr: EthernetAddress::BROADCAST,
        ethertype: EthernetProtocol::Ipv4,
    };
    let mut frame = vec![0; link.buffer_len() + ip.buffer_len() + payload.len()];
    let mut ethernet = EthernetFrame::new_unchecked(&mut frame);
    link.emit(&mut ethernet);
    let mut packet = Ipv4Packet::new_unchecked(ethernet.payload_mut());
    ip.emit(&mut packet, &ChecksumCapabilities::default());
    packet.payload_mut().copy_from_slice(payload);
    frame
}

fn segment(to: SocketAddrV4, src_port: u16, control: TcpControl, seq: i32, ack: Option<i32>) -> Vec<u8> {
    let repr = TcpRepr {
        src_port,
        dst_port: to.port(),
        control,
        seq_number: TcpSeqNumber(seq),
        ack_number: ack.map(TcpSeqNumber),
        window_len: 65_535,
        window_scale: Some(3),
        max_seg_size: Some(1460),
        sack_permitted: true,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: b"",
    };
    let mut payload = vec![0; repr.buffer_len()];
    let (from, dst) = (IpAddress::Ipv4(GUEST), IpAddress::Ipv4(*to.ip()));
    repr.emit(&mut TcpPacket::new_unchecked(&mut payload), &from, &dst, &ChecksumCapabilities::default());
    ip_frame(*to.ip(), IpProtocol::Tcp, &payload)
}

fn datagram(to: SocketAddrV4, src_port: u16, payload: &[u8]) -> Vec<u8> {
    let repr = UdpRepr { src_port, dst_port: to.port() };
    let mut bytes = vec![0; UDP_HEADER_LEN + payload.len()];
    let (from, dst) = (IpAddress::Ipv4(GUEST), IpAddress::Ipv4(*to.ip()));
    let write = |to: &mut [u8]| to.copy_from_slice(payload);
    let mut packet = UdpPacket::new_unchecked(&mut bytes[..]);
    repr.emit(&mut packet, &from, &dst, payload.len(), write, &ChecksumCapabilities::default());
    ip_frame(*to.ip(), IpProtocol::Udp, &bytes)
}

fn arp(target: Ipv4Addr) -> Vec<u8> {
    let repr = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: ADDRESS,
        source_protocol_addr: GUEST,
        target_hardware_addr: EthernetAddress::BROADCAST,
        target_protocol_addr: target,
    };
    let link = EthernetRepr {
        src_addr: ADDRESS,
        dst_addr: EthernetAddress::BROADCAST,
        ethertype: EthernetProtocol::Arp,
    };
    let mut frame = vec![0; link.buffer_len() + repr.buffer_len()];
    let mut ethernet = EthernetFrame::new_unchecked(&mut frame);
    link.emit(&mut ethernet);
    repr.emit(&mut ArpPacket::new_unchecked(ethernet.payload_mut()));
    frame
}

/// A port of the host's loopback that nobody answers on: connections to it wait, and are never taken.
fn unaccepted() -> (TcpListener, SocketAddrV4) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = as_guest_sees(listener.local_addr().unwrap());
    (listener, address)
}

/// Frames that do something, so that small changes to them come far.
fn good_frames() -> Vec<Vec<u8>> {
    let (_listener, open) = unaccepted();
    let other = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 80);
    let dhcp = SocketAddrV4::new(Ipv4Addr::BROADCAST, 67);
    let discover = [&[1, 1, 6, 0][..], &[0; 232], &[0x63, 0x82, 0x53, 0x63, 53, 1, 1, 255]].concat();
    let query = b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0\x02hv\x03org\0\0\x01\0\x01";
    vec![
        arp(GATEWAY),
        arp(GUEST),
        segment(open, 40_000, TcpControl::Syn, 1, None),
        segment(open, 40_000, TcpControl::None, 2, Some(1)),
        segment(open, 40_000, TcpControl::Fin, 2, Some(1)),
        segment(other, 40_001, TcpControl::Rst, 1, None),
        segment(SocketAddrV4::new(GATEWAY, 9), 40_002, TcpControl::Syn, 1, None),
        datagram(open, 5000, b"hello"),
        datagram(dhcp, 68, &discover),
        datagram(DNS, 5001, query),
        ip_frame(GATEWAY, IpProtocol::Icmp, b"\x08\0\xf7\xff\0\0\0\0"),
        ip_frame(other.ip().to_owned(), IpProtocol::Igmp, b"\x16\0\0\0\0\0\0\0"),
    ]
}

#[test]
fn any_bytes_as_frames_do_no_harm() {
    let mut random = fastrand::Rng::with_seed(6);
    let mut inside = Inside::new(&on_loopback());
    let good = good_frames();
    for round in 0..60_000_usize {
        let mut frame = good[round % good.len()].clone();
        match random.u8(..4) {
            0 => frame.iter_mut().for_each(|byte| *byte = random.u8(..)),
            1 => frame.truncate(random.usize(..=frame.len())),
            2 => frame.resize(random.usize(..=LONGEST_FRAME), random.u8(..)),
            _ => {}
        }
        for _ in 0..random.usize(..6) {
            if !frame.is_empty() {
                let place = random.usize(..frame.len());
                let any = random.u8(..);
                frame[place] = random.choice([0, 1, 0x7f, 0x80, 0xff, any]).unwrap();
            }
        }
        if random.bool() {
            mend_checksums(&mut frame);
        }
        inside.give(&frame);
    }
    assert!(inside.held().iter().zip(MOST).all(|(held, most)| *held <= most), "{:?}", inside.held());
    assert_eq!(inside.give(&arp(GATEWAY)), 1, "it still answers");
}

/// Makes the checksums of a frame right, as far as it has some: with wrong ones it does not come far.
fn mend_checksums(frame: &mut [u8]) {
    let Ok(mut ethernet) = EthernetFrame::new_checked(frame) else { return };
    let Ok(mut ip) = Ipv4Packet::new_checked(ethernet.payload_mut()) else { return };
    if !matches!(ip.dst_addr().octets()[0], 0 | 10 | 127 | 169 | 224..) {
        ip.set_dst_addr(Ipv4Addr::new(192, 0, 2, 1)); // nobody in the world is to hear of this test
    }
    ip.fill_checksum();
    let (from, to) = (IpAddress::Ipv4(ip.src_addr()), IpAddress::Ipv4(ip.dst_addr()));
    match ip.next_header() {
        IpProtocol::Tcp => {
            if let Ok(mut tcp) = TcpPacket::new_checked(ip.payload_mut()) {
                tcp.fill_checksum(&from, &to);
            }
        }
        IpProtocol::Udp => {
            if let Ok(mut udp) = UdpPacket::new_checked(ip.payload_mut()) {
                udp.fill_checksum(&from, &to);
            }
        }
        _ => {}
    }
}

#[test]
fn floods_of_connections_datagrams_and_queries_are_bounded() {
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let options = Options { resolvers: vec![silent.local_addr().unwrap()], ..on_loopback() };
    let mut inside = Inside::new(&options);
    let (_listener, open) = unaccepted();
    assert_eq!(inside.give(&arp(GATEWAY)), 1);
    let mut refused = 0;
    for n in 0..4000_u16 {
        refused += inside.give(&segment(open, 1000 + n, TcpControl::Syn, 1, None));
        inside.give(&datagram(open, 1000 + n, b"flood"));
        inside.give(&datagram(DNS, 1000 + n, b"\x12\x34\x01\x00\0\0\0\0\0\0\0\0"));
    }
    assert_eq!(inside.held(), MOST);
    assert_eq!(refused, 4000 - tcp::FLOWS, "who is not served is told so");
}

#[test]
fn published_ports_are_bounded_too() {
    let options = Options { published: vec!["0:53/udp".parse().unwrap()], ..Options::default() };
    let mut inside = Inside::new(&options);
    let address = inside.network.udp.published().next().unwrap();
    for _ in 0..2 * udp::FLOWS {
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        client.send_to(b"hello", address).unwrap();
        inside.network.udp.receive_published(0, Instant::now(), &mut inside.to_guest);
        inside.give(&arp(GATEWAY)); // sends what waits
    }
    assert_eq!(inside.held()[1], udp::FLOWS);
}

#[test]
fn broken_framing_ends_the_network_and_says_why() {
    let mut guest = Guest::start(&Options::default());
    guest.link.socket.write_all(&[0xff; 16]).unwrap();
    let error = guest.network.join().unwrap().unwrap_err();
    assert!(matches!(error, FrameError::TooLong { found: u32::MAX }), "{error}");
}

/// A guest that sends and sends, and takes no answer, holds up itself.
#[test]
fn a_guest_that_takes_no_answers_is_not_listened_to() {
    let mut guest = Guest::start(&Options::default());
    guest.link.socket.set_nonblocking(true).unwrap();
    let frame = arp(GATEWAY);
    let run = [&(frame.len() as u32).to_be_bytes()[..], &frame].concat();
    assert_eq!(run.len(), PREFIX + frame.len());
    let mut sent = 0_u64;
    let mut refusals = 0;
    while refusals < 100 {
        match guest.link.socket.write(&run) {
            Ok(length) if length == run.len() => (sent, refusals) = (sent + 1, 0),
            Ok(_) => break, // cut, as the socket is full
            Err(_) => {
                refusals += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        assert!(sent < 10_000_000, "all of it is taken");
    }
    guest.end();
}
