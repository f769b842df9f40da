//! Watches by which device the packets of each socket of the matrix leave, on all devices of a
//! namespace at once.
//!
//! The number in each packet (a port or an ICMP sequence number) identifies its socket.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::libc;
use nix::net::if_::if_indextoname;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use crate::ns::Ns;
use crate::wait::until;

/// The time without packets after which the watch has received every packet that was sent before.
const IDLE: Duration = Duration::from_millis(50);
/// The size of the watch's receive buffer in bytes, for packets that arrive while its thread does
/// not run.
const BUFFER: usize = 16 << 20;

/// The devices by which one socket's packets left, each with a description of the first packet.
pub type EgressDevices = BTreeMap<String, String>;

/// A running watch of outgoing packets, stopped when dropped.
pub struct EgressWatch {
    seen: Arc<Mutex<HashMap<u16, EgressDevices>>>,
    /// The number of times that no packet was received for the time [`IDLE`].
    idle: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl EgressWatch {
    /// Starts watching packets that leave `ns` and have one of `numbers` as a port, or as the
    /// sequence number of an echo request.
    pub fn start(ns: &Ns, numbers: Range<u16>) -> Result<Self> {
        let socket = ns.enter(|| -> Result<Socket> {
            let all = Protocol::from(i32::from((libc::ETH_P_ALL as u16).to_be()));
            let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(all)).context("a packet socket")?;
            // Beyond net.core.rmem_max, which is 208 KiB on the kernels of the virtual machines.
            setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
            socket.set_read_timeout(Some(IDLE))?;
            Ok(socket)
        })?;
        let seen = Arc::<Mutex<HashMap<u16, EgressDevices>>>::default();
        let (idle, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (noted, idled, stopped) = (Arc::clone(&seen), Arc::clone(&idle), Arc::clone(&stop));
        let thread = ns.spawn(move || {
            let mut names = HashMap::new();
            while !stopped.load(Ordering::Relaxed) {
                let Some((index, packet)) = receive(&socket)? else {
                    idled.fetch_add(1, Ordering::Relaxed);
                    continue;
                };
                let Some(number) = numbers_of(&packet).into_iter().flatten().find(|n| numbers.contains(n))
                else {
                    continue;
                };
                let name: &String = names.entry(index).or_insert_with(|| device_name(index));
                let mut seen = lock(&noted);
                seen.entry(number).or_default().entry(name.clone()).or_insert_with(|| describe(&packet));
            }
            ensure!(dropped(&socket)? == 0, "the watch has missed packets");
            Ok(())
        });
        Ok(Self { seen, idle, stop, thread: Some(thread) })
    }

    /// Waits for a pause without packets, and returns the devices by which each socket's packets
    /// left since the last call.
    pub fn take(&self) -> Result<HashMap<u16, EgressDevices>> {
        let since = self.idle.load(Ordering::Relaxed);
        // One idle period may have begun before the call.
        until("a pause on the wire", || self.idle.load(Ordering::Relaxed) > since + 1)?;
        Ok(std::mem::take(&mut lock(&self.seen)))
    }

    /// Ends the watch. Fails if it has missed packets.
    pub fn finish(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            _ => anyhow::bail!("the watch has panicked"),
        }
    }
}

impl Drop for EgressWatch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Returns the next packet and the index of its device, or `None` if none arrives for the time
/// [`IDLE`]. The packet is empty if it is not an outgoing one.
fn receive(socket: &Socket) -> Result<Option<(u32, Vec<u8>)>> {
    let mut buffer = vec![0_u8; 256];
    // SAFETY: sockaddr_ll is plain data for which all zeroes is a valid value.
    let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: both pointers are valid for the lengths given with them, and live for the call.
    let count = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            0,
            (&raw mut from).cast(),
            &raw mut length,
        )
    };
    if count < 0 {
        let error = std::io::Error::last_os_error();
        return match error.kind() {
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted => Ok(None),
            // A device that was taken down reports ENETDOWN once; the other devices go on.
            _ if error.raw_os_error() == Some(libc::ENETDOWN) => Ok(Some((0, Vec::new()))),
            _ => Err(error).context("a packet socket"),
        };
    }
    buffer.truncate(usize::try_from(count)?);
    if from.sll_pkttype != libc::PACKET_OUTGOING {
        buffer.clear();
    }
    Ok(Some((u32::try_from(from.sll_ifindex)?, buffer)))
}

fn device_name(index: u32) -> String {
    let name = if_indextoname(index).ok().and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| format!("device {index}"))
}

/// Returns the transport protocol of an IP packet and the bytes after the IP header.
fn transport(packet: &[u8]) -> Option<(u8, &[u8])> {
    match packet.first()? >> 4 {
        4 => Some((*packet.get(9)?, packet.get(usize::from(packet[0] & 15) * 4..)?)),
        6 => Some((*packet.get(6)?, packet.get(40..)?)),
        _ => None,
    }
}

/// Returns the numbers that may identify a packet's socket: both ports of TCP and UDP, or the
/// sequence number of an echo request.
fn numbers_of(packet: &[u8]) -> [Option<u16>; 2] {
    let Some((protocol, behind)) = transport(packet) else { return [None; 2] };
    let word = |at: usize| Some(u16::from_be_bytes(behind.get(at..at + 2)?.try_into().ok()?));
    match (protocol, behind.first()) {
        (6 | 17, _) => [word(2), word(0)],
        (1, Some(8)) | (58, Some(128)) => [word(6), None],
        _ => [None; 2],
    }
}

/// Describes a packet for a report of a leak: addresses, protocol and TCP flags.
fn describe(packet: &[u8]) -> String {
    let addresses = match packet[0] >> 4 {
        4 => [16, 12].map(|at| {
            let bytes: [u8; 4] = packet[at..at + 4].try_into().expect("four bytes");
            std::net::IpAddr::from(bytes)
        }),
        _ => [24, 8].map(|at| {
            let bytes: [u8; 16] = packet[at..at + 16].try_into().expect("sixteen bytes");
            std::net::IpAddr::from(bytes)
        }),
    };
    let (protocol, behind) = transport(packet).unwrap_or((0, &[]));
    let flags = if protocol == 6 { behind.get(13).copied().unwrap_or(0) } else { 0 };
    format!("{} to {}, protocol {protocol}, TCP flags {flags:#x}", addresses[1], addresses[0])
}

fn dropped(socket: &Socket) -> Result<u32> {
    // SAFETY: tpacket_stats consists of integers only.
    let mut stats: libc::tpacket_stats = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, and both pointers live for the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut stats).cast(),
            &raw mut length,
        )
    };
    ensure!(result == 0, "{}", std::io::Error::last_os_error());
    Ok(stats.tp_drops)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_a_packet_is_found_in_either_family() {
        let mut four = vec![0x46; 24];
        four[9] = 17;
        four.extend(20_001_u16.to_be_bytes());
        four.extend(7_u16.to_be_bytes());
        assert_eq!(numbers_of(&four), [Some(7), Some(20_001)]);
        let mut six = vec![0x60; 40];
        six[6] = 58;
        six.extend([128, 0, 0, 0, 1, 1, 0x4e, 0x21]);
        assert_eq!(numbers_of(&six), [Some(20_001), None]);
        six[40] = 135;
        assert_eq!(numbers_of(&six), [None, None]);
        for short in 0..six.len() {
            let _no_panic = numbers_of(&six[..short]);
        }
    }
}
