//! The relay's network state in the kernel: the home virtual device with its addresses, IP
//! forwarding, and the nftables table.
//!
//! A starting relay adopts the state that a killed one left behind. [`HomeNetwork::set_up`] sets
//! everything up and undoes a failed start; [`HomeNetwork::reconcile`] restores what other programs
//! changed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::{Context as _, bail};
use ipnet::IpNet;
use mobile_host::sysctl;
use mobile_netlink::netfilter::{self, ConntrackEntry};
use mobile_netlink::{Netlink, NetlinkError, PROTOCOL_KERNEL, Route, TABLE_MAIN, table_exists};
use mobile_transport::tun::{DeviceLifetime, Tun};
use tracing::{info, warn};

use self::nft::{HostState, Ruleset};
use self::rules::{COUNTERS, DEVICE_GROUP, without_elements};
use self::undo_log::{UndoAction, UndoLog};
use crate::config::Config;
use crate::metrics::DropReason;
use crate::pool::Pools;

mod firewall;
mod forwarding;
pub(crate) mod nft;
pub(crate) mod ports;
pub(crate) mod rules;
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
    netlink: Netlink,
    device: String,
    index: u32,
    mtu: u16,
    pools: Pools,
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
    /// The packet counts of the nftables counters [`COUNTERS`], as last read.
    counted: [u64; COUNTERS.len()],
    /// The packets that the nftables rules have dropped since the last call of
    /// [`Self::take_drops`], for each of [`COUNTERS`].
    drops: [u64; COUNTERS.len()],
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
        let device = config.tunnel.device.clone();
        let netlink = Netlink::new()?;
        let adopted = match netlink.link_index(&device).await {
            Ok(_) => true,
            Err(NetlinkError::NoSuchLink(_)) => false,
            Err(error) => return Err(error.into()),
        };
        // Make the device persistent: while the relay restarts, replies to clients are dropped, as
        // on a slow link. An "unreachable" error instead would end their connections.
        let tun = Tun::open(&device, DeviceLifetime::Persistent, config.tunnel.offload)?;
        if !adopted {
            undo_log.record(format!("device {device}"), UndoAction::RemoveDevice(device.clone()));
        }
        let index = netlink.link_index(&device).await?;
        let mtu = config.tunnel.mtu;
        let forwarding = forwarding::EnabledForwarding::load(&config.state.dir);
        let (counted, drops) = ([0; COUNTERS.len()], [0; COUNTERS.len()]);
        let (pools, host) = (*pools, HostState::default());
        let (table, pending) = (None, None);
        let mut home = Self {
            netlink,
            device,
            index,
            mtu,
            pools,
            ruleset,
            host,
            forwarding,
            table,
            pending,
            counted,
            drops,
        };
        home.ensure_device(undo_log).await?;
        let fresh = !nft::exists(&home.ruleset.table()).unwrap_or(false);
        home.host.enabled_forwarding = home.forwarding.update(&pools);
        let rules = for_host(&home.ruleset, home.host);
        home.host = rules.host;
        if apply_or_explain(&rules)? {
            if fresh {
                undo_log.record("the nftables rules", UndoAction::RemoveTable(rules.table()));
            }
            home.table = Some(applied_listing(&rules)?);
        }
        // Enable forwarding last: packets flow from here on, and the rules are already in place.
        forwarding::enable(&pools, &home.device, undo_log)?;
        info!(
            device = home.device,
            adopted,
            addresses = ?pools.own_addresses(),
            masquerade = config.nat.masquerade,
            "home virtual device is up"
        );
        Ok((home, tun))
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
        self.counted = [0; COUNTERS.len()];
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
        let all = self.netlink.all_addresses().await?;
        let others = all.iter().filter(|address| address.index != self.index);
        let mut local: Vec<IpNet> = others.map(|address| address.net.trunc()).collect();
        local.sort_unstable();
        local.dedup();
        Ok(local)
    }

    /// Returns the number of packets that the nftables rules have dropped since the last call, for
    /// each reason.
    pub(crate) fn take_drops(&mut self) -> impl Iterator<Item = (DropReason, u64)> + use<> {
        self.count_drops();
        let drops = std::mem::take(&mut self.drops);
        COUNTERS.into_iter().zip(drops).map(|((_, reason), packets)| (reason, packets))
    }

    fn count_drops(&mut self) {
        if self.table.is_none() {
            return;
        }
        // If the counters cannot be read now, the next call counts these packets too.
        let counters = netfilter::counters(&self.ruleset.table()).unwrap_or_default();
        for (index, (name, _)) in COUNTERS.iter().enumerate() {
            let Some((_, now)) = counters.iter().find(|(counter, _)| counter == name) else { continue };
            let before = std::mem::replace(&mut self.counted[index], *now);
            // A lower count means that another program replaced the table.
            self.drops[index] += if *now < before { *now } else { now - before };
        }
    }

    /// Checks the device, addresses and forwarding, and the nftables rules too if `rules`; restores
    /// what differs, and returns the names of what was restored.
    pub(crate) async fn reconcile(&mut self, rules: bool) -> Result<Vec<String>, ReconcileError> {
        self.check_device().await?;
        match self.restore(rules).await {
            Ok(undo_log) => Ok(undo_log.into_names()),
            Err(error) => {
                // The device may have disappeared in the meantime.
                self.check_device().await?;
                Err(error.into())
            }
        }
    }

    /// Checks by its index that the device is the one that the relay has open, because another
    /// program may have created a new device of the same name.
    async fn check_device(&self) -> Result<(), ReconcileError> {
        match self.netlink.link_index(&self.device).await {
            Ok(index) if index == self.index => Ok(()),
            Ok(_) | Err(NetlinkError::NoSuchLink(_)) => Err(ReconcileError::DeviceGone(self.device.clone())),
            Err(error) => Err(ReconcileError::Other(error.into())),
        }
    }

    async fn restore(&mut self, rules: bool) -> anyhow::Result<UndoLog> {
        let mut undo_log = UndoLog::default();
        if let Some(pending) = self.pending.clone() {
            self.change(pending).await?;
            info!("installed the nftables rules after an earlier failure");
        }
        self.ensure_device(&mut undo_log).await?;
        let enabled_forwarding = self.forwarding.update(&self.pools);
        if enabled_forwarding != self.host.enabled_forwarding {
            // Another program turned forwarding off, and the relay is about to turn it on.
            let before = std::mem::replace(&mut self.host.enabled_forwarding, enabled_forwarding);
            if let Err(error) = self.change(self.ruleset.clone()).await {
                self.host.enabled_forwarding = before;
                return Err(error);
            }
        }
        if rules && let Some(expected) = self.table.clone() {
            let (ruleset, host) = (self.ruleset.clone(), self.host);
            let reinstalled = blocking(move || {
                let listing = ruleset.listing()?.as_deref().map(without_elements);
                if listing == Some(expected) { Ok(None) } else { Ok(Some(install(&ruleset, host)?)) }
            });
            if let Some((host, table)) = reinstalled.await? {
                (self.host, self.table) = (host, table);
                undo_log.record(format!("nftables table inet {}", self.ruleset.table()), None);
            }
        }
        forwarding::enable(&self.pools, &self.device, &mut undo_log)?;
        Ok(undo_log)
    }

    /// Returns a network state that has touched nothing in the kernel.
    #[cfg(test)]
    pub(crate) fn detached(config: &Config, pools: Pools) -> Self {
        Self {
            netlink: Netlink::new().unwrap(),
            device: config.tunnel.device.clone(),
            index: 0,
            mtu: config.tunnel.mtu,
            pools,
            ruleset: Ruleset::of(config, &pools, Vec::new(), Vec::new()),
            host: HostState::default(),
            forwarding: forwarding::EnabledForwarding::load(&config.state.dir),
            table: None,
            pending: None,
            counted: [0; COUNTERS.len()],
            drops: [0; COUNTERS.len()],
        }
    }

    /// Ensures the home virtual device's sysctls, MTU, group, link state, addresses and routes.
    async fn ensure_device(&self, undo_log: &mut UndoLog) -> anyhow::Result<()> {
        let Self { netlink, device, index, mtu, pools, .. } = self;
        let (index, mtu) = (*index, u32::from(*mtu));
        // Strict reverse-path filtering would drop clients' packets where another route to their
        // addresses is better; the relay checks their sources itself, more strictly.
        undo_log
            .set_sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "2")
            .context("home virtual device")?;
        if pools.ipv6().is_some() {
            // No link-local address and no router solicitations: only clients are on this link.
            for (name, value) in [("disable_ipv6", "0"), ("addr_gen_mode", "1"), ("accept_ra", "0")] {
                undo_log
                    .set_sysctl(&format!("net/ipv6/conf/{device}/{name}"), value)
                    .context("home virtual device")?;
            }
        }
        let link = netlink.link(device).await?;
        if link.mtu != mtu {
            netlink.set_mtu(index, mtu).await?;
            undo_log.record(format!("the MTU of {device}"), None);
        }
        if link.group != DEVICE_GROUP {
            netlink.set_group(index, DEVICE_GROUP).await?;
            undo_log.record(format!("the group of {device}"), None);
        }
        if !link.up {
            netlink.set_link_up(index).await?;
            undo_log.record(format!("the link state of {device}"), None);
        }
        let own = pools.own_addresses();
        for &net in &own {
            if netlink.ensure_address(index, net).await? {
                undo_log.record(format!("address {net} of {device}"), UndoAction::RemoveAddress(index, net));
            }
            self.ensure_route(net, undo_log).await?;
        }
        for address in netlink.addresses(index).await? {
            if !own.contains(&address.net) && !is_link_local(address.net) {
                info!(device, address = %address.net, "removing an address that is not in the configuration");
                netlink.del_address(index, address.net).await?;
            }
        }
        Ok(())
    }

    /// Ensures the route to the pool of the address `own`. The kernel adds the route together with
    /// the address, but another program may have removed it.
    async fn ensure_route(&self, own: IpNet, undo_log: &mut UndoLog) -> anyhow::Result<()> {
        let Some(client) = first_client(own) else { return Ok(()) };
        let route = self.netlink.lookup(client, 0).await?;
        if route.is_some_and(|route| route.oif == Some(self.index)) {
            return Ok(());
        }
        let source = own.addr().is_ipv4().then_some(own.addr());
        let route = Route::device(own.trunc(), TABLE_MAIN, self.index, source);
        // Add the route as the kernel does, so that it is removed with the address.
        if self.netlink.ensure_route(&Route { protocol: PROTOCOL_KERNEL, ..route }).await? {
            undo_log.record(format!("route to {}", own.trunc()), None);
        }
        Ok(())
    }
}

/// Returns the address after `own`, the relay's own, or `None` if that is outside the pool.
fn first_client(own: IpNet) -> Option<IpAddr> {
    let next = match own.addr() {
        IpAddr::V4(address) => IpAddr::from(address.to_bits().checked_add(1).map(Ipv4Addr::from_bits)?),
        IpAddr::V6(address) => IpAddr::from(address.to_bits().checked_add(1).map(Ipv6Addr::from_bits)?),
    };
    own.contains(&next).then_some(next)
}

/// The host state that newly installed nftables rules assume, and the relay's table as nft lists
/// it, or `None` without nftables.
type Installed = (HostState, Option<String>);

/// Returns the ruleset for the host state `host`, after detecting other firewalls anew.
fn for_host(ruleset: &Ruleset, host: HostState) -> Ruleset {
    let host = HostState { has_firewall: firewall::filters_this_host(), ..host };
    Ruleset { host, ..ruleset.clone() }
}

/// Installs the ruleset, and returns the host state that it assumes and the resulting nftables
/// table.
fn install(ruleset: &Ruleset, host: HostState) -> anyhow::Result<Installed> {
    let rules = for_host(ruleset, host);
    Ok((rules.host, apply_or_explain(&rules)?.then(|| applied_listing(&rules)).transpose()?))
}

/// Installs the whole ruleset or nothing, and returns whether it is in force.
///
/// Without nftables the relay still serves, provided that nothing in its configuration depends on
/// the rules. If a table of the relay is already in the kernel, a failure is always an error,
/// because the old rules, including those of deleted forwards, would stay in force.
fn apply_or_explain(ruleset: &Ruleset) -> anyhow::Result<bool> {
    let Err(error) = ruleset.apply() else { return Ok(true) };
    let table = ruleset.table();
    match table_exists(&table) {
        Ok(true) => Err(error.context(format!(
            "cannot replace the nftables rules, and the former ones stay in force: repair nft, or remove \
             them with `nft delete table inet {table}`"
        ))),
        _ if ruleset.is_required() => Err(error.context(nft::HINT)),
        Ok(false) => {
            info!(
                "nftables is not available: no connection limits for clients, and no TCP MSS clamping: {error:#}"
            );
            Ok(false)
        }
        Err(unknown) => Err(error.context(format!(
            "cannot install the nftables rules, nor tell whether former ones are in force ({unknown}): \
             repair nft"
        ))),
    }
}

/// Returns the newly applied ruleset as nft lists it.
fn applied_listing(ruleset: &Ruleset) -> anyhow::Result<String> {
    let missing = || {
        let table = ruleset.table();
        format!("another program removed table inet {table} right after its creation: find out which one")
    };
    ruleset.listing()?.as_deref().map(without_elements).with_context(missing)
}

/// Installs `ruleset` in place of `former`, which is in the kernel if `had_table`. Restores
/// `former` when the installation fails half-way.
fn replace_rules(
    former: &Ruleset,
    had_table: bool,
    ruleset: &Ruleset,
    host: HostState,
) -> anyhow::Result<Installed> {
    let rules = for_host(ruleset, host);
    // nft applies a script as one transaction: a failure changes nothing.
    if !apply_or_explain(&rules)? {
        return Ok((rules.host, None));
    }
    let listing = applied_listing(&rules).map_err(|error| {
        let undone = if had_table {
            Ruleset { host: rules.host, ..former.clone() }.apply()
        } else {
            nft::remove(&rules.table()).map(|_removed| ())
        };
        match undone {
            Ok(()) => error.context("cannot read back the new nftables rules, the former ones are in force"),
            Err(second) => error.context(format!(
                "cannot read back the new nftables rules, nor put the former ones back ({second:#}): they \
                 are restored when nft works again"
            )),
        }
    })?;
    Ok((rules.host, Some(listing)))
}

/// Deletes the connections from and to these addresses from the kernel's connection tracking table,
/// so that the next holder of an address inherits none.
pub(crate) fn delete_connections(addresses: &[IpAddr]) {
    if addresses.is_empty() {
        return;
    }
    delete_connections_where(|connection| connection.involves(|address| addresses.contains(&address)));
}

/// Deletes the connections that `is_over` selects from the kernel's connection tracking table.
pub(crate) fn delete_connections_where(is_over: impl Fn(&ConntrackEntry) -> bool) {
    match netfilter::delete_connections(is_over) {
        Ok(0) => {}
        Ok(connections) => {
            info!(connections, "deleted tracked connections of addresses that changed their holder");
        }
        Err(error) => warn!(
            "cannot delete the tracked connections of former clients, which time out within days: {error}; \
             `conntrack -F` deletes all connections"
        ),
    }
}

/// Returns whether a home relay's nftables table is in the kernel, which is another relay's once
/// `cleanup` has removed its own; true if this cannot be determined.
pub(crate) fn has_other_relay() -> bool {
    nft::list_chains().map_or(true, |json| firewall::has_relay(&json))
}

/// Turns off the IP forwarding that a relay with this state directory turned on, and returns the
/// names of the sysctls.
pub(crate) fn undo_forwarding(state: &Path) -> anyhow::Result<Vec<&'static str>> {
    forwarding::EnabledForwarding::load(state).undo()
}

/// Runs `work`, which calls nft, on a blocking thread: nft may be slow, and packets must not wait
/// for it.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("nft")?
}

fn is_link_local(net: IpNet) -> bool {
    match net.addr() {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
