//! Receives the relay's assignment, judges it by the networks of this host, adopts the part that is
//! not refused, and publishes this part once the MOBILE route for it is set up.

use std::sync::Arc;

use ipnet::IpNet;
use mobile_proto::PushConfig;
use mobile_transport::keys::PublicKey;
use tokio::sync::watch;

use super::assignment::{Assignment, AssignmentCache};
use super::claim::HostNetworks;
use super::claim_tracker::{ClaimTracker, Refusals};
use super::delivery_filter::DeliveryFilter;

/// The relay's assignment, and the part of it that this host uses.
pub(super) struct AdoptedAssignment {
    cache: AssignmentCache,
    device: Arc<DeliveryFilter>,
    claims: ClaimTracker,
    host: watch::Receiver<Arc<HostNetworks>>,
    refused: Arc<Refusals>,
    /// The relay's assignment without the addresses and resolvers that this host refuses.
    accepted: Option<Assignment>,
    /// Publishes `accepted` once the MOBILE route for it is set up.
    published: watch::Sender<Option<Arc<Assignment>>>,
}

impl AdoptedAssignment {
    /// Begins with the assignment that an earlier run cached; `allowed` are the networks of
    /// `[tunnel] addresses`.
    pub(super) fn new(
        cache: AssignmentCache,
        allowed: &[IpNet],
        device: Arc<DeliveryFilter>,
        host: watch::Receiver<Arc<HostNetworks>>,
    ) -> Self {
        let refused = Arc::new(Refusals::default());
        let claims = ClaimTracker::new(cache.load(), allowed, Arc::clone(&refused));
        Self { cache, device, claims, host, refused, accepted: None, published: watch::Sender::new(None) }
    }

    /// Returns a receiver of the part of the assignment that is in force.
    pub(super) fn subscribe(&self) -> watch::Receiver<Option<Arc<Assignment>>> {
        self.published.subscribe()
    }

    /// Returns the part of the assignment that is refused, for status and metrics.
    pub(super) fn refused(&self) -> Arc<Refusals> {
        Arc::clone(&self.refused)
    }

    /// Returns the assignment without the parts that this host refuses, as last judged.
    pub(super) fn accepted(&self) -> Option<&Assignment> {
        self.accepted.as_ref()
    }

    /// Uses other networks of `[tunnel] addresses`, and stores the assignments of the relay with
    /// the key `relay` from now on.
    pub(super) fn configure(&mut self, allowed: Vec<IpNet>, relay: &PublicKey) {
        self.claims.set_allowed(allowed);
        self.cache.set_relay(relay);
    }

    /// Waits for a change of the networks of this host.
    pub(super) async fn host_changed(&mut self) -> Result<(), watch::error::RecvError> {
        self.host.changed().await
    }

    /// Records the configuration that the relay has pushed, and stores it for the next start.
    /// Returns whether it differs from the last one, so that the MOBILE route has to be changed.
    pub(super) fn receive(&mut self, config: Option<PushConfig>) -> bool {
        let Some(new) = config.map(Assignment::from) else { return false };
        let old = self.claims.pushed().cloned();
        if old.as_ref() == Some(&new) && self.claims.is_accepted() {
            return false;
        }
        if self.claims.accept(new.clone()) {
            match &old {
                Some(old) if old.addresses() != new.addresses() => tracing::warn!(
                    old = ?old.addresses(),
                    new = ?new.addresses(),
                    "the relay assigned other addresses: connections of mobile processes from the \
                    old ones end"
                ),
                _ => {
                    tracing::info!(
                        addresses = ?new.addresses(), mtu = new.mtu,
                        "the relay assigned addresses"
                    );
                }
            }
            // Store the assignment as the relay pushed it, because each start judges the claims
            // anew.
            if let Err(error) = self.cache.store(&new) {
                tracing::warn!(
                    error = mobile_host::error_chain(&error),
                    "cannot store the assignment: after a restart, the addresses are unknown until \
                    the relay is reached"
                );
            }
        }
        true
    }

    /// Judges the relay's assignment by the present networks of the host, and adopts the part that
    /// is not refused. Returns whether the adopted part changed.
    pub(super) fn judge(&mut self) -> bool {
        let now = self.claims.judge(&self.host.borrow_and_update());
        if self.accepted == now {
            return false;
        }
        self.device.set_addresses(now.as_ref().map(Assignment::addresses).unwrap_or_default());
        self.accepted = now;
        true
    }

    /// Publishes the accepted part of the assignment, unless it is published already.
    pub(super) fn publish(&self) {
        publish(&self.published, self.accepted.as_ref());
    }
}

/// Publishes the assignment in force unless it is published already.
fn publish(published: &watch::Sender<Option<Arc<Assignment>>>, in_force: Option<&Assignment>) {
    published.send_if_modified(|published| {
        let is_new = published.as_deref() != in_force;
        if is_new {
            *published = in_force.cloned().map(Arc::new);
        }
        is_new
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unchanged_assignment_is_not_published_again() {
        let assigned = |mtu| Assignment { ipv4: None, ipv6: None, mtu, dns: Vec::new() };
        let (sender, mut published) = watch::channel(None);
        publish(&sender, None);
        assert!(!published.has_changed().unwrap());
        for mtu in [1400, 1500] {
            publish(&sender, Some(&assigned(mtu)));
            assert!(published.has_changed().unwrap());
            assert_eq!(published.borrow_and_update().as_deref(), Some(&assigned(mtu)));
            publish(&sender, Some(&assigned(mtu)));
            assert!(!published.has_changed().unwrap());
        }
    }
}
