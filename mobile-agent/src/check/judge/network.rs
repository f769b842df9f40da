//! Judges the network configuration of this host.

use mobile_host::check::Finding;
use mobile_netlink::ListedRule;

use crate::check::facts::Links;
use crate::config::Routing;
use crate::routing::conflicting_rules::{conflicting_rules, is_listed_as_ours, rule_priority};
use crate::status::Refusal;

/// The maximum number of links that are listed if none is usable, because a host may have a
/// thousand.
const MAX_LISTED_LINKS: usize = 8;

/// Returns the findings about the network configuration, in the order of the report.
pub(super) fn judge(links: &Links, routing: &Routing) -> Vec<Finding> {
    let mut findings = rules(links, routing);
    findings.push(table(links, routing));
    findings.extend(refused(links));
    findings.extend(conflicts(links));
    findings.extend(rp_filter(links));
    findings.extend(uplinks(links));
    findings
}

/// Judges the routing rules of other programs that come before the agent's rules, or match the
/// agent's firewall mark.
fn rules(links: &Links, routing: &Routing) -> Vec<Finding> {
    let Routing { mark, mark_mask, .. } = *routing;
    let others = || links.rules.iter().filter(|rule| !is_listed_as_ours(rule, routing));
    // The priority of the agent's rules, or the one they will have when the agent starts.
    let there = links.rules.iter().filter(|rule| is_listed_as_ours(rule, routing) && rule.fwmark.is_some());
    let rule_priority = there
        .map(|rule| rule.priority)
        .min()
        .or_else(|| rule_priority(&links.rules, routing))
        .unwrap_or(routing.rule_priority);
    let before =
        |rule: &ListedRule| conflicting_rules(&links.rules, routing, rule_priority).any(|it| it == rule);
    let mut findings: Vec<Finding> = conflicting_rules(&links.rules, routing, rule_priority)
        .map(|rule| {
            let next = format!(
                "restart the agent, which puts its rules first; if the other rule comes first again, set [routing] \
                 rule_priority below {}",
                rule.priority
            );
            if rule.suppresses_default_route {
                let seen = format!(
                    "the {} rule `{rule}` comes before the agent's ({rule_priority}): mobile processes reach the \
                     networks of this host directly",
                    rule.family
                );
                Finding::warn("rules", seen, next)
            } else {
                let seen = format!(
                    "the {} rule `{rule}` comes before the agent's ({rule_priority}) and takes every packet of \
                     mobile processes (wg-quick and other full-tunnel VPNs add such rules)",
                    rule.family
                );
                Finding::fail("rules", seen, next)
            }
        })
        .collect();
    findings.extend(
        others()
            .filter(|rule| rule.priority > 0 && !before(rule))
            .filter(|rule| rule.conflicts_with_mark(mark, mark_mask))
            .map(|rule| {
                let seen =
                    format!("the {} rule `{rule}` matches the mark of mobile sockets too", rule.family);
                Finding::warn(
                    "mark",
                    seen,
                    "choose another [routing] mark, with bits that no other program uses",
                )
            }),
    );
    if findings.is_empty() {
        findings
            .push(Finding::ok("rules", "no rule of another program takes the packets of mobile processes"));
    }
    findings
}

/// Judges whether another program uses the agent's routing table.
pub(super) fn table(links: &Links, routing: &Routing) -> Finding {
    let table = &routing.table;
    let next = "set [routing] table to a number that no other program uses; if the route is of an earlier \
                configuration, run `mobile cleanup`";
    if let Some((dst, device)) = links.foreign_routes.first() {
        return Finding::fail(
            "table",
            format!("another program uses table {table}: it has a route to {dst} over {device}"),
            next,
        );
    }
    match links.rules.iter().find(|rule| rule.table == Some(*table) && !is_listed_as_ours(rule, routing)) {
        Some(rule) => Finding::fail(
            "table",
            format!("another program uses table {table}: the rule `{rule}` leads there"),
            next,
        ),
        None => Finding::ok("table", format!("no other program uses table {table}")),
    }
}

/// Judges the parts of the relay's assignment that this host refuses. A refused resolver is only a
/// warning, but without an address the connections of mobile processes wait.
fn refused(links: &Links) -> Vec<Finding> {
    let finding = |refusal: &Refusal| match refusal.kind.as_str() {
        "resolver" => Finding::warn("resolver", &refusal.cause, &refusal.next_step),
        _ => Finding::fail("addresses", &refusal.cause, &refusal.next_step),
    };
    links.refused.iter().map(finding).collect()
}

/// Judges whether a device of this host has a persistent address or is on a network that contains
/// one. Returns `None` if no persistent address is known.
fn conflicts(links: &Links) -> Option<Finding> {
    let held = links.persistent.iter().find_map(|address| {
        let holder = links.local.iter().find(|(_, net)| net.contains(address));
        holder.map(|(device, net)| (address, device, net))
    });
    let Some((address, device, net)) = held else {
        let persistent: Vec<String> = links.persistent.iter().map(ToString::to_string).collect();
        return (!persistent.is_empty()).then(|| Finding::ok("addresses", persistent.join(", ")));
    };
    let next = "choose another [pool] on the relay (`home-relay init` chooses a random one)";
    Some(if net.addr() == *address {
        Finding::fail("addresses", format!("{device} has the persistent address {address}"), next)
    } else {
        Finding::warn(
            "addresses",
            format!("the network {net} on {device} contains the persistent address {address}"),
            next,
        )
    })
}

fn rp_filter(links: &Links) -> Option<Finding> {
    // The value 1 is strict. A single uplink has the default route, so a strict filter does no
    // harm.
    let strict: Vec<&str> = links
        .rp_filter
        .iter()
        .filter(|(_, filter)| *filter == 1)
        .map(|(device, _)| device.as_str())
        .collect();
    let several = links.rp_filter.len() > 1;
    match (several, strict.is_empty()) {
        (false, _) => None,
        (true, true) => Some(Finding::ok("rp_filter", "not strict on any uplink")),
        (true, false) => Some(Finding::warn(
            "rp_filter",
            format!(
                "strict on {}: replies are dropped on an uplink that does not have the default route",
                strict.join(", ")
            ),
            "run `sysctl -w net.ipv4.conf.all.rp_filter=2`, which is systemd's setting",
        )),
    }
}

fn uplinks(links: &Links) -> Option<Finding> {
    if !links.decision.usable.is_empty() {
        return None;
    }
    let listed = links.decision.verdicts.iter().take(MAX_LISTED_LINKS).filter_map(|verdict| {
        verdict.obstacle.map(|obstacle| format!("{}: {}", verdict.name, obstacle.description()))
    });
    let listed: Vec<String> = listed.collect();
    let seen = if listed.is_empty() { "this host has no link".to_owned() } else { listed.join(", ") };
    Some(Finding::fail("uplinks", format!("no uplink can carry the tunnel: {seen}"), "connect to a network"))
}
