//! A TAP device: one end of an emulated link, whose frames the test process reads and writes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc::{self, c_int, c_short};
use nix::unistd::{read, write};

use crate::ns::Ns;

/// The size in bytes of the virtio header in front of every frame, without the mergeable-buffers
/// field.
pub(crate) const VNET_HEADER: usize = 10;

/// The size in bytes of the largest frame: virtio header, a 64 KiB IP packet, the Ethernet header
/// and a VLAN tag.
pub(crate) const MAX_FRAME: usize = VNET_HEADER + 65_536 + 14 + 4;

/// The offload flags of linux/if_tun.h for checksums, TSO over IPv4 and IPv6, and TSO with ECN.
const OFFLOADS: c_int = 0x01 | 0x02 | 0x04 | 0x08;

/// The offload flags for UDP segmentation over IPv4 and IPv6, which Linux has since 6.2.
const UDP_OFFLOADS: c_int = 0x20 | 0x40;

mod ioctl {
    use nix::libc::c_int;
    nix::ioctl_write_ptr!(tun_set_iff, b'T', 202, c_int);
    nix::ioctl_write_int!(tun_set_offload, b'T', 208);
    nix::ioctl_write_ptr!(tun_set_vnet_header_size, b'T', 216, c_int);
    nix::ioctl_write_ptr!(tun_set_carrier, b'T', 226, c_int);
}

/// An open TAP device, which the kernel removes when this value is dropped.
pub(crate) struct Tap {
    file: File,
}

impl Tap {
    /// Creates the device `name` inside `ns`.
    pub(crate) fn new(ns: &Ns, name: &str) -> Result<Self> {
        ns.enter(|| Self::open(name)).with_context(|| format!("cannot make the TAP {name} in {}", ns.name()))
    }

    fn open(name: &str) -> Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
        // SAFETY: ifreq is plain data for which all zeroes is a valid value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as c_short;
        let header = c_int::try_from(VNET_HEADER).expect("a header of ten bytes");
        // SAFETY: the descriptor is a tun device. TUNSETIFF is declared with an int but takes an
        // ifreq, which `request` is. Both pointers live across the calls.
        unsafe {
            ioctl::tun_set_iff(file.as_raw_fd(), (&raw const request).cast())?;
            ioctl::tun_set_vnet_header_size(file.as_raw_fd(), &raw const header)?;
        }
        let tap = Self { file };
        tap.set_offload(true)?;
        Ok(tap)
    }

    /// Sets whether the kernel may send segments larger than the MTU and frames without checksums
    /// to this device's reader.
    pub(crate) fn set_offload(&self, on: bool) -> Result<()> {
        let set = |flags: c_int| {
            // SAFETY: the argument is an integer, and the descriptor is an attached tun device.
            unsafe { ioctl::tun_set_offload(self.file.as_raw_fd(), flags as libc::c_ulong) }
        };
        if !on {
            set(0)?;
        } else {
            match set(OFFLOADS | UDP_OFFLOADS) {
                Err(Errno::EINVAL) => set(OFFLOADS)?,
                result => result?,
            };
        }
        Ok(())
    }

    /// Sets or clears the device's carrier.
    pub(crate) fn set_carrier(&self, on: bool) -> Result<()> {
        let value = c_int::from(on);
        // SAFETY: the pointer lives across the call, and the descriptor is an attached tun device.
        unsafe { ioctl::tun_set_carrier(self.file.as_raw_fd(), &raw const value)? };
        Ok(())
    }

    /// Reads one frame that the kernel has sent on the device. Fails with `WouldBlock` if there is
    /// none.
    pub(crate) fn read(&self, frame: &mut [u8]) -> io::Result<usize> {
        Ok(read(&self.file, frame)?)
    }

    /// Writes one frame, which the kernel receives on the device.
    pub(crate) fn write(&self, frame: &[u8]) -> io::Result<usize> {
        Ok(write(&self.file, frame)?)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
