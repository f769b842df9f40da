//! The TCP options that tests read and set on a probe's sockets.

use std::os::fd::AsRawFd as _;

use socket2::Socket;

/// A TCP option that the eBPF programs change.
#[derive(Clone, Copy, Debug)]
pub(in super::super) enum TcpOption {
    RtoMax,
    SynCount,
}

impl TcpOption {
    pub(in super::super) const ALL: [Self; 2] = [Self::RtoMax, Self::SynCount];

    pub(super) fn named(name: &str) -> Self {
        if name == "RtoMax" { Self::RtoMax } else { Self::SynCount }
    }

    fn number(self) -> i32 {
        match self {
            // TCP_RTO_MAX_MS of Linux 6.15, which libc does not define.
            Self::RtoMax => 44,
            Self::SynCount => nix::libc::TCP_SYNCNT,
        }
    }

    pub(super) fn get(self, socket: &Socket) -> String {
        let (mut value, mut length) = (0_i32, 4);
        // SAFETY: both pointers are valid for the call, and the kernel writes at most the four
        // bytes of `value`.
        let result = unsafe {
            let (level, value) = (nix::libc::IPPROTO_TCP, (&raw mut value).cast());
            nix::libc::getsockopt(socket.as_raw_fd(), level, self.number(), value, &raw mut length)
        };
        if result == 0 { value.to_string() } else { "none".to_string() }
    }

    pub(super) fn set(self, socket: &Socket, value: i32) {
        // SAFETY: the four bytes of `value` are only read.
        let result = unsafe {
            let (level, value) = (nix::libc::IPPROTO_TCP, (&raw const value).cast());
            nix::libc::setsockopt(socket.as_raw_fd(), level, self.number(), value, 4)
        };
        assert_eq!(result, 0, "{self:?}");
    }
}
