//! The relay's network state in the kernel: the home virtual device with its addresses, IP
//! forwarding, and the nftables table.
//!
//! A starting relay adopts the state that a killed one left behind. [`HomeNetwork::set_up`] sets
//! everything up and undoes a failed start; [`HomeNetwork::reconcile`] restores what other programs
//! changed.

use std::path::Path;

use anyhow::{Context as _, bail};
use ipnet::IpNet;
use mobile_host::sysctl;
use mobile_transport::tun::Tun;
use tracing::info;

use self::device::HomeDevice;
use self::drop_counts::DropCounts;
use self::install::{applied_listing, apply_or_explain, for_host, install, replace_rules};
use self::ruleset::{HostState, Ruleset};
use self::undo_log::{UndoAction, UndoLog};
use crate::config::Config;
use crate::metrics::DropReason;
use crate::pool::Pools;

pub(crate) mod connections;
mod device;
mod drop_counts;
mod firewall;
mod forwarding;
mod install;
pub(crate) mod nft;
pub(crate) mod ports;
pub(crate) mod ruleset;
mod undo_log;

/// Returns the address pools that this host can serve: on a host without IPv6, only the IPv4 pool.
/// Fails if none is left.
pub(crate) fn servable(pools: Pools) -> anyhow::Result<Pools> {
    if pools.ipv6().is_none() || has_ipv6() {
        return Ok(pools);
    }
    if pools.ipv4().is_none() {
        bail!(
            "IPv6 is disabled on this host and [pool] has no ipv4: add an IPv4 pool, or enable IPv6 \
             (sysctl net.ipv6.conf.all.disable_ipv6=0)"
        );
    }
    info!("IPv6 is disabled on this host: clients get IPv4 addresses only");
    Ok(pools.without_ipv6()?)
}

/// Returns whether IPv6 is enabled on this host.
pub(crate) fn has_ipv6() -> bool {
    // The files are missing with ipv6.disable=1 and in a kernel without IPv6.
    let enabled = |scope: &str| {
        sysctl::read(&format!("net/ipv6/conf/{scope}/disable_ipv6")).is_ok_and(|value| value == "0")
    };
    // A new device inherits its setting from `default`.
    enabled("all") && enabled("default")
}

/// The relay's network state in the kernel (device, addresses, forwarding, nftables rules) with the
/// means to restore it.
pub(crate) struct HomeNetwork {
    device: HomeDevice,
    ruleset: Ruleset,
    /// The state of the host (other firewalls, forwarding) that the installed nftables rules
    /// assume.
    host: HostState,
    /// The forwarding sysctls that the relay turned on.
    forwarding: forwarding::EnabledForwarding,
    /// The relay's nftables table as nft lists it, or `None` on a host without nftables.
    table: Option<String>,
    /// The nftables rules that should be in force but could not be installed;
    /// [`HomeNetwork::reconcile`] retries.
    pending: Option<Ruleset>,
    drops: DropCounts,
}

/// The parts of the network state that [`HomeNetwork::reconcile`] checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReconcileScope {
    /// The device, addresses and forwarding.
    WithoutRules,
    /// The nftables rules as well.
    Everything,
}

/// The reason why the kernel's network state cannot be restored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReconcileError {
    /// The TUN device that the relay has open is gone, so the running process cannot restore
    /// anything.
    #[error(
        "device {0} is gone: another program removed it (`ip link del`, a network manager), and no packet passes \
         without it; restart the relay, as systemd does by itself: it creates the device, and sessions resume"
    )]
    DeviceGone(String),
    /// Another failure, which may be temporary.
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

impl HomeNetwork {
    /// Sets up the home virtual device, addresses, forwarding and nftables rules, and opens the
    /// device; undoes its changes if a step fails.
    pub(crate) async fn set_up(
        config: &Config,
        pools: &Pools,
        ruleset: Ruleset,
    ) -> anyhow::Result<(Self, Tun)> {
        let mut undo_log = UndoLog::default();
        match Self::try_set_up(config, pools, ruleset, &mut undo_log).await {
            Ok(done) => Ok(done),
            Err(error) => {
                undo_log.roll_back().await;
                Err(error)
            }
        }
    }

    async fn try_set_up(
        config: &Config,
        pools: &Pools,
        ruleset: Ruleset,
        undo_log: &mut UndoLog,
    ) -> anyhow::Result<(Self, Tun)> {
        let (device, tun, adopted) = HomeDevice::open(config, pools, undo_log).await?;
        let mut home = Self {
            device,
            ruleset,
            host: HostState::default(),
            forwarding: forwarding::EnabledForwarding::load(&config.state.dir),
            table: None,
            pending: None,
            drops: DropCounts::default(),
        };
        home.device.ensure(undo_log).await?;
        let fresh = !nft::exists(&home.ruleset.table()).unwrap_or(false);
        home.host.enabled_forwarding = home.forwarding.update(pools, &home.device.name);
        let rules = for_host(&home.ruleset, home.host);
        home.host = rules.host();
        if apply_or_explain(&rules)? {
            if fresh {
                undo_log.record("the nftables rules", UndoAction::RemoveTable(rules.table()));
            }
            home.table = Some(applied_listing(&rules)?);
        }
        // Enable forwarding last: packets flow from here on, and the rules are already in place.
        forwarding::enable(pools, &home.device.name, undo_log)?;
        info!(
            device = home.device.name,
            adopted,
            addresses = ?pools.own_addresses(),
            masquerade = config.nat.masquerade,
            "home virtual device is up"
        );
        Ok((home, tun))
    }

    /// Returns the pools that this host serves.
    pub(crate) fn pools(&self) -> Pools {
        self.device.pools
    }

    /// Returns the nftables ruleset in force.
    pub(crate) fn ruleset(&self) -> &Ruleset {
        &self.ruleset
    }

    /// Replaces the nftables ruleset in force, or installs the same one again. On an error the
    /// former rules stay in force; the error says so if they could not be restored.
    pub(crate) async fn change(&mut self, ruleset: Ruleset) -> anyhow::Result<()> {
        // The counters start at 0 with the new table.
        self.count_drops();
        self.drops.restart();
        let (former, table, host) = (self.ruleset.clone(), self.table.clone(), self.host);
        let (ruleset, installed) = blocking(move || {
            let installed = replace_rules(&former, table.is_some(), &ruleset, host)?;
            Ok((ruleset, installed))
        })
        .await?;
        (self.ruleset, self.pending) = (ruleset, None);
        (self.host, self.table) = installed;
        Ok(())
    }

    /// Stores `ruleset`, which cannot be installed at the moment, for [`HomeNetwork::reconcile`] to
    /// install.
    pub(crate) fn schedule_rules(&mut self, ruleset: Ruleset) {
        self.pending = Some(ruleset);
    }

    /// Returns whether nftables rules wait to be installed after an earlier failure.
    pub(crate) fn has_pending_rules(&self) -> bool {
        self.pending.is_some()
    }

    /// Returns the networks of this host's devices other than the relay's. The reach "internet"
    /// excludes them, in order to protect the services of the host itself and of its neighbours.
    pub(crate) async fn local_networks(&self) -> anyhow::Result<Vec<IpNet>> {
        self.device.local_networks().await
    }

    /// Returns the number of packets that the nftables rules have dropped since the last call, for
    /// each reason.
    pub(crate) fn take_drops(&mut self) -> impl Iterator<Item = (DropReason, u64)> + use<> {
        self.count_drops();
        self.drops.take()
    }

    fn count_drops(&mut self) {
        if self.table.is_some() {
            self.drops.update(&self.ruleset.table());
        }
    }

    /// Checks the parts of the network state in `scope`; restores what differs, and returns the
    /// names of what was restored.
    pub(crate) async fn reconcile(&mut self, scope: ReconcileScope) -> Result<Vec<String>, ReconcileError> {
        self.device.check().await?;
        match self.restore(scope).await {
            Ok(undo_log) => Ok(undo_log.into_names()),
            Err(error) => {
                // The device may have disappeared in the meantime.
                self.device.check().await?;
                Err(error.into())
            }
        }
    }

    async fn restore(&mut self, scope: ReconcileScope) -> anyhow::Result<UndoLog> {
        let mut undo_log = UndoLog::default();
        if let Some(pending) = self.pending.clone() {
            self.change(pending).await?;
            info!("installed the nftables rules after an earlier failure");
        }
        self.device.ensure(&mut undo_log).await?;
        let enabled_forwarding = self.forwarding.update(&self.device.pools, &self.device.name);
        if enabled_forwarding != self.host.enabled_forwarding {
            // Another program turned forwarding off, and the relay is about to turn it on.
            let before = std::mem::replace(&mut self.host.enabled_forwarding, enabled_forwarding);
            if let Err(error) = self.change(self.ruleset.clone()).await {
                self.host.enabled_forwarding = before;
                return Err(error);
            }
        }
        if scope == ReconcileScope::Everything
            && let Some(expected) = self.table.clone()
        {
            let (ruleset, host) = (self.ruleset.clone(), self.host);
            let reinstalled = blocking(move || {
                let listing = ruleset.listing()?;
                if listing == Some(expected) { Ok(None) } else { Ok(Some(install(&ruleset, host)?)) }
            });
            if let Some((host, table)) = reinstalled.await? {
                (self.host, self.table) = (host, table);
                undo_log.record(format!("nftables table inet {}", self.ruleset.table()), None);
            }
        }
        forwarding::enable(&self.device.pools, &self.device.name, &mut undo_log)?;
        Ok(undo_log)
    }

    /// Returns a network state that has touched nothing in the kernel.
    #[cfg(test)]
    pub(crate) fn detached(config: &Config, pools: Pools) -> Self {
        Self {
            device: HomeDevice::detached(config, pools),
            ruleset: Ruleset::of(config, &pools, Vec::new(), Vec::new()),
            host: HostState::default(),
            forwarding: forwarding::EnabledForwarding::load(&config.state.dir),
            table: None,
            pending: None,
            drops: DropCounts::default(),
        }
    }
}

/// Returns whether a home relay's nftables table is in the kernel, which is another relay's once
/// `cleanup` has removed its own; true if this cannot be determined.
pub(crate) fn has_other_relay() -> bool {
    nft::list_chains().map_or(true, |json| firewall::has_relay(&json))
}

/// Turns off the IP forwarding that a relay with this state directory turned on, and returns each
/// sysctl that was changed with its former and its present value.
pub(crate) fn undo_forwarding(state: &Path) -> anyhow::Result<Vec<(String, [&'static str; 2])>> {
    forwarding::EnabledForwarding::load(state).undo()
}

/// Runs `work`, which calls nft, on a blocking thread: nft may be slow, and packets must not wait
/// for it.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("nft")?
}
