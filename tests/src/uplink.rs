//! One uplink of the mobile host, and what a network manager does to it.

use std::cell::Cell;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::Result;

use crate::link::LinkEmulator;
use crate::ns::Ns;
use crate::wait::until;

/// The two uplinks of the lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UplinkName {
    /// Wireless, through `visit_a`, with the worse metric.
    Wlan,
    /// Wired, through `visit_b`, with the better metric.
    Eth,
}

impl UplinkName {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Wlan, Self::Eth];

    /// The device's name on the host.
    #[must_use]
    pub fn device(self) -> &'static str {
        match self {
            Self::Wlan => "wlan0",
            Self::Eth => "eth0",
        }
    }

    /// The metric a network manager gives the default route.
    #[must_use]
    pub fn metric(self) -> u32 {
        match self {
            Self::Wlan => 600,
            Self::Eth => 100,
        }
    }

    /// The address under which the internet sees the IPv4 hosts of the visited network.
    #[must_use]
    pub fn nat_address(self) -> Ipv4Addr {
        match self {
            Self::Wlan => Ipv4Addr::new(203, 0, 113, 2),
            Self::Eth => Ipv4Addr::new(203, 0, 113, 6),
        }
    }

    /// The first three bytes of the visited network's private /24.
    pub(crate) fn private4(self) -> [u8; 3] {
        match self {
            Self::Wlan => [192, 168, 11],
            Self::Eth => [10, 22, 0],
        }
    }

    /// The visited network's IPv6 /64, without the host part.
    pub(crate) fn prefix6(self) -> &'static str {
        match self {
            Self::Wlan => "2001:db8:11::",
            Self::Eth => "2001:db8:22::",
        }
    }
}

/// An uplink: the link, emulated or a plain wire, and the addresses and routes the host has on it.
pub struct Uplink {
    /// Which one.
    pub name: UplinkName,
    /// None: a plain wire.
    link: Option<LinkEmulator>,
    host: Ns,
    visited: Ns,
    /// The last part of the host's addresses; changed by [`Uplink::renumber`].
    number: Cell<u8>,
    /// The last part of the router's addresses; changed by [`Uplink::change_gateway`].
    gateway: Cell<u8>,
}

/// A family of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    Four,
    /// IPv6.
    Six,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Four, Self::Six];

    fn option(self) -> &'static str {
        match self {
            Self::Four => "-4",
            Self::Six => "-6",
        }
    }
}

impl Uplink {
    pub(crate) fn new(name: UplinkName, link: Option<LinkEmulator>, host: &Ns, visited: &Ns) -> Self {
        // .1 is the visited network's router.
        let (number, gateway) = (Cell::new(2), Cell::new(1));
        Self { name, link, host: host.clone(), visited: visited.clone(), number, gateway }
    }

    /// The device's name on the host.
    #[must_use]
    pub fn device(&self) -> &'static str {
        self.name.device()
    }

    /// The link to the visited network, to be slowed, blackholed or cut.
    ///
    /// # Panics
    /// When it is a plain wire, to which none of that can be done.
    #[must_use]
    pub fn link(&self) -> &LinkEmulator {
        self.link.as_ref().expect("the links of this lab are plain wires: ask for a delay, if only of zero")
    }

    /// The host's IPv4 address on it.
    #[must_use]
    pub fn address4(&self) -> Ipv4Addr {
        let [a, b, c] = self.name.private4();
        Ipv4Addr::new(a, b, c, self.number.get())
    }

    /// The host's IPv6 address on it.
    #[must_use]
    pub fn address6(&self) -> Ipv6Addr {
        self.address6_text().parse().expect("a prefix and a number make an address")
    }

    /// Link up, cable in, addresses and default routes set, as after a successful DHCP; also what
    /// repairs whatever was removed.
    pub fn bring_up(&self) -> Result<()> {
        self.bring_up_without_route()?;
        self.set_routes()
    }

    /// The same but for the default routes, which a network manager sets last: [`Uplink::set_routes`].
    pub fn bring_up_without_route(&self) -> Result<()> {
        let device = self.device();
        self.link.as_ref().map_or(Ok(()), LinkEmulator::restore)?;
        self.host.ip(&[&format!("link set {device} up")])?;
        until(&format!("{device}'s carrier"), || self.has_carrier())?;
        let (four, six) = (self.address4(), self.address6_text());
        self.host.ip(&[
            &format!("address replace {four}/24 dev {device}"),
            &format!("address replace {six}/64 dev {device} nodad"),
        ])
    }

    /// The user switches it off: link down, addresses and routes gone.
    pub fn take_down(&self) -> Result<()> {
        self.host.ip(&[
            &format!("link set {} down", self.device()),
            &format!("address flush dev {}", self.device()),
        ])
    }

    /// The cable is pulled, or the access point is out of reach: the carrier is lost, and nobody has
    /// yet removed the address or the routes.
    ///
    /// # Panics
    /// When it is a plain wire.
    pub fn cut(&self) -> Result<()> {
        self.link().cut()?;
        until(&format!("the end of {}'s carrier", self.device()), || !self.has_carrier())
    }

    /// What a network manager does a while after [`Uplink::cut`].
    pub fn give_up_address(&self) -> Result<()> {
        self.host.ip(&[&format!("address flush dev {} scope global", self.device())])
    }

    /// The addresses vanish, as when a DHCP lease ends; the link stays.
    pub fn remove_address(&self) -> Result<()> {
        self.give_up_address()
    }

    /// The default routes vanish; link and addresses stay.
    pub fn remove_route(&self) -> Result<()> {
        let (device, metric) = (self.device(), self.name.metric());
        self.host.ip(&[
            &format!("route del 0.0.0.0/0 dev {device} metric {metric}"),
            &format!("route del ::/0 dev {device} metric {metric}"),
        ])
    }

    /// The network gives the host other addresses, without the link going down.
    pub fn renumber(&self) -> Result<()> {
        let device = self.device();
        let (old4, old6) = (self.address4(), self.address6_text());
        self.number.set(if self.number.get() < 250 { self.number.get() + 1 } else { 2 });
        let (new4, new6) = (self.address4(), self.address6_text());
        self.host.ip(&[
            &format!("address del {old4}/24 dev {device}"),
            &format!("address del {old6}/64 dev {device}"),
            &format!("address add {new4}/24 dev {device}"),
            &format!("address add {new6}/64 dev {device} nodad"),
        ])?;
        self.set_routes()
    }

    /// The network's router gets other addresses; the host is told by its next DHCP answer, and keeps its own.
    pub fn change_gateway(&self) -> Result<()> {
        let [a, b, c] = self.name.private4();
        let six = self.name.prefix6();
        let old = self.gateway.get();
        let new = if old == 1 { 254 } else { 1 };
        self.gateway.set(new);
        self.visited.ip(&[
            &format!("address del {a}.{b}.{c}.{old}/24 dev lan0"),
            &format!("address del {six}{old:x}/64 dev lan0"),
            &format!("address add {a}.{b}.{c}.{new}/24 dev lan0"),
            &format!("address add {six}{new:x}/64 dev lan0 nodad"),
        ])?;
        self.set_routes()
    }

    /// The router's IPv4 address.
    #[must_use]
    pub fn gateway4(&self) -> Ipv4Addr {
        let [a, b, c] = self.name.private4();
        Ipv4Addr::new(a, b, c, self.gateway.get())
    }

    /// The router's IPv6 address.
    #[must_use]
    pub fn gateway6(&self) -> Ipv6Addr {
        let text = format!("{}{:x}", self.name.prefix6(), self.gateway.get());
        text.parse().expect("a prefix and a number make an address")
    }

    /// The network stops offering one family: its addresses go, and its routes with them.
    pub fn remove_family(&self, family: Family) -> Result<()> {
        let (option, device) = (family.option(), self.device());
        self.host.run(&["ip", option, "address", "flush", "dev", device, "scope", "global"])?;
        self.flush_routes(family)
    }

    /// The default routes of one family vanish if there are any.
    pub fn flush_routes(&self, family: Family) -> Result<()> {
        let (option, device) = (family.option(), self.device());
        self.host.run(&["ip", option, "route", "flush", "default", "dev", device]).map(drop)
    }

    /// Whether the host sees a carrier on it: not the bare bit, but the state that the kernel announces once it has
    /// acted on the bit (up to a second later), as a network manager waits for it.
    #[must_use]
    pub fn has_carrier(&self) -> bool {
        let link = self.host.run(&["ip", "-o", "link", "show", "dev", self.device()]);
        link.is_ok_and(|text| text.contains("LOWER_UP") && !text.contains(" state DOWN "))
    }

    /// Sets the one-way delay of the link.
    ///
    /// # Panics
    /// When it is a plain wire.
    pub fn set_delay(&self, delay: Duration) {
        self.link().set_delay(delay);
    }

    /// The default routes, as after a successful DHCP.
    pub fn set_routes(&self) -> Result<()> {
        let (device, metric) = (self.device(), self.name.metric());
        let (four, six, number) = (self.gateway4(), self.name.prefix6(), self.gateway.get());
        self.host.ip(&[
            &format!("route replace default via {four} dev {device} metric {metric}"),
            &format!("route replace ::/0 via {six}{number:x} dev {device} metric {metric}"),
        ])
    }

    fn address6_text(&self) -> String {
        format!("{}{:x}", self.name.prefix6(), self.number.get())
    }
}
