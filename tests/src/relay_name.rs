//! A host name for the relay that only the agent can resolve, and a relay that moves to other
//! addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use anyhow::Result;

use crate::addr;
use crate::lab::Lab;
use crate::mount_namespace::in_mount_namespace;
use crate::product::RELAY_PORT;
use crate::testbed::Testbed;

const NAME: &str = "relay.example";

/// A host name for the relay, in a hosts file that only the agent sees, in a mount namespace of its
/// own.
pub struct RelayName {
    hosts: PathBuf,
}

impl RelayName {
    /// Configures the host name as the relay's endpoint for the agent, from the agent's next start
    /// on.
    pub fn install(bed: &mut Testbed, addresses: &[IpAddr]) -> Result<Self> {
        let name = Self { hosts: bed.lab.dir().join("hosts") };
        name.set(addresses)?;
        let under = in_mount_namespace(&format!("mount --bind {} /etc/hosts", name.hosts.display()));
        bed.agent.start_under(&under.each_ref().map(String::as_str));
        bed.agent.configure("relay", "endpoint", format!("{NAME}:{RELAY_PORT}"))?;
        Ok(name)
    }

    /// Makes the relay's host name resolve to `addresses` from now on.
    pub fn set(&self, addresses: &[IpAddr]) -> Result<()> {
        let lines: String = addresses.iter().map(|address| format!("{address} {NAME}\n")).collect();
        // The file is mounted, so it must be written in place.
        Ok(std::fs::write(&self.hosts, lines)?)
    }
}

/// The addresses at which clients can reach the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayLocation {
    /// The relay's addresses at the start of every lab.
    First,
    /// The other addresses, to which the relay may move.
    Second,
}

impl RelayLocation {
    /// Returns the relay's IPv4 and IPv6 addresses at this location.
    #[must_use]
    pub fn addresses(self) -> [IpAddr; 2] {
        match self {
            Self::First => [addr::RELAY4.into(), addr::RELAY6.into()],
            Self::Second => [
                Ipv4Addr::from(u32::from(addr::RELAY4) + 1).into(),
                Ipv6Addr::from(u128::from(addr::RELAY6) + 1).into(),
            ],
        }
    }

    /// Returns the other one of the relay's two locations.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    /// Makes the relay reachable at this location's addresses only.
    ///
    /// The addresses of the first location remain the source of the relay's connections to servers.
    /// Packets to the relay's port at the other location are dropped without an error.
    pub fn move_relay_here(self, lab: &Lab) -> Result<()> {
        let [four, six] = Self::Second.addresses();
        lab.relay.ip(&[
            &format!("address replace {four}/24 dev wan0"),
            &format!("address replace {six}/64 dev wan0 nodad preferred_lft 0"),
        ])?;
        let [four, six] = self.other().addresses();
        lab.internet.feed(
            &["nft", "-f", "-"],
            &format!(
                "table inet moved {{\n}}\ndelete table inet moved\ntable inet moved {{\n chain forward {{\n  \
                 type filter hook forward priority filter\n  \
                 ip daddr {four} tcp dport {RELAY_PORT} drop\n  ip saddr {four} tcp sport {RELAY_PORT} drop\n  \
                 ip6 daddr {six} tcp dport {RELAY_PORT} drop\n  ip6 saddr {six} tcp sport {RELAY_PORT} drop\n \
                 }}\n}}\n"
            ),
        )
    }
}
