//! Reads all network devices and their addresses in one call.

use super::{Address, Link, Netlink, NetlinkError};

/// The network devices and their addresses at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InterfaceSnapshot {
    /// All network devices of the network namespace.
    pub links: Vec<Link>,
    /// All addresses of these devices.
    pub addresses: Vec<Address>,
}

impl Netlink {
    /// Returns all devices and addresses.
    ///
    /// Addresses that are not usable or not global are included.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn snapshot(&self) -> Result<InterfaceSnapshot, NetlinkError> {
        let mut channel = self.0.lock().await;
        Ok(InterfaceSnapshot { links: channel.links().await?, addresses: channel.addresses(None).await? })
    }
}
