//! Computes the MOBILE route as pure data: the kernel objects for a configuration and an
//! assignment.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use mobile_netlink::{Family, Route, Rule};

use super::assignment::Assignment;
use crate::config;

/// The metric that the kernel gives an IPv6 route without one. The plan sets this metric
/// explicitly, so that a route read back from the kernel equals the planned one.
const IPV6_METRIC: u32 = 1024;

/// The IPv4 multicast and link-local networks, to which mobile processes send on the link and not
/// through the tunnel. IPv6 needs no such routes, because the kernel's own multicast routes take
/// precedence, and an application names the link of a link-local address.
const STAYS_LOCAL: [Ipv4Net; 2] = [
    Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4),
    Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16),
];

/// The IP families that ordinary processes of this host can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HostIpSupport {
    /// Whether an ordinary process has an IPv6 route to the Internet.
    ///
    /// Without such a route, the kernel picks the only global address as source, which is the
    /// persistent one, and looks up the route again. The rule for packets from a persistent address
    /// would then lead an ordinary process into the tunnel, so the plan omits that rule.
    pub(crate) ipv6: bool,
}

/// The complete set of kernel objects of the MOBILE route. Any other route in the agent's table,
/// and any other rule of the agent's form, is surplus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The addresses that the host virtual device must have; `None` before the first assignment,
    /// and the present addresses are then kept.
    pub(crate) addresses: Option<Vec<IpNet>>,
    /// The MTU of the host virtual device; with `None`, the present MTU is kept.
    pub(crate) mtu: Option<u16>,
    /// The routes of the agent's table. The `unreachable` routes come first, so that no packet is
    /// routed by a later table while the others are added.
    pub(crate) routes: Vec<Route>,
    /// The rules that lead to the agent's table: for packets with the mark, and for replies, which
    /// are packets from a persistent address with or without the mark.
    pub(crate) rules: Vec<Rule>,
}

/// Computes the plan for the host virtual device with index `device`. The rules for the mark get
/// the priority `priority`, and those for replies the next one.
pub(crate) fn plan(
    routing: &config::Routing,
    priority: u32,
    mtu: Option<u16>,
    device: u32,
    assignment: Option<&Assignment>,
    host_ip: HostIpSupport,
) -> Plan {
    let table = routing.table;
    let persistent: Vec<IpAddr> = assignment.map(Assignment::addresses).unwrap_or_default();
    let unreachable = Family::ALL.map(|family| Route::unreachable(family, table));
    let local = STAYS_LOCAL.map(IpNet::V4);
    let asked = routing.bypass.iter().map(IpNet::trunc).filter(|net| !local.contains(net));
    let bypass = local.into_iter().chain(asked).map(|net| with_metric(Route::throw(net, table), net.into()));
    let default = persistent.iter().map(|&address| {
        let family = Family::from(address);
        with_metric(Route::device(family.any(), table, device, Some(address)), family)
    });
    let marked = Family::ALL.map(|family| Rule {
        priority,
        family,
        fwmark: Some((routing.mark, routing.mark_mask)),
        from: None,
        table,
    });
    let replies = persistent.iter().filter(|address| address.is_ipv4() || host_ip.ipv6);
    let from = replies.map(|&address| Rule {
        priority: priority + 1,
        family: address.into(),
        fwmark: None,
        from: Some(IpNet::from(address)),
        table,
    });
    let mut routes: Vec<Route> = unreachable.into_iter().chain(bypass).collect();
    // A bypass of all addresses replaces the default route of the MOBILE route.
    let taken: Vec<IpNet> = routes.iter().skip(unreachable.len()).map(|route| route.dst).collect();
    routes.extend(default.filter(|route| !taken.contains(&route.dst)));
    Plan {
        addresses: assignment.map(|_| persistent.iter().copied().map(IpNet::from).collect()),
        mtu: mtu.or(assignment.map(|assignment| assignment.mtu)),
        routes,
        rules: marked.into_iter().chain(from).collect(),
    }
}

fn with_metric(route: Route, family: Family) -> Route {
    Route { metric: if family == Family::V6 { IPV6_METRIC } else { 0 }, ..route }
}

/// Returns the routes, rules or addresses in `present` that `ours` accepts as the agent's and that
/// are not in `planned`.
pub(crate) fn surplus<T: PartialEq + Copy>(
    present: &[T],
    planned: &[T],
    ours: impl Fn(&T) -> bool,
) -> Vec<T> {
    present.iter().filter(|item| ours(item) && !planned.contains(item)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobile_netlink::RouteKind;

    const EVERYWHERE: HostIpSupport = HostIpSupport { ipv6: true };

    fn assigned() -> Assignment {
        Assignment {
            ipv4: Some("10.77.0.2".parse().unwrap()),
            ipv6: Some("fd77::2".parse().unwrap()),
            mtu: 1400,
            dns: Vec::new(),
        }
    }

    #[test]
    fn before_the_relay_was_ever_reached_marked_traffic_is_unreachable() {
        let plan = plan(&config::Routing::default(), 4900, None, 7, None, EVERYWHERE);
        assert_eq!(plan.addresses, None);
        let (last, local): (Vec<&Route>, Vec<&Route>) =
            plan.routes.iter().partition(|route| route.kind == RouteKind::Unreachable);
        assert!(last.len() == 2 && last.iter().all(|route| route.metric == u32::MAX));
        let local: Vec<String> = local.iter().map(|route| route.dst.to_string()).collect();
        assert_eq!(local, ["224.0.0.0/4", "169.254.0.0/16"]);
        assert_eq!(plan.rules.len(), 2);
        assert!(
            plan.rules
                .iter()
                .all(|rule| rule.fwmark == Some((0x4d00_0000, 0xff00_0000)) && rule.table == 7700)
        );
    }

    #[test]
    fn an_assignment_gives_addresses_default_routes_and_rules_of_both_families() {
        let routing =
            config::Routing { bypass: vec!["192.168.1.7/16".parse().unwrap()], ..Default::default() };
        let plan = plan(&routing, 4900, None, 7, Some(&assigned()), EVERYWHERE);
        assert_eq!(
            plan.addresses.unwrap(),
            ["10.77.0.2/32".parse().unwrap(), "fd77::2/128".parse().unwrap()]
        );
        assert_eq!(plan.mtu, Some(1400));
        let throw: Vec<IpNet> = plan
            .routes
            .iter()
            .filter(|route| route.kind == RouteKind::Throw)
            .map(|route| route.dst)
            .collect();
        let expected = ["224.0.0.0/4", "169.254.0.0/16", "192.168.0.0/16"];
        assert_eq!(throw, expected.map(|net| net.parse().unwrap()));
        let sources: Vec<Option<IpAddr>> = plan
            .routes
            .iter()
            .filter_map(|route| match route.kind {
                RouteKind::Unicast { oif: 7, gateway: None, prefsrc } => Some(prefsrc),
                _ => None,
            })
            .collect();
        assert_eq!(sources, [Some("10.77.0.2".parse().unwrap()), Some("fd77::2".parse().unwrap())]);
        let from: Vec<_> =
            plan.rules.iter().filter(|rule| rule.priority == 4901).map(|rule| rule.from.unwrap()).collect();
        assert_eq!(from, ["10.77.0.2/32".parse().unwrap(), "fd77::2/128".parse().unwrap()]);
    }

    #[test]
    fn without_host_ipv6_there_is_no_rule_for_ipv6_replies() {
        let routing = config::Routing::default();
        let with = plan(&routing, 4900, None, 7, Some(&assigned()), EVERYWHERE);
        let without = plan(&routing, 4900, None, 7, Some(&assigned()), HostIpSupport { ipv6: false });
        let gone = surplus(&with.rules, &without.rules, |_| true);
        let gone: Vec<_> = gone.iter().map(|rule| rule.from.unwrap()).collect();
        assert_eq!(gone, ["fd77::2/128".parse().unwrap()]);
        // All other objects stay: mobile processes keep their IPv6.
        assert_eq!(Plan { rules: Vec::new(), ..with }, Plan { rules: Vec::new(), ..without });
    }

    #[test]
    fn the_configured_mtu_wins() {
        let plan = plan(&config::Routing::default(), 4900, Some(1300), 7, Some(&assigned()), EVERYWHERE);
        assert_eq!(plan.mtu, Some(1300));
    }

    #[test]
    fn an_ipv4_only_relay_leaves_ipv6_unreachable() {
        let plan = plan(
            &config::Routing::default(),
            4900,
            None,
            7,
            Some(&Assignment { ipv6: None, ..assigned() }),
            EVERYWHERE,
        );
        let ipv6: Vec<_> = plan.routes.iter().filter(|route| Family::from(route.dst) == Family::V6).collect();
        assert_eq!(ipv6.len(), 1);
        assert_eq!(ipv6[0].kind, RouteKind::Unreachable);
    }

    #[test]
    fn a_bypass_of_everything_replaces_the_mobile_route() {
        let routing = config::Routing { bypass: vec!["0.0.0.0/0".parse().unwrap()], ..Default::default() };
        let plan = plan(&routing, 4900, None, 7, Some(&assigned()), EVERYWHERE);
        let ipv4: Vec<_> = plan.routes.iter().filter(|route| Family::from(route.dst) == Family::V4).collect();
        let any: Vec<_> = ipv4.iter().filter(|route| route.dst.prefix_len() == 0).collect();
        assert_eq!(any.len(), 2);
        assert!(any.iter().any(|route| route.kind == RouteKind::Throw));
    }

    #[test]
    fn surplus_is_ours_and_unplanned() {
        assert_eq!(surplus(&[1, 2, 3, 10], &[2], |item| *item < 10), [1, 3]);
    }
}
