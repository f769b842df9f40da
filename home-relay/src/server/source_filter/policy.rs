//! The policy that the source filters of all clients share.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use ipnet::IpNet;

use crate::reach::{Ranges, Reach};

/// The policy that the source filters of all clients share; a reload may change it.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    /// Whether clients are kept from reaching each other.
    pub(crate) isolate: bool,
    /// The reach of clients without a reach of their own.
    pub(crate) reach: Reach,
    /// The DNS resolvers that are pushed to clients, which clients may query even outside their
    /// reach.
    pub(crate) resolvers: Vec<IpAddr>,
    /// Whether Internet hosts may send datagrams to clients first, so that a client's datagram may
    /// be an answer.
    pub(crate) inbound_datagrams: bool,
    /// The relay host's own addresses and the networks that it is connected to, which "internet"
    /// excludes.
    pub(crate) local: Vec<IpNet>,
}

/// The policy of all source filters, with a version number by which they notice a change without a
/// lock.
#[derive(Debug)]
pub(crate) struct SharedPolicy {
    version: AtomicU64,
    current: RwLock<CurrentPolicy>,
}

/// A policy and the address ranges of its reach, which the filters of all clients share, because a
/// copy in each session would cost 1.3 KiB.
#[derive(Debug, Clone)]
pub(super) struct CurrentPolicy {
    pub(super) policy: Arc<Policy>,
    /// The destination addresses within reach; `None` if every destination is.
    pub(super) ranges: Arc<Option<Ranges>>,
}

impl From<Policy> for CurrentPolicy {
    fn from(policy: Policy) -> Self {
        let ranges = policy.reach.ranges_without(&policy.local);
        Self { policy: Arc::new(policy), ranges: Arc::new(ranges) }
    }
}

impl SharedPolicy {
    /// Creates a policy that the filters of all clients share and that can be replaced later.
    pub(crate) fn new(policy: Policy) -> Self {
        Self { version: AtomicU64::new(1), current: RwLock::new(policy.into()) }
    }

    /// Returns the version of the policy in force; never 0.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Changes the policy; every filter adopts it with its next packet.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Policy)) {
        {
            let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
            let mut policy = Policy::clone(&current.policy);
            change(&mut policy);
            *current = policy.into();
        }
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Returns whether the policy already has `local` as this host's own addresses and networks.
    pub(crate) fn has_local(&self, local: &[IpNet]) -> bool {
        self.current().policy.local == local
    }

    /// Returns the policy in force.
    pub(super) fn current(&self) -> CurrentPolicy {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
