//! Reads, adds and removes the addresses of devices.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use nix::errno::Errno;

use super::channel::{CREATE, Channel, Explain, Failure};
use super::{Family, Netlink, NetlinkError};

/// An address of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The index of the device.
    pub index: u32,
    /// The address and the length of its network prefix.
    pub net: IpNet,
    /// Whether the address is valid beyond its link: neither link-local (fe80::/10, 169.254.0.0/16)
    /// nor confined to this host.
    pub global: bool,
    /// Whether new connections may use the address: it is neither tentative (being checked for
    /// duplicates) nor a duplicate nor, for IPv6, deprecated.
    pub usable: bool,
}

impl Netlink {
    /// Returns the addresses of all devices, of both families.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn all_addresses(&self) -> Result<Vec<Address>, NetlinkError> {
        self.0.lock().await.addresses(None).await
    }

    /// Returns the addresses of the device `index`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn addresses(&self, index: u32) -> Result<Vec<Address>, NetlinkError> {
        self.0.lock().await.addresses(Some(index)).await
    }

    /// Adds an address with its prefix length to the device `index`; fails if the device has the
    /// address already.
    ///
    /// An IPv6 address is usable at once, without duplicate address detection, because no other
    /// host can have the address.
    ///
    /// # Errors
    /// When the kernel refuses; `FamilyUnavailable` for IPv6 where it is disabled.
    pub async fn add_address(&self, index: u32, net: IpNet) -> Result<(), NetlinkError> {
        self.0.lock().await.add_address(index, net).await
    }

    /// Adds an address to the device `index` unless the device has it; returns whether the address
    /// was added.
    ///
    /// Replaces an address that the device has with another prefix length, or that is not usable.
    ///
    /// # Errors
    /// As [`add_address`](Self::add_address).
    pub async fn ensure_address(&self, index: u32, net: IpNet) -> Result<bool, NetlinkError> {
        let mut channel = self.0.lock().await;
        let mut present = false;
        for old in channel.addresses(Some(index)).await? {
            if old.net == net && old.usable {
                present = true;
            } else if old.net.addr() == net.addr() {
                channel.del_address(index, old.net).await?;
            }
        }
        if !present {
            channel.add_address(index, net).await?;
        }
        Ok(!present)
    }

    /// Removes an address from the device `index`; returns false if the device does not have the
    /// address.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn del_address(&self, index: u32, net: IpNet) -> Result<bool, NetlinkError> {
        self.0.lock().await.del_address(index, net).await
    }
}

impl Channel {
    pub(super) async fn addresses(&mut self, index: Option<u32>) -> Result<Vec<Address>, NetlinkError> {
        let mut message = AddressMessage::default();
        message.header.index = index.unwrap_or(0);
        match self.dump(RouteNetlinkMessage::GetAddress(message)).await {
            // The device was removed together with its addresses.
            Err(failure) if failure.is(Errno::ENODEV) => Ok(Vec::new()),
            reply => {
                let messages = reply.explain(None, || "list the addresses".to_owned())?;
                let addresses = messages.into_iter().filter_map(Address::from_message);
                Ok(addresses.filter(|address| index.is_none_or(|index| address.index == index)).collect())
            }
        }
    }

    async fn add_address(&mut self, index: u32, net: IpNet) -> Result<(), NetlinkError> {
        let mut message = message(index, net);
        message.header.flags = AddressHeaderFlags::Nodad;
        let outcome = self.change(RouteNetlinkMessage::NewAddress(message), CREATE).await;
        outcome.explain(Some(net.into()), || format!("add address {net} to device {index}"))
    }

    async fn del_address(&mut self, index: u32, net: IpNet) -> Result<bool, NetlinkError> {
        match self.change(RouteNetlinkMessage::DelAddress(message(index, net)), 0).await {
            Ok(()) => Ok(true),
            Err(failure) if is_absent(&failure) => Ok(false),
            Err(failure) => {
                let what = format!("remove address {net} from device {index}");
                match failure.into_error(Some(net.into()), what) {
                    // Without the family there is no such address.
                    NetlinkError::FamilyUnavailable { .. } => Ok(false),
                    error => Err(error),
                }
            }
        }
    }
}

impl Address {
    fn from_message(message: RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewAddress(message) = message else { return None };
        let family = Family::of(message.header.family)?;
        let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
        let (mut local, mut remote) = (None, None);
        for attribute in message.attributes {
            match attribute {
                AddressAttribute::Local(address) => local = Some(address),
                AddressAttribute::Address(address) => remote = Some(address),
                AddressAttribute::Flags(all) => flags = all,
                _ => {}
            }
        }
        // On a point-to-point device IFA_ADDRESS is the address of the peer.
        let address = local.or(remote)?;
        Some(Self {
            index: message.header.index,
            net: IpNet::new(address, message.header.prefix_len).ok()?,
            global: is_global(message.header.scope, address),
            usable: is_usable(flags, family),
        })
    }
}

fn message(index: u32, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = Family::from(net).raw();
    message.header.prefix_len = net.prefix_len();
    message.header.index = index;
    message.attributes.push(AddressAttribute::Local(net.addr()));
    message.attributes.push(AddressAttribute::Address(net.addr()));
    message
}

fn is_absent(failure: &Failure) -> bool {
    failure.is(Errno::EADDRNOTAVAIL) || failure.is(Errno::ENODEV) || failure.is(Errno::ENXIO)
}

/// Returns whether an address is valid beyond its link.
///
/// The kernel's scope of the address alone is not sufficient: an administrator may omit it, and the
/// kernel does not derive it for IPv4 link-local addresses.
fn is_global(scope: AddressScope, address: IpAddr) -> bool {
    let beyond_the_link = !matches!(scope, AddressScope::Link | AddressScope::Host | AddressScope::Nowhere);
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    beyond_the_link && !link_local && !address.is_loopback()
}

fn is_usable(flags: AddressFlags, family: Family) -> bool {
    // An optimistic address may be used while it is being checked (RFC 4429).
    let checked = !flags.contains(AddressFlags::Tentative) || flags.contains(AddressFlags::Optimistic);
    // IPv4 ignores deprecation: the kernel uses such an address for new connections too.
    let current = family == Family::V4 || !flags.contains(AddressFlags::Deprecated);
    checked && current && !flags.contains(AddressFlags::Dadfailed)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ip, with_a_pair, write_sysctl};
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_added_once_and_removed_once() {
        with_a_pair(async {
            let netlink = Netlink::new().unwrap();
            let index = netlink.link_index("left").await.unwrap();
            for address in [net("10.77.0.2/32"), net("fd77::2/128")] {
                assert!(netlink.ensure_address(index, address).await.unwrap());
                assert!(!netlink.ensure_address(index, address).await.unwrap());
                let error = netlink.add_address(index, address).await.unwrap_err().to_string();
                assert!(error.contains("File exists"), "{error}");
                let present = netlink.addresses(index).await.unwrap();
                // The address is usable at once, without duplicate address detection.
                assert!(
                    present.contains(&Address { index, net: address, global: true, usable: true }),
                    "{present:?}"
                );
                assert!(netlink.del_address(index, address).await.unwrap());
                assert!(!netlink.del_address(index, address).await.unwrap());
            }
        });
    }

    #[test]
    fn an_address_with_another_prefix_length_is_replaced() {
        with_a_pair(async {
            let netlink = Netlink::new().unwrap();
            let index = netlink.link_index("left").await.unwrap();
            for (old, new) in [("10.77.0.2/24", "10.77.0.2/32"), ("fd77::2/64", "fd77::2/128")] {
                netlink.add_address(index, net(old)).await.unwrap();
                assert!(netlink.ensure_address(index, net(new)).await.unwrap());
                let mut present = netlink.addresses(index).await.unwrap();
                present.retain(|address| address.net.addr() == net(new).addr());
                assert_eq!(present.iter().map(|address| address.net).collect::<Vec<_>>(), [net(new)]);
            }
        });
    }

    #[test]
    fn a_device_without_ipv6_is_distinguished_from_other_errors() {
        with_a_pair(async {
            write_sysctl("net/ipv6/conf/left/disable_ipv6", "1");
            let netlink = Netlink::new().unwrap();
            let index = netlink.link_index("left").await.unwrap();
            let error = netlink.ensure_address(index, net("fd77::2/128")).await.unwrap_err();
            assert!(error.is_family_unavailable(), "{error}");
            assert!(error.to_string().ends_with("IPv6 is disabled on this host or device"), "{error}");
            assert!(!netlink.del_address(index, net("fd77::2/128")).await.unwrap());
            assert!(netlink.ensure_address(index, net("10.77.0.2/32")).await.unwrap());
        });
    }

    #[test]
    fn unusable_and_local_addresses_are_marked() {
        with_a_pair(async {
            ip("addr add 169.254.7.7/16 dev left");
            ip("addr add 10.7.0.2 peer 10.7.0.1 dev left");
            ip("addr add fd77::3/64 dev left nodad preferred_lft 0");
            ip("link set right down");
            ip("addr add fd77::4/64 dev left");
            let netlink = Netlink::new().unwrap();
            let index = netlink.link_index("left").await.unwrap();
            let all = netlink.all_addresses().await.unwrap();
            let find = |text| {
                *all.iter()
                    .find(|address| address.net == net(text))
                    .unwrap_or_else(|| panic!("{text}: {all:?}"))
            };
            assert!(!find("127.0.0.1/8").global && !find("::1/128").global);
            assert!(!find("169.254.7.7/16").global);
            // The reported address is the local one, not the peer's.
            assert_eq!(
                find("10.7.0.2/32"),
                Address { index, net: net("10.7.0.2/32"), global: true, usable: true }
            );
            assert!(!find("fd77::3/64").usable, "deprecated");
            assert!(!find("fd77::4/64").usable, "tentative while the device has no carrier");
            let link_local = all.iter().find(|a| a.index == index && a.net.to_string().starts_with("fe80::"));
            assert!(link_local.is_some_and(|address| !address.global), "{all:?}");
            assert_eq!(netlink.addresses(u32::MAX / 2).await.unwrap(), []);
        });
    }
}
