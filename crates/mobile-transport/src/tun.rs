//! Opens, reads and writes the TUN device without blocking.

mod trial;

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::task::{Context, Poll, ready};

use mobile_proto::{InnerPacket, PacketHeaders, VNET_HEADER_LEN};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::libc::{c_char, ifreq};
use nix::sys::ioctl::ioctl_param_type;
use rustix::io::{readv, writev};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub use trial::try_open;

use crate::tunnel_options::Offloading;

/// The maximum length of a device's name: `IFNAMSIZ` without the terminating zero byte.
const MAX_NAME: usize = 15;

/// The number of packets that the kernel queues at the TUN device until this program reads them: as
/// many as for an Ethernet device, whereas a TUN device has 500 by default.
///
/// The kernel drops further packets. At 400,000 packets a second the queue is full when the reader
/// has not run for 2.5 ms. On a slow path, packets do not wait here but in the session's queue.
const TX_QUEUE_PACKETS: i32 = 1000;

/// An open TUN device.
pub struct Tun {
    name: String,
    fd: AsyncFd<OwnedFd>,
    coalesces_datagrams: bool,
}

/// The reason why a TUN device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// Another process has opened the device.
    #[error("device {0} is in use by another process: is an agent or relay already running?")]
    Busy(String),
    /// A device of another kind has the name.
    #[error("device {0} exists and is not a TUN device: choose another name in [tunnel] device")]
    NotATun(String),
    /// The name is not valid for a device.
    #[error("invalid device name `{0}`: use 1 to 15 characters without `/`, `:`, `%` and spaces")]
    BadName(String),
    /// The device file /dev/net/tun is missing.
    #[error("there is no TUN driver (/dev/net/tun): load it with `modprobe tun`")]
    NoDriver,
    /// The process lacks the permission to open the device.
    #[error("not allowed to open device {0}: run as root, or with CAP_NET_ADMIN")]
    NotAllowed(String),
    /// A system call failed for another reason.
    #[error("device {name}: {source}")]
    Io {
        /// The name of the device.
        name: String,
        /// The error of the system call.
        source: io::Error,
    },
}

impl Tun {
    /// Opens the TUN device `name` in this thread's network namespace, creating the device if
    /// necessary.
    ///
    /// If `persist` is true, the device continues to exist after this process has exited and can be
    /// opened again. A new device has no address and is down; the crate `mobile-netlink` configures
    /// it. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// When the device is in use or may not be opened, or when there is no TUN driver.
    pub fn open(name: &str, persist: bool, offloading: Offloading) -> Result<Self, TunError> {
        let mut device = open(name)?;
        let io_error = |source| TunError::Io { name: name.to_owned(), source };
        if persist {
            device.persist().map_err(|error| io_error(into_io(error)))?;
        }
        if let Err(error) = raise_queue_length(name) {
            tracing::warn!(device = name, %error, "cannot raise the queue length: more packets of a burst may be lost");
        }
        // SAFETY: the descriptor is open, and `into_raw_fd` gives up its ownership.
        let fd = unsafe { OwnedFd::from_raw_fd(device.into_raw_fd()) };
        // The `tun` crate opens the device without O_CLOEXEC, but child processes must not hold it.
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(|errno| io_error(errno.into()))?;
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|errno| io_error(errno.into()))?;
        let coalesces_datagrams = match offloading {
            Offloading::Auto => enable_offloads(&fd, name),
            Offloading::Off => {
                set_offloads(&fd, 0).map_err(|errno| io_error(errno.into()))?;
                false
            }
        };
        // SAFETY: the descriptor is open and owned, so it stays the same until the AsyncFd is
        // dropped.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        Ok(Self {
            name: name.to_owned(),
            fd: fd.map_err(|error| io_error(error.into()))?,
            coalesces_datagrams,
        })
    }

    /// Returns whether the kernel segments coalesced UDP datagrams, so that they may be written
    /// with [`CoalescingWriter`](crate::coalescing::CoalescingWriter).
    #[must_use]
    pub fn coalesces_datagrams(&self) -> bool {
        self.coalesces_datagrams
    }

    /// Returns the name of the device.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads one packet into `buf`, of up to 64 KiB if the kernel leaves segmentation to this
    /// program; returns where the packet's headers are.
    ///
    /// To read several packets, call this function until it returns `Pending`.
    ///
    /// # Errors
    /// When the device is down or removed.
    pub fn poll_recv(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<PacketHeaders>> {
        loop {
            let mut guard = ready!(self.fd.poll_read_ready(cx))?;
            let Ok(outcome) = guard.try_io(|fd| self.read(fd.get_ref(), buf)) else { continue };
            if let Some(packet) = outcome? {
                return Poll::Ready(Ok(packet));
            }
        }
    }

    /// Reads one packet without waiting; fails with `WouldBlock` if there is none.
    ///
    /// Does not affect tasks that wait in [`poll_recv`](Self::poll_recv).
    ///
    /// # Errors
    /// When the device is down or removed.
    pub fn try_recv(&self, buf: &mut [u8]) -> io::Result<PacketHeaders> {
        loop {
            if let Some(packet) = self.read(self.fd.get_ref(), buf)? {
                return Ok(packet);
            }
        }
    }

    /// Reads one packet; returns `None` if the packet needs an offload that was not enabled.
    fn read(&self, fd: &OwnedFd, buf: &mut [u8]) -> io::Result<Option<PacketHeaders>> {
        let mut header = [0; VNET_HEADER_LEN];
        let length = readv(fd, &mut [IoSliceMut::new(&mut header), IoSliceMut::new(buf)])?;
        let length = length.saturating_sub(VNET_HEADER_LEN);
        match PacketHeaders::from_vnet(&header, &buf[..length]) {
            Ok(headers) => Ok(Some(headers)),
            Err(error) => {
                tracing::debug!(device = self.name, %error, "dropped a packet with an invalid offload header");
                Ok(None)
            }
        }
    }

    /// Writes one packet to the device.
    ///
    /// The kernel passes the packets of a TUN device directly to its network stack, so there is no
    /// buffer to wait for.
    ///
    /// # Errors
    /// `InvalidInput` when the packet is not valid for its offload; the kernel's error when the
    /// device is down.
    pub fn try_send(&self, packet: InnerPacket<'_>) -> io::Result<()> {
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
        let header = packet.offload.to_vnet(packet).map_err(invalid)?;
        writev(&self.fd, &[IoSlice::new(&header), IoSlice::new(packet.bytes)])?;
        Ok(())
    }
}

impl std::fmt::Debug for Tun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tun({})", self.name)
    }
}

/// Removes a persistent device; returns whether it existed.
///
/// # Errors
/// When the device is in use, is not a TUN device, or may not be removed.
pub fn remove(name: &str) -> Result<bool, TunError> {
    check_name(name)?;
    // Opening would create the device. `if_nametoindex` looks in this thread's network namespace,
    // whereas /sys may show another one.
    if nix::net::if_::if_nametoindex(name).is_err() {
        return Ok(false);
    }
    let device = open(name)?;
    // The `tun` crate can only set the flag. Without the flag, the kernel removes the device when
    // the last descriptor is closed.
    // SAFETY: TUNSETPERSIST takes its argument by value, and `device` keeps the descriptor open.
    let cleared = unsafe { request::tunsetpersist(device.as_raw_fd(), 0) };
    cleared.map_err(|errno| TunError::Io { name: name.to_owned(), source: errno.into() })?;
    Ok(true)
}

/// Enables the offloads of a TUN device by which the kernel leaves work to this program: checksums,
/// and the segmentation of TCP over IPv4 and IPv6, including ECN.
///
/// The settings apply until the device is opened again. Returns whether the kernel segments UDP
/// datagrams that this program writes (Linux 6.2). The segmentation of datagrams that this program
/// reads is left to the kernel, because the peer's kernel may be too old for large datagrams.
fn enable_offloads(fd: &OwnedFd, name: &str) -> bool {
    const CHECKSUM: ioctl_param_type = 0x01;
    const TSO: ioctl_param_type = 0x02 | 0x04 | 0x08;
    const USO: ioctl_param_type = 0x20 | 0x40;
    let cuts_datagrams = set_offloads(fd, CHECKSUM | TSO | USO).is_ok();
    for (offloads, without) in [(CHECKSUM | TSO, "segmentation"), (CHECKSUM, "checksum")] {
        match set_offloads(fd, offloads) {
            Ok(()) => return cuts_datagrams,
            Err(error) => {
                tracing::warn!(device = name, %error, "cannot enable {without} offload: the tunnel will be slower");
            }
        }
    }
    false
}

/// Sets the enabled offloads of a TUN device. Without any, the kernel passes packets as on a wire,
/// at most as large as the MTU and with checksums.
fn set_offloads(fd: &OwnedFd, offloads: ioctl_param_type) -> nix::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value, and the descriptor is open.
    unsafe { request::tunsetoffload(fd.as_raw_fd(), offloads) }.map(drop)
}

/// Raises the queue length of a device in this thread's network namespace to [`TX_QUEUE_PACKETS`],
/// unless it is longer already.
fn raise_queue_length(name: &str) -> io::Result<()> {
    // SAFETY: the C structure consists of numbers, for which zeros are valid.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as c_char;
    }
    // The requests work on a socket of any family.
    let socket = UnixDatagram::unbound()?;
    // SAFETY: SIOCGIFTXQLEN reads the name and writes the length, and the descriptor is open.
    unsafe { request::queue_length(socket.as_raw_fd(), &raw mut request) }?;
    // SAFETY: the kernel's `ifr_qlen`, which the libc crate does not name, is one integer like this
    // field. The whole union was set to zeros, and the kernel then wrote the integer.
    if unsafe { request.ifr_ifru.ifru_metric } >= TX_QUEUE_PACKETS {
        return Ok(());
    }
    request.ifr_ifru.ifru_metric = TX_QUEUE_PACKETS;
    // SAFETY: SIOCSIFTXQLEN reads the structure, and the descriptor is open.
    unsafe { request::set_queue_length(socket.as_raw_fd(), &raw const request) }?;
    Ok(())
}

mod request {
    nix::ioctl_read_bad!(queue_length, nix::libc::SIOCGIFTXQLEN, nix::libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_queue_length, nix::libc::SIOCSIFTXQLEN, nix::libc::ifreq);
    nix::ioctl_write_int!(tunsetpersist, b'T', 203);
    nix::ioctl_write_int!(tunsetoffload, b'T', 208);
}

fn open(name: &str) -> Result<tun::Device, TunError> {
    check_name(name)?;
    let mut config = tun::Configuration::default();
    config.tun_name(name);
    config.platform_config(|linux| {
        // With "root privileges" the crate would set addresses and flags itself. It sets IFF_NO_PI
        // (no packet information) by default.
        linux.ensure_root_privileges(false);
        linux.vnet_hdr(true);
    });
    tun::create(&config).map_err(|error| {
        let source = into_io(error);
        match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EBUSY) => TunError::Busy(name.to_owned()),
            Some(Errno::EINVAL) => TunError::NotATun(name.to_owned()),
            Some(Errno::EPERM | Errno::EACCES) => TunError::NotAllowed(name.to_owned()),
            Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO) => TunError::NoDriver,
            _ if fs::metadata("/dev/net/tun").is_err() => TunError::NoDriver,
            _ => TunError::Io { name: name.to_owned(), source },
        }
    })
}

/// Returns whether a device may have this name.
///
/// The rule is that of the kernel (`dev_valid_name`), without `%`, which would make the kernel
/// number the device.
#[must_use]
pub fn is_device_name(name: &str) -> bool {
    check_name(name).is_ok()
}

fn check_name(name: &str) -> Result<(), TunError> {
    let fits = !name.is_empty() && name.len() <= MAX_NAME && name != "." && name != "..";
    let clean = !name.contains(|c: char| c == '/' || c == ':' || c == '%' || c == '\0' || c.is_whitespace());
    if fits && clean { Ok(()) } else { Err(TunError::BadName(name.to_owned())) }
}

fn into_io(error: tun::Error) -> io::Error {
    match error {
        tun::Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::process::Command;
    use std::time::Duration;

    use super::*;
    use mobile_proto::{Offload, Packet};

    #[test]
    fn packets_pass_in_both_directions() {
        in_new_namespace(async {
            let tun = Tun::open("mobile0", false, Offloading::Auto).unwrap();
            run("ip link set mobile0 up");
            run("ip addr add 192.0.2.1/24 dev mobile0");
            let socket = tokio::net::UdpSocket::bind("192.0.2.1:7").await.unwrap();
            socket.send_to(b"out", "192.0.2.9:9").await.unwrap();
            let mut buf = [0; 2048];
            let (packet, offload) = loop {
                let headers = poll_fn(|cx| tun.poll_recv(cx, &mut buf)).await.unwrap();
                // The kernel sends IPv6 packets of its own on a new link.
                if buf[0] >> 4 == 4 {
                    break (&mut buf[..headers.len()], headers.offload());
                }
            };
            assert!(packet.ends_with(b"out"));
            // With addresses and ports swapped the packet is a reply, for which both checksums are
            // still valid.
            for (a, b, length) in [(12, 16, 4), (20, 22, 2)] {
                for i in 0..length {
                    packet.swap(a + i, b + i);
                }
            }
            assert_eq!(offload, Offload::Checksum);
            tun.try_send(Packet { bytes: packet, offload }.into()).unwrap();
            let mut answer = [0; 16];
            let (length, from) = socket.recv_from(&mut answer).await.unwrap();
            assert_eq!((&answer[..length], from), (&b"out"[..], "192.0.2.9:9".parse().unwrap()));
            // Read another packet without waiting, after which there is none.
            socket.send_to(b"again", "192.0.2.9:9").await.unwrap();
            let mut ends = Vec::new();
            let error = loop {
                match tun.try_recv(&mut buf) {
                    Ok(headers) => ends.push(buf[..headers.len()].ends_with(b"again")),
                    Err(error) => break error,
                }
            };
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            assert_eq!(ends.into_iter().filter(|again| *again).count(), 1);
        });
    }

    /// Returns a datagram from 192.0.2.9 to 192.0.2.1, port 7, with a partial checksum.
    fn datagram(payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, 9, 192, 0, 2, 1];
        packet.extend([0, 9, 0, 7, 0, 0, 0, 0]);
        packet.extend(payload);
        let total = u16::try_from(packet.len()).unwrap();
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        packet[24..26].copy_from_slice(&(total - 20).to_be_bytes());
        packet
    }

    #[test]
    fn coalesced_datagrams_are_received_one_by_one() {
        in_new_namespace(async {
            let tun = Tun::open("mobile0", false, Offloading::Auto).unwrap();
            assert!(tun.coalesces_datagrams(), "this kernel is older than 6.2, or its TUN cannot");
            run("ip link set mobile0 up");
            run("ip addr add 192.0.2.1/24 dev mobile0");
            let socket = tokio::net::UdpSocket::bind("192.0.2.1:7").await.unwrap();
            let (mut writer, mut writes) = (crate::coalescing::CoalescingWriter::new(true), 0);
            let mut write = |packet: InnerPacket<'_>, _| {
                tun.try_send(packet).unwrap();
                writes += 1;
            };
            // The last datagram is shorter than the others.
            let sent: Vec<Vec<u8>> =
                (0..20).map(|number| vec![number; if number < 19 { 200 } else { 9 }]).collect();
            for payload in &sent {
                let bytes = datagram(payload);
                let packet = Packet { bytes: &bytes, offload: Offload::Checksum };
                writer.send(packet.into(), &mut write);
            }
            writer.flush(&mut write);
            assert_eq!(writes, 1);
            let mut buffer = [0; 300];
            for payload in sent {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                assert_eq!((&buffer[..length], from), (&payload[..], "192.0.2.9:9".parse().unwrap()));
            }
        });
    }

    #[test]
    fn without_offloads_datagrams_are_not_coalesced() {
        in_new_namespace(async {
            assert!(!Tun::open("mobile0", false, Offloading::Off).unwrap().coalesces_datagrams());
        });
    }

    #[test]
    fn a_persistent_device_can_be_opened_again_and_removed() {
        in_new_namespace(async {
            assert!(!remove("mobile0").unwrap());
            drop(Tun::open("mobile0", true, Offloading::Auto).unwrap());
            let shown = Command::new("ip").args(["link", "show", "mobile0"]).output().unwrap();
            assert!(String::from_utf8_lossy(&shown.stdout).contains(" qlen 1000"), "{shown:?}");
            let again = Tun::open("mobile0", true, Offloading::Auto).unwrap();
            let busy = Tun::open("mobile0", true, Offloading::Auto).unwrap_err();
            assert!(matches!(&busy, TunError::Busy(name) if name == "mobile0"), "{busy}");
            assert!(matches!(remove("mobile0"), Err(TunError::Busy(_))));
            drop(again);
            assert!(remove("mobile0").unwrap());
            assert!(!remove("mobile0").unwrap());
        });
    }

    #[test]
    fn a_name_that_is_taken_or_invalid_is_refused() {
        in_new_namespace(async {
            assert!(matches!(Tun::open("lo", false, Offloading::Auto), Err(TunError::NotATun(_))));
            for name in ["", "a b", "a/b", "tun%d", "sixteen-letters-"] {
                assert!(
                    matches!(Tun::open(name, false, Offloading::Auto), Err(TunError::BadName(_))),
                    "{name}"
                );
            }
        });
    }

    fn run(command: &str) {
        let words: Vec<_> = command.split(' ').collect();
        assert!(Command::new(words[0]).args(&words[1..]).status().unwrap().success(), "{command}");
    }

    /// Runs `test` in a new network namespace, which ends with its thread. Requires root.
    fn in_new_namespace(test: impl Future<Output = ()> + Send + 'static) {
        let thread = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("these tests run as root");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let bounded = async { tokio::time::timeout(Duration::from_secs(20), test).await };
            runtime.block_on(bounded).expect("took too long");
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }
}
