//! Reads devices and addresses at one moment.

use super::{Address, Link, Netlink, NetlinkError};

/// Devices and addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InterfaceSnapshot {
    /// Every device.
    pub links: Vec<Link>,
    /// Every address.
    pub addresses: Vec<Address>,
}

impl Netlink {
    /// Reads devices and addresses. Addresses that cannot be used, or do not lead beyond their
    /// link, are included and say so.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn snapshot(&self) -> Result<InterfaceSnapshot, NetlinkError> {
        let mut channel = self.0.lock().await;
        Ok(InterfaceSnapshot { links: channel.links().await?, addresses: channel.addresses(None).await? })
    }
}
