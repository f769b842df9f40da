//! Removes the MOBILE route. Attempts every step, returns every error, and ignores objects that are
//! already gone.

use mobile_netlink::{Family, Netlink, NetlinkError, Rule};
use mobile_transport::tun;

use super::conflicting_rules::is_ours;
use super::ingress;
use crate::config::Config;
use crate::uplinks::detour;

/// The treatment of the host virtual device when the MOBILE route is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HostDevice {
    /// The device is removed, too.
    Remove,
    /// The device stays.
    Keep,
    /// The device belongs to another agent, as its ingress filter does: both stay.
    Foreign,
}

/// Removes the host virtual device (unless it is kept), the ingress filter, the rules and the
/// routes of `tables`, in this order. As long as the rules exist, packets with the mark or a
/// persistent source address thus match the `unreachable` route of the agent's table and do not use
/// the ordinary route.
pub(crate) async fn remove(
    config: &Config,
    netlink: &Netlink,
    device: HostDevice,
    tables: &[u32],
) -> Vec<anyhow::Error> {
    let mut errors = Vec::new();
    if device == HostDevice::Remove {
        // The removal blocks while the device is in use, perhaps by a task of this process.
        let name = config.tunnel.device.clone();
        match tokio::task::spawn_blocking(move || tun::remove(&name)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => errors.push(error.into()),
            Err(error) => errors.push(error.into()),
        }
    }
    if device != HostDevice::Foreign {
        errors.extend(ingress::remove(config));
    }
    let mut note = |result: Result<bool, NetlinkError>| {
        if let Err(error) = result {
            errors.push(anyhow::Error::new(error));
        }
    };
    let routing = &config.routing;
    let detours = Family::ALL.map(|family| detour::rule(family, routing.relay_table));
    match netlink.rules().await {
        Ok(rules) => {
            let is_ours = |rule: &&Rule| is_ours(rule, routing) || detours.contains(rule);
            for rule in rules.iter().filter(|rule| tables.contains(&rule.table)).filter(is_ours) {
                note(netlink.del_rule(rule).await);
            }
        }
        Err(error) => note(Err(error)),
    }
    for (family, table) in
        Family::ALL.into_iter().flat_map(|family| tables.iter().map(move |it| (family, *it)))
    {
        match netlink.routes(table, family).await {
            Ok(routes) => {
                for route in &routes {
                    note(netlink.del_route(route).await);
                }
            }
            Err(error) => note(Err(error)),
        }
    }
    errors
}
