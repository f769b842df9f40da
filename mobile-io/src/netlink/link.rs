//! Network devices.

use super::{Netlink, NetlinkError};

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
    /// Something is at the other end.
    pub carrier: bool,
    /// It is a loopback device.
    pub loopback: bool,
    /// Its MTU.
    pub mtu: u32,
}

impl Netlink {
    /// Every device.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        unimplemented!()
    }

    /// One device by its name.
    ///
    /// # Errors
    /// `NoSuchLink` when it is not there.
    pub async fn link(&self, _name: &str) -> Result<Link, NetlinkError> {
        unimplemented!()
    }

    /// A device's index.
    ///
    /// # Errors
    /// `NoSuchLink` when it is not there.
    pub async fn link_index(&self, _name: &str) -> Result<u32, NetlinkError> {
        unimplemented!()
    }

    /// Brings a device up.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn set_link_up(&self, _index: u32) -> Result<(), NetlinkError> {
        unimplemented!()
    }

    /// Sets a device's MTU.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn set_mtu(&self, _index: u32, _mtu: u32) -> Result<(), NetlinkError> {
        unimplemented!()
    }

    /// Removes a device; false if there is none.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn del_link(&self, _name: &str) -> Result<bool, NetlinkError> {
        unimplemented!()
    }
}
