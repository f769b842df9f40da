//! Port forwards of a running relay. The store has the client's name for each forwarded port, and
//! the nftables rules have the client's present addresses.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use mobile_netlink::netfilter::ConntrackEntry;
use tracing::warn;

use super::{AppliedState, Relay};
use crate::config::Config;
use crate::network::ports;
use crate::network::ruleset::{PortRedirect, Ruleset};
use crate::pool::Pools;
use crate::reach::Ranges;
use crate::store::{Client, Forward, Protocol, Store, StoreError};

impl Relay {
    /// Forwards a port of this host to a client, at once and after restarts.
    pub(in crate::server) async fn forward(&self, forward: Forward) -> anyhow::Result<Forward> {
        let mut applied = self.applied.lock().await;
        let all = self.forwards().await?;
        if !all.contains(&forward) {
            ports::check_free(&applied.config, forward.protocol, forward.port)?;
        }
        let wanted = forward.clone();
        self.with_store(move |store| store.forward(&wanted)).await?;
        if let Err(error) = self.apply_rules(&mut applied).await {
            // A forward that is not in force now must not take effect by surprise at the next
            // start.
            let (protocol, port) = (forward.protocol, forward.port);
            let undone = self.with_store(move |store| store.unforward(protocol, port)).await;
            return Err(with_undo_failure(
                error,
                undone.err(),
                "the forward stays stored and takes effect at the next start",
            ));
        }
        Ok(forward)
    }

    /// Deletes a port forward; open connections continue. On an error the port is still forwarded
    /// to its client, and the forward is still listed.
    pub(in crate::server) async fn unforward(
        &self,
        protocol: Protocol,
        port: u16,
    ) -> anyhow::Result<Forward> {
        let mut applied = self.applied.lock().await;
        let removed = self.with_store(move |store| store.unforward(protocol, port)).await?;
        if let Err(error) = self.apply_rules(&mut applied).await {
            let again = removed.clone();
            let undone = self.with_store(move |store| store.forward(&again)).await;
            return Err(with_undo_failure(
                error,
                undone.err(),
                "the forward is deleted from the store but still in the rules",
            ));
        }
        Ok(removed)
    }

    /// Returns all port forwards.
    pub(in crate::server) async fn forwards(&self) -> anyhow::Result<Vec<Forward>> {
        Ok(self.with_store(Store::forwards).await?)
    }

    /// Updates the nftables rules after clients were added, removed or given other addresses. If
    /// they cannot be installed, the change of the clients stands, and the installation is retried.
    pub(super) async fn update_rules_for_clients(&self, applied: &mut AppliedState) {
        let wanted = match self.required_rules(&applied.config).await {
            Ok(wanted) => wanted,
            Err(error) => {
                warn!(
                    "cannot update port forwards, which may lead to former addresses of clients: {error:#}"
                );
                return;
            }
        };
        if let Err(error) = apply_if_changed(applied, wanted.clone()).await {
            applied.network.schedule_rules(wanted);
            warn!(
                "cannot update port forwards, which lead to former addresses of clients, retrying: {error:#}"
            );
        }
    }

    async fn apply_rules(&self, applied: &mut AppliedState) -> anyhow::Result<()> {
        let wanted = self.required_rules(&applied.config).await?;
        let inbound_datagrams = wanted.accepts_inbound_datagrams();
        apply_if_changed(applied, wanted).await?;
        self.registry.set_inbound_datagrams(inbound_datagrams);
        Ok(())
    }

    /// Returns the nftables rules that follow from `config` and the store.
    pub(super) async fn required_rules(&self, config: &Config) -> anyhow::Result<Ruleset> {
        let (forwards, clients) = self.with_store(|store| Ok((store.forwards()?, store.clients()?))).await?;
        Ok(rules(config, &self.served_pools, &forwards, &clients))
    }
}

/// Installs the nftables rules `wanted` unless they are already in force.
async fn apply_if_changed(applied: &mut AppliedState, wanted: Ruleset) -> anyhow::Result<()> {
    let network = &mut applied.network;
    if wanted == *network.ruleset() && !network.has_pending_rules() {
        Ok(())
    } else {
        network.change(wanted).await
    }
}

/// Returns the error of a change; if undoing the change failed too, with that error and `left`,
/// which says what remains of the change.
fn with_undo_failure(error: anyhow::Error, undo: Option<StoreError>, left: &str) -> anyhow::Error {
    match undo {
        None => error,
        Some(second) => error.context(format!("{left}, because the store failed as well ({second})")),
    }
}

/// Returns the nftables rules for these forwards and clients, in the address families that this
/// host serves.
pub(in crate::server) fn rules(
    config: &Config,
    served: &Pools,
    forwards: &[Forward],
    clients: &[Client],
) -> Ruleset {
    let reach_of = clients.iter().flat_map(|client| {
        let own = client.reach.iter();
        own.flat_map(|reach| client.lease.addresses().map(|address| (address, reach.clone())))
    });
    let reach_of = reach_of.filter(|(address, _)| served.contains(*address)).collect();
    Ruleset::of(config, served, redirects(forwards, clients, served), reach_of)
}

/// Returns a predicate for tracked connections that a client began to a destination outside its
/// reach, or `None` if every client reaches everything.
pub(super) fn out_of_reach(
    config: &Config,
    served: &Pools,
    clients: &[Client],
) -> Option<impl Fn(&ConntrackEntry) -> bool + Send + 'static> {
    let common = config.clients.reach().ranges();
    let own = clients.iter().filter_map(|client| Some((client.lease, client.reach.as_ref()?.ranges())));
    let own: HashMap<IpAddr, Option<Ranges>> = own
        .flat_map(|(lease, ranges)| lease.addresses().map(move |address| (address, ranges.clone())))
        .collect();
    let (pools, resolvers) = (*served, config.dns.servers.clone());
    let is_bounded = common.is_some() || own.values().any(Option::is_some);
    is_bounded.then_some(move |connection: &ConntrackEntry| {
        let (client, to) = connection.original;
        let ranges = own.get(&client).unwrap_or(&common);
        pools.contains(client)
            && !pools.is_own(client)
            && !pools.contains(to)
            && !resolvers.contains(&to)
            && ranges.as_ref().is_some_and(|ranges| !ranges.contains(to))
    })
}

/// Returns the redirects of all forwards, to each address of the client in a family that this host
/// serves.
fn redirects(forwards: &[Forward], clients: &[Client], served: &Pools) -> Vec<PortRedirect> {
    let of_one = |forward: &Forward| {
        let client = clients.iter().find(|client| client.name == forward.client);
        let addresses = client.into_iter().flat_map(|client| client.lease.addresses());
        let (protocol, port, to) = (forward.protocol.name(), forward.port, forward.to);
        let served = addresses.filter(|address| served.contains(*address));
        served
            .map(move |address| PortRedirect { protocol, port, to: SocketAddr::new(address, to) })
            .collect::<Vec<_>>()
    };
    forwards.iter().flat_map(of_one).collect()
}
