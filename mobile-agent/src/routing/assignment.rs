//! The addresses, MTU and resolvers that the relay assigns to this host, and their cache on disk.
//!
//! An agent that starts while the relay is unreachable uses the cached addresses.

use std::io::{ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::Context;
use mobile_proto::PushConfig;
use mobile_transport::keys::PublicKey;
use serde::{Deserialize, Serialize};

use super::objection::Objection;

/// The smallest MTU that is accepted with an IPv4 address: the datagram size that every host must
/// be able to receive (RFC 791).
const MIN_MTU_IPV4: u16 = 576;
/// The smallest MTU of a link with IPv6 (RFC 8200, section 5).
const MIN_MTU_IPV6: u16 = 1280;
/// The largest MTU that a relay can be configured to assign.
const MAX_MTU: u16 = 9000;

/// The largest number of assigned DNS resolvers to keep. Only one of each address family is used.
const MAX_RESOLVERS: usize = 8;

/// The addresses and settings that the relay assigned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Assignment {
    /// The persistent IPv4 address.
    pub(crate) ipv4: Option<Ipv4Addr>,
    /// The persistent IPv6 address.
    pub(crate) ipv6: Option<Ipv6Addr>,
    /// The MTU of the virtual devices.
    pub(crate) mtu: u16,
    /// The DNS resolvers that mobile processes use through the tunnel.
    pub(crate) dns: Vec<IpAddr>,
}

/// The content of the cache file: the assignment and the public key of the relay that made it,
/// because an assignment is valid only with the same relay.
#[derive(Serialize, Deserialize)]
struct StoredAssignment {
    relay: String,
    assigned: Assignment,
}

/// The file on disk that caches the last assignment of the relay.
#[derive(Debug, Clone)]
pub(crate) struct AssignmentCache {
    path: PathBuf,
    relay: String,
}

impl Assignment {
    fn bounded(mut self) -> Self {
        self.dns.truncate(MAX_RESOLVERS);
        self
    }

    /// Returns the persistent addresses.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        self.ipv4.map(IpAddr::V4).into_iter().chain(self.ipv6.map(IpAddr::V6)).collect()
    }

    /// Returns the reason to refuse the assignment as a whole, such as an invalid MTU, or `None`.
    /// [`claim`](super::claim) judges its addresses and resolvers.
    pub(crate) fn objection(&self) -> Option<Objection> {
        let least = if self.ipv6.is_some() { MIN_MTU_IPV6 } else { MIN_MTU_IPV4 };
        if self.addresses().is_empty() {
            Some(Objection::Empty)
        } else if !(least..=MAX_MTU).contains(&self.mtu) {
            Some(Objection::Mtu(self.mtu))
        } else {
            None
        }
    }
}

impl From<PushConfig> for Assignment {
    fn from(config: PushConfig) -> Self {
        let PushConfig { ipv4, ipv6, mtu, dns, .. } = config;
        Self { ipv4, ipv6, mtu, dns }.bounded()
    }
}

impl AssignmentCache {
    /// Creates the cache in `dir` for the relay with this key. Agents in several network namespaces
    /// have a file each, because the default directory is the same for all.
    pub(crate) fn new(dir: &Path, relay: &PublicKey) -> Self {
        Self { path: dir.join(mobile_host::netns::name("assigned") + ".json"), relay: relay.to_string() }
    }

    /// Stores the assignments of the relay with this key from now on.
    pub(crate) fn set_relay(&mut self, relay: &PublicKey) {
        self.relay = relay.to_string();
    }

    /// Returns the last assignment of this relay, which the caller has to judge anew by the host's
    /// present networks. A damaged file counts as missing, because the relay pushes the assignment
    /// again.
    pub(crate) fn load(&self) -> Option<Assignment> {
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "cannot read the last known addresses");
                return None;
            }
        };
        match serde_json::from_str::<StoredAssignment>(&text) {
            Ok(stored) if stored.assigned.objection().is_none() => {
                (stored.relay == self.relay).then(|| stored.assigned.bounded())
            }
            _ => {
                tracing::warn!(
                    path = %self.path.display(),
                    "ignoring the damaged file of the last known addresses"
                );
                None
            }
        }
    }

    /// Writes the assignment to the cache file. The file is replaced atomically, so a crash leaves
    /// either the old or the new content.
    pub(crate) fn store(&self, assigned: &Assignment) -> anyhow::Result<()> {
        let stored = StoredAssignment { relay: self.relay.clone(), assigned: assigned.clone() };
        let text = serde_json::to_vec_pretty(&stored).context("cannot encode the addresses")?;
        let describe = || format!("cannot store the addresses in {}", self.path.display());
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

    fn assigned() -> Assignment {
        Assignment { ipv4: Some(Ipv4Addr::new(10, 77, 0, 2)), ipv6: None, mtu: 1500, dns: Vec::new() }
    }

    fn key(byte: u8) -> PublicKey {
        PublicKey::from_bytes([byte; 32])
    }

    #[test]
    fn a_stored_assignment_is_loaded_for_the_same_relay_only() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("deep");
        let cache = AssignmentCache::new(&deep, &key(1));
        assert_eq!(cache.load(), None);
        cache.store(&assigned()).unwrap();
        assert_eq!(cache.load(), Some(assigned()));
        assert_eq!(AssignmentCache::new(&deep, &key(2)).load(), None);
    }

    #[test]
    fn a_damaged_file_counts_as_missing() {
        let dir = tempfile::tempdir().unwrap();
        let cache = AssignmentCache::new(dir.path(), &key(1));
        let name = mobile_host::netns::name("assigned") + ".json";
        std::fs::write(dir.path().join(name), "{\"relay\":").unwrap();
        assert_eq!(cache.load(), None);
    }

    #[test]
    fn an_assignment_out_of_bounds_is_refused_and_not_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let cache = AssignmentCache::new(dir.path(), &key(1));
        let six = Some("fd77::2".parse().unwrap());
        for bad in [
            Assignment { mtu: 0, ..assigned() },
            Assignment { mtu: 575, ..assigned() },
            Assignment { mtu: 9001, ..assigned() },
            Assignment { mtu: 1279, ipv6: six, ..assigned() },
            Assignment { ipv4: None, ..assigned() },
        ] {
            assert!(bad.objection().is_some(), "{bad:?}");
            cache.store(&bad).unwrap();
            assert_eq!(cache.load(), None, "{bad:?}");
        }
        let many = Assignment { dns: vec!["9.9.9.9".parse().unwrap(); 1000], ipv6: six, ..assigned() };
        assert_eq!(many.objection(), None);
        cache.store(&many).unwrap();
        assert_eq!(cache.load().unwrap().dns.len(), 8);
    }
}
