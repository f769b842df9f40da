//! Addresses of devices.

use ipnet::IpNet;

use super::{Netlink, NetlinkError};

/// An address of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The device.
    pub index: u32,
    /// The address, with the length of its network.
    pub net: IpNet,
    /// It is good beyond its link: neither link-local nor of the host only.
    pub global: bool,
    /// It can be used: not tentative, not found to be a duplicate.
    pub usable: bool,
}

impl Netlink {
    /// The addresses of every device, of both families.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn all_addresses(&self) -> Result<Vec<Address>, NetlinkError> {
        unimplemented!()
    }

    /// The addresses of one device.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn addresses(&self, _index: u32) -> Result<Vec<Address>, NetlinkError> {
        unimplemented!()
    }

    /// Adds an address; an error if the device has it.
    ///
    /// # Errors
    /// When the kernel refuses; `FamilyUnavailable` for IPv6 where it is disabled.
    pub async fn add_address(&self, _index: u32, _net: IpNet) -> Result<(), NetlinkError> {
        unimplemented!()
    }

    /// Adds an address unless the device has it; true if it was added.
    ///
    /// # Errors
    /// As `add_address`.
    pub async fn ensure_address(&self, _index: u32, _net: IpNet) -> Result<bool, NetlinkError> {
        unimplemented!()
    }

    /// Removes an address; false if the device has none such.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn del_address(&self, _index: u32, _net: IpNet) -> Result<bool, NetlinkError> {
        unimplemented!()
    }
}
