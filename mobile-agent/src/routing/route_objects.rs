//! Compares the kernel objects of the MOBILE route with the plan, one kind at a time: adds missing
//! objects, and deletes surplus ones.

use anyhow::Context;
use mobile_host::sysctl;
use mobile_netlink::{Family, Link, Netlink, NetlinkError, Route};

use super::conflicting_rules::is_ours;
use super::plan::{HostIpSupport, Plan, surplus};
use crate::config::{Config, Routing};
use crate::uplinks::links::REMOTE_ADDRESSES;

/// The settings and addresses of the host virtual device, and the routes and rules of the MOBILE
/// route, as the kernel has them.
pub(super) struct RouteObjects {
    netlink: Netlink,
    /// The name of the host virtual device.
    device: String,
    /// The routing table `[routing] table`.
    table: u32,
    ipv6_missing_logged: bool,
}

impl RouteObjects {
    pub(super) fn new(config: &Config, netlink: Netlink) -> Self {
        let (device, table) = (config.tunnel.device.clone(), config.routing.table);
        Self { netlink, device, table, ipv6_missing_logged: false }
    }

    /// Restores the flags and the MTU of the host virtual device, which has the properties `link`.
    /// Returns how many flags had other values.
    pub(super) async fn ensure_device(&self, link: &Link, plan: &Plan) -> anyhow::Result<u64> {
        let mut changed = 0;
        if link.multicast {
            self.netlink.clear_multicast(link.index).await?;
            changed += 1;
        }
        if !link.up {
            self.netlink.set_link_up(link.index).await?;
            changed += 1;
        }
        if let Some(mtu) = plan.mtu.map(u32::from).filter(|mtu| *mtu != link.mtu) {
            self.netlink.set_mtu(link.index, mtu).await?;
        }
        Ok(changed)
    }

    /// Restores the settings of the host virtual device in /proc/sys. Returns how many had other
    /// values.
    pub(super) fn ensure_settings(&self) -> anyhow::Result<u64> {
        let mut changed = 0;
        for (name, value) in device_sysctls(&self.device) {
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

    /// Determines whether ordinary processes can use IPv6, by looking up the route to a remote
    /// address for an unmarked packet without a source address.
    pub(super) async fn read_host_ip(&self) -> Result<HostIpSupport, NetlinkError> {
        let [_, anywhere] = REMOTE_ADDRESSES;
        match self.netlink.lookup(anywhere, 0).await {
            Ok(way) => Ok(HostIpSupport { ipv6: way.is_some() }),
            Err(error) if error.is_family_unavailable() => Ok(HostIpSupport { ipv6: false }),
            Err(error) => Err(error),
        }
    }

    /// Adds the planned rules that are missing, and returns their number.
    pub(super) async fn ensure_rules(&mut self, plan: &Plan) -> anyhow::Result<u64> {
        let present = self.netlink.rules().await?;
        let mut created = 0;
        for rule in plan.rules.iter().filter(|rule| !present.contains(rule)) {
            created += self.tolerate_missing_family(self.netlink.ensure_rule(rule).await)?;
        }
        Ok(created)
    }

    /// Adds those of the planned routes that are missing, and returns their number.
    pub(super) async fn ensure_routes(&mut self, planned: &[Route]) -> anyhow::Result<u64> {
        let present = self.routes().await?;
        let mut created = 0;
        for route in planned.iter().filter(|route| !present.contains(route)) {
            created += self.tolerate_missing_family(self.netlink.ensure_route(route).await)?;
        }
        Ok(created)
    }

    /// Adds the planned addresses that the device with this index lacks, and returns their number.
    pub(super) async fn ensure_addresses(&mut self, index: u32, plan: &Plan) -> anyhow::Result<u64> {
        let Some(planned) = &plan.addresses else { return Ok(0) };
        let present = self.netlink.addresses(index).await?;
        let mut created = 0;
        for net in planned.iter().filter(|net| !present.iter().any(|address| address.net == **net)) {
            created += self.tolerate_missing_family(self.netlink.ensure_address(index, *net).await)?;
        }
        Ok(created)
    }

    /// Deletes the routes, rules and addresses of the agent that are not in the plan.
    pub(super) async fn remove_surplus(
        &self,
        index: u32,
        plan: &Plan,
        routing: &Routing,
    ) -> anyhow::Result<()> {
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
            routes.extend(self.netlink.routes(self.table, family).await?);
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

/// Returns the kernel settings of the host virtual device: the path below /proc/sys and the
/// required value of each.
fn device_sysctls(device: &str) -> [(String, &'static str); 5] {
    [
        // Loose mode: packets from the tunnel may have any source.
        (format!("net/ipv4/conf/{device}/rp_filter"), "2"),
        // Look up the reverse path of a marked packet with its mark.
        (format!("net/ipv4/conf/{device}/src_valid_mark"), "1"),
        // Without a link-local address, no neighbour or router solicitations enter the tunnel.
        (format!("net/ipv6/conf/{device}/addr_gen_mode"), "1"),
        (format!("net/ipv6/conf/{device}/accept_ra"), "0"),
        // A distribution may disable IPv6 on new devices. Enabling it has no effect until an
        // address is assigned.
        (format!("net/ipv6/conf/{device}/disable_ipv6"), "0"),
    ]
}
