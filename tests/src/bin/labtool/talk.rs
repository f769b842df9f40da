//! Sockets that exchange data with a server: line by line, or over one new socket after the other.

use std::io::{BufRead, BufReader, IoSlice, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::libc::{in_pktinfo, in6_pktinfo};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};

use crate::say;

/// Sends each line of stdin over a TCP connection, and prints each line that arrives.
pub(crate) fn tcp(address: &str) -> Result<()> {
    let mut stream = TcpStream::connect(address).context("connect")?;
    stream.set_nodelay(true)?;
    say(&format!("connected {} {}", stream.local_addr()?, stream.peer_addr()?));
    let mut answers = BufReader::new(stream.try_clone()?);
    std::thread::spawn(move || {
        let mut line = String::new();
        loop {
            line.clear();
            match answers.read_line(&mut line) {
                Ok(0) => return say("! closed by the peer"),
                Ok(_) => say(line.trim_end()),
                Err(error) => return say(&format!("! receive: {error}")),
            }
        }
    });
    for line in std::io::stdin().lock().lines() {
        stream.write_all(format!("{}\n", line?).as_bytes()).context("send")?;
    }
    Ok(())
}

/// Sends each line of stdin in a datagram, and prints each datagram that arrives.
pub(crate) fn udp(address: &str, connected: bool) -> Result<()> {
    let address: SocketAddr = address.parse()?;
    let socket = UdpSocket::bind(any(address))?;
    if connected {
        socket.connect(address).context("connect")?;
    }
    let receiver = socket.try_clone()?;
    std::thread::spawn(move || {
        let mut buffer = [0; 65_536];
        loop {
            match receiver.recv(&mut buffer) {
                Ok(count) => say(String::from_utf8_lossy(&buffer[..count]).trim_end()),
                Err(error) => say(&format!("! receive: {error}")),
            }
        }
    });
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let sent =
            if connected { socket.send(line.as_bytes()) } else { socket.send_to(line.as_bytes(), address) };
        sent.context("send")?;
    }
    Ok(())
}

/// Sends one datagram over the device `device` by IP_PKTINFO.
pub(crate) fn udp_on(device: &str, address: &str) -> Result<()> {
    let address: SocketAddr = address.parse()?;
    let index = i32::try_from(if_nametoindex(device)?)?;
    let socket = UdpSocket::bind(any(address))?;
    // SAFETY: both structures consist of integers only, for which zero means "any".
    let (mut four, mut six): (in_pktinfo, in6_pktinfo) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    four.ipi_ifindex = index;
    six.ipi6_ifindex = u32::try_from(index)?;
    let on = if address.is_ipv4() {
        ControlMessage::Ipv4PacketInfo(&four)
    } else {
        ControlMessage::Ipv6PacketInfo(&six)
    };
    let data = [IoSlice::new(b"on a device\n")];
    sendmsg(socket.as_raw_fd(), &data, &[on], MsgFlags::empty(), Some(&SockaddrStorage::from(address)))
        .context("send")?;
    say("sent");
    Ok(())
}

/// Opens new sockets in endless rounds: an unconnected UDP socket, a connected one and a TCP
/// connection.
///
/// Prints a line for each round. Errors are printed and are not fatal.
pub(crate) fn chatter(address: &str, interval: &str) -> Result<()> {
    let address: SocketAddr = address.parse()?;
    let interval = Duration::from_millis(interval.parse()?);
    for round in 0..=u64::MAX {
        let line = format!("round {round}");
        let fresh = UdpSocket::bind(any(address)).and_then(|socket| socket.send_to(line.as_bytes(), address));
        let connected = UdpSocket::bind(any(address)).and_then(|socket| {
            socket.connect(address)?;
            socket.send(line.as_bytes())
        });
        // The timeout is short, because during an outage the handshake hangs, as it should.
        let tcp = TcpStream::connect_timeout(&address, interval);
        say(&format!("{line}: {} {} {}", word(fresh.err()), word(connected.err()), word(tcp.err())));
        std::thread::sleep(interval);
    }
    Ok(())
}

/// Returns the unspecified address of the peer's family, with any port.
fn any(peer: SocketAddr) -> SocketAddr {
    if peer.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() }
}

fn word(error: Option<std::io::Error>) -> String {
    error.map_or("ok".into(), |error| error.to_string().replace(' ', "-"))
}
