//! Opens, reads and writes the TUN device without blocking.

mod trial;

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::task::{Context, Poll, ready};

use mobile_host::capability::why_no_net_admin;
use mobile_host::in_use::retry_while_in_use;
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

/// The device file of the TUN driver.
const DRIVER: &str = "/dev/net/tun";

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

/// The lifetime of a TUN device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceLifetime {
    /// The device continues to exist after this process has exited, and can be opened again.
    Persistent,
    /// The kernel removes the device when it is closed.
    Process,
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
    #[error(
        "there is no TUN driver (/dev/net/tun): run `modprobe tun`; in a container, pass the device to it \
         (`--device /dev/net/tun`)"
    )]
    NoDriver,
    /// The process may not open /dev/net/tun.
    #[error(
        "not allowed to open /dev/net/tun ({0}): run as root; in a container, pass the device to it \
         (`--device /dev/net/tun`)"
    )]
    DriverForbidden(#[source] io::Error),
    /// The process may open /dev/net/tun, but not make or open the device.
    #[error("not allowed to open device {name}: {reason}")]
    NotAllowed {
        /// The name of the device.
        name: String,
        /// The missing right, with the next step.
        reason: &'static str,
    },
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
    /// A new device has no address and is down; the crate `mobile-netlink` configures it. Must be
    /// called in a tokio runtime.
    ///
    /// # Errors
    /// When the device is in use or may not be opened, or when there is no TUN driver.
    pub fn open(name: &str, lifetime: DeviceLifetime, offloading: Offloading) -> Result<Self, TunError> {
        let mut device = open(name)?;
        let io_error = |source| TunError::Io { name: name.to_owned(), source };
        if lifetime == DeviceLifetime::Persistent {
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

/// Opens the device, or creates it. Waits up to 1 s for a device that is in use.
fn open(name: &str) -> Result<tun::Device, TunError> {
    retry_while_in_use(|| open_now(name), |error| matches!(error, TunError::Busy(_)))
}

fn open_now(name: &str) -> Result<tun::Device, TunError> {
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
            Some(Errno::EPERM | Errno::EACCES) => not_allowed(name),
            Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO) => TunError::NoDriver,
            _ if fs::metadata(DRIVER).is_err() => TunError::NoDriver,
            _ => TunError::Io { name: name.to_owned(), source },
        }
    })
}

/// Returns which right is missing to open the device.
fn not_allowed(name: &str) -> TunError {
    match fs::OpenOptions::new().read(true).write(true).open(DRIVER) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => TunError::DriverForbidden(error),
        _ => TunError::NotAllowed { name: name.to_owned(), reason: why_no_net_admin() },
    }
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
mod tests;
