//! The running agent: the operations that the control socket and the metrics ask of it, and the
//! tasks that keep the eBPF programs up to date.
//!
//! - `mobile_processes` makes processes mobile or ordinary, and `bypass` changes the networks that
//!   they reach directly.
//! - `report` and `uplink_list` describe the agent for `mobile status` and `mobile uplinks`.
//! - `reload` applies a changed configuration.
//! - `accounts`, `direct_fallback` and `program_maps` are its periodic or event-driven tasks.
//!
//! The daemon makes the agent's parts, and starts the control socket and the metrics, which hold
//! the agent.

mod accounts;
mod bypass;
mod direct_fallback;
mod mobile_processes;
mod program_maps;
mod reload;
mod report;
mod uplink_list;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use ipnet::IpNet;
use mobile_proto::CloseCode;
use mobile_transport::keys::PublicKey;
use nix::errno::Errno;
use prometheus::Histogram;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::config::{Config, RelayIdentity};
use crate::routing::assignment::Assignment;
use crate::routing::delivery_filter::DeliveryFilter;
use crate::routing::{RouteSettings, RouteStatus};
use crate::tunnel::{Tunnel, TunnelState};
use direct_fallback::DirectFallback;

pub(crate) use bypass::{BypassAction, BypassError, BypassList, BypassOutcome};
pub(crate) use mobile_processes::{Caller, MobileProcesses, ProcessError};
pub(crate) use program_maps::program_addresses;
use reload::Reload;
pub(crate) use reload::ReloadError;

/// The shared state of the running agent.
pub(crate) struct Agent {
    settings: watch::Sender<Arc<Settings>>,
    reload: Reload,
    started: Instant,
    session: SessionHandles,
    route: RouteStatus,
    /// The networks that mobile processes reach directly.
    bypass: BypassList,
    processes: MobileProcesses,
    /// Whether new connections of mobile processes use the ordinary route because there is no
    /// session.
    direct_fallback: DirectFallback,
    clean_up: mpsc::Sender<CleanUpRequest>,
}

/// The settings in force. A reload replaces them.
pub(crate) struct Settings {
    /// The configuration. Settings that need a restart have the values of the agent's start.
    pub(crate) config: Config,
    /// The relay and the key of this host that new paths use.
    pub(crate) identity: Identity,
}

/// The two ends of the tunnel, as the configuration and the key file name them.
pub(crate) struct Identity {
    /// The relay's configured endpoint and public key.
    pub(crate) relay: RelayIdentity,
    /// The public key of this host.
    pub(crate) own_key: PublicKey,
}

/// The session with the relay, the count of uplink reads, and the filter for the relay's packets.
pub(crate) struct SessionHandles {
    /// The handle of the tunnel.
    pub(crate) tunnel: Tunnel,
    /// The number of times that the uplinks were read from the kernel.
    pub(crate) uplink_reads: Arc<AtomicU64>,
    /// The filter for packets from the relay, with counters of those that were not delivered to the
    /// host virtual device.
    pub(crate) delivery: Arc<DeliveryFilter>,
}

/// A request to the daemon to remove every kernel object and to end: the channel for the result.
pub(crate) type CleanUpRequest = oneshot::Sender<Result<(), CleanUpError>>;

/// The reason why `mobile cleanup` failed while the agent ran.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CleanUpError {
    /// Another request, or a signal, stops the agent.
    #[error("the agent is stopping already")]
    Stopping,
    /// The agent ended before it sent the result.
    #[error("the agent ended before everything was removed: try again")]
    Ended,
    /// An object could not be removed, for the reason in this text.
    #[error("{0}")]
    Failed(String),
}

/// No uplink has the name that `mobile use` named.
#[derive(Debug, thiserror::Error)]
#[error("no uplink is named {name}; the known uplinks are: {known}")]
pub(crate) struct UnknownUplink {
    name: String,
    /// The names of all uplinks, separated by commas.
    known: String,
}

/// How many times the agent read the kernel's network configuration.
pub(crate) struct KernelReads {
    /// Reads of the links, their addresses and their routes to the relay.
    pub(crate) uplinks: u64,
    /// Reads of the agent's own rules, routes and addresses.
    pub(crate) route: u64,
}

impl Agent {
    /// Creates the agent from its running parts. Returns it with the receiver of requests to clean
    /// up, which the daemon serves.
    pub(crate) fn new(
        (config, identity): (Config, Identity),
        session: SessionHandles,
        route: RouteStatus,
        bypass: BypassList,
        processes: MobileProcesses,
        route_settings: watch::Sender<RouteSettings>,
    ) -> (Arc<Self>, mpsc::Receiver<CleanUpRequest>) {
        let (clean_up, clean_ups) = mpsc::channel(1);
        let (started, direct_fallback) = (Instant::now(), DirectFallback::default());
        let settings = watch::Sender::new(Arc::new(Settings { config, identity }));
        let reload = Reload::new(route_settings);
        let agent =
            Self { settings, reload, started, session, route, bypass, processes, direct_fallback, clean_up };
        (Arc::new(agent), clean_ups)
    }

    /// Starts the tasks that keep the eBPF programs and the traffic accounts up to date. Each ends
    /// only with the reason why the agent cannot continue.
    pub(crate) fn spawn_tasks(self: &Arc<Self>, tasks: &mut JoinSet<anyhow::Error>) {
        tasks.spawn(program_maps::follow_assignment(Arc::clone(self)));
        tasks.spawn(program_maps::follow_slice(Arc::clone(self)));
        tasks.spawn(direct_fallback::keep_deadline(Arc::clone(self)));
        tasks.spawn(accounts::sweep(Arc::clone(self)));
    }

    /// Returns the settings in force.
    pub(crate) fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.borrow())
    }

    /// Returns the mobile processes, to list or change them.
    pub(crate) fn processes(&self) -> &MobileProcesses {
        &self.processes
    }

    /// Returns the persistent addresses in force.
    pub(crate) fn persistent(&self) -> Vec<IpAddr> {
        self.route.assignment.borrow().as_deref().map(Assignment::addresses).unwrap_or_default()
    }

    /// Returns the latest state of the tunnel.
    pub(crate) fn tunnel_state(&self) -> Arc<TunnelState> {
        Arc::clone(&self.session.tunnel.state.borrow())
    }

    /// Returns a receiver of the state of the tunnel.
    pub(crate) fn watch_tunnel(&self) -> watch::Receiver<Arc<TunnelState>> {
        self.session.tunnel.state.clone()
    }

    /// Closes the session at the relay.
    pub(crate) async fn close_session(&self) {
        self.session.tunnel.driver.shutdown(CloseCode::Shutdown).await;
    }

    /// Forces the tunnel onto an uplink, or back to automatic choice (`mobile use`). Returns a note
    /// for the user if the uplink is unusable at present.
    pub(crate) fn force(&self, uplink: Option<String>) -> Result<Option<String>, UnknownUplink> {
        let note = match &uplink {
            Some(name) => uplink_list::note_on_forced(&self.tunnel_state(), name)?,
            None => None,
        };
        self.session.tunnel.force(uplink);
        Ok(note)
    }

    /// Returns the networks that mobile processes reach directly.
    pub(crate) async fn bypasses(&self) -> Vec<IpNet> {
        self.bypass.list().await
    }

    /// Adds or removes a bypassed network (`mobile bypass add` and `del`). The change is in force
    /// when this returns, and lasts until the agent ends.
    pub(crate) async fn change_bypass(
        &self,
        net: IpNet,
        action: BypassAction,
    ) -> Result<BypassOutcome, BypassError> {
        self.bypass.change(net.trunc(), action, &self.processes).await
    }

    /// Verifies and repairs the MOBILE route (`inet_setmroute` of `libmobile`). Fails with
    /// `EADDRNOTAVAIL` if `gateway` is neither the persistent address nor the relay's.
    pub(crate) async fn set_route(&self, gateway: Option<Ipv4Addr>) -> Result<(), Errno> {
        let assignment = self.route.assignment.borrow().clone();
        let assignment = assignment.filter(|it| !it.addresses().is_empty()).ok_or(Errno::ENETDOWN)?;
        let relay = self.tunnel_state().active.as_ref().map(|(_, address)| address.ip());
        let is_endpoint = |to: Ipv4Addr| assignment.ipv4 == Some(to) || relay == Some(to.into());
        if !gateway.is_none_or(is_endpoint) {
            return Err(Errno::EADDRNOTAVAIL);
        }
        self.bypass.apply().await.map_err(|error| {
            tracing::warn!(error = error.to_string(), "inet_setmroute failed");
            Errno::EIO
        })
    }

    /// Asks the daemon to remove every kernel object, and waits for the result (`mobile cleanup`).
    pub(crate) async fn clean_up(&self) -> Result<(), CleanUpError> {
        let (reply, done) = oneshot::channel();
        self.clean_up.send(reply).await.map_err(|_| CleanUpError::Stopping)?;
        done.await.unwrap_or(Err(CleanUpError::Ended))
    }

    /// Returns the histogram of the times for which handovers interrupted the traffic.
    pub(crate) fn blackouts(&self) -> Histogram {
        self.session.tunnel.state.borrow().history.blackouts.clone()
    }

    /// Returns how many parts of the relay's assignments were refused, for each reason.
    pub(crate) fn refusals(&self) -> BTreeMap<&'static str, u64> {
        self.route.refused.counts()
    }

    /// Returns how many times the kernel's network configuration was read.
    pub(crate) fn kernel_reads(&self) -> KernelReads {
        KernelReads {
            uplinks: self.session.uplink_reads.load(Ordering::Relaxed),
            route: self.route.passes.load(Ordering::Relaxed),
        }
    }
}
