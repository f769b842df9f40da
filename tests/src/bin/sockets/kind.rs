//! The kinds of sockets and the address families of the socket matrix.

/// A way to make a socket and to send with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SocketKind {
    Tcp,
    FastOpenSendto,
    FastOpenConnect,
    Mptcp,
    TcpOnDevice,
    TcpListening,
    UdpConnected,
    Udp,
    UdpOfPort,
    UdpOfSource,
    UdpOfUplink,
    UdpFromSource,
    UdpFromDevice,
    UdpOnDevice,
    UdpMulticast,
    UdpLinkLocal,
    Ping,
    PingOnDevice,
    Raw,
    RawHeader,
}

impl SocketKind {
    pub(crate) const ALL: [Self; 20] = [
        Self::Tcp,
        Self::FastOpenSendto,
        Self::FastOpenConnect,
        Self::Mptcp,
        Self::TcpOnDevice,
        Self::TcpListening,
        Self::UdpConnected,
        Self::Udp,
        Self::UdpOfPort,
        Self::UdpOfSource,
        Self::UdpOfUplink,
        Self::UdpFromSource,
        Self::UdpFromDevice,
        Self::UdpOnDevice,
        Self::UdpMulticast,
        Self::UdpLinkLocal,
        Self::Ping,
        Self::PingOnDevice,
        Self::Raw,
        Self::RawHeader,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::FastOpenSendto => "tcp-fastopen-sendto",
            Self::FastOpenConnect => "tcp-fastopen-connect",
            Self::Mptcp => "mptcp",
            Self::TcpOnDevice => "tcp-on-device",
            Self::TcpListening => "tcp-listening",
            Self::UdpConnected => "udp-connected",
            Self::Udp => "udp",
            Self::UdpOfPort => "udp-of-port",
            Self::UdpOfSource => "udp-of-source",
            Self::UdpOfUplink => "udp-of-uplink",
            Self::UdpFromSource => "udp-pktinfo-source",
            Self::UdpFromDevice => "udp-pktinfo-device",
            Self::UdpOnDevice => "udp-on-device",
            Self::UdpMulticast => "udp-multicast",
            Self::UdpLinkLocal => "udp-link-local",
            Self::Ping => "ping",
            Self::PingOnDevice => "ping-on-device",
            Self::Raw => "raw-icmp",
            Self::RawHeader => "raw-hdrincl",
        }
    }

    /// Returns whether the kind exists in an address family: an IPv6 socket cannot send an IPv4
    /// echo request.
    pub(crate) fn exists_in(self, family: Family) -> bool {
        !(self.is_icmp() && family == Family::Mapped)
    }

    pub(crate) fn is_stream(self) -> bool {
        matches!(
            self,
            Self::Tcp | Self::FastOpenSendto | Self::FastOpenConnect | Self::Mptcp | Self::TcpOnDevice
        )
    }

    pub(crate) fn is_icmp(self) -> bool {
        matches!(self, Self::Ping | Self::PingOnDevice | Self::Raw | Self::RawHeader)
    }

    pub(crate) fn is_on_device(self) -> bool {
        matches!(self, Self::TcpOnDevice | Self::UdpOnDevice | Self::PingOnDevice)
    }

    /// Returns whether no packet of this kind is ever answered, so that a successful send is its
    /// result.
    pub(crate) fn is_one_way(self) -> bool {
        matches!(self, Self::UdpMulticast | Self::UdpLinkLocal)
    }
}

/// The address family of a socket and of the addresses it is used with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Ipv4,
    Ipv6,
    /// IPv4-mapped addresses on an AF_INET6 socket.
    Mapped,
}

impl Family {
    pub(crate) const ALL: [Self; 3] = [Self::Ipv4, Self::Ipv6, Self::Mapped];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
            Self::Mapped => "mapped",
        }
    }
}
