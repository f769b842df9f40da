//! Keeps the plan true: makes what is missing, removes what is surplus, again whenever the kernel says it changed.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use ipnet::IpNet;
use mobile_io::netlink::{Family, Netlink, NetlinkError, Route, RouteInterest, Watch};
use mobile_io::sysctl;
use mobile_proto::PushConfig;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, sleep_until};

use super::claim::HostNetworks;
use super::claims::{Claims, Refused};
use super::ingress::{self, IngressFilter, IngressReport};
use super::lease::{Assigned, Lease};
use super::plan::{ANYWHERE, Plan, Surroundings, plan, surplus};
use super::rivals::{self, Patience, is_ours};
use crate::config::Config;
use crate::tunnel::io::DeviceSide;

/// The least time between two passes: whoever removes our rules in a loop costs at most this rate, and a single
/// removal is repaired at once.
const SPACING: Duration = Duration::from_millis(5);

/// How often the settings of the device are looked at: the kernel does not tell who changes them.
const SETTINGS: Duration = Duration::from_secs(30);

/// What mobile processes are to reach directly from now on, and who wants to know what became of it.
pub(crate) type BypassChange = (Vec<IpNet>, oneshot::Sender<Result<(), String>>);

/// What others may know of the route.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    /// The part of the relay's assignment that is in force.
    pub(crate) assigned: watch::Receiver<Option<Assigned>>,
    /// How many objects were put back.
    pub(crate) restored: Arc<AtomicU64>,
    /// How others' rules stand to ours.
    pub(crate) rivals: Arc<Rivals>,
    /// The part of the relay's assignment that is refused.
    pub(crate) refused: Arc<Refused>,
    /// The number of times that the kernel was compared with the plan.
    pub(crate) passes: Arc<AtomicU64>,
    /// The ingress filter.
    pub(crate) ingress: IngressReport,
}

/// Rules of others that take what is ours.
#[derive(Debug, Default)]
pub(crate) struct Rivals {
    /// How many come before ours now.
    pub(crate) before: AtomicU64,
    /// How often ours moved before others', or back.
    pub(crate) moves: AtomicU64,
}

/// The one owner of device, addresses, routes and rules.
pub(crate) struct Keeper {
    config: Config,
    netlink: Netlink,
    lease: Lease,
    device: Arc<DeviceSide>,
    claims: Claims,
    host: watch::Receiver<HostNetworks>,
    /// The part of the relay's assignment that nothing contradicts.
    accepted: Option<Assigned>,
    /// `accepted` once the route for it is set up.
    assigned: watch::Sender<Option<Assigned>>,
    restored: Arc<AtomicU64>,
    without_ipv6: bool,
    /// Where the mark's rule is.
    priority: u32,
    around: Surroundings,
    patience: Patience,
    rivals: Arc<Rivals>,
    passes: Arc<AtomicU64>,
    ingress: IngressFilter,
}

impl Keeper {
    /// Sets up the route as far as it is known: with the addresses of the last run, if there was
    /// one and nothing contradicts them now.
    pub(crate) async fn start(
        config: &Config,
        netlink: Netlink,
        lease: Lease,
        device: Arc<DeviceSide>,
        host: watch::Receiver<HostNetworks>,
    ) -> anyhow::Result<(Self, Report)> {
        let refused = Arc::new(Refused::default());
        let claims = Claims::new(lease.load(), &config.tunnel.addresses, Arc::clone(&refused));
        let (assigned, assigned_out) = watch::channel(None);
        let restored = Arc::new(AtomicU64::new(0));
        let rivals = Arc::new(Rivals::default());
        let passes = Arc::new(AtomicU64::new(0));
        let ingress = IngressFilter::new(config, netlink.clone());
        let report = Report {
            assigned: assigned_out,
            restored: Arc::clone(&restored),
            rivals: Arc::clone(&rivals),
            refused,
            passes: Arc::clone(&passes),
            ingress: ingress.report(),
        };
        let mut keeper = Self {
            config: config.clone(),
            netlink,
            lease,
            device,
            claims,
            host,
            accepted: None,
            assigned,
            restored,
            without_ipv6: false,
            priority: config.routing.rule_priority,
            around: Surroundings { ipv6: false },
            patience: Patience::new(),
            rivals,
            passes,
            ingress,
        };
        keeper.ensure().await?;
        Ok((keeper, report))
    }

    /// Follows what the relay assigns and what the kernel says. Ends only when it cannot go on, with the reason.
    pub(crate) async fn run(
        mut self,
        mut pushed: watch::Receiver<Option<PushConfig>>,
        mut bypass: mpsc::Receiver<BypassChange>,
    ) -> anyhow::Error {
        // Only some routes matter: a host may have any number of routes that do not concern ours.
        let interest =
            RouteInterest::Only { tables: vec![self.config.routing.table], covering: ANYWHERE.to_vec() };
        let mut watch = match Watch::with_interest(interest) {
            Ok(watch) => watch,
            Err(error) => return anyhow::Error::new(error).context("cannot watch the MOBILE route"),
        };
        let mut tables = self.ingress.watch();
        let mut next = Instant::now();
        let mut settings = tokio::time::interval(SETTINGS);
        settings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Changes before the subscriptions are not announced.
        self.ingress.suspect();
        if let Err(error) = self.restore().await {
            return error;
        }
        loop {
            let pass = tokio::select! {
                changed = pushed.changed() => match changed {
                    Ok(()) => {
                        let config = pushed.borrow_and_update().clone();
                        self.assign(config).await
                    }
                    // The tunnel's own task ends with the reason, perhaps a moment later on another
                    // thread.
                    Err(_) => std::future::pending().await,
                },
                Some((nets, reply)) = bypass.recv() => {
                    // The asker may have gone.
                    let _ = reply.send(self.bypass(nets).await);
                    Ok(())
                }
                changed = self.host.changed() => match changed {
                    Ok(()) => self.restore().await,
                    Err(_) => return anyhow::anyhow!("the networks of this host are not watched any more"),
                },
                _ = settings.tick() => self.restore().await,
                changed = ingress::changed(&mut tables) => match changed {
                    Ok(()) => {
                        sleep_until(next).await;
                        self.ingress.suspect();
                        self.restore().await
                    }
                    Err(error) => Err(anyhow::Error::new(error).context("cannot watch the ingress filter any more")),
                },
                changed = watch.changed() => match changed {
                    Ok(_) => {
                        sleep_until(next).await;
                        self.restore().await
                    }
                    Err(error) => Err(anyhow::Error::new(error).context("cannot watch the MOBILE route any more")),
                },
            };
            if let Err(error) = pass {
                return error;
            }
            next = Instant::now() + SPACING;
        }
    }

    async fn assign(&mut self, config: Option<PushConfig>) -> anyhow::Result<()> {
        let Some(new) = config.map(Assigned::from) else { return Ok(()) };
        let old = self.claims.pushed().cloned();
        if old.as_ref() == Some(&new) && self.claims.is_taken() {
            return Ok(());
        }
        if self.claims.take(new.clone()) {
            match &old {
                Some(old) if old.addresses() != new.addresses() => tracing::warn!(
                    old = ?old.addresses(),
                    new = ?new.addresses(),
                    "the relay assigns other addresses than before: connections of mobile processes that use the old ones end"
                ),
                _ => tracing::info!(addresses = ?new.addresses(), mtu = new.mtu, "the relay assigns"),
            }
            // Saved as the relay pushed it: each start judges the claims anew.
            if let Err(error) = self.lease.store(&new) {
                tracing::warn!(
                    error = crate::cli::story(&error),
                    "after a restart without the relay the addresses will be unknown"
                );
            }
        }
        self.tolerant_pass().await.map(drop)
    }

    /// Puts in force the claims that nothing contradicts now. Returns whether that changed
    /// anything.
    fn judge_claims(&mut self) -> bool {
        let now = self.claims.judge(&self.host.borrow_and_update());
        if self.accepted == now {
            return false;
        }
        self.device.set_addresses(now.as_ref().map(Assigned::addresses).unwrap_or_default());
        self.accepted = now;
        true
    }

    /// Changes what is reached directly, or leaves it as it was.
    async fn bypass(&mut self, nets: Vec<IpNet>) -> Result<(), String> {
        let before = std::mem::replace(&mut self.config.routing.bypass, nets);
        match self.ensure().await {
            Ok(_) => Ok(()),
            Err(error) => {
                self.config.routing.bypass = before;
                if let Err(error) = self.tolerant_pass().await {
                    tracing::warn!(error = crate::cli::story(&error), "the MOBILE route is not whole");
                }
                Err(crate::cli::story(&error))
            }
        }
    }

    /// A pass after an event: whatever it had to make, somebody had removed.
    async fn restore(&mut self) -> anyhow::Result<()> {
        let made = self.tolerant_pass().await?;
        if made > 0 {
            self.restored.fetch_add(made, Ordering::Relaxed);
            tracing::warn!(made, "somebody removed or changed parts of the MOBILE route: put back");
        }
        Ok(())
    }

    /// A pass that survives a race with whoever removes: the event of that removal starts the next one. Without the
    /// device all is in vain.
    async fn tolerant_pass(&mut self) -> anyhow::Result<u64> {
        match self.ensure().await {
            Ok(made) => Ok(made),
            Err(error) => {
                self.netlink
                    .link_index(&self.config.tunnel.device)
                    .await
                    .context("the host virtual device is gone")?;
                tracing::warn!(error = crate::cli::story(&error), "the MOBILE route is not whole");
                Ok(0)
            }
        }
    }

    /// The settings of the device. Gives how many were others.
    fn ensure_settings(&self) -> anyhow::Result<u64> {
        let mut changed = 0;
        for (name, value) in super::device_sysctls(&self.config.tunnel.device) {
            match sysctl::ensure(&name, value) {
                Ok(before) => changed += u64::from(before.is_some()),
                // Without IPv6 there is nothing to set.
                Err(error) if error.is_missing() => tracing::debug!(%error, "no such setting"),
                Err(error) => return Err(error).context("cannot prepare the host virtual device"),
            }
        }
        Ok(changed)
    }

    /// Finds the place of our rules before those that take what is ours: a full tunnel that is started later comes first.
    /// Says whether they move.
    async fn find_place(&mut self) -> anyhow::Result<bool> {
        let rules = self.netlink.all_rules().await?;
        let routing = &self.config.routing;
        let first = rivals::before(&rules, routing, routing.rule_priority).next();
        let wanted = rivals::place(&rules, routing);
        let mut moved = false;
        if let Some(place) = wanted
            && place != self.priority
            && self.patience.take(Instant::now().into())
        {
            self.priority = place;
            moved = true;
            self.rivals.moves.fetch_add(1, Ordering::Relaxed);
            match first {
                Some(rule) => tracing::warn!(
                    "the {} rule `{rule}` takes every packet of mobile processes: our rules go before it, to priority {place}",
                    rule.family
                ),
                None => tracing::info!(
                    place,
                    "no rule of others is in the way any more: ours are back in their place"
                ),
            }
        }
        let before = rivals::before(&rules, routing, self.priority).count() as u64;
        if self.rivals.before.swap(before, Ordering::Relaxed) != before
            && let Some(rule) = rivals::before(&rules, routing, self.priority).next()
        {
            tracing::warn!(
                "the {} rule `{rule}` comes before ours ({}) and takes every packet of mobile processes: {}; see \
                 `mobile check`",
                rule.family,
                self.priority,
                if wanted.is_none() {
                    "there is no room before it"
                } else {
                    "it has come back too often to go on"
                }
            );
        }
        Ok(moved)
    }

    /// Asks the kernel as it would be asked for an ordinary socket that has no source address yet.
    async fn look_around(&self) -> Result<Surroundings, NetlinkError> {
        let [_, anywhere] = ANYWHERE;
        match self.netlink.lookup(anywhere, 0).await {
            Ok(way) => Ok(Surroundings { ipv6: way.is_some() }),
            Err(error) if error.is_family_unavailable() => Ok(Surroundings { ipv6: false }),
            Err(error) => Err(error),
        }
    }

    /// Makes the plan true and then publishes the assignment, so that a session is not reported as
    /// connected before its addresses are set. Returns the number of objects that had to be made.
    async fn ensure(&mut self) -> anyhow::Result<u64> {
        let made = self.make_plan_true().await;
        self.assigned.send_if_modified(|published| {
            let is_new = *published != self.accepted;
            published.clone_from(&self.accepted);
            is_new
        });
        made
    }

    async fn make_plan_true(&mut self) -> anyhow::Result<u64> {
        self.passes.fetch_add(1, Ordering::Relaxed);
        let link = self.netlink.link(&self.config.tunnel.device).await?;
        let judged = self.judge_claims();
        let moved = self.find_place().await?;
        let around = self.look_around().await?;
        let is_elsewhere = std::mem::replace(&mut self.around, around) != around;
        let plan = plan(
            &self.config.routing,
            self.priority,
            self.config.tunnel.mtu,
            link.index,
            self.accepted.as_ref(),
            around,
        );
        let mut made = self.ensure_settings()?;
        if link.multicast {
            self.netlink.clear_multicast(link.index).await?;
            made += 1;
        }
        if !link.up {
            self.netlink.set_link_up(link.index).await?;
            made += 1;
        }
        if let Some(mtu) = plan.mtu.map(u32::from).filter(|mtu| *mtu != link.mtu) {
            self.netlink.set_mtu(link.index, mtu).await?;
        }
        // In this order no marked packet can take another route at any moment: first the table is
        // closed, then the rules point to it, then it is opened. The filter has to be in force
        // before an address is set, and an address has to be set before a route names it.
        let (closed, open): (Vec<Route>, Vec<Route>) = plan
            .routes
            .iter()
            .partition(|route| matches!(route.kind, mobile_io::netlink::RouteKind::Unreachable));
        made += self.ensure_routes(&closed).await?;
        let rules = self.ensure_rules(&plan).await?;
        // Nobody removed those that are elsewhere now, or wanted again.
        made += if moved || is_elsewhere { 0 } else { rules };
        made += self.filter_ingress(link.index, &plan).await?;
        made += self.ensure_addresses(link.index, &plan).await?;
        made += self.ensure_routes(&open).await?;
        self.remove_surplus(link.index, &plan).await?;
        // A first assignment is no restoration.
        Ok(if judged { 0 } else { made })
    }

    async fn ensure_rules(&mut self, plan: &Plan) -> anyhow::Result<u64> {
        let present = self.netlink.rules().await?;
        let mut made = 0;
        for rule in plan.rules.iter().filter(|rule| !present.contains(rule)) {
            made += self.lenient(self.netlink.ensure_rule(rule).await)?;
        }
        Ok(made)
    }

    async fn ensure_routes(&mut self, planned: &[Route]) -> anyhow::Result<u64> {
        let present = self.routes().await?;
        let mut made = 0;
        for route in planned.iter().filter(|route| !present.contains(route)) {
            made += self.lenient(self.netlink.ensure_route(route).await)?;
        }
        Ok(made)
    }

    /// Puts the ingress filter in force for the addresses the device has and will have: a former
    /// address is in use until it is removed.
    async fn filter_ingress(&mut self, index: u32, plan: &Plan) -> anyhow::Result<u64> {
        let present = self.netlink.addresses(index).await?;
        let planned = plan.addresses.iter().flatten();
        let addresses: BTreeSet<IpAddr> =
            present.iter().map(|address| address.net.addr()).chain(planned.map(IpNet::addr)).collect();
        Ok(self.ingress.ensure(addresses).await)
    }

    async fn ensure_addresses(&mut self, index: u32, plan: &Plan) -> anyhow::Result<u64> {
        let Some(planned) = &plan.addresses else { return Ok(0) };
        let present = self.netlink.addresses(index).await?;
        let mut made = 0;
        for net in planned.iter().filter(|net| !present.iter().any(|address| address.net == **net)) {
            made += self.lenient(self.netlink.ensure_address(index, *net).await)?;
        }
        Ok(made)
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

    /// A host with IPv6 disabled is an ordinary host: said once, and lived without.
    fn lenient(&mut self, made: Result<bool, NetlinkError>) -> anyhow::Result<u64> {
        match made {
            Ok(made) => Ok(made.into()),
            Err(error) if error.is_family_unavailable() => {
                if !std::mem::replace(&mut self.without_ipv6, true) {
                    tracing::info!(%error, "mobile processes go without it");
                }
                Ok(0)
            }
            Err(error) => Err(error).context("cannot make the MOBILE route"),
        }
    }
}
