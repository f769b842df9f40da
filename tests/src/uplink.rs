//! Uplinks of the mobile host: their addresses and routes, and the changes that a network manager
//! or a user makes to them.

use std::cell::Cell;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::Result;

use crate::link::LinkEmulator;
use crate::ns::Ns;
use crate::wait::until;

/// The name of one of the lab's two uplinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UplinkName {
    /// The wireless uplink through `visit_a`, whose default route has the worse metric.
    Wlan,
    /// The wired uplink through `visit_b`, whose default route has the better metric.
    Eth,
}

impl UplinkName {
    /// Both uplinks, in the order of [`Lab::visited`](crate::Lab::visited): wlan0, then eth0.
    pub const ALL: [Self; 2] = [Self::Wlan, Self::Eth];

    /// Returns the device's name on the mobile host.
    #[must_use]
    pub fn device(self) -> &'static str {
        match self {
            Self::Wlan => "wlan0",
            Self::Eth => "eth0",
        }
    }

    /// Returns the metric that a network manager gives the uplink's default route.
    #[must_use]
    pub fn metric(self) -> u32 {
        match self {
            Self::Wlan => 600,
            Self::Eth => 100,
        }
    }

    /// Returns the public address to which the visited network's NAT translates the source of the
    /// host's IPv4 packets.
    #[must_use]
    pub fn nat_address(self) -> Ipv4Addr {
        match self {
            Self::Wlan => Ipv4Addr::new(203, 0, 113, 2),
            Self::Eth => Ipv4Addr::new(203, 0, 113, 6),
        }
    }

    /// Returns the first three bytes of the visited network's private IPv4 /24.
    pub(crate) fn private4(self) -> [u8; 3] {
        match self {
            Self::Wlan => [192, 168, 11],
            Self::Eth => [10, 22, 0],
        }
    }

    /// Returns the visited network's IPv6 /64 as text, without the interface identifier.
    pub(crate) fn prefix6(self) -> &'static str {
        match self {
            Self::Wlan => "2001:db8:11::",
            Self::Eth => "2001:db8:22::",
        }
    }
}

/// An uplink of the mobile host: the link (emulated or a plain veth pair), and the host's addresses
/// and routes on it.
pub struct Uplink {
    /// The name of the uplink.
    pub name: UplinkName,
    /// The emulated link, or `None` if a plain veth pair connects the host with its visited
    /// network.
    link: Option<LinkEmulator>,
    host: Ns,
    visited: Ns,
    /// The last byte of the host's IPv4 and IPv6 addresses, changed by [`Uplink::renumber`].
    number: Cell<u8>,
    /// The last byte of the router's IPv4 and IPv6 addresses, changed by
    /// [`Uplink::change_gateway`].
    gateway: Cell<u8>,
}

/// An address family: IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Internet Protocol version 4.
    Four,
    /// Internet Protocol version 6.
    Six,
}

impl Family {
    /// Both address families, IPv4 first.
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
        // The visited network's router has .1.
        let (number, gateway) = (Cell::new(2), Cell::new(1));
        Self { name, link, host: host.clone(), visited: visited.clone(), number, gateway }
    }

    /// Returns the device's name on the mobile host.
    #[must_use]
    pub fn device(&self) -> &'static str {
        self.name.device()
    }

    /// Returns the emulated link to the visited network, to slow down, blackhole or cut it.
    ///
    /// # Panics
    /// Panics if the uplink is a plain veth pair, which cannot do any of that.
    #[must_use]
    pub fn link(&self) -> &LinkEmulator {
        self.link.as_ref().expect("the links of this lab are plain wires: ask for a delay, if only of zero")
    }

    /// Returns the IPv4 address that the host has on this uplink.
    #[must_use]
    pub fn address4(&self) -> Ipv4Addr {
        let [a, b, c] = self.name.private4();
        Ipv4Addr::new(a, b, c, self.number.get())
    }

    /// Returns the IPv6 address that the host has on this uplink.
    #[must_use]
    pub fn address6(&self) -> Ipv6Addr {
        self.address6_text().parse().expect("a prefix and a number make an address")
    }

    /// Brings the uplink up: link, carrier, addresses and default routes, as after a successful
    /// DHCP exchange.
    ///
    /// The call is idempotent, so that it also repairs whatever another method has removed.
    pub fn bring_up(&self) -> Result<()> {
        self.bring_up_without_route()?;
        self.set_routes()
    }

    /// Brings the uplink up without default routes, which a network manager sets last; see
    /// [`Uplink::set_routes`].
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

    /// Sets the link down and flushes its addresses and routes, as when a user switches the device
    /// off.
    pub fn take_down(&self) -> Result<()> {
        self.host.ip(&[
            &format!("link set {} down", self.device()),
            &format!("address flush dev {}", self.device()),
        ])
    }

    /// Takes the carrier away, as when a cable is pulled or an access point is out of range.
    /// Addresses and routes stay.
    ///
    /// # Panics
    /// Panics if the uplink is a plain veth pair.
    pub fn cut(&self) -> Result<()> {
        self.link().cut()?;
        until(&format!("the end of {}'s carrier", self.device()), || !self.has_carrier())
    }

    /// Flushes the host's global addresses on the uplink, as a network manager does some time after
    /// [`Uplink::cut`].
    pub fn give_up_address(&self) -> Result<()> {
        self.host.ip(&[&format!("address flush dev {} scope global", self.device())])
    }

    /// Flushes the host's global addresses while the link stays up, as when a DHCP lease expires.
    pub fn remove_address(&self) -> Result<()> {
        self.give_up_address()
    }

    /// Deletes the uplink's default routes; link and addresses stay.
    pub fn remove_route(&self) -> Result<()> {
        let (device, metric) = (self.device(), self.name.metric());
        self.host.ip(&[
            &format!("route del 0.0.0.0/0 dev {device} metric {metric}"),
            &format!("route del ::/0 dev {device} metric {metric}"),
        ])
    }

    /// Gives the host other addresses on the uplink without taking the link down.
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

    /// Gives the visited network's router other addresses, and points the host's default routes to
    /// them.
    ///
    /// The host keeps its own addresses, as after a DHCP answer that names another router.
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

    /// Returns the IPv4 address of the visited network's router.
    #[must_use]
    pub fn gateway4(&self) -> Ipv4Addr {
        let [a, b, c] = self.name.private4();
        Ipv4Addr::new(a, b, c, self.gateway.get())
    }

    /// Returns the IPv6 address of the visited network's router.
    #[must_use]
    pub fn gateway6(&self) -> Ipv6Addr {
        let text = format!("{}{:x}", self.name.prefix6(), self.gateway.get());
        text.parse().expect("a prefix and a number make an address")
    }

    /// Removes the host's addresses and default routes of one address family, as when a network
    /// stops offering it.
    pub fn remove_family(&self, family: Family) -> Result<()> {
        let (option, device) = (family.option(), self.device());
        self.host.run(&["ip", option, "address", "flush", "dev", device, "scope", "global"])?;
        self.flush_routes(family)
    }

    /// Flushes the default routes of one address family on the uplink; succeeds if there are none.
    pub fn flush_routes(&self, family: Family) -> Result<()> {
        let (option, device) = (family.option(), self.device());
        self.host.run(&["ip", option, "route", "flush", "default", "dev", device]).map(drop)
    }

    /// Returns whether the kernel has announced a carrier on the uplink's device.
    ///
    /// The kernel announces a change up to a second after the carrier bit itself has changed.
    /// Network managers wait for that announced operational state, which this method therefore
    /// reports.
    #[must_use]
    pub fn has_carrier(&self) -> bool {
        let link = self.host.run(&["ip", "-o", "link", "show", "dev", self.device()]);
        link.is_ok_and(|text| text.contains("LOWER_UP") && !text.contains(" state DOWN "))
    }

    /// Sets the one-way delay of the link.
    ///
    /// # Panics
    /// Panics if the uplink is a plain veth pair.
    pub fn set_delay(&self, delay: Duration) {
        self.link().set_delay(delay);
    }

    /// Sets the uplink's default routes, as after a successful DHCP exchange.
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
