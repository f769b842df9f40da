//! Describes the route of a connection in sentences. All functions are pure.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use mobile_host::text::printable;
use mobile_netlink::{Family, ListedRule, RouteLookup};
use serde::Serialize;

use crate::config::Routing;
use crate::selection::instance::Instance;
use crate::selection::process::{Connection, Process};

/// The configuration and the state of the host on which the route of a connection depends.
pub(super) struct HostState<'a> {
    /// The section `[routing]` of the configuration.
    pub(super) routing: &'a Routing,
    /// The name of the host virtual device.
    pub(super) device: &'a str,
    /// The names of network devices, by index.
    pub(super) links: HashMap<u32, String>,
    /// The routing rules of all programs, in the kernel's order.
    pub(super) rules: Vec<ListedRule>,
    /// Whether the eBPF programs are in force; `None` if this user may not see them.
    pub(super) programs: Option<bool>,
    /// Whether new connections of mobile processes use the ordinary route because there is no
    /// session; false if this user may not see it.
    pub(super) open: bool,
    /// Whether the tunnel has a session; `None` if unknown.
    pub(super) session: Option<bool>,
}

/// A connection that a process is about to make.
#[derive(Debug, Clone, Copy)]
pub(super) struct NewConnection {
    /// Whether the process is mobile.
    pub(super) mobile: bool,
    /// The destination of the connection.
    pub(super) to: IpAddr,
}

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    /// Goes through the tunnel.
    Tunnel,
    /// Goes over the ordinary route.
    Direct,
    /// Stays on this host.
    Local,
    /// Waits for a session.
    Waits,
    /// Fails for lack of a route.
    Fails,
}

/// Describes a process and whether it is mobile.
pub(super) fn attribute(process: &Process, mobile: bool, cgroup: &str) -> String {
    let Process { pid, comm, .. } = process;
    let state = if mobile { "is mobile" } else { "is not mobile" };
    let place = if mobile { "in the mobile cgroup" } else { "outside the mobile cgroup" };
    let (comm, cgroup) = (printable(comm), printable(cgroup));
    format!("process {pid} ({comm}) {state}: it is {place}, at {cgroup}")
}

/// Describes a running instance of the same program that is not mobile and may connect in place of
/// this process.
pub(super) fn instance(process: &Process, instance: &Instance) -> String {
    let Instance { pid, command, pids } = instance;
    let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
    let (own, command) = (printable(&process.comm), printable(command));
    format!(
        "{own} also runs outside the tunnel, as process {pid} ({command}), and may do the work of this process there: \
         to make its next connections mobile: mobile attach {}",
        pids.join(" ")
    )
}

impl HostState<'_> {
    /// Returns whether a new connection gets the firewall mark that leads into the tunnel; `mobile`
    /// says whether its process is mobile.
    pub(super) fn is_marked(&self, mobile: bool) -> bool {
        mobile && !self.open
    }

    /// Describes a new connection in one line each for the hook and mark, the rule, the route and
    /// the outcome.
    pub(super) fn new_connection(&self, new: NewConnection, route: Option<&RouteLookup>) -> Vec<String> {
        let Routing { mark, mark_mask, .. } = *self.routing;
        let mut lines = Vec::new();
        lines.push(match (new.mobile, self.programs) {
            (false, _) => "no mark: the hooks do not change sockets of ordinary processes".to_owned(),
            (true, _) if self.open => {
                "no mark: there is no session, and [routing] on_failure is \"open\"".to_owned()
            }
            (true, Some(false)) => {
                format!("no mark: no eBPF programs are in force; start the agent, then the mark is {mark:#x}")
            }
            (true, _) => {
                let version = if new.to.is_ipv4() { 4 } else { 6 };
                format!(
                    "mark {mark:#x}/{mark_mask:#x}, set by the hooks sock_create, connect{version} and \
                     sendmsg{version}"
                )
            }
        });
        lines.push(self.rule(new, route));
        lines.push(self.describe_route(route));
        lines.push(self.outcome(new, route).1);
        lines
    }

    /// Describes the route of a connected socket in one line. `mobile` says whether the process is
    /// mobile, and `marked` whether the socket uses the tunnel.
    pub(super) fn socket(
        &self,
        connection: &Connection,
        mobile: bool,
        marked: bool,
        route: Option<&RouteLookup>,
    ) -> String {
        let Connection { transport, local, remote } = connection;
        let protocol = transport.word();
        let kind = match self.bypass(remote.ip()).filter(|_| mobile && !marked) {
            Some(net) => format!("direct, because {net} is bypassed (`mobile bypass list`)"),
            None if marked => "through the tunnel".to_owned(),
            None => "direct".to_owned(),
        };
        format!("its socket {protocol} {local} -> {remote}: {kind}, {}", self.describe_route(route))
    }

    /// Returns the smallest bypassed network that contains the destination.
    fn bypass(&self, to: IpAddr) -> Option<&IpNet> {
        let nets = self.routing.bypass.iter().filter(|net| net.contains(&to));
        nets.max_by_key(|net| net.prefix_len())
    }

    /// Describes the rule that leads to the route. The kernel reports the table only, so the rule
    /// is the first that matches the mark and names this table.
    fn rule(&self, new: NewConnection, route: Option<&RouteLookup>) -> String {
        let family = Family::from(new.to);
        let mark = if self.is_marked(new.mobile) { self.routing.mark } else { 0 };
        let fits = |rule: &&ListedRule| rule.family == family && rule.matches_mark(mark, u32::MAX);
        let thrown = self.bypass(new.to).filter(|_| self.is_marked(new.mobile));
        let Some(route) = route else {
            if let Some(net) = thrown {
                return self.after_throw(net, "no later rule has a route");
            }
            let ours = |rule: &&ListedRule| rule.table == Some(self.routing.table);
            return match self.rules.iter().filter(fits).find(ours) {
                Some(rule) => format!("rule `{rule}`"),
                None => "no rule for this connection has a route".to_owned(),
            };
        };
        let table = table_of(route);
        let rule = match self.rules.iter().filter(fits).find(|rule| rule.table == Some(table)) {
            Some(rule) => format!("rule `{rule}`"),
            None => format!("a rule with more conditions than the mark leads to table {table}"),
        };
        match thrown.filter(|_| !route.local && table != self.routing.table) {
            Some(net) => self.after_throw(net, &rule),
            None => rule,
        }
    }

    /// Describes how a bypassed connection gets past the MOBILE route to the rule `next`.
    fn after_throw(&self, net: &IpNet, next: &str) -> String {
        format!(
            "table {} has a throw route for the bypassed network {net}, so the next rules apply: {next}",
            self.routing.table
        )
    }

    fn describe_route(&self, route: Option<&RouteLookup>) -> String {
        let Some(route) = route else { return "no route: the destination is unreachable".to_owned() };
        let mut text = format!("route of table {}", table_of(route));
        if let Some(gateway) = route.gateway {
            text.push_str(&format!(" via {gateway}"));
        }
        if let Some(oif) = route.oif {
            text.push_str(&format!(" dev {}", self.name(oif)));
        }
        if let Some(source) = route.source {
            text.push_str(&format!(", source address {source}"));
        }
        text
    }

    /// Returns what becomes of the connection, as one word and as a sentence.
    pub(super) fn outcome(&self, new: NewConnection, route: Option<&RouteLookup>) -> (Outcome, String) {
        let table = self.routing.table;
        let bypass = self.bypass(new.to).filter(|_| new.mobile);
        let tunnel = |route: &RouteLookup| route.oif.is_some_and(|oif| self.name(oif) == self.device);
        if let (Some(net), None) = (bypass, route) {
            let text = format!(
                "result: fails, because {net} is bypassed (`mobile bypass list`), and this host has no direct route \
                 to it"
            );
            return (Outcome::Fails, text);
        }
        let no_route = "result: fails, because this host has no route to it".to_owned();
        match (new.mobile, route) {
            (true, None) if !self.open => (
                Outcome::Waits,
                format!(
                    "result: waits, because table {table} has no route through the tunnel yet, and a mobile connection \
                     does not go direct instead"
                ),
            ),
            (_, None) => (Outcome::Fails, no_route),
            (_, Some(route)) if route.local => (Outcome::Local, "result: stays on this host".to_owned()),
            (_, Some(route)) if tunnel(route) && self.session == Some(false) => (
                Outcome::Waits,
                "result: waits, because there is no session; then goes through the tunnel".to_owned(),
            ),
            (_, Some(route)) if tunnel(route) => (
                Outcome::Tunnel,
                format!("result: goes through the tunnel: from {} over the active uplink", self.device),
            ),
            (false, Some(_)) => {
                (Outcome::Direct, "result: goes directly, because the process is not mobile".to_owned())
            }
            (true, Some(route)) => {
                let device = route.oif.map_or_else(String::new, |oif| format!(" over {}", self.name(oif)));
                let reason = match bypass {
                    Some(net) => format!("because {net} is bypassed (`mobile bypass list`)"),
                    None if self.open => "as every new connection until there is a session again".to_owned(),
                    None if is_link_local(new.to) => {
                        "because the destination is on the link itself".to_owned()
                    }
                    None => "although the process is mobile: another rule comes before the \
                             agent's; see `mobile check`"
                        .to_owned(),
                };
                let device = if bypass.is_some() { device } else { String::new() };
                (Outcome::Direct, format!("result: goes directly{device}, {reason}"))
            }
        }
    }

    /// Returns the name of a network device.
    pub(super) fn name(&self, index: u32) -> String {
        self.links.get(&index).cloned().unwrap_or_else(|| format!("device {index}"))
    }
}

/// Returns whether packets to this address are sent on the link itself and not through the tunnel,
/// even by mobile processes.
fn is_link_local(to: IpAddr) -> bool {
    match to {
        IpAddr::V4(to) => to.is_link_local() || to.is_multicast() || to.is_broadcast(),
        IpAddr::V6(to) => to.is_unicast_link_local() || to.is_multicast(),
    }
}

/// Returns the number of the routing table that holds a route. A local route counts as one of the
/// local table (255), although the kernel keeps local routes in the main table, and reports that
/// one, until the first rule is added.
fn table_of(route: &RouteLookup) -> u32 {
    if route.local { 255 } else { route.table }
}

#[cfg(test)]
mod tests;
