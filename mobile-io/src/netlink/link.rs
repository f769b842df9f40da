//! Network devices.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, State,
};
use nix::errno::Errno;

use super::channel::{Channel, Explain, Failure};
use super::{Netlink, NetlinkError};

/// `IFNAMSIZ` less its closing zero.
const MAX_NAME: usize = 15;

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its kind, for one made by software: `tun`, `veth`, `bridge`, `wireguard`…
    pub kind: Option<String>,
    /// Set up by the administrator.
    pub up: bool,
    /// Something is at the other end, and the device is ready to send to it (a wireless one: is associated and
    /// authenticated).
    pub carrier: bool,
    /// It is a loopback device.
    pub loopback: bool,
    /// Whether the device encapsulates: its packets leave this host inside packets of another
    /// device, mostly a VPN's.
    pub tunnel: bool,
    /// Its MTU.
    pub mtu: u32,
    /// The device group; 0 unless somebody has set one.
    pub group: u32,
    /// Whether the device can carry multicast (`IFF_MULTICAST`).
    pub multicast: bool,
}

/// The kinds (`IFLA_INFO_KIND`) of devices that encapsulate. `tun` is not listed, because a TAP has
/// that kind too; nor is `ppp`, which DSL and cellular modems use as well as VPNs.
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
    /// Every device.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        self.0.lock().await.links().await
    }

    /// One device by its name.
    ///
    /// # Errors
    /// `NoSuchLink` when it is not there.
    pub async fn link(&self, name: &str) -> Result<Link, NetlinkError> {
        match self.0.lock().await.link(name).await? {
            Some(link) => Ok(link),
            None => Err(NetlinkError::NoSuchLink(name.to_owned())),
        }
    }

    /// A device's index.
    ///
    /// # Errors
    /// `NoSuchLink` when it is not there.
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

    /// Clears `IFF_MULTICAST`, so that programs which send multicast on every device skip this one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn clear_multicast(&self, index: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.change_mask = LinkFlags::Multicast;
        self.set(message).await.explain(None, || format!("clear the multicast flag of device {index}"))
    }

    /// Sets a device's MTU.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::Mtu(mtu));
        self.set(message).await.explain(None, || format!("set the MTU of device {index} to {mtu}"))
    }

    /// Sets a device's group, by which firewall rules can name several devices at once.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn set_group(&self, index: u32, group: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::Group(group));
        self.set(message).await.explain(None, || format!("put device {index} into group {group}"))
    }

    /// Removes a device; false if there is none.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn del_link(&self, name: &str) -> Result<bool, NetlinkError> {
        let mut channel = self.0.lock().await;
        let Some(link) = channel.link(name).await? else { return Ok(false) };
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        match channel.change(RouteNetlinkMessage::DelLink(message), 0).await {
            // It went between the two requests.
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
        let answer = self.dump(RouteNetlinkMessage::GetLink(link_request())).await;
        let messages = answer.explain(None, || "list the network devices".to_owned())?;
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
            answer => {
                let message = answer.explain(None, || format!("look for device {name}"))?;
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
                // Many drivers say no more than "unknown": then the carrier alone decides.
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

/// Returns whether a device of this kind and link layer encapsulates.
fn is_tunnel(kind: Option<&str>, layer: LinkLayerType) -> bool {
    match kind {
        // A TAP has an Ethernet header; ports of virtual machines and members of bridges are TAPs.
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

/// A request for devices without their statistics, the largest part of an answer and of no use here.
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
    fn devices_are_told_as_they_are() {
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
    fn tunnels_are_told_from_links() {
        with_a_pair(async {
            for (name, command) in [
                ("tunnel-a", "tuntap add tunnel-a mode tun"),
                ("tunnel-b", "link add tunnel-b type ipip local 10.1.0.1 remote 10.1.0.2"),
                ("tunnel-c", "link add tunnel-c type gre local 10.1.0.1 remote 10.1.0.2"),
                ("tunnel-d", "link add tunnel-d type sit local 10.1.0.1 remote 10.1.0.2"),
            ] {
                // Not every kernel has every module.
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
        // Cellular modems in raw IP mode, PPPoE.
        assert!(!is_tunnel(None, LinkLayerType::None) && !is_tunnel(Some("ppp"), LinkLayerType::Ppp));
    }

    #[test]
    fn what_cannot_be_a_name_is_no_device() {
        with_a_pair(async {
            let netlink = Netlink::new().unwrap();
            for name in ["", "a-name-of-sixteen", "none"] {
                let error = netlink.link(name).await.unwrap_err();
                assert_eq!(error.to_string(), format!("there is no network device `{name}`"));
            }
        });
    }
}
