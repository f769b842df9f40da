//! The networks that mobile processes reach directly, and changes of them while the agent runs.

use ipnet::IpNet;
use tokio::sync::{Mutex, mpsc, oneshot};

use super::MobileProcesses;
use crate::routing::BypassChange;
use crate::selection::bpf::BpfError;

/// The networks that mobile processes reach directly. The lock is held during a change.
pub(crate) struct BypassList {
    nets: Mutex<Vec<IpNet>>,
    /// Sends changes to the route reconciler, which applies them.
    route: mpsc::Sender<BypassChange>,
}

/// A change of the list of bypassed networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BypassAction {
    /// Adds the network.
    Add,
    /// Removes the network.
    Remove,
}

/// The result of a change of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BypassOutcome {
    /// The list changed.
    Changed,
    /// The list has this network already.
    AlreadyBypassed(IpNet),
}

/// The reason why the list of bypassed networks was not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BypassError {
    /// The network to remove is not in the list.
    #[error("{0} is not bypassed; `mobile bypass list` lists the networks that are")]
    NotBypassed(IpNet),
    /// The eBPF programs did not take the network.
    #[error(transparent)]
    Programs(#[from] BpfError),
    /// The routes could not be changed.
    #[error(transparent)]
    Route(#[from] RerouteError),
}

/// The reason why the route reconciler did not apply a list of bypassed networks.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RerouteError {
    /// The reconciler has ended.
    #[error("the agent is stopping")]
    Stopping,
    /// The MOBILE route could not be changed.
    #[error("{}", mobile_host::error_chain(.0))]
    Failed(anyhow::Error),
}

impl BypassList {
    /// Creates the list with the `configured` networks, which the MOBILE route has already.
    pub(crate) fn new(configured: &[IpNet], route: mpsc::Sender<BypassChange>) -> Self {
        Self { nets: Mutex::new(configured.iter().map(IpNet::trunc).collect()), route }
    }

    /// Returns the networks in the list.
    pub(super) async fn list(&self) -> Vec<IpNet> {
        self.nets.lock().await.clone()
    }

    /// Applies the list again, which also restores the MOBILE route.
    pub(super) async fn apply(&self) -> Result<(), RerouteError> {
        let nets = self.nets.lock().await;
        self.reroute(nets.clone()).await
    }

    /// Replaces the configured networks after a reload. Networks that `mobile bypass` added or
    /// removed stay so.
    pub(super) async fn reconfigure(
        &self,
        (old, new): (&[IpNet], &[IpNet]),
        processes: &MobileProcesses,
    ) -> Result<(), BypassError> {
        let trunc = |nets: &[IpNet]| nets.iter().map(IpNet::trunc).collect::<Vec<_>>();
        let (old, new) = (trunc(old), trunc(new));
        let present = self.list().await;
        let added = new.iter().filter(|net| !old.contains(net) && !present.contains(net));
        let removed = old.iter().filter(|net| !new.contains(net) && present.contains(net));
        let changes = added.map(|net| (*net, BypassAction::Add));
        let changes = changes.chain(removed.map(|net| (*net, BypassAction::Remove)));
        let mut done = Vec::new();
        for (net, action) in changes {
            if let Err(error) = self.change(net, action, processes).await {
                self.undo(done, processes).await;
                return Err(error);
            }
            done.push((net, action));
        }
        Ok(())
    }

    /// Reverts changes, the latest first.
    async fn undo(&self, changes: Vec<(IpNet, BypassAction)>, processes: &MobileProcesses) {
        for (net, action) in changes.into_iter().rev() {
            let inverse = match action {
                BypassAction::Add => BypassAction::Remove,
                BypassAction::Remove => BypassAction::Add,
            };
            if let Err(error) = self.change(net, inverse, processes).await {
                tracing::warn!(%error, %net, "cannot restore the bypassed networks");
            }
        }
    }

    /// Adds or removes `net`, a network without host bits, in the routes and the eBPF programs.
    pub(super) async fn change(
        &self,
        net: IpNet,
        action: BypassAction,
        processes: &MobileProcesses,
    ) -> Result<BypassOutcome, BypassError> {
        let add = action == BypassAction::Add;
        let mut nets = self.nets.lock().await;
        match (action, nets.contains(&net)) {
            (BypassAction::Add, true) => return Ok(BypassOutcome::AlreadyBypassed(net)),
            (BypassAction::Remove, false) => return Err(BypassError::NotBypassed(net)),
            _ => {}
        }
        let mut wanted = nets.clone();
        if add {
            wanted.push(net);
            // Update the eBPF programs before a route leads there, so that they drop nothing on it.
            processes.selector().add_bypass(net).inspect_err(|error| {
                tracing::warn!(
                    %error, %net,
                    "cannot add the network to the bypass map of the eBPF programs"
                );
            })?;
        } else {
            wanted.retain(|other| *other != net);
        }
        let routed = self.reroute(wanted.clone()).await;
        // The eBPF programs may block the network again once no route leads there, or because
        // adding the route failed.
        if routed.is_ok() != add
            && let Err(error) = processes.selector().remove_bypass(net)
        {
            tracing::warn!(
                %error, %net,
                "cannot remove the network from the bypass map of the eBPF programs; no route \
                leads to it"
            );
        }
        routed?;
        *nets = wanted;
        tracing::info!(%net, add, "bypassed networks changed");
        Ok(BypassOutcome::Changed)
    }

    async fn reroute(&self, wanted: Vec<IpNet>) -> Result<(), RerouteError> {
        let (reply, done) = oneshot::channel();
        self.route.send((wanted, reply)).await.map_err(|_| RerouteError::Stopping)?;
        done.await.map_err(|_| RerouteError::Stopping)?.map_err(RerouteError::Failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_of_the_routes_fails_with_the_reconcilers_reason() {
        let (route, mut changes) = mpsc::channel::<BypassChange>(1);
        let list = BypassList::new(&["10.1.2.3/8".parse().unwrap()], route);
        let reconciler = async {
            let (nets, reply) = changes.recv().await.unwrap();
            let error = anyhow::anyhow!("no such device").context("cannot set up the MOBILE route");
            reply.send(Err(error)).unwrap();
            drop(changes);
            nets
        };
        let (applied, nets) = tokio::join!(list.apply(), reconciler);
        assert_eq!(nets, ["10.0.0.0/8".parse().unwrap()]);
        assert_eq!(applied.unwrap_err().to_string(), "cannot set up the MOBILE route: no such device");
        assert_eq!(list.apply().await.unwrap_err().to_string(), "the agent is stopping");
    }
}
