//! Addresses of devices.

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
    /// The device.
    pub index: u32,
    /// The address, with the length of its network.
    pub net: IpNet,
    /// It is good beyond its link: neither link-local (fe80::/10, 169.254.0.0/16) nor of the host only.
    pub global: bool,
    /// New connections may have it: it is not still being checked for a duplicate (tentative), not found to be
    /// one, and (IPv6) not deprecated.
    pub usable: bool,
}

impl Netlink {
    /// The addresses of every device, of both families.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn all_addresses(&self) -> Result<Vec<Address>, NetlinkError> {
        self.0.lock().await.addresses(None).await
    }

    /// The addresses of one device.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn addresses(&self, index: u32) -> Result<Vec<Address>, NetlinkError> {
        self.0.lock().await.addresses(Some(index)).await
    }

    /// Adds an address; an error if the device has it. An IPv6 address is good at once: it is ours alone, so
    /// nobody is asked for duplicates.
    ///
    /// # Errors
    /// When the kernel refuses; `FamilyUnavailable` for IPv6 where it is disabled.
    pub async fn add_address(&self, index: u32, net: IpNet) -> Result<(), NetlinkError> {
        self.0.lock().await.add_address(index, net).await
    }

    /// Adds an address unless the device has it; true if it was added. The same address with another length of
    /// network, or one that cannot be used, is replaced.
    ///
    /// # Errors
    /// As `add_address`.
    pub async fn ensure_address(&self, index: u32, net: IpNet) -> Result<bool, NetlinkError> {
        let mut channel = self.0.lock().await;
        let mut there = false;
        for old in channel.addresses(Some(index)).await? {
            if old.net == net && old.usable {
                there = true;
            } else if old.net.addr() == net.addr() {
                channel.del_address(index, old.net).await?;
            }
        }
        if !there {
            channel.add_address(index, net).await?;
        }
        Ok(!there)
    }

    /// Removes an address; false if the device has none such.
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
            // The device is gone, and its addresses with it.
            Err(failure) if failure.is(Errno::ENODEV) => Ok(Vec::new()),
            answer => {
                let messages = answer.explain(None, || "list the addresses".to_owned())?;
                let addresses = messages.into_iter().filter_map(Address::from_message);
                Ok(addresses.filter(|address| index.is_none_or(|index| address.index == index)).collect())
            }
        }
    }

    async fn add_address(&mut self, index: u32, net: IpNet) -> Result<(), NetlinkError> {
        let mut message = message(index, net);
        message.header.flags = AddressHeaderFlags::Nodad;
        let outcome = self.change(RouteNetlinkMessage::NewAddress(message), CREATE).await;
        outcome.explain(Some(net.into()), || format!("give address {net} to device {index}"))
    }

    async fn del_address(&mut self, index: u32, net: IpNet) -> Result<bool, NetlinkError> {
        match self.change(RouteNetlinkMessage::DelAddress(message(index, net)), 0).await {
            Ok(()) => Ok(true),
            Err(failure) if is_absent(&failure) => Ok(false),
            Err(failure) => {
                let what = format!("take address {net} from device {index}");
                match failure.into_error(Some(net.into()), what) {
                    // Where the family is missing, so is the address.
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
        // On a point-to-point device IFA_ADDRESS is the other end's.
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

/// Who sets an address by hand need not give its scope: of link-local IPv4 ones the kernel knows nothing.
fn is_global(scope: AddressScope, address: IpAddr) -> bool {
    let beyond_the_link = !matches!(scope, AddressScope::Link | AddressScope::Host | AddressScope::Nowhere);
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    beyond_the_link && !link_local && !address.is_loopback()
}

fn is_usable(flags: AddressFlags, family: Family) -> bool {
    // An optimistic address may be used while it is checked (RFC 4429).
    let checked = !flags.contains(AddressFlags::Tentative) || flags.contains(AddressFlags::Optimistic);
    // IPv4 does not know deprecation: it takes such an address for new connections as any other.
    let current = family == Family::V4 || !flags.contains(AddressFlags::Deprecated);
    checked && current && !flags.contains(AddressFlags::Dadfailed)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ip, with_a_pair};
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_comes_once_and_goes_once() {
        with_a_pair(async {
            let netlink = Netlink::new().unwrap();
            let index = netlink.link_index("left").await.unwrap();
            for address in [net("10.77.0.2/32"), net("fd77::2/128")] {
                assert!(netlink.ensure_address(index, address).await.unwrap());
                assert!(!netlink.ensure_address(index, address).await.unwrap());
                let error = netlink.add_address(index, address).await.unwrap_err().to_string();
                assert!(error.contains("File exists"), "{error}");
                let there = netlink.addresses(index).await.unwrap();
                // It can be used at once, without a second of asking around.
                assert!(
                    there.contains(&Address { index, net: address, global: true, usable: true }),
                    "{there:?}"
                );
                assert!(netlink.del_address(index, address).await.unwrap());
                assert!(!netlink.del_address(index, address).await.unwrap());
            }
        });
    }

    #[test]
    fn an_address_of_another_length_is_replaced() {
        with_a_pair(async {
            let netlink = Netlink::new().unwrap();
            let index = netlink.link_index("left").await.unwrap();
            for (old, new) in [("10.77.0.2/24", "10.77.0.2/32"), ("fd77::2/64", "fd77::2/128")] {
                netlink.add_address(index, net(old)).await.unwrap();
                assert!(netlink.ensure_address(index, net(new)).await.unwrap());
                let mut there = netlink.addresses(index).await.unwrap();
                there.retain(|address| address.net.addr() == net(new).addr());
                assert_eq!(there.iter().map(|address| address.net).collect::<Vec<_>>(), [net(new)]);
            }
        });
    }

    #[test]
    fn a_host_without_ipv6_is_told_apart() {
        with_a_pair(async {
            crate::sysctl::write("net/ipv6/conf/left/disable_ipv6", "1").unwrap();
            let netlink = Netlink::new().unwrap();
            let index = netlink.link_index("left").await.unwrap();
            let error = netlink.ensure_address(index, net("fd77::2/128")).await.unwrap_err();
            assert!(error.is_family_unavailable(), "{error}");
            assert!(error.to_string().starts_with("IPv6 is disabled on this host or device"), "{error}");
            assert!(!netlink.del_address(index, net("fd77::2/128")).await.unwrap());
            assert!(netlink.ensure_address(index, net("10.77.0.2/32")).await.unwrap());
        });
    }

    #[test]
    fn addresses_of_no_use_say_so() {
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
            // Ours, not the other end's.
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
