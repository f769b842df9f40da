//! Reads, changes and removes network devices.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, State,
};
use nix::errno::Errno;

use super::channel::{Channel, Explain, Failure};
use super::{Netlink, NetlinkError};

/// The maximum length of a device's name: `IFNAMSIZ` without the terminating zero byte.
const MAX_NAME: usize = 15;

/// A network device and its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The index of the device.
    pub index: u32,
    /// The name of the device.
    pub name: String,
    /// The kind of a virtual device, such as `tun`, `veth`, `bridge` or `wireguard`; `None` for
    /// other devices.
    pub kind: Option<String>,
    /// Whether the device is administratively up.
    pub up: bool,
    /// Whether the device has a carrier and is operational. A wireless device is then associated
    /// and authenticated.
    pub carrier: bool,
    /// Whether the device is a loopback device.
    pub loopback: bool,
    /// Whether the device is a tunnel: its packets leave this host inside packets of another
    /// device, as those of a VPN do.
    pub tunnel: bool,
    /// The MTU in bytes.
    pub mtu: u32,
    /// The device group; 0 by default.
    pub group: u32,
    /// Whether the device can carry multicast (`IFF_MULTICAST`).
    pub multicast: bool,
}

/// The kinds (`IFLA_INFO_KIND`) of devices that encapsulate.
///
/// The list lacks `tun`, which is also the kind of TAP devices, and `ppp`, which DSL and cellular
/// modems use as well as VPNs.
const TUNNEL_KINDS: [&str; 22] = [
    "amneziawg",
    "bareudp",
    "erspan",
    "geneve",
    "gre",
    "gretap",
    "gtp",
    "ip6erspan",
    "ip6gre",
    "ip6gretap",
    "ip6tnl",
    "ipip",
    "ipsec",
    "l2tpeth",
    "ovpn",
    "ovpn-dco",
    "sit",
    "vti",
    "vti6",
    "vxlan",
    "wireguard",
    "xfrm",
];

impl Netlink {
    /// Returns all network devices.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        self.0.lock().await.links().await
    }

    /// Returns the device with the given name.
    ///
    /// # Errors
    /// `NoSuchLink` when there is none.
    pub async fn link(&self, name: &str) -> Result<Link, NetlinkError> {
        match self.0.lock().await.link(name).await? {
            Some(link) => Ok(link),
            None => Err(NetlinkError::NoSuchLink(name.to_owned())),
        }
    }

    /// Returns the index of the device with the given name.
    ///
    /// # Errors
    /// `NoSuchLink` when there is none.
    pub async fn link_index(&self, name: &str) -> Result<u32, NetlinkError> {
        Ok(self.link(name).await?.index)
    }

    /// Brings a device up.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn set_link_up(&self, index: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.set(message).await.explain(None, || format!("bring device {index} up"))
    }

    /// Clears `IFF_MULTICAST`, so that programs that send multicast on every device skip this one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn clear_multicast(&self, index: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.change_mask = LinkFlags::Multicast;
        self.set(message).await.explain(None, || format!("clear the multicast flag of device {index}"))
    }

    /// Sets the MTU of a device.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::Mtu(mtu));
        self.set(message).await.explain(None, || format!("set the MTU of device {index} to {mtu}"))
    }

    /// Sets the group of a device, by which firewall rules can match several devices at once.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn set_group(&self, index: u32, group: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::Group(group));
        self.set(message).await.explain(None, || format!("put device {index} into group {group}"))
    }

    /// Removes the device with the given name; returns false if there is none.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn del_link(&self, name: &str) -> Result<bool, NetlinkError> {
        let mut channel = self.0.lock().await;
        let Some(link) = channel.link(name).await? else { return Ok(false) };
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        match channel.change(RouteNetlinkMessage::DelLink(message), 0).await {
            // The device was removed between the two requests.
            Err(failure) if failure.is(Errno::ENODEV) => Ok(false),
            outcome => outcome.map(|()| true).explain(None, || format!("remove device {name}")),
        }
    }

    async fn set(&self, message: LinkMessage) -> Result<(), Failure> {
        self.0.lock().await.change(RouteNetlinkMessage::SetLink(message), 0).await
    }
}

impl Channel {
    pub(super) async fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let reply = self.dump(RouteNetlinkMessage::GetLink(link_request())).await;
        let messages = reply.explain(None, || "list the network devices".to_owned())?;
        Ok(messages.into_iter().filter_map(Link::from_message).collect())
    }

    async fn link(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        if name.is_empty() || name.len() > MAX_NAME {
            return Ok(None);
        }
        let mut message = link_request();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.get(RouteNetlinkMessage::GetLink(message)).await {
            Err(failure) if failure.is(Errno::ENODEV) => Ok(None),
            reply => {
                let message = reply.explain(None, || format!("look up device {name}"))?;
                Ok(message.and_then(Link::from_message))
            }
        }
    }
}

impl Link {
    fn from_message(message: RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewLink(message) = message else { return None };
        let flags = message.header.flags;
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            kind: None,
            up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::LowerUp),
            loopback: flags.contains(LinkFlags::Loopback),
            tunnel: false,
            mtu: 0,
            group: 0,
            multicast: flags.contains(LinkFlags::Multicast),
        };
        let layer = message.header.link_layer_type;
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Group(group) => link.group = group,
                // Many drivers report "unknown" only; then the carrier decides alone.
                LinkAttribute::OperState(state) => {
                    link.carrier &= matches!(state, State::Up | State::Unknown);
                }
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.into_iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind.to_string()),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        link.tunnel = is_tunnel(link.kind.as_deref(), layer);
        (!link.name.is_empty()).then_some(link)
    }
}

/// Returns whether a device of this kind and link layer is a tunnel, which sends its packets inside
/// packets of another device.
fn is_tunnel(kind: Option<&str>, layer: LinkLayerType) -> bool {
    match kind {
        // A TAP device has Ethernet headers: ports of virtual machines and of bridges are TAP
        // devices.
        Some("tun") => layer != LinkLayerType::Ether,
        Some(kind) => TUNNEL_KINDS.contains(&kind),
        // The fallback devices (tunl0, sit0, gre0…) of old kernels have no kind.
        None => matches!(
            layer,
            LinkLayerType::Tunnel
                | LinkLayerType::Tunnel6
                | LinkLayerType::Sit
                | LinkLayerType::Ipgre
                | LinkLayerType::Ip6gre
        ),
    }
}

/// Returns a request for devices without their statistics, which would be the largest part of the
/// reply.
fn link_request() -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    message
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ip, with_a_pair};
    use super::*;

    #[test]
    fn devices_are_listed_with_their_state() {
        with_a_pair(async {
            let netlink = Netlink::new().unwrap();
            let links = netlink.links().await.unwrap();
            let mut names: Vec<_> = links.iter().map(|link| link.name.as_str()).collect();
            names.retain(|name| ["lo", "left", "right"].contains(name));
            names.sort_unstable();
            assert_eq!(names, ["left", "lo", "right"]);
            let lo = links.iter().find(|link| link.name == "lo").unwrap();
            assert!(lo.loopback && lo.up && lo.carrier);

            let left = netlink.link("left").await.unwrap();
            assert_eq!((left.kind.as_deref(), left.mtu), (Some("veth"), 1500));
            assert!(left.up && left.carrier && !left.loopback);
            ip("link set right down");
            let left = netlink.link("left").await.unwrap();
            assert!(left.up && !left.carrier);
            ip("link set left down");
            let left = netlink.link("left").await.unwrap();
            assert!(!left.up && !left.carrier);
        });
    }

    #[test]
    fn a_device_is_brought_up_resized_and_removed() {
        with_a_pair(async {
            let netlink = Netlink::new().unwrap();
            ip("link set left down");
            let index = netlink.link_index("left").await.unwrap();
            netlink.set_link_up(index).await.unwrap();
            netlink.set_link_up(index).await.unwrap();
            netlink.set_mtu(index, 1400).await.unwrap();
            netlink.set_group(index, 77).await.unwrap();
            let left = netlink.link("left").await.unwrap();
            assert!(left.up);
            assert_eq!((left.mtu, left.group), (1400, 77));
            assert!(left.multicast);
            netlink.clear_multicast(index).await.unwrap();
            let left = netlink.link("left").await.unwrap();
            assert!(left.up && !left.multicast);
            let error = netlink.set_mtu(index, 1).await.unwrap_err().to_string();
            assert!(error.starts_with(&format!("cannot set the MTU of device {index} to 1: ")), "{error}");
            assert!(error.contains("mtu less than device minimum"), "{error}");

            assert!(netlink.del_link("left").await.unwrap());
            assert!(!netlink.del_link("left").await.unwrap());
            assert!(
                matches!(netlink.link_index("right").await, Err(NetlinkError::NoSuchLink(name)) if name == "right")
            );
        });
    }

    #[test]
    fn tunnels_are_distinguished_from_other_devices() {
        with_a_pair(async {
            for (name, command) in [
                ("tunnel-a", "tuntap add tunnel-a mode tun"),
                ("tunnel-b", "link add tunnel-b type ipip local 10.1.0.1 remote 10.1.0.2"),
                ("tunnel-c", "link add tunnel-c type gre local 10.1.0.1 remote 10.1.0.2"),
                ("tunnel-d", "link add tunnel-d type sit local 10.1.0.1 remote 10.1.0.2"),
            ] {
                // Some kernels lack some of these modules.
                let made = std::process::Command::new("ip").args(command.split(' ')).status().unwrap();
                if made.success() {
                    assert!(Netlink::new().unwrap().link(name).await.unwrap().tunnel, "{command}");
                }
            }
            ip("tuntap add tap mode tap");
            ip("link add bridge type bridge");
            let netlink = Netlink::new().unwrap();
            for name in ["tap", "bridge", "left", "lo"] {
                assert!(!netlink.link(name).await.unwrap().tunnel, "{name}");
            }
        });
        for kind in TUNNEL_KINDS {
            assert!(is_tunnel(Some(kind), LinkLayerType::None), "{kind}");
        }
        // Cellular modems in raw IP mode, and PPPoE.
        assert!(!is_tunnel(None, LinkLayerType::None) && !is_tunnel(Some("ppp"), LinkLayerType::Ppp));
    }

    #[test]
    fn an_invalid_name_is_no_device() {
        with_a_pair(async {
            let netlink = Netlink::new().unwrap();
            for name in ["", "a-name-of-sixteen", "none"] {
                let error = netlink.link(name).await.unwrap_err();
                assert_eq!(error.to_string(), format!("network device `{name}` does not exist"));
            }
        });
    }
}
