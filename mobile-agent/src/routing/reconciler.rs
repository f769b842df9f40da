//! Keeps the MOBILE route in the kernel as planned: adds missing addresses, routes and rules and
//! deletes surplus ones, whenever the kernel announces a change.

mod inputs;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use ipnet::IpNet;
use mobile_host::log_rate_limiter::LogRateLimiter;
use mobile_netlink::{Netlink, Route, RouteKind};
use mobile_proto::PushConfig;
use mobile_transport::keys::PublicKey;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::adoption::AdoptedAssignment;
use super::assignment::{Assignment, AssignmentCache};
use super::claim::HostNetworks;
use super::claim_tracker::Refusals;
use super::delivery_filter::DeliveryFilter;
use super::ingress::{IngressFilter, IngressMonitor};
use super::plan::{HostIpSupport, Plan, plan};
use super::route_objects::RouteObjects;
use super::rule_position::{ConflictingRules, RulePosition};
use crate::config::{Config, RelayIdentity, Tunnel};
use inputs::{Input, Inputs};

/// The shortest time between two comparisons of the kernel with the plan, which bounds the cost if
/// another program removes rules in a loop. A single removal is repaired at once.
const MIN_PASS_INTERVAL: Duration = Duration::from_millis(5);

/// A request with the networks that mobile processes are to reach directly from now on, and the
/// channel for its outcome.
pub(crate) type BypassChange = (Vec<IpNet>, oneshot::Sender<anyhow::Result<()>>);

/// The settings of the MOBILE route that a reload can change, beside the bypassed networks.
#[derive(Debug, Clone)]
pub(crate) struct RouteSettings {
    /// The setting `[tunnel] mtu`.
    pub(crate) mtu: Option<u16>,
    /// The setting `[tunnel] addresses`.
    pub(crate) addresses: Vec<IpNet>,
    /// The public key of the relay, with which its assignments are stored.
    pub(crate) relay: PublicKey,
}

impl RouteSettings {
    /// Returns the settings in a configuration with this relay.
    pub(crate) fn of(config: &Config, relay: &RelayIdentity) -> Self {
        let Tunnel { mtu, addresses, .. } = &config.tunnel;
        Self { mtu: *mtu, addresses: addresses.clone(), relay: relay.public_key }
    }
}

/// The state of the MOBILE route, for status and metrics.
#[derive(Debug, Clone)]
pub(crate) struct RouteStatus {
    /// The part of the relay's assignment that is in force; `None` before the first assignment.
    pub(crate) assignment: watch::Receiver<Option<Arc<Assignment>>>,
    /// The number of kernel objects that were restored because another program had removed or
    /// changed them.
    pub(crate) restored: Arc<AtomicU64>,
    /// The counters of other programs' rules that conflict with the agent's.
    pub(crate) conflicts: Arc<ConflictingRules>,
    /// The part of the relay's assignment that is refused.
    pub(crate) refused: Arc<Refusals>,
    /// The number of times that the kernel's addresses, routes and rules were compared with the
    /// planned ones.
    pub(crate) passes: Arc<AtomicU64>,
    /// The state of the ingress filter.
    pub(crate) ingress: IngressMonitor,
}

/// Maintains the addresses of the host virtual device and the routes and rules of the MOBILE route.
/// No other part of the agent changes them.
pub(crate) struct RouteReconciler {
    config: Config,
    netlink: Netlink,
    assignment: AdoptedAssignment,
    position: RulePosition,
    host_ip: HostIpSupport,
    objects: RouteObjects,
    ingress: IngressFilter,
    restored: Arc<AtomicU64>,
    passes: Arc<AtomicU64>,
    log: RepairLog,
}

/// The limited log of repairs, because another program may undo each repair at once.
#[derive(Debug, Default)]
struct RepairLog {
    repairs: LogRateLimiter,
    failures: LogRateLimiter,
    /// The number of restored objects that no message has reported yet.
    unreported: u64,
}

impl RepairLog {
    fn restored(&mut self, created: u64) {
        self.unreported += created;
        if self.repairs.allow(Instant::now().into_std()).is_some() {
            tracing::warn!(
                created = std::mem::take(&mut self.unreported),
                "put back parts of the MOBILE route that another program removed or changed"
            );
        }
    }

    fn failed(&mut self, error: &anyhow::Error) {
        if let Some(suppressed) = self.failures.allow(Instant::now().into_std()) {
            tracing::warn!(
                error = mobile_host::error_chain(error),
                suppressed,
                "the MOBILE route is incomplete, retrying after the next change"
            );
        }
    }
}

impl RouteReconciler {
    /// Sets up the MOBILE route before the relay is reached: with the addresses that an earlier run
    /// cached, except those that conflict with the host's present networks.
    pub(crate) async fn start(
        config: &Config,
        netlink: Netlink,
        cache: AssignmentCache,
        device: Arc<DeliveryFilter>,
        host: watch::Receiver<Arc<HostNetworks>>,
    ) -> anyhow::Result<(Self, RouteStatus)> {
        let mut reconciler = Self {
            config: config.clone(),
            assignment: AdoptedAssignment::new(cache, &config.tunnel.addresses, device, host),
            position: RulePosition::new(&config.routing),
            host_ip: HostIpSupport { ipv6: false },
            objects: RouteObjects::new(config, netlink.clone()),
            ingress: IngressFilter::new(config, netlink.clone()),
            restored: Arc::default(),
            passes: Arc::default(),
            log: RepairLog::default(),
            netlink,
        };
        let status = RouteStatus {
            assignment: reconciler.assignment.subscribe(),
            restored: Arc::clone(&reconciler.restored),
            conflicts: reconciler.position.conflicts(),
            refused: reconciler.assignment.refused(),
            passes: Arc::clone(&reconciler.passes),
            ingress: reconciler.ingress.monitor(),
        };
        reconciler.ensure().await?;
        Ok((reconciler, status))
    }

    /// Applies assignments of the relay and changes of the bypassed networks, and restores the
    /// MOBILE route after changes by other programs. Returns only on an error, with the reason.
    pub(crate) async fn run(
        mut self,
        pushed: watch::Receiver<Option<Arc<PushConfig>>>,
        bypass: mpsc::Receiver<BypassChange>,
        settings: watch::Receiver<RouteSettings>,
    ) -> anyhow::Error {
        let tables = self.ingress.watch();
        let mut inputs = match Inputs::new(&self.config.routing, pushed, (bypass, settings), tables) {
            Ok(inputs) => inputs,
            Err(error) => return error,
        };
        let mut next = Instant::now();
        // Changes before the subscriptions were not announced.
        self.ingress.mark_stale();
        if let Err(error) = self.restore().await {
            return error;
        }
        loop {
            let handled = match inputs.next(&mut self.assignment).await {
                Ok(input) => self.handle(input, next).await,
                Err(error) => Err(error),
            };
            if let Err(error) = handled {
                return error;
            }
            next = Instant::now() + MIN_PASS_INTERVAL;
        }
    }

    /// Handles an input. Waits until `next` before it repairs a change of the route or the filter
    /// by another program.
    async fn handle(&mut self, input: Input, next: Instant) -> anyhow::Result<()> {
        match input {
            Input::Pushed(config) => {
                if self.assignment.receive(config) {
                    self.tolerant_pass().await?;
                }
                Ok(())
            }
            Input::Bypass((nets, reply)) => {
                // The requester may be gone.
                let _ = reply.send(self.bypass(nets).await);
                Ok(())
            }
            Input::Configured(RouteSettings { mtu, addresses, relay }) => {
                self.config.tunnel.mtu = mtu;
                self.assignment.configure(addresses, &relay);
                self.tolerant_pass().await?;
                Ok(())
            }
            Input::HostChanged | Input::SettingsDue => self.restore().await,
            Input::RouteChanged => {
                sleep_until(next).await;
                self.restore().await
            }
            Input::FilterChanged => {
                sleep_until(next).await;
                self.ingress.mark_stale();
                self.restore().await
            }
        }
    }

    /// Changes the networks that mobile processes reach directly; on an error, restores the
    /// previous ones.
    async fn bypass(&mut self, nets: Vec<IpNet>) -> anyhow::Result<()> {
        let before = std::mem::replace(&mut self.config.routing.bypass, nets);
        match self.ensure().await {
            Ok(_) => Ok(()),
            Err(error) => {
                self.config.routing.bypass = before;
                if let Err(error) = self.tolerant_pass().await {
                    self.log.failed(&error);
                }
                Err(error)
            }
        }
    }

    /// Applies the plan after a change in the kernel. Counts and logs the objects that had to be
    /// created, because another program had removed or changed them.
    async fn restore(&mut self) -> anyhow::Result<()> {
        let created = self.tolerant_pass().await?;
        if created > 0 {
            self.restored.fetch_add(created, Ordering::Relaxed);
            self.log.restored(created);
        }
        Ok(())
    }

    /// Applies the plan, and returns the number of created objects. An error by a race with another
    /// program is only logged, because the change by that program triggers another attempt. Fails
    /// if the host virtual device is gone.
    async fn tolerant_pass(&mut self) -> anyhow::Result<u64> {
        match self.ensure().await {
            Ok(created) => Ok(created),
            Err(error) => {
                self.netlink
                    .link_index(&self.config.tunnel.device)
                    .await
                    .context("the host virtual device is gone")?;
                self.log.failed(&error);
                Ok(0)
            }
        }
    }

    /// Applies the plan and then publishes the assignment, so that a session is not reported as
    /// connected before its addresses are set. Returns the number of objects that were created.
    async fn ensure(&mut self) -> anyhow::Result<u64> {
        let created = self.apply_plan().await;
        self.assignment.publish();
        created
    }

    async fn apply_plan(&mut self) -> anyhow::Result<u64> {
        self.passes.fetch_add(1, Ordering::Relaxed);
        let link = self.netlink.link(&self.config.tunnel.device).await?;
        let judged = self.assignment.judge();
        let rules = self.netlink.all_rules().await?;
        let moved = self.position.choose(&rules, &self.config.routing);
        let host_ip = self.objects.read_host_ip().await?;
        let host_ip_changed = std::mem::replace(&mut self.host_ip, host_ip) != host_ip;
        let plan = plan(
            &self.config.routing,
            self.position.priority(),
            self.config.tunnel.mtu,
            link.index,
            self.assignment.accepted(),
            host_ip,
        );
        let mut created = self.objects.ensure_settings()?;
        created += self.objects.ensure_device(&link, &plan).await?;
        // With this order, no marked packet can take another route at any moment: first close the
        // table, then add the rules that lead to it, then open it. The filter has to be installed
        // before an address is set, and an address has to be set before a route names it.
        let (closed, open): (Vec<Route>, Vec<Route>) =
            plan.routes.iter().partition(|route| matches!(route.kind, RouteKind::Unreachable));
        created += self.objects.ensure_routes(&closed).await?;
        let rules = self.objects.ensure_rules(&plan).await?;
        // Rules that moved, or that became necessary, were not removed by another program.
        created += if moved || host_ip_changed { 0 } else { rules };
        created += self.ensure_ingress_filter(link.index, &plan).await?;
        created += self.objects.ensure_addresses(link.index, &plan).await?;
        created += self.objects.ensure_routes(&open).await?;
        self.objects.remove_surplus(link.index, &plan, &self.config.routing).await?;
        // The first assignment restores nothing.
        Ok(if judged { 0 } else { created })
    }

    /// Installs the ingress filter for the present and the planned addresses of the host virtual
    /// device, because a former address is in use until it is removed. Returns how many objects
    /// were restored.
    async fn ensure_ingress_filter(&mut self, index: u32, plan: &Plan) -> anyhow::Result<u64> {
        let present = self.netlink.addresses(index).await?;
        let planned = plan.addresses.iter().flatten();
        let addresses: BTreeSet<IpAddr> =
            present.iter().map(|address| address.net.addr()).chain(planned.map(IpNet::addr)).collect();
        Ok(self.ingress.ensure(addresses).await)
    }
}
