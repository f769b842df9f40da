//! The command-line arguments of `sockets`: addresses, a device and the chosen kinds of sockets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use anyhow::{Context, Result, bail};
use nix::net::if_::if_nametoindex;

use crate::kind::{Family, SocketKind};

/// The multicast groups of mDNS, as an example of groups that every network has.
const GROUP4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const GROUP6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);

/// An IPv4 and an IPv6 address, unspecified if the arguments name none.
#[derive(Clone, Copy)]
pub(crate) struct Pair(Ipv4Addr, Ipv6Addr);

impl Pair {
    const NONE: Self = Self(Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);

    /// Returns the address for a socket of `family`, IPv4-mapped where the family requires that.
    pub(crate) fn of(self, family: Family) -> IpAddr {
        match family {
            Family::Ipv4 => self.0.into(),
            Family::Ipv6 => self.1.into(),
            Family::Mapped => self.0.to_ipv6_mapped().into(),
        }
    }
}

pub(crate) struct Config {
    /// The number of the first socket; each further socket has the next one.
    pub(crate) base: u16,
    server: Pair,
    /// The local addresses that some kinds of sockets bind to, or name as the source of a datagram.
    pub(crate) source: Pair,
    /// The host's addresses on `device`.
    pub(crate) uplink: Pair,
    /// Link-local addresses of a neighbour on `device`.
    link: Pair,
    /// The name of an uplink's device.
    pub(crate) device: String,
    kinds: Option<Vec<String>>,
}

impl Config {
    pub(crate) fn parse(args: impl Iterator<Item = String>) -> Result<Self> {
        let mut config = Self {
            base: 20_000,
            server: Pair::NONE,
            source: Pair::NONE,
            uplink: Pair::NONE,
            link: Pair::NONE,
            device: String::new(),
            kinds: None,
        };
        for arg in args {
            let (key, value) = arg.split_once('=').with_context(|| format!("{arg:?} is not KEY=VALUE"))?;
            config.set(key, value).with_context(|| format!("{arg:?}"))?;
        }
        Ok(config)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        match key {
            "base" => self.base = value.parse()?,
            "server4" => self.server.0 = value.parse()?,
            "server6" => self.server.1 = value.parse()?,
            "source4" => self.source.0 = value.parse()?,
            "source6" => self.source.1 = value.parse()?,
            "uplink4" => self.uplink.0 = value.parse()?,
            "uplink6" => self.uplink.1 = value.parse()?,
            "link4" => self.link.0 = value.parse()?,
            "link6" => self.link.1 = value.parse()?,
            "device" => self.device = value.to_owned(),
            "kinds" => self.kinds = Some(value.split(',').map(str::to_owned).collect()),
            _ => bail!("there is no such key"),
        }
        Ok(())
    }

    pub(crate) fn chosen(&self, kind: &str) -> bool {
        self.kinds.as_ref().is_none_or(|kinds| kinds.iter().any(|chosen| chosen == kind))
    }

    /// Returns the interface index of `device`, or 0 if no such device exists.
    pub(crate) fn device_index(&self) -> u32 {
        if_nametoindex(self.device.as_str()).unwrap_or(0)
    }

    /// Returns the destination of a socket, whose port is the socket's number unless it sends ICMP.
    pub(crate) fn target(&self, kind: SocketKind, family: Family, number: u16) -> SocketAddr {
        let pair = match kind {
            SocketKind::UdpMulticast => Pair(GROUP4, GROUP6),
            SocketKind::UdpLinkLocal => self.link,
            _ => self.server,
        };
        let port = if kind.is_icmp() { 0 } else { number };
        match pair.of(family) {
            // An address with link scope needs the device's index.
            IpAddr::V6(ip) if kind.is_one_way() && family == Family::Ipv6 => {
                SocketAddrV6::new(ip, port, 0, self.device_index()).into()
            }
            ip => SocketAddr::new(ip, port),
        }
    }
}
