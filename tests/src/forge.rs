//! Forged frames, sent as by a hostile router of a visited network, which can send any frame to the
//! host's hardware address.

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, IpHeaders, Ipv4Extensions, Ipv4Header, Ipv6Extensions,
    Ipv6Header, PacketBuilder, PacketBuilderStep, SlicedPacket, TcpHeader, TransportSlice, ip_number,
};
use nix::libc;
use nix::net::if_::if_nametoindex;
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::Lab;
use crate::ns::Ns;
use crate::uplink::UplinkName;

/// The hop limit of all forged packets, which neighbour discovery requires (RFC 4861, 7.1.1).
const HOPS: u8 = 255;

/// The hostile router of a visited network, which can send any frame to the host.
pub struct Forger {
    socket: Socket,
    own: [u8; 6],
    host: [u8; 6],
}

/// The next sequence numbers of a mobile process's TCP connection, as seen on the tunnel's device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpNumbers {
    /// The mobile process's address and port.
    pub client: SocketAddr,
    /// The correspondent host's address and port.
    pub server: SocketAddr,
    /// The sequence number of the next byte that the mobile process sends.
    pub sent: u32,
    /// The sequence number of the next byte that the mobile process expects.
    pub expected: u32,
}

/// A packet socket that receives every packet on a device without link-layer headers, such as a TUN
/// device.
pub struct Sniffer(Socket);

impl Forger {
    /// Opens a packet socket on the visited network's router, at the far end of the uplink `name`.
    pub fn new(lab: &Lab, name: UplinkName) -> Result<Self> {
        let visited = &lab.visited[usize::from(name == UplinkName::Eth)];
        Ok(Self {
            socket: packet_socket(visited, "lan0")?,
            own: hardware_address(visited, "lan0")?,
            host: hardware_address(&lab.host, name.device())?,
        })
    }

    /// Sends a forged TCP segment. `flags` has the initial letters of the flags to set (SYN, ACK,
    /// RST, PSH); the two numbers after it are the sequence and the acknowledgement number.
    pub fn segment(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        flags: &str,
        [sequence, acknowledgment]: [u32; 2],
        data: &[u8],
    ) -> Result<()> {
        let header = TcpHeader {
            acknowledgment_number: acknowledgment,
            syn: flags.contains('S'),
            ack: flags.contains('A'),
            rst: flags.contains('R'),
            psh: flags.contains('P'),
            ..TcpHeader::new(from.port(), to.port(), sequence, 64_000)
        };
        let mut frame = Vec::new();
        self.packet(from.ip(), to.ip())?.tcp_header(header).write_to_vec(&mut frame, data)?;
        self.send(&frame)
    }

    /// Sends a forged UDP datagram to the host.
    pub fn datagram(&self, from: SocketAddr, to: SocketAddr, data: &[u8]) -> Result<()> {
        let mut frame = Vec::new();
        self.packet(from.ip(), to.ip())?.udp(from.port(), to.port()).write_to_vec(&mut frame, data)?;
        self.send(&frame)
    }

    /// Sends a forged ICMP echo request to the host.
    pub fn ping(&self, from: IpAddr, to: IpAddr) -> Result<()> {
        let (mut frame, packet) = (Vec::new(), self.packet(from, to)?);
        match to {
            IpAddr::V4(_) => packet.icmpv4_echo_request(7, 7).write_to_vec(&mut frame, b"ping")?,
            IpAddr::V6(_) => packet.icmpv6_echo_request(7, 7).write_to_vec(&mut frame, b"ping")?,
        }
        self.send(&frame)
    }

    /// Sends a forged ICMP message "port unreachable" to `to`, about a datagram from `sender` to
    /// `receiver` that was never sent.
    pub fn port_unreachable(
        &self,
        from: IpAddr,
        to: IpAddr,
        [sender, receiver]: [SocketAddr; 2],
    ) -> Result<()> {
        let mut quoted = Vec::new();
        let quote = PacketBuilder::ip(headers(sender.ip(), receiver.ip())?);
        quote.udp(sender.port(), receiver.port()).write_to_vec(&mut quoted, b"sent")?;
        let (mut frame, packet) = (Vec::new(), self.packet(from, to)?);
        match to {
            // RFC 792; RFC 4443, 3.1.
            IpAddr::V4(_) => packet.icmpv4_raw(3, 3, [0; 4]).write_to_vec(&mut frame, &quoted)?,
            IpAddr::V6(_) => packet.icmpv6_raw(1, 4, [0; 4]).write_to_vec(&mut frame, &quoted)?,
        }
        self.send(&frame)
    }

    /// Asks for the hardware address of `target`, by ARP or neighbour discovery: once by broadcast
    /// or multicast, and once by unicast to the host.
    pub fn ask_who_has(&self, asker: IpAddr, target: IpAddr) -> Result<()> {
        for to in [[0xff; 6], self.host] {
            match (asker, target) {
                (IpAddr::V4(asker), IpAddr::V4(target)) => self.ask_arp(to, asker, target)?,
                (IpAddr::V6(asker), IpAddr::V6(target)) => self.solicit(to, asker, target)?,
                _ => bail!("{asker} and {target} are of different families"),
            }
        }
        Ok(())
    }

    /// Returns whether, within `patience`, the host answers an ARP or neighbour discovery request
    /// for `target`.
    pub fn hears_answer(&self, target: IpAddr, patience: Duration) -> Result<bool> {
        let end = Instant::now() + patience;
        while let Some(frame) = read(&self.socket, end)? {
            // The fields compared are ARP's operation and sender, or neighbour discovery's type and
            // target.
            let output = match target {
                IpAddr::V4(address) => {
                    frame.get(12..14) == Some(&[0x08, 0x06])
                        && frame.get(20..22) == Some(&[0, 2])
                        && frame.get(28..32) == Some(&address.octets())
                }
                IpAddr::V6(address) => {
                    frame.get(12..14) == Some(&[0x86, 0xdd])
                        && frame.get(20) == Some(&ip_number::IPV6_ICMP.0)
                        && frame.get(54) == Some(&136)
                        && frame.get(62..78) == Some(&address.octets())
                }
            };
            if output && frame.get(6..12) == Some(&self.host) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn ask_arp(&self, to: [u8; 6], asker: Ipv4Addr, target: Ipv4Addr) -> Result<()> {
        let request = ArpPacket::new(
            ArpHardwareId::ETHERNET,
            EtherType::IPV4,
            ArpOperation::REQUEST,
            &self.own,
            &asker.octets(),
            &[0; 6],
            &target.octets(),
        )?;
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(self.own, to).arp(request).write_to_vec(&mut frame)?;
        self.send(&frame)
    }

    fn solicit(&self, to: [u8; 6], asker: Ipv6Addr, target: Ipv6Addr) -> Result<()> {
        // Sent to the all-nodes group, so that no switch needs to know the members of a
        // solicited-node group.
        let (mac, destination) = match to {
            [0xff, ..] => ([0x33, 0x33, 0, 0, 0, 1], Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)),
            alone => (alone, target),
        };
        // RFC 4861, 4.3: the target, and the asker's hardware address as an option.
        let mut body = target.octets().to_vec();
        body.extend([1, 1]);
        body.extend(self.own);
        let packet = PacketBuilder::ethernet2(self.own, mac).ip(headers(asker.into(), destination.into())?);
        let mut frame = Vec::new();
        packet.icmpv6_raw(135, 0, [0; 4]).write_to_vec(&mut frame, &body)?;
        self.send(&frame)
    }

    fn packet(&self, from: IpAddr, to: IpAddr) -> Result<PacketBuilderStep<IpHeaders>> {
        Ok(PacketBuilder::ethernet2(self.own, self.host).ip(headers(from, to)?))
    }

    fn send(&self, frame: &[u8]) -> Result<()> {
        ensure!(self.socket.send(frame)? == frame.len(), "a frame was truncated");
        Ok(())
    }
}

impl Sniffer {
    /// Opens a packet socket on `device` in `ns`.
    pub fn new(ns: &Ns, device: &str) -> Result<Self> {
        Ok(Self(packet_socket(ns, device)?))
    }

    /// Returns the sequence numbers that follow the last segment from `client` to `server`, once no
    /// packets have passed for 300 ms.
    pub fn numbers(&self, client: SocketAddr, server: SocketAddr) -> Result<TcpNumbers> {
        // Longer than any delayed acknowledgement.
        const QUIET: Duration = Duration::from_millis(300);
        let mut numbers = None;
        while let Some(bytes) = read(&self.0, Instant::now() + QUIET)? {
            let Ok(packet) = SlicedPacket::from_ip(&bytes) else { continue };
            let Some(TransportSlice::Tcp(tcp)) = packet.transport else { continue };
            if (tcp.source_port(), tcp.destination_port()) != (client.port(), server.port()) {
                continue;
            }
            let length = u32::try_from(tcp.payload().len())? + u32::from(tcp.syn());
            let sent = tcp.sequence_number().wrapping_add(length);
            numbers = Some(TcpNumbers { client, server, sent, expected: tcp.acknowledgment_number() });
        }
        numbers.with_context(|| format!("no segment from {client} to {server} was seen"))
    }
}

fn headers(from: IpAddr, to: IpAddr) -> Result<IpHeaders> {
    Ok(match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => IpHeaders::Ipv4(
            // The packet builder sets length and protocol.
            Ipv4Header::new(0, HOPS, ip_number::UDP, from.octets(), to.octets())?,
            Ipv4Extensions::default(),
        ),
        (IpAddr::V6(from), IpAddr::V6(to)) => IpHeaders::Ipv6(
            Ipv6Header {
                hop_limit: HOPS,
                source: from.octets(),
                destination: to.octets(),
                ..Default::default()
            },
            Ipv6Extensions::default(),
        ),
        _ => bail!("{from} and {to} are of different families"),
    })
}

fn hardware_address(ns: &Ns, device: &str) -> Result<[u8; 6]> {
    let shown: serde_json::Value = serde_json::from_str(&ns.run(&["ip", "-j", "link", "show", device])?)?;
    let text = shown[0]["address"].as_str().with_context(|| format!("{device} has no address"))?;
    let bytes: Vec<u8> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
    bytes.try_into().map_err(|_| anyhow::anyhow!("{text} is not an Ethernet address"))
}

/// Opens a packet socket that receives and sends every kind of frame on one device.
fn packet_socket(ns: &Ns, device: &str) -> Result<Socket> {
    let open = || -> Result<Socket> {
        let all = u16::try_from(libc::ETH_P_ALL)?.to_be();
        // With protocol 0 the socket receives nothing before it is bound.
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
        // SAFETY: sockaddr_ll consists of integers only, for which zero means "none".
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET)?;
        address.sll_protocol = all;
        address.sll_ifindex = i32::try_from(if_nametoindex(device)?)?;
        let length = libc::socklen_t::try_from(size_of_val(&address))?;
        // SAFETY: the address is a sockaddr_ll of the given length, and the descriptor is open.
        let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
        ensure!(bound == 0, std::io::Error::last_os_error());
        Ok(socket)
    };
    ns.enter(open).with_context(|| format!("cannot open a packet socket on {device} in {}", ns.name()))
}

/// Returns the next frame on the socket, or `None` if none arrives before `end`.
fn read(mut socket: &Socket, end: Instant) -> Result<Option<Vec<u8>>> {
    // A zero timeout would wait for ever.
    let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    socket.set_read_timeout(Some(left))?;
    let mut frame = vec![0; 65_536];
    match socket.read(&mut frame) {
        _ if Instant::now() >= end => Ok(None),
        Ok(length) => {
            frame.truncate(length);
            Ok(Some(frame))
        }
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error.into()),
    }
}
