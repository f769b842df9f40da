//! A name for the relay that only the agent knows, and a relay that moves to other addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use anyhow::Result;

use crate::lab::{Lab, addr};
use crate::product::RELAY_PORT;
use crate::testbed::Testbed;

const NAME: &str = "relay.example";

/// What a host calls the relay: a hosts file of the agent's own, in a mount namespace of its own.
pub struct RelayName {
    hosts: PathBuf,
}

impl RelayName {
    /// Makes the name the agent's endpoint, from its next start on.
    pub fn give(bed: &mut Testbed, addresses: &[IpAddr]) -> Result<Self> {
        let name = Self { hosts: bed.lab.dir().join("hosts") };
        name.set(addresses)?;
        let mount = format!("mount --bind {} /etc/hosts && exec \"$0\" \"$@\"", name.hosts.display());
        bed.agent.start_under(&["unshare", "--mount", "--propagation", "private", "sh", "-c", &mount]);
        bed.agent.configure("relay", "endpoint", format!("{NAME}:{RELAY_PORT}"))?;
        Ok(name)
    }

    /// From now on the name leads there.
    pub fn set(&self, addresses: &[IpAddr]) -> Result<()> {
        let lines: String = addresses.iter().map(|address| format!("{address} {NAME}\n")).collect();
        // Into the same file, which is mounted.
        Ok(std::fs::write(&self.hosts, lines)?)
    }
}

/// Where the relay may be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayPlace {
    /// Where every lab begins.
    First,
    /// Where it may move.
    Second,
}

impl RelayPlace {
    /// Its addresses, IPv4 and IPv6.
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

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    /// Moves the relay here. The first place stays its way out, for whoever talks with a server through it; its port
    /// is reached in the new place only, and nobody says so.
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
