//! What the relay assigned, and its copy on disk: an agent that starts without the relay keeps the addresses.

use std::io::{ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::Context;
use mobile_io::keys::PublicKey;
use mobile_proto::PushConfig;
use serde::{Deserialize, Serialize};

/// What the relay assigned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Assigned {
    /// The persistent IPv4 address.
    pub(crate) ipv4: Option<Ipv4Addr>,
    /// The persistent IPv6 address.
    pub(crate) ipv6: Option<Ipv6Addr>,
    /// The MTU of the virtual devices.
    pub(crate) mtu: u16,
    /// Resolvers to use through the tunnel.
    pub(crate) dns: Vec<IpAddr>,
}

/// The file: addresses are worth nothing at another relay.
#[derive(Serialize, Deserialize)]
struct Stored {
    relay: String,
    assigned: Assigned,
}

/// The copy on disk.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    path: PathBuf,
    relay: String,
}

impl Assigned {
    /// The persistent addresses.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        self.ipv4.map(IpAddr::V4).into_iter().chain(self.ipv6.map(IpAddr::V6)).collect()
    }

    /// Why it cannot be used; a relay is not trusted with every address of this host.
    pub(crate) fn objection(&self) -> Option<String> {
        let unfit = |address: &IpAddr| {
            address.is_loopback()
                || address.is_unspecified()
                || address.is_multicast()
                || matches!(address, IpAddr::V4(v4) if v4.is_broadcast() || v4.is_link_local())
                || matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some())
        };
        if let Some(address) = self.addresses().iter().find(|address| unfit(address)) {
            Some(format!("{address} cannot be a persistent address"))
        } else if self.addresses().is_empty() {
            Some("it has no address".to_owned())
        } else if self.mtu < 576 || (self.ipv6.is_some() && self.mtu < 1280) {
            // What each family must be able to carry.
            Some(format!("an MTU of {} is too small", self.mtu))
        } else {
            None
        }
    }
}

impl From<PushConfig> for Assigned {
    fn from(config: PushConfig) -> Self {
        Self { ipv4: config.ipv4, ipv6: config.ipv6, mtu: config.mtu, dns: config.dns }
    }
}

impl Lease {
    /// In `dir`, for this relay.
    pub(crate) fn new(dir: &Path, relay: &PublicKey) -> Self {
        Self { path: dir.join("assigned.json"), relay: relay.to_string() }
    }

    /// What was last assigned by this relay. A damaged file is as none: the relay will say it again.
    pub(crate) fn load(&self) -> Option<Assigned> {
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "cannot read the last known addresses");
                return None;
            }
        };
        match serde_json::from_str::<Stored>(&text) {
            Ok(stored) if stored.assigned.objection().is_none() => {
                (stored.relay == self.relay).then_some(stored.assigned)
            }
            _ => {
                tracing::warn!(path = %self.path.display(), "the last known addresses are damaged and ignored");
                None
            }
        }
    }

    /// Replaces the file as a whole: a crash leaves the old one or the new one.
    pub(crate) fn store(&self, assigned: &Assigned) -> anyhow::Result<()> {
        let stored = Stored { relay: self.relay.clone(), assigned: assigned.clone() };
        let text = serde_json::to_vec_pretty(&stored).context("cannot encode the addresses")?;
        let describe = || format!("cannot keep the addresses in {}", self.path.display());
        let new = self.path.with_extension("json.new");
        if let Some(dir) = self.path.parent() {
            std::fs::create_dir_all(dir).with_context(describe)?;
        }
        let mut file = std::fs::File::create(&new).with_context(describe)?;
        file.write_all(&text).and_then(|()| file.sync_all()).with_context(describe)?;
        std::fs::rename(&new, &self.path).with_context(describe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assigned() -> Assigned {
        Assigned { ipv4: Some(Ipv4Addr::new(10, 77, 0, 2)), ipv6: None, mtu: 1500, dns: Vec::new() }
    }

    fn key(byte: u8) -> PublicKey {
        PublicKey::from_bytes([byte; 32])
    }

    #[test]
    fn what_was_stored_comes_back_for_the_same_relay_only() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("deep");
        let lease = Lease::new(&deep, &key(1));
        assert_eq!(lease.load(), None);
        lease.store(&assigned()).unwrap();
        assert_eq!(lease.load(), Some(assigned()));
        assert_eq!(Lease::new(&deep, &key(2)).load(), None);
    }

    #[test]
    fn a_damaged_file_is_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let lease = Lease::new(dir.path(), &key(1));
        std::fs::write(dir.path().join("assigned.json"), "{\"relay\":").unwrap();
        assert_eq!(lease.load(), None);
    }

    #[test]
    fn addresses_that_would_hurt_this_host_are_refused() {
        let with = |text: &str| match text.parse().unwrap() {
            IpAddr::V4(ipv4) => Assigned { ipv4: Some(ipv4), ..assigned() },
            IpAddr::V6(ipv6) => Assigned { ipv6: Some(ipv6), ..assigned() },
        };
        for bad in [
            "127.0.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "169.254.1.1",
            "::1",
            "fe80::1",
            "ff02::1",
        ] {
            assert!(with(bad).objection().is_some(), "{bad}");
        }
        assert_eq!(with("192.0.2.1").objection(), None);
        assert_eq!(with("fd77::2").objection(), None);
        assert!(Assigned { mtu: 0, ..assigned() }.objection().is_some());
        assert!(Assigned { ipv4: None, ..assigned() }.objection().is_some());
    }
}
