//! Rules: which table is asked, for which packets.

use ipnet::IpNet;

use super::{Family, Netlink, NetlinkError};

/// A rule. Its protocol is always `kernel`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// The lower, the sooner it is asked.
    pub priority: u32,
    /// The family it is for.
    pub family: Family,
    /// Only packets with this mark under this mask.
    pub fwmark: Option<(u32, u32)>,
    /// Only packets from these addresses.
    pub from: Option<IpNet>,
    /// The table it sends them to.
    pub table: u32,
}

impl Netlink {
    /// Every rule of both families that leads to a table, in their order.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn rules(&self) -> Result<Vec<Rule>, NetlinkError> {
        unimplemented!()
    }

    /// Adds a rule; an error if it is there.
    ///
    /// # Errors
    /// When the kernel refuses; `FamilyUnavailable` for IPv6 where it is disabled.
    pub async fn add_rule(&self, _rule: &Rule) -> Result<(), NetlinkError> {
        unimplemented!()
    }

    /// Adds a rule unless it is there; true if it was added.
    ///
    /// # Errors
    /// As `add_rule`.
    pub async fn ensure_rule(&self, _rule: &Rule) -> Result<bool, NetlinkError> {
        unimplemented!()
    }

    /// Removes a rule; false if there is none such.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn del_rule(&self, _rule: &Rule) -> Result<bool, NetlinkError> {
        unimplemented!()
    }
}
