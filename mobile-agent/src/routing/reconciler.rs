//! Keeps the MOBILE route in the kernel as planned: adds missing addresses, routes and rules and
//! deletes surplus ones, whenever the kernel announces a change.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use ipnet::IpNet;
use mobile_host::sysctl;
use mobile_netlink::{Family, Netlink, NetlinkError, Route, RouteInterest, Watch};
use mobile_proto::PushConfig;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, sleep_until};

use super::assignment::{Assignment, AssignmentCache};
use super::claim::HostNetworks;
use super::claim_tracker::{ClaimTracker, Refusals};
use super::conflicting_rules::{MoveLimiter, conflicting_rules, is_ours, rule_priority};
use super::delivery_filter::DeliveryFilter;
use super::ingress::{self, IngressFilter, IngressMonitor};
use super::plan::{HostIpSupport, Plan, plan, surplus};
use crate::config::Config;
use crate::uplinks::links::REMOTE_ADDRESSES;

/// The shortest time between two comparisons of the kernel with the plan, which bounds the cost if
/// another program removes rules in a loop. A single removal is repaired at once.
const MIN_PASS_INTERVAL: Duration = Duration::from_millis(5);

/// The time between two checks of the host virtual device's settings in /proc/sys, whose changes
/// the kernel does not announce.
const SETTINGS_CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// A request with the networks that mobile processes are to reach directly from now on, and the
/// channel for its outcome.
pub(crate) type BypassChange = (Vec<IpNet>, oneshot::Sender<anyhow::Result<()>>);

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

/// Counters of other programs' rules that capture packets of mobile processes.
#[derive(Debug, Default)]
pub(crate) struct ConflictingRules {
    /// The number of other programs' rules that come before the agent's rules at present.
    pub(crate) before: AtomicU64,
    /// The number of times that the agent's rules were moved to another priority: ahead of
    /// conflicting rules, or back to the configured priority.
    pub(crate) moves: AtomicU64,
}

/// Maintains the addresses of the host virtual device and the routes and rules of the MOBILE route.
/// No other part of the agent changes them.
pub(crate) struct RouteReconciler {
    config: Config,
    netlink: Netlink,
    cache: AssignmentCache,
    device: Arc<DeliveryFilter>,
    claims: ClaimTracker,
    host: watch::Receiver<Arc<HostNetworks>>,
    /// The relay's assignment without the addresses and resolvers that this host refuses.
    accepted: Option<Assignment>,
    /// Publishes `accepted` once the MOBILE route for it is set up.
    assignment: watch::Sender<Option<Arc<Assignment>>>,
    restored: Arc<AtomicU64>,
    ipv6_missing_logged: bool,
    /// The priority of the agent's rules that match the firewall mark.
    priority: u32,
    host_ip: HostIpSupport,
    move_limiter: MoveLimiter,
    conflicts: Arc<ConflictingRules>,
    passes: Arc<AtomicU64>,
    ingress: IngressFilter,
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
        let refused = Arc::new(Refusals::default());
        let claims = ClaimTracker::new(cache.load(), &config.tunnel.addresses, Arc::clone(&refused));
        let (assignment, assignment_out) = watch::channel(None);
        let restored = Arc::new(AtomicU64::new(0));
        let conflicts = Arc::new(ConflictingRules::default());
        let passes = Arc::new(AtomicU64::new(0));
        let ingress = IngressFilter::new(config, netlink.clone());
        let status = RouteStatus {
            assignment: assignment_out,
            restored: Arc::clone(&restored),
            conflicts: Arc::clone(&conflicts),
            refused,
            passes: Arc::clone(&passes),
            ingress: ingress.monitor(),
        };
        let mut reconciler = Self {
            config: config.clone(),
            netlink,
            cache,
            device,
            claims,
            host,
            accepted: None,
            assignment,
            restored,
            ipv6_missing_logged: false,
            priority: config.routing.rule_priority,
            host_ip: HostIpSupport { ipv6: false },
            move_limiter: MoveLimiter::new(),
            conflicts,
            passes,
            ingress,
        };
        reconciler.ensure().await?;
        Ok((reconciler, status))
    }

    /// Applies assignments of the relay and changes of the bypassed networks, and restores the
    /// MOBILE route after changes by other programs. Returns only on an error, with the reason.
    pub(crate) async fn run(
        mut self,
        mut pushed: watch::Receiver<Option<Arc<PushConfig>>>,
        mut bypass: mpsc::Receiver<BypassChange>,
    ) -> anyhow::Error {
        // Watch only the routes that matter, because a host may have any number of others.
        let interest = RouteInterest::Only {
            tables: vec![self.config.routing.table],
            covering: REMOTE_ADDRESSES.to_vec(),
        };
        let mut watch = match Watch::with_interest(interest) {
            Ok(watch) => watch,
            Err(error) => return anyhow::Error::new(error).context("cannot watch the MOBILE route"),
        };
        let mut tables = self.ingress.watch();
        let mut next = Instant::now();
        let mut settings = tokio::time::interval(SETTINGS_CHECK_INTERVAL);
        settings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Changes before the subscriptions were not announced.
        self.ingress.mark_stale();
        if let Err(error) = self.restore().await {
            return error;
        }
        loop {
            let pass = tokio::select! {
                changed = pushed.changed() => match changed {
                    Ok(()) => {
                        let config = pushed.borrow_and_update().as_deref().cloned();
                        self.assign(config).await
                    }
                    // The tunnel's own task ends with the reason, perhaps a moment later on another
                    // thread.
                    Err(_) => std::future::pending().await,
                },
                Some((nets, reply)) = bypass.recv() => {
                    // The requester may be gone.
                    let _ = reply.send(self.bypass(nets).await);
                    Ok(())
                }
                changed = self.host.changed() => match changed {
                    Ok(()) => self.restore().await,
                    Err(_) => return anyhow::anyhow!("no longer watching the networks of this host"),
                },
                _ = settings.tick() => self.restore().await,
                changed = ingress::changed(&mut tables) => match changed {
                    Ok(()) => {
                        sleep_until(next).await;
                        self.ingress.mark_stale();
                        self.restore().await
                    }
                    Err(error) => {
                        Err(anyhow::Error::new(error).context("no longer watching the ingress filter"))
                    }
                },
                changed = watch.changed() => match changed {
                    Ok(_) => {
                        sleep_until(next).await;
                        self.restore().await
                    }
                    Err(error) => {
                        Err(anyhow::Error::new(error).context("no longer watching the MOBILE route"))
                    }
                },
            };
            if let Err(error) = pass {
                return error;
            }
            next = Instant::now() + MIN_PASS_INTERVAL;
        }
    }

    async fn assign(&mut self, config: Option<PushConfig>) -> anyhow::Result<()> {
        let Some(new) = config.map(Assignment::from) else { return Ok(()) };
        let old = self.claims.pushed().cloned();
        if old.as_ref() == Some(&new) && self.claims.is_accepted() {
            return Ok(());
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
        self.tolerant_pass().await.map(drop)
    }

    /// Judges the relay's assignment by the present networks of the host, and adopts the part that
    /// is not refused. Returns whether the adopted part changed.
    fn judge_claims(&mut self) -> bool {
        let now = self.claims.judge(&self.host.borrow_and_update());
        if self.accepted == now {
            return false;
        }
        self.device.set_addresses(now.as_ref().map(Assignment::addresses).unwrap_or_default());
        self.accepted = now;
        true
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
                    tracing::warn!(
                        error = mobile_host::error_chain(&error),
                        "the MOBILE route is incomplete, retrying after the next change"
                    );
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
            tracing::warn!(
                created,
                "put back parts of the MOBILE route that another program removed or changed"
            );
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
                tracing::warn!(
                    error = mobile_host::error_chain(&error),
                    "the MOBILE route is incomplete, retrying after the next change"
                );
                Ok(0)
            }
        }
    }

    /// Restores the settings of the host virtual device in /proc/sys. Returns how many had other
    /// values.
    fn ensure_settings(&self) -> anyhow::Result<u64> {
        let mut changed = 0;
        for (name, value) in super::device_sysctls(&self.config.tunnel.device) {
            match sysctl::ensure(&name, value) {
                Ok(before) => changed += u64::from(before.is_some()),
                // Without IPv6, its settings do not exist.
                Err(error) if error.is_missing() => {
                    tracing::debug!(%error, "skipping a device setting that does not exist");
                }
                Err(error) => return Err(error).context("cannot prepare the host virtual device"),
            }
        }
        Ok(changed)
    }

    /// Chooses a priority for the agent's rules before those of other programs that conflict, such
    /// as the rules of a VPN that was started after the agent. Returns whether the priority
    /// changed.
    async fn choose_priority(&mut self) -> anyhow::Result<bool> {
        let rules = self.netlink.all_rules().await?;
        let routing = &self.config.routing;
        let first = conflicting_rules(&rules, routing, routing.rule_priority).next();
        let wanted = rule_priority(&rules, routing);
        let mut moved = false;
        if let Some(priority) = wanted
            && priority != self.priority
            && self.move_limiter.try_move(Instant::now().into())
        {
            self.priority = priority;
            moved = true;
            self.conflicts.moves.fetch_add(1, Ordering::Relaxed);
            match first {
                Some(rule) => tracing::warn!(
                    "the {} rule `{rule}` takes every packet of mobile processes: our rules go \
                    before it, to priority {priority}",
                    rule.family
                ),
                None => tracing::info!(
                    priority,
                    "no conflicting rule is left: our rules are back at the configured priority"
                ),
            }
        }
        let before = conflicting_rules(&rules, routing, self.priority).count() as u64;
        if self.conflicts.before.swap(before, Ordering::Relaxed) != before
            && let Some(rule) = conflicting_rules(&rules, routing, self.priority).next()
        {
            tracing::warn!(
                "the {} rule `{rule}` comes before ours ({}) and takes every packet of mobile processes: {}; see \
                 `mobile check`",
                rule.family,
                self.priority,
                if wanted.is_none() {
                    "there is no room before it"
                } else {
                    "our rules have moved too often"
                }
            );
        }
        Ok(moved)
    }

    /// Determines whether ordinary processes can use IPv6, by looking up the route to a remote
    /// address for an unmarked packet without a source address.
    async fn read_host_ip(&self) -> Result<HostIpSupport, NetlinkError> {
        let [_, anywhere] = REMOTE_ADDRESSES;
        match self.netlink.lookup(anywhere, 0).await {
            Ok(way) => Ok(HostIpSupport { ipv6: way.is_some() }),
            Err(error) if error.is_family_unavailable() => Ok(HostIpSupport { ipv6: false }),
            Err(error) => Err(error),
        }
    }

    /// Applies the plan and then publishes the assignment, so that a session is not reported as
    /// connected before its addresses are set. Returns the number of objects that were created.
    async fn ensure(&mut self) -> anyhow::Result<u64> {
        let created = self.apply_plan().await;
        publish(&self.assignment, self.accepted.as_ref());
        created
    }

    async fn apply_plan(&mut self) -> anyhow::Result<u64> {
        self.passes.fetch_add(1, Ordering::Relaxed);
        let link = self.netlink.link(&self.config.tunnel.device).await?;
        let judged = self.judge_claims();
        let moved = self.choose_priority().await?;
        let host_ip = self.read_host_ip().await?;
        let host_ip_changed = std::mem::replace(&mut self.host_ip, host_ip) != host_ip;
        let plan = plan(
            &self.config.routing,
            self.priority,
            self.config.tunnel.mtu,
            link.index,
            self.accepted.as_ref(),
            host_ip,
        );
        let mut created = self.ensure_settings()?;
        if link.multicast {
            self.netlink.clear_multicast(link.index).await?;
            created += 1;
        }
        if !link.up {
            self.netlink.set_link_up(link.index).await?;
            created += 1;
        }
        if let Some(mtu) = plan.mtu.map(u32::from).filter(|mtu| *mtu != link.mtu) {
            self.netlink.set_mtu(link.index, mtu).await?;
        }
        // With this order, no marked packet can take another route at any moment: first close the
        // table, then add the rules that lead to it, then open it. The filter has to be installed
        // before an address is set, and an address has to be set before a route names it.
        let (closed, open): (Vec<Route>, Vec<Route>) = plan
            .routes
            .iter()
            .partition(|route| matches!(route.kind, mobile_netlink::RouteKind::Unreachable));
        created += self.ensure_routes(&closed).await?;
        let rules = self.ensure_rules(&plan).await?;
        // Rules that moved, or that became necessary, were not removed by another program.
        created += if moved || host_ip_changed { 0 } else { rules };
        created += self.ensure_ingress_filter(link.index, &plan).await?;
        created += self.ensure_addresses(link.index, &plan).await?;
        created += self.ensure_routes(&open).await?;
        self.remove_surplus(link.index, &plan).await?;
        // The first assignment restores nothing.
        Ok(if judged { 0 } else { created })
    }

    async fn ensure_rules(&mut self, plan: &Plan) -> anyhow::Result<u64> {
        let present = self.netlink.rules().await?;
        let mut created = 0;
        for rule in plan.rules.iter().filter(|rule| !present.contains(rule)) {
            created += self.tolerate_missing_family(self.netlink.ensure_rule(rule).await)?;
        }
        Ok(created)
    }

    async fn ensure_routes(&mut self, planned: &[Route]) -> anyhow::Result<u64> {
        let present = self.routes().await?;
        let mut created = 0;
        for route in planned.iter().filter(|route| !present.contains(route)) {
            created += self.tolerate_missing_family(self.netlink.ensure_route(route).await)?;
        }
        Ok(created)
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

    async fn ensure_addresses(&mut self, index: u32, plan: &Plan) -> anyhow::Result<u64> {
        let Some(planned) = &plan.addresses else { return Ok(0) };
        let present = self.netlink.addresses(index).await?;
        let mut created = 0;
        for net in planned.iter().filter(|net| !present.iter().any(|address| address.net == **net)) {
            created += self.tolerate_missing_family(self.netlink.ensure_address(index, *net).await)?;
        }
        Ok(created)
    }

    async fn remove_surplus(&self, index: u32, plan: &Plan) -> anyhow::Result<()> {
        let routing = &self.config.routing;
        for route in surplus(&self.routes().await?, &plan.routes, |_| true) {
            self.netlink.del_route(&route).await?;
        }
        for rule in surplus(&self.netlink.rules().await?, &plan.rules, |rule| is_ours(rule, routing)) {
            self.netlink.del_rule(&rule).await?;
        }
        if let Some(planned) = &plan.addresses {
            let present: Vec<_> =
                self.netlink.addresses(index).await?.iter().map(|address| address.net).collect();
            for net in surplus(&present, planned, |_| true) {
                self.netlink.del_address(index, net).await?;
            }
        }
        Ok(())
    }

    async fn routes(&self) -> Result<Vec<Route>, NetlinkError> {
        let mut routes = Vec::new();
        for family in Family::ALL {
            routes.extend(self.netlink.routes(self.config.routing.table, family).await?);
        }
        Ok(routes)
    }

    /// Returns how many objects were created (0 or 1) by an operation that returned `created`. If
    /// the host lacks the address family, as with IPv6 disabled, returns 0 and logs this once.
    fn tolerate_missing_family(&mut self, created: Result<bool, NetlinkError>) -> anyhow::Result<u64> {
        match created {
            Ok(created) => Ok(created.into()),
            Err(error) if error.is_family_unavailable() => {
                if !std::mem::replace(&mut self.ipv6_missing_logged, true) {
                    tracing::info!(
                        %error,
                        "an address family is unavailable on this host: mobile processes do \
                        without it"
                    );
                }
                Ok(0)
            }
            Err(error) => Err(error).context("cannot set up the MOBILE route"),
        }
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
